//! What format a branch is in, by the marks that are found on it.

use super::overlay::Attributes;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::stat::stat_at;
use crate::sys::walk::{Step, entries, tree};
use crate::sys::xattr;
use crate::types::Kind;
use crate::whiteout::{NameClass, OPAQUE_FO, classify};
use rustix::fd::{AsFd, OwnedFd};

/// What the names and attributes of one directory say. `None`: they are those of any directory.
///
/// A bookkeeping name of AUFS speaks for AUFS. An attribute of overlayfs speaks for overlayfs, and so
/// does `.wh..opq`, whatever other names there are: fuse-overlayfs marks opaque directories by both.
/// Else a name that begins with `.wh.` speaks for AUFS, and a 0/0 device for overlayfs.
fn evidence(dir: &OwnedFd, names: &[(crate::sys::Name, Kind)]) -> Result<Option<Format>> {
    if names
        .iter()
        .any(|(n, _)| classify(n) == NameClass::Reserved)
    {
        return Ok(Some(Format::Aufs));
    }
    if names.iter().any(|(n, _)| **n == *OPAQUE_FO)
        || !Attributes::of(&xattr::Target::dir(dir.as_fd()))?.is_empty()
    {
        return Ok(Some(Format::Overlay));
    }
    if names.iter().any(|(n, _)| classify(n) != NameClass::Plain) {
        return Ok(Some(Format::Aufs));
    }
    for (name, _) in names.iter().filter(|(_, kind)| *kind == Kind::Char) {
        if stat_at(dir, name)?.is_null_device() {
            return Ok(Some(Format::Overlay));
        }
    }
    Ok(None)
}

/// What the first directory of a tree that says something says.
pub fn in_tree(root: &OwnedFd) -> Result<Option<Format>> {
    let mut found = None;
    tree(root, (), |step, ()| {
        let Step::Dir(here) = step else {
            return Ok(Vec::new());
        };
        if found.is_some() {
            return Ok(Vec::new());
        }
        let names = entries(here.dir)?;
        found = evidence(here.dir, &names)?;
        let dirs = names.into_iter().filter(|(_, kind)| *kind == Kind::Dir);
        Ok::<_, Errno>(dirs.map(|(name, _)| (name, ())).collect())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::marks::{create_mark, make_null_device};
    use rustix::fs::{CWD, Mode, OFlags, openat};

    #[test]
    fn the_first_mark_that_belongs_to_one_format_decides() {
        let table: [(&[&str], Option<Format>); 5] = [
            (&["plain"], None),
            (&[".wh.gone"], Some(Format::Aufs)),
            (&[".wh..wh..opq"], Some(Format::Aufs)),
            (&[".wh..wh..opq", ".wh..opq"], Some(Format::Overlay)),
            (&[".wh..wh.aufs", ".wh..opq"], Some(Format::Aufs)),
        ];
        for (names, want) in table {
            let temp = tempfile::tempdir().unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = openat(CWD, temp.path(), flags, Mode::empty()).unwrap();
            for name in names {
                create_mark(&root, name.as_bytes()).unwrap();
            }
            assert_eq!(in_tree(&root).unwrap(), want, "{names:?}");
            if want.is_none() && make_null_device(&root, b"gone").is_ok() {
                assert_eq!(in_tree(&root).unwrap(), Some(Format::Overlay));
            }
        }
    }
}
