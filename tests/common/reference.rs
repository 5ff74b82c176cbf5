//! The reference model: the tree a union must show, computed from layers by the rules of AUFS and
//! changed by operations as POSIX describes them. Knows nothing of branches once it is built.

use super::layers::{Entry, Meta, Name, OLD, Tree, XATTR};
use std::collections::{BTreeMap, BTreeSet};
use unionfs::errno::Errno;
use unionfs::types::{Kind, RenameFlags};

/// A file of the model, whatever its names.
pub type Id = u32;

/// The root directory.
pub const ROOT: Id = 0;

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    File(Vec<u8>),
    Dir(BTreeMap<Name, Id>),
    Symlink(Vec<u8>),
    Fifo,
    Null,
}

/// A file, directory or other inode.
#[derive(Clone, Debug)]
pub struct Node {
    pub body: Body,
    /// Permission bits; `None` where nobody cares (symbolic links).
    pub mode: Option<u32>,
    pub uid: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names in its layer that the union never shows: they count in st_nlink for ever.
    pub hidden_links: u32,
    /// It lay (also) on a readonly branch: renaming its directory may be too much to ask.
    pub lower: bool,
    /// When its data was last changed, as long as nobody changed it.
    pub mtime: Option<i64>,
}

impl Node {
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::File(_) => Kind::File,
            Body::Dir(_) => Kind::Dir,
            Body::Symlink(_) => Kind::Symlink,
            Body::Fifo => Kind::Fifo,
            Body::Null => Kind::Char,
        }
    }

    pub fn new(body: Body, mode: Option<u32>) -> Self {
        Self {
            body,
            mode,
            uid: 0,
            xattrs: BTreeMap::new(),
            hidden_links: 0,
            lower: false,
            mtime: None,
        }
    }

    fn from_layer(body: Body, meta: &Meta, lower: bool) -> Self {
        let mut node = Self::new(body, Some(meta.mode));
        node.uid = meta.uid;
        node.lower = lower;
        node.mtime = (node.kind() != Kind::Dir).then_some(OLD);
        if let Some(value) = meta.xattr {
            node.xattrs.insert(XATTR.into(), vec![value]);
        }
        node
    }
}

/// One branch of the stack that a model is computed from.
#[derive(Clone, Debug)]
pub struct Layer {
    pub tree: Tree,
    /// Whiteouts and opaque marks on it count.
    pub honours: bool,
    /// What is no directory ends one of its name above (overlayfs); in AUFS it is passed over.
    pub ends: bool,
    pub writable: bool,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Model {
    nodes: BTreeMap<Id, Node>,
    next: Id,
}

impl Model {
    /// What a union of these layers (topmost first) shows.
    pub fn of(layers: &[Layer]) -> Self {
        let mut merge = Merge {
            model: Self {
                nodes: BTreeMap::new(),
                next: ROOT,
            },
            layers,
            links: BTreeMap::new(),
        };
        let all: Vec<(usize, &Tree)> = layers.iter().map(|l| &l.tree).enumerate().collect();
        merge.directory(&all);
        merge.count_hidden_links();
        merge.model
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    pub fn node_mut(&mut self, id: Id) -> &mut Node {
        match self.nodes.get_mut(&id) {
            Some(node) => node,
            None => panic!("no node {id}"),
        }
    }

    fn add(&mut self, node: Node) -> Id {
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        id
    }

    /// The names in a directory; empty for anything else.
    pub fn children(&self, dir: Id) -> BTreeMap<Name, Id> {
        match &self.node(dir).body {
            Body::Dir(children) => children.clone(),
            _ => BTreeMap::new(),
        }
    }

    pub fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        match &self.node(dir).body {
            Body::Dir(children) => children
                .iter()
                .find(|(n, _)| n.0 == name)
                .map(|(_, id)| *id),
            _ => None,
        }
    }

    fn children_mut(&mut self, dir: Id) -> &mut BTreeMap<Name, Id> {
        match &mut self.node_mut(dir).body {
            Body::Dir(children) => children,
            _ => panic!("{dir} is no directory"),
        }
    }

    /// Everything that has a name, from the root down, each file once.
    pub fn reachable(&self) -> Vec<Id> {
        let mut found = vec![ROOT];
        let mut seen = BTreeSet::from([ROOT]);
        let mut at = 0;
        while let Some(&id) = found.get(at) {
            at += 1;
            for child in self.children(id).into_values() {
                if seen.insert(child) {
                    found.push(child);
                }
            }
        }
        found
    }

