//! Union inode numbers: a function of filesystem and real number, with recorded exceptions.
//!
//! The top 8 bits say which filesystem (0 = the first one seen: its numbers stay as they are), the
//! lower 56 are the real number, as overlayfs's xino does it. A copied-up file keeps the number of
//! what it was copied from: that is recorded by the writable branch ([`crate::branch::store`]).
//! Numbers that do not fit get one from a range of their own, for the life of the mount.

use crate::branch::store::Origin;
use crate::sys::{Name, RealStat};
use crate::types::{NodeId, Timestamp};
use dashmap::DashMap;
use parking_lot::RwLock;
use rustc_hash::FxBuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FS_SHIFT: u32 = 56;
/// Filesystem index of numbers that are handed out one by one.
const DYNAMIC: u64 = 0xff;

/// Was this number handed out for the life of the mount only?
pub fn is_dynamic(node: NodeId) -> bool {
    node.0 >> FS_SHIFT == DYNAMIC
}

/// Maps real files to union numbers.
#[derive(Debug)]
pub struct InoMap {
    /// Devices by index. A leaf lock, written when a filesystem is first seen.
    filesystems: RwLock<Vec<u64>>,
    /// Recorded origins by device and real number. Leaf locks (shards).
    origins: DashMap<(u64, u64), Origin, FxBuildHasher>,
    origin_count: AtomicUsize,
    dynamic: DashMap<(u64, u64), NodeId, FxBuildHasher>,
    next_dynamic: AtomicU64,
    /// Directories that are seen at a second place get a number by that place.
    aliases: DashMap<(NodeId, Name), NodeId, FxBuildHasher>,
}

impl InoMap {
    /// A map in which these devices come first, in this order.
    pub fn new(devices: impl IntoIterator<Item = u64>) -> Self {
        let mut filesystems = Vec::new();
        for dev in devices {
            if !filesystems.contains(&dev) {
                filesystems.push(dev);
            }
        }
        Self {
            filesystems: RwLock::new(filesystems),
            origins: DashMap::default(),
            origin_count: AtomicUsize::new(0),
            dynamic: DashMap::default(),
            next_dynamic: AtomicU64::new(1),
            aliases: DashMap::default(),
        }
    }

    /// The union number of a real file.
    pub fn number(&self, stat: &RealStat) -> NodeId {
        if self.origin_count.load(Ordering::Relaxed) > 0
            && let Some(origin) = self.origins.get(&(stat.dev, stat.ino))
            && (origin.btime == stat.btime || origin.btime == Timestamp::default())
        {
            return origin.node;
        }
        self.combine(stat.dev, stat.ino)
    }

    /// The number for a listing, where only the real number is known.
    pub fn number_in_listing(&self, dev: u64, real: u64) -> NodeId {
        if self.origin_count.load(Ordering::Relaxed) > 0
            && let Some(origin) = self.origins.get(&(dev, real))
        {
            return origin.node;
        }
        self.combine(dev, real)
    }

    fn combine(&self, dev: u64, real: u64) -> NodeId {
        let index = self.filesystems.read().iter().position(|d| *d == dev);
        match index {
            Some(fs) if (fs as u64) < DYNAMIC && real > 1 && real >> FS_SHIFT == 0 => {
                NodeId((fs as u64) << FS_SHIFT | real)
            }
            _ => *self
                .dynamic
                .entry((dev, real))
                .or_insert_with(|| self.fresh()),
        }
    }

    /// A number that no real file has.
    pub fn fresh(&self) -> NodeId {
        NodeId(DYNAMIC << FS_SHIFT | self.next_dynamic.fetch_add(1, Ordering::Relaxed))
    }

    /// The number of a directory whose own number is taken by the same directory elsewhere.
    pub fn alias(&self, parent: NodeId, name: &[u8]) -> NodeId {
        *self
            .aliases
            .entry((parent, Name::from_slice(name)))
            .or_insert_with(|| self.fresh())
    }

    /// For the life of the mount, the file `real` on `dev` has this number: its own is taken.
    pub fn assign(&self, dev: u64, real: u64, node: NodeId) {
        self.set_origin(
            dev,
            real,
            Origin {
                node,
                btime: Timestamp::default(),
            },
        );
    }

    /// Remembers that the file `real` on `dev` keeps the number of what it was copied from.
    pub fn set_origin(&self, dev: u64, real: u64, origin: Origin) {
        if self.origins.insert((dev, real), origin).is_none() {
            self.origin_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A new file has this real number: whatever was recorded of an older one is void. True if
    /// something was.
    pub fn forget_real(&self, dev: u64, real: u64) -> bool {
        if self.origin_count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let gone = self.origins.remove(&(dev, real)).is_some();
        if gone {
            self.origin_count.fetch_sub(1, Ordering::Relaxed);
        }
        gone
    }

    /// The file is gone. True if it had a recorded origin.
    pub fn drop_origin(&self, dev: u64, real: u64, btime: Timestamp) -> bool {
        let gone = self
            .origins
            .remove_if(&(dev, real), |_, o| {
                o.btime == btime || o.btime == Timestamp::default()
            })
            .is_some();
        if gone {
            self.origin_count.fetch_sub(1, Ordering::Relaxed);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_filesystems_never_meet() {
        let map = InoMap::new([10, 20]);
        assert_eq!(map.combine(10, 5), NodeId(5));
        assert_eq!(map.combine(20, 5), NodeId(1 << 56 | 5));
        // Unknown device, 0 and 1, and numbers that are too long: handed out, and stable.
        for (dev, real) in [(30, 5), (10, 0), (10, 1), (10, 1 << 60)] {
            let n = map.combine(dev, real);
            assert_eq!(n.0 >> 56, 0xff);
            assert_eq!(map.combine(dev, real), n);
        }
    }
}
