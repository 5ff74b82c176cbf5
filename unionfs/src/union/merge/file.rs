//! Moving one file.

use super::raw::{Times, drop_whiteout};
use super::{Outcome, Reason, Way};
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Namespace, Node, Place, Present};
use crate::sys::stat::stat_at;
use crate::sys::with_write_permission;
use crate::sys::{Name, RealStat};
use crate::types::{Kind, NodeId};
use crate::union::Union;
use crate::union::copyup::{Copy, How};
use crate::union::rename::At;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use smallvec::SmallVec;
use std::sync::Arc;

/// Copies made while the file may still be changed, before one for which changes wait.
const FREE_COPIES: usize = 2;

/// Up to this size a file is copied at once while changes wait.
const SMALL: u64 = 1 << 20;

impl Union {
    /// Moves a non-directory whose directory is on the lower branch.
    pub(super) fn move_file(&self, way: &Way, parent: &Arc<Node>, name: &[u8]) -> Result<Outcome> {
        let held = match self.hold(At { dir: parent, name }) {
            Ok((held, _)) => held,
            Err(Errno::NOENT) => return Ok(Outcome::Gone),
            Err(err) => return Err(err),
        };
        let node = held.node()?;
        match self.check_file(way, parent, name, node)? {
            Some(Outcome::Left(Reason::HardLinked)) if way.groups => {
                return self.move_linked(way, parent, name, node);
            }
            Some(outcome) => return Ok(outcome),
            None => {}
        }
        let done = self.with_copy(way, node, |stat, copy| {
            self.switch(way, parent, name, node, stat, copy)
        })?;
        Ok(done.unwrap_or(Outcome::Left(Reason::Changed)))
    }

