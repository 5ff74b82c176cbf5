//! What a branch changes: its copies, whiteouts and opaque directories, compared with the branches
//! below it. No mount is needed, and nothing is written.
//!
//! Directories are reached by descriptors, one name at a time, never through a symbolic link and
//! never into another filesystem. The walk keeps a frame for each directory it is in and tells
//! every change at once, so a tree of any size takes little memory.

mod levels;
mod walk;

use crate::branch::{Branch, open::open_all};
use crate::errno::Errno;
use crate::setup::SetupError;
use crate::shown::Shown;
use crate::spec::{BranchPerm, BranchSpec, Format, Grammar};
use crate::types::Kind;
use crate::whiteout::{BASE, STORE_DIR};
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It was there before.
    Modified,
    /// It is gone.
    Deleted,
}

/// One changed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed<'a> {
    /// From the root of the union, beginning with `/`.
    pub path: &'a [u8],
    /// What happened.
    pub change: Change,
    /// What it is now; of a deleted path what it was. `None` = unknown (nothing lies below).
    pub kind: Option<Kind>,
    /// What it was, if that was something else.
    pub was: Option<Kind>,
}

/// A branch below the one that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Lower<'a> {
    /// Its directory.
    pub path: &'a Path,
    /// Whiteouts and opaque marks on it count.
    pub whiteouts: bool,
}

/// Why there is no (whole) answer.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// A branch that cannot be opened.
    #[error(transparent)]
    Branch(#[from] SetupError),
    /// A directory that cannot be read.
    #[error("{path}: cannot be compared: {} ({})", hint(*errno), crate::errno::errno_name(*errno))]
    Read {
        /// Where, from the root of the branch.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// The receiver failed.
    #[error("writing: {0}")]
    Write(#[from] io::Error),
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::ACCESS | Errno::PERM => "run it as the owner of the branch",
        Errno::MFILE | Errno::NFILE => "raise the limit of open files",
        _ => "the directory cannot be read",
    }
}

/// Tells `sink` what `upper` changes of `lowers` (topmost first), parents before children and names
/// in ascending order.
///
/// Without lower branches a copy is known by the books of the branch, and what an opaque directory
/// hides is unknown.
///
/// # Errors
/// A branch or directory that cannot be read; what `sink` answers.
pub fn diff(
    upper: &Path,
    lowers: &[Lower<'_>],
    sink: &mut dyn FnMut(&Changed<'_>) -> io::Result<()>,
) -> Result<(), DiffError> {
    let specs: Vec<BranchSpec> = std::iter::once((upper, true))
        .chain(lowers.iter().map(|l| (l.path, l.whiteouts)))
        .map(|(path, whiteouts)| spec_of(path, whiteouts))
        .collect();
    let mut opened = open_all(&specs, Grammar::Aufs)?.into_iter();
    let Some((upper, _)) = opened.next() else {
        return Ok(());
    };
    let lowers: Vec<Arc<Branch>> = opened.map(|(branch, _)| branch).collect();
    walk::walk(&upper, &lowers, sink)
}

/// A readonly branch in the dialect in which it is written: a 0/0 device is a whiteout unless the
/// branch is known to have whiteout files.
fn spec_of(path: &Path, whiteouts: bool) -> BranchSpec {
    use std::os::unix::ffi::OsStrExt;
    let has = |name: &[u8]| {
        path.join(std::ffi::OsStr::from_bytes(name))
            .symlink_metadata()
            .is_ok()
    };
    let aufs = has(BASE) || has(STORE_DIR);
    BranchSpec {
        path: path.to_path_buf(),
        perm: if whiteouts {
            BranchPerm::RO_WH
        } else {
            BranchPerm::RO
        },
        format: Some(if aufs { Format::Aufs } else { Format::Overlay }),
        workdir: None,
    }
}

/// Which letters stand for the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    /// A, M, D.
    Modified,
    /// A, C, D, as docker(1) has it.
    Changed,
}

/// Writes changes as lines, or as a JSON array with one element a line.
pub struct Printer<W> {
    out: W,
    json: bool,
    letters: Letters,
    any: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    path: Shown<'a>,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<&'static str>,
}

impl<W: Write> Printer<W> {
    /// A printer to `out`.
    pub fn new(out: W, json: bool, letters: Letters) -> Self {
        Self {
            out,
            json,
            letters,
            any: false,
        }
    }

    /// Prints one change.
    ///
    /// # Errors
    /// Those of writing.
    pub fn print(&mut self, changed: &Changed<'_>) -> io::Result<()> {
        let change = match (changed.change, self.letters) {
            (Change::Added, _) => "A",
            (Change::Modified, Letters::Modified) => "M",
            (Change::Modified, Letters::Changed) => "C",
            (Change::Deleted, _) => "D",
        };
        if !self.json {
            return writeln!(self.out, "{change} {}", Shown(changed.path));
        }
        self.out.write_all(if self.any { b",\n" } else { b"[\n" })?;
        self.any = true;
        let line = Line {
            path: Shown(changed.path),
            change,
            kind: changed.kind.map(Kind::name),
            was: changed.was.map(Kind::name),
        };
        serde_json::to_writer(&mut self.out, &line).map_err(io::Error::from)
    }

    /// Completes the output.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<()> {
        if self.json {
            self.out
                .write_all(if self.any { b"\n]\n" } else { b"[]\n" })?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
