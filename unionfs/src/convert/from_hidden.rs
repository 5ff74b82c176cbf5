//! The deletions of unionfs-fuse (`.unionfs/PATH_HIDDEN~`) become AUFS's.
//!
//! A directory in which something is hidden need not be on the branch. It is made there as it is on
//! the lower branches, which must be named for that. Every step means the same if it is done again.

use super::{Changes, Obstacle, Why};
use crate::branch::hidden::Hidden;
use crate::branch::marks::create_mark;
use crate::branch::offline::{Offline, existing};
use crate::errno::{Errno, Result};
use crate::sys::loc::open_beneath;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::joined;
use crate::sys::{Loc, RealStat, creds, remove, xattr};
use crate::types::{Kind, SetTime};
use crate::whiteout::{BASE, OPAQUE, whiteout_name};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, fsync, mkdirat, renameat, unlinkat};
use std::sync::Arc;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory that is made on the branch under this name while it is not finished.
const HALF_MADE: &[u8] = b"lower-directory";

/// Where something is hidden.
enum Place {
    /// In this directory of the branch.
    Here(OwnedFd),
    /// In a directory of this path that only lower branches have.
    Below,
    /// Nowhere: no such directory is seen.
    Nowhere,
}

pub(super) struct FromHidden<'a> {
    pub(super) root: &'a OwnedFd,
    /// Topmost first.
    pub(super) lowers: &'a [OwnedFd],
    pub(super) hidden: Hidden,
}

impl FromHidden<'_> {
    /// What stands in the way.
    pub(super) fn survey(&self, changes: &mut Changes) -> Result<Vec<Obstacle>> {
        let mut found = Vec::new();
        for (path, names) in self.hidden.dirs() {
            match self.place(path)? {
                Place::Here(dir) => {
                    for name in names {
                        self.count(&dir, name, changes)?;
                    }
                }
                Place::Below if self.lowers.is_empty() => found.push(Obstacle {
                    path: path.to_vec(),
                    why: Why::NeedsLower,
                }),
                Place::Below => changes.whiteouts += names.len() as u64,
                Place::Nowhere => {}
            }
        }
        Ok(found)
    }

    fn count(&self, dir: &OwnedFd, name: &[u8], changes: &mut Changes) -> Result<()> {
        match kind_of(dir, name)? {
            None => changes.whiteouts += 1,
            Some(Kind::Dir) => changes.opaque += 1,
            Some(_) => {}
        }
        Ok(())
    }

    /// Makes AUFS's marks and removes unionfs-fuse's.
    pub(super) fn convert(&self, aufs: &mut Offline, changes: &mut Changes) -> Result<()> {
        let tmp = aufs.books_dir(b"tmp")?;
        // Marks are no change that users made.
        let mut times = vec![(rustix::io::dup(self.root)?, stat_fd(self.root)?)];
        for (path, names) in self.hidden.dirs() {
            let dir = match self.place(path)? {
                Place::Here(dir) => dir,
                Place::Below => match self.make_dirs(path, &tmp, &mut times)? {
                    Some(dir) => dir,
                    None => continue,
                },
                Place::Nowhere => continue,
            };
            let before = stat_fd(&dir)?;
            for name in names {
                self.count(&dir, name, changes)?;
                hide(&dir, name)?;
            }
            fsync(&dir)?;
            times.push((dir, before));
        }
        create_mark(self.root, BASE)?;
        if let Some(meta) = existing(self.root.as_fd(), self.hidden.meta())? {
            fsync(self.root)?;
            remove::contents(&meta)?;
            unlinkat(self.root, self.hidden.meta(), AtFlags::REMOVEDIR)?;
        }
        // A directory may be there twice: the older time counts.
        for (dir, stat) in times.into_iter().rev() {
            set_times(dir, &stat)?;
        }
        Ok(())
    }

    /// Where the directory at `path` is seen, by unionfs-fuse's rules.
    fn place(&self, path: &[u8]) -> Result<Place> {
        let mut dir = rustix::io::dup(self.root)?;
        let mut walked: Vec<u8> = Vec::new();
        let (mut here, mut hidden) = (true, false);
        for part in parts(path) {
            // What is hidden on the way is hidden whole, but for what the branch itself holds.
            hidden |= self.hidden.hides(&walked, part);
            walked = joined(&walked, part);
            if !here {
                continue;
            }
            match kind_of(&dir, part)? {
                Some(Kind::Dir) => dir = open_beneath(&dir, part, DIRECTORY)?,
                Some(_) => return Ok(Place::Nowhere),
                None => here = false,
            }
        }
        Ok(match (here, hidden) {
            (true, _) => Place::Here(dir),
            (false, true) => Place::Nowhere,
            (false, false) => Place::Below,
        })
    }

    /// Makes the missing directories of `path`. `None` = no lower branch has it.
    fn make_dirs(
        &self,
        path: &[u8],
        tmp: &OwnedFd,
        times: &mut Vec<(OwnedFd, RealStat)>,
    ) -> Result<Option<OwnedFd>> {
        if self.seen_below(path)?.is_none() {
            return Ok(None);
        }
        let mut dir = rustix::io::dup(self.root)?;
        let mut walked: Vec<u8> = Vec::new();
        for part in parts(path) {
            walked = joined(&walked, part);
            if kind_of(&dir, part)?.is_none() {
                let Some(lower) = self.seen_below(&walked)? else {
                    return Ok(None);
                };
                times.push((rustix::io::dup(&dir)?, stat_fd(&dir)?));
                copy_dir(lower, tmp, &dir, part)?;
            }
            dir = open_beneath(&dir, part, DIRECTORY)?;
        }
        Ok(Some(dir))
    }

    /// The directory at `path` as the lower branches show it.
    fn seen_below(&self, path: &[u8]) -> Result<Option<OwnedFd>> {
        for lower in self.lowers {
            match open_beneath(lower, path, DIRECTORY) {
                Ok(dir) => return Ok(Some(dir)),
                Err(Errno::NOENT) => {}
                // Something else is in the way on this branch, and hides it on those below.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }
}

fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty())
}

