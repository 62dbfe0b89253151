//! The entry of the agent's program.
//!
//! It is C's `main`, not Rust's: what the standard library sets up around `fn main` (an alternate
//! signal stack with its guard page, a look at the three standard descriptors, SIGPIPE) is a dozen
//! system calls that PID 1 has no use for.
#![no_main]

use std::ffi::{CStr, c_char, c_int};

use dlmalloc::GlobalDlmalloc;

/// The C library's asks the kernel for memory, and gives it back, so often that it is felt where the kernel is slow.
#[global_allocator]
static HEAP: GlobalDlmalloc = GlobalDlmalloc;

/// Called by libc with the program's arguments.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let args: Vec<&str> = (1..count)
        // SAFETY: `argv` has `argc` entries, each a NUL-terminated string that is never freed.
        .map(|i| unsafe { CStr::from_ptr(*argv.add(i)) })
        // An argument that is not UTF-8 is none that we know.
        .map(|arg| arg.to_str().unwrap_or("\u{fffd}"))
        .collect();
    bulkhead_agent::run(&args)
}
