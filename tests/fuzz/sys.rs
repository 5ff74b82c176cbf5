//! System calls with their plain answers: a number or an errno, nothing retried and nothing hidden.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// What the kernel answers.
pub type Answer<T> = Result<T, i32>;

/// The directory that paths start at.
pub const HERE: RawFd = libc::AT_FDCWD;

fn call(number: libc::c_long, args: &[usize]) -> Answer<usize> {
    let mut a = [0; 6];
    a[..args.len()].copy_from_slice(args);
    // SAFETY: only functions below call this; every address that they pass is that of a value
    // which they borrow until it returns, with its true length beside it.
    let got = unsafe { libc::syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if got < 0 {
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    } else {
        Ok(got as usize)
    }
}

fn text(path: &CStr) -> usize {
    path.as_ptr() as usize
}

fn fd(number: RawFd) -> usize {
    number as usize
}

pub fn open(dir: RawFd, path: &CStr, flags: i32, mode: u32) -> Answer<OwnedFd> {
    let flags = (flags | libc::O_CLOEXEC) as usize;
    let got = call(
        libc::SYS_openat,
        &[fd(dir), text(path), flags, mode as usize],
    )?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got as RawFd) })
}

pub fn mkdir(dir: RawFd, path: &CStr, mode: u32) -> Answer<usize> {
    call(libc::SYS_mkdirat, &[fd(dir), text(path), mode as usize])
}

pub fn mknod(dir: RawFd, path: &CStr, mode: u32, dev: u64) -> Answer<usize> {
    let args = [fd(dir), text(path), mode as usize, dev as usize];
    call(libc::SYS_mknodat, &args)
}

pub fn unlink(dir: RawFd, path: &CStr, flags: i32) -> Answer<usize> {
    call(libc::SYS_unlinkat, &[fd(dir), text(path), flags as usize])
}

pub fn symlink(target: &CStr, dir: RawFd, path: &CStr) -> Answer<usize> {
    call(libc::SYS_symlinkat, &[text(target), fd(dir), text(path)])
}

pub fn readlink(dir: RawFd, path: &CStr) -> Answer<Vec<u8>> {
    let mut buf = vec![0u8; 4096];
    let at = buf.as_mut_ptr() as usize;
    let len = call(libc::SYS_readlinkat, &[fd(dir), text(path), at, buf.len()])?;
    buf.truncate(len);
    Ok(buf)
}

pub fn link(from: (RawFd, &CStr), to: (RawFd, &CStr), flags: i32) -> Answer<usize> {
    let flags = flags as usize;
    let args = [fd(from.0), text(from.1), fd(to.0), text(to.1), flags];
    call(libc::SYS_linkat, &args)
}

pub fn rename(from: (RawFd, &CStr), to: (RawFd, &CStr), flags: u32) -> Answer<usize> {
    let flags = flags as usize;
    let args = [fd(from.0), text(from.1), fd(to.0), text(to.1), flags];
    call(libc::SYS_renameat2, &args)
}

pub fn statx(dir: RawFd, path: &CStr, flags: i32) -> Answer<libc::statx> {
    // SAFETY: all zeroes is a valid struct of numbers.
    let mut info: libc::statx = unsafe { std::mem::zeroed() };
    let mask = (libc::STATX_BASIC_STATS | libc::STATX_BTIME) as usize;
    let at = (&raw mut info) as usize;
    call(
        libc::SYS_statx,
        &[fd(dir), text(path), flags as usize, mask, at],
    )?;
    Ok(info)
}

/// Permission of the effective ids.
pub fn access(dir: RawFd, path: &CStr, mode: i32) -> Answer<usize> {
    let flags = libc::AT_EACCESS as usize;
    let args = [fd(dir), text(path), mode as usize, flags];
    call(libc::SYS_faccessat2, &args)
}

pub fn chmod(dir: RawFd, path: &CStr, mode: u32) -> Answer<usize> {
    call(libc::SYS_fchmodat, &[fd(dir), text(path), mode as usize])
}

