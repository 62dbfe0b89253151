//! Setting a guest's clock by the host's.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use bulkhead_protocol::{Clock, path};

use crate::agent::{Agent, check};
use crate::error::{Error, cannot};
use crate::http;

/// A clock that is so near is right.
const NEAR: Duration = Duration::from_micros(200);
/// How often it is set at most: each time is nearer than the one before, as long as both ways take the same.
const ROUNDS: usize = 4;

/// Sets the guest's clock. The connection for that is closed when this returns, at the guest's end, too.
pub fn set(agent: &Agent) -> Result<(), Error> {
    let mut stream = agent.connect()?;
    // The first answer takes as long as it takes to connect.
    read(&mut stream)?;
    let mut way = read(&mut stream)?.round_trip / 2;
    for _ in 0..ROUNDS {
        let unix_ns = unix_ns().saturating_add(nanoseconds(way));
        ask(&mut stream, "PUT", &Clock { unix_ns })?;
        let off = read(&mut stream)?.ahead;
        if off.unsigned_abs() <= nanoseconds(NEAR) {
            break;
        }
        // What it is ahead, it was told too much.
        let told = i128::from(nanoseconds(way)) - i128::from(off);
        way = Duration::from_nanos(u64::try_from(told).unwrap_or(0));
    }
    stream
        .shutdown(std::net::Shutdown::Write)
        .and_then(|()| std::io::copy(&mut stream, &mut std::io::sink()))
        .map(drop)
        .map_err(cannot("end the connection to the guest's agent"))
}

/// What a look at the guest's clock tells.
struct Look {
    round_trip: Duration,
    /// How much the guest's clock is ahead of the host's, in nanoseconds, if both ways take the same.
    ahead: i64,
}

fn read(stream: &mut UnixStream) -> Result<Look, Error> {
    let (started, before) = (Instant::now(), unix_ns());
    let body = send(stream, "GET", "")?;
    let round_trip = started.elapsed();
    let clock: Clock =
        serde_json::from_slice(&body).map_err(cannot("understand the guest's agent"))?;
    let here = before.saturating_add(nanoseconds(round_trip / 2));
    let ahead = i128::from(clock.unix_ns) - i128::from(here);
    Ok(Look {
        round_trip,
        ahead: i64::try_from(ahead).unwrap_or(i64::MAX),
    })
}

fn ask(stream: &mut UnixStream, method: &str, clock: &Clock) -> Result<(), Error> {
    let body = serde_json::to_string(clock).map_err(cannot("ask the agent"))?;
    send(stream, method, &body).map(drop)
}

fn send(stream: &mut UnixStream, method: &str, body: &str) -> Result<Vec<u8>, Error> {
    let answer = http::ask_again(stream, method, path::CLOCK, body);
    check(answer.map_err(cannot("talk to the guest's agent"))?)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    /// An agent with a clock of its own, to which a request takes longer than an answer takes back.
    fn serve(listener: &UnixListener, ahead: &Mutex<i128>, way: Duration) {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut reader = BufReader::new(stream.try_clone().expect("clone"));
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if reader.read_until(b'\n', &mut head).expect("read") == 0 {
                    return;
                }
            }
            let head = String::from_utf8(head).expect("text");
            let (_, length) = head.split_once("Content-Length: ").expect("length");
            let length: u64 = length.trim().parse().expect("a number");
            let mut body = Vec::new();
            let mut reader = reader.by_ref().take(length);
            reader.read_to_end(&mut body).expect("body");
            thread::sleep(way);
            let mut ahead = ahead.lock().expect("lock");
            let now = i128::from(unix_ns());
            if head.starts_with("PUT") {
                let clock: Clock = serde_json::from_slice(&body).expect("a Clock");
                *ahead = i128::from(clock.unix_ns) - now;
            }
            let unix_ns = u64::try_from(now + *ahead).expect("time");
            let body = serde_json::to_string(&Clock { unix_ns }).expect("JSON");
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .expect("answer");
        }
    }

    #[test]
    fn clock_when_set_is_right_to_half_of_what_one_way_takes_longer() {
        let dir = tempfile::tempdir().expect("folder");
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).expect("bind");
        let ahead = Arc::new(Mutex::new(1_000_000_000_000));
        let way = Duration::from_millis(20);
        let agent = thread::spawn({
            let ahead = Arc::clone(&ahead);
            move || serve(&listener, &ahead, way)
        });
        set(&Agent::at(&socket)).expect("set");
        agent.join().expect("agent");
        let off = *ahead.lock().expect("lock");
        // A busy machine is slow; that it is not a thousand seconds is what counts.
        assert!(off.abs() < 200_000_000, "{off} ns");
    }
}
