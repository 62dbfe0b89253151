//! Any bytes at RIP, any page tables and any XSAVE area: what the assist reads of a guest.
#![no_main]

use std::cell::RefCell;

use bulkhead_devices::GuestMemory;
use bulkhead_vmm::assist::decode::{MAX_LENGTH, Operand, decode};
use bulkhead_vmm::assist::paging::{Access, Paging, Window};
use bulkhead_vmm::assist::xsave::{Layout, State};
use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_regs, kvm_sregs};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};

const MEMORY_SIZE: usize = 64 << 10;
const STATE_SIZE: usize = 4096;

struct Host {
    memory: GuestMemory,
    layout: Layout,
    state: State,
}

impl Host {
    fn new() -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).expect("memory");
        let entry = |index, eax, ebx, ecx| kvm_cpuid_entry2 {
            function: 0xd,
            index,
            eax,
            ebx,
            ecx,
            ..Default::default()
        };
        let entries = [
            entry(0, 0x2e7, 0, 0),
            entry(2, 0x100, 0x240, 0),
            entry(5, 0x40, 0x440, 2),
            entry(6, 0x200, 0x480, 2),
            entry(7, 0x400, 0x680, 0),
            entry(9, 8, 0xa80, 0),
        ];
        let cpuid = CpuId::from_entries(&entries).expect("cpuid");
        Host {
            memory,
            layout: Layout::new(&cpuid, STATE_SIZE),
            state: State::new(STATE_SIZE),
        }
    }
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::new(Host::new());
}

/// Eight bytes of the input, or what there is of them.
fn take(data: &mut &[u8]) -> u64 {
    let (head, tail) = data.split_at(data.len().min(8));
    *data = tail;
    let mut bytes = [0; 8];
    bytes[..head.len()].copy_from_slice(head);
    u64::from_le_bytes(bytes)
}

fuzz_target!(|data: &[u8]| {
    let (code, mut data) = data.split_at(data.len().min(MAX_LENGTH + 1));
    let regs = kvm_regs {
        rip: take(&mut data),
        rax: take(&mut data),
        rbx: take(&mut data),
        rflags: take(&mut data),
        ..Default::default()
    };
    let sregs = kvm_sregs {
        cr0: take(&mut data),
        cr3: take(&mut data),
        cr4: take(&mut data),
        ..Default::default()
    };
    let instruction = decode(code);
    if let Ok(instruction) = &instruction {
        assert!((1..=MAX_LENGTH.min(code.len())).contains(&usize::from(instruction.length)));
    }
    let address = match instruction.map(|instruction| (instruction.operand, instruction.length)) {
        Ok((Operand::Memory(address), length)) => address.linear(&regs, length, 0, u64::MAX),
        _ => regs.rax,
    };

    HOST.with_borrow_mut(|host| {
        let Host {
            memory,
            layout,
            state,
        } = host;
        // The rest of the input is all of memory: page tables, areas and code, over each other.
        if data.is_empty() {
            return;
        }
        for start in (0..MEMORY_SIZE).step_by(data.len().next_multiple_of(64).max(512)) {
            let part = &data[..data.len().min(MEMORY_SIZE - start)];
            memory
                .write_slice(part, GuestAddress(start as u64))
                .expect("inside memory");
        }
        let paging = Paging::new(&sregs, regs.rflags);
        let len = (regs.rbx & 0x1fff) as usize;
        if let Ok(mut window) = Window::new(memory, &paging, address, len.max(576), Access::Write) {
            let xcr0 = layout.features();
            if let Ok(header) = layout.check_header(regs.rbx >> 63 != 0, xcr0, &window) {
                assert_eq!(header.saved & !header.present, 0);
                let _ = layout.restore(true, regs.rbx, &header, &window, state);
            }
            assert_eq!(state.in_use() & !layout.features(), 0);
            if let Ok(instruction) = &instruction
                && let bulkhead_vmm::assist::decode::Operation::Save(form) = instruction.operation
            {
                let _ = layout.save(form, instruction.size == 8, regs.rbx, state, &mut window);
            }
        }
    });
});
