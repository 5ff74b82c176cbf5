//! Directories that are removed on a branch: empty for users of the union, not always for the
//! branch.
//!
//! One that holds marks is moved into the trash in one step, which is its removal; emptying it
//! follows, in the background where there are many marks (`dirwh`). Mounts empty the trash, too.

use super::Union;
use super::remove::take_back;
use crate::branch::Branch;
use crate::errno::{Errno, Result};
use crate::shown::ShowPath;
use crate::spec::Format;
use crate::sys::loc::open_subdir;
use crate::sys::{Loc, Name, RealStat, Unlocked, creds};
use crate::types::BranchId;
use crate::whiteout::whiteout_name;
use parking_lot::{Condvar, Mutex};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, RenameFlags, renameat_with};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A directory that was put into the trash and not emptied yet.
pub(super) struct Discarded {
    temp: Name,
    /// How many marks it holds.
    marks: usize,
    /// Something else has taken its place.
    swapped: bool,
}

/// How long the end of a mount waits for the trash; the next mount does the rest.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the owner of a directory needs to move it and what is in it.
const OWNER: u32 = 0o700;

/// Directories that wait to be emptied, and the thread that does it while there are any.
#[derive(Debug, Default)]
pub(super) struct Trash {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// A leaf lock, never held while something is removed.
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Arc<Branch>, Name)>,
    running: bool,
}

impl Trash {
    /// Empties a directory of the branch's trash soon.
    fn later(&self, branch: Arc<Branch>, temp: Name) {
        let mut state = self.shared.state.lock();
        state.waiting.push_back((branch, temp));
        if state.running {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("trash".into());
        match thread.spawn(move || shared.empty_all()) {
            Ok(_) => state.running = true,
            Err(err) => {
                log::debug!("no thread for the trash: {err}");
                let waiting = std::mem::take(&mut state.waiting);
                drop(state);
                waiting.iter().for_each(|(b, temp)| empty(b, temp));
            }
        }
    }
}

impl Shared {
    fn empty_all(&self) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.waiting.pop_front();
                if next.is_none() {
                    state.running = false;
                    self.idle.notify_all();
                }
                next
            };
            match next {
                Some((branch, temp)) => empty(&branch, &temp),
                None => return,
            }
        }
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock();
        while state.running {
            if self
                .shared
                .idle
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                state.waiting.clear();
                return;
            }
        }
    }
}

/// Removes a directory of the trash with what is in it.
pub(super) fn empty(branch: &Branch, temp: &[u8]) {
    let Some(store) = &branch.store else { return };
    let emptied = open_subdir(store.trash(), temp)
        .and_then(|dir| {
            let _unlocked = Unlocked::of_user(&dir);
            crate::sys::remove::contents(dir)
        })
        .and_then(|()| rustix::fs::unlinkat(store.trash(), temp, AtFlags::REMOVEDIR));
    if let Err(err) = emptied {
        // The next mount tries again.
        log::warn!(
            "{}: removed directory not emptied: {err}",
            branch.path.shown()
        );
    }
}

