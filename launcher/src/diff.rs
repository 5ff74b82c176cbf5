//! What a container changed, read from its writable layer: copies, whiteouts, opaque directories.
//!
//! Directories are opened one name at a time and never through a symbolic link: the layer's
//! content is the container's.

use crate::error::Explain;
use crate::ostext::OsText;
use anyhow::Result;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Prefix of a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of everything that belongs to the union itself.
const RESERVED: &[u8] = b".wh..wh.";
/// Marks a directory that hides what lies below.
const OPAQUE: &str = ".wh..wh..opq";
/// Longest name for which `.wh.NAME` is a name; longer ones are hidden by a 0/0 device.
const MAX_WHITEOUT: usize = 255 - WHITEOUT.len();

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// It is new.
    #[serde(rename = "A")]
    Added,
    /// It was there before.
    #[serde(rename = "C")]
    Changed,
    /// It is gone.
    #[serde(rename = "D")]
    Deleted,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// Absolute path inside the container.
    pub path: OsText,
    /// What happened.
    #[serde(rename = "change")]
    pub kind: Kind,
}

/// A branch below the writable layer.
pub struct Lower<'a> {
    /// Its directory.
    pub path: &'a Path,
    /// Whiteouts and opaque marks on it count.
    pub whiteouts: bool,
}

