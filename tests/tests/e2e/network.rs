//! The network card, on a tap in a namespace of the test's.

use std::net::{Ipv4Addr, TcpListener};

use bulkhead_tests::guest::{Guest, checksum, receive, send};
use bulkhead_tests::lane::{Lane, patience};
use bulkhead_tests::net;
use bulkhead_tests::vm::Setup;
use serde_json::json;

const MIB: u64 = 1 << 20;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const GUEST: &str = "10.7.0.2/24";
const MAC: &str = "02:00:00:00:07:02";

#[test]
fn network_when_a_guest_has_a_tap_then_it_pings_and_moves_much_each_way() {
    let bytes = 100 * MIB;
    // To an emulated kernel a packet has its price, whatever is in it: with the usual size, this would
    // take a quarter of an hour.
    let mtu = Lane::pick(65_520, 1500);
    net::in_new_namespace(|| {
        let tap = net::Tap::new("test0", HOST, 24).expect("make a tap");
        net::set_mtu(tap.name(), mtu).expect("set the MTU");
        let net = json!({"tap": tap.name(), "mac": MAC, "mtu": mtu});
        let guest = Guest::boot(Setup::test_guest().net(net));
        guest.ask(json!({"op": "net_up", "interface": "eth0", "address": GUEST}));
        let address = guest.ask(json!({"op": "read_file", "path": "/sys/class/net/eth0/address"}));
        assert_eq!(address.text.trim(), MAC);

        for size in [56, 1472, 20_000] {
            let ping = json!({"op": "ping", "address": HOST, "count": 3, "size": size});
            assert_eq!(guest.ask(ping).count, 3, "{size} bytes");
        }

        let listener = TcpListener::bind((HOST, 0)).expect("listen");
        let address = listener.local_addr().expect("address").to_string();
        let request = json!({"op": "tcp_sink", "address": address});
        let asked = guest.open(&request);
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_write_timeout(Some(patience())).expect("timeout");
        let sent = send(&mut stream, bytes, 1).expect("send");
        drop(stream);
        let reply = guest.reply(asked, &request);
        assert_eq!(
            (reply.error, reply.bytes, reply.checksum),
            (None, bytes, sent)
        );

        let request = json!({"op": "tcp_source", "address": address, "bytes": bytes, "seed": 2});
        let asked = guest.open(&request);
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(patience())).expect("timeout");
        let got = receive(&mut stream, u64::MAX).expect("receive");
        assert_eq!(got, (bytes, checksum(bytes, 2)));
        assert_eq!(guest.reply(asked, &request).checksum, got.1);
    });
}

#[test]
fn network_when_an_mtu_is_given_then_the_guest_keeps_to_it() {
    net::in_new_namespace(|| {
        let tap = net::Tap::new("test0", HOST, 24).expect("make a tap");
        let guest = Guest::boot(
            Setup::test_guest().net(json!({"tap": tap.name(), "mtu": 1400,
            "rate_limit": {"bytes_per_second": 50 * MIB}})),
        );
        guest.ask(json!({"op": "net_up", "interface": "eth0", "address": GUEST}));
        let mtu = guest.ask(json!({"op": "read_file", "path": "/sys/class/net/eth0/mtu"}));
        assert_eq!(mtu.text.trim(), "1400");
        let ping = json!({"op": "ping", "address": HOST, "count": 2, "size": 1472});
        assert_eq!(guest.ask(ping).count, 2);
    });
}
