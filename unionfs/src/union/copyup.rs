//! Copying up: a complete copy is built aside and then given its name, in one rename.
//!
//! While the data is copied no lock is held: reads go on from below, other changes of the same
//! file wait for the copy (they are what started it), everything else is not concerned.

use super::Union;
use super::data::Cut;
use super::links::Plink;
use super::make_dir::rename_new;
use crate::branch::log::{Origin, Record, Source};
use crate::branch::times::keep_times;
use crate::branch::{Branch, Store};
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Node, Place, Present};
use crate::sys::copy::copy_data;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, Name, RealStat, creds, with_write_permission};
use crate::types::*;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat};
use std::sync::Arc;

/// How something is copied.
#[derive(Clone, Copy, Default)]
pub(super) struct How<'a> {
    /// The copy of a file gets this length before it gets its name.
    pub(super) cut: Option<Cut<'a>>,
    /// The branches may be changed while data is copied.
    outside: bool,
}

/// A finished copy that has no name yet. Dropping it removes it.
pub(super) struct Copy<'a> {
    pub(super) store: &'a Store,
    pub(super) temp: Name,
    pub(super) stat: RealStat,
    /// The data, for regular files.
    pub(super) file: Option<Arc<OwnedFd>>,
    /// It has its name.
    pub(super) published: bool,
}

/// A pseudo-link that has been made, and how many names lead to it besides links.
struct Joined {
    plink: Plink,
    delta: i32,
}

impl Copy<'_> {
    pub(super) fn loc(&self) -> Loc {
        Loc::at(self.store.tmp().clone(), &self.temp)
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        if !self.published {
            let flags = if self.stat.kind() == Kind::Dir {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            // It lies in the directory that every mount empties: a failure leaves nothing for long.
            let _ = rustix::fs::unlinkat(self.store.tmp(), &*self.temp, flags);
        }
    }
}

impl Union {
    /// Makes sure that a node can be changed where it is. The branches may be changed meanwhile:
    /// for callers that hold on to this node only, which is right for them afterwards.
    pub(super) fn make_writable(&self, node: &Arc<Node>) -> Result<()> {
        self.copy_up(node, None).map(drop)
    }

    /// As [`Self::make_writable`]. Was `cut` done meanwhile? It is where a copy was made, and where
    /// data was brought in of which it leaves less.
    pub(super) fn copy_up(&self, node: &Arc<Node>, cut: Option<Cut<'_>>) -> Result<bool> {
        let how = How { cut, outside: true };
        loop {
            let version = self.version();
            if self.branch(node.inode().0)?.writable() {
                return self.complete_data(node, how);
            }
            if node.kind == Kind::Dir {
                let make = |target| match self.make_dir_on(node, target) {
                    Err(Errno::NOENT) => self.copy_removed_dir(node, target),
                    other => other,
                };
                return self.copy_up_where_room_is(node, make).map(|()| true);
            }
            if let Some(_running) = self.copyups.start(node.id) {
                if self.branch(node.inode().0)?.writable() {
                    continue;
                }
                let copy = |target| self.copy_file(node, target, how).map(drop);
                match self.copy_up_where_room_is(node, copy) {
                    Err(_) if self.version() != version => {}
                    other => return other.map(|()| true),
                }
            } else {
                self.gate.outside(|| self.copyups.wait_for(node.id));
            }
            if self.version() != version {
                self.refresh(node);
            }
        }
    }

    /// Copies a node up to the branch of the policy or, if that is full, to another one above the
    /// node's own.
    fn copy_up_where_room_is(
        &self,
        node: &Arc<Node>,
        copy: impl Fn(BranchId) -> Result<()>,
    ) -> Result<()> {
        let target = self.copy_up_target(node)?;
        let home = node.home();
        let parent = home.parent.filter(|_| home.linked);
        let within = if node.kind == Kind::Dir {
            Some(node)
        } else {
            parent.as_ref()
        };
        let fits = |branch: &Branch| {
            let seen = within.map_or(Ok(true), |dir| self.reaches(dir, branch))?;
            Ok(seen && self.is_above(branch.id, home.branch))
        };
        self.where_room_is(target, parent.as_deref(), fits, copy)
    }

    /// Copies a non-directory to a writable branch above its own; the node is there then. Returns
    /// what it was copied from.
    pub(super) fn copy_file_to(
        &self,
        node: &Arc<Node>,
        target: BranchId,
    ) -> Result<(Arc<Branch>, RealStat)> {
        self.copy_file(node, target, How::default())
    }

