//! OPEN, RELEASE and the data descriptors of nodes: access is by node, never by handle.

use super::Union;
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::spec::Udba;
use crate::types::*;
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Version of a file's data, as far as stat tells.
type DataStamp = (BranchId, u64, u64, Timestamp);

#[derive(Debug, Default)]
struct OpenFile {
    count: u32,
    /// For a daemon that could not open the file again (a plain user's, file mode 0200): kept
    /// while the file is open.
    pinned: Option<(BranchId, Arc<OwnedFd>)>,
    /// What the kernel's pages were read from.
    stamp: Option<DataStamp>,
}

/// Open counts by node. Shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct OpenTable {
    files: DashMap<NodeId, OpenFile, FxBuildHasher>,
    /// See [`Union::set_unseen_opens`].
    unseen: AtomicBool,
}

impl OpenTable {
    /// May somebody have this file open?
    pub(super) fn may_be_open(&self, node: &Node) -> bool {
        node.open_count() > 0 || node.kind == Kind::File && self.are_unseen()
    }

    /// See [`Union::set_unseen_opens`].
    pub(super) fn are_unseen(&self) -> bool {
        self.unseen.load(Ordering::Relaxed)
    }

    pub(super) fn remove(&self, node: NodeId) {
        self.files.remove(&node);
    }

    /// The data of a node is elsewhere now.
    pub(super) fn moved(&self, node: NodeId, branch: BranchId, data: &Arc<OwnedFd>) {
        if let Some(mut file) = self.files.get_mut(&node)
            && file.pinned.is_some()
        {
            file.pinned = Some((branch, data.clone()));
        }
    }

    /// Drops the descriptors on a branch.
    pub(super) fn unpin(&self, branch: BranchId) {
        for mut file in self.files.iter_mut() {
            if file.pinned.as_ref().is_some_and(|(b, _)| *b == branch) {
                file.pinned = None;
            }
        }
    }

    fn pinned(&self, node: NodeId, branch: BranchId) -> Option<Arc<OwnedFd>> {
        let file = self.files.get(&node)?;
        file.pinned
            .as_ref()
            .filter(|(b, _)| *b == branch)
            .map(|(_, fd)| fd.clone())
    }
}

impl Union {
    /// Does the kernel open files without asking? Then whatever it knows may be open.
    pub fn set_unseen_opens(&self, unseen: bool) {
        self.opens.unseen.store(unseen, Ordering::Relaxed);
    }

    /// OPEN of a non-directory, `flags` as in open(2). Nothing is copied up (that happens at the
    /// first change), unless its branch asks for it.
    pub fn open_node(&self, node: NodeId, flags: i32) -> Result<Opened> {
        let node = self.node(node)?;
        if node.kind == Kind::Dir {
            return Err(Errno::ISDIR);
        }
        self.copy_on_open(&node)?;
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let branch = self.branch(node.inode().0)?;
        if writes && !branch.writable() && !self.can_be_copied(branch.id) {
            return Err(Errno::ROFS);
        }
        let below = self.has_data_below(&node)?;
        let mut opened = Opened {
            keep_cache: self.options().udba == Udba::None,
            passthrough: branch.writable() && !below,
        };
        if node.kind != Kind::File {
            node.count_open();
            return Ok(opened);
        }
        let reval = self.options().udba != Udba::None;
        let stamp = if reval {
            Some(self.data_stamp(&node)?)
        } else {
            None
        };
        // (Data below may be replaced by the file's own at any time: it is opened anew.)
        let pinned = if self.privileged || below {
            None
        } else {
            Some((branch.id, self.data_fd(&node)?))
        };
        if stamp.is_some() || pinned.is_some() {
            let mut file = self.opens.files.entry(node.id).or_default();
            file.count += 1;
            opened.keep_cache |= stamp.is_some() && file.stamp == stamp;
            // Another change may get the same time, and then these pages are not those.
            file.stamp = stamp.filter(|(.., mtime)| !mtime.may_recur());
            file.pinned = pinned.or(file.pinned.take());
        }
        node.count_open();
        Ok(opened)
    }

