//! Forks whose children borrow the parent's memory, as vfork(2) has it: no page table is copied, and no page is copied when one
//! of them writes. Either the calling thread stands still until the child has executed a program or ended, or it goes on, and
//! what the child works with is not touched until then ([`Lent`]).

use std::arch::asm;
use std::cell::UnsafeCell;
use std::ffi::{c_int, c_long, c_void};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::futex;

use super::{child_of, clone_arguments, exit};

/// What the child needs is a tenth of that, without optimisation.
const STACK: usize = 256 << 10;
const PAGE: usize = 4096;

/// How long a child that is not needed any more may take to end, before its memory is given up.
const PATIENCE: Duration = Duration::from_secs(1);

/// Some that were used before: they have their pages already.
static SPARE: Mutex<[Option<Stack>; 2]> = Mutex::new([None, None]);

/// A stack for a child.
fn take_stack() -> Result<Stack, Errno> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = spare.iter_mut().find_map(Option::take);
    drop(spare);
    kept.map_or_else(Stack::new, Ok)
}

/// Keeps a stack for the next child, or not.
fn keep_stack(stack: Stack) {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = spare.iter_mut().find(|place| place.is_none()) {
        *place = Some(stack);
    }
}

/// Forks into a control group. The child runs `child`, with only this thread's memory to do it in: it may write to what
/// `child` borrows and must neither allocate nor take a lock. If `child` returns, the process ends with 127.
pub fn clone3_borrowing<F: FnOnce()>(
    cgroup: Option<BorrowedFd<'_>>,
    child: F,
) -> Result<(Pid, OwnedFd), Errno> {
    let stack = take_stack()?;
    let mut child = Some(child);
    // SAFETY: this thread stands still while the child runs, so that `child` is run once, by one of them, and it and all that it
    // borrows are there, as is the stack.
    let result = unsafe {
        fork_on(
            &stack,
            libc::CLONE_VFORK as u64,
            cgroup,
            None,
            run::<F>,
            &raw mut child,
        )
    };
    keep_stack(stack);
    result
}

/// Forks into new namespaces (`CLONE_NEW*`) and into a control group. The child does `run` with `task`, which is its alone until
/// it has executed a program or ended; this process goes on meanwhile. It may use all of this process's memory that does not
/// change, and must neither allocate nor free nor take a lock. If `run` returns, it ends with 127.
pub fn clone3_beside<T: Send>(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    task: T,
    run: fn(&mut T),
) -> Result<(Pid, OwnedFd, Lent<T>), Errno> {
    let stack = take_stack()?;
    let task = Box::into_raw(Box::new(Beside {
        is_used: AtomicU32::new(1),
        task,
        run,
    }));
    // SAFETY: what was just made. The kernel writes it as the child leaves this memory, and nobody takes it as more than a number.
    let is_used = unsafe { &raw mut (*task).is_used };
    // SAFETY: task and stack are freed when the kernel has said that the child is done with them, or never.
    let result = unsafe {
        fork_on(
            &stack,
            namespaces | libc::CLONE_CHILD_CLEARTID as u64,
            cgroup,
            Some(is_used.cast()),
            run_beside::<T>,
            task,
        )
    };
    match result {
        Ok((pid, pidfd)) => {
            let lent = Lent {
                task,
                stack: Some(stack),
            };
            Ok((pid, pidfd, lent))
        }
        Err(error) => {
            keep_stack(stack);
            // SAFETY: there is no child that it could be used by.
            drop(unsafe { Box::from_raw(task) });
            Err(error)
        }
    }
}

/// What a child works with that goes on beside its parent.
struct Beside<T> {
    /// Not zero until the child has left this memory (`CLONE_CHILD_CLEARTID`).
    is_used: AtomicU32,
    task: T,
    run: fn(&mut T),
}

/// What a child is given that works beside its parent already: put there by the parent before it says so, and from then on the
/// child's, until whoever owns it has it to himself again.
#[derive(Debug)]
pub struct Later<T> {
    /// Empty, full, or taken.
    state: AtomicU32,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: `state` says whose the value is, and it goes from one to the other.
unsafe impl<T: Send> Sync for Later<T> {}

impl<T> Default for Later<T> {
    fn default() -> Self {
        Later {
            state: AtomicU32::new(Self::EMPTY),
            value: UnsafeCell::new(None),
        }
    }
}

impl<T> Later<T> {
    const EMPTY: u32 = 0;
    const FILLING: u32 = 1;
    const FULL: u32 = 2;
    const TAKEN: u32 = 3;

    fn goes(&self, from: u32, to: u32) -> bool {
        let order = Ordering::AcqRel;
        self.state
            .compare_exchange(from, to, order, Ordering::Relaxed)
            .is_ok()
    }

    /// Gives it. Only the first is given.
    pub fn give(&self, value: T) {
        if self.goes(Self::EMPTY, Self::FILLING) {
            // SAFETY: whoever changed the state is the only one to touch the value.
            unsafe { *self.value.get() = Some(value) };
            self.state.store(Self::FULL, Ordering::Release);
        }
    }

