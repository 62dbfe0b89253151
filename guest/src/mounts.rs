//! The file systems every program expects, and taking them down.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::kmsg;

struct Mount {
    fstype: &'static CStr,
    target: &'static CStr,
    flags: MountFlags,
    options: Option<&'static CStr>,
    /// The directory lies on a file system mounted by an earlier entry and is made first.
    make: bool,
}

const NOSUID_NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NO_PROGRAMS: MountFlags = NOSUID_NODEV.union(MountFlags::NOEXEC);

/// In the order in which they are mounted. The directories without `make` are in the root image.
const MOUNTS: [Mount; 8] = [
    Mount {
        fstype: c"proc",
        target: c"/proc",
        flags: NO_PROGRAMS,
        options: None,
        make: false,
    },
    Mount {
        fstype: c"sysfs",
        target: c"/sys",
        flags: NO_PROGRAMS,
        options: None,
        make: false,
    },
    // Already there with CONFIG_DEVTMPFS_MOUNT, and then EBUSY says so.
    Mount {
        fstype: c"devtmpfs",
        target: c"/dev",
        flags: MountFlags::NOSUID,
        options: Some(c"mode=0755"),
        make: false,
    },
    Mount {
        fstype: c"devpts",
        target: c"/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        options: Some(c"gid=5,mode=620,ptmxmode=666"),
        make: true,
    },
    Mount {
        fstype: c"tmpfs",
        target: c"/dev/shm",
        flags: NOSUID_NODEV,
        options: Some(c"mode=1777"),
        make: true,
    },
    Mount {
        fstype: c"tmpfs",
        target: c"/run",
        flags: NOSUID_NODEV,
        options: Some(c"mode=0755"),
        make: false,
    },
    Mount {
        fstype: c"tmpfs",
        target: c"/tmp",
        flags: NOSUID_NODEV,
        options: Some(c"mode=1777"),
        make: false,
    },
    // The directory exists as soon as sysfs does, if the kernel has cgroups.
    Mount {
        fstype: c"cgroup2",
        target: c"/sys/fs/cgroup",
        flags: NO_PROGRAMS,
        options: Some(c"nsdelegate,memory_recursiveprot"),
        make: false,
    },
];

/// Mounts what a guest needs. A file system that this kernel lacks is logged and done without.
pub fn mount_all() {
    for m in &MOUNTS {
        if m.make {
            // EEXIST is as good; any other failure shows in the mount.
            let _ = rustix::fs::mkdir(m.target, Mode::from_raw_mode(0o755));
        }
        match mount(m.fstype, m.target, m.fstype, m.flags, m.options) {
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => kmsg::error(format_args!("cannot mount {:?}: {e}", m.target)),
        }
    }
}

/// Unmounts every file system that lies on a block device, or makes it read-only where it is in
/// use, so that each is clean on its disk. The others end with the kernel.
pub fn unmount_disks() {
    let mounts = match std::fs::read("/proc/self/mounts") {
        Ok(mounts) => mounts,
        Err(e) => return kmsg::error(format_args!("cannot read /proc/self/mounts: {e}")),
    };
    for target in disk_mounts(&mounts) {
        if unmount(&*target, UnmountFlags::empty()).is_ok() {
            continue;
        }
        let read_only = MountFlags::RDONLY;
        if let Err(e) = mount_remount(&*target, read_only, c"") {
            kmsg::error(format_args!("cannot unmount {target:?}: {e}"));
        }
    }
}

/// The writable mounts on block devices in a `/proc/PID/mounts`, the last mounted first.
fn disk_mounts(mounts: &[u8]) -> Vec<CString> {
    let mut targets: Vec<CString> = mounts
        .split(|&b| b == b'\n')
        .filter_map(|line| {
            let mut fields = line.split(|&b| b == b' ');
            let (source, target) = (fields.next()?, fields.next()?);
            let options = fields.nth(1)?;
            let writable = !options.split(|&b| b == b',').any(|o| o == b"ro");
            let on_disk = source.starts_with(b"/dev/");
            (on_disk && writable).then(|| unescape(target))?
        })
        .collect();
    targets.reverse();
    targets
}

/// Undoes the octal escapes (`\040` for a space) of a mount table.
fn unescape(field: &[u8]) -> Option<CString> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    CString::new(OsStr::from_bytes(&bytes).to_owned().into_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_when_read_then_writable_disks_last_first() {
        let table = b"/dev/root / erofs ro,relatime 0 0\n\
            devtmpfs /dev devtmpfs rw,nosuid 0 0\n\
            proc /proc proc rw 0 0\n\
            /dev/vdb /mnt/a\\040b ext4 rw,relatime 0 0\n\
            /dev/vdc /mnt/a\\040b/c ext4 rw 0 0\n\
            broken\n";
        let targets = disk_mounts(table);
        assert_eq!(targets, [c"/mnt/a b/c".to_owned(), c"/mnt/a b".to_owned()]);
    }

    #[test]
    fn escapes_when_incomplete_or_too_large_then_left_as_they_are() {
        for (field, path) in [
            (&b"/a\\134b"[..], &b"/a\\b"[..]),
            (b"/a\\04", b"/a\\04"),
            (b"/a\\999", b"/a\\999"),
            (b"/a\\777", b"/a\\777"),
            (b"\\", b"\\"),
        ] {
            assert_eq!(unescape(field).expect("no NUL").as_bytes(), path);
        }
        assert_eq!(unescape(b"/a\\000b"), None);
    }

    #[test]
    fn mounts_when_made_in_order_then_parents_come_first() {
        for (i, m) in MOUNTS.iter().enumerate() {
            let path = m.target.to_str().expect("UTF-8");
            let late = MOUNTS[i..].iter().skip(1).any(|other| {
                let other = other.target.to_str().expect("UTF-8");
                path.starts_with(&format!("{other}/"))
            });
            assert!(!late, "{path} is mounted before what it lies on");
        }
    }
}
