//! Unpacking an archive that a guest has made: nothing of it lands outside the target, whatever names,
//! links and kinds of files it has.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    fchmod, futimens, linkat, mkdirat, openat, openat2, symlinkat, unlinkat,
};
use rustix::io::Errno;

/// What the top of the archive is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// What it is called, in this folder.
    Into(PathBuf),
    /// This.
    As(PathBuf),
    /// Nothing: what is in it lands in this folder.
    Contents(PathBuf),
}

/// Unpacks an archive with one top.
pub fn unpack(tar: &mut dyn Read, naming: &Naming, owners: bool) -> io::Result<()> {
    let (folder, top) = match naming {
        Naming::Into(folder) | Naming::Contents(folder) => (folder.clone(), None),
        Naming::As(path) => {
            let folder = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            (folder.unwrap_or(Path::new(".")).to_owned(), Some(name))
        }
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = openat(CWD, &folder, flags, Mode::empty())?;
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = renamed(&entry.path()?, naming, top.map(OsStrExt::as_bytes))?;
        if let Some(name) = name {
            let link = match entry.link_name()? {
                // A hard link is to another entry, by the name it has here.
                Some(link) if entry.header().entry_type().is_hard_link() => {
                    renamed(&link, naming, top.map(OsStrExt::as_bytes))?
                }
                link => link.map(|link| link.into_owned()),
            };
            place(root.as_fd(), &name, link.as_deref(), &mut entry, owners)?;
        }
    }
    Ok(())
}

/// Where an entry goes, under the root. `None` if it is the root.
fn renamed(path: &Path, naming: &Naming, top: Option<&[u8]>) -> io::Result<Option<PathBuf>> {
    let mut parts: Vec<OsString> = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_owned()),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let message = format!("the archive has a file {path:?}, which leads out of it");
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
        }
    }
    match (naming, top) {
        (Naming::Contents(_), _) if !parts.is_empty() => drop(parts.remove(0)),
        (Naming::As(_), Some(top)) => {
            let top = std::ffi::OsStr::from_bytes(top).to_owned();
            match parts.first_mut() {
                Some(first) => *first = top,
                None => parts.push(top),
            }
        }
        _ => {}
    }
    Ok((!parts.is_empty()).then(|| parts.iter().collect()))
}

/// Makes one file.
fn place<R: Read>(
    root: BorrowedFd<'_>,
    name: &Path,
    link: Option<&Path>,
    entry: &mut tar::Entry<'_, R>,
    owners: bool,
) -> io::Result<()> {
    let parent = parent_of(root, name)?;
    let file_name = name.file_name().ok_or(io::ErrorKind::InvalidData)?;
    let header = entry.header();
    let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
    let kind = header.entry_type();
    let owner = owners
        .then(|| Ok::<_, io::Error>((header.uid()?, header.gid()?)))
        .transpose()?;
    let modified = header.mtime()?;
    if kind.is_dir() {
        match mkdirat(&parent, file_name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
    } else if !kind.is_pax_global_extensions() {
        // What is there is replaced, and never written through.
        match unlinkat(&parent, file_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if kind.is_symlink() {
        symlinkat(link.ok_or(io::ErrorKind::InvalidData)?, &parent, file_name)?;
        return own(&parent, file_name.as_ref(), owner);
    }
    if kind.is_hard_link() {
        let target = link.ok_or(io::ErrorKind::InvalidData)?;
        let from = parent_of(root, target)?;
        let target = target.file_name().ok_or(io::ErrorKind::InvalidData)?;
        linkat(&from, target, &parent, file_name, AtFlags::empty())?;
        return Ok(());
    }
    let file = if kind.is_dir() {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        File::from(openat(&parent, file_name, flags, Mode::empty())?)
    } else if kind.is_file() {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(openat(&parent, file_name, flags, Mode::RUSR | Mode::WUSR)?);
        io::copy(entry, &mut file)?;
        file
    } else {
        // Devices and the like are of no use outside, and nobody's to make here.
        return Ok(());
    };
    own(&parent, file_name.as_ref(), owner)?;
    // Programs that run with their owner's rights do so only where the owner came along.
    let mode = if owners {
        mode
    } else {
        mode & Mode::from_raw_mode(0o1777)
    };
    fchmod(&file, mode)?;
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(i64::try_from(modified).unwrap_or(i64::MAX), 0),
    };
    // A file system that has no such time has another.
    let _ = futimens(&file, &times);
    Ok(())
}

/// Opens the folder that `name` is in. No link is followed, so that none can lead out.
fn parent_of(root: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let parent = name
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let parent = parent.unwrap_or(Path::new("."));
    Ok(openat2(root, parent, flags, Mode::empty(), resolve)?)
}

fn own(parent: &OwnedFd, name: &Path, owner: Option<(u64, u64)>) -> io::Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    let number = |id: u64| u32::try_from(id).map_err(|_| io::ErrorKind::InvalidData);
    let (uid, gid) = (Uid::from_raw(number(uid)?), Gid::from_raw(number(gid)?));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn archive(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Set as it is, as the builder would refuse what is hostile.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            let is_link = kind.is_symlink() || kind.is_hard_link();
            if is_link {
                header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            }
            let data = if is_link { "" } else { content };
            header.set_size(data.len() as u64);
            header.set_mtime(1);
            header.set_cksum();
            builder.append(&header, data.as_bytes()).expect("append");
        }
        builder.into_inner().expect("archive")
    }

    #[test]
    fn hostile_archives_change_nothing_outside_the_target() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let outside = tempfile::tempdir().expect("folder");
        let secret = outside.path().join("secret");
        fs::write(&secret, "s").expect("secret");
        let target = outside.path().join("target");
        fs::create_dir(&target).expect("target");
        let out = outside.path().to_str().expect("path").to_owned();
        let attacks: [&[(&str, tar::EntryType, &str)]; 5] = [
            &[("../secret", Regular, "x")],
            &[("a", Symlink, &out), ("a/secret", Regular, "x")],
            &[("a", Symlink, ".."), ("a/secret", Regular, "x")],
            &[
                ("a", Directory, ""),
                ("a", Symlink, &out),
                ("a/secret", Regular, "x"),
            ],
            &[("a", Link, "../secret"), ("a", Regular, "x")],
        ];
        for attack in attacks {
            let tar = archive(attack);
            let _ = unpack(&mut &tar[..], &Naming::Into(target.clone()), false);
            assert_eq!(fs::read(&secret).expect("read"), b"s");
        }
        // An absolute name is one under the target.
        let tar = archive(&[("/etc/passwd", Regular, "x")]);
        assert!(unpack(&mut &tar[..], &Naming::Into(target.clone()), false).is_err());
        let tar = archive(&[("f", Regular, "x")]);
        unpack(&mut &tar[..], &Naming::Into(target.clone()), false).expect("unpack");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(target.join("f")).expect("stat").permissions(),
        );
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn link_when_the_target_is_a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().expect("folder");
        fs::write(dir.path().join("victim"), "v").expect("victim");
        std::os::unix::fs::symlink("victim", dir.path().join("f")).expect("link");
        let tar = archive(&[("f", tar::EntryType::Regular, "x")]);
        unpack(&mut &tar[..], &Naming::Into(dir.path().to_owned()), false).expect("unpack");
        assert_eq!(fs::read(dir.path().join("victim")).expect("read"), b"v");
        assert_eq!(fs::read(dir.path().join("f")).expect("read"), b"x");
    }
}
