//! A hostile driver on the balloon: whatever it names, nothing but its own memory is released.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bulkhead_devices::GuestMemory;
use bulkhead_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonHandle};
use bulkhead_fuzz::{Guest, Host, MEMORY_SIZE, Request, in_buffers};
use libfuzzer_sys::fuzz_target;
use vm_memory::{FileOffset, GuestAddress};

/// What lies beside the guest's memory, on both sides, in the file that is behind it.
const BESIDE: usize = 4096;

struct Vmm(BalloonHandle);

impl Host for Vmm {
    fn request(&mut self, u: &mut Unstructured) -> Result<Request> {
        let mut request = Request {
            queue: u.int_in_range(0..=3)?,
            ..Default::default()
        };
        match request.queue {
            3 => {
                let len = u.int_in_range(0..=0x1_0000)?;
                request.writable = in_buffers(u, len)?;
            }
            2 => {
                for _ in 0..u.int_in_range(0..=6)? {
                    request.header.extend([u.int_in_range(0..=9)?, 0]);
                    request.header.extend(u.bytes(8)?);
                }
            }
            _ => {
                // A little more than there are.
                let pages = (MEMORY_SIZE / 4096) as u32 + 2;
                for _ in 0..u.int_in_range(0..=16)? {
                    let page = u.int_in_range(0..=pages)?;
                    request.header.extend(page.to_le_bytes());
                }
            }
        }
        Ok(request)
    }

    fn turn(&mut self, u: &mut Unstructured) {
        let _ = act(&self.0, u);
    }
}

struct Machine {
    guest: Guest,
    vmm: Vmm,
    file: File,
}

fn machine() -> Machine {
    // SAFETY: a C string; the descriptor is ours.
    let file = unsafe {
        let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    };
    for offset in [0, BESIDE + MEMORY_SIZE] {
        let written = file.write_all_at(&[0xa5; BESIDE], offset as u64);
        written.expect("memfd");
    }
    let part = FileOffset::new(file.try_clone().expect("dup"), BESIDE as u64);
    let ranges = [(GuestAddress(0), MEMORY_SIZE, Some(part))];
    let memory = GuestMemory::from_ranges_with_files(ranges).expect("memory");
    let balloon = Balloon::new(BalloonConfig {
        name: "balloon".to_owned(),
        target: 0,
        deflate_on_oom: true,
        free_page_reporting: true,
        statistics: true,
    })
    .expect("balloon");
    Machine {
        vmm: Vmm(balloon.handle()),
        guest: Guest::with_memory(Box::new(balloon), Arc::new(memory)),
        file,
    }
}

fn act(handle: &BalloonHandle, u: &mut Unstructured) -> Result<()> {
    if u.arbitrary()? {
        handle.set_target(u.arbitrary()?);
    } else {
        handle.request_statistics();
    }
    Ok(())
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::new(machine());
}

fuzz_target!(|data: &[u8]| {
    MACHINE.with_borrow_mut(|Machine { guest, vmm, file }| {
        guest.run(&mut Unstructured::new(data), vmm);
        for offset in [0, BESIDE + MEMORY_SIZE] {
            let mut beside = [0; BESIDE];
            file.read_exact_at(&mut beside, offset as u64)
                .expect("memfd");
            assert!(beside == [0xa5; BESIDE], "released what is not the guest's");
        }
    });
});
