//! The options of a mount, as mount(8) and the runtime specification name them (config.md#linux-mount-options).

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::sys::MountAttributes;

/// Options, sorted by who understands them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`.
    pub recursive: bool,
    /// What the mount allows (`MOUNT_ATTR_*`).
    pub set: u64,
    pub clear: u64,
    /// What it and all mounts below allow (`rro` and the like).
    pub set_all: u64,
    pub clear_all: u64,
    /// How it spreads.
    pub propagation: Option<MountPropagationFlags>,
    /// Flags of the filesystem itself.
    pub sync: bool,
    pub dirsync: bool,
    pub mandatory_locks: bool,
    pub iversion: bool,
    pub lazytime: bool,
    /// `tmpcopyup`
    pub copy_up: bool,
    /// The filesystem's own options, with their values.
    pub own: Vec<(String, Option<String>)>,
}

const ATIME: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;

/// Options that are bits of the mount: name, bits to set, bits to clear.
const ATTRIBUTES: [(&str, u64, u64); 16] = [
    ("ro", libc::MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, libc::MOUNT_ATTR_RDONLY),
    ("nosuid", libc::MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, libc::MOUNT_ATTR_NOSUID),
    ("nodev", libc::MOUNT_ATTR_NODEV, 0),
    ("dev", 0, libc::MOUNT_ATTR_NODEV),
    ("noexec", libc::MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, libc::MOUNT_ATTR_NOEXEC),
    ("nodiratime", libc::MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, libc::MOUNT_ATTR_NODIRATIME),
    ("nosymfollow", libc::MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, libc::MOUNT_ATTR_NOSYMFOLLOW),
    ("noatime", NOATIME, ATIME),
    ("atime", 0, ATIME),
    ("relatime", 0, ATIME),
    ("strictatime", STRICTATIME, ATIME),
];

/// The names of options that are not a filesystem's own. Those of a mount mean all that is mounted below with an r before.
pub fn names() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().map(|(name, ..)| *name);
    let spreads = ["private", "slave", "shared", "unbindable"];
    let whole = attributes.clone().chain(spreads);
    let whole = whole.map(|name| format!("r{name}"));
    let others = [
        "async",
        "bind",
        "defaults",
        "dirsync",
        "iversion",
        "lazytime",
        "loud",
        "mand",
        "noiversion",
        "nolazytime",
        "nomand",
        "norelatime",
        "nostrictatime",
        "rbind",
        "silent",
        "sync",
        "tmpcopyup",
    ];
    let plain = attributes.chain(spreads).chain(others).map(str::to_owned);
    let mut all: Vec<String> = plain.chain(whole).collect();
    all.sort();
    all
}

/// Reads options. The later of two that contradict each other holds.
pub fn read(options: &[String]) -> Result<Options, String> {
    let mut read = Options::default();
    for option in options {
        read.add(option)?;
    }
    Ok(read)
}

