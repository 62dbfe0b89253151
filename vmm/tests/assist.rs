//! The probe and the assist on this machine's KVM.
//!
//! Every instruction is run on any KVM and must do the same on all: on a hardware KVM the processor
//! executes it, and the assist must not be entered; on a software-assisted one the assist finishes
//! it, or KVM's emulator has learnt it meanwhile.

mod tiny_vm;

use std::collections::HashMap;
use std::time::Instant;

use bulkhead_vmm::assist::probe::probe;
use bulkhead_vmm::assist::{HostKind, Reason};
use kvm_ioctls::Kvm;
use tiny_vm::{CODE, DATA, Exception, NOT_MEMORY, READ_ONLY, STACK, Stop, TinyVm, UNMAPPED, USER};

const CF_TO_OF: u64 = 0x8d5;
const ZF: u64 = 0x40;
const AC: u64 = 1 << 18;

fn kind() -> HostKind {
    let kvm = Kvm::new().expect("these tests need /dev/kvm");
    probe(&kvm).expect("probe")
}

/// A VM with the assist on, where the host needs one.
fn vm() -> TinyVm {
    match kind() {
        HostKind::Hardware => TinyVm::new(),
        HostKind::SoftwareAssisted => TinyVm::assisted(),
    }
}

/// Runs `code` to its end.
fn run_to_end(vm: &mut TinyVm, code: &[u8]) {
    let stop = vm.run(code);
    assert!(matches!(stop, Stop::Halted), "{code:02x?}: {stop:?}");
}

fn exception(vm: &mut TinyVm, code: &[u8]) -> Exception {
    match vm.run(code) {
        Stop::Exception(exception) => exception,
        other => panic!("{code:02x?}: {other:?}"),
    }
}

fn has(feature: &str) -> bool {
    let info = std::fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
    let flags = info.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == feature))
}

#[test]
fn probe_agrees_with_the_kvm_module_that_is_loaded() {
    let loaded = |module: &str| std::path::Path::new("/sys/module").join(module).exists();
    let expected = match (loaded("kvm_intel") || loaded("kvm_amd"), loaded("kvm_pvm")) {
        (true, false) => HostKind::Hardware,
        (false, true) => HostKind::SoftwareAssisted,
        // Built in, or both: no telling from here.
        _ => kind(),
    };
    assert_eq!(kind(), expected);
}

#[test]
fn probe_is_cheap() {
    let kvm = Kvm::new().expect("these tests need /dev/kvm");
    let cpu = || {
        // SAFETY: fills the structure it is given.
        let mut time = unsafe { std::mem::zeroed::<libc::timespec>() };
        // SAFETY: as above.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
    };
    let (mut wall_times, mut cpu_times) = (Vec::new(), Vec::new());
    for _ in 0..21 {
        let (start, used) = (Instant::now(), cpu());
        probe(&kvm).expect("probe");
        wall_times.push(start.elapsed().as_secs_f64() * 1e3);
        cpu_times.push(cpu() - used);
    }
    wall_times.sort_by(f64::total_cmp);
    cpu_times.sort_by(f64::total_cmp);
    println!(
        "probe: median {:.3} ms wall, {:.3} ms CPU; worst {:.3} ms wall, {:.3} ms CPU",
        wall_times[10], cpu_times[10], wall_times[20], cpu_times[20]
    );
}

#[test]
fn on_hardware_the_assist_is_never_needed() {
    if kind() != HostKind::Hardware {
        return;
    }
    let mut vm = TinyVm::assisted();
    vm.regs.rbx = DATA;
    run_to_end(&mut vm, &[0x9b, 0x48, 0x0f, 0xae, 0x23]);
    assert_eq!(vm.counters.total(), 0);
}

#[test]
fn on_a_software_assisted_host_the_assist_is_counted() {
    if kind() != HostKind::SoftwareAssisted {
        return;
    }
    let mut vm = TinyVm::assisted();
    run_to_end(&mut vm, &[0x9b, 0x9b]);
    let mut counts = HashMap::new();
    vm.counters.report(&mut |name, count| {
        counts.insert(name, count);
    });
    assert_eq!((counts["x87"], vm.counters.total()), (2, 2));
}

#[test]
fn int3_reaches_its_handler_with_the_next_rip() {
    let e = exception(&mut vm(), &[0xcc]);
    assert_eq!((e.vector, e.error, e.rip), (3, None, CODE + 1));
}

