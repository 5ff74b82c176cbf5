//! A private view of a branch: its own mount without submounts, readonly for lower branches.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::mount::{OpenTreeFlags, open_tree};

const AT_EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR__ATIME: u64 = 0x70;

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
        let attr = MountAttr {
            attr_set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOATIME,
            attr_clr: MOUNT_ATTR__ATIME,
            propagation: 0,
            userns_fd: 0,
        };
        // SAFETY: `attr` is a valid mount_attr that outlives the call; the path is a constant.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                AT_EMPTY_PATH,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        if ret != 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
    }
    Ok(tree)
}
