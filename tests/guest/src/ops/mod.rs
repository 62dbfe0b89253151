//! The requests, carried out.

mod cpu;
mod disk;
mod net;
mod program;
mod stream;
mod system;
mod timers;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::net::{Shutdown, shutdown};

use crate::{Checksum, Reply, Request};

/// The longest request.
const MAX_REQUEST: u64 = 64 << 10;
/// How much is moved at a time. A multiple of 8, as [`crate::Stream`] wants it.
const CHUNK: usize = 256 << 10;

/// A connection with a buffered reading side: the request's line may come together with data.
pub type Client = BufReader<File>;

/// What is to happen once the reply is with the host.
enum After {
    Poweroff,
    Reboot,
    Panic,
    WritePort(u16, u8),
}

/// Serves one connection.
pub fn serve(connection: OwnedFd) {
    let mut client = BufReader::with_capacity(16 << 10, File::from(connection));
    let start = Instant::now();
    let mut after = None;
    let reply = match read_request(&mut client) {
        Ok(Request::Echo) => {
            let _ = stream::echo(&mut client);
            return;
        }
        Ok(request) => carry_out(request, &mut client, &mut after),
        Err(e) => Err(e),
    };
    let mut reply = reply.unwrap_or_else(|e| Reply {
        error: Some(e.to_string()),
        ..Reply::default()
    });
    reply.nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // If the host is gone, nobody misses the reply.
    let _ = write_reply(&mut client, &reply);
    if let Some(after) = after {
        // Not before the host has the reply, which it shows by closing.
        let _ = io::copy(&mut client, &mut io::sink());
        end(after);
    }
}

fn read_request(client: &mut Client) -> io::Result<Request> {
    let mut line = Vec::new();
    io::Read::take(&mut *client, MAX_REQUEST).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

fn write_reply(client: &mut Client, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let stream = client.get_mut();
    stream.write_all(&line)?;
    Ok(shutdown(stream.as_fd(), Shutdown::Write)?)
}

fn carry_out(
    request: Request,
    client: &mut Client,
    after: &mut Option<After>,
) -> io::Result<Reply> {
    match request {
        Request::DiskWrite {
            device,
            offset,
            bytes,
            seed,
        } => disk::write(&device, offset, bytes, seed),
        Request::DiskRead {
            device,
            offset,
            bytes,
        } => disk::read(&device, offset, bytes),
        Request::DiskDiscard {
            device,
            offset,
            bytes,
            zero,
        } => disk::discard(&device, offset, bytes, zero),
        Request::DiskInfo { device } => disk::info(&device),
        Request::VsockSink { bytes } => stream::sink(client, Some(bytes)),
        Request::VsockSource { bytes, seed } => stream::source(client.get_mut(), bytes, seed),
        Request::Echo => Ok(Reply::default()),
        Request::VsockDial { port, bytes, seed } => stream::dial(port, bytes, seed),
        Request::VsockMany { port, count, bytes } => stream::many(port, count, bytes),
        Request::NetUp { interface, address } => net::up(&interface, &address),
        Request::Ping {
            address,
            count,
            size,
        } => net::ping(&address, count, size),
        Request::TcpSink { address } => net::tcp_sink(&address),
        Request::TcpSource {
            address,
            bytes,
            seed,
        } => net::tcp_source(&address, bytes, seed),
        Request::Cpus => cpu::cpus(),
        Request::Avx {
            processes,
            iterations,
        } => cpu::avx(processes, iterations),
        Request::Spin { millis } => cpu::spin(millis),
        Request::Timers => timers::timers(),
        Request::Program {
            device,
            command,
            environment,
        } => program::run(&device, &command, environment),
        Request::Memory { touch_mib } => system::memory(touch_mib),
        Request::Rng { bytes } => system::rng(bytes),
        Request::ConsoleWrite { text } => system::write_file("/dev/console", &text),
        Request::ReadFile { path } => system::read_file(&path),
        Request::WriteFile { path, text } => system::write_file(&path, &text),
        Request::Uname => system::uname(),
        Request::Meminfo => system::read_file("/proc/meminfo"),
        Request::Poweroff => later(after, After::Poweroff),
        Request::Reboot => later(after, After::Reboot),
        Request::Panic => later(after, After::Panic),
        Request::WritePort { port, value } => later(after, After::WritePort(port, value)),
    }
}

fn later(after: &mut Option<After>, what: After) -> io::Result<Reply> {
    if std::process::id() != 1 {
        return Err(io::Error::other("only as PID 1 of a guest"));
    }
    *after = Some(what);
    Ok(Reply::default())
}

fn end(after: After) {
    let failed = match after {
        After::Poweroff => bulkhead_agent::power::off(),
        After::Reboot => {
            rustix::system::reboot(rustix::system::RebootCommand::Restart).map_err(io::Error::from)
        }
        After::Panic => std::process::exit(1),
        After::WritePort(port, value) => bulkhead_agent::power::write_port(port, value),
    };
    bulkhead_agent::kmsg::error(format_args!("the guest goes on: {failed:?}"));
}

/// Counts and sums what passes.
#[derive(Default)]
struct Tally {
    bytes: u64,
    checksum: Checksum,
}

impl Tally {
    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.checksum.update(bytes);
    }

    fn reply(&self) -> Reply {
        Reply {
            bytes: self.bytes,
            checksum: self.checksum.value(),
            ..Reply::default()
        }
    }
}

