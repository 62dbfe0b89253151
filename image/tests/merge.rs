//! Random trees in random layers: what the kernel shows of the disk is what applying the layers one
//! after the other, lowest first, makes of an empty tree.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use bulkhead_image::extract::{ROOT, extract};
use proptest::prelude::*;
use support::archive::{Archive, Header, file, header, link};
use support::disk::{bytes, can_mount, checked, mounted};
use support::tree::{Links, Seen, in_a_folder, see};

/// Something that a layer says.
#[derive(Debug, Clone)]
enum Op {
    File { size: usize, fill: u8 },
    Sparse { pieces: Vec<(u16, u16)>, end: u16 },
    Directory,
    Symlink(String),
    HardLink(String),
    Fifo,
    Device(u32, u32),
    Whiteout,
    Opaque,
}

#[derive(Clone)]
struct Entry {
    path: String,
    op: Op,
    mode: u32,
    id: u64,
    mtime: (i64, u32),
    xattr: Option<Vec<u8>>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mode, op) = (self.mode, &self.op);
        write!(f, "{} {op:?} {mode:o} {} ", self.path, self.id)?;
        write!(f, "{:?} {:?}", self.mtime, self.xattr)
    }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "-", "~z"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![0..200_usize, 3900..4200_usize, 0..20_000_usize];
    prop_oneof![
        6 => (size, any::<u8>()).prop_map(|(size, fill)| Op::File { size, fill }),
        1 => (prop::collection::vec((any::<u16>(), any::<u16>()), 0..5), any::<u16>())
            .prop_map(|(pieces, end)| Op::Sparse { pieces, end }),
        4 => Just(Op::Directory),
        1 => "[a-z/.]{1,30}".prop_map(Op::Symlink),
        4 => path().prop_map(Op::HardLink),
        1 => Just(Op::Fifo),
        1 => (1..4096_u32, 0..1_048_576_u32).prop_map(|(major, minor)| Op::Device(major, minor)),
        3 => Just(Op::Whiteout),
        1 => Just(Op::Opaque),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (
        path(),
        op(),
        0..0o10_000_u32,
        prop::sample::select(vec![0, 0, 1000, 70_000]),
        prop::sample::select(vec![(0, 0), (0, 0), (1_700_000_000, 5), (-9, 1)]),
        prop::option::weighted(0.2, prop::collection::vec(any::<u8>(), 0..300)),
    )
        .prop_map(|(path, op, mode, id, mtime, xattr)| Entry {
            path,
            op,
            mode,
            id,
            mtime,
            xattr,
        })
}

/// What the layers so far have made.
#[derive(Debug, Clone)]
struct Model {
    nodes: BTreeMap<String, Node>,
    inodes: Vec<Seen>,
}

#[derive(Debug, Clone)]
enum Node {
    Directory(Seen),
    Inode(usize),
}

fn implied() -> Seen {
    Seen {
        mode: 0o40_755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        rdev: 0,
        contents: Vec::new(),
        xattrs: BTreeMap::new(),
        links: Links::Count(2),
    }
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(slash, _)| &path[..slash])
}

impl Model {
    fn remove_below(&mut self, path: &str) {
        let prefix = format!("{path}/");
        self.nodes.retain(|other, _| !other.starts_with(&prefix));
    }

    fn remove(&mut self, path: &str) {
        self.nodes.remove(path);
        self.remove_below(path);
    }

