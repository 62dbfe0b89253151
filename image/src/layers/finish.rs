//! The merged tree as the writer wants it: directories with sorted entries, inodes with link counts.

use super::error::Shown;
use super::links::Slot;
use super::tree::{Kind, Node, ROOT, Tree};
use crate::erofs::{Attributes, Child, Directories, Inode, Time};

/// The tree that is left when all layers are merged.
pub struct Merged<'t> {
    tree: &'t Tree,
    slots: &'t [Slot],
    /// Nodes of the directories, in the order of their numbers.
    directories: Vec<u32>,
    /// Numbers of directories, by node.
    numbers: Vec<u32>,
    /// Nodes that there are, sorted by directory and name; and where each directory's begin.
    entries: Vec<u32>,
    starts: Vec<u32>,
    /// For directories that no layer has an entry for.
    implied: Attributes,
}

const GONE: u32 = u32::MAX;

impl<'t> Merged<'t> {
    /// Picks from a tree what is in the image.
    pub fn new(tree: &'t Tree, slots: &'t [Slot]) -> Self {
        let mut numbers = vec![GONE; tree.nodes().len()];
        let mut directories = Vec::new();
        let mut entries = Vec::new();
        for (index, node) in (0..).zip(tree.nodes()) {
            // A directory precedes what is in it.
            if index != ROOT && numbers[node.parent as usize] == GONE {
                continue;
            }
            match node.kind {
                Kind::Directory(directory) if tree.directory(directory).real => {
                    numbers[index as usize] = directories.len() as u32;
                    directories.push(index);
                }
                Kind::Inode(_) => {}
                _ => continue,
            }
            if index != ROOT {
                entries.push(index);
            }
        }
        let key = |index: &u32| {
            let node = tree.node(*index);
            (numbers[node.parent as usize], tree.name(node))
        };
        entries.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        let mut starts = Vec::with_capacity(directories.len() + 1);
        for (position, index) in (0_u32..).zip(&entries) {
            let number = numbers[tree.node(*index).parent as usize] as usize;
            starts.resize(starts.len().max(number + 1), position);
        }
        starts.resize(directories.len() + 1, entries.len() as u32);
        let implied = Attributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: crate::erofs::Xattrs::default(),
        };
        Self {
            tree,
            slots,
            directories,
            numbers,
            entries,
            starts,
            implied,
        }
    }

    /// Inodes and the number of their names; or a path that is linked to and that no layer has.
    pub fn links(&self) -> Result<Vec<(Inode, u32)>, Shown> {
        let mut counts = vec![0_u32; self.slots.len()];
        for index in &self.entries {
            if let Kind::Inode(slot) = self.tree.node(*index).kind {
                counts[self.root(slot) as usize] += 1;
            }
        }
        let mut links = Vec::with_capacity(counts.len());
        for (slot, count) in self.slots.iter().zip(counts) {
            match slot {
                _ if count == 0 => {}
                Slot::Written(inode) => links.push((*inode, count)),
                Slot::Wanted(path) => return Err(Shown::new(path)),
                Slot::Same(_) => {}
            }
        }
        Ok(links)
    }

    fn root(&self, mut slot: u32) -> u32 {
        while let Slot::Same(other) = &self.slots[slot as usize] {
            slot = *other;
        }
        slot
    }

    fn node(&self, directory: usize) -> &Node {
        self.tree.node(self.directories[directory])
    }
}

impl Directories for Merged<'_> {
    fn count(&self) -> usize {
        self.directories.len()
    }

    fn parent(&self, directory: usize) -> usize {
        self.numbers[self.node(directory).parent as usize] as usize
    }

    fn attributes(&self, directory: usize) -> &Attributes {
        match self.node(directory).kind {
            Kind::Directory(index) => self.tree.directory(index).attributes.as_ref(),
            _ => None,
        }
        .unwrap_or(&self.implied)
    }

    fn entries(&self, directory: usize) -> usize {
        (self.starts[directory + 1] - self.starts[directory]) as usize
    }

    fn entry(&self, directory: usize, index: usize) -> (&[u8], Child) {
        let index = self.entries[self.starts[directory] as usize + index];
        let node = self.tree.node(index);
        let child = match node.kind {
            Kind::Inode(slot) => match &self.slots[self.root(slot) as usize] {
                Slot::Written(inode) => Child::Inode(*inode),
                // `links` has refused these.
                Slot::Same(_) | Slot::Wanted(_) => Child::Directory(0),
            },
            _ => Child::Directory(self.numbers[index as usize] as usize),
        };
        (self.tree.name(node), child)
    }
}
