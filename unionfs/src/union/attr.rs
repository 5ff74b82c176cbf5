//! GETATTR, SETATTR, READLINK, STATFS.

use super::Union;
use super::namespace::Need;
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::sys::RealStat;
use crate::types::*;
use std::sync::Arc;

/// How often the attributes of a file are read that is moved meanwhile.
const RETRIES: usize = 16;

impl Union {
    /// GETATTR.
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        let node = self.node(node)?;
        self.attr_of(&node)
    }

    pub(super) fn attr_of(&self, node: &Arc<Node>) -> Result<Attr> {
        if node.kind == Kind::Dir {
            return self.dir_attr(node);
        }
        let stat = self.with_place(node, |branch, loc| branch.shown(loc, loc.stat()?))?;
        let mut attr = self.file_attr(node, &stat);
        self.check_data(node, &mut attr)?;
        Ok(attr)
    }

    pub(super) fn file_attr(&self, node: &Arc<Node>, stat: &RealStat) -> Attr {
        if self.links.is_regrouped(node.id)
            && let Some(attr) = self.counted_file_attr(node)
        {
            return attr;
        }
        let mut attr = attr_from(node.id, stat);
        attr.nlink = self.links.nlink(node, stat);
        attr
    }

    /// The attributes of a file while links of it are made and removed. `None` = it is moved in this
    /// moment.
    fn counted_file_attr(&self, node: &Arc<Node>) -> Option<Attr> {
        for _ in 0..RETRIES {
            let _counting = self.links.counting(&[node.id]);
            let Ok(stat) = self
                .place_locked(node)
                .and_then(|(branch, loc)| branch.shown(&loc, loc.stat()?))
            else {
                continue;
            };
            if stat.ino == node.inode().1 {
                let mut attr = attr_from(node.id, &stat);
                attr.nlink = self.links.nlink(node, &stat);
                return Some(attr);
            }
        }
        None
    }

    /// A directory shows the attributes of its topmost instance and an exact link count.
    fn dir_attr(&self, node: &Arc<Node>) -> Result<Attr> {
        // First the names: while something is moved between branches, times are not what they were.
        let ns = match self.ns_read(node, Need::Names) {
            Ok(ns) => Some(ns),
            // A user's daemon that may not list it: the topmost instance's own count has to do.
            Err(Errno::ACCESS | Errno::PERM) => None,
            Err(err) => return Err(err),
        };
        let stat = self.with_place(node, |branch, loc| branch.shown(loc, loc.stat()?))?;
        let mut attr = attr_from(node.id, &stat);
        let Some(ns) = ns else { return Ok(attr) };
        if ns.dead {
            attr.nlink = 0;
        } else if let (Some(index), true) = (&ns.index, stat.nlink > 1) {
            // Filesystems that do not count subdirectories say 1: leave it.
            attr.nlink = 2 + index.subdirs();
        }
        Ok(attr)
    }

    /// READLINK.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.node(node)?;
        if node.kind != Kind::Symlink {
            return Err(Errno::INVAL);
        }
        self.with_place(&node, |_, loc| loc.readlink())
    }

    /// SETATTR. `writer` is who truncates.
    pub fn setattr(&self, node: NodeId, set: &SetAttr, writer: Writer<'_>) -> Result<Attr> {
        let node = self.node(node)?;
        if let Some(size) = set.size {
            // What it becomes longer by is a hole, which needs no room.
            self.with_room(&node, 0, || self.truncate(&node, size, writer))?;
        }
        let _stays = node.change.read();
        if set.is_metadata() {
            self.set_metadata(&node, set)?;
        }
        self.attr_of(&node)
    }

    /// What a write by `writer` does besides writing: takes set-id bits away.
    pub fn drop_set_id(&self, node: NodeId, writer: Writer<'_>) -> Result<Attr> {
        let node = self.node(node)?;
        let _stays = node.change.read();
        let attr = self.attr_of(&node)?;
        let mode = writer.leaves(attr.mode, attr.gid);
        if node.kind == Kind::Dir || mode == attr.mode {
            return Ok(attr);
        }
        let set = SetAttr {
            mode: Some(mode & 0o7777),
            ..SetAttr::default()
        };
        self.set_metadata(&node, &set)?;
        self.attr_of(&node)
    }

    /// Who sets the mode by other means than SETATTR takes setgid away from a file of a group that he
    /// is not in.
    pub fn drop_setgid(&self, node: NodeId, writer: Writer<'_>) -> Result<()> {
        let node = self.node(node)?;
        let _stays = node.change.read();
        let attr = self.attr_of(&node)?;
        if attr.mode & libc::S_ISGID == 0 || writer.keeps_setgid(attr.gid) {
            return Ok(());
        }
        let set = SetAttr {
            mode: Some(attr.mode & 0o7777 & !libc::S_ISGID),
            ..SetAttr::default()
        };
        self.set_metadata(&node, &set)
    }

    /// The caller holds the node's `change`.
    fn set_metadata(&self, node: &Arc<Node>, set: &SetAttr) -> Result<()> {
        self.make_writable(node)?;
        self.with_place(node, |branch, loc| {
            if let Some(owners) = branch.owners {
                if set.uid.is_some() || set.gid.is_some() || set.mode.is_some() {
                    Self::set_owner(owners, loc, set)?;
                }
                if set.atime.is_some() || set.mtime.is_some() {
                    loc.set_times(set.atime, set.mtime)?;
                }
                return Ok(());
            }
            // Ownership first: it clears setuid and setgid, which the mode may set again.
            if set.uid.is_some() || set.gid.is_some() {
                loc.chown(set.uid, set.gid)?;
            }
            if let Some(mode) = set.mode {
                loc.chmod(mode)?;
            }
            if set.atime.is_some() || set.mtime.is_some() {
                loc.set_times(set.atime, set.mtime)?;
            }
            Ok(())
        })
    }

    /// STATFS: of the topmost branch, or (`sum`) of all, each filesystem once.
    pub fn statfs(&self, _node: NodeId) -> Result<StatFs> {
        let stack = self.stack();
        let mut devices = Vec::new();
        let mut sum: Option<StatFs> = None;
        for branch in stack.branches() {
            if branch.perm.data_only || devices.contains(&branch.dev) {
                continue;
            }
            devices.push(branch.dev);
            let one = rustix::fs::fstatvfs(&branch.root)?;
            let namelen = (one.f_namemax as u32).min(u32::from(self.options().name_max));
            let one = StatFs {
                blocks: one.f_blocks,
                bfree: one.f_bfree,
                bavail: one.f_bavail,
                files: one.f_files,
                ffree: one.f_ffree,
                bsize: one.f_bsize as u32,
                namelen,
                frsize: one.f_frsize as u32,
            };
            if !self.options().sum {
                return Ok(one);
            }
            sum = Some(match sum {
                None => one,
                Some(so_far) => add(so_far, one),
            });
        }
        sum.ok_or(Errno::INVAL)
    }
}

/// Adds two filesystems up in the smaller block size.
fn add(a: StatFs, b: StatFs) -> StatFs {
    let frsize = a.frsize.min(b.frsize).max(1);
    let scale =
        |s: &StatFs, blocks: u64| blocks.saturating_mul(u64::from(s.frsize / frsize).max(1));
    StatFs {
        blocks: scale(&a, a.blocks).saturating_add(scale(&b, b.blocks)),
        bfree: scale(&a, a.bfree).saturating_add(scale(&b, b.bfree)),
        bavail: scale(&a, a.bavail).saturating_add(scale(&b, b.bavail)),
        files: a.files.saturating_add(b.files),
        ffree: a.ffree.saturating_add(b.ffree),
        bsize: a.bsize.min(b.bsize),
        namelen: a.namelen.min(b.namelen),
        frsize,
    }
}

pub(super) fn attr_from(ino: NodeId, stat: &RealStat) -> Attr {
    Attr {
        ino,
        size: stat.size,
        blocks: stat.blocks,
        blksize: stat.blksize,
        mode: stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
    }
}
