//! What lies on one branch, whatever the union shows of it; and what stands between two branches.

use super::{Reason, Way};
use crate::branch::Branch;
use crate::branch::times::keep_times;
use crate::errno::{Errno, Result};
use crate::node::{Layer, LayerList, Node, Place};
use crate::sys::loc::open_listing;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Name, RealStat, Unlocked, with_write_permission};
use crate::types::Kind;
use crate::union::Union;
use crate::union::names::{Leaving, unname};
use crate::union::namespace::for_each_entry;
use crate::whiteout::{NameClass, classify, whiteout_name};
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use std::sync::Arc;

/// What a directory of the upper branch holds.
#[derive(Default)]
pub(super) struct Raw {
    pub(super) entries: Vec<Name>,
    pub(super) whiteouts: Vec<Name>,
    /// Names that belong to nobody we know: leftovers of others.
    pub(super) strangers: bool,
}

impl Union {
    /// Lists a directory of one branch.
    pub(super) fn list_raw(&self, branch: &Branch, dir: &OwnedFd) -> Result<Raw> {
        let _unlocked = Unlocked::of_user(dir);
        let listing = open_listing(dir)?;
        let mut held = Raw::default();
        for_each_entry(&listing, |name, kind, real| {
            match classify(name) {
                NameClass::Whiteout(hidden) => held.whiteouts.push(Name::from_slice(hidden)),
                NameClass::Opaque => {}
                NameClass::Reserved => held.strangers = true,
                NameClass::Plain => {
                    let may_hide = kind.is_none_or(|k| k == Kind::Char);
                    let hides = may_hide
                        && branch.device_hides(name)
                        && stat_at(dir, name).is_ok_and(|s| s.is_null_device());
                    if hides {
                        held.whiteouts.push(Name::from_slice(name));
                    } else if !self.hidden.contains(&(branch.dev, real)) {
                        held.entries.push(Name::from_slice(name));
                    }
                }
            }
            Ok(())
        })?;
        held.entries.sort_unstable();
        held.whiteouts.sort_unstable();
        Ok(held)
    }

