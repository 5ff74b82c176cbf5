//! Merging two branches, whether a mount uses them or not: the same for every caller.
//!
//! Branches that no daemon writes to are opened as a union of this process, together with the
//! branches that lay between and below them in their last mount. Else the daemon of their mount is
//! asked.

use crate::branch::books::last_stack;
use crate::branch::offline::{format_at, is_locked};
use crate::control::ask::ask_at;
use crate::control::moving::{StepLine, Total, merge_failure};
use crate::control::protocol::MergeHow;
use crate::control::{Client, Failure, Listed, Query, Request};
use crate::errno::Errno;
use crate::setup::SetupError;
use crate::shown::ShowPath;
use crate::spec::{BranchPerm, BranchSpec, Format, Grammar, MountFlags, MountSpec, Options, Udba};
use crate::sys::procs;
use crate::types::BranchId;
use crate::union::Union;
use crate::union::merge::{MergeOptions, Step};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What lies below the lower branch, where no mount tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Below {
    /// What lay there in the last mount.
    #[default]
    AsMounted,
    /// These, topmost first.
    Branches(Vec<PathBuf>),
}

/// A merge that is asked for.
#[derive(Clone, Debug)]
pub struct Job {
    /// The branch to be emptied.
    pub from: PathBuf,
    /// The branch that receives.
    pub to: PathBuf,
    /// How.
    pub how: MergeHow,
    /// Where nothing is mounted.
    pub below: Below,
}

/// Merges. `tell` hears of every entry.
///
/// # Errors
/// Why it could not be begun, or ended early. What was moved stays moved, and the view the same.
pub fn merge(job: &Job, tell: &mut dyn FnMut(&StepLine)) -> Result<Total, Failure> {
    let from = absolute(&job.from)?;
    let to = absolute(&job.to)?;
    if from == to {
        let path = from.shown().to_string();
        let why = "the branch is named twice: name the one to empty, then the one to receive";
        return Err(Failure::because(Errno::INVAL, path, why));
    }
    // As AUFS branches is how they are opened: other marks would be taken for nothing.
    for branch in [&from, &to] {
        if format_at(branch)? != Format::Aufs {
            return Err(merge_failure(Errno::INVAL));
        }
    }
    // Opening waits a while for a daemon that ends: one that has both branches is asked at once.
    if (is_locked(&from)? || is_locked(&to)?)
        && let Some(mountpoint) = mount_with(&[&from, &to])
    {
        return merge_live(job, (&from, &to), &mountpoint, tell);
    }
    match open_union(job, &from, &to) {
        Ok(union) => merge_here(&union, job, tell),
        Err(SetupError::Path {
            errno: Errno::AGAIN,
            ..
        }) => match mount_with(&[&from, &to]) {
            Some(mountpoint) => merge_live(job, (&from, &to), &mountpoint, tell),
            None => Err(out_of_reach(&from)),
        },
        Err(error) => Err(error.into()),
    }
}

fn out_of_reach(from: &Path) -> Failure {
    let from = from.shown().to_string();
    Failure::because(
        Errno::AGAIN,
        format_args!("{from}: in use"),
        "no mount that can be reached has both branches: unmount it, or run this where it is mounted",
    )
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(path).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let path = path.shown().to_string();
        Failure::because(errno, path, "name an existing branch")
    })
}

/// Both branches writable, what lies between and below them readonly.
fn open_union(job: &Job, from: &Path, to: &Path) -> Result<Union, SetupError> {
    let spec = |path: &Path, perm| BranchSpec {
        path: path.to_path_buf(),
        perm,
        format: Some(Format::Aufs),
        workdir: None,
    };
    let mut branches = vec![spec(from, BranchPerm::RW)];
    match &job.below {
        Below::Branches(lowers) => {
            branches.push(spec(to, BranchPerm::RW));
            branches.extend(lowers.iter().map(|path| spec(path, BranchPerm::RO_WH)));
        }
        Below::AsMounted => {
            let stack = stack_of(from, to)?;
            let at = |branch: &Path| stack.iter().position(|(path, _)| path == branch);
            let (between, below) = match (at(from), at(to)) {
                (Some(upper), Some(lower)) if upper < lower => {
                    (&stack[upper + 1..lower], &stack[lower + 1..])
                }
                (Some(_), Some(_)) => return Err(wrong_order(from, to)),
                (None, Some(lower)) => (&[][..], &stack[lower + 1..]),
                _ => (&[][..], &[][..]),
            };
            let readonly = |(path, perm): &(PathBuf, String)| {
                let marks = perm.starts_with("rw") || perm.split('+').any(|word| word == "wh");
                let perm = if marks {
                    BranchPerm::RO_WH
                } else {
                    BranchPerm::RO
                };
                spec(path, perm)
            };
            branches.extend(between.iter().map(readonly));
            branches.push(spec(to, BranchPerm::RW));
            branches.extend(below.iter().map(readonly));
        }
    }
    let options = Options {
        udba: Udba::None,
        name_max: 255,
        dirperm1: true,
        dir_rename: true,
        ..Options::defaults(Grammar::Aufs)
    };
    Union::open(&MountSpec {
        grammar: Grammar::Aufs,
        branches,
        options,
        mount: MountFlags::default(),
        warnings: Vec::new(),
    })
}

