//! Archives that nobody means well with: each is refused in one sentence, or contained.

mod support;

use bulkhead_image::layers::{DiskError, DiskOptions, Limits};
use support::archive::{Archive, Header, block, directory, file, header, link, record, sum};
use support::disk::{build, build_with, bytes, can_mount, checked, mounted, mounted_from};
use support::tree::see;

fn refusal(archives: &[Vec<u8>]) -> String {
    refusal_with(archives, Limits::default())
}

fn refusal_with(archives: &[Vec<u8>], limits: Limits) -> String {
    let options = DiskOptions {
        limits,
        ..DiskOptions::default()
    };
    match build_with(archives, &options) {
        Ok(_) => panic!("it was not refused"),
        Err(error) => error.to_string(),
    }
}

fn one(header: &Header, data: &[u8]) -> [Vec<u8>; 1] {
    [Archive::default().add(header, data).end()]
}

/// An archive whose first header says this size.
fn sized(size: &[u8; 12]) -> [Vec<u8>; 1] {
    let mut block = block(&file("f"), 0);
    block[124..136].copy_from_slice(size);
    sum(&mut block);
    [Archive::default().block(&block).end()]
}

#[test]
fn name_when_it_leads_out_then_is_refused() {
    for path in ["../x", "a/../../x", "/..", "a/b/.."] {
        assert!(refusal(&one(&file(path), b"")).contains("\"..\""), "{path}");
        assert!(
            refusal(&one(&link("l", b'1', path), b"")).contains("\"..\""),
            "{path}"
        );
    }
    assert!(refusal(&one(&file(""), b"")).contains("empty"));
    let pax = vec![("path".to_owned(), b"a\0b".to_vec())];
    assert!(refusal(&one(&Header { pax, ..file("x") }, b"")).contains("extended header"));
}

#[test]
fn name_when_absolute_then_is_below_the_root() {
    let mut archive = Archive::default();
    archive
        .add(&file("/etc/passwd"), b"ours")
        .add(&link("//h", b'1', "/etc//passwd"), b"");
    let disk = checked(&[archive.end()]);
    if can_mount() {
        let tree = mounted(disk.path(), see);
        assert_eq!(tree[b"etc/passwd".as_slice()].contents, b"ours");
        assert_eq!(tree[b"h".as_slice()].contents, b"ours");
    }
}

#[test]
fn path_when_through_a_symlink_of_its_layer_then_stays_in_the_image() {
    let mut archive = Archive::default();
    archive
        .add(&link("out", b'2', "../../../../tmp/x"), b"")
        .add(&file("out/in"), b"1")
        .add(&link("abs", b'2', "/deep/er"), b"")
        .add(&file("abs/in"), b"2")
        .add(&link("deep/er/up", b'2', ".."), b"")
        .add(&file("abs/up/in"), b"3")
        .add(&link("hard", b'1', "abs/up/in"), b"");
    let disk = checked(&[archive.end()]);
    if can_mount() {
        let tree = mounted(disk.path(), see);
        for (path, contents) in [
            ("tmp/x/in", b"1"),
            ("deep/er/in", b"2"),
            ("deep/in", b"3"),
            ("hard", b"3"),
        ] {
            assert_eq!(tree[path.as_bytes()].contents, contents, "{path}");
        }
    }
    let mut circle = Archive::default();
    circle
        .add(&link("a", b'2', "b"), b"")
        .add(&link("b", b'2', "a"), b"")
        .add(&file("a/x"), b"");
    assert!(refusal(&[circle.end()]).contains("too many symbolic links"));
}

#[test]
fn path_when_through_a_file_then_is_refused_in_its_layer_and_replaces_below() {
    let mut archive = Archive::default();
    archive.add(&file("a"), b"").add(&file("a/b"), b"");
    assert!(refusal(&[archive.end()]).contains("no directory"));

    let lower = Archive::default().add(&file("a"), b"below").end();
    let upper = Archive::default().add(&file("a/b"), b"above").end();
    let disk = checked(&[lower, upper]);
    if can_mount() {
        let tree = mounted(disk.path(), see);
        assert_eq!(tree[b"a/b".as_slice()].contents, b"above");
    }
}

