//! What is mounted in the root filesystem, and what is hidden. The root is the container's here: no path and no link leads
//! out. Magic links of a /proc could, through descriptors of ours; where something is created, they are refused. A mount
//! elsewhere than in our own mount namespace the kernel refuses itself, and one in the runtime's root, as long as that is
//! there, goes with it.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chownat, mkdirat, mknodat, openat, openat2,
    statat, symlinkat,
};
use rustix::io::{Errno, write as write_some};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount as mount2, move_mount,
    open_tree, unmount,
};
use rustix::process::{Gid, Uid, fchdir};

use super::{State, copy_up};
use crate::plan::{GroupTrees, Missing, Mount, MountKept, Place, Slot};
use crate::sys::{self, MountAttributes};

/// With absolute paths alone: links then begin at the process's root, which is the container's. (`RESOLVE_IN_ROOT` would take
/// the directory that a path begins at for the root, whatever that is by then.)
pub const INSIDE: ResolveFlags = ResolveFlags::NO_MAGICLINKS;
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);
/// The mount itself, wherever it is attached.
pub const THIS: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// What hides paths.
#[derive(Default)]
pub struct Masks {
    /// A mount of /dev/null that is attached nowhere yet.
    file: Option<BorrowedFd<'static>>,
    /// An empty directory that nothing can be written to, attached where it hid the first directory.
    directory: Option<BorrowedFd<'static>>,
}

/// Of directories that were missing.
pub const MODE: Mode = Mode::from_raw_mode(0o755);

pub fn mount(mount: &Mount) -> Result<(), Errno> {
    let Mount {
        source,
        kind,
        target,
        flags,
        data,
        copy_up,
    } = mount;
    let hidden = if *copy_up {
        copy_up::open(target)?
    } else {
        None
    };
    let once = || mount2(source, target, kind, *flags, Some(data.as_c_str()));
    match once() {
        Err(Errno::NOENT) => {
            make_target(target, Missing::Directory)?;
            once()?;
        }
        result => result?,
    }
    match hidden {
        Some(hidden) => copy_up::copy(&hidden, target),
        None => Ok(()),
    }
}

pub fn open(mount: &MountKept, state: &mut State) -> Result<(), Errno> {
    // Closed when the program is executed.
    let context = sys::leak(fsopen(&mount.kind, FsOpenFlags::FSOPEN_CLOEXEC)?);
    if let Some(source) = &mount.source {
        fsconfig_set_string(context, c"source", source)?;
    }
    for (key, value) in &mount.options {
        match value {
            Some(value) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, key)?,
        }
    }
    fsconfig_create(context)?;
    let root = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, mount.attributes)?;
    state.slots[mount.slot as usize] = Some(sys::leak(root));
    Ok(())
}

/// Takes a mount from its place, with all that is mounted below, and keeps it.
pub fn take_away(slot: &mut Option<BorrowedFd<'static>>, target: &CStr) -> Result<(), Errno> {
    // A copy: what is unmounted is attached nowhere any more.
    let whole = CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::AT_EMPTY_PATH;
    let root = slot.ok_or(Errno::BADF)?;
    *slot = Some(sys::leak(open_tree(root, c"", whole)?));
    unmount(target, UnmountFlags::DETACH)
}

pub fn attach_kept(root: BorrowedFd, target: &CStr) -> Result<(), Errno> {
    // A link in its place is refused: what is mounted there must be found by its name.
    let once = || move_mount(root, c"", CWD, target, THIS);
    match once() {
        Err(Errno::NOENT) => {
            make_target(target, Missing::Directory)?;
            once()
        }
        result => result,
    }
}

pub fn attach(tree: &OwnedFd, target: &CStr, missing: Missing, copy_up: bool) -> Result<(), Errno> {
    let hidden = if copy_up {
        copy_up::open(target)?
    } else {
        None
    };
    let once = || {
        move_mount(
            tree,
            c"",
            CWD,
            target,
            THIS | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
        )
    };
    match once() {
        Err(Errno::NOENT) => {
            make_target(target, missing)?;
            once()?;
        }
        result => result?,
    }
    match hidden {
        Some(hidden) => copy_up::copy(&hidden, target),
        None => Ok(()),
    }
}

/// Attaches the directories of a control group in a new filesystem of ours.
pub fn show_groups(groups: &GroupTrees) -> Result<(), Errno> {
    for (tree, target) in &groups.trees {
        mkdirat(CWD, target, MODE)?;
        move_mount(tree, c"", CWD, target, THIS)?;
    }
    groups
        .links
        .iter()
        .try_for_each(|(link, target)| symlinkat(target, CWD, link))
}

