//! Hard links: to what is in the image, to what is hidden, to what a lower layer must have.

use super::error::Problem;
use super::kept::Kept;
use super::merge::{Failure, Merge};
use super::path::split;
use super::tree::{Kind, Node};
use super::walk::{Place, Purpose};
use crate::erofs::Inode;

/// Roughly what an entry of one of the maps costs besides its path.
const MAP_ENTRY_LEN: usize = 64;

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
pub(super) enum Hidden {
    /// It is written, because somebody needs it.
    Slot(u32),
    /// It is a hard link to this path, of a lower layer.
    Elsewhere(Box<[u8]>),
    /// It can still be written.
    Kept(Kept),
}

/// A hard link to what a lower layer must have.
#[derive(Debug)]
pub(super) struct Wanted {
    slot: u32,
    /// The link's layer.
    layer: u16,
    /// Whether this layer has it. It may have it again, and then that counts.
    found: bool,
}

/// What a hard link is to.
pub(super) enum Linked {
    /// An inode that is in the image.
    Slot(u32),
    /// One that is hidden, and that nobody needs.
    Hidden(u32),
}

impl Merge<'_> {
    /// What a hard link to `target` is to. It is in the image if it was before, or if it is needed.
    pub(super) fn link(&mut self, target: &[u8], needed: bool) -> Result<Linked, Failure> {
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
    pub(super) fn waiting(&mut self, path: &[u8], place: &Place) -> Vec<u32> {
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

    /// At the end of a layer: links to what it has wait no longer.
    pub(super) fn forget_found(&mut self) {
        self.wanted.retain(|_, wanted| {
            wanted.retain(|wanted| !wanted.found);
            !wanted.is_empty()
        });
    }

    /// The slot that this one is the same as.
    pub fn root(&self, mut slot: u32) -> u32 {
        while let Slot::Same(other) = &self.slots[slot as usize] {
            slot = *other;
        }
        slot
    }

    pub(super) fn new_hidden(&mut self, hidden: Hidden) -> Result<u32, Problem> {
        self.hold(size_of::<Hidden>())?;
        self.hidden_inodes.push(hidden);
        Ok(self.hidden_inodes.len() as u32 - 1)
    }

    pub(super) fn hide(&mut self, path: &[u8], inode: u32) -> Result<(), Problem> {
        self.hold(MAP_ENTRY_LEN + path.len())?;
        self.hidden.insert(path.into(), inode);
        Ok(())
    }
}
