//! The socket device: streams both ways, many at a time, each half closed by itself.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use bulkhead_test_guest::Stream;
use bulkhead_tests::guest::{Guest, checksum, receive, send};
use bulkhead_tests::lane::{Lane, patience};
use bulkhead_tests::vm::Setup;
use bulkhead_tests::{process, vsock};
use serde_json::json;

const MIB: u64 = 1 << 20;
/// A port of the host that a test listens on.
const HOST_PORT: u32 = 5000;

#[test]
fn vsock_when_much_is_moved_each_way_then_it_arrives_whole() {
    // Guest programs are slow in one lane, the guest's kernel in the other.
    let bytes = Lane::pick(32 * MIB, 1024 * MIB);
    let guest = Guest::boot(Setup::test_guest());

    let request = json!({"op": "vsock_sink", "bytes": bytes});
    let mut stream = guest.open(&request);
    let sent = send(&mut stream, bytes, 1);
    // If that failed, the guest may know why.
    let reply = guest.reply(stream, &request);
    assert_eq!(reply.error, None, "{sent:?}");
    assert_eq!((reply.bytes, reply.checksum), (bytes, sent.expect("send")));

    let request = json!({"op": "vsock_source", "bytes": bytes, "seed": 2});
    let mut stream = guest.open(&request);
    let got = receive(&mut stream, bytes).expect("receive");
    if got.0 != bytes {
        guest
            .vm
            .fail(&format!("the data ended after {} bytes", got.0));
    }
    assert_eq!(got.1, checksum(bytes, 2));
    assert_eq!(guest.reply(stream, &request).checksum, got.1);
}

#[test]
fn vsock_when_many_connections_are_open_then_each_has_its_own_data() {
    let count = Lane::pick(100, 1000);
    process::allow_many_files();
    let guest = Guest::boot(Setup::test_guest().with("memory_mib", 256.into()));

    // From the host: all opened before the first is used, all used before the first is closed.
    let mut streams: Vec<UnixStream> = (0..count)
        .map(|_| guest.open(&json!({"op": "echo"})))
        .collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&data(i)).expect("write");
    }
    for (i, stream) in streams.iter_mut().enumerate() {
        let mut got = vec![0; data(i).len()];
        stream.read_exact(&mut got).expect("read");
        assert!(got == data(i), "connection {i} got another's data");
    }
    drop(streams);

    // From the guest.
    let listener = vsock::listen(&guest.vm.vsock_path(), HOST_PORT).expect("listen");
    let server = std::thread::spawn(move || serve_echo(&listener, count));
    let many = json!({"op": "vsock_many", "port": HOST_PORT, "count": count, "bytes": 1000});
    assert_eq!(guest.ask(many).count, count as u64);
    server.join().expect("server");
}

fn data(i: usize) -> Vec<u8> {
    let mut data = vec![0; 1000];
    Stream::new(i as u64).fill(&mut data);
    data
}

/// Takes `count` connections and sends back what comes on each.
fn serve_echo(listener: &UnixListener, count: usize) {
    let streams: Vec<UnixStream> = (0..count)
        .map(|_| vsock::accept(listener, patience()).expect("accept"))
        .collect();
    std::thread::scope(|scope| {
        for mut stream in streams {
            scope.spawn(move || {
                let mut output = stream.try_clone().expect("clone");
                let _ = std::io::copy(&mut stream, &mut output);
            });
        }
    });
}

#[test]
fn vsock_when_one_side_ends_then_the_other_can_go_on() {
    let bytes = MIB;
    let guest = Guest::boot(Setup::test_guest());

    // The host ends its side; all it sent comes back after that.
    let mut stream = guest.open(&json!({"op": "echo"}));
    let mut sender = stream.try_clone().expect("clone");
    let sent = std::thread::spawn(move || {
        let sum = send(&mut sender, bytes, 3).expect("send");
        sender.shutdown(Shutdown::Write).expect("end our side");
        sum
    });
    let got = receive(&mut stream, u64::MAX).expect("receive");
    assert_eq!(got, (bytes, sent.join().expect("sender")));

    // The guest connects, sends and ends its side; then the host answers.
    let listener = vsock::listen(&guest.vm.vsock_path(), HOST_PORT).expect("listen");
    let request = json!({"op": "vsock_dial", "port": HOST_PORT, "bytes": bytes, "seed": 4});
    let asked = guest.open(&request);
    let mut dialled = vsock::accept(&listener, patience()).expect("accept");
    let got = receive(&mut dialled, u64::MAX).expect("receive");
    assert_eq!(got, (bytes, checksum(bytes, 4)));
    let sum = send(&mut dialled, bytes, 5).expect("send");
    drop(dialled);
    let reply = guest.reply(asked, &request);
    assert_eq!(
        (reply.error, reply.bytes, reply.checksum),
        (None, bytes, sum)
    );
}

#[test]
fn vsock_when_a_peer_is_rude_then_the_others_do_not_notice() {
    let guest = Guest::boot(Setup::test_guest());
    let path = guest.vm.vsock_path();

    // Nobody listens there, in the guest or here.
    assert!(vsock::connect(&path, 9999, patience()).is_err());
    let nobody = json!({"op": "vsock_dial", "port": 9999, "bytes": 1, "seed": 1});
    assert!(guest.try_ask(&nobody).error.is_some());
    // Not the handshake that is spoken here.
    for greeting in [
        "GET / HTTP/1.1\r\n\r\n",
        "CONNECT x\n",
        "CONNECT 99999999999\n",
        "\n",
    ] {
        let mut stream = UnixStream::connect(&path).expect("connect");
        stream.set_read_timeout(Some(patience())).expect("timeout");
        stream.write_all(greeting.as_bytes()).expect("write");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"OK"), "{greeting:?}");
    }
    // Said nothing, and stays.
    let _silent = UnixStream::connect(&path).expect("connect");
    // Gone in the middle, both ways.
    let mut stream = guest.open(&json!({"op": "vsock_source", "bytes": 64 * MIB, "seed": 1}));
    receive(&mut stream, MIB).expect("receive");
    drop(stream);
    let mut stream = guest.open(&json!({"op": "vsock_sink", "bytes": 64 * MIB}));
    send(&mut stream, MIB, 1).expect("send");
    drop(stream);
    // Does not read what the guest sends.
    let idle = guest.open(&json!({"op": "vsock_source", "bytes": 64 * MIB, "seed": 1}));
    std::thread::sleep(Duration::from_millis(200));

    let request = json!({"op": "vsock_source", "bytes": MIB, "seed": 6});
    let mut stream = guest.open(&request);
    let got = receive(&mut stream, MIB).expect("receive");
    assert_eq!(got, (MIB, checksum(MIB, 6)));
    drop(idle);
}
