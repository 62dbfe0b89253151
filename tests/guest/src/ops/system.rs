//! Memory, entropy, files: the rest of the machine.

use std::fmt::Write as _;
use std::io::{self, Write};

use super::{about, disk};
use crate::{Checksum, Reply};

const PAGE: usize = 4096;

pub fn memory(mib: u64) -> io::Result<Reply> {
    let too_much = || io::Error::other(format!("{mib} MiB is more than there can be"));
    let bytes = mib.checked_mul(1 << 20).ok_or_else(too_much)?;
    let length = usize::try_from(bytes).map_err(|_| too_much())?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, at an address of the kernel's choice, of no file.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for page in (0..length).step_by(PAGE) {
        // SAFETY: `page` is less than the mapping's length, and the mapping is ours and writable.
        unsafe { start.cast::<u8>().add(page).write_volatile(1) };
    }
    // SAFETY: unmaps what was mapped above, which nothing refers to any more.
    unsafe { libc::munmap(start, length) };
    Ok(Reply {
        bytes,
        ..Reply::default()
    })
}

pub fn rng(bytes: u32) -> io::Result<Reply> {
    let data = disk::read_exactly("/dev/hwrng", bytes.min(4096) as usize)?;
    let mut text = String::new();
    for byte in &data {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(Reply {
        bytes: data.len() as u64,
        checksum: Checksum::of(&data),
        text,
        ..Reply::default()
    })
}

pub fn read_file(path: &str) -> io::Result<Reply> {
    let data = std::fs::read(path).map_err(about(path))?;
    Ok(Reply {
        bytes: data.len() as u64,
        text: String::from_utf8_lossy(&data).into_owned(),
        ..Reply::default()
    })
}

pub fn write_file(path: &str, text: &str) -> io::Result<Reply> {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    let mut file = file.map_err(about(path))?;
    file.write_all(text.as_bytes()).map_err(about(path))?;
    Ok(Reply {
        bytes: text.len() as u64,
        ..Reply::default()
    })
}

pub fn uname() -> io::Result<Reply> {
    let u = rustix::system::uname();
    let fields = [
        u.sysname(),
        u.nodename(),
        u.release(),
        u.version(),
        u.machine(),
    ];
    let text = fields.map(|f| f.to_string_lossy().into_owned()).join("\n");
    Ok(Reply {
        text,
        ..Reply::default()
    })
}
