//! Names that are about to go of files that have others: the log says so before, and the tree tells
//! afterwards whether a daemon that was killed had done it.
//!
//! A name that is seen from below leaves no trace in its file when it is hidden, so that its links
//! cannot be counted again. Writing the new count first or last would both be wrong for a moment.

use super::log::{RECORD_LEN, Record, Source};
use crate::errno::{Errno, Result};
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::types::Timestamp;
use crate::whiteout::whiteout_name;
use rustix::fd::BorrowedFd;

/// Bytes of a removal in one record of the log.
pub(super) const PART: usize = 56;

/// Inode number and birth time of the directory, before the path.
const DIR_LEN: usize = 20;

/// A name of a file that is about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The file.
    pub source: Source,
    /// Names that it has beyond the links of its file, once this one is gone.
    pub delta: i32,
    /// What the name is on the branch before: an inode number, or 0 where it is seen from below.
    pub real: u64,
    /// The directory on the branch: inode number and birth time.
    pub dir: (u64, Timestamp),
    /// From the root of the branch to the name; empty = it is gone.
    pub path: Vec<u8>,
}

impl Removal {
    /// One that has happened.
    pub(super) fn done(source: Source, delta: i32) -> Self {
        Self {
            source,
            delta,
            real: 0,
            dir: (0, Timestamp::default()),
            path: Vec::new(),
        }
    }

    /// Records that belong together: a head, and parts of what does not fit into it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (ino, btime) = self.dir;
        let mut rest = Vec::with_capacity(DIR_LEN + self.path.len());
        rest.extend_from_slice(&ino.to_le_bytes());
        rest.extend_from_slice(&btime.sec.to_le_bytes());
        rest.extend_from_slice(&btime.nsec.to_le_bytes());
        rest.extend_from_slice(&self.path);
        let head = Record::Removes {
            source: self.source,
            delta: self.delta,
            real: self.real,
            len: rest.len() as u32,
        };
        let mut raw = Vec::with_capacity((2 + rest.len() / PART) * RECORD_LEN);
        raw.extend_from_slice(&head.encode());
        for part in rest.chunks(PART) {
            let mut padded = [0; PART];
            padded[..part.len()].copy_from_slice(part);
            raw.extend_from_slice(&Record::Part(padded).encode());
        }
        raw
    }

    /// Has it happened? What cannot be told has: then nothing is as it was before.
    pub(super) fn is_done(&self, root: BorrowedFd<'_>) -> Result<bool> {
        if self.path.is_empty() {
            return Ok(true);
        }
        match self.stands(root) {
            Ok(stands) => Ok(!stands),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => {
                Ok(true)
            }
            Err(err) => Err(err),
        }
    }

    /// Is the name what it was?
    fn stands(&self, root: BorrowedFd<'_>) -> Result<bool> {
        let mut parts = self.path.split(|b| *b == b'/');
        let name = parts.next_back().ok_or(Errno::NOENT)?;
        let mut dir = open_subdir(root, b".")?;
        // One by one: there is no limit to the length of the whole.
        for part in parts {
            dir = open_subdir(&dir, part)?;
        }
        let stat = stat_fd(&dir)?;
        if (stat.ino, stat.btime) != self.dir {
            return Ok(false);
        }
        match stat_at(&dir, name) {
            Ok(stat) => return Ok(stat.ino == self.real),
            Err(Errno::NOENT) if self.real == 0 => {}
            Err(err) => return Err(err),
        }
        match whiteout_name(name).map(|mark| stat_at(&dir, &mark)) {
            Some(Ok(_)) => Ok(false),
            None | Some(Err(Errno::NOENT | Errno::NAMETOOLONG)) => Ok(true),
            Some(Err(err)) => Err(err),
        }
    }
}

/// A removal of which not all records have been read.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    removal: Removal,
    len: usize,
    rest: Vec<u8>,
}

impl Parts {
    pub(super) fn begin(source: Source, delta: i32, real: u64, len: u32) -> Self {
        let removal = Removal {
            real,
            ..Removal::done(source, delta)
        };
        Self {
            removal,
            len: len as usize,
            rest: Vec::new(),
        }
    }

    /// Adds a part. Is it whole now?
    pub(super) fn add(&mut self, part: &[u8; PART]) -> bool {
        let left = self.len.saturating_sub(self.rest.len());
        self.rest.extend_from_slice(&part[..left.min(PART)]);
        self.rest.len() == self.len
    }

    pub(super) fn finish(self) -> Removal {
        let rest = &self.rest[..];
        let (Some(ino), Some(sec), Some(nsec), Some(path)) = (
            rest.get(..8).and_then(|b| b.try_into().ok()),
            rest.get(8..16).and_then(|b| b.try_into().ok()),
            rest.get(16..DIR_LEN).and_then(|b| b.try_into().ok()),
            rest.get(DIR_LEN..),
        ) else {
            // Written by nobody.
            return self.removal;
        };
        let btime = Timestamp {
            sec: i64::from_le_bytes(sec),
            nsec: u32::from_le_bytes(nsec),
        };
        let dir = (u64::from_le_bytes(ino), btime);
        let path = path.to_vec();
        Removal {
            dir,
            path,
            ..self.removal
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::log::Recovered;
    use super::*;
    use rustix::fd::AsFd;
    use rustix::fs::{Mode, OFlags};
    use std::fs;

    fn removal(path: &[u8], dir: (u64, Timestamp), real: u64) -> Removal {
        let source = Source {
            fs: 1,
            ino: 2,
            btime: Timestamp { sec: 3, nsec: 4 },
        };
        Removal {
            source,
            delta: -1,
            real,
            dir,
            path: path.to_vec(),
        }
    }

    #[test]
    fn a_removal_is_read_as_it_was_written_whatever_the_length_of_its_path() {
        for len in [0, 1, 35, 36, 37, 92, 5000] {
            let written = removal(&vec![b'x'; len], (7, Timestamp { sec: -1, nsec: 9 }), 5);
            let mut recovered = Recovered::default();
            for record in written.encode().chunks(RECORD_LEN) {
                recovered.replay(Record::decode(record).unwrap());
            }
            let mut seen = Vec::new();
            recovered
                .settle(|removal| {
                    seen.push(removal.clone());
                    Ok(true)
                })
                .unwrap();
            assert_eq!(seen, [written]);
        }
    }

    #[test]
    fn a_name_is_gone_when_it_is_hidden_or_something_else_has_its_place() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("d")).unwrap();
        let root = rustix::fs::open(tmp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let dir = stat_at(&root, b"d").unwrap();
        let dir = (dir.ino, dir.btime);
        let below = removal(b"d/n", dir, 0);
        assert!(!below.is_done(root.as_fd()).unwrap());
        let another = removal(b"d/n", (dir.0, Timestamp { sec: 1, nsec: 1 }), 0);
        assert!(another.is_done(root.as_fd()).unwrap());
        fs::write(tmp.path().join("d/.wh.n"), "").unwrap();
        assert!(below.is_done(root.as_fd()).unwrap());
        fs::write(tmp.path().join("d/n"), "").unwrap();
        assert!(below.is_done(root.as_fd()).unwrap());
        let real = stat_at(&root, b"d/n").unwrap().ino;
        assert!(!removal(b"d/n", dir, real).is_done(root.as_fd()).unwrap());
        fs::remove_file(tmp.path().join("d/n")).unwrap();
        assert!(removal(b"d/n", dir, real).is_done(root.as_fd()).unwrap());
    }
}
