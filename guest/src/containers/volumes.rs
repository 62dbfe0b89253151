//! What containers get from outside the guest, mounted for as long as it takes to make one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_protocol::{VOLUMES, Volume, VolumeSource};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{disks, is_id};
use crate::http::Response;

/// The most volumes of a container: each takes a device of the guest's.
const MAX_VOLUMES: usize = 64;

/// Volumes that are mounted. Dropped, they are no more: what a container took of them stays with it.
#[derive(Debug, Default)]
pub struct Mounted(Vec<PathBuf>);

impl Mounted {
    /// Mounts volumes in [`VOLUMES`].
    pub fn mount(wanted: &[Volume]) -> Result<Self, Response> {
        let mut mounted = Mounted::default();
        if wanted.len() > MAX_VOLUMES {
            let message = format!("volumes: there are more than {MAX_VOLUMES}.");
            return Err(Response::unprocessable(&message));
        }
        for (index, volume) in wanted.iter().enumerate() {
            let is_taken = wanted[..index].iter().any(|v| v.name == volume.name);
            if !is_id(&volume.name) || is_taken {
                let message = format!(
                    "volumes[{index}].name: 1 to 128 of A-Za-z0-9_.-, and each volume its own."
                );
                return Err(Response::unprocessable(&message));
            }
            mounted.add(index, volume)?;
        }
        Ok(mounted)
    }

    fn add(&mut self, index: usize, volume: &Volume) -> Result<(), Response> {
        let disk = |serial: &str| {
            disks::with_serial(serial).ok_or_else(|| {
                let message =
                    format!("volumes[{index}]: there is no disk with the serial {serial:?}.");
                Response::unprocessable(&message)
            })
        };
        let (mut flags, mut data) = (MountFlags::empty(), None);
        let (source, kind) = match &volume.source {
            VolumeSource::Share(tag) => (PathBuf::from(tag), c"virtiofs"),
            VolumeSource::Erofs(serial) => {
                flags = MountFlags::RDONLY;
                (disk(serial)?, c"erofs")
            }
            VolumeSource::Ext4(serial) => {
                let disk = disk(serial)?;
                flags = MountFlags::NOATIME;
                if disks::is_read_only(&disk) {
                    flags |= MountFlags::RDONLY;
                    // What its journal has is not to be written to its place.
                    data = Some(c"noload");
                }
                (disk, c"ext4")
            }
        };
        let target = Path::new(VOLUMES).join(&volume.name);
        let made = fs::create_dir_all(&target)
            .and_then(|()| Ok(mount(&source, &target, kind, flags, data)?));
        made.map_err(|e: io::Error| {
            let message = format!(
                "volumes[{index}]: cannot mount {} ({}): {e}.",
                source.display(),
                kind.to_string_lossy()
            );
            Response::unprocessable(&message)
        })?;
        self.0.push(target);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for target in &self.0 {
            // Whatever is still below it goes with it.
            let _ = unmount(target, UnmountFlags::DETACH);
            let _ = fs::remove_dir(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_when_they_cannot_be_mounted_are_refused_before_anything_is() {
        let volume = |name: &str| Volume {
            name: name.into(),
            source: VolumeSource::Erofs("no such disk".into()),
        };
        for wanted in [
            vec![volume("../x")],
            vec![volume("")],
            vec![volume("there-is-none")],
            (0..=MAX_VOLUMES).map(|n| volume(&n.to_string())).collect(),
        ] {
            assert!(Mounted::mount(&wanted).is_err(), "{wanted:?}");
        }
        assert!(Mounted::mount(&[]).is_ok());
    }
}
