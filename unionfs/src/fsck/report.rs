//! What a check found, in the words people and programs read.

use crate::errno::{Errno, errno_name};
use crate::shown::{ShowPath, Shown};
use crate::spec::Format;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;
use std::path::PathBuf;

/// Something that should not be on a branch, or that is worth a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// `.wh.NAME` and NAME in one directory.
    WhiteoutBesideEntry,
    /// A whiteout that is no regular file.
    OddWhiteout,
    /// A whiteout of `.` or `..`.
    VoidWhiteout,
    /// An opaque mark that is no regular file.
    OddOpaque,
    /// An attribute of the overlay format with a value that means nothing.
    OddAttribute,
    /// Something half made or half removed.
    Leftover,
    /// A pseudo-link that no book explains.
    StrayPlink,
    /// A book of something that is gone.
    StrayRecord,
    /// Removed while it was open, and forgotten.
    Orphan,
    /// Records of the log that cannot be read.
    DamagedLog,
    /// Bookkeeping of the wrong type.
    OddBookkeeping,
    /// Marks of another format than the branch's.
    MixedFormat,
    /// Deletions of unionfs-fuse, which hide nothing here.
    UnionfsFuse,
    /// A conversion to another format was interrupted.
    HalfConverted,
    /// The lower part of a renamed directory is on no branch below.
    LostRedirect,
    /// The data of a file is on no branch below.
    LostData,
    /// A directory that cannot be read.
    Unreadable,
    /// Note: another filesystem is mounted here.
    OtherMount,
    /// Note: a whiteout with nothing below it.
    IdleWhiteout,
    /// Note: an opaque directory with nothing below it.
    IdleOpaque,
    /// Note: a 0/0 device, which is an ordinary device in this format.
    NullDevice,
    /// Note: a reserved name that nobody knows.
    UnknownReserved,
}

impl Problem {
    /// Is it no problem at all?
    pub fn is_note(self) -> bool {
        matches!(
            self,
            Self::OtherMount
                | Self::IdleWhiteout
                | Self::IdleOpaque
                | Self::NullDevice
                | Self::UnknownReserved
        )
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WhiteoutBesideEntry => "whiteout beside an entry of its name",
            Self::OddWhiteout => "whiteout that is no regular file",
            Self::VoidWhiteout => "whiteout that hides no possible name",
            Self::OddOpaque => "opaque mark that is no regular file",
            Self::OddAttribute => "overlay attribute with a meaningless value",
            Self::Leftover => "left behind half made or half removed",
            Self::StrayPlink => "pseudo-link that belongs to nothing",
            Self::StrayRecord => "record of something that is gone",
            Self::Orphan => "orphan: removed while it was open",
            Self::DamagedLog => "log with damaged records",
            Self::OddBookkeeping => "bookkeeping of the wrong type",
            Self::MixedFormat => "mark of another format than the branch's",
            Self::UnionfsFuse => "deletions as unionfs-fuse writes them",
            Self::HalfConverted => "conversion to another format not finished",
            Self::LostRedirect => "renamed directory whose lower part is gone",
            Self::LostData => "file whose data is on no branch below",
            Self::Unreadable => "cannot be read",
            Self::OtherMount => "another filesystem is mounted here: not checked",
            Self::IdleWhiteout => "whiteout of a name that no branch below has",
            Self::IdleOpaque => "opaque directory that no branch below has",
            Self::NullDevice => "0/0 device: an ordinary device in this format",
            Self::UnknownReserved => "reserved name of unknown meaning",
        })
    }
}

/// What is done about a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The whiteout is removed; a directory it lies beside becomes opaque first.
    RemoveWhiteout,
    /// The entry is removed.
    RemoveEntry,
    /// It is removed.
    Remove,
    /// It is moved to the bookkeeping's `lost` directory.
    SetAside,
    /// A proper one takes its place; the old one is set aside.
    Replace,
    /// It is written anew from what can be read.
    Rewrite,
    /// Nothing: this would help.
    ByHand(&'static str),
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RemoveWhiteout => "remove the whiteout",
            Self::RemoveEntry => "remove the entry",
            Self::Remove => "remove it",
            Self::SetAside => "set it aside in lost/",
            Self::Replace => "replace it",
            Self::Rewrite => "write it anew",
            Self::ByHand(what) => what,
        })
    }
}

/// What became of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is none.
    Note,
    /// It was not asked to be repaired.
    Found,
    /// It is gone.
    Repaired,
    /// Only a person can decide.
    Left,
    /// The repair failed.
    Failed(Errno),
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// From the branch's root; may hold any byte but NUL.
    pub path: Vec<u8>,
    /// What is wrong.
    pub problem: Problem,
    /// What is done about it.
    pub remedy: Remedy,
    /// What came of it.
    pub outcome: Outcome,
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("path", &Shown(&self.path))?;
        map.serialize_entry("problem", &self.problem)?;
        map.serialize_entry("remedy", &self.remedy.to_string())?;
        let outcome = match self.outcome {
            Outcome::Note => "note",
            Outcome::Found => "found",
            Outcome::Repaired => "repaired",
            Outcome::Left => "left",
            Outcome::Failed(errno) => {
                map.serialize_entry("errno", errno_name(errno))?;
                "failed"
            }
        };
        map.serialize_entry("outcome", outcome)?;
        map.end()
    }
}

/// What was found on one branch.
#[derive(Clone, Debug)]
pub struct Branch {
    /// As given.
    pub path: PathBuf,
    /// What it was checked as.
    pub format: Format,
    /// In the order in which they were met.
    pub findings: Vec<Finding>,
}

impl Serialize for Branch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("branch", &self.path.shown())?;
        map.serialize_entry("format", &self.format.to_string())?;
        map.serialize_entry("findings", &self.findings)?;
        map.end()
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Report {
    /// Topmost first.
    pub branches: Vec<Branch>,
}

impl Report {
    /// How many findings had an outcome for which this is true.
    pub fn count(&self, which: impl Fn(Outcome) -> bool) -> usize {
        let all = self.branches.iter().flat_map(|b| &b.findings);
        all.filter(|f| which(f.outcome)).count()
    }

    /// 0 = clean, 1 = all problems were repaired, 4 = problems are left (fsck(8)).
    pub fn exit_code(&self) -> u8 {
        let left = |o| matches!(o, Outcome::Found | Outcome::Left | Outcome::Failed(_));
        if self.count(left) > 0 {
            4
        } else {
            u8::from(self.count(|o| o == Outcome::Repaired) > 0)
        }
    }
}
