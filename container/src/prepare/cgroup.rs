//! What a container has to do with its control group itself, where that is of version 1: it enters, and mounts what it sees
//! of it. Both are planned before the group is made.

use rustix::fs::CWD;
use rustix::mount::{MountFlags, OpenTreeFlags, open_tree};

use super::c_string;
use super::mounts::Read;
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::plan::{GroupTrees, Mount, Operation as O, Plan};
use crate::sys::MountAttributes;

/// Plans a filesystem with a directory for each hierarchy, in which the container's group is the topmost.
pub fn mount(mount: &Read, operations: &mut Vec<O>) -> Result<(), Error> {
    let target = c_string(&mount.field, &mount.destination)?;
    operations.push(O::Mount(Mount {
        source: c"cgroup".into(),
        kind: c"tmpfs".into(),
        target: target.clone(),
        flags: MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        data: c"mode=755,size=1m".into(),
        copy_up: false,
    }));
    operations.push(O::ShowGroups {
        target: mount.destination.clone(),
        groups: GroupTrees::default(),
    });
    operations.push(O::Attributes {
        target,
        attributes: MountAttributes {
            set: mount.options.set | mount.options.set_all,
            ..MountAttributes::default()
        },
        flags: libc::AT_RECURSIVE,
    });
    Ok(())
}

/// Puts the group into the plan, now that it is there.
pub(crate) fn place(plan: &mut Plan, group: &Cgroup) -> Result<(), Error> {
    for operation in &mut plan.operations {
        match operation {
            O::EnterGroups { tasks } => *tasks = group.entrance()?,
            O::ShowGroups { target, groups } => *groups = trees(group, target)?,
            _ => {}
        }
    }
    Ok(())
}

fn trees(group: &Cgroup, target: &str) -> Result<GroupTrees, Error> {
    let mut trees = GroupTrees::default();
    for shown in group.shown() {
        let place = |name: &str| c_string("mounts", &format!("{target}/{name}"));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, shown.path, flags).map_err(|e| {
            Error::step(
                "open the control group",
                shown.path.display().to_string(),
                e,
            )
        })?;
        trees.trees.push((tree, place(&shown.name)?));
        for link in &shown.links {
            trees
                .links
                .push((place(link)?, c_string("mounts", &shown.name)?));
        }
    }
    Ok(trees)
}
