//! Processors: that all run, and that their registers survive being preempted.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::Reply;

pub fn cpus() -> io::Result<Reply> {
    let allowed = sched_getaffinity(None)?;
    let online = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let threads: Vec<_> = online
        .map(|cpu| {
            std::thread::spawn(move || {
                let mut only = CpuSet::new();
                only.set(cpu);
                sched_setaffinity(None, &only).is_ok() && sched_getcpu() == cpu
            })
        })
        .collect();
    let there = threads.into_iter().filter_map(|thread| thread.join().ok());
    Ok(Reply {
        count: there.filter(|&there| there).count() as u64,
        ..Reply::default()
    })
}

pub fn spin(millis: u64) -> io::Result<Reply> {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < Duration::from_millis(millis) {
        for _ in 0..1000 {
            count = std::hint::black_box(count + 1);
        }
    }
    Ok(Reply {
        count,
        ..Reply::default()
    })
}

/// The registers that accumulate; the sixteenth holds what is added.
const ACCUMULATORS: usize = 15;
/// 256 bits each.
const LANES: usize = 4;

type Registers = [[u64; LANES]; ACCUMULATORS];

pub fn avx(processes: u32, iterations: u64) -> io::Result<Reply> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err(io::Error::other("this processor has no AVX2"));
    }
    let mut children = Vec::new();
    for number in 0..processes.min(1024) {
        // SAFETY: the child runs arithmetic and _exit only, which a fork of a program with threads
        // may; it takes no lock and allocates nothing.
        match unsafe { libc::fork() } {
            0 => {
                let right = adds_up(u64::from(number), iterations);
                // SAFETY: ends the child at once, as it must: the rest of this program is not its.
                unsafe { libc::_exit(if right { 0 } else { 1 }) }
            }
            pid => match Pid::from_raw(pid).filter(|_| pid > 0) {
                Some(pid) => children.push(pid),
                None => return Err(io::Error::last_os_error()),
            },
        }
    }
    let mut right = 0;
    for pid in children {
        let ended = waitpid(Some(pid), WaitOptions::empty())?;
        right += u64::from(ended.is_some_and(|(_, status)| status.exit_status() == Some(0)));
    }
    Ok(Reply {
        count: right,
        ..Reply::default()
    })
}

/// Whether `iterations` additions in all sixteen registers come to what multiplication says.
fn adds_up(number: u64, iterations: u64) -> bool {
    let mut registers: Registers = [[0; LANES]; ACCUMULATORS];
    for (r, register) in registers.iter_mut().enumerate() {
        for (lane, value) in register.iter_mut().enumerate() {
            *value = number << 48 | (r as u64) << 40 | (lane as u64) << 32;
        }
    }
    let start = registers;
    let step = [1, 3, 5, 7].map(|odd| odd + 2 * number);
    add_many(&mut registers, &step, iterations);
    let expected =
        |value: u64, lane: usize| value.wrapping_add(step[lane].wrapping_mul(iterations));
    start
        .iter()
        .zip(&registers)
        .all(|(start, end)| (0..LANES).all(|lane| end[lane] == expected(start[lane], lane)))
}

/// Adds `step` to each of the registers `iterations` times, without storing any in between.
fn add_many(registers: &mut Registers, step: &[u64; LANES], iterations: u64) {
    if iterations == 0 {
        return;
    }
    // SAFETY: the caller saw AVX2. The pointers are to 15 times 32 and to 32 bytes, accessed
    // unaligned; every register used is declared, and the loop ends as its counter is not 0.
    unsafe {
        std::arch::asm!(
            "vmovdqu ymm0, [{r}]",
            "vmovdqu ymm1, [{r} + 32]",
            "vmovdqu ymm2, [{r} + 64]",
            "vmovdqu ymm3, [{r} + 96]",
            "vmovdqu ymm4, [{r} + 128]",
            "vmovdqu ymm5, [{r} + 160]",
            "vmovdqu ymm6, [{r} + 192]",
            "vmovdqu ymm7, [{r} + 224]",
            "vmovdqu ymm8, [{r} + 256]",
            "vmovdqu ymm9, [{r} + 288]",
            "vmovdqu ymm10, [{r} + 320]",
            "vmovdqu ymm11, [{r} + 352]",
            "vmovdqu ymm12, [{r} + 384]",
            "vmovdqu ymm13, [{r} + 416]",
            "vmovdqu ymm14, [{r} + 448]",
            "vmovdqu ymm15, [{s}]",
            "2:",
            "vpaddq ymm0, ymm0, ymm15",
            "vpaddq ymm1, ymm1, ymm15",
            "vpaddq ymm2, ymm2, ymm15",
            "vpaddq ymm3, ymm3, ymm15",
            "vpaddq ymm4, ymm4, ymm15",
            "vpaddq ymm5, ymm5, ymm15",
            "vpaddq ymm6, ymm6, ymm15",
            "vpaddq ymm7, ymm7, ymm15",
            "vpaddq ymm8, ymm8, ymm15",
            "vpaddq ymm9, ymm9, ymm15",
            "vpaddq ymm10, ymm10, ymm15",
            "vpaddq ymm11, ymm11, ymm15",
            "vpaddq ymm12, ymm12, ymm15",
            "vpaddq ymm13, ymm13, ymm15",
            "vpaddq ymm14, ymm14, ymm15",
            "dec {n}",
            "jnz 2b",
            "vmovdqu [{r}], ymm0",
            "vmovdqu [{r} + 32], ymm1",
            "vmovdqu [{r} + 64], ymm2",
            "vmovdqu [{r} + 96], ymm3",
            "vmovdqu [{r} + 128], ymm4",
            "vmovdqu [{r} + 160], ymm5",
            "vmovdqu [{r} + 192], ymm6",
            "vmovdqu [{r} + 224], ymm7",
            "vmovdqu [{r} + 256], ymm8",
            "vmovdqu [{r} + 288], ymm9",
            "vmovdqu [{r} + 320], ymm10",
            "vmovdqu [{r} + 352], ymm11",
            "vmovdqu [{r} + 384], ymm12",
            "vmovdqu [{r} + 416], ymm13",
            "vmovdqu [{r} + 448], ymm14",
            "vzeroupper",
            r = in(reg) registers.as_mut_ptr(),
            s = in(reg) step.as_ptr(),
            n = inout(reg) iterations => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack)
        );
    }
}
