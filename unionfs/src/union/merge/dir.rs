//! Directories of a merge: made below before what is in them, taken away above after it.

use super::raw::{Times, drop_whiteout};
use super::{Outcome, Reason, Way};
use crate::branch::log::{Origin, Record};
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Layer, LayerList, Namespace, Node, Present};
use crate::shown::ShowPath;
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::with_write_permission;
use crate::sys::{Loc, RealStat, xattr};
use crate::types::{Kind, NodeId};
use crate::union::Union;
use crate::union::copyup::How;
use crate::union::make_dir::rename_new;
use crate::union::metadata::list_xattrs;
use crate::whiteout::OPAQUE;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use std::sync::Arc;

/// How a directory of the upper branch stands to the lower one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is on both.
    Merged,
    /// It hides what is below it.
    Opaque,
    /// It is not on the lower branch.
    Missing,
}

impl Union {
    /// How does the directory stand? `Err` = it must stay as it is.
    pub(super) fn standing(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<std::result::Result<Standing, Reason>> {
        let Some(layer) = node.layer_on(way.from.id) else {
            return Ok(Err(Reason::Upper));
        };
        if layer.sealed {
            return Ok(Err(Reason::Mounted));
        }
        let upper = self.dir_fd(node, &layer)?;
        let moved = layer.path.is_some()
            || self
                .redirect_of(&way.from, &upper, &stat_fd(&upper)?)?
                .is_some();
        if moved || self.is_redirect_target(way, parent, name)? {
            return Ok(Err(Reason::Redirected));
        }
        if let Some(layer) = node.layer_on(way.to.id) {
            return Ok(match (layer.sealed, layer.path) {
                (true, _) => Err(Reason::Mounted),
                (false, Some(_)) => Err(Reason::Redirected),
                (false, None) => Ok(Standing::Merged),
            });
        }
        let above = self.dir_fd_on(parent, way.from.id)?;
        if way.from.is_opaque(&upper)? || way.from.has_whiteout(&above, name)? {
            return Ok(match self.in_the_way(way, parent, name)? {
                Some(reason) => Err(reason),
                None => Ok(Standing::Opaque),
            });
        }
        Ok(Ok(Standing::Missing))
    }

    /// Makes sure that a directory of the upper branch goes on on the lower one.
    pub(super) fn bring_dir(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<std::result::Result<Standing, Reason>> {
        let standing = self.standing(way, parent, name, node)?;
        if way.options.dry_run {
            return Ok(standing);
        }
        match standing {
            Ok(Standing::Opaque) => {
                if let Some(reason) = self.give_up_opaque(way, parent, name, node)? {
                    return Ok(Err(reason));
                }
            }
            Ok(Standing::Missing) => {
                self.clear_for_dir(way, parent, name, node)?;
                if !self.reaches(node, &way.to)? {
                    return Ok(Err(Reason::Opaque));
                }
                self.make_dir_on(node, way.to.id)?;
            }
            // A copy that was stopped in it took the mark away.
            Ok(Standing::Merged) if way.options.copy && self.was_opaque(way, node)? => {
                return Ok(Ok(Standing::Opaque));
            }
            Ok(Standing::Merged) | Err(_) => {}
        }
        Ok(standing)
    }

    fn was_opaque(&self, way: &Way, node: &Arc<Node>) -> Result<bool> {
        let stat = stat_fd(self.dir_fd_on(node, way.from.id)?)?;
        let store = way.from.store.as_ref().ok_or(Errno::ROFS)?;
        Ok(store.is_noted_opaque(&stat))
    }

    /// Takes away a file of the lower branch that has the name of a directory above it.
    fn clear_for_dir(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<()> {
        let ns = self.ns_write(parent)?;
        if !node.is_at(parent.id, name) || node.layer_on(way.from.id).is_none() {
            return Err(Errno::STALE);
        }
        let lower = self.dir_fd_on(parent, way.to.id)?;
        match stat_at(&lower, name) {
            Ok(stat) if stat.kind() != Kind::Dir && !way.to.is_whiteout_device(&stat, name) => {
                let times = Times::of(&lower)?;
                self.clear_below(way, parent, &lower, name)?;
                drop((times, ns));
            }
            _ => drop(ns),
        }
        Ok(())
    }

    /// An opaque directory: an empty one is made on the lower branch, as opaque as it must be, in
    /// place of what lies there; then the upper one need not be opaque any more.
    fn give_up_opaque(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<Option<Reason>> {
        let mut above = self.ns_write(parent)?;
        let mut own = self.ns_write(node)?;
        match self.standing(way, parent, name, node)? {
            Ok(Standing::Opaque) => {}
            Ok(_) => return Ok(None),
            Err(reason) => return Ok(Some(reason)),
        }
        if !node.is_at(parent.id, name) {
            return Err(Errno::STALE);
        }
        let (upper, lower) = (
            self.dir_fd_on(parent, way.from.id)?,
            self.dir_fd_on(parent, way.to.id)?,
        );
        let times = Times::of(&lower)?;
        let store = way.to.store.as_ref().ok_or(Errno::ROFS)?;
        self.clear_below(way, parent, &lower, name)?;
        let dir = self.dir_fd_on(node, way.from.id)?;
        let source = Loc::dir(dir.clone());
        let stat = source.stat()?;
        let mut copy = self.build_copy(node, &way.to, &way.from, &source, &stat, How::default())?;
        let fd = Arc::new(open_subdir(store.tmp(), &copy.temp)?);
        let needed = way.options.keep_whiteouts
            || way.to.has_whiteout(&lower, name)?
            || self.visible_below(parent, way.to.id, name)?;
        if needed {
            way.to.set_opaque(&fd)?;
        }
        with_write_permission(&lower, || rename_new(store.tmp(), &copy.temp, &lower, name))?;
        copy.published = true;
        if way.to.whiteout_is_separate(name) {
            drop_whiteout(&way.to, &lower, name)?;
        }
        self.settle(way, &lower)?;
        if let (true, Some(store)) = (way.options.copy, &way.from.store) {
            store.note_opaque(&stat_fd(&dir)?)?;
        }
        self.change_upper(way, node, &dir, || remove_opaque_mark(&dir))?;
        if way.from.whiteout_is_separate(name) {
            self.change_upper(way, parent, &upper, || {
                drop_whiteout(&way.from, &upper, name)
            })?;
        }
        drop(times);
        let is_top = false;
        self.add_layer(node, way.to.id, copy.stat.ino, is_top);
        self.cache_dir_fd(node, way.to.id, copy.stat.ino, fd);
        forget_stamps(&mut own);
        let home = node.home();
        self.index_new_layer(parent, &mut above, &home, way.to.id, copy.stat.ino);
        self.restamp(parent, &mut above, way.from.id);
        Ok(None)
    }

    /// An opaque root: everything that it hides on the lower branch goes.
    pub(super) fn open_root(&self, way: &Way, root: &Arc<Node>) -> Result<Option<Reason>> {
        if root.layer_on(way.to.id).is_some() {
            return Ok(None);
        }
        let stack = self.stack();
        let next = stack.position(way.from.id).map(|p| usize::from(p.0) + 1);
        let next = next.and_then(|at| stack.branches().get(at));
        let upper = way.from.root.clone();
        let other = next.is_none_or(|b| b.id != way.to.id) || !way.from.is_opaque(&upper)?;
        if other || way.options.copy {
            return Ok(Some(Reason::Opaque));
        }
        if !self.redirects.is_empty() {
            return Ok(Some(Reason::Redirected));
        }
        if way.options.dry_run {
            return Ok(None);
        }
        let mut ns = self.ns_write(root)?;
        let lower = way.to.root.clone();
        for name in self.list_raw(&way.to, &lower)?.entries {
            self.clear_below(way, root, &lower, &name)?;
        }
        let last = stack.branches().last().is_some_and(|b| b.id == way.to.id);
        if way.options.keep_whiteouts || !last {
            way.to.set_opaque(&lower)?;
        }
        self.settle(way, &lower)?;
        self.change_upper(way, root, &upper, || remove_opaque_mark(&upper))?;
        self.add_layer(root, way.to.id, way.to.root_ino, false);
        forget_stamps(&mut ns);
        Ok(None)
    }

    /// Takes a directory away from the upper branch, from which everything was moved. `Some` = it
    /// must stay.
    pub(super) fn drop_dir(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<Option<Reason>> {
        let _nobody_changes = node.change.write();
        let mut above = self.ns_write(parent)?;
        let mut own = self.ns_write(node)?;
        let (Some(_), Some(below)) = (node.layer_on(way.from.id), node.layer_on(way.to.id)) else {
            return Ok(Some(Reason::Changed));
        };
        if !node.is_at(parent.id, name) {
            return Ok(Some(Reason::Changed));
        }
        let Found::Present(found) = self.resolve(parent, &above, name)? else {
            return Ok(Some(Reason::Changed));
        };
        let dir = self.dir_fd_on(node, way.from.id)?;
        let left = self.list_raw(&way.from, &dir)?;
        if !left.entries.is_empty() || !left.whiteouts.is_empty() || left.strangers {
            return Ok(Some(Reason::Changed));
        }
        if self.entry_between(way, parent, name)?.is_some() {
            // What is between would decide its attributes, or hide it.
            return Ok(Some(Reason::Upper));
        }
        let stat = stat_fd(&dir)?;
        let is_top = found.top == way.from.id;
        if is_top {
            self.hand_down(way, node, &dir, &stat, &below)?;
        }
        let upper = self.dir_fd_on(parent, way.from.id)?;
        self.inos.note_original(&self.inos.source(&stat), node.id);
        self.change_upper(way, parent, &upper, || {
            with_write_permission(&upper, || {
                rustix::fs::unlinkat(&upper, name, AtFlags::REMOVEDIR)
            })
        })?;
        self.dropped(
            way,
            parent,
            &mut above,
            &mut own,
            (name, &found),
            node,
            &stat,
        )?;
        Ok(None)
    }

    /// Everything in the directory was copied: the lower one gets its attributes, and it is opaque
    /// again if it was.
    pub(super) fn end_copy(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        opaque: bool,
    ) -> Result<Outcome> {
        let mut above = self.ns_write(parent)?;
        let mut own = self.ns_write(node)?;
        let (Some(_), Some(below)) = (node.layer_on(way.from.id), node.layer_on(way.to.id)) else {
            return Ok(Outcome::Left(Reason::Changed));
        };
        if !node.is_at(parent.id, name) {
            return Ok(Outcome::Left(Reason::Changed));
        }
        let dir = self.dir_fd_on(node, way.from.id)?;
        let lower = self.dir_fd(node, &below)?;
        let stat = stat_fd(&dir)?;
        let (from, to) = (Loc::dir(dir.clone()), Loc::dir(lower.clone()));
        self.drop_other_xattrs(&from, &to)?;
        self.copy_metadata(&way.to, &way.from, &from, &to, &stat)?;
        if opaque {
            if self.shows_below(way, &dir, &lower)? {
                return Ok(Outcome::Left(Reason::Changed));
            }
            self.change_upper(way, node, &dir, || way.from.set_opaque(&dir))?;
            if let Some(store) = &way.from.store {
                store.forget_opaque(&stat)?;
            }
            // It ends at its own branch again.
            let layers: LayerList = node
                .layers()
                .iter()
                .filter(|l| !self.is_above(way.from.id, l.branch))
                .cloned()
                .collect();
            if let Some(index) = &mut above.index
                && let Found::Present(mut found) = index.get(name)
            {
                found
                    .layers
                    .retain(|b| layers.iter().any(|l| l.branch == *b));
                found.below = true;
                index.set(name, &found);
            }
            self.give_layers(node, layers, None);
            own.stale = own.index.is_some();
        }
        self.restamp(parent, &mut above, way.from.id);
        self.restamp(parent, &mut above, way.to.id);
        Ok(Outcome::Moved(0))
    }

    /// Does the lower directory hold a name that the upper one does not decide? It was made there
    /// meanwhile, and would be hidden.
    fn shows_below(&self, way: &Way, upper: &OwnedFd, lower: &OwnedFd) -> Result<bool> {
        let (above, below) = (
            self.list_raw(&way.from, upper)?,
            self.list_raw(&way.to, lower)?,
        );
        let decides = |name| {
            above.entries.binary_search(name).is_ok() || above.whiteouts.binary_search(name).is_ok()
        };
        Ok(!below.entries.iter().all(decides))
    }

    /// The lower directory gets the attributes and the number of the upper one, which hides it.
    fn hand_down(
        &self,
        way: &Way,
        node: &Arc<Node>,
        dir: &Arc<OwnedFd>,
        stat: &RealStat,
        below: &Layer,
    ) -> Result<()> {
        let lower = self.dir_fd(node, below)?;
        let (from, to) = (Loc::dir(dir.clone()), Loc::dir(lower.clone()));
        self.drop_other_xattrs(&from, &to)?;
        self.copy_metadata(&way.to, &way.from, &from, &to, stat)?;
        self.settle(way, &lower)?;
        let own = stat_fd(&lower)?;
        if self.inos.number(&own) == node.id {
            return Ok(());
        }
        let origin = Origin {
            source: self.inos.source(stat),
            btime: own.btime,
        };
        self.inos.set_origin(way.to.dev, own.ino, origin, node.id);
        if let (Some(store), false) = (&way.to.store, crate::ino::is_dynamic(node.id)) {
            let real = own.ino;
            store.record(Record::Origin { real, origin })?;
        }
        Ok(())
    }

    fn drop_other_xattrs(&self, from: &Loc, to: &Loc) -> Result<()> {
        let (wanted, there) = (list_xattrs(from)?, list_xattrs(to)?);
        for name in xattr::names(&there) {
            if xattr::names(&wanted).any(|w| w == name) {
                continue;
            }
            match to.xattrs(|x| x.remove(name)) {
                Ok(()) | Err(Errno::NODATA) => {}
                // Labels that cannot be taken away are given by the system.
                Err(Errno::PERM | Errno::ACCESS) if name.starts_with(b"security.") => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// The directory is gone from the upper branch.
    #[allow(clippy::too_many_arguments)]
    fn dropped(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        above: &mut Namespace,
        own: &mut Namespace,
        (name, found): (&[u8], &Present),
        node: &Arc<Node>,
        stat: &RealStat,
    ) -> Result<()> {
        self.drop_redirect(&way.from, stat.ino);
        if self.inos.drop_origin(stat.dev, stat.ino, stat.btime) {
            self.record_gone(&way.from, stat.ino);
        }
        let layers: LayerList = node
            .layers()
            .iter()
            .filter(|l| l.branch != way.from.id)
            .cloned()
            .collect();
        if let Some(top) = layers.first() {
            node.update_home(|h| (h.branch, h.real) = (top.branch, top.real));
            let mut now = Present {
                layers: layers.iter().map(|l| l.branch).collect(),
                ..Present::single(top.branch, Kind::Dir, top.real, false)
            };
            now.below = now.layers.len() > 1 || self.visible_below(parent, top.branch, name)?;
            if let Some(index) = &mut above.index {
                index.set(name, &now);
            }
        }
        log::debug!("{found:?} is gone from {}", way.from.path.shown());
        self.give_layers(node, layers, None);
        forget_stamps(own);
        self.restamp(parent, above, way.from.id);
        Ok(())
    }

    /// The directory that a path of numbers and names leads to is the root.
    pub(super) fn root(&self) -> Result<Arc<Node>> {
        self.dir_node(NodeId::ROOT)
    }
}

/// The names that were read hold; how the layers looked when they were read does not.
fn forget_stamps(ns: &mut Namespace) {
    if let Some(index) = &mut ns.index {
        index.stamps.clear();
    }
}

fn remove_opaque_mark(dir: &Arc<OwnedFd>) -> Result<()> {
    with_write_permission(dir, || {
        match rustix::fs::unlinkat(dir, OPAQUE, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    })
}
