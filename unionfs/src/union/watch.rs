//! How far caches can be trusted, directory by directory, and the watches that this rests on
//! (`udba=notify`).
//!
//! A directory is watched on every branch that can change from its first use until the kernel
//! forgets it. Where a watch cannot be had it is checked again after a while, as with `udba=reval`.

use super::{FOREVER, Union};
use crate::errno::{Errno, Result};
use crate::node::watch::WatchIds;
use crate::node::{Layers, Node, Watched};
use crate::spec::{Access, Udba};
use crate::sys::inotify::{Inotify, WatchId, hears_everything};
use crate::types::{Attr, BranchId, Effect, Kind, Lifetimes, NodeId};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long names and attributes are trusted where a watch cannot be had.
const WITHOUT_WATCH: Duration = Duration::from_secs(1);

/// What the names and attributes in a directory are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nobody else changes anything.
    Forever,
    /// Changes are told.
    Watched,
    /// They must be compared with the branches after this time.
    Check(Duration),
}

/// A directory on a branch that is watched.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) node: Weak<Node>,
    pub(super) branch: BranchId,
}

/// All watches of a union.
#[derive(Debug)]
pub(super) struct Watches {
    pub(super) inotify: Inotify,
    /// Most watches at a time.
    limit: usize,
    /// The last one could not be had.
    full: AtomicBool,
    warned: AtomicBool,
    /// A leaf lock, also held while watches are added and taken off: the number that the kernel
    /// gives must be entered before its first event is looked up.
    targets: Mutex<FxHashMap<WatchId, SmallVec<[Target; 1]>>>,
}

impl Watches {
    pub(super) fn new(limit: usize) -> Result<Self> {
        Ok(Self {
            inotify: Inotify::new()?,
            limit,
            full: AtomicBool::new(false),
            warned: AtomicBool::new(false),
            targets: Mutex::default(),
        })
    }

    /// Watches a directory. ENOSPC: there are as many as there may be.
    fn add(
        &self,
        dir: impl rustix::fd::AsFd,
        node: &Arc<Node>,
        branch: BranchId,
    ) -> Result<WatchId> {
        let mut targets = self.targets.lock();
        if targets.len() >= self.limit {
            return Err(Errno::NOSPC);
        }
        let id = self.inotify.add(dir)?;
        let all = targets.entry(id).or_default();
        let node = Arc::downgrade(node);
        if !all
            .iter()
            .any(|t| t.branch == branch && t.node.ptr_eq(&node))
        {
            all.push(Target { node, branch });
        }
        Ok(id)
    }

    /// Takes watches of a node off.
    fn remove(&self, node: &Node, ids: &[WatchId]) {
        if ids.is_empty() {
            return;
        }
        let mut targets = self.targets.lock();
        for &id in ids {
            let Some(all) = targets.get_mut(&id) else {
                continue;
            };
            all.retain(|t| !std::ptr::eq(t.node.as_ptr(), node));
            if all.is_empty() {
                targets.remove(&id);
                self.inotify.remove(id);
            }
        }
        self.full.store(false, Ordering::Relaxed);
    }

    /// What a watch is of.
    pub(super) fn targets(&self, id: WatchId) -> SmallVec<[(Arc<Node>, BranchId); 1]> {
        let targets = self.targets.lock();
        let all = targets.get(&id).into_iter().flatten();
        all.filter_map(|t| Some((t.node.upgrade()?, t.branch)))
            .collect()
    }

    /// The kernel has taken a watch off.
    pub(super) fn drop_id(&self, id: WatchId) {
        self.targets.lock().remove(&id);
    }

    /// Watches that are held.
    pub(super) fn len(&self) -> usize {
        self.targets.lock().len()
    }

    fn warn_full(&self) {
        self.full.store(true, Ordering::Relaxed);
        if !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "udba=notify: no more watches (watches={}, or fs.inotify.max_user_watches): changes in \
                 further directories are noticed after {} s, as with udba=reval",
                self.limit,
                WITHOUT_WATCH.as_secs()
            );
        }
    }
}

impl Union {
    /// What the caches of a directory are worth now.
    pub(super) fn trust(&self, node: &Node) -> Trust {
        match self.options().udba {
            Udba::None => Trust::Forever,
            Udba::Reval(lifetime) => Trust::Check(lifetime),
            Udba::Notify if is_watched(node) => Trust::Watched,
            Udba::Notify => Trust::Check(WITHOUT_WATCH),
        }
    }

    /// Sees to it that a directory is watched, where that is asked for and possible. Before its
    /// names are read: what changes from then on is told. Holds no directory lock.
    pub(super) fn watch(&self, node: &Arc<Node>) {
        if self.options().udba != Udba::Notify {
            return;
        }
        let (Some(dir), watches) = (node.dir(), self.watches.load()) else {
            return;
        };
        let Some(watches) = &*watches else { return };
        match dir.watch.get() {
            Watched::Yes | Watched::Never => return,
            Watched::Full if watches.full.load(Ordering::Relaxed) => return,
            Watched::No | Watched::Full => {}
        }
        let version = dir.watch.version();
        let layers = node.layers();
        let (ids, watched) = self.watch_layers(watches, node, &layers);
        let old = dir.watch.replace_ids(ids.clone());
        let gone: WatchIds = old.into_iter().filter(|id| !ids.contains(id)).collect();
        watches.remove(node, &gone);
        match watched {
            // What was read before may be out of date.
            Watched::Yes => dir.watch.set_stale(),
            Watched::Full => watches.warn_full(),
            Watched::No | Watched::Never => {}
        }
        dir.watch.set(version, watched);
        if watched != Watched::Yes {
            // The kernel was told to trust what it knows for ever, perhaps.
            self.distrust(node);
        }
    }

