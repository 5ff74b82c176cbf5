//! Hard links over branches: pseudo-links, and how many names a file has in the union.
//!
//! A lower file with several names that is copied up gets a hard link in the branch's pseudo-link
//! directory, named after its union number: every other name finds the copy through it, also after
//! a remount. Its link count is that of the copy, less the pseudo-link, plus `delta`: the names
//! that still lie on the lower branch. The same delta counts lower names that were deleted.

use crate::branch::log::Source;
use crate::node::Node;
use crate::sys::RealStat;
use crate::types::{BranchId, NodeId};
use dashmap::DashMap;
use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Locks of [`LinkTable::counting`].
const SHARDS: usize = 16;

/// Where the copy of a multiply linked lower file is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plink {
    pub(super) branch: BranchId,
    pub(super) real: u64,
    /// The lower file.
    pub(super) source: Source,
}

/// Both tables; their shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct LinkTable {
    plinks: DashMap<NodeId, Plink, FxBuildHasher>,
    deltas: DashMap<NodeId, i32, FxBuildHasher>,
    /// Lower files whose last name was deleted while somebody holds them.
    unnamed: DashMap<NodeId, (), FxBuildHasher>,
    /// Files whose names move from one branch to another, or did: their links are counted with
    /// [`Self::counting`].
    regrouped: DashMap<NodeId, (), FxBuildHasher>,
    /// Entries in these tables: zero on most mounts, then no table is asked.
    used: AtomicUsize,
    /// Leaf locks, by number; see [`Self::counting`].
    counting: [Mutex<()>; SHARDS],
}

/// The links of some files are counted; see [`LinkTable::counting`].
#[must_use]
pub(super) struct Counting<'a>(SmallVec<[MutexGuard<'a, ()>; 2]>);

impl fmt::Debug for Counting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counting({})", self.0.len())
    }
}

impl LinkTable {
    /// Until the result is dropped, nobody else makes or removes links of these files together with
    /// what the tables say of them: link count and tables fit together. Held over a few
    /// system calls; of other locks only leaves are taken meanwhile.
    pub(super) fn counting(&self, nodes: &[NodeId]) -> Counting<'_> {
        let mut shards: SmallVec<[usize; 2]> =
            nodes.iter().map(|n| n.0 as usize % SHARDS).collect();
        shards.sort_unstable();
        shards.dedup();
        Counting(shards.iter().map(|s| self.counting[*s].lock()).collect())
    }

    /// The names of this file move to another branch.
    pub(super) fn mark_regrouped(&self, node: NodeId) {
        if self.regrouped.insert(node, ()).is_none() {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Do they, or did they since the node is known?
    pub(super) fn is_regrouped(&self, node: NodeId) -> bool {
        !self.is_empty() && self.regrouped.contains_key(&node)
    }

    fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    /// Forgets what the books say, which are about to be read again.
    pub(super) fn clear(&self) {
        let named = |node: &NodeId| !self.unnamed.contains_key(node);
        self.plinks.clear();
        self.deltas.retain(|node, _| !named(node));
        let used = self.deltas.len() + self.regrouped.len();
        self.used.store(used, Ordering::Relaxed);
    }

    /// Entries of all tables.
    pub(super) fn len(&self) -> usize {
        self.plinks.len() + self.deltas.len() + self.unnamed.len()
    }

    pub(super) fn plink(&self, node: NodeId) -> Option<Plink> {
        if self.is_empty() {
            None
        } else {
            self.plinks.get(&node).map(|p| *p)
        }
    }

    pub(super) fn all_plinks(&self) -> Vec<NodeId> {
        self.plinks.iter().map(|p| *p.key()).collect()
    }

    pub(super) fn add_plink(&self, node: NodeId, plink: Plink) {
        if self.plinks.insert(node, plink).is_none() {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn remove_plink(&self, node: NodeId) {
        if self.plinks.remove(&node).is_some() {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn delta(&self, node: NodeId) -> i32 {
        if self.is_empty() {
            0
        } else {
            self.deltas.get(&node).map_or(0, |d| *d)
        }
    }

    pub(super) fn set_delta(&self, node: NodeId, delta: i32) {
        let before = if delta == 0 {
            self.deltas.remove(&node).map(|_| usize::MAX)
        } else {
            self.deltas.insert(node, delta).map_or(Some(1), |_| None)
        };
        if let Some(change) = before {
            // usize::MAX is -1 in wrapping arithmetic.
            self.used.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Adds to the delta and returns the new value.
    pub(super) fn change_delta(&self, node: NodeId, by: i32) -> i32 {
        let delta = self.delta(node) + by;
        self.set_delta(node, delta);
        delta
    }

    /// The link count to show. `stat` is that of the file that holds the data now.
    pub(super) fn nlink(&self, node: &Node, stat: &RealStat) -> u32 {
        if self.is_empty() {
            return stat.nlink;
        }
        let plink = i64::from(self.plinks.contains_key(&node.id));
        let names = i64::from(stat.nlink) - plink + i64::from(self.delta(node.id));
        u32::try_from(names.max(0)).unwrap_or(u32::MAX)
    }

    /// The last name of a lower file is gone: its delta is needed only until it is forgotten.
    pub(super) fn mark_unnamed(&self, node: NodeId) {
        self.unnamed.insert(node, ());
    }

    /// The node was forgotten: a file whose last name is gone needs no delta any more. Others do,
    /// for the next time they are looked up.
    pub(super) fn forget(&self, node: NodeId) {
        if !self.is_empty() && self.regrouped.remove(&node).is_some() {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
        if !self.is_empty()
            && !self.plinks.contains_key(&node)
            && self.unnamed.remove(&node).is_some()
        {
            self.set_delta(node, 0);
        }
    }
}
