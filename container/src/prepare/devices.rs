//! Device files: those every container has (runtime-spec config-linux.md#default-devices), and those it was given.

use rustix::fs::{CWD, FileType, makedev};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::layout::Layout;
use super::{absolute, c_string};
use crate::error::Error;
use crate::plan::{Missing, Operation as O, Place, Slot};
use crate::spec::{Device, DeviceKind, Linux};

/// Name below /dev, major and minor number.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Symbolic links that programs expect (runtime-spec runtime-linux.md#dev-symbolic-links).
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes all device files. Somebody else's /dev, bind-mounted, is left as it is but for the devices asked for.
pub fn make(
    linux: &Linux,
    terminal: bool,
    confined: bool,
    layout: &Layout,
    operations: &mut Vec<O>,
) -> Result<(), Error> {
    let mut asked = Vec::with_capacity(linux.devices.len());
    for (i, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{i}]");
        let path = absolute(&format!("{field}.path"), &device.path)?;
        asked.push((field, path, device));
    }
    if !layout.foreign_dev {
        for (name, major, minor) in DEFAULT {
            let path = format!("/dev/{name}");
            if asked.iter().any(|(_, asked, _)| *asked == path) {
                continue;
            }
            if confined {
                operations.push(bind(&path)?);
            } else {
                let place = place(layout, &path)?;
                let mode = FileType::CharacterDevice.as_raw_mode() | 0o666;
                operations.push(O::Device {
                    place,
                    mode,
                    device: makedev(major, minor),
                    owner: None,
                    asked_for: false,
                });
            }
        }
        for (name, target) in LINKS {
            let place = place(layout, &format!("/dev/{name}"))?;
            operations.push(O::Link {
                place,
                target: c_string("linux.devices", target)?,
            });
        }
    }
    for (field, path, device) in asked {
        let (kind, number) = kind_and_number(&field, device)?;
        // The container has its own.
        if path == "/dev/ptmx" || terminal && path == "/dev/console" {
            continue;
        }
        if confined && device.kind != DeviceKind::Fifo {
            operations.push(bind(&path)?);
            continue;
        }
        let mode = kind.as_raw_mode() | device.file_mode.unwrap_or(0o666) & 0o7777;
        let owner = match (device.uid.unwrap_or(0), device.gid.unwrap_or(0)) {
            (0, 0) => None,
            owner => Some(owner),
        };
        operations.push(O::Device {
            place: place(layout, &path)?,
            mode,
            device: number,
            owner,
            asked_for: true,
        });
    }
    Ok(())
}

/// The kernel lets no one but the first user namespace make devices, so there the host's own are used.
fn bind(path: &str) -> Result<O, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(|e| Error::step("open device", path, e))?;
    let target = c_string("linux.devices", path)?;
    Ok(O::Attach {
        tree,
        target,
        missing: Missing::File,
        source: path.to_owned(),
        copy_up: false,
    })
}

fn place(layout: &Layout, path: &str) -> Result<Place, Error> {
    let place = layout.place("linux.devices", path)?;
    match place.slot {
        Some(Slot::Dev) => Ok(place),
        _ => Ok(Place {
            slot: None,
            path: c_string("linux.devices", path)?,
        }),
    }
}

fn kind_and_number(field: &str, device: &Device) -> Result<(FileType, u64), Error> {
    let kind = match device.kind {
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Character | DeviceKind::Unbuffered => FileType::CharacterDevice,
        DeviceKind::Fifo => return Ok((FileType::Fifo, 0)),
        DeviceKind::All => {
            return Err(Error::invalid(
                format!("{field}.type"),
                "\"a\" is for rules, not for one device",
            ));
        }
    };
    // 12 and 20 bits are what the kernel has for them.
    let number = |member: &str, value: Option<i64>, bits: u32| {
        value
            .and_then(|value| u32::try_from(value).ok())
            .filter(|&value| value < 1 << bits)
            .ok_or_else(|| {
                Error::invalid(
                    format!("{field}.{member}"),
                    format!("a device needs one, of at most {bits} bits"),
                )
            })
    };
    let (major, minor) = (
        number("major", device.major, 12)?,
        number("minor", device.minor, 20)?,
    );
    Ok((kind, makedev(major, minor)))
}