    /// Calls `finish` with a complete copy of a file of the upper branch, while changes of the file
    /// wait. `None` = it is not on that branch.
    pub(super) fn with_copy<T>(
        &self,
        way: &Way,
        node: &Arc<Node>,
        finish: impl FnOnce(&RealStat, &mut Copy<'_>) -> Result<T>,
    ) -> Result<Option<T>> {
        let place = || self.with_place(node, |b, loc| Ok((b.id, loc.stat()?, loc.clone())));
        for _ in 0..FREE_COPIES {
            let (branch, stat, loc) = place()?;
            if branch != way.from.id || stat.size <= SMALL {
                break;
            }
            let settled = !stat.ctime.may_recur();
            let mut copy =
                self.build_copy(node, &way.to, &way.from, &loc, &stat, How::default())?;
            let _nobody_changes = node.change.write();
            if settled && same_file(&stat, &place()?.1) {
                return finish(&stat, &mut copy).map(Some);
            }
        }
        let _nobody_changes = node.change.write();
        let (branch, stat, loc) = place()?;
        if branch != way.from.id {
            return Ok(None);
        }
        let mut copy = self.build_copy(node, &way.to, &way.from, &loc, &stat, How::default())?;
        finish(&stat, &mut copy).map(Some)
    }

    /// Before anything is copied: `Some` = it is not to be.
    fn check_file(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<Option<Outcome>> {
        let _gate = node.change.read();
        let judged = {
            let ns = self.ns_read(parent, crate::union::namespace::Need::Names)?;
            let found = self.resolve(parent, &ns, name)?;
            self.judge(way, parent, name, node, &found)?
        };
        let stat = match judged {
            Ok(stat) => stat,
            Err(outcome) => return Ok(Some(outcome)),
        };
        // The names are not locked any more: whoever answers may wait for them.
        if self.is_busy(node.id) {
            return Ok(Some(Outcome::Left(Reason::Busy)));
        }
        if way.options.dry_run {
            return Ok(Some(Outcome::Moved(stat.size)));
        }
        Ok(None)
    }

    /// May the file be moved? The names of its directory are locked. Its stat, or what stands
    /// against it.
    fn judge(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        found: &Found,
    ) -> Result<std::result::Result<RealStat, Outcome>> {
        let stat = match self.judge_name(way, parent, name, node.id, found)? {
            Ok(stat) => stat,
            Err(outcome) => return Ok(Err(outcome)),
        };
        let reason = if self.is_linked(node, &stat) {
            Reason::HardLinked
        } else if node.inode() != (way.from.id, stat.ino) {
            Reason::Changed
        } else {
            return Ok(Ok(stat));
        };
        Ok(Err(Outcome::Left(reason)))
    }

    /// Has a file of the upper branch other names?
    fn is_linked(&self, node: &Node, stat: &RealStat) -> bool {
        stat.nlink > 1 || self.links.plink(node.id).is_some() || self.links.delta(node.id) != 0
    }

    /// May a name of the upper branch be moved, whatever file it leads to?
    pub(super) fn judge_name(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: NodeId,
        found: &Found,
    ) -> Result<std::result::Result<RealStat, Outcome>> {
        let left = |reason| Ok(Err(Outcome::Left(reason)));
        let Found::Present(found) = found else {
            return Ok(Err(Outcome::Gone));
        };
        if found.top != way.from.id {
            let lies_below = !self.is_above(found.top, way.from.id);
            return if lies_below {
                Ok(Err(Outcome::Gone))
            } else {
                left(Reason::Upper)
            };
        }
        if found.kind == Kind::Dir {
            return left(Reason::Changed);
        }
        let stat = stat_at(self.dir_fd_on(parent, way.from.id)?, name)?;
        if let Some(reason) = self.in_the_way(way, parent, name)? {
            return left(reason);
        }
        if !way.overwrite
            && let Some(layer) = parent.layer_on(way.to.id)
            && let Ok(lower) = stat_at(self.dir_fd(parent, &layer)?, name)
            && !way.to.is_whiteout_device(&lower, name)
            && !(way.own_copy && self.inos.number(&lower) == node)
        {
            return left(Reason::Exists);
        }
        Ok(Ok(stat))
    }

    /// Puts the copy in place below and takes the upper file away. `stat` is of what was copied;
    /// changes of the file wait.
    fn switch(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        stat: &RealStat,
        copy: &mut Copy<'_>,
    ) -> Result<Outcome> {
        // Asked before the names are locked: whoever answers may wait for names itself. Opens of
        // this file wait for the switch.
        if self.is_busy(node.id) {
            return Ok(Outcome::Left(Reason::Busy));
        }
        let mut ns = self.ns_write(parent)?;
        let found = self.resolve(parent, &ns, name)?;
        let now = match self.judge(way, parent, name, node, &found)? {
            Ok(now) => now,
            Err(outcome) => return Ok(outcome),
        };
        if !same_file(stat, &now) {
            return Ok(Outcome::Left(Reason::Changed));
        }
        if way.keep_upper {
            self.put_hidden(way, parent, &mut ns, name, |lower| {
                self.place_below(way, parent, lower, name, copy)
            })?;
            return Ok(Outcome::Moved(stat.size));
        }
        let (upper, lower) = (
            self.dir_fd_on(parent, way.from.id)?,
            self.dir_fd_on(parent, way.to.id)?,
        );
        let times = Times::of(&lower)?;
        let origin = self.remember_origin(node, &way.to, copy, stat)?;
        if let Err(err) = self.place_below(way, parent, &lower, name, copy) {
            self.inos.forget_real(way.to.dev, copy.stat.ino);
            return Err(err);
        }
        // A later file that gets the inode number of the old one is another file. (It may get it as
        // soon as the old one is gone.)
        self.inos.note_original(&origin.source, node.id);
        self.leave_upper(way, parent, &upper, &lower, name)?;
        drop(times);
        self.switched(way, parent, &mut ns, name, node, stat, copy)?;
        Ok(Outcome::Moved(stat.size))
    }

    /// What has its name below goes above: not before it is safe there, and first the whiteouts beside.
    pub(super) fn leave_upper(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        upper: &Arc<OwnedFd>,
        lower: &Arc<OwnedFd>,
        name: &[u8],
    ) -> Result<()> {
        self.settle(way, lower)?;
        drop_whiteout_beside(&way.to, lower, name)?;
        self.change_upper(way, parent, upper, || {
            drop_whiteout_beside(&way.from, upper, name)?;
            with_write_permission(upper, || {
                rustix::fs::unlinkat(upper, name, AtFlags::empty())
            })
        })
    }

    /// Gives the finished copy its name below, in place of what the upper file hides there.
    pub(super) fn place_below(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        lower: &Arc<OwnedFd>,
        name: &[u8],
        copy: &mut Copy<'_>,
    ) -> Result<()> {
        self.replace_below(way, parent, lower, name, &[], || {
            rustix::fs::renameat(copy.store.tmp(), &*copy.temp, lower, name)
        })?;
        copy.published = true;
        Ok(())
    }

    /// Lets `put` give something the name on the lower branch, by a rename; the links of the files
    /// in `counted` are counted anew by it.
    pub(super) fn replace_below(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        lower: &Arc<OwnedFd>,
        name: &[u8],
        counted: &[NodeId],
        put: impl Fn() -> Result<()>,
    ) -> Result<()> {
        let old = match stat_at(lower, name) {
            Ok(old) if old.kind() == Kind::Dir => {
                self.clear_below(way, parent, lower, name)?;
                None
            }
            Ok(old) if way.to.is_whiteout_device(&old, name) => None,
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(err) => return Err(err),
        };
        let replaced = match &old {
            Some(old) => self.before_replacing(way, parent, name, old)?,
            None => None,
        };
        let mut counted: SmallVec<[NodeId; 2]> = SmallVec::from_slice(counted);
        counted.extend(
            old.iter()
                .filter(|o| o.nlink > 1)
                .map(|o| self.inos.number(o)),
        );
        let _counting = self.links.counting(&counted);
        with_write_permission(lower, put)?;
        if let Some(old) = &old {
            self.after_replacing(way, replaced, old);
        }
        Ok(())
    }

    /// Has `put` give something the name on the lower branch, where what the upper branch shows
    /// goes on hiding it.
    pub(super) fn put_hidden(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        name: &[u8],
        put: impl FnOnce(&Arc<OwnedFd>) -> Result<()>,
    ) -> Result<()> {
        let lower = self.dir_fd_on(parent, way.to.id)?;
        let times = Times::of(&lower)?;
        put(&lower)?;
        drop_whiteout_beside(&way.to, &lower, name)?;
        drop(times);
        if let Some(index) = &mut ns.index
            && let Found::Present(mut found) = index.get(name)
        {
            found.below = true;
            index.set(name, &found);
        }
        self.restamp(parent, ns, way.to.id);
        Ok(())
    }

    /// The node is below from now on.
    #[allow(clippy::too_many_arguments)]
    fn switched(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        name: &[u8],
        node: &Arc<Node>,
        stat: &RealStat,
        copy: &Copy<'_>,
    ) -> Result<()> {
        self.moved_to(node, &way.to, copy, Place::Named);
        node.update_home(|h| {
            (h.parent, h.name, h.linked) = (Some(parent.clone()), Name::from_slice(name), true);
        });
        if let Some(file) = &copy.file {
            self.opens.moved(node.id, way.to.id, file);
        }
        if self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
            self.record_gone(&way.from, stat.ino);
        }
        let below = self.visible_below(parent, way.to.id, name)?;
        if let Some(index) = &mut ns.index {
            let real = copy.stat.ino;
            index.set(name, &Present::single(way.to.id, node.kind, real, below));
        }
        self.restamp(parent, ns, way.from.id);
        self.restamp(parent, ns, way.to.id);
        Ok(())
    }
}

/// A whiteout beside an entry hides only what is below: on the lower branch it has become useless,
/// on the upper one it would hide the file that was moved.
pub(super) fn drop_whiteout_beside(branch: &Branch, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<()> {
    if branch.whiteout_is_separate(name) && branch.has_whiteout(dir, name)? {
        return drop_whiteout(branch, dir, name);
    }
    Ok(())
}

/// Is it the same file with the same data and attributes, as far as stat tells?
fn same_file(a: &RealStat, b: &RealStat) -> bool {
    (a.dev, a.ino, a.size, a.mtime, a.ctime) == (b.dev, b.ino, b.size, b.mtime, b.ctime)
}