/// `error` with what it was about.
fn about(what: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;
    use std::io::Read;
    use std::net::{Shutdown, TcpListener};
    use std::os::unix::net::UnixStream;

    /// Asks for `request` on a connection of its own, `data` following; returns all that comes back.
    fn ask(request: &str, data: &[u8]) -> Vec<u8> {
        let (mut host, guest) = UnixStream::pair().expect("pair");
        let server = std::thread::spawn(move || serve(guest.into()));
        let sent = [request.as_bytes(), b"\n", data].concat();
        let mut writer = host.try_clone().expect("clone");
        let write = std::thread::spawn(move || {
            let _ = writer.write_all(&sent);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut answer = Vec::new();
        host.read_to_end(&mut answer).expect("read");
        write.join().expect("writer");
        server.join().expect("server");
        answer
    }

    fn reply(request: &str, data: &[u8]) -> Reply {
        serde_json::from_slice(&ask(request, data)).expect("reply")
    }

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Stream::new(seed).fill(&mut bytes);
        bytes
    }

    #[test]
    fn request_when_not_one_then_an_error() {
        for bad in ["", "{}", "nonsense", r#"{"op":"launch"}"#] {
            assert!(reply(bad, b"").error.is_some(), "{bad}");
        }
        assert!(reply(r#"{"op":"poweroff"}"#, b"").error.is_some());
    }

    #[test]
    fn sink_and_source_when_long_then_both_sides_agree() {
        let data = bytes(5, 3 * CHUNK + 77);
        let sunk = reply(
            &format!(r#"{{"op":"vsock_sink","bytes":{}}}"#, data.len()),
            &data,
        );
        assert_eq!(sunk.checksum, Checksum::of(&data));
        let request = format!(r#"{{"op":"vsock_source","bytes":{},"seed":5}}"#, data.len());
        let answer = ask(&request, b"");
        let (got, line) = answer.split_at(data.len());
        assert!(got == data);
        let said: Reply = serde_json::from_slice(line).expect("reply");
        assert_eq!((said.bytes, said.checksum), (sunk.bytes, sunk.checksum));
    }

    #[test]
    fn sink_when_less_follows_then_says_how_much() {
        let r = reply(r#"{"op":"vsock_sink","bytes":10}"#, b"12345");
        assert!(r.error.is_some_and(|e| e.contains("5 of 10")));
    }

    #[test]
    fn echo_when_sent_data_then_the_same_comes_back() {
        let data = bytes(1, 100_000);
        assert!(ask(r#"{"op":"echo"}"#, &data) == data);
    }

    #[test]
    fn disk_when_written_then_reads_the_same() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let device = file.path().display();
        let w = format!(
            r#"{{"op":"disk_write","device":"{device}","offset":4096,"bytes":1000001,"seed":9}}"#
        );
        let w = reply(&w, b"");
        let r =
            format!(r#"{{"op":"disk_read","device":"{device}","offset":4096,"bytes":1000001}}"#);
        let r = reply(&r, b"");
        assert_eq!(
            (w.error, w.bytes, w.checksum),
            (None, 1_000_001, r.checksum)
        );
        assert_eq!(r.checksum, Checksum::of(&bytes(9, 1_000_001)));
        let beyond = format!(r#"{{"op":"disk_read","device":"{device}","bytes":9999999}}"#);
        assert!(reply(&beyond, b"").error.is_some());
    }

    #[test]
    fn tcp_when_sunk_and_sourced_then_both_sides_agree() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let host = std::thread::spawn(move || {
            let (mut a, _) = listener.accept().expect("accept");
            a.write_all(&bytes(3, 500_000)).expect("write");
            drop(a);
            let (mut b, _) = listener.accept().expect("accept");
            let mut got = Vec::new();
            b.read_to_end(&mut got).expect("read");
            Checksum::of(&got)
        });
        let sunk = reply(
            &format!(r#"{{"op":"tcp_sink","address":"{address}"}}"#),
            b"",
        );
        assert_eq!(sunk.checksum, Checksum::of(&bytes(3, 500_000)));
        let source =
            format!(r#"{{"op":"tcp_source","address":"{address}","bytes":400000,"seed":4}}"#);
        let sourced = reply(&source, b"");
        assert_eq!(sourced.checksum, host.join().expect("host"));
    }

    #[test]
    fn processors_when_asked_then_all_answer() {
        let n = std::thread::available_parallelism().expect("count").get();
        assert!(reply(r#"{"op":"cpus"}"#, b"").count >= n as u64);
    }

    #[test]
    fn avx_when_processes_compete_then_all_come_out_right() {
        if !std::arch::is_x86_feature_detected!("avx2") {
            return;
        }
        let r = reply(r#"{"op":"avx","processes":3,"iterations":3000000}"#, b"");
        assert_eq!((r.error, r.count), (None, 3));
    }

    #[test]
    fn memory_when_touched_then_counted() {
        let r = reply(r#"{"op":"memory","touch_mib":3}"#, b"");
        assert_eq!((r.error, r.bytes), (None, 3 << 20));
        let r = reply(r#"{"op":"memory","touch_mib":99999999999}"#, b"");
        assert!(r.error.is_some());
    }

    #[test]
    fn files_and_uname_when_read_then_as_text() {
        assert!(reply(r#"{"op":"uname"}"#, b"").text.starts_with("Linux\n"));
        assert!(reply(r#"{"op":"meminfo"}"#, b"").text.contains("MemTotal"));
        let missing = reply(r#"{"op":"read_file","path":"/nowhere"}"#, b"");
        assert!(missing.error.is_some_and(|e| e.starts_with("/nowhere: ")));
    }
}
