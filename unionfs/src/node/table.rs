//! All live nodes by number, with the kernel's reference counts.

use super::Node;
use crate::types::NodeId;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use parking_lot::{Mutex, RwLock};
use rustc_hash::{FxBuildHasher, FxHashSet};
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sharded table of nodes. It holds pointers only: a node has its number. The shard locks are
/// leaves: no system call, no other lock but that of a node's place inside.
#[derive(Debug)]
pub struct NodeTable {
    shards: Box<[RwLock<HashTable<Arc<Node>>>]>,
    /// A leaf lock.
    lingering: Mutex<Lingering>,
}

/// Many, so that threads seldom meet: a power of two.
const SHARDS: usize = 64;

/// A shard with room for fewer than this is not made smaller.
const SMALL_SHARD: usize = 256;

fn hash(id: NodeId) -> u64 {
    FxBuildHasher.hash_one(id)
}

/// Nodes that somebody was using (or, directories, that still had children) when their last
/// reference was taken away: the next calls try again, a few each.
#[derive(Debug, Default)]
struct Lingering {
    queue: VecDeque<NodeId>,
    queued: FxHashSet<NodeId>,
}

impl Lingering {
    fn push(&mut self, id: NodeId) {
        if self.queued.insert(id) {
            self.queue.push_back(id);
        }
    }

    fn pop(&mut self) -> Option<NodeId> {
        let id = self.queue.pop_front()?;
        self.queued.remove(&id);
        Some(id)
    }
}

/// Lingering nodes tried by each call.
const TRIED_AGAIN: usize = 4;

impl NodeTable {
    /// A table that holds only the root, which is never forgotten.
    pub fn new(root: Arc<Node>) -> Self {
        root.lookups.store(1, Ordering::Relaxed);
        let table = Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            lingering: Mutex::default(),
        };
        table.get_or_insert_with(root.id, 0, || root);
        table
    }

    fn shard(&self, hash: u64) -> &RwLock<HashTable<Arc<Node>>> {
        // The table in it goes by the lowest and the seven highest bits.
        &self.shards[(hash >> 50) as usize % SHARDS]
    }

    /// The node of a number, if it is alive.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        let hash = hash(id);
        self.shard(hash).read().find(hash, |n| n.id == id).cloned()
    }

    /// The live node of this number, else a new one; `references` are added to its count. The flag
    /// says whether it was there before.
    pub fn get_or_insert(
        &self,
        id: NodeId,
        references: u64,
        make: impl FnOnce() -> Node,
    ) -> (Arc<Node>, bool) {
        self.get_or_insert_with(id, references, || Arc::new(make()))
    }

    fn get_or_insert_with(
        &self,
        id: NodeId,
        references: u64,
        make: impl FnOnce() -> Arc<Node>,
    ) -> (Arc<Node>, bool) {
        let hash = hash(id);
        let mut shard = self.shard(hash).write();
        let (node, existed) = match shard.entry(hash, |n| n.id == id, |n| self::hash(n.id)) {
            Entry::Occupied(slot) => (slot.get().clone(), true),
            Entry::Vacant(slot) => (slot.insert(make()).get().clone(), false),
        };
        node.lookups.fetch_add(references, Ordering::Relaxed);
        (node, existed)
    }

    /// Takes `count` references away. Returns the nodes that died of it: the node itself, and
    /// ancestors that only it kept.
    pub fn forget(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut dead = self.forget_one(id, count);
        self.reap(TRIED_AGAIN, &mut dead);
        dead
    }

    /// Tries all nodes again that could not go when they were forgotten. Returns those that died.
    pub fn reap_all(&self) -> Vec<Arc<Node>> {
        let mut dead = Vec::new();
        let waiting = self.lingering.lock().queue.len();
        self.reap(waiting, &mut dead);
        dead
    }

    fn reap(&self, most: usize, dead: &mut Vec<Arc<Node>>) {
        for _ in 0..most {
            let Some(id) = self.lingering.lock().pop() else {
                break;
            };
            dead.extend(self.forget_one(id, 0));
        }
    }

    fn forget_one(&self, id: NodeId, count: u64) -> Vec<Arc<Node>> {
        let mut dead = Vec::new();
        let mut next = Some((id, count));
        while let Some((id, count)) = next.take() {
            if id == NodeId::ROOT {
                break;
            }
            let (removed, in_use) = self.release(id, count);
            if in_use {
                self.lingering.lock().push(id);
            }
            if let Some(node) = removed {
                // Cut off its parent, so that the parent's own count is right.
                let parent = node.orphan();
                dead.push(node);
                next = parent
                    .filter(|p| self.get(*p).is_some_and(|n| n.lookup_count() == 0))
                    .map(|p| (p, 0));
            }
        }
        dead
    }

    /// Takes references away, and the node out if that were the last and nobody uses it. Returns the
    /// node if it is out, and else whether only its use keeps it in.
    fn release(&self, id: NodeId, count: u64) -> (Option<Arc<Node>>, bool) {
        let hash = hash(id);
        let mut shard = self.shard(hash).write();
        let Ok(slot) = shard.find_entry(hash, |n| n.id == id) else {
            return (None, false);
        };
        let node = slot.get();
        let before = node.lookups.load(Ordering::Relaxed);
        // Only changed with the shard locked.
        let left = before.saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        // Children hold their parent: a directory that still has one stays.
        if left > 0 || Arc::strong_count(node) > 1 {
            return (None, left == 0);
        }
        let (node, _) = slot.remove();
        if shard.capacity() > SMALL_SHARD && shard.len() < shard.capacity() / 4 {
            let room = 2 * shard.len();
            shard.shrink_to(room, |n| self::hash(n.id));
        }
        (Some(node), false)
    }

    /// All live nodes.
    pub fn all(&self) -> Vec<Arc<Node>> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            all.extend(shard.read().iter().cloned());
        }
        all
    }

    /// Live nodes.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.read().len()).sum()
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Home, Layers, Place};
    use crate::sys::Name;
    use crate::types::{BranchId, Kind};

    fn node(id: u64, parent: Option<&Arc<Node>>) -> Node {
        let home = Home {
            parent: parent.cloned(),
            name: Name::new(),
            linked: true,
            branch: BranchId(0),
            real: id,
            place: Place::Named,
        };
        Node::new(NodeId(id), Kind::Dir, 0, home, Some(Layers::default()))
    }

    #[test]
    fn a_parent_outlives_its_children_and_dies_with_the_last() {
        let table = NodeTable::new(Arc::new(node(1, None)));
        let root = table.get(NodeId(1)).unwrap();
        let (dir, _) = table.get_or_insert(NodeId(2), 1, || node(2, Some(&root)));
        let (file, _) = table.get_or_insert(NodeId(3), 2, || node(3, Some(&dir)));
        drop((dir, file, root));
        assert!(table.forget(NodeId(2), 1).is_empty(), "a child holds it");
        assert!(
            table.forget(NodeId(3), 1).is_empty(),
            "one reference is left"
        );
        let dead = table.forget(NodeId(3), 1);
        assert_eq!(dead.iter().map(|n| n.id.0).collect::<Vec<_>>(), [3, 2]);
        assert_eq!(table.len(), 1);
        assert!(table.forget(NodeId::ROOT, 100).is_empty());
    }
}
