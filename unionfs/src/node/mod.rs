//! Nodes: what the kernel holds a number of, where it is, and the tables to find it.
//!
//! A node knows its parent and name (so that an evicted directory descriptor can be opened again),
//! and either the branches that hold its directory or the branch that holds its inode.

pub mod fds;
pub mod index;
pub mod table;
pub mod watch;

pub use fds::FdCache;
pub use index::{Index, Present};
pub use table::NodeTable;
pub use watch::{WatchState, Watched};

use crate::sys::Name;
use crate::types::{BranchId, Kind, NodeId};
use parking_lot::RwLock;
use rustix::fd::OwnedFd;
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// One branch directory that a union directory is made of.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Which branch.
    pub branch: BranchId,
    /// Inode number of the directory there: checked when it is opened again.
    pub real: u64,
    /// Its path from the branch root where that is not "the parent's path and my name": below a
    /// renamed directory's old place.
    pub path: Option<Arc<[u8]>>,
    /// Another filesystem is mounted on it: shown as an empty directory, never entered.
    pub sealed: bool,
}

impl Layer {
    /// One that is reached by the directory's name in its parent.
    pub fn named(branch: BranchId, real: u64) -> Self {
        Self {
            branch,
            real,
            path: None,
            sealed: false,
        }
    }
}

/// The layers of a directory, topmost first; replaced as a whole.
pub type Layers = Arc<LayerList>;

/// Most directories have one layer.
pub type LayerList = SmallVec<[Layer; 1]>;

/// How a node that is no directory is reached.
#[derive(Clone, Debug)]
pub enum Place {
    /// By its name in its parent.
    Named,
    /// In the pseudo-link directory of its branch.
    Plink,
    /// By a descriptor: it has no name (that we know) any more.
    Pinned(Arc<OwnedFd>),
}

/// Where a node is.
#[derive(Clone, Debug)]
pub struct Home {
    /// The directory of its name; `None` for the root.
    pub parent: Option<Arc<Node>>,
    /// Its name there.
    pub name: Name,
    /// Has it still that name?
    pub linked: bool,
    /// The branch of its inode (directories: of the topmost layer).
    pub branch: BranchId,
    /// Its inode number there.
    pub real: u64,
    /// How it is reached.
    pub place: Place,
}

/// What the directory lock guards: the merged names, once they were needed, and whether the
/// directory still exists.
#[derive(Debug, Default)]
pub struct Namespace {
    /// Merged names; loaded on first need.
    pub index: Option<Index>,
    /// Removed: nothing can be created in it any more.
    pub dead: bool,
    /// The branches are others than those that the index was made of.
    pub stale: bool,
}

/// The part that only directories have.
#[derive(Debug)]
pub struct DirState {
    /// Lock order 2. Held for reading while a name of this directory is resolved or a file is
    /// reached by it, for writing while names change. Two of them: ancestors first, unrelated ones
    /// by ascending number. Never held over the copying of data.
    pub ns: RwLock<Namespace>,
    /// A leaf lock: held to clone or replace the value.
    layers: RwLock<Layered>,
    /// A leaf lock. Instances that a change of the stack has hidden: no part of the directory any
    /// more, but files that were known before are still reached through them.
    hidden: RwLock<Option<Layers>>,
    /// Watches on the layers, where there are any.
    pub watch: WatchState,
}

/// The layers of a directory and what is known of them.
#[derive(Debug)]
struct Layered {
    layers: Layers,
    /// Does a lower instance withhold search or read permission from somebody? `None` = not
    /// determined since the layers changed.
    guarded: Option<bool>,
}

/// Something that the kernel knows by number.
///
/// A large mount is a million of these: fields are packed, and what they say is asked through
/// methods. See `a_node_is_small`.
#[derive(Debug)]
pub struct Node {
    /// Number.
    pub id: NodeId,
    /// References the kernel holds. Wide: an entry that is not cached adds one at each use.
    lookups: AtomicU64,
    /// Directories only.
    dir: Option<Box<DirState>>,
    /// Held for reading while the data or attributes of a file are changed, for writing while it is
    /// moved from one writable branch to another. Taken before any directory lock.
    pub(crate) change: RwLock<()>,
    /// A leaf lock: held to read or replace the value, never over a system call.
    kept: RwLock<Kept>,
    /// The version of the stack that `kept` and the layers are right for (its low 32 bits: one step
    /// for each change of the branches).
    seen: AtomicU32,
    /// Type; never changes.
    pub kind: Kind,
    /// Tells apart users of one number: the low 24 bits of what [`Node::new`] was given. Two users
    /// of a number get the same only if exactly a multiple of 2^24 nodes was made between them.
    generation: [u8; 3],
}

