//! PID 1 of a test's guest, on a disk or as the only program of an initramfs.
#![no_main]

use std::ffi::{c_char, c_int};
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use bulkhead_agent::{clock, kmsg, mounts, net, power, ready, vsock};
use bulkhead_test_guest::{PANIC_PARAMETER, PORT, POWEROFF_PARAMETER, REBOOT_PARAMETER, UP, ops};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// A thread serves each connection; a thousand of them must fit into a small guest.
const STACK: usize = 64 << 10;

/// Called by libc. C's `main` for the reason the agent has: nothing comes before it.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    if std::process::id() != 1 {
        eprintln!("bulkhead-test-guest: this is the init of the guests that Bulkhead's tests boot");
        return 2;
    }
    let start = clock::boot_ns();
    let _ = mount(c"proc", c"/proc", c"proc", MountFlags::empty(), None);
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for parameter in cmdline.split_ascii_whitespace() {
        match parameter {
            REBOOT_PARAMETER => {
                say_up();
                let _ = reboot(RebootCommand::Restart);
            }
            POWEROFF_PARAMETER => {
                say_up();
                power::off();
            }
            PANIC_PARAMETER => {
                say_up();
                return 1;
            }
            _ => {}
        }
    }
    mounts::mount_all();
    if let Err(e) = serve(start) {
        kmsg::error(format_args!("the test guest cannot serve: {e}"));
    }
    loop {
        std::thread::park();
    }
}

/// Writes [`UP`] to the console, which the kernel opened for PID 1 unless it had none.
fn say_up() {
    let line = format!("{UP}\n");
    if io::stdout().write_all(line.as_bytes()).is_err() {
        kmsg::error(format_args!("{UP}"));
    }
}

fn serve(start: u64) -> io::Result<()> {
    // Peers that leave are an error of the write that meets them.
    // SAFETY: sets a disposition that has no handler, before there is any other thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    if let Err(e) = net::loopback_up() {
        kmsg::error(format_args!("loopback: {e}"));
    }
    let listener = vsock::listener(PORT);
    say_up();
    let listener = listener?;
    rustix::io::ioctl_fionbio(&listener, false)?;
    // As the agent does, so that a test waits for both in the same way.
    let (_, told) = ready::announce(start);
    if let Err(e) = told {
        kmsg::error(format_args!("nobody was told: {e}"));
    }
    loop {
        let flags = rustix::net::SocketFlags::CLOEXEC;
        match rustix::net::accept_with(&listener, flags) {
            Ok(connection) => start_thread(connection),
            Err(e) => kmsg::error(format_args!("accept: {e}")),
        }
    }
}

fn start_thread(connection: OwnedFd) {
    let thread = std::thread::Builder::new().stack_size(STACK);
    if let Err(e) = thread.spawn(move || ops::serve(connection)) {
        kmsg::error(format_args!("no thread for a connection: {e}"));
    }
}
