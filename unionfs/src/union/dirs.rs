//! Reaching directories and files of the branches from nodes.

use super::Union;
use crate::branch::Branch;
use crate::branch::plinks::plink_name;
use crate::errno::{Errno, Result};
use crate::node::{Home, Layer, LayerList, Layers, Node, Place};
use crate::sys::Loc;
use crate::sys::loc::{open_beneath, open_subdir};
use crate::sys::stat::stat_fd;
use crate::types::{BranchId, Kind, NodeId};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use std::sync::Arc;

/// How often an access by name is tried again because the name changed under it.
const RETRIES: usize = 16;

impl Union {
    pub(super) fn branch(&self, id: BranchId) -> Result<Arc<Branch>> {
        self.stack.load().get(id).cloned().ok_or(Errno::STALE)
    }

    /// An `O_PATH` descriptor of the directory on one of its branches: cached, else opened from
    /// the nearest ancestor that is. Takes no directory lock.
    pub(super) fn dir_fd(&self, node: &Arc<Node>, layer: &Layer) -> Result<Arc<OwnedFd>> {
        if node.id == NodeId::ROOT {
            return self.branch(layer.branch).map(|b| b.root.clone());
        }
        let key = (node.id, layer.branch, layer.real);
        if let Some(fd) = self.dir_fds.get(key) {
            return Ok(fd);
        }
        let mut last = Errno::STALE;
        for _ in 0..RETRIES {
            let home = node.home();
            if let Place::Pinned(fd) = &home.place {
                return if home.branch == layer.branch {
                    Ok(fd.clone())
                } else {
                    Err(Errno::STALE)
                };
            }
            match self.with_descriptors(|| self.open_layer(&home, layer)) {
                Ok(fd) => {
                    let fd = Arc::new(fd);
                    self.cache_dir_fd(node, layer.branch, layer.real, fd.clone());
                    return Ok(fd);
                }
                Err(err) => last = err,
            }
            let now = node.home();
            if now.name == home.name && same_parent(&now, &home) {
                break;
            }
        }
        Err(if last == Errno::NOENT {
            Errno::STALE
        } else {
            last
        })
    }

    /// Gives a directory other layers, and `hidden` ones (`None` = as they are); what it loses is
    /// not kept open.
    pub(super) fn give_layers(&self, node: &Node, layers: LayerList, hidden: Option<LayerList>) {
        let (old, old_hidden) = (node.layers(), node.hidden_layers());
        if let Some(hidden) = hidden {
            node.set_hidden_layers(Layers::new(hidden));
        }
        node.set_layers(Layers::new(layers));
        for layer in old.iter().chain(old_hidden.iter()) {
            if !has_layer(node, layer.branch, layer.real) {
                self.dir_fds.remove((node.id, layer.branch, layer.real));
            }
        }
    }

    /// Caches a descriptor of a directory as long as the node has that layer: it goes with it
    /// ([`Self::give_layers`] changes the layers before it looks for descriptors).
    pub(super) fn cache_dir_fd(&self, node: &Node, branch: BranchId, real: u64, fd: Arc<OwnedFd>) {
        let key = (node.id, branch, real);
        self.dir_fds.insert(key, fd);
        if !has_layer(node, branch, real) {
            self.dir_fds.remove(key);
        }
    }

    fn open_layer(&self, home: &Home, layer: &Layer) -> Result<OwnedFd> {
        let fd = match &layer.path {
            Some(path) => {
                let branch = self.branch(layer.branch)?;
                open_beneath(
                    &branch.root,
                    path,
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                )?
            }
            None => {
                let parent = home.parent.as_ref().ok_or(Errno::STALE)?;
                let above = parent.any_layer_on(layer.branch).ok_or(Errno::STALE)?;
                open_subdir(self.dir_fd(parent, &above)?, &home.name)?
            }
        };
        // Another directory has taken the name: that one is not ours.
        if stat_fd(&fd)?.ino == layer.real {
            Ok(fd)
        } else {
            Err(Errno::STALE)
        }
    }

    /// A descriptor of `node` on `branch`.
    pub(super) fn dir_fd_on(&self, node: &Arc<Node>, branch: BranchId) -> Result<Arc<OwnedFd>> {
        let layer = node.layer_on(branch).ok_or(Errno::STALE)?;
        if layer.sealed {
            return Err(Errno::XDEV);
        }
        self.dir_fd(node, &layer)
    }

