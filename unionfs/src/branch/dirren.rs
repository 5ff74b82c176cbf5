//! The files that record redirects in the AUFS format: `.wh..wh.uaufs/dirren/<inode>`, each the
//! birth time of a renamed directory and the path of its lower parts (see `union::redirect`).

use super::{Branch, Store};
use crate::errno::{Errno, Result};
use crate::sys::loc::open_beneath;
use crate::types::Timestamp;
use crate::whiteout::STORE_DIR;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat};

/// Name of the directory within the bookkeeping.
pub const DIR_NAME: &[u8] = b"dirren";

/// A recorded redirect: inode, birth time, path.
pub type Recorded = (u64, Timestamp, Vec<u8>);

impl Branch {
    /// The redirects recorded on this branch, which may be readonly now.
    pub fn redirects(&self) -> Result<Vec<Recorded>> {
        if let Some(store) = &self.store {
            return read(store.redirects());
        }
        let mut path = STORE_DIR.to_vec();
        path.push(b'/');
        path.extend_from_slice(DIR_NAME);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match open_beneath(&self.root, &path, flags) {
            Ok(dir) => read(&dir),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Vec::new()),
            Err(err) => Err(err),
        }
    }
}

/// The redirects recorded in this directory.
pub fn read(dir: &OwnedFd) -> Result<Vec<Recorded>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let Some(real) = entry.file_name().to_str().ok().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(dir, entry.file_name(), flags, Mode::empty())?;
        let mut raw = vec![0; 64 << 10];
        let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
        if let Some((btime, path)) = decode(&raw[..len]) {
            found.push((real, btime, path));
        }
    }
    Ok(found)
}

/// The redirects recorded in a bookkeeping directory.
pub fn all(books: &OwnedFd) -> Result<Vec<Recorded>> {
    match super::offline::existing(books.as_fd(), DIR_NAME)? {
        Some(dir) => read(&dir),
        None => Ok(Vec::new()),
    }
}

fn encode(btime: Timestamp, path: &[u8]) -> Vec<u8> {
    let mut raw = format!("{}.{}\n", btime.sec, btime.nsec).into_bytes();
    raw.extend_from_slice(path);
    raw
}

/// Records a redirect durably in `dir`; it is written in `tmp` first.
pub fn write(dir: &OwnedFd, tmp: &OwnedFd, record: (u64, Timestamp, &[u8])) -> Result<()> {
    let (real, btime, path) = record;
    let name = real.to_string();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(tmp, name.as_bytes(), flags, Mode::from_bits_truncate(0o600))?;
    crate::sys::copy::write_all(&file, &encode(btime, path), 0)?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(tmp, name.as_bytes(), dir, name.as_bytes())?;
    rustix::fs::fsync(dir)
}

impl Store {
    /// Records a redirect durably, replacing an older one of the same directory.
    pub fn write_redirect(&self, real: u64, btime: Timestamp, path: &[u8]) -> Result<()> {
        let raw = encode(btime, path);
        self.write_record(self.redirects(), real.to_string().as_bytes(), &raw, true)
    }

    /// Forgets a redirect.
    pub fn remove_redirect(&self, real: u64) {
        // A leftover is harmless: a later directory of this number has another birth time, or (where
        // there is none) drops it when it is made.
        let name = real.to_string();
        let _ = rustix::fs::unlinkat(self.redirects(), name.as_bytes(), AtFlags::empty());
    }
}

fn decode(raw: &[u8]) -> Option<(Timestamp, Vec<u8>)> {
    let end = raw.iter().position(|b| *b == b'\n')?;
    let (sec, nsec) = std::str::from_utf8(&raw[..end]).ok()?.split_once('.')?;
    let btime = Timestamp {
        sec: sec.parse().ok()?,
        nsec: nsec.parse().ok()?,
    };
    Some((btime, raw[end + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_may_hold_any_byte() {
        let (btime, path) = decode(b"-5.7\na\n/\xff").unwrap();
        assert_eq!((btime.sec, btime.nsec), (-5, 7));
        assert_eq!(path, b"a\n/\xff");
        assert_eq!(decode(b"5\npath"), None);
        assert_eq!(decode(b"5.7"), None);
    }
}