#[test]
fn size_when_absurd_then_is_refused_before_anything_is_read() {
    for size in [
        b"777777777777",
        b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"zzzzzzzzzzzz",
    ] {
        let said = refusal(&sized(size));
        assert!(
            said.contains("valid size")
                || said.contains("bytes")
                || said.contains("cannot be read"),
            "{said}"
        );
    }
    let pax = |size: &str| vec![("size".to_owned(), size.as_bytes().to_vec())];
    for size in [
        "9223372036854775808",
        "18446744073709551615",
        "99999999999999999999999",
    ] {
        assert!(
            build(&one(
                &Header {
                    pax: pax(size),
                    ..file("f")
                },
                b""
            ))
            .is_err(),
            "{size}"
        );
    }
}

#[test]
fn holes_when_contradictory_or_enormous_then_are_refused() {
    let sparse = |map: &str, size: u64, data: &[u8]| {
        let pax = vec![
            ("GNU.sparse.size".to_owned(), size.to_string().into_bytes()),
            ("GNU.sparse.map".to_owned(), map.as_bytes().to_vec()),
        ];
        one(&Header { pax, ..file("f") }, data)
    };
    for map in [
        "0,5,3,2",
        "5,1,0,1",
        "0,9",
        "0",
        "0,2,9223372036854775807,1",
        "x,1",
        "0,1",
    ] {
        assert!(
            refusal(&sparse(map, 8, b"12")).contains("malformed"),
            "{map}"
        );
    }
    assert!(build(&sparse("0,1,7,1", 8, b"12")).is_ok());
    assert!(refusal(&sparse("0,1,7,1", u64::MAX / 2, b"12")).contains("more than"));
    let (disk, summary) = build(&sparse("0,1,7,1", 16 << 40, b"12")).expect("16 TiB of hole");
    assert!(summary.disk_bytes < 80 << 20, "{summary:?}");
    support::disk::fsck(disk.path());
}

