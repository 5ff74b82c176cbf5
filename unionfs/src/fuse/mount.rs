//! Mounting and unmounting: by mount(2), as a detached mount, or by fusermount3.
//!
//! Done here and not by `fuser`, whose unmount can hit a stranger's mount and fails on a busy one.
//! Source: mount(2), fsopen(2), fuse(4), fs/fuse/inode.c (options).

use super::fusermount;
use crate::errno::Errno;
use crate::setup::SetupError;
use crate::spec::{MountFlags, MountSetting};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags, StatxFlags, open, statx,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags as KernelFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The FUSE device.
pub(super) const DEVICE: &str = "/dev/fuse";

type Result<T> = core::result::Result<T, SetupError>;

/// What to mount where.
#[derive(Clone, Debug)]
pub struct MountRequest {
    /// An existing directory; absolute if the process changes directory before unmounting.
    pub mountpoint: PathBuf,
    /// The label in the first column of mount(8).
    pub source: OsString,
    /// The type shows as `fuse.SUBTYPE`.
    pub subtype: String,
    /// Flags of the mount.
    pub flags: MountFlags,
    /// Mount readonly though the flags do not ask for it: no branch is writable.
    pub read_only: bool,
}

/// A mount that was made.
#[derive(Debug)]
pub struct Mounted {
    /// The connection to serve; the mount answers only once [`super::serve`] runs.
    pub device: OwnedFd,
    /// Which mount it is.
    pub handle: MountHandle,
    /// What was not done as asked, and why.
    pub warnings: Vec<String>,
}

/// Identifies a mount for its unmounting.
#[derive(Clone, Debug)]
pub struct MountHandle {
    mountpoint: PathBuf,
    /// `None` where statx(2) is filtered.
    identity: Option<Identity>,
}

impl MountHandle {
    /// Where it was made, and what tells it from others.
    pub(super) fn parts(&self) -> (&Path, Option<Identity>) {
        (&self.mountpoint, self.identity)
    }

    /// Unmounts, unless another mount has taken the place meanwhile. `lazy`: out of sight at once,
    /// gone when its last user is.
    ///
    /// # Errors
    /// EBUSY while it is in use, ENOENT when it is not there any more.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        if !is_there(&self.mountpoint, self.identity) {
            return Err(SetupError::path(
                &self.mountpoint,
                Errno::NOENT,
                "another mount has taken this place",
            ));
        }
        unmount(&self.mountpoint, lazy)
    }
}

/// Readahead of a mount in KiB: as much as one READ holds, instead of the kernel's 128.
const READAHEAD_KIB: u32 = super::caps::MAX_IO / 1024;

impl MountHandle {
    /// Raises the readahead of the mount, which speeds up cold sequential reads. To be called when
    /// the mount is live (INIT sets it). Best effort: only root may.
    pub fn raise_readahead(&self) {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        let Ok(stat) = statx(CWD, &self.mountpoint, flags, StatxFlags::TYPE) else {
            return;
        };
        let file = format!(
            "/sys/class/bdi/{}:{}/read_ahead_kb",
            stat.stx_dev_major, stat.stx_dev_minor
        );
        if let Err(error) = std::fs::write(&file, READAHEAD_KIB.to_string()) {
            log::debug!("{file}: {error}");
        }
    }
}

/// Is this a place to mount at?
///
/// # Errors
/// ENOENT, ENOTDIR, or ENOTCONN for a FUSE mount whose server died, with the remedy.
pub fn check_mountpoint(path: &Path) -> Result<()> {
    let mode = mode_now(path).map_err(|errno| {
        let what = match errno {
            Errno::NOENT => "no such mount point: create the directory first",
            Errno::NOTCONN => "a FUSE mount whose server is gone: uaufs umount it first",
            Errno::ACCESS => "mount point cannot be reached: search permission on its parents",
            _ => "mount point cannot be used",
        };
        SetupError::path(path, errno, what)
    })?;
    if FileType::from_raw_mode(mode) == FileType::Directory {
        Ok(())
    } else {
        Err(SetupError::path(
            path,
            Errno::NOTDIR,
            "mount point is not a directory",
        ))
    }
}

