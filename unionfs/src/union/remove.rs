//! UNLINK and RMDIR.

use super::Union;
use super::links::{Counting, Plink};
use super::names::{Leaving, unname};
use super::namespace::Need;
use crate::branch::Branch;
use crate::branch::log::{Record, Source};
use crate::branch::plinks::plink_name;
use crate::branch::removals::Removal;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Namespace, Node, Place, Present};
use crate::shown::ShowPath;
use crate::sys::RealStat;
use crate::sys::stat::{stat_at, stat_fd};
use crate::types::*;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use std::sync::Arc;

/// How often a change is prepared anew because another one came first.
const RETRIES: usize = 8;

impl Union {
    /// UNLINK.
    pub fn unlink(&self, _caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        let parent = self.dir_node(parent)?;
        self.check_name(name)?;
        self.may_change(&parent)?;
        for _ in 0..RETRIES {
            let found = self.find(&parent, name)?;
            if found.kind == Kind::Dir {
                return Err(Errno::ISDIR);
            }
            let target = self.branch(self.change_target(&parent, found.top)?)?;
            self.make_dir_on(&parent, target.id)?;
            let mut ns = self.ns_write(&parent)?;
            match self.resolve(&parent, &ns, name)? {
                Found::Present(now) if now.kind == found.kind && now.top == found.top => {
                    return self.unlink_locked(&parent, &mut ns, name, &now, &target);
                }
                Found::Present(_) => {}
                Found::Whiteout | Found::Absent => return Err(Errno::NOENT),
            }
        }
        Err(Errno::BUSY)
    }

    /// What a name is; ENOENT if it is not.
    pub(super) fn find(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Present> {
        let ns = self.ns_read(parent, Need::Names)?;
        match self.resolve(parent, &ns, name)? {
            Found::Present(found) => Ok(found),
            Found::Whiteout | Found::Absent => Err(Errno::NOENT),
        }
    }

    fn unlink_locked(
        &self,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        name: &[u8],
        found: &Present,
        target: &Arc<Branch>,
    ) -> Result<()> {
        let dir = self.dir_fd_on(parent, target.id)?;
        let physical = found.top == target.id;
        let whiteout = found.below || !physical;
        let stat = stat_at(self.dir_fd_on(parent, found.top)?, name)?;
        let node = self.known_file(parent, name, found, &stat);
        let leaving = self.before_removal(node.as_ref(), (parent, name), &[parent.id])?;
        let counting = self.counting_links(&stat);
        let place = (&**target, &*dir);
        let leaves =
            self.announce_removal(node.as_ref(), (parent, name), place, &stat, physical)?;
        remove_file(target, &dir, name, physical, whiteout).inspect_err(|_| {
            if let Some(source) = leaves {
                self.withdraw_removal(target, source, Some(&stat));
            }
        })?;
        if let Some(node) = &node {
            unname(node, leaving);
        }
        self.count_removal(node.as_ref(), target, &stat, physical, leaves);
        drop(counting);
        if let Some(index) = &mut ns.index {
            let hidden = whiteout || self.hidden_below(parent, target.id, name);
            index.remove(name, hidden);
        }
        self.changed(parent, ns, target.id);
        Ok(())
    }

    /// Held from the removal of a name until it is counted, if the file has others.
    pub(super) fn counting_links(&self, stat: &RealStat) -> Option<Counting<'_>> {
        let id = self.inos.number(stat);
        let several = stat.nlink > 1 || self.links.plink(id).is_some();
        several.then(|| self.links.counting(&[id]))
    }

    /// Says in the log of `target` that a name is about to go whose file has others, if the links of
    /// the file do not tell. Answers which file it is.
    pub(super) fn announce_removal(
        &self,
        node: Option<&Arc<Node>>,
        (parent, name): (&Arc<Node>, &[u8]),
        (target, dir): (&Branch, &OwnedFd),
        stat: &RealStat,
        physical: bool,
    ) -> Result<Option<Source>> {
        let id = self.inos.number(stat);
        let alone = node.is_some_and(|n| n.id != id && !physical);
        let elsewhere = self.is_elsewhere(id, target, stat);
        let counts = !physical && stat.nlink > 1 || elsewhere;
        let Some(store) = target.store.as_ref().filter(|_| counts && !alone) else {
            return Ok(None);
        };
        let mut path = self.layer_path(parent, target.id)?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let (source, dir) = (self.inos.source(stat), stat_fd(dir)?);
        store.record_removal(&Removal {
            source,
            delta: self.links.delta(id) - 1,
            real: if physical { stat.ino } else { 0 },
            dir: (dir.ino, dir.btime),
            path,
        })?;
        Ok(Some(source))
    }

