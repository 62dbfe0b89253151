//! Merging: each entry of each layer is written, or hidden by what came before it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use super::error::Problem;
use super::kept::{Content, Kept};
use super::limits::Limits;
use super::path::{Meaning, meaning, normalise, split};
use super::scratch::Scratch;
use super::tar::{self, Archive, Entry, TarError};
use super::tree::{Kind, NEVER, Node, ROOT, Tree};
use crate::erofs::{Attributes, Inode, WriteError, Writer, Xattrs};

/// Symbolic links that are followed in one path, as in Linux.
const MAX_FOLLOWED: usize = 40;
/// Steps in one path, lest paths that wind through symbolic links cost more than they have bytes.
const MAX_STEPS: usize = 4096;
/// Roughly what an entry of one of the maps costs besides its path.
const MAP_ENTRY_LEN: usize = 64;

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

/// An inode that names in the tree stand for.
#[derive(Debug)]
pub enum Slot {
    /// It is written.
    Written(Inode),
    /// It is the same as another one.
    Same(u32),
    /// A hard link to this path, which a lower layer must have.
    Wanted(Box<[u8]>),
}

/// An inode of the current layer under a name that an upper layer hides.
#[derive(Debug)]
enum Hidden {
    /// It is written, because somebody needs it.
    Slot(u32),
    /// It is a hard link to this path, of a lower layer.
    Elsewhere(Box<[u8]>),
    /// It can still be written.
    Kept(Kept),
}

/// A hard link to what a lower layer must have.
#[derive(Debug)]
struct Wanted {
    slot: u32,
    /// The link's layer.
    layer: u16,
    /// Whether this layer has it. It may have it again, and then that counts.
    found: bool,
}

/// What a hard link is to.
enum Linked {
    /// An inode that is in the image.
    Slot(u32),
    /// One that is hidden, and that nobody needs.
    Hidden(u32),
}

/// What a path is gone for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To put an entry there: directories that do not exist are made, and those that do are real, even
    /// if the entry itself is hidden.
    Entry,
    /// To mark what lower layers must not have there: directories are made, but not real ones.
    Mark,
    /// To look.
    Look,
}

