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
use rustc_hash::FxBuildHasher;
use rustix::fd::OwnedFd;
use smallvec::SmallVec;
use std::hash::BuildHasher;
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

/// The layers of a directory, topmost first; replaced as a whole.
pub type Layers = Arc<SmallVec<[Layer; 2]>>;

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
    hidden: RwLock<Layers>,
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
#[derive(Debug)]
pub struct Node {
    /// Number.
    pub id: NodeId,
    /// Type; never changes.
    pub kind: Kind,
    /// Tells apart users of one number.
    pub generation: u64,
    /// References the kernel holds.
    lookups: AtomicU64,
    /// Opens that were answered and not released.
    opens: AtomicU64,
    /// The version of the stack that `home` and the layers are right for.
    seen: AtomicU64,
    /// See [`Self::note_published`]: how often, and how often when it was last synced whole.
    published: AtomicU32,
    synced: AtomicU32,
    /// Whether the file has its own data: see [`Self::has_own_data`]. 0 = not known.
    data: AtomicU64,
    /// A leaf lock: held to read or replace the value, never over a system call.
    home: RwLock<Home>,
    /// Directories only.
    dir: Option<Box<DirState>>,
    /// Held for reading while the data or attributes of a file are changed, for writing while it is
    /// moved from one writable branch to another. Taken before any directory lock.
    pub(crate) change: RwLock<()>,
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
        Self {
            id,
            kind,
            generation,
            lookups: AtomicU64::new(0),
            opens: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            published: AtomicU32::new(0),
            synced: AtomicU32::new(0),
            data: AtomicU64::new(0),
            home: RwLock::new(home),
            dir,
            change: RwLock::default(),
        }
    }

    /// A copy of where it is.
    pub fn home(&self) -> Home {
        self.home.read().clone()
    }

    /// Changes where it is.
    pub fn update_home(&self, f: impl FnOnce(&mut Home)) {
        f(&mut self.home.write());
    }

    /// Branch and inode number, without cloning the rest.
    pub fn inode(&self) -> (BranchId, u64) {
        let home = self.home.read();
        (home.branch, home.real)
    }

    /// Is it at this name (and linked there)?
    pub fn is_at(&self, parent: NodeId, name: &[u8]) -> bool {
        let home = self.home.read();
        home.linked && &*home.name == name && home.parent.as_ref().is_some_and(|p| p.id == parent)
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
            .map_or_else(Layers::default, |d| d.hidden.read().clone())
    }

    /// Replaces them.
    pub fn set_hidden_layers(&self, layers: Layers) {
        if let Some(dir) = self.dir() {
            *dir.hidden.write() = layers;
        }
    }

    /// The layer on a branch, also one that is hidden: to reach what was known before.
    pub fn any_layer_on(&self, branch: BranchId) -> Option<Layer> {
        self.layer_on(branch).or_else(|| {
            let hidden = self.dir()?.hidden.read().clone();
            hidden.iter().find(|l| l.branch == branch).cloned()
        })
    }

    /// Counts an open; returns how many there were before.
    pub fn count_open(&self) -> u64 {
        self.opens.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a release.
    pub fn count_release(&self) {
        // A stray one must not wrap.
        let _ = self
            .opens
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    }

    /// Opens that were answered and not released.
    pub fn open_count(&self) -> u64 {
        self.opens.load(Ordering::Relaxed)
    }

    /// The version of the stack that the node is right for.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// The node is right for this version of the stack.
    pub fn mark_seen(&self, version: u64) {
        self.seen.store(version, Ordering::Release);
    }

    /// The inode by which it is reached has got its name by a rename, or has lost the mark that its
    /// data is below: fdatasync(2) of blocks that it had before would not write that down.
    pub fn note_published(&self) {
        self.published.fetch_add(1, Ordering::AcqRel);
    }

    /// What was noted and not synced yet, for [`Self::note_synced`].
    pub fn unsynced(&self) -> Option<u32> {
        let noted = self.published.load(Ordering::Acquire);
        (noted != self.synced.load(Ordering::Acquire)).then_some(noted)
    }

    /// What had been noted then is on the disk.
    pub fn note_synced(&self, noted: u32) {
        self.synced.fetch_max(noted, Ordering::AcqRel);
    }

    /// Was the inode by which it is reached now found to have its own data (or not), with the stack
    /// of this version? `None` = that was not looked at.
    pub fn has_own_data(&self, version: u64) -> Option<bool> {
        let noted = self.data.load(Ordering::Acquire);
        (noted | 1 == data_tag(self.inode(), version)).then_some(noted & 1 == 1)
    }

    /// Notes what [`Self::has_own_data`] is to answer of an inode.
    pub fn note_own_data(&self, inode: (BranchId, u64), version: u64, own: bool) {
        let tag = data_tag(inode, version);
        let noted = if own { tag } else { tag & !1 };
        self.data.store(noted, Ordering::Release);
    }

    /// References held by the kernel.
    pub fn lookup_count(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// Walks up from the parent to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Arc<Node>> + use<> {
        let mut next = self.home.read().parent.clone();
        std::iter::from_fn(move || {
            let node = next.take()?;
            next = node.home.read().parent.clone();
            Some(node)
        })
    }
}

/// Stands for an inode and a version of the stack; odd.
fn data_tag(inode: (BranchId, u64), version: u64) -> u64 {
    FxBuildHasher.hash_one((inode, version)) | 1
}