#[test]
fn undefined_instructions_raise_ud_at_themselves() {
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0xb9, 0xc0], &[0x0f, 0xff, 0xc0]] {
        let e = exception(&mut vm(), code);
        assert_eq!((e.vector, e.rip), (6, CODE), "{code:02x?}");
    }
}

#[test]
fn popcnt_counts_in_every_size_and_sets_the_flags() {
    let mut vm = vm();
    vm.regs.rbx = 0xffff_0000_f00f_00ff;
    let cases: &[(&[u8], u64, u64)] = &[
        (&[0xf3, 0x48, 0x0f, 0xb8, 0xc3], u64::MAX, 32),
        (&[0xf3, 0x0f, 0xb8, 0xc3], u64::MAX, 16),
        (
            &[0x66, 0xf3, 0x0f, 0xb8, 0xc3],
            u64::MAX,
            0xffff_ffff_ffff_0008,
        ),
    ];
    for (code, before, after) in cases {
        vm.regs.rax = *before;
        vm.regs.rflags = 2 | CF_TO_OF;
        run_to_end(&mut vm, code);
        assert_eq!(vm.regs.rax, *after, "{code:02x?}");
        assert_eq!(vm.regs.rflags & CF_TO_OF, 0);
    }
    // From memory, by way of GS, with an index.
    vm.write(DATA + 0x18, &0x7fu64.to_le_bytes());
    let mut sregs = vm.vcpu.get_sregs().expect("sregs");
    sregs.gs.base = DATA;
    vm.vcpu.set_sregs(&sregs).expect("sregs");
    (vm.regs.rbx, vm.regs.rcx) = (8, 2);
    run_to_end(&mut vm, &[0x65, 0xf3, 0x48, 0x0f, 0xb8, 0x04, 0xcb]);
    assert_eq!(vm.regs.rax, 7);
    vm.regs.rbx = 0;
    run_to_end(&mut vm, &[0xf3, 0x48, 0x0f, 0xb8, 0xc3]);
    assert_eq!((vm.regs.rax, vm.regs.rflags & CF_TO_OF), (0, ZF));
}

#[test]
fn crc32_agrees_with_this_processor() {
    let mut vm = vm();
    for (code, value) in [
        (
            &[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc3][..],
            0x1122_3344_5566_7788u64,
        ),
        (&[0xf2, 0x0f, 0x38, 0xf1, 0xc3], 0x5566_7788),
        (&[0xf2, 0x0f, 0x38, 0xf0, 0xc3], 0x88),
        (&[0xf2, 0x0f, 0x38, 0xf0, 0xc7], 0x77), // BH
    ] {
        vm.regs.rbx = 0x1122_3344_5566_7788;
        vm.regs.rax = 0xffff_ffff_dead_beef;
        run_to_end(&mut vm, code);
        // SAFETY: any processor that runs these tests has SSE4.2.
        let expected = unsafe {
            use std::arch::x86_64::*;
            match code.last() {
                Some(0xc7) => u64::from(_mm_crc32_u8(0xdead_beef, value as u8)),
                _ if code.len() == 6 => _mm_crc32_u64(0xdead_beef, value),
                _ if code[3] == 0xf1 => u64::from(_mm_crc32_u32(0xdead_beef, value as u32)),
                _ => u64::from(_mm_crc32_u8(0xdead_beef, value as u8)),
            }
        };
        assert_eq!(vm.regs.rax, expected, "{code:02x?}");
    }
}

#[test]
fn cmpxchg16b_swaps_if_equal_and_loads_if_not() {
    let mut vm = vm();
    vm.write(DATA, &[1; 16]);
    vm.regs.rsi = DATA;
    (vm.regs.rax, vm.regs.rdx) = (0x0101_0101_0101_0101, 0x0101_0101_0101_0101);
    (vm.regs.rbx, vm.regs.rcx) = (5, 6);
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    run_to_end(&mut vm, &code);
    assert_eq!((vm.read_u64(DATA), vm.read_u64(DATA + 8)), (5, 6));
    assert_eq!(vm.regs.rflags & ZF, ZF);
    run_to_end(&mut vm, &code);
    assert_eq!((vm.regs.rax, vm.regs.rdx), (5, 6));
    assert_eq!(vm.regs.rflags & ZF, 0);
    vm.regs.rsi = DATA + 8;
    let e = exception(&mut vm, &code);
    assert_eq!((e.vector, e.error, e.rip), (13, Some(0), CODE));
}

