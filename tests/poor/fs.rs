//! The operations: each goes to the same file of the source, unless the filesystem lacks it.

use super::fuse_numbers::{cap, op};
use super::wire::{Answer, Out, Request, set};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat,
    Timespec, Timestamps, Uid, XattrFlags, openat, statat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Result<T> = std::result::Result<T, Errno>;

/// The most that a WRITE holds.
pub const MAX_WRITE: usize = 128 << 10;
/// How long the kernel may remember names and attributes, in seconds: nobody else changes them.
const LIFETIME: u64 = 1;
const ROOT: u64 = 1;

/// What the filesystem cannot do.
#[derive(Clone, Copy)]
pub struct Lacks {
    pub xattr: bool,
    pub device: bool,
    pub d_type: bool,
    pub rename_flags: bool,
    pub tmpfile: bool,
    pub handle: bool,
    pub fine_times: bool,
    pub link: bool,
}

impl Default for Lacks {
    fn default() -> Self {
        Self {
            xattr: true,
            device: true,
            d_type: true,
            rename_flags: true,
            tmpfile: true,
            handle: true,
            fine_times: true,
            link: false,
        }
    }
}

/// A file that the kernel knows. While it is open its inode number is no other file's: it is the
/// number of the node.
struct Node {
    file: Arc<OwnedFd>,
    lookups: u64,
}

/// An open file or directory, and the names of the latter as they were when reading began.
struct Handle {
    file: OwnedFd,
    names: Mutex<Vec<(u64, u32, CString)>>,
}

pub struct Poor {
    lacks: Lacks,
    nodes: Mutex<HashMap<u64, Node>>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// /proc/self/fd.
    links: OwnedFd,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stat(file: impl AsFd) -> Result<Stat> {
    statat(file, c"", AtFlags::EMPTY_PATH)
}

impl Poor {
    pub fn new(source: OwnedFd, lacks: Lacks) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = Node {
            file: Arc::new(source),
            lookups: 1,
        };
        Ok(Self {
            lacks,
            nodes: Mutex::new(HashMap::from([(ROOT, root)])),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            links: openat(CWD, c"/proc/self/fd", flags, Mode::empty())?,
        })
    }

    /// `None` = nothing is to be answered.
    pub fn answer(&self, mut r: Request<'_>) -> Option<Answer> {
        let lacks = &self.lacks;
        Some(match r.opcode {
            op::FORGET => {
                self.forget(r.node, r.u64());
                return None;
            }
            op::BATCH_FORGET => {
                let count = r.u32();
                r.u32();
                (0..count).for_each(|_| self.forget(r.u64(), r.u64()));
                return None;
            }
            op::INTERRUPT => return None,
            op::INIT => self.init(&mut r),
            op::DESTROY | op::FLUSH => Ok(Vec::new()),
            op::LOOKUP => r.name().and_then(|name| self.lookup(r.node, name)),
            op::GETATTR => self.getattr(r.node),
            op::SETATTR => self.setattr(&mut r),
            op::READLINK => self.readlink(r.node),
            op::LINK if lacks.link => Err(Errno::PERM),
            op::SYMLINK | op::MKNOD | op::MKDIR => self.make(&mut r),
            op::LINK => self.link(&mut r),
            op::UNLINK | op::RMDIR => self.remove(&mut r),
            op::RENAME2 if lacks.rename_flags => Err(Errno::NOSYS),
            op::RENAME | op::RENAME2 => self.rename(&mut r),
            op::TMPFILE if lacks.tmpfile => Err(Errno::NOSYS),
            op::CREATE | op::TMPFILE => self.create(&mut r),
            op::OPEN | op::OPENDIR => self.open(&mut r),
            op::READ => self.read(&mut r),
            op::WRITE => self.write(&mut r),
            op::READDIR => self.readdir(&mut r),
            op::STATFS => self.statfs(),
            op::RELEASE | op::RELEASEDIR => {
                locked(&self.handles).remove(&r.u64());
                Ok(Vec::new())
            }
            op::FSYNC | op::FSYNCDIR => self.fsync(&mut r),
            op::FALLOCATE => self.fallocate(&mut r),
            op::LSEEK => self.lseek(&mut r),
            op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::REMOVEXATTR if !lacks.xattr => {
                self.xattr(&mut r)
            }
            _ => Err(Errno::NOSYS),
        })
    }