/// The branches of the last mount that had both; else of the last one that had the lower.
fn stack_of(from: &Path, to: &Path) -> Result<Vec<(PathBuf, String)>, SetupError> {
    let read = |branch: &Path| {
        last_stack(branch).map_err(|errno| SetupError::Path {
            path: branch.to_path_buf(),
            what: "cannot read what it was last mounted with".to_owned(),
            errno,
        })
    };
    let has_both =
        |stack: &[(PathBuf, String)]| [from, to].iter().all(|b| stack.iter().any(|(p, _)| p == b));
    if let Some(stack) = read(from)?.filter(|stack| has_both(stack)) {
        return Ok(stack);
    }
    Ok(read(to)?.unwrap_or_default())
}

fn wrong_order(from: &Path, to: &Path) -> SetupError {
    SetupError::Path {
        path: from.to_path_buf(),
        what: format!("lies below {}: content is moved downwards only", to.shown()),
        errno: Errno::INVAL,
    }
}

fn merge_here(union: &Union, job: &Job, tell: &mut dyn FnMut(&StepLine)) -> Result<Total, Failure> {
    let stack = union.stack();
    let writable: Vec<BranchId> = stack
        .branches()
        .iter()
        .filter(|b| b.writable())
        .map(|b| b.id)
        .collect();
    let [from, to] = writable[..] else {
        return Err(merge_failure(Errno::INVAL));
    };
    let options = MergeOptions {
        keep_whiteouts: job.how.keep_whiteouts,
        copy: job.how.copy,
        dry_run: job.how.dry_run,
    };
    let merged = union.merge(from, to, options, &mut |step: &Step<'_>| {
        tell(&StepLine::of(step));
        ControlFlow::Continue(())
    });
    union.shutdown();
    merged.map(Total::from).map_err(merge_failure)
}

fn merge_live(
    job: &Job,
    (from, to): (&Path, &Path),
    mountpoint: &Path,
    tell: &mut dyn FnMut(&StepLine),
) -> Result<Total, Failure> {
    let open = |path: &Path| -> Result<OwnedFd, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty()).map_err(|errno| Failure::new(errno, path.shown()))
    };
    let (upper, lower) = (open(from)?, open(to)?);
    let client = Client::connect(mountpoint)?;
    let result = client.request(
        &Request::Merge(job.how),
        &[upper.as_fd(), lower.as_fd()],
        &mut |text| {
            if let Ok(line) = serde_json::from_str(text) {
                tell(&line);
            }
        },
    )?;
    serde_json::from_value(result)
        .map_err(|_| Failure::new(Errno::BADMSG, "the mount's daemon is of another version"))
}

/// The mount point of a union that has all of these branches (absolute paths), among those that show
/// here and whose daemon can be asked.
pub fn mount_with(wanted: &[&Path]) -> Option<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    for line in table.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let kind = fields.iter().position(|f| *f == b"-");
        let is_fuse = kind
            .and_then(|at| fields.get(at + 1))
            .is_some_and(|kind| kind.starts_with(b"fuse."));
        let (true, Some(raw)) = (is_fuse, fields.get(4)) else {
            continue;
        };
        let mountpoint = PathBuf::from(std::ffi::OsString::from_vec(procs::unescape(raw)));
        let Ok(branches) = ask_at::<Vec<Listed>>(&mountpoint, &Query::List) else {
            continue;
        };
        if wanted
            .iter()
            .all(|path| branches.iter().any(|b| b.path.path() == *path))
        {
            return Some(mountpoint);
        }
    }
    None
}
