//! System calls that need `unsafe`: those `rustix` lacks, and those it cannot vouch for. All of the crate's `unsafe` is here,
//! but for the fork that borrows memory.
//!
//! What is called between [`clone3`] and [`execve`] allocates nothing and takes no lock: another thread of the parent
//! may have held any lock at the moment of the fork, and nobody is left in the child to release it.

mod borrow;
mod raw;

pub use borrow::{Later, Lent, clone3_beside, clone3_borrowing};

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_ulong, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Pid;

/// A system call by the processor's instruction: a child that shares memory shares errno, too, which the C library would write.
/// The result is negative where it is an error's.
macro_rules! raw {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        raw::call($number, &[$($argument as usize),*])
    };
}

fn check(result: c_long) -> Result<c_long, Errno> {
    match result {
        0.. => Ok(result),
        error => Err(error_of(error)),
    }
}

fn error_of(result: c_long) -> Errno {
    // The kernel's numbers are below 4096.
    Errno::from_raw_os_error(-result as i32)
}

/// Which side of a fork this is.
pub enum Forked {
    /// The new process.
    Child,
    /// The old one, with the new one's number and descriptor.
    Parent(Pid, OwnedFd),
}

/// What every fork asks for: a descriptor of the child, which is written to `pidfd`, and that the parent's signal handlers
/// are not run in it. With the length of the arguments that tells the kernel their version.
fn clone_arguments(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    pidfd: *mut c_int,
) -> (libc::clone_args, usize) {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    let Some(cgroup) = cgroup else {
        return (args, 64);
    };
    // The version that knows of control groups.
    args.flags |= CLONE_INTO_CGROUP;
    args.cgroup = cgroup.as_raw_fd() as u64;
    (args, 88)
}

/// The child that a fork has made, with its descriptor.
fn child_of(pid: c_long, pidfd: c_int) -> Result<(Pid, OwnedFd), Errno> {
    // SAFETY: the kernel has written a descriptor that is new, open and ours alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    Ok((pid.ok_or(Errno::OVERFLOW)?, pidfd))
}

/// Forks into new namespaces (`flags`, `CLONE_NEW*`) and into a control group. The child has only the calling thread, and
/// the parent's signal handlers are not run in it.
pub fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Forked, Errno> {
    let mut pidfd: c_int = -1;
    let (mut args, size) = clone_arguments(flags, cgroup, &raw mut pidfd);
    // SAFETY: without CLONE_VM and a stack this is fork(2): the child has a copy of everything. The structure is as long
    // as told and lives through the call, as does the integer the descriptor is written to. The child is left to code
    // that allocates nothing, as the module says.
    let pid = check(unsafe { raw!(libc::SYS_clone3, &raw mut args, size) })?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    child_of(pid, pidfd).map(|(pid, pidfd)| Forked::Parent(pid, pidfd))
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks without anything else; the child's number, or none in the child.
pub fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: as fork(2), by the kernel's own call: nothing registered with the C library runs in the child, which is
    // left to code that allocates nothing.
    let pid = check(unsafe { raw!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) })?;
    Ok(i32::try_from(pid).ok().and_then(Pid::from_raw))
}

