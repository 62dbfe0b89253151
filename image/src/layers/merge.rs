//! Merging: each entry of each layer is written, or hidden by what came before it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use super::error::Problem;
use super::kept::{Content, Kept};
use super::limits::Limits;
use super::links::{Hidden, Linked, Slot, Wanted};
use super::path::{Meaning, meaning, normalise, split};
use super::scratch::Scratch;
use super::tar::{self, Archive, Entry, TarError};
use super::tree::{Kind, NEVER, Node, ROOT, Tree};
use super::walk::{Place, Purpose, Walk};
use crate::erofs::{Attributes, WriteError, Writer, Xattrs};

/// Why an entry was not merged.
#[derive(Debug)]
pub enum Failure {
    /// The archive is broken.
    Archive(TarError),
    /// The entry cannot be part of an image.
    Entry(Problem),
    /// The disk cannot be written.
    Disk(std::io::Error),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Entry(problem)
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Read(error) => Self::Archive(TarError::Read(error)),
            WriteError::Write(error) => Self::Disk(error),
            other => Self::Entry(Problem::Write(other)),
        }
    }
}

/// The layers so far.
#[derive(Debug)]
pub struct Merge<'f> {
    /// Their names.
    pub tree: Tree,
    /// What is written of them.
    pub writer: Writer<'f>,
    /// Inodes that have names.
    pub slots: Vec<Slot>,
    limits: Limits,
    entries: u64,
    pub(super) layer: u16,
    path: Vec<u8>,
    target: Vec<u8>,
    /// The directory of the last entry, and its node: most entries have the same as the one before.
    pub(super) recent: Option<(Vec<u8>, u32)>,
    /// Targets of this layer's symbolic links, by node: its own entries may lie behind them.
    pub(super) symlinks: HashMap<u32, Box<[u8]>>,
    /// This layer's hidden names, and what they stand for.
    pub(super) hidden: HashMap<Box<[u8]>, u32>,
    pub(super) hidden_inodes: Vec<Hidden>,
    /// Bytes held for the three above, which end with the layer.
    held: usize,
    /// Hard links to paths that no layer had before this one.
    pub(super) wanted: HashMap<Box<[u8]>, Vec<Wanted>>,
    pub(super) scratch: Scratch<'f>,
}

