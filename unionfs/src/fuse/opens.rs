//! Live opens of a passthrough mount: which nodes the kernel may read and write by itself.
//!
//! The kernel's rules (fs/fuse/iomode.c): while a node has passthrough opens, each further open
//! must be one too, with the same backing id; while it has page cache opens, none may be. A breach
//! reaches the application as EIO. So the first open of a node decides for all that overlap it.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How an open is to be answered.
#[derive(Debug)]
pub(super) enum Grant<B> {
    /// Through the page cache.
    Cached,
    /// With this backing file, which lives until the last close.
    Passthrough(Arc<B>),
}

/// The live opens by node number; `B` is the backing id (freed when dropped).
#[derive(Debug)]
pub(super) struct LiveOpens<B> {
    nodes: Mutex<FxHashMap<u64, Live<B>>>,
    /// The kernel refused a backing file: no further attempts.
    refused: AtomicBool,
}

/// The opens of one node.
#[derive(Debug)]
struct Live<B> {
    count: usize,
    /// `None` = page cache.
    backing: Option<Arc<B>>,
    /// How many of them may write.
    writers: usize,
}

impl<B> Default for LiveOpens<B> {
    fn default() -> Self {
        Self {
            nodes: Mutex::default(),
            refused: AtomicBool::new(false),
        }
    }
}

impl<B> LiveOpens<B> {
    /// Counts an open of `node`. `eligible`: its data lies in the writable branch; `register` makes
    /// the backing id then. `writes`: it is open for writing.
    pub(super) fn open(
        &self,
        node: u64,
        eligible: bool,
        writes: bool,
        register: impl FnOnce() -> io::Result<B>,
    ) -> Grant<B> {
        let mut nodes = self.nodes.lock();
        let live = match nodes.entry(node) {
            Entry::Occupied(live) => live.into_mut(),
            // Registered under the lock: two ids for one node must never be handed out.
            Entry::Vacant(vacant) => {
                let backing = if eligible {
                    self.register(register)
                } else {
                    None
                };
                vacant.insert(Live {
                    count: 0,
                    backing,
                    writers: 0,
                })
            }
        };
        live.count += 1;
        live.writers += usize::from(writes);
        live.backing
            .clone()
            .map_or(Grant::Cached, Grant::Passthrough)
    }

    /// Makes a backing id; after a refusal there is none any more.
    fn register(&self, register: impl FnOnce() -> io::Result<B>) -> Option<Arc<B>> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        match register() {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                self.refused.store(true, Ordering::Relaxed);
                log::warn!("passthrough refused, the page cache is used from now on: {error}");
                None
            }
        }
    }

    /// May somebody be writing to `node` behind our back?
    pub(super) fn is_written_past(&self, node: u64) -> bool {
        let nodes = self.nodes.lock();
        nodes
            .get(&node)
            .is_some_and(|live| live.backing.is_some() && live.writers > 0)
    }

    /// Does the kernel read and write this node by itself?
    pub(super) fn is_passed_through(&self, node: u64) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&node).is_some_and(|live| live.backing.is_some())
    }

    /// Counts a close of `node`, `writes` as it was opened.
    pub(super) fn close(&self, node: u64, writes: bool) {
        let mut nodes = self.nodes.lock();
        let Entry::Occupied(mut live) = nodes.entry(node) else {
            return;
        };
        live.get_mut().count -= 1;
        live.get_mut().writers -= usize::from(writes && live.get().writers > 0);
        let last = (live.get().count == 0).then(|| live.remove());
        // The id is freed by a system call: not under the lock.
        drop(nodes);
        drop(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passthrough(grant: &Grant<u32>) -> Option<u32> {
        match grant {
            Grant::Cached => None,
            Grant::Passthrough(backing) => Some(**backing),
        }
    }

    #[test]
    fn one_backing_id_while_any_open_lives() {
        let opens = LiveOpens::default();
        assert_eq!(passthrough(&opens.open(5, true, false, || Ok(1))), Some(1));
        assert_eq!(passthrough(&opens.open(5, true, false, || Ok(2))), Some(1));
        opens.close(5, false);
        assert_eq!(passthrough(&opens.open(5, false, false, || Ok(3))), Some(1));
        opens.close(5, false);
        opens.close(5, false);
        assert_eq!(passthrough(&opens.open(5, true, false, || Ok(4))), Some(4));
    }

    #[test]
    fn cached_opens_keep_passthrough_away() {
        let opens = LiveOpens::default();
        assert_eq!(passthrough(&opens.open(5, false, false, || Ok(1))), None);
        assert_eq!(passthrough(&opens.open(5, true, false, || Ok(1))), None);
        opens.close(5, false);
        opens.close(5, false);
        assert_eq!(passthrough(&opens.open(5, true, false, || Ok(1))), Some(1));
    }

    #[test]
    fn a_refusal_is_final_and_stray_closes_are_harmless() {
        let opens = LiveOpens::default();
        opens.close(9, false);
        let refuse = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(passthrough(&opens.open(5, true, false, refuse)), None);
        assert_eq!(passthrough(&opens.open(6, true, false, || Ok(1))), None);
    }

    #[test]
    fn who_may_write_past_us_is_counted() {
        let opens = LiveOpens::default();
        opens.open(5, true, false, || Ok(1));
        assert!(!opens.is_written_past(5));
        opens.open(5, true, true, || Ok(1));
        assert!(opens.is_written_past(5));
        opens.close(5, true);
        assert!(!opens.is_written_past(5));
        opens.open(6, false, true, || Ok(1));
        assert!(!opens.is_written_past(6));
    }
}