    fn init(&self, r: &mut Request<'_>) -> Answer {
        let (_, minor, readahead) = (r.u32(), r.u32(), r.u32());
        let offered = u64::from(r.u32()) | u64::from(r.u32()) << 32;
        let handles = match self.lacks.handle {
            true => cap::NO_EXPORT_SUPPORT,
            false => cap::EXPORT_SUPPORT,
        };
        let wanted = cap::ASYNC_READ
            | cap::BIG_WRITES
            | cap::PARALLEL_DIROPS
            | cap::MAX_PAGES
            | cap::INIT_EXT
            | handles;
        let taken = wanted & offered;
        let granularity = match self.lacks.fine_times {
            true => 1_000_000_000,
            false => 1,
        };
        let mut out = Out::default();
        out.u32(7).u32(minor.min(38)).u32(readahead);
        out.u32(taken as u32).u16(64).u16(48);
        out.u32(MAX_WRITE as u32).u32(granularity);
        out.u16((MAX_WRITE / 4096) as u16).u16(0);
        out.u32((taken >> 32) as u32);
        out.0.resize(64, 0);
        Ok(out.0)
    }

    fn forget(&self, node: u64, times: u64) {
        let mut nodes = locked(&self.nodes);
        if let Some(known) = nodes.get_mut(&node) {
            known.lookups = known.lookups.saturating_sub(times);
            if known.lookups == 0 && node != ROOT {
                nodes.remove(&node);
            }
        }
    }

    fn node(&self, node: u64) -> Result<Arc<OwnedFd>> {
        let nodes = locked(&self.nodes);
        nodes.get(&node).map(|n| n.file.clone()).ok_or(Errno::STALE)
    }

    fn handle(&self, handle: u64) -> Result<Arc<Handle>> {
        locked(&self.handles)
            .get(&handle)
            .cloned()
            .ok_or(Errno::BADF)
    }

