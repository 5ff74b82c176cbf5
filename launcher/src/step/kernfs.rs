//! /proc and /sys: mounted, and what in them a container must not see or change.

use super::{Context, mount};
use crate::error::Explain;
use anyhow::{Result, ensure};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::os::fd::OwnedFd;
use std::path::Path;
use unionfs::ostext::OsText;
use unionfs::sys::mount_attr;

/// No programs, no set-user-ID, no devices.
fn inert() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Mounts a procfs of the own pid namespace on /proc.
pub fn proc(context: &mut Context) -> Result<()> {
    let target = mount::system_directory(context.root()?, Path::new("/proc"))?;
    let proc = match mount::new_filesystem("proc", &[], inert()) {
        // "Mount too revealing": the /proc around us has parts covered (an outer container's
        // masks). Its copy at least works, with the numbers of the outer pid namespace.
        Err(Errno::PERM) => {
            context.notices.push(
                "/proc is the outer container's, whose masks forbid a new one: start that with --nest and a user namespace".into(),
            );
            mount::clone_host(Path::new("/proc"), true).explain(|| "copying /proc".into())?
        }
        result => result.explain(|| "mounting /proc".into())?,
    };
    mount::attach(&proc, &target).explain(|| "attaching /proc".into())
}

/// Mounts /sys.
pub fn sysfs(context: &mut Context, own_network: bool, read_only: bool) -> Result<()> {
    let target = mount::system_directory(context.root()?, Path::new("/sys"))?;
    let mut flags = inert();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    let fresh = if own_network {
        mount::new_filesystem("sysfs", &[], flags)
    } else {
        // Only the owner of a network namespace may mount a sysfs of it.
        Err(Errno::PERM)
    };
    let sysfs = match fresh {
        Err(Errno::PERM) => {
            let copy =
                mount::clone_host(Path::new("/sys"), true).explain(|| "copying /sys".into())?;
            let attributes = if read_only { mount_attr::RDONLY } else { 0 };
            mount::restrict(&copy, attributes, true).explain(|| "restricting /sys".into())?;
            copy
        }
        result => result.explain(|| "mounting /sys".into())?,
    };
    mount::attach(&sysfs, &target).explain(|| "attaching /sys".into())
}

/// Mounts the hierarchies that hold the container below /sys/fs/cgroup, so that programs find
/// their limits.
pub fn cgroups(context: &mut Context, v1: &[String], v2: bool, read_only: bool) -> Result<()> {
    let mut flags = inert();
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    let what = || "mounting /sys/fs/cgroup".to_owned();
    let base = Path::new("/sys/fs/cgroup");
    // Without a cgroup directory (CONFIG_CGROUPS off, or /sys bound from elsewhere) there is
    // nothing to show.
    let Ok(target) = mount::open_strict(context.root()?, base, OFlags::PATH | OFlags::DIRECTORY)
    else {
        return Ok(());
    };
    if v1.is_empty() {
        if v2 {
            let group = mount::new_filesystem("cgroup2", &[], flags).explain(what)?;
            mount::attach(&group, &target).explain(what)?;
        }
        return Ok(());
    }
    let options = [("mode", "0755"), ("size", "64k")];
    let tmpfs = mount::new_filesystem("tmpfs", &options, inert()).explain(what)?;
    mount::attach(&tmpfs, &target).explain(what)?;
    for name in v1 {
        rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755)).explain(what)?;
        let options: Vec<(&str, &str)> = name
            .split(',')
            .map(|word| word.split_once('=').unwrap_or((word, "")))
            .collect();
        let group = mount::new_filesystem("cgroup", &options, flags)
            .explain(|| format!("mounting the cgroup hierarchy {name}"))?;
        let point = mount::open_strict(&tmpfs, Path::new(name), OFlags::PATH).explain(what)?;
        mount::attach(&group, &point).explain(what)?;
    }
    if v2 {
        rustix::fs::mkdirat(&tmpfs, "unified", Mode::from_raw_mode(0o755)).explain(what)?;
        let group = mount::new_filesystem("cgroup2", &[], flags).explain(what)?;
        let point = mount::open_strict(&tmpfs, Path::new("unified"), OFlags::PATH).explain(what)?;
        mount::attach(&group, &point).explain(what)?;
    }
    mount::restrict(&tmpfs, mount_attr::RDONLY, false).explain(what)
}

/// Covers paths: directories by an empty read-only filesystem, the rest by the host's /dev/null.
pub fn mask(context: &mut Context, paths: &[OsText]) -> Result<()> {
    let mut empty = None;
    for path in paths {
        let Some((target, kind)) = existing(context, path)? else {
            continue;
        };
        let what = || format!("masking {}", path.path().display());
        let cover = match kind {
            FileType::Directory => {
                let cover = match empty.take() {
                    Some(cover) => cover,
                    None => empty_directory().explain(what)?,
                };
                // One empty filesystem serves all directories: the next gets a copy.
                empty = Some(mount::clone_tree(&cover, Path::new(""), false).explain(what)?);
                cover
            }
            _ => super::dev::host_node("null", 1, 3)?,
        };
        mount::attach(&cover, &target).explain(what)?;
    }
    Ok(())
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    let flags = inert() | MountAttrFlags::MOUNT_ATTR_RDONLY;
    mount::new_filesystem("tmpfs", &[("size", "0"), ("mode", "0555")], flags)
}

/// Binds paths onto themselves, read-only.
pub fn read_only(context: &mut Context, paths: &[OsText]) -> Result<()> {
    for path in paths {
        let Some((target, _)) = existing(context, path)? else {
            continue;
        };
        let what = || format!("making {} read-only", path.path().display());
        let copy = mount::clone_tree(&target, Path::new(""), true).explain(what)?;
        let attributes =
            mount_attr::RDONLY | mount_attr::NOSUID | mount_attr::NODEV | mount_attr::NOEXEC;
        mount::restrict(&copy, attributes, true).explain(what)?;
        mount::attach(&copy, &target).explain(what)?;
    }
    Ok(())
}

/// A path inside that exists, without going over symbolic links.
fn existing(context: &Context, path: &OsText) -> Result<Option<(OwnedFd, FileType)>> {
    let what = || format!("looking at {}", path.path().display());
    let target = match mount::open_strict(context.root()?, path.path(), OFlags::PATH) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(errno) => return Err(errno).explain(what),
    };
    let stat = rustix::fs::fstat(&target).explain(what)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(
        kind != FileType::Symlink,
        "{}: is a symbolic link: mask what it leads to",
        what()
    );
    Ok(Some((target, kind)))
}
