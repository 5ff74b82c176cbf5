//! What hides a name on one branch, and what it hides itself.

use super::Union;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::{Layer, Node};
use crate::sys::stat::{stat_at, stat_fd};
use crate::types::BranchId;
use rustix::fd::OwnedFd;
use std::sync::Arc;

impl Union {
    /// Would a new entry on `branch` be seen, or is there something above that hides it? (Only a
    /// writable branch below another one can be in that position.)
    pub(super) fn shows(&self, dir: &Arc<Node>, branch: &Branch, name: &[u8]) -> Result<bool> {
        Ok(!self.hidden_above(dir, branch, name)? && self.reaches(dir, branch)?)
    }

    /// Is `dir` on `branch` part of the union's directory, or would it be if it was made there? The
    /// caller holds no directory lock, unless it knows that `dir` is there.
    pub(super) fn reaches(&self, dir: &Arc<Node>, branch: &Branch) -> Result<bool> {
        let mut dir = dir.clone();
        while dir.layer_on(branch.id).is_none() {
            if self.is_cut_off(&dir, branch)? {
                return Ok(false);
            }
            let home = dir.home();
            if !home.linked {
                // A removed directory: who wants to make something in it finds out by itself.
                return Ok(true);
            }
            let parent = home.parent.ok_or(Errno::STALE)?;
            if self.hidden_above(&parent, branch, &home.name)? {
                return Ok(false);
            }
            // What is there under this name contributes nothing, unless it is the directory itself,
            // which somebody has just made there.
            if self.occupied(&parent, branch.id, &home.name)? {
                let _made = parent.dir().ok_or(Errno::STALE)?.ns.read();
                return Ok(dir.layer_on(branch.id).is_some());
            }
            dir = parent;
        }
        Ok(true)
    }

    /// Do the instances above `branch` keep the directory from going on under its own name below?
    fn is_cut_off(&self, dir: &Arc<Node>, branch: &Branch) -> Result<bool> {
        self.any_above(dir, branch, |above, fd| {
            let redirected = || Ok(self.redirect_of(above, fd, &stat_fd(fd)?)?.is_some());
            Ok(above.is_opaque(fd)? || redirected()?)
        })
    }

    fn hidden_above(&self, dir: &Arc<Node>, branch: &Branch, name: &[u8]) -> Result<bool> {
        self.any_above(dir, branch, |above, fd| above.has_whiteout(fd, name))
    }

    /// Is this true of an instance of `dir` above `branch` whose marks count?
    fn any_above(
        &self,
        dir: &Arc<Node>,
        branch: &Branch,
        marked: impl Fn(&Branch, &OwnedFd) -> Result<bool>,
    ) -> Result<bool> {
        let stack = self.stack();
        let position = stack.position(branch.id);
        for layer in dir.layers().iter().filter(|l| !l.sealed) {
            if stack.position(layer.branch) >= position {
                break;
            }
            let above = self.branch(layer.branch)?;
            if above.honours_whiteouts() && marked(&above, &*self.dir_fd(dir, layer)?)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn occupied(&self, dir: &Arc<Node>, branch: BranchId, name: &[u8]) -> Result<bool> {
        if dir.layer_on(branch).is_none() {
            return Ok(false);
        }
        match stat_at(self.dir_fd_on(dir, branch)?, name) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Would a name be seen if `branch` and everything above it did not have it?
    pub(super) fn visible_below(
        &self,
        dir: &Arc<Node>,
        branch: BranchId,
        name: &[u8],
    ) -> Result<bool> {
        let stack = self.stack();
        let position = stack.position(branch).ok_or(Errno::STALE)?;
        for layer in dir.layers().iter().filter(|l| !l.sealed) {
            let Some(at) = stack.position(layer.branch) else {
                continue;
            };
            if at <= position {
                continue;
            }
            let lower = self.branch(layer.branch)?;
            let fd = self.dir_fd(dir, layer)?;
            match stat_at(&fd, name) {
                Ok(stat)
                    if lower.honours_whiteouts()
                        && lower.is_whiteout_entry(&*fd, name, &stat)? =>
                {
                    return Ok(false);
                }
                Ok(_) => return Ok(true),
                Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(err) => return Err(err),
            }
            if lower.honours_whiteouts() && lower.has_whiteout(&fd, name)? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// `branch` has a name no more, and nothing below it shows: because a whiteout further down says
    /// so? Whoever makes the name again has to know, if that can be on a writable branch down there.
    pub(super) fn hidden_below(&self, dir: &Arc<Node>, branch: BranchId, name: &[u8]) -> bool {
        let stack = self.stack();
        let Some(position) = stack.position(branch) else {
            return true;
        };
        let mut below = stack.branches().iter().skip(usize::from(position.0) + 1);
        if !below.any(|b| b.writable()) {
            return false;
        }
        let marked = |layer: &Layer| -> Result<bool> {
            let lower = self.branch(layer.branch)?;
            Ok(lower.honours_whiteouts() && {
                let fd = self.dir_fd(dir, layer)?;
                lower.has_whiteout(&fd, name)?
            })
        };
        dir.layers()
            .iter()
            .filter(|l| !l.sealed && stack.position(l.branch) > Some(position))
            // Not knowing, a mark that is looked for in vain does no harm.
            .any(|layer| marked(layer).unwrap_or(true))
    }
}
