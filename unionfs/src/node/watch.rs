//! How far the names of a directory are watched on its branches, and whether they must be read again.

use crate::sys::inotify::WatchId;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The watches of one directory.
pub type WatchIds = SmallVec<[WatchId; 2]>;

/// How it stands with the watches of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Nobody tried, or its layers have changed since.
    No,
    /// Every layer that can change is watched.
    Yes,
    /// There were too many watches.
    Full,
    /// It cannot be: a user's daemon that may not read it, or a filesystem of the network.
    Never,
}

/// The part of a directory node that belongs to the watches.
#[derive(Debug, Default)]
pub struct WatchState {
    /// Raised with every change of the layers.
    layers: AtomicU64,
    /// The version of the layers for which the state was found, and the state, in the low two bits.
    state: AtomicU64,
    stale: AtomicBool,
    /// A leaf lock.
    ids: Mutex<WatchIds>,
}

impl WatchState {
    /// The version of the layers, to be read before the layers are.
    pub fn version(&self) -> u64 {
        self.layers.load(Ordering::Acquire)
    }

    /// How it stands for the layers of now.
    pub fn get(&self) -> Watched {
        let state = self.state.load(Ordering::Acquire);
        if state >> 2 != self.version() {
            return Watched::No;
        }
        match state & 3 {
            1 => Watched::Yes,
            2 => Watched::Full,
            3 => Watched::Never,
            _ => Watched::No,
        }
    }

    /// Records what was found for the layers of `version`.
    pub fn set(&self, version: u64, watched: Watched) {
        let code = match watched {
            Watched::No => 0,
            Watched::Yes => 1,
            Watched::Full => 2,
            Watched::Never => 3,
        };
        self.state.store(version << 2 | code, Ordering::Release);
    }

    /// The layers have changed, or a watch is gone: nothing is known any more.
    pub fn reset(&self) {
        self.layers.fetch_add(1, Ordering::AcqRel);
    }

    /// The names must be read again before they are used.
    pub fn set_stale(&self) {
        self.stale.store(true, Ordering::Release);
    }

    /// Must they?
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// About to read them: what changes from now on makes them stale again.
    pub fn begin_reading(&self) {
        self.stale.store(false, Ordering::Release);
    }

    /// Replaces the watches; returns the old ones.
    pub fn replace_ids(&self, ids: WatchIds) -> WatchIds {
        std::mem::replace(&mut *self.ids.lock(), ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_for_older_layers_does_not_count() {
        let state = WatchState::default();
        assert_eq!(state.get(), Watched::No);
        let version = state.version();
        state.set(version, Watched::Yes);
        assert_eq!(state.get(), Watched::Yes);
        state.reset();
        assert_eq!(state.get(), Watched::No);
        state.set(version, Watched::Yes);
        assert_eq!(state.get(), Watched::No);
        state.set(state.version(), Watched::Full);
        assert_eq!(state.get(), Watched::Full);
    }
}
