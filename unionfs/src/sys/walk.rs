//! Walks a tree however deep it is: with few descriptors, without recursion, never through a
//! symbolic link and never into another mount.

use crate::errno::{Errno, Result};
use crate::sys::Name;
use crate::sys::loc::{open_beneath, open_listing};
use crate::sys::stat::{stat_at, stat_fd};
use crate::types::Kind;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Dir, FileType, Mode, OFlags, openat};

/// Directories above the current one that are kept open; the others are opened again by `..`.
const OPEN: usize = 64;

const LISTING: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A directory that is being visited.
pub struct Here<'a> {
    /// Open for reading.
    pub dir: &'a OwnedFd,
    /// From the top, without a slash in front; the top itself is empty.
    pub path: &'a [u8],
}

impl Here<'_> {
    /// The path of an entry.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        joined(self.path, name)
    }
}

/// The path of a name in the directory at `dir`; the root is empty.
pub fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
    [dir, slash, name].concat()
}

/// What a walk meets.
pub enum Step<'a> {
    /// A directory, before those in it.
    Dir(Here<'a>),
    /// A directory on another mount, or that cannot be opened: it is not entered.
    Closed(&'a [u8], Errno),
}

/// Directories to enter, each with what its visit is told.
pub type Children<T> = Vec<(Name, T)>;

struct Level<T> {
    /// `None` while too many others are open.
    dir: Option<OwnedFd>,
    identity: (u64, u64),
    pending: Children<T>,
    /// Length of this directory's path.
    path: usize,
}

/// Visits `top` and what lies below. `visit` returns the directories to enter; names that are none
/// (any more) are passed over.
///
/// # Errors
/// Those of `visit`, and ESTALE when a directory is moved away meanwhile.
pub fn tree<T, E: From<Errno>>(
    top: &OwnedFd,
    told: T,
    mut visit: impl FnMut(Step<'_>, T) -> std::result::Result<Children<T>, E>,
) -> std::result::Result<(), E> {
    let mut path = Vec::new();
    let dir = open_listing(top)?;
    let mut levels = vec![enter(dir, &path, told, &mut visit)?];
    while let Some(level) = levels.last_mut() {
        let Some((name, told)) = level.pending.pop() else {
            leave(&mut levels)?;
            if let Some(above) = levels.last() {
                path.truncate(above.path);
            }
            continue;
        };
        let Some(dir) = &level.dir else {
            return Err(Errno::STALE.into());
        };
        let opened = open_beneath(dir, &name, LISTING);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        match opened {
            Ok(child) => {
                let child = enter(child, &path, told, &mut visit)?;
                let depth = levels.len();
                if depth >= OPEN {
                    levels[depth - OPEN].dir = None;
                }
                levels.push(child);
                continue;
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(err) => {
                visit(Step::Closed(&path, err), told)?;
            }
        }
        path.truncate(level.path);
    }
    Ok(())
}

fn enter<T, E: From<Errno>>(
    dir: OwnedFd,
    path: &[u8],
    told: T,
    visit: &mut impl FnMut(Step<'_>, T) -> std::result::Result<Children<T>, E>,
) -> std::result::Result<Level<T>, E> {
    let stat = stat_fd(&dir)?;
    let pending = visit(Step::Dir(Here { dir: &dir, path }), told)?;
    Ok(Level {
        identity: (stat.dev, stat.ino),
        pending,
        path: path.len(),
        dir: Some(dir),
    })
}

/// Goes up one level; the directory there is opened again if it was closed.
fn leave<T>(levels: &mut Vec<Level<T>>) -> Result<()> {
    let Some(left) = levels.pop() else {
        return Ok(());
    };
    let Some(above) = levels.last_mut().filter(|above| above.dir.is_none()) else {
        return Ok(());
    };
    let from = left.dir.ok_or(Errno::STALE)?;
    let dir = openat(&from, c"..", LISTING, Mode::empty())?;
    let stat = stat_fd(&dir)?;
    if (stat.dev, stat.ino) != above.identity {
        return Err(Errno::STALE);
    }
    above.dir = Some(dir);
    Ok(())
}

/// All names of a directory but `.` and `..`, with what the directory tells of their types: at once,
/// because what is changed while a directory is read may hide others from the reader.
pub fn names(dir: impl AsFd) -> Result<Vec<(Name, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.push((Name::from_slice(name), entry.file_type()));
        }
    }
    Ok(found)
}

/// As [`names`], with the types.
pub fn entries(dir: impl AsFd) -> Result<Vec<(Name, Kind)>> {
    let dir = dir.as_fd();
    let mut found = Vec::new();
    for (name, kind) in names(dir)? {
        let kind = match kind {
            FileType::Unknown => match stat_at(dir, &name) {
                Ok(stat) => stat.kind(),
                Err(Errno::NOENT) => continue,
                Err(err) => return Err(err),
            },
            known => Kind::from_mode(known.as_raw_mode()),
        };
        found.push((name, kind));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::mkdirat;

    #[test]
    fn deep_trees_are_walked_with_few_descriptors_and_links_are_not() {
        const DEPTH: usize = 2000;
        let tmp = tempfile::tempdir().unwrap();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let top = rustix::fs::open(tmp.path(), flags, Mode::empty()).unwrap();
        let mut dir = rustix::io::dup(&top).unwrap();
        for _ in 0..DEPTH {
            for name in [&b"down"[..], b"\xff"] {
                mkdirat(&dir, name, Mode::RWXU).unwrap();
            }
            rustix::fs::symlinkat("..", &dir, "link").unwrap();
            dir = openat(&dir, c"down", flags, Mode::empty()).unwrap();
        }
        let (mut seen, mut deepest) = (0, 0);
        tree(&top, 0usize, |step, depth| {
            let Step::Dir(here) = step else {
                panic!("everything can be entered")
            };
            seen += 1;
            deepest = deepest.max(depth);
            assert_eq!(here.path.split(|b| *b == b'/').count(), depth.max(1));
            let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
            assert!(open < 2 * OPEN + 100, "{open} descriptors");
            let all = entries(here.dir)?.into_iter();
            Ok::<_, Errno>(all.map(|(name, _)| (name, depth + 1)).collect())
        })
        .unwrap();
        assert_eq!((seen, deepest), (2 * DEPTH + 1, DEPTH));
        crate::sys::remove::contents(&top).unwrap();
    }
}
