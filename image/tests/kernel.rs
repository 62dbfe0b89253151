//! Disks as the kernel and `fsck.erofs` see them, one feature at a time.

mod support;

use std::os::unix::fs::{FileExt, MetadataExt};

use support::archive::{Archive, Header, directory, file, header, link};
use support::disk::{bytes, can_mount, checked, mounted};
use support::tree::{Links, see};

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn xattr(name: &str, value: &[u8]) -> (String, Vec<u8>) {
    (format!("SCHILY.xattr.{name}"), value.to_vec())
}

#[test]
fn disk_when_of_everything_then_the_kernel_sees_everything() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // user::rw-, user:1:r--, group::r--, mask::r--, other::r--
    let mut acl = vec![2, 0, 0, 0];
    for (tag, permissions, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 1),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let long = "long/".repeat(40) + &"n".repeat(255);
    let mut archive = Archive::default();
    archive
        .add(
            &Header {
                mode: 0o700,
                uid: 9,
                ..directory("./")
            },
            b"",
        )
        .add(
            &Header {
                mode: 0o4755,
                uid: 70_000,
                gid: 80_000,
                ..file("big-ids")
            },
            b"x",
        )
        .add(
            &Header {
                uid: 4_294_967_294,
                ..file("biggest-id")
            },
            b"",
        )
        .add(
            &Header {
                mtime: (-5, 250),
                ..file("before-1970")
            },
            b"old",
        )
        .add(
            &Header {
                mtime: (1 << 40, 999_999_999),
                ..file("future")
            },
            b"new",
        )
        .add(
            &Header {
                pax: vec![xattr("security.capability", &capability)],
                ..file("cap")
            },
            b"",
        )
        .add(
            &Header {
                pax: vec![xattr("system.posix_acl_access", &acl)],
                ..file("acl")
            },
            b"acl",
        )
        .add(
            &Header {
                pax: vec![xattr("system.posix_acl_default", &acl)],
                ..directory("ad")
            },
            b"",
        )
        .add(
            &Header {
                pax: vec![
                    xattr("user.large", &noise(60_000, 1)),
                    xattr("user.b\nc", b"\0\n"),
                ],
                ..file("large-xattrs")
            },
            &noise(5000, 2),
        )
        .add(
            &Header {
                pax: vec![xattr("trusted.t", b"1")],
                ..link("sl", b'2', "/etc/../x")
            },
            b"",
        )
        .add(&link("long-target", b'2', "t/".repeat(2047)), b"")
        .add(&file(&long), b"deep")
        .add(
            &Header {
                device: (1, 3),
                mode: 0o666,
                ..header("null", b'3')
            },
            b"",
        )
        .add(
            &Header {
                device: (4095, 1_048_575),
                ..header("block", b'4')
            },
            b"",
        )
        .add(&header("fifo", b'6'), b"")
        .add(&link("hard", b'1', "big-ids"), b"")
        .add(&link("ad/hard", b'1', "./big-ids"), b"");
    let sizes = [
        0,
        1,
        31,
        4031,
        4032,
        4033,
        4064,
        4095,
        4096,
        4097,
        8192,
        70_001,
        1 << 20,
        3 << 20,
    ];
    for size in sizes {
        archive.add(&file(format!("size-{size}")), &noise(size, size as u64));
    }
    let archives = [archive.end()];
    let disk = checked(&archives);
    assert_eq!(
        bytes(disk.as_file()),
        bytes(checked(&archives).as_file()),
        "reproducible"
    );
    if !can_mount() {
        return;
    }
    let tree = mounted(disk.path(), see);
    let at = |name: &str| &tree[name.as_bytes()];
    assert_eq!((at("").mode, at("").uid), (0o40_700, 9));
    assert_eq!(
        (at("big-ids").mode, at("big-ids").uid, at("big-ids").gid),
        (0o104_755, 70_000, 80_000)
    );
    let names = ["ad/hard", "big-ids", "hard"].map(|name| name.as_bytes().to_vec());
    assert_eq!(at("hard").links, Links::Names(names.to_vec()));
    assert_eq!(at("biggest-id").uid, 4_294_967_294);
    assert_eq!(at("before-1970").mtime, (-5, 250));
    assert_eq!(at("future").mtime, (1 << 40, 999_999_999));
    assert_eq!(
        at("cap").xattrs[b"security.capability".as_slice()],
        capability
    );
    assert_eq!(at("acl").xattrs[b"system.posix_acl_access".as_slice()], acl);
    assert_eq!(at("ad").xattrs[b"system.posix_acl_default".as_slice()], acl);
    assert_eq!(
        at("large-xattrs").xattrs[b"user.large".as_slice()],
        noise(60_000, 1)
    );
    assert_eq!(at("large-xattrs").xattrs[b"user.b\nc".as_slice()], b"\0\n");
    assert_eq!(at("large-xattrs").contents, noise(5000, 2));
    assert_eq!(at("sl").contents, b"/etc/../x");
    assert_eq!(at("sl").xattrs[b"trusted.t".as_slice()], b"1");
    assert_eq!(at("long-target").contents, "t/".repeat(2047).as_bytes());
    assert_eq!(at(&long).contents, b"deep");
    assert_eq!(
        (at("long").mode, at("long").links.clone()),
        (0o40_755, Links::Count(3))
    );
    assert_eq!(
        (at("null").mode, at("null").rdev),
        (0o20_666, rustix::fs::makedev(1, 3))
    );
    assert_eq!(at("block").rdev, rustix::fs::makedev(4095, 1_048_575));
    assert_eq!(at("fifo").mode, 0o10_644);
    for size in sizes {
        assert_eq!(
            at(&format!("size-{size}")).contents,
            noise(size, size as u64),
            "{size}"
        );
    }
}

