//! Directories that a branch lacks, made on it so that something can be put there.

use super::Union;
use super::copyup::{Copy, How};
use crate::branch::Branch;
use crate::branch::times::keep_times;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Home, Layer, Namespace, Node, Place};
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, RealStat, with_write_permission};
use crate::types::*;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use smallvec::smallvec;
use std::sync::Arc;

impl Union {
    /// Makes sure that a directory exists on a writable branch, and its ancestors before it. The
    /// caller holds no directory lock.
    pub(super) fn make_dir_on(&self, node: &Arc<Node>, target: BranchId) -> Result<()> {
        if let Some(layer) = node.layer_on(target) {
            return if layer.sealed {
                Err(Errno::XDEV)
            } else {
                Ok(())
            };
        }
        let home = node.home();
        let parent = home.parent.ok_or(Errno::ROFS)?;
        if !home.linked {
            return Err(Errno::NOENT);
        }
        self.make_dir_on(&parent, target)?;
        let mut above = parent.dir().ok_or(Errno::STALE)?.ns.write();
        // Names of the directory itself are being resolved on "its only branch" elsewhere.
        let own = node.dir().ok_or(Errno::STALE)?.ns.write();
        let home = node.home();
        if own.dead {
            return Err(Errno::NOENT);
        }
        if !home.linked || home.parent.as_ref().is_none_or(|p| p.id != parent.id) {
            return Err(Errno::STALE);
        }
        if node.layer_on(target).is_some() {
            return Ok(());
        }
        let branch = self.branch(target)?;
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let (mut copy, stat) = self.copy_of_dir(node, &branch)?;
        self.note_strangers(&parent, &mut above);
        let dir = self.dir_fd_on(&parent, target)?;
        let before = stat_fd(&dir)?;
        let is_top = self.is_above(target, home.branch);
        if is_top {
            self.remember_origin(node, &branch, &copy, &stat)?;
        }
        let hidden = branch.has_whiteout(&dir, &home.name)?;
        let fd = Arc::new(open_subdir(store.tmp(), &copy.temp)?);
        if hidden {
            branch.set_opaque(&fd)?;
        }
        // Of an older directory that had this number.
        self.drop_redirect(&branch, copy.stat.ino);
        let placed = with_write_permission(&dir, || {
            rename_new(store.tmp(), &copy.temp, &dir, &home.name)
        });
        if let Err(err) = placed {
            above.index = None;
            return Err(if err == Errno::EXIST {
                Errno::STALE
            } else {
                err
            });
        }
        copy.published = true;
        if !self.privileged && branch.owners.is_none() {
            let placed = Loc::at(dir.clone(), &home.name);
            placed.chmod(stat.mode)?;
            placed.set_times(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))?;
        }
        if hidden {
            branch.drop_whiteout_of_entry(&dir, &home.name);
        }
        keep_times(&dir, &before);
        self.add_layer(node, target, copy.stat.ino, is_top);
        self.cache_dir_fd(node, target, copy.stat.ino, fd);
        self.index_new_layer(&parent, &mut above, &home, target, copy.stat.ino);
        Ok(())
    }

    /// A copy of a directory, without a name yet, and what it is a copy of. The directory is locked.
    fn copy_of_dir<'a>(
        &self,
        node: &Arc<Node>,
        target: &'a Branch,
    ) -> Result<(Copy<'a>, RealStat)> {
        let (from, source) = self.place_locked(node)?;
        let stat = from.shown(&source, source.stat()?)?;
        let copy = self.build_copy(node, target, &from, &source, &stat, How::default())?;
        Ok((copy, stat))
    }

    /// A directory that was removed while it is open is copied for those who have it open: the copy
    /// has no name. ENOENT if it was not removed.
    pub(super) fn copy_removed_dir(&self, node: &Arc<Node>, target: BranchId) -> Result<()> {
        let own = node.dir().ok_or(Errno::STALE)?.ns.write();
        if !own.dead {
            return Err(Errno::NOENT);
        }
        if node.layer_on(target).is_some() {
            return Ok(());
        }
        let branch = self.branch(target)?;
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let (mut copy, _) = self.copy_of_dir(node, &branch)?;
        let fd = Arc::new(open_subdir(store.tmp(), &copy.temp)?);
        rustix::fs::unlinkat(store.tmp(), &*copy.temp, AtFlags::REMOVEDIR)?;
        copy.published = true;
        let real = copy.stat.ino;
        self.give_layers(node, smallvec![Layer::named(target, real)], None);
        node.update_home(|h| (h.branch, h.real, h.place) = (target, real, Place::Pinned(fd)));
        Ok(())
    }

    pub(super) fn is_above(&self, a: BranchId, b: BranchId) -> bool {
        let stack = self.stack();
        stack.position(a) < stack.position(b)
    }

    pub(super) fn add_layer(&self, node: &Arc<Node>, branch: BranchId, real: u64, is_top: bool) {
        let mut layers: crate::node::LayerList = (*node.layers()).clone();
        let at = layers
            .iter()
            .position(|l: &Layer| self.is_above(branch, l.branch))
            .unwrap_or(layers.len());
        layers.insert(at, Layer::named(branch, real));
        self.give_layers(node, layers, None);
        if is_top {
            node.update_home(|h| (h.branch, h.real) = (branch, real));
        }
    }

    pub(super) fn index_new_layer(
        &self,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        home: &Home,
        branch: BranchId,
        real: u64,
    ) {
        if let Some(index) = &mut ns.index
            && let Found::Present(mut entry) = index.get(&home.name)
        {
            let at = entry
                .layers
                .iter()
                .position(|l| self.is_above(branch, *l))
                .unwrap_or(entry.layers.len());
            entry.layers.insert(at, branch);
            entry.below = true;
            if at == 0 {
                (entry.top, entry.real) = (branch, real);
            }
            index.set(&home.name, &entry);
        }
        self.restamp(parent, ns, branch);
    }
}

/// A rename that replaces nothing, where the filesystem can do that.
pub(super) fn rename_new(from: &OwnedFd, old: &[u8], to: &OwnedFd, new: &[u8]) -> Result<()> {
    match rustix::fs::renameat_with(from, old, to, new, rustix::fs::RenameFlags::NOREPLACE) {
        // A filesystem that cannot promise it: something put there in this very moment is lost.
        Err(Errno::INVAL | Errno::NOSYS) => match stat_at(to, new) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from, old, to, new),
            Err(err) => Err(err),
        },
        other => other,
    }
}
