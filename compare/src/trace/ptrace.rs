//! ptrace(2), as much of it as counting needs.

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;

/// Everything that comes of a traced process is traced as well, and is killed if the tracer dies: it
/// would stand still for ever otherwise.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_EXITKILL;
/// A stop at a system call, told from a SIGTRAP by the option above.
const AT_SYSTEM_CALL: libc::c_int = libc::SIGTRAP | 0x80;
/// Asks what a stop at a system call is about; its answer begins with the kind, and has the number of a
/// call that is entered 24 bytes on (`struct ptrace_syscall_info`).
const GET_SYSCALL_INFO: i64 = 0x420e;
const INFO_BYTES: usize = 88;
const ENTRY: u8 = 1;
const NUMBER_OFFSET: usize = 24;

/// Traces a process from now on.
pub fn seize(pid: libc::pid_t) -> io::Result<()> {
    request(libc::PTRACE_SEIZE as i64, pid, 0, OPTIONS as usize)?;
    request(libc::PTRACE_INTERRUPT as i64, pid, 0, 0)
}

/// Lets the processes that this thread traces go on from system call to system call until all have ended.
/// `entered` gets the number of each call since the first `execve`. Returns the exit status of `root`, as
/// wait(2) has it.
pub fn follow(root: libc::pid_t, entered: &mut dyn FnMut(u64)) -> io::Result<libc::c_int> {
    let mut counting = false;
    let mut root_status = 0;
    while let Some((pid, status)) = wait()? {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            if pid == root {
                root_status = status;
            }
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let mut deliver = 0;
        let mut go_on = libc::PTRACE_SYSCALL as i64;
        match (signal, status >> 16) {
            (AT_SYSTEM_CALL, _) if counting => {
                if let Some(number) = number(pid) {
                    entered(number);
                }
            }
            (AT_SYSTEM_CALL, _) => {}
            (_, libc::PTRACE_EVENT_EXEC) => counting = true,
            // A process that was told to stop does that; one that has just come goes on.
            (
                libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU,
                libc::PTRACE_EVENT_STOP,
            ) => go_on = libc::PTRACE_LISTEN as i64,
            (_, 0) => deliver = signal,
            _ => {}
        }
        match request(go_on, pid, 0, deliver as usize) {
            // It was killed meanwhile, and its end comes next.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            result => result?,
        }
    }
    Ok(root_status)
}

/// The next thing that happens to a process of this thread's; `None` if there is none any more.
fn wait() -> io::Result<Option<(libc::pid_t, libc::c_int)>> {
    loop {
        let mut status = 0;
        // SAFETY: the status is an integer of ours that lives as long as the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
        if pid > 0 {
            return Ok(Some((pid, status)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// The number of the system call that a process is about to make, if it is.
fn number(pid: libc::pid_t) -> Option<u64> {
    let mut info = MaybeUninit::<[u8; INFO_BYTES]>::zeroed();
    let asked = request(
        GET_SYSCALL_INFO,
        pid,
        INFO_BYTES,
        info.as_mut_ptr() as usize,
    );
    // SAFETY: any bytes are bytes, and these were zeros before the kernel wrote some of them.
    let info = unsafe { info.assume_init() };
    if asked.is_err() || info[0] != ENTRY {
        return None;
    }
    let number = &info[NUMBER_OFFSET..NUMBER_OFFSET + mem::size_of::<u64>()];
    Some(u64::from_ne_bytes(number.try_into().ok()?))
}

/// One request. `data` is a number, or the address of what the request writes to.
fn request(request: i64, pid: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    let address: *mut libc::c_void = ptr::without_provenance_mut(address);
    let data = data as *mut libc::c_void;
    // SAFETY: of the requests made here only GET_SYSCALL_INFO writes to this process: to `data`, no more
    // than the number of bytes that `address` is.
    let result = unsafe { libc::syscall(libc::SYS_ptrace, request, pid, address, data) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn calls_of_a_process_and_its_children_are_counted() {
        // It waits for a line, and then runs two programs.
        let script = "read line; /bin/true & wait; exec /bin/true";
        #[allow(clippy::zombie_processes, reason = "`follow` waits for it")]
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .spawn()
            .expect("start sh");
        let pid = child.id() as libc::pid_t;
        seize(pid).expect("seize");
        drop(child.stdin.take());
        let mut exits = 0;
        let mut all = 0;
        let status = follow(pid, &mut |number| {
            all += 1;
            exits += u64::from(number == libc::SYS_exit_group as u64);
        });
        assert_eq!(status.expect("followed"), 0);
        assert_eq!(exits, 2);
        assert!(all > 10, "{all}");
    }
}