    /// Runs `f` on the place of a node, which cannot change meanwhile: the directory of its name
    /// is locked for reading. The caller holds no directory lock.
    pub(super) fn with_place<T>(
        &self,
        node: &Arc<Node>,
        f: impl Fn(&Arc<Branch>, &Loc) -> Result<T>,
    ) -> Result<T> {
        if node.kind == Kind::Dir {
            return self.with_dir_place(node, f);
        }
        loop {
            let home = node.home();
            let named = matches!(home.place, Place::Named);
            let guard = match (&home.parent, named) {
                (Some(parent), true) => Some(parent.dir().ok_or(Errno::STALE)?.ns.read()),
                _ => None,
            };
            if named && !node.still_at(&home) {
                continue;
            }
            let branch = self.branch(home.branch)?;
            let done = self
                .loc_of(node, &home, &branch)
                .and_then(|loc| self.with_descriptors(|| f(&branch, &loc)));
            drop(guard);
            match done {
                // The name was removed behind the union's back; the file may have others.
                Err(Errno::NOENT | Errno::STALE) if self.take_other_name(node, &[]) => {}
                other => return other,
            }
        }
    }

    /// As [`Self::with_place`], for callers that hold the lock of the node's directory (or know
    /// that its name cannot change).
    pub(super) fn place_locked(&self, node: &Arc<Node>) -> Result<(Arc<Branch>, Loc)> {
        let home = node.home();
        let branch = self.branch(home.branch)?;
        if node.kind == Kind::Dir {
            let layers = node.layers();
            let top = layers.first().ok_or(Errno::STALE)?;
            if !top.sealed {
                return Ok((branch, Loc::dir(self.dir_fd(node, top)?)));
            }
        }
        let loc = self.loc_of(node, &home, &branch)?;
        Ok((branch, loc))
    }

    fn with_dir_place<T>(
        &self,
        node: &Arc<Node>,
        f: impl Fn(&Arc<Branch>, &Loc) -> Result<T>,
    ) -> Result<T> {
        let (branch, loc) = self.place_locked(node)?;
        self.with_descriptors(|| f(&branch, &loc))
    }

    fn loc_of(&self, node: &Node, home: &Home, branch: &Branch) -> Result<Loc> {
        match &home.place {
            Place::Pinned(fd) => Ok(Loc::Fd(fd.clone())),
            Place::Plink => {
                let store = branch.store.as_ref().ok_or(Errno::STALE)?;
                Ok(Loc::at(
                    store.plinks().clone(),
                    &plink_name(node.id, home.real),
                ))
            }
            Place::Named => {
                let parent = home.parent.as_ref().ok_or(Errno::STALE)?;
                Ok(Loc::at(self.reach_dir_on(parent, home.branch)?, &home.name))
            }
        }
    }

    /// The path of a directory on one of its branches, from the branch root, without slashes at
    /// the ends.
    pub(super) fn layer_path(&self, node: &Arc<Node>, branch: BranchId) -> Result<Vec<u8>> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut current = node.clone();
        while current.id != NodeId::ROOT {
            let layer = current.any_layer_on(branch).ok_or(Errno::STALE)?;
            if let Some(path) = layer.path {
                parts.push(path.to_vec());
                break;
            }
            let home = current.home();
            parts.push(home.name.to_vec());
            current = home.parent.ok_or(Errno::STALE)?;
        }
        parts.reverse();
        Ok(parts.join(&b'/'))
    }
}

fn has_layer(node: &Node, branch: BranchId, real: u64) -> bool {
    let is_it = |l: &Layer| (l.branch, l.real) == (branch, real);
    node.layers().iter().any(is_it) || node.hidden_layers().iter().any(is_it)
}

fn same_parent(a: &Home, b: &Home) -> bool {
    match (&a.parent, &b.parent) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl Node {
    /// Is the node still where `home` says?
    fn still_at(&self, home: &Home) -> bool {
        let now = self.home();
        now.branch == home.branch
            && now.real == home.real
            && now.name == home.name
            && matches!(now.place, Place::Named)
            && same_parent(&now, home)
    }
}
