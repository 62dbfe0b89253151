//! A hostile driver on the entropy device, with and without a limit.
#![no_main]

use std::cell::RefCell;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::rng::Rng;
use bulkhead_fuzz::{Guest, Host, Request, in_buffers};
use libfuzzer_sys::fuzz_target;

struct Driver;

impl Host for Driver {
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        let len = u.int_in_range(0..=70_000)?;
        Ok(Request {
            writable: in_buffers(u, len)?,
            ..Default::default()
        })
    }
}

fn guest(limited: bool) -> Guest {
    let limit = RateLimit {
        bytes_per_second: if limited { 100_000_000 } else { 0 },
        burst_bytes: 4096,
        ..Default::default()
    };
    Guest::new(Box::new(Rng::new("rng".to_owned(), &limit).expect("rng")))
}

thread_local! {
    static GUESTS: RefCell<[Guest; 2]> = RefCell::new([guest(false), guest(true)]);
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let limited = u.arbitrary().unwrap_or(false);
    GUESTS.with_borrow_mut(|guests| guests[usize::from(limited)].run(&mut u, &mut Driver));
});
