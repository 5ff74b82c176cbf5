//! The walk over the branch that is looked at.

use super::levels::{Level, Member, Names, Stack, read};
use super::{Change, Changed, DiffError};
use crate::branch::Branch;
use crate::branch::log::Recovered;
use crate::errno::{Errno, Result};
use crate::shown::Shown;
use crate::sys::loc::open_subdir;
use crate::sys::stat::stat_at;
use crate::types::Kind;
use rustix::fd::OwnedFd;
use std::io;
use std::sync::Arc;

/// What lies below a directory now.
enum Below {
    /// The same as before.
    Unchanged,
    /// Something else: nothing below an opaque directory, other parts below a renamed one.
    Other(Vec<Level>),
}

/// A directory that the walk is in.
struct Frame {
    /// On the branch itself; `None` = it is only below.
    dir: Option<Arc<OwnedFd>>,
    /// What this path was.
    before: Vec<Level>,
    below: Below,
    todo: std::vec::IntoIter<(Vec<u8>, What)>,
    /// Length of its path.
    path: usize,
}

/// What is to be told of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Gone,
    /// It is here, or (in a renamed directory) shows through from elsewhere.
    Here(Kind),
}

struct Walk<'a> {
    upper: Member,
    lowers: Stack,
    /// Without lower branches these tell the copies.
    books: Option<Recovered>,
    path: Vec<u8>,
    frames: Vec<Frame>,
    sink: &'a mut dyn FnMut(&Changed<'_>) -> io::Result<()>,
}

