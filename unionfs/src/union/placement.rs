//! The branch on which something is made, changed, copied up, renamed or linked: facts gathered
//! for [`crate::policy`], and what it chose checked against what hides it.

use super::Union;
use super::namespace::Need;
use super::rename::At;
use super::spill::Room;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Layer, Node};
use crate::policy::{self, Facts, NewName};
use crate::spec::CreatePolicy;
use crate::stack::Stack;
use crate::types::*;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What create policies remember between two creations. Both locks are leaves.
#[derive(Debug, Default)]
pub(super) struct Placement {
    /// How far round robin has come.
    turn: Mutex<u64>,
    /// Free space as it was when last looked at.
    free: Mutex<Option<FreeSpace>>,
}

#[derive(Debug)]
struct FreeSpace {
    seen: Instant,
    bytes: SmallVec<[(BranchId, u64); 4]>,
}

/// By position.
type Flags = SmallVec<[bool; 16]>;

impl Placement {
    /// The branches have changed: what was known of them is worth nothing.
    pub(super) fn forget(&self) {
        *self.free.lock() = None;
    }
}

impl Union {
    /// EROFS unless names of this directory may be changed (see [`policy::may_change_names`]).
    pub(super) fn may_change(&self, dir: &Node) -> Result<()> {
        let stack = self.stack();
        let layers = dir.layers();
        let top = layers.first().ok_or(Errno::STALE)?.branch;
        if stack.get(top).is_some_and(|b| b.writable()) {
            return Ok(());
        }
        let (writable, has_parent) = (stack.each(Branch::writable), holding(&stack, dir));
        let facts = Facts {
            writable: &writable,
            has_parent: &has_parent,
        };
        if policy::may_change_names(facts) {
            Ok(())
        } else {
            Err(Errno::ROFS)
        }
    }

    /// The branch for something new of this name.
    pub(super) fn create_target(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        is_dir: bool,
    ) -> Result<BranchId> {
        let stack = self.stack();
        let wanted = self.options().create;
        let by_parent = wanted == CreatePolicy::TopDownParent;
        if by_parent
            && let Some(top) = parent.layers().first()
            && stack.get(top.branch).is_some_and(|b| b.writable())
        {
            return Ok(top.branch);
        }
        let (writable, has_parent) = (stack.each(Branch::writable), holding(&stack, parent));
        let facts = Facts {
            writable: &writable,
            has_parent: &has_parent,
        };
        let at = if by_parent {
            policy::create_top_down_parent(facts)?
        } else if !policy::may_change_names(facts) {
            return Err(Errno::ROFS);
        } else {
            let marks = self.marks_of(&stack, parent, name)?;
            let free = self.free_space(&stack, hold_of(wanted))?;
            let new = NewName {
                facts,
                free: &free,
                is_dir,
                whiteout: marks.whiteout,
                parent_opaque: marks.parent_opaque,
                above_opaque: marks.above_opaque,
            };
            policy::create(wanted, &new, &mut self.placement.turn.lock())?
        };
        let start = usize::from(at.0);
        self.nearest(&stack, start, |b| self.shows(parent, b, name))
    }

    /// The branch on which a name whose topmost instance is on `top` is changed.
    pub(super) fn change_target(&self, parent: &Arc<Node>, top: BranchId) -> Result<BranchId> {
        let stack = self.stack();
        if stack.get(top).is_some_and(|b| b.writable()) {
            return Ok(top);
        }
        self.copy_target(&stack, parent, Some(parent), top)
    }

    /// The branch that the policy copies this node to.
    pub(super) fn copy_up_target(&self, node: &Arc<Node>) -> Result<BranchId> {
        let home = node.home();
        let parent = home.parent.filter(|_| home.linked);
        let within = if node.kind == Kind::Dir {
            Some(node)
        } else {
            parent.as_ref()
        };
        let stack = self.stack();
        match (&parent, within) {
            (Some(parent), Some(within)) => {
                self.copy_target(&stack, within, Some(parent), home.branch)
            }
            (None, Some(within)) => self.copy_target(&stack, within, None, home.branch),
            // Without a name it can go anywhere.
            (_, None) => {
                let writable = stack.each(Branch::writable);
                let facts = Facts {
                    writable: &writable,
                    has_parent: &writable,
                };
                let entry = stack.position(home.branch).ok_or(Errno::STALE)?;
                let at = policy::copy_up(facts, entry, self.options().copyup)?;
                Ok(stack.branches()[usize::from(at.0)].id)
            }
        }
    }