    /// Applies a layer and tells its archive. What archives never have, for it would mean different
    /// things to different programs, is left out of it.
    fn apply(&mut self, layer: &[Entry]) -> Vec<u8> {
        let mut archive = Archive::default();
        // What this layer has: directories and other things.
        let mut folders: BTreeSet<String> = BTreeSet::new();
        let mut others: BTreeSet<String> = BTreeSet::new();
        // Whiteouts are for lower layers, wherever they stand.
        for entry in layer {
            match entry.op {
                Op::Whiteout => self.remove(&entry.path),
                Op::Opaque => {
                    if let Some(Node::Inode(_)) = self.nodes.get(&entry.path) {
                        self.remove(&entry.path);
                    }
                    self.remove_below(&entry.path);
                }
                _ => {}
            }
        }
        for entry in layer {
            let path = entry.path.as_str();
            let through_file = ancestors(path).any(|folder| others.contains(folder));
            match entry.op {
                Op::Whiteout | Op::Opaque if through_file => {
                    // It would be refused; that it is applied above needs another archive.
                    let mut early = Archive::default();
                    early.add(&file(whiteout(entry)), b"");
                    early.0.append(&mut archive.0);
                    archive = early;
                    continue;
                }
                Op::Opaque if others.contains(path) => {
                    let mut early = Archive::default();
                    early.add(&file(whiteout(entry)), b"");
                    early.0.append(&mut archive.0);
                    archive = early;
                    continue;
                }
                Op::Whiteout | Op::Opaque => {
                    archive.add(&file(whiteout(entry)), b"");
                    continue;
                }
                Op::Directory if through_file || others.contains(path) => continue,
                _ if through_file || folders.contains(path) => continue,
                _ => {}
            }
            if let Op::HardLink(target) = &entry.op {
                let known = matches!(self.nodes.get(target), Some(Node::Inode(_)));
                let apart = !format!("{path}/").starts_with(&format!("{target}/"))
                    && !target.starts_with(&format!("{path}/"));
                if !known || !apart {
                    continue;
                }
            }
            for folder in ancestors(path) {
                if !matches!(self.nodes.get(folder), Some(Node::Directory(_))) {
                    self.nodes.insert(folder.into(), Node::Directory(implied()));
                }
                folders.insert(folder.into());
            }
            self.add(entry, &mut archive);
            if matches!(entry.op, Op::Directory) {
                folders.insert(path.into());
            } else {
                others.insert(path.into());
            }
        }
        archive.end()
    }

    fn add(&mut self, entry: &Entry, archive: &mut Archive) {
        let path = entry.path.as_str();
        let mut seen = Seen {
            mode: entry.mode,
            uid: entry.id as u32,
            gid: entry.id as u32,
            mtime: entry.mtime,
            ..implied()
        };
        let mut head = Header {
            mode: entry.mode,
            uid: entry.id,
            gid: entry.id,
            mtime: entry.mtime,
            ..file(path)
        };
        if let Some(value) = &entry.xattr {
            head.pax
                .push(("SCHILY.xattr.trusted.test".into(), value.clone()));
            seen.xattrs.insert(b"trusted.test".to_vec(), value.clone());
        }
        let mut data = Vec::new();
        let kind = match &entry.op {
            Op::Directory => {
                head.kind = b'5';
                archive.add(&head, b"");
                seen.mode |= 0o40_000;
                if let Some(Node::Inode(_)) = self.nodes.get(path) {
                    self.remove(path);
                }
                self.nodes.insert(path.into(), Node::Directory(seen));
                return;
            }
            Op::HardLink(target) => {
                let Some(Node::Inode(inode)) = self.nodes.get(target) else {
                    return;
                };
                let inode = *inode;
                archive.add(&link(path, b'1', target), b"");
                self.remove(path);
                self.nodes.insert(path.into(), Node::Inode(inode));
                return;
            }
            Op::File { size, fill } => {
                data = (0..*size)
                    .map(|at| fill.wrapping_add((at % 251) as u8))
                    .collect();
                seen.contents = data.clone();
                0o100_000
            }
            Op::Sparse { pieces, end } => {
                let mut map = Vec::new();
                for (gap, len) in pieces {
                    let gap = usize::from(*gap) / 2;
                    seen.contents.resize(seen.contents.len() + gap, 0);
                    map.push(format!("{},{len}", seen.contents.len()));
                    let piece = vec![*len as u8 | 1; usize::from(*len)];
                    seen.contents.extend(&piece);
                    data.extend(piece);
                }
                seen.contents
                    .resize(seen.contents.len() + usize::from(*end), 0);
                map.push(format!("{},0", seen.contents.len()));
                head.pax
                    .push(("GNU.sparse.map".into(), map.join(",").into()));
                head.pax.push((
                    "GNU.sparse.size".into(),
                    seen.contents.len().to_string().into(),
                ));
                0o100_000
            }
            Op::Symlink(target) => {
                head.kind = b'2';
                head.link = target.as_bytes().to_vec();
                seen.contents = head.link.clone();
                0o120_000
            }
            Op::Fifo => {
                head.kind = b'6';
                0o10_000
            }
            Op::Device(major, minor) => {
                head.kind = header("", b'3').kind;
                head.device = (*major, *minor);
                seen.rdev = rustix::fs::makedev(*major, *minor);
                0o20_000
            }
            Op::Whiteout | Op::Opaque => return,
        };
        seen.mode |= kind;
        archive.add(&head, &data);
        self.remove(path);
        self.inodes.push(seen);
        self.nodes
            .insert(path.into(), Node::Inode(self.inodes.len() - 1));
    }

