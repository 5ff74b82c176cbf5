//! The log of a writable branch: where its copies came from, and link counts.
//!
//! Every record is written with one append and carries a checksum, so that a torn one is recognised
//! and dropped. Losing the tail costs stable inode numbers and exact link counts, never data. A file
//! is named by [`Source`], which means the same in every mount, whatever the other branches are.

use crate::errno::{Errno, Result};
use crate::types::Timestamp;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use std::fs::File;

/// What a copy was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Identity of its filesystem (see [`super::Branch::fs`]).
    pub fs: u64,
    /// Inode number there.
    pub ino: u64,
    /// Birth time, which tells it from a later file that got the same inode number. Zero where the
    /// filesystem has none.
    pub btime: Timestamp,
}

/// Where a copied-up file came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What it is a copy of.
    pub source: Source,
    /// Birth time of the copy, for the same reason.
    pub btime: Timestamp,
}

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The branch inode `real` is a copy.
    Origin {
        /// Inode number on the branch.
        real: u64,
        /// Of what.
        origin: Origin,
    },
    /// The branch inode `real` is gone.
    Gone {
        /// Inode number on the branch.
        real: u64,
    },
    /// `source` has `delta` more names in the union than its file on the branch has links.
    Links {
        /// The lower file that had several names.
        source: Source,
        /// May be negative.
        delta: i32,
    },
    /// `source` has this many names in the union. The pseudo-link of its copy tells how many of them
    /// are links of that: a crash between a link and its record leaves nothing wrong.
    Names {
        /// The file whose names move to another branch.
        source: Source,
        /// All of them.
        names: i32,
    },
}

/// Length of a record (format version 2; those of version 1 had 40 bytes and are dropped).
pub(super) const RECORD_LEN: usize = 64;

