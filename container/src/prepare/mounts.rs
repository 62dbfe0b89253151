//! The mounts of the configuration.

use std::os::fd::AsFd;

use rustix::fs::{CWD, FileType, fstat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::layout::Layout;
use super::options::{self, Options};
use super::{absolute, c_string};
use crate::cgroup::Version;
use crate::error::Error;
use crate::namespaces::Namespaces;
use crate::plan::{Missing, Mount as NewMount, MountKept, Operation as O, Place, Slot};
use crate::rootless;
use crate::spec::{Mount, NamespaceKind, Spec};
use crate::sys::{self, MountAttributes};

/// Mounts all that is to be mounted, in its order.
pub fn mount(
    spec: &Spec,
    namespaces: &Namespaces,
    version: Version,
    operations: &mut Vec<O>,
) -> Result<Layout, Error> {
    let mut layout = Layout::default();
    for (i, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{i}]");
        let destination = absolute(&format!("{field}.destination"), &mount.destination)?;
        if destination == "/" {
            let problem = "nothing can be mounted over the root filesystem";
            return Err(Error::invalid(format!("{field}.destination"), problem));
        }
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(Error::invalid(
                field,
                "mounts with mapped users are not supported",
            ));
        }
        let options = options::read(&mount.options)
            .map_err(|problem| Error::invalid(format!("{field}.options"), problem))?;
        let mount = Read {
            field,
            mount,
            destination,
            options,
        };
        layout.covered_by(&mount.destination);
        mount.make_room(&layout, operations)?;
        if mount.options.bind {
            mount.bind(&mut layout, operations)?;
        } else if version == Version::One && mount.mount.kind.as_deref() == Some("cgroup") {
            super::cgroup::mount(&mount, operations)?;
        } else if mount.is_hosts(namespaces) {
            mount.bind_hosts(&mut layout, operations)?;
        } else {
            mount.filesystem(&mut layout, operations)?;
        }
    }
    Ok(layout)
}

/// A mount, read.
pub struct Read<'a> {
    pub field: String,
    mount: &'a Mount,
    pub destination: String,
    pub options: Options,
}

