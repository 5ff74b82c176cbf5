//! READ, WRITE and everything else on the data of a file.

use super::Union;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::sys::Loc;
use crate::sys::copy::{read_full, write_all};
use crate::sys::stat::stat_fd;
use crate::types::*;
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use std::sync::Arc;

/// The most that COPY_FILE_RANGE answers at once: the reply has 32 bits.
const COPY_MAX: u64 = 1 << 30;

/// A new length for a file, which may be longer than before.
#[derive(Clone, Copy)]
pub(super) struct Cut<'a> {
    pub(super) size: u64,
    /// Who asked for it.
    writer: Writer<'a>,
}

impl Cut<'_> {
    /// Gives it to a file on a writable branch, and with it new times.
    pub(super) fn make(&self, branch: &Branch, fd: &OwnedFd) -> Result<()> {
        drop_set_id(branch, fd, self.writer)?;
        rustix::fs::ftruncate(fd, self.size)
    }
}

impl Union {
    /// READ into `buf`; returns the bytes read (short only at the end of the file).
    pub fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.node(node)?;
        let fd = self.data_fd(&node)?;
        let buf = if node.has_own_data(self.version()) == Some(false) {
            // The data below may be longer than what is left of it.
            let size = self.with_place(&node, |_, loc| Ok(loc.stat()?.size))?;
            let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
            let len = buf.len().min(left);
            &mut buf[..len]
        } else {
            buf
        };
        match read_full(&*fd, buf, offset) {
            Err(Errno::BADF) => read_full(&*self.reopened(&node, OFlags::RDONLY)?, buf, offset),
            other => other,
        }
    }

    /// WRITE. Copies up first if needed. On `writer` depends what set-id bits are left.
    pub fn write(
        &self,
        node: NodeId,
        offset: u64,
        data: &[u8],
        writer: Writer<'_>,
    ) -> Result<usize> {
        let node = self.node(node)?;
        self.with_room(&node, data.len() as u64, || {
            let fd = self.writable_fd(&node)?;
            drop_set_id(&*self.branch(node.inode().0)?, &fd, writer)?;
            match write_all(&*fd, data, offset) {
                Err(Errno::BADF) => {
                    write_all(&*self.reopened(&node, OFlags::WRONLY)?, data, offset)
                }
                other => other,
            }
        })?;
        Ok(data.len())
    }

    fn writable_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        self.make_writable(node)?;
        self.data_fd(node)
    }

    /// Changes the length. A copy of a lower file gets no more than what is kept, and its new length
    /// before its name. The caller holds the node's `change`.
    pub(super) fn truncate(&self, node: &Arc<Node>, size: u64, writer: Writer<'_>) -> Result<()> {
        if node.kind != Kind::File {
            return Err(if node.kind == Kind::Dir {
                Errno::ISDIR
            } else {
                Errno::INVAL
            });
        }
        let cut = Cut { size, writer };
        if self.copy_up(node, Some(cut))? {
            return Ok(());
        }
        let branch = self.branch(node.inode().0)?;
        match cut.make(&branch, &*self.data_fd(node)?) {
            // The cached descriptor is readonly: the mode forbade writing when it was opened.
            Err(Errno::INVAL | Errno::BADF) if size <= i64::MAX as u64 => {
                cut.make(&branch, &*self.reopened(node, OFlags::WRONLY)?)
            }
            other => other,
        }
    }

    /// FSYNC and FSYNCDIR: as on the branch's filesystem, unless the mount is `volatile`.
    pub fn fsync(&self, node: NodeId, datasync: bool) -> Result<()> {
        if self.options().volatile {
            return Ok(());
        }
        let node = self.node(node)?;
        if node.kind == Kind::Dir {
            return self.sync_dir(&node, datasync);
        }
        // To the program the file was there before: what it has written must not be lost with the
        // step by which the union gave it a copy.
        let unsynced = node.unsynced();
        let branch = self.branch(node.inode().0)?;
        if node.kind != Kind::File || !branch.writable() {
            return Ok(());
        }
        let fd = self.data_fd(&node)?;
        let datasync = datasync && unsynced.is_none();
        self.gate.outside(|| sync(&branch, &fd, datasync))?;
        if let Some(noted) = unsynced {
            node.note_synced(noted);
        }
        Ok(())
    }

    /// Each writable branch may have got or lost a name.
    fn sync_dir(&self, node: &Arc<Node>, datasync: bool) -> Result<()> {
        let mut found = Vec::new();
        for layer in node.layers().iter() {
            let branch = self.branch(layer.branch)?;
            if !branch.writable() {
                continue;
            }
            let loc = if layer.sealed {
                self.place_locked(node)?.1
            } else {
                Loc::dir(self.dir_fd(node, layer)?)
            };
            found.push((branch, loc.open(OFlags::RDONLY | OFlags::DIRECTORY)?));
        }
        self.gate.outside(|| {
            let mut all = found.iter();
            all.try_for_each(|(branch, fd)| sync(branch, fd, datasync))
        })
    }

    /// FALLOCATE, `mode` as in fallocate(2); `writer` as for [`Self::write`].
    pub fn fallocate(
        &self,
        node: NodeId,
        offset: u64,
        length: u64,
        mode: i32,
        writer: Writer<'_>,
    ) -> Result<()> {
        let node = self.node(node)?;
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        self.with_room(&node, length, || {
            let fd = self.writable_fd(&node)?;
            drop_set_id(&*self.branch(node.inode().0)?, &fd, writer)?;
            rustix::fs::fallocate(&*fd, flags, offset, length)
        })
    }

    /// LSEEK with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, node: NodeId, offset: i64, whence: i32) -> Result<i64> {
        let node = self.node(node)?;
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let fd = self.data_fd(&node)?;
        let at = rustix::fs::seek(&*fd, from)?;
        i64::try_from(at).map_err(|_| Errno::OVERFLOW)
    }

    /// COPY_FILE_RANGE; also between branches on different filesystems. `writer` as for
    /// [`Self::write`].
    pub fn copy_file_range(
        &self,
        from: (NodeId, u64),
        to: (NodeId, u64),
        length: u64,
        writer: Writer<'_>,
    ) -> Result<usize> {
        let target = self.node(to.0)?;
        let want = length.min(COPY_MAX) as usize;
        let copied = self.with_room(&target, want as u64, || {
            let fd = self.writable_fd(&target)?;
            drop_set_id(&*self.branch(target.inode().0)?, &fd, writer)?;
            // After the copy-up: source and target may be one file.
            let source = self.data_fd(&self.node(from.0)?)?;
            let (mut read_at, mut write_at) = (from.1, to.1);
            self.gate.outside(|| {
                let (from, to) = (Some(&mut read_at), Some(&mut write_at));
                rustix::fs::copy_file_range(&*source, from, &*fd, to, want)
            })
        });
        match copied {
            // The kernel then reads and writes itself.
            Err(Errno::XDEV | Errno::NOSYS) => Err(Errno::OPNOTSUPP),
            other => other,
        }
    }
}

/// Makes a file or directory of a branch durable, and what is recorded of it.
fn sync(branch: &Branch, fd: &OwnedFd, datasync: bool) -> Result<()> {
    if let Some(store) = &branch.store {
        store.sync()?;
    }
    if datasync {
        rustix::fs::fdatasync(fd)
    } else {
        rustix::fs::fsync(fd)
    }
}

/// What becomes of set-id bits by a write that is not the daemon's own. (File capabilities go with
/// every write, whoever writes: `cap_inode_need_killpriv` in Linux.)
fn drop_set_id(branch: &Branch, fd: &OwnedFd, writer: Writer<'_>) -> Result<()> {
    if matches!(writer, Writer::Privileged) {
        return Ok(());
    }
    if let Some(owners) = branch.owners {
        return Union::drop_kept_set_id(owners, fd, writer);
    }
    let stat = stat_fd(fd)?;
    let mode = writer.leaves(stat.mode, stat.gid);
    if mode != stat.mode {
        rustix::fs::fchmod(fd, rustix::fs::Mode::from_bits_truncate(mode & 0o7777))?;
    }
    Ok(())
}