impl Union {
    /// Removes a directory that is empty in the union from a branch and hides what is below, in an
    /// order in which every moment shows the old state or the new. `physical`: it is there on this
    /// branch; `whiteout`: something below would show.
    pub(super) fn remove_dir(
        &self,
        branch: &Branch,
        dir: &OwnedFd,
        name: &[u8],
        physical: bool,
        whiteout: bool,
    ) -> Result<()> {
        if !physical {
            return branch.make_whiteout(dir, name);
        }
        if whiteout && !branch.whiteout_is_separate(name) {
            return self.exchange_for_whiteout(branch, dir, name);
        }
        if whiteout {
            branch.make_whiteout(dir, name)?;
        }
        let removed = match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => self.discard_dir(branch, dir, name),
            other => other,
        };
        removed.inspect_err(|_| {
            if whiteout {
                take_back(branch, dir, name);
            }
        })
    }

    /// Moves a directory out of sight in one step and removes it there.
    fn discard_dir(&self, branch: &Branch, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        let discarded = self.put_into_trash(branch, dir, name)?;
        self.empty_trash(branch.id, discarded)
    }

    /// Moves a directory out of sight in one step.
    pub(super) fn put_into_trash(
        &self,
        branch: &Branch,
        dir: &OwnedFd,
        name: &[u8],
    ) -> Result<Discarded> {
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let fd = open_subdir(dir, name)?;
        let temp = store.temp_name();
        // Moving it needs write permission on it, too.
        let _unlocked = Unlocked::of_user(&fd);
        let marks = count_marks(branch, &fd)?;
        rustix::fs::renameat(dir, name, store.trash(), &*temp)?;
        Ok(Discarded {
            temp,
            marks,
            swapped: false,
        })
    }

    /// Empties a directory that was moved into the trash, soon if it holds many marks.
    pub(super) fn empty_trash(&self, branch: BranchId, discarded: Discarded) -> Result<()> {
        let branch = self.branch(branch)?;
        let temp = discarded.temp;
        if discarded.marks > self.options().dirwh as usize {
            self.trash.later(branch, temp);
        } else {
            empty(&branch, &temp);
        }
        Ok(())
    }

    /// A directory with nothing but marks in it, which is made opaque by one outside, changes places
    /// with an empty one like it. The name never shows anything else. `stat`: of the directory as its
    /// owner left it.
    pub(super) fn swap_for_empty(
        &self,
        branch: &Branch,
        (dir, name): (&OwnedFd, &[u8]),
        stat: &RealStat,
        marks: usize,
    ) -> Result<Discarded> {
        if !self.privileged && stat.mode & OWNER != OWNER {
            // A user's daemon cannot move an empty one with this mode.
            return Err(Errno::ACCESS);
        }
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let (trash, temp) = (store.trash(), store.temp_name());
        let mode = Mode::from_bits_truncate(OWNER);
        creds::with_exact_modes(|| rustix::fs::mkdirat(trash, &*temp, mode))?;
        let swap = || -> Result<()> {
            let full = Arc::new(open_subdir(dir, name)?);
            let empty = Arc::new(open_subdir(trash, &temp)?);
            if branch.format == Format::Overlay && !branch.set_opaque_attribute(&empty) {
                return Err(Errno::OPNOTSUPP);
            }
            let (from, to) = (Loc::dir(full), Loc::dir(empty));
            self.copy_metadata(branch, branch, &from, &to, stat)?;
            renameat_with(trash, &*temp, dir, name, RenameFlags::EXCHANGE)
        };
        swap().inspect_err(|_| {
            let _ = rustix::fs::unlinkat(trash, &*temp, AtFlags::REMOVEDIR);
        })?;
        Ok(Discarded {
            temp,
            marks,
            swapped: true,
        })
    }

    /// A whiteout device and the directory change places: in the overlay format, and for names that
    /// are too long for a whiteout file.
    fn exchange_for_whiteout(&self, branch: &Branch, dir: &OwnedFd, name: &[u8]) -> Result<()> {
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let marks = count_marks(branch, &open_subdir(dir, name)?)?;
        let temp = store.temp_name();
        if !branch.make_device(store.trash(), &temp)? {
            // No device nodes here: the whiteout is a file beside the name.
            let mark = whiteout_name(name).ok_or(Errno::NAMETOOLONG)?;
            branch.make_whiteout_file(dir, &mark)?;
            let discarded = self.discard_dir(branch, dir, name);
            return discarded.inspect_err(|_| take_back(branch, dir, name));
        }
        renameat_with(store.trash(), &*temp, dir, name, RenameFlags::EXCHANGE).inspect_err(
            |_| {
                let _ = rustix::fs::unlinkat(store.trash(), &*temp, AtFlags::empty());
            },
        )?;
        let discarded = Discarded {
            temp,
            marks,
            swapped: true,
        };
        self.empty_trash(branch.id, discarded)
    }
}

/// A directory of the trash goes back to where it came from.
pub(super) fn put_back(branch: &Branch, (dir, name): (&OwnedFd, &[u8]), discarded: &Discarded) {
    let Some(store) = &branch.store else { return };
    let (trash, temp) = (store.trash(), &*discarded.temp);
    let back = || {
        let fd = open_subdir(trash, temp)?;
        let _unlocked = Unlocked::of_user(&fd);
        if !discarded.swapped {
            return rustix::fs::renameat(trash, temp, dir, name);
        }
        renameat_with(trash, temp, dir, name, RenameFlags::EXCHANGE)?;
        rustix::fs::unlinkat(trash, temp, AtFlags::REMOVEDIR)
    };
    if let Err(err) = back() {
        let path = branch.path.shown();
        log::error!("{path}: a directory that was to be replaced cannot be put back: {err}");
    }
}

/// How many marks a directory holds. ENOTEMPTY when it holds what the union has not seen.
pub(super) fn count_marks(branch: &Branch, dir: &OwnedFd) -> Result<usize> {
    branch.count_marks(dir)?.ok_or(Errno::NOTEMPTY)
}