    /// The file of a node, opened for what is to be done with it.
    fn reopen(&self, node: u64, flags: OFlags) -> Result<OwnedFd> {
        let link = self.node(node)?.as_raw_fd().to_string();
        openat(&self.links, link, flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// `struct fuse_entry_out` of a file, which the kernel knows once more now.
    fn known(&self, file: OwnedFd) -> Answer {
        let stat = stat(&file)?;
        let mut nodes = locked(&self.nodes);
        let node = nodes.entry(stat.st_ino).or_insert_with(|| Node {
            file: Arc::new(file),
            lookups: 0,
        });
        node.lookups += 1;
        let mut out = Out::default();
        out.u64(stat.st_ino).u64(0).u64(LIFETIME).u64(LIFETIME);
        out.u64(0).attr(&stat, !self.lacks.fine_times);
        Ok(out.0)
    }

    fn lookup(&self, parent: u64, name: &CStr) -> Answer {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.known(openat(self.node(parent)?, name, flags, Mode::empty())?)
    }

    fn getattr(&self, node: u64) -> Answer {
        let mut out = Out::default();
        let stat = stat(self.node(node)?)?;
        out.u64(LIFETIME).u64(0).attr(&stat, !self.lacks.fine_times);
        Ok(out.0)
    }

    fn setattr(&self, r: &mut Request<'_>) -> Answer {
        let valid = r.u32();
        r.u32();
        let (handle, size, _owner) = (r.u64(), r.u64(), r.u64());
        let (atime, mtime, _ctime) = (r.u64(), r.u64(), r.u64());
        let (atime_nsec, mtime_nsec, _) = (r.u32(), r.u32(), r.u32());
        let (mode, _, uid, gid) = (r.u32(), r.u32(), r.u32(), r.u32());
        let has = |what| valid & what != 0;
        let file = self.node(r.node)?;
        if has(set::UID | set::GID) {
            let uid = has(set::UID).then(|| Uid::from_raw(uid));
            let gid = has(set::GID).then(|| Gid::from_raw(gid));
            rustix::fs::chownat(&file, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(set::MODE) {
            self.chmod(&file, mode)?;
        }
        if has(set::SIZE) {
            match has(set::FH) {
                true => rustix::fs::ftruncate(&self.handle(handle)?.file, size)?,
                false => rustix::fs::ftruncate(self.reopen(r.node, OFlags::WRONLY)?, size)?,
            }
        }
        if has(set::ATIME | set::MTIME) {
            let time = |what, now, sec: u64, nsec: u32| Timespec {
                tv_sec: sec as i64,
                tv_nsec: match (has(what), has(now)) {
                    (false, _) => rustix::fs::UTIME_OMIT,
                    (true, true) => rustix::fs::UTIME_NOW,
                    (true, false) => nsec.into(),
                },
            };
            let times = Timestamps {
                last_access: time(set::ATIME, set::ATIME_NOW, atime, atime_nsec),
                last_modification: time(set::MTIME, set::MTIME_NOW, mtime, mtime_nsec),
            };
            rustix::fs::utimensat(&file, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.getattr(r.node)
    }

    fn chmod(&self, file: &OwnedFd, mode: u32) -> Result<()> {
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        let link = file.as_raw_fd().to_string();
        rustix::fs::chmodat(&self.links, link, mode, AtFlags::empty())
    }

    fn readlink(&self, node: u64) -> Answer {
        rustix::fs::readlinkat(self.node(node)?, c"", Vec::new()).map(CString::into_bytes)
    }

    /// Gives something new its owner and mode; `dir` is where it was made.
    fn owned(&self, r: &Request<'_>, dir: &OwnedFd, file: &OwnedFd, mode: u32) -> Result<()> {
        let (dir, made) = (stat(dir)?, stat(file)?);
        let inherits = dir.st_mode & libc::S_ISGID != 0;
        let gid = if inherits { dir.st_gid } else { r.gid };
        let (uid, gid) = (Uid::from_raw(r.uid), Gid::from_raw(gid));
        rustix::fs::chownat(file, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        match FileType::from_raw_mode(made.st_mode) {
            FileType::Symlink => Ok(()),
            FileType::Directory if inherits => self.chmod(file, mode | libc::S_ISGID),
            _ => self.chmod(file, mode),
        }
    }

    fn make(&self, r: &mut Request<'_>) -> Answer {
        let dir = self.node(r.node)?;
        let (mode, rdev) = match r.opcode {
            op::MKDIR => (r.u64() as u32, 0),
            op::MKNOD => (r.u32(), r.u32()),
            _ => (0, 0),
        };
        if r.opcode == op::MKNOD {
            r.u64();
        }
        let name = r.name()?;
        let bits = Mode::from_bits_truncate(mode & 0o7777);
        match r.opcode {
            op::MKDIR => rustix::fs::mkdirat(&dir, name, bits)?,
            op::SYMLINK => rustix::fs::symlinkat(r.name()?, &dir, name)?,
            _ => {
                let kind = FileType::from_raw_mode(mode);
                let device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
                if device && self.lacks.device {
                    return Err(Errno::PERM);
                }
                rustix::fs::mknodat(&dir, name, kind, bits, rdev.into())?;
            }
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&dir, name, flags, Mode::empty())?;
        self.owned(r, &dir, &file, mode)?;
        self.known(file)
    }

    fn link(&self, r: &mut Request<'_>) -> Answer {
        let file = self.node(r.u64())?;
        let (dir, name) = (self.node(r.node)?, r.name()?);
        rustix::fs::linkat(&file, c"", &dir, name, AtFlags::EMPTY_PATH)?;
        self.lookup(r.node, name)
    }

    fn remove(&self, r: &mut Request<'_>) -> Answer {
        let flags = match r.opcode {
            op::RMDIR => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        rustix::fs::unlinkat(self.node(r.node)?, r.name()?, flags)?;
        Ok(Vec::new())
    }

    fn rename(&self, r: &mut Request<'_>) -> Answer {
        let (from, to) = (self.node(r.node)?, self.node(r.u64())?);
        let flags = match r.opcode {
            op::RENAME2 => r.u64() as u32,
            _ => 0,
        };
        let (old, new) = (r.name()?, r.name()?);
        rustix::fs::renameat_with(from, old, to, new, RenameFlags::from_bits_retain(flags))?;
        Ok(Vec::new())
    }

    fn opened(&self, file: OwnedFd) -> Vec<u8> {
        const KEEP_CACHE: u32 = 1 << 1;
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let names = Mutex::default();
        locked(&self.handles).insert(number, Arc::new(Handle { file, names }));
        let mut out = Out::default();
        out.u64(number).u32(KEEP_CACHE).u32(0);
        out.0
    }

    fn create(&self, r: &mut Request<'_>) -> Answer {
        let (flags, mode, _umask, _) = (r.u32(), r.u32(), r.u32(), r.u32());
        let (dir, name) = (self.node(r.node)?, r.name()?);
        let bits = Mode::from_bits_truncate(mode & 0o7777);
        let (name, how) = match r.opcode {
            op::TMPFILE => (c".", OFlags::TMPFILE),
            _ => (name, OFlags::CREATE | OFlags::EXCL),
        };
        let how = how | OFlags::RDWR | OFlags::CLOEXEC;
        let made = match openat(&dir, name, how, bits) {
            // Somebody was faster, which is fine unless it has to be new.
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() == 0 => {
                let entry = self.lookup(r.node, name)?;
                let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(&dir, name, flags, Mode::empty())?;
                return Ok([entry, self.opened(file)].concat());
            }
            made => made?,
        };
        let link = made.as_raw_fd().to_string();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = openat(&self.links, link, flags, Mode::empty())?;
        self.owned(r, &dir, &file, mode)?;
        Ok([self.known(file)?, self.opened(made)].concat())
    }

    fn open(&self, r: &mut Request<'_>) -> Answer {
        let asked = OFlags::from_bits_retain(r.u32());
        // The kernel says where appended data goes, and buffers here are not aligned.
        let kept = OFlags::RDONLY | OFlags::WRONLY | OFlags::RDWR | OFlags::NOATIME;
        let flags = match r.opcode {
            op::OPENDIR => OFlags::RDONLY | OFlags::DIRECTORY,
            _ => asked & kept,
        };
        self.reopen(r.node, flags).map(|file| self.opened(file))
    }

    fn read(&self, r: &mut Request<'_>) -> Answer {
        let (handle, mut at, size) = (self.handle(r.u64())?, r.u64(), r.u32() as usize);
        let mut data = vec![0; size];
        let mut done = 0;
        while done < size {
            match rustix::io::pread(&handle.file, &mut data[done..], at)? {
                0 => break,
                len => (done, at) = (done + len, at + len as u64),
            }
        }
        data.truncate(done);
        Ok(data)
    }

    fn write(&self, r: &mut Request<'_>) -> Answer {
        let (handle, at, size) = (self.handle(r.u64())?, r.u64(), r.u32());
        let _ = (r.u32(), r.u64(), r.u64());
        let data = r.rest().get(..size as usize).ok_or(Errno::INVAL)?;
        let len = rustix::io::pwrite(&handle.file, data, at)?;
        let mut out = Out::default();
        out.u32(len as u32).u32(0);
        Ok(out.0)
    }

    fn readdir(&self, r: &mut Request<'_>) -> Answer {
        let (handle, from, room) = (self.handle(r.u64())?, r.u64() as usize, r.u32() as usize);
        let mut names = locked(&handle.names);
        if from == 0 {
            names.clear();
            rustix::fs::seek(&handle.file, SeekFrom::Start(0))?;
            for entry in rustix::fs::Dir::read_from(&handle.file)? {
                let entry = entry?;
                let kind = match self.lacks.d_type {
                    true => FileType::Unknown,
                    false => entry.file_type(),
                };
                let kind = match kind {
                    FileType::Unknown => 0,
                    known => known.as_raw_mode() >> 12,
                };
                names.push((entry.ino(), kind, entry.file_name().to_owned()));
            }
        }
        let mut out = Out::default();
        for (at, (ino, kind, name)) in names.iter().enumerate().skip(from) {
            if !out.entry((*ino, at as u64 + 1, *kind), name.to_bytes(), room) {
                break;
            }
        }
        Ok(out.0)
    }

    fn statfs(&self) -> Answer {
        let s = rustix::fs::fstatvfs(self.node(ROOT)?)?;
        let mut out = Out::default();
        out.u64(s.f_blocks).u64(s.f_bfree).u64(s.f_bavail);
        out.u64(s.f_files).u64(s.f_ffree);
        out.u32(s.f_bsize as u32).u32(s.f_namemax as u32);
        out.u32(s.f_frsize as u32);
        out.0.resize(80, 0);
        Ok(out.0)
    }

    fn fsync(&self, r: &mut Request<'_>) -> Answer {
        let (handle, flags) = (self.handle(r.u64())?, r.u32());
        match flags & 1 {
            0 => rustix::fs::fsync(&handle.file)?,
            _ => rustix::fs::fdatasync(&handle.file)?,
        }
        Ok(Vec::new())
    }

    fn fallocate(&self, r: &mut Request<'_>) -> Answer {
        let (handle, at, len) = (self.handle(r.u64())?, r.u64(), r.u64());
        let flags = FallocateFlags::from_bits_retain(r.u32());
        rustix::fs::fallocate(&handle.file, flags, at, len)?;
        Ok(Vec::new())
    }

    fn lseek(&self, r: &mut Request<'_>) -> Answer {
        let (handle, at, whence) = (self.handle(r.u64())?, r.u64(), r.u32());
        let to = match whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(at),
            libc::SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        let found = rustix::fs::seek(&handle.file, to)?;
        let mut out = Out::default();
        out.u64(found);
        Ok(out.0)
    }

    fn xattr(&self, r: &mut Request<'_>) -> Answer {
        let file = self.node(r.node)?;
        if FileType::from_raw_mode(stat(&file)?.st_mode) == FileType::Symlink {
            // It could only be reached by its name.
            return Err(Errno::OPNOTSUPP);
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if r.opcode == op::REMOVEXATTR {
            return rustix::fs::removexattr(path, r.name()?).map(|()| Vec::new());
        }
        let (size, flags) = (r.u32() as usize, r.u32());
        if r.opcode == op::SETXATTR {
            let name = r.name()?;
            let value = r.rest().get(..size).ok_or(Errno::INVAL)?;
            let flags = XattrFlags::from_bits_retain(flags);
            return rustix::fs::setxattr(path, name, value, flags).map(|()| Vec::new());
        }
        let mut value = vec![0; size];
        let len = match r.opcode {
            op::GETXATTR => rustix::fs::getxattr(path, r.name()?, &mut value)?,
            _ => rustix::fs::listxattr(path, &mut value)?,
        };
        value.truncate(len);
        if size > 0 {
            return Ok(value);
        }
        let mut out = Out::default();
        out.u32(len as u32).u32(0);
        Ok(out.0)
    }
}
