//! RENAME and RENAME2.
//!
//! The order of the steps on the branch makes every moment show the old state or the new: marks on
//! the source that change nothing where it is, the whiteout of the old name (an entry beside its
//! own whiteout is still seen), the rename itself, and last the removal of a whiteout under the new
//! name (which hides nothing any more). No step needs a journal.

use super::Union;
use super::copyup::How;
use super::create::first_of;
use super::moves::{Move, drop_idle_devices};
use super::names::{Leaving, unname};
use super::namespace::Need;
use super::redirect::Lower;
use crate::branch::Branch;
use crate::branch::log::Record;
use crate::branch::plinks::plink_name;
use crate::branch::times::keep_times;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Namespace, Node, Place, Present};
use crate::spec::Format;
use crate::sys::Name;
use crate::sys::stat::{stat_at, stat_fd};
use crate::types::*;
use parking_lot::{MutexGuard, RwLockWriteGuard};
use rustix::fs::AtFlags;
use std::sync::Arc;

const RETRIES: usize = 8;

/// A directory and a name in it.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) dir: &'a Arc<Node>,
    pub(super) name: &'a [u8],
}

/// The locks of one or two directories.
pub(super) struct TwoDirs<'a> {
    _order: Option<MutexGuard<'a, ()>>,
    first: RwLockWriteGuard<'a, Namespace>,
    /// `None` when both are one.
    second: Option<RwLockWriteGuard<'a, Namespace>>,
    /// `first` is the source's.
    in_order: bool,
}

impl TwoDirs<'_> {
    pub(super) fn source(&mut self) -> &mut Namespace {
        match &mut self.second {
            Some(second) if !self.in_order => second,
            _ => &mut self.first,
        }
    }

    pub(super) fn target(&mut self) -> &mut Namespace {
        match &mut self.second {
            Some(second) if self.in_order => second,
            _ => &mut self.first,
        }
    }
}

/// A node that this operation may be the only one to know: forgotten again at the end.
pub(super) struct Held<'a> {
    union: &'a Union,
    node: Option<Arc<Node>>,
}

impl Held<'_> {
    pub(super) fn node(&self) -> Result<&Arc<Node>> {
        self.node.as_ref().ok_or(Errno::STALE)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            let id = node.id;
            drop(node);
            self.union.forget(id, 0);
        }
    }
}

impl Union {
    /// RENAME and RENAME2. `RENAME_WHITEOUT` is refused: EINVAL.
    pub fn rename(
        &self,
        _caller: &Caller,
        from: (NodeId, &[u8]),
        to: (NodeId, &[u8]),
        flags: RenameFlags,
    ) -> Result<()> {
        let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
        if !both.contains(flags) || flags == both {
            return Err(Errno::INVAL);
        }
        let (from_dir, to_dir) = (self.dir_node(from.0)?, self.dir_node(to.0)?);
        self.check_name(from.1)?;
        self.check_name(to.1)?;
        self.may_change(&from_dir)?;
        self.may_change(&to_dir)?;
        let (from, to) = (
            At {
                dir: &from_dir,
                name: from.1,
            },
            At {
                dir: &to_dir,
                name: to.1,
            },
        );
        for _ in 0..RETRIES {
            let done = if flags.contains(RenameFlags::EXCHANGE) {
                self.try_exchange(from, to)?
            } else {
                self.try_rename(from, to, flags)?
            };
            if done {
                return Ok(());
            }
        }
        Err(Errno::BUSY)
    }

    /// The node of a name, and what the name is now: what was found before a directory was copied
    /// up would take that copy from the node again.
    pub(super) fn hold(&self, at: At<'_>) -> Result<(Held<'_>, Present)> {
        let ns = self.ns_read(at.dir, Need::Names)?;
        let Found::Present(found) = self.resolve(at.dir, &ns, at.name)? else {
            return Err(Errno::NOENT);
        };
        let node = self.child(at.dir, at.name, &found, 0)?.node;
        let held = Held {
            union: self,
            node: Some(node),
        };
        Ok((held, found))
    }

