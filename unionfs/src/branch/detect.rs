//! What format a branch is in, by the marks that are found on it.

use super::overlay::Attributes;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::stat::stat_at;
use crate::sys::walk::{Step, entries, tree};
use crate::sys::xattr;
use crate::types::Kind;
use crate::whiteout::{NameClass, classify};
use rustix::fd::{AsFd, OwnedFd};

/// What the names and attributes of one directory say. `None`: they are those of any directory.
///
/// A name that begins with `.wh.` speaks for AUFS, an attribute of overlayfs or a 0/0 device for
/// overlayfs; the names are asked first.
fn evidence(dir: &OwnedFd, names: &[(crate::sys::Name, Kind)]) -> Result<Option<Format>> {
    if names.iter().any(|(n, _)| classify(n) != NameClass::Plain) {
        return Ok(Some(Format::Aufs));
    }
    if !Attributes::of(&xattr::Target::dir(dir.as_fd()))?.is_empty() {
        return Ok(Some(Format::Overlay));
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
