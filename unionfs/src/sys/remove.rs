//! Removes a tree that somebody else wrote: however deep it is, with few descriptors and without
//! following a symbolic link.

use crate::errno::{Errno, Result};
use crate::sys::walk::names;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Directories that lie deeper are moved up before they are emptied.
const DEPTH: usize = 64;

/// Removes the directory at `path` and everything in it; none there is fine.
///
/// # Errors
/// What cannot be removed is an error; what vanishes meanwhile is not.
pub fn tree(path: &Path) -> Result<()> {
    let top = match open(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    };
    contents(&top)?;
    rustix::fs::rmdir(path)
}

/// Removes everything in a directory, which may be given by an `O_PATH` descriptor.
///
/// # Errors
/// As for [`tree`].
pub fn contents(dir: impl AsFd) -> Result<()> {
    let top = open(dir, c".")?;
    let mut moved = Moved {
        top: &top,
        count: 0,
    };
    // Each pass may have moved directories up, into the names that are listed next.
    loop {
        let before = moved.count;
        empty(&top, 0, &mut moved)?;
        if moved.count == before {
            return Ok(());
        }
    }
}

/// Where deep directories go, and how many went there.
struct Moved<'a> {
    top: &'a OwnedFd,
    count: u64,
}

impl Moved<'_> {
    fn take(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        loop {
            let to = OsString::from(format!(".removed-{}", self.count));
            self.count += 1;
            match rustix::fs::renameat(dir, name, self.top, &to) {
                // The name is taken, by a container that knew or by an earlier try.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                result => return result,
            }
        }
    }
}

fn empty(dir: &OwnedFd, depth: usize, moved: &mut Moved<'_>) -> Result<()> {
    for (name, _) in names(dir)? {
        let name = &*name;
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            // unlink(2) of a directory is EISDIR here, EPERM by POSIX.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            // Not a directory after all: the file itself may not be removed.
            Err(Errno::NOTDIR) => return Err(Errno::PERM),
            Err(errno) => return Err(errno),
        }
        if depth == DEPTH {
            moved.take(dir, name)?;
        } else {
            empty(&open(dir, name)?, depth + 1, moved)?;
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn open(dir: impl AsFd, name: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_trees_and_links_are_removed_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let kept = base.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let top = base.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::fs::create_dir_all(top.join(".removed-0/x")).unwrap();
        std::os::unix::fs::symlink(&kept, top.join("link")).unwrap();
        let mut dir = open(CWD, &top).unwrap();
        for _ in 0..3 * DEPTH {
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat(&kept, &dir, "l").unwrap();
            dir = open(&dir, "d").unwrap();
        }
        tree(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
        assert_eq!(tree(&top), Ok(()));
    }
}