    fn find_optional(&self, at: At<'_>) -> Result<Option<Present>> {
        match self.find(at.dir, at.name) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// False = something changed while it was prepared: try again.
    fn try_rename(&self, from: At<'_>, to: At<'_>, flags: RenameFlags) -> Result<bool> {
        let (node, source) = self.hold(from)?;
        let dest = self.find_optional(to)?;
        if dest.is_some() && flags.contains(RenameFlags::NOREPLACE) {
            return Err(Errno::EXIST);
        }
        if let Some(dest) = &dest {
            check_kinds(source.kind, dest.kind)?;
        }
        let top = self.holder(node.node()?, &source);
        let branch = self.rename_branch(from, top, to, dest.as_ref().map(|d| d.top))?;
        let to_itself = from.dir.id == to.dir.id && from.name == to.name;
        if let Some(dest) = dest.filter(|_| source.kind == Kind::Dir && !to_itself) {
            self.refuse_full(to, &dest)?;
        }
        self.bring_to(node.node()?, &source, from, &branch)?;
        self.make_dir_on(to.dir, branch.id)?;
        if to_itself {
            return Ok(true);
        }
        let mut dirs = self.lock_two(from.dir, to.dir)?;
        let Found::Present(source) = self.resolve(from.dir, dirs.source(), from.name)? else {
            return Err(Errno::NOENT);
        };
        let (dest, hidden) = match self.resolve(to.dir, dirs.target(), to.name)? {
            Found::Present(found) => (Some(found), false),
            Found::Whiteout => (None, true),
            Found::Absent => (None, false),
        };
        if source.top != branch.id {
            return Ok(false);
        }
        let victim = match &dest {
            Some(dest) => {
                if flags.contains(RenameFlags::NOREPLACE) {
                    return Err(Errno::EXIST);
                }
                check_kinds(source.kind, dest.kind)?;
                let victim = self.child(to.dir, to.name, dest, 0)?.node;
                Some(Held {
                    union: self,
                    node: Some(victim),
                })
            }
            None => None,
        };
        if let Some(victim) = &victim
            && victim.node()?.id == node.node()?.id
        {
            // Two names of one file: rename(2) does nothing.
            return Ok(true);
        }
        self.rename_locked(
            from,
            to,
            &mut dirs,
            node.node()?,
            &source,
            victim.as_ref(),
            dest.as_ref(),
            hidden,
            &branch,
        )?;
        Ok(true)
    }

    /// ENOTEMPTY for a directory that cannot be replaced, before anything is copied for it.
    fn refuse_full(&self, at: At<'_>, found: &Present) -> Result<()> {
        let victim = Held {
            union: self,
            node: Some(self.child(at.dir, at.name, found, 0)?.node),
        };
        let ns = self.ns_read(victim.node()?, Need::Listing)?;
        match &ns.index {
            Some(index) if !index.is_empty() => Err(Errno::NOTEMPTY),
            _ => Ok(()),
        }
    }

    /// The branch of what a name leads to: the copy, if it is a link of a file that was copied up
    /// under another of its names.
    pub(super) fn holder(&self, node: &Node, found: &Present) -> BranchId {
        let holder = node.inode().0;
        // A name above it is renamed as it is: it goes on leading to the pseudo-link.
        if node.kind != Kind::Dir
            && self.links.plink(node.id).is_some()
            && !self.is_above(found.top, holder)
        {
            holder
        } else {
            found.top
        }
    }

    /// Makes sure that what `from` was found to be is on the branch, under its name; if it changes
    /// meanwhile it may not be, and the caller tries again.
    pub(super) fn bring_to(
        &self,
        node: &Arc<Node>,
        found: &Present,
        from: At<'_>,
        branch: &Arc<Branch>,
    ) -> Result<()> {
        self.make_dir_on(from.dir, branch.id)?;
        if found.top == branch.id {
            // Under another name its data would not be found.
            return self.complete_data(node, How::default()).map(drop);
        }
        if node.kind == Kind::Dir {
            self.check_movable(node)?;
            return self.make_dir_on(node, branch.id);
        }
        self.bring_up(node, branch.id)?;
        if node.inode().0 == branch.id {
            self.materialise(node, from, branch)?;
        }
        Ok(())
    }

    /// Before anything is copied for it: may a directory with lower parts be renamed at all?
    fn check_movable(&self, node: &Arc<Node>) -> Result<()> {
        if node.layers().iter().any(|l| l.sealed) {
            return Err(Errno::BUSY);
        }
        if self.options().dir_rename {
            return Ok(());
        }
        let ns = self.ns_read(node, Need::Listing)?;
        if ns.index.as_ref().is_none_or(|i| i.is_empty()) {
            Ok(())
        } else {
            Err(Errno::XDEV)
        }
    }

    /// Gives a copied-up file its name on the branch too, where only the lower branch has it.
    pub(super) fn materialise(
        &self,
        node: &Arc<Node>,
        at: At<'_>,
        branch: &Arc<Branch>,
    ) -> Result<()> {
        let mut ns = self.ns_write(at.dir)?;
        let Found::Present(found) = self.resolve(at.dir, &ns, at.name)? else {
            return Err(Errno::NOENT);
        };
        if found.top == branch.id {
            return Ok(());
        }
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let dir = self.dir_fd_on(at.dir, branch.id)?;
        let before = stat_fd(&dir)?;
        let plink = self.links.plink(node.id).ok_or(Errno::STALE)?;
        let real = node.inode().1;
        let link = plink_name(node.id, real);
        {
            let _counting = self.links.counting(&[node.id]);
            let (source, delta) = (plink.source, self.links.delta(node.id));
            // Before the link: with it, the count of links tells how many names are none.
            let names = self.links.nlink(node, &stat_at(store.plinks(), &link)?) as i32;
            store.record(Record::Names { source, names })?;
            rustix::fs::linkat(store.plinks(), &*link, &dir, at.name, AtFlags::empty())
                .inspect_err(|_| store.record_at_last(Record::Links { source, delta }))?;
            self.set_delta(node, branch, source, delta - 1);
        }
        // The union has the name already.
        keep_times(&dir, &before);
        node.update_home(|h| {
            (h.parent, h.name) = (Some(at.dir.clone()), Name::from_slice(at.name));
            (h.linked, h.place) = (true, Place::Named);
        });
        if let Some(index) = &mut ns.index {
            index.set(at.name, &Present::single(branch.id, found.kind, real, true));
        }
        self.restamp(at.dir, &mut ns, branch.id);
        Ok(())
    }

    pub(super) fn lock_two<'a>(
        &'a self,
        from: &'a Arc<Node>,
        to: &'a Arc<Node>,
    ) -> Result<TwoDirs<'a>> {
        if from.id == to.id {
            return Ok(TwoDirs {
                _order: None,
                first: self.ns_write(from)?,
                second: None,
                in_order: true,
            });
        }
        let order = self.rename_lock.lock();
        let in_order = first_of(from, to);
        let (a, b) = if in_order { (from, to) } else { (to, from) };
        let first = self.ns_write(a)?;
        Ok(TwoDirs {
            _order: Some(order),
            first,
            second: Some(self.ns_write(b)?),
            in_order,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn rename_locked(
        &self,
        from: At<'_>,
        to: At<'_>,
        dirs: &mut TwoDirs<'_>,
        node: &Arc<Node>,
        source: &Present,
        victim: Option<&Held<'_>>,
        dest: Option<&Present>,
        hidden: bool,
        branch: &Arc<Branch>,
    ) -> Result<()> {
        if node.kind == Kind::Dir
            && (to.dir.id == node.id || to.dir.ancestors().any(|n| n.id == node.id))
        {
            return Err(Errno::INVAL);
        }
        self.refuse_mark(node, branch, to.name)?;
        if !self.shows(to.dir, branch, to.name)? {
            return Err(Errno::XDEV);
        }
        let victim = victim.map(Held::node).transpose()?;
        let (from_fd, to_fd) = (
            self.dir_fd_on(from.dir, branch.id)?,
            self.dir_fd_on(to.dir, branch.id)?,
        );
        if node.kind == Kind::Dir
            && hidden
            && branch.whiteout_is_separate(from.name)
            && stat_at(&to_fd, to.name).is_ok_and(|s| s.is_null_device())
        {
            // The two cannot change places: at the old name the device would be no whiteout.
            return Err(Errno::XDEV);
        }
        let below = self.visible_below(to.dir, branch.id, to.name)?;
        // AUFS marks a directory that takes the place of a whiteout, needed or not, as mkdir(2) does.
        let over_whiteout = node.kind == Kind::Dir
            && branch.format == Format::Aufs
            && branch.has_whiteout(&to_fd, to.name)?;
        // Before the victim is locked: this reads the source's names, and the two are unrelated.
        let lower = self.plan_lower(node, branch, below || over_whiteout)?;
        let mut victim_ns = self.lock_victim(victim, from, branch.id)?;
        self.mark_source(node, branch, &lower)?;
        let leaving = match victim {
            Some(victim) if victim.kind == Kind::Dir => {
                // A directory that is replaced keeps a descriptor.
                Leaving::Pinned(self.place_locked(victim)?.1.pin()?)
            }
            _ => self.before_removal(victim, (to.dir, to.name), &[from.dir.id, to.dir.id])?,
        };
        let victim_stat = match dest {
            Some(dest) => Some(stat_at(self.dir_fd_on(to.dir, dest.top)?, to.name)?),
            None => None,
        };
        let physical = dest.is_some_and(|d| d.top == branch.id);
        let counted = victim_stat.as_ref().filter(|s| s.kind() != Kind::Dir);
        let counting = counted.and_then(|stat| self.counting_links(stat));
        let leaves = match counted {
            Some(stat) => {
                let victim = victim.filter(|v| v.kind != Kind::Dir);
                self.announce_removal(
                    victim,
                    (to.dir, to.name),
                    (&**branch, &*to_fd),
                    stat,
                    physical,
                )?
            }
            None => None,
        };
        let moved = self.move_on_branch(
            branch,
            &Move {
                from: &from_fd,
                old: from.name,
                to: &to_fd,
                new: to.name,
                is_dir: node.kind == Kind::Dir,
                whiteout: source.below,
                over_dir: victim.filter(|v| physical && v.kind == Kind::Dir),
                hidden,
            },
        );
        if let Err(err) = moved {
            if let Some(source) = leaves {
                self.withdraw_removal(branch, source, counted);
            }
            if let Some(ns) = &mut victim_ns {
                // The directory may have lost its marks, and have got one beside it.
                (ns.index, dirs.target().index) = (None, None);
            }
            return Err(err);
        }
        if let Some(ns) = &mut victim_ns {
            (ns.dead, ns.index) = (true, None);
        }
        if let Some(victim) = victim {
            unname(victim, leaving);
        }
        match (&victim_stat, victim.map(|v| v.kind)) {
            (Some(stat), Some(Kind::Dir)) if physical => self.forget_dir(branch, stat),
            (Some(stat), Some(kind)) if kind != Kind::Dir => {
                self.count_removal(victim, branch, stat, physical, leaves);
            }
            _ => {}
        }
        drop(counting);
        drop(victim_ns);
        self.before_rename(node, from.dir, from.name);
        self.moved(node, source.real, to, lower, branch);
        if let Some(index) = &mut dirs.source().index {
            let hidden = source.below || self.hidden_below(from.dir, branch.id, from.name);
            index.remove(from.name, hidden);
        }
        if let Some(index) = &mut dirs.target().index {
            index.set(
                to.name,
                &Present::single(branch.id, source.kind, source.real, below),
            );
        }
        self.changed(from.dir, dirs.source(), branch.id);
        self.changed(to.dir, dirs.target(), branch.id);
        Ok(())
    }

    /// A null device gets no name under which it would be a whiteout.
    pub(super) fn refuse_mark(&self, node: &Arc<Node>, branch: &Branch, name: &[u8]) -> Result<()> {
        if node.kind == Kind::Char
            && branch.device_hides(name)
            && self.place_locked(node)?.1.stat()?.is_null_device()
        {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    /// A directory that is replaced must be empty, and nothing may be created in it meanwhile.
    fn lock_victim<'a>(
        &self,
        victim: Option<&'a Arc<Node>>,
        from: At<'_>,
        branch: BranchId,
    ) -> Result<Option<RwLockWriteGuard<'a, Namespace>>> {
        let Some(victim) = victim.filter(|v| v.kind == Kind::Dir) else {
            return Ok(None);
        };
        if victim.id == from.dir.id || from.dir.ancestors().any(|n| n.id == victim.id) {
            return Err(Errno::NOTEMPTY);
        }
        let ns = self.ns_write(victim)?;
        if !self.is_empty(victim, &ns, branch)? {
            return Err(Errno::NOTEMPTY);
        }
        Ok(Some(ns))
    }

    /// `real`: the inode that was renamed on the branch.
    pub(super) fn moved(
        &self,
        node: &Arc<Node>,
        real: u64,
        to: At<'_>,
        lower: Lower,
        branch: &Branch,
    ) {
        match lower {
            Lower::Redirect(layers) => self.give_layers(node, layers, None),
            // Lower parts stay behind: they were empty.
            Lower::None { .. } if node.layers().len() > 1 => {
                if let Ok(dir) = self.dir_fd_on(node, branch.id) {
                    drop_idle_devices(branch, &dir);
                }
                // What its names hid below them counts no more. (In order: the locks of both parents
                // are held, this is a child.)
                let mut ns = node.dir().map(|dir| dir.ns.write());
                if let Some(ns) = &mut ns {
                    ns.stale = ns.index.is_some();
                }
                self.keep_top_only(node);
            }
            Lower::None { .. } => {}
        }
        node.update_home(|h| {
            // A name that only leads to the pseudo-link is no link of it.
            let leads_there = node.kind != Kind::Dir && (h.branch, h.real) != (branch.id, real);
            if leads_there && !matches!(h.place, Place::Plink) {
                return;
            }
            (h.parent, h.name) = (Some(to.dir.clone()), Name::from_slice(to.name));
            h.linked = true;
            if !leads_there {
                h.place = Place::Named;
            }
        });
    }
}

fn check_kinds(source: Kind, dest: Kind) -> Result<()> {
    match (source == Kind::Dir, dest == Kind::Dir) {
        (true, false) => Err(Errno::NOTDIR),
        (false, true) => Err(Errno::ISDIR),
        _ => Ok(()),
    }
}