pub fn fchmod(file: RawFd, mode: u32) -> Answer<usize> {
    call(libc::SYS_fchmod, &[fd(file), mode as usize])
}

pub fn chown(dir: RawFd, path: &CStr, uid: u32, gid: u32, flags: i32) -> Answer<usize> {
    let (uid, gid) = (uid as usize, gid as usize);
    let args = [fd(dir), text(path), uid, gid, flags as usize];
    call(libc::SYS_fchownat, &args)
}

/// Sets both times; of the file that is open at `dir` if there is no path.
pub fn utimens(
    dir: RawFd,
    path: Option<&CStr>,
    times: [libc::timespec; 2],
    flags: i32,
) -> Answer<usize> {
    let path = path.map_or(0, text);
    let at = times.as_ptr() as usize;
    call(libc::SYS_utimensat, &[fd(dir), path, at, flags as usize])
}

pub fn truncate(path: &CStr, len: i64) -> Answer<usize> {
    call(libc::SYS_truncate, &[text(path), len as usize])
}

pub fn ftruncate(file: RawFd, len: i64) -> Answer<usize> {
    call(libc::SYS_ftruncate, &[fd(file), len as usize])
}

pub fn fallocate(file: RawFd, mode: i32, offset: i64, len: i64) -> Answer<usize> {
    let args = [fd(file), mode as usize, offset as usize, len as usize];
    call(libc::SYS_fallocate, &args)
}

pub fn fsync(file: RawFd) -> Answer<usize> {
    call(libc::SYS_fsync, &[fd(file)])
}

pub fn fdatasync(file: RawFd) -> Answer<usize> {
    call(libc::SYS_fdatasync, &[fd(file)])
}

pub fn syncfs(file: RawFd) -> Answer<usize> {
    call(libc::SYS_syncfs, &[fd(file)])
}

/// Has a file space that was set aside for it and holds no data yet?
pub fn has_unwritten(file: RawFd) -> Answer<bool> {
    const FS_IOC_FIEMAP: usize = 0xC020_660B;
    const UNWRITTEN: u32 = 0x800;
    const EXTENTS: usize = 64;
    /// `struct fiemap` with what follows it.
    #[repr(C)]
    struct Map {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; EXTENTS],
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        place: [u64; 5],
        flags: u32,
        reserved: [u32; 3],
    }
    let mut map = Map {
        start: 0,
        length: u64::MAX,
        flags: 0,
        mapped: 0,
        count: EXTENTS as u32,
        reserved: 0,
        extents: [Extent::default(); EXTENTS],
    };
    let args = [fd(file), FS_IOC_FIEMAP, &raw mut map as usize];
    call(libc::SYS_ioctl, &args)?;
    let mapped = map.extents.iter().take(map.mapped as usize);
    Ok(mapped.into_iter().any(|e| e.flags & UNWRITTEN != 0))
}

pub fn lseek(file: RawFd, offset: i64, whence: i32) -> Answer<usize> {
    let args = [fd(file), offset as usize, whence as usize];
    call(libc::SYS_lseek, &args)
}

/// At `offset`, or at the descriptor's position.
pub fn read(file: RawFd, buf: &mut [u8], offset: Option<i64>) -> Answer<usize> {
    let (at, len) = (buf.as_mut_ptr() as usize, buf.len());
    match offset {
        Some(offset) => call(libc::SYS_pread64, &[fd(file), at, len, offset as usize]),
        None => call(libc::SYS_read, &[fd(file), at, len]),
    }
}

/// At `offset`, or at the descriptor's position.
pub fn write(file: RawFd, buf: &[u8], offset: Option<i64>) -> Answer<usize> {
    let (at, len) = (buf.as_ptr() as usize, buf.len());
    match offset {
        Some(offset) => call(libc::SYS_pwrite64, &[fd(file), at, len, offset as usize]),
        None => call(libc::SYS_write, &[fd(file), at, len]),
    }
}

