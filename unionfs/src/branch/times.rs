//! Times of directories while something is taken from them, and of files while their own data is
//! brought in: `.wh..wh.uaufs/times/<inode>`, each a symbolic link to birth time, change and access
//! times and path.
//!
//! Both give a new time, which is then set back. A daemon that is killed between the two leaves the
//! record, and the next one sets the time back before anybody sees it. (A symbolic link is made and
//! removed in the order in which the directory changes, on every filesystem with a journal, without
//! waiting for the disk.)

use super::{Branch, Store};
use crate::errno::{Errno, Result, twice};
use crate::sys::loc::{open_beneath, open_listing};
use crate::sys::stat::stat_fd;
use crate::sys::walk::entries;
use crate::sys::{Loc, RealStat};
use crate::types::{Kind, SetTime, Timestamp};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, OFlags, readlinkat, symlinkat, unlinkat};
use std::sync::Arc;

/// Name of the directory within the bookkeeping.
pub(super) const DIR_NAME: &[u8] = b"times";

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    btime: Timestamp,
    mtime: Timestamp,
    atime: Timestamp,
    /// From the root of the branch.
    path: Vec<u8>,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut raw = Vec::new();
        for time in [self.btime, self.mtime, self.atime] {
            raw.extend_from_slice(format!("{}.{} ", time.sec, time.nsec).as_bytes());
        }
        raw.extend_from_slice(&self.path);
        raw
    }

    fn decode(raw: &[u8]) -> Option<Self> {
        let mut parts = raw.splitn(4, |b| *b == b' ');
        let mut time = || {
            let (sec, nsec) = std::str::from_utf8(parts.next()?).ok()?.split_once('.')?;
            Some(Timestamp {
                sec: sec.parse().ok()?,
                nsec: nsec.parse().ok()?,
            })
        };
        Some(Self {
            btime: time()?,
            mtime: time()?,
            atime: time()?,
            path: parts.next()?.to_vec(),
        })
    }
}

impl Branch {
    /// Does something to a directory of this branch that leaves its times as they are, also when
    /// the daemon is killed meanwhile. Whoever shows its times waits for the lock of its names,
    /// which the caller holds. `path` is from the root of the branch.
    pub fn keeping_times<T>(
        &self,
        dir: &Arc<OwnedFd>,
        path: Vec<u8>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let before = stat_fd(dir)?;
        let held = self.hold_times(&before, path)?;
        let done = change();
        keep_times(dir, &before);
        // What is left here is replaced by the next record of the directory, or is of no directory.
        let _ = held.release();
        done
    }

    /// Until the result is dropped, the next mount sets the times of this file or directory back if
    /// the daemon is killed. `path` is from the root of the branch.
    pub fn hold_times(&self, before: &RealStat, path: Vec<u8>) -> Result<HeldTimes<'_>> {
        let store = self.store.as_ref().ok_or(Errno::ROFS)?;
        let name = before.ino.to_string();
        let record = Record {
            btime: before.btime,
            mtime: before.mtime,
            atime: before.atime,
            path,
        };
        if let Err(err) = store.hold_times(&name, &record.encode()) {
            // No room for it, perhaps: that is no reason to leave the directory as it is.
            log::debug!("times are not recorded: {err}");
        }
        Ok(HeldTimes { store, name })
    }
}

/// Times that are to be set back.
#[must_use]
#[derive(Debug)]
pub struct HeldTimes<'a> {
    store: &'a Store,
    name: String,
}

impl HeldTimes<'_> {
    /// They are set back, and may change again.
    ///
    /// # Errors
    /// Those of removing the record, by which the next mount would set back later ones.
    pub fn release(&self) -> Result<()> {
        let name = self.name.as_bytes();
        match twice(|| unlinkat(self.store.times(), name, AtFlags::empty())) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}

impl Store {
    fn hold_times(&self, name: &str, record: &[u8]) -> Result<()> {
        match symlinkat(record, self.times(), name) {
            Err(Errno::EXIST) => {
                unlinkat(self.times(), name, AtFlags::empty())?;
                symlinkat(record, self.times(), name)
            }
            other => other,
        }
    }
}

/// Sets back what a daemon that was killed could not, in the branch `root`.
pub(super) fn restore(root: BorrowedFd<'_>, records: &OwnedFd) -> Result<()> {
    for (name, _) in entries(&open_listing(records)?)? {
        if let Err(err) = restore_one(root, records, &name) {
            log::debug!("times are not set back: {err}");
        }
        unlinkat(records, &*name, AtFlags::empty())?;
    }
    Ok(())
}

fn restore_one(root: BorrowedFd<'_>, records: &OwnedFd, name: &[u8]) -> Result<()> {
    let raw = readlinkat(records, name, Vec::new())?;
    let record = Record::decode(raw.as_bytes()).ok_or(Errno::BADMSG)?;
    let path = if record.path.is_empty() {
        b"."
    } else {
        &record.path[..]
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = Arc::new(open_beneath(root, path, flags)?);
    let stat = stat_fd(&found)?;
    // It may have gone, and another one have come in its place.
    if (stat.ino.to_string().as_bytes(), stat.btime) != (name, record.btime) {
        return Ok(());
    }
    match stat.kind() {
        Kind::Dir => set_times(&found, record.mtime, record.atime),
        _ => Loc::Fd(found).set_times(
            Some(SetTime::At(record.atime)),
            Some(SetTime::At(record.mtime)),
        ),
    }
}

/// Moving things between branches is no change of a directory that users made: its times stay.
pub fn keep_times(dir: &Arc<OwnedFd>, before: &RealStat) {
    if let Err(err) = set_times(dir, before.mtime, before.atime) {
        log::debug!("times of a directory that something was moved to or from: {err}");
    }
}

fn set_times(dir: &Arc<OwnedFd>, mtime: Timestamp, atime: Timestamp) -> Result<()> {
    Loc::dir(dir.clone()).set_times(Some(SetTime::At(atime)), Some(SetTime::At(mtime)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_written_whatever_the_path() {
        let time = |sec, nsec| Timestamp { sec, nsec };
        for path in [&b""[..], b"a b/\xff\n"] {
            let record = Record {
                btime: time(-5, 7),
                mtime: time(1 << 40, 999_999_999),
                atime: time(0, 0),
                path: path.to_vec(),
            };
            assert_eq!(Record::decode(&record.encode()), Some(record));
        }
        assert_eq!(Record::decode(b"1.2 3.4 5.6"), None);
        assert_eq!(Record::decode(b""), None);
    }
}
