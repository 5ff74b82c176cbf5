//! What the kernel knows of a union: what it has cached, and what it holds of one branch.

use super::Union;
use crate::node::{Home, Node, Place};
use crate::types::{BranchId, Effect, Kind, NodeId};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// Something that the kernel knows and that is on one branch only.
#[derive(Clone, Debug)]
pub struct OnlyThere {
    /// Its number.
    pub node: NodeId,
    /// A directory?
    pub is_dir: bool,
    /// Was it opened and not released, as far as the kernel tells of opens?
    pub is_open: bool,
    /// Path in the union, from its root, without a slash at the start. For messages: empty where it
    /// has no name any more.
    pub path: Vec<u8>,
    /// How to make the kernel drop it.
    pub drop: Vec<Effect>,
}

impl Union {
    /// What the kernel knows and is on this branch only.
    pub fn only_on(&self, id: BranchId) -> Vec<OnlyThere> {
        let _inside = self.enter();
        let nodes = self.nodes_only_on(id);
        nodes
            .iter()
            .map(|node| OnlyThere {
                node: node.id,
                is_dir: node.kind == Kind::Dir,
                is_open: node.open_count() > 0,
                path: self.path_of(node),
                drop: self.names_of(node),
            })
            .collect()
    }

    /// Every name by which the kernel may know a node.
    fn names_of(&self, node: &Node) -> Vec<Effect> {
        let home = node.home();
        let pinned = matches!(home.place, Place::Pinned(_));
        let own = home.parent.filter(|_| !pinned).map(|p| (p.id, home.name));
        let all = own.into_iter().chain(self.names.of(node.id));
        all.map(|(parent, name)| Effect::InvalEntry {
            parent,
            name: name.to_vec(),
        })
        .collect()
    }

    /// Those of these nodes that the kernel still knows.
    pub fn still_known(&self, nodes: impl Iterator<Item = NodeId>) -> FxHashSet<NodeId> {
        let _inside = self.enter();
        let known = |id: &NodeId| self.nodes.get(*id).is_some_and(|n| n.lookup_count() > 0);
        nodes.filter(known).collect()
    }

    /// Where a node is in the union, from its root: for people. Empty for the root, and for what is
    /// not known.
    pub fn path_in_union(&self, id: NodeId) -> Vec<u8> {
        self.nodes
            .get(id)
            .map_or_else(Vec::new, |n| self.path_of(&n))
    }

    pub(super) fn path_of(&self, node: &Arc<Node>) -> Vec<u8> {
        let names = [node.clone()].into_iter().chain(node.ancestors());
        let mut parts: Vec<Vec<u8>> = names
            .filter(|n| n.id != NodeId::ROOT)
            .map(|n| n.home().name.to_vec())
            .collect();
        parts.reverse();
        parts.join(&b'/')
    }

    /// What the kernel may have cached and has to ask again about.
    pub fn cached_by_kernel(&self) -> Vec<Effect> {
        let mut effects = self.take_absent();
        for node in self.nodes.all() {
            if node.kind == Kind::Dir {
                effects.push(Effect::InvalInode { node: node.id });
            }
            let Home {
                parent,
                name,
                place,
                ..
            } = node.home();
            if let Some(parent) = parent.filter(|_| !matches!(place, Place::Pinned(_))) {
                effects.push(Effect::ExpireEntry {
                    parent: parent.id,
                    name: name.to_vec(),
                });
            }
        }
        effects.extend(
            self.names
                .all()
                .into_iter()
                .map(|(parent, name)| Effect::ExpireEntry {
                    parent,
                    name: name.to_vec(),
                }),
        );
        effects
    }

    pub(super) fn nodes_only_on(&self, id: BranchId) -> Vec<Arc<Node>> {
        let stack = self.stack();
        let only = |node: &Arc<Node>| {
            if node.kind != Kind::Dir {
                return node.inode().0 == id;
            }
            let layers = node.layers();
            let mut members = layers.iter().filter(|l| stack.get(l.branch).is_some());
            node.id != NodeId::ROOT
                && layers.iter().any(|l| l.branch == id)
                && members.all(|l| l.branch == id)
        };
        let known = |node: &Arc<Node>| node.lookup_count() > 0;
        let mut nodes = self.nodes.all();
        nodes.retain(|n| known(n) && only(n));
        // What another change left to be looked at again may be elsewhere, too.
        nodes.retain(|n| {
            if !n.has_seen(self.version()) {
                self.refresh(n);
            }
            only(n)
        });
        nodes
    }
}
