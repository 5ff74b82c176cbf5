//! Renamed directories: where their lower parts are.
//!
//! A directory that lies on a writable branch and on lower ones is renamed on the writable branch
//! alone; a redirect says under which path the branches below keep its other parts. The AUFS format
//! keeps it in the branch's bookkeeping (`.wh..wh.uaufs/dirren/<inode>`: birth time and path),
//! loaded at mount; the overlay format in the attribute `trusted.overlay.redirect` (or
//! `user.overlay.redirect`) of the directory (Documentation/filesystems/overlayfs.rst,
//! "redirect_dir").

use super::Union;
use super::namespace::Need;
use crate::branch::Branch;
use crate::branch::overlay::{self, Redirect};
use crate::branch::times::keep_times;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Layer, LayerList, Node};
use crate::shown::ShowPath;
use crate::spec::{DirOpaque, Format};
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::joined;
use crate::sys::{RealStat, xattr};
use crate::types::{BranchId, Kind, NodeId, Timestamp};
use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use rustix::fd::{AsFd, OwnedFd};
use smallvec::SmallVec;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A redirect that AUFS's bookkeeping records.
#[derive(Clone, Debug)]
struct Record {
    btime: Timestamp,
    path: Arc<[u8]>,
}

/// The recorded redirects of the branches in AUFS format. Shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct Redirects {
    by_inode: DashMap<(BranchId, u64), Record, FxBuildHasher>,
    count: AtomicUsize,
}

impl Redirects {
    /// Reads what a branch has recorded, in place of what was known of it; on failure that stays.
    pub(super) fn load(&self, branch: &Branch) -> Result<()> {
        if branch.format != Format::Aufs || !branch.honours_whiteouts() {
            self.unload(branch.id);
            return Ok(());
        }
        let recorded = match branch.redirects() {
            // A plain user's mount on a branch that was somebody else's.
            Err(err @ (Errno::ACCESS | Errno::PERM)) if branch.store.is_none() => {
                log::warn!(
                    "{}: cannot read which directories were renamed: {err}",
                    branch.path.shown()
                );
                Vec::new()
            }
            other => other?,
        };
        self.unload(branch.id);
        for (real, btime, path) in recorded {
            self.insert(
                branch.id,
                real,
                Record {
                    btime,
                    path: path.into(),
                },
            );
        }
        Ok(())
    }

    /// Forgets what a branch has recorded.
    pub(super) fn unload(&self, branch: BranchId) {
        self.by_inode.retain(|(id, _), _| *id != branch);
        self.count.store(self.by_inode.len(), Ordering::Relaxed);
    }

    fn insert(&self, branch: BranchId, real: u64, record: Record) {
        if self.by_inode.insert((branch, real), record).is_none() {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self, branch: BranchId, stat: &RealStat) -> Option<Arc<[u8]>> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let found = self.by_inode.get(&(branch, stat.ino))?;
        (found.btime == stat.btime).then(|| found.path.clone())
    }

    /// Is nothing redirected?
    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Does a redirect lead to this path, above it or below it?
    pub(super) fn leads_near(&self, path: &[u8]) -> bool {
        let within = |inner: &[u8], outer: &[u8]| {
            inner
                .strip_prefix(outer)
                .is_some_and(|rest| rest.is_empty() || outer.is_empty() || rest[0] == b'/')
        };
        self.by_inode
            .iter()
            .any(|r| within(path, &r.path) || within(&r.path, path))
    }

    fn remove(&self, branch: BranchId, real: u64) -> bool {
        let gone = self.by_inode.remove(&(branch, real)).is_some();
        if gone {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        gone
    }
}

/// How the moved directory keeps (or gives up) its lower parts.
pub(super) enum Lower {
    /// It has none, and must not get any at its new place unless that is harmless.
    None { opaque: bool },
    /// They stay where they are: these are the layers from now on.
    Redirect(LayerList),
}

impl Union {
    /// Where the branches below `branch` keep the lower parts of this directory, if that is not its
    /// own path.
    pub(super) fn redirect_of(
        &self,
        branch: &Branch,
        fd: &OwnedFd,
        stat: &RealStat,
    ) -> Result<Option<Redirect>> {
        match branch.format {
            Format::Aufs => Ok(self.redirects.get(branch.id, stat).map(Redirect::FromRoot)),
            Format::Overlay => Redirect::of(&xattr::Target::dir(fd.as_fd())),
        }
    }

