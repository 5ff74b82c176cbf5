//! How a node that loses the name by which it is reached is reached from then on.
//!
//! A file with several names takes another one that was looked up, or its pseudo-link; only a file
//! without either keeps a descriptor, so that removing a tree of hard links takes none.

use super::Union;
use crate::errno::Result;
use crate::node::{Node, Place};
use crate::sys::Name;
use crate::sys::stat::stat_at;
use crate::types::{Kind, NodeId};
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustc_hash::FxBuildHasher;
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Names remembered of one file; the oldest makes room.
const MOST: usize = 64;

/// A directory (it may be forgotten by now) and a name in it.
type KnownName = (NodeId, Name);

/// Names that were seen of files with several, besides the one by which each is reached. Hints:
/// they are checked before use. Shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct KnownNames {
    by_node: DashMap<NodeId, Vec<KnownName>, FxBuildHasher>,
    /// Entries: zero on most mounts, then the table is not asked.
    used: AtomicUsize,
}

impl KnownNames {
    pub(super) fn add(&self, node: NodeId, parent: NodeId, name: &[u8]) {
        let known = (parent, Name::from_slice(name));
        match self.by_node.entry(node) {
            Entry::Occupied(mut slot) if !slot.get().contains(&known) => {
                let names = slot.get_mut();
                if names.len() == MOST {
                    names.remove(0);
                }
                names.push(known);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(slot) => {
                slot.insert(vec![known]);
                self.used.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn remove(&self, node: NodeId, parent: NodeId, name: &[u8]) {
        if self.is_empty() {
            return;
        }
        if let Entry::Occupied(mut slot) = self.by_node.entry(node) {
            slot.get_mut()
                .retain(|(dir, known)| *dir != parent || &**known != name);
            if slot.get().is_empty() {
                slot.remove();
                self.used.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn forget(&self, node: NodeId) {
        if !self.is_empty() && self.by_node.remove(&node).is_some() {
            self.used.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<KnownName> {
        self.by_node
            .iter()
            .flat_map(|n| n.value().clone())
            .collect()
    }

    pub(super) fn of(&self, node: NodeId) -> Vec<KnownName> {
        if self.is_empty() {
            return Vec::new();
        }
        self.by_node.get(&node).map_or_else(Vec::new, |n| n.clone())
    }

    /// Names remembered.
    pub(super) fn len(&self) -> usize {
        self.by_node.iter().map(|names| names.len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }
}

/// What a removal does to a node.
pub(super) enum Leaving {
    /// Nothing: it is reached by something else.
    Elsewhere,
    /// It is reached by its pseudo-link from now on.
    Plink,
    /// It is reached by this descriptor from now on.
    Pinned(Arc<OwnedFd>),
}

impl Union {
    /// Prepares the removal of a name. `locked`: the directories whose names the caller has locked.
    pub(super) fn before_removal(
        &self,
        node: Option<&Arc<Node>>,
        (parent, name): (&Arc<Node>, &[u8]),
        locked: &[NodeId],
    ) -> Result<Leaving> {
        let Some(node) = node else {
            return Ok(Leaving::Elsewhere);
        };
        self.names.remove(node.id, parent.id, name);
        if !node.is_at(parent.id, name) {
            return Ok(Leaving::Elsewhere);
        }
        if let Some(plink) = self.links.plink(node.id)
            && (plink.branch, plink.real) == node.inode()
        {
            return Ok(Leaving::Plink);
        }
        self.keep_data(node)?;
        if self.take_other_name(node, locked) {
            return Ok(Leaving::Elsewhere);
        }
        let (_, loc) = self.place_locked(node)?;
        self.with_descriptors(|| loc.pin()).map(Leaving::Pinned)
    }

    /// Has a file reached by another of its names. Does not wait for any lock.
    pub(super) fn take_other_name(&self, node: &Node, locked: &[NodeId]) -> bool {
        let home = node.home();
        if !matches!(home.place, Place::Named) {
            return false;
        }
        for (parent, name) in self.names.of(node.id) {
            let Some(dir) = self.nodes.get(parent) else {
                continue;
            };
            let Some(state) = dir.dir() else { continue };
            // The name must not go while the node is moved to it.
            let guard = if locked.contains(&parent) {
                None
            } else {
                match state.ns.try_read() {
                    Some(ns) if !ns.dead => Some(ns),
                    _ => continue,
                }
            };
            let there = self
                .dir_fd_on(&dir, home.branch)
                .and_then(|fd| stat_at(fd, &name));
            let dev = self.branch(home.branch).map(|b| b.dev);
            if there.is_ok_and(|s| s.ino == home.real && Ok(s.dev) == dev) {
                node.update_home(|h| (h.parent, h.name) = (Some(dir.clone()), name.clone()));
                drop(guard);
                self.names.remove(node.id, parent, &name);
                return true;
            }
        }
        false
    }

    /// A name of a file is about to become another; the file will be reached by the new one.
    pub(super) fn before_rename(&self, node: &Node, from: &Arc<Node>, name: &[u8]) {
        if node.kind == Kind::Dir {
            return;
        }
        let home = node.home();
        if let Some(parent) = &home.parent
            && home.linked
            && !node.is_at(from.id, name)
        {
            self.names.add(node.id, parent.id, &home.name);
        }
        self.names.remove(node.id, from.id, name);
    }
}

/// The name is gone: the node is reached as [`Union::before_removal`] found.
pub(super) fn unname(node: &Node, leaving: Leaving) {
    let place = match leaving {
        Leaving::Elsewhere => return,
        Leaving::Plink => Place::Plink,
        Leaving::Pinned(fd) => Place::Pinned(fd),
    };
    node.update_home(|h| {
        h.linked = false;
        if !matches!(h.place, Place::Plink) {
            h.place = place;
        }
    });
}