#[test]
fn clac_and_stac_change_ac_alone() {
    if !has("smap") {
        return;
    }
    let mut vm = vm();
    vm.regs.rflags = 2 | CF_TO_OF;
    run_to_end(&mut vm, &[0x0f, 0x01, 0xcb]);
    assert_eq!(vm.regs.rflags & (AC | CF_TO_OF), AC | CF_TO_OF);
    run_to_end(&mut vm, &[0x0f, 0x01, 0xca]);
    assert_eq!(vm.regs.rflags & (AC | CF_TO_OF), CF_TO_OF);
}

#[test]
fn xgetbv_reads_xcr0_and_refuses_others() {
    let mut vm = vm();
    vm.regs.rax = u64::MAX;
    vm.regs.rdx = u64::MAX;
    run_to_end(&mut vm, &[0x0f, 0x01, 0xd0]);
    assert_eq!((vm.regs.rax, vm.regs.rdx), (7, 0));
    vm.regs.rcx = 2;
    assert_eq!(exception(&mut vm, &[0x0f, 0x01, 0xd0]).vector, 13);
}

#[test]
fn mxcsr_loads_stores_and_refuses_reserved_bits() {
    let mut vm = vm();
    vm.regs.rbx = DATA;
    vm.write(DATA, &0x1fa0u32.to_le_bytes());
    // ldmxcsr [rbx]; stmxcsr [rbx + 4]
    run_to_end(&mut vm, &[0x0f, 0xae, 0x13, 0x0f, 0xae, 0x5b, 0x04]);
    assert_eq!(vm.read::<4>(DATA + 4), 0x1fa0u32.to_le_bytes());
    vm.write(DATA, &0x1_0000u32.to_le_bytes());
    let e = exception(&mut vm, &[0x0f, 0xae, 0x13]);
    assert_eq!((e.vector, e.error), (13, Some(0)));
}

#[test]
fn single_stepping_stops_after_a_finished_instruction() {
    let mut vm = vm();
    vm.regs.rflags = 2 | 0x100;
    let e = exception(&mut vm, &[0x9b]);
    assert_eq!((e.vector, e.rip), (1, CODE + 1));
    let dr6 = vm.vcpu.get_debug_regs().expect("debug registers").dr6;
    assert_eq!(dr6 & 1 << 14, 1 << 14);
}

/// The forms of save this host's processor has: name, opcode bytes for `[rbx]`, compacted.
fn saves() -> Vec<(&'static str, [u8; 4], bool)> {
    [
        ("xsave", [0x48, 0x0f, 0xae, 0x23], false),
        ("xsaveopt", [0x48, 0x0f, 0xae, 0x33], false),
        ("xsavec", [0x48, 0x0f, 0xc7, 0x23], true),
        ("xsaves", [0x48, 0x0f, 0xc7, 0x2b], true),
    ]
    .into_iter()
    .filter(|(name, _, _)| has(name))
    // XSAVES is KVM's to allow.
    .filter(|(name, _, _)| *name != "xsaves" || kind() == HostKind::SoftwareAssisted)
    .collect()
}

#[test]
fn extended_state_comes_back_from_every_form_of_save() {
    for (name, code, compacted) in saves() {
        let mut vm = vm();
        vm.regs.rbx = DATA;
        vm.regs.rax = 7;
        // Give the vCPU AVX state by restoring an area of ours.
        vm.write(DATA + 24, &0x1fa0u32.to_le_bytes());
        vm.write(DATA, &0x37fu16.to_le_bytes());
        vm.write(DATA + 32, &[0x33; 10]);
        vm.write(DATA + 160, &[0x11; 256]);
        vm.write(DATA + 512, &7u64.to_le_bytes());
        vm.write(DATA + 576, &[0x22; 256]);
        let original = vm.read::<832>(DATA);
        run_to_end(&mut vm, &[0x48, 0x0f, 0xae, 0x2b]); // xrstor [rbx]
        // Save elsewhere, wipe by restoring an empty area, and restore from there.
        vm.write(DATA, &[0; 832]);
        vm.write(DATA + 24, &0x1f80u32.to_le_bytes());
        vm.regs.rbx = DATA + 0x1fc0; // across a page boundary
        run_to_end(&mut vm, &code);
        let saved = vm.read::<832>(DATA + 0x1fc0);
        assert_eq!(saved[512], 7, "{name}");
        assert_eq!(saved[527], if compacted { 0x80 } else { 0 }, "{name}");
        assert_eq!(saved[160..416], original[160..416], "{name}");
        assert_eq!(saved[576..832], original[576..832], "{name}");
        vm.regs.rbx = DATA;
        run_to_end(&mut vm, &[0x48, 0x0f, 0xae, 0x2b]);
        vm.regs.rbx = DATA + 0x4000;
        run_to_end(&mut vm, &[0x48, 0x0f, 0xae, 0x23]);
        // A processor may go on to call a component in use that is in its first state (Intel SDM
        // 13.6): then what is saved of it is that state.
        let wiped = vm.read::<832>(DATA + 0x4000);
        for (bit, registers) in [(2, 160..416), (4, 576..832)] {
            let in_use = wiped[512] & bit != 0;
            assert!(
                !in_use || wiped[registers.clone()].iter().all(|byte| *byte == 0),
                "{name}: {registers:?} of {wiped:?}"
            );
        }
        vm.regs.rbx = DATA + 0x1fc0;
        let restore = if name == "xsaves" {
            [0x48, 0x0f, 0xc7, 0x1b]
        } else {
            [0x48, 0x0f, 0xae, 0x2b]
        };
        run_to_end(&mut vm, &restore);
        vm.regs.rbx = DATA + 0x4000;
        run_to_end(&mut vm, &[0x48, 0x0f, 0xae, 0x23]);
        let back = vm.read::<832>(DATA + 0x4000);
        assert_eq!(back[..8], original[..8], "{name}");
        assert_eq!(back[24..28], original[24..28], "{name}");
        assert_eq!(back[32..42], original[32..42], "{name}");
        assert_eq!(back[160..416], original[160..416], "{name}");
        assert_eq!(back[512..832], original[512..832], "{name}");
    }
}