    /// Would `name`, put into `dir` on the lower branch, be hidden by a branch between the two (or
    /// show up in a renamed directory as well)? The names of the directory are locked.
    pub(super) fn in_the_way(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Result<Option<Reason>> {
        if let Some(reason) = self.entry_between(way, dir, name)? {
            return Ok(Some(reason));
        }
        for layer in self.layers_between(way, dir) {
            let branch = self.branch(layer.branch)?;
            let fd = self.dir_fd(dir, &layer)?;
            if branch.honours_whiteouts() && branch.has_whiteout(&fd, name)? {
                return Ok(Some(Reason::Whiteout));
            }
        }
        if dir.layer_on(way.to.id).is_some() && self.is_redirect_target(way, dir, name)? {
            return Ok(Some(Reason::Redirected));
        }
        Ok(None)
    }

    /// The layers of a directory on the branches between the two.
    fn layers_between(&self, way: &Way, dir: &Node) -> LayerList {
        let stack = self.stack();
        let (top, bottom) = (stack.position(way.from.id), stack.position(way.to.id));
        let between = |l: &&Layer| {
            let at = stack.position(l.branch);
            !l.sealed && at > top && at < bottom
        };
        dir.layers().iter().filter(between).cloned().collect()
    }

    /// Does a branch between the two hold `name` itself?
    pub(super) fn entry_between(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Result<Option<Reason>> {
        for layer in self.layers_between(way, dir) {
            match stat_at(self.dir_fd(dir, &layer)?, name) {
                Ok(_) => return Ok(Some(Reason::Upper)),
                Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }

    /// Has a renamed directory its lower parts here, or here and below?
    pub(super) fn is_redirect_target(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        name: &[u8],
    ) -> Result<bool> {
        if self.redirects.is_empty() {
            return Ok(false);
        }
        let mut path = self.layer_path(dir, way.to.id)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Ok(self.redirects.leads_near(&path))
    }

    /// Takes what lies under `name` on the lower branch away: it is hidden by the upper branch. The
    /// names of the directory are locked.
    pub(super) fn clear_below(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        fd: &Arc<OwnedFd>,
        name: &[u8],
    ) -> Result<()> {
        let stat = match stat_at(fd, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(err) => return Err(err),
        };
        if stat.kind() != Kind::Dir {
            let replaced = self.before_replacing(way, dir, name, &stat)?;
            let _counting = self.counting_links(&stat);
            with_write_permission(fd, || rustix::fs::unlinkat(fd, name, AtFlags::empty()))?;
            self.after_replacing(way, replaced, &stat);
            return Ok(());
        }
        let store = way.to.store.as_ref().ok_or(Errno::ROFS)?;
        let temp = store.temp_name();
        with_write_permission(fd, || {
            // A directory that moves needs write permission itself.
            let _unlocked = crate::sys::loc::open_subdir(fd, name)
                .ok()
                .and_then(|own| Unlocked::of_user(&own));
            rustix::fs::renameat(fd, name, store.trash(), &*temp)
        })?;
        way.trash.lock().push(temp);
        self.forget_dir(&way.to, &stat);
        Ok(())
    }

    /// The hidden file under `name` on the lower branch is about to go: whoever has it by another
    /// name keeps it.
    pub(super) fn before_replacing(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        name: &[u8],
        stat: &RealStat,
    ) -> Result<Option<(Arc<Node>, Leaving)>> {
        let node = self.nodes.get(self.inos.number(stat));
        // A copy has the number of what it is a copy of.
        let Some(node) = node.filter(|n| n.inode() == (way.to.id, stat.ino)) else {
            return Ok(None);
        };
        if matches!(node.home().place, Place::Pinned(_)) {
            return Ok(None);
        }
        let leaving = self.before_removal(Some(&node), (dir, name), &[dir.id])?;
        Ok(Some((node, leaving)))
    }

    /// It is gone. The name was hidden, so it was none of those that the union shows of the file.
    pub(super) fn after_replacing(
        &self,
        way: &Way,
        replaced: Option<(Arc<Node>, Leaving)>,
        stat: &RealStat,
    ) {
        if let Some((node, leaving)) = replaced {
            unname(&node, leaving);
        }
        if stat.nlink == 1 {
            if self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
                self.record_gone(&way.to, stat.ino);
            }
            return;
        }
        let id = self.inos.number(stat);
        let counted = match self.links.plink(id) {
            Some(plink) => (plink.branch, plink.real) == (way.to.id, stat.ino),
            None => self.links.delta(id) < 0,
        };
        if counted {
            let delta = self.links.change_delta(id, 1);
            self.record_delta(&way.to, self.inos.source(stat), delta);
        }
    }

    /// Changes a directory of the upper branch, which shows its times. The names of the directory
    /// are locked.
    pub(super) fn change_upper<T>(
        &self,
        way: &Way,
        dir: &Arc<Node>,
        fd: &Arc<OwnedFd>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let path = self.layer_path(dir, way.from.id)?;
        way.from.keeping_times(fd, path, change)
    }

    /// What was done to a directory of a branch reaches the disk before the other branch is changed.
    pub(super) fn settle(&self, way: &Way, dir: &Arc<OwnedFd>) -> Result<()> {
        if self.options().volatile {
            return Ok(());
        }
        if way.from.dev == way.to.dev {
            // One journal: what is done later is not durable earlier.
            return Ok(());
        }
        rustix::fs::fsync(open_listing(dir)?)
    }
}

/// Removes the whiteout of `name`, in whichever form it is; `name` itself is not there.
pub(super) fn drop_whiteout(branch: &Branch, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<()> {
    with_write_permission(dir, || {
        if whiteout_name(name).is_some() {
            branch.remove_whiteout(dir, name)?;
        }
        if stat_at(dir, name).is_ok_and(|s| branch.is_whiteout_device(&s, name)) {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
        }
        Ok(())
    })
}

/// Times of a directory of the lower branch, which a move leaves as they are. (Nobody sees them before
/// the upper one is gone, which hands its own down.)
pub(super) struct Times {
    dir: Arc<OwnedFd>,
    stat: RealStat,
}

impl Times {
    pub(super) fn of(dir: &Arc<OwnedFd>) -> Result<Self> {
        Ok(Self {
            dir: dir.clone(),
            stat: stat_fd(dir)?,
        })
    }
}

impl Drop for Times {
    fn drop(&mut self) {
        keep_times(&self.dir, &self.stat);
    }
}
