//! A reader of disks that believes nothing: what the image's writer wrote must hold together.

use std::collections::HashSet;

const BLOCK: usize = 4096;
const ROOT: usize = 1152;

/// Checks a disk: that every name leads to an inode, that what inodes say lies within the disk, that
/// directories are sorted and form a tree.
pub fn check(disk: &[u8]) {
    assert_eq!(disk.len() % BLOCK, 0);
    assert_eq!(u32_at(disk, 1024), 0xe0f5_e1e2);
    assert_eq!(u32_at(disk, 1024 + 36) as usize * BLOCK, disk.len());
    assert_eq!(u16_at(disk, 1024 + 14) as usize * 32, ROOT);
    let mut seen = HashSet::from([ROOT]);
    let mut todo = vec![(ROOT, ROOT)];
    while let Some((directory, parent)) = todo.pop() {
        let inode = Inode::read(disk, directory);
        assert_eq!(inode.mode & 0o170_000, 0o040_000);
        let contents = inode.contents(disk);
        let mut last: Option<&[u8]> = None;
        let mut subdirectories = 0;
        let mut dots = 0;
        for block in contents.chunks(BLOCK) {
            let first_name = u16_at(block, 8) as usize;
            assert!(first_name > 0 && first_name % 12 == 0 && first_name < block.len());
            for entry in (0..first_name).step_by(12) {
                let start = u16_at(block, entry + 8) as usize;
                let end = if entry + 12 < first_name {
                    u16_at(block, entry + 20) as usize
                } else {
                    block[start..]
                        .iter()
                        .position(|byte| *byte == 0)
                        .map_or(block.len(), |at| start + at)
                };
                let name = &block[start..end];
                assert!(!name.is_empty() && name.len() <= 255);
                assert!(!name.contains(&b'/') && !name.contains(&0));
                assert!(last.is_none_or(|last| last < name), "sorted");
                last = Some(name);
                let nid = u64::from_le_bytes(block[entry..entry + 8].try_into().expect("eight"));
                let at = usize::try_from(nid).expect("small") * 32;
                let child = Inode::read(disk, at);
                assert_eq!(block[entry + 10], child.file_type());
                match name {
                    b"." => assert_eq!(at, directory),
                    b".." => assert_eq!(at, parent),
                    _ if child.file_type() == 2 => {
                        assert!(seen.insert(at), "a directory has one name");
                        todo.push((at, directory));
                        subdirectories += 1;
                    }
                    _ => {
                        child.check(disk);
                        assert!(child.links > 0);
                    }
                }
                dots += usize::from(matches!(name, b"." | b".."));
            }
        }
        assert_eq!(dots, 2);
        assert_eq!(inode.links, subdirectories + 2);
    }
}

struct Inode {
    layout: u16,
    mode: u16,
    links: u32,
    size: u64,
    location: u32,
    /// Where the inode and its extended attributes end.
    end: usize,
}

impl Inode {
    fn read(disk: &[u8], at: usize) -> Self {
        let format = u16_at(disk, at);
        let extended = format & 1 == 1;
        let xattrs = u16_at(disk, at + 2) as usize;
        let xattrs = if xattrs == 0 {
            0
        } else {
            12 + (xattrs - 1) * 4
        };
        let len = if extended { 64 } else { 32 };
        assert!(at % BLOCK + len <= BLOCK || at / BLOCK != (at + len) / BLOCK);
        let size = if extended {
            u64::from_le_bytes(disk[at + 8..at + 16].try_into().expect("eight"))
        } else {
            u64::from(u32_at(disk, at + 8))
        };
        let inode = Self {
            layout: format >> 1,
            mode: u16_at(disk, at + 4),
            links: if extended {
                u32_at(disk, at + 44)
            } else {
                u32::from(u16_at(disk, at + 6))
            },
            size,
            location: u32_at(disk, at + 16),
            end: at + len + xattrs,
        };
        assert!(inode.end <= disk.len());
        inode
    }

    fn file_type(&self) -> u8 {
        match self.mode & 0o170_000 {
            0o100_000 => 1,
            0o040_000 => 2,
            0o020_000 => 3,
            0o060_000 => 4,
            0o010_000 => 5,
            0o120_000 => 7,
            other => panic!("type {other:o}"),
        }
    }

    /// The contents of a directory or a symbolic link, which are never in chunks.
    fn contents(&self, disk: &[u8]) -> Vec<u8> {
        self.check(disk);
        let size = self.size as usize;
        let start = self.location as usize * BLOCK;
        match self.layout {
            0 => disk[start..start + size].to_vec(),
            2 => {
                let whole = size / BLOCK * BLOCK;
                [
                    &disk[start..start + whole],
                    &disk[self.end..self.end + size % BLOCK],
                ]
                .concat()
            }
            other => panic!("layout {other}"),
        }
    }

    fn check(&self, disk: &[u8]) {
        if matches!(self.file_type(), 3..=5) {
            assert_eq!((self.layout, self.size), (0, 0));
            return;
        }
        let blocks = (disk.len() / BLOCK) as u64;
        match self.layout {
            0 => assert!(u64::from(self.location) + self.size.div_ceil(BLOCK as u64) <= blocks),
            2 => {
                let tail = self.size as usize % BLOCK;
                assert!(
                    tail > 0 && self.end % BLOCK + tail <= BLOCK,
                    "inlined across blocks"
                );
                assert!(u64::from(self.location) + self.size / BLOCK as u64 <= blocks);
                assert!(self.end + tail <= disk.len());
            }
            4 => {
                assert!(self.location < 32);
                let chunk = (BLOCK as u64) << self.location;
                for index in 0..self.size.div_ceil(chunk) {
                    let block = u32_at(disk, self.end + index as usize * 4);
                    if block != u32::MAX {
                        let len = chunk.min(self.size - index * chunk).div_ceil(BLOCK as u64);
                        assert!(u64::from(block) + len <= blocks);
                    }
                }
            }
            other => panic!("layout {other}"),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"))
}
