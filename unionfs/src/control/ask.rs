//! Asking a mount: the caller's side of [`super::query`].

use super::query::{Header, Query};
use crate::errno::{Errno, errno_name};
use crate::setup::SetupError;
use crate::sys::ioctl;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::de::DeserializeOwned;
use std::path::Path;

/// How often an answer that changes while it is read is read again.
const RETRIES: usize = 32;

/// Opens a directory to ask the mount it belongs to.
///
/// # Errors
/// Says that the path cannot be opened.
pub fn open(path: &Path) -> Result<OwnedFd, SetupError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| SetupError::Path {
        path: path.to_path_buf(),
        what: match errno {
            Errno::NOENT => "no such mount point".to_owned(),
            Errno::NOTCONN => "a FUSE mount whose server is gone: uaufs umount it".to_owned(),
            _ => "cannot be opened".to_owned(),
        },
        errno,
    })
}

/// Asks the mount that `at` is in (an open directory or file of it).
///
/// # Errors
/// ENOTTY: it is no union of uaufs, or of a version that does not know the question.
pub fn ask<T: DeserializeOwned>(at: impl AsFd, query: &Query) -> Result<T, Errno> {
    let question = serde_json::to_vec(query).map_err(|_| Errno::INVAL)?;
    for _ in 0..RETRIES {
        match whole(at.as_fd(), &question) {
            Ok(json) => return serde_json::from_slice(&json).map_err(|_| Errno::NOTTY),
            Err(Errno::STALE) => {}
            // Another filesystem's way to say that it has no ioctl.
            Err(Errno::NOSYS | Errno::OPNOTSUPP) => return Err(Errno::NOTTY),
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::AGAIN)
}

/// As [`ask`] of the mount at a path, with an error for people.
///
/// # Errors
/// Names the path and what would be right.
pub fn ask_at<T: DeserializeOwned>(path: &Path, query: &Query) -> Result<T, SetupError> {
    ask(open(path)?, query).map_err(|errno| SetupError::Path {
        path: path.to_path_buf(),
        what: match errno {
            Errno::NOTTY => "no mounted union: name its mount point".to_owned(),
            _ => format!(
                "the mount does not answer as it should: {}",
                errno_name(errno)
            ),
        },
        errno,
    })
}

/// All pages of an answer.
fn whole(at: rustix::fd::BorrowedFd<'_>, question: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut answer = Vec::new();
    let mut sum = 0;
    loop {
        let mut buffer = Box::new([0; ioctl::SIZE]);
        let header = Header {
            len: question.len() as u32,
            offset: answer.len() as u64,
            sum,
        };
        let header = header.encode();
        let space = buffer
            .get_mut(header.len()..header.len() + question.len())
            .ok_or(Errno::NAMETOOLONG)?;
        space.copy_from_slice(question);
        buffer[..header.len()].copy_from_slice(&header);
        ioctl::exchange(at, &mut buffer)?;
        let got = Header::decode(&*buffer).map_err(|_| Errno::NOTTY)?;
        let start = header.len();
        let page = buffer
            .get(start..start + got.len as usize)
            .ok_or(Errno::NOTTY)?;
        answer.extend_from_slice(page);
        sum = got.sum;
        if answer.len() as u64 >= got.offset {
            return Ok(answer);
        }
        if page.is_empty() {
            return Err(Errno::NOTTY);
        }
    }
}