#[test]
fn hard_link_when_its_target_is_hidden_then_has_the_contents() {
    let (large, small) = (noise(3 << 20, 1), noise(100, 2));
    let mut lower = Archive::default();
    lower
        .add(&file("gone/large"), &large)
        .add(&file("gone/unneeded"), &noise(2 << 20, 3))
        .add(&file("gone/small"), &small)
        .add(&link("gone/second", b'1', "gone/large"), b"")
        .add(&link("kept", b'1', "gone/second"), b"")
        .add(&link("also", b'1', "gone/large"), b"");
    let middle = Archive::default()
        .add(&link("from-below", b'1', "gone/small"), b"")
        .end();
    let upper = Archive::default().add(&file(".wh.gone"), b"").end();
    let disk = checked(&[lower.end(), middle, upper]);
    let len = disk.as_file().metadata().expect("its length").len();
    assert!(len < 4 << 20, "what nobody needs is not written: {len}");
    if !can_mount() {
        return;
    }
    let tree = mounted(disk.path(), see);
    assert_eq!(tree.len(), 4);
    assert_eq!(tree[b"kept".as_slice()].contents, large);
    assert_eq!(
        tree[b"kept".as_slice()].links,
        tree[b"also".as_slice()].links
    );
    assert_eq!(tree[b"from-below".as_slice()].contents, small);
}

#[test]
fn directory_when_of_100_000_entries_then_each_is_found() {
    let mut archive = Archive::default();
    archive.add(&directory("d"), b"");
    for index in 0..100_000 {
        // Names before and behind "." and "..", of all lengths.
        let name = format!(
            "d/{}{index}",
            ["", "-", "+", ".", "..", "é", "~"][index % 7]
        );
        archive.add(&link(name + &"x".repeat(index % 200), b'2', "t"), b"");
    }
    let disk = checked(&[archive.end()]);
    if !can_mount() {
        return;
    }
    mounted(disk.path(), |root| {
        let mut count = 0;
        for entry in std::fs::read_dir(root.join("d")).expect("a directory") {
            let entry = entry.expect("an entry");
            assert!(entry.metadata().expect("it is found").is_symlink());
            count += 1;
        }
        assert_eq!(count, 100_000);
        assert!(root.join("d/nothing").symlink_metadata().is_err());
    });
}

#[test]
fn file_when_larger_than_4_gib_then_is_whole() {
    struct Zeros(u64);
    impl std::io::Read for Zeros {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let len = usize::try_from(self.0).unwrap_or(usize::MAX).min(buf.len());
            buf[..len].fill(b'z');
            self.0 -= len as u64;
            Ok(len)
        }
    }
    // Stored whole it would take 5 GiB of this machine's disk: most of it is a hole in the archive.
    let size = (5_u64 << 30) + 7;
    let pieces = format!(
        "3\n0\n1\n{}\n5\n{}\n3000000\n",
        (4_u64 << 30) - 2,
        size - 3_000_000
    );
    let mut map = pieces.into_bytes();
    map.resize(512, 0);
    let stored = 512 + 1 + 5 + 3_000_000;
    let mut archive = Archive::default();
    let mut pax = Vec::new();
    for (key, value) in [
        ("GNU.sparse.major", "1".into()),
        ("GNU.sparse.minor", "0".into()),
        ("GNU.sparse.name", "big".into()),
        ("GNU.sparse.realsize", size.to_string()),
    ] {
        pax.extend(support::archive::record(key, value.as_bytes()));
    }
    archive
        .block(&support::archive::block(
            &header("x", b'x'),
            pax.len() as u64,
        ))
        .data(&pax);
    archive.block(&support::archive::block(
        &file("GNUSparseFile.0/big"),
        stored,
    ));
    archive.0.extend(map);
    let mut whole = archive.0;
    let mut data = Vec::new();
    std::io::Read::read_to_end(&mut Zeros(stored - 512), &mut data).expect("endless");
    whole.extend(data);
    whole.resize(whole.len().next_multiple_of(512) + 1024, 0);
    let disk = checked(&[whole]);
    assert!(disk.as_file().metadata().expect("its size").len() < 8 << 20);
    if !can_mount() {
        return;
    }
    mounted(disk.path(), |root| {
        let file = std::fs::File::open(root.join("big")).expect("it is there");
        assert_eq!(file.metadata().expect("its size").size(), size);
        let mut buf = [0; 16];
        for (at, expected) in [
            (0, b"z\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".as_slice()),
            ((4 << 30) - 4, b"\0\0zzzzz\0\0\0\0\0\0\0\0\0"),
            (size - 3_000_004, b"\0\0\0\0zzzzzzzzzzzz"),
            (size - 16, b"zzzzzzzzzzzzzzzz"),
        ] {
            file.read_exact_at(&mut buf, at).expect("within the file");
            assert_eq!(buf, expected, "at {at}");
        }
    });
}
