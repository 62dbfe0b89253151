//! How the guest of a sandbox that starts gets its volumes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_container::spec::{Mount, Spec};
use bulkhead_protocol::{VOLUMES, Volume as GuestVolume, VolumeSource};
use bulkhead_vmm::config::{DiskConfig, ShareConfig};

use super::copy;
use super::host::OnHost;
use super::named::{DATA, Named};
use super::request::{Kind, Source, VolumeMount, resolve};
use super::server::{FileServer, Program};
use super::staging::Shared;
use crate::error::{Error, cannot};
use crate::layout::Layout;
use crate::record::{Config, Files, Isolation};

/// The tag of the share, and the folder that it is mounted in.
const SHARE: &str = "host";
/// The serial of the disk with copies, and the folder that it is mounted in.
const COPIES: &str = "copies";

/// What a sandbox's volumes are to its machine, its agent and its container.
#[derive(Debug, Default)]
pub struct Attached {
    /// Devices of the machine.
    pub shares: Vec<ShareConfig>,
    /// Devices of the machine.
    pub disks: Vec<DiskConfig>,
    /// What the agent mounts.
    pub volumes: Vec<GuestVolume>,
    /// What the container gets of that.
    pub(super) mounts: Vec<Mount>,
    /// Markers that are to go once the container is made.
    pub(super) to_fill: Vec<PathBuf>,
    /// Files that are to go with the sandbox.
    copies: Option<PathBuf>,
    /// What nobody else may use meanwhile.
    pub(super) locks: Vec<File>,
    /// Disks that are mounted here. They go before others may have them.
    pub(super) disks_on_host: Vec<OnHost>,
    _server: Option<FileServer>,
}

/// What is not a disk of its own: to be served, or copied.
struct Served<'a> {
    wanted: &'a VolumeMount,
    shared: Shared,
    /// Whether it is to be filled from the image.
    fill: bool,
}

impl Attached {
    /// Finds all that `config` asks for, and starts what serves it.
    pub fn open(config: &Config, files: &Files, layout: &Layout) -> Result<Self, Error> {
        let mut attached = Attached::default();
        if config.volumes.is_empty() {
            return Ok(attached);
        }
        if config.isolation == Isolation::Container {
            return Self::on_host(config, files, layout);
        }
        let program = Program::find()?;
        let mut served = Vec::new();
        for wanted in &config.volumes {
            let (path, kind, fill) = match &wanted.source {
                Source::Path { path, make } => {
                    let (path, kind) = resolve(path, *make)?;
                    if program.is_none() && !wanted.read_only {
                        return Err(needs_server(&path));
                    }
                    (path, kind, false)
                }
                Source::Volume { name, fill } => {
                    let volume = Named::obtain(layout, name)?;
                    let is_folder = volume.data().exists();
                    if volume.disk().exists() || program.is_none() && !is_folder {
                        attached.add_disk(wanted, &volume, *fill)?;
                        continue;
                    }
                    if program.is_none() && !wanted.read_only {
                        return Err(needs_server(&volume.data()));
                    }
                    let is_empty = volume.make_folder()?;
                    let fill = *fill && is_empty && !wanted.read_only;
                    (volume.data(), Kind::Folder, fill)
                }
            };
            let shared = Shared {
                path,
                kind,
                read_only: wanted.read_only,
            };
            served.push(Served {
                wanted,
                shared,
                fill,
            });
        }
        match program {
            _ if served.is_empty() => {}
            Some(program) => attached.share(program, &served, files)?,
            None => attached.copy(&served, files)?,
        }
        Ok(attached)
    }

    /// Begins anew for another machine, if what serves this one serves no other.
    pub fn reopen(&mut self, config: &Config, files: &Files, layout: &Layout) -> Result<(), Error> {
        if self.shares.is_empty() {
            return Ok(());
        }
        // The locks must be free, and the server gone, before they can be had again.
        *self = Attached::default();
        // What is not there need not go.
        let _ = fs::remove_file(files.file_server());
        let _ = fs::remove_dir(files.shared());
        *self = Self::open(config, files, layout)?;
        Ok(())
    }

    /// A volume that is a disk, for this machine alone.
    fn add_disk(&mut self, wanted: &VolumeMount, volume: &Named, fill: bool) -> Result<(), Error> {
        self.locks.push(volume.take()?);
        volume.make_disk(fill && !wanted.read_only)?;
        let serial = format!("volume-{}", self.disks.len());
        let fill = volume.unfilled().exists();
        if fill {
            self.to_fill.push(volume.unfilled());
        }
        self.disks.push(DiskConfig {
            path: Some(volume.disk()),
            read_only: wanted.read_only,
            serial: Some(serial.clone()),
            rate_limit: None,
        });
        self.volumes.push(GuestVolume {
            name: serial.clone(),
            source: VolumeSource::Ext4(serial.clone()),
        });
        let source = format!("{serial}/{DATA}");
        self.mounts.push(bind(wanted, &source, fill));
        Ok(())
    }

