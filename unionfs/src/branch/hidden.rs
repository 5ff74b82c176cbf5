//! The deletions of unionfs-fuse (`unionfs -o cow`): `.unionfs/PATH_HIDDEN~` in the root of a branch
//! hides PATH on the branches below (`.unionfs-fuse/` in version 1). The directory of PATH need not be
//! on the branch itself.
//!
//! They are read whole when a branch is opened: names that were removed are few, and where they are
//! written down says nothing about the directory that is looked at.

use crate::errno::{Errno, Result};
use crate::sys::Name;
use crate::sys::loc::open_beneath;
use crate::sys::walk::{Step, entries, joined, tree};
use crate::types::Kind;
use rustc_hash::FxHashSet;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use std::collections::BTreeMap;

/// The directories that deletions are kept in, in the root of a branch: now, and before version 2.
pub const META: [&[u8]; 2] = [b".unionfs", b".unionfs-fuse"];
/// What the name of a deletion ends with.
const TAG: &[u8] = b"_HIDDEN~";

/// The names that a branch hides below it.
#[derive(Debug, Default)]
pub struct Hidden {
    dirs: BTreeMap<Vec<u8>, FxHashSet<Name>>,
    /// Which of the directories it is.
    meta: &'static [u8],
}

impl Hidden {
    /// Those of the branch with this root. `None` = it has no such directory.
    ///
    /// # Errors
    /// Those of reading them; ELOOP and ENOTDIR never: then the name is somebody else's.
    pub fn read(root: &OwnedFd) -> Result<Option<Self>> {
        for meta in META {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match open_beneath(root, meta, flags) {
                Ok(dir) => return Self::read_in(&dir, meta).map(Some),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(None)
    }

    fn read_in(dir: &OwnedFd, meta: &'static [u8]) -> Result<Self> {
        let mut dirs = BTreeMap::new();
        tree(dir, (), |step, ()| match step {
            Step::Dir(here) => {
                let (mut names, mut below) = (FxHashSet::default(), Vec::new());
                for (name, kind) in entries(here.dir)? {
                    match name.strip_suffix(TAG) {
                        Some(hidden) if !hidden.is_empty() => {
                            names.insert(Name::from_slice(hidden));
                        }
                        _ if kind == Kind::Dir => below.push((name, ())),
                        _ => {}
                    }
                }
                if !names.is_empty() {
                    dirs.insert(here.path.to_vec(), names);
                }
                Ok(below)
            }
            Step::Closed(_, errno) => Err(errno),
        })?;
        Ok(Self { dirs, meta })
    }

    /// The directory in the root of the branch that they are in.
    pub fn meta(&self) -> &'static [u8] {
        self.meta
    }

    /// Does the branch hide `name` in the directory at `dir` (from its root)?
    pub fn hides(&self, dir: &[u8], name: &[u8]) -> bool {
        self.dirs.get(dir).is_some_and(|names| names.contains(name))
    }

    /// Where it is written down, from the root of the branch, that `name` in `dir` is hidden.
    pub fn mark(&self, dir: &[u8], name: &[u8]) -> Vec<u8> {
        [self.meta, b"/", &joined(dir, name), TAG].concat()
    }

    /// What it hides in the directory at `dir`.
    pub fn names(&self, dir: &[u8]) -> impl Iterator<Item = &Name> {
        self.dirs.get(dir).into_iter().flatten()
    }

    /// The names in the directory at `dir` through which the way to something hidden leads.
    pub fn ways<'a>(&'a self, dir: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let from = match dir {
            b"" => Vec::new(),
            dir => joined(dir, b""),
        };
        let len = from.len();
        let below = self.dirs.range(from.clone()..).map(|(path, _)| path);
        let below = below.take_while(move |path| path.starts_with(&from));
        below
            .filter_map(move |path| path[len..].split(|b| *b == b'/').next())
            .filter(|name| !name.is_empty())
    }

    /// The directories in which it hides something, parents first, with the names.
    pub fn dirs(&self) -> impl Iterator<Item = (&[u8], &FxHashSet<Name>)> {
        self.dirs.iter().map(|(path, names)| (&**path, names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, openat};
    use std::fs;

    #[test]
    fn deletions_are_found_where_they_are_kept_and_nothing_else_is_one() {
        let temp = tempfile::tempdir().unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, temp.path(), flags, Mode::empty()).unwrap();
        assert!(Hidden::read(&root).unwrap().is_none());
        let meta = temp.path().join(".unionfs-fuse");
        for dir in ["a/b", "a/gone_HIDDEN~", "top_HIDDEN~", "x"] {
            fs::create_dir_all(meta.join(dir)).unwrap();
        }
        fs::write(meta.join("a/b/file_HIDDEN~"), "").unwrap();
        fs::write(meta.join("a/b/_HIDDEN~"), "").unwrap();
        fs::write(meta.join("a/b/other"), "").unwrap();
        let hidden = Hidden::read(&root).unwrap().unwrap();
        assert!(hidden.hides(b"", b"top") && hidden.hides(b"a", b"gone"));
        assert!(hidden.hides(b"a/b", b"file"));
        assert!(!hidden.hides(b"a/b", b"other") && !hidden.hides(b"", b"x"));
        let dirs: Vec<&[u8]> = hidden.dirs().map(|(path, _)| path).collect();
        assert_eq!(dirs, [&b""[..], b"a", b"a/b"]);
        assert_eq!(hidden.names(b"a/b").count(), 1);
        assert!(hidden.ways(b"").all(|name| name == b"a"));
        assert_eq!(hidden.ways(b"a").collect::<Vec<_>>(), [b"b"]);
        assert_eq!(hidden.ways(b"a/b").count(), 0);
        assert_eq!(hidden.mark(b"a", b"gone"), b".unionfs-fuse/a/gone_HIDDEN~");
    }
}