    /// Is there a writable branch above this one?
    pub(super) fn can_be_copied(&self, branch: BranchId) -> bool {
        let stack = self.stack();
        let above = stack.branches().iter().take_while(|b| b.id != branch);
        above.into_iter().any(|b| b.writable())
    }

    fn data_stamp(&self, node: &Arc<Node>) -> Result<DataStamp> {
        self.with_place(node, |branch, loc| {
            let stat = loc.stat()?;
            Ok((branch.id, stat.ino, stat.size, stat.mtime))
        })
    }

    /// RELEASE of one [`Self::open_node`] or [`Self::create`].
    pub fn release(&self, node: NodeId) {
        self.release_dir(node);
        if let Some(mut file) = self.opens.files.get_mut(&node) {
            file.count = file.count.saturating_sub(1);
            if file.count == 0 {
                file.pinned = None;
            }
        }
    }

    /// RELEASEDIR of one [`Self::open_dir`].
    pub fn release_dir(&self, node: NodeId) {
        if let Some(node) = self.nodes.get(node) {
            node.count_release();
        }
    }

    /// The new file of CREATE is open already.
    pub(super) fn opened_new(&self, node: &Node, branch: BranchId, fd: Arc<OwnedFd>) {
        node.count_open();
        node.note_own_data(node.inode(), self.version(), true);
        self.data_fds.insert((node.id, branch), fd.clone());
        if !self.privileged {
            let mut file = self.opens.files.entry(node.id).or_default();
            file.count += 1;
            file.pinned = Some((branch, fd));
        }
    }

    /// A descriptor of a node's data, for reading, and for writing where its branch is writable.
    pub(super) fn data_fd(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if node.kind != Kind::File {
            return Err(Errno::INVAL);
        }
        let (branch, _) = node.inode();
        if let Some(fd) = self.data_fds.get((node.id, branch)) {
            return Ok(fd);
        }
        if let Some(fd) = self.opens.pinned(node.id, branch) {
            return Ok(fd);
        }
        self.with_place(node, |branch, loc| {
            if self.lacks_data(node, branch, loc)? {
                return self.data_below(node, branch, loc);
            }
            let fd = if branch.writable() {
                match loc.open(OFlags::RDWR) {
                    Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::TXTBSY) => {
                        match loc.open(OFlags::RDONLY) {
                            // A plain user's daemon, and a file that can only be written.
                            Err(Errno::ACCESS) => loc.open(OFlags::WRONLY),
                            other => other,
                        }
                    }
                    other => other,
                }
            } else {
                loc.open_quietly(OFlags::RDONLY)
            };
            let fd = Arc::new(fd?);
            // The key names the branch: after a copy-up nobody asks for this one any more.
            self.data_fds.insert((node.id, branch.id), fd.clone());
            Ok(fd)
        })
    }

    /// The descriptor at hand cannot do what is asked: the mode forbade it when it was opened. One
    /// that can at least do `access` (`O_RDONLY` or `O_WRONLY`).
    pub(super) fn reopened(&self, node: &Arc<Node>, access: OFlags) -> Result<Arc<OwnedFd>> {
        self.with_place(node, |branch, loc| {
            if self.lacks_data(node, branch, loc)? {
                return self.data_below(node, branch, loc);
            }
            let fd = if branch.writable() {
                loc.open(OFlags::RDWR).or_else(|_| loc.open(access))
            } else {
                loc.open(access)
            };
            let fd = Arc::new(fd?);
            self.data_fds.insert((node.id, branch.id), fd.clone());
            Ok(fd)
        })
    }

    /// The descriptor that the kernel may use for passthrough, for a node whose data lies in a
    /// writable branch; EROFS for others.
    pub fn passthrough_fd(&self, node: NodeId) -> Result<Arc<OwnedFd>> {
        let node = self.node(node)?;
        if !self.branch(node.inode().0)?.writable() || self.has_data_below(&node)? {
            return Err(Errno::ROFS);
        }
        self.data_fd(&node)
    }

    /// Copies a node up because it is opened for writing in a mode in which the writes themselves
    /// will not be seen.
    pub fn prepare_write(&self, node: NodeId) -> Result<()> {
        let node = self.node(node)?;
        self.make_writable(&node)
    }
}
