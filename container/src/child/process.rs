//! The process itself: descriptors, session, user, capabilities, program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Mode, OFlags, Stat, accessat, fchown, fcntl_setfl, fstat,
    fstatfs, major, makedev, minor, openat2, stat, statat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Gid, Uid, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    CapabilitySet, CapabilitySets, ThreadNameSpaceType, move_into_thread_name_spaces,
    set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::mounts::INSIDE;
use super::{State, channel};
use crate::plan::{self, Program};
use crate::sys;
use crate::users::{self, Wanted};

/// The first descriptor that is not a standard one.
const FIRST: i32 = 3;
/// `DEVPTS_SUPER_MAGIC`
const DEVPTS: u64 = 0x1cd1;

pub fn join(namespace: &OwnedFd, flags: i32) -> Result<(), Errno> {
    let kinds = ThreadNameSpaceType::from_bits_retain(flags as u32);
    move_into_thread_name_spaces(namespace.as_fd(), kinds)
}

pub fn become_root() -> Result<(), Errno> {
    let (root, group) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(root, root, root)
}

/// Who makes the namespace need not have the right to change what is in it: then it stays as it is.
pub fn bring_loopback_up() -> Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC;
    let socket = match socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None) {
        // A kernel without the protocol has no use for the interface.
        Err(Errno::AFNOSUPPORT) => return Ok(()),
        socket => socket?,
    };
    match sys::set_loopback_up(socket.as_fd()) {
        Err(Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Opens a terminal of the container's own devpts. What lies at its path the container may have put there: it is used
/// only if it is a terminal multiplexer of a devpts.
pub fn open_terminal(
    state: &mut State,
    rows: u16,
    columns: u16,
    console: bool,
) -> Result<(), Errno> {
    // Looked at before it is opened, as another device might do something then, and after that, as it may have been swapped.
    let is_multiplexer = |found: Stat| {
        let device = found.st_rdev;
        FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice
            && (major(device), minor(device)) == (5, 2)
    };
    if !is_multiplexer(stat(c"/dev/pts/ptmx")?) {
        return Err(Errno::NOTTY);
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let master = openat2(CWD, c"/dev/pts/ptmx", flags, Mode::empty(), INSIDE)?;
    if !is_multiplexer(fstat(&master)?) || fstatfs(&master)?.f_type as u64 != DEVPTS {
        return Err(Errno::NOTTY);
    }
    // Only opening it must not block.
    fcntl_setfl(&master, OFlags::RDWR)?;
    unlockpt(&master)?;
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer)?;
    if (rows, columns) != (0, 0) {
        tcsetwinsize(
            &slave,
            Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?;
    }
    if console {
        mount_console(&slave)?;
    }
    channel::report_terminal(state.channel()?, &master)?;
    state.terminal = Some(sys::leak(slave));
    Ok(())
}

/// /dev/console is the container's terminal (runtime-spec config-linux.md#default-devices).
fn mount_console(slave: &OwnedFd) -> Result<(), Errno> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(slave, c"", clone)?;
    let create = OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let console = match openat2(
        CWD,
        c"/dev/console",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        INSIDE,
    ) {
        Err(Errno::NOENT) => openat2(
            CWD,
            c"/dev/console",
            create,
            Mode::from_raw_mode(0o600),
            INSIDE,
        )?,
        console => console?,
    };
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, c"", &console, c"", onto)
}

pub fn connect(files: Option<&[OwnedFd; 3]>, state: &State) -> Result<(), Errno> {
    let ends = match (files, state.terminal) {
        (_, Some(terminal)) => [terminal; 3],
        (Some([stdin, stdout, stderr]), None) => [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        (None, None) => return Ok(()),
    };
    for (end, number) in ends.into_iter().zip(0..) {
        sys::dup_to(end, number)?;
    }
    Ok(())
}

pub fn close_others(state: &mut State) -> Result<(), Errno> {
    let mut next = FIRST;
    for &number in state.preserved {
        if next < number {
            sys::close_range(next, number - 1)?;
        }
        sys::keep_open(number)?;
        next = number + 1;
    }
    // Both lie beyond the places that they get, so that neither takes the other's.
    for fd in [&mut state.channel, &mut state.gate].into_iter().flatten() {
        *fd = sys::move_to(*fd, next)?;
        next += 1;
    }
    sys::close_from(next)
}

/// Tells the parent that all is ready, and waits for the start.
pub fn report_ready(state: &mut State, gate: bool) -> Result<(), Errno> {
    let parent = state.channel()?;
    channel::report_ready(parent)?;
    match state.gate {
        Some(gate) => state.channel = Some(channel::await_caller(gate)?),
        None if gate => channel::await_go(parent)?,
        None => {}
    }
    Ok(())
}

pub fn start_session(terminal: bool) -> Result<(), Errno> {
    setsid()?;
    if terminal {
        ioctl_tiocsctty(sys::standard(0))
    } else {
        Ok(())
    }
}

pub fn new_keyring() -> Result<(), Errno> {
    match sys::join_new_session_keyring() {
        // A kernel without keys, or a filter that we are under ourselves, and the container with us.
        Err(Errno::NOSYS | Errno::PERM) => Ok(()),
        joined => joined,
    }
}

/// Finds out who to be, and gives HOME its value.
pub fn look_up_user(state: &mut State) -> Result<(), Errno> {
    let State {
        program,
        identity,
        ids,
        ..
    } = state;
    let fills_home = program.wants_home;
    let mut home_set = false;
    if identity.wanted.must_look || fills_home {
        let env = &mut program.env;
        let home = |home: &[u8]| {
            home_set = fills_home && home.starts_with(b"/") && env.fill(plan::HOME.len(), home);
        };
        // Only who asks for a name needs a readable database.
        match users::look_up(&identity.wanted, ids, home) {
            Err(error) if identity.wanted.must_look => return Err(error),
            _ => {}
        }
    }
    if let Wanted {
        user: users::Name::Number(uid),
        group: Some(users::Name::Number(gid)),
        ..
    } = identity.wanted
    {
        (ids.uid, ids.gid) = (uid, gid);
    }
    if fills_home && !home_set {
        program.env.fill(plan::HOME.len(), b"/");
    }
    identity
        .additional
        .iter()
        .try_for_each(|&group| ids.push(group))
}

pub fn limit_bounding_set(dropped: u64) -> Result<(), Errno> {
    (0..64)
        .filter(|n| dropped & (1 << n) != 0)
        .try_for_each(sys::drop_from_bounding_set)
}

pub fn become_user(state: &State, keep_capabilities: bool) -> Result<(), Errno> {
    let ids = &state.ids;
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    if ids.uid != 0 {
        // So that /dev/stdout and its like can be opened by whom they are for. Files that are not ours to give stay.
        for number in 0..3 {
            let _ = give(sys::standard(number), uid);
        }
    }
    let mut groups = [Gid::ROOT; users::MAX_GROUPS];
    let groups = groups.get_mut(..ids.groups().len()).ok_or(Errno::TOOBIG)?;
    for (group, &number) in groups.iter_mut().zip(ids.groups()) {
        *group = Gid::from_raw(number);
    }
    if state.identity.sets_groups {
        set_thread_groups(groups)?;
    }
    if ids.gid != 0 {
        set_thread_res_gid(gid, gid, gid)?;
    }
    if ids.uid == 0 {
        return Ok(());
    }
    if !keep_capabilities {
        return set_thread_res_uid(uid, uid, uid);
    }
    set_keep_capabilities(true)?;
    set_thread_res_uid(uid, uid, uid)
}

fn give(fd: BorrowedFd, uid: Uid) -> Result<(), Errno> {
    let device = fstat(fd)?;
    // The host's /dev/null is everybody's.
    if device.st_rdev == makedev(1, 3) {
        return Ok(());
    }
    fchown(fd, Some(uid), None)
}

pub fn set_capability_sets(sets: &plan::CapabilitySets) -> Result<(), Errno> {
    let set = CapabilitySet::from_bits_retain;
    set_capabilities(
        None,
        CapabilitySets {
            effective: set(sets.effective),
            permitted: set(sets.permitted),
            inheritable: set(sets.inheritable),
        },
    )?;
    (0..64)
        .filter(|n| sets.ambient & (1 << n) != 0)
        .try_for_each(sys::raise_ambient)
}

/// Whether one of the places where the program may be has something to execute.
pub fn find_program(program: &Program) -> Result<(), Errno> {
    let mut worst = Errno::NOENT;
    for candidate in &program.candidates {
        match accessat(CWD, candidate, Access::EXEC_OK, AtFlags::EACCESS) {
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(Errno::ACCESS) => worst = Errno::ACCESS,
            // A directory can be entered, and not executed.
            _ if is_directory(candidate) => worst = Errno::ACCESS,
            // What cannot be asked shows later.
            _ => return Ok(()),
        }
    }
    Err(worst)
}

fn is_directory(path: &CStr) -> bool {
    let found = statat(CWD, path, AtFlags::empty());
    found.is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
}

/// Passes over the first places where the program is not; none, if it is nowhere.
pub fn locate(program: &mut Program) {
    let is_missing = |candidate: &CString| {
        let found = accessat(CWD, candidate, Access::EXISTS, AtFlags::empty());
        matches!(found, Err(Errno::NOENT | Errno::NOTDIR))
    };
    let mut candidates = program.candidates.iter();
    program.first = candidates.position(|path| !is_missing(path)).unwrap_or(0);
}

/// Tries each place where the program may be, as execvp(3) does.
pub fn execute(program: &Program) -> Errno {
    let mut worst = Errno::NOENT;
    for candidate in program.candidates.iter().skip(program.first) {
        match sys::execve(candidate, &program.args, &program.env) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => worst = Errno::ACCESS,
            error => return error,
        }
    }
    worst
}
