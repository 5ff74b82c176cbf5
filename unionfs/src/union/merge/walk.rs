//! The way of a merge through the upper branch: a directory before what is in it, and again after.

use super::dir::Standing;
use super::{Item, MergeOptions, Outcome, Reason, Step, Way};
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::sys::Name;
use crate::sys::stat::stat_at;
use crate::types::{BranchId, Kind};
use crate::union::Union;
use crate::union::rename::{At, Held};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// How often what could not be moved is tried again at the end.
const PASSES: usize = 3;

/// Between two of them.
const PAUSE: Duration = Duration::from_millis(200);

/// What a merge came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Files, directories, whiteouts and marks that are below now.
    pub moved: u64,
    /// Bytes of the files among them.
    pub bytes: u64,
    /// Entries that had to stay.
    pub left: u64,
    /// Entries that failed.
    pub failed: u64,
    /// The receiver asked to stop.
    pub stopped: bool,
}

/// A directory that the walk is in.
struct Frame<'a> {
    node: Arc<Node>,
    /// Keeps the node known; the root needs that not.
    _held: Option<Held<'a>>,
    /// Of the directory itself, in the frame before.
    name: Name,
    todo: std::vec::IntoIter<Todo>,
    path: usize,
    /// Everything in it was moved.
    complete: bool,
    /// It was opaque, and is to be again (`copy`).
    opaque: bool,
}

enum Todo {
    Entry(Name),
    Whiteout(Name),
}

struct Walk<'a, 'b> {
    union: &'a Union,
    way: &'b Way,
    tell: &'b mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    frames: Vec<Frame<'a>>,
    path: Vec<u8>,
    /// What may be moved a moment later.
    later: Vec<(Vec<u8>, Item, Reason)>,
    /// What failed in this pass; the next one tries it again.
    failed: Vec<(Vec<u8>, Item, Errno)>,
    first_pass: bool,
    result: Merged,
}

impl Union {
    /// Moves everything from one writable branch to another one below it; `tell` hears of every
    /// step and may ask to stop between two.
    ///
    /// # Errors
    /// EINVAL: not two writable branches, the first above the second. Errors that concern more than
    /// one entry (ENOSPC, EIO, EROFS) end the merge; it can be started again.
    pub fn merge(
        &self,
        from: BranchId,
        to: BranchId,
        options: MergeOptions,
        tell: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Merged> {
        let way = self.way(from, to, options)?;
        let mut walk = Walk {
            union: self,
            way: &way,
            tell,
            frames: Vec::new(),
            path: Vec::new(),
            later: Vec::new(),
            failed: Vec::new(),
            first_pass: true,
            result: Merged::default(),
        };
        for pass in 0..PASSES {
            walk.first_pass = pass == 0;
            walk.later.clear();
            walk.failed.clear();
            walk.run()?;
            if walk.later.is_empty() || walk.result.stopped || options.dry_run {
                break;
            }
            if pass + 1 < PASSES {
                std::thread::sleep(PAUSE);
            }
        }
        walk.tell_rest();
        Ok(walk.result)
    }
}

impl<'a> Walk<'a, '_> {
    fn run(&mut self) -> Result<()> {
        self.path.clear();
        self.frames.clear();
        let root = self.union.root()?;
        if let Some(reason) = self.union.open_root(self.way, &root)? {
            self.done(Item::OpaqueMark, Ok(Outcome::Left(reason)))?;
            return Ok(());
        }
        self.push(root, None, Name::new(), false)?;
        while let Some(frame) = self.frames.last_mut() {
            if self.result.stopped {
                self.frames.clear();
                break;
            }
            self.path.truncate(frame.path);
            match frame.todo.next() {
                Some(Todo::Entry(name)) => self.entry(&name)?,
                Some(Todo::Whiteout(name)) => {
                    let parent = frame.node.clone();
                    self.name(&name);
                    let done = self.union.move_whiteout(self.way, &parent, &name);
                    self.done(Item::Whiteout, done)?;
                }
                None => self.leave()?,
            }
            self.way.empty_trash();
        }
        Ok(())
    }

    fn name(&mut self, name: &[u8]) {
        self.path.push(b'/');
        self.path.extend_from_slice(name);
    }

    fn push(
        &mut self,
        node: Arc<Node>,
        held: Option<Held<'a>>,
        name: Name,
        opaque: bool,
    ) -> Result<()> {
        let dir = self.union.dir_fd_on(&node, self.way.from.id)?;
        let raw = self.union.list_raw(&self.way.from, &dir)?;
        let entries = raw.entries.into_iter().map(Todo::Entry);
        let whiteouts = raw.whiteouts.into_iter().map(Todo::Whiteout);
        let todo: Vec<Todo> = entries.chain(whiteouts).collect();
        self.frames.push(Frame {
            node,
            _held: held,
            name,
            todo: todo.into_iter(),
            path: self.path.len(),
            complete: true,
            opaque,
        });
        Ok(())
    }

