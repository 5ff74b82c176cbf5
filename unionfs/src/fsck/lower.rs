//! What the branches below say, for judging marks that only count together with them.

use crate::branch::offline::Offline;
use crate::branch::overlay;
use crate::errno::Errno;
use crate::sys::loc::open_beneath;
use crate::sys::stat::stat_at;
use crate::types::Kind;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;

/// The directory `path` of a branch; `Ok(None)` = there is none.
fn directory(branch: &Offline, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    match open_beneath(&branch.root, path, flags) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Is something called `name` in `dir` of a branch below? `None` = it cannot be told (a path that
/// is too long, a directory that cannot be read).
pub(super) fn has(lower: &[Offline], dir: &[u8], name: &[u8]) -> Option<bool> {
    for branch in lower {
        match directory(branch, dir) {
            Ok(None) => {}
            Ok(Some(dir)) => match stat_at(&dir, name) {
                Ok(_) => return Some(true),
                Err(Errno::NOENT) => {}
                Err(_) => return None,
            },
            Err(_) => return None,
        }
    }
    Some(false)
}

/// Is `path` a directory on a branch below?
pub(super) fn has_directory(lower: &[Offline], path: &[u8]) -> Option<bool> {
    for branch in lower {
        match directory(branch, path) {
            Ok(Some(_)) => return Some(true),
            Ok(None) => {}
            Err(_) => return None,
        }
    }
    Some(false)
}

/// Is `path` a file with data on a branch below? (One without may lead further down.)
pub(super) fn has_data(lower: &[Offline], path: &[u8]) -> Option<bool> {
    let split = path.iter().rposition(|b| *b == b'/');
    let (dir, name) = match split {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    for branch in lower {
        let Some(dir) = directory(branch, dir).ok()? else {
            continue;
        };
        match stat_at(&dir, name) {
            Ok(stat) if stat.kind() == Kind::File => {
                let name = std::ffi::CString::new(name).ok()?;
                let file = crate::sys::xattr::Target::at(rustix::fd::AsFd::as_fd(&dir), &name);
                let marks = overlay::Attributes::of(&file).ok()?;
                // Redirected again: where to is not followed here.
                if marks.contains(overlay::Attributes::METACOPY) {
                    return None;
                }
                return Some(true);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(_) => return None,
        }
    }
    Some(false)
}
