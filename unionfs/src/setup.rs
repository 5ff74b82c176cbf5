//! Errors of mounting: read by people, so they name the option or path and say what would be right.

use crate::errno::{Errno, errno_name};
use crate::shown::ShowPath;
use std::path::{Path, PathBuf};

/// Why a mount was refused.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// An option that makes no sense: `what` names it, `hint` says what would be right.
    #[error("{what}: {hint}")]
    Option {
        /// The option as written.
        what: String,
        /// What is wrong and what would be right.
        hint: String,
    },
    /// A path that cannot be used.
    #[error("{}: {what} ({})", path.shown(), errno_name(*errno))]
    Path {
        /// The path as written.
        path: PathBuf,
        /// What is wrong and what would be right.
        what: String,
        /// The errno behind it.
        errno: Errno,
    },
    /// Anything else, with its errno.
    #[error("{what} ({})", errno_name(*errno))]
    System {
        /// What was tried and what to do.
        what: String,
        /// The errno behind it.
        errno: Errno,
    },
}

impl SetupError {
    /// A path that cannot be used, and what is wrong with it.
    pub fn path(path: &Path, errno: Errno, what: impl Into<String>) -> Self {
        Self::Path {
            path: path.to_path_buf(),
            what: what.into(),
            errno,
        }
    }
}