    fn entry(&mut self, name: &[u8]) -> Result<()> {
        let Some(parent) = self.frames.last().map(|f| f.node.clone()) else {
            return Ok(());
        };
        self.name(name);
        let dir = self.union.dir_fd_on(&parent, self.way.from.id);
        let kind = match dir.and_then(|dir| stat_at(dir, name)) {
            Ok(stat) => stat.kind(),
            Err(Errno::NOENT) => return Ok(()),
            Err(err) => return self.done(Item::Entry(Kind::File), Err(err)),
        };
        if kind != Kind::Dir {
            let done = self.union.move_file(self.way, &parent, name);
            return self.done(Item::Entry(kind), done);
        }
        match self.enter(&parent, name) {
            Ok(None) => Ok(()),
            Ok(Some(reason)) => self.done(Item::Entry(kind), Ok(Outcome::Left(reason))),
            Err(err) => self.done(Item::Entry(kind), Err(err)),
        }
    }

    /// Goes into a directory, which is on the lower branch then.
    fn enter(&mut self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Reason>> {
        let (held, _) = self.union.hold(At { dir: parent, name })?;
        let node = held.node()?.clone();
        if node.kind != Kind::Dir {
            return Ok(Some(Reason::Upper));
        }
        let opaque = match self.union.bring_dir(self.way, parent, name, &node)? {
            Err(reason) => return Ok(Some(reason)),
            Ok(Standing::Opaque) => {
                self.done(Item::OpaqueMark, Ok(Outcome::Moved(0)))?;
                true
            }
            Ok(Standing::Merged | Standing::Missing) => false,
        };
        self.push(node, Some(held), Name::from_slice(name), opaque)?;
        Ok(None)
    }

    /// Everything in the directory was tried: takes it away if it is empty.
    fn leave(&mut self) -> Result<()> {
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        let Some(parent) = self.frames.last().map(|f| f.node.clone()) else {
            return Ok(());
        };
        let item = Item::Entry(Kind::Dir);
        if self.way.options.copy {
            let done = match self.way.options.dry_run {
                true => Ok(Outcome::Moved(0)),
                false => {
                    self.union
                        .end_copy(self.way, &parent, &frame.name, &frame.node, frame.opaque)
                }
            };
            if frame.complete {
                return self.done(item, done);
            }
        }
        if !frame.complete {
            // What is in it was told already.
            self.incomplete();
            return Ok(());
        }
        let done = match self.way.options.dry_run {
            true => Ok(None),
            false => self
                .union
                .drop_dir(self.way, &parent, &frame.name, &frame.node),
        };
        let done = done.map(|stays| stays.map_or(Outcome::Moved(0), Outcome::Left));
        self.done(item, done)
    }

    fn incomplete(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.complete = false;
        }
    }

    /// Counts and tells what became of the entry at the current path.
    fn done(&mut self, item: Item, done: Result<Outcome>) -> Result<()> {
        let done = match done {
            // Somebody else changed it in this moment.
            Err(Errno::STALE | Errno::NOENT | Errno::BUSY | Errno::NOTEMPTY) => {
                Ok(Outcome::Left(Reason::Changed))
            }
            other => other,
        };
        match done {
            Ok(Outcome::Gone) => return Ok(()),
            Ok(Outcome::Moved(bytes)) => {
                self.result.moved += 1;
                self.result.bytes += bytes;
            }
            Ok(Outcome::Left(reason)) => {
                self.incomplete();
                if reason.may_pass() {
                    self.later.push((self.path.clone(), item, reason));
                    return Ok(());
                }
                if !self.first_pass {
                    return Ok(());
                }
                self.result.left += 1;
            }
            Err(err) => {
                self.incomplete();
                if concerns_all(err) {
                    self.result.failed += 1;
                    self.tell(item, done);
                    return Err(err);
                }
                self.failed.push((self.path.clone(), item, err));
                return Ok(());
            }
        }
        self.tell(item, done);
        Ok(())
    }

    fn tell(&mut self, item: Item, done: Result<Outcome>) {
        let step = Step {
            path: if self.path.is_empty() {
                b"/"
            } else {
                &self.path
            },
            item,
            done,
        };
        if (self.tell)(&step).is_break() {
            self.result.stopped = true;
        }
    }

    /// What could not be moved in any pass.
    fn tell_rest(&mut self) {
        for (path, item, reason) in std::mem::take(&mut self.later) {
            self.path = path;
            self.result.left += 1;
            self.tell(item, Ok(Outcome::Left(reason)));
        }
        for (path, item, err) in std::mem::take(&mut self.failed) {
            self.path = path;
            self.result.failed += 1;
            self.tell(item, Err(err));
        }
    }
}

/// Would the next entry fail in the same way?
fn concerns_all(err: Errno) -> bool {
    matches!(
        err,
        Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::IO
            | Errno::NOMEM
            | Errno::MFILE
            | Errno::NFILE
    )
}
