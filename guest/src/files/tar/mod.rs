//! The tar format, as much of it as files of containers need: ustar with pax headers (POSIX.1-2017,
//! `pax`), and, to read only, GNU's long names.
//!
//! Nothing is kept of an archive but the entry at hand, and its texts have limits ([`MAX_TEXT`]).

mod header;
pub mod reader;
pub mod writer;

/// What an archive is made of, bytes.
pub const BLOCK: usize = 512;
/// The longest name, link or pax header of an entry, bytes.
pub const MAX_TEXT: usize = 64 << 10;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with data.
    File,
    /// Another name of an entry before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A folder.
    Folder,
    /// A named pipe.
    Fifo,
}

/// An entry without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-user-ID and the like.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// How much data follows, bytes.
    pub size: u64,
    /// When it was changed, seconds since 1970.
    pub mtime: i64,
    /// Where a link leads.
    pub link: Vec<u8>,
    /// Of a device, its numbers.
    pub device: (u32, u32),
}

/// How many bytes fill the last block of `size` bytes.
pub fn padding(size: u64) -> usize {
    // Less than a block.
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Cursor, Read};

    fn entries() -> impl Strategy<Value = Vec<(Entry, Vec<u8>)>> {
        // A file whose name ends with a slash is a folder.
        let name =
            proptest::collection::vec((1u8..=255).prop_filter("slash", |&b| b != b'/'), 1..300);
        let kind = prop::sample::select(vec![
            Kind::File,
            Kind::HardLink,
            Kind::Symlink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Folder,
            Kind::Fifo,
        ]);
        let data = proptest::collection::vec(any::<u8>(), 0..1500);
        let numbers = (0u32..0o10000, any::<u32>(), any::<u32>(), any::<i64>());
        let entry = (name.clone(), name, kind, numbers, data, 0u32..2_000_000).prop_map(
            |(path, link, kind, (mode, uid, gid, mtime), data, device)| {
                let is_link = matches!(kind, Kind::HardLink | Kind::Symlink);
                let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
                let data = if kind == Kind::File { data } else { Vec::new() };
                let entry = Entry {
                    path,
                    kind,
                    mode,
                    uid,
                    gid,
                    size: data.len() as u64,
                    mtime,
                    link: if is_link { link } else { Vec::new() },
                    device: if is_device {
                        (device, device / 2)
                    } else {
                        (0, 0)
                    },
                };
                (entry, data)
            },
        );
        proptest::collection::vec(entry, 0..6)
    }

    proptest! {
        #[test]
        fn entries_when_written_and_read_then_the_same(entries in entries()) {
            let mut archive = Vec::new();
            for (entry, data) in &entries {
                writer::header(&mut archive, entry);
                archive.extend_from_slice(data);
                archive.resize(archive.len() + padding(entry.size), 0);
            }
            writer::end(&mut archive);
            let mut reader = reader::Reader::new(Cursor::new(&archive));
            for (entry, data) in &entries {
                let read = reader.next_entry().expect("entry").expect("not the end");
                prop_assert_eq!(&read, entry);
                let mut content = Vec::new();
                reader.data().read_to_end(&mut content).expect("data");
                prop_assert_eq!(&content, data);
            }
            prop_assert!(reader.next_entry().expect("end").is_none());
        }

        #[test]
        fn any_blocks_when_read_then_no_panic(
            mut archive in proptest::collection::vec(any::<u8>(), 0..2048),
            kind in prop::sample::select(b"01234567xgLK".to_vec()),
        ) {
            // As it stands it would hardly ever pass for a header.
            if archive.len() >= BLOCK {
                archive[124..136].copy_from_slice(b"00000000700\0");
                archive[156] = kind;
                let block: &mut [u8; BLOCK] = archive[..BLOCK].as_mut().try_into().expect("block");
                header::set_checksum(block);
            }
            let mut reader = reader::Reader::new(Cursor::new(&archive));
            while let Ok(Some(_)) = reader.next_entry() {
                let _ = reader.data().read_to_end(&mut Vec::new());
            }
        }
    }
}
