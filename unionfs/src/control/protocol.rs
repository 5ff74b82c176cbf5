//! What travels over the control socket: one request, then the frames of its answer.
//!
//! Every packet is JSON of at most [`MAX_PACKET`] bytes. An answer is any number of progress and
//! data frames and one that ends it.

use crate::errno::{Errno, errno_name};
use crate::ostext::OsText;
use crate::setup::SetupError;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;

/// Longest packet in bytes.
pub const MAX_PACKET: usize = 64 << 10;
/// Most descriptors with one request.
pub const MAX_FDS: usize = 4;

/// A change that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// One option of a remount, as [`crate::spec::aufs::parse_change`] reads it. Where it names a
    /// branch, the directory is attached.
    Change {
        /// `append:/x=ro`, `udba=none`, ...
        option: OsText,
        /// `del`: copy up what is in use, where that is possible.
        #[serde(default)]
        force: bool,
    },
    /// Everything on one writable branch goes to another one below it. Both directories are
    /// attached. Progress: a [`super::moving::StepLine`] for each entry; result: a
    /// [`super::moving::Total`].
    Merge(MergeHow),
    /// One file goes to a writable branch below. Directories of the branches that are named are
    /// attached, the upper one first.
    MoveDown(MoveWhich),
    /// Which files are pseudo-linked? Result: a list of numbers.
    Plinks,
    /// A name of a pseudo-linked file becomes a hard link on the branch of its data.
    PlinkUp {
        /// Number of the directory.
        parent: u64,
        /// Name in it.
        name: OsText,
    },
    /// All names of a file are hard links: its pseudo-link is not needed any more.
    PlinkDrop {
        /// Number of the file.
        ino: u64,
    },
}

/// How a merge is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MergeHow {
    /// Whiteouts go down even where nothing below needs them.
    pub keep_whiteouts: bool,
    /// The upper branch stays as it is.
    #[serde(default)]
    pub copy: bool,
    /// Only tell.
    pub dry_run: bool,
}

/// Which file is moved, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveWhich {
    /// Number of the directory, which the caller holds open.
    pub parent: u64,
    /// Name in it.
    pub name: OsText,
    /// A directory of the branch to move from is attached.
    pub from: bool,
    /// A directory of the branch to move to is attached.
    pub to: bool,
    /// Replace a file there.
    pub overwrite: bool,
    /// Replace a copy of the file there, which an interrupted move has left.
    #[serde(default)]
    pub own_copy: bool,
    /// Leave the upper one.
    pub keep_upper: bool,
    /// Only tell.
    pub dry_run: bool,
}

/// A packet of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frame {
    /// How far a long request is.
    Progress(String),
    /// The next piece of the result, which is JSON.
    Data(String),
    /// It is done.
    Done,
    /// It was not done.
    Failed(Failure),
}

/// Why a request was not done: for people, and its errno.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Number, as in errno(3).
    pub errno: i32,
    /// What is wrong and what would be right, with the errno's name in brackets.
    pub text: String,
}

/// What a request results in.
pub type Outcome = std::result::Result<Value, Failure>;

impl Failure {
    /// `WHAT (ERRNO)`.
    pub fn new(errno: Errno, what: impl fmt::Display) -> Self {
        Self {
            errno: errno.raw_os_error(),
            text: format!("{what} ({})", errno_name(errno)),
        }
    }

    /// `WHAT (ERRNO): MORE`.
    pub fn because(errno: Errno, what: impl fmt::Display, more: impl fmt::Display) -> Self {
        Self {
            errno: errno.raw_os_error(),
            text: format!("{what} ({}): {more}", errno_name(errno)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<SetupError> for Failure {
    fn from(error: SetupError) -> Self {
        let errno = match &error {
            SetupError::Option { .. } => Errno::INVAL,
            SetupError::Path { errno, .. } | SetupError::System { errno, .. } => *errno,
        };
        Self {
            errno: errno.raw_os_error(),
            text: error.to_string(),
        }
    }
}
