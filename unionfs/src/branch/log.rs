//! The log of a writable branch: where its copies came from, and link counts.
//!
//! Every record is written with one append and carries a checksum, so that a torn one is recognised
//! and dropped. Losing the tail costs stable inode numbers and exact link counts, never data. A file
//! is named by [`Source`], which means the same in every mount, whatever the other branches are.

use super::removals::{PART, Parts, Removal};
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
    /// are links of that: a crash between a link and its record leaves nothing wrong. Until there is
    /// one, what was recorded before holds.
    Names {
        /// The file whose names move to another branch.
        source: Source,
        /// All of them.
        names: i32,
    },
    /// The head of a [`Removal`].
    Removes {
        /// The file that loses a name.
        source: Source,
        /// Once it has.
        delta: i32,
        /// What the name is before.
        real: u64,
        /// How long the rest is, which follows in parts.
        len: u32,
    },
    /// A part of a [`Removal`].
    Part([u8; PART]),
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
        let length = |len: u32| Timestamp {
            sec: len.into(),
            nsec: 0,
        };
        let (tag, real, btime, delta, source): (u32, u64, _, i32, _) = match *self {
            Self::Origin { real, origin } => (1, real, origin.btime, 0, origin.source),
            Self::Gone { real } => (2, real, Timestamp::default(), 0, nowhere),
            Self::Links { source, delta } => (3, 0, Timestamp::default(), delta, source),
            Self::Names { source, names } => (4, 0, Timestamp::default(), names, source),
            Self::Removes {
                source,
                delta,
                real,
                len,
            } => (5, real, length(len), delta, source),
            Self::Part(_) => (6, 0, Timestamp::default(), 0, nowhere),
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
        if let Self::Part(part) = self {
            out[8..].copy_from_slice(part);
        }
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
            5 => Self::Removes {
                source,
                delta: u32_at(28)? as i32,
                real,
                len: u32::try_from(btime.sec).ok()?,
            },
            6 => Self::Part(raw.get(8..RECORD_LEN)?.try_into().ok()?),
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
    /// Sources whose delta is the last word, whatever other branches say: a name was removed on this
    /// one, and nothing was recorded since.
    pub last_word: FxHashSet<Source>,
    /// Numbers of names by source, until the pseudo-links make deltas of them.
    pub(super) names: FxHashMap<Source, i32>,
    /// Removals that may not have happened, and the delta if they have not.
    removals: FxHashMap<Source, (Removal, Option<i32>)>,
    /// The one that is being read.
    parts: Option<Parts>,
    /// The log holds what it need not, although it is no longer than it must be.
    outdated: bool,
    /// Pseudo-links found, of inodes that have an origin: the number in its name and the inode
    /// number on the branch.
    pub plinks: Vec<(crate::types::NodeId, u64)>,
}

impl Recovered {
    pub(super) fn replay(&mut self, record: Record) {
        let parts = self.parts.take();
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
                self.removals.remove(&source);
                self.last_word.remove(&source);
            }
            Record::Names { source, names } => {
                self.names.insert(source, names);
                self.outdated = true;
                // One change of a file's names comes after the other.
                if self.removals.remove(&source).is_some() {
                    self.last_word.insert(source);
                }
            }
            Record::Removes {
                source,
                delta,
                real,
                len,
            } => self.parts = Some(Parts::begin(source, delta, real, len)),
            Record::Part(part) => {
                if let Some(mut parts) = parts {
                    if parts.add(&part) {
                        self.replay_removal(parts.finish());
                    } else {
                        self.parts = Some(parts);
                    }
                }
            }
        }
    }

    fn replay_removal(&mut self, removal: Removal) {
        let source = removal.source;
        let before = self.links.insert(source, removal.delta);
        self.names.remove(&source);
        self.last_word.remove(&source);
        self.removals.insert(source, (removal, before));
    }

    /// Finds out which removals have happened.
    pub(super) fn settle(
        &mut self,
        mut is_done: impl FnMut(&Removal) -> Result<bool>,
    ) -> Result<()> {
        for (source, (removal, before)) in std::mem::take(&mut self.removals) {
            if is_done(&removal)? {
                self.outdated |= !removal.path.is_empty();
                self.last_word.insert(source);
                continue;
            }
            self.outdated = true;
            match before {
                Some(delta) => self.links.insert(source, delta),
                None => self.links.remove(&source),
            };
        }
        Ok(())
    }

    /// Forgets deltas of zero, but for these sources, of which another record says something else.
    pub(super) fn drop_zeros(&mut self, but: &FxHashSet<Source>) {
        let last = &self.last_word;
        self.links
            .retain(|source, delta| *delta != 0 || but.contains(source) || last.contains(source));
    }

    fn encode(&self) -> Vec<u8> {
        let origins = self.origins.iter();
        let origins = origins.map(|(&real, &origin)| Record::Origin { real, origin });
        let mut raw: Vec<u8> = origins.flat_map(|record| record.encode()).collect();
        for (&source, &delta) in &self.links {
            self.encode_links(source, delta, &mut raw);
        }
        let names = self.names.iter();
        let names = names.map(|(&source, &names)| Record::Names { source, names });
        raw.extend(names.flat_map(|record| record.encode()));
        raw
    }

    fn encode_links(&self, source: Source, delta: i32, raw: &mut Vec<u8>) {
        let links = |delta| Record::Links { source, delta }.encode();
        match self.removals.get(&source) {
            Some((removal, before)) => {
                if let Some(delta) = *before {
                    raw.extend_from_slice(&links(delta));
                }
                raw.extend_from_slice(&removal.encode());
            }
            None if self.last_word.contains(&source) => {
                raw.extend_from_slice(&Removal::done(source, delta).encode());
            }
            None => raw.extend_from_slice(&links(delta)),
        }
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
    if !recovered.outdated && rustix::fs::fstat(&log)?.st_size as usize == raw.len() {
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
            Record::Removes {
                source,
                delta: -1,
                real: 5,
                len: 300,
            },
            Record::Part([7; PART]),
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

    #[test]
    fn what_was_recorded_before_holds_until_a_change_has_happened() {
        let source = Source {
            fs: 1,
            ino: 7,
            btime: Timestamp::default(),
        };
        let removal = Removal {
            source,
            delta: -2,
            real: 0,
            dir: (5, Timestamp::default()),
            path: b"d/name".to_vec(),
        };
        let read = |raw: &[u8], done| {
            let mut recovered = Recovered::default();
            for record in raw.chunks(RECORD_LEN) {
                recovered.replay(Record::decode(record).unwrap());
            }
            recovered.settle(|_| Ok(done)).unwrap();
            recovered
        };
        let links = Record::Links { source, delta: -1 }.encode().to_vec();
        let names = Record::Names { source, names: 4 }.encode().to_vec();
        let announced = [&links[..], &removal.encode()].concat();
        for (raw, done, delta, last) in [
            ([&links[..], &names].concat(), true, -1, false),
            (announced.clone(), false, -1, false),
            (announced.clone(), true, -2, true),
            ([&announced[..], &names].concat(), true, -2, true),
            ([&announced[..], &links].concat(), true, -1, false),
        ] {
            let read_once = read(&raw, done);
            assert_eq!(read_once.links.get(&source), Some(&delta));
            assert_eq!(read_once.last_word.contains(&source), last);
            // And again, after it was written anew.
            let again = read(&read_once.encode(), true);
            assert_eq!(again.links.get(&source), Some(&delta));
            assert_eq!(again.last_word.contains(&source), last);
        }
    }
}