/// Where an entry belongs.
enum Place {
    /// In this directory, where this node may be.
    At(u32, Option<u32>),
    /// Nowhere, since this layer hides it.
    Hidden(u16),
    /// In a directory that does not exist.
    Missing,
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
    layer: u16,
    path: Vec<u8>,
    target: Vec<u8>,
    /// The directory of the last entry, and its node: most entries have the same as the one before.
    recent: Option<(Vec<u8>, u32)>,
    /// Targets of this layer's symbolic links, by node: its own entries may lie behind them.
    symlinks: HashMap<u32, Box<[u8]>>,
    /// This layer's hidden names, and what they stand for.
    hidden: HashMap<Box<[u8]>, u32>,
    hidden_inodes: Vec<Hidden>,
    /// Bytes held for the three above, which end with the layer.
    held: usize,
    /// Hard links to paths that no layer had before this one.
    wanted: HashMap<Box<[u8]>, Vec<Wanted>>,
    scratch: Scratch<'f>,
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
        self.wanted.retain(|_, wanted| {
            wanted.retain(|wanted| !wanted.found);
            !wanted.is_empty()
        });
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
    fn become_directory(&mut self, node: u32) -> Result<u32, Problem> {
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

    /// What a hard link to `target` is to. It is in the image if it was before, or if it is needed.
    fn link(&mut self, target: &[u8], needed: bool) -> Result<Linked, Failure> {
        if target.is_empty() {
            return Err(Problem::DirectoryLink.into());
        }
        let (directory, name) = split(target);
        let found = match self.locate(directory, name, Purpose::Look) {
            Ok(Place::At(_, found)) => found.map(|node| *self.tree.node(node)),
            Ok(_) | Err(Problem::NotDirectory) => None,
            Err(problem) => return Err(problem.into()),
        };
        let found = found.filter(|node| node.layer == self.layer);
        if let Some(Node {
            kind: Kind::Inode(slot),
            ..
        }) = found
        {
            return Ok(Linked::Slot(slot));
        }
        let hidden = self.hidden.get(target).copied();
        if let Some(inode) = hidden {
            let slot = match &self.hidden_inodes[inode as usize] {
                Hidden::Slot(slot) => return Ok(Linked::Slot(*slot)),
                _ if !needed => return Ok(Linked::Hidden(inode)),
                Hidden::Kept(kept) => {
                    let written = kept.write(&mut self.writer, &mut self.scratch)?;
                    self.new_slot(Slot::Written(written))?
                }
                Hidden::Elsewhere(path) => self.want(path.clone())?,
            };
            self.hidden_inodes[inode as usize] = Hidden::Slot(slot);
            return Ok(Linked::Slot(slot));
        }
        if let Some(Node {
            kind: Kind::Directory(directory),
            ..
        }) = found
            && self.tree.directory(directory).real
        {
            return Err(Problem::DirectoryLink.into());
        }
        Ok(if needed {
            Linked::Slot(self.want(target.into())?)
        } else {
            self.hold(target.len())?;
            Linked::Hidden(self.new_hidden(Hidden::Elsewhere(target.into()))?)
        })
    }

    /// An inode that a lower layer must have.
    fn want(&mut self, path: Box<[u8]>) -> Result<u32, Problem> {
        let layer = self.layer;
        let last = self.wanted.get(&path).and_then(|wanted| wanted.last());
        if let Some(last) = last.filter(|wanted| wanted.layer == layer) {
            return Ok(last.slot);
        }
        self.tree.memory().hold(2 * path.len() + MAP_ENTRY_LEN)?;
        let slot = self.new_slot(Slot::Wanted(path.clone()))?;
        self.wanted.entry(path).or_default().push(Wanted {
            slot,
            layer: self.layer,
            found: false,
        });
        Ok(slot)
    }

    /// The slots of hard links to this path, unless a layer between theirs and this one hides it.
    fn waiting(&mut self, path: &[u8], place: &Place) -> Vec<u32> {
        if self.wanted.is_empty() {
            return Vec::new();
        }
        let hidden_by = match place {
            Place::Hidden(layer) => *layer,
            _ => 0,
        };
        // A link is to what there was when it was made: not to what its own layer has later.
        let now = self.layer;
        let wanted = self
            .wanted
            .get_mut(path)
            .map_or(&mut [][..], Vec::as_mut_slice);
        wanted
            .iter_mut()
            .filter(|wanted| hidden_by <= wanted.layer && wanted.layer < now)
            .map(|wanted| {
                wanted.found = true;
                wanted.slot
            })
            .collect()
    }

    /// The slot that this one is the same as.
    pub fn root(&self, mut slot: u32) -> u32 {
        while let Slot::Same(other) = &self.slots[slot as usize] {
            slot = *other;
        }
        slot
    }

    fn new_slot(&mut self, slot: Slot) -> Result<u32, Problem> {
        self.tree.memory().hold(size_of::<Slot>())?;
        self.slots.push(slot);
        Ok(self.slots.len() as u32 - 1)
    }

    fn new_hidden(&mut self, hidden: Hidden) -> Result<u32, Problem> {
        self.hold(size_of::<Hidden>())?;
        self.hidden_inodes.push(hidden);
        Ok(self.hidden_inodes.len() as u32 - 1)
    }

    fn hide(&mut self, path: &[u8], inode: u32) -> Result<(), Problem> {
        self.hold(MAP_ENTRY_LEN + path.len())?;
        self.hidden.insert(path.into(), inode);
        Ok(())
    }

    /// Holds memory to the end of the layer.
    fn hold(&mut self, bytes: usize) -> Result<(), Problem> {
        self.held += bytes;
        self.tree.memory().hold(bytes)
    }

    /// Where `name` in `directory` belongs.
    fn locate(
        &mut self,
        directory: &[u8],
        name: &[u8],
        purpose: Purpose,
    ) -> Result<Place, Problem> {
        Ok(match self.walk(directory, purpose)? {
            Walk::Node(parent) => {
                let found = self.tree.find(parent, name);
                let whiteout = found.map(|node| *self.tree.node(node));
                match whiteout {
                    Some(Node {
                        kind: Kind::Whiteout,
                        layer,
                        ..
                    }) if layer < self.layer => {
                        self.hidden_in(parent, purpose);
                        Place::Hidden(layer)
                    }
                    _ => Place::At(parent, found),
                }
            }
            Walk::Hidden(layer) => Place::Hidden(layer),
            Walk::Missing => Place::Missing,
        })
    }

    /// An entry in this directory is hidden, which its directories need not be.
    fn hidden_in(&mut self, node: u32, purpose: Purpose) {
        if purpose != Purpose::Entry {
            return;
        }
        let Node { kind, parent, .. } = *self.tree.node(node);
        let settled = match kind {
            Kind::Directory(directory) => self.tree.directory(directory).settled,
            _ => NEVER,
        };
        let gone = settled < self.layer;
        self.tree.make_real(if gone { parent } else { node });
    }

    /// Goes to a directory. On the way, directories that do not exist are made, if they shall be,
    /// and symbolic links of this layer are followed, within the image.
    fn walk(&mut self, directory: &[u8], purpose: Purpose) -> Result<Walk, Problem> {
        if let Some((recent, node)) = &self.recent
            && recent == directory
        {
            return Ok(Walk::Node(*node));
        }
        let create = purpose != Purpose::Look;
        let layer = self.layer;
        let mut node = ROOT;
        let mut followed = 0;
        let mut steps = 0;
        let mut owned;
        let mut rest = directory;
        loop {
            let Node {
                kind, cut, parent, ..
            } = *self.tree.node(node);
            if cut < layer {
                self.hidden_in(node, purpose);
                return Ok(Walk::Hidden(cut));
            }
            debug_assert!(matches!(kind, Kind::Directory(_)));
            if rest.is_empty() {
                break;
            }
            steps += 1;
            if steps > MAX_STEPS {
                return Err(Problem::Loop);
            }
            let (part, after) = match rest.iter().position(|byte| *byte == b'/') {
                Some(slash) => (&rest[..slash], &rest[slash + 1..]),
                None => (rest, b"".as_slice()),
            };
            rest = after;
            match part {
                b"" | b"." => continue,
                b".." => {
                    node = parent;
                    continue;
                }
                _ if part.len() > crate::erofs::NAME_LEN => return Err(Problem::NameLength),
                _ => {}
            }
            let Some(next) = self.tree.find(node, part) else {
                if !create {
                    return Ok(Walk::Missing);
                }
                let kind = self.tree.new_directory(node)?;
                node = self.tree.add(node, part, kind, layer)?;
                continue;
            };
            let Node {
                kind, layer: of, ..
            } = *self.tree.node(next);
            match kind {
                Kind::Directory(_) => node = next,
                _ if of < layer => {
                    self.hidden_in(node, purpose);
                    return Ok(Walk::Hidden(of));
                }
                Kind::Inode(_) => {
                    let target = self.symlinks.get(&next).ok_or(Problem::NotDirectory)?;
                    followed += 1;
                    if followed > MAX_FOLLOWED {
                        return Err(Problem::Loop);
                    }
                    if target.starts_with(b"/") {
                        node = ROOT;
                    }
                    owned = [target, b"/".as_slice(), rest].concat();
                    rest = &owned;
                }
                Kind::Whiteout | Kind::Dead if !create => return Ok(Walk::Missing),
                Kind::Whiteout | Kind::Dead => node = self.become_directory(next)?,
            }
        }
        if followed == 0 {
            let (recent, of) = self.recent.get_or_insert_default();
            recent.clear();
            recent.extend_from_slice(directory);
            *of = node;
        }
        Ok(Walk::Node(node))
    }
}

/// Where a path of directories leads.
enum Walk {
    Node(u32),
    Hidden(u16),
    Missing,
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
