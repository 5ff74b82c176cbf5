//! What a container changed, read from its writable layer alone: whiteouts are deletions, what lies
//! on a branch below too is a change, everything else is new.

use crate::error::Explain;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use unionfs::whiteout::{NameClass, classify};

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Change {
    /// Added.
    A,
    /// Changed.
    C,
    /// Deleted.
    D,
}

/// Changed paths, absolute in the container.
pub type Changes = BTreeMap<PathBuf, Change>;

/// Compares `layer` with the branches below it.
pub fn changes(layer: &Path, lower: &[PathBuf]) -> Result<Changes> {
    let mut found = Changes::new();
    walk(layer, Path::new(""), lower, &mut found)?;
    Ok(found)
}

fn walk(layer: &Path, below: &Path, lower: &[PathBuf], found: &mut Changes) -> Result<()> {
    let dir = layer.join(below);
    let entries = std::fs::read_dir(&dir).explain(|| format!("reading {}", dir.display()))?;
    for entry in entries {
        let entry = entry.explain(|| format!("reading {}", dir.display()))?;
        let name = entry.file_name();
        match classify(name.as_bytes()) {
            NameClass::Whiteout(hidden) => {
                let path = below.join(OsString::from_vec(hidden.to_vec()));
                found.entry(Path::new("/").join(path)).or_insert(Change::D);
                continue;
            }
            NameClass::Opaque | NameClass::Reserved => continue,
            NameClass::Plain => {}
        }
        let path = below.join(&name);
        let exists = lower
            .iter()
            .any(|branch| branch.join(&path).symlink_metadata().is_ok());
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let change = if exists { Change::C } else { Change::A };
        found.insert(Path::new("/").join(&path), change);
        if is_dir {
            walk(layer, &path, lower, found)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_changes_and_deletions() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, lower) = (dir.path().join("u"), dir.path().join("l"));
        for path in ["u/etc", "u/new", "l/etc", "l/gone", "u/.wh..wh.uaufs"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in [
            "u/etc/a",
            "u/etc/.wh.b",
            "u/new/.wh..wh..opq",
            "u/new/x",
            "u/.wh.gone",
            "l/etc/a",
            "l/etc/b",
        ] {
            std::fs::write(dir.path().join(path), "").unwrap();
        }
        let found: Vec<_> = changes(&layer, &[lower]).unwrap().into_iter().collect();
        let want = [
            ("/etc", Change::C),
            ("/etc/a", Change::C),
            ("/etc/b", Change::D),
            ("/gone", Change::D),
            ("/new", Change::A),
            ("/new/x", Change::A),
        ];
        assert_eq!(
            found,
            want.map(|(path, change)| (PathBuf::from(path), change))
        );
    }
}
