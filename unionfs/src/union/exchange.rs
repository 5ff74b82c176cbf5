//! RENAME2 with `RENAME_EXCHANGE`.

use super::Union;
use super::rename::At;
use crate::errno::{Errno, Result};
use crate::node::Present;
use crate::node::index::Found;
use rustix::fs::RenameFlags as SysFlags;

impl Union {
    /// RENAME_EXCHANGE: both names exist on the branch, then they change places at once.
    pub(super) fn try_exchange(&self, a: At<'_>, b: At<'_>) -> Result<bool> {
        let ((first, one), (second, two)) = (self.hold(a)?, self.hold(b)?);
        let top = self.holder(first.node()?, &one);
        let other = self.holder(second.node()?, &two);
        let branch = self.rename_branch(a, top, b, Some(other))?;
        if branch.store.as_ref().is_some_and(|s| s.lacks().exchange) {
            // What it would answer, before anything is copied for it.
            return Err(Errno::INVAL);
        }
        self.bring_to(first.node()?, &one, a, &branch)?;
        self.bring_to(second.node()?, &two, b, &branch)?;
        let mut dirs = self.lock_two(a.dir, b.dir)?;
        let Found::Present(one) = self.resolve(a.dir, dirs.source(), a.name)? else {
            return Err(Errno::NOENT);
        };
        let Found::Present(two) = self.resolve(b.dir, dirs.target(), b.name)? else {
            return Err(Errno::NOENT);
        };
        if one.top != branch.id || two.top != branch.id {
            return Ok(false);
        }
        let (first, second) = (first.node()?, second.node()?);
        for (to, node) in [(b, first), (a, second)] {
            if to.dir.id == node.id || to.dir.ancestors().any(|n| n.id == node.id) {
                return Err(Errno::INVAL);
            }
            self.refuse_mark(node, &branch, to.name)?;
        }
        let (lower_a, lower_b) = (
            self.plan_lower(first, &branch, two.below)?,
            self.plan_lower(second, &branch, one.below)?,
        );
        self.mark_source(first, &branch, &lower_a)?;
        self.mark_source(second, &branch, &lower_b)?;
        let (fd_a, fd_b) = (
            self.dir_fd_on(a.dir, branch.id)?,
            self.dir_fd_on(b.dir, branch.id)?,
        );
        rustix::fs::renameat_with(&fd_a, a.name, &fd_b, b.name, SysFlags::EXCHANGE)?;
        self.before_rename(first, a.dir, a.name);
        self.before_rename(second, b.dir, b.name);
        self.moved(first, one.real, b, lower_a, &branch);
        self.moved(second, two.real, a, lower_b, &branch);
        if let Some(index) = &mut dirs.source().index {
            index.set(
                a.name,
                &Present::single(branch.id, two.kind, two.real, one.below),
            );
        }
        if let Some(index) = &mut dirs.target().index {
            index.set(
                b.name,
                &Present::single(branch.id, one.kind, one.real, two.below),
            );
        }
        self.changed(a.dir, dirs.source(), branch.id);
        self.changed(b.dir, dirs.target(), branch.id);
        Ok(true)
    }
}
