//! Any layers as an image: what archives and whiteouts can say, and the disk that comes of it.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::{Result, Unstructured};
use bulkhead_fuzz::erofs;
use bulkhead_image::layers::{DiskError, DiskOptions, Layer, Limits, build_disk};
use libfuzzer_sys::fuzz_target;

/// More than this in one run only makes it slow.
const MAX_LAYERS: usize = 4;
const MAX_ENTRIES: usize = 24;

/// Names that meet each other: from here a fuzzer reaches what lies behind the first lookup.
const NAMES: [&[u8]; 20] = [
    b"a",
    b"b",
    b"a/b",
    b"a/b/c",
    b"b/a",
    b"./a/",
    b"/b",
    b"a/../b",
    b"./",
    b".wh.a",
    b"a/.wh.b",
    b"a/.wh..wh..opq",
    b".wh..wh..opq",
    b"b/.wh.a",
    b".wh..wh.plnk/x",
    b"../..",
    b"a/a",
    b"..",
    b"/a/b",
    b"-",
];
const KINDS: [u8; 12] = [
    b'0', b'0', b'1', b'1', b'2', b'3', b'4', b'5', b'5', b'6', b'S', 0,
];
const KEYS: [&str; 16] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "gid",
    "mtime",
    "SCHILY.xattr.user.x",
    "SCHILY.xattr.security.capability",
    "GNU.sparse.map",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.major",
    "GNU.sparse.name",
    "GNU.sparse.offset",
    "GNU.sparse.numbytes",
    "comment",
];
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "511",
    "512,1",
    "0,512",
    "0,1,4096,2",
    "1000000,3",
    "-1.5",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1.999999999999",
];

fn header(u: &mut Unstructured<'_>, kind: u8, size: usize) -> Result<[u8; 512]> {
    let mut block = [0; 512];
    if u.ratio(1, 8)? {
        u.fill_buffer(&mut block)?;
    }
    let name = *u.choose(&NAMES)?;
    block[..name.len()].copy_from_slice(name);
    let link = *u.choose(&NAMES)?;
    block[157..157 + link.len()].copy_from_slice(link);
    block[100..107].copy_from_slice(b"0000755");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(if u.arbitrary()? {
        b"ustar\x0000"
    } else {
        b"ustar  \0"
    });
    block[345..].fill(0);
    if kind == b'S' {
        for (index, at) in (386..482).step_by(12).enumerate() {
            let number = u64::from(u.arbitrary::<u16>()?) * (index as u64 / 2);
            block[at..at + 11].copy_from_slice(format!("{number:011o}").as_bytes());
        }
        block[483..494].copy_from_slice(format!("{:011o}", u.arbitrary::<u32>()?).as_bytes());
    }
    if u.ratio(1, 16)? {
        let at = u.int_in_range(0..=511)?;
        block[at] = u.arbitrary()?;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    Ok(block)
}

fn records(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut records = Vec::new();
    for _ in 0..u.int_in_range(1..=4)? {
        let key = *u.choose(&KEYS)?;
        let value = match u.int_in_range(0..=3)? {
            0 => u.choose(&NAMES)?.to_vec(),
            1 | 2 => u.choose(&NUMBERS)?.as_bytes().to_vec(),
            _ => u.arbitrary::<&[u8]>()?.to_vec(),
        };
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        records.extend(format!("{len} {key}=").into_bytes());
        records.extend(value);
        records.push(b'\n');
    }
    Ok(records)
}

fn layer(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for _ in 0..MAX_ENTRIES {
        if u.is_empty() || u.ratio(1, 12)? {
            break;
        }
        let (kind, data) = match u.int_in_range(0..=9)? {
            0 | 1 => (b'x', records(u)?),
            2 => (
                if u.arbitrary()? { b'L' } else { b'K' },
                u.arbitrary::<&[u8]>()?.to_vec(),
            ),
            3 => (u.arbitrary()?, vec![7; usize::from(u.arbitrary::<u16>()?)]),
            _ => {
                let kind = *u.choose(&KINDS)?;
                let len = if u.ratio(1, 4)? {
                    usize::from(u.arbitrary::<u16>()?)
                } else {
                    9
                };
                (
                    kind,
                    if matches!(kind, 0 | b'0' | b'S') {
                        vec![7; len]
                    } else {
                        Vec::new()
                    },
                )
            }
        };
        archive.extend(header(u, kind, data.len())?);
        archive.extend(data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    match u.int_in_range(0..=3)? {
        0 => archive.truncate(u.int_in_range(0..=archive.len())?),
        1 => archive.extend(u.arbitrary::<&[u8]>()?),
        _ => archive.extend([0; 1024]),
    }
    Ok(archive)
}

fn build(layers: &[Vec<u8>], file: &File) -> std::result::Result<Vec<u8>, DiskError> {
    let limits = Limits {
        layer_bytes: 8 << 20,
        disk_bytes: 16 << 20,
        memory: 8 << 20,
        entries: 1000,
        ..Limits::default()
    };
    let layers = layers.iter().map(|tar| {
        Ok::<_, DiskError>(Layer {
            name: "layer".to_owned(),
            tar: Box::new(tar.as_slice()),
        })
    });
    let summary = build_disk(
        layers,
        file,
        &DiskOptions {
            uuid: [1; 16],
            limits,
        },
    )?;
    let mut disk = vec![0; summary.disk_bytes as usize];
    file.read_exact_at(&mut disk, 0)
        .expect("as long as it says");
    assert_eq!(file.metadata().expect("metadata").len(), summary.disk_bytes);
    Ok(disk)
}

thread_local! {
    static FILES: RefCell<[File; 2]> = RefCell::new([0, 1].map(|_| tempfile::tempfile().expect("file")));
}

fuzz_target!(|data: &[u8]| {
    let mut u = Unstructured::new(data);
    let mut layers = Vec::new();
    while layers.len() < MAX_LAYERS && !u.is_empty() {
        match layer(&mut u) {
            Ok(layer) => layers.push(layer),
            Err(_) => break,
        }
    }
    FILES.with_borrow(|[first, second]| match build(&layers, first) {
        Ok(disk) => {
            erofs::check(&disk);
            let again = build(&layers, second).expect("as before");
            assert!(disk == again, "not reproducible");
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "more than a sentence"),
    });
});
