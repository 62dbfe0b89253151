//! Loop devices: files as block devices, for filesystems that the kernel mounts from nothing else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::sys;

/// Another process may have taken the device that was found free; so often is another one looked for.
const ATTEMPTS: usize = 1000;

/// A file as a block device. The kernel takes it apart when nobody has it open or mounted any more: nothing is left by who
/// is killed.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Makes a device of the file at `path`.
    pub fn attach(path: &Path, read_only: bool) -> io::Result<LoopDevice> {
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .write(!read_only)
                .custom_flags(libc::O_CLOEXEC)
                .open(path)
        };
        let file = open(path)?;
        let control = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            let number = sys::free_loop_device(control.as_fd())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = match open(&path) {
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => continue,
                device => device?,
            };
            match sys::configure_loop_device(device.as_fd(), file.as_fd(), read_only) {
                Ok(()) => {
                    return Ok(LoopDevice {
                        path,
                        _device: device,
                    });
                }
                Err(Errno::BUSY) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// The device that shows the file at `path` already, if there is one. Whoever asks keeps others from making
    /// or leaving one meanwhile.
    pub fn of_file(path: &Path) -> io::Result<Option<LoopDevice>> {
        let path = path.canonicalize()?;
        for device in std::fs::read_dir("/sys/block")? {
            let device = device?;
            let shown = std::fs::read_to_string(device.path().join("loop/backing_file"));
            if !shown.is_ok_and(|shown| Path::new(shown.trim_end_matches('\n')) == path) {
                continue;
            }
            let node = Path::new("/dev").join(device.file_name());
            let opened = OpenOptions::new().read(true).write(true).open(&node)?;
            // Opened now, it stays what it is; whether that is still the file is to be seen again.
            let shown = std::fs::read_to_string(device.path().join("loop/backing_file"));
            if shown.is_ok_and(|shown| Path::new(shown.trim_end_matches('\n')) == path) {
                return Ok(Some(LoopDevice {
                    path: node,
                    _device: opened,
                }));
            }
        }
        Ok(None)
    }

    /// Its device file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn device_when_nobody_has_it_any_more_then_the_file_is_free() {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "attaching loop devices takes root");
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(&[7; 4096]).expect("write");
        let device = LoopDevice::attach(file.path(), true).expect("loop device");
        let mut bytes = [0; 512];
        File::open(device.path())
            .and_then(|mut device| device.read_exact(&mut bytes))
            .expect("read");
        assert_eq!(bytes, [7; 512]);
        let name = device.path().file_name().expect("name");
        let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
        let is_ours = || {
            std::fs::read_to_string(&backing)
                .is_ok_and(|text| Path::new(text.trim_end()) == file.path())
        };
        assert!(is_ours());
        drop(device);
        // The kernel takes it apart in its own time.
        while is_ours() {
            std::thread::yield_now();
        }
    }
}
