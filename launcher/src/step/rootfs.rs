//! The root filesystem: attached, made `/`, made read-only.

use super::{Context, mount};
use crate::error::Explain;
use anyhow::Result;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};
use unionfs::sys::mount_attr;

/// Attaches the root's mount over the host's `/`.
///
/// It has to be attached before anything can be mounted in it, and `/` is the one directory that
/// surely exists. The host's tree stays reachable through everything opened before, and /proc and
/// /sys of the host stay mounted, which the kernel demands for mounting new ones in a user
/// namespace.
pub fn attach(context: &mut Context) -> Result<()> {
    let mount = context.take_slot(0)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", CWD, "/", flags)
        .explain(|| "attaching the root filesystem".into())?;
    context.root = Some(mount);
    Ok(())
}

/// pivot_root(2) into the attached root, then lets the host's tree go.
pub fn pivot(context: &mut Context) -> Result<()> {
    let what = || "changing to the new root (pivot_root)".to_owned();
    let root = context.root()?;
    rustix::process::fchdir(root).explain(what)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            // The old root now lies over the new one, and `.` leads to it.
            rustix::mount::unmount(".", UnmountFlags::DETACH)
                .explain(|| "letting the host's tree go".into())?;
        }
        // The host runs from its initramfs, which cannot be pivoted away: the new root is moved
        // over it. Nothing below stays reachable, because init holds no descriptor to it.
        Err(Errno::INVAL) => {
            rustix::process::chroot(".").explain(what)?;
        }
        Err(errno) => return Err(errno).explain(what),
    }
    rustix::process::chdir("/").explain(what)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    context.root = Some(rustix::fs::open("/", flags, Mode::empty()).explain(what)?);
    Ok(())
}

/// Makes the mount at `/` read-only; mounts in it stay as they are.
pub fn read_only(context: &mut Context) -> Result<()> {
    mount::restrict(context.root()?, mount_attr::RDONLY, false)
        .explain(|| "--read-only: making / read-only".into())
}
