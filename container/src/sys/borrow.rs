//! A fork whose child borrows the parent's memory, as vfork(2) has it: no page table is copied, and no page is copied when one
//! of them writes. The calling thread stands still until the child has executed a program or ended.

use std::arch::asm;
use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::Pid;

use super::{child_of, clone_arguments, exit};

/// What the child needs is a tenth of that, without optimisation.
const STACK: usize = 256 << 10;
const PAGE: usize = 4096;

/// One that was used before has its pages already.
static SPARE: Mutex<Option<Stack>> = Mutex::new(None);

/// Forks into a control group. The child runs `child`, with only this thread's memory to do it in: it may write to what
/// `child` borrows and must neither allocate nor take a lock. If `child` returns, the process ends with 127.
pub fn clone3_borrowing(
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<(Pid, OwnedFd), Errno> {
    let spare = || SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = spare().take();
    let stack = match kept {
        Some(stack) => stack,
        None => Stack::new()?,
    };
    let result = fork_on(&stack, cgroup, Some(child));
    *spare() = Some(stack);
    result
}

fn fork_on<F: FnOnce()>(
    stack: &Stack,
    cgroup: Option<BorrowedFd<'_>>,
    mut child: Option<F>,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    let flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    let (mut args, size) = clone_arguments(flags, cgroup, &raw mut pidfd);
    args.stack = stack.base.as_ptr() as u64;
    args.stack_size = STACK as u64;
    let result: c_long;
    // While the child borrows it this thread stands still, so that `child` is run once, by one of them, and what it borrows is
    // there. Thread-local storage is this thread's: what the child leaves in it (errno) nobody reads.
    // SAFETY: the structure is as long as told and, like all that it points to, lives through the call. The child has a stack
    // of its own, which ends on a multiple of 16, touches nothing of this frame and goes on in `run`, which never returns.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw mut args,
            in("rsi") size,
            in("r12") &raw mut child,
            in("r13") run::<F> as extern "C" fn(*mut Option<F>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    if result < 0 {
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    child_of(result, pidfd)
}

/// Where the child begins. A panic does not leave a function of C, but aborts.
extern "C" fn run<F: FnOnce()>(child: *mut Option<F>) -> ! {
    // SAFETY: the parent's, which waits and does not touch it.
    if let Some(child) = unsafe { (*child).take() } {
        child();
    }
    exit(127)
}

/// Memory for a child's stack, with a page below it that cannot be written.
struct Stack {
    base: NonNull<c_void>,
}

// SAFETY: whoever owns it is the only one who knows of the memory.
unsafe impl Send for Stack {}

impl Stack {
    fn new() -> Result<Stack, Errno> {
        let failed = || Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::NOMEM);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        // SAFETY: asks for new memory, wherever there is room.
        let all =
            unsafe { libc::mmap(ptr::null_mut(), PAGE + STACK, libc::PROT_NONE, kind, -1, 0) };
        if all == libc::MAP_FAILED {
            return Err(failed());
        }
        // SAFETY: within what was mapped.
        let base = NonNull::new(unsafe { all.byte_add(PAGE) }).ok_or(Errno::NOMEM)?;
        let stack = Stack { base };
        // SAFETY: all of it but the first page was mapped just now, and nobody uses it.
        if unsafe { libc::mprotect(base.as_ptr(), STACK, protection) } < 0 {
            return Err(failed());
        }
        Ok(stack)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, this long, and the child that used it is gone from it.
        unsafe { libc::munmap(self.base.as_ptr().byte_sub(PAGE), PAGE + STACK) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    use std::os::fd::AsFd;

    use super::*;

    fn status(pidfd: &OwnedFd) -> Option<i32> {
        let ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).unwrap();
        ended.and_then(|status| status.exit_status())
    }

    #[test]
    fn child_when_it_writes_what_it_borrows_then_the_parent_has_it() {
        for round in 0..3 {
            let mut written = [0u64; 1000];
            let (_, pidfd) = clone3_borrowing(None, || written.fill(round)).unwrap();
            assert_eq!(written, [round; 1000]);
            assert_eq!(status(&pidfd), Some(127));
        }
    }

    #[test]
    fn child_when_threads_fork_at_once_then_each_has_a_stack_of_its_own() {
        let fork = |number: i32| {
            let (_, pidfd) = clone3_borrowing(None, || exit(number)).unwrap();
            assert_eq!(status(&pidfd), Some(number));
        };
        std::thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || (0..20).for_each(|_| fork(number)));
            }
        });
    }
}
