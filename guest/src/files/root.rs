//! A container's root, in which the kernel resolves paths as if it were ours.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::process::Pid;

/// See the module.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// What is resolved stays in the root, through whatever links, and a magic link of `/proc`, which leads
/// anywhere, leads nowhere.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    /// The root of a process, which must not have been reaped.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Self::at(&format!("/proc/{}/root", pid.as_raw_nonzero()))
    }

    /// A folder as a root.
    pub fn at(path: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(openat(CWD, path, flags, Mode::empty())?))
    }

    /// The folder at `path`, through links.
    pub fn folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// What is at `path`; if that is a link, the link.
    pub fn place(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open(path, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn open(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        loop {
            match openat2(&self.0, path, flags, Mode::empty(), INSIDE) {
                // Something was renamed meanwhile, and the kernel is not sure: openat2(2).
                Err(Errno::AGAIN) => std::thread::yield_now(),
                result => return Ok(result?),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn path_when_it_leads_out_of_the_root_then_does_not() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path();
        std::fs::create_dir_all(path.join("root/etc")).expect("mkdir");
        std::fs::create_dir(path.join("secret")).expect("mkdir");
        symlink("/etc", path.join("root/absolute")).expect("symlink");
        symlink("../../../../etc", path.join("root/upwards")).expect("symlink");
        symlink("../secret", path.join("root/sibling")).expect("symlink");
        symlink("/proc/self/root", path.join("root/magic")).expect("symlink");
        let root = Root::at(path.join("root").to_str().expect("UTF-8")).expect("root");
        let inode = |fd: OwnedFd| rustix::fs::fstat(fd).expect("stat").st_ino;
        let etc = inode(root.folder(b"/etc").expect("etc"));
        for same in [
            &b"absolute"[..],
            b"/upwards",
            b"/../../etc",
            b"etc/../absolute",
        ] {
            assert_eq!(inode(root.folder(same).expect("inside")), etc);
        }
        for outside in [&b"/sibling"[..], b"/../secret", b"/magic"] {
            assert!(root.folder(outside).is_err());
        }
        let link = rustix::fs::fstat(root.place(b"/absolute").expect("link")).expect("stat");
        assert_eq!(link.st_mode & libc::S_IFMT, libc::S_IFLNK);
    }
}
