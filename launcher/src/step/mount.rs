//! The mount API by descriptors, and targets that are resolved inside the container's root.
//!
//! Nothing here follows a path out of the root, and nothing mounts on a path: a target is opened
//! once and the mount goes onto that descriptor, so that exchanging a directory for a symbolic
//! link meanwhile changes nothing.

use crate::error::Explain;
use anyhow::{Result, bail};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};
use unionfs::sys::mount_attr;

/// `f_type` of procfs, statfs(2).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Makes every mount of this namespace private.
pub fn make_private() -> Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).remedy(
        || "making all mounts private".into(),
        |errno| match errno {
            Errno::INVAL => "/ is no mount point, as in a chroot: mount --bind the directory onto itself before chroot",
            _ => "",
        },
    )
}

/// A new, detached filesystem of type `fs`. `options` are `key=value` pairs, or flags when the
/// value is empty.
pub fn new_filesystem(
    fs: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&context, *key)?;
        } else {
            rustix::mount::fsconfig_set_string(&context, *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of the mount at `path`, below `dir`, with the mounts under it if `recursive`.
pub fn clone_tree(dir: impl AsFd, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if path.as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    rustix::mount::open_tree(dir, path, flags)
}

/// A detached copy of a mount by absolute host path.
pub fn clone_host(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    clone_tree(CWD, path, recursive)
}

/// A detached copy of the mount of a device node, which must not be a symbolic link.
pub fn clone_host_node(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(CWD, path, flags)
}

/// Attaches a detached mount onto the file or directory behind `target`.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
}

/// Adds attributes to a mount (those of [`mount_attr`]), and to those below it if `recursive`.
pub fn restrict(mount: impl AsFd, attributes: u64, recursive: bool) -> Result<(), Errno> {
    mount_attr::set(mount.as_fd(), attributes, recursive)
}

/// Opens a path inside `root`; symbolic links are followed inside it only.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_how(
        root,
        path,
        flags,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens a path inside `root` that must not go over any symbolic link (ELOOP).
pub fn open_strict(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_how(
        root,
        path,
        flags,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )
}

fn open_how(
    root: impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    loop {
        // EAGAIN: a rename happened while `..` was walked; openat2(2) asks to try again.
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A directory inside `root` to mount on, made with its parents (0755) where missing.
pub fn target_directory(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let what = || format!("mount point {}", path.display());
    let fd = make_path(
        &root,
        path,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .explain(what)?;
    refuse_proc(&fd, path)?;
    Ok(fd)
}

/// A regular file inside `root` to mount on, made empty where missing.
pub fn target_file(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    let what = || format!("mount point {}", path.display());
    let fd = match open(&root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                bail!("{}: not a file name", what());
            };
            let parent_fd = make_path(
                &root,
                parent,
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
            .explain(what)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            refuse_proc(&parent_fd, path)?;
            rustix::fs::openat(&parent_fd, name, flags, mode).explain(what)?
        }
        result => result.explain(what)?,
    };
    refuse_proc(&fd, path)?;
    Ok(fd)
}

/// One of the directories that the kernel's own filesystems go onto. A symbolic link in its place
/// would move them elsewhere while everybody trusts the name, so it must be a real directory.
pub fn system_directory(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    make_path(
        &root,
        path,
        ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
    )
    .remedy(
        || format!("mount point {}", path.display()),
        |errno| match errno {
            Errno::LOOP | Errno::NOTDIR => "the root filesystem must have a real directory there",
            Errno::ROFS | Errno::ACCESS | Errno::PERM => {
                "make the directory in the root filesystem"
            }
            _ => "",
        },
    )
}

fn make_path(root: &impl AsFd, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let open = |path: &Path| open_how(root, path, flags, resolve);
    match open(path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut done = std::path::PathBuf::from("/");
    let mut fd = open(&done)?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            continue;
        };
        done.push(name);
        fd = match open(&done) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open(&done)?
            }
            result => result?,
        };
    }
    Ok(fd)
}

/// Nothing of the user's is mounted on procfs: programs trust what they read and write there.
fn refuse_proc(target: impl AsFd, path: &Path) -> Result<()> {
    let stat =
        rustix::fs::fstatfs(&target).explain(|| format!("mount point {}", path.display()))?;
    if stat.f_type as u64 == PROC_SUPER_MAGIC {
        bail!(
            "mount point {}: lies in /proc: choose a path outside of it",
            path.display()
        );
    }
    Ok(())
}
