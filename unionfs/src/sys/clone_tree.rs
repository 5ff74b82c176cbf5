//! A private view of a branch: its own mount without submounts, readonly for lower branches.

use crate::errno::Result;
use crate::sys::mount_attr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::mount::{OpenTreeFlags, open_tree};

/// Clones the mount below `root` (an `O_PATH` descriptor) without its submounts.
///
/// `readonly` also makes the clone readonly and noatime, so that no mistake and no read can change
/// a lower branch. Errors: EPERM without privilege, EINVAL where submounts are locked to it (in a
/// user namespace), ENOSYS before Linux 5.2 (5.12 for the attributes): the caller goes on with
/// the plain descriptor. Source: open_tree(2), mount_setattr(2).
pub fn private_clone(root: &OwnedFd, readonly: bool) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(root, c"", flags)?;
    if readonly {
        let attributes = mount_attr::RDONLY | mount_attr::NODEV | mount_attr::NOATIME;
        mount_attr::set(tree.as_fd(), attributes, false)?;
    }
    Ok(tree)
}
