//! A disk of ours, damaged anywhere, as the reader finds it that extracts it to a folder.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bulkhead_image::erofs::{FileType, ReadError, Reader};
use bulkhead_image::layers::{DiskError, DiskOptions, Layer, build_disk};
use libfuzzer_sys::fuzz_target;

/// More files than this are met only because a directory is in itself.
const MAX_FILES: usize = 64;

/// An archive with what the reader has a way to read: contents in a block, in several and with holes, links, devices,
/// attributes, and a directory of more than one block.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind, target: &str, contents: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(7);
        header.set_size(contents.len() as u64);
        if !target.is_empty() {
            header.set_link_name(target).expect("short");
        }
        archive.append_data(&mut header, name, contents).expect("memory");
    };
    let mut sparse = vec![0; 1 << 20];
    sparse[500_000] = 1;
    add("small", tar::EntryType::Regular, "", b"contents");
    add("large", tar::EntryType::Regular, "", &[7; 10_000]);
    add("sparse", tar::EntryType::Regular, "", &sparse);
    add("again", tar::EntryType::Link, "small", b"");
    add("pointer", tar::EntryType::Symlink, "../large", b"");
    add("pipe", tar::EntryType::Fifo, "", b"");
    add("d", tar::EntryType::Directory, "", b"");
    for number in 0..40 {
        let name = format!("d/{number}-{}", "x".repeat(90));
        add(&name, tar::EntryType::Regular, "", b"");
    }
    archive.into_inner().expect("memory")
}

fn disk() -> (File, Vec<u8>) {
    let file = tempfile::tempfile().expect("file");
    let tar = archive();
    let layer = Ok::<_, DiskError>(Layer {
        name: "layer".to_owned(),
        tar: Box::new(tar.as_slice()),
    });
    let options = DiskOptions {
        uuid: [1; 16],
        limits: Default::default(),
    };
    let summary = build_disk([layer].into_iter(), &file, &options).expect("an image");
    let mut bytes = vec![0; summary.disk_bytes as usize];
    file.read_exact_at(&mut bytes, 0).expect("as long as it says");
    walk(&file).expect("sound as it is");
    (file, bytes)
}

/// Reads all that there is, as far as it can be read.
fn walk(disk: &File) -> Result<(), ReadError> {
    let reader = Reader::open(disk)?;
    let mut left = vec![reader.root()?];
    for _ in 0..MAX_FILES {
        let Some(node) = left.pop() else { break };
        reader.xattrs(&node)?;
        match node.file_type {
            FileType::Directory => {
                for (name, number) in reader.entries(&node)? {
                    assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..");
                    left.push(reader.node(number)?);
                }
            }
            FileType::Symlink => assert!(!reader.target(&node)?.contains(&0)),
            FileType::Regular => {
                let mut end = 0;
                for extent in reader.contents(&node)? {
                    assert!(extent.offset >= end && extent.len > 0);
                    end = extent.offset + extent.len;
                }
                assert!(end <= node.size);
            }
            _ => {}
        }
    }
    Ok(())
}

thread_local! {
    static DISK: RefCell<(File, Vec<u8>)> = RefCell::new(disk());
}

fuzz_target!(|damage: Vec<(u16, u8, [u8; 4])>| {
    DISK.with_borrow(|(file, sound)| {
        let mut places = Vec::new();
        for (place, len, bytes) in &damage {
            let place = usize::from(*place) % (sound.len() - bytes.len());
            let bytes = &bytes[..usize::from(len % 4) + 1];
            file.write_all_at(bytes, place as u64).expect("write");
            places.push((place, bytes.len()));
        }
        if let Err(error) = walk(file) {
            assert!(!error.to_string().contains('\n'), "more than a sentence");
        }
        for (place, len) in places {
            let sound = &sound[place..place + len];
            file.write_all_at(sound, place as u64).expect("write");
        }
    });
});