impl Options {
    fn add(&mut self, option: &str) -> Result<(), String> {
        if self.add_attribute(option) {
            return Ok(());
        }
        if let Some(propagation) = propagation(option) {
            self.propagation = Some(propagation);
            return Ok(());
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "tmpcopyup" => self.copy_up = true,
            "sync" => self.sync = true,
            "async" => self.sync = false,
            "dirsync" => self.dirsync = true,
            "mand" => self.mandatory_locks = true,
            "nomand" => self.mandatory_locks = false,
            "iversion" => self.iversion = true,
            "noiversion" => self.iversion = false,
            "lazytime" => self.lazytime = true,
            "nolazytime" => self.lazytime = false,
            "norelatime" | "nostrictatime" | "defaults" | "silent" | "loud" | "" => {}
            "remount" => return Err("nothing of a new container can be remounted".into()),
            "idmap" | "ridmap" => return Err("mounts with mapped users are not supported".into()),
            own => {
                let (key, value) = match own.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (own, None),
                };
                if key.is_empty() || own.contains([',', '\0']) {
                    return Err(format!("{option:?} is no option"));
                }
                self.own.push((key.to_owned(), value));
            }
        }
        Ok(())
    }

    fn add_attribute(&mut self, option: &str) -> bool {
        let find = |name: &str| ATTRIBUTES.into_iter().find(|(known, ..)| *known == name);
        if let Some((_, set, clear)) = find(option) {
            self.set = self.set & !clear | set;
            self.clear = self.clear & !set | clear;
            return true;
        }
        // An r before: the whole tree. `ro` and `relatime` are found above, and `rro` and `rrelatime` here.
        let Some((_, set, clear)) = option.strip_prefix('r').and_then(find) else {
            return false;
        };
        self.set_all = self.set_all & !clear | set;
        self.clear_all = self.clear_all & !set | clear;
        true
    }

    /// What mount(2) takes.
    pub fn flags(&self) -> MountFlags {
        const FLAGS: [(u64, MountFlags); 6] = [
            (libc::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
            (libc::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
            (libc::MOUNT_ATTR_NODEV, MountFlags::NODEV),
            (libc::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
            (libc::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
            (
                libc::MOUNT_ATTR_NOSYMFOLLOW,
                MountFlags::from_bits_retain(libc::MS_NOSYMFOLLOW as u32),
            ),
        ];
        let set = self.set | self.set_all;
        let mut flags = MountFlags::empty();
        for (attribute, flag) in FLAGS {
            flags.set(flag, set & attribute != 0);
        }
        flags.set(MountFlags::NOATIME, set & ATIME == NOATIME);
        flags.set(MountFlags::STRICTATIME, set & ATIME == STRICTATIME);
        flags.set(MountFlags::SYNCHRONOUS, self.sync);
        flags.set(MountFlags::DIRSYNC, self.dirsync);
        flags.set(
            MountFlags::PERMIT_MANDATORY_FILE_LOCKING,
            self.mandatory_locks,
        );
        flags.set(
            MountFlags::from_bits_retain(libc::MS_I_VERSION as u32),
            self.iversion,
        );
        flags.set(MountFlags::LAZYTIME, self.lazytime);
        flags
    }

    /// The filesystem's own options as mount(2) takes them.
    pub fn data(&self) -> String {
        let option = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("{key}={value}"),
            None => key.clone(),
        };
        self.own.iter().map(option).collect::<Vec<_>>().join(",")
    }

    /// What is to be changed of a copied mount; none: nothing.
    pub fn changes(&self) -> Option<MountAttributes> {
        let atime = |set: u64| if set & ATIME != 0 { ATIME } else { 0 };
        let clear = self.clear & !self.set | atime(self.set) | self.clear & ATIME;
        let changes = MountAttributes {
            set: self.set,
            clear,
            ..MountAttributes::default()
        };
        (self.set | clear != 0).then_some(changes)
    }

    /// What is to be changed of all mounts of a copied tree; none: nothing.
    pub fn changes_of_all(&self) -> Option<MountAttributes> {
        let atime = if self.set_all & ATIME != 0 { ATIME } else { 0 };
        let changes = MountAttributes {
            set: self.set_all,
            clear: self.clear_all | atime,
            ..MountAttributes::default()
        };
        (changes.set | changes.clear != 0).then_some(changes)
    }
}

/// How a mount spreads, by name; an r before means the whole tree.
pub fn propagation(name: &str) -> Option<MountPropagationFlags> {
    use MountPropagationFlags as M;
    let kind = |name| match name {
        "private" => Some(M::PRIVATE),
        "slave" => Some(M::DOWNSTREAM),
        "shared" => Some(M::SHARED),
        "unbindable" => Some(M::UNBINDABLE),
        _ => None,
    };
    kind(name).or_else(|| kind(name.strip_prefix('r')?).map(|kind| kind | M::REC))
}
