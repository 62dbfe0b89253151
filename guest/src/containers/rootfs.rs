//! What a container's root is made of.

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_container::{Error, LoopDevice, Lower, NewFile, Rootfs, Upper};
use bulkhead_protocol as api;

use super::disks;
use crate::http::Response;

/// Finds, or makes, a folder with the files of the image, for a kernel that mounts its disk in no way.
pub type LastResort = Box<dyn Fn() -> Result<PathBuf, String> + Send>;

/// A container's root, and what it needs while it is mounted.
#[derive(Debug)]
pub struct Root {
    /// Itself.
    pub rootfs: Rootfs,
    devices: Vec<LoopDevice>,
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
            devices: attached,
        })
    }

    /// Puts something else in the place of an image's file, if `error` may be a kernel's that cannot mount it as it is: a
    /// loop device for one before 6.12, or with the file on a filesystem that is stacked on others; and a folder for one
    /// that has no EROFS, or no loop devices. `false` if there is nothing else to try.
    pub fn replace(
        &mut self,
        error: &Error,
        last_resort: Option<&LastResort>,
    ) -> Result<bool, Response> {
        let Rootfs::Overlay { lower, .. } = &mut self.rootfs else {
            return Ok(false);
        };
        let Error::Step { source, .. } = error else {
            return Ok(false);
        };
        let number = source.raw_os_error();
        let other = match lower {
            Lower::ErofsFile(path) if matches!(number, Some(libc::ENOTBLK | libc::EINVAL)) => {
                match (attach("lower.file", path, true), last_resort) {
                    (Ok(device), _) => {
                        let path = device.path().to_owned();
                        self.devices.push(device);
                        Lower::BlockDevice(path)
                    }
                    (Err(_), Some(last_resort)) => Lower::Directory(folder(last_resort)?),
                    (Err(response), None) => return Err(response),
                }
            }
            Lower::ErofsFile(_) | Lower::BlockDevice(_)
                if matches!(number, Some(libc::ENODEV | libc::EINVAL)) =>
            {
                match last_resort {
                    Some(last_resort) => Lower::Directory(folder(last_resort)?),
                    None => return Ok(false),
                }
            }
            _ => return Ok(false),
        };
        *lower = other;
        Ok(true)
    }
}

fn folder(last_resort: &LastResort) -> Result<PathBuf, Response> {
    last_resort().map_err(|e| {
        let message = format!("rootfs.lower.file: this kernel cannot mount it, and {e}.");
        Response::unprocessable(&message)
    })
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

    fn root(lower: api::Lower) -> Root {
        let wanted = api::Rootfs {
            lower,
            upper: api::Upper::default(),
            files: Vec::new(),
        };
        Root::find(&wanted, false).expect("root")
    }

    fn lower(root: &Root) -> &Lower {
        match &root.rootfs {
            Rootfs::Overlay { lower, .. } => lower,
            Rootfs::Directory(_) => panic!("no overlay"),
        }
    }

    #[test]
    fn image_when_the_kernel_mounts_no_files_gets_a_device_and_otherwise_the_error_stands() {
        let mut file = root(api::Lower::File("/no/such".into()));
        for number in [libc::ENOENT, libc::ENODEV] {
            assert!(matches!(file.replace(&error(number), None), Ok(false)));
        }
        assert!(file.replace(&error(libc::ENOTBLK), None).is_err());
        let mut folder = root(api::Lower::Directory("/".into()));
        assert!(matches!(
            folder.replace(&error(libc::ENOTBLK), None),
            Ok(false)
        ));
    }

    #[test]
    fn image_when_the_kernel_mounts_it_in_no_way_then_it_is_a_folder_or_the_reason_why_not() {
        let found: LastResort = Box::new(|| Ok("/tree".into()));
        // There is no such file, so that there is no device of it either.
        for number in [libc::ENOTBLK, libc::ENODEV] {
            let mut file = root(api::Lower::File("/no/such".into()));
            let replaced = file.replace(&error(number), Some(&found));
            assert!(matches!(replaced, Ok(true)));
            assert!(matches!(lower(&file), Lower::Directory(path) if path == Path::new("/tree")));
            // Which is the last.
            let again = file.replace(&error(number), Some(&found));
            assert!(matches!(again, Ok(false)));
        }
        let none: LastResort = Box::new(|| Err("there is no room".into()));
        let mut file = root(api::Lower::File("/no/such".into()));
        let refused = file.replace(&error(libc::ENODEV), Some(&none));
        let body = refused.expect_err("no folder").body;
        assert!(String::from_utf8_lossy(&body).contains("there is no room"));
    }
}
