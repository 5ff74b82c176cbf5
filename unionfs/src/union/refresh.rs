//! Nodes after a change of the stack: each is looked at again when it is next needed.
//!
//! A directory gets the layers that its name has now and stays the same node. A file that is open
//! stays where it is as long as its branch is a member, even if its name shows another file now, or
//! a copy of it that came with a branch: half of what a program reads and writes must not be of one
//! and half of the other. Else it is what its name shows, if that is the same file by number, and so
//! is one of which a pseudo-link came. What cannot be found again answers ESTALE.
//!
//! A node is right for the stack only if its ancestors are; so they come first.

use super::Union;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Home, Layer, LayerList, Node, Place, Present};
use crate::sys::RealStat;
use crate::sys::stat::stat_at;
use crate::types::{BranchId, Effect, Kind, NodeId};
use rustix::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How often a node is followed that is renamed meanwhile.
const RETRIES: usize = 16;

impl Union {
    /// How often the stack has changed.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// A live node, right for the present stack. The caller holds no directory lock, unless the
    /// node is known to be right.
    pub(super) fn known(&self, id: NodeId) -> Option<Arc<Node>> {
        let node = self.nodes.get(id)?;
        if !node.has_seen(self.version()) {
            self.refresh(&node);
        }
        Some(node)
    }

    /// Makes a node right for the present stack, and its ancestors before it.
    pub(super) fn refresh(&self, node: &Arc<Node>) {
        let version = self.version();
        for _ in 0..RETRIES {
            let mut chain = vec![node.clone()];
            chain.extend(node.ancestors().take_while(|n| !n.has_seen(version)));
            let all = chain
                .iter()
                .rev()
                .filter(|n| !n.has_seen(version))
                .all(|n| self.refresh_one(n, version));
            if all {
                return;
            }
        }
    }

    /// False = the node was moved meanwhile.
    fn refresh_one(&self, node: &Arc<Node>, version: u64) -> bool {
        let home = node.home();
        let pinned = matches!(home.place, Place::Pinned(_));
        let Some(parent) = home.parent.clone().filter(|_| !pinned) else {
            node.mark_seen(version);
            return true;
        };
        let Some(above) = parent.dir() else {
            return true;
        };
        let _names = above.ns.read();
        if node.home().parent.is_none_or(|p| p.id != parent.id) || !parent.has_seen(version) {
            return false;
        }
        let home = node.home();
        let done = if node.kind == Kind::Dir {
            self.refresh_dir_node(node, &parent, &home)
        } else {
            self.refresh_file(node, &parent, &home)
        };
        match done {
            Ok(()) => {}
            // An entry that cannot be looked at: what is known of it has to do.
            Err(err) => {
                log::debug!("node {}: {err}", node.id.0);
                self.forget_gone_layers(node);
            }
        }
        node.mark_seen(version);
        true
    }

