//! Disks, by their device files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::{about, stream};
use crate::Reply;

// From linux/fs.h; they take no structure whose layout could differ, so the numbers are fixed.
const BLKROGET: u64 = 0x125e;
const BLKFLSBUF: u64 = 0x1261;
const BLKDISCARD: u64 = 0x1277;
const BLKZEROOUT: u64 = 0x127f;

pub fn write(device: &str, offset: u64, bytes: u64, seed: u64) -> io::Result<Reply> {
    let mut file = open_for_data(device, true, offset, bytes)?;
    let reply = stream::source(&mut file, bytes, seed).map_err(about(device))?;
    file.sync_all().map_err(about(device))?;
    Ok(reply)
}

pub fn read(device: &str, offset: u64, bytes: u64) -> io::Result<Reply> {
    let mut file = open_for_data(device, false, offset, bytes)?;
    // What is in the page cache would be compared with itself. (A plain file, in this crate's own
    // tests, refuses, and has no device behind it to be tested.)
    // SAFETY: BLKFLSBUF takes no argument.
    let _ = unsafe { libc::ioctl(file.as_raw_fd(), BLKFLSBUF as _, 0) };
    stream::sink(&mut file, Some(bytes)).map_err(about(device))
}

pub fn discard(device: &str, offset: u64, bytes: u64, zero: bool) -> io::Result<Reply> {
    let file = open(device, true, 0)?;
    let request = if zero { BLKZEROOUT } else { BLKDISCARD };
    let range = [offset, bytes];
    // SAFETY: both requests read two 64-bit integers, which live through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), request as _, range.as_ptr()) } < 0 {
        return Err(about(device)(io::Error::last_os_error()));
    }
    Ok(Reply {
        bytes,
        ..Reply::default()
    })
}

pub fn info(device: &str) -> io::Result<Reply> {
    let mut file = open(device, false, 0)?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(about(device))?;
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int, which lives through the call.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET as _, &raw mut read_only) } < 0 {
        return Err(about(device)(io::Error::last_os_error()));
    }
    Ok(Reply {
        bytes,
        text: if read_only == 0 { "rw" } else { "ro" }.into(),
        ..Reply::default()
    })
}

/// Opens a disk to move much data. Past the page cache if the data's place allows it: that is a tenth of
/// the work for the guest's kernel, which where it is emulated would take minutes.
fn open_for_data(device: &str, write: bool, offset: u64, bytes: u64) -> io::Result<File> {
    let is_disk = std::fs::metadata(device)
        .map_err(about(device))?
        .file_type()
        .is_block_device();
    if !is_disk || !(offset | bytes).is_multiple_of(stream::ALIGNMENT as u64) {
        return open(device, write, offset);
    }
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(device);
    let mut file = file.map_err(about(device))?;
    file.seek(SeekFrom::Start(offset)).map_err(about(device))?;
    Ok(file)
}

fn open(device: &str, write: bool, offset: u64) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(write).open(device);
    let mut file = file.map_err(about(device))?;
    file.seek(SeekFrom::Start(offset)).map_err(about(device))?;
    Ok(file)
}

/// Reads exactly `bytes` bytes of a file.
pub fn read_exactly(path: &str, bytes: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; bytes];
    let mut file = open(path, false, 0)?;
    file.read_exact(&mut data).map_err(about(path))?;
    Ok(data)
}
