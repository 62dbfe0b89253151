//! A pseudo-terminal with a command on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::lane::patience;

/// A terminal: what is typed on it, and what it shows.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    screen: mpsc::Receiver<Vec<u8>>,
    line: OwnedFd,
    name: PathBuf,
    before: Termios,
    seen: String,
}

impl Terminal {
    /// A new terminal.
    pub fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("open a terminal");
        grantpt(&master).expect("grant");
        unlockpt(&master).expect("unlock");
        let name = ptsname(&master, Vec::new()).expect("name");
        let name = PathBuf::from(name.into_string().expect("a path"));
        let line = open_line(&name);
        let before = tcgetattr(&line).expect("settings");
        let keyboard = File::from(master);
        let mut output = keyboard.try_clone().expect("clone");
        let (sender, screen) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal {
            keyboard,
            screen,
            line: line.into(),
            name,
            before,
            seen: String::new(),
        }
    }

    /// Has all of the command's standard streams be this terminal, and the command be in its
    /// foreground: it gets the signals that keys and sizes make.
    pub fn give_to(&self, command: &mut Command) {
        let open = || open_line(&self.name);
        command.stdin(open()).stdout(open()).stderr(open());
        // SAFETY: between fork and exec this makes two async-signal-safe system calls and touches no
        // memory of the parent's.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            });
        }
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("type");
    }

    /// Gives it another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.line, size).expect("resize");
    }

    /// Waits until the text is on the screen, and forgets what came up to it.
    pub fn wait_for(&mut self, text: &str) {
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            match self.screen.recv_timeout(patience()) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => panic!("{text:?} is not on the screen ({e}): {}", self.seen),
            }
        }
    }

    /// Whether what is typed goes on as it is.
    pub fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("settings").local_modes;
        !modes.contains(LocalModes::ICANON)
    }

    /// The terminal is as it was. A keeper may need a moment for that.
    pub fn expect_restored(&self) {
        let deadline = Instant::now() + patience();
        loop {
            let now = tcgetattr(&self.line).expect("settings");
            if now.local_modes == self.before.local_modes
                && now.input_modes == self.before.input_modes
                && now.output_modes == self.before.output_modes
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "the terminal is left raw: {now:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn open_line(name: &PathBuf) -> File {
    File::options()
        .read(true)
        .write(true)
        .open(name)
        .expect("open the line")
}