    /// Where the policy copies an entry on `top` to; `within` must be seen there. No `parent`:
    /// every branch counts as holding it.
    fn copy_target(
        &self,
        stack: &Stack,
        within: &Arc<Node>,
        parent: Option<&Arc<Node>>,
        top: BranchId,
    ) -> Result<BranchId> {
        let entry = stack.position(top).ok_or(Errno::STALE)?;
        let writable = stack.each(Branch::writable);
        let has_parent = match parent {
            Some(parent) => holding(stack, parent),
            None => stack.each(|_| true),
        };
        let facts = Facts {
            writable: &writable,
            has_parent: &has_parent,
        };
        let target = policy::copy_up(facts, entry, self.options().copyup)?;
        self.nearest(stack, usize::from(target.0), |b| self.reaches(within, b))
    }

    /// The writable branch on which a rename happens: the source's if it is writable, else where it
    /// is copied to; the target's if that is higher; and higher still if something would hide the
    /// new name there. `top` and `dest`: the branches of the two.
    pub(super) fn rename_branch(
        &self,
        from: At<'_>,
        top: BranchId,
        to: At<'_>,
        dest: Option<BranchId>,
    ) -> Result<Arc<Branch>> {
        let stack = self.stack();
        let mut start = stack.position(self.change_target(from.dir, top)?);
        if let Some(dest) = dest {
            let other = stack.position(self.change_target(to.dir, dest)?);
            start = start.min(other);
        }
        let start = usize::from(start.ok_or(Errno::STALE)?.0);
        let id = self.nearest(&stack, start, |b| {
            Ok(self.shows(to.dir, b, to.name)? && self.reaches(from.dir, b)?)
        })?;
        self.branch(id)
    }

    /// `branch`, or the nearest writable one above it on which what is made in `dir` is seen.
    pub(super) fn reached(&self, dir: &Arc<Node>, branch: BranchId) -> Result<BranchId> {
        let stack = self.stack();
        let start = position(&stack, branch).ok_or(Errno::STALE)?;
        self.nearest(&stack, start, |b| self.reaches(dir, b))
    }

    /// The writable branch on which a link of a file is made: its own if it is writable, else where
    /// it is copied to; higher still if something would hide the new name there, and not below
    /// `least`.
    pub(super) fn link_branch(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        least: Option<BranchId>,
    ) -> Result<BranchId> {
        let stack = self.stack();
        let home = node.home();
        let own = stack.get(home.branch).ok_or(Errno::STALE)?;
        let first = if own.writable() {
            own.id
        } else {
            self.copy_up_target(node)?
        };
        let mut start = position(&stack, first).ok_or(Errno::STALE)?;
        if let Some(least) = least {
            start = start.min(position(&stack, least).ok_or(Errno::STALE)?);
        }
        let named = home.parent.filter(|_| home.linked);
        self.nearest(&stack, start, |b| {
            let source_fits = match &named {
                Some(dir) if b.id != home.branch => self.reaches(dir, b)?,
                _ => true,
            };
            Ok(source_fits && self.shows(parent, b, name)?)
        })
    }

    /// The branch at `start`, or the nearest above it, that is writable and `fits`.
    fn nearest(
        &self,
        stack: &Stack,
        start: usize,
        fits: impl Fn(&Branch) -> Result<bool>,
    ) -> Result<BranchId> {
        for branch in stack.branches()[..=start].iter().rev() {
            if branch.writable() && fits(branch)? {
                return Ok(branch.id);
            }
        }
        Err(Errno::ROFS)
    }