/// Type and permissions of what is at `path` now: a mount whose server is gone may still answer
/// out of the kernel's cache, so that is passed by.
fn mode_now(path: &Path) -> core::result::Result<u32, Errno> {
    let ask = || statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::TYPE);
    // Its server died while it was asked, and the mount was taken away meanwhile.
    let answer = match ask() {
        Err(Errno::CONNABORTED) => ask(),
        answer => answer,
    };
    match answer {
        Ok(stat) => Ok(stat.stx_mode.into()),
        // Before Linux 4.11, or filtered by seccomp.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::stat(path).map(|stat| stat.st_mode),
        Err(errno) => Err(errno),
    }
}

/// Changes flags of the mount at `path`, where they are not as asked already.
///
/// # Errors
/// EBUSY: it is to be readonly, and files are open for writing. EPERM without CAP_SYS_ADMIN. Flags
/// that only a new mount can have.
pub fn change_flags(path: &Path, settings: &[MountSetting]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    let failed = |errno| {
        let what = match errno {
            Errno::BUSY => "files are open for writing: close them first",
            Errno::PERM => "flags of a mount are changed by root",
            _ => "flags of the mount cannot be changed",
        };
        SetupError::path(path, errno, what)
    };
    let now = rustix::fs::statvfs(path).map_err(failed)?.f_flag;
    let mut flags = KernelFlags::empty();
    for (shown, flag) in SHOWN_FLAGS {
        flags.set(*flag, now.contains(*shown));
    }
    let before = flags;
    for setting in settings {
        match setting {
            MountSetting::ReadOnly(on) => flags.set(KernelFlags::RDONLY, *on),
            MountSetting::Nodev(on) => flags.set(KernelFlags::NODEV, *on),
            MountSetting::Nosuid(on) => flags.set(KernelFlags::NOSUID, *on),
            MountSetting::Noexec(on) => flags.set(KernelFlags::NOEXEC, *on),
            MountSetting::AllowOther(_) | MountSetting::Fsname(_) | MountSetting::Context(..) => {
                let what = "only a new mount can have this option: unmount, and mount with it";
                return Err(SetupError::path(path, Errno::INVAL, what));
            }
        }
    }
    if flags == before {
        return Ok(());
    }
    rustix::mount::mount_remount(path, flags, c"").map_err(failed)
}

/// Flags as statvfs(3) shows them, and as mount(2) takes them.
const SHOWN_FLAGS: &[(StatVfsMountFlags, KernelFlags)] = &[
    (StatVfsMountFlags::RDONLY, KernelFlags::RDONLY),
    (StatVfsMountFlags::NODEV, KernelFlags::NODEV),
    (StatVfsMountFlags::NOSUID, KernelFlags::NOSUID),
    (StatVfsMountFlags::NOEXEC, KernelFlags::NOEXEC),
    (StatVfsMountFlags::NOATIME, KernelFlags::NOATIME),
    (StatVfsMountFlags::NODIRATIME, KernelFlags::NODIRATIME),
    (StatVfsMountFlags::RELATIME, KernelFlags::RELATIME),
];

/// Opens the FUSE device.
///
/// # Errors
/// Names the remedy: loading the module, or permission on the device.
pub fn open_device() -> Result<OwnedFd> {
    open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let what = match errno {
            Errno::NOENT => "no such device: modprobe fuse, or give the container /dev/fuse",
            Errno::ACCESS => {
                "permission denied: chmod 666 /dev/fuse, or join the group that owns it"
            }
            Errno::PERM => "not permitted: allow device 10:229 in the container's device list",
            Errno::NXIO | Errno::NODEV => "no driver behind it: modprobe fuse",
            _ => "cannot be opened",
        };
        SetupError::path(Path::new(DEVICE), errno, what)
    })
}