    /// What a name in a directory (locked, and right for the stack) is now.
    fn resolve_anew(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<(Present, RealStat)>> {
        let Found::Present(found) = self.probe(parent, name)? else {
            return Ok(None);
        };
        match stat_at(self.dir_fd_on(parent, found.top)?, name) {
            Ok(stat) => Ok(Some((found, stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn refresh_dir_node(&self, node: &Arc<Node>, parent: &Arc<Node>, home: &Home) -> Result<()> {
        let found = self.resolve_anew(parent, &home.name)?;
        let Some((found, stat)) = found.filter(|(_, stat)| stat.kind() == Kind::Dir) else {
            self.hide_dir(node);
            return Ok(());
        };
        let dir = self.dir_fd_on(parent, found.top)?;
        let (layers, fds) = self.find_layers(parent, &home.name, &found, &stat, &dir)?;
        self.keep_number(node, &stat);
        let mut home = home.clone();
        (home.linked, home.branch, home.real) = (true, found.top, stat.ino);
        self.replace_layers(node, home, layers);
        for (branch, real, fd) in fds {
            self.cache_dir_fd(node, branch, real, Arc::new(fd));
        }
        Ok(())
    }

    /// The node's topmost instance is another one: it keeps the number that its users know.
    pub(super) fn keep_number(&self, node: &Node, stat: &RealStat) {
        let number = self.inos.number(stat);
        if number != node.id && self.nodes.get(number).is_none() {
            self.inos.keep(stat, node.id);
        }
    }

    /// A directory has other layers. The caller holds its parent's lock, or that of nothing.
    pub(super) fn replace_layers(&self, node: &Arc<Node>, home: Home, layers: LayerList) {
        let (old, hidden) = (node.layers(), node.hidden_layers());
        let stack = self.stack();
        let left = |l: &&Layer| {
            stack.get(l.branch).is_some() && layers.iter().all(|new| new.branch != l.branch)
        };
        let mut kept: LayerList = old.iter().filter(left).cloned().collect();
        for layer in hidden.iter().filter(left) {
            if kept.iter().all(|l| l.branch != layer.branch) {
                kept.push(layer.clone());
            }
        }
        self.give_layers(node, layers, Some(kept));
        if let Some(dir) = node.dir() {
            // In order: the parent's lock is held, this is its child.
            let mut ns = dir.ns.write();
            ns.stale = true;
            // One that was removed, and is there again on a branch that came.
            ns.dead &= !home.linked;
        }
        node.update_home(|h| *h = home);
    }

    /// The name of a directory shows something else, or nothing. Whoever is in it goes on seeing
    /// what is left of it.
    fn hide_dir(&self, node: &Arc<Node>) {
        self.forget_gone_layers(node);
        node.update_home(|h| h.linked = false);
    }

    /// Drops what was on branches that are no members any more.
    fn forget_gone_layers(&self, node: &Arc<Node>) {
        let stack = self.stack();
        if node.kind != Kind::Dir {
            node.update_home(|h| {
                if stack.get(h.branch).is_none() {
                    h.branch = BranchId::NONE;
                }
            });
            return;
        }
        let old = node.layers();
        let member = |l: &&Layer| stack.get(l.branch).is_some();
        let left: LayerList = old.iter().filter(member).cloned().collect();
        let mut home = node.home();
        (home.branch, home.real) = left
            .first()
            .map_or((BranchId::NONE, 0), |l| (l.branch, l.real));
        self.replace_layers(node, home, left);
    }

    fn refresh_file(&self, node: &Arc<Node>, parent: &Arc<Node>, home: &Home) -> Result<()> {
        if let Some(plink) = self.links.plink(node.id) {
            let there = (plink.branch, plink.real);
            if (home.branch, home.real) != there {
                node.update_home(|h| ((h.branch, h.real), h.place) = (there, Place::Plink));
                self.data_moved(node, home.branch);
            }
            return Ok(());
        }
        let member = self.stack().get(home.branch).is_some();
        let found = self.resolve_anew(parent, &home.name)?;
        if let Some((found, stat)) = found
            && stat.kind() == node.kind
        {
            let there = (found.top, stat.ino);
            let same = self.file_number(parent.id, &home.name, found.top, &stat) == node.id;
            if same && !self.stays(node, parent, home, there) {
                let changed = (home.branch, home.real) != there;
                node.update_home(|h| {
                    (h.branch, h.real) = there;
                    (h.linked, h.place) = (true, Place::Named);
                });
                if changed {
                    self.data_moved(node, home.branch);
                }
                return Ok(());
            }
        }
        // Its name shows something else now.
        node.update_home(|h| {
            h.linked = false;
            if !member {
                h.branch = BranchId::NONE;
            }
        });
        Ok(())
    }

    /// Is this file open and still there, so that it is not what its name shows at `there` now? The
    /// directory is locked.
    pub(super) fn stays(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        home: &Home,
        there: (BranchId, u64),
    ) -> bool {
        (home.branch, home.real) != there
            && matches!(home.place, Place::Named)
            && self.opens.may_be_open(node)
            && self.stack().get(home.branch).is_some()
            && self
                .reach_dir_on(parent, home.branch)
                .and_then(|dir| stat_at(&*dir, &home.name))
                .is_ok_and(|stat| stat.ino == home.real)
    }

    /// A file shows other data than it did: neither we nor the kernel keep the old.
    pub(super) fn data_moved(&self, node: &Node, old: BranchId) {
        self.data_fds.remove((node.id, old));
        self.tell(Effect::InvalInode { node: node.id });
    }

    /// The file node of a name that was resolved (the directory is locked), if it is known; right
    /// for the present stack.
    pub(super) fn known_file(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Present,
        stat: &RealStat,
    ) -> Option<Arc<Node>> {
        let node = self
            .nodes
            .get(self.file_number(parent.id, name, found.top, stat))?;
        if node.has_seen(self.version()) || node.kind == Kind::Dir {
            return Some(node);
        }
        drop(node);
        let node = self.file_child(parent, name, found, *stat, 0).node;
        Some(node)
    }

    /// A descriptor of `node` on `branch`, also where that instance is hidden: for what was known
    /// before it was.
    pub(super) fn reach_dir_on(&self, node: &Arc<Node>, branch: BranchId) -> Result<Arc<OwnedFd>> {
        let layer = node.any_layer_on(branch).ok_or(Errno::STALE)?;
        if layer.sealed {
            return Err(Errno::XDEV);
        }
        self.dir_fd(node, &layer)
    }
}
