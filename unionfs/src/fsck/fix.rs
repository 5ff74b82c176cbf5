//! The single steps of a repair.

use crate::branch::marks;
use crate::branch::offline::Offline;
use crate::errno::{Errno, Result};
use crate::sys::loc::open_beneath;
use crate::sys::remove;
use crate::sys::stat::stat_at;
use crate::types::Kind;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, OFlags, RenameFlags, renameat_with, unlinkat};

/// Where things that may be a user's go.
const LOST: &[u8] = b"lost";
/// Where directories go before they are emptied: mounts empty it too.
const TRASH: &[u8] = b"trash";

/// Removes what is no directory.
pub(super) fn unlink(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Removes anything; a directory in one step as far as its name is concerned.
pub(super) fn remove(branch: &mut Offline, dir: &OwnedFd, name: &[u8], kind: Kind) -> Result<()> {
    if kind != Kind::Dir {
        return unlink(dir, name);
    }
    let trash = branch.books_dir(TRASH)?;
    take_to(&trash, dir, name)?;
    remove::contents(&trash)
}

/// Removes a directory that holds nothing of a user, where it is.
pub(super) fn remove_in_place(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    remove::contents(open_beneath(dir, name, flags)?)?;
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Moves something out of the tree, to where the user finds it.
pub(super) fn set_aside(branch: &mut Offline, dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let lost = branch.books_dir(LOST)?;
    take_to(&lost, dir, name)
}

/// Renames under the first free name `NUMBER-NAME`.
fn take_to(to: &OwnedFd, dir: &OwnedFd, name: &[u8]) -> Result<()> {
    for number in 0..u32::MAX {
        let mut new = format!("{number}-").into_bytes();
        new.extend_from_slice(&name[..name.len().min(240)]);
        match renameat_with(dir, name, to, &new, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
    Err(Errno::EXIST)
}

/// Puts a proper mark in the place of one that is no regular file, in one step.
pub(super) fn replace_mark(branch: &mut Offline, dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let lost = branch.books_dir(LOST)?;
    for number in 0..u32::MAX {
        let aside = format!("{number}-opaque").into_bytes();
        match stat_at(&lost, &aside) {
            // From a repair that was killed before the next step.
            Ok(stat) if stat.kind() == Kind::File && stat.size == 0 => {}
            Ok(_) => continue,
            Err(Errno::NOENT) => marks::create_mark(&lost, &aside)?,
            Err(err) => return Err(err),
        }
        return renameat_with(&lost, &aside, dir, name, RenameFlags::EXCHANGE);
    }
    Err(Errno::EXIST)
}
