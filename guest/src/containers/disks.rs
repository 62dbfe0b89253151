//! The guest's disks, by their serials: which letter a disk gets is up to the order of the host's
//! configuration, and nobody should have to count.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

const BLOCK: &str = "/sys/block";
/// How long a disk that was put into a drive may take to be noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The disks that there are: to ask one for its serial is a request to the host. They are never taken away.
static KNOWN: Mutex<Vec<Disk>> = Mutex::new(Vec::new());

struct Disk {
    serial: String,
    name: String,
    /// Kept open: to find it takes longer than to read it.
    size: Option<File>,
}

/// Looks for the disks, so that it need not be done later.
pub fn look() {
    *KNOWN.lock().unwrap_or_else(PoisonError::into_inner) = all(Path::new(BLOCK));
}

/// The device node of the virtio disk whose serial this is.
pub fn with_serial(serial: &str) -> Option<PathBuf> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_it = |disk: &Disk| disk.serial == serial;
    if !known.iter().any(is_it) {
        *known = all(Path::new(BLOCK));
    }
    let disk = known.iter().find(|disk| is_it(disk))?;
    if let Some(size) = &disk.size {
        wait_for_size(size);
    }
    Some(Path::new("/dev").join(&disk.name))
}

/// Waits until a drive has a disk, of which the kernel has been told but need not have taken note yet. What uses it will
/// say so if there is none.
fn wait_for_size(size: &File) {
    let until = Instant::now() + NOTICED_WITHIN;
    let mut text = [0; 3];
    let mut is_empty = || {
        let read = size.read_at(&mut text, 0);
        read.is_ok_and(|length| text[..length] == *b"0\n")
    };
    while is_empty() && Instant::now() < until {
        thread::sleep(LOOK_AGAIN);
    }
}

/// Whether the disk of this device node cannot be written to.
pub fn is_read_only(disk: &Path) -> bool {
    let name = disk.file_name().unwrap_or_default();
    let flag = Path::new("/sys/block").join(name).join("ro");
    fs::read_to_string(flag).is_ok_and(|text| text.trim_end() == "1")
}

/// The disks that have a serial.
fn all(block: &Path) -> Vec<Disk> {
    let disks = fs::read_dir(block).into_iter().flatten().flatten();
    let disks = disks.filter_map(|disk| {
        // Only virtio disks have the file.
        let serial = fs::read_to_string(disk.path().join("serial")).ok()?;
        let serial = serial.trim_end_matches('\n').to_owned();
        Some(Disk {
            serial,
            name: disk.file_name().into_string().ok()?,
            size: File::open(disk.path().join("size")).ok(),
        })
    });
    disks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_when_its_serial_is_asked_for_then_found_and_no_other() {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, serial) in [
            ("vda", None),
            ("vdb", Some("image-2")),
            ("vdc", Some("image")),
        ] {
            let disk = dir.path().join(name);
            fs::create_dir(&disk).expect("mkdir");
            if let Some(serial) = serial {
                fs::write(disk.join("serial"), serial).expect("write");
            }
        }
        let disks = all(dir.path());
        let mut found: Vec<_> = disks.into_iter().map(|d| (d.serial, d.name)).collect();
        found.sort();
        let pair = |serial: &str, name: &str| (serial.to_owned(), name.to_owned());
        assert_eq!(found, [pair("image", "vdc"), pair("image-2", "vdb")]);
    }

    #[test]
    fn drive_when_it_has_a_disk_is_waited_for_no_longer() {
        let dir = tempfile::tempdir().expect("tempdir");
        let size = dir.path().join("size");
        fs::write(&size, "0\n").expect("write");
        thread::scope(|scope| {
            let opened = File::open(&size).expect("open");
            let waiting = scope.spawn(move || wait_for_size(&opened));
            thread::sleep(20 * LOOK_AGAIN);
            assert!(!waiting.is_finished());
            fs::write(&size, "8\n").expect("write");
        });
        assert_eq!(fs::read(&size).expect("read"), b"8\n");
    }
}
