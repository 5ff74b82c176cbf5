//! Moving what a writable branch holds to a writable branch below it, while the union is in use.
//!
//! One entry at a time, under the locks of its directory: first it is put in place below, complete
//! and durable, where the upper one still hides it; then the upper one is removed, and the same is
//! shown from below. Each moment shows the same tree, so that a daemon that is killed anywhere
//! leaves nothing to repair: the move is simply started again. What cannot be moved without
//! changing the view is left, with a [`Reason`].

mod dir;
mod file;
mod group;
mod marks;
mod raw;
mod walk;

pub use walk::Merged;

use super::Union;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::spec::Format;
use crate::sys::Name;
use crate::types::{BranchId, Kind, NodeId};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use rustix::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// How things are moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeOptions {
    /// Whiteouts and opaque marks are moved down even where nothing below needs them.
    pub keep_whiteouts: bool,
    /// The upper branch stays as it is; the lower one holds what both hold together.
    pub copy: bool,
    /// Nothing is changed: tells what would be done.
    pub dry_run: bool,
}

/// How one file is moved (`uaufs mvdown`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveDown {
    /// The branch to move from; `None` = the one whose instance is shown.
    pub from: Option<BranchId>,
    /// The branch to move to; `None` = the next writable one below.
    pub to: Option<BranchId>,
    /// A file of that name there is replaced.
    pub overwrite: bool,
    /// A copy of this very file there is replaced: one that an interrupted move has left, or from
    /// which it was brought up.
    pub own_copy: bool,
    /// The upper one stays.
    pub keep_upper: bool,
    /// Nothing is changed.
    pub dry_run: bool,
}

/// Why something stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A branch between the two, or one above, holds the name.
    Upper,
    /// A whiteout between the two would hide it.
    Whiteout,
    /// A directory above it is opaque, or is not the same directory on both branches.
    Opaque,
    /// A file with several names.
    HardLinked,
    /// The kernel reads and writes it without asking: close it, or mount with io=cache.
    Busy,
    /// A renamed directory, or the place where one has its lower parts.
    Redirected,
    /// Another filesystem is mounted on it.
    Mounted,
    /// It was changed again and again meanwhile.
    Changed,
    /// The lower branch has something of that name.
    Exists,
    /// A directory, where only files are moved.
    Directory,
    /// No writable branch lies below.
    Bottom,
    /// It is not on the branch to move from.
    NoUpper,
}

impl Reason {
    /// One word, as programs read it (aumvdown's words where it has one).
    pub fn word(self) -> &'static str {
        match self {
            Self::Upper => "upper",
            Self::Whiteout => "whiteout",
            Self::Opaque => "opaque",
            Self::HardLinked => "hard-linked",
            Self::Busy => "busy",
            Self::Redirected => "redirected",
            Self::Mounted => "mounted",
            Self::Changed => "changed",
            Self::Exists => "exists",
            Self::Directory => "directory",
            Self::Bottom => "bottom",
            Self::NoUpper => "no-upper",
        }
    }

    /// What it means and what to do.
    pub fn text(self) -> &'static str {
        match self {
            Self::Upper => "another branch above the lower one holds this name",
            Self::Whiteout => "a whiteout on a branch between the two would hide it",
            Self::Opaque => "an opaque directory on a branch between the two would hide it",
            Self::HardLinked => {
                "has several names, which must stay one file: move them with `uaufs merge`"
            }
            Self::Busy => "is open: close it and try again",
            Self::Redirected => {
                "belongs to a renamed directory, whose lower part lies elsewhere: it stays whole"
            }
            Self::Mounted => "something is mounted there",
            Self::Changed => "is being changed: try again",
            Self::Exists => "the lower branch holds this name: --overwrite replaces it",
            Self::Directory => "is a directory: move directories with `uaufs merge`",
            Self::Bottom => "no writable branch below",
            Self::NoUpper => "is not on the branch to move from",
        }
    }

    /// The errno for callers that know only those.
    pub fn errno(self) -> Errno {
        match self {
            Self::Busy | Self::Changed | Self::Mounted => Errno::BUSY,
            Self::HardLinked => Errno::MLINK,
            Self::Exists => Errno::EXIST,
            Self::Directory => Errno::ISDIR,
            Self::Bottom => Errno::ROFS,
            Self::NoUpper => Errno::NOENT,
            Self::Upper | Self::Whiteout | Self::Opaque | Self::Redirected => Errno::XDEV,
        }
    }

    /// Is it worth trying again a moment later?
    fn may_pass(self) -> bool {
        matches!(self, Self::Busy | Self::Changed)
    }
}

/// What became of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is below now. The bytes of its data.
    Moved(u64),
    /// It is not there (any more).
    Gone,
    /// It stays.
    Left(Reason),
}

/// What kind of entry a [`Step`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A file or directory.
    Entry(Kind),
    /// A whiteout.
    Whiteout,
    /// The opaque mark of a directory.
    OpaqueMark,
}

/// One step of a merge, told after it was done.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// From the root of the union, beginning with `/`.
    pub path: &'a [u8],
    /// What it is.
    pub item: Item,
    /// What became of it; an error is of this entry alone, the merge goes on.
    pub done: Result<Outcome>,
}

