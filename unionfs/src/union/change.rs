//! Changing the branches of a union while it is in use.
//!
//! What takes time (opening a branch, reading its books) is done before; the change itself is made
//! behind the closed gate, when no operation is under way. Nodes are looked at again when they are
//! next needed (`refresh`). What the kernel has cached is told in the result, to be taken back.

use super::Union;
use super::gate::Closed;
use super::metacopy::BELOW;
use super::setup::{learn, note_stack, root_layers};
use crate::branch::Branch;
use crate::branch::log::Recovered;
use crate::branch::open::{open_again, open_beside};
use crate::errno::Errno;
use crate::node::{Layers, Node};
use crate::setup::SetupError;
use crate::shown::ShowPath;
use crate::spec::{BranchPerm, BranchSpec, Grammar};
use crate::stack::Stack;
use crate::types::{BranchId, Effect, Kind, NodeId};
use rustc_hash::FxHashSet;
use rustix::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long operations under way are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a change was not made; then nothing was.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// It makes no sense, or a directory cannot be used.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// An operation did not end.
    #[error("an operation on the mount did not end in time (EBUSY): try again when it has")]
    NeverQuiet,
    /// These nodes need the branch as it is.
    #[error("branch is busy (EBUSY)")]
    Busy(Vec<NodeId>),
}

