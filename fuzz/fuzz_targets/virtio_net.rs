//! A hostile driver on the network card, and a network that sends packets of all sizes.
#![no_main]

use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::rate_limiter::RateLimit;
use bulkhead_devices::virtio::net::{Net, NetConfig};
use bulkhead_fuzz::Guest;
use libfuzzer_sys::fuzz_target;

struct Card {
    guest: Guest,
    /// The network's end, and the card's own to clear it with.
    ends: [UnixDatagram; 2],
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
    let ends = [theirs, ours.try_clone().expect("dup")];
    let net = Net::new(config, Box::new(ours)).expect("net");
    Card {
        guest: Guest::new(Box::new(net)),
        ends,
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
        let Card { guest, ends } = &mut cards[usize::from(limited)];
        ends.iter().for_each(drain);
        guest.run(&mut u, |u| {
            let _ = send(&ends[0], u);
        });
    });
});