/// Asks whether the kernel reads and writes a node without asking.
type BusyCheck = Box<dyn Fn(NodeId) -> bool + Send + Sync>;

/// What moving needs to know of the rest of the daemon.
#[derive(Default)]
pub(super) struct Moving {
    busy: OnceLock<BusyCheck>,
}

/// From which branch to which, and what is to be tidied up at the end.
struct Way {
    from: Arc<Branch>,
    to: Arc<Branch>,
    options: MergeOptions,
    /// A file below is replaced.
    overwrite: bool,
    /// A file below is replaced if it is a copy of the one that is moved.
    own_copy: bool,
    /// The upper one stays.
    keep_upper: bool,
    /// Files with several names are moved, name by name.
    groups: bool,
    /// The first name of each file with several that was copied (`keep_upper`).
    copied: Mutex<FxHashMap<NodeId, (Arc<OwnedFd>, Name)>>,
    /// Directories that were moved out of sight on the lower branch: emptied when no lock is held.
    trash: Mutex<Vec<Name>>,
}

impl Drop for Way {
    fn drop(&mut self) {
        self.empty_trash();
    }
}

impl Way {
    fn empty_trash(&self) {
        let names = std::mem::take(&mut *self.trash.lock());
        for name in names {
            super::discard::empty(&self.to, &name);
        }
    }
}

impl Union {
    /// Who serves the union tells how to find out whether the kernel has a file open in such a way
    /// that its reads and writes are not seen here. To be called once, before anything is served.
    pub fn set_busy_check(&self, check: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        if self.moving.busy.set(Box::new(check)).is_err() {
            log::error!("the union is served twice");
        }
    }

    /// Runs `f` while the node's data is not moved to another branch: for handing out a descriptor
    /// that is then used without asking.
    pub fn while_it_stays<T>(&self, node: NodeId, f: impl FnOnce() -> T) -> T {
        let node = self.nodes.get(node);
        let _stays = node.as_ref().map(|node| node.change.read());
        f()
    }

    pub(super) fn is_busy(&self, node: NodeId) -> bool {
        self.moving.busy.get().is_some_and(|check| check(node))
    }

    /// # Errors
    /// EINVAL: not two writable branches of the AUFS format, the first above the second.
    fn way(&self, from: BranchId, to: BranchId, options: MergeOptions) -> Result<Way> {
        let stack = self.stack();
        let (Some(above), Some(below)) = (stack.get(from), stack.get(to)) else {
            return Err(Errno::INVAL);
        };
        let fit = |b: &Branch| b.writable() && b.format == Format::Aufs;
        if !fit(above) || !fit(below) || stack.position(from) >= stack.position(to) {
            return Err(Errno::INVAL);
        }
        Ok(Way {
            from: above.clone(),
            to: below.clone(),
            options,
            overwrite: true,
            own_copy: true,
            keep_upper: options.copy,
            groups: below.can_link(),
            copied: Mutex::default(),
            trash: Mutex::default(),
        })
    }

    /// Moves one file to a writable branch below, making its directories there.
    ///
    /// # Errors
    /// Those of copying; ENOENT, ENOTDIR as for a lookup. The file is where it was then.
    pub fn move_down(&self, parent: NodeId, name: &[u8], how: MoveDown) -> Result<Outcome> {
        let parent = self.dir_node(parent)?;
        self.check_name(name)?;
        self.move_down_from(&parent, name, how)
    }

    /// As [`Self::move_down`].
    pub(super) fn move_down_from(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        how: MoveDown,
    ) -> Result<Outcome> {
        let found = self.find(parent, name)?;
        if found.kind == Kind::Dir {
            return Ok(Outcome::Left(Reason::Directory));
        }
        let stack = self.stack();
        let from = how.from.unwrap_or(found.top);
        if from != found.top {
            return Ok(Outcome::Left(Reason::Upper));
        }
        let at = stack.position(from).ok_or(Errno::STALE)?;
        if !stack.get(from).is_some_and(|b| b.writable()) {
            return Ok(Outcome::Left(Reason::NoUpper));
        }
        let below = &stack.branches()[usize::from(at.0) + 1..];
        let Some(to) = how
            .to
            .or_else(|| below.iter().find(|b| b.writable()).map(|b| b.id))
        else {
            return Ok(Outcome::Left(Reason::Bottom));
        };
        let options = MergeOptions {
            dry_run: how.dry_run,
            ..MergeOptions::default()
        };
        let mut way = self.way(from, to, options)?;
        (way.overwrite, way.own_copy, way.keep_upper) =
            (how.overwrite, how.own_copy, how.keep_upper);
        way.groups = false;
        if let Some(reason) = self.bring_dirs(&way, parent)? {
            return Ok(Outcome::Left(reason));
        }
        self.move_file(&way, parent, name)
    }

    /// Makes sure that a directory and those above it are on the lower branch, without giving up
    /// any opaque mark.
    fn bring_dirs(&self, way: &Way, dir: &Arc<Node>) -> Result<Option<Reason>> {
        if dir.layer_on(way.to.id).is_some() || dir.id == NodeId::ROOT {
            return Ok(None);
        }
        if !self.reaches(dir, &way.to)? {
            return Ok(Some(Reason::Opaque));
        }
        if !way.options.dry_run {
            self.make_dir_on(dir, way.to.id)?;
        }
        Ok(None)
    }
}