#[test]
fn xsave_faults_as_the_processor_would() {
    let save = [0x48, 0x0f, 0xae, 0x23];
    let restore = [0x48, 0x0f, 0xae, 0x2b];
    let page = |vm: &mut TinyVm, address: u64, code: &[u8]| {
        vm.regs.rbx = address;
        vm.regs.rax = 7;
        let e = exception(vm, code);
        assert_eq!((e.vector, e.rip), (14, CODE));
        (e.cr2, e.error.expect("error code"))
    };
    let mut vm = vm();
    assert_eq!(page(&mut vm, UNMAPPED, &restore).1, 0);
    assert_eq!(page(&mut vm, UNMAPPED, &save).1, 2);
    assert_eq!(page(&mut vm, READ_ONLY, &save).1, 3);
    // The second page of an area is missing, and the header on the first says that it is needed.
    vm.write(UNMAPPED - 0x240 + 512, &7u64.to_le_bytes());
    let (cr2, error) = page(&mut vm, UNMAPPED - 0x240, &restore);
    if error != 0 || cr2 >> 12 != UNMAPPED >> 12 {
        panic!("cr2 {cr2:#x} error {error}");
    }

    let mut general = |address: u64, code: &[u8]| {
        vm.regs.rbx = address;
        let e = exception(&mut vm, code);
        assert_eq!((e.vector, e.error, e.rip), (13, Some(0), CODE));
    };
    general(DATA + 16, &save);
    general(DATA + 32, &restore);
    general(0x8000_0000_0000_0000, &save);
    vm.regs.rbp = 0x8000_0000_0000_0000;
    let e = exception(&mut vm, &[0x48, 0x0f, 0xae, 0x65, 0]);
    assert_eq!((e.vector, e.error), (12, Some(0)));
    // A component beyond XCR0.
    vm.write(DATA + 512, &0x80u64.to_le_bytes());
    vm.regs.rbx = DATA;
    assert_eq!(exception(&mut vm, &restore).vector, 13);
    // Reserved bytes of the header.
    vm.write(DATA + 512, &0u64.to_le_bytes());
    vm.write(DATA + 528, &[1]);
    assert_eq!(exception(&mut vm, &restore).vector, 13);
}

#[test]
fn control_registers_forbid_extended_state_with_ud_and_nm() {
    let mut vm = vm();
    vm.regs.rbx = DATA;
    let save = [0x48, 0x0f, 0xae, 0x23];
    let mut sregs = vm.vcpu.get_sregs().expect("sregs");
    sregs.cr0 |= 8;
    vm.vcpu.set_sregs(&sregs).expect("sregs");
    assert_eq!(exception(&mut vm, &save).vector, 7);
    assert_eq!(exception(&mut vm, &[0x9b]).vector, 7);
    sregs.cr0 &= !8;
    sregs.cr4 &= !(1 << 18);
    vm.vcpu.set_sregs(&sregs).expect("sregs");
    assert_eq!(exception(&mut vm, &save).vector, 6);
}