    /// What one should see.
    fn expected(&self) -> BTreeMap<Vec<u8>, Seen> {
        let mut names: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        let mut folders: BTreeMap<&str, u64> = BTreeMap::new();
        for (path, node) in &self.nodes {
            match node {
                Node::Inode(inode) => names.entry(*inode).or_default().push(path.clone().into()),
                Node::Directory(_) => {
                    *folders
                        .entry(path.rsplit_once('/').map_or("", |split| split.0))
                        .or_default() += 1;
                }
            }
        }
        let mut root = implied();
        root.links = Links::Count(2 + folders.get("").copied().unwrap_or_default());
        let mut tree = BTreeMap::from([(Vec::new(), root)]);
        for (path, node) in &self.nodes {
            let seen = match node {
                Node::Inode(inode) => {
                    let mut own = names[inode].clone();
                    own.sort();
                    Seen {
                        links: Links::Names(own),
                        ..self.inodes[*inode].clone()
                    }
                }
                Node::Directory(seen) => {
                    let count = folders.get(path.as_str()).copied().unwrap_or_default();
                    Seen {
                        links: Links::Count(2 + count),
                        ..seen.clone()
                    }
                }
            };
            tree.insert(path.clone().into(), seen);
        }
        tree
    }
}

fn whiteout(entry: &Entry) -> String {
    if matches!(entry.op, Op::Opaque) {
        return format!("{}/.wh..wh..opq", entry.path);
    }
    match entry.path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.wh.{name}"),
        None => format!(".wh.{}", entry.path),
    }
}

fn same_tree(layers: &[Vec<Entry>]) -> Result<(), TestCaseError> {
    let mut model = Model {
        nodes: BTreeMap::new(),
        inodes: Vec::new(),
    };
    let archives: Vec<Vec<u8>> = layers.iter().map(|layer| model.apply(layer)).collect();
    let disk = checked(&archives);
    prop_assert!(
        bytes(disk.as_file()) == bytes(checked(&archives).as_file()),
        "reproducible"
    );
    if can_mount() {
        let seen = mounted(disk.path(), see);
        let expected = model.expected();
        for (path, seen) in &seen {
            let name = String::from_utf8_lossy(path);
            prop_assert_eq!(Some(seen), expected.get(path), "{}", name);
        }
        let missing: Vec<_> = expected
            .keys()
            .filter(|path| !seen.contains_key(*path))
            .collect();
        prop_assert!(missing.is_empty(), "missing: {missing:?}");
        // And in a folder, if it cannot be mounted.
        let folder = tempfile::tempdir().expect("a folder");
        extract(disk.as_file(), folder.path()).expect("extracted");
        let seen = in_a_folder(see(&folder.path().join(ROOT)));
        let expected = in_a_folder(expected);
        prop_assert!(seen.keys().eq(expected.keys()), "the same names");
        for (path, seen) in &seen {
            let name = String::from_utf8_lossy(path);
            prop_assert_eq!(Some(seen), expected.get(path), "extracted {}", name);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn disk_when_of_random_layers_then_is_the_tree_they_make(
        layers in prop::collection::vec(prop::collection::vec(entry(), 0..16), 1..5)
    ) {
        same_tree(&layers)?;
    }
}
