//! Bringing a branch that no union uses from one on-disk format to the other, in place.
//!
//! What cannot be said in the other format is found before anything is changed. Then a marker in the
//! bookkeeping (`.wh..wh.uaufs/convert`) says what is going on: mounts refuse the branch, and running
//! the conversion again finishes it. Each name is converted so that every prefix of the steps means
//! the same to a reader who knows both formats.

mod books;
mod from_hidden;
mod survey;
mod to_aufs;
mod to_overlay;

pub use survey::{Obstacle, Why};

use crate::branch::dirren;
use crate::branch::dirren::Recorded;
use crate::branch::hidden::Hidden;
use crate::branch::marks::make_null_device;
use crate::branch::offline::{Offline, open_dir};
use crate::branch::overlay::{Attributes, Redirect};
use crate::errno::{Errno, Result};
use crate::setup::SetupError;
use crate::spec::Format;
use crate::sys::stat::{RealStat, stat_at, stat_fd};
use crate::sys::walk::{Children, Here, Step, entries, joined, tree};
use crate::sys::{Loc, Name, xattr};
use crate::types::{Kind, SetTime};
use from_hidden::FromHidden;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, unlinkat};
use std::path::PathBuf;
use std::sync::Arc;

/// What is to be converted, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The branch.
    pub branch: PathBuf,
    /// What it is to be.
    pub to: Format,
    /// What it is; `None` = as recorded, else by its marks.
    pub from: Option<Format>,
    /// Work directory of the overlay format: where its bookkeeping is, or is to go.
    pub workdir: Option<PathBuf>,
    /// Attributes that plain users may write (`userxattr`), not root's.
    pub user_attributes: bool,
    /// The branches below, topmost first: for directories in which unionfs-fuse hides something, and
    /// that only they have.
    pub lowers: Vec<PathBuf>,
    /// Only tell what would be done.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Changes {
    /// Whiteouts.
    pub whiteouts: u64,
    /// Opaque directories.
    pub opaque: u64,
    /// Renamed directories.
    pub redirects: u64,
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// It is in the other format now (in a dry run: could be).
    Converted(Changes),
    /// Nothing was changed: these cannot be said in the other format.
    Impossible(Vec<Obstacle>),
}

/// A branch that is being converted, as both formats see it.
struct Job {
    root: OwnedFd,
    aufs: Offline,
    overlay: Offline,
    user_attributes: bool,
    /// Of the AUFS format.
    redirects: Vec<Recorded>,
    changes: Changes,
}

/// Converts a branch.
///
/// # Errors
/// A branch that is in use, or whose conversion in the other direction was interrupted; those of
/// reading and writing: then it is as it was, or running again finishes it.
pub fn run(request: &Request) -> std::result::Result<End, SetupError> {
    let path = &request.branch;
    let failed = |errno| SetupError::path(path, errno, "cannot convert the branch");
    let aufs = Offline::open(path, None, Some(Format::Aufs))?;
    // Looked at only where unionfs-fuse hid something, but a slip of the finger is one in any case.
    for lower in &request.lowers {
        open_dir(lower, "branch")?;
    }
    let work = request.workdir.as_deref();
    let overlay = Offline::open(path, work, Some(Format::Overlay))?;
    let root = rustix::io::dup(&aufs.root).map_err(failed)?;
    let finished = books::remove_finished(&root, request.dry_run).map_err(failed)?;
    if finished && request.to == Format::Overlay {
        return Ok(End::Converted(Changes::default()));
    }
    let begun = books::begun(&aufs).map_err(failed)?;
    if request.from.is_none()
        && begun != Some(Format::Overlay)
        && let Some(hidden) = Hidden::read(&root).map_err(failed)?
    {
        drop(overlay);
        return run_from_hidden(request, aufs, &root, hidden, begun.is_some());
    }
    if begun.is_some_and(|to| to != request.to) {
        let what = "is half converted to the other format: finish that first";
        return Err(SetupError::path(path, Errno::BUSY, what));
    }
    let from = match request.from {
        Some(from) => Some(from),
        None if begun.is_some() => Some(other(request.to)),
        None => books::recorded(&aufs, &overlay, &root).map_err(failed)?,
    };
    if from.is_none_or(|from| from == request.to) {
        return Ok(End::Converted(Changes::default()));
    }
    let redirects = match aufs.books() {
        Some(books) => dirren::all(books).map_err(failed)?,
        None => Vec::new(),
    };
    let mut job = Job {
        root,
        aufs,
        overlay,
        user_attributes: request.user_attributes,
        redirects,
        changes: Changes::default(),
    };
    if begun.is_none() {
        let obstacles = job.survey(request.to).map_err(failed)?;
        if !obstacles.is_empty() {
            return Ok(End::Impossible(obstacles));
        }
    }
    if request.dry_run {
        return Ok(End::Converted(job.changes));
    }
    if begun.is_none() && request.to == Format::Overlay {
        job.check_marks().map_err(|errno| {
            let what = "its filesystem cannot have overlayfs's marks, which are device nodes and \
                        extended attributes: nothing was changed";
            SetupError::path(path, errno, what)
        })?;
    }
    job.changes = Changes::default();
    job.convert(request.to).map_err(failed)?;
    Ok(End::Converted(job.changes))
}