    pub fn is_reachable(&self, id: Id) -> bool {
        self.reachable().contains(&id)
    }

    /// One of the names of a file, by directory.
    pub fn a_name_of(&self, id: Id) -> Option<(Id, Name)> {
        self.reachable().into_iter().find_map(|dir| {
            let children = self.children(dir);
            let (name, _) = children.into_iter().find(|(_, c)| *c == id)?;
            Some((dir, name))
        })
    }

    /// st_nlink.
    pub fn nlink(&self, id: Id) -> u32 {
        let reachable = self.reachable();
        if let Body::Dir(children) = &self.node(id).body {
            let subdirs = children.values().filter(|c| self.is_dir(**c)).count();
            return if reachable.contains(&id) {
                2 + subdirs as u32
            } else {
                0
            };
        }
        let names = reachable
            .iter()
            .flat_map(|d| self.children(*d).into_values())
            .filter(|c| *c == id)
            .count();
        names as u32 + self.node(id).hidden_links
    }

    /// Are there files with names that the union never shows?
    pub fn has_hidden_links(&self) -> bool {
        self.nodes.values().any(|node| node.hidden_links > 0)
    }

    pub fn is_dir(&self, id: Id) -> bool {
        self.node(id).kind() == Kind::Dir
    }

    /// Drops what has no name and is not in `held`.
    pub fn prune(&mut self, held: &BTreeSet<Id>) {
        let keep: BTreeSet<Id> = self
            .reachable()
            .into_iter()
            .chain(held.iter().copied())
            .collect();
        self.nodes.retain(|id, _| keep.contains(id));
    }

    /// Is `dir` the directory `above` or below it?
    fn is_within(&self, dir: Id, above: Id) -> bool {
        let mut current = Some(dir);
        while let Some(id) = current {
            if id == above {
                return true;
            }
            current = self.a_name_of(id).map(|(parent, _)| parent);
        }
        false
    }

    /// Why a name cannot be made in a directory.
    pub fn refuses_new(&self, dir: Id, name: &[u8]) -> Vec<Errno> {
        if !self.is_reachable(dir) {
            return vec![Errno::NOENT];
        }
        match self.child(dir, name) {
            Some(_) => vec![Errno::EXIST],
            None => Vec::new(),
        }
    }

    pub fn make(&mut self, dir: Id, name: &Name, node: Node) -> Id {
        let id = self.add(node);
        self.children_mut(dir).insert(name.clone(), id);
        id
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &Name) {
        self.children_mut(dir).insert(name.clone(), id);
    }

    /// Why a name cannot be removed; `as_dir` = rmdir.
    pub fn refuses_removal(&self, dir: Id, name: &[u8], as_dir: bool) -> Vec<Errno> {
        let Some(id) = self.child(dir, name) else {
            return vec![Errno::NOENT];
        };
        match (as_dir, self.is_dir(id)) {
            (false, true) => vec![Errno::ISDIR],
            (true, false) => vec![Errno::NOTDIR],
            (true, true) if !self.children(id).is_empty() => vec![Errno::NOTEMPTY],
            _ => Vec::new(),
        }
    }

    pub fn remove(&mut self, dir: Id, name: &[u8]) {
        self.children_mut(dir).retain(|n, _| n.0 != name);
    }

    /// Why a rename is not possible: any of these may be reported.
    pub fn refuses_rename(
        &self,
        from: (Id, &[u8]),
        to: (Id, &[u8]),
        flags: RenameFlags,
    ) -> Vec<Errno> {
        let mut why = Vec::new();
        let Some(source) = self.child(from.0, from.1) else {
            return vec![Errno::NOENT];
        };
        let dest = self.child(to.0, to.1);
        if !self.is_reachable(to.0) {
            why.push(Errno::NOENT);
        }
        if self.is_dir(source) && self.is_within(to.0, source) {
            why.push(Errno::INVAL);
        }
        if flags.contains(RenameFlags::EXCHANGE) {
            match dest {
                None => why.push(Errno::NOENT),
                Some(dest) if self.is_dir(dest) && self.is_within(from.0, dest) => {
                    why.push(Errno::INVAL);
                }
                Some(_) => {}
            }
            return why;
        }
        let Some(dest) = dest else { return why };
        if flags.contains(RenameFlags::NOREPLACE) {
            why.push(Errno::EXIST);
            return why;
        }
        match (self.is_dir(source), self.is_dir(dest)) {
            _ if source == dest => {}
            (true, false) => why.push(Errno::NOTDIR),
            (false, true) => why.push(Errno::ISDIR),
            (true, true) if !self.children(dest).is_empty() => why.push(Errno::NOTEMPTY),
            _ => {}
        }
        why
    }

