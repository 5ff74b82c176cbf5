//! A file of a branch: a directory descriptor and one component, or a pinned descriptor.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use crate::sys::stat::{RealStat, stat_at, stat_fd};
use crate::sys::{Name, xattr};
use crate::types::{Kind, SetTime, Timestamp};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, openat,
};
use std::ffi::CString;
use std::sync::{Arc, OnceLock};

/// Where a file is. One component cannot contain `/` and is opened without following a symbolic
/// link, so it cannot leave its directory.
#[derive(Clone, Debug)]
pub enum Loc {
    /// `name` in the directory.
    Name(Arc<OwnedFd>, Name),
    /// The file itself (an `O_PATH` or ordinary descriptor): reached without any name.
    Fd(Arc<OwnedFd>),
}

/// A descriptor of `/proc/self/fd`, opened once before any mount is served, so that magic links
/// can be used without resolving an absolute path later.
pub fn proc_self_fd() -> Result<BorrowedFd<'static>> {
    static DIR: OnceLock<std::result::Result<OwnedFd, Errno>> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        openat(
            CWD,
            "/proc/self/fd",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    });
    match dir {
        Ok(fd) => Ok(fd.as_fd()),
        Err(err) => Err(*err),
    }
}

/// Opens the directory `name` in `dir` for reaching what is in it (`O_PATH`).
///
/// Refuses symbolic links, and (where the kernel has openat2) anything that leaves the directory
/// or crosses into another mount: EXDEV.
pub fn open_subdir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_beneath(dir, name, flags)
}

/// Opens a directory, of which an `O_PATH` descriptor will do, for listing or syncing it.
pub fn open_listing(dir: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, c".", flags, Mode::empty())
}

