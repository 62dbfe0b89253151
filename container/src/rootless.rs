//! Containers of who is not root: in a user namespace, in which that user is.
//!
//! It is the process that makes containers which enters the namespace, before it makes the first and while it has one
//! thread: [`enter`]. From then on it has all capabilities over what the namespace owns, so that containers are made there as
//! anywhere. What the kernel reserves to the first user namespace is done in another way: device files are the host's own,
//! bind-mounted, and so is /sys where the network is shared. Root filesystems are directories, since no filesystem of a block
//! device can be mounted.
//!
//! More users than one there can be only with the ranges of /etc/subuid and /etc/subgid, which newuidmap(1) and
//! newgidmap(1) map for whom they are.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{getegid, geteuid};

use crate::child;
use crate::error::Error;
use crate::spec::IdMapping;
use crate::sys;

/// Users and groups that a user namespace has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Users; the first is this one, as root.
    pub users: Vec<IdMapping>,
    /// Groups likewise.
    pub groups: Vec<IdMapping>,
}

impl Ids {
    /// Those that the user of this process can have: itself as root, and, as 1 and up, the ranges that were given to it, if
    /// there are programs to map them.
    pub fn of_this_user() -> Ids {
        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let name = name_of(&read("/etc/passwd"), user);
        let ranges = |path: &str| ranges(&read(path), user, name.as_deref());
        let (users, groups) = (ranges("/etc/subuid"), ranges("/etc/subgid"));
        // Without groups users are of no use, and the other way round.
        match users.is_empty() || groups.is_empty() || !can_map() {
            true => Ids {
                users: mappings(user, &[]),
                groups: mappings(group, &[]),
            },
            false => Ids {
                users: mappings(user, &users),
                groups: mappings(group, &groups),
            },
        }
    }

    /// Whether root is the only user.
    pub fn is_single(&self) -> bool {
        self.users.len() <= 1 && self.groups.len() <= 1
    }
}

fn can_map() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|d| d.join(program).is_file());
    found("newuidmap") && found("newgidmap")
}

/// The name of a user in passwd(5).
fn name_of(passwd: &str, user: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == user && !name.is_empty()).then(|| name.to_owned())
    })
}

/// The ranges of subuid(5) or subgid(5) that are a user's, by its name or number: first and count.
fn ranges(text: &str, user: u32, name: Option<&str>) -> Vec<(u32, u32)> {
    let number = user.to_string();
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let whose = fields.next()?;
        let first: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        let is_its = whose == number || Some(whose) == name;
        let fits = count > 0 && first.checked_add(count).is_some();
        (is_its && fits).then_some((first, count))
    };
    text.lines().filter_map(range).collect()
}

/// Root is this one, and the ranges follow.
fn mappings(own: u32, ranges: &[(u32, u32)]) -> Vec<IdMapping> {
    /// What the kernel takes.
    const MOST: usize = 340;
    let mut next: u32 = 1;
    let mut all = vec![IdMapping {
        container_id: 0,
        host_id: own,
        size: 1,
    }];
    for &(first, count) in ranges.iter().take(MOST - 1) {
        let Some(end) = next.checked_add(count) else {
            break;
        };
        all.push(IdMapping {
            container_id: next,
            host_id: first,
            size: count,
        });
        next = end;
    }
    all
}

/// Whether this process is in the first user namespace, in which nothing has to be done otherwise.
pub fn is_initial() -> bool {
    /// `PROC_USER_INIT_INO`
    const FIRST: u64 = 0xefff_fffd;
    static INITIAL: OnceLock<bool> = OnceLock::new();
    *INITIAL.get_or_init(|| {
        let namespace = rustix::fs::stat("/proc/self/ns/user");
        namespace.is_ok_and(|found| found.st_ino == FIRST)
    })
}

/// Moves this process into a new user namespace, in which it is root, and a new mount namespace. It must have one thread,
/// and ask nobody before whether it [`is_initial`]. Programs that it executes, and all it makes from now on, are in there.
pub fn enter(ids: &Ids) -> Result<(), Error> {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return Err(Error::Threads { threads });
    }
    let mapper = match ids.is_single() {
        true => None,
        false => Some(Mapper::start(ids)?),
    };
    let failed = |e: rustix::io::Errno| Error::UserNamespace { source: e.into() };
    sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).map_err(failed)?;
    match mapper {
        Some(mapper) => mapper.map()?,
        None => {
            // Who could leave groups could read what they are kept from.
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", &lines(&ids.users))?;
            write("/proc/self/gid_map", &lines(&ids.groups))?;
        }
    }
    child::become_root().map_err(failed)
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|e| Error::step("write", path, e))
}