    fn watch_layers(
        &self,
        watches: &Watches,
        node: &Arc<Node>,
        layers: &Layers,
    ) -> (WatchIds, Watched) {
        let mut ids = WatchIds::new();
        for layer in layers.iter().filter(|l| !l.sealed) {
            let added = self.branch(layer.branch).and_then(|branch| {
                if branch.perm.access == Access::RealReadOnly {
                    return Ok(None);
                }
                let fd = self.dir_fd(node, layer)?;
                if !hears_everything(&*fd)? {
                    return Err(Errno::ACCESS);
                }
                watches.add(&*fd, node, layer.branch).map(Some)
            });
            match added {
                Ok(id) => ids.extend(id),
                Err(err) => {
                    watches.remove(node, &ids);
                    let why = match err {
                        Errno::NOSPC | Errno::NOMEM => Watched::Full,
                        Errno::ACCESS | Errno::PERM => Watched::Never,
                        // Gone, or going: whoever asks next finds out.
                        _ => Watched::No,
                    };
                    return (WatchIds::new(), why);
                }
            }
        }
        (ids, Watched::Yes)
    }

    /// A directory has no watches any more, or never had: nothing that the kernel knows in it lasts.
    fn distrust(&self, node: &Arc<Node>) {
        let Some(dir) = node.dir() else { return };
        let Some(ns) = dir.ns.try_read() else {
            // Whoever holds the lock reads the names next, and tells what changed.
            return dir.watch.set_stale();
        };
        let Some(index) = &ns.index else { return };
        for (_, name, ..) in index.iter_from(0) {
            self.tell(Effect::InvalEntry {
                parent: node.id,
                name: name.to_vec(),
            });
        }
    }

    /// The kernel has forgotten a directory.
    pub(super) fn unwatch(&self, node: &Node) {
        if let (Some(dir), Some(watches)) = (node.dir(), &*self.watches.load()) {
            watches.remove(node, &dir.watch.replace_ids(WatchIds::new()));
        }
    }

    /// How long the kernel may trust an answer about a name in `parent`.
    pub fn lifetimes_in(&self, parent: NodeId, child: Option<&Attr>) -> Lifetimes {
        let by_udba = match self.options().udba {
            Udba::None => FOREVER,
            Udba::Reval(lifetime) => lifetime,
            Udba::Notify => match self.nodes.get(parent) {
                Some(dir) if is_watched(&dir) => FOREVER,
                _ => WITHOUT_WATCH,
            },
        };
        let entry = self.options().timeout.unwrap_or(by_udba);
        let negative = match (self.options().udba, self.options().timeout) {
            (Udba::Reval(lifetime), None) => lifetime.min(ABSENT),
            _ => entry,
        };
        Lifetimes {
            entry,
            attr: child.map_or(entry, |child| self.attr_lifetime(child)),
            negative,
        }
    }

    /// How long the kernel may trust attributes.
    pub fn attr_lifetime(&self, attr: &Attr) -> Duration {
        if let Some(timeout) = self.options().timeout {
            return timeout;
        }
        match self.options().udba {
            Udba::None => FOREVER,
            Udba::Reval(lifetime) => lifetime,
            // A file with several names may be changed by one in a directory that nobody watches.
            Udba::Notify if attr.nlink > 1 && attr.kind() != Kind::Dir => WITHOUT_WATCH,
            Udba::Notify => match self.nodes.get(attr.ino) {
                Some(node) if attributes_are_watched(&node) => FOREVER,
                _ => WITHOUT_WATCH,
            },
        }
    }

    /// As [`Self::attr_lifetime`], for the answer to a change of attributes: the kernel takes it
    /// for good even if it heard of another change meanwhile (`fuse_do_setattr`).
    pub fn changed_attr_lifetime(&self, attr: &Attr) -> Duration {
        match self.options().udba {
            Udba::Notify => Duration::ZERO,
            _ => self.attr_lifetime(attr),
        }
    }
}

/// How long an absent name is trusted with `udba=reval`: programs wait for files to come.
pub(super) const ABSENT: Duration = Duration::from_millis(200);

fn is_watched(node: &Node) -> bool {
    node.dir()
        .is_some_and(|dir| dir.watch.get() == Watched::Yes)
}

fn attributes_are_watched(node: &Node) -> bool {
    if node.kind == Kind::Dir && !is_watched(node) {
        return false;
    }
    let home = node.home();
    match &home.parent {
        Some(parent) => home.linked && is_watched(parent),
        None => node.id == NodeId::ROOT,
    }
}
