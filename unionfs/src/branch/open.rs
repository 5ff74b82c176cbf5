//! Opening the branches of a mount: checks, private clones, locks, and errors that people can act on.

use super::Branch;
use super::hidden::Hidden;
use super::lacks::Lacks;
use super::log::Recovered;
use super::offline;
use super::owners::Owners;
use super::store::Store;
use crate::errno::Errno;
use crate::setup::SetupError;
use crate::shown::ShowPath;
use crate::spec::{BranchPerm, BranchSpec, Format, FormatWord, Grammar};
use crate::sys::clone_tree::private_clone;
use crate::sys::loc::open_beneath;
use crate::sys::loc::open_listing;
use crate::sys::stat::stat_fd;
use crate::sys::xattr;
use crate::types::BranchId;
use crate::whiteout::{CONVERTING, STORE_DIR};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `statfs` magic numbers of filesystems that hold no files to merge (linux/magic.h).
const REFUSED: &[(u64, &str)] = &[
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6264_6576, "devfs"),
    (0x6264_6562, "debugfs"),
    (0x7363_6673, "securityfs"),
    (0x6270_6673, "bpf"),
    (0x2712_00c0, "cgroup"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
];

fn io_error(path: &Path, err: &std::io::Error) -> SetupError {
    SetupError::path(
        path,
        Errno::from_io_error(err).unwrap_or(Errno::IO),
        "cannot open the branch",
    )
}

fn open_path(path: &Path, role: &str) -> Result<OwnedFd, SetupError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let what = match errno {
            Errno::NOENT => format!("no such {role}: create it or correct the path"),
            Errno::NOTDIR => format!("a {role} must be a directory"),
            Errno::ACCESS => {
                format!("cannot open the {role}: every directory above it must be searchable")
            }
            _ => format!("cannot open the {role}"),
        };
        SetupError::path(path, errno, what)
    })
}

/// A branch that was opened and checked but not yet locked.
struct Candidate {
    spec: BranchSpec,
    real_path: PathBuf,
    fd: OwnedFd,
    dev: u64,
    ino: u64,
}

fn candidate(spec: &BranchSpec) -> Result<Candidate, SetupError> {
    let fd = open_path(&spec.path, "branch")?;
    let real_path = std::fs::canonicalize(&spec.path).map_err(|e| {
        SetupError::path(
            &spec.path,
            Errno::from_io_error(&e).unwrap_or(Errno::IO),
            "cannot resolve the path",
        )
    })?;
    checked(spec, fd, real_path)
}

/// A directory that somebody else has opened. Its path is the one by which this process sees it;
/// where it does not see it, the one that was told.
fn handed_over(spec: &BranchSpec, fd: OwnedFd) -> Result<Candidate, SetupError> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let real_path = std::fs::read_link(link)
        .ok()
        .filter(|path| path.is_absolute() && same_directory(path, &fd))
        .unwrap_or_else(|| spec.path.clone());
    checked(spec, fd, real_path)
}

fn same_directory(path: &Path, fd: &OwnedFd) -> bool {
    let there = open_path(path, "branch").ok().map(stat_fd);
    matches!((there, stat_fd(fd)), (Some(Ok(a)), Ok(b)) if (a.dev, a.ino) == (b.dev, b.ino))
}

fn checked(spec: &BranchSpec, fd: OwnedFd, real_path: PathBuf) -> Result<Candidate, SetupError> {
    let stat =
        stat_fd(&fd).map_err(|e| SetupError::path(&spec.path, e, "cannot stat the branch"))?;
    if let Ok(fs) = rustix::fs::fstatfs(&fd)
        && let Some((_, name)) = REFUSED.iter().find(|(magic, _)| *magic == fs.f_type as u64)
    {
        let what = format!("{name} cannot be a branch: use a directory of a disk filesystem");
        return Err(SetupError::path(&spec.path, Errno::INVAL, what));
    }
    // A branch nobody can list would look empty, not unreadable.
    open_listing(&fd).map_err(|e| {
        SetupError::path(
            &spec.path,
            e,
            "cannot read the branch: give the mounting user read permission",
        )
    })?;
    Ok(Candidate {
        spec: spec.clone(),
        real_path,
        fd,
        dev: stat.dev,
        ino: stat.ino,
    })
}

