//! A hostile driver on the console, and somebody who types, reads, or does not.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::pipe;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::stream::{Direction, Stream};
use bulkhead_devices::virtio::console::{Console, ConsoleConfig, ConsoleHandle, WindowSize};
use bulkhead_fuzz::{Guest, Host, Request, in_buffers};
use libfuzzer_sys::fuzz_target;

struct Terminal {
    guest: Guest,
    room: Room,
}

/// The other ends, and the console's own input to clear it with.
struct Room {
    handle: ConsoleHandle,
    keyboard: Stream,
    screen: Stream,
    typed: Stream,
}

fn stream(fd: impl Into<OwnedFd>, direction: Direction) -> Stream {
    Stream::new(fd.into(), direction).expect("stream")
}

fn terminal(pipes: bool) -> Terminal {
    let [typed, keyboard, screen, output]: [OwnedFd; 4] = if pipes {
        let ((typed, keyboard), (screen, output)) = (pipe().expect("pipe"), pipe().expect("pipe"));
        [typed.into(), keyboard.into(), screen.into(), output.into()]
    } else {
        let (typed, keyboard) = UnixStream::pair().expect("pair");
        let (screen, output) = UnixStream::pair().expect("pair");
        [typed.into(), keyboard.into(), screen.into(), output.into()]
    };
    let own_typed = typed.as_fd().try_clone_to_owned().expect("dup");
    let console = Console::new(ConsoleConfig {
        name: "console".to_owned(),
        input: Some(typed),
        output,
        size: WindowSize::default(),
    })
    .expect("console");
    Terminal {
        room: Room {
            handle: console.handle(),
            keyboard: stream(keyboard, Direction::Output),
            screen: stream(screen, Direction::Input),
            typed: stream(own_typed, Direction::Input),
        },
        guest: Guest::new(Box::new(console)),
    }
}

/// Input that never ends, and output that always goes.
fn endless() -> Terminal {
    let open = |path| {
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("device")
    };
    let console = Console::new(ConsoleConfig {
        name: "console".to_owned(),
        input: Some(open("/dev/zero").into()),
        output: open("/dev/null").into(),
        size: WindowSize::default(),
    })
    .expect("console");
    Terminal {
        room: Room {
            handle: console.handle(),
            keyboard: stream(open("/dev/null"), Direction::Output),
            screen: stream(open("/dev/null"), Direction::Input),
            typed: stream(open("/dev/null"), Direction::Input),
        },
        guest: Guest::new(Box::new(console)),
    }
}

impl Host for Room {
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        let queue = u.int_in_range(0..=1)?;
        let len = u.int_in_range(0..=70_000)?;
        let buffers = in_buffers(u, len)?;
        let (writable, readable) = match queue {
            0 => (buffers, Vec::new()),
            _ => (Vec::new(), buffers),
        };
        Ok(Request {
            queue,
            readable,
            writable,
            ..Default::default()
        })
    }

    fn turn(&mut self, u: &mut Unstructured) {
        let _ = self.act(u);
    }
}

impl Room {
    fn act(&self, u: &mut Unstructured) -> Result<()> {
        let len = u.int_in_range(0..=100)?;
        let _ = self.keyboard.write(&[b'k'; 100][..len]);
        if u.arbitrary()? {
            self.drain(&self.screen);
        }
        self.handle.set_size(WindowSize {
            columns: u.arbitrary()?,
            rows: u.arbitrary()?,
        });
        Ok(())
    }

    fn drain(&self, stream: &Stream) {
        let mut data = [0; 4096];
        while matches!(stream.read(&mut data), Ok(n) if n > 0) {}
    }
}

thread_local! {
    static TERMINALS: RefCell<[Terminal; 3]> =
        RefCell::new([terminal(false), terminal(true), endless()]);
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let kind = u.arbitrary::<u8>().unwrap_or(0) % 3;
    TERMINALS.with_borrow_mut(|terminals| {
        let Terminal { guest, room } = &mut terminals[usize::from(kind)];
        room.drain(&room.screen);
        room.drain(&room.typed);
        guest.run(&mut u, room);
    });
});