/// Mounts at the mount point: by mount(2) with CAP_SYS_ADMIN in the mount's user namespace, else
/// by fusermount3.
///
/// # Errors
/// With the remedy; nothing stays mounted.
pub fn mount(request: &MountRequest) -> Result<Mounted> {
    check_mountpoint(&request.mountpoint)?;
    let device = open_device()?;
    let errno = match mount_directly(request, &device) {
        Ok(()) => return Ok(mounted(request, device, Vec::new())),
        Err(errno) => errno,
    };
    if errno == Errno::PERM && !rustix::process::geteuid().is_root() {
        drop(device);
        let (device, warnings) = fusermount::mount(request)?;
        return Ok(mounted(request, device, warnings));
    }
    let what = match errno {
        Errno::PERM => {
            "mount(2) not permitted: needs CAP_SYS_ADMIN in the user namespace of the mount namespace"
        }
        Errno::NODEV => "the kernel has no FUSE: modprobe fuse",
        Errno::INVAL => "mount(2) refused the options",
        Errno::NOTCONN => "a FUSE mount whose server is gone: uaufs umount it first",
        _ => "mount(2) failed",
    };
    Err(SetupError::path(&request.mountpoint, errno, what))
}

fn mounted(request: &MountRequest, device: OwnedFd, warnings: Vec<String>) -> Mounted {
    let handle = MountHandle {
        mountpoint: request.mountpoint.clone(),
        identity: identity(&request.mountpoint),
    };
    Mounted {
        device,
        handle,
        warnings,
    }
}

/// mount(2).
fn mount_directly(request: &MountRequest, device: &OwnedFd) -> core::result::Result<(), Errno> {
    let mut options = Vec::new();
    for (key, value) in kernel_options(request, device) {
        if !options.is_empty() {
            options.push(b',');
        }
        options.extend_from_slice(key.as_bytes());
        if let Some(value) = value {
            options.push(b'=');
            // SELinux labels may contain commas (mount(8), "context=").
            let quote: &[u8] = if value.contains(',') { b"\"" } else { b"" };
            options.extend_from_slice(quote);
            options.extend_from_slice(value.as_bytes());
            options.extend_from_slice(quote);
        }
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    let fs_type = format!("fuse.{}", request.subtype);
    rustix::mount::mount(
        request.source.as_os_str(),
        &request.mountpoint,
        fs_type,
        kernel_flags(request),
        options.as_c_str(),
    )
}

/// Makes a mount that is attached nowhere: the caller attaches it with move_mount(2), possibly in
/// another mount namespace. `device` is an open /dev/fuse, to be given to [`super::serve`].
///
/// # Errors
/// ENOSYS before Linux 5.2: use [`mount`] then. EPERM without CAP_SYS_ADMIN in the current user
/// namespace.
pub fn mount_detached(request: &MountRequest, device: &OwnedFd) -> Result<OwnedFd> {
    let failed = |step: &str| {
        let what = format!("{step} failed");
        move |errno| SetupError::System { what, errno }
    };
    let context =
        fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen(2) of fuse"))?;
    let set = |key: &str, value: &OsStr| {
        fsconfig_set_string(&context, key, value).map_err(failed(&format!("fsconfig(2) of {key}")))
    };
    set("source", &request.source)?;
    set("subtype", OsStr::new(&request.subtype))?;
    for (key, value) in kernel_options(request, device) {
        match value {
            Some(value) => set(&key, OsStr::new(&value))?,
            None => fsconfig_set_flag(&context, key.as_str())
                .map_err(failed(&format!("fsconfig(2) of {key}")))?,
        }
    }
    if readonly(request) {
        fsconfig_set_flag(&context, "ro").map_err(failed("fsconfig(2) of ro"))?;
    }
    fsconfig_create(&context).map_err(failed("fsconfig(2), the creation of the mount,"))?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(request))
        .map_err(failed("fsmount(2)"))
}

/// Options of the filesystem itself, as fs/fuse/inode.c knows them.
fn kernel_options(request: &MountRequest, device: &OwnedFd) -> Vec<(String, Option<String>)> {
    let value = |key: &str, value: String| (key.to_owned(), Some(value));
    let mut options = vec![
        value("fd", device.as_raw_fd().to_string()),
        value("rootmode", "40000".to_owned()),
        value("user_id", rustix::process::geteuid().as_raw().to_string()),
        value("group_id", rustix::process::getegid().as_raw().to_string()),
        // The union has no request at which it could check permissions.
        ("default_permissions".to_owned(), None),
    ];
    if request.flags.allow_other.unwrap_or(true) {
        options.push(("allow_other".to_owned(), None));
    }
    options.extend(
        request
            .flags
            .context
            .iter()
            .map(|context| match context.split_once('=') {
                Some((key, label)) => value(key, label.to_owned()),
                None => (context.clone(), None),
            }),
    );
    options
}

