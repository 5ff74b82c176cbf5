//! Files that overlayfs copied up without their data: reading it from below, and bringing it in
//! before the first change.
//!
//! Nothing of this is asked at lookup: the length and attributes of such a file are its own. What
//! was found at the first use of its data is noted at the node. Data from below is cached under a
//! key of its own, so that a reader that was late can never put it in the place of the file's own.

use super::Union;
use super::copyup::How;
use super::redirect::LowerDir;
use crate::branch::Branch;
use crate::branch::metacopy::{Data, set_own};
use crate::branch::overlay::Redirect;
use crate::errno::{Errno, Result, twice};
use crate::node::{Node, Place};
use crate::shown::ShowPath;
use crate::spec::Format;
use crate::sys::copy::copy_extents;
use crate::sys::loc::open_beneath;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, RealStat, xattr};
use crate::types::{Attr, BranchId, Kind, NodeId, SetTime};
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FallocateFlags, OFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// In the keys of data descriptors: the data is not where the node is.
pub(super) const BELOW: BranchId = BranchId::NONE;

/// File capabilities: writing drops them.
const CAPABILITIES: &[u8] = b"security.capability";

/// Data below of files that lost the name by which it is found. Shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct KeptData {
    files: DashMap<NodeId, Arc<OwnedFd>, FxBuildHasher>,
    /// Zero on most mounts: then the table is not asked.
    count: AtomicUsize,
}

