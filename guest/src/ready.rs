//! Telling the host that the API can be connected to.
//!
//! Nothing here allocates: the first allocation of a process is a handful of system calls and page
//! faults, and they can wait until after this.

use std::borrow::Cow;
use std::io;

use bulkhead_protocol::{API_VERSION, BootTimings, READY_PORT, Ready};
use rustix::net::{SendFlags, send};

use crate::{VERSION, clock, vsock};

/// More than the line can be: a kernel release is at most 64 bytes, a number 20.
const MAX_LINE: usize = 512;

/// Dials the host and writes [`Ready`]. Returns the timings, whose `ready_ns` holds whether or not
/// anybody listened.
pub fn announce(init_start_ns: u64) -> (BootTimings, io::Result<()>) {
    let kernel = rustix::system::uname();
    let host = vsock::connect_to_host(READY_PORT);
    let timings = BootTimings {
        init_start_ns,
        ready_ns: clock::boot_ns(),
    };
    let told = host.and_then(|host| {
        let mut buffer = [0; MAX_LINE];
        let line = line(&mut buffer, timings, kernel.release().to_bytes())?;
        send(&host, line, SendFlags::NOSIGNAL)?;
        Ok(())
    });
    (timings, told)
}

/// Whether `error` means that there is no host to tell: nobody listens there, or there is no vsock
/// device. That is how a guest under another VMM looks, and no fault.
pub fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNRESET
                | libc::ECONNREFUSED
                | libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENODEV
                | libc::ETIMEDOUT
                | libc::EAFNOSUPPORT
        )
    )
}

fn line<'b>(
    buffer: &'b mut [u8; MAX_LINE],
    timings: BootTimings,
    kernel_release: &[u8],
) -> io::Result<&'b [u8]> {
    let ready = Ready {
        api: API_VERSION,
        agent_version: Cow::Borrowed(VERSION),
        kernel_release: Cow::Borrowed(str::from_utf8(kernel_release).unwrap_or("?")),
        timings,
    };
    let mut rest = &mut buffer[..];
    serde_json::to_writer(&mut rest, &ready)?;
    io::Write::write_all(&mut rest, b"\n")?;
    let unused = rest.len();
    Ok(&buffer[..MAX_LINE - unused])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_when_everything_is_at_its_longest_then_fits_and_reads_back() {
        let timings = BootTimings {
            init_start_ns: u64::MAX,
            ready_ns: u64::MAX,
        };
        let mut buffer = [0; MAX_LINE];
        let line = line(&mut buffer, timings, &[b'"'; 64]).expect("fits");
        assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
        let ready: Ready<'_> = serde_json::from_slice(line).expect("JSON");
        assert_eq!((ready.api, ready.timings), (API_VERSION, timings));
    }
}
