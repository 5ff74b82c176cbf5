//! A bounded cache of open descriptors: sharded, evicting by the clock algorithm.

use parking_lot::Mutex;
use rustc_hash::{FxBuildHasher, FxHashMap};
use rustix::fd::OwnedFd;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

const SHARDS: usize = 16;

#[derive(Debug)]
struct Slot<K> {
    key: K,
    fd: Arc<OwnedFd>,
    used: bool,
}

#[derive(Debug)]
struct Shard<K> {
    map: FxHashMap<K, usize>,
    slots: Vec<Option<Slot<K>>>,
    free: Vec<usize>,
    hand: usize,
}

/// Descriptors by key, at most `capacity` of them. A descriptor that is evicted while somebody
/// uses it stays open until they drop it. The shard locks are leaves; closing may happen inside.
#[derive(Debug)]
pub struct FdCache<K> {
    shards: Vec<Mutex<Shard<K>>>,
    per_shard: usize,
}

impl<K: Copy + Eq + Hash> FdCache<K> {
    /// A cache for about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                map: FxHashMap::default(),
                slots: Vec::new(),
                free: Vec::new(),
                hand: 0,
            })
        };
        Self {
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            per_shard: (capacity / SHARDS).max(4),
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K>> {
        // The high bits: the map inside uses the low ones.
        let hash = FxBuildHasher.hash_one(key) >> 48;
        &self.shards[hash as usize % SHARDS]
    }

    /// The descriptor of `key`, if it is cached.
    pub fn get(&self, key: K) -> Option<Arc<OwnedFd>> {
        let mut shard = self.shard(&key).lock();
        let slot = *shard.map.get(&key)?;
        let slot = shard.slots.get_mut(slot)?.as_mut()?;
        slot.used = true;
        Some(slot.fd.clone())
    }

    /// Caches a descriptor, replacing one of the same key.
    pub fn insert(&self, key: K, fd: Arc<OwnedFd>) {
        let mut shard = self.shard(&key).lock();
        let slot = Slot {
            key,
            fd,
            used: true,
        };
        if let Some(&at) = shard.map.get(&key) {
            shard.slots[at] = Some(slot);
            return;
        }
        let at = match shard.free.pop() {
            Some(at) => at,
            None if shard.slots.len() < self.per_shard => {
                shard.slots.push(None);
                shard.slots.len() - 1
            }
            None => shard.evict(),
        };
        shard.slots[at] = Some(slot);
        shard.map.insert(key, at);
    }

    /// Drops the descriptor of `key`.
    pub fn remove(&self, key: K) {
        self.shard(&key).lock().remove(&key);
    }

    /// Drops the descriptors of which `keep` says no.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let gone: Vec<K> = shard.map.keys().filter(|k| !keep(k)).copied().collect();
            for key in gone {
                shard.remove(&key);
            }
        }
    }

    /// Closes everything that nobody uses right now: for EMFILE.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.map.clear();
            shard.slots.clear();
            shard.free.clear();
            shard.hand = 0;
        }
    }

    /// Cached descriptors.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().map.len()).sum()
    }

    /// Is nothing cached?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Copy + Eq + Hash> Shard<K> {
    fn remove(&mut self, key: &K) {
        if let Some(at) = self.map.remove(key) {
            self.slots[at] = None;
            self.free.push(at);
        }
    }

    /// Frees one slot: the first, from the hand on, that was not used since the hand last passed.
    fn evict(&mut self) -> usize {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            match &mut self.slots[at] {
                Some(slot) if slot.used => slot.used = false,
                Some(slot) => {
                    let key = slot.key;
                    self.map.remove(&key);
                    self.slots[at] = None;
                    return at;
                }
                None => return at,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_finds_what_it_holds() {
        let cache = FdCache::new(64);
        let fd = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
        for key in 0u64..1000 {
            cache.insert(key, fd.clone());
            assert!(cache.get(key).is_some());
        }
        assert!(cache.len() <= 64);
        cache.remove(999);
        assert!(cache.get(999).is_none());
        cache.retain(|key| key % 2 == 0);
        assert!(!cache.is_empty() && cache.get(998).is_some() && cache.get(997).is_none());
        cache.clear();
        assert!(cache.is_empty());
        assert_eq!(Arc::strong_count(&fd), 1);
    }
}