/// [`Home`], packed, and what changes together with it.
#[derive(Debug)]
struct Kept {
    parent: Option<Arc<Node>>,
    name: Name,
    real: u64,
    /// [`Place::Pinned`].
    pinned: Option<Arc<OwnedFd>>,
    branch: BranchId,
    /// `LINKED`, `PLINK`, `DATA_*`, `UNSYNCED`.
    flags: u8,
    /// See [`Node::note_published`]: another number each time.
    published: u8,
    /// Opens that were answered and not released.
    opens: u32,
}

/// The node still has its name.
const LINKED: u8 = 1;
/// [`Place::Plink`].
const PLINK: u8 = 2;
/// The inode was found to have its own data, with the stack of the version seen.
const DATA_OWN: u8 = 4;
/// It was found to have none.
const DATA_BELOW: u8 = 8;
/// Something was noted by [`Node::note_published`] and not synced yet.
const UNSYNCED: u8 = 16;

impl Kept {
    fn inode(&self) -> (BranchId, u64) {
        (self.branch, self.real)
    }

    fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on {
            self.flags | flag
        } else {
            self.flags & !flag
        };
    }

    fn home(&self) -> Home {
        Home {
            parent: self.parent.clone(),
            name: self.name.clone(),
            linked: self.flags & LINKED != 0,
            branch: self.branch,
            real: self.real,
            place: self.place(),
        }
    }

    fn place(&self) -> Place {
        match &self.pinned {
            Some(fd) => Place::Pinned(fd.clone()),
            None if self.flags & PLINK != 0 => Place::Plink,
            None => Place::Named,
        }
    }

    /// The same, without a count raised: what is left in `self` is of no use until [`Self::put`].
    fn take(&mut self) -> Home {
        Home {
            place: self.place(),
            linked: self.flags & LINKED != 0,
            parent: self.parent.take(),
            name: std::mem::take(&mut self.name),
            branch: self.branch,
            real: self.real,
        }
    }

    fn put(&mut self, home: Home) {
        let mut new = Self::from(home);
        let same = self.inode() == new.inode();
        let stays = if same { DATA_OWN | DATA_BELOW } else { 0 };
        new.flags |= self.flags & (stays | UNSYNCED);
        (new.opens, new.published) = (self.opens, self.published);
        *self = new;
    }
}

impl From<Home> for Kept {
    fn from(home: Home) -> Self {
        let mut kept = Self {
            parent: home.parent,
            name: home.name,
            real: home.real,
            pinned: None,
            branch: home.branch,
            flags: 0,
            published: 0,
            opens: 0,
        };
        kept.set(LINKED, home.linked);
        kept.set(PLINK, matches!(home.place, Place::Plink));
        if let Place::Pinned(fd) = home.place {
            kept.pinned = Some(fd);
        }
        kept
    }
}

impl Node {
    /// A node that nobody has looked up yet. `layers` for directories only.
    pub fn new(
        id: NodeId,
        kind: Kind,
        generation: u64,
        home: Home,
        layers: Option<Layers>,
    ) -> Self {
        let dir = layers.map(|layers| {
            Box::new(DirState {
                ns: RwLock::default(),
                layers: RwLock::new(Layered {
                    layers,
                    guarded: None,
                }),
                hidden: RwLock::default(),
                watch: WatchState::default(),
            })
        });
        let [low, middle, high, ..] = generation.to_le_bytes();
        Self {
            id,
            lookups: AtomicU64::new(0),
            dir,
            change: RwLock::default(),
            kept: RwLock::new(home.into()),
            seen: AtomicU32::new(0),
            kind,
            generation: [low, middle, high],
        }
    }

