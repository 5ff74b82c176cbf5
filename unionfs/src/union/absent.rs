//! Names that were answered as absent and that the kernel may remember as such.
//!
//! It tells nobody when it forgets them, and a new branch may bring some of them to life. So the
//! latest are noted, to be taken back then. One that has to make room is taken back at once.

use super::Union;
use crate::node::Node;
use crate::sys::Name;
use crate::types::{Effect, NodeId};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::time::Instant;

const SHARDS: usize = 8;
/// Names noted in each shard.
const MOST: usize = 8192;

/// Directory, name, and until when the kernel may remember it; `None` = for ever.
type Noted = (NodeId, Name, Option<Instant>);

fn is_live(noted: &Noted) -> bool {
    noted.2.is_none_or(|end| Instant::now() < end)
}

/// Bounded; the shard locks are leaves.
#[derive(Debug, Default)]
pub(super) struct AbsentNames {
    shards: [Mutex<VecDeque<Noted>>; SHARDS],
}

impl AbsentNames {
    /// Names noted that may still be remembered.
    pub(super) fn len(&self) -> usize {
        let live =
            |shard: &Mutex<VecDeque<Noted>>| shard.lock().iter().filter(|n| is_live(n)).count();
        self.shards.iter().map(live).sum()
    }
}

impl Union {
    /// The kernel is told that `name` is absent in `dir`, and may remember that.
    pub(super) fn note_absent(&self, dir: &Node, name: &[u8]) {
        let lifetime = self.lifetimes_in(dir.id, None).negative;
        if lifetime.is_zero() {
            return;
        }
        let hash = rustc_hash::FxBuildHasher.hash_one(dir.id);
        let shard = &self.absent.shards[(hash >> 48) as usize % SHARDS];
        let oldest = {
            let mut noted = shard.lock();
            let end = Instant::now().checked_add(lifetime);
            noted.push_back((dir.id, Name::from_slice(name), end));
            if noted.len() > MOST {
                noted.pop_front()
            } else {
                None
            }
        };
        if let Some(oldest) = oldest
            && is_live(&oldest)
        {
            let (parent, name) = (oldest.0, oldest.1.to_vec());
            self.tell(Effect::ExpireEntry { parent, name });
        }
    }

    /// What the kernel may still believe to be absent; forgotten here.
    pub(super) fn take_absent(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for shard in &self.absent.shards {
            let noted = std::mem::take(&mut *shard.lock());
            let live = noted.into_iter().filter(is_live);
            effects.extend(live.map(|(parent, name, _)| Effect::ExpireEntry {
                parent,
                name: name.to_vec(),
            }));
        }
        effects
    }
}
