//! The guest's disks, by their serials: which letter a disk gets is up to the order of the host's
//! configuration, and nobody should have to count.

use std::fs;
use std::path::{Path, PathBuf};

/// The device node of the virtio disk whose serial this is.
pub fn with_serial(serial: &str) -> Option<PathBuf> {
    let name = find(Path::new("/sys/block"), serial)?;
    Some(Path::new("/dev").join(name))
}

/// Whether the disk of this device node cannot be written to.
pub fn is_read_only(disk: &Path) -> bool {
    let name = disk.file_name().unwrap_or_default();
    let flag = Path::new("/sys/block").join(name).join("ro");
    fs::read_to_string(flag).is_ok_and(|text| text.trim_end() == "1")
}

fn find(block: &Path, serial: &str) -> Option<String> {
    let disks = fs::read_dir(block).ok()?;
    disks.flatten().find_map(|disk| {
        // Only virtio disks have the file.
        let found = fs::read_to_string(disk.path().join("serial")).ok()?;
        (found.trim_end_matches('\n') == serial).then(|| disk.file_name().into_string().ok())?
    })
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
        assert_eq!(find(dir.path(), "image").as_deref(), Some("vdc"));
        assert_eq!(find(dir.path(), "image-2").as_deref(), Some("vdb"));
        assert_eq!(
            (find(dir.path(), "imag"), find(dir.path(), "")),
            (None, None)
        );
    }
}
