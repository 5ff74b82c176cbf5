//! Where the listings of open directories end: names that came later are seen after a rewind.
//!
//! AUFS's listing is a snapshot (aufs(5), "rdcache"). Here it is the end that is kept: a program that
//! makes names while it lists a directory comes to an end.

use crate::types::NodeId;
use crate::union::Union;
use dashmap::DashMap;
use fuser::FileHandle;
use rustc_hash::FxBuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

/// The ends by handle. Shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct Listings {
    last: AtomicU64,
    ends: DashMap<u64, u64, FxBuildHasher>,
}

impl Listings {
    /// A handle for OPENDIR, never 0, which stands for a directory that was opened without.
    pub(super) fn open(&self) -> FileHandle {
        FileHandle(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// The last cookie that a listing from `offset` on may give.
    pub(super) fn end(&self, handle: FileHandle, offset: u64) -> u64 {
        if offset == 0 || handle.0 == 0 {
            return u64::MAX;
        }
        self.ends.get(&handle.0).map_or(u64::MAX, |end| *end)
    }

    /// A listing has begun: what is there now is what it shows.
    pub(super) fn begun(&self, handle: FileHandle, offset: u64, union: &Union, dir: NodeId) {
        if offset == 0
            && handle.0 != 0
            && let Some(end) = union.listing_end(dir)
        {
            self.ends.insert(handle.0, end);
        }
    }

    /// RELEASEDIR.
    pub(super) fn close(&self, handle: FileHandle) {
        self.ends.remove(&handle.0);
    }
}