/// Mappings as the kernel reads them.
pub(crate) fn lines(mappings: &[IdMapping]) -> String {
    let line = |m: &IdMapping| format!("{} {} {}\n", m.container_id, m.host_id, m.size);
    mappings.iter().map(line).collect()
}

/// A process that stays outside, and has the namespace mapped when there is one.
struct Mapper {
    stream: UnixStream,
}

impl Mapper {
    fn start(ids: &Ids) -> Result<Mapper, Error> {
        let failed = |e: std::io::Error| Error::step("map users into", "the user namespace", e);
        let (stream, theirs) = UnixStream::pair().map_err(failed)?;
        let of = std::process::id();
        // There is no other thread, so that the child may do everything.
        match sys::fork().map_err(|e| failed(e.into()))? {
            Some(_) => Ok(Mapper { stream }),
            None => {
                drop(stream);
                serve(theirs, of, ids);
                sys::exit(0)
            }
        }
    }

    /// Has this process's namespace mapped.
    fn map(mut self) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::step("map users into", "the user namespace", e);
        self.stream.write_all(b"!").map_err(failed)?;
        self.stream.shutdown(Shutdown::Write).map_err(failed)?;
        let mut problem = String::new();
        self.stream.read_to_string(&mut problem).map_err(failed)?;
        // It ends now, and nobody else waits for it.
        let _ = rustix::process::wait(rustix::process::WaitOptions::empty());
        match problem.as_str() {
            "" => Ok(()),
            problem => Err(failed(std::io::Error::other(problem.to_owned()))),
        }
    }
}

/// Answers with what went wrong, or nothing.
fn serve(mut stream: UnixStream, of: u32, ids: &Ids) {
    let mut word = [0];
    if !matches!(stream.read(&mut word), Ok(1)) {
        return;
    }
    for (program, mappings) in [("newuidmap", &ids.users), ("newgidmap", &ids.groups)] {
        let mut command = Command::new(program);
        command.arg(of.to_string());
        for word in lines(mappings).split_ascii_whitespace() {
            command.arg(word);
        }
        let problem = match command.output() {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("{program}: {error}"),
        };
        let problem = match problem.is_empty() {
            true => format!("{program} failed"),
            false => problem,
        };
        let _ = stream.write_all(problem.as_bytes());
        return;
    }
}

/// Whether groups can be left here: not where a user mapped its own alone.
pub(crate) fn may_set_groups() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        is_initial()
            || fs::read_to_string("/proc/self/setgroups").map_or(true, |may| may.trim() != "deny")
    })
}

/// Whether there is such a group here.
pub(crate) fn has_group(group: u32) -> bool {
    is_initial() || {
        let map = fs::read_to_string(Path::new("/proc/self/gid_map")).unwrap_or_default();
        maps(&map, group)
    }
}

fn maps(map: &str, number: u32) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (words.next(), words.next(), words.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_when_by_name_or_number_then_found_and_broken_lines_are_not() {
        let text = "alice:100000:65536\nbob:200000:65536\n1000:300000:10\nalice:x:1\nalice:4294967295:2\n\nalice:5:0\n";
        let alice = ranges(text, 1000, Some("alice"));
        assert_eq!(alice, [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, 1, None), []);
    }

    #[test]
    fn mappings_when_made_then_root_is_the_user_and_the_ranges_follow() {
        let all = mappings(1000, &[(100_000, 65_536), (300_000, 10)]);
        assert_eq!(lines(&all), "0 1000 1\n1 100000 65536\n65537 300000 10\n");
        assert_eq!(lines(&mappings(7, &[])), "0 7 1\n");
        assert_eq!(mappings(7, &[(1, u32::MAX - 1), (1, 5)]).len(), 2);
    }

    #[test]
    fn name_when_in_passwd_then_found() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nalice:x:1000:1000::/:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(name_of(passwd, 1), None);
    }

    #[test]
    fn groups_when_mapped_then_told() {
        let map = "         0       1000          1\n         1     100000      65536\nx\n";
        assert!(maps(map, 0) && maps(map, 5) && maps(map, 65_536));
        assert!(!maps(map, 65_537) && !maps("", 0));
    }
}
