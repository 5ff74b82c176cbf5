//! Copying up because something is opened: `coo_reg`, `coo_all`, `moo`.
//!
//! Source: aufs(5), branch attributes. The copy goes to the nearest writable branch above; where
//! there is none the file is opened as it is.

use super::Union;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::{Node, Place, Present};
use crate::shown::ShowPath;
use crate::spec::CopyOnOpen;
use crate::sys::RealStat;
use crate::sys::loc::open_listing;
use crate::sys::stat::stat_at;
use crate::types::{BranchId, Kind, NodeId};
use rustix::fs::AtFlags;
use std::sync::Arc;

/// How often a copy is begun anew because the file was renamed meanwhile.
const RETRIES: usize = 8;

impl Union {
    /// An open of `node`: copies it up if its branch asks for that.
    ///
    /// # Errors
    /// Those of copying up. The caller holds no directory lock.
    pub(super) fn copy_on_open(&self, node: &Arc<Node>) -> Result<()> {
        for _ in 0..RETRIES {
            let branch = self.branch(node.inode().0)?;
            let applies = match branch.perm.copy_on_open {
                CopyOnOpen::Never => return Ok(()),
                CopyOnOpen::Regular | CopyOnOpen::Move => node.kind == Kind::File,
                CopyOnOpen::All => matches!(node.kind, Kind::File | Kind::Dir),
            };
            if !applies || node.id == NodeId::ROOT {
                return Ok(());
            }
            let Some(target) = self.writable_above(node, &branch)? else {
                return Ok(());
            };
            let copied = match node.kind {
                Kind::Dir => self.make_dir_on(node, target),
                _ if branch.writable() => {
                    let gives = branch.perm.copy_on_open == CopyOnOpen::Move;
                    self.move_up(node, &branch, target, gives)
                }
                _ => self
                    .copying(node, || self.copy_file_unless_moved(node, &branch, target))
                    .map(|_| ()),
            };
            match copied {
                Err(Errno::STALE) => {}
                other => return other,
            }
        }
        Err(Errno::STALE)
    }

    /// The nearest writable branch above `branch` on which the node would be seen.
    fn writable_above(&self, node: &Arc<Node>, branch: &Branch) -> Result<Option<BranchId>> {
        let stack = self.stack();
        let position = stack.position(branch.id).ok_or(Errno::STALE)?;
        let above = &stack.branches()[..usize::from(position.0)];
        let Some(nearest) = above.iter().rev().find(|b| b.writable()) else {
            return Ok(None);
        };
        let home = node.home();
        let Some(parent) = home.parent.filter(|_| home.linked) else {
            return Ok(None);
        };
        let dir = if node.kind == Kind::Dir {
            node
        } else {
            &parent
        };
        match self.reached(dir, nearest.id) {
            Err(Errno::ROFS) => Ok(None),
            other => other.map(Some),
        }
    }

    fn copy_file_unless_moved(
        &self,
        node: &Arc<Node>,
        from: &Branch,
        target: BranchId,
    ) -> Result<Option<RealStat>> {
        if node.inode().0 != from.id {
            return Ok(None);
        }
        self.copy_file_to(node, target).map(|(_, stat)| Some(stat))
    }

    /// From one writable branch to another: changes of the file wait meanwhile. `gives`: the lower
    /// one loses it.
    ///
    /// A file with several names stays where it is: its other names would go on to the old data. And
    /// so does one that the kernel itself reads and writes.
    pub(super) fn move_up(
        &self,
        node: &Arc<Node>,
        from: &Arc<Branch>,
        target: BranchId,
        gives: bool,
    ) -> Result<()> {
        let _nobody_changes = node.change.write();
        if !matches!(node.home().place, Place::Named) || self.links.plink(node.id).is_some() {
            return Ok(());
        }
        if self.is_busy(node.id) {
            return Ok(());
        }
        if self.with_place(node, |_, loc| loc.stat())?.nlink > 1 {
            return Ok(());
        }
        let copied = self.copying(node, || self.copy_file_unless_moved(node, from, target))?;
        if let Some(Some(original)) = copied
            && gives
            && let Err(err) = self.remove_original(node, from, target, &original)
        {
            log::warn!(
                "{}: a file was copied up and cannot be removed: {err}",
                from.path.shown()
            );
        }
        Ok(())
    }

    /// Removes what a copy was made of, once the copy's name is safe.
    fn remove_original(
        &self,
        node: &Arc<Node>,
        from: &Arc<Branch>,
        target: BranchId,
        original: &RealStat,
    ) -> Result<()> {
        let home = node.home();
        let Some(parent) = home.parent.filter(|_| home.linked) else {
            return Ok(());
        };
        if !self.options().volatile {
            let dir = self.dir_fd_on(&parent, target)?;
            rustix::fs::fsync(open_listing(&dir)?)?;
        }
        let mut ns = parent.dir().ok_or(Errno::STALE)?.ns.write();
        if !node.is_at(parent.id, &home.name) || node.inode().0 != target {
            return Ok(());
        }
        self.note_strangers(&parent, &mut ns);
        let dir = self.dir_fd_on(&parent, from.id)?;
        let now = stat_at(&dir, &home.name)?;
        if (now.dev, now.ino, now.nlink) != (original.dev, original.ino, 1) {
            return Ok(());
        }
        rustix::fs::unlinkat(&dir, &*home.name, AtFlags::empty())?;
        if self.inos.drop_origin(now.dev, now.ino, now.btime) {
            self.record_gone(from, now.ino);
        }
        let below = self.visible_below(&parent, target, &home.name)?;
        if let Some(index) = &mut ns.index {
            let real = node.inode().1;
            index.set(&home.name, &Present::single(target, node.kind, real, below));
        }
        self.restamp(&parent, &mut ns, from.id);
        Ok(())
    }
}
