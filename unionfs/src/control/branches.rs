//! Changes of the branches of a live mount: what goes around them.

use super::live::Live;
use super::protocol::{Failure, Outcome};
use super::users::{User, Way, device_of, device_of_fd, users};
use crate::errno::Errno;
use crate::shown::Shown;
use crate::spec::BranchPerm;
use crate::spec::aufs::NewBranch;
use crate::types::{BranchId, NodeId};
use crate::union::{LiveError, OnlyThere};
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fd::OwnedFd;
use serde_json::{Value, json};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often a branch is tried to be removed that is looked into all the time.
const ROUNDS: usize = 10;
/// How long the kernel may take to forget what nobody uses.
const FORGETTING: Duration = Duration::from_millis(500);
/// Users named in a message.
const NAMED: usize = 4;

impl Live {
    /// `add`, `append`, `prepend`.
    pub(super) fn add(&self, index: Option<usize>, new: &NewBranch, dir: OwnedFd) -> Outcome {
        let stat = crate::sys::stat::stat_fd(&dir)
            .map_err(|errno| Failure::new(errno, told("add", &new.path)))?;
        if let (Ok(own), Ok(its)) = (device_of(&self.mountpoint), device_of_fd(&dir))
            && own == its
        {
            let what = "the directory lies in the union itself: name one outside of it";
            return Err(Failure::new(
                Errno::INVAL,
                format_args!("{}: {what}", told("add", &new.path)),
            ));
        }
        if self.union.branch_by_root((stat.dev, stat.ino)).is_some() {
            return Err(Failure::because(
                Errno::EXIST,
                format_args!("{}: it is a branch already", told("add", &new.path)),
                "`uaufs ctl MOUNTPOINT mod` changes its permission",
            ));
        }
        let index = index.unwrap_or_else(|| self.union.stack().branches().len());
        let options = self.union.options().format;
        let spec = new.at(index, self.asked_read_only.load(Ordering::Relaxed), options);
        self.union
            .add_branch(index, &spec, dir, self.grammar)
            .map_err(|error| failure("add", &new.path, error))?;
        Ok(self.changed())
    }

    /// `mod`.
    pub(super) fn modify(&self, path: &Path, perm: BranchPerm, dir: OwnedFd) -> Outcome {
        let Some(id) = self.find(path, Some(&dir)) else {
            return Err(Failure::because(
                Errno::NOENT,
                format_args!("{}: no such branch", told("mod", path)),
                "`uaufs ctl MOUNTPOINT list` shows them",
            ));
        };
        self.union
            .mod_branch(id, perm, dir)
            .map_err(|error| match error {
                LiveError::Busy(nodes) => self.busy("mod", path, &nodes),
                other => failure("mod", path, other),
            })?;
        Ok(self.changed())
    }