    /// STALE = the branches have changed meanwhile (`how.outside`).
    fn copy_file(
        &self,
        node: &Arc<Node>,
        target: BranchId,
        how: How<'_>,
    ) -> Result<(Arc<Branch>, RealStat)> {
        let version = self.version();
        let target = self.branch(target)?;
        let home = node.home();
        if let (Some(parent), true) = (&home.parent, home.linked) {
            self.make_dir_on(parent, target.id)?;
        }
        // The source cannot change: every change of it waits for this copy.
        let (source_branch, source) =
            self.with_place(node, |b, loc| Ok((b.clone(), loc.clone())))?;
        let stat = source_branch.shown(&source, source.stat()?)?;
        let mut copy = self.build_copy(node, &target, &source_branch, &source, &stat, how)?;
        if self.version() != version {
            return Err(Errno::STALE);
        }
        self.publish(node, &target, &stat, &mut copy)?;
        Ok((source_branch, stat))
    }

    /// Runs `f`, which copies this node, while nobody else does; `None` = somebody else did.
    pub(super) fn copying<T>(
        &self,
        node: &Node,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<Option<T>> {
        match self.copyups.start_or_wait(node.id) {
            Some(_running) => f().map(Some),
            None => Ok(None),
        }
    }

    /// Something long that needs no branch to stay a member.
    pub(super) fn apart<T>(&self, how: How<'_>, work: impl FnOnce() -> T) -> T {
        if how.outside {
            self.gate.outside(work)
        } else {
            work()
        }
    }

    /// Brings a non-directory to `target`, a writable branch above its own (which may be writable
    /// too: changes of the file wait meanwhile). If somebody else moved it, it may be elsewhere
    /// afterwards. The caller holds no directory lock and not the node's `change`.
    ///
    /// EXDEV for a file that the kernel itself reads and writes: it would go on with the old one.
    pub(super) fn bring_up(&self, node: &Arc<Node>, target: BranchId) -> Result<()> {
        let _nobody_changes = node.change.write();
        while self.is_above(target, node.inode().0) {
            if self.is_busy(node.id) {
                return Err(Errno::XDEV);
            }
            self.copying(node, || {
                if self.is_above(target, node.inode().0) {
                    self.copy_file_to(node, target)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Builds the copy in the store, complete with attributes, and makes its data durable.
    pub(super) fn build_copy<'a>(
        &self,
        node: &Arc<Node>,
        target: &'a Branch,
        source_branch: &Branch,
        source: &Loc,
        stat: &RealStat,
        how: How<'_>,
    ) -> Result<Copy<'a>> {
        let store = target.store.as_deref().ok_or(Errno::ROFS)?;
        let temp = store.temp_name();
        let mut copy = Copy {
            store,
            temp,
            stat: *stat,
            file: None,
            published: false,
        };
        let dir = store.tmp();
        match stat.kind() {
            Kind::File => {
                let below = self.lacks_data(node, source_branch, source)?;
                let from = match below {
                    true => self.data_below(node, source_branch, source)?,
                    false => Arc::new(source.open_quietly(OFlags::RDONLY)?),
                };
                let there = stat_fd(&from)?.size;
                // Data from below has the length that the file says.
                let size = if below { stat.size } else { there };
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = openat(dir, &*copy.temp, flags, Mode::from_bits_truncate(0o600))?;
                let wanted = how.cut.map_or(size, |cut| cut.size.min(size));
                let copied = wanted.min(there);
                self.apart(how, || copy_data(&from, &file, copied, copied == there))?;
                if copied < wanted {
                    rustix::fs::ftruncate(&file, wanted)?;
                }
                copy.file = Some(Arc::new(file));
            }
            Kind::Symlink => rustix::fs::symlinkat(source.readlink()?, dir, &*copy.temp)?,
            Kind::Dir => creds::with_exact_modes(|| {
                rustix::fs::mkdirat(dir, &*copy.temp, Mode::from_bits_truncate(0o700))
            })?,
            // A special file cannot have the attribute in which its owner is kept.
            _ if target.owners.is_some() => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                openat(dir, &*copy.temp, flags, Mode::from_bits_truncate(0o600)).map(drop)?;
            }
            kind => make_special(dir, &copy.temp, kind, stat.rdev)?,
        }
        let loc = copy.loc();
        self.copy_metadata(target, source_branch, source, &loc, stat)?;
        if copy.stat.kind() == Kind::Dir && !self.privileged && target.owners.is_none() {
            // Moving a directory needs write permission on it: the mode is set afterwards.
            loc.chmod(stat.mode | 0o700)?;
        }
        if let (Some(file), Some(cut)) = (&copy.file, how.cut) {
            cut.make(target, file)?;
        }
        if let (Some(file), false) = (&copy.file, self.options().volatile) {
            self.apart(how, || rustix::fs::fsync(&**file))?;
        }
        copy.stat = target.shown(&loc, loc.stat()?)?;
        Ok(copy)
    }

    /// Gives the copy its name (or, if the file has none any more, only its node) in one step.
    fn publish(
        &self,
        node: &Arc<Node>,
        target: &Arc<Branch>,
        lower: &RealStat,
        copy: &mut Copy<'_>,
    ) -> Result<()> {
        let home = node.home();
        let Some(parent) = home.parent.clone().filter(|_| home.linked) else {
            return self.publish_unnamed(node, target, lower, copy);
        };
        let mut ns = parent.dir().ok_or(Errno::STALE)?.ns.write();
        let home = node.home();
        if !home.linked || ns.dead {
            drop(ns);
            return self.publish_unnamed(node, target, lower, copy);
        }
        self.note_strangers(&parent, &mut ns);
        let dir = self.dir_fd_on(&parent, target.id)?;
        let before = stat_fd(&dir)?;
        let old_plink = self.links.plink(node.id);
        if old_plink.is_some() && stat_at(&dir, &home.name).is_ok_and(|s| s.kind() == node.kind) {
            // The name is there, and leads to the pseudo-link wherever that is.
            drop(ns);
            return self.publish_unnamed(node, target, lower, copy);
        }
        // `noplink`: one name parts from the others; the number is its own until the union is closed.
        let parts = lower.nlink > 1 && !self.options().plink && old_plink.is_none();
        let linked = (lower.nlink > 1 || old_plink.is_some()) && !parts;
        if parts {
            self.inos.keep(&copy.stat, node.id);
        }
        let origin = if parts {
            None
        } else {
            Some(self.remember_origin(node, target, copy, lower)?)
        };
        let counting = linked.then(|| self.links.counting(&[node.id]));
        let joined = match origin.filter(|_| linked) {
            Some(origin) => Some(self.begin_plink(node, target, lower, copy, origin, true)?),
            None => None,
        };
        let placed = with_write_permission(&dir, || {
            rename_new(copy.store.tmp(), &copy.temp, &dir, &home.name)
        });
        if let Err(err) = placed {
            self.inos.forget_real(target.dev, copy.stat.ino);
            if joined.is_some() {
                copy.store.remove_plink(node.id, copy.stat.ino);
            }
            if err == Errno::EXIST {
                // Somebody put a file there behind the union's back: it is not replaced.
                ns.index = None;
                return Err(Errno::STALE);
            }
            return Err(err);
        }
        copy.published = true;
        keep_times(&dir, &before);
        self.moved_to(node, target, copy, Place::Named);
        if let Some(joined) = joined {
            self.finish_plink(node, target, joined);
        }
        drop(counting);
        self.leave_plink(node, old_plink);
        if let Some(index) = &mut ns.index
            && let Found::Present(old) = index.get(&home.name)
        {
            let top = Present::single(target.id, old.kind, copy.stat.ino, true);
            index.set(&home.name, &top);
        }
        self.restamp(&parent, &mut ns, target.id);
        Ok(())
    }

    /// The file has no name (that its node knows): the copy lives in the pseudo-link directory if
    /// other names may still lead to it, else only in its descriptor.
    fn publish_unnamed(
        &self,
        node: &Arc<Node>,
        target: &Arc<Branch>,
        lower: &RealStat,
        copy: &mut Copy<'_>,
    ) -> Result<()> {
        let old_plink = self.links.plink(node.id);
        let names = self.links.nlink(node, lower) as i32;
        let joined = self.options().plink || old_plink.is_some();
        let several = lower.nlink > 1 || old_plink.is_some();
        if several && names > 0 && joined {
            let origin = self.remember_origin(node, target, copy, lower)?;
            let counting = self.links.counting(&[node.id]);
            let made = self.begin_plink(node, target, lower, copy, origin, false)?;
            self.moved_to(node, target, copy, Place::Plink);
            self.finish_plink(node, target, made);
            drop(counting);
            self.leave_plink(node, old_plink);
            return Ok(());
        }
        let fd = match &copy.file {
            Some(file) => file.clone(),
            None => copy.loc().pin()?,
        };
        // The link count it shows is that of the copy from now on, which has no name either.
        self.links.set_delta(node.id, 0);
        rustix::fs::unlinkat(copy.store.tmp(), &*copy.temp, AtFlags::empty())?;
        copy.published = true;
        self.moved_to(node, target, copy, Place::Pinned(fd));
        Ok(())
    }

    /// The node is on the target branch from now on.
    pub(super) fn moved_to(
        &self,
        node: &Arc<Node>,
        target: &Arc<Branch>,
        copy: &Copy<'_>,
        place: Place,
    ) {
        let (old, _) = node.inode();
        // First: who finds the file on its new branch must find this, too.
        node.note_published();
        node.update_home(|h| (h.branch, h.real, h.place) = (target.id, copy.stat.ino, place));
        self.data_fds.remove((node.id, old));
        node.note_own_data(node.inode(), self.version(), true);
        if let Some(file) = &copy.file {
            self.data_fds.insert((node.id, target.id), file.clone());
        }
    }

    /// The copy has the number of `lower`, from now on and in later mounts.
    pub(super) fn remember_origin(
        &self,
        node: &Node,
        target: &Branch,
        copy: &Copy<'_>,
        lower: &RealStat,
    ) -> Result<Origin> {
        let origin = Origin {
            source: self.inos.source(lower),
            btime: copy.stat.btime,
        };
        let real = copy.stat.ino;
        // A directory that is seen at two places has a number for each: the next mount gives others.
        if !(node.kind == Kind::Dir && crate::ino::is_dynamic(node.id)) {
            copy.store.record(Record::Origin { real, origin })?;
        }
        self.inos.set_origin(target.dev, real, origin, node.id);
        Ok(origin)
    }

    /// Makes the pseudo-link of a copy. Until [`Self::finish_plink`] all is as before; the log says how
    /// many names there are, which a link more does not change. After an error nothing was done. The
    /// links of the node are being counted. `named`: the copy gets a name, too.
    fn begin_plink(
        &self,
        node: &Node,
        target: &Branch,
        lower: &RealStat,
        copy: &Copy<'_>,
        origin: Origin,
        named: bool,
    ) -> Result<Joined> {
        let source = origin.source;
        let names = self.links.nlink(node, lower) as i32;
        let delta = names - i32::from(named);
        let begin = || {
            let stack = self.stack();
            let writable = stack.branches().iter().filter(|b| b.store.is_some());
            if writable.count() > 1 {
                // Where the log of another branch has the last word it has it no longer.
                self.record_delta(target, source, self.links.delta(node.id));
            }
            copy.store.record(Record::Names { source, names })?;
            self.make_plink(node, copy, origin, delta)
        };
        begin().inspect_err(|_| {
            self.inos.forget_real(target.dev, copy.stat.ino);
        })?;
        let plink = Plink {
            branch: target.id,
            real: copy.stat.ino,
            source,
        };
        Ok(Joined { plink, delta })
    }

    /// The copy has taken the file's place.
    fn finish_plink(&self, node: &Node, target: &Branch, joined: Joined) {
        self.links.add_plink(node.id, joined.plink);
        self.set_delta(node, target, joined.plink.source, joined.delta);
    }

    /// `delta`: see [`Store::add_plink`].
    fn make_plink(&self, node: &Node, copy: &Copy<'_>, origin: Origin, delta: i32) -> Result<()> {
        let durable = !self.options().volatile;
        let copied = (&*copy.temp, copy.stat.ino);
        copy.store
            .add_plink(copied, node.id, origin, delta, durable)
    }

    /// Makes the pseudo-link of a copy, which leads to it from now on.
    pub(super) fn add_plink(
        &self,
        node: &Node,
        target: &Branch,
        copy: &Copy<'_>,
        origin: Origin,
        delta: i32,
    ) -> Result<()> {
        self.make_plink(node, copy, origin, delta)?;
        let plink = Plink {
            branch: target.id,
            real: copy.stat.ino,
            source: origin.source,
        };
        self.links.add_plink(node.id, plink);
        Ok(())
    }

    /// The node has a pseudo-link on a higher branch now: the old one leads nowhere any more.
    pub(super) fn leave_plink(&self, node: &Node, old: Option<Plink>) {
        if let Some(old) = old
            && let Ok(branch) = self.branch(old.branch)
            && let Some(store) = &branch.store
        {
            store.remove_plink(node.id, old.real);
        }
    }

    /// Drops the pseudo-link of a node. False = it is still there.
    pub(super) fn remove_plink(&self, node: &Node, branch: &Branch, real: u64) -> bool {
        let store = branch.store.as_ref();
        let gone = store.is_none_or(|store| store.remove_plink(node.id, real));
        if gone {
            self.links.remove_plink(node.id);
        }
        gone
    }

    /// Sets and records how many names a node has beyond the links of its file.
    pub(super) fn set_delta(&self, node: &Node, branch: &Branch, source: Source, delta: i32) {
        self.links.set_delta(node.id, delta);
        self.record_delta(branch, source, delta);
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    FileType::from_raw_mode(kind.to_mode())
}

fn make_special(dir: &OwnedFd, name: &[u8], kind: Kind, rdev: u64) -> Result<()> {
    creds::with_exact_modes(|| {
        rustix::fs::mknodat(
            dir,
            name,
            file_type(kind),
            Mode::from_bits_truncate(0o600),
            rdev,
        )
    })
}
