//! The system calls of a rename on one branch, in an order that shows the old tree or the new.

use super::Union;
use super::discard::{Discarded, count_marks, put_back};
use crate::branch::Branch;
use crate::branch::times::keep_times;
use crate::errno::{Errno, Result};
use crate::node::{LayerList, Node};
use crate::shown::ShowPath;
use crate::spec::Format;
use crate::sys::Unlocked;
use crate::sys::loc::{open_listing, open_subdir};
use crate::sys::remove::contents;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::entries;
use crate::types::Kind;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, RenameFlags as SysFlags};
use std::sync::Arc;

/// One rename on one branch.
pub(super) struct Move<'a> {
    pub(super) from: &'a OwnedFd,
    pub(super) old: &'a [u8],
    pub(super) to: &'a OwnedFd,
    pub(super) new: &'a [u8],
    pub(super) is_dir: bool,
    /// The old name must be hidden afterwards.
    pub(super) whiteout: bool,
    /// The directory (empty but for marks) that is replaced. The caller has locked its names.
    pub(super) over_dir: Option<&'a Arc<Node>>,
    /// The new name has a whiteout.
    pub(super) hidden: bool,
}

impl Union {
    /// Does it. After an error what the union shows is as before.
    pub(super) fn move_on_branch(&self, branch: &Branch, m: &Move<'_>) -> Result<()> {
        let aside = match m.over_dir {
            Some(victim) => self.clear_marks(branch, (m.to, m.new), victim)?,
            None => None,
        };
        let renamed = rename(branch, m);
        match aside {
            // The next mount empties what is left.
            Some(aside) if renamed.is_ok() => drop(self.empty_trash(branch.id, aside)),
            Some(aside) => put_back(branch, (m.to, m.new), &aside),
            None => {}
        }
        renamed
    }

    /// Empties a directory of its marks without changing what the union shows: first it is made
    /// opaque by a mark that does not lie in it. Or it is put into the trash, from where it comes
    /// back if it is not replaced.
    fn clear_marks(
        &self,
        branch: &Branch,
        (dir, name): (&OwnedFd, &[u8]),
        victim: &Node,
    ) -> Result<Option<Discarded>> {
        let fd = open_subdir(dir, name)?;
        let stat = stat_fd(&fd)?;
        let _unlocked = Unlocked::of_user(&fd);
        let marks = count_marks(branch, &fd)?;
        let outside = if branch.format == Format::Aufs && branch.whiteout_is_separate(name) {
            branch.make_whiteout(dir, name)?;
            true
        } else {
            branch.format == Format::Overlay && branch.set_opaque_attribute(&fd)
        };
        if outside {
            // Without its marks, too, it shows nothing from below.
            self.keep_top_only(victim);
            if marks > self.options().dirwh as usize {
                match self.swap_for_empty(branch, (dir, name), &stat, marks) {
                    Ok(aside) => return Ok(Some(aside)),
                    // No exchange on this filesystem, perhaps.
                    Err(err) => log::debug!("many whiteouts are removed at once: {err}"),
                }
            }
            return contents(&fd).map(|()| None);
        }
        // No mark can be made outside: the directory is taken away whole. (Its name is free for a
        // moment, and a crash then shows what is below.)
        self.put_into_trash(branch, dir, name).map(Some)
    }

    /// A directory gives up its lower parts.
    pub(super) fn keep_top_only(&self, node: &Node) {
        let top: LayerList = node.layers().iter().take(1).cloned().collect();
        self.give_layers(node, top, None);
    }
}

/// The rename itself: nothing but an empty directory is in its way.
fn rename(branch: &Branch, m: &Move<'_>) -> Result<()> {
    if branch.format == Format::Overlay
        && m.hidden
        && m.is_dir
        && stat_at(m.to, m.new).is_ok_and(|s| s.kind() == Kind::File)
        && branch.has_whiteout(m.to, m.new)?
    {
        // A whiteout by attribute is none elsewhere: the two cannot change places.
        branch.replace_by_whiteout(m.to, m.new)?;
    }
    let device_at_target = m.hidden && stat_at(m.to, m.new).is_ok_and(|s| s.is_null_device());
    if device_at_target && m.is_dir {
        // The device and the directory change places: that is the whiteout of the old name.
        rustix::fs::renameat_with(m.from, m.old, m.to, m.new, SysFlags::EXCHANGE)?;
        if !m.whiteout
            && let Err(err) = rustix::fs::unlinkat(m.from, m.old, AtFlags::empty())
        {
            // It hides nothing there, and the rename is done.
            let branch = branch.path.shown();
            log::warn!("{branch}: a needless whiteout was left: {err}");
        }
        branch.drop_whiteout_of_entry(m.to, m.new);
        return Ok(());
    }
    let separate = branch.whiteout_is_separate(m.old);
    if m.whiteout && separate {
        branch.make_whiteout(m.from, m.old)?;
    }
    let renamed = if m.whiteout && !separate {
        rename_leaving_device(branch, m)
    } else {
        rustix::fs::renameat(m.from, m.old, m.to, m.new)
    };
    if let Err(err) = renamed {
        if m.whiteout && separate {
            let _ = branch.remove_whiteout(m.from, m.old);
        }
        return Err(err);
    }
    if m.hidden || m.over_dir.is_some() {
        branch.drop_whiteout_of_entry(m.to, m.new);
    }
    Ok(())
}

/// RENAME_WHITEOUT leaves the device in the same step; where it may not, a whiteout file is made first.
fn rename_leaving_device(branch: &Branch, m: &Move<'_>) -> Result<()> {
    match rustix::fs::renameat_with(m.from, m.old, m.to, m.new, SysFlags::WHITEOUT) {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => {
            let mark = crate::whiteout::whiteout_name(m.old).ok_or(Errno::NAMETOOLONG)?;
            branch.make_whiteout_file(m.from, &mark)?;
            rustix::fs::renameat(m.from, m.old, m.to, m.new)
        }
        other => other,
    }
}

/// Removes the whiteout devices of a directory that has given up its lower parts, in which they hide
/// nothing any more: the kernel's overlayfs lists those of a directory that it need not merge.
pub(super) fn drop_idle_devices(branch: &Branch, dir: &Arc<OwnedFd>) {
    if branch.format != Format::Overlay {
        return;
    }
    let remove = || {
        let before = stat_fd(dir)?;
        let mut removed = false;
        for (name, kind) in entries(&open_listing(dir)?)? {
            if kind == Kind::Char && stat_at(dir, &name)?.is_null_device() {
                rustix::fs::unlinkat(dir, &*name, AtFlags::empty())?;
                removed = true;
            }
        }
        if removed {
            keep_times(dir, &before);
        }
        Ok::<_, Errno>(())
    };
    let removed = remove();
    if let Err(err) = removed {
        log::debug!("a needless whiteout was left: {err}");
    }
}