    /// `del`.
    pub(super) fn delete(&self, path: &Path, dir: Option<OwnedFd>, force: bool) -> Outcome {
        let Some(id) = self.find(path, dir.as_ref()) else {
            return Err(Failure::because(
                Errno::NOENT,
                format_args!("{}: no such branch", told("del", path)),
                "`uaufs ctl MOUNTPOINT list` shows them",
            ));
        };
        let mut in_use = Vec::new();
        // What was tried to be moved out of the way.
        let mut moved = FxHashSet::default();
        for _ in 0..ROUNDS {
            let only = self.union.only_on(id);
            let found = self.users_of(&only);
            if force && self.move_away(id, &mut moved, &held_of(&only, &found)) {
                continue;
            }
            if !found.is_empty() {
                return Err(named("del", path, &found));
            }
            let held = self.make_kernel_forget(&only);
            // By processes that cannot be seen, and by the kernel itself.
            if force && self.move_away(id, &mut moved, &held) {
                continue;
            }
            match self.union.del_branch(id, &held) {
                Ok(()) => return Ok(self.changed()),
                Err(LiveError::Busy(nodes)) => in_use = nodes,
                Err(other) => return Err(failure("del", path, other)),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(self.busy("del", path, &in_use))
    }

    /// Copies up those of these nodes with which that was not tried yet; false = there are none.
    fn move_away(
        &self,
        id: BranchId,
        moved: &mut FxHashSet<NodeId>,
        held: &FxHashSet<NodeId>,
    ) -> bool {
        let new: Vec<NodeId> = held.difference(moved).copied().collect();
        self.union.copy_up_from(id, new.iter().copied());
        moved.extend(&new);
        !new.is_empty()
    }

    /// Uses of what is on one branch only.
    pub(super) fn users_of(&self, only: &[OnlyThere]) -> Vec<User> {
        let Ok(device) = device_of(&self.mountpoint) else {
            return Vec::new();
        };
        let nodes: FxHashSet<u64> = only.iter().map(|o| o.node.0).collect();
        let paths: FxHashSet<&[u8]> = only.iter().map(|o| &o.path[..]).collect();
        users(device, &|ino| nodes.contains(&ino), &|path| {
            paths.contains(bytes(path))
        })
    }

    /// Has the kernel drop what it has merely cached; returns what it holds on to.
    fn make_kernel_forget(&self, only: &[OnlyThere]) -> FxHashSet<NodeId> {
        let mut deepest_first: Vec<&OnlyThere> = only.iter().collect();
        let depth = |o: &&OnlyThere| o.path.iter().filter(|b| **b == b'/').count();
        deepest_first.sort_by_key(|o| std::cmp::Reverse(depth(o)));
        for effect in deepest_first.iter().flat_map(|o| o.drop.clone()) {
            self.effects.send(effect);
        }
        self.effects.flush(FORGETTING * 4);
        let deadline = Instant::now() + FORGETTING;
        loop {
            let left = self.union.still_known(only.iter().map(|o| o.node));
            if left.is_empty() || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The kernel asks again about everything; returns when it has been told.
    pub(super) fn changed(&self) -> Value {
        self.tell_kernel();
        let writable = !self.union.read_only() && !self.asked_read_only.load(Ordering::Relaxed);
        json!({ "writable": writable })
    }

    fn find(&self, path: &Path, dir: Option<&OwnedFd>) -> Option<BranchId> {
        let root = dir.and_then(|dir| crate::sys::stat::stat_fd(dir).ok());
        let root = root.map(|stat| (stat.dev, stat.ino));
        self.union.find_branch(root, path)
    }

    /// These nodes are in use: by whom, as far as that can be found out.
    fn busy(&self, verb: &str, path: &Path, nodes: &[NodeId]) -> Failure {
        if let Ok(device) = device_of(&self.mountpoint) {
            let wanted: FxHashSet<u64> = nodes.iter().map(|n| n.0).collect();
            let found = users(device, &|ino| wanted.contains(&ino), &|_| false);
            if !found.is_empty() {
                return named(verb, path, &found);
            }
        }
        let names: Vec<String> = nodes
            .iter()
            .take(NAMED)
            .map(|node| Shown(&self.union.path_in_union(*node)).to_string())
            .collect();
        let more = if nodes.len() > NAMED { ", ..." } else { "" };
        Failure::because(
            Errno::BUSY,
            format_args!("{}: branch is busy", told(verb, path)),
            format_args!(
                "the kernel, or a process that cannot be seen, uses {}{more}",
                names.join(", ")
            ),
        )
    }
}

/// Those of these nodes that are open, or that somebody was found to use.
fn held_of(only: &[OnlyThere], found: &[User]) -> FxHashSet<NodeId> {
    let used: FxHashSet<u64> = found.iter().map(|user| user.ino).collect();
    let covered: FxHashSet<&[u8]> = found
        .iter()
        .filter(|user| user.way == Way::Mount)
        .map(|user| bytes(&user.path))
        .collect();
    let is_held =
        |o: &&OnlyThere| o.is_open || used.contains(&o.node.0) || covered.contains(&o.path[..]);
    only.iter().filter(is_held).map(|o| o.node).collect()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn told(verb: &str, path: &Path) -> String {
    format!("{verb} {}", Shown(bytes(path)))
}

fn failure(verb: &str, path: &Path, error: LiveError) -> Failure {
    match error {
        LiveError::Setup(error) => {
            let failure = Failure::from(error);
            Failure {
                text: format!("{verb} {}", failure.text),
                ..failure
            }
        }
        other => Failure {
            errno: Errno::BUSY.raw_os_error(),
            text: format!("{}: {other}", told(verb, path)),
        },
    }
}

/// EBUSY, with the processes.
fn named(verb: &str, path: &Path, found: &[User]) -> Failure {
    // One line for each process, whatever it has of the branch.
    let mut first: FxHashMap<(u32, bool), &User> = FxHashMap::default();
    for user in found {
        first
            .entry((user.pid, user.way == Way::Mount))
            .or_insert(user);
    }
    let mut users: Vec<&User> = first.into_values().collect();
    users.sort_by_key(|u| u.pid);
    let texts: Vec<String> = users.iter().take(NAMED).map(|u| u.to_string()).collect();
    let more = match users.len() {
        0..=NAMED => String::new(),
        n => format!(", and {} more", n - NAMED),
    };
    Failure::because(
        Errno::BUSY,
        format_args!("{}: branch is busy", told(verb, path)),
        format_args!("{}{more}", texts.join(", ")),
    )
}
