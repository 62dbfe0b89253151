//! The block device, by what it leaves in the file behind it.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bulkhead_tests::guest::{Guest, checksum, receive};
use bulkhead_tests::vm::Setup;
use serde_json::json;

const MIB: u64 = 1 << 20;
/// The root is `vda`.
const DEVICE: &str = "/dev/vdb";

fn sparse(path: &Path, size: u64) {
    let file = File::create(path).expect("create");
    file.set_len(size).expect("set the size");
}

/// The checksum of a part of a file.
fn checksum_of(path: &Path, offset: u64, bytes: u64) -> u64 {
    let mut file = File::open(path).expect("open");
    file.seek(SeekFrom::Start(offset)).expect("seek");
    let (got, sum) = receive(&mut file, bytes).expect("read");
    assert_eq!(got, bytes);
    sum
}

/// Bytes that the host keeps for a file.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("metadata").blocks() * 512
}

#[test]
fn disk_when_256_mib_are_written_and_synced_then_the_host_has_them() {
    const SIZE: u64 = 256 * MIB;
    let setup = Setup::test_guest();
    let file = setup.path("disk");
    sparse(&file, SIZE);
    let guest = Guest::boot(setup.disk(json!({"path": file})));
    let wrote = guest.ask(json!({"op": "disk_write", "device": DEVICE, "bytes": SIZE, "seed": 1}));
    assert_eq!((wrote.bytes, wrote.checksum), (SIZE, checksum(SIZE, 1)));
    // Synced: so it is in the file now, with the guest still running.
    assert_eq!(checksum_of(&file, 0, SIZE), wrote.checksum);
    let read = guest.ask(json!({"op": "disk_read", "device": DEVICE, "bytes": SIZE}));
    assert_eq!((read.bytes, read.checksum), (SIZE, wrote.checksum));
}

#[test]
fn disk_when_read_only_then_the_guest_knows_and_cannot_write() {
    let setup = Setup::test_guest();
    let file = setup.path("disk");
    fs::write(&file, vec![7; MIB as usize]).expect("write");
    let guest = Guest::boot(setup.disk(json!({"path": file, "read_only": true})));
    let info = guest.ask(json!({"op": "disk_info", "device": DEVICE}));
    assert_eq!((info.bytes, info.text.as_str()), (MIB, "ro"));
    let wrote =
        guest.try_ask(&json!({"op": "disk_write", "device": DEVICE, "bytes": 4096, "seed": 1}));
    assert!(wrote.error.is_some());
    let mut content = Vec::new();
    let mut opened = File::open(&file).expect("open");
    opened.read_to_end(&mut content).expect("read");
    assert!(content.iter().all(|&byte| byte == 7));
}

#[test]
fn disk_when_discarded_or_zeroed_then_space_goes_back_and_zeroes_are_read() {
    const SIZE: u64 = 64 * MIB;
    let setup = Setup::test_guest();
    let file = setup.path("disk");
    sparse(&file, SIZE);
    let guest = Guest::boot(setup.disk(json!({"path": file})));
    guest.ask(json!({"op": "disk_write", "device": DEVICE, "bytes": SIZE, "seed": 2}));
    let full = allocated(&file);
    assert!(full >= SIZE, "{full}");

    // The second quarter is discarded, the third zeroed; their neighbours stay.
    let quarter = SIZE / 4;
    guest.ask(json!({"op": "disk_discard", "device": DEVICE, "offset": quarter, "bytes": quarter}));
    let after = allocated(&file);
    assert!(
        after + quarter * 9 / 10 <= full,
        "{after} of {full} are left"
    );
    guest.ask(
        json!({"op": "disk_discard", "device": DEVICE, "offset": 2 * quarter,
        "bytes": quarter, "zero": true}),
    );
    let zeroes = bulkhead_test_guest::Checksum::of(&vec![0; quarter as usize]);
    for offset in [quarter, 2 * quarter] {
        assert_eq!(checksum_of(&file, offset, quarter), zeroes, "at {offset}");
        let read = guest
            .ask(json!({"op": "disk_read", "device": DEVICE, "offset": offset, "bytes": quarter}));
        assert_eq!(read.checksum, zeroes, "at {offset}");
    }
    assert_eq!(checksum_of(&file, 0, quarter), checksum(quarter, 2));
}

#[test]
fn disks_when_several_then_in_order_with_their_serials_and_sizes() {
    let mut setup = Setup::test_guest();
    for (name, size) in [("b", 3 * MIB), ("c", 5 * MIB + 512)] {
        let file = setup.path(name);
        sparse(&file, size);
        setup = setup.disk(json!({"path": file, "serial": format!("serial-of-{name}"),
            "rate_limit": {"bytes_per_second": 8 * MIB, "operations_per_second": 1000}}));
    }
    let guest = Guest::boot(setup);
    for (name, size) in [("b", 3 * MIB), ("c", 5 * MIB + 512)] {
        let device = format!("/dev/vd{name}");
        let info = guest.ask(json!({"op": "disk_info", "device": device}));
        assert_eq!((info.bytes, info.text.as_str()), (size, "rw"));
        let path = format!("/sys/block/vd{name}/serial");
        let serial = guest.ask(json!({"op": "read_file", "path": path}));
        assert_eq!(serial.text.trim(), format!("serial-of-{name}"));
        // Held to a rate or not, what is written is what is read.
        guest.ask(json!({"op": "disk_write", "device": device, "bytes": size, "seed": 3}));
        assert_eq!(
            checksum_of(&guest.vm.path(name), 0, size),
            checksum(size, 3)
        );
    }
}