impl KeptData {
    fn get(&self, node: NodeId) -> Option<Arc<OwnedFd>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.files.get(&node).map(|fd| fd.clone())
    }

    fn keep(&self, node: NodeId, data: Arc<OwnedFd>) {
        if self.files.insert(node, data).is_none() {
            self.count.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn forget(&self, node: NodeId) {
        if self.count.load(Ordering::Acquire) > 0 && self.files.remove(&node).is_some() {
            self.count.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Union {
    /// Has a file no data of its own? `branch` and `loc` are its place, which cannot change
    /// meanwhile.
    pub(super) fn lacks_data(&self, node: &Node, branch: &Branch, loc: &Loc) -> Result<bool> {
        if branch.format != Format::Overlay || node.kind != Kind::File {
            return Ok(false);
        }
        let version = self.version();
        if let Some(own) = node.has_own_data(version) {
            return Ok(!own);
        }
        let inode = node.inode();
        let lacks = loc.xattrs(|x| branch.lacks_data(&x))?;
        if lacks {
            // What is cached may be of another inode or another stack.
            self.data_fds.remove((node.id, BELOW));
        }
        node.note_own_data(inode, version, !lacks);
        Ok(lacks)
    }

    /// As [`Self::lacks_data`], for callers that hold no directory lock.
    pub(super) fn has_data_below(&self, node: &Arc<Node>) -> Result<bool> {
        if node.kind != Kind::File
            || node.has_own_data(self.version()) == Some(true)
            || self.branch(node.inode().0)?.format != Format::Overlay
        {
            return Ok(false);
        }
        self.with_place(node, |branch, loc| self.lacks_data(node, branch, loc))
    }

    /// What the attributes of a file whose data is below have to say; only what looks like one is
    /// looked at. It must not look like one big hole: programs that copy holes as such would not
    /// read it. The caller holds no directory lock.
    ///
    /// # Errors
    /// EIO for an empty one without data below: nobody reads it, so nothing else would tell.
    pub(super) fn check_data(&self, node: &Arc<Node>, attr: &mut Attr) -> Result<()> {
        let (size, blocks) = (attr.size, attr.blocks);
        if (size == 0 || size > blocks.saturating_mul(512))
            // If it cannot be told, opening it tells why.
            && self.has_data_below(node).unwrap_or(false)
        {
            if size == 0 {
                self.data_fd(node)?;
            }
            attr.blocks = size.div_ceil(512);
        }
        Ok(())
    }

    /// A readonly descriptor of the data of a file that has none of its own. Takes no directory
    /// lock.
    ///
    /// # Errors
    /// EIO if there is no data, as overlayfs answers.
    pub(super) fn data_below(
        &self,
        node: &Arc<Node>,
        branch: &Branch,
        loc: &Loc,
    ) -> Result<Arc<OwnedFd>> {
        let key = (node.id, BELOW);
        if let Some(fd) = self
            .data_fds
            .get(key)
            .or_else(|| self.kept_data.get(node.id))
        {
            return Ok(fd);
        }
        let fd = Arc::new(self.open_below(node, branch, loc)?);
        self.data_fds.insert(key, fd.clone());
        Ok(fd)
    }

    /// The name by which the data of a file is found may be about to go.
    pub(super) fn keep_data(&self, node: &Arc<Node>) -> Result<()> {
        if node.kind != Kind::File || self.branch(node.inode().0)?.format != Format::Overlay {
            return Ok(());
        }
        let (branch, loc) = self.place_locked(node)?;
        if self.lacks_data(node, &branch, &loc)?
            // Without data it is of no use now either.
            && let Ok(data) = self.data_below(node, &branch, &loc)
        {
            self.kept_data.keep(node.id, data);
        }
        Ok(())
    }

    fn open_below(&self, node: &Arc<Node>, branch: &Branch, loc: &Loc) -> Result<OwnedFd> {
        let home = node.home();
        let parent = home.parent.as_ref().ok_or(Errno::IO)?;
        let beside = |name: &[u8]| Ok((self.dirs_below(parent, branch.id)?, name.to_vec()));
        let mut from_root = None;
        let (dirs, name) = match loc.xattrs(|x| branch.data_of(&x, || loc.stat()))? {
            // Completed meanwhile.
            Data::Own => return loc.open_quietly(OFlags::RDONLY),
            Data::Below => beside(&home.name)?,
            Data::At(Redirect::Beside(name)) => beside(&name)?,
            Data::At(Redirect::FromRoot(path)) => {
                let found = self.walk_to(branch.id, &path)?;
                from_root = Some(path);
                found
            }
        };
        match self.find_data(branch.id, dirs, name, from_root)? {
            Some(data) => Ok(data),
            None => {
                log::warn!(
                    "{}: the data of a file that overlayfs copied up without it (metacopy=on) is \
                     on no branch below: name all of them",
                    branch.path.shown()
                );
                Err(Errno::IO)
            }
        }
    }

    /// The directories of a path on the branches below `branch`, and its last component.
    fn walk_to(&self, branch: BranchId, path: &[u8]) -> Result<(Vec<LowerDir>, Vec<u8>)> {
        let split = path.iter().rposition(|b| *b == b'/');
        let (dir, name) = match split {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        Ok((self.walk_from_root(branch, dir)?, name.to_vec()))
    }

    /// The data that a name in these directories (topmost first, of branches below `above`) leads
    /// to. `from_root`: they were found by this path from the branch roots.
    fn find_data(
        &self,
        mut above: BranchId,
        mut dirs: Vec<LowerDir>,
        mut name: Vec<u8>,
        mut from_root: Option<Arc<[u8]>>,
    ) -> Result<Option<OwnedFd>> {
        // Ends: each turn goes on below the branch of the one before.
        while let Some((at, loc)) = first_file(&dirs, &name)? {
            let branch = dirs[at].branch.clone();
            let data = loc.xattrs(|x| branch.data_of(&x, || loc.stat()))?;
            above = branch.id;
            dirs.drain(..=at);
            match data {
                Data::Own => return loc.open_quietly(OFlags::RDONLY).map(Some),
                Data::Below => {}
                Data::At(Redirect::Beside(other)) => (name, from_root) = (other.to_vec(), None),
                Data::At(Redirect::FromRoot(path)) => {
                    (dirs, name) = self.walk_to(branch.id, &path)?;
                    from_root = Some(path);
                }
            }
        }
        match from_root {
            Some(path) => self.data_only(above, &path),
            None => Ok(None),
        }
    }

    /// The file at a path from the root of the first data-only branch below `above` that has it.
    fn data_only(&self, above: BranchId, path: &[u8]) -> Result<Option<OwnedFd>> {
        let stack = self.stack();
        let position = stack.position(above).ok_or(Errno::STALE)?;
        let below = &stack.branches()[usize::from(position.0) + 1..];
        let path = path.strip_prefix(b"/").unwrap_or(path);
        for branch in below.iter().filter(|b| b.perm.data_only) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match open_beneath(&branch.root, path, flags) {
                Ok(file) if stat_fd(&file)?.kind() == Kind::File => {
                    return Loc::Fd(Arc::new(file))
                        .open_quietly(OFlags::RDONLY)
                        .map(Some);
                }
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }

    /// Brings the data into a file on a writable branch that lacks it, as overlayfs does before a
    /// change: the mark goes last, and until then the data is that below. Was `how.cut` done with it?
    /// The caller holds no directory lock.
    pub(super) fn complete_data(&self, node: &Arc<Node>, how: How<'_>) -> Result<bool> {
        while self.has_data_below(node)? {
            let version = self.version();
            if let Some(_running) = self.copyups.start(node.id) {
                if self.bring_data(node, how)? {
                    return Ok(true);
                }
            } else {
                self.apart(how, || self.copyups.wait_for(node.id));
            }
            if self.version() != version {
                self.refresh(node);
            }
        }
        Ok(false)
    }

    fn bring_data(&self, node: &Arc<Node>, how: How<'_>) -> Result<bool> {
        let Some(filling) = self.with_place(node, |b, loc| self.begin_filling(node, b, loc))?
        else {
            return Ok(false);
        };
        let (branch, file) = (&filling.branch, &filling.file);
        let cut = how.cut.filter(|cut| cut.size < filling.stat.size);
        let keep = cut.map_or(filling.stat.size, |cut| cut.size);
        let volatile = self.options().volatile;
        self.apart(how, || filling.fill(keep, volatile))?;
        if let Some(cut) = cut {
            // The file has its new length, and what is left of the data below, in this one step.
            cut.make(branch, file)?;
        }
        match set_own(&xattr::Target::fd(file.as_fd())?) {
            Ok(()) => {}
            Err(err) if cut.is_some() => {
                // What is left is the same below: the next change tries again.
                log::warn!(
                    "{}: a file keeps its metacopy mark: {err}",
                    branch.path.shown()
                );
                return Ok(true);
            }
            Err(err) => return Err(err),
        }
        node.note_published();
        let inode = (branch.id, filling.stat.ino);
        node.note_own_data(inode, self.version(), true);
        self.data_fds.remove((node.id, BELOW));
        self.kept_data.forget(node.id);
        if node.inode() == inode {
            self.data_fds.insert((node.id, inode.0), filling.file);
        }
        Ok(cut.is_some())
    }

    fn begin_filling(
        &self,
        node: &Arc<Node>,
        branch: &Arc<Branch>,
        loc: &Loc,
    ) -> Result<Option<Filling>> {
        if !branch.writable() || !self.lacks_data(node, branch, loc)? {
            return Ok(None);
        }
        let home = node.home();
        let path = match (&home.place, &home.parent) {
            (Place::Named, Some(parent)) => {
                let mut path = self.layer_path(parent, branch.id)?;
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&home.name);
                Some(path)
            }
            _ => None,
        };
        Ok(Some(Filling {
            branch: branch.clone(),
            stat: loc.stat()?,
            path,
            data: self.data_below(node, branch, loc)?,
            file: Arc::new(loc.open(OFlags::RDWR)?),
        }))
    }
}

/// A file whose data is brought in.
struct Filling {
    branch: Arc<Branch>,
    file: Arc<OwnedFd>,
    /// As it was.
    stat: RealStat,
    /// From the root of the branch, if it has a name there.
    path: Option<Vec<u8>>,
    /// The data below.
    data: Arc<OwnedFd>,
}

impl Filling {
    /// Copies the first `keep` bytes of the data into the file. Nothing of that is seen, also if it
    /// fails or the daemon is killed.
    fn fill(&self, keep: u64, volatile: bool) -> Result<()> {
        let loc = Loc::Fd(self.file.clone());
        let capabilities = match loc.xattrs(|x| x.get(CAPABILITIES)) {
            Ok(value) => Some(value),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
            Err(err) => return Err(err),
        };
        let path = self.path.clone();
        let held = path.map(|path| self.branch.hold_times(&self.stat, path));
        let held = held.transpose()?;
        let mut copied = self.copy(keep);
        if copied.is_ok() && !volatile {
            copied = rustix::fs::fsync(&*self.file);
        }
        if copied.is_err() {
            empty(&self.file, self.stat.size);
        }
        let (atime, mtime) = (self.stat.atime, self.stat.mtime);
        twice(|| {
            if let Some(value) = &capabilities {
                loc.xattrs(|x| x.set(CAPABILITIES, value, 0))?;
            }
            loc.set_times(Some(SetTime::At(atime)), Some(SetTime::At(mtime)))
        })?;
        let released = held.map_or(Ok(()), |held| held.release());
        copied.and(released)
    }

    fn copy(&self, keep: u64) -> Result<()> {
        // An attempt that failed, or was killed, may have left something.
        empty(&self.file, self.stat.size);
        let there = stat_fd(&*self.data)?.size;
        let whole = keep == there && keep == self.stat.size;
        if whole && rustix::fs::ioctl_ficlone(&*self.file, &*self.data).is_ok() {
            return Ok(());
        }
        // The data below may be shorter than it should be: the rest reads as zeros, as before.
        copy_extents(&*self.data, &*self.file, keep.min(there))
    }
}

/// The first regular file of this name: at which directory, and where.
fn first_file(dirs: &[LowerDir], name: &[u8]) -> Result<Option<(usize, Loc)>> {
    for (at, dir) in dirs.iter().enumerate() {
        let branch = &dir.branch;
        match stat_at(&dir.fd, name) {
            Ok(stat) if stat.kind() == Kind::File => {
                let hidden = branch.honours_whiteouts()
                    && branch.is_whiteout_entry(&*dir.fd, name, &stat)?;
                return Ok((!hidden).then(|| (at, Loc::at(dir.fd.clone(), name))));
            }
            Ok(_) => return Ok(None),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
            Err(err) => return Err(err),
        }
        if branch.honours_whiteouts() && branch.has_whiteout(&*dir.fd, name)? {
            return Ok(None);
        }
    }
    Ok(None)
}

/// Nothing but holes again. Where that cannot be had, what is there is written over.
fn empty(file: &OwnedFd, size: u64) {
    if size > 0 {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let _ = rustix::fs::fallocate(file, hole, 0, size);
    }
}
