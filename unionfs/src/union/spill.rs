//! A full branch: what does not fit on it goes on on another one (`moveonenospc`).
//!
//! A file is moved whole, by what moves files between writable branches anyway: up as for a rename
//! or `moo`, down as for mvdown. Each of these shows the same tree at any moment, so that a daemon
//! that is killed leaves the file on one branch or on the other. Descriptors follow, since data is
//! reached by node. Only branches count on which nothing would hide the file, or be replaced by it.

use super::Union;
use super::merge::{MoveDown, Outcome};
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::{Node, Place};
use crate::shown::ShowPath;
use crate::spec::SpillPolicy;
use crate::types::*;
use smallvec::SmallVec;
use std::cmp::Reverse;
use std::sync::Arc;

/// What st_blocks counts.
const BLOCK: u64 = 512;

/// Branches that were found to be full.
type Full = SmallVec<[BranchId; 4]>;

/// What a branch's filesystem has left.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) bytes: u64,
    /// Nothing new can be made, however much space there is.
    pub(super) no_inodes: bool,
}

impl Room {
    pub(super) fn of(branch: &Branch) -> Result<Self> {
        let fs = rustix::fs::fstatvfs(&branch.root)?;
        Ok(Self {
            bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
            // Filesystems that have no table of inodes say that there are none at all.
            no_inodes: fs.f_files > 0 && fs.f_favail == 0,
        })
    }
}

/// Does this say that a branch is full?
pub(super) fn says_full(err: Errno) -> bool {
    matches!(err, Errno::NOSPC | Errno::DQUOT)
}

impl Union {
    /// Changes the data of a file by `change`, which may need `wanted` bytes more. If the file's
    /// branch has not got them, the file is moved to one that has, and the change made there.
    ///
    /// # Errors
    /// Those of `change`; what was there before is still there. The caller does not hold the node's
    /// `change` nor any directory lock.
    pub(super) fn with_room<T>(
        &self,
        node: &Arc<Node>,
        wanted: u64,
        change: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let mut full = Full::new();
        loop {
            let (err, branch) = {
                let _stays = node.change.read();
                match change() {
                    Err(err) if says_full(err) => (err, node.inode().0),
                    other => return other,
                }
            };
            let Some(policy) = self.options().move_on_enospc else {
                return Err(err);
            };
            if full.contains(&branch) || !self.move_on(node, branch, wanted, policy, &mut full) {
                return Err(err);
            }
        }
    }

    /// Moves a file from its full branch to one with room; false = there is none.
    fn move_on(
        &self,
        node: &Arc<Node>,
        from: BranchId,
        wanted: u64,
        policy: SpillPolicy,
        full: &mut Full,
    ) -> bool {
        let Ok(from) = self.branch(from) else {
            return false;
        };
        // Copying up has tried all branches that there are.
        if !from.writable() {
            return false;
        }
        full.push(from.id);
        let has_left = || node.inode().0 != from.id;
        let Ok(stat) = self.with_place(node, |_, loc| loc.stat()) else {
            return has_left();
        };
        let wanted = wanted.saturating_add(stat.blocks.saturating_mul(BLOCK));
        let parent = node.home().parent;
        for target in self.roomy(full, wanted, parent.as_deref(), policy) {
            let moved = self.move_to(node, &from, &target);
            // Two may move it at a time: then one of them fails, and the file has left all the same.
            if has_left() {
                log::info!(
                    "{} is full: file {} has left it",
                    from.path.shown(),
                    node.id.0
                );
                return true;
            }
            if let Err(err) = moved {
                let (file, path) = (node.id.0, target.path.shown());
                log::info!("file {file} cannot be moved to {path}: {err}");
            }
            full.push(target.id);
        }
        false
    }

    /// Makes something on `first` or, where that is full, on another writable branch that `fits`.
    /// `parent`: where it gets its name.
    ///
    /// # Errors
    /// Those of `make`; if everything is full, the first one.
    pub(super) fn where_room_is<T>(
        &self,
        first: BranchId,
        parent: Option<&Node>,
        fits: impl Fn(&Branch) -> Result<bool>,
        make: impl Fn(BranchId) -> Result<T>,
    ) -> Result<T> {
        let version = self.version();
        match make(first) {
            // Where the branches were changed meanwhile, the caller starts anew.
            Err(err) if says_full(err) && self.version() == version => {
                self.elsewhere((err, first), parent, fits, make)
            }
            other => other,
        }
    }

