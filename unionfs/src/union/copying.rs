//! Who copies which node up at the moment: one at a time, others wait.

use crate::types::NodeId;
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashSet;

/// The copy-ups in progress. The mutex is a leaf and is never held while something is copied.
#[derive(Debug, Default)]
pub(super) struct CopyUps {
    running: Mutex<FxHashSet<NodeId>>,
    finished: Condvar,
}

/// One copy-up in progress; dropping it wakes those who wait for it.
pub(super) struct Running<'a> {
    copyups: &'a CopyUps,
    node: NodeId,
}

impl CopyUps {
    /// Starts one, or (`None`) waits until the one that runs has ended.
    pub(super) fn start_or_wait(&self, node: NodeId) -> Option<Running<'_>> {
        let started = self.start(node);
        if started.is_none() {
            self.wait_for(node);
        }
        started
    }

    /// Starts one; `None` = one is running.
    pub(super) fn start(&self, node: NodeId) -> Option<Running<'_>> {
        let started = self.running.lock().insert(node);
        // Only where it was started: dropping one ends the copy-up of the node.
        started.then(|| Running {
            copyups: self,
            node,
        })
    }

    /// How many are in progress.
    pub(super) fn len(&self) -> usize {
        self.running.lock().len()
    }

    pub(super) fn wait_for(&self, node: NodeId) {
        let mut running = self.running.lock();
        while running.contains(&node) {
            self.finished.wait(&mut running);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.copyups.running.lock().remove(&self.node);
        self.copyups.finished.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    #[test]
    fn who_comes_second_waits_and_does_not_end_the_first() {
        const NODE: NodeId = NodeId(7);
        let copyups = Arc::new(CopyUps::default());
        let (told, news) = channel();
        let first = copyups.start(NODE).unwrap();
        let second = copyups.clone();
        std::thread::spawn(move || {
            told.send(second.start(NODE).is_some()).unwrap();
            told.send(second.start_or_wait(NODE).is_some()).unwrap();
        });
        let soon = Duration::from_secs(20);
        assert_eq!(news.recv_timeout(soon), Ok(false), "it is running");
        assert!(news.recv_timeout(Duration::from_millis(50)).is_err());
        assert_eq!(copyups.len(), 1);
        drop(first);
        assert_eq!(news.recv_timeout(soon), Ok(false), "waited for");
        assert_eq!(copyups.len(), 0);
    }
}