    /// All through one file server.
    fn share(
        &mut self,
        program: Program,
        served: &[Served<'_>],
        files: &Files,
    ) -> Result<(), Error> {
        let sources = served.iter().map(|served| served.shared.clone()).collect();
        self._server = Some(FileServer::start(program, sources, files)?);
        self.shares.push(ShareConfig {
            tag: SHARE.to_owned(),
            socket: files.file_server(),
        });
        self.volumes.push(GuestVolume {
            name: SHARE.to_owned(),
            source: VolumeSource::Share(SHARE.to_owned()),
        });
        for (number, served) in served.iter().enumerate() {
            let source = format!("{SHARE}/{number}");
            self.mounts.push(bind(served.wanted, &source, served.fill));
        }
        Ok(())
    }

    /// All on one disk, as they are now.
    fn copy(&mut self, served: &[Served<'_>], files: &Files) -> Result<(), Error> {
        let path = files.copies();
        let failed = || format!("copy volumes to {}", path.display());
        let disk = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(cannot(failed()))?;
        self.copies = Some(path.clone());
        let sources = served.iter().map(|served| &*served.shared.path);
        copy::write(sources, &disk).map_err(|e| cannot(failed())(io::Error::other(e)))?;
        self.disks.push(DiskConfig {
            path: Some(path),
            read_only: true,
            serial: Some(COPIES.to_owned()),
            rate_limit: None,
        });
        self.volumes.push(GuestVolume {
            name: COPIES.to_owned(),
            source: VolumeSource::Erofs(COPIES.to_owned()),
        });
        for (number, served) in served.iter().enumerate() {
            let source = format!("{COPIES}/{number}");
            self.mounts.push(bind(served.wanted, &source, false));
        }
        Ok(())
    }

    /// The container is made, and with it what was to be filled is.
    pub fn created(&mut self) {
        for marker in self.to_fill.drain(..) {
            // If it stays, the volume is made anew.
            let _ = fs::remove_file(marker);
        }
    }

    /// The specification of a container that has the volumes.
    pub fn complete(&self, spec: &Spec) -> Spec {
        let mut spec = spec.clone();
        let taken = |place: &str| self.mounts.iter().any(|m| m.destination == place);
        spec.mounts.retain(|mount| !taken(&mount.destination));
        spec.mounts.extend(self.mounts.iter().cloned());
        crate::spec::sort_mounts(&mut spec.mounts);
        spec
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.disks_on_host.clear();
        if let Some(copies) = &self.copies {
            // What stays goes with the container.
            let _ = fs::remove_file(copies);
        }
    }
}

/// A mount of what the agent has at `source` while it makes the container.
fn bind(wanted: &VolumeMount, source: &str, fill: bool) -> Mount {
    bind_path(wanted, format!("{VOLUMES}/{source}"), fill)
}

/// A mount of what is at `source` while the container is made.
pub(super) fn bind_path(wanted: &VolumeMount, source: String, fill: bool) -> Mount {
    let mut options = vec!["rbind".to_owned(), "rprivate".to_owned()];
    if wanted.read_only {
        options.push("ro".to_owned());
    }
    if fill {
        options.push("tmpcopyup".to_owned());
    }
    Mount {
        destination: wanted.destination.clone(),
        kind: Some("bind".to_owned()),
        source: Some(source),
        options,
        ..Mount::default()
    }
}

fn needs_server(path: &Path) -> Error {
    Error::Invalid(format!(
        "{} cannot be written to by a container without a file server, which root can use: install \
         virtiofsd (in Debian 12, qemu-system-common), or mount it read-only",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, kind: &str) -> Mount {
        Mount {
            destination: destination.to_owned(),
            kind: Some(kind.to_owned()),
            ..Mount::default()
        }
    }

    #[test]
    fn volumes_come_after_what_they_lie_in_and_in_the_place_of_defaults() {
        let mut attached = Attached::default();
        attached.mounts = ["/data/a", "/dev/shm", "/data"]
            .map(|place| mount(place, "bind"))
            .to_vec();
        let spec = Spec {
            mounts: ["/proc", "/dev", "/dev/shm"]
                .map(|place| mount(place, "tmpfs"))
                .to_vec(),
            ..Spec::default()
        };
        let complete = attached.complete(&spec);
        let places: Vec<_> = complete
            .mounts
            .iter()
            .map(|m| (&*m.destination, m.kind.as_deref() == Some("bind")))
            .collect();
        assert_eq!(
            places,
            [
                ("/proc", false),
                ("/dev", false),
                ("/data", true),
                ("/data/a", true),
                ("/dev/shm", true)
            ]
        );
    }
}