    /// Tells apart users of one number.
    pub fn generation(&self) -> u64 {
        let [low, middle, high] = self.generation;
        u64::from(u32::from_le_bytes([low, middle, high, 0]))
    }

    /// A copy of where it is.
    pub fn home(&self) -> Home {
        self.kept.read().home()
    }

    /// Changes where it is.
    pub fn update_home(&self, f: impl FnOnce(&mut Home)) {
        let mut kept = self.kept.write();
        let mut home = kept.take();
        f(&mut home);
        kept.put(home);
    }

    /// Cuts it off its parent; returns the parent's number.
    fn orphan(&self) -> Option<NodeId> {
        self.kept.write().parent.take().map(|parent| parent.id)
    }

    /// Branch and inode number, without cloning the rest.
    pub fn inode(&self) -> (BranchId, u64) {
        self.kept.read().inode()
    }

    /// Is it at this name (and linked there)?
    pub fn is_at(&self, parent: NodeId, name: &[u8]) -> bool {
        let kept = self.kept.read();
        kept.flags & LINKED != 0
            && &*kept.name == name
            && kept.parent.as_ref().is_some_and(|p| p.id == parent)
    }

    /// The directory part.
    pub fn dir(&self) -> Option<&DirState> {
        self.dir.as_deref()
    }

    /// The layers; empty for anything but a directory.
    pub fn layers(&self) -> Layers {
        self.dir()
            .map_or_else(Layers::default, |d| d.layers.read().layers.clone())
    }

    /// Replaces the layers of a directory. Those that are new have no watches yet.
    pub fn set_layers(&self, layers: Layers) {
        if let Some(dir) = self.dir() {
            *dir.layers.write() = Layered {
                layers,
                guarded: None,
            };
            dir.watch.reset();
        }
    }

    /// What was last noted by [`Self::note_guarded`] of the present layers.
    pub fn guarded(&self) -> Option<bool> {
        self.dir()?.layers.read().guarded
    }

    /// Notes whether an instance withholds permission, unless `layers` are the present ones no more.
    pub fn note_guarded(&self, layers: &Layers, guarded: Option<bool>) {
        if let Some(dir) = self.dir() {
            let mut now = dir.layers.write();
            if Arc::ptr_eq(&now.layers, layers) {
                now.guarded = guarded;
            }
        }
    }

    /// The layer on a branch, if the directory is there.
    pub fn layer_on(&self, branch: BranchId) -> Option<Layer> {
        self.dir()?
            .layers
            .read()
            .layers
            .iter()
            .find(|l| l.branch == branch)
            .cloned()
    }

    /// Instances that a change of the stack has hidden.
    pub fn hidden_layers(&self) -> Layers {
        self.dir()
            .and_then(|d| d.hidden.read().clone())
            .unwrap_or_default()
    }

    /// Replaces them.
    pub fn set_hidden_layers(&self, layers: Layers) {
        if let Some(dir) = self.dir() {
            *dir.hidden.write() = (!layers.is_empty()).then_some(layers);
        }
    }

    /// The layer on a branch, also one that is hidden: to reach what was known before.
    pub fn any_layer_on(&self, branch: BranchId) -> Option<Layer> {
        self.layer_on(branch).or_else(|| {
            let hidden = self.dir()?.hidden.read().clone()?;
            hidden.iter().find(|l| l.branch == branch).cloned()
        })
    }

    /// Counts an open; returns how many there were before.
    pub fn count_open(&self) -> u64 {
        let mut kept = self.kept.write();
        let before = kept.opens;
        kept.opens = before.saturating_add(1);
        before.into()
    }

    /// Counts a release.
    pub fn count_release(&self) {
        let mut kept = self.kept.write();
        // A stray one must not wrap.
        kept.opens = kept.opens.saturating_sub(1);
    }

    /// Opens that were answered and not released.
    pub fn open_count(&self) -> u64 {
        self.kept.read().opens.into()
    }

    /// Is the node right for this version of the stack?
    pub fn has_seen(&self, version: u64) -> bool {
        self.seen.load(Ordering::Acquire) == low_half(version)
    }

    /// The node is right for this version of the stack.
    pub fn mark_seen(&self, version: u64) {
        if !self.has_seen(version) {
            let mut kept = self.kept.write();
            kept.set(DATA_OWN | DATA_BELOW, false);
            self.seen.store(low_half(version), Ordering::Release);
        }
    }