#[test]
fn smap_guards_user_pages_until_stac() {
    let mut vm = vm();
    let mut sregs = vm.vcpu.get_sregs().expect("sregs");
    sregs.cr4 |= 1 << 21;
    if vm.vcpu.set_sregs(&sregs).is_err() {
        return; // a processor without it
    }
    vm.regs.rbx = USER;
    vm.regs.rax = 7;
    let save = [0x48, 0x0f, 0xae, 0x23];
    let e = exception(&mut vm, &save);
    assert_eq!((e.vector, e.error, e.rip), (14, Some(3), CODE));
    // stac first
    vm.regs.rsp = STACK;
    vm.regs.rflags = 2;
    run_to_end(&mut vm, &[&[0x0f, 0x01, 0xcb][..], &save].concat());
}

#[test]
fn an_operand_that_is_no_memory_or_an_unknown_instruction_ends_with_a_report() {
    if kind() != HostKind::SoftwareAssisted {
        return;
    }
    let mut vm = TinyVm::assisted();
    vm.regs.rbx = NOT_MEMORY;
    match vm.run(&[0x48, 0x0f, 0xae, 0x23]) {
        Stop::Unsupported(u) => assert!(matches!(u.reason, Reason::NotMemory(NOT_MEMORY))),
        other => panic!("{other:?}"),
    }
    let mut vm = TinyVm::assisted();
    vm.regs.r15 = 0xfeed;
    match vm.run(&[0x66, 0x0f, 0x38, 0xdc, 0xc1]) {
        Stop::Unsupported(u) => {
            assert!(matches!(u.reason, Reason::Instruction), "{u}");
            assert!(u.code.starts_with(&[0x66, 0x0f, 0x38, 0xdc, 0xc1]), "{u}");
            assert_eq!((u.regs.rip, u.regs.r15), (CODE, 0xfeed));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_faults_for_ever_is_stopped() {
    if kind() != HostKind::SoftwareAssisted {
        return;
    }
    let mut vm = TinyVm::assisted();
    // The #UD handler returns at once to the `ud1` that raised it.
    vm.set_handler(6, &[0x48, 0xcf]); // iretq
    vm.regs.rsp = STACK;
    match vm.run(&[0x0f, 0xb9, 0xc0]) {
        Stop::Unsupported(u) => assert!(matches!(u.reason, Reason::NoProgress(6)), "{u}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hypercall_instruction_does_not_hang() {
    // In a thread, so that the test ends even if the vCPU does not.
    let (done, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for code in [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]] {
            let mut vm = vm();
            vm.regs.rax = 0xffff; // no such hypercall
            let stop = vm.run(&code);
            let _ = done.send((stop, vm.regs.rax));
        }
    });
    for _ in 0..2 {
        let (stop, rax) = end
            .recv_timeout(std::time::Duration::from_secs(60))
            .expect("a hypercall instruction hangs");
        match stop {
            // Refused by KVM: -ENOSYS.
            Stop::Halted => assert_eq!(rax, -1000i64 as u64),
            Stop::Exception(e) => assert_eq!((e.vector, e.rip), (6, CODE)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_finished_instruction_is_cheap() {
    if kind() != HostKind::SoftwareAssisted {
        return;
    }
    let cases: &[(&str, &[u8])] = &[
        ("nop", &[0x90]),
        ("popcnt", &[0xf3, 0x48, 0x0f, 0xb8, 0xc3]),
        ("xsave", &[0x48, 0x0f, 0xae, 0x23]),
        ("xrstor", &[0x48, 0x0f, 0xae, 0x2b]),
        ("cmpxchg16b", &[0x48, 0x0f, 0xc7, 0x0b]),
    ];
    for (name, code) in cases {
        let mut vm = TinyVm::assisted();
        vm.regs.rbx = DATA;
        // mov eax, -1; mov edx, -1; CODE; dec edi; jnz back
        let mut looped = vec![0xb8, 7, 0, 0, 0];
        looped.extend_from_slice(code);
        looped.extend([0xff, 0xcf, 0x75, (-(code.len() as i8) - 9) as u8]);
        vm.regs.rdi = 10_000;
        vm.write(DATA + 24, &0x1f80u32.to_le_bytes());
        let start = Instant::now();
        run_to_end(&mut vm, &looped);
        let each = start.elapsed().as_secs_f64() / 10_000.0 * 1e6;
        println!("{name}: {each:.2} us for each turn of a loop of four instructions");
    }
}
