//! Users and groups by name, from the `/etc/passwd` and `/etc/group` of an image: files that strangers wrote. They are read in
//! the child, inside the root, so that no link leads out; and line by line in a buffer of the plan's, since the child
//! allocates nothing.
//!
//! What a name means is what it means to Docker: a number is looked up too, for its group and home, but needs no entry; a
//! group that is named is the only one; otherwise the user's own is, and those that list the user.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, openat2, stat};
use rustix::io::{Errno, read};

/// The most additional groups a user can have here; the kernel's limit is 65536.
pub const MAX_GROUPS: usize = 1024;
/// A longer line is passed over.
const MAX_LINE: usize = 16 << 10;
/// No file is read further than this.
const MAX_FILE: usize = 16 << 20;

/// Who a process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub user: Name,
    pub group: Option<Name>,
    /// Look for groups that list the user.
    pub listed_groups: bool,
    /// The user must be looked up for more than the home directory.
    pub must_look: bool,
}

/// A name, or a number that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Name {
    Number(u32),
    Text(Box<[u8]>),
}

impl Wanted {
    /// By numbers, as the specification has it.
    pub fn numbers(uid: u32, gid: u32) -> Wanted {
        Wanted {
            user: Name::Number(uid),
            group: Some(Name::Number(gid)),
            listed_groups: false,
            must_look: false,
        }
    }

    /// From `user` or `user:group`. None: one of them is empty or cannot be a name.
    pub fn parse(text: &str) -> Option<Wanted> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Name::parse(group)?)),
            None => (text, None),
        };
        let user = Name::parse(user)?;
        Some(Wanted {
            listed_groups: group.is_none(),
            user,
            group,
            must_look: true,
        })
    }
}

impl Name {
    fn parse(text: &str) -> Option<Name> {
        if text.is_empty()
            || text.len() > 256
            || text.bytes().any(|b| b == b':' || b == b',' || b < b' ')
        {
            return None;
        }
        Some(
            number(text.as_bytes())
                .map_or_else(|| Name::Text(text.as_bytes().into()), Name::Number),
        )
    }

    fn is(&self, name: &[u8], id: u32) -> bool {
        match self {
            Name::Number(number) => *number == id,
            Name::Text(text) => **text == *name,
        }
    }
}

/// Who a process is: what was found.
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    groups: [u32; MAX_GROUPS],
    count: usize,
}

impl Default for Ids {
    fn default() -> Ids {
        Ids {
            uid: 0,
            gid: 0,
            groups: [0; MAX_GROUPS],
            count: 0,
        }
    }
}

impl Ids {
    pub fn groups(&self) -> &[u32] {
        &self.groups[..self.count]
    }

    /// Adds a group, whether or not it is there.
    pub fn push(&mut self, group: u32) -> Result<(), Errno> {
        *self.groups.get_mut(self.count).ok_or(Errno::TOOBIG)? = group;
        self.count += 1;
        Ok(())
    }

    /// Adds a group unless it is there.
    pub fn add(&mut self, group: u32) -> Result<(), Errno> {
        if self.groups().contains(&group) {
            return Ok(());
        }
        self.push(group)
    }
}

/// An entry of a user database.
#[derive(Debug, PartialEq, Eq)]
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// An entry of a group database.
struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

/// Looks for who is wanted in the current root. `home` is told the user's home directory if there is one.
pub fn look_up(wanted: &Wanted, ids: &mut Ids, mut home: impl FnMut(&[u8])) -> Result<(), Errno> {
    let mut name = [0; 256];
    let mut name_length = None;
    let mut found = None;
    each_line(c"/etc/passwd", |line| {
        let Some(user) = parse_user(line).filter(|user| wanted.user.is(user.name, user.uid)) else {
            return true;
        };
        found = Some((user.uid, user.gid));
        if let Some(room) = name.get_mut(..user.name.len()) {
            room.copy_from_slice(user.name);
            name_length = Some(user.name.len());
        }
        home(user.home);
        false
    })?;
    let user_gid;
    (ids.uid, user_gid) = match (found, &wanted.user) {
        (Some(found), _) => found,
        (None, Name::Number(uid)) => (*uid, 0),
        (None, Name::Text(_)) => return Err(Errno::NOENT),
    };
    ids.gid = match &wanted.group {
        None => user_gid,
        Some(Name::Number(gid)) => *gid,
        Some(group @ Name::Text(_)) => {
            let mut gid = None;
            each_line(c"/etc/group", |line| {
                gid = parse_group(line)
                    .filter(|g| group.is(g.name, g.gid))
                    .map(|g| g.gid);
                gid.is_none()
            })?;
            gid.ok_or(Errno::NOENT)?
        }
    };
    let listed = name_length
        .and_then(|n| name.get(..n))
        .filter(|_| wanted.listed_groups);
    if let Some(name) = listed {
        let mut full = Ok(());
        each_line(c"/etc/group", |line| {
            if let Some(group) = parse_group(line)
                && group
                    .members
                    .split(|&b| b == b',')
                    .any(|member| member == name)
            {
                full = ids.add(group.gid);
            }
            full.is_ok()
        })?;
        full?;
    }
    Ok(())
}

fn parse_user(line: &[u8]) -> Option<User<'_>> {
    let mut fields = line.split(|&b| b == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default();
    Some(User {
        name,
        uid,
        gid,
        home,
    })
}

