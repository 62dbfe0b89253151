//! Volumes of a container on the host: folders and files as they are, and disks by loop devices.

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use bulkhead_container::LoopDevice;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use super::attach::{Attached, bind_path};
use super::named::{DATA, Named};
use super::request::{Source, VolumeMount, resolve};
use crate::error::{Error, cannot};
use crate::layout::Layout;
use crate::record::{Config, Files};

/// A disk that is mounted, where only this process and its children see it: nothing of it is left when they
/// end, however they do.
#[derive(Debug)]
pub struct OnHost {
    mounted: PathBuf,
}

impl Drop for OnHost {
    fn drop(&mut self) {
        let _ = unmount(&self.mounted, UnmountFlags::DETACH);
    }
}

impl Attached {
    /// Finds all that a container on the host asks for.
    pub(super) fn on_host(config: &Config, files: &Files, layout: &Layout) -> Result<Self, Error> {
        let mut attached = Attached::default();
        for wanted in &config.volumes {
            match &wanted.source {
                Source::Path { path, make } => {
                    let (path, _) = resolve(path, *make)?;
                    attached.bind_on_host(wanted, path, false);
                }
                Source::Volume { name, fill } => {
                    let volume = Named::obtain(layout, name)?;
                    if volume.disk().exists() {
                        attached.mount_on_host(wanted, &volume, (name, *fill), files)?;
                        continue;
                    }
                    let is_empty = volume.make_folder()?;
                    let fill = *fill && is_empty && !wanted.read_only;
                    attached.bind_on_host(wanted, volume.data(), fill);
                }
            }
        }
        Ok(attached)
    }

    fn bind_on_host(&mut self, wanted: &VolumeMount, path: PathBuf, fill: bool) {
        let source = path.to_string_lossy().into_owned();
        let is_device = |path: &std::path::Path| {
            path.metadata().is_ok_and(|found| {
                let kind = found.file_type();
                kind.is_char_device() || kind.is_block_device()
            })
        };
        let mut mount = bind_path(wanted, source, fill);
        // Those of a folder would be the host's disks: a guest that had the volume may have made them. Not so one that is
        // asked for by its own name.
        if !is_device(&path) {
            mount.options.push("rnodev".to_owned());
        }
        if wanted.read_only {
            // What is mounted below it, too.
            mount.options.push("rro".to_owned());
        }
        self.mounts.push(mount);
    }

    /// A volume that is a disk. Containers on the host share it, as the kernel has one file system for all of
    /// them; a machine has it for itself.
    fn mount_on_host(
        &mut self,
        wanted: &VolumeMount,
        volume: &Named,
        (name, fill): (&str, bool),
        files: &Files,
    ) -> Result<(), Error> {
        let failed = || format!("mount the volume {name}");
        self.locks.push(volume.share()?);
        // One at a time looks for a device that shows the disk already.
        let finding = volume.finding_device()?;
        if self.disks_on_host.is_empty() {
            // From here on what this process mounts is its own.
            unshare(CloneFlags::CLONE_NEWNS).map_err(cannot(failed()))?;
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", slave).map_err(cannot(failed()))?;
        }
        let disk = volume.disk();
        let device = LoopDevice::of_file(&disk)
            .and_then(|found| match found {
                Some(device) => Ok(device),
                None => LoopDevice::attach(&disk, false),
            })
            .map_err(cannot(failed()))?;
        let target = files
            .sandbox
            .join(format!("volume-{}", self.disks_on_host.len()));
        fs::create_dir(&target).map_err(cannot(failed()))?;
        // A guest may have written to the disk as it liked, and what it says there about errors is not to be believed: it
        // could be that the kernel is to panic.
        let flags = MountFlags::NOATIME | MountFlags::NODEV;
        let options = Some(c"errors=remount-ro");
        mount(device.path(), &target, c"ext4", flags, options).map_err(cannot(failed()))?;
        drop((device, finding));
        self.disks_on_host.push(OnHost {
            mounted: target.clone(),
        });
        let fill = fill && !wanted.read_only && volume.unfilled().exists();
        if fill {
            self.to_fill.push(volume.unfilled());
        }
        self.bind_on_host(wanted, target.join(DATA), fill);
        Ok(())
    }
}

impl Named {
    /// Takes the volume together with other containers on the host.
    fn share(&self) -> Result<File, Error> {
        self.take_by(FlockOperation::NonBlockingLockShared)
    }

    /// Held by who looks for the disk's device, and makes it if there is none.
    fn finding_device(&self) -> Result<File, Error> {
        let failed = || format!("lock the volume's disk {}", self.disk().display());
        let disk = File::open(self.disk()).map_err(cannot(failed()))?;
        flock(&disk, FlockOperation::LockExclusive).map_err(cannot(failed()))?;
        Ok(disk)
    }
}
