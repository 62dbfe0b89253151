//! The tree that layers become: names, and what the layers so far say of them.
//!
//! Layers come uppermost first and are numbered in that order, so "lower" is a larger number.

use std::hash::{BuildHasher, RandomState};

use super::error::Problem;
use crate::erofs::Attributes;

/// The root directory.
pub const ROOT: u32 = 0;
/// No layer: lower than all.
pub const NEVER: u16 = u16::MAX;

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// The directory it is in; the root is in itself.
    pub parent: u32,
    /// Where its name is.
    name: u32,
    name_len: u8,
    /// What it is.
    pub kind: Kind,
    /// The layer it came with.
    pub layer: u16,
    /// Layers lower than this one have nothing to say of it and of what is in it.
    pub cut: u16,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: lower layers' is hidden.
    Whiteout,
    /// A directory, by its place in the table of directories.
    Directory(u32),
    /// Anything else, by its place in the table of inodes.
    Inode(u32),
    /// Replaced by another entry of the same layer.
    Dead,
}

/// A directory.
#[derive(Debug)]
pub struct Directory {
    /// What its entry in the uppermost layer that has one says.
    pub attributes: Option<Attributes>,
    /// The layer of that entry.
    pub layer: u16,
    /// Whether any layer has it or something in it, so that it is more than a place for whiteouts.
    pub real: bool,
    /// Layers lower than this one speak of another directory, whose attributes are not this one's.
    pub settled: u16,
    /// Directories it is in.
    depth: usize,
}

impl Directory {
    fn new(depth: usize) -> Self {
        Self {
            attributes: None,
            layer: 0,
            real: false,
            settled: NEVER,
            depth,
        }
    }

    /// Layers lower than this one speak of another directory.
    pub fn settle(&mut self, layer: u16) {
        self.settled = self.settled.min(layer);
    }
}

/// Names and directories.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    names: Vec<u8>,
    directories: Vec<Directory>,
    /// Nodes by directory and name: open addressing in a power of two; 0, the root, is "free".
    table: Vec<u32>,
    used: usize,
    hasher: RandomState,
    memory: Memory,
    max_depth: usize,
}

/// Counts what is held for an image.
#[derive(Debug)]
pub struct Memory {
    held: usize,
    limit: usize,
}

impl Memory {
    /// Nothing held so far.
    pub fn new(limit: usize) -> Self {
        Self { held: 0, limit }
    }

    /// Adds bytes if they may be held.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Problem> {
        self.held = self.held.saturating_add(bytes);
        if self.held > self.limit {
            Err(Problem::Memory(self.limit))
        } else {
            Ok(())
        }
    }

    /// Takes back bytes that are no longer held.
    pub fn release(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }
}

/// What one node costs, with its share of the tables.
const NODE_LEN: usize = 48;

impl Tree {
    /// A tree with nothing but its root.
    pub fn new(memory: usize, max_depth: usize) -> Self {
        let root = Directory {
            real: true,
            ..Directory::new(0)
        };
        let node = Node {
            parent: ROOT,
            name: 0,
            name_len: 0,
            kind: Kind::Directory(0),
            layer: 0,
            cut: NEVER,
        };
        Self {
            nodes: vec![node],
            names: Vec::new(),
            directories: vec![root],
            table: vec![0; 1024],
            used: 0,
            hasher: RandomState::new(),
            memory: Memory::new(memory),
            max_depth,
        }
    }

    /// What is held in memory for the image.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// A node.
    pub fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    /// A node, to be changed.
    pub fn node_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    /// All nodes; a directory precedes what is in it.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node's name.
    pub fn name(&self, node: &Node) -> &[u8] {
        let start = node.name as usize;
        &self.names[start..start + usize::from(node.name_len)]
    }

    /// A directory.
    pub fn directory(&self, index: u32) -> &Directory {
        &self.directories[index as usize]
    }

    /// A directory, to be changed.
    pub fn directory_mut(&mut self, index: u32) -> &mut Directory {
        &mut self.directories[index as usize]
    }

    /// What has this name in a directory.
    pub fn find(&self, parent: u32, name: &[u8]) -> Option<u32> {
        let slot = self.slot(parent, name);
        (self.table[slot] != 0).then(|| self.table[slot])
    }