#[test]
fn archive_when_cut_short_anywhere_then_is_refused_or_ends_at_a_header() {
    let mut archive = Archive::default();
    let pax = vec![("comment".to_owned(), vec![b'c'; 600])];
    archive
        .add(
            &Header {
                pax,
                ..file("f".repeat(120))
            },
            &[1; 700],
        )
        .add(&directory("d"), b"")
        .add(&link("l", b'2', "t".repeat(150)), b"");
    let whole = archive.end();
    for len in (0..whole.len()).step_by(37) {
        match build(&[whole[..len].to_vec()]) {
            Ok(_) => {}
            Err(DiskError::Archive { .. }) => {}
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

#[test]
fn header_when_anything_is_wrong_with_it_then_is_refused() {
    let mut wrong_sum = block(&file("f"), 0);
    wrong_sum[0] = b'g';
    let wrong_sum = Archive::default().block(&wrong_sum).end();
    assert!(refusal(&[wrong_sum]).contains("checksum"));
    assert!(refusal(&one(&header("f", b'Q'), b"")).contains("unknown type 'Q'"));
    assert!(refusal(&one(&link("f", b'2', ""), b"")).contains("symbolic link"));
    assert!(refusal(&one(&link("f", b'2', "t".repeat(4096)), b"")).contains("4096"));
    assert!(refusal(&one(&header("/", b'0'), b"")).contains("root"));
    assert!(
        refusal(&one(
            &Header {
                uid: u64::from(u32::MAX),
                ..file("f")
            },
            b""
        ))
        .contains("owner")
    );
    let device = Header {
        device: (4096, 0),
        ..header("dev", b'3')
    };
    assert!(refusal(&one(&device, b"")).contains("4096:0"));
    let mut pax = Archive::default();
    pax.block(&block(&header("x", b'x'), 2 << 20));
    assert!(refusal(&[pax.end()]).contains("extended header"));
    let mut name = Archive::default();
    name.block(&block(&header("x", b'L'), 1 << 40));
    assert!(build(&[name.end()]).is_err());
}

#[test]
fn hard_link_when_it_leads_nowhere_or_to_a_directory_then_is_refused() {
    assert!(refusal(&one(&link("l", b'1', "nothing"), b"")).contains("\"nothing\""));
    assert!(refusal(&one(&link("l", b'1', "l"), b"")).contains("\"l\""));
    let mut archive = Archive::default();
    archive
        .add(&directory("d"), b"")
        .add(&link("l", b'1', "d"), b"");
    assert!(refusal(&[archive.end()]).contains("directory"));
    let mut circle = Archive::default();
    circle
        .add(&link("a", b'1', "b"), b"")
        .add(&link("b", b'1', "a"), b"");
    assert!(build(&[circle.end()]).is_err());
    // A layer between removes what the link is to.
    let below = Archive::default().add(&file("f"), b"").end();
    let between = Archive::default().add(&file(".wh.f"), b"").end();
    let above = Archive::default().add(&link("l", b'1', "f"), b"").end();
    assert!(refusal(&[below, between, above]).contains("\"f\""));
}

#[test]
fn whiteout_when_reserved_or_odd_then_is_refused_or_ignored() {
    for path in [".wh.", ".wh..", "a/.wh...", ".wh.d/f"] {
        assert!(
            refusal(&one(&file(path), b"")).contains("whiteouts"),
            "{path}"
        );
    }
    let mut archive = Archive::default();
    archive
        .add(&file(".wh..wh.aufs"), b"")
        .add(&directory(".wh..wh.plnk"), b"")
        .add(&file(".wh..wh.plnk/12.3"), b"x")
        .add(&file("no/such/.wh.file"), b"");
    let (_, summary) = build(&[archive.end()]).expect("ignored");
    assert_eq!(summary.inodes, 1);
}

#[test]
fn overlay_attributes_when_in_a_layer_then_are_left_out() {
    let pax = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.whiteout",
    ]
    .map(|name| (format!("SCHILY.xattr.{name}"), b"y".to_vec()));
    let disk = checked(&one(
        &Header {
            pax: pax.to_vec(),
            ..directory("d")
        },
        b"",
    ));
    if can_mount() {
        assert!(mounted(disk.path(), see)[b"d".as_slice()].xattrs.is_empty());
    }
}

#[test]
fn xattrs_when_larger_than_linux_lists_then_are_refused() {
    let pax = vec![("SCHILY.xattr.user.x".to_owned(), vec![0; 65_530])];
    assert!(refusal(&one(&Header { pax, ..file("f") }, b"")).contains("extended attributes"));
    let pax = vec![("SCHILY.xattr.user.x".to_owned(), vec![0; 4000])];
    assert!(
        refusal(&one(
            &Header {
                pax,
                ..directory(".")
            },
            b""
        ))
        .contains("root directory")
    );
}

#[test]
fn limits_when_passed_then_the_image_is_refused() {
    let many = |count: usize| {
        let mut archive = Archive::default();
        for index in 0..count {
            archive.add(&file(format!("f{index}")), b"data");
        }
        [archive.end()]
    };
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    assert!(refusal_with(&many(11), limits.clone()).contains("10 entries"));
    let limits = Limits {
        memory: 5000,
        ..limits
    };
    assert!(
        refusal_with(
            &many(100),
            Limits {
                entries: 1000,
                ..limits
            }
        )
        .contains("5000 bytes")
    );
    let limits = Limits {
        layer_bytes: 4096,
        ..Limits::default()
    };
    assert!(refusal_with(&many(10), limits).contains("4096 bytes"));
    let limits = Limits {
        disk_bytes: 1 << 20,
        ..Limits::default()
    };
    assert!(refusal_with(&one(&file("f"), &vec![1; 2 << 20]), limits).contains("disk"));
    let deep = one(&file("d/".repeat(1025) + "f"), b"");
    assert!(refusal(&deep).contains("1024 directories"));
    let mut chain = Archive::default();
    chain.add(&link("a", b'2', "d/".repeat(1000)), b"");
    chain
        .add(&link("a/b", b'2', "d/".repeat(1000)), b"")
        .add(&file("a/b/f"), b"");
    assert!(refusal(&[chain.end()]).contains("1024 directories"));
    assert!(refusal(&one(&file("n".repeat(256)), b"")).contains("255"));
}

#[test]
fn error_when_of_hostile_names_then_shows_them_escaped() {
    let said = refusal(&one(&file("\x1b[31m\n/../x"), b""));
    assert!(
        said.contains("\\x1b[31m\\n/") && !said.contains('\n'),
        "{said}"
    );
}

#[test]
fn disk_when_it_cannot_be_written_then_says_so() {
    let archives = one(&file("f"), &vec![1; 4 << 20]);
    let read_only = tempfile::NamedTempFile::new().expect("a file");
    let file = std::fs::File::open(read_only.path()).expect("for reading");
    let layers = support::disk::layers(&archives);
    let error = bulkhead_image::layers::build_disk(layers, &file, &DiskOptions::default());
    assert!(
        error
            .expect_err("read only")
            .to_string()
            .contains("cannot write")
    );
}

#[test]
fn disk_when_its_file_system_is_full_then_says_so() {
    if !can_mount() {
        return;
    }
    let archives = one(&file("f"), &vec![1; 4 << 20]);
    let options = ["-t", "tmpfs", "-o", "size=2m"];
    let said = mounted_from(&options, "none".as_ref(), |root| {
        let file = tempfile::tempfile_in(root).expect("a file");
        let layers = support::disk::layers(&archives);
        let error = bulkhead_image::layers::build_disk(layers, &file, &DiskOptions::default());
        error.expect_err("too small").to_string()
    });
    assert!(
        said.contains("cannot write") && said.contains("full"),
        "{said}"
    );
}

#[test]
fn disk_when_layers_repeat_names_then_the_last_counts_and_bytes_repeat() {
    let mut archive = Archive::default();
    archive
        .add(&file("f"), b"first")
        .add(&link("keeps-first", b'1', "f"), b"")
        .add(&file("f"), b"second")
        .add(&file("d/x"), b"gone")
        .add(&file("d"), b"a file now")
        .add(&file("e"), b"gone")
        .add(
            &Header {
                mode: 0o700,
                ..directory("e")
            },
            b"",
        )
        .add(&file("e/y"), b"y")
        .add(
            &Header {
                mode: 0o711,
                ..directory("e")
            },
            b"",
        );
    let archives = [archive.end()];
    let disk = checked(&archives);
    assert_eq!(bytes(disk.as_file()), bytes(checked(&archives).as_file()));
    if can_mount() {
        let tree = mounted(disk.path(), see);
        let contents = |name: &str| tree[name.as_bytes()].contents.as_slice();
        assert_eq!(contents("f"), b"second");
        assert_eq!(contents("keeps-first"), b"first");
        assert_eq!(contents("d"), b"a file now");
        assert_eq!(contents("e/y"), b"y");
        assert_eq!(tree[b"e".as_slice()].mode, 0o40_711);
        assert_eq!(tree.len(), 6);
    }
}

#[test]
fn record_when_made_by_these_tests_then_counts_itself() {
    assert_eq!(record("a", b"b"), b"6 a=b\n");
    assert_eq!(record("path", &[b'x'; 91]).len(), 101);
}