/// What decides whether two branches can be members of one union.
struct Extent<'a> {
    path: &'a Path,
    directory: (u64, u64),
    writable: bool,
}

impl Candidate {
    fn extent(&self) -> Extent<'_> {
        Extent {
            path: &self.real_path,
            directory: (self.dev, self.ino),
            writable: self.spec.perm.writable(),
        }
    }
}

impl Branch {
    fn extent(&self) -> Extent<'_> {
        Extent {
            path: &self.path,
            directory: (self.dev, self.root_ino),
            writable: self.perm.writable(),
        }
    }
}

/// Refuses the same directory twice, and overlaps in which the ancestor is writable: what is
/// written to it would change the other branch behind the union's back.
fn check_pair(a: &Extent<'_>, b: &Extent<'_>) -> Result<(), SetupError> {
    if a.directory == b.directory {
        let what = format!(
            "the same directory is a branch twice (also as {}): name it once",
            a.path.shown()
        );
        return Err(SetupError::path(b.path, Errno::EXIST, what));
    }
    for (outer, inner) in [(a, b), (b, a)] {
        if outer.writable && inner.path.starts_with(outer.path) {
            let what = format!(
                "lies inside the writable branch {}: make that one readonly or move this one out",
                outer.path.shown()
            );
            return Err(SetupError::path(inner.path, Errno::INVAL, what));
        }
    }
    Ok(())
}

fn check_overlaps(all: &[Candidate]) -> Result<(), SetupError> {
    for (i, a) in all.iter().enumerate() {
        for b in &all[i + 1..] {
            check_pair(&a.extent(), &b.extent())?;
        }
        if let Some(work) = &a.spec.workdir {
            check_work(work, all)?;
        }
    }
    Ok(())
}

/// Refuses a work directory that is a branch or has one below it: both are written to. (One below a
/// readonly branch is as good as a writable branch there.)
fn check_work(work: &Path, all: &[Candidate]) -> Result<(), SetupError> {
    // A path that cannot be resolved cannot be opened either, and is refused then.
    let real = std::fs::canonicalize(work).unwrap_or_else(|_| work.to_path_buf());
    let Some(branch) = all.iter().find(|c| c.real_path.starts_with(&real)) else {
        return Ok(());
    };
    let what = format!(
        "workdir is written to, and {} is a branch: give a directory of its own",
        branch.spec.path.shown()
    );
    Err(SetupError::path(work, Errno::INVAL, what))
}

/// Opens a branch for a union that has these others, on the directory `fd` that the caller has
/// opened.
///
/// # Errors
/// As [`open_all`].
pub fn open_beside<'a>(
    spec: &BranchSpec,
    fd: OwnedFd,
    id: BranchId,
    others: impl Iterator<Item = &'a Arc<Branch>>,
    grammar: Grammar,
) -> Result<(Arc<Branch>, Recovered), SetupError> {
    let new = handed_over(spec, fd)?;
    for other in others {
        check_pair(&other.extent(), &new.extent())?;
    }
    open_one(new, id, grammar)
}

