//! Moving content between the branches of a mount: requests, and how they are told.

use super::protocol::{Failure, MergeHow, MoveWhich, Outcome};
use crate::errno::{Errno, errno_name};
use crate::ostext::OsText;
use crate::sys::stat::stat_fd;
use crate::types::{BranchId, NodeId};
use crate::union::Union;
use crate::union::merge::{self, Item, MergeOptions, Merged, MoveDown, Reason, Step};
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One entry of a merge, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepLine {
    /// From the root of the union.
    pub path: OsText,
    /// `file`, `directory`, ..., `whiteout`, `opaque mark`.
    pub kind: String,
    /// `moved`, `left` or `failed`.
    pub done: String,
    /// Why it was left, or the errno's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The reason in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Bytes of a file that was moved.
    #[serde(default)]
    pub bytes: u64,
}

/// What a merge came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// Entries below now.
    pub moved: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// Entries that had to stay.
    pub left: u64,
    /// Entries that failed.
    pub failed: u64,
    /// It was stopped before its end.
    pub stopped: bool,
}

impl From<Merged> for Total {
    fn from(merged: Merged) -> Self {
        Self {
            moved: merged.moved,
            bytes: merged.bytes,
            left: merged.left,
            failed: merged.failed,
            stopped: merged.stopped,
        }
    }
}

impl StepLine {
    /// What there is to tell of a step.
    pub fn of(step: &Step<'_>) -> Self {
        let kind = match step.item {
            Item::Entry(kind) => kind.name(),
            Item::Whiteout => "whiteout",
            Item::OpaqueMark => "opaque mark",
        };
        let (done, reason, hint, bytes) = match step.done {
            Ok(merge::Outcome::Moved(bytes)) => ("moved", None, None, bytes),
            Ok(merge::Outcome::Gone) => ("gone", None, None, 0),
            Ok(merge::Outcome::Left(reason)) => {
                ("left", Some(reason.word()), Some(reason.text()), 0)
            }
            Err(errno) => ("failed", Some(errno_name(errno)), None, 0),
        };
        Self {
            path: OsText(OsString::from_vec(step.path.to_vec())),
            kind: kind.to_owned(),
            done: done.to_owned(),
            reason: reason.map(str::to_owned),
            hint: hint.map(str::to_owned),
            bytes,
        }
    }
}

/// Why a merge cannot be begun or was ended.
pub fn merge_failure(errno: Errno) -> Failure {
    let what = match errno {
        Errno::INVAL => {
            "merge: needs two writable branches in AUFS format, the first above the second"
        }
        Errno::NOSPC | Errno::DQUOT => {
            "merge: no space left on the lower branch: make room and start it again"
        }
        _ => "merge: ended early: it can be started again",
    };
    Failure::new(errno, what)
}

pub(super) fn merge(
    union: &Union,
    how: &MergeHow,
    attached: &[OwnedFd],
    progress: &mut dyn FnMut(&str) -> bool,
) -> Outcome {
    let [from, to] = attached else {
        return Err(Failure::new(Errno::INVAL, "merge: needs two branches"));
    };
    let (from, to) = (branch_of(union, from)?, branch_of(union, to)?);
    let options = MergeOptions {
        keep_whiteouts: how.keep_whiteouts,
        copy: how.copy,
        dry_run: how.dry_run,
    };
    let mut tell = |step: &Step<'_>| {
        let line = serde_json::to_string(&StepLine::of(step)).unwrap_or_default();
        match progress(&line) {
            true => ControlFlow::Continue(()),
            // Whoever asked is gone: nothing is half done between two entries.
            false => ControlFlow::Break(()),
        }
    };
    let merged = union.merge(from, to, options, &mut tell);
    let total = Total::from(merged.map_err(merge_failure)?);
    Ok(json!(total))
}

fn branch_of(union: &Union, dir: &OwnedFd) -> Result<BranchId, Failure> {
    let stat = stat_fd(dir).map_err(|errno| Failure::new(errno, "branch"))?;
    union
        .branch_by_root((stat.dev, stat.ino))
        .ok_or_else(|| Failure::new(Errno::NOENT, "not a branch of this mount"))
}

pub(super) fn move_down(union: &Union, which: &MoveWhich, attached: &[OwnedFd]) -> Outcome {
    let mut attached = attached.iter();
    let mut named = |named: bool| match (named, attached.next()) {
        (false, _) => Ok(None),
        (true, Some(dir)) => branch_of(union, dir).map(Some),
        (true, None) => Err(Failure::new(Errno::INVAL, "mvdown: a branch is missing")),
    };
    let from = if which.from { named(true)? } else { None };
    let to = if which.to { named(true)? } else { None };
    let how = MoveDown {
        from,
        to,
        overwrite: which.overwrite,
        own_copy: which.own_copy,
        keep_upper: which.keep_upper,
        dry_run: which.dry_run,
    };
    let done = union.move_down(NodeId(which.parent), which.name.as_bytes(), how);
    match done {
        Ok(merge::Outcome::Moved(bytes)) => Ok(json!({ "bytes": bytes })),
        Ok(merge::Outcome::Gone) => Err(refused(Reason::NoUpper)),
        Ok(merge::Outcome::Left(reason)) => Err(refused(reason)),
        Err(Errno::NOENT) => Err(Failure::new(Errno::NOENT, "no such file in the union")),
        Err(errno) => Err(Failure::new(errno, "cannot be moved")),
    }
}

fn refused(reason: Reason) -> Failure {
    Failure::because(reason.errno(), reason.word(), reason.text())
}

pub(super) fn plinks(union: &Union) -> Value {
    json!(
        union
            .plinked()
            .iter()
            .map(|node| node.0)
            .collect::<Vec<_>>()
    )
}

pub(super) fn plink_up(union: &Union, parent: u64, name: &OsText) -> Outcome {
    union
        .plink_up(NodeId(parent), name.as_bytes())
        .map(|()| Value::Null)
        .map_err(|errno| Failure::new(errno, "cannot be linked"))
}

pub(super) fn plink_drop(union: &Union, ino: u64) -> Outcome {
    union
        .plink_drop(NodeId(ino))
        .map(|()| Value::Null)
        .map_err(|errno| Failure::new(errno, "the pseudo-link stays"))
}
