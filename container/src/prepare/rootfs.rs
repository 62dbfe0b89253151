//! The root filesystem.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, major, minor, stat};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, open_tree};

use super::{absolute, c_string, options};
use crate::create::{Lower, Rootfs, Upper};
use crate::error::Error;
use crate::plan::Operation as O;
use crate::spec::{DeviceKind, DeviceRule, Linux, Spec};
use crate::sys::{self, MountAttributes};

/// What the way to the root filesystem depends on.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// By hooks, to which the root filesystem lies at its own path.
    pub interrupted: bool,
    /// Not in the first user namespace.
    pub confined: bool,
}

impl Way {
    /// It becomes the root of this process alone for now, and lies in the runtime's root until [`leave_runtime`].
    pub fn is_later(self) -> bool {
        self.interrupted || self.confined
    }
}

/// Rules that let a container's group use the disks of its root.
pub fn devices(rootfs: &Rootfs) -> Result<Vec<DeviceRule>, Error> {
    let Rootfs::Overlay { lower, upper, .. } = rootfs else {
        return Ok(Vec::new());
    };
    let mut disks = Vec::new();
    if let Lower::BlockDevice(path) = lower {
        disks.push((path, "r"));
    }
    if let Upper::Disk(path) = upper {
        disks.push((path, "rw"));
    }
    let rule = |(path, access): (&PathBuf, &str)| {
        let found =
            stat(path).map_err(|e| Error::step("look at", path.display().to_string(), e))?;
        Ok(DeviceRule {
            allow: true,
            kind: DeviceKind::Block,
            major: Some(major(found.st_rdev).into()),
            minor: Some(minor(found.st_rdev).into()),
            access: Some(access.to_owned()),
        })
    };
    disks.into_iter().map(rule).collect()
}

/// A new file: its number, its absolute path, and what it holds.
type File = (usize, String, Arc<[u8]>);

/// Makes the root filesystem the root.
pub fn enter(rootfs: &Rootfs, spec: &Spec, way: Way, operations: &mut Vec<O>) -> Result<(), Error> {
    let later = way.is_later();
    let linux = spec.linux.as_ref();
    let propagation = linux
        .and_then(|linux| linux.rootfs_propagation.as_deref())
        .filter(|p| !p.is_empty());
    propagation.map(read_propagation).transpose()?;
    let mut files: Vec<File> = Vec::new();
    operations.push(O::PrivateMounts);
    match rootfs {
        Rootfs::Directory(path) => {
            let name = path.display().to_string();
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let failed = |e| Error::step("open the root filesystem", name.as_str(), e);
            let tree = open_tree(CWD, path, flags).map_err(failed)?;
            // pivot_root(2) wants it private, and what the container does there is its own affair.
            let private = MountAttributes {
                propagation: libc::MS_PRIVATE,
                ..MountAttributes::default()
            };
            let whole = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
            sys::mount_setattr(std::os::fd::AsFd::as_fd(&tree), c"", whole, &private)
                .map_err(failed)?;
            // Over the runtime's root, where nothing is in its way.
            let target = if later {
                self::path(path)?
            } else {
                c"/".into()
            };
            operations.push(O::EnterTree { tree, target, name });
        }
        Rootfs::Overlay { .. } if way.interrupted => {
            let problem =
                "hooks of the creation need a directory as root filesystem, not an overlay";
            return Err(Error::invalid("hooks", problem));
        }
        Rootfs::Overlay {
            lower,
            upper,
            files: new,
            devices,
        } => {
            for (number, file) in new.iter().enumerate() {
                let path = absolute("rootfs.files", &file.path)?;
                files.push((number, path, Arc::from(file.data.as_slice())));
            }
            let is_disk = !matches!(lower, Lower::Directory(_)) || matches!(upper, Upper::Disk(_));
            if way.confined && is_disk {
                let problem = "in a user namespace no disk can be mounted; it needs directories";
                return Err(Error::invalid("rootfs", problem));
            }
            operations.push(enter_upper(upper)?);
            overlay(lower, (way, *devices), &files, operations)?;
        }
    }
    operations.push(if later { O::ChangeRoot } else { O::Pivot });
    // While nothing is mounted in there, no link leads anywhere else.
    for (number, path, data) in files {
        let path = c_string("rootfs.files", &path)?;
        operations.push(O::NewFile { path, data, number });
    }
    Ok(())
}