/// Opens a branch of a union anew, with another permission: `fd` is its directory. The bookkeeping
/// goes over, where both may be written.
///
/// # Errors
/// As [`open_all`].
pub fn open_again<'a>(
    old: &Branch,
    perm: BranchPerm,
    fd: OwnedFd,
    others: impl Iterator<Item = &'a Arc<Branch>>,
) -> Result<Arc<Branch>, SetupError> {
    if let Some(FormatWord::Fixed(format)) = perm.format
        && format != old.format
    {
        let what = "is in another format: take the branch out, convert it and add it again";
        return Err(SetupError::path(&old.path, Errno::INVAL, what));
    }
    let perm = BranchPerm {
        format: perm.format.and(Some(FormatWord::Fixed(old.format))),
        data_only: old.perm.data_only,
        ..perm
    };
    if perm.writable() == old.perm.writable() {
        return Ok(Arc::new(Branch {
            id: old.id,
            path: old.path.clone(),
            perm,
            format: old.format,
            root: old.root.clone(),
            dev: old.dev,
            fs: old.fs,
            mnt_id: old.mnt_id,
            root_ino: old.root_ino,
            is_clone: old.is_clone,
            hidden: old.hidden.clone(),
            owners: old.owners,
            store: old.store.clone(),
        }));
    }
    let spec = BranchSpec {
        path: old.path.clone(),
        perm,
        format: Some(old.format),
        workdir: None,
    };
    let mut new = handed_over(&spec, fd)?;
    new.real_path.clone_from(&old.path);
    for other in others {
        check_pair(&other.extent(), &new.extent())?;
    }
    open_one(new, old.id, Grammar::Aufs).map(|(branch, _)| branch)
}

/// Opens all branches, topmost first.
///
/// Returns them with what their logs told. Nothing is mounted; on error everything is closed again
/// and nothing but (empty) bookkeeping directories may have been created.
pub fn open_all(
    specs: &[BranchSpec],
    grammar: Grammar,
) -> Result<Vec<(Arc<Branch>, Recovered)>, SetupError> {
    let candidates: Vec<Candidate> = specs.iter().map(candidate).collect::<Result<_, _>>()?;
    check_overlaps(&candidates)?;
    candidates
        .into_iter()
        .enumerate()
        .map(|(position, c)| open_one(c, BranchId(position as u16), grammar))
        .collect()
}

fn open_one(
    c: Candidate,
    id: BranchId,
    grammar: Grammar,
) -> Result<(Arc<Branch>, Recovered), SetupError> {
    let default = if grammar == Grammar::Overlay {
        Format::Overlay
    } else {
        Format::Aufs
    };
    refuse_half_converted(&c)?;
    let writable = c.spec.perm.writable();
    let default = c.spec.format.unwrap_or(default);
    let mut perm = c.spec.perm;
    let format = match perm.format {
        None => default,
        Some(FormatWord::Fixed(format)) => format,
        Some(FormatWord::Auto) => format_as_found(&c)?.unwrap_or(default),
    };
    // What was found is what a listing tells.
    perm.format = perm.format.and(Some(FormatWord::Fixed(format)));
    // A rename cannot cross from one mount to another, not even to a clone: a branch whose work
    // directory lies elsewhere is used through the mount that both are on.
    let (root, is_clone) = match &c.spec.workdir {
        None => match private_clone(&c.fd, !writable) {
            Ok(tree) => (tree, true),
            Err(_) => (
                c.fd.try_clone().map_err(|e| io_error(&c.spec.path, &e))?,
                false,
            ),
        },
        Some(_) => (
            c.fd.try_clone().map_err(|e| io_error(&c.spec.path, &e))?,
            false,
        ),
    };
    let mut recovered = Recovered::default();
    let mut store = None;
    if writable {
        let work = match &c.spec.workdir {
            Some(path) => Some(open_work(path, &c)?),
            None => None,
        };
        let opened = Store::open(root.as_fd(), work.as_ref().map(|w| w.as_fd()), format);
        let (s, r) = opened.map_err(|errno| store_error(&c, errno))?;
        if s.lacks() != Lacks::default() {
            let path = c.spec.path.shown();
            log::warn!("{path}: its filesystem lacks {}", s.lacks());
        }
        (store, recovered) = (Some(Arc::new(s)), r);
    }
    let stat =
        stat_fd(&root).map_err(|e| SetupError::path(&c.spec.path, e, "cannot stat the branch"))?;
    let fs = rustix::fs::fstatvfs(&root).map_or(0, |s| s.f_fsid);
    let hidden = deletions(&c, &root)?;
    let owners = match format {
        Format::Overlay => Owners::on_root(&xattr::Target::dir(root.as_fd())),
        Format::Aufs => None,
    };
    let branch = Branch {
        id,
        path: c.real_path,
        perm,
        format,
        root: Arc::new(root),
        dev: stat.dev,
        fs,
        mnt_id: stat.mnt_id,
        root_ino: stat.ino,
        is_clone,
        hidden,
        owners,
        store,
    };
    Ok((Arc::new(branch), recovered))
}