    /// Bytes free on the writable branches, by position; as old as `hold` at most. None where there
    /// are no inodes left to use them.
    fn free_space(&self, stack: &Stack, hold: Duration) -> Result<SmallVec<[u64; 16]>> {
        let known = |free: &FreeSpace, id| free.bytes.iter().find(|(b, _)| *b == id).map(|e| e.1);
        let writable = || stack.branches().iter().filter(|b| b.writable());
        let by_position = |free: &FreeSpace| {
            let bytes = stack.branches().iter().map(|b| known(free, b.id));
            bytes.map(Option::unwrap_or_default).collect()
        };
        if let Some(free) = &*self.placement.free.lock()
            && free.seen.elapsed() < hold
            && writable().all(|b| known(free, b.id).is_some())
        {
            return Ok(by_position(free));
        }
        let mut now = FreeSpace {
            seen: Instant::now(),
            bytes: SmallVec::new(),
        };
        // Branches on one filesystem have the same space, whoever writes there between two looks.
        let mut filesystems: SmallVec<[(u64, u64); 4]> = SmallVec::new();
        for branch in writable() {
            let seen = filesystems.iter().find(|(dev, _)| *dev == branch.dev);
            let free = match seen {
                Some((_, free)) => *free,
                None => {
                    let room = Room::of(branch)?;
                    let free = if room.no_inodes { 0 } else { room.bytes };
                    filesystems.push((branch.dev, free));
                    free
                }
            };
            now.bytes.push((branch.id, free));
        }
        let found = by_position(&now);
        *self.placement.free.lock() = Some(now);
        Ok(found)
    }

    /// The marks that decide where a name can be made.
    fn marks_of(&self, stack: &Stack, parent: &Arc<Node>, name: &[u8]) -> Result<Marks> {
        let hidden = {
            let ns = self.ns_read(parent, Need::Names)?;
            self.resolve(parent, &ns, name)? == Found::Whiteout
        };
        let mut marks = Marks {
            parent_opaque: self.opaque_at(stack, parent)?,
            ..Marks::default()
        };
        if hidden {
            for layer in parent.layers().iter().filter(|l| !l.sealed) {
                let branch = self.branch(layer.branch)?;
                if branch.honours_whiteouts()
                    && branch.has_whiteout(&*self.dir_fd(parent, layer)?, name)?
                {
                    marks.whiteout = position(stack, branch.id);
                    break;
                }
            }
        }
        marks.above_opaque = marks.parent_opaque;
        for dir in parent.ancestors() {
            let at = self.opaque_at(stack, &dir)?;
            marks.above_opaque = marks.above_opaque.into_iter().chain(at).min();
        }
        Ok(marks)
    }

    /// Where a directory is opaque: that can only be the last of its layers.
    fn opaque_at(&self, stack: &Stack, dir: &Arc<Node>) -> Result<Option<usize>> {
        let layers = dir.layers();
        let Some(last) = layers.last().filter(|l| !l.sealed) else {
            return Ok(None);
        };
        let branch = self.branch(last.branch)?;
        let opaque = branch.honours_whiteouts() && branch.is_opaque(&*self.dir_fd(dir, last)?)?;
        Ok(position(stack, branch.id).filter(|_| opaque))
    }
}

#[derive(Default)]
struct Marks {
    whiteout: Option<usize>,
    parent_opaque: Option<usize>,
    above_opaque: Option<usize>,
}

fn position(stack: &Stack, id: BranchId) -> Option<usize> {
    stack.position(id).map(|p| usize::from(p.0))
}

/// By position: is the directory there?
fn holding(stack: &Stack, dir: &Node) -> Flags {
    let layers = dir.layers();
    stack.each(|b| layers.iter().any(|l: &Layer| l.branch == b.id && !l.sealed))
}

/// How long free space is taken for known.
fn hold_of(policy: CreatePolicy) -> Duration {
    match policy {
        CreatePolicy::TopDownParent | CreatePolicy::RoundRobin => Duration::MAX,
        CreatePolicy::TopDownMostFree { hold, .. }
        | CreatePolicy::MostFree { hold }
        | CreatePolicy::MostFreeRoundRobin { hold, .. }
        | CreatePolicy::ParentMostFree { hold }
        | CreatePolicy::ParentMostFreeRoundRobin { hold, .. } => hold,
    }
}
