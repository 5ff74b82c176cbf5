//! The merged names of a directory: when they are read, checked again, and asked.

use super::Union;
use super::watch::{ABSENT, Trust};
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::index::{Found, Stamp};
use crate::node::{Index, Namespace, Node, Present};
use crate::spec::Format;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, Name, RealStat};
use crate::types::{BranchId, Kind, NodeId, SetTime};
use crate::whiteout::{NameClass, PREFIX, STORE_DIR, classify, is_reserved};
use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, OFlags, RawDir};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Instant;

/// What a caller needs of a directory's names.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Single names: a directory on one branch can be asked directly.
    Names,
    /// The whole list.
    Listing,
}

impl Union {
    /// Locks a directory for resolving names, its index loaded where `need` asks for it.
    pub(super) fn ns_read<'a>(
        &self,
        node: &'a Arc<Node>,
        need: Need,
    ) -> Result<RwLockReadGuard<'a, Namespace>> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        self.watch(node);
        let guard = dir.ns.read();
        if !self.must_load(node, &guard, need) {
            return Ok(guard);
        }
        drop(guard);
        let mut guard = dir.ns.write();
        if self.must_load(node, &guard, need) {
            match self.load(node, &mut guard) {
                Err(err) if need == Need::Names && may_not_list(err) => {}
                other => other?,
            }
        }
        Ok(RwLockWriteGuard::downgrade(guard))
    }

    /// Locks a directory for changing its names; the index is loaded unless the daemon may not list
    /// the directory. ENOENT if it was removed.
    pub(super) fn ns_write<'a>(
        &self,
        node: &'a Arc<Node>,
    ) -> Result<RwLockWriteGuard<'a, Namespace>> {
        self.watch(node);
        let mut guard = node.dir().ok_or(Errno::NOTDIR)?.ns.write();
        if guard.dead {
            return Err(Errno::NOENT);
        }
        // Before a change the names are checked whatever their age: afterwards the directory's
        // times are new, and a change made behind the union's back would go unnoticed for good.
        let loaded = if self.must_load(node, &guard, Need::Listing) {
            self.load(node, &mut guard)
        } else {
            self.note_strangers(node, &mut guard);
            match &guard.index {
                Some(index) if index.stamps.is_empty() && self.is_checked(node) => {
                    self.load(node, &mut guard)
                }
                _ => Ok(()),
            }
        };
        match loaded {
            Err(err) if may_not_list(err) => {}
            other => other?,
        }
        Ok(guard)
    }

    /// Before a change by the union that needs no names: if there were changes behind its back,
    /// they are found when the names are next checked, whatever [`Self::restamp`] is told.
    pub(super) fn note_strangers(&self, node: &Arc<Node>, ns: &mut Namespace) {
        if self.is_checked(node)
            && let Some(index) = &mut ns.index
            && !matches!(self.unchanged(node, index), Ok(true))
        {
            index.stamps.clear();
        }
    }

    fn is_checked(&self, node: &Node) -> bool {
        matches!(self.trust(node), Trust::Check(_))
    }

    /// Is a directory whose names are locked empty? Where it may not be listed, `target` (if all of
    /// it lies there) finds out by itself; else EACCES.
    pub(super) fn is_empty(
        &self,
        node: &Arc<Node>,
        ns: &Namespace,
        target: BranchId,
    ) -> Result<bool> {
        match &ns.index {
            Some(index) => Ok(index.is_empty()),
            None if node.layers().iter().all(|l| l.branch == target) => Ok(true),
            None => Err(Errno::ACCESS),
        }
    }

    fn must_load(&self, node: &Node, ns: &Namespace, need: Need) -> bool {
        if ns.dead {
            return false;
        }
        if ns.stale && ns.index.is_some() {
            return true;
        }
        match (&ns.index, self.trust(node)) {
            // What is told is compared with the names that the kernel was told.
            (None, Trust::Watched) => true,
            (None, _) => {
                let options = self.options();
                need == Need::Listing
                    || node.id == NodeId::ROOT
                    || node.layers().len() > 1
                    || options.strict
                    || options.show_whiteouts
                    || self.stack().hides()
            }
            (Some(_), _) if is_stale(node) => true,
            (Some(index), Trust::Check(lifetime)) => index.checked.elapsed() >= lifetime,
            (Some(_), _) => false,
        }
    }

    /// Is the absence of a name to be checked, although the names are not due yet?
    pub(super) fn doubts_absence(&self, node: &Node, ns: &Namespace) -> bool {
        let (Some(index), Trust::Check(_)) = (&ns.index, self.trust(node)) else {
            return false;
        };
        !ns.dead && index.checked.elapsed() >= ABSENT
    }

    /// Reads the names anew if the branches have changed; false = they were not even looked at.
    pub(super) fn check_now(&self, node: &Arc<Node>) -> Result<bool> {
        let mut guard = node.dir().ok_or(Errno::NOTDIR)?.ns.write();
        let doubted = self.doubts_absence(node, &guard);
        if doubted {
            self.load(node, &mut guard)?;
        }
        Ok(doubted)
    }

    /// Reads the names of every layer, or finds that nothing changed since they were read.
    pub(super) fn load(&self, node: &Arc<Node>, ns: &mut Namespace) -> Result<()> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let stale = dir.watch.is_stale();
        if let Some(index) = &mut ns.index
            && !ns.stale
            && !stale
            && self.unchanged(node, index)?
            && !index.unsettled
        {
            index.checked = Instant::now();
            return Ok(());
        }
        // What changes from here on makes them stale again.
        dir.watch.begin_reading();
        let watched = self.trust(node) == Trust::Watched;
        let before = ns.index.as_ref().filter(|_| watched).map(Index::snapshot);
        // A failure half-way leaves no index behind, and the positions start anew.
        let mut index = ns.index.take().unwrap_or_default();
        self.read_layers(node, &mut index).inspect_err(|_| {
            if before.is_some() {
                self.tell_shrink(node);
            }
        })?;
        if watched {
            index.keep_ledger();
        }
        let changed = before.map_or_else(Vec::new, |before| index.changed_since(&before));
        (ns.index, ns.stale) = (Some(index), false);
        if !changed.is_empty() {
            self.tell_changed(node, ns, &changed);
        }
        Ok(())
    }

    fn read_layers(&self, node: &Arc<Node>, index: &mut Index) -> Result<()> {
        index.begin();
        let mut hiding = self.hiding();
        for layer in node.layers().iter() {
            self.hide_above(&mut hiding, node, layer, false, index)?;
            if layer.sealed {
                index.stamps.push(Stamp::default());
                continue;
            }
            let branch = self.branch(layer.branch)?;
            let dir = Loc::dir(self.dir_fd(node, layer)?);
            let listing =
                self.with_descriptors(|| dir.open_quietly(OFlags::RDONLY | OFlags::DIRECTORY))?;
            let stamp = Stamp::of(&stat_fd(&listing)?);
            index.unsettled |= stamp.is_young();
            index.stamps.push(stamp);
            self.read_layer(node.id, &branch, &listing, index)?;
            self.hide_above(&mut hiding, node, layer, true, index)?;
        }
        index.fit();
        Ok(())
    }

    fn unchanged(&self, node: &Arc<Node>, index: &Index) -> Result<bool> {
        let layers = node.layers();
        if layers.len() != index.stamps.len() {
            return Ok(false);
        }
        for (layer, stamp) in layers.iter().zip(&index.stamps) {
            let immutable = |b: &Arc<Branch>| b.perm.access == crate::spec::Access::RealReadOnly;
            if layer.sealed || immutable(&self.branch(layer.branch)?) {
                continue;
            }
            if Stamp::of(&stat_fd(self.dir_fd(node, layer)?)?) != *stamp {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// After a name of the directory was made or removed on `branch`: the directory shows the times
    /// of its topmost instance, so that one changed too.
    pub(super) fn changed(&self, node: &Arc<Node>, ns: &mut Namespace, branch: BranchId) {
        let top = node.layers().first().map(|l| l.branch);
        if let Some(top) = top.filter(|top| *top != branch)
            && self.branch(top).is_ok_and(|b| b.writable())
            && let Ok(fd) = self.dir_fd_on(node, top)
        {
            if let Err(err) = Loc::dir(fd).set_times(None, Some(SetTime::Now)) {
                log::debug!("time of a directory that was changed below: {err}");
            }
            self.restamp(node, ns, top);
        }
        self.restamp(node, ns, branch);
    }

    /// After a change by the union in `branch`: what it did itself is no news.
    pub(super) fn restamp(&self, node: &Arc<Node>, ns: &mut Namespace, branch: BranchId) {
        if !self.is_checked(node) {
            return;
        }
        let Some(index) = &mut ns.index else { return };
        let layers = node.layers();
        if layers.len() != index.stamps.len() {
            return;
        }
        for (layer, stamp) in layers.iter().zip(&mut index.stamps) {
            if layer.branch == branch
                && let Ok(fd) = self.dir_fd(node, layer)
                && let Ok(now) = stat_fd(fd)
            {
                *stamp = Stamp::of(&now);
                index.unsettled |= stamp.is_young();
            }
        }
    }

    fn read_layer(
        &self,
        node: NodeId,
        branch: &Branch,
        listing: &OwnedFd,
        index: &mut Index,
    ) -> Result<()> {
        let mut whiteouts: Vec<(Name, Kind)> = Vec::new();
        let honours = branch.honours_whiteouts();
        let whiteout_files = honours && branch.has_whiteout_files(listing)?;
        let options = self.options();
        index.end_at_other_types(branch.format == Format::Overlay);
        for_each_entry(listing, |name, kind, real| {
            let class = classify(name);
            let is_plain = class == NameClass::Plain;
            let shown = is_plain || (honours && options.show_whiteouts && name != STORE_DIR);
            let hides = honours && matches!(class, NameClass::Whiteout(_));
            if (!shown && !hides) || Self::is_hiding_place(branch, node, name) {
                return Ok(());
            }
            let kind = match kind {
                Some(kind) => kind,
                None => match stat_at(listing, name) {
                    Ok(stat) => stat.kind(),
                    // Removed meanwhile.
                    Err(Errno::NOENT) => return Ok(()),
                    Err(err) => return Err(err),
                },
            };
            if !is_plain {
                if let NameClass::Whiteout(hidden) = class {
                    whiteouts.push((Name::from_slice(hidden), kind));
                }
                if shown {
                    index.add_entry(branch.id, name, kind, real);
                }
                return Ok(());
            }
            let may_hide = match kind {
                Kind::Char => honours && branch.device_hides(name),
                Kind::File => whiteout_files,
                _ => false,
            };
            if may_hide && is_whiteout_entry(branch, listing, name)? {
                whiteouts.push((Name::from_slice(name), Kind::File));
            } else if kind != Kind::Dir || !self.hidden.contains(&(branch.dev, real)) {
                index.add_entry(branch.id, name, kind, real);
            }
            Ok(())
        })?;
        for (name, kind) in &whiteouts {
            if options.strict {
                index.add_strict_whiteout(branch.id, name, *kind == Kind::File);
            } else {
                index.add_whiteout(name);
            }
        }
        Ok(())
    }

    /// What the union holds under `name`. The directory is locked; `ns` is what the lock guards.
    /// EIO (`strict`) where marks contradict what is there.
    pub(super) fn resolve(&self, node: &Arc<Node>, ns: &Namespace, name: &[u8]) -> Result<Found> {
        if ns.dead {
            return Ok(Found::Absent);
        }
        match &ns.index {
            Some(index) if index.is_broken(name) => Err(Errno::IO),
            Some(index) => Ok(index.get(name)),
            None => self.probe(node, name),
        }
    }

    /// Asks the branches: of a directory that lies on one, or that may not be listed.
    pub(super) fn probe(&self, node: &Arc<Node>, name: &[u8]) -> Result<Found> {
        let layers = node.layers();
        let mut found = Found::Absent;
        for layer in layers.iter().filter(|l| !l.sealed) {
            let branch = self.branch(layer.branch)?;
            let dir = self.dir_fd(node, layer)?;
            let stat = match stat_at(&dir, name) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(err) => return Err(err),
            };
            let honours = branch.honours_whiteouts();
            let device = match &stat {
                Some(stat) if honours => branch.is_whiteout_entry(&*dir, name, stat)?,
                _ => false,
            };
            let decides = found == Found::Absent;
            let shown = stat.filter(|s| !device && !self.hidden.contains(&(s.dev, s.ino)));
            if let Some(stat) = &shown {
                found = stacked(found, branch.id, stat);
                if branch.format == Format::Overlay && ends(&found, stat) {
                    break;
                }
            }
            let strict = self.options().strict;
            // On one branch a whiteout hides nothing.
            let mark = if honours && (layers.len() > 1 || strict) {
                branch.whiteout_file(&dir, name)?
            } else {
                None
            };
            if strict && decides && (mark.is_some_and(|k| k != Kind::File || shown.is_some())) {
                return Err(Errno::IO);
            }
            if device || mark.is_some() {
                if found == Found::Absent {
                    found = Found::Whiteout;
                }
                break;
            }
        }
        Ok(found)
    }

    /// Refuses names that cannot be looked up.
    pub(super) fn check_lookup(&self, name: &[u8]) -> Result<()> {
        let options = self.options();
        if options.show_whiteouts && is_reserved(name) && is_one_name(name) && name != STORE_DIR {
            return if name.len() > usize::from(options.name_max) + PREFIX.len() {
                Err(Errno::NAMETOOLONG)
            } else {
                Ok(())
            };
        }
        self.check_name(name)
    }

    /// Refuses names that no file of a union may have.
    pub(super) fn check_name(&self, name: &[u8]) -> Result<()> {
        if name.len() > usize::from(self.options().name_max) {
            return Err(Errno::NAMETOOLONG);
        }
        if is_reserved(name) {
            return Err(Errno::PERM);
        }
        if is_one_name(name) {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }
}

/// Is it the name of something in a directory, and no path?
fn is_one_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

fn is_stale(node: &Node) -> bool {
    node.dir().is_some_and(|dir| dir.watch.is_stale())
}

/// May the daemon reach what is in a directory, but not list it? (A plain user's.)
fn may_not_list(err: Errno) -> bool {
    matches!(err, Errno::ACCESS | Errno::PERM)
}

/// Is this other type the end of what a directory is made of?
fn ends(found: &Found, below: &RealStat) -> bool {
    matches!(found, Found::Present(top) if top.kind == Kind::Dir) && below.kind() != Kind::Dir
}

/// What a name is, with one more instance of it below those that were found.
fn stacked(above: Found, branch: BranchId, stat: &RealStat) -> Found {
    match above {
        Found::Present(mut top) => {
            top.below = true;
            if top.kind == Kind::Dir && stat.kind() == Kind::Dir {
                top.layers.push(branch);
            }
            Found::Present(top)
        }
        Found::Absent | Found::Whiteout => {
            Found::Present(Present::single(branch, stat.kind(), stat.ino, false))
        }
    }
}

fn is_whiteout_entry(branch: &Branch, listing: &OwnedFd, name: &[u8]) -> Result<bool> {
    match stat_at(listing, name) {
        Ok(stat) => branch.is_whiteout_entry(listing, name, &stat),
        Err(Errno::NOENT) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Calls `f` with every entry but `.` and `..`: name, type where the filesystem tells, number.
pub(super) fn for_each_entry(
    listing: &OwnedFd,
    mut f: impl FnMut(&[u8], Option<Kind>, u64) -> Result<()>,
) -> Result<()> {
    let mut buf = [MaybeUninit::<u8>::uninit(); 32 << 10];
    let mut dir = RawDir::new(listing, &mut buf);
    while let Some(entry) = dir.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        f(name, kind_of(entry.file_type()), entry.ino())?;
    }
    Ok(())
}

fn kind_of(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Unknown => return None,
    })
}