/// The format that the bookkeeping of a branch records; of a readonly branch, else that of its marks.
fn format_as_found(c: &Candidate) -> Result<Option<Format>, SetupError> {
    let path = &c.spec.path;
    let root =
        open_listing(&c.fd).map_err(|e| SetupError::path(path, e, "cannot read the branch"))?;
    let work = match &c.spec.workdir {
        Some(path) => Some(open_work(path, c)?),
        None => None,
    };
    if let Some(format) = offline::recorded_in(path, &root, work.as_ref())? {
        return Ok(Some(format));
    }
    if c.spec.perm.writable() {
        return Ok(None);
    }
    super::detect::in_tree(&root)
        .map_err(|errno| SetupError::path(path, errno, "cannot read the branch"))
}

/// What unionfs-fuse deleted: it is known by its own directory, and only read.
fn deletions(c: &Candidate, root: &OwnedFd) -> Result<Option<Arc<Hidden>>, SetupError> {
    if c.spec.perm.writable() || !c.spec.perm.whiteouts {
        return Ok(None);
    }
    let read = Hidden::read(root).map_err(|errno| {
        SetupError::path(&c.spec.path, errno, "cannot read what unionfs-fuse deleted")
    })?;
    let hidden = read.filter(|hidden| hidden.dirs().next().is_some());
    if hidden.is_some() {
        log::info!("{}: written by unionfs-fuse", c.spec.path.shown());
    }
    Ok(hidden.map(Arc::new))
}

/// A branch of which some names are in one format and some in another.
fn refuse_half_converted(c: &Candidate) -> Result<(), SetupError> {
    let marker = [STORE_DIR, b"/", CONVERTING].concat();
    match open_beneath(&c.fd, &marker, OFlags::PATH | OFlags::CLOEXEC) {
        Ok(_) => {
            let what = "is being converted to another format: let `uaufs convert` finish";
            Err(SetupError::path(&c.spec.path, Errno::BUSY, what))
        }
        // None there; or (plain users) somebody else's.
        Err(_) => Ok(()),
    }
}

fn open_work(path: &Path, branch: &Candidate) -> Result<OwnedFd, SetupError> {
    let fd = open_path(path, "workdir")?;
    let stat = stat_fd(&fd).map_err(|e| SetupError::path(path, e, "cannot stat the workdir"))?;
    if stat.dev != branch.dev {
        let what = format!(
            "workdir must be on the same filesystem as upperdir {}",
            branch.spec.path.shown()
        );
        return Err(SetupError::path(path, Errno::XDEV, what));
    }
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if real.starts_with(&branch.real_path) {
        let what = format!(
            "workdir must not lie inside upperdir {}",
            branch.spec.path.shown()
        );
        return Err(SetupError::path(path, Errno::INVAL, what));
    }
    Ok(fd)
}

fn store_error(c: &Candidate, errno: Errno) -> SetupError {
    let what = match errno {
        Errno::AGAIN => {
            "another union already writes to this branch: unmount it first, or use the branch readonly"
        }
        Errno::ROFS => {
            "is on a readonly filesystem: give the branch =ro, or remount the filesystem"
        }
        Errno::ACCESS | Errno::PERM => {
            "cannot be written: give the branch =ro, or change its owner or mode"
        }
        Errno::NOSPC => "no space left for the branch's bookkeeping",
        _ => "cannot prepare the writable branch",
    };
    SetupError::path(&c.spec.path, errno, what)
}
