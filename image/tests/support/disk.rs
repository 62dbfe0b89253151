//! Disks: made from layers, checked by `fsck.erofs`, mounted by the kernel.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::thread;

use bulkhead_image::layers::{DiskError, DiskOptions, DiskSummary, Layer, build_disk};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::NamedTempFile;

/// Archives, the lowest first, as people think of layers.
pub fn layers(archives: &[Vec<u8>]) -> impl Iterator<Item = Result<Layer<'_>, DiskError>> {
    archives.iter().enumerate().rev().map(|(index, archive)| {
        Ok(Layer {
            name: index.to_string(),
            tar: Box::new(archive.as_slice()),
        })
    })
}

/// Makes a disk of archives, the lowest first.
pub fn build(archives: &[Vec<u8>]) -> Result<(NamedTempFile, DiskSummary), DiskError> {
    build_with(
        archives,
        &DiskOptions {
            uuid: [7; 16],
            ..DiskOptions::default()
        },
    )
}

/// The same, with options.
pub fn build_with(
    archives: &[Vec<u8>],
    options: &DiskOptions,
) -> Result<(NamedTempFile, DiskSummary), DiskError> {
    let file = NamedTempFile::new().expect("a temporary file");
    let summary = build_disk(layers(archives), file.as_file(), options)?;
    Ok((file, summary))
}

/// Makes a disk that must be right, and asks `fsck.erofs`.
pub fn checked(archives: &[Vec<u8>]) -> NamedTempFile {
    let (file, summary) = build(archives).expect("a disk");
    assert_eq!(
        file.as_file().metadata().expect("its length").len(),
        summary.disk_bytes
    );
    fsck(file.path());
    file
}

/// Fails if `fsck.erofs` finds anything.
pub fn fsck(disk: &Path) {
    let output = Command::new("fsck.erofs")
        .arg("-d3")
        .arg(disk)
        .output()
        .expect("erofs-utils");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.contains("No errors found"),
        "{said}"
    );
}

/// Whether this program may mount. Without that a test has only `fsck.erofs` to ask.
pub fn can_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: the kernel is not asked");
    }
    root
}

/// Mounts a disk for a while.
pub fn mounted<T: Send>(disk: &Path, look: impl FnOnce(&Path) -> T + Send) -> T {
    mounted_from(&["-t", "erofs", "-o", "ro,loop"], disk, look)
}

/// Mounts something for a while, in a mount namespace that goes with the thread.
pub fn mounted_from<T: Send>(
    arguments: &[&str],
    source: &Path,
    look: impl FnOnce(&Path) -> T + Send,
) -> T {
    let at = tempfile::tempdir().expect("a temporary directory");
    let result = thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: file descriptors stay shared; only mounts are this thread's own.
                unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace");
                run(Command::new("mount").args(["--make-rprivate", "/"]));
                run(Command::new("mount")
                    .args(arguments)
                    .arg(source)
                    .arg(at.path()));
                let result = look(at.path());
                // A program that another test is about to execute may still have a file of it open.
                run(Command::new("umount").arg("--lazy").arg(at.path()));
                result
            })
            .join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// All bytes of a file.
pub fn bytes(mut file: &File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().expect("a regular file");
    file.read_to_end(&mut bytes).expect("it can be read");
    bytes
}
