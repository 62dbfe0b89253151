//! System calls without the C library.

use std::arch::asm;
use std::ffi::c_long;

/// Makes a system call, with at most six arguments; those that are not given are zero.
///
/// # Safety
/// As that call's.
pub unsafe fn call(number: c_long, arguments: &[usize]) -> c_long {
    let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
    let result;
    // SAFETY: the kernel changes no registers but these; what else it does is the caller's to answer for.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") argument(0),
            in("rsi") argument(1),
            in("rdx") argument(2),
            in("r10") argument(3),
            in("r8") argument(4),
            in("r9") argument(5),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}
