//! One directory on the branches below: what shows through them.

use crate::branch::Branch;
use crate::branch::overlay::Redirect;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::loc::open_listing;
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::joined;
use crate::sys::xattr;
use crate::types::{Kind, Timestamp};
use crate::whiteout::{NameClass, classify};
use rustc_hash::FxHashMap;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Dir;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Names of a directory with their types.
pub(super) type Names = BTreeMap<Vec<u8>, Kind>;

/// A branch and where its renamed directories have their lower parts.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) branch: Arc<Branch>,
    redirects: FxHashMap<u64, (Timestamp, Arc<[u8]>)>,
}

impl Member {
    pub(super) fn new(branch: Arc<Branch>) -> Self {
        let recorded = match branch.format {
            // Bookkeeping that may not be read: then nothing is known of renames.
            Format::Aufs if branch.honours_whiteouts() => branch.redirects().unwrap_or_default(),
            _ => Vec::new(),
        };
        let redirects = recorded
            .into_iter()
            .map(|(real, at, to)| (real, (at, to.into())));
        Self {
            branch,
            redirects: redirects.collect(),
        }
    }

    /// Is `name` in the directory at `path` one of the names that are hidden elsewhere than in their
    /// directory (see [`crate::branch::hidden`])?
    pub(super) fn hides(&self, path: &[u8], name: &[u8]) -> bool {
        let hidden = &self.branch.hidden;
        hidden.as_ref().is_some_and(|h| h.hides(path, name))
    }

    /// All of those in a directory.
    pub(super) fn hidden_in(&self, path: &[u8]) -> BTreeSet<Vec<u8>> {
        let hidden = self.branch.hidden.iter();
        hidden
            .flat_map(|h| h.names(path))
            .map(|n| n.to_vec())
            .collect()
    }

    fn redirect_of(&self, dir: &OwnedFd) -> Result<Option<Redirect>> {
        if self.branch.format == Format::Aufs {
            if self.redirects.is_empty() {
                return Ok(None);
            }
            let stat = stat_fd(dir)?;
            let found = self.redirects.get(&stat.ino);
            return Ok(found
                .filter(|(btime, _)| *btime == stat.btime)
                .map(|(_, path)| Redirect::FromRoot(path.clone())));
        }
        Redirect::of(&xattr::Target::dir(dir.as_fd()))
    }
}

/// A directory on one branch.
#[derive(Clone)]
pub(super) struct Level {
    /// Position of the branch among the lower ones.
    at: usize,
    dir: Arc<OwnedFd>,
    /// From the root of the branch.
    path: Vec<u8>,
}

/// What a name is on one branch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Here {
    Nothing,
    Entry(Kind),
    /// A whiteout of this very name.
    Device,
}

/// A name in a directory of one branch.
pub(super) fn look(branch: &Branch, dir: &OwnedFd, name: &[u8]) -> Result<Here> {
    match stat_at(dir, name) {
        Ok(stat) if branch.honours_whiteouts() && branch.is_whiteout_entry(dir, name, &stat)? => {
            Ok(Here::Device)
        }
        Ok(stat) => Ok(Here::Entry(stat.kind())),
        Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(Here::Nothing),
        Err(err) => Err(err),
    }
}

/// Names of a directory on one branch: those that exist, and those that it hides below it.
pub(super) fn read(
    member: &Member,
    dir: &OwnedFd,
    path: &[u8],
) -> Result<(Names, BTreeSet<Vec<u8>>)> {
    let branch = &member.branch;
    let listing = open_listing(dir)?;
    let (mut names, mut hidden) = (Names::new(), member.hidden_in(path));
    let notes = branch.hidden.as_ref().filter(|_| path.is_empty());
    for entry in Dir::new(listing)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        match classify(name) {
            _ if name == b"." || name == b".." => {}
            _ if notes.is_some_and(|hidden| name == hidden.meta()) => {}
            NameClass::Whiteout(gone) if branch.honours_whiteouts() => {
                hidden.insert(gone.to_vec());
            }
            NameClass::Plain => match look(branch, dir, name)? {
                Here::Entry(kind) => {
                    names.insert(name.to_vec(), kind);
                }
                Here::Device => {
                    hidden.insert(name.to_vec());
                }
                // Removed meanwhile.
                Here::Nothing => {}
            },
            NameClass::Whiteout(_) | NameClass::Opaque | NameClass::Reserved => {}
        }
    }
    Ok((names, hidden))
}

/// The branches below, topmost first.
pub(super) struct Stack(pub(super) Vec<Member>);

impl Stack {
    fn branch(&self, level: &Level) -> &Branch {
        &self.0[level.at].branch
    }

