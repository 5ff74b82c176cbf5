//! What travels over the control socket: one request, then the frames of its answer.
//!
//! Every packet is JSON of at most [`MAX_PACKET`] bytes. An answer is any number of progress and
//! data frames and one that ends it.

use super::text::OsText;
use crate::errno::{Errno, errno_name};
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