/// openat2(2) with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS |
/// RESOLVE_NO_XDEV`; `path` may have several components.
///
/// Kernels before 5.6 lack it: there each component is opened by itself with `O_NOFOLLOW`.
pub fn open_beneath(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    for _ in 0..8 {
        match rustix::fs::openat2(dir.as_fd(), path, flags, Mode::empty(), resolve) {
            // A rename somewhere on the host raced with the walk (openat2(2)).
            Err(Errno::AGAIN) => {}
            Err(Errno::NOSYS) => return open_by_component(dir.as_fd(), path, flags),
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

fn open_by_component(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let start = stat_fd(dir)?;
    let walk = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut current: Option<OwnedFd> = None;
    let mut parts = path
        .split(|b| *b == b'/')
        .filter(|p| !p.is_empty() && *p != b".")
        .peekable();
    while let Some(part) = parts.next() {
        if part == b".." {
            return Err(Errno::XDEV);
        }
        let last = parts.peek().is_none();
        let at = current.as_ref().map_or(dir, |fd| fd.as_fd());
        let next = openat(
            at,
            part,
            if last { flags | OFlags::NOFOLLOW } else { walk },
            Mode::empty(),
        )?;
        if stat_fd(&next)?.dev != start.dev {
            return Err(Errno::XDEV);
        }
        current = Some(next);
    }
    current.ok_or(Errno::NOENT)
}

fn timespec(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_NOW,
        },
        Some(SetTime::At(Timestamp { sec, nsec })) => Timespec {
            tv_sec: sec,
            tv_nsec: nsec.into(),
        },
    }
}

/// `fchmodat2` (Linux 6.6); the number is the same on every architecture.
const SYS_FCHMODAT2: libc::c_long = 452;

impl Loc {
    /// The file `name` in `dir`.
    pub fn at(dir: Arc<OwnedFd>, name: &[u8]) -> Self {
        Self::Name(dir, Name::from_slice(name))
    }

    /// A directory itself, by a descriptor of it that may be an `O_PATH` one.
    pub fn dir(fd: Arc<OwnedFd>) -> Self {
        Self::at(fd, b".")
    }

    /// stat, without following a symbolic link.
    pub fn stat(&self) -> Result<RealStat> {
        match self {
            // By the descriptor: `.` would need search permission on the directory itself.
            Self::Name(dir, name) if &**name == b"." => stat_fd(dir),
            Self::Name(dir, name) => stat_at(dir, name),
            Self::Fd(fd) => stat_fd(fd),
        }
    }

    /// Opens the file itself. Never follows a symbolic link, never blocks on a fifo.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        match self {
            Self::Name(dir, name) => openat(dir, &**name, flags | OFlags::NOFOLLOW, Mode::empty()),
            // Re-opened through the magic link of a descriptor that is known to be no symbolic
            // link (the callers open data of regular files and listings of directories).
            Self::Fd(fd) => openat(
                proc_self_fd()?,
                fd.as_raw_fd().to_string().as_bytes(),
                flags,
                Mode::empty(),
            ),
        }
    }

    /// Opens for reading without touching the access time where that is permitted
    /// (`O_NOATIME` needs ownership or CAP_FOWNER: open(2)).
    pub fn open_quietly(&self, flags: OFlags) -> Result<OwnedFd> {
        match self.open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => self.open(flags),
            other => other,
        }
    }

    /// A descriptor that keeps the file (and its number) alive without opening it.
    pub fn pin(&self) -> Result<Arc<OwnedFd>> {
        match self {
            Self::Name(dir, name) if &**name == b"." => Ok(dir.clone()),
            Self::Name(..) => self.open(OFlags::PATH).map(Arc::new),
            Self::Fd(fd) => Ok(fd.clone()),
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self) -> Result<Vec<u8>> {
        let target = match self {
            Self::Name(dir, name) => rustix::fs::readlinkat(dir, &**name, Vec::new()),
            Self::Fd(fd) => rustix::fs::readlinkat(fd, c"", Vec::new()),
        };
        target.map(CString::into_bytes)
    }

    /// chown; `None` = leave.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        let (uid, gid) = (
            uid.map(Uid::from_raw_unchecked),
            gid.map(Gid::from_raw_unchecked),
        );
        match self {
            Self::Name(dir, name) => {
                rustix::fs::chownat(dir, &**name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
            Self::Fd(fd) => rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    /// chmod. Symbolic links: EOPNOTSUPP.
    pub fn chmod(&self, mode: u32) -> Result<()> {
        let (dir, name, flags) = match self {
            Self::Name(dir, name) => (dir, &**name, libc::AT_SYMLINK_NOFOLLOW),
            Self::Fd(fd) => (fd, &b""[..], libc::AT_EMPTY_PATH),
        };
        let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
        // SAFETY: a NUL-terminated string that outlives the call, and integers.
        let ret = unsafe {
            libc::syscall(
                SYS_FCHMODAT2,
                dir.as_raw_fd(),
                c_name.as_ptr(),
                mode & 0o7777,
                flags,
            )
        };
        if ret == 0 {
            return Ok(());
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO) {
            Errno::NOSYS => self.chmod_by_magic_link(mode),
            err => Err(err),
        }
    }

    /// For kernels without fchmodat2: pin the file, refuse symbolic links, go through its magic link.
    fn chmod_by_magic_link(&self, mode: u32) -> Result<()> {
        let pinned = self.pin()?;
        if stat_fd(&pinned)?.kind() == Kind::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let mode = Mode::from_bits_truncate(mode);
        rustix::fs::chmodat(
            proc_self_fd()?,
            pinned.as_raw_fd().to_string().as_bytes(),
            mode,
            AtFlags::empty(),
        )
    }

    /// utimensat; `None` = leave.
    pub fn set_times(&self, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        match self {
            Self::Name(dir, name) => {
                rustix::fs::utimensat(dir, &**name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Self::Fd(fd) => match rustix::fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH) {
                // Before Linux 5.8 the empty path is refused.
                Err(Errno::INVAL) => {
                    let link = fd.as_raw_fd().to_string();
                    rustix::fs::utimensat(
                        proc_self_fd()?,
                        link.as_bytes(),
                        &times,
                        AtFlags::empty(),
                    )
                }
                other => other,
            },
        }
    }

    /// Runs `f` on the file's extended attributes.
    pub fn xattrs<T>(&self, f: impl FnOnce(xattr::Target<'_>) -> Result<T>) -> Result<T> {
        match self {
            Self::Name(dir, name) if &**name == b"." => f(xattr::Target::fd(dir.as_fd())?),
            Self::Name(dir, name) => {
                let name = CString::new(&**name).map_err(|_| Errno::INVAL)?;
                f(xattr::Target::at(dir.as_fd(), &name))
            }
            Self::Fd(fd) => f(xattr::Target::fd(fd.as_fd())?),
        }
    }
}
