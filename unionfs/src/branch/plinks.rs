//! Pseudo-links of a writable branch: a hard link of each copy that other names lead to.
//!
//! `.wh..wh.plnk/<node>.<inode>` is AUFS's form; the number means something to the mount that wrote
//! it. What it is a copy of and how many names it had then is said by a file of its own,
//! `.wh..wh.uaufs/links/<inode>`, durable before the pseudo-link exists: without it the other names
//! would show the old file.

use super::Store;
use super::log::{Origin, RECORD_LEN, Record, Recovered};
use crate::errno::{Errno, Result, twice};
use crate::sys::stat::stat_at;
use crate::sys::{Name, RealStat};
use crate::types::{Kind, NodeId};
use rustc_hash::FxHashSet;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat};

/// The name of a pseudo-link.
pub fn plink_name(node: NodeId, real: u64) -> Name {
    Name::from_slice(format!("{}.{real}", node.0).as_bytes())
}

fn book_name(real: u64) -> String {
    real.to_string()
}

impl Store {
    /// Makes a pseudo-link of the file `temp` in the directory for temporary files.
    ///
    /// `delta`: names that its source has beyond the links that the copy will have. `durable`: the
    /// record reaches the disk first.
    pub fn add_plink(
        &self,
        (temp, real): (&[u8], u64),
        node: NodeId,
        origin: Origin,
        delta: i32,
        durable: bool,
    ) -> Result<()> {
        let source = origin.source;
        let mut raw = Record::Origin { real, origin }.encode().to_vec();
        raw.extend_from_slice(&Record::Links { source, delta }.encode());
        self.write_record(self.link_books(), book_name(real).as_bytes(), &raw, durable)?;
        let name = plink_name(node, real);
        rustix::fs::linkat(self.tmp(), temp, self.plinks(), &*name, AtFlags::empty())
            .inspect_err(|_| self.remove_book(real))
    }

    /// Removes a pseudo-link. True if it is gone. One that is not keeps its record, and with it its
    /// meaning; it never shows.
    pub fn remove_plink(&self, node: NodeId, real: u64) -> bool {
        let name = plink_name(node, real);
        match twice(|| rustix::fs::unlinkat(self.plinks(), &*name, AtFlags::empty())) {
            Ok(()) | Err(Errno::NOENT) => {
                self.remove_book(real);
                true
            }
            Err(err) => {
                log::warn!("a pseudo-link cannot be removed: {err}");
                false
            }
        }
    }

    /// One that is left means nothing, and the next mount removes it.
    fn remove_book(&self, real: u64) {
        let book = book_name(real);
        let _ = rustix::fs::unlinkat(self.link_books(), book.as_bytes(), AtFlags::empty());
    }

    /// In this mount the file has another number.
    pub fn renumber_plink(&self, old: NodeId, new: NodeId, real: u64) -> Result<()> {
        let (old, new) = (plink_name(old, real), plink_name(new, real));
        rustix::fs::renameat(self.plinks(), &*old, self.plinks(), &*new)
    }
}

/// Completes what the log told by what lies in the two directories.
pub(super) fn read(plinks: &OwnedFd, books: &OwnedFd, recovered: &mut Recovered) -> Result<()> {
    let mut booked = FxHashSet::default();
    let mut kept = FxHashSet::default();
    for (named, real, stat) in list(plinks)? {
        let btime = stat.btime;
        if let Some((origin, source, delta)) = read_book(books, real)?
            && origin.btime == btime
        {
            // The log is newer, where it says something.
            recovered.origins.entry(real).or_insert(origin);
            recovered.links.entry(source).or_insert(delta);
            if let Some(names) = recovered.names.remove(&source) {
                let links = stat.nlink as i32 - 1;
                recovered.links.insert(source, names - links);
            }
            booked.insert(source);
            kept.insert(real);
        }
        // One of the real AUFS has a number that means nothing to us.
        if recovered
            .origins
            .get(&real)
            .is_some_and(|o| o.btime == btime)
        {
            recovered.plinks.push((named, real));
        }
    }
    // Without a pseudo-link nothing has moved yet.
    recovered.names.clear();
    recovered.drop_zeros(&booked);
    remove_other_books(books, &kept)
}

/// Names in the pseudo-link directory that lead nowhere: neither a book nor the log says what they
/// are copies of, or they are not what their names say.
pub fn strays(
    plinks: &OwnedFd,
    books: Option<&OwnedFd>,
    recovered: &Recovered,
) -> Result<Vec<Name>> {
    let mut sound = FxHashSet::default();
    for (node, real, stat) in list(plinks)? {
        let btime = stat.btime;
        let logged = recovered.origins.get(&real);
        let booked = match books {
            Some(books) => read_book(books, real)?,
            None => None,
        };
        if logged.is_some_and(|o| o.btime == btime) || booked.is_some_and(|b| b.0.btime == btime) {
            sound.insert(plink_name(node, real));
        }
    }
    let all = crate::sys::walk::entries(plinks)?.into_iter();
    Ok(all
        .map(|(name, _)| name)
        .filter(|n| !sound.contains(n))
        .collect())
}

/// Names of books that no pseudo-link goes with.
pub fn stray_books(plinks: &OwnedFd, books: &OwnedFd) -> Result<Vec<Name>> {
    let mut wanted = FxHashSet::default();
    for (_, real, _) in list(plinks)? {
        wanted.insert(Name::from_slice(book_name(real).as_bytes()));
    }
    let all = crate::sys::walk::entries(books)?.into_iter();
    Ok(all
        .map(|(name, _)| name)
        .filter(|n| !wanted.contains(n))
        .collect())
}

/// The pseudo-links that are what their names say: number, inode, stat.
fn list(dir: &OwnedFd) -> Result<Vec<(NodeId, u64, RealStat)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some((node, real)) = name.to_str().ok().and_then(|t| t.split_once('.')) else {
            continue;
        };
        let (Ok(node), Ok(real)) = (node.parse(), real.parse()) else {
            continue;
        };
        if let Ok(stat) = stat_at(dir, name.to_bytes())
            && stat.ino == real
            && stat.kind() != Kind::Dir
        {
            found.push((NodeId(node), real, stat));
        }
    }
    Ok(found)
}

fn read_book(books: &OwnedFd, real: u64) -> Result<Option<(Origin, super::log::Source, i32)>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(books, book_name(real).as_bytes(), flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut raw = [0; 2 * RECORD_LEN];
    let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
    let mut records = raw[..len].chunks_exact(RECORD_LEN).map(Record::decode);
    match (records.next().flatten(), records.next().flatten()) {
        (
            Some(Record::Origin {
                real: recorded,
                origin,
            }),
            Some(Record::Links { source, delta }),
        ) if recorded == real => Ok(Some((origin, source, delta))),
        _ => Ok(None),
    }
}

fn remove_other_books(books: &OwnedFd, kept: &FxHashSet<u64>) -> Result<()> {
    for entry in Dir::read_from(books)? {
        let entry = entry?;
        let name = entry.file_name();
        let real = name.to_str().ok().and_then(|n| n.parse().ok());
        if real.is_some_and(|real: u64| !kept.contains(&real)) {
            rustix::fs::unlinkat(books, name, AtFlags::empty())?;
        }
    }
    Ok(())
}
