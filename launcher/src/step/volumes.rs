//! Host paths and empty filesystems that the user wants inside.

use super::{Context, mount};
use crate::error::Explain;
use crate::spec::Volume;
use anyhow::Result;
use rustix::fs::FileType;
use rustix::mount::MountAttrFlags;
use std::os::fd::OwnedFd;
use std::path::Path;
use unionfs::sys::mount_attr;

/// A detached copy of a host path with everything below it, restricted as asked.
///
/// Runs outside the container, with the caller's view of the host and its rights.
pub fn prepare(volume: &Volume) -> Result<OwnedFd> {
    let source = volume.source.path();
    let what = || format!("--volume {}", source.display());
    let mount = mount::clone_host(source, true).remedy(what, |errno| match errno {
        rustix::io::Errno::NOENT => "make the directory first",
        _ => "",
    })?;
    // A volume is data: it brings no devices and no set-user-ID programs in.
    let mut attributes = mount_attr::NOSUID | mount_attr::NODEV;
    if volume.read_only {
        attributes |= mount_attr::RDONLY;
    }
    mount::restrict(&mount, attributes, true).explain(what)?;
    Ok(mount)
}

/// Attaches a prepared volume.
pub fn bind(context: &mut Context, slot: usize, target: &Path) -> Result<()> {
    let volume = context.take_slot(slot)?;
    let what = || format!("--volume {}", target.display());
    let stat = rustix::fs::fstat(&volume).explain(what)?;
    let point = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => mount::target_directory(context.root()?, target)?,
        _ => mount::target_file(context.root()?, target)?,
    };
    mount::attach(&volume, &point).explain(what)
}

/// Mounts an empty filesystem in memory, writable for all as /tmp is.
pub fn tmpfs(context: &mut Context, target: &Path) -> Result<()> {
    let what = || format!("--tmpfs {}", target.display());
    let point = mount::target_directory(context.root()?, target)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let tmpfs = mount::new_filesystem("tmpfs", &[("mode", "1777")], flags).explain(what)?;
    mount::attach(&tmpfs, &point).explain(what)
}