pub fn copy_file_range(from: (RawFd, i64), to: (RawFd, i64), len: usize) -> Answer<usize> {
    let (mut from_at, mut to_at) = (from.1, to.1);
    let from_at = (&raw mut from_at) as usize;
    let to_at = (&raw mut to_at) as usize;
    let args = [fd(from.0), from_at, fd(to.0), to_at, len, 0];
    call(libc::SYS_copy_file_range, &args)
}

/// To the position of the target's descriptor.
pub fn sendfile(from: (RawFd, i64), to: RawFd, len: usize) -> Answer<usize> {
    let mut at = from.1;
    let at = (&raw mut at) as usize;
    call(libc::SYS_sendfile, &[fd(to), fd(from.0), at, len])
}

pub fn flock(file: RawFd, operation: i32) -> Answer<usize> {
    call(libc::SYS_flock, &[fd(file), operation as usize])
}

/// A lock of the open file description: two of them in one process stand in each other's way.
pub fn range_lock(file: RawFd, kind: i32, start: i64, len: i64, ask: bool) -> Answer<i16> {
    // SAFETY: all zeroes is a valid struct of numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    (lock.l_start, lock.l_len) = (start, len);
    let command = if ask {
        libc::F_OFD_GETLK
    } else {
        libc::F_OFD_SETLK
    };
    let at = (&raw mut lock) as usize;
    call(libc::SYS_fcntl, &[fd(file), command as usize, at])?;
    Ok(lock.l_type)
}

pub fn setxattr(path: &CStr, name: &CStr, value: &[u8], flags: i32) -> Answer<usize> {
    let (at, len) = (value.as_ptr() as usize, value.len());
    let args = [text(path), text(name), at, len, flags as usize];
    call(libc::SYS_lsetxattr, &args)
}

pub fn fsetxattr(file: RawFd, name: &CStr, value: &[u8], flags: i32) -> Answer<usize> {
    let (at, len) = (value.as_ptr() as usize, value.len());
    let args = [fd(file), text(name), at, len, flags as usize];
    call(libc::SYS_fsetxattr, &args)
}

pub fn getxattr(path: &CStr, name: &CStr) -> Answer<Vec<u8>> {
    filled(|at, len| call(libc::SYS_lgetxattr, &[text(path), text(name), at, len]))
}

pub fn fgetxattr(file: RawFd, name: &CStr) -> Answer<Vec<u8>> {
    filled(|at, len| call(libc::SYS_fgetxattr, &[fd(file), text(name), at, len]))
}

/// The names, each ended by a zero byte.
pub fn listxattr(path: &CStr) -> Answer<Vec<u8>> {
    filled(|at, len| call(libc::SYS_llistxattr, &[text(path), at, len]))
}

pub fn flistxattr(file: RawFd) -> Answer<Vec<u8>> {
    filled(|at, len| call(libc::SYS_flistxattr, &[fd(file), at, len]))
}

fn filled(ask: impl FnOnce(usize, usize) -> Answer<usize>) -> Answer<Vec<u8>> {
    let mut buf = vec![0u8; 2048];
    let len = ask(buf.as_mut_ptr() as usize, buf.len())?;
    buf.truncate(len);
    Ok(buf)
}

pub fn removexattr(path: &CStr, name: &CStr) -> Answer<usize> {
    call(libc::SYS_lremovexattr, &[text(path), text(name)])
}

pub fn fremovexattr(file: RawFd, name: &CStr) -> Answer<usize> {
    call(libc::SYS_fremovexattr, &[fd(file), text(name)])
}

/// One name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub ino: u64,
    /// Where reading goes on after it.
    pub next: i64,
    pub kind: u8,
    pub name: Vec<u8>,
}

