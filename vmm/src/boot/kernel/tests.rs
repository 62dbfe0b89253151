use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes, FileOffset, GuestMemoryBackend};

use super::testing::*;
use super::*;

const KINDS: [Compression; 5] = [
    Compression::None,
    Compression::Gzip,
    Compression::Xz,
    Compression::Lz4,
    Compression::Zstd,
];

fn load_bytes(memory: &GuestMemory, bytes: &[u8]) -> Result<LoadedKernel, LoadError> {
    load(memory, &file(bytes), Path::new("/k/vmlinux"))
}

fn problem(bytes: &[u8]) -> Problem {
    load_bytes(&memory(64), bytes).expect_err("refused").problem
}

/// What the user reads.
fn message(bytes: &[u8]) -> String {
    let message = load_bytes(&memory(64), bytes)
        .expect_err("refused")
        .to_string();
    assert!(
        message.starts_with("cannot load the kernel /k/vmlinux: "),
        "{message}"
    );
    message
}

fn assert_loaded(memory: &GuestMemory, kernel: &LoadedKernel) {
    assert_eq!(kernel.entry, GuestAddress(ENTRY));
    assert_eq!(kernel.end, GuestAddress(ENTRY + 0x20_3000));
    for segment in segments() {
        let mut bytes = vec![0xaa; segment.memory_size as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(segment.address))
            .expect("read");
        let (data, zeroes) = bytes.split_at(segment.data.len());
        assert_eq!(data, segment.data);
        assert!(zeroes.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn vmlinux_when_loaded_has_its_segments_at_their_physical_addresses() {
    let memory = memory(64);
    let kernel = load_bytes(&memory, &vmlinux()).expect("load");
    assert_eq!(kernel.kind, KernelKind::Vmlinux);
    assert!(kernel.setup_header.is_none());
    assert_loaded(&memory, &kernel);
}

#[test]
fn vmlinux_when_memory_is_a_file_lands_at_the_same_addresses() {
    let backing = tempfile::tempfile().expect("temporary file");
    backing.set_len(80 << 20).expect("size");
    let offset = FileOffset::new(backing, 16 << 20);
    let memory = GuestMemory::from_ranges_with_files([(GuestAddress(0), 64 << 20, Some(offset))])
        .expect("memory");
    let kernel = load_bytes(&memory, &vmlinux()).expect("load");
    assert_loaded(&memory, &kernel);
}

#[test]
fn vmlinux_when_its_segments_are_not_in_file_order_loads_all_the_same() {
    let memory = memory(64);
    let mut file = vmlinux();
    // Swap the program headers of the two loadable segments.
    let (a, b) = (64 + 56, 64 + 2 * 56);
    for byte in 0..56 {
        file.swap(a + byte, b + byte);
    }
    assert_loaded(&memory, &load_bytes(&memory, &file).expect("load"));
}

#[test]
fn bzimage_when_loaded_is_the_vmlinux_in_it_whatever_packed_it() {
    for compression in KINDS {
        let memory = memory(64);
        let kernel = load_bytes(&memory, &bzimage(compression, &vmlinux())).expect("load");
        assert_eq!(kernel.kind, KernelKind::BzImage(compression));
        assert_loaded(&memory, &kernel);
        let header = kernel.setup_header.expect("setup header");
        assert_eq!(header.cmdline_size(), 2047);
        assert_eq!(header.initrd_addr_max(), 0x7fff_ffff);
        assert_eq!(header.as_bytes().len(), 0x26c - 0x1f1);
    }
}

/// "hello" and newline, by the very tools that pack kernels: the encoders of the other tests are not
/// the kernel's.
#[test]
fn payload_when_packed_by_the_tools_of_a_kernel_build_unpacks() {
    let packed: [(Compression, &[u8]); 4] = [
        (Compression::Gzip, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xcbH\xcd\xc9\xc9\xe7\x02\x00 0:6\x06\x00\x00\x00"),
        (Compression::Xz, b"\xfd7zXZ\x00\x00\x01i\x22\xde6\x02\x01\x04\x00!\x01\x1a\x00\x01\xc9\x80\xb3\x01\x00\x05hello\x0a\x00\x00\x00 0:6\x00\x01\x1a\x06\xc5\xea\xc8y\x90B\x99\x0d\x01\x00\x00\x00\x00\x01YZ\x06\x00\x00\x00"),
        (Compression::Lz4, b"\x02!L\x18\x07\x00\x00\x00`hello\x0a\x06\x00\x00\x00"),
        (Compression::Zstd, b"(\xb5/\xfd\x04\x881\x00\x00hello\x0aS\x88\xbd\x91\x06\x00\x00\x00"),
    ];
    for (compression, packed) in packed {
        let mut unpacked = String::new();
        compression
            .reader(packed, packed.len() as u64)
            .expect("reader")
            .read_to_string(&mut unpacked)
            .expect("unpack");
        assert_eq!(unpacked, "hello\n", "{compression}");
    }
}

#[test]
fn lz4_when_larger_than_a_block_or_of_two_frames_unpacks_whole() {
    let data: Vec<u8> = (0..(9u32 << 20)).map(|i| (i >> 10) as u8).collect();
    let packed = [
        pack(Compression::Lz4, &data),
        pack(Compression::Lz4, b"end"),
    ]
    .concat();
    let mut unpacked = Vec::new();
    lz4::Lz4LegacyReader::new(&packed[..])
        .and_then(|mut reader| reader.read_to_end(&mut unpacked))
        .expect("unpack");
    assert_eq!(unpacked.len(), data.len() + 3);
    assert!(unpacked.starts_with(&data) && unpacked.ends_with(b"end"));
}

#[test]
fn files_that_are_no_kernels_are_named_for_what_they_are() {
    assert!(matches!(problem(b""), Problem::Empty));
    assert!(matches!(
        problem(b"#!/bin/sh\necho \xc3\xa9\n"),
        Problem::Text
    ));
    assert!(matches!(problem(b"\0\x01\x02\xff"), Problem::Unknown));
    assert!(matches!(problem(&[0; 4096]), Problem::Unknown));
    let gz = pack(Compression::Gzip, &vmlinux());
    assert!(message(&gz).ends_with("it is a gzip file; unpack it first"));
    // A character cut in two by the end of what is looked at.
    let text = format!("a{}", "é".repeat(1000));
    assert!(matches!(problem(text.as_bytes()), Problem::Text));
}

#[test]
fn open_when_there_is_no_such_file_or_it_is_a_directory_says_so() {
    let message = open(Path::new("/no/such/vmlinux"))
        .expect_err("missing")
        .to_string();
    assert!(
        message.starts_with("cannot load the kernel /no/such/vmlinux: No such file"),
        "{message}"
    );
    let error = open(Path::new("/")).expect_err("a directory");
    assert!(matches!(error.problem, Problem::NotAFile));
}

#[test]
fn elf_when_for_another_machine_is_refused_by_name() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = vmlinux();
        put(&mut file, at, bytes);
        file
    };
    assert!(matches!(problem(&with(4, &[1])), Problem::NotElf64));
    assert!(matches!(problem(&with(5, &[2])), Problem::NotElf64));
    assert!(message(&with(18, &[183, 0])).contains("built for 64-bit Arm"));
    assert!(matches!(
        problem(&with(16, &[1, 0])),
        Problem::NotExecutable(1)
    ));
    assert!(matches!(problem(&with(54, &[57, 0])), Problem::Elf(_)));
    assert!(matches!(problem(&with(56, &[0, 0])), Problem::Elf(_)));
    assert!(matches!(problem(&with(56, &[0xff, 0xff])), Problem::Elf(_)));
    assert!(matches!(problem(&with(32, &[0xff; 8])), Problem::Elf(_)));
}

#[test]
fn elf_when_cut_short_anywhere_says_how_much_is_missing() {
    let whole = vmlinux();
    for len in [10, 63, 64, 100, 0x1000, 0x1234, whole.len() - 1] {
        match problem(&whole[..len]) {
            Problem::CutShort { needed, len: has } => {
                assert_eq!(has, len as u64);
                assert!(needed > has && needed <= whole.len() as u64);
            }
            other => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn elf_when_it_does_not_fit_says_what_it_needs_and_writes_nothing() {
    let memory = memory(17);
    let error = load_bytes(&memory, &vmlinux()).expect_err("too small");
    assert_eq!(
        error.to_string(),
        "cannot load the kernel /k/vmlinux: it needs memory up to 19 MiB and the guest has 17 MiB \
         below 3 GiB; give it more"
    );
    assert_untouched(&memory, |_| false);
}

#[test]
fn elf_when_its_segments_make_no_sense_is_refused_before_anything_is_written() {
    let with = |change: &dyn Fn(&mut Vec<Segment>)| {
        let mut segments = segments();
        change(&mut segments);
        elf(ENTRY, &segments)
    };
    let low = with(&|s| s[1].address = 0xf_f000);
    assert!(matches!(problem(&low), Problem::TooLow(0xf_f000)));
    let wraps = with(&|s| s[1].memory_size = u64::MAX);
    assert!(matches!(problem(&wraps), Problem::Elf(_)));
    let shrinks = with(&|s| s[1].memory_size = 1);
    assert!(matches!(problem(&shrinks), Problem::Elf(_)));
    let empty = with(&|s| s.clear());
    assert!(matches!(problem(&empty), Problem::Elf(_)));
    let elsewhere = elf(0x40_0000, &segments());
    assert!(matches!(problem(&elsewhere), Problem::Elf(_)));
}

#[test]
fn bzimage_when_its_header_is_bad_says_what_is_wrong() {
    let image = bzimage(Compression::Gzip, &vmlinux());
    let with = |at: usize, bytes: &[u8]| {
        let mut file = image.clone();
        put(&mut file, at, bytes);
        file
    };
    assert!(matches!(
        problem(&with(0x206, &[7, 2])),
        Problem::OldProtocol(0x207)
    ));
    assert!(message(&with(0x206, &[7, 2])).contains("boot protocol 2.07"));
    assert!(matches!(
        problem(&with(0x201, &[0x10])),
        Problem::SetupHeader(_)
    ));
    assert!(matches!(problem(&with(0x211, &[0])), Problem::ZImage));
    assert!(matches!(
        problem(&with(0x24c, &[0; 4])),
        Problem::SetupHeader(_)
    ));
    assert!(matches!(
        problem(&with(0x248, &[0xff; 8])),
        Problem::CutShort { .. }
    ));
    assert!(matches!(
        problem(&image[..image.len() - 100]),
        Problem::CutShort { .. }
    ));
    assert!(matches!(problem(&image[..0x220]), Problem::CutShort { .. }));
}

#[test]
fn bzimage_when_packed_in_a_way_we_cannot_unpack_says_what_to_do() {
    assert!(matches!(
        problem(&bzimage_of(b"BZh91AY")),
        Problem::Unsupported("bzip2")
    ));
    assert!(matches!(
        problem(&bzimage_of(b"\x5d\0\0\x80\0\xff\xff")),
        Problem::Unsupported("lzma")
    ));
    assert!(matches!(
        problem(&bzimage_of(b"\x89LZO\0\r\n")),
        Problem::Unsupported("lzo")
    ));
    assert!(matches!(
        problem(&bzimage_of(b"whatever")),
        Problem::UnknownPayload
    ));
}

#[test]
fn bzimage_when_its_payload_is_damaged_or_incomplete_says_so() {
    for compression in KINDS {
        let whole = vmlinux();
        let cut = bzimage(compression, &whole[..whole.len() - 4]);
        assert!(
            matches!(problem(&cut), Problem::PayloadTooShort(len) if len == whole.len() as u64 - 4),
            "{compression}"
        );
        let packed = pack(compression, &whole);
        let mut cut = packed[..packed.len() / 2].to_vec();
        cut.extend([0; 4]);
        assert!(
            matches!(
                problem(&bzimage_of(&cut)),
                Problem::Damaged { .. } | Problem::PayloadTooShort(_)
            ),
            "{compression}"
        );
    }
    // A wrong checksum, behind a kernel that is all there.
    let mut packed = pack(Compression::Gzip, &vmlinux());
    let checksum = packed.len() - 8;
    packed[checksum] ^= 1;
    assert!(matches!(
        problem(&bzimage_of(&packed)),
        Problem::Damaged { .. }
    ));
}

#[test]
fn payload_when_it_unpacks_without_end_is_refused() {
    let bomb = vmlinux().into_iter().chain(std::iter::repeat_n(0, 4 << 20));
    let packed = pack(Compression::Gzip, &bomb.collect::<Vec<u8>>());
    let reader = Compression::Gzip
        .reader(&packed[..], packed.len() as u64)
        .expect("reader");
    let mut source = source::UnpackedSource::new(reader, Compression::Gzip, 2 << 20);
    elf::load(&mut source, &memory(64)).expect("the kernel is all there");
    assert!(matches!(source.finish(), Err(Problem::PayloadTooLong(2))));
}

/// Checks that memory is zero but in the pages for which `may_differ` holds.
fn assert_untouched(memory: &GuestMemory, may_differ: impl Fn(u64) -> bool) {
    let mut page = vec![0; 4096];
    let end = memory.last_addr().0 + 1;
    for address in (0..end).step_by(4096).filter(|&a| !may_differ(a)) {
        memory
            .read_slice(&mut page, GuestAddress(address))
            .expect("read");
        assert!(page.iter().all(|&byte| byte == 0), "page at {address:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever is in the headers, loading ends in an error or a kernel within bounds, and what lies
    /// below 1 MiB is never written.
    #[test]
    fn vmlinux_when_mutated_never_panics_and_stays_above_1_mib(
        changes in prop::collection::vec((0usize..64 + 3 * 56, any::<u8>()), 1..8),
        len in prop::option::weighted(0.2, 0usize..0x2400),
    ) {
        let mut bytes = vmlinux();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(len.unwrap_or(bytes.len()));
        let memory = memory(32);
        if let Ok(kernel) = load_bytes(&memory, &bytes) {
            prop_assert!(kernel.end.0 <= 32 << 20);
            prop_assert!(kernel.entry.0 >= 1 << 20 && kernel.entry < kernel.end);
        }
        assert_untouched(&memory, |address| address >= 1 << 20);
    }

    #[test]
    fn bzimage_when_mutated_never_panics_and_stays_above_1_mib(
        kind in 0..KINDS.len(),
        header in prop::collection::vec((0x1f0usize..0x270, any::<u8>()), 0..3),
        payload in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = bzimage(KINDS[kind], &vmlinux());
        for (at, byte) in header {
            bytes[at] = byte;
        }
        let start = 4 * 512;
        for (at, byte) in payload {
            let at = start + at.index(bytes.len() - start);
            bytes[at] = byte;
        }
        let memory = memory(32);
        if let Ok(kernel) = load_bytes(&memory, &bytes) {
            prop_assert!(kernel.end.0 <= 32 << 20);
        }
        assert_untouched(&memory, |address| address >= 1 << 20);
    }
}