    /// Records that the lower parts of the directory `fd` on `branch` are at `path`.
    pub(super) fn set_redirect(&self, branch: &Branch, fd: &OwnedFd, path: &[u8]) -> Result<()> {
        if branch.format == Format::Overlay {
            let dir = xattr::Target::dir(fd.as_fd());
            // Without the attribute the directory cannot be renamed: the caller copies.
            return overlay::set_redirect(&dir, path, false).map_err(|_| Errno::XDEV);
        }
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let stat = stat_fd(fd)?;
        store.write_redirect(stat.ino, stat.btime, path)?;
        self.redirects.insert(
            branch.id,
            stat.ino,
            Record {
                btime: stat.btime,
                path: path.into(),
            },
        );
        Ok(())
    }

    /// What becomes of the lower parts of a directory that moves. EXDEV where they would be lost.
    pub(super) fn plan_lower(
        &self,
        node: &Arc<Node>,
        branch: &Branch,
        below: bool,
    ) -> Result<Lower> {
        if node.kind != Kind::Dir {
            return Ok(Lower::None { opaque: false });
        }
        let layers = node.layers();
        let always = self.options().dir_opaque == DirOpaque::Always;
        if layers.len() <= 1 {
            return Ok(Lower::None {
                opaque: below || always,
            });
        }
        let ns = self.ns_read(node, Need::Listing)?;
        let lower_is_empty = ns
            .index
            .as_ref()
            .is_some_and(|i| i.iter_from(0).all(|(_, _, _, top, _)| top == branch.id))
            && ns.index.as_ref().is_some_and(|i| {
                i.iter_from(0).all(
                    |(_, name, ..)| !matches!(i.get(name), Found::Present(p) if p.layers.len() > 1),
                )
            });
        drop(ns);
        if lower_is_empty {
            // A redirect that was recorded earlier is given up.
            let redirected = layers.iter().any(|l| l.path.is_some());
            return Ok(Lower::None {
                opaque: below || always || redirected,
            });
        }
        if !self.options().dir_rename {
            return Err(Errno::XDEV);
        }
        let mut moved: LayerList = (*layers).clone();
        for layer in moved.iter_mut().filter(|l| l.branch != branch.id) {
            layer.path = Some(self.layer_path(node, layer.branch)?.into());
        }
        Ok(Lower::Redirect(moved))
    }

    /// Marks that change nothing while the directory is still at its old place.
    pub(super) fn mark_source(
        &self,
        node: &Arc<Node>,
        branch: &Branch,
        lower: &Lower,
    ) -> Result<()> {
        match lower {
            Lower::None { opaque: false } => Ok(()),
            Lower::None { opaque: true } => {
                let dir = self.dir_fd_on(node, branch.id)?;
                let before = stat_fd(&*dir)?;
                branch.set_opaque(&dir)?;
                if branch.format == Format::Aufs {
                    // The mark is a file in it.
                    keep_times(&dir, &before);
                }
                Ok(())
            }
            Lower::Redirect(layers) => {
                let path = layers
                    .iter()
                    .find_map(|l| l.path.as_ref().filter(|_| l.branch != branch.id))
                    .ok_or(Errno::XDEV)?;
                self.set_redirect(branch, &*self.dir_fd_on(node, branch.id)?, path)
            }
        }
    }

    /// The directory is gone from the branch.
    pub(super) fn drop_redirect(&self, branch: &Branch, real: u64) {
        if self.redirects.remove(branch.id, real)
            && let Some(store) = &branch.store
        {
            store.remove_redirect(real);
        }
    }