/// Forks a process that has no other threads, by the C library: the child may do all that its parent could. The child's
/// number, or none in the child.
pub fn fork_alone() -> Result<Option<Pid>, Errno> {
    // SAFETY: there are no other threads, as the caller has seen to, so that no lock is held in the child by nobody.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN)),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Arguments or an environment: strings, and the array of pointers to them that execve(2) wants.
#[derive(Debug)]
pub struct Strings {
    /// Points into `owned` and `slot`, and ends with a null pointer.
    pointers: Vec<*const c_char>,
    _owned: Vec<CString>,
    /// A string that is written after the array was made; it ends with a NUL always.
    slot: Option<Box<[u8]>>,
}

// SAFETY: the pointers are to memory that the same value owns and that does not move.
unsafe impl Send for Strings {}
// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for Strings {}

impl Strings {
    /// An array of these.
    pub fn new(owned: Vec<CString>) -> Strings {
        let pointers = owned
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect();
        Strings {
            pointers,
            _owned: owned,
            slot: None,
        }
    }

    /// One string more: `prefix`, and room for `room` bytes after it that `fill` writes.
    pub fn with_slot(owned: Vec<CString>, prefix: &[u8], room: usize) -> Strings {
        let mut strings = Strings::new(owned);
        let mut slot = vec![0; prefix.len() + room + 1].into_boxed_slice();
        slot[..prefix.len()].copy_from_slice(prefix);
        let end = strings.pointers.len() - 1;
        strings.pointers.insert(end, slot.as_ptr().cast());
        strings.slot = Some(slot);
        strings
    }

    /// Writes into the slot after its prefix, of which `at` is the length. What does not fit is refused.
    pub fn fill(&mut self, at: usize, value: &[u8]) -> bool {
        let Some(slot) = &mut self.slot else {
            return false;
        };
        let last = slot.len() - 1;
        match slot[..last]
            .get_mut(at..)
            .and_then(|room| room.get_mut(..value.len()))
        {
            Some(room) if !value.contains(&0) => {
                room.copy_from_slice(value);
                true
            }
            _ => false,
        }
    }
}

/// Becomes another program. Returns only the error.
pub fn execve(path: &CStr, args: &Strings, env: &Strings) -> Errno {
    // SAFETY: the path ends with a NUL, the arrays with a null pointer, and each pointer in them is to a string that ends
    // with a NUL and that the arrays' owner holds.
    let result = unsafe {
        raw!(
            libc::SYS_execve,
            path.as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
        )
    };
    error_of(result)
}

/// Leaves the keyring of the caller's session for a new one, which is empty.
pub fn join_new_session_keyring() -> Result<(), Errno> {
    const JOIN_SESSION_KEYRING: c_int = 1;
    let nameless = ptr::null::<c_char>();
    // SAFETY: a null pointer stands for a keyring without a name; nothing else is read or written.
    check(unsafe { raw!(libc::SYS_keyctl, JOIN_SESSION_KEYRING, nameless) }).map(drop)
}

/// Ends this process at once, running nothing of the C library's.
pub fn exit(code: c_int) -> ! {
    loop {
        // SAFETY: takes no pointer, and does not return.
        unsafe { raw!(libc::SYS_exit_group, code) };
    }
}

/// Moves the calling process into new namespaces (`CLONE_NEW*`). For children that have one thread.
pub fn unshare(flags: c_int) -> Result<(), Errno> {
    // SAFETY: takes no pointer. Namespaces are unshared, and descriptors of a child that goes on with a copy of them.
    check(unsafe { raw!(libc::SYS_unshare, flags) }).map(drop)
}

/// The `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear; cleared first.
    pub clear: u64,
    /// `MS_PRIVATE` and the like, or 0.
    pub propagation: u64,
    /// For `MOUNT_ATTR_IDMAP`.
    pub user_namespace: u64,
}