/// Makes a mount's target, and the directories that lead there.
pub fn make_target(target: &CStr, missing: Missing) -> Result<(), Errno> {
    let path = target.to_bytes();
    let parent_end = path.iter().rposition(|&b| b == b'/').unwrap_or(0);
    let parent = make_directories(&path[..parent_end])?;
    let mut buffer = [0; libc::PATH_MAX as usize];
    let name = c_string(&path[parent_end..], &mut buffer)?;
    let name =
        CStr::from_bytes_with_nul(name.to_bytes_with_nul().strip_prefix(b"/").unwrap_or(b"\0"))
            .map_err(|_| Errno::INVAL)?;
    let made = match missing {
        Missing::Directory => mkdirat(&parent, name, MODE),
        Missing::File => {
            let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(&parent, name, create, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

/// Opens a directory inside the root, making each that is missing on the way. Links are followed inside the root.
fn make_directories(path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut buffer = [0; libc::PATH_MAX as usize];
    let open_at = |path: &CStr| openat2(CWD, path, flags, Mode::empty(), INSIDE);
    let mut current = open_at(c"/")?;
    let mut end = 0;
    while end < path.len() {
        let start = end + 1;
        end = path[start..]
            .iter()
            .position(|&b| b == b'/')
            .map_or(path.len(), |n| start + n);
        if start == end {
            continue;
        }
        let so_far = c_string(&path[..end], &mut buffer)?;
        current = match open_at(so_far) {
            Err(Errno::NOENT) => {
                let mut name = [0; 256];
                let name = c_string(&path[start..end], &mut name)?;
                match mkdirat(&current, name, MODE) {
                    Err(Errno::EXIST) => {}
                    made => made?,
                }
                open_at(so_far)?
            }
            opened => opened?,
        };
    }
    Ok(current)
}

fn c_string<'a>(bytes: &[u8], buffer: &'a mut [u8]) -> Result<&'a CStr, Errno> {
    let room = buffer.get_mut(..=bytes.len()).ok_or(Errno::NAMETOOLONG)?;
    let (text, end) = room.split_at_mut(bytes.len());
    text.copy_from_slice(bytes);
    end.fill(0);
    CStr::from_bytes_with_nul(room).map_err(|_| Errno::INVAL)
}

pub fn make_directory(place: &Place, state: &State) -> Result<(), Errno> {
    match place.slot {
        Some(slot) => match mkdirat(state.slot(slot)?, &place.path, MODE) {
            Err(Errno::EXIST) => Ok(()),
            made => made,
        },
        None => make_target(&place.path, Missing::Directory),
    }
}

/// The directory something is to be made in, by a descriptor that no link can move.
fn parent_of<'a>(place: &'a Place, state: &State) -> Result<(Parent, &'a CStr), Errno> {
    let bytes = place.path.to_bytes_with_nul();
    let slash = bytes.iter().rposition(|&b| b == b'/');
    match (place.slot, slash) {
        (Some(slot), None) => Ok((Parent::Kept(state.slot(slot)?), &place.path)),
        (None, Some(slash)) => {
            let name = CStr::from_bytes_with_nul(&bytes[slash + 1..]).map_err(|_| Errno::INVAL)?;
            Ok((Parent::Opened(make_directories(&bytes[..slash])?), name))
        }
        _ => Err(Errno::INVAL),
    }
}

enum Parent {
    Kept(BorrowedFd<'static>),
    Opened(OwnedFd),
}

impl AsFd for Parent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Parent::Kept(fd) => *fd,
            Parent::Opened(fd) => fd.as_fd(),
        }
    }
}

