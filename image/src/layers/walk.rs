//! Going along a path in the tree, as far as upper layers and symbolic links let one.

use super::error::Problem;
use super::merge::Merge;
use super::tree::{Kind, NEVER, Node, ROOT};

/// Symbolic links that are followed in one path, as in Linux.
const MAX_FOLLOWED: usize = 40;
/// Steps in one path, lest paths that wind through symbolic links cost more than they have bytes.
const MAX_STEPS: usize = 4096;
/// What a path is gone for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To put an entry there: directories that do not exist are made, and those that do are real, even
    /// if the entry itself is hidden.
    Entry,
    /// To mark what lower layers must not have there: directories are made, but not real ones.
    Mark,
    /// To look.
    Look,
}

/// Where an entry belongs.
pub(super) enum Place {
    /// In this directory, where this node may be.
    At(u32, Option<u32>),
    /// Nowhere, since this layer hides it.
    Hidden(u16),
    /// In a directory that does not exist.
    Missing,
}

/// Where a path of directories leads.
pub(super) enum Walk {
    Node(u32),
    Hidden(u16),
    Missing,
}

impl Merge<'_> {
    /// Where `name` in `directory` belongs.
    pub(super) fn locate(
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
    pub(super) fn walk(&mut self, directory: &[u8], purpose: Purpose) -> Result<Walk, Problem> {
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
