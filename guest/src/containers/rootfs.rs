//! What a container's root is made of.

use std::io;
use std::path::Path;

use bulkhead_container::{Error, LoopDevice, Lower, NewFile, Rootfs, Upper};
use bulkhead_protocol as api;

use super::disks;
use crate::http::Response;

/// A container's root, and what it needs while it is mounted.
#[derive(Debug)]
pub struct Root {
    /// Itself.
    pub rootfs: Rootfs,
    _device: Vec<LoopDevice>,
}

impl Root {
    /// Finds what is asked for. Device files in it are of use only where the machine is the container's own.
    pub fn find(wanted: &api::Rootfs, devices: bool) -> Result<Self, Response> {
        let disk = |field: &str, serial: &str| {
            disks::with_serial(serial).ok_or_else(|| {
                let message =
                    format!("rootfs.{field}: there is no disk with the serial {serial:?}.");
                Response::unprocessable(&message)
            })
        };
        let mut attached = Vec::new();
        let lower = match &wanted.lower {
            api::Lower::Serial(serial) => Lower::BlockDevice(disk("lower.serial", serial)?),
            api::Lower::Directory(path) => Lower::Directory(path.into()),
            api::Lower::File(path) => Lower::ErofsFile(path.into()),
        };
        let upper = match &wanted.upper {
            api::Upper::Tmpfs { size_bytes } => Upper::Tmpfs {
                size_bytes: *size_bytes,
            },
            api::Upper::Disk { serial } => Upper::Disk(disk("upper.disk.serial", serial)?),
            api::Upper::File(path) => {
                let device = attach("upper.file", Path::new(path), false)?;
                let path = device.path().to_owned();
                attached.push(device);
                Upper::Disk(path)
            }
        };
        let file = |file: &api::NewFile| NewFile {
            path: file.path.clone(),
            data: file.text.clone().into_bytes(),
        };
        Ok(Root {
            rootfs: Rootfs::Overlay {
                lower,
                upper,
                files: wanted.files.iter().map(file).collect(),
                devices,
            },
            _device: attached,
        })
    }

    /// The same, with a loop device in the place of an image's file, if `error` may be a kernel's that cannot
    /// mount it as it is: one before 6.12, or one with the file on a filesystem that is stacked on others.
    pub fn by_device(&self, error: &Error) -> Option<Result<Self, Response>> {
        let Rootfs::Overlay {
            lower: Lower::ErofsFile(path),
            upper,
            files,
            devices,
        } = &self.rootfs
        else {
            return None;
        };
        let Error::Step { source, .. } = error else {
            return None;
        };
        if !matches!(source.raw_os_error(), Some(libc::ENOTBLK | libc::EINVAL)) {
            return None;
        }
        let device = match attach("lower.file", path, true) {
            Ok(device) => device,
            Err(response) => return Some(Err(response)),
        };
        Some(Ok(Root {
            rootfs: Rootfs::Overlay {
                lower: Lower::BlockDevice(device.path().to_owned()),
                upper: upper.clone(),
                files: files.clone(),
                devices: *devices,
            },
            _device: vec![device],
        }))
    }
}

fn attach(field: &str, path: &Path, read_only: bool) -> Result<LoopDevice, Response> {
    LoopDevice::attach(path, read_only).map_err(|e: io::Error| {
        let message = format!(
            "rootfs.{field}: cannot make a loop device of {}: {e}.",
            path.display()
        );
        Response::unprocessable(&message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(number: i32) -> Error {
        Error::Step {
            step: "mount".into(),
            object: "x".into(),
            source: io::Error::from_raw_os_error(number),
        }
    }

    #[test]
    fn image_when_the_kernel_mounts_no_files_gets_a_device_and_otherwise_the_error_stands() {
        let wanted = |lower| api::Rootfs {
            lower,
            upper: api::Upper::default(),
            files: Vec::new(),
        };
        let file = Root::find(&wanted(api::Lower::File("/no/such".into())), false).expect("root");
        assert!(file.by_device(&error(libc::ENOENT)).is_none());
        assert!(matches!(
            file.by_device(&error(libc::ENOTBLK)),
            Some(Err(_))
        ));
        let folder = wanted(api::Lower::Directory("/".into()));
        let folder = Root::find(&folder, false).expect("root");
        assert!(folder.by_device(&error(libc::ENOTBLK)).is_none());
    }
}