fn parse_group(line: &[u8]) -> Option<Group<'_>> {
    let mut fields = line.split(|&b| b == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    let members = fields.next().unwrap_or_default();
    Some(Group { name, gid, members })
}

/// Digits only; the last number means "no change" to the kernel and is nobody's.
fn number(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|&n| n != u32::MAX)
}

/// Hands over each line of a file of the current root until told to stop. A file that is missing has none.
fn each_line(path: &std::ffi::CStr, mut line: impl FnMut(&[u8]) -> bool) -> Result<(), Errno> {
    let Some(file) = open_regular(path)? else {
        return Ok(());
    };
    let mut lines = Lines::new();
    let mut total = 0;
    loop {
        let read = match read(&file, lines.room()) {
            Err(Errno::INTR) => continue,
            read => read?,
        };
        total += read;
        if total > MAX_FILE {
            return Err(Errno::FBIG);
        }
        if !lines.add(read, &mut line) || read == 0 {
            return Ok(());
        }
    }
}

fn open_regular(path: &std::ffi::CStr) -> Result<Option<OwnedFd>, Errno> {
    // Looked at before it is opened: to open a device can do things. Who swaps it then is in the container already, and could
    // open it himself.
    match stat(path).map(|found| FileType::from_raw_mode(found.st_mode)) {
        Ok(FileType::RegularFile) => {}
        Ok(_) => return Err(Errno::INVAL),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error),
    }
    // Not blocking, lest it is a FIFO by now; and no magic links of /proc, which lead anywhere.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, path, flags, Mode::empty(), inside).map(Some)
}

/// Splits what is read into lines.
struct Lines {
    buffer: [u8; MAX_LINE],
    /// How much of the buffer is filled, with the beginning of a line.
    filled: usize,
    /// The line that is being read is too long, and passed over.
    skipping: bool,
}

impl Lines {
    fn new() -> Lines {
        Lines {
            buffer: [0; MAX_LINE],
            filled: 0,
            skipping: false,
        }
    }

    /// Where to read to; never empty.
    fn room(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() {
            self.filled = 0;
            self.skipping = true;
        }
        &mut self.buffer[self.filled..]
    }

    /// Takes `count` bytes that were read to the room; none are the end of the file. Says whether to go on.
    fn add(&mut self, count: usize, line: &mut impl FnMut(&[u8]) -> bool) -> bool {
        if count == 0 {
            return self.filled > 0 && !self.skipping && line(&self.buffer[..self.filled]);
        }
        let end = (self.filled + count).min(self.buffer.len());
        let mut start = 0;
        while let Some(length) = self.buffer[start..end].iter().position(|&b| b == b'\n') {
            let whole = &self.buffer[start..start + length];
            if !std::mem::take(&mut self.skipping) && !line(whole) {
                return false;
            }
            start += length + 1;
        }
        self.buffer.copy_within(start..end, 0);
        self.filled = end - start;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &[u8], chunk: usize) -> Vec<Vec<u8>> {
        let (mut lines, mut out, mut rest) = (Lines::new(), Vec::new(), text);
        loop {
            let room = lines.room();
            let n = rest.len().min(chunk).min(room.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            let more = lines.add(n, &mut |line: &[u8]| {
                out.push(line.to_vec());
                true
            });
            if n == 0 || !more {
                return out;
            }
        }
    }

    #[test]
    fn line_when_too_long_then_passed_over_alone() {
        let mut text = b"a\n".to_vec();
        text.extend(vec![b'x'; 3 * MAX_LINE + 5]);
        text.extend(b"\nb\n");
        assert_eq!(split(&text, 1000), [b"a".to_vec(), b"b".to_vec()]);
    }

    #[test]
    fn entries_when_parsed_then_fields_or_nothing() {
        let user = parse_user(b"www-data:x:33:34:www-data:/var/www:/usr/sbin/nologin");
        let expected = User {
            name: b"www-data",
            uid: 33,
            gid: 34,
            home: b"/var/www",
        };
        assert_eq!(user, Some(expected));
        for broken in [
            "",
            ":x:0:0::/:",
            "a:x:0",
            "a:x:-1:0::/:",
            "a:x:4294967295:0::",
            "a:x: 1:0::",
            "a:x:1e3:0::",
        ] {
            assert_eq!(parse_user(broken.as_bytes()), None, "{broken}");
        }
        let group = parse_group(b"adm:x:4:syslog,www-data").map(|g| (g.gid, g.members));
        assert_eq!(group, Some((4, &b"syslog,www-data"[..])));
    }

    #[test]
    fn wanted_when_parsed_then_names_and_numbers() {
        let wanted = |text| Wanted::parse(text).map(|w| (w.user, w.group));
        assert_eq!(wanted("1000"), Some((Name::Number(1000), None)));
        let adm = Name::Text(b"adm"[..].into());
        assert_eq!(wanted("7:adm"), Some((Name::Number(7), Some(adm))));
        for broken in ["", ":", "a:", ":a", "a:b:c", "a\nb", "a,b"] {
            assert_eq!(Wanted::parse(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn lines_when_read_in_any_chunks_then_the_same(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            chunk in 1..300usize,
        ) {
            let mut expected: Vec<Vec<u8>> = text.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
            if expected.last().is_some_and(Vec::is_empty) {
                expected.pop();
            }
            prop_assert_eq!(split(&text, chunk), expected);
        }

        #[test]
        fn any_entry_when_parsed_then_no_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_user(&line);
            parse_group(&line);
        }
    }
}