impl Read<'_> {
    /// In a /dev that was just mounted there is nothing, which need not be found out by failing.
    fn make_room(&self, layout: &Layout, operations: &mut Vec<O>) -> Result<(), Error> {
        let name = self
            .destination
            .strip_prefix("/dev/")
            .filter(|name| layout.dev && !name.contains('/'));
        if let Some(name) = name.filter(|_| !self.options.bind) {
            let path = c_string(&self.field, name)?;
            operations.push(O::MakeDirectory {
                place: Place {
                    slot: Some(Slot::Dev),
                    path,
                },
            });
        }
        Ok(())
    }

    fn bind(&self, layout: &mut Layout, operations: &mut Vec<O>) -> Result<(), Error> {
        let field = |member: &str| format!("{}.{member}", self.field);
        let source = self
            .mount
            .source
            .as_deref()
            .filter(|source| source.starts_with('/'))
            .ok_or_else(|| {
                Error::invalid(
                    field("source"),
                    "a bind mount needs a source, as an absolute path",
                )
            })?;
        // Options of a filesystem are passed over, as mount(2) does: there is no new one to have them.
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if self.options.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let failed = |e| Error::step("open the source of a bind mount,", source, e);
        let tree = match open_tree(CWD, source, flags) {
            // What the host has mounted over a part of it is not uncovered in a user namespace.
            Err(Errno::INVAL) if !rootless::is_initial() => {
                open_tree(CWD, source, flags | OpenTreeFlags::AT_RECURSIVE)
            }
            tree => tree,
        };
        let tree = tree.map_err(failed)?;

        // Without a word about it, nothing that is mounted there later on either side is seen on the other.
        let propagation = self
            .options
            .propagation
            .map_or(libc::MS_PRIVATE, |p| u64::from(p.bits()) & !libc::MS_REC);
        let all = self.options.changes_of_all().unwrap_or_default();
        let top = self.options.changes().unwrap_or_default();
        let whole = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        let change = |flags, attributes: &MountAttributes| {
            sys::mount_setattr(tree.as_fd(), c"", flags, attributes).map_err(failed)
        };
        if self.options.recursive && top != MountAttributes::default() {
            change(whole, &MountAttributes { propagation, ..all })?;
            change(libc::AT_EMPTY_PATH, &top)?;
        } else {
            let (set, clear) = (
                all.set | top.set,
                (all.clear | top.clear) & !(top.set & !libc::MOUNT_ATTR__ATIME),
            );
            change(
                whole,
                &MountAttributes {
                    set,
                    clear,
                    propagation,
                    user_namespace: 0,
                },
            )?;
        }

        let found = fstat(&tree).map_err(failed)?;
        let missing = match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => Missing::Directory,
            _ => Missing::File,
        };
        if self.options.copy_up && missing == Missing::File {
            let problem = "tmpcopyup is for directories only";
            return Err(Error::invalid(field("options"), problem));
        }
        layout.foreign_dev |= self.destination == "/dev";
        let target = c_string(&self.field, &self.destination)?;
        operations.push(O::Attach {
            tree,
            target,
            missing,
            source: source.to_owned(),
            copy_up: self.options.copy_up,
        });
        Ok(())
    }

    /// A sysfs shows a network, and can be mounted only by whose that is: in a user namespace that shares the host's it is
    /// the host's own.
    fn is_hosts(&self, namespaces: &Namespaces) -> bool {
        self.mount.kind.as_deref() == Some("sysfs")
            && !namespaces.has(NamespaceKind::Network)
            && (namespaces.is_new(NamespaceKind::User) || !rootless::is_initial())
    }

    fn bind_hosts(&self, layout: &mut Layout, operations: &mut Vec<O>) -> Result<(), Error> {
        let mount = Mount {
            source: Some("/sys".into()),
            ..self.mount.clone()
        };
        let options = Options {
            bind: true,
            recursive: true,
            set: 0,
            set_all: self.options.set | self.options.set_all,
            ..self.options.clone()
        };
        let read = Read {
            field: self.field.clone(),
            mount: &mount,
            destination: self.destination.clone(),
            options,
        };
        read.bind(layout, operations)
    }

    fn filesystem(&self, layout: &mut Layout, operations: &mut Vec<O>) -> Result<(), Error> {
        let field = |member: &str| format!("{}.{member}", self.field);
        let kind = self
            .mount
            .kind
            .as_deref()
            .filter(|kind| !kind.is_empty() && *kind != "none");
        let kind = match kind {
            Some("bind") => {
                return Err(Error::invalid(field("options"), "bind or rbind is missing"));
            }
            // A group of version 2, or the whole hierarchy where there is none.
            Some("cgroup") => "cgroup2",
            Some(kind) => kind,
            None => {
                return Err(Error::invalid(
                    field("type"),
                    "it has no type and is no bind mount",
                ));
            }
        };
        if self.options.copy_up && kind != "tmpfs" {
            return Err(Error::invalid(
                field("options"),
                "tmpcopyup is for tmpfs and bind mounts only",
            ));
        }
        let slot = match (kind, self.destination.as_str()) {
            ("proc", "/proc") => Some(Slot::Proc),
            ("sysfs", "/sys") => Some(Slot::Sys),
            ("tmpfs", "/dev") if !self.options.copy_up => Some(Slot::Dev),
            _ => None,
        };
        match slot {
            Some(slot) => self.kept(kind, slot, layout, operations)?,
            None => self.mounted(kind, operations)?,
        }
        if let Some(flags) = self.options.propagation {
            let target = c_string(&self.field, &self.destination)?;
            operations.push(O::Propagate { flags, target });
        }
        Ok(())
    }

    fn kept(
        &self,
        kind: &str,
        slot: Slot,
        layout: &mut Layout,
        operations: &mut Vec<O>,
    ) -> Result<(), Error> {
        let text = |text: &str| c_string(&self.field, text);
        let mut options = Vec::new();
        for (key, value) in &self.options.own {
            options.push((text(key)?, value.as_deref().map(text).transpose()?));
        }
        let mut set = self.options.set | self.options.set_all;
        if slot == Slot::Dev && set & libc::MOUNT_ATTR_RDONLY != 0 {
            set &= !libc::MOUNT_ATTR_RDONLY;
            let attributes = MountAttributes {
                set: libc::MOUNT_ATTR_RDONLY,
                ..MountAttributes::default()
            };
            layout
                .late_read_only
                .push((text(&self.destination)?, attributes));
        }
        let attributes = MountAttrFlags::from_bits_retain(set as u32);
        let (kind, target) = (text(kind)?, text(&self.destination)?);
        let open = |mount: &O| matches!(mount, O::Open(mount) if mount.slot == slot);
        if operations.iter().any(open) {
            let problem = format!(
                "a second {} on {}",
                self.mount.kind.as_deref().unwrap_or_default(),
                self.destination
            );
            return Err(Error::invalid(&*self.field, problem));
        }
        let source = self.mount.source.as_deref();
        let mount = MountKept {
            kind,
            source: source.map(text).transpose()?,
            options,
            attributes,
            target: target.clone(),
            slot,
        };
        operations.push(O::Open(mount));
        operations.push(O::AttachKept { slot, target });
        match slot {
            Slot::Proc => layout.proc = true,
            Slot::Sys => layout.sys = true,
            Slot::Dev => layout.dev = true,
        }
        Ok(())
    }

    fn mounted(&self, kind: &str, operations: &mut Vec<O>) -> Result<(), Error> {
        let text = |text: &str| c_string(&self.field, text);
        let mut options = self.options.clone();
        if kind == "devpts" {
            // The group of terminals may be none here.
            let known = |group: &str| group.parse().map_or(true, rootless::has_group);
            options
                .own
                .retain(|(key, value)| key != "gid" || value.as_deref().is_none_or(known));
        }
        let data = options.data();
        if data.len() >= 4096 {
            return Err(Error::invalid(
                format!("{}.options", self.field),
                "they are longer than a page",
            ));
        }
        operations.push(O::Mount(NewMount {
            source: text(self.mount.source.as_deref().unwrap_or(kind))?,
            kind: text(kind)?,
            target: text(&self.destination)?,
            flags: self.options.flags(),
            data: text(&data)?,
            copy_up: self.options.copy_up,
        }));
        Ok(())
    }
}