pub fn make_device(
    place: &Place,
    state: &State,
    (mode, device): (u32, u64),
    owner: Option<(u32, u32)>,
    asked_for: bool,
) -> Result<(), Errno> {
    let (parent, name) = parent_of(place, state)?;
    let kind = FileType::from_raw_mode(mode);
    match mknodat(&parent, name, kind, Mode::from_raw_mode(mode), device) {
        // One that the image or an earlier run left, or somebody mounted.
        Err(Errno::EXIST) if !asked_for => return Ok(()),
        Err(Errno::EXIST) => {
            let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_wanted =
                FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == device;
            return if is_wanted { Ok(()) } else { Err(Errno::EXIST) };
        }
        made => made?,
    }
    match owner {
        Some((uid, gid)) => {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(
                &parent,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
        }
        None => Ok(()),
    }
}

pub fn link(place: &Place, target: &CStr, state: &State) -> Result<(), Errno> {
    let (parent, name) = parent_of(place, state)?;
    match symlinkat(target, &parent, name) {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

pub fn sysctl(place: &Place, value: &[u8], state: &State) -> Result<(), Errno> {
    let directory = state.slot(place.slot.ok_or(Errno::INVAL)?)?;
    // What a link of the image has brought to be mounted in there is not the kernel's.
    let only_there = ResolveFlags::BENEATH
        .union(ResolveFlags::NO_XDEV)
        .union(ResolveFlags::NO_SYMLINKS);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat2(directory, &place.path, flags, Mode::empty(), only_there)?;
    write_all(file, value)
}

pub fn write(directory: BorrowedFd, path: &CStr, data: &[u8]) -> Result<(), Errno> {
    let file = openat(
        directory,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    write_all(file, data)
}

/// In one call: what cannot take all takes nothing.
pub fn write_all(file: OwnedFd, data: &[u8]) -> Result<(), Errno> {
    match write_some(file, data)? {
        written if written == data.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Hides a path: a directory is empty, anything else reads as empty. What is missing needs no hiding.
pub fn mask(place: &Place, state: &mut State) -> Result<(), Errno> {
    let target = Target::open(place, state)?;
    let Some(target) = target else { return Ok(()) };
    let file = match state.masks.file.take() {
        Some(file) => file,
        None => sys::leak(match state.slots[Slot::Dev as usize] {
            Some(dev) => open_tree(dev, c"null", CLONE)?,
            None => clone_of_null()?,
        }),
    };
    let mounted = target.mount(file);
    if mounted.is_err() {
        // It may hide another.
        state.masks.file = Some(file);
    }
    match mounted {
        // A directory: nothing but a directory can be mounted there.
        Err(Errno::INVAL | Errno::NOTDIR) => {}
        Err(Errno::NOENT) => return Ok(()),
        mounted => return mounted,
    }
    match state.masks.directory {
        Some(directory) => {
            let empty = open_tree(directory, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?;
            target.mount(sys::leak(empty))
        }
        None => {
            let context = sys::leak(fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?);
            fsconfig_set_string(context, c"size", c"0")?;
            fsconfig_create(context)?;
            let read_only = rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY;
            let empty = sys::leak(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, read_only)?);
            target.mount(empty)?;
            state.masks.directory = Some(empty);
            Ok(())
        }
    }
}

/// /dev/null where /dev is not a mount of ours: an image may have put something else there.
fn clone_of_null() -> Result<OwnedFd, Errno> {
    let null = openat2(
        CWD,
        c"/dev/null",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        INSIDE,
    )?;
    let found = rustix::fs::fstat(&null)?;
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    if !is_device || found.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(Errno::NODEV);
    }
    open_tree(&null, c"", CLONE | OpenTreeFlags::AT_EMPTY_PATH)
}

/// Where something is to be mounted: below a mount of ours by name, elsewhere by a descriptor.
enum Target<'a> {
    Below(BorrowedFd<'static>, &'a CStr),
    Opened(OwnedFd),
}

impl<'a> Target<'a> {
    /// None: there is nothing.
    fn open(place: &'a Place, state: &State) -> Result<Option<Target<'a>>, Errno> {
        match place.slot {
            Some(slot) => Ok(Some(Target::Below(state.slot(slot)?, &place.path))),
            None => {
                match openat2(
                    CWD,
                    &place.path,
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                    INSIDE,
                ) {
                    Ok(target) => Ok(Some(Target::Opened(target))),
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn mount(&self, tree: BorrowedFd) -> Result<(), Errno> {
        let to_this = THIS | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        match self {
            Target::Below(directory, path) => move_mount(tree, c"", directory, *path, THIS),
            Target::Opened(target) => move_mount(tree, c"", target, c"", to_this),
        }
    }

    /// A copy of what is there, with all that is mounted below.
    fn clone_tree(&self) -> Result<OwnedFd, Errno> {
        let whole = CLONE | OpenTreeFlags::AT_RECURSIVE;
        match self {
            Target::Below(directory, path) => {
                open_tree(directory, *path, whole | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
            }
            Target::Opened(target) => open_tree(target, c"", whole | OpenTreeFlags::AT_EMPTY_PATH),
        }
    }
}

/// Mounts a path over itself, so that nothing can be written through it. What is missing needs no protection.
pub fn read_only(place: &Place, state: &State) -> Result<(), Errno> {
    let Some(target) = Target::open(place, state)? else {
        return Ok(());
    };
    let tree = match target.clone_tree() {
        Err(Errno::NOENT) => return Ok(()),
        tree => tree?,
    };
    let attributes = MountAttributes {
        set: READ_ONLY,
        ..MountAttributes::default()
    };
    sys::mount_setattr(
        tree.as_fd(),
        c"",
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
        &attributes,
    )?;
    target.mount(sys::leak(tree))
}

pub fn working_directory(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat2(CWD, path, flags, Mode::empty(), INSIDE) {
        Err(Errno::NOENT) => match make_directories(path.to_bytes()) {
            // That it is missing is what is wrong with it.
            Err(Errno::ROFS | Errno::ACCESS) => return Err(Errno::NOENT),
            made => made?,
        },
        opened => opened?,
    };
    fchdir(&directory)
}
