//! `impl fuser::Filesystem`: translate, call, reply.
//!
//! File handles are not used: data is reached by node, so that zero-message opens (where the
//! kernel invents the handle) and answered ones are the same to the union.

use super::adapter::{Adapter, Reply, asker};
use super::caps;
use super::convert::{decode_dev, errno, file_type, set_time};
use super::opens::Grant;
use super::permission::{READ, SEARCH};
use super::xattr;
use crate::errno::Errno;
use crate::stats::Op;
use crate::types::{Lookup, NodeId, RenameFlags, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use std::cell::OnceCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

/// The handle in every answer to an open.
const NO_HANDLE: FileHandle = FileHandle(0);

/// Most bytes of one COPY_FILE_RANGE: the reply counts in 32 bits, and copies are best cut at page
/// boundaries.
const MAX_COPY: u64 = 0x7fff_f000;

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        caps::configure(&mut self.plan, config);
        self.settle();
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(
            Op::Lookup,
            reply,
            || self.lookup_checked(request, node(parent), name.as_bytes()),
            |reply, lookup| match lookup {
                Lookup::Found(entry) => self.send_entry(reply, node(parent), &entry),
                Lookup::Absent => self.send_absent(reply, node(parent)),
            },
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, nlookup: u64) {
        self.run(Op::Forget, || {
            self.union.forget(node(ino), nlookup);
            true
        });
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            Op::Getattr,
            reply,
            || self.getattr_checked(request, node(ino)),
            |reply, attr| self.send_attr(reply, &attr),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        self.answer(
            Op::Setattr,
            reply,
            || self.set_attr(request, node(ino), set),
            |reply, attr| self.send_changed_attr(reply, &attr),
        );
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            Op::Readlink,
            reply,
            || self.union.readlink(node(ino)),
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.answer_entry(Op::Mknod, node(parent), reply, || {
            self.check_lower(request, node(parent), SEARCH)?;
            let caller = self.caller(request);
            self.union.mknod(
                &caller,
                node(parent),
                name.as_bytes(),
                mode,
                umask,
                decode_dev(rdev),
            )
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.answer_entry(Op::Mkdir, node(parent), reply, || {
            self.check_lower(request, node(parent), SEARCH)?;
            self.union.mkdir(
                &self.caller(request),
                node(parent),
                name.as_bytes(),
                mode,
                umask,
            )
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = || {
            self.check_lower(request, node(parent), SEARCH)?;
            self.union
                .unlink(&self.caller(request), node(parent), name.as_bytes())
        };
        self.answer(Op::Unlink, reply, work, |reply, ()| reply.ok());
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = || {
            self.check_lower(request, node(parent), SEARCH)?;
            self.union
                .rmdir(&self.caller(request), node(parent), name.as_bytes())
        };
        self.answer(Op::Rmdir, reply, work, |reply, ()| reply.ok());
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.answer_entry(Op::Symlink, node(parent), reply, || {
            self.check_lower(request, node(parent), SEARCH)?;
            let target = target.as_os_str().as_bytes();
            self.union
                .symlink(&self.caller(request), node(parent), name.as_bytes(), target)
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let work = || {
            self.check_lower(request, node(parent), SEARCH)?;
            self.check_lower(request, node(newparent), SEARCH)?;
            let flags = RenameFlags::from_bits(flags.bits()).ok_or(Errno::INVAL)?;
            let (from, to) = (
                (node(parent), name.as_bytes()),
                (node(newparent), newname.as_bytes()),
            );
            self.union.rename(&self.caller(request), from, to, flags)
        };
        self.answer(Op::Rename, reply, work, |reply, ()| reply.ok());
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.answer_entry(Op::Link, node(newparent), reply, || {
            self.check_lower(request, node(newparent), SEARCH)?;
            self.union.link(
                &self.caller(request),
                node(ino),
                node(newparent),
                newname.as_bytes(),
            )
        });
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.zero_message() {
            // Remembered by the kernel for the whole connection: there is no second OPEN.
            return reply.fail(Errno::NOSYS);
        }
        self.answer(
            Op::Open,
            reply,
            || self.union.open_node(node(ino), flags.0),
            |reply, opened| {
                let register = |fd: &OwnedFd| reply.open_backing(fd);
                match self.grant(node(ino), (opened, flags.0), register) {
                    Grant::Cached => reply.opened(NO_HANDLE, self.open_flags(opened)),
                    Grant::Passthrough(backing) => {
                        reply.opened_passthrough(NO_HANDLE, FopenFlags::empty(), &backing);
                    }
                }
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let caller = self.caller(request);
        let work = || {
            self.check_lower(request, node(parent), SEARCH)?;
            let created =
                self.union
                    .create(&caller, node(parent), name.as_bytes(), mode, umask, flags)?;
            if self.zero_message() {
                // No RELEASE will come for it.
                self.union.release(created.0.attr.ino);
            }
            Ok(created)
        };
        self.answer(Op::Create, reply, work, |reply, (entry, opened)| {
            let attr = self.wire_attr(&entry.attr);
            let generation = Generation(entry.generation);
            let lifetime = self.shorter_lifetime(self.entry_lifetime(node(parent)), &entry.attr);
            let register = |fd: &OwnedFd| reply.open_backing(fd);
            match self.grant(entry.attr.ino, (opened, flags), register) {
                Grant::Cached => {
                    reply.created(
                        &lifetime,
                        &attr,
                        generation,
                        NO_HANDLE,
                        self.open_flags(opened),
                    );
                }
                Grant::Passthrough(backing) => {
                    let flags = FopenFlags::empty();
                    reply.created_passthrough(
                        &lifetime, &attr, generation, NO_HANDLE, flags, &backing,
                    );
                }
            }
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer_read(node(ino), offset, size as usize, reply);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ordinary = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let work = || {
            self.as_writer(request, ordinary, |writer| {
                self.union.write(node(ino), offset, data, writer)
            })
        };
        self.answer(
            Op::Write,
            reply,
            work,
            // A request holds at most 16 MiB.
            |reply, count| reply.written(count as u32),
        );
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // Nothing is buffered here, so close(2) has nothing to wait for: the kernel stops asking.
        reply.fail(Errno::NOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let work = || {
            // Before the first OPEN a RELEASE may come for a created file: it holds nothing.
            if !self.zero_message() {
                self.close(node(ino), flags.0);
            }
            Ok(())
        };
        self.answer(Op::Release, reply, work, |reply, ()| reply.ok());
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Fsync,
            reply,
            || self.union.fsync(node(ino), datasync),
            |reply, ()| reply.ok(),
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let work = || {
            self.as_writer(request, request.uid() != 0, |writer| {
                self.union
                    .fallocate(node(ino), offset, length, mode, writer)
            })
        };
        self.answer(Op::Fallocate, reply, work, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let work = || match whence {
            libc::SEEK_DATA | libc::SEEK_HOLE => self.union.lseek(node(ino), offset, whence),
            // The others are answered by the kernel from the size it knows.
            _ => Err(Errno::INVAL),
        };
        self.answer(Op::Lseek, reply, work, |reply, offset| reply.offset(offset));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let work = || {
            if !flags.is_empty() {
                return Err(Errno::INVAL);
            }
            let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
            self.as_writer(request, request.uid() != 0, |writer| {
                self.union
                    .copy_file_range(from, to, len.min(MAX_COPY), writer)
            })
        };
        // At most MAX_COPY, which fits.
        self.answer(Op::CopyFileRange, reply, work, |reply, count| {
            reply.written(count as u32)
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if self.plan.leaves_opendir() {
            return reply.fail(Errno::NOSYS);
        }
        self.answer(
            Op::Opendir,
            reply,
            || {
                self.check_lower(request, node(ino), READ)?;
                self.union.open_dir(node(ino))
            },
            |reply, opened| {
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.use_cache);
                reply.opened(self.listings.open(), flags);
            },
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.run(Op::Readdir, || {
            let end = self.listings.end(fh, offset);
            let listed = self.union.list(node(ino), offset, &mut |entry| {
                entry.cookie <= end
                    && !reply.add(
                        INodeNo(entry.ino.0),
                        entry.cookie,
                        file_type(entry.kind),
                        OsStr::from_bytes(entry.name),
                    )
            });
            self.listings.begun(fh, offset, &self.union, node(ino));
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.fail(error),
            }
            listed.is_ok()
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.run(Op::Readdirplus, || {
            let end = self.listings.end(fh, offset);
            // After the directory was read, for that is when it is watched.
            let names = OnceCell::new();
            let listed = self.union.list_plus(node(ino), offset, &mut |plus| {
                let (entry, found) = (plus.entry, plus.found);
                if entry.cookie > end {
                    return false;
                }
                let names = names.get_or_init(|| self.entry_lifetime(node(ino)));
                let lifetime = self.shorter_lifetime(*names, &found.attr);
                let attr = self.wire_attr(&found.attr);
                let name = OsStr::from_bytes(entry.name);
                !reply.add(
                    attr.ino,
                    entry.cookie,
                    name,
                    &lifetime,
                    &attr,
                    Generation(found.generation),
                )
            });
            self.listings.begun(fh, offset, &self.union, node(ino));
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.fail(error),
            }
            listed.is_ok()
        });
    }

    fn releasedir(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Releasedir,
            reply,
            || {
                self.listings.close(fh);
                self.union.release_dir(node(ino));
                Ok(())
            },
            |reply, ()| reply.ok(),
        );
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Fsyncdir,
            reply,
            || self.union.fsync(node(ino), datasync),
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            Op::Statfs,
            reply,
            || self.union.statfs(node(ino)),
            |reply, s| {
                reply.statfs(
                    s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
                )
            },
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let name = name.as_bytes();
        let work = || self.set_xattr(request, node(ino), (name, value), flags);
        self.answer(Op::Setxattr, reply, work, |reply, ()| reply.ok());
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let work = || self.get_xattr(node(ino), name.as_bytes(), size);
        self.answer(Op::Getxattr, reply, work, |reply, value| {
            xattr::send(reply, &value, size)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let work = || {
            let names = self.union.listxattr(node(ino))?;
            xattr::fit(xattr::shown_to(&self.caller(request), names), size)
        };
        self.answer(Op::Listxattr, reply, work, |reply, value| {
            xattr::send(reply, &value, size)
        });
    }

    fn removexattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let work = || {
            self.refuse_acl(name.as_bytes())?;
            self.union.removexattr(node(ino), name.as_bytes())
        };
        self.answer(Op::Removexattr, reply, work, |reply, ()| reply.ok());
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (default_permissions); it stops asking after this.
        reply.fail(Errno::NOSYS);
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let work = || {
            let hook = self.ioctl.as_ref().ok_or(Errno::NOTTY)?;
            let mut answer = hook(&asker(request), node(ino), cmd, in_data)?;
            answer.truncate(out_size as usize);
            Ok(answer)
        };
        self.answer(Op::Ioctl, reply, work, |reply, answer| {
            reply.ioctl(0, &answer)
        });
    }

    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel's default for files, always ready, is right; it stops asking after this.
        reply.error(errno(Errno::NOSYS));
    }
}
