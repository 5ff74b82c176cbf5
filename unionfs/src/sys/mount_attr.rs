//! mount_setattr(2), which no crate wraps: attributes of a mount, or of a tree of mounts.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use rustix::fd::{AsRawFd, BorrowedFd};

/// Nothing can be written.
pub const RDONLY: u64 = 0x1;
/// No set-user-ID.
pub const NOSUID: u64 = 0x2;
/// No device nodes.
pub const NODEV: u64 = 0x4;
/// No programs.
pub const NOEXEC: u64 = 0x8;
/// Access times stay as they are.
pub const NOATIME: u64 = 0x10;
/// The bits that say how access times change: cleared before one of them is set.
const ATIME_BITS: u64 = 0x70;
/// Ids are shifted by a user namespace.
const IDMAP: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on the mount behind `mount`, and on all below it when `recursive`.
///
/// # Errors
/// ENOSYS before Linux 5.12; EPERM without CAP_SYS_ADMIN over the mount.
pub fn set(mount: BorrowedFd<'_>, attributes: u64, recursive: bool) -> Result<()> {
    let attr = MountAttr {
        attr_set: attributes,
        attr_clr: if attributes & ATIME_BITS == 0 {
            0
        } else {
            ATIME_BITS
        },
        ..MountAttr::default()
    };
    call(mount, &attr, recursive)
}

/// Shifts the ids of a detached mount by the maps of the user namespace `userns`.
///
/// # Errors
/// ENOSYS before Linux 5.12; EINVAL where the filesystem cannot.
pub fn set_idmap(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> Result<()> {
    let attr = MountAttr {
        attr_set: IDMAP,
        userns_fd: userns.as_raw_fd() as u64,
        ..MountAttr::default()
    };
    call(mount, &attr, false)
}

fn call(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> Result<()> {
    const AT_RECURSIVE: libc::c_int = 0x8000;
    let flags = libc::AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    // SAFETY: `attr` is a struct mount_attr of the size given and outlives the call; the path is a
    // constant.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if ret == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