    /// Adds a name that is not there, at most 255 bytes.
    pub fn add(
        &mut self,
        parent: u32,
        name: &[u8],
        kind: Kind,
        layer: u16,
    ) -> Result<u32, Problem> {
        self.memory.hold(NODE_LEN + name.len())?;
        let start = self.names.len();
        if start > u32::MAX as usize - 256 || self.nodes.len() > u32::MAX as usize / 4 {
            return Err(Problem::Memory(start));
        }
        if self.used * 4 >= self.table.len() * 3 {
            self.grow();
        }
        self.names.extend_from_slice(name);
        let index = self.nodes.len() as u32;
        self.nodes.push(Node {
            parent,
            name: start as u32,
            name_len: name.len() as u8,
            kind,
            layer,
            cut: NEVER,
        });
        let slot = self.slot(parent, name);
        self.table[slot] = index;
        self.used += 1;
        Ok(index)
    }

    /// Puts another node in the place of this one, with which all that is in it disappears.
    pub fn replace(&mut self, index: u32, kind: Kind, layer: u16) -> Result<u32, Problem> {
        self.memory.hold(NODE_LEN)?;
        let old = *self.node(index);
        let slot = self.slot(old.parent, self.name(&old));
        let new = self.nodes.len() as u32;
        self.nodes.push(Node { kind, layer, ..old });
        self.table[slot] = new;
        self.node_mut(index).kind = Kind::Dead;
        Ok(new)
    }

    /// A new directory for a node that is, or will be, in `parent`.
    pub fn new_directory(&mut self, parent: u32) -> Result<Kind, Problem> {
        let depth = match self.node(parent).kind {
            Kind::Directory(parent) => self.directory(parent).depth + 1,
            _ => 0,
        };
        // Symbolic links in a path lead deeper than the path itself.
        if depth > self.max_depth {
            return Err(Problem::Depth(self.max_depth));
        }
        self.memory.hold(size_of::<Directory>())?;
        self.directories.push(Directory::new(depth));
        Ok(Kind::Directory(self.directories.len() as u32 - 1))
    }

    /// Makes the directories above a node real.
    pub fn make_real(&mut self, mut index: u32) {
        while let Kind::Directory(directory) = self.node(index).kind {
            let directory = self.directory_mut(directory);
            if directory.real {
                return;
            }
            directory.real = true;
            index = self.node(index).parent;
        }
    }

    /// Where in the table a name is, or belongs.
    fn slot(&self, parent: u32, name: &[u8]) -> usize {
        let mask = self.table.len() - 1;
        // Keyed at random, lest somebody make names that collide; nothing depends on the order.
        let mut slot = self.hasher.hash_one((parent, name)) as usize & mask;
        loop {
            let index = self.table[slot];
            if index == 0 {
                return slot;
            }
            let node = self.node(index);
            if node.parent == parent && self.name(node) == name {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let bigger = vec![0; self.table.len() * 2];
        for index in std::mem::replace(&mut self.table, bigger) {
            if index != 0 {
                let node = *self.node(index);
                let slot = self.slot(node.parent, self.name(&node));
                self.table[slot] = index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_when_thousands_then_finds_each() {
        let mut tree = Tree::new(1 << 30, 9);
        let kind = tree.new_directory(ROOT).expect("room");
        let directory = tree.add(ROOT, b"d", kind, 0).expect("room");
        for index in 0..5000_u32 {
            let name = index.to_string();
            let parent = if index % 2 == 0 { ROOT } else { directory };
            tree.add(parent, name.as_bytes(), Kind::Inode(index), 0)
                .expect("room");
        }
        for index in 0..5000_u32 {
            let name = index.to_string();
            let (parent, other) = if index % 2 == 0 {
                (ROOT, directory)
            } else {
                (directory, ROOT)
            };
            let node = tree.find(parent, name.as_bytes()).expect("added");
            assert_eq!(tree.node(node).kind, Kind::Inode(index));
            assert_eq!(tree.find(other, name.as_bytes()), None);
        }
    }

    #[test]
    fn replace_when_a_directory_then_its_entries_are_not_found() {
        let mut tree = Tree::new(1 << 20, 9);
        let kind = tree.new_directory(ROOT).expect("room");
        let old = tree.add(ROOT, b"d", kind, 3).expect("room");
        tree.add(old, b"f", Kind::Inode(0), 3).expect("room");
        let kind = tree.new_directory(ROOT).expect("room");
        let new = tree.replace(old, kind, 3).expect("room");
        assert_eq!(tree.find(ROOT, b"d"), Some(new));
        assert_eq!(tree.find(new, b"f"), None);
        assert_eq!(tree.node(old).kind, Kind::Dead);
    }

    #[test]
    fn add_when_beyond_the_limit_then_is_refused() {
        let mut tree = Tree::new(100, 9);
        tree.add(ROOT, b"a", Kind::Whiteout, 0).expect("room");
        tree.add(ROOT, b"b", Kind::Whiteout, 0).expect("room");
        assert!(matches!(
            tree.add(ROOT, b"c", Kind::Whiteout, 0),
            Err(Problem::Memory(100))
        ));
    }
}