/// A branch of unionfs-fuse becomes one of AUFS, and then what is asked for.
fn run_from_hidden(
    request: &Request,
    mut aufs: Offline,
    root: &OwnedFd,
    hidden: Hidden,
    resumed: bool,
) -> std::result::Result<End, SetupError> {
    let failed = |errno| SetupError::path(&request.branch, errno, "cannot convert the branch");
    let opened: std::result::Result<Vec<_>, SetupError> = request
        .lowers
        .iter()
        .map(|path| Offline::open(path, None, None).map(|lower| lower.root))
        .collect();
    let from = FromHidden {
        root,
        lowers: &opened?,
        hidden,
    };
    let mut changes = Changes::default();
    let mut obstacles = from.survey(&mut changes).map_err(failed)?;
    if request.to == Format::Overlay && !resumed {
        // Found before anything is changed, as always.
        let dry_run = Request {
            from: Some(Format::Aufs),
            dry_run: true,
            ..request.clone()
        };
        if let End::Impossible(more) = run(&dry_run)? {
            obstacles.extend(more);
        }
    }
    if !obstacles.is_empty() {
        return Ok(End::Impossible(obstacles));
    }
    if request.dry_run {
        return Ok(End::Converted(changes));
    }
    changes = Changes::default();
    books::begin(&mut aufs, Format::Aufs).map_err(failed)?;
    from.convert(&mut aufs, &mut changes).map_err(failed)?;
    books::finish_aufs(&aufs).map_err(failed)?;
    drop(aufs);
    run(request).map(|end| match end {
        End::Converted(_) => End::Converted(changes),
        impossible => impossible,
    })
}

fn other(format: Format) -> Format {
    match format {
        Format::Aufs => Format::Overlay,
        Format::Overlay => Format::Aufs,
    }
}

impl Job {
    /// Can the filesystem have the marks that were counted? A conversion that finds out half-way could
    /// neither go on nor back.
    fn check_marks(&mut self) -> Result<()> {
        // What is left in this directory is removed, whatever comes next.
        let tmp = self.aufs.books_dir(b"tmp")?;
        if self.changes.whiteouts > 0 {
            make_null_device(&tmp, b"probe")?;
            unlinkat(&tmp, c"probe", AtFlags::empty())?;
        }
        if self.changes.opaque + self.changes.redirects > 0 && !xattr::supports_user_xattrs(&tmp) {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    fn convert(&mut self, to: Format) -> Result<()> {
        books::begin(&mut self.aufs, to)?;
        let root = rustix::io::dup(&self.root)?;
        tree(&root, Vec::new(), |step, lower: Vec<u8>| match step {
            Step::Dir(here) => self.convert_dir(&here, lower, to),
            Step::Closed(_, errno) => Err(errno),
        })?;
        match to {
            Format::Overlay => books::leave_aufs(&mut self.aufs, &mut self.overlay),
            Format::Aufs => books::leave_overlay(&mut self.aufs, &self.overlay),
        }
    }

    /// Converts what is in a directory and its own marks. `lower`: where the branches below keep its
    /// other parts, if it has no redirect.
    fn convert_dir(
        &mut self,
        here: &Here<'_>,
        lower: Vec<u8>,
        to: Format,
    ) -> Result<Children<Vec<u8>>> {
        let before = stat_fd(here.dir)?;
        let redirect = self.redirect(here, &before, &lower)?;
        // Only marks come and go meanwhile, no directories.
        let names = entries(here.dir)?;
        match to {
            Format::Overlay => self.dir_to_overlay(here, &names, redirect.as_deref())?,
            Format::Aufs => self.dir_to_aufs(here, &names, &before, redirect.as_deref())?,
        }
        // Marks are no change that users made.
        Loc::dir(Arc::new(rustix::io::dup(here.dir)?)).set_times(
            Some(SetTime::At(before.atime)),
            Some(SetTime::At(before.mtime)),
        )?;
        let lower = redirect.unwrap_or(lower);
        let dirs = dirs_of(names);
        Ok(dirs
            .map(|name| (name.clone(), joined(&lower, &name)))
            .collect())
    }

    /// Where the lower parts of a directory are, if it was renamed: from the branch roots.
    fn redirect(&self, here: &Here<'_>, stat: &RealStat, lower: &[u8]) -> Result<Option<Vec<u8>>> {
        let target = xattr::Target::dir(here.dir.as_fd());
        if Attributes::of(&target)?.contains(Attributes::REDIRECT)
            && let Some(redirect) = Redirect::of(&target)?
        {
            let parent = lower.iter().rposition(|b| *b == b'/').unwrap_or(0);
            return Ok(Some(redirect.path_in(&lower[..parent])));
        }
        let own = |r: &&Recorded| (r.0, r.1) == (stat.ino, stat.btime);
        Ok(self.redirects.iter().find(own).map(|r| r.2.clone()))
    }
}

/// The directories to enter.
fn dirs_of(names: Vec<(Name, Kind)>) -> impl Iterator<Item = Name> {
    let dirs = names
        .into_iter()
        .filter(|(name, kind)| *kind == Kind::Dir && !crate::whiteout::is_reserved(name));
    dirs.map(|(name, _)| name)
}

/// The attributes of an entry.
fn attributes_at(here: &Here<'_>, name: &Name) -> Result<Attributes> {
    let name = std::ffi::CString::new(&**name).map_err(|_| Errno::INVAL)?;
    Attributes::of(&xattr::Target::at(here.dir.as_fd(), &name))
}

fn is_null_device(here: &Here<'_>, name: &[u8], kind: Kind) -> Result<bool> {
    Ok(kind == Kind::Char && stat_at(here.dir, name)?.is_null_device())
}
