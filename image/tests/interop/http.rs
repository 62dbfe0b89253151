//! Servers that do what real ones should not: tiny HTTP, and a wire that breaks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

/// A request's head.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// An answer: status, headers, body.
pub type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// Serves each connection once, until the test program ends. Returns the port.
pub fn serve(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("address").port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || respond(stream, &*answer));
        }
    });
    port
}

fn respond(mut stream: TcpStream, answer: &dyn Fn(&Asked) -> Answer) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let mut asked = Asked {
        method: words.next()?.into(),
        target: words.next()?.into(),
        headers: Vec::new(),
    };
    for line in lines {
        let line = line.ok()?;
        let Some((key, value)) = line.split_once(':') else {
            break;
        };
        asked
            .headers
            .push((key.to_lowercase(), value.trim().to_owned()));
    }
    let (status, headers, body) = answer(&asked);
    let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    if !headers.iter().any(|(key, _)| *key == "Content-Length") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (key, value) in headers {
        head += &format!("{key}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if asked.method != "HEAD" {
        stream.write_all(&body).ok()?;
    }
    stream.shutdown(Shutdown::Write).ok()
}

/// Passes connections on to `port`, slowly: 16 MB/s each.
pub fn slow_wire(port: u16) -> u16 {
    wire(port, (0, u64::MAX), Duration::from_millis(1)).0
}

/// Passes connections on to `port`. Each of the first `breaks` that carry much is cut after `bytes` to
/// the client, or to the server. Returns the port, and a count of the cuts.
pub fn breaking_wire(port: u16, breaks: usize, bytes: u64) -> (u16, Arc<AtomicUsize>) {
    wire(port, (breaks, bytes), Duration::ZERO)
}

fn wire(port: u16, cut: (usize, u64), pause: Duration) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let own = listener.local_addr().expect("address").port();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&cuts);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", port)).expect("connected");
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to) = (from.try_clone().expect("fd"), to.try_clone().expect("fd"));
                let cuts = Arc::clone(&counted);
                thread::spawn(move || pass((from, to), &cuts, cut, pause));
            }
        }
    });
    (own, cuts)
}

fn pass(
    (mut from, mut to): (TcpStream, TcpStream),
    cuts: &AtomicUsize,
    (breaks, bytes): (usize, u64),
    pause: Duration,
) {
    let mut buffer = [0; 16 << 10];
    let mut passed = 0;
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        passed += n as u64;
        let again = |cuts| (cuts < breaks).then_some(cuts + 1);
        if passed > bytes
            && cuts
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, again)
                .is_ok()
        {
            break;
        }
        thread::sleep(pause);
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