impl<'f> Merge<'f> {
    /// Merges into this file.
    pub fn new(file: &'f File, uuid: [u8; 16], limits: &Limits) -> Result<Self, WriteError> {
        Ok(Self {
            tree: Tree::new(limits.memory, limits.depth),
            writer: Writer::new(file, uuid, limits.disk_bytes)?,
            slots: Vec::new(),
            limits: limits.clone(),
            entries: 0,
            layer: 0,
            path: Vec::new(),
            target: Vec::new(),
            recent: None,
            symlinks: HashMap::new(),
            hidden: HashMap::new(),
            hidden_inodes: Vec::new(),
            held: 0,
            wanted: HashMap::new(),
            scratch: Scratch::new(file, limits.disk_bytes),
        })
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Ends a layer; what comes next is below it.
    pub fn end_layer(&mut self) -> Result<(), WriteError> {
        self.layer += 1;
        self.recent = None;
        self.symlinks.clear();
        self.forget_found();
        self.hidden.clear();
        self.hidden_inodes.clear();
        self.tree.memory().release(std::mem::take(&mut self.held));
        self.scratch.clear()
    }

    /// Merges an entry, whose data is next in the archive.
    pub fn entry<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Failure> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Problem::Entries(self.limits.entries).into());
        }
        let mut path = std::mem::take(&mut self.path);
        normalise(&entry.path, &mut path, &self.limits)?;
        let merged = match meaning(&path)? {
            Meaning::Ignored => Ok(()),
            Meaning::Whiteout { directory, name } => self.whiteout(directory, name),
            Meaning::Opaque(directory) => self.opaque(directory),
            Meaning::Entry if entry.kind == tar::Kind::Directory => self.directory(&path, entry),
            Meaning::Entry => self.other(&path, entry, archive),
        };
        self.path = path;
        merged
    }

    /// Lower layers' `name` in `directory` is hidden.
    fn whiteout(&mut self, directory: &[u8], name: &[u8]) -> Result<(), Failure> {
        let layer = self.layer;
        let Place::At(parent, found) = self.locate(directory, name, Purpose::Mark)? else {
            return Ok(());
        };
        let Some(node) = found else {
            let node = self.tree.add(parent, name, Kind::Whiteout, layer)?;
            self.tree.node_mut(node).cut = layer;
            return Ok(());
        };
        if let Kind::Directory(directory) = self.tree.node(node).kind {
            self.cut(node);
            self.tree.directory_mut(directory).settle(layer);
        }
        Ok(())
    }

    /// What lower layers have in `directory` is hidden.
    fn opaque(&mut self, directory: &[u8]) -> Result<(), Failure> {
        if let Walk::Node(node) = self.walk(directory, Purpose::Mark)? {
            self.cut(node);
        }
        Ok(())
    }

    fn cut(&mut self, node: u32) {
        let layer = self.layer;
        let node = self.tree.node_mut(node);
        node.cut = node.cut.min(layer);
    }

    fn directory(&mut self, path: &[u8], entry: &Entry) -> Result<(), Failure> {
        let layer = self.layer;
        let node = if path.is_empty() {
            ROOT
        } else {
            let (directory, name) = split(path);
            let Place::At(parent, found) = self.locate(directory, name, Purpose::Entry)? else {
                return Ok(());
            };
            match found {
                None => {
                    let kind = self.tree.new_directory(parent)?;
                    self.tree.add(parent, name, kind, layer)?
                }
                Some(found) => match self.tree.node(found) {
                    Node {
                        kind: Kind::Directory(_),
                        ..
                    } => found,
                    node if node.layer < layer => return Ok(()),
                    _ => self.become_directory(found)?,
                },
            }
        };
        let Kind::Directory(directory) = self.tree.node(node).kind else {
            return Ok(());
        };
        let state = self.tree.directory(directory);
        if state.settled < layer {
            let parent = self.tree.node(node).parent;
            self.tree.make_real(parent);
            return Ok(());
        }
        if state.attributes.is_none() || state.layer == layer {
            let attributes = attributes(entry)?;
            self.tree.memory().hold(attributes.xattrs.len())?;
            let state = self.tree.directory_mut(directory);
            state.attributes = Some(attributes);
            state.layer = layer;
        }
        self.tree.make_real(node);
        Ok(())
    }

    /// A whiteout or a file of this layer becomes a directory, with nothing of lower layers.
    pub(super) fn become_directory(&mut self, node: u32) -> Result<u32, Problem> {
        let layer = self.layer;
        let kind = self.tree.new_directory(self.tree.node(node).parent)?;
        let node = self.tree.replace(node, kind, layer)?;
        self.cut(node);
        self.recent = None;
        if let Kind::Directory(directory) = kind {
            self.tree.directory_mut(directory).settle(layer);
        }
        Ok(node)
    }

    /// Merges what is not a directory.
    fn other<R: Read>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), Failure> {
        if path.is_empty() {
            return Err(Problem::Root.into());
        }
        if entry.size > self.limits.file_bytes {
            return Err(Problem::Size(self.limits.file_bytes).into());
        }
        let (directory, name) = split(path);
        let place = match self.locate(directory, name, Purpose::Entry)? {
            Place::At(parent, found) => self.make_way(parent, found),
            hidden => hidden,
        };
        let waiting = self.waiting(path, &place);
        let needed = matches!(place, Place::At(..)) || !waiting.is_empty();
        let linked = if entry.kind == tar::Kind::HardLink {
            let mut target = std::mem::take(&mut self.target);
            normalise(&entry.link, &mut target, &self.limits)?;
            let linked = self.link(&target, needed)?;
            self.target = target;
            linked
        } else {
            let attributes = attributes(entry)?;
            let content = Content::of(entry);
            if needed {
                let inode = content.write(&mut self.writer, &attributes, archive)?;
                Linked::Slot(self.new_slot(Slot::Written(inode))?)
            } else {
                let kept = Kept::new(attributes, content, &mut self.scratch, archive)?;
                self.hold(kept.memory())?;
                Linked::Hidden(self.new_hidden(Hidden::Kept(kept))?)
            }
        };
        let slot = match linked {
            Linked::Slot(slot) => slot,
            Linked::Hidden(inode) => return Ok(self.hide(path, inode)?),
        };
        for waiting in waiting {
            let root = self.root(slot);
            if root != waiting {
                self.slots[waiting as usize] = Slot::Same(root);
            }
        }
        match place {
            Place::At(parent, found) => {
                let node = self.put(parent, found, name, slot)?;
                if entry.kind == tar::Kind::Symlink {
                    self.hold(entry.link.len())?;
                    self.symlinks
                        .insert(node, entry.link.clone().into_boxed_slice());
                }
                Ok(())
            }
            _ => {
                let inode = self.new_hidden(Hidden::Slot(slot))?;
                Ok(self.hide(path, inode)?)
            }
        }
    }

    /// Whether something that is no directory can be where this node is.
    fn make_way(&mut self, parent: u32, found: Option<u32>) -> Place {
        let Some(node) = found else {
            return Place::At(parent, None);
        };
        let layer = self.layer;
        let Node {
            kind,
            layer: of,
            cut,
            ..
        } = *self.tree.node(node);
        let Kind::Directory(directory) = kind else {
            return if of < layer {
                Place::Hidden(of)
            } else {
                Place::At(parent, found)
            };
        };
        let state = self.tree.directory_mut(directory);
        if state.real && of < layer {
            // The directory replaced what is here, and with it all directories below that.
            state.settle(layer);
            self.cut(node);
            Place::Hidden(of)
        } else if !state.real && cut < layer {
            state.settle(layer);
            self.tree.make_real(parent);
            Place::Hidden(cut)
        } else {
            Place::At(parent, found)
        }
    }

    /// Names an inode.
    fn put(
        &mut self,
        parent: u32,
        found: Option<u32>,
        name: &[u8],
        slot: u32,
    ) -> Result<u32, Problem> {
        let layer = self.layer;
        let kind = Kind::Inode(slot);
        self.tree.make_real(parent);
        match found {
            None => self.tree.add(parent, name, kind, layer),
            Some(node) => {
                self.recent = None;
                self.symlinks.remove(&node);
                self.tree.replace(node, kind, layer)
            }
        }
    }

    pub(super) fn new_slot(&mut self, slot: Slot) -> Result<u32, Problem> {
        self.tree.memory().hold(size_of::<Slot>())?;
        self.slots.push(slot);
        Ok(self.slots.len() as u32 - 1)
    }

    /// Holds memory to the end of the layer.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Problem> {
        self.held += bytes;
        self.tree.memory().hold(bytes)
    }
}

fn attributes(entry: &Entry) -> Result<Attributes, Problem> {
    Ok(Attributes {
        mode: entry.mode & 0o7777,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: Xattrs::encode(&entry.xattrs)?,
    })
}

/// Whether layers can still be counted.
pub fn countable(layers: u16) -> bool {
    layers < NEVER
}