/// The next names of a directory, as many as fit; empty at its end.
pub fn getdents(dir: RawFd, room: usize) -> Answer<Vec<Entry>> {
    let mut buf = vec![0u8; room];
    let len = call(
        libc::SYS_getdents64,
        &[fd(dir), buf.as_mut_ptr() as usize, room],
    )?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&buf[at..at + 8]);
        u64::from_ne_bytes(bytes)
    };
    let (mut found, mut at) = (Vec::new(), 0);
    while at < len {
        let size = usize::from(u16::from_ne_bytes([buf[at + 16], buf[at + 17]]));
        let name = buf[at + 19..at + size].split(|b| *b == 0).next();
        found.push(Entry {
            ino: number(at),
            next: number(at + 8) as i64,
            kind: buf[at + 18],
            name: name.unwrap_or_default().to_vec(),
        });
        at += size;
    }
    Ok(found)
}

pub fn duplicate(file: RawFd) -> Answer<OwnedFd> {
    let got = call(
        libc::SYS_fcntl,
        &[fd(file), libc::F_DUPFD_CLOEXEC as usize, 100],
    )?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(got as RawFd) })
}

pub fn fchdir(dir: RawFd) -> Answer<usize> {
    call(libc::SYS_fchdir, &[fd(dir)])
}

pub fn umask(mask: u32) -> u32 {
    call(libc::SYS_umask, &[mask as usize]).unwrap_or(0) as u32
}

/// Makes this thread act as a user, or as root again. Its real ids stay root's.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Answer<()> {
    const KEEP: usize = u32::MAX as usize;
    call(libc::SYS_setresuid, &[KEEP, 0, KEEP])?;
    let at = groups.as_ptr() as usize;
    call(libc::SYS_setgroups, &[groups.len(), at])?;
    call(libc::SYS_setresgid, &[KEEP, gid as usize, KEEP])?;
    call(libc::SYS_setresuid, &[KEEP, uid as usize, KEEP])?;
    Ok(())
}

pub fn mount(kind: &CStr, at: &CStr, options: &CStr) -> Answer<usize> {
    let args = [text(kind), text(at), text(kind), 0, text(options)];
    call(libc::SYS_mount, &args)
}

pub fn umount(at: &CStr, flags: i32) -> Answer<usize> {
    call(libc::SYS_umount2, &[text(at), flags as usize])
}

/// A mapping of the beginning of a file. It is read and written by the kernel, for whom a page
/// that cannot be had is an error and not a signal.
pub struct Mapping {
    at: usize,
    len: usize,
    through: OwnedFd,
}

impl Mapping {
    pub fn new(file: RawFd, len: usize, shared: bool, writable: bool) -> Answer<Self> {
        let name = c"fuzz";
        let through = call(libc::SYS_memfd_create, &[text(name), 0])?;
        // SAFETY: the kernel has just made this descriptor for us.
        let through = unsafe { OwnedFd::from_raw_fd(through as RawFd) };
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let protection = (libc::PROT_READ | write) as usize;
        let flags = if shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let at = call(
            libc::SYS_mmap,
            &[0, len, protection, flags as usize, fd(file), 0],
        )?;
        Ok(Self { at, len, through })
    }

    pub fn read(&self, offset: usize, len: usize) -> Answer<Vec<u8>> {
        let len = len.min(self.len.saturating_sub(offset));
        let through = fd(self.through.as_raw_fd());
        let got = call(libc::SYS_pwrite64, &[through, self.at + offset, len, 0])?;
        let mut buf = vec![0; got];
        read(self.through.as_raw_fd(), &mut buf, Some(0))?;
        Ok(buf)
    }

    pub fn write(&self, offset: usize, data: &[u8]) -> Answer<usize> {
        let len = data.len().min(self.len.saturating_sub(offset));
        write(self.through.as_raw_fd(), &data[..len], Some(0))?;
        let through = fd(self.through.as_raw_fd());
        call(libc::SYS_pread64, &[through, self.at + offset, len, 0])
    }

    pub fn sync(&self) -> Answer<usize> {
        call(
            libc::SYS_msync,
            &[self.at, self.len, libc::MS_SYNC as usize],
        )
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Nothing can be done about a mapping that does not go.
        let _ = call(libc::SYS_munmap, &[self.at, self.len]);
    }
}
