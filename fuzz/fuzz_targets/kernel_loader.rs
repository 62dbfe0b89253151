//! Any file as a kernel: ELF and bzImage headers, and what the decompressors make of a payload.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::Path;

use bulkhead_devices::GuestMemory;
use bulkhead_vmm::boot::cmdline::Cmdline;
use bulkhead_vmm::boot::{initrd, kernel, params};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const HIMEM: usize = 1 << 20;
const PAGE_SIZE: u64 = 4096;
const MEMORY_SIZE: u64 = 20 << 20;
static ZEROES: [u8; HIMEM] = [0; HIMEM];

/// "hello" and newline as the tools of a kernel build pack it: from here a fuzzer reaches what lies
/// behind the checksums of the containers.
const SAMPLES: [&[u8]; 4] = [
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xcbH\xcd\xc9\xc9\xe7\x02\x00 0:6\x06\x00\x00\x00",
    b"\xfd7zXZ\x00\x00\x01i\x22\xde6\x02\x01\x04\x00!\x01\x1a\x00\x01\xc9\x80\xb3\x01\x00\x05hello\x0a\x00\x00\x00 0:6\x00\x01\x1a\x06\xc5\xea\xc8y\x90B\x99\x0d\x01\x00\x00\x00\x00\x01YZ\x06\x00\x00\x00",
    b"\x02!L\x18\x07\x00\x00\x00`hello\x0a\x06\x00\x00\x00",
    b"(\xb5/\xfd\x04\x881\x00\x00hello\x0aS\x88\xbd\x91\x06\x00\x00\x00",
];

thread_local! {
    /// One file, as long as it is small, and one guest for all runs: making them takes longer than a load.
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile().expect("temporary file"));
    static MEMORY: GuestMemory =
        GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).expect("memory");
}

fn run(memory: &GuestMemory, file: &mut File, data: &[u8]) {
    // A page of it may still be mapped into the guest: that file is let go, not changed.
    if file.metadata().expect("metadata").len() >= PAGE_SIZE {
        *file = tempfile::tempfile().expect("temporary file");
    }
    file.set_len(0).expect("truncate");
    file.rewind().expect("rewind");
    file.write_all(data).expect("write");
    let path = Path::new("fuzz");

    let loaded = kernel::load(memory, file, path);
    let mut low = vec![0; HIMEM];
    memory.read_slice(&mut low, GuestAddress(0)).expect("read");
    assert!(low == ZEROES, "something below 1 MiB");
    let kernel = match loaded {
        Ok(kernel) => kernel,
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "more than a sentence");
            return;
        }
    };
    assert!(kernel.entry < kernel.end && kernel.end.0 <= MEMORY_SIZE);

    // The file is no initrd, but its length is as good as any.
    if let Ok(initrd) = initrd::load(memory, file, path, &kernel) {
        assert!(initrd.start >= kernel.end);
        assert!(initrd.start.0 + initrd.size <= MEMORY_SIZE);
        let _ = params::write(memory, &kernel, &Cmdline::new(), Some(initrd));
    }
    memory.write_slice(&ZEROES, GuestAddress(0)).expect("clear");
}

/// `data` as an ELF file: it may say anything but what the loader looks at first.
fn elf(data: &[u8]) -> Vec<u8> {
    let mut file = data.to_vec();
    if file.len() < 64 {
        return file;
    }
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56] = 1 + file[56] % 4;
    file[57] = 0;
    file
}

/// A bzImage with this payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS");
    file[0x206..0x208].copy_from_slice(&[0xf, 2]);
    file[0x211] = 1;
    file[0x22c..0x230].copy_from_slice(&[0xff; 4]);
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}

/// A sample with `data` mixed in at its start, and behind it.
fn damaged_sample(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut payload = SAMPLES[usize::from(kind) % SAMPLES.len()].to_vec();
    let (changes, more) = data.split_at(data.len().min(payload.len()));
    for (byte, change) in payload.iter_mut().zip(changes) {
        *byte ^= change;
    }
    payload.extend(more);
    payload
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else {
        return;
    };
    let file_bytes = match mode % 6 {
        0 => data.to_vec(),
        1 => elf(data),
        2 => bzimage(&elf(data)),
        3 => bzimage(data),
        // The setup header itself.
        4 => {
            let mut file = bzimage(&elf(data));
            for (byte, change) in file[0x1f1..0x1fe].iter_mut().zip(data) {
                *byte ^= change;
            }
            for (byte, change) in file[0x206..0x290].iter_mut().zip(data) {
                *byte ^= change;
            }
            file
        }
        _ => bzimage(&damaged_sample(mode / 6, data)),
    };
    FILE.with_borrow_mut(|file| MEMORY.with(|memory| run(memory, file, &file_bytes)));
});