fn kind_of(dir: &OwnedFd, name: &[u8]) -> Result<Option<Kind>> {
    match stat_at(dir, name) {
        Ok(stat) => Ok(Some(stat.kind())),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
        Err(err) => Err(err),
    }
}

/// What is below `name` is hidden: by a whiteout, or (a directory has taken its place) by a mark in
/// that; another entry hides it by itself.
fn hide(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    match kind_of(dir, name)? {
        // A name with a tag is longer than one with a prefix, so it always fits.
        None => create_mark(dir, &whiteout_name(name).ok_or(Errno::NAMETOOLONG)?),
        Some(Kind::Dir) => {
            let entry = open_beneath(dir, name, DIRECTORY)?;
            let before = stat_fd(&entry)?;
            create_mark(&entry, OPAQUE)?;
            fsync(&entry)?;
            set_times(entry, &before)
        }
        Some(_) => Ok(()),
    }
}

/// Makes `name` in `to` a directory like `from`, at once.
fn copy_dir(from: OwnedFd, tmp: &OwnedFd, to: &OwnedFd, name: &[u8]) -> Result<()> {
    let stat = stat_fd(&from)?;
    if existing(tmp.as_fd(), HALF_MADE)?.is_some() {
        unlinkat(tmp, HALF_MADE, AtFlags::REMOVEDIR)?;
    }
    let private = Mode::from_bits_truncate(0o700);
    creds::with_exact_modes(|| mkdirat(tmp, HALF_MADE, private))?;
    let made = open_beneath(tmp, HALF_MADE, DIRECTORY)?;
    let (source, target) = (
        xattr::Target::dir(from.as_fd()),
        xattr::Target::dir(made.as_fd()),
    );
    let loc = Loc::dir(Arc::new(rustix::io::dup(&made)?));
    loc.chown(Some(stat.uid), Some(stat.gid))?;
    for attribute in xattr::names(&source.list().unwrap_or_default()) {
        match target.set(attribute, &source.get(attribute)?, 0) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(err) => return Err(err),
        }
    }
    loc.chmod(stat.mode & 0o7777)?;
    set_times(made, &stat)?;
    renameat(tmp, HALF_MADE, to, name)?;
    fsync(to)
}

fn set_times(dir: OwnedFd, stat: &RealStat) -> Result<()> {
    Loc::dir(Arc::new(dir)).set_times(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
}