/// Is the mount to be readonly?
pub(super) fn readonly(request: &MountRequest) -> bool {
    request.read_only || request.flags.read_only
}

/// Flags of mount(2).
fn kernel_flags(request: &MountRequest) -> KernelFlags {
    let flags = &request.flags;
    [
        (readonly(request), KernelFlags::RDONLY),
        (flags.nodev, KernelFlags::NODEV),
        (flags.nosuid, KernelFlags::NOSUID),
        (flags.noexec, KernelFlags::NOEXEC),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(KernelFlags::empty(), |all, (_, flag)| all | flag)
}

/// The same flags for fsmount(2).
fn attributes(request: &MountRequest) -> MountAttrFlags {
    let flags = &request.flags;
    [
        (readonly(request), MountAttrFlags::MOUNT_ATTR_RDONLY),
        (flags.nodev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (flags.nosuid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (flags.noexec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ]
    .into_iter()
    .filter(|(wanted, _)| *wanted)
    .fold(MountAttrFlags::empty(), |all, (_, flag)| all | flag)
}

/// Unmounts what is mounted at `mountpoint`: by umount2(2), else by fusermount3. `lazy`: out of
/// sight at once, gone when its last user is. Works on mounts whose server is gone.
///
/// # Errors
/// EBUSY while it is in use, EINVAL when it is no mount point, EPERM when it is another user's.
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let detach = if lazy {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    let errno = match rustix::mount::unmount(mountpoint, UnmountFlags::NOFOLLOW | detach) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    if errno == Errno::PERM && !rustix::process::geteuid().is_root() {
        return fusermount::unmount(mountpoint, lazy);
    }
    let what = match errno {
        Errno::BUSY => "in use: close what is open there (fuser -vm lists it), or unmount lazily",
        Errno::INVAL => "nothing is mounted here: give the mount point itself",
        Errno::NOENT => "no such mount point",
        Errno::PERM => "not permitted: needs CAP_SYS_ADMIN",
        _ => "cannot be unmounted",
    };
    Err(SetupError::path(mountpoint, errno, what))
}

/// What tells a mount from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// `stx_mnt_id`, the first field of mountinfo; `None` before Linux 5.8.
    pub id: Option<u64>,
    /// Major and minor number of the filesystem.
    pub device: (u32, u32),
}

/// Which mount is at `path`. Sends no request to its server.
fn identity(path: &Path) -> Option<Identity> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
    let stat = statx(CWD, path, flags, StatxFlags::MNT_ID).ok()?;
    let told = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    Some(Identity {
        id: told.then_some(stat.stx_mnt_id),
        device: (stat.stx_dev_major, stat.stx_dev_minor),
    })
}

/// Is it that mount which is at `path`, as far as the kernel tells?
pub(super) fn is_there(path: &Path, mount: Option<Identity>) -> bool {
    let Some(mount) = mount else { return true };
    identity(path).is_some_and(|now| match now.id {
        Some(id) => mount.id.is_none_or(|wanted| wanted == id),
        None => now.device == mount.device,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountpoints_are_checked_before_anything_is_done() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_mountpoint(dir.path()).is_ok());
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let message = check_mountpoint(&file).unwrap_err().to_string();
        assert!(message.ends_with("(ENOTDIR)"), "{message}");
        let message = check_mountpoint(&dir.path().join("missing"))
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("create the directory") && message.ends_with("(ENOENT)"),
            "{message}"
        );
    }

    #[test]
    fn unmounting_a_plain_directory_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let message = unmount(dir.path(), false).unwrap_err().to_string();
        assert!(
            message.ends_with("(EINVAL)") || message.contains("fusermount"),
            "{message}"
        );
    }
}