    /// The layers below `branch` of a directory of `parent` that has a redirect, by the rules of the
    /// merged view (restricted to those branches).
    pub(super) fn redirected_layers(
        &self,
        parent: &Arc<Node>,
        branch: BranchId,
        lower: &Redirect,
    ) -> Result<LayerList> {
        let dirs = match lower {
            Redirect::FromRoot(path) => self.walk_from_root(branch, path)?,
            Redirect::Beside(name) => self.step_down(&self.dirs_below(parent, branch)?, name)?,
        };
        let mut layers = SmallVec::new();
        for dir in dirs {
            let real = stat_fd(&dir.fd)?.ino;
            layers.push(Layer {
                branch: dir.branch.id,
                real,
                path: Some(dir.path.into()),
                sealed: false,
            });
        }
        Ok(layers)
    }

    /// The layers of a directory below `branch`.
    pub(super) fn dirs_below(&self, node: &Arc<Node>, branch: BranchId) -> Result<Vec<LowerDir>> {
        let stack = self.stack();
        let position = stack.position(branch);
        let mut dirs = Vec::new();
        for layer in node.layers().iter().filter(|l| !l.sealed) {
            if stack.position(layer.branch) > position {
                dirs.push(LowerDir {
                    branch: self.branch(layer.branch)?,
                    fd: self.dir_fd(node, layer)?,
                    path: self.layer_path(node, layer.branch)?,
                });
            }
        }
        Ok(dirs)
    }

    /// The directory at `path` on the branches below `branch`. (What is below an opaque root is no
    /// part of the union.)
    pub(super) fn walk_from_root(&self, branch: BranchId, path: &[u8]) -> Result<Vec<LowerDir>> {
        let mut current = self.dirs_below(&self.dir_node(NodeId::ROOT)?, branch)?;
        for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            current = self.step_down(&current, part)?;
        }
        Ok(current)
    }

    /// One component of a walk over several branches. The redirecting branch has a directory at
    /// every step, so that a file on a branch below it hides nothing in the AUFS format; in the
    /// overlay format it is where the directory ends.
    fn step_down(&self, dirs: &[LowerDir], name: &[u8]) -> Result<Vec<LowerDir>> {
        let mut next: Vec<LowerDir> = Vec::new();
        for (at, dir) in dirs.iter().enumerate() {
            let branch = &dir.branch;
            match stat_at(&dir.fd, name) {
                Ok(stat) if stat.kind() == Kind::Dir => {
                    let fd = match open_subdir(&dir.fd, name) {
                        Ok(fd) => Arc::new(fd),
                        Err(Errno::XDEV) => continue,
                        Err(err) => return Err(err),
                    };
                    let opaque = branch.honours_whiteouts() && branch.is_opaque(&fd)?;
                    let redirect = self.redirect_of(branch, &fd, &stat)?;
                    next.push(dir.enter(name, fd));
                    if opaque {
                        break;
                    }
                    match redirect {
                        Some(Redirect::FromRoot(path)) => {
                            next.extend(self.walk_from_root(branch.id, &path)?);
                            break;
                        }
                        Some(Redirect::Beside(name)) => {
                            next.extend(self.step_down(&dirs[at + 1..], &name)?);
                            break;
                        }
                        None => {}
                    }
                }
                Ok(_) if branch.format == Format::Overlay => break,
                // A name that no branch can have is on none: overlayfs shows the upper part alone.
                Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) => {}
                Err(err) => return Err(err),
            }
            if branch.honours_whiteouts() && branch.has_whiteout(&dir.fd, name)? {
                break;
            }
        }
        Ok(next)
    }
}

/// A directory on one branch, met while walking down several.
pub(super) struct LowerDir {
    pub(super) branch: Arc<Branch>,
    pub(super) fd: Arc<OwnedFd>,
    /// From the branch root.
    path: Vec<u8>,
}

impl LowerDir {
    fn enter(&self, name: &[u8], fd: Arc<OwnedFd>) -> Self {
        Self {
            branch: self.branch.clone(),
            fd,
            path: joined(&self.path, name),
        }
    }
}
