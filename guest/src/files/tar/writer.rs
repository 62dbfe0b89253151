//! Archives are written here.

use super::header::{self, Block};
use super::{BLOCK, Entry, Kind, padding};

/// Appends an entry's header; its data and [`padding`] are to follow. What does not fit the fields of
/// ustar goes into a pax header before it.
pub fn header(archive: &mut Vec<u8>, entry: &Entry) {
    let mut block: Block = [0; BLOCK];
    let mut pax = Vec::new();
    let mut text = |field: &mut [u8], key: &str, value: &[u8]| {
        let fits = value.len().min(field.len());
        field[..fits].copy_from_slice(&value[..fits]);
        // Text in a pax header is UTF-8, and whoever reads it may insist.
        if value.len() > field.len() || !value.is_ascii() {
            record(&mut pax, key, value);
        }
    };
    text(&mut block[header::NAME], "path", &entry.path);
    text(&mut block[header::LINK], "linkpath", &entry.link);
    let mut number = |field: &mut [u8], key: &str, value: u64| {
        if !header::set_number(field, value) {
            record(&mut pax, key, value.to_string().as_bytes());
        }
    };
    number(&mut block[header::UID], "uid", entry.uid.into());
    number(&mut block[header::GID], "gid", entry.gid.into());
    number(&mut block[header::SIZE], "size", entry.size);
    match u64::try_from(entry.mtime) {
        Ok(mtime) => number(&mut block[header::MTIME], "mtime", mtime),
        Err(_) => {
            header::set_number(&mut block[header::MTIME], 0);
            record(&mut pax, "mtime", entry.mtime.to_string().as_bytes());
        }
    }
    header::set_number(&mut block[header::MODE], entry.mode.into());
    // Up to 2^21, and the kernel's go to 2^20.
    header::set_number(&mut block[header::MAJOR], entry.device.0.into());
    header::set_number(&mut block[header::MINOR], entry.device.1.into());
    block[header::TYPE] = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Folder => b'5',
        Kind::Fifo => b'6',
    };
    block[header::MAGIC].copy_from_slice(header::USTAR);
    if !pax.is_empty() {
        extended(archive, &pax);
    }
    header::set_checksum(&mut block);
    archive.extend_from_slice(&block);
}

/// Appends a pax header for the entry that follows.
fn extended(archive: &mut Vec<u8>, records: &[u8]) {
    let mut block: Block = [0; BLOCK];
    block[..9].copy_from_slice(b"PaxHeader");
    let size = records.len() as u64;
    header::set_number(&mut block[header::MODE], 0o644);
    for field in [
        header::UID,
        header::GID,
        header::MTIME,
        header::MAJOR,
        header::MINOR,
    ] {
        header::set_number(&mut block[field], 0);
    }
    header::set_number(&mut block[header::SIZE], size);
    block[header::TYPE] = b'x';
    block[header::MAGIC].copy_from_slice(header::USTAR);
    header::set_checksum(&mut block);
    archive.extend_from_slice(&block);
    archive.extend_from_slice(records);
    archive.resize(archive.len() + padding(size), 0);
}

/// Appends a record of a pax header: `<length> <key>=<value>\n`, where the length counts itself.
fn record(pax: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(format!("{length} {key}=").as_bytes());
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

/// Appends the archive's end.
pub fn end(archive: &mut Vec<u8>) {
    archive.resize(archive.len() + 2 * BLOCK, 0);
}