    /// The inode by which it is reached has got its name by a rename, or has lost the mark that its
    /// data is below: fdatasync(2) of blocks that it had before would not write that down.
    pub fn note_published(&self) {
        let mut kept = self.kept.write();
        kept.published = kept.published.wrapping_add(1);
        kept.set(UNSYNCED, true);
    }

    /// What was noted and not synced yet, for [`Self::note_synced`].
    pub fn unsynced(&self) -> Option<u8> {
        let kept = self.kept.read();
        (kept.flags & UNSYNCED != 0).then_some(kept.published)
    }

    /// What had been noted then is on the disk.
    pub fn note_synced(&self, noted: u8) {
        let mut kept = self.kept.write();
        if kept.published == noted {
            kept.set(UNSYNCED, false);
        }
    }

    /// Was the inode by which it is reached now found to have its own data (or not), with the stack
    /// of this version? `None` = that was not looked at.
    pub fn has_own_data(&self, version: u64) -> Option<bool> {
        let kept = self.kept.read();
        let known = self.has_seen(version) && kept.flags & (DATA_OWN | DATA_BELOW) != 0;
        known.then_some(kept.flags & DATA_OWN != 0)
    }

    /// Notes what [`Self::has_own_data`] is to answer, unless the node has another inode by now or
    /// is not right for that version.
    pub fn note_own_data(&self, inode: (BranchId, u64), version: u64, own: bool) {
        let mut kept = self.kept.write();
        if kept.inode() == inode && self.has_seen(version) {
            kept.set(DATA_OWN, own);
            kept.set(DATA_BELOW, !own);
        }
    }

    /// References held by the kernel.
    pub fn lookup_count(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// Walks up from the parent to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Arc<Node>> + use<> {
        let mut next = self.kept.read().parent.clone();
        std::iter::from_fn(move || {
            let node = next.take()?;
            next = node.kept.read().parent.clone();
            Some(node)
        })
    }
}

/// What a node keeps of a version of the stack.
fn low_half(version: u64) -> u32 {
    (version & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_small() {
        // With the two counts of its Arc and what the allocator adds: 128 bytes.
        assert!(size_of::<Node>() <= 104, "{}", size_of::<Node>());
    }

    #[test]
    fn what_is_noted_ends_with_what_it_was_noted_of() {
        let home = Home {
            parent: None,
            name: Name::from_slice(b"name"),
            linked: true,
            branch: BranchId(1),
            real: 7,
            place: Place::Named,
        };
        let node = Node::new(NodeId(9), Kind::File, 0x0102_0304, home, None);
        assert_eq!(node.generation(), 0x02_0304);
        node.note_own_data(node.inode(), 5, true);
        assert_eq!(node.has_own_data(5), None, "not right for this version");
        node.mark_seen(5);
        node.note_own_data(node.inode(), 5, false);
        node.mark_seen(5);
        assert_eq!(node.has_own_data(5), Some(false));
        assert_eq!(node.has_own_data(6), None);
        node.update_home(|h| h.linked = false);
        assert_eq!(node.has_own_data(5), Some(false), "the same inode");
        let old = node.inode();
        node.update_home(|h| (h.real, h.place) = (8, Place::Plink));
        assert_eq!(node.has_own_data(5), None);
        node.note_own_data(old, 5, true);
        assert_eq!(node.has_own_data(5), None, "of the inode before");
        node.note_own_data(node.inode(), 5, true);
        assert_eq!(node.has_own_data(5), Some(true));
        node.mark_seen(6);
        assert_eq!(node.has_own_data(6), None);
        let home = node.home();
        assert!(!home.linked && matches!(home.place, Place::Plink) && &*home.name == b"name");
        assert_eq!(node.unsynced(), None);
        node.note_published();
        let noted = node.unsynced().unwrap();
        node.note_published();
        node.note_synced(noted);
        node.update_home(|h| h.real = 9);
        assert!(node.unsynced().is_some(), "of what came after");
        node.note_synced(node.unsynced().unwrap());
        assert_eq!(node.unsynced(), None);
    }
}