    /// A rename that nothing speaks against.
    pub fn rename(&mut self, from: (Id, &Name), to: (Id, &Name), flags: RenameFlags) {
        let (Some(source), dest) = (self.child(from.0, from.1), self.child(to.0, to.1)) else {
            return;
        };
        if dest == Some(source) {
            return;
        }
        match dest {
            Some(dest) if flags.contains(RenameFlags::EXCHANGE) => {
                self.children_mut(from.0).insert(from.1.clone(), dest);
            }
            _ => self.remove(from.0, from.1),
        }
        self.children_mut(to.0).insert(to.1.clone(), source);
    }

    /// Has this directory something that a rename without redirects cannot take along?
    pub fn has_lower_children(&self, dir: Id) -> bool {
        self.node(dir).lower && self.children(dir).values().any(|c| self.node(*c).lower)
    }
}

/// The computation of a model from layers.
struct Merge<'a> {
    model: Model,
    layers: &'a [Layer],
    /// Hard link groups that are visible, by layer.
    links: BTreeMap<(usize, u8), Id>,
}

impl Merge<'_> {
    /// A directory that these layers contribute to, topmost first.
    fn directory(&mut self, dirs: &[(usize, &Tree)]) -> Id {
        let (top, tree) = dirs[0];
        let end = dirs
            .iter()
            .position(|(b, t)| self.layers[*b].honours && t.opaque)
            .map_or(dirs.len(), |at| at + 1);
        let dirs = &dirs[..end];
        let lower = dirs.len() > 1 || !self.layers[top].writable;
        let node = Node::from_layer(Body::Dir(BTreeMap::new()), &tree.meta, lower);
        let id = self.model.add(node);
        let names: BTreeSet<&Name> = dirs.iter().flat_map(|(_, t)| t.entries.keys()).collect();
        for name in names {
            if let Some(child) = self.entry(dirs, name) {
                self.model.children_mut(id).insert(name.clone(), child);
            }
        }
        id
    }

    fn entry(&mut self, dirs: &[(usize, &Tree)], name: &Name) -> Option<Id> {
        let mut merged: Vec<(usize, &Tree)> = Vec::new();
        for &(branch, tree) in dirs {
            match tree.entries.get(name) {
                Some(Entry::Dir(dir)) => merged.push((branch, dir)),
                Some(other) if merged.is_empty() => return Some(self.leaf(branch, other)),
                Some(_) if self.layers[branch].ends => break,
                _ => {}
            }
            if self.layers[branch].honours && tree.whiteouts.contains(name) {
                break;
            }
        }
        (!merged.is_empty()).then(|| self.directory(&merged))
    }

    fn leaf(&mut self, branch: usize, entry: &Entry) -> Id {
        let lower = !self.layers[branch].writable;
        let plain = Meta::plain(0o644);
        let node = match entry {
            Entry::File {
                link: Some(link), ..
            } => {
                if let Some(id) = self.links.get(&(branch, *link)) {
                    return *id;
                }
                let (meta, data, names) = self.layers[branch].tree.links()[link].clone();
                let mut node = Node::from_layer(Body::File(data), &meta, lower);
                node.hidden_links = names;
                let id = self.model.add(node);
                self.links.insert((branch, *link), id);
                return id;
            }
            Entry::File { meta, data, .. } => {
                Node::from_layer(Body::File(data.clone()), meta, lower)
            }
            Entry::Symlink(target) => {
                let mut node = Node::from_layer(Body::Symlink(target.clone()), &plain, lower);
                (node.mode, node.uid) = (None, 7);
                node
            }
            Entry::Fifo => Node::from_layer(Body::Fifo, &plain, lower),
            Entry::Null => Node::from_layer(Body::Null, &plain, lower),
            Entry::Dir(_) => panic!("a directory is no leaf"),
        };
        self.model.add(node)
    }

    /// Of the names of a hard-linked file, those that show are no hidden ones.
    fn count_hidden_links(&mut self) {
        for id in self.links.values() {
            let all = self.model.node(*id).hidden_links;
            self.model.node_mut(*id).hidden_links = 0;
            let visible = self.model.nlink(*id);
            self.model.node_mut(*id).hidden_links = all - visible;
        }
    }
}
