//! Directories that their owner protected from himself: opened up for one step of a daemon that
//! has no privilege to override that.

use crate::errno::{Errno, Result};
use crate::sys::Loc;
use rustix::fd::OwnedFd;
use std::sync::Arc;

/// What the owner needs to list, reach and change what is in a directory.
const OWNER: u32 = 0o700;

/// A directory whose owner may do everything in it until this is dropped.
pub struct Unlocked {
    dir: Loc,
    /// Its own mode, if that is less.
    mode: Option<u32>,
}

impl Unlocked {
    /// Opens up a directory (an `O_PATH` descriptor will do). EPERM if it is somebody else's.
    pub fn directory(dir: Arc<OwnedFd>) -> Result<Self> {
        let dir = Loc::Fd(dir);
        let mode = dir.stat()?.mode & 0o7777;
        if mode & OWNER == OWNER {
            return Ok(Self { dir, mode: None });
        }
        dir.chmod(mode | OWNER)?;
        Ok(Self {
            dir,
            mode: Some(mode),
        })
    }

    /// As [`Self::directory`] for a plain user's daemon; nothing for root's, which needs it not,
    /// and for directories of others.
    pub fn of_user(dir: &OwnedFd) -> Option<Self> {
        if crate::sys::creds::is_privileged() {
            return None;
        }
        Self::directory(Arc::new(dir.try_clone().ok()?)).ok()
    }
}

impl Drop for Unlocked {
    fn drop(&mut self) {
        if let Some(mode) = self.mode
            && let Err(err) = self.dir.chmod(mode)
        {
            log::error!("cannot give a directory its mode {mode:o} again: {err}");
        }
    }
}

/// Runs `f`, which changes names in `dir`. A file may be changed in a directory that is
/// write-protected, and a plain user's daemon cannot override that: it gives itself permission
/// meanwhile.
pub fn with_write_permission<T>(dir: &Arc<OwnedFd>, f: impl Fn() -> Result<T>) -> Result<T> {
    match f() {
        Err(Errno::ACCESS) => {}
        other => return other,
    }
    let _unlocked = Unlocked::directory(dir.clone())?;
    f()
}