    /// The name was not removed.
    pub(super) fn withdraw_removal(
        &self,
        target: &Branch,
        source: Source,
        stat: Option<&RealStat>,
    ) {
        if let (Some(store), Some(stat)) = (&target.store, stat) {
            let delta = self.links.delta(self.inos.number(stat));
            store.record_at_last(Record::Links { source, delta });
        }
    }

    /// Is this a link of an older file, from which a copy on a higher branch was made?
    fn is_elsewhere(&self, id: NodeId, target: &Branch, stat: &RealStat) -> bool {
        let plink = self.links.plink(id);
        plink.is_some_and(|p| (p.branch, p.real) != (target.id, stat.ino))
    }

    /// Keeps the link counts right after a name of the file was removed. `announced`: as it was in
    /// the log of `target` before.
    pub(super) fn count_removal(
        &self,
        node: Option<&Arc<Node>>,
        target: &Arc<Branch>,
        stat: &RealStat,
        physical: bool,
        announced: Option<Source>,
    ) {
        let id = self.inos.number(stat);
        if let Some(node) = node.filter(|n| n.id != id && !physical) {
            // `noplink`: it was the only name of this node.
            self.links.set_delta(node.id, -(stat.nlink as i32));
            self.links.mark_unnamed(node.id);
            return;
        }
        let plink = self.links.plink(id);
        let elsewhere = self.is_elsewhere(id, target, stat);
        if !physical || elsewhere {
            // It was no link of the file that holds the data (or is one still, only hidden).
            let delta = self.links.change_delta(id, -1);
            if let Some(source) = announced {
                // Where the data is: with the pseudo-link the count is found again.
                let holder = plink.and_then(|p| self.branch(p.branch).ok());
                match holder.filter(|holder| holder.id != target.id) {
                    Some(holder) => self.record_delta(&holder, source, delta),
                    None => self.void_others(target, source),
                }
            }
            if node.is_some() && !elsewhere && stat.nlink as i32 + delta <= 0 {
                self.links.mark_unnamed(id);
            }
        }
        if physical && stat.nlink == 1 && self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
            self.record_gone(target, stat.ino);
        }
        if let (Some(plink), Some(node)) = (plink, node) {
            self.drop_unused_plink(node, plink);
        }
    }

    /// Records a delta on `branch`. What another writable branch may have recorded of the same file
    /// is void.
    pub(super) fn record_delta(&self, branch: &Branch, source: Source, delta: i32) {
        if let Some(store) = &branch.store {
            store.record_at_last(Record::Links { source, delta });
        }
        self.void_others(branch, source);
    }

    /// What other writable branches may have recorded of a file is void.
    fn void_others(&self, branch: &Branch, source: Source) {
        let stack = self.stack();
        for other in stack.branches().iter().filter(|b| b.id != branch.id) {
            if let Some(store) = &other.store {
                store.record_at_last(Record::Links { source, delta: 0 });
            }
        }
    }

    pub(super) fn record_gone(&self, branch: &Branch, real: u64) {
        if let Some(store) = &branch.store {
            store.record_at_last(Record::Gone { real });
        }
    }

    /// A pseudo-link that no name needs any more is removed; the node keeps a descriptor.
    fn drop_unused_plink(&self, node: &Arc<Node>, plink: Plink) {
        let Ok((holder, stat)) = self.plink_stat(node, plink) else {
            return;
        };
        if self.links.nlink(node, &stat) > 0 {
            return;
        }
        if let Ok((_, loc)) = self.place_locked(node)
            && let Ok(fd) = loc.pin()
        {
            node.update_home(|h| (h.linked, h.place) = (false, Place::Pinned(fd)));
        }
        if !self.remove_plink(node, &holder, plink.real) {
            return;
        }
        self.set_delta(node, &holder, plink.source, 0);
        if self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
            self.record_gone(&holder, stat.ino);
        }
    }

    fn plink_stat(&self, node: &Node, plink: Plink) -> Result<(Arc<Branch>, RealStat)> {
        let branch = self.branch(plink.branch)?;
        let store = branch.store.as_ref().ok_or(Errno::STALE)?;
        let stat = stat_at(store.plinks(), &plink_name(node.id, plink.real))?;
        Ok((branch, stat))
    }

    /// RMDIR: the directory must be empty after whiteouts.
    pub fn rmdir(&self, _caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        let parent = self.dir_node(parent)?;
        self.check_name(name)?;
        self.may_change(&parent)?;
        for _ in 0..RETRIES {
            let found = self.find(&parent, name)?;
            if found.kind != Kind::Dir {
                return Err(Errno::NOTDIR);
            }
            let target = self.branch(self.change_target(&parent, found.top)?)?;
            self.make_dir_on(&parent, target.id)?;
            let mut ns = self.ns_write(&parent)?;
            match self.resolve(&parent, &ns, name)? {
                Found::Present(now) if now.kind == Kind::Dir && now.top == found.top => {
                    return self.rmdir_locked(&parent, &mut ns, name, &now, &target);
                }
                Found::Present(_) => {}
                Found::Whiteout | Found::Absent => return Err(Errno::NOENT),
            }
        }
        Err(Errno::BUSY)
    }

    fn rmdir_locked(
        &self,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        name: &[u8],
        found: &Present,
        target: &Arc<Branch>,
    ) -> Result<()> {
        let node = self.child(parent, name, found, 0)?.node;
        if node.layers().iter().any(|l| l.sealed) {
            // Something is mounted there.
            self.forget(node.id, 0);
            return Err(Errno::BUSY);
        }
        let removed = self.rmdir_node(parent, name, &node, found, target);
        if removed.is_ok() {
            if let Some(index) = &mut ns.index {
                let whiteout = found.below || found.top != target.id;
                let hidden = whiteout || self.hidden_below(parent, target.id, name);
                index.remove(name, hidden);
            }
            self.changed(parent, ns, target.id);
        }
        let id = node.id;
        drop(node);
        // The kernel may know nothing of this node: then nobody will forget it.
        self.forget(id, 0);
        removed
    }

    fn rmdir_node(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        found: &Present,
        target: &Arc<Branch>,
    ) -> Result<()> {
        let mut own = self.ns_write(node)?;
        if !self.is_empty(node, &own, target.id)? {
            return Err(Errno::NOTEMPTY);
        }
        let dir = self.dir_fd_on(parent, target.id)?;
        let physical = found.top == target.id;
        let whiteout = found.below || !physical;
        let (_, loc) = self.place_locked(node)?;
        let pin = loc.pin()?;
        let stat = stat_fd(&pin)?;
        if let Err(err) = self.remove_dir(target, &dir, name, physical, whiteout) {
            // Not as empty as the names that were read: read them again.
            own.index = None;
            return Err(err);
        }
        own.dead = true;
        own.index = None;
        unname(node, Leaving::Pinned(pin));
        if physical {
            self.forget_dir(target, &stat);
        }
        Ok(())
    }

    /// A directory is gone from a branch: so is what was recorded of it.
    pub(super) fn forget_dir(&self, branch: &Branch, stat: &RealStat) {
        self.drop_redirect(branch, stat.ino);
        if self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
            self.record_gone(branch, stat.ino);
        }
    }
}

/// Removes a non-directory from a branch and hides what is below, in an order in which every
/// moment shows the old state or the new: the whiteout first (an entry beside its own whiteout is
/// still seen), or both at once.
fn remove_file(
    branch: &Branch,
    dir: &OwnedFd,
    name: &[u8],
    physical: bool,
    whiteout: bool,
) -> Result<()> {
    if !whiteout {
        return rustix::fs::unlinkat(dir, name, AtFlags::empty());
    }
    if !physical {
        return branch.make_whiteout(dir, name);
    }
    if !branch.whiteout_is_separate(name) {
        return branch.replace_by_whiteout(dir, name);
    }
    branch.make_whiteout(dir, name)?;
    rustix::fs::unlinkat(dir, name, AtFlags::empty()).inspect_err(|_| take_back(branch, dir, name))
}

pub(super) fn take_back(branch: &Branch, dir: &OwnedFd, name: &[u8]) {
    if let Err(err) = branch.remove_whiteout(dir, name) {
        log::error!(
            "{}: cannot take back a whiteout: {err}",
            branch.path.shown()
        );
    }
}
