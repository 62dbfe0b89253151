//! A hostile driver on the network card, and a network that sends packets of all sizes.
#![no_main]

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::net::{Net, NetConfig};
use bulkhead_fuzz::{Guest, Host, Request, in_buffers};
use libfuzzer_sys::fuzz_target;

struct Network(UnixDatagram);

impl Host for Network {
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        let mut request = Request::default();
        if u.arbitrary()? {
            let len = u.int_in_range(0..=5000)?;
            request.writable = in_buffers(u, len)?;
        } else {
            request.queue = 1;
            request.header = u.bytes(12)?.to_vec();
            let len = u.int_in_range(0..=70_000)?;
            request.readable = in_buffers(u, len)?;
        }
        Ok(request)
    }

    fn turn(&mut self, u: &mut Unstructured) {
        let _ = send(&self.0, u);
    }
}

struct Card {
    guest: Guest,
    network: Network,
    /// The card's end, to clear it with.
    own: UnixDatagram,
}

fn card(limited: bool) -> Card {
    let (ours, theirs) = UnixDatagram::pair().expect("pair");
    ours.set_nonblocking(true).expect("non-blocking");
    theirs.set_nonblocking(true).expect("non-blocking");
    let limit = RateLimit {
        bytes_per_second: if limited { 100_000_000 } else { 0 },
        operations_per_second: if limited { 100_000 } else { 0 },
        burst_bytes: 4096,
        burst_operations: 4,
    };
    let config = NetConfig {
        name: "net0".to_owned(),
        mac: None,
        mtu: limited.then_some(9000),
        receive_limit: limit,
        transmit_limit: limit,
    };
    let own = ours.try_clone().expect("dup");
    let net = Net::new(config, Box::new(ours)).expect("net");
    Card {
        guest: Guest::new(Box::new(net)),
        network: Network(theirs),
        own,
    }
}

fn send(network: &UnixDatagram, u: &mut Unstructured) -> Result<()> {
    for _ in 0..u.int_in_range(0..=3)? {
        let len: u16 = if u.arbitrary()? {
            u.arbitrary()?
        } else {
            u.int_in_range(0..=2000)?
        };
        let _ = network.send(&vec![0x5a; len.into()]);
    }
    if u.arbitrary()? {
        drain(network);
    }
    Ok(())
}

fn drain(socket: &UnixDatagram) {
    // A datagram may be empty, so 0 is not the end.
    while socket.recv(&mut [0; 1]).is_ok() {}
}

thread_local! {
    static CARDS: RefCell<[Card; 2]> = RefCell::new([card(false), card(true)]);
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let limited = u.arbitrary().unwrap_or(false);
    CARDS.with_borrow_mut(|cards| {
        let Card {
            guest,
            network,
            own,
        } = &mut cards[usize::from(limited)];
        drain(&network.0);
        drain(own);
        guest.run(&mut u, network);
    });
});