/// Tells all changes of `upper`.
pub(super) fn walk(
    upper: &Arc<Branch>,
    lowers: &[Arc<Branch>],
    sink: &mut dyn FnMut(&Changed<'_>) -> io::Result<()>,
) -> std::result::Result<(), DiffError> {
    let books = if lowers.is_empty() {
        // Books that may not be read tell nothing.
        Some(upper.read_books().unwrap_or_default())
    } else {
        None
    };
    let mut walk = Walk {
        upper: Member::new(upper.clone()),
        lowers: Stack(lowers.iter().cloned().map(Member::new).collect()),
        books,
        path: Vec::new(),
        frames: Vec::new(),
        sink,
    };
    let started = walk.start();
    walk.located(started)?;
    while let Some(frame) = walk.frames.last_mut() {
        walk.path.truncate(frame.path);
        let Some((name, what)) = frame.todo.next() else {
            walk.frames.pop();
            continue;
        };
        walk.path.push(b'/');
        walk.path.extend_from_slice(&name);
        let known = walk.tell(&name, what);
        let known = walk.located(known)?;
        if let Some(changed) = known {
            (walk.sink)(&Changed {
                path: &walk.path,
                ..changed
            })?;
        }
        if what == What::Here(Kind::Dir) {
            let entered = walk.enter(&name);
            walk.located(entered)?;
        }
    }
    Ok(())
}

impl Walk<'_> {
    fn located<T>(&self, done: Result<T>) -> std::result::Result<T, DiffError> {
        done.map_err(|errno| DiffError::Read {
            path: Shown(if self.path.is_empty() {
                b"/"
            } else {
                &self.path
            })
            .to_string(),
            errno,
        })
    }

    fn start(&mut self) -> Result<()> {
        let dir = self.upper.branch.root.clone();
        let before = self.lowers.roots(0)?;
        let below = match self.upper.branch.is_opaque(&dir)? {
            true => Below::Other(Vec::new()),
            false => Below::Unchanged,
        };
        self.push(Some(dir), before, below)
    }

    /// Lists what is to be told of a directory.
    fn push(&mut self, dir: Option<Arc<OwnedFd>>, before: Vec<Level>, below: Below) -> Result<()> {
        let path = self.path.strip_prefix(b"/").unwrap_or_default();
        let (here, gone) = match &dir {
            Some(dir) => read(&self.upper, dir, path)?,
            None => (Names::new(), self.upper.hidden_in(path)),
        };
        let mut todo: std::collections::BTreeMap<Vec<u8>, What> = Default::default();
        if let Below::Other(levels) = &below {
            let through = self.lowers.visible(levels)?;
            for (name, kind) in through {
                if !gone.contains(&name) {
                    todo.insert(name, What::Here(kind));
                }
            }
            for name in self.lowers.visible(&before)?.into_keys() {
                todo.entry(name).or_insert(What::Gone);
            }
        } else {
            // Something is hidden below directories that need not be on the branch itself.
            for name in self.upper.branch.hidden.iter().flat_map(|h| h.ways(path)) {
                if self.lowers.kind_of(&before, name)? == Some(Kind::Dir) {
                    todo.insert(name.to_vec(), What::Here(Kind::Dir));
                }
            }
        }
        todo.extend(gone.into_iter().map(|name| (name, What::Gone)));
        todo.extend(here.into_iter().map(|(n, kind)| (n, What::Here(kind))));
        self.frames.push(Frame {
            dir,
            before,
            below,
            todo: todo.into_iter().collect::<Vec<_>>().into_iter(),
            path: self.path.len(),
        });
        Ok(())
    }

    /// What there is to say of a name; the path is added by the caller.
    fn tell(&self, name: &[u8], what: What) -> Result<Option<Changed<'static>>> {
        let Some(frame) = self.frames.last() else {
            return Ok(None);
        };
        let was = self.lowers.kind_of(&frame.before, name)?;
        let path: &[u8] = b"";
        Ok(match what {
            // A whiteout of what is not there changes nothing.
            What::Gone if was.is_none() && self.books.is_none() => None,
            What::Gone => Some(Changed {
                path,
                change: Change::Deleted,
                kind: was,
                was: None,
            }),
            What::Here(kind) => {
                let copied = was.is_some() || self.is_copy(frame, name)?;
                Some(Changed {
                    path,
                    change: if copied {
                        Change::Modified
                    } else {
                        Change::Added
                    },
                    kind: Some(kind),
                    was: was.filter(|was| *was != kind),
                })
            }
        })
    }

    /// Do the books say that this is a copy?
    fn is_copy(&self, frame: &Frame, name: &[u8]) -> Result<bool> {
        let (Some(books), Some(dir)) = (&self.books, &frame.dir) else {
            return Ok(false);
        };
        let stat = match stat_at(dir, name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(err) => return Err(err),
        };
        let origin = books.origins.get(&stat.ino);
        Ok(origin.is_some_and(|origin| origin.btime == stat.btime))
    }

    fn enter(&mut self, name: &[u8]) -> Result<()> {
        let Some(frame) = self.frames.last() else {
            return Ok(());
        };
        let before = self.lowers.enter(&frame.before, name)?;
        let around: &[Level] = match &frame.below {
            Below::Unchanged => &frame.before,
            Below::Other(levels) => levels,
        };
        let dir = match &frame.dir {
            Some(dir) => match open_subdir(dir, name) {
                Ok(dir) => Some(Arc::new(dir)),
                Err(Errno::NOENT) => None,
                // Removed or replaced meanwhile, or another filesystem: it was told already.
                Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
                Err(err) => return Err(err),
            },
            None => None,
        };
        let parent = self.path[..frame.path]
            .strip_prefix(b"/")
            .unwrap_or_default();
        let hidden = self.upper.hides(parent, name)
            || match &frame.dir {
                Some(dir) => self.upper.branch.has_whiteout(dir, name)?,
                None => false,
            };
        let cut = match &dir {
            Some(dir) => hidden || self.upper.branch.is_opaque(dir)?,
            None => false,
        };
        let moved = match (&dir, cut) {
            (Some(dir), false) => self.lowers.below_renamed(&self.upper, dir, 0, around)?,
            _ => None,
        };
        let below = match (moved, &frame.below) {
            (Some(levels), _) => Below::Other(levels),
            (None, _) if cut => Below::Other(Vec::new()),
            (None, Below::Unchanged) => Below::Unchanged,
            (None, Below::Other(levels)) => Below::Other(self.lowers.enter(levels, name)?),
        };
        self.push(dir, before, below)
    }
}