/// Compares a layer with the branches below it, topmost first. Sorted by path.
pub fn changes(layer: &Path, lowers: &[Lower<'_>]) -> Result<Vec<Change>> {
    let upper =
        open_directory(CWD, layer.as_os_str()).explain(|| format!("{}", layer.display()))?;
    let lowers = lowers
        .iter()
        .filter_map(|lower| Level::open(CWD, lower.path.as_os_str(), lower.whiteouts))
        .collect();
    let mut walk = Walk {
        changes: Vec::new(),
    };
    walk.directory(upper, lowers, b"")
        .explain(|| format!("{}", layer.display()))?;
    walk.changes.sort();
    Ok(walk.changes)
}

/// Writes changes as lines, or as JSON.
pub fn print(changes: &[Change], json: bool, out: &mut impl std::io::Write) -> Result<()> {
    if json {
        serde_json::to_writer(&mut *out, changes)?;
        writeln!(out)?;
        return Ok(());
    }
    for change in changes {
        let letter = match change.kind {
            Kind::Added => b"A ",
            Kind::Changed => b"C ",
            Kind::Deleted => b"D ",
        };
        out.write_all(letter)?;
        out.write_all(change.path.as_bytes())?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The same directory on a lower branch.
struct Level {
    fd: OwnedFd,
    whiteouts: bool,
}

impl Level {
    /// `None` when it is not there, or no directory.
    fn open(parent: impl AsFd, name: &OsStr, whiteouts: bool) -> Option<Self> {
        let fd = open_directory(parent, name).ok()?;
        Some(Self { fd, whiteouts })
    }

    fn has(&self, name: &OsStr) -> bool {
        kind_of(&self.fd, name).is_some()
    }

    /// Does this level hide `name` on those below?
    fn hides(&self, name: &OsStr) -> bool {
        self.whiteouts && (self.has(&whiteout_of(name)) || self.is_opaque())
    }

    fn is_opaque(&self) -> bool {
        self.whiteouts && self.has(OsStr::new(OPAQUE))
    }
}

struct Walk {
    changes: Vec<Change>,
}

impl Walk {
    fn directory(&mut self, upper: OwnedFd, lowers: Vec<Level>, path: &[u8]) -> Result<(), Errno> {
        let names = names(&upper)?;
        let opaque = names.contains(OsStr::new(OPAQUE));
        if opaque {
            for name in visible(&lowers).difference(&names) {
                self.push(path, name, Kind::Deleted);
            }
        }
        let below = if opaque { &[][..] } else { &lowers[..] };
        for name in &names {
            self.entry(&upper, below, &lowers, path, name)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        upper: &OwnedFd,
        below: &[Level],
        before: &[Level],
        path: &[u8],
        name: &OsStr,
    ) -> Result<(), Errno> {
        let bytes = name.as_bytes();
        if bytes.starts_with(RESERVED) {
            return Ok(());
        }
        if let Some(hidden) = bytes.strip_prefix(WHITEOUT) {
            let hidden = OsStr::from_bytes(hidden);
            // Beside a real entry the entry wins; without anything below there is nothing gone.
            if kind_of(upper, hidden).is_none() && exists(before, hidden) {
                self.push(path, hidden, Kind::Deleted);
            }
            return Ok(());
        }
        let Some((kind, is_null_device)) = kind_of(upper, name) else {
            return Ok(());
        };
        if is_null_device && bytes.len() > MAX_WHITEOUT {
            self.push(path, name, Kind::Deleted);
            return Ok(());
        }
        let known = exists(before, name);
        self.push(path, name, if known { Kind::Changed } else { Kind::Added });
        if kind == FileType::Directory {
            let child = open_directory(upper, name)?;
            let hidden = kind_of(upper, &whiteout_of(name)).is_some();
            let lowers = if hidden {
                Vec::new()
            } else {
                descend(below, name)
            };
            self.directory(child, lowers, &join(path, name))?;
        }
        Ok(())
    }

    fn push(&mut self, path: &[u8], name: &OsStr, kind: Kind) {
        let path = OsText(OsString::from_vec(join(path, name)));
        self.changes.push(Change { path, kind });
    }
}

fn join(path: &[u8], name: &OsStr) -> Vec<u8> {
    [path, b"/", name.as_bytes()].concat()
}

fn whiteout_of(name: &OsStr) -> OsString {
    OsString::from_vec([WHITEOUT, name.as_bytes()].concat())
}

/// Does `name` show through these levels?
fn exists(levels: &[Level], name: &OsStr) -> bool {
    for level in levels {
        if level.has(name) {
            return true;
        }
        if level.hides(name) {
            return false;
        }
    }
    false
}

/// The levels of the directory `name` that show through.
fn descend(levels: &[Level], name: &OsStr) -> Vec<Level> {
    let mut found = Vec::new();
    for level in levels {
        match Level::open(&level.fd, name, level.whiteouts) {
            Some(child) => {
                let last = child.is_opaque() || level.hides(name);
                found.push(child);
                if last {
                    break;
                }
            }
            // A file of that name hides the directories below.
            None if level.has(name) || level.hides(name) => break,
            None => {}
        }
    }
    found
}

/// Every name that shows through these levels.
fn visible(levels: &[Level]) -> BTreeSet<OsString> {
    let mut all = BTreeSet::new();
    let mut hidden: BTreeSet<OsString> = BTreeSet::new();
    for level in levels {
        let names = names(&level.fd).unwrap_or_default();
        let real = names
            .iter()
            .filter(|name| !level.whiteouts || !name.as_bytes().starts_with(WHITEOUT));
        all.extend(real.filter(|name| !hidden.contains(*name)).cloned());
        if level.whiteouts {
            hidden.extend(names.iter().filter_map(|name| {
                name.as_bytes()
                    .strip_prefix(WHITEOUT)
                    .map(|rest| OsStr::from_bytes(rest).to_owned())
            }));
        }
        if level.is_opaque() {
            break;
        }
    }
    all
}

fn open_directory(parent: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn names(dir: &OwnedFd) -> Result<BTreeSet<OsString>, Errno> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.insert(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// The type of an entry, and whether it is a 0/0 character device.
fn kind_of(dir: impl AsFd, name: &OsStr) -> Option<(FileType, bool)> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    Some((kind, kind == FileType::CharacterDevice && stat.st_rdev == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    fn tree(dir: &Path, files: &[&str]) {
        create_dir_all(dir).unwrap();
        for file in files {
            let path = dir.join(file);
            if file.ends_with('/') {
                create_dir_all(path).unwrap();
            } else {
                create_dir_all(path.parent().unwrap()).unwrap();
                write(path, "").unwrap();
            }
        }
    }

    fn lines(upper: &[&str], lowers: &[&[&str]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        tree(&dir.path().join("u"), upper);
        let paths: Vec<_> = (0..lowers.len())
            .map(|at| dir.path().join(at.to_string()))
            .collect();
        for (path, files) in paths.iter().zip(lowers) {
            tree(path, files);
        }
        let lowers: Vec<_> = paths
            .iter()
            .map(|path| Lower {
                path,
                whiteouts: true,
            })
            .collect();
        let mut out = Vec::new();
        print(
            &changes(&dir.path().join("u"), &lowers).unwrap(),
            false,
            &mut out,
        )
        .unwrap();
        String::from_utf8(out)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn added_changed_deleted() {
        let upper = [
            "etc/passwd",
            "etc/new",
            ".wh.gone",
            "etc/.wh.motd",
            "new/x",
            ".wh..wh.uaufs/log",
        ];
        let lower = ["etc/passwd", "etc/motd", "gone/file", "kept"];
        assert_eq!(
            lines(&upper, &[&lower]),
            [
                "C /etc",
                "D /etc/motd",
                "A /etc/new",
                "C /etc/passwd",
                "D /gone",
                "A /new",
                "A /new/x"
            ]
        );
    }

    #[test]
    fn an_opaque_directory_deletes_what_it_does_not_hold() {
        assert_eq!(
            lines(
                &["d/.wh..wh..opq", "d/a", "d/n"],
                &[&["d/a", "d/b", "d/c/x"]]
            ),
            ["C /d", "C /d/a", "D /d/b", "D /d/c", "A /d/n"]
        );
    }

    #[test]
    fn lower_whiteouts_count() {
        assert_eq!(lines(&["f"], &[&[".wh.f"], &["f"]]), ["A /f"]);
        assert_eq!(
            lines(&["d/f"], &[&["d/.wh..wh..opq"], &["d/f"]]),
            ["C /d", "A /d/f"]
        );
        assert_eq!(lines(&[".wh.f"], &[&[".wh.f"], &["f"]]), [""; 0]);
    }

    #[test]
    fn an_entry_beside_its_whiteout_wins() {
        assert_eq!(lines(&[".wh.f", "f"], &[&["f"]]), ["C /f"]);
    }

    #[test]
    fn names_of_any_bytes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
        let found = changes(dir.path(), &[]).unwrap();
        assert_eq!(found[0].path.as_bytes(), b"/\xff");
        assert!(print(&found, true, &mut Vec::new()).is_ok());
    }
}