impl Record {
    /// Checksum, tag, inode, birth time of the copy, delta, then the source, all little-endian.
    pub(super) fn encode(&self) -> [u8; RECORD_LEN] {
        let nowhere = Source {
            fs: 0,
            ino: 0,
            btime: Timestamp::default(),
        };
        let (tag, real, btime, delta, source): (u32, u64, _, i32, _) = match *self {
            Self::Origin { real, origin } => (1, real, origin.btime, 0, origin.source),
            Self::Gone { real } => (2, real, Timestamp::default(), 0, nowhere),
            Self::Links { source, delta } => (3, 0, Timestamp::default(), delta, source),
            Self::Names { source, names } => (4, 0, Timestamp::default(), names, source),
        };
        let mut out = [0; RECORD_LEN];
        out[4..8].copy_from_slice(&tag.to_le_bytes());
        out[8..16].copy_from_slice(&real.to_le_bytes());
        out[16..24].copy_from_slice(&btime.sec.to_le_bytes());
        out[24..28].copy_from_slice(&btime.nsec.to_le_bytes());
        out[28..32].copy_from_slice(&delta.to_le_bytes());
        out[32..40].copy_from_slice(&source.fs.to_le_bytes());
        out[40..48].copy_from_slice(&source.ino.to_le_bytes());
        out[48..56].copy_from_slice(&source.btime.sec.to_le_bytes());
        out[56..60].copy_from_slice(&source.btime.nsec.to_le_bytes());
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` = damaged, or not a record of this version.
    pub(super) fn decode(raw: &[u8]) -> Option<Self> {
        let u32_at = |i: usize| Some(u32::from_le_bytes(raw.get(i..i + 4)?.try_into().ok()?));
        let u64_at = |i: usize| Some(u64::from_le_bytes(raw.get(i..i + 8)?.try_into().ok()?));
        if u32_at(0)? != crc32fast::hash(raw.get(4..RECORD_LEN)?) {
            return None;
        }
        let real = u64_at(8)?;
        let btime = Timestamp {
            sec: u64_at(16)? as i64,
            nsec: u32_at(24)?,
        };
        let source = Source {
            fs: u64_at(32)?,
            ino: u64_at(40)?,
            btime: Timestamp {
                sec: u64_at(48)? as i64,
                nsec: u32_at(56)?,
            },
        };
        Some(match u32_at(4)? {
            1 => Self::Origin {
                real,
                origin: Origin { source, btime },
            },
            2 => Self::Gone { real },
            3 => Self::Links {
                source,
                delta: u32_at(28)? as i32,
            },
            4 => Self::Names {
                source,
                names: u32_at(28)? as i32,
            },
            _ => return None,
        })
    }
}

/// What the bookkeeping told at mount.
#[derive(Debug, Default)]
pub struct Recovered {
    /// By inode number on the branch.
    pub origins: FxHashMap<u64, Origin>,
    /// Deltas by source.
    pub links: FxHashMap<Source, i32>,
    /// Numbers of names by source, until the pseudo-links make deltas of them.
    pub(super) names: FxHashMap<Source, i32>,
    /// Pseudo-links found, of inodes that have an origin: the number in its name and the inode
    /// number on the branch.
    pub plinks: Vec<(crate::types::NodeId, u64)>,
}

impl Recovered {
    pub(super) fn replay(&mut self, record: Record) {
        match record {
            Record::Origin { real, origin } => {
                self.origins.insert(real, origin);
            }
            Record::Gone { real } => {
                self.origins.remove(&real);
            }
            Record::Links { source, delta } => {
                self.links.insert(source, delta);
                self.names.remove(&source);
            }
            Record::Names { source, names } => {
                // Without a pseudo-link all of them are links.
                self.links.insert(source, 0);
                self.names.insert(source, names);
            }
        }
    }

    /// Forgets deltas of zero, but for these sources, of which another record says something else.
    pub(super) fn drop_zeros(&mut self, but: &FxHashSet<Source>) {
        self.links
            .retain(|source, delta| *delta != 0 || but.contains(source));
    }

    fn encode(&self) -> Vec<u8> {
        let origins = self.origins.iter();
        let links = self.links.iter();
        origins
            .map(|(&real, &origin)| Record::Origin { real, origin })
            .chain(links.map(|(&source, &delta)| Record::Links { source, delta }))
            .flat_map(|record| record.encode())
            .collect()
    }
}

const FLAGS: OFlags = OFlags::RDWR
    .union(OFlags::CREATE)
    .union(OFlags::APPEND)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// Reads the log in `dir` and changes nothing. Also: are there records that cannot be read?
pub fn look(dir: &OwnedFd) -> Result<(Recovered, bool)> {
    let mut recovered = Recovered::default();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let log = match openat(dir, c"log", flags, Mode::empty()) {
        Ok(log) => log,
        Err(Errno::NOENT) => return Ok((recovered, false)),
        Err(err) => return Err(err),
    };
    let damaged = replay_all(&log, &mut recovered)?;
    Ok((recovered, damaged))
}

/// Writes the log in `dir` anew, without what cannot be read or is superseded.
pub fn rewrite(dir: &OwnedFd) -> Result<()> {
    let (log, recovered) = read(dir)?;
    compact(dir, log, &recovered).map(drop)
}

/// Opens the log in `dir` and reads it.
pub(super) fn read(dir: &OwnedFd) -> Result<(OwnedFd, Recovered)> {
    let log = openat(dir, c"log", FLAGS, Mode::from_bits_truncate(0o600))?;
    let recovered = replay(&log)?;
    Ok((log, recovered))
}

/// Reads an open log.
pub(super) fn replay(log: impl AsFd) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    replay_all(log, &mut recovered)?;
    Ok(recovered)
}

/// Replays every record that can be read; returns whether there are others.
fn replay_all(log: impl AsFd, recovered: &mut Recovered) -> Result<bool> {
    let log = log.as_fd();
    let size = usize::try_from(rustix::fs::fstat(log)?.st_size).map_err(|_| Errno::FBIG)?;
    let mut raw = vec![0; size];
    let len = crate::sys::copy::read_full(log, &mut raw, 0)?;
    let mut damaged = len % RECORD_LEN != 0;
    // After a damaged record the next one starts at its own multiple of the length.
    for record in raw[..len].chunks_exact(RECORD_LEN).map(Record::decode) {
        match record {
            Some(record) => recovered.replay(record),
            None => damaged = true,
        }
    }
    Ok(damaged)
}

/// The log for appending: written anew, unless it holds nothing that is superseded.
pub(super) fn compact(dir: &OwnedFd, log: OwnedFd, recovered: &Recovered) -> Result<File> {
    let raw = recovered.encode();
    if rustix::fs::fstat(&log)?.st_size as usize == raw.len() {
        return Ok(log.into());
    }
    let flags = FLAGS | OFlags::TRUNC;
    let new = openat(dir, c"log.new", flags, Mode::from_bits_truncate(0o600))?;
    crate::sys::copy::write_all(&new, &raw, 0)?;
    rustix::fs::fdatasync(&new)?;
    rustix::fs::renameat(dir, c"log.new", dir, c"log")?;
    Ok(new.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding_and_torn_ones_do_not() {
        let source = Source {
            fs: u64::MAX - 1,
            ino: 77,
            btime: Timestamp {
                sec: 1 << 40,
                nsec: 999_999_999,
            },
        };
        let origin = Origin {
            source,
            btime: Timestamp { sec: -5, nsec: 9 },
        };
        let all = [
            Record::Origin { real: 12, origin },
            Record::Gone { real: u64::MAX },
            Record::Links { source, delta: -2 },
            Record::Names { source, names: 3 },
        ];
        for record in all {
            let raw = record.encode();
            assert_eq!(Record::decode(&raw), Some(record));
            assert_eq!(Record::decode(&raw[..RECORD_LEN - 1]), None);
            let mut bad = raw;
            bad[20] ^= 1;
            assert_eq!(Record::decode(&bad), None);
        }
    }
}