impl Union {
    /// Closes the gate, or says why not.
    fn quiet(&self) -> Result<Closed<'_>, LiveError> {
        self.gate.close(PATIENCE).ok_or(LiveError::NeverQuiet)
    }

    /// Inserts a branch at `index` (0 = topmost), on a directory that the caller has opened.
    ///
    /// # Errors
    /// As at mount; EDOM for an index beyond the end; ENOSPC after 65534 branches.
    pub fn add_branch(
        &self,
        index: usize,
        spec: &BranchSpec,
        dir: OwnedFd,
        grammar: Grammar,
    ) -> Result<(), LiveError> {
        let stack = self.stack();
        let count = stack.branches().len();
        if index > count {
            return Err(SetupError::path(
                &spec.path,
                Errno::DOM,
                format!("no place {index}: an index from 0 to {count}"),
            )
            .into());
        }
        let id = self.next_branch.fetch_add(1, Ordering::Relaxed);
        let id = u16::try_from(id)
            .ok()
            .map(BranchId)
            .filter(|id| *id != BranchId::NONE);
        let id = id.ok_or_else(|| {
            SetupError::path(
                &spec.path,
                Errno::NOSPC,
                "this mount has had all the branches it can have: mount it again",
            )
        })?;
        let (branch, _) = open_beside(spec, dir, id, stack.branches().iter(), grammar)?;
        self.redirects.load(&branch).map_err(SetupError::from)?;
        let closed = self.quiet().inspect_err(|_| self.redirects.unload(id))?;
        self.inos.add_filesystem(branch.dev, branch.fs);
        let mut branches = stack.branches().to_vec();
        branches.insert(index, branch);
        self.replace_stack(&closed, branches);
        Ok(())
    }

    /// Changes permission and attributes of a branch, whose directory the caller has opened anew.
    ///
    /// # Errors
    /// As at mount; [`LiveError::Busy`]: the kernel writes to these files by itself.
    pub fn mod_branch(
        &self,
        id: BranchId,
        perm: BranchPerm,
        dir: OwnedFd,
    ) -> Result<(), LiveError> {
        let stack = self.stack();
        let old = stack.get(id).ok_or_else(no_branch)?;
        let others = stack.branches().iter().filter(|b| b.id != id);
        let new = open_again(old, perm, dir, others)?;
        let retired = old.store.clone().filter(|_| new.store.is_none());
        let closed = self.quiet()?;
        if retired.is_some() {
            let writes = |node: &Arc<Node>| node.inode().0 == id && self.is_busy(node.id);
            let busy: Vec<NodeId> = self
                .nodes
                .all()
                .iter()
                .filter(|n| writes(n))
                .map(|n| n.id)
                .collect();
            if !busy.is_empty() {
                return Err(LiveError::Busy(busy));
            }
        }
        self.redirects.load(&new).map_err(SetupError::from)?;
        self.drop_descriptors(id);
        let replace = |b: &Arc<Branch>| if b.id == id { new.clone() } else { b.clone() };
        let branches = stack.branches().iter().map(replace).collect();
        self.replace_stack(&closed, branches);
        drop(closed);
        if let Some(store) = retired {
            put_away(old, &store);
            store.retire();
        }
        Ok(())
    }

    /// Removes a branch.
    ///
    /// `held`: nodes that are only there and that somebody uses, as far as the caller found out.
    ///
    /// # Errors
    /// EBUSY for the last one; [`LiveError::Busy`] with what is in use.
    pub fn del_branch(&self, id: BranchId, held: &FxHashSet<NodeId>) -> Result<(), LiveError> {
        let closed = self.quiet()?;
        let stack = self.stack();
        let old = stack.get(id).ok_or_else(no_branch)?.clone();
        let shown = |b: &&Arc<Branch>| b.id != id && !b.perm.data_only;
        if !stack.branches().iter().any(|b| shown(&b)) {
            let what = "the last branch of a union cannot be removed";
            return Err(SetupError::path(&old.path, Errno::BUSY, what).into());
        }
        let only = self.nodes_only_on(id);
        let unseen_opens = self.opens.are_unseen();
        let in_use = |n: &&Arc<Node>| {
            n.open_count() > 0 || held.contains(&n.id) || (unseen_opens && n.kind != Kind::Dir)
        };
        let busy: Vec<NodeId> = only.iter().filter(in_use).map(|n| n.id).collect();
        if !busy.is_empty() {
            return Err(LiveError::Busy(busy));
        }
        let tops: Vec<Arc<Node>> = self.dirs_with_top(id);
        self.drop_descriptors(id);
        self.redirects.unload(id);
        let left = stack.branches().iter().filter(|b| b.id != id).cloned();
        self.replace_stack(&closed, left.collect());
        // They keep their numbers, which came from the branch that is gone.
        for dir in tops {
            self.refresh(&dir);
        }
        for node in only.iter().filter(|n| n.kind != Kind::Dir) {
            self.tell(Effect::InvalInode { node: node.id });
        }
        drop(closed);
        if let Some(store) = &old.store {
            put_away(&old, store);
        }
        Ok(())
    }

    /// Copies these nodes of a branch to a writable branch above it, where there is one. What the
    /// kernel itself reads and writes stays: it would go on with the old file.
    pub fn copy_up_from(&self, id: BranchId, nodes: impl Iterator<Item = NodeId>) {
        let _inside = self.enter();
        for node in nodes.filter_map(|node| self.known(node)) {
            if node.inode().0 != id {
                continue;
            }
            let copied = self
                .branch_above(&node, id)
                .and_then(|target| match node.kind {
                    Kind::Dir => self.make_dir_on(&node, target),
                    _ => {
                        // On a writable branch it may be changed in place: not meanwhile.
                        let _nobody_changes = node.change.write();
                        if self.is_busy(node.id) {
                            return Err(Errno::BUSY);
                        }
                        self.copying(&node, || self.copy_file_to(&node, target))
                            .map(drop)
                    }
                });
            if let Err(err) = copied {
                log::info!("node {} stays on its branch: {err}", node.id.0);
            }
        }
    }

    fn branch_above(&self, node: &Arc<Node>, id: BranchId) -> crate::errno::Result<BranchId> {
        let stack = self.stack();
        let position = stack.position(id).ok_or(Errno::STALE)?;
        let above = &stack.branches()[..usize::from(position.0)];
        let nearest = above.iter().rev().find(|b| b.writable());
        let nearest = nearest.ok_or(Errno::ROFS)?.id;
        let home = node.home();
        match (node.kind, home.parent.filter(|_| home.linked)) {
            (Kind::Dir, _) => self.reached(node, nearest),
            (_, Some(parent)) => self.reached(&parent, nearest),
            (_, None) => Ok(nearest),
        }
    }

    fn dirs_with_top(&self, id: BranchId) -> Vec<Arc<Node>> {
        let mut nodes = self.nodes.all();
        nodes.retain(|n| n.kind == Kind::Dir && n.id != NodeId::ROOT && n.inode().0 == id);
        nodes
    }

    /// Nothing is reached through descriptors on this branch any more.
    fn drop_descriptors(&self, id: BranchId) {
        self.dir_fds.retain(|(_, branch, _)| *branch != id);
        // What is read from below may be of this branch.
        self.data_fds
            .retain(|(_, branch)| *branch != id && *branch != BELOW);
        self.opens.unpin(id);
    }

    /// These are the branches from now on.
    fn replace_stack(&self, _closed: &Closed<'_>, branches: Vec<Arc<Branch>>) {
        let layers = root_layers(&branches);
        let stores = branches.iter().filter_map(|b| Some((b, b.store.as_ref()?)));
        let books: Vec<(Arc<Branch>, Recovered)> = stores
            .map(|(branch, store)| {
                let books = store.replay().unwrap_or_else(|err| {
                    log::error!("{}: cannot read the books: {err}", branch.path.shown());
                    Recovered::default()
                });
                (branch.clone(), books)
            })
            .collect();
        self.links.clear();
        learn(&books, &self.inos, &self.links);
        self.placement.forget();
        note_stack(&branches);
        self.stack.store(Arc::new(Stack::new(branches)));
        let version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(root) = self.nodes.get(NodeId::ROOT) {
            let mut home = root.home();
            (home.branch, home.real) = (layers[0].branch, layers[0].real);
            root.set_layers(Layers::new(layers));
            root.update_home(|h| *h = home);
            if let Some(dir) = root.dir() {
                dir.ns.write().stale = true;
            }
            root.mark_seen(version);
        }
    }

    /// The branch of this root directory (device and inode number).
    pub fn branch_by_root(&self, root: (u64, u64)) -> Option<BranchId> {
        let stack = self.stack();
        let mut branches = stack.branches().iter();
        branches.find(|b| (b.dev, b.root_ino) == root).map(|b| b.id)
    }

    /// The branch with this root directory, else the one of this path.
    pub fn find_branch(&self, root: Option<(u64, u64)>, path: &Path) -> Option<BranchId> {
        root.and_then(|root| self.branch_by_root(root)).or_else(|| {
            let stack = self.stack();
            let mut branches = stack.branches().iter();
            branches.find(|b| b.path == path).map(|b| b.id)
        })
    }
}

fn no_branch() -> LiveError {
    SetupError::path(Path::new("-"), Errno::NOENT, "no such branch").into()
}

/// The branch is not written any more.
fn put_away(branch: &Branch, store: &crate::branch::Store) {
    if let Err(err) = store.sync() {
        log::warn!(
            "{}: cannot sync the bookkeeping: {err}",
            branch.path.shown()
        );
    }
}