    /// Makes something that a branch had no room for on another writable branch that `fits`.
    ///
    /// # Errors
    /// As [`Self::where_room_is`].
    pub(super) fn elsewhere<T>(
        &self,
        (err, first): (Errno, BranchId),
        parent: Option<&Node>,
        fits: impl Fn(&Branch) -> Result<bool>,
        make: impl Fn(BranchId) -> Result<T>,
    ) -> Result<T> {
        let Some(policy) = self.options().move_on_enospc else {
            return Err(err);
        };
        let version = self.version();
        for branch in self.roomy(&[first], 0, parent, policy) {
            if !fits(&branch)? {
                continue;
            }
            match make(branch.id) {
                Err(err) if says_full(err) && self.version() == version => {}
                other => return other,
            }
        }
        Err(err)
    }

    /// Writable branches with so many bytes free, best ones first; those named are full, and so is
    /// what shares their space.
    fn roomy(
        &self,
        full: &[BranchId],
        wanted: u64,
        parent: Option<&Node>,
        policy: SpillPolicy,
    ) -> Vec<Arc<Branch>> {
        let stack = self.stack();
        let pool = |branch: &Branch| Room::of(branch).ok().map(|room| (branch.dev, room));
        let full_pools: Vec<_> = full
            .iter()
            .filter_map(|id| stack.get(*id).and_then(|b| pool(b)))
            .collect();
        let mut found = Vec::new();
        for branch in stack.branches().iter().filter(|b| b.writable()) {
            let Some((dev, room)) = pool(branch) else {
                continue;
            };
            let is_full = full.contains(&branch.id) || full_pools.contains(&(dev, room));
            if is_full || room.no_inodes || room.bytes < wanted {
                continue;
            }
            let preferred = policy == SpillPolicy::ParentMostFree
                && parent.is_some_and(|p| p.layer_on(branch.id).is_some());
            found.push((preferred, room.bytes, branch.clone()));
        }
        // Stable: of equals the upper one comes first.
        found.sort_by_key(|(preferred, bytes, _)| Reverse((*preferred, *bytes)));
        found.into_iter().map(|(.., branch)| branch).collect()
    }

    /// Moves a file to another writable branch, unless it cannot be there.
    fn move_to(&self, node: &Arc<Node>, from: &Arc<Branch>, target: &Arc<Branch>) -> Result<()> {
        let above = self.is_above(target.id, from.id);
        let home = node.home();
        let Some(parent) = home.parent.filter(|_| home.linked) else {
            let names = self.with_place(node, |_, loc| loc.stat())?.nlink;
            return match (above, names) {
                (_, 0) => self.move_unnamed(node, from, target),
                (true, _) => self.move_above(node, from, target),
                (false, _) => Ok(()),
            };
        };
        if !self.reaches(&parent, target)? {
            return Ok(());
        }
        if above {
            return self.move_above(node, from, target);
        }
        let how = MoveDown {
            from: Some(from.id),
            to: Some(target.id),
            own_copy: true,
            ..MoveDown::default()
        };
        if let Outcome::Left(reason) = self.move_down_from(&parent, &home.name, how)? {
            log::debug!("file {} stays: it {}", node.id.0, reason.text());
        }
        Ok(())
    }

    fn move_above(&self, node: &Arc<Node>, from: &Arc<Branch>, target: &Arc<Branch>) -> Result<()> {
        self.move_up(node, from, target.id, true)?;
        if node.inode().0 == from.id {
            // One of several names: the others go on to the copy, through its pseudo-link.
            self.bring_up(node, target.id)?;
        }
        Ok(())
    }

    /// A file without any name can be anywhere.
    fn move_unnamed(
        &self,
        node: &Arc<Node>,
        from: &Arc<Branch>,
        target: &Arc<Branch>,
    ) -> Result<()> {
        let _nobody_changes = node.change.write();
        let copy = || {
            let home = node.home();
            if home.branch == from.id && matches!(home.place, Place::Pinned(_)) {
                self.copy_file_to(node, target.id)?;
            }
            Ok(())
        };
        self.copying(node, copy).map(drop)
    }
}