/// Leaves the runtime's root for good.
pub fn leave_runtime(operations: &mut Vec<O>) {
    operations.extend([O::ChangeRootBack, O::Pivot]);
}

fn enter_upper(upper: &Upper) -> Result<O, Error> {
    let mount = |source: CString, kind: &str, flags, data: CString| {
        let kind = CString::new(kind).unwrap_or_default();
        O::EnterMount {
            source,
            kind,
            flags,
            data,
        }
    };
    Ok(match upper {
        Upper::Tmpfs { size_bytes } => {
            let size = size_bytes
                .map(|size| format!(",size={size}"))
                .unwrap_or_default();
            let data = CString::new(format!("mode=0755{size}")).unwrap_or_default();
            mount(c"tmpfs".into(), "tmpfs", MountFlags::empty(), data)
        }
        Upper::Disk(disk) => mount(path(disk)?, "ext4", MountFlags::NOATIME, CString::default()),
        Upper::Directory(directory) => {
            mount(path(directory)?, "", MountFlags::BIND, CString::default())
        }
    })
}

fn overlay(
    lower: &Lower,
    (way, devices): (Way, bool),
    files: &[File],
    operations: &mut Vec<O>,
) -> Result<(), Error> {
    let (source, kind, flags) = match lower {
        Lower::BlockDevice(source) | Lower::ErofsFile(source) => {
            (source, c"erofs", MountFlags::RDONLY)
        }
        // In a user namespace nothing is uncovered that lies below what the host has mounted.
        Lower::Directory(source) if way.confined => {
            (source, c"", MountFlags::BIND | MountFlags::REC)
        }
        Lower::Directory(source) => (source, c"", MountFlags::BIND),
    };
    let layers = match way.confined {
        false => c"lowerdir=lower,upperdir=upper,workdir=work",
        // What it notes of files is in attributes that everybody may set.
        true => c"lowerdir=lower,upperdir=upper,workdir=work,userxattr",
    };
    operations.push(O::Lower {
        source: path(source)?,
        kind: kind.into(),
        flags,
        has_layers: false,
    });
    for (number, path, data) in files {
        // Through links and in directories that are not there yet only the overlay finds its way.
        let Some((directory, name)) = path[1..].split_once('/') else {
            break;
        };
        if name.contains('/') {
            break;
        }
        let c_string = |text: String| c_string("rootfs.files", &text);
        operations.push(O::PlaceFile {
            lower: c_string(format!("lower/{directory}"))?,
            upper: c_string(format!("upper/{directory}"))?,
            path: c_string(format!("upper{path}"))?,
            data: data.clone(),
            number: *number,
        });
    }
    operations.push(O::Overlay {
        layers: layers.into(),
        devices,
    });
    Ok(())
}

fn path(path: &Path) -> Result<CString, Error> {
    let failed = || {
        Error::invalid(
            "rootfs",
            format!("{} is not an absolute path", path.display()),
        )
    };
    if !path.is_absolute() {
        return Err(failed());
    }
    CString::new(path.as_os_str().as_bytes()).map_err(|_| failed())
}

fn read_propagation(name: &str) -> Result<MountPropagationFlags, Error> {
    options::propagation(name).ok_or_else(|| {
        let problem = format!(
            "{name:?} is none of private, slave, shared, unbindable, or these with an r before"
        );
        Error::invalid("linux.rootfsPropagation", problem)
    })
}

/// What can be done only when everything is in its place.
pub fn finish(spec: &Spec, linux: &Linux, operations: &mut Vec<O>) -> Result<(), Error> {
    if let Some(propagation) = linux
        .rootfs_propagation
        .as_deref()
        .filter(|p| !p.is_empty())
    {
        let flags = read_propagation(propagation)?;
        // It is private already, and each mount has its own.
        if !flags.contains(MountPropagationFlags::PRIVATE) {
            operations.push(O::Propagate {
                flags,
                target: c"/".into(),
            });
        }
    }
    if spec.root.as_ref().is_some_and(|root| root.readonly) {
        let attributes = MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttributes::default()
        };
        operations.push(O::Attributes {
            target: c"/".into(),
            attributes,
            flags: 0,
        });
    }
    Ok(())
}