/// Changes what a mount allows, or a whole tree of mounts (`AT_RECURSIVE`) or none of it.
pub fn mount_setattr(
    directory: BorrowedFd<'_>,
    path: &CStr,
    flags: c_int,
    attributes: &MountAttributes,
) -> Result<(), Errno> {
    // SAFETY: the path ends with a NUL, the structure is as the kernel has it and as long as told; both live through the
    // call and neither is written to.
    check(unsafe {
        raw!(
            libc::SYS_mount_setattr,
            directory.as_raw_fd(),
            path.as_ptr(),
            flags,
            ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    })
    .map(drop)
}

/// Makes descriptor `to` be what `from` is, and stay open in programs executed.
pub fn dup_to(from: BorrowedFd<'_>, to: RawFd) -> Result<(), Errno> {
    if from.as_raw_fd() == to {
        // SAFETY: takes no pointer; the descriptor is open, and only its flag is changed.
        return check(unsafe { raw!(libc::SYS_fcntl, to, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: takes no pointer. Called in a child that owns its descriptors and, of those from 0 to 2, holds no other owner.
    check(unsafe { raw!(libc::SYS_dup3, from.as_raw_fd(), to, 0) }).map(drop)
}

/// Leaves a descriptor to the program that is executed.
pub fn keep_open(number: RawFd) -> Result<(), Errno> {
    // SAFETY: takes no pointer, and only changes a flag.
    check(unsafe { raw!(libc::SYS_fcntl, number, libc::F_SETFD, 0) }).map(drop)
}

/// Moves `from` to `to`, to be closed when a program is executed.
///
/// For a child that will execute a program or end: owners of what `to` was are never dropped in it.
pub fn move_to(from: BorrowedFd<'_>, to: RawFd) -> Result<BorrowedFd<'static>, Errno> {
    if from.as_raw_fd() != to {
        // SAFETY: takes no pointer. Whatever `to` was is not used again in this child.
        check(unsafe { raw!(libc::SYS_dup3, from.as_raw_fd(), to, libc::O_CLOEXEC) })?;
    }
    // SAFETY: open from here to the end of the process, which is longer than any borrow of it.
    Ok(unsafe { BorrowedFd::borrow_raw(to) })
}

/// Closes every descriptor from `first` on. For a child, as above.
pub fn close_from(first: RawFd) -> Result<(), Errno> {
    close_range(first, RawFd::MAX)
}

/// Closes every descriptor from `first` to `last`. For a child, as above.
pub fn close_range(first: RawFd, last: RawFd) -> Result<(), Errno> {
    // SAFETY: takes no pointer. What is closed is not used again in this child, and no owner is dropped in it.
    check(unsafe { raw!(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// A descriptor that stays open as long as the process: closing costs a call, and execve(2) closes it for nothing.
pub fn leak(fd: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: its owner is gone without closing it, so that nobody does.
    unsafe { BorrowedFd::borrow_raw(fd.into_raw_fd()) }
}

/// A descriptor that a child has opened which shares them with this process; none if that is closed.
pub fn take_over(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: whoever opened it does not close it here.
    is_open(number).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a number is a descriptor's.
pub fn is_open(number: RawFd) -> bool {
    // SAFETY: takes no pointer and changes nothing.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

/// A descriptor of a plan's, in the child, where nothing of the plan is ever dropped.
pub fn of_the_process(fd: &OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: the child ends, or becomes a program, without returning to whoever owns the descriptor.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Standard input, output or error (0, 1, 2) of a child that has just been given them.
pub fn standard(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: never closed in the child again. Should it be closed after all, calls on it fail.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Lets signals through again, and gives the default back to those that this process ignores (bit n-1 is signal n).
pub fn default_signals(ignored: u64) -> Result<(), Errno> {
    // The kernel's structure: handler, flags, restorer, mask. All zero is the default action.
    let default = [0u64; 4];
    for signal in (1..=64).filter(|n| ignored & 1 << (n - 1) != 0) {
        // SAFETY: the structure is as the kernel has it, lives through the call and is not written to; 8 is the size of
        // its mask. No handler is installed.
        check(unsafe {
            raw!(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<c_void>(),
                8,
            )
        })?;
    }
    set_signal_mask(0)
}

/// Which signals wait: bit n-1 is signal n.
pub fn set_signal_mask(mask: u64) -> Result<(), Errno> {
    // SAFETY: the set is of 8 bytes, as told, lives through the call and is not written to; no old set is asked for.
    check(unsafe {
        raw!(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            ptr::null_mut::<c_void>(),
            8,
        )
    })
    .map(drop)
}

/// Waits for one of the signals in `set`, which must be blocked, and returns its number.
pub fn wait_signal(set: u64) -> Result<c_int, Errno> {
    // SAFETY: the set is of 8 bytes, as told, and lives through the call; neither details nor a timeout are asked for.
    let signal = check(unsafe {
        raw!(
            libc::SYS_rt_sigtimedwait,
            &raw const set,
            ptr::null_mut::<c_void>(),
            ptr::null::<c_void>(),
            8,
        )
    })?;
    c_int::try_from(signal).map_err(|_| Errno::RANGE)
}

/// Sends a signal by its number, which may be a realtime one.
pub fn kill(pid: Pid, signal: c_int) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { raw!(libc::SYS_kill, pid.as_raw_pid(), signal) }).map(drop)
}

/// Sends a signal by its number to whom the descriptor is of.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<(), Errno> {
    // SAFETY: no details are given, so that no pointer is read.
    check(unsafe {
        raw!(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<c_void>(),
            0,
        )
    })
    .map(drop)
}

/// The mount namespace of a process.
pub fn mount_namespace_of(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    /// `_IO(0xff, 3)`
    const PIDFD_GET_MNT_NAMESPACE: c_int = 0xff03;
    // SAFETY: takes no pointer.
    let namespace = check(unsafe {
        raw!(
            libc::SYS_ioctl,
            pidfd.as_raw_fd(),
            PIDFD_GET_MNT_NAMESPACE,
            0,
        )
    })?;
    let namespace = RawFd::try_from(namespace).map_err(|_| Errno::BADF)?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// Others may not look into this process (`/proc/PID/{fd,exe,mem}`, ptrace(2)) until it executes a program.
pub fn set_undumpable() -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { raw!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Takes a capability out of the bounding set.
pub fn drop_from_bounding_set(capability: u8) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe {
        raw!(
            libc::SYS_prctl,
            libc::PR_CAPBSET_DROP,
            c_long::from(capability),
            0,
            0,
            0,
        )
    })
    .map(drop)
}

/// Puts a capability into the ambient set; it must be permitted and inheritable.
pub fn raise_ambient(capability: u8) -> Result<(), Errno> {
    let raise = libc::PR_CAP_AMBIENT_RAISE;
    // SAFETY: takes no pointer.
    check(unsafe {
        raw!(
            libc::SYS_prctl,
            libc::PR_CAP_AMBIENT,
            raise,
            c_long::from(capability),
            0,
            0,
        )
    })
    .map(drop)
}

/// Brings `lo` up in the network namespace of the socket, which is new. The kernel gives it its addresses itself.
pub fn set_loopback_up(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: an `ifreq` is integers and arrays of them, and zeros are a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads the structure, which is as the kernel has it and lives through the call.
    check(unsafe {
        raw!(
            libc::SYS_ioctl,
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    })
    .map(drop)
}

/// The number of a loop device that is nobody's, by `/dev/loop-control`. It may be somebody's by the time it is opened.
pub fn free_loop_device(control: BorrowedFd<'_>) -> Result<u32, Errno> {
    const LOOP_CTL_GET_FREE: c_int = 0x4c82;
    // SAFETY: takes no further argument.
    let number =
        check(unsafe { raw!(libc::SYS_ioctl, control.as_raw_fd(), LOOP_CTL_GET_FREE, 0) })?;
    u32::try_from(number).map_err(|_| Errno::RANGE)
}

/// Makes a loop device show a file, for as long as somebody has the device open or mounted.
pub fn configure_loop_device(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    read_only: bool,
) -> Result<(), Errno> {
    const LOOP_CONFIGURE: c_int = 0x4c0a;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    // `struct loop_config`, with what is left out in zeros: the block size that the kernel thinks best.
    #[repr(C)]
    struct Config {
        fd: u32,
        block_size: u32,
        // `struct loop_info64`
        numbers: [u64; 5],
        number: u32,
        encryption: [u32; 2],
        flags: u32,
        names: [u8; 64 + 64 + 32],
        init: [u64; 2],
        reserved: [u64; 8],
    }
    let config = Config {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: AUTOCLEAR | if read_only { READ_ONLY } else { 0 },
        names: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the structure is as the kernel has it, lives through the call and is not written to.
    check(unsafe {
        raw!(
            libc::SYS_ioctl,
            device.as_raw_fd(),
            LOOP_CONFIGURE,
            &raw const config,
        )
    })
    .map(drop)
}

/// How the kernel gives a process processors, as it has it (`struct sched_attr`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerAttributes {
    /// Set by [`set_scheduler`].
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub least_utilization: u32,
    pub most_utilization: u32,
}

/// For this process and what it forks.
pub fn set_scheduler(attributes: &SchedulerAttributes) -> Result<(), Errno> {
    let attributes = SchedulerAttributes {
        size: size_of::<SchedulerAttributes>() as u32,
        ..*attributes
    };
    // SAFETY: the structure is as the kernel has it, says how long it is, and lives through the call.
    check(unsafe { raw!(libc::SYS_sched_setattr, 0, ptr::from_ref(&attributes), 0) }).map(drop)
}

/// For this process and what it forks.
pub fn set_io_priority(value: u16) -> Result<(), Errno> {
    const THIS_PROCESS: (c_int, c_int) = (1, 0);
    let (kind, number) = THIS_PROCESS;
    // SAFETY: all arguments are integers.
    check(unsafe { raw!(libc::SYS_ioprio_set, kind, number, c_int::from(value)) }).map(drop)
}

/// For this process, what it forks and what that executes: which nodes' memory they are given, bit n for node n.
pub fn set_memory_policy(mode: c_int, nodes: &[u64; 16]) -> Result<(), Errno> {
    let mask = match nodes.iter().any(|&word| word != 0) {
        true => nodes.as_ptr(),
        false => ptr::null(),
    };
    let bits = if mask.is_null() {
        0
    } else {
        8 * size_of_val(nodes)
    };
    // SAFETY: the mask has as many bits as told, lives through the call and is not written to; there may be none.
    check(unsafe { raw!(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// For this process and what it forks: on which processors they run, bit n for processor n.
pub fn set_affinity(processors: &[u64; 16]) -> Result<(), Errno> {
    let (size, mask) = (size_of_val(processors), processors.as_ptr());
    // SAFETY: the mask is as long as told, lives through the call and is not written to.
    check(unsafe { raw!(libc::SYS_sched_setaffinity, 0, size, mask) }).map(drop)
}

/// For this process, what it forks and what that executes.
pub fn set_personality(domain: c_ulong) -> Result<(), Errno> {
    // SAFETY: the argument is an integer.
    check(unsafe { raw!(libc::SYS_personality, domain) }).map(drop)
}

/// One instruction of a seccomp filter, as the kernel has it (`struct sock_filter`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub value: u32,
}

/// Puts this process and its children under a filter. The descriptor for who decides, if there is to be one.
pub fn load_seccomp(program: &[Instruction], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let Ok(length) = u16::try_from(program.len()) else {
        return Err(Errno::INVAL);
    };
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const Instruction,
    }
    let program = Program {
        length,
        instructions: program.as_ptr(),
    };
    // SAFETY: the structure is as the kernel has it and points to as many instructions as it says; all live through the
    // call, and the kernel checks the program itself.
    let result = check(unsafe {
        raw!(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            ptr::from_ref(&program),
        )
    })?;
    if libc::c_ulong::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    let listener = RawFd::try_from(result).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel returns a new descriptor, which is nobody else's.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(listener) }))
}

/// Loads a program that decides about devices (`BPF_PROG_TYPE_CGROUP_DEVICE`): 64-bit instructions of eBPF.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    const BPF_PROG_LOAD: c_int = 5;
    const CGROUP_DEVICE: u32 = 15;
    // The first members of the kernel's union; what is left out is zero.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        version_and_flags: [u32; 2],
    }
    let Ok(count) = u32::try_from(instructions.len()) else {
        return Err(Errno::TOOBIG);
    };
    let load = Load {
        kind: CGROUP_DEVICE,
        count,
        instructions: instructions.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: [0; 2],
    };
    // SAFETY: the structure is as long as told and points to as many instructions as it says and to a string that ends
    // with a NUL; all live through the call, and the kernel verifies the program itself.
    let fd = check(unsafe {
        raw!(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            ptr::from_ref(&load),
            size_of::<Load>(),
        )
    })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: the descriptor is new, open and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a program decide about the devices of a control group, besides those that decide already.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    const BPF_PROG_ATTACH: c_int = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    let attach = [
        cgroup.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        CGROUP_DEVICE,
        ALLOW_MULTI,
    ];
    // SAFETY: the structure is of four 32-bit members, as long as told, and lives through the call.
    check(unsafe {
        raw!(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            attach.as_ptr(),
            size_of_val(&attach),
        )
    })
    .map(drop)
}
