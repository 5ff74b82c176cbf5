//! Whiteouts of a merge: what they hide on the lower branch goes, and they with it, unless
//! something further down would show then.

use super::raw::{Times, drop_whiteout};
use super::{Outcome, Way};
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::node::index::Found;
use crate::sys::stat::stat_at;
use crate::sys::with_write_permission;
use crate::union::Union;
use std::sync::Arc;

impl Union {
    /// Moves one whiteout of the upper branch.
    pub(super) fn move_whiteout(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<Outcome> {
        let mut ns = self.ns_write(parent)?;
        let upper = self.dir_fd_on(parent, way.from.id)?;
        if !way.from.has_whiteout(&upper, name)? {
            return Ok(Outcome::Gone);
        }
        if way.from.whiteout_is_separate(name) && exists(&upper, name)? {
            // It belongs to the entry beside it, and stays or goes with that.
            return Ok(Outcome::Gone);
        }
        if let Some(reason) = self.in_the_way(way, parent, name)? {
            return Ok(Outcome::Left(reason));
        }
        if way.options.dry_run {
            return Ok(Outcome::Moved(0));
        }
        let lower = self.dir_fd_on(parent, way.to.id)?;
        let times = Times::of(&lower)?;
        let hidden = way.to.has_whiteout(&lower, name)?;
        let device = hidden && !way.to.whiteout_is_separate(name);
        if !device {
            self.clear_below(way, parent, &lower, name)?;
        }
        let needed = way.options.keep_whiteouts || self.visible_below(parent, way.to.id, name)?;
        if needed && !hidden {
            with_write_permission(&lower, || way.to.make_whiteout(&lower, name))?;
        }
        self.settle(way, &lower)?;
        if way.keep_upper {
            drop(times);
            self.restamp(parent, &mut ns, way.to.id);
            return Ok(Outcome::Moved(0));
        }
        drop(times);
        self.change_upper(way, parent, &upper, || {
            drop_whiteout(&way.from, &upper, name)
        })?;
        if matches!(self.resolve(parent, &ns, name)?, Found::Whiteout)
            && let Some(index) = &mut ns.index
        {
            index.remove(name, needed || hidden);
        }
        self.restamp(parent, &mut ns, way.from.id);
        self.restamp(parent, &mut ns, way.to.id);
        Ok(Outcome::Moved(0))
    }
}

fn exists(dir: &Arc<rustix::fd::OwnedFd>, name: &[u8]) -> Result<bool> {
    match stat_at(dir, name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
        Err(err) => Err(err),
    }
}
