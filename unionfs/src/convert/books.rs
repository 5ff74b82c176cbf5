//! The bookkeeping over a conversion: the marker, and what moves to the other format's place.

use crate::branch::offline::{Offline, existing, recorded_format};
use crate::branch::store;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::remove;
use crate::sys::stat::stat_at;
use crate::sys::walk::entries;
use crate::whiteout::{BASE, CONVERTING, ORPHAN_DIR, PLINK_DIR, STORE_DIR};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};

/// The bookkeeping of a branch that is in the overlay format now, until it is removed.
const FINISHED: &[u8] = b".wh..wh.uaufs.done";

/// What both formats have in their bookkeeping, and what is AUFS's own.
const MOVED: [&[u8]; 3] = [b"log", b"links", b"lost"];

/// Which format a conversion that was begun leads to.
pub(super) fn begun(aufs: &Offline) -> Result<Option<Format>> {
    let Some(books) = aufs.books() else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(books, CONVERTING, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut raw = [0; 64];
    let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
    match &raw[..len] {
        b"to aufs\n" => Ok(Some(Format::Aufs)),
        b"to overlay\n" => Ok(Some(Format::Overlay)),
        _ => Err(Errno::IO),
    }
}

/// What the branch is, by its bookkeeping or its marks.
pub(super) fn recorded(
    aufs: &Offline,
    overlay: &Offline,
    root: &OwnedFd,
) -> Result<Option<Format>> {
    for books in [aufs.books(), overlay.books()].into_iter().flatten() {
        if let Some(format) = recorded_format(books)? {
            return Ok(Some(format));
        }
    }
    crate::branch::detect::in_tree(root)
}

/// Writes the marker durably.
pub(super) fn begin(aufs: &mut Offline, to: Format) -> Result<()> {
    let tmp = aufs.books_dir(b"tmp")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(&tmp, CONVERTING, flags, Mode::from_bits_truncate(0o600))?;
    crate::sys::copy::write_all(&file, format!("to {to}\n").as_bytes(), 0)?;
    rustix::fs::fsync(&file)?;
    let books = aufs.books().ok_or(Errno::IO)?;
    renameat(&tmp, CONVERTING, books, CONVERTING)?;
    rustix::fs::fsync(books)
}

/// Moves an entry if it is there; what has moved already is not.
fn take(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> Result<()> {
    match renameat(from, name, to, name) {
        Err(Errno::NOENT) => Ok(()),
        // An empty directory may be replaced; another one of these is older.
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            let old = existing(to.as_fd(), name)?.ok_or(Errno::NOTEMPTY)?;
            remove::contents(&old)?;
            renameat(from, name, to, name)
        }
        other => other,
    }
}

/// All marks are the overlay format's now: the bookkeeping moves to the work directory, or goes.
pub(super) fn leave_aufs(aufs: &mut Offline, overlay: &mut Offline) -> Result<()> {
    let books = rustix::io::dup(aufs.books().ok_or(Errno::IO)?)?;
    if overlay.may_have_books() {
        overlay.books_dir(b"tmp")?;
        let home = overlay.books().ok_or(Errno::IO)?;
        for name in MOVED {
            take(&books, home, name)?;
        }
        take(&aufs.root, home, PLINK_DIR)?;
        store::write_format(home, Format::Overlay)?;
    }
    for name in [PLINK_DIR, ORPHAN_DIR] {
        if let Some(dir) = existing(aufs.root.as_fd(), name)? {
            remove::contents(&dir)?;
            unlinkat(&aufs.root, name, AtFlags::REMOVEDIR)?;
        }
    }
    match unlinkat(&aufs.root, BASE, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(err) => return Err(err),
    }
    rustix::fs::fsync(&aufs.root)?;
    renameat(&aufs.root, STORE_DIR, &aufs.root, FINISHED)?;
    remove_finished(&aufs.root, false).map(drop)
}

/// Removes the rest of a conversion that is done; false = there was none.
pub(super) fn remove_finished(root: &OwnedFd, dry_run: bool) -> Result<bool> {
    let Some(dir) = existing(root.as_fd(), FINISHED)? else {
        return Ok(false);
    };
    if !dry_run {
        remove::contents(&dir)?;
        unlinkat(root, FINISHED, AtFlags::REMOVEDIR)?;
    }
    Ok(true)
}

/// All marks are AUFS's now: the bookkeeping moves to the branch.
pub(super) fn leave_overlay(aufs: &mut Offline, overlay: &Offline) -> Result<()> {
    let books = aufs.books().ok_or(Errno::IO)?;
    if let Some(home) = overlay.books() {
        for name in MOVED {
            take(home, books, name)?;
        }
        take(home, &aufs.root, PLINK_DIR)?;
        // The work directory must not speak for the branch any more.
        match unlinkat(home, c"format", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(err) => return Err(err),
        }
    }
    finish_aufs(aufs)
}

/// The branch is in AUFS's format now.
pub(super) fn finish_aufs(aufs: &Offline) -> Result<()> {
    let books = aufs.books().ok_or(Errno::IO)?;
    store::write_format(books, Format::Aufs)?;
    rustix::fs::fsync(books)?;
    unlinkat(books, CONVERTING, AtFlags::empty())
}

/// Does the bookkeeping hold pseudo-links or things set aside, which would be lost without a place
/// to move to?
pub(super) fn holds_data(aufs: &Offline) -> Result<Option<&'static [u8]>> {
    let lost = match aufs.books() {
        Some(books) => existing(books.as_fd(), b"lost")?,
        None => None,
    };
    let plinks = existing(aufs.root.as_fd(), PLINK_DIR)?;
    for (dir, name) in [(plinks, PLINK_DIR), (lost, b".wh..wh.uaufs/lost")] {
        if let Some(dir) = dir
            && !entries(&dir)?.is_empty()
        {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Are the two places on one filesystem, so that things can move?
pub(super) fn can_move(aufs: &Offline, overlay: &Offline) -> Result<bool> {
    let Some(work) = overlay.work() else {
        return Ok(true);
    };
    let here = stat_at(&aufs.root, b".")?.dev;
    Ok(stat_at(work, b".")?.dev == here)
}