    /// What was given, to the first who asks.
    #[allow(clippy::mut_from_ref)]
    pub fn take(&self) -> Option<&mut T> {
        let is_ours = self.goes(Self::FULL, Self::TAKEN);
        // SAFETY: whoever changed the state is the only one to touch the value, for as long as this is borrowed.
        is_ours.then(|| unsafe { (*self.value.get()).as_mut() })?
    }

    /// What was given.
    pub fn into_inner(self) -> Option<T> {
        self.value.into_inner()
    }
}

/// What was lent to a child. Dropped, it is freed; if the child does not give it back soon, it is its for good.
#[derive(Debug)]
pub struct Lent<T> {
    task: *mut Beside<T>,
    stack: Option<Stack>,
}

// SAFETY: it owns what it points to, and only the kernel and the child use it, in whatever thread this is.
unsafe impl<T: Send> Send for Lent<T> {}
// SAFETY: there is nothing to be done with a shared one.
unsafe impl<T: Send> Sync for Lent<T> {}

impl<T> Lent<T> {
    /// Whether the child is done with it, which is waited for, though not for long.
    fn is_back(&self) -> bool {
        // SAFETY: freed by `drop` alone. The child and the kernel use an atomic number as such.
        let is_used = unsafe { &(*self.task).is_used };
        let mut until = None;
        loop {
            let value = is_used.load(Ordering::Acquire);
            if value == 0 {
                return true;
            }
            let now = Instant::now();
            let until = *until.get_or_insert(now + PATIENCE);
            let Ok(left) = until.saturating_duration_since(now).try_into() else {
                return false;
            };
            // Shared, as the kernel wakes it.
            let woken = futex::wait(is_used, futex::Flags::empty(), value, Some(&left));
            if woken == Err(Errno::TIMEDOUT) {
                return false;
            }
        }
    }

    /// What was lent, if the child gives it back soon; else it is the child's for good.
    pub fn take_back(mut self) -> Option<T> {
        let stack = self.stack.take()?;
        if !self.is_back() {
            std::mem::forget(stack);
            return None;
        }
        keep_stack(stack);
        // SAFETY: the child has left this memory, and it is ours again. `drop` sees that there is no stack any more.
        let beside = unsafe { Box::from_raw(self.task) };
        Some(beside.task)
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        let Some(stack) = self.stack.take() else {
            return;
        };
        if self.is_back() {
            // SAFETY: the child has left this memory, and it is ours again.
            drop(unsafe { Box::from_raw(self.task) });
            keep_stack(stack);
        } else {
            std::mem::forget(stack);
        }
    }
}

/// Forks a child that goes on in `run` with `task`, on `stack`, in this process's memory. What is at `is_used` becomes zero when it
/// has left that.
///
/// # Safety
/// Stack and task must be there, and be the child's alone, until it has executed a program or ended.
unsafe fn fork_on<T>(
    stack: &Stack,
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    is_used: Option<*mut u32>,
    run: extern "C" fn(*mut T) -> !,
    task: *mut T,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    let flags = flags | libc::CLONE_VM as u64;
    let (mut args, size) = clone_arguments(flags, cgroup, &raw mut pidfd);
    args.stack = stack.base.as_ptr() as u64;
    args.stack_size = STACK as u64;
    args.child_tid = is_used.map_or(0, |is_used| is_used as u64);
    let result: c_long;
    // Thread-local storage is this thread's: the child's system calls leave it alone (`raw`).
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
            in("r12") task,
            in("r13") run,
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

/// Where one begins that goes on beside its parent.
extern "C" fn run_beside<T>(task: *mut Beside<T>) -> ! {
    // SAFETY: lent to this process, and looked at by nobody else.
    unsafe { ((*task).run)(&mut (*task).task) };
    exit(127)
}

/// Memory for a child's stack, with a page below it that cannot be written.
#[derive(Debug)]
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
    fn child_beside_its_parent_when_it_has_ended_then_gives_back_what_it_wrote() {
        use std::sync::atomic::AtomicU64;
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        for round in 1..4u64 {
            let (go, gone) = rustix::pipe::pipe().unwrap();
            let (_, pidfd, lent) = clone3_beside(0, None, (go, round), |(go, round)| {
                // Until the parent goes on.
                let _ = rustix::io::read(&*go, &mut [0; 1]);
                WRITTEN.store(*round, Ordering::SeqCst);
            })
            .unwrap();
            assert_eq!(WRITTEN.load(Ordering::SeqCst), round - 1);
            rustix::io::write(&gone, b"x").unwrap();
            let (_, was) = lent.take_back().unwrap();
            assert_eq!(was, round);
            assert_eq!(WRITTEN.load(Ordering::SeqCst), round);
            assert_eq!(status(&pidfd), Some(127));
        }
    }

    #[test]
    fn child_beside_its_parent_when_it_never_ends_then_keeps_what_it_was_lent() {
        let (_, pidfd, lent) = clone3_beside(0, None, (), |()| {
            loop {
                std::hint::spin_loop();
            }
        })
        .unwrap();
        assert!(!lent.is_back());
        crate::sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert!(lent.is_back());
        assert_eq!(status(&pidfd), None);
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