    /// Do branches that need not hold the directory at `path` hide a name in it?
    fn hidden_by(&self, branches: Range<usize>, path: &[u8], name: &[u8]) -> bool {
        self.0[branches].iter().any(|m| m.hides(path, name))
    }

    /// The root on the branches from number `first` on, as far as they show through.
    pub(super) fn roots(&self, first: usize) -> Result<Vec<Level>> {
        let mut found = Vec::new();
        for (at, member) in self.0.iter().enumerate().skip(first) {
            let dir = member.branch.root.clone();
            let opaque = member.branch.honours_whiteouts() && member.branch.is_opaque(&dir)?;
            let path = Vec::new();
            found.push(Level { at, dir, path });
            if opaque {
                break;
            }
        }
        Ok(found)
    }

    /// What shows through under `name`.
    pub(super) fn kind_of(&self, levels: &[Level], name: &[u8]) -> Result<Option<Kind>> {
        let mut looked = 0;
        for level in levels {
            if self.hidden_by(looked..level.at, &level.path, name) {
                return Ok(None);
            }
            looked = level.at;
            let branch = self.branch(level);
            match look(branch, &level.dir, name)? {
                Here::Entry(kind) => return Ok(Some(kind)),
                Here::Device => return Ok(None),
                Here::Nothing => {}
            }
            if branch.honours_whiteouts() && branch.has_whiteout(&level.dir, name)? {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Every name that shows through.
    pub(super) fn visible(&self, levels: &[Level]) -> Result<Names> {
        let mut all = Names::new();
        let mut gone = BTreeSet::new();
        let mut looked = 0;
        for level in levels {
            let above = self.0[looked..level.at].iter();
            gone.extend(above.flat_map(|m| m.hidden_in(&level.path)));
            looked = level.at + 1;
            let (names, hidden) = read(&self.0[level.at], &level.dir, &level.path)?;
            for (name, kind) in names {
                if !gone.contains(&name) {
                    all.entry(name).or_insert(kind);
                }
            }
            gone.extend(hidden);
        }
        Ok(all)
    }

    /// The directory `name` as it shows through; empty if something else does.
    pub(super) fn enter(&self, levels: &[Level], name: &[u8]) -> Result<Vec<Level>> {
        let mut found: Vec<Level> = Vec::new();
        let mut looked = 0;
        for (i, level) in levels.iter().enumerate() {
            if self.hidden_by(looked..level.at, &level.path, name) {
                break;
            }
            looked = level.at;
            let branch = self.branch(level);
            match look(branch, &level.dir, name)? {
                Here::Entry(Kind::Dir) => {
                    let dir = match open_subdir(&level.dir, name) {
                        Ok(dir) => Arc::new(dir),
                        // Another filesystem is mounted there.
                        Err(Errno::XDEV) => continue,
                        Err(err) => return Err(err),
                    };
                    let honours = branch.honours_whiteouts();
                    let opaque = honours && branch.is_opaque(&dir)?;
                    let at = level.at;
                    let beside = &levels[i + 1..];
                    let moved = match honours && !opaque {
                        true => self.below_renamed(&self.0[at], &dir, at + 1, beside)?,
                        false => None,
                    };
                    let path = joined(&level.path, name);
                    found.push(Level { at, dir, path });
                    if let Some(moved) = moved {
                        found.extend(moved);
                        break;
                    }
                    if opaque {
                        break;
                    }
                }
                // Something else on top hides the directories below it; in the overlay format it
                // also ends a directory above it.
                Here::Entry(_) if found.is_empty() || branch.format == Format::Overlay => break,
                Here::Device => break,
                Here::Entry(_) | Here::Nothing => {}
            }
            if branch.honours_whiteouts() && branch.has_whiteout(&level.dir, name)? {
                break;
            }
        }
        Ok(found)
    }

    /// The lower parts of a directory that was renamed on `member`: on the branches from number
    /// `first` on, of which `beside` is the directory's parent. `None` = it was not renamed.
    pub(super) fn below_renamed(
        &self,
        member: &Member,
        dir: &OwnedFd,
        first: usize,
        beside: &[Level],
    ) -> Result<Option<Vec<Level>>> {
        match member.redirect_of(dir)? {
            None => Ok(None),
            Some(Redirect::Beside(name)) => self.enter(beside, &name).map(Some),
            Some(Redirect::FromRoot(path)) => {
                let mut levels = self.roots(first)?;
                for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
                    levels = self.enter(&levels, part)?;
                }
                Ok(Some(levels))
            }
        }
    }
}
