//! All live nodes by number, with the kernel's reference counts.

use super::Node;
use crate::types::NodeId;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use parking_lot::Mutex;
use rustc_hash::{FxBuildHasher, FxHashSet};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Sharded table of nodes. Its shard locks are leaves: no system call, no other lock inside.
#[derive(Debug)]
pub struct NodeTable {
    nodes: DashMap<NodeId, Arc<Node>, FxBuildHasher>,
    /// A leaf lock.
    lingering: Mutex<Lingering>,
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
        let nodes = DashMap::with_hasher(FxBuildHasher);
        nodes.insert(root.id, root);
        Self {
            nodes,
            lingering: Mutex::default(),
        }
    }

    /// The node of a number, if it is alive.
    pub fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).map(|n| n.clone())
    }

    /// The live node of this number, else a new one; `references` are added to its count. The flag
    /// says whether it was there before.
    pub fn get_or_insert(
        &self,
        id: NodeId,
        references: u64,
        make: impl FnOnce() -> Node,
    ) -> (Arc<Node>, bool) {
        match self.nodes.entry(id) {
            Entry::Occupied(slot) => {
                let node = slot.get().clone();
                node.lookups.fetch_add(references, Ordering::Relaxed);
                (node, true)
            }
            Entry::Vacant(slot) => {
                let node = Arc::new(make());
                node.lookups.fetch_add(references, Ordering::Relaxed);
                slot.insert(node.clone());
                (node, false)
            }
        }
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
            let mut in_use = false;
            let removed = self.nodes.remove_if(&id, |_, node| {
                let before = node
                    .lookups
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                        Some(n.saturating_sub(count))
                    });
                let left = before.unwrap_or(0).saturating_sub(count);
                // Children hold their parent: a directory that still has one stays.
                let alone = Arc::strong_count(node) == 1;
                in_use = left == 0 && !alone;
                left == 0 && alone
            });
            if in_use {
                self.lingering.lock().push(id);
            }
            if let Some((_, node)) = removed {
                let parent = node.home.read().parent.as_ref().map(|p| p.id);
                // Cuts the node off its parent, so that the parent's own count is right.
                node.home.write().parent = None;
                dead.push(node);
                next = parent
                    .filter(|p| self.get(*p).is_some_and(|n| n.lookup_count() == 0))
                    .map(|p| (p, 0));
            }
        }
        dead
    }

    /// All live nodes.
    pub fn all(&self) -> Vec<Arc<Node>> {
        self.nodes.iter().map(|n| n.value().clone()).collect()
    }

    /// Live nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
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
