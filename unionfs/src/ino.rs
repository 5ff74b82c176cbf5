//! Union inode numbers: a function of filesystem and real number, with recorded exceptions.
//!
//! The top 8 bits say which filesystem (0 = the first one seen: its numbers stay as they are), the
//! lower 56 are the real number, as overlayfs's xino does it. A copied-up file keeps the number of
//! what it was copied from: that is recorded by the writable branch ([`crate::branch::log`]).
//! Files that got the inode number of one that was copied and is gone have numbers made of their birth
//! times too; numbers that do not fit come from a range of their own, for the life of the mount.

use crate::branch::log::{Origin, Source};
use crate::sys::{Name, RealStat};
use crate::types::{NodeId, Timestamp};
use arc_swap::ArcSwap;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustc_hash::FxBuildHasher;
use smallvec::{SmallVec, smallvec};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const FS_SHIFT: u32 = 56;
/// Filesystem index of numbers that are handed out one by one.
const DYNAMIC: u64 = 0xff;
/// Filesystem index of numbers made of inode number and birth time.
const BY_BIRTH: u64 = 0xfe;

/// Was this number handed out for the life of the mount only?
pub fn is_dynamic(node: NodeId) -> bool {
    node.0 >> FS_SHIFT == DYNAMIC
}

/// Files that are remembered with one inode number: more than two are only found where lower files
/// are replaced again and again.
const SHARING: usize = 8;

/// A filesystem that branches lie on.
#[derive(Clone, Debug)]
struct Filesystem {
    dev: u64,
    /// Identity over mounts (see [`Source::fs`]).
    id: u64,
}

/// Why a file has another number than its own.
#[derive(Clone, Copy, Debug)]
struct Known {
    node: NodeId,
    /// Birth time of the file; zero = of whichever has this inode number now.
    btime: Timestamp,
    /// What it is a copy of.
    source: Option<Source>,
}

/// Files with one inode number, told apart by their birth times.
type Sharing = SmallVec<[(Timestamp, NodeId); 1]>;

/// Maps real files to union numbers.
#[derive(Debug)]
pub struct InoMap {
    /// By index; grows when a branch on another one is added.
    filesystems: ArcSwap<Vec<Filesystem>>,
    /// Recorded origins by device and real number. Leaf locks (shards).
    origins: DashMap<(u64, u64), Known, FxBuildHasher>,
    origin_count: AtomicUsize,
    /// What something was copied from, by device and real number: another file there has another
    /// number. Leaf locks (shards).
    originals: DashMap<(u64, u64), Sharing, FxBuildHasher>,
    original_count: AtomicUsize,
    dynamic: DashMap<(u64, u64), NodeId, FxBuildHasher>,
    next_dynamic: AtomicU64,
    /// Directories that are seen at a second place get a number by that place.
    aliases: DashMap<(NodeId, Name), NodeId, FxBuildHasher>,
}

impl InoMap {
    /// A map of these filesystems (device and identity over mounts), in this order.
    pub fn new(filesystems: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut known: Vec<Filesystem> = Vec::new();
        for (dev, id) in filesystems {
            know(&mut known, dev, id);
        }
        Self {
            filesystems: ArcSwap::from_pointee(known),
            origins: DashMap::default(),
            origin_count: AtomicUsize::new(0),
            originals: DashMap::default(),
            original_count: AtomicUsize::new(0),
            dynamic: DashMap::default(),
            next_dynamic: AtomicU64::new(1),
            aliases: DashMap::default(),
        }
    }

    /// Recorded exceptions.
    pub fn len(&self) -> usize {
        self.origins.len() + self.originals.len() + self.dynamic.len() + self.aliases.len()
    }

    /// Has every file the number that follows from its own?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A branch on this filesystem was added. One caller at a time.
    pub fn add_filesystem(&self, dev: u64, id: u64) {
        let mut known = (**self.filesystems.load()).clone();
        know(&mut known, dev, id);
        self.filesystems.store(Arc::new(known));
    }

    /// The union number of a real file.
    pub fn number(&self, stat: &RealStat) -> NodeId {
        match self.known(stat) {
            Some(known) => known.node,
            None => self.own_number(stat.dev, stat.ino, stat.btime),
        }
    }

    fn known(&self, stat: &RealStat) -> Option<Known> {
        if self.origin_count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let known = *self.origins.get(&(stat.dev, stat.ino))?;
        (known.btime == stat.btime || known.btime == Timestamp::default()).then_some(known)
    }

    fn own_number(&self, dev: u64, real: u64, btime: Timestamp) -> NodeId {
        if self.original_count.load(Ordering::Relaxed) > 0
            && let Some(mut sharing) = self.originals.get_mut(&(dev, real))
        {
            return self.number_among(&mut sharing, (dev, real), btime);
        }
        self.combine(dev, real)
    }

    fn id_of(&self, dev: u64) -> Option<u64> {
        let known = self.filesystems.load();
        known.iter().find(|f| f.dev == dev).map(|f| f.id)
    }

    fn device_of(&self, id: u64) -> Option<u64> {
        let known = self.filesystems.load();
        known.iter().find(|f| f.id == id).map(|f| f.dev)
    }

    /// The number of the file with this birth time, a new one if it was not seen before.
    fn number_among(&self, sharing: &mut Sharing, file: (u64, u64), btime: Timestamp) -> NodeId {
        if let Some((_, node)) = sharing.iter().find(|(b, _)| *b == btime) {
            return *node;
        }
        let node = self.by_birth(file, btime);
        sharing.truncate(SHARING - 1);
        sharing.push((btime, node));
        node
    }

    /// A number that the next mount gives the file too.
    fn by_birth(&self, (dev, real): (u64, u64), btime: Timestamp) -> NodeId {
        if btime == Timestamp::default() {
            return self.fresh();
        }
        let mut hasher = rustc_hash::FxHasher::default();
        (self.id_of(dev).unwrap_or(dev), real, btime).hash(&mut hasher);
        NodeId(BY_BIRTH << FS_SHIFT | hasher.finish() >> (64 - FS_SHIFT))
    }

    /// The number for a listing, where only the real number is known; `None` = that does not tell.
    pub fn number_in_listing(&self, dev: u64, real: u64) -> Option<NodeId> {
        if self.origin_count.load(Ordering::Relaxed) > 0
            && let Some(known) = self.origins.get(&(dev, real))
        {
            return Some(known.node);
        }
        if self.original_count.load(Ordering::Relaxed) > 0
            && self.originals.contains_key(&(dev, real))
        {
            return None;
        }
        Some(self.combine(dev, real))
    }

    fn combine(&self, dev: u64, real: u64) -> NodeId {
        let index = self.filesystems.load().iter().position(|f| f.dev == dev);
        match index {
            Some(fs) if (fs as u64) < BY_BIRTH && real > 1 && real >> FS_SHIFT == 0 => {
                NodeId((fs as u64) << FS_SHIFT | real)
            }
            _ => *self
                .dynamic
                .entry((dev, real))
                .or_insert_with(|| self.fresh()),
        }
    }

    /// What a copy of this file is a copy of: of what it was copied from itself.
    pub fn source(&self, stat: &RealStat) -> Source {
        let own = || Source {
            fs: self.id_of(stat.dev).unwrap_or(stat.dev | 1 << 63),
            ino: stat.ino,
            btime: stat.btime,
        };
        self.known(stat)
            .and_then(|known| known.source)
            .unwrap_or_else(own)
    }

    /// The number of what is recorded as a source; `None` = its filesystem has no branch in this
    /// mount. A file that has its inode number now and is another one gets another number.
    pub fn node_of(&self, source: &Source) -> Option<NodeId> {
        let dev = self.device_of(source.fs)?;
        Some(match self.originals.entry((dev, source.ino)) {
            Entry::Occupied(mut slot) => {
                self.number_among(slot.get_mut(), (dev, source.ino), source.btime)
            }
            Entry::Vacant(slot) => {
                let node = self.combine(dev, source.ino);
                slot.insert(smallvec![(source.btime, node)]);
                self.original_count.fetch_add(1, Ordering::Relaxed);
                node
            }
        })
    }

    /// The file that `source` names keeps this number, wherever its data goes: a later file with
    /// its inode number is another one.
    pub fn note_original(&self, source: &Source, node: NodeId) {
        let Some(dev) = self.device_of(source.fs) else {
            return;
        };
        let mut sharing = match self.originals.entry((dev, source.ino)) {
            Entry::Occupied(slot) => slot.into_ref(),
            Entry::Vacant(slot) => {
                self.original_count.fetch_add(1, Ordering::Relaxed);
                slot.insert(SmallVec::new())
            }
        };
        if sharing.iter().all(|(btime, _)| *btime != source.btime) {
            sharing.truncate(SHARING - 1);
            sharing.push((source.btime, node));
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

    /// For the life of the mount, this very file has this number: its own is taken, or it is what a
    /// node shows by now that had this number before. Not a later one with its inode number, and an
    /// older one that is found to be gone only now takes nothing with it ([`Self::drop_origin`]).
    pub fn keep(&self, stat: &RealStat, node: NodeId) {
        let known = Known {
            node,
            btime: stat.btime,
            source: None,
        };
        self.set_known(stat.dev, stat.ino, known);
    }

    /// Remembers that the file `real` on `dev` is a copy, which keeps the number of its source.
    pub fn set_origin(&self, dev: u64, real: u64, origin: Origin, node: NodeId) {
        let known = Known {
            node,
            btime: origin.btime,
            source: Some(origin.source),
        };
        self.set_known(dev, real, known);
    }

    fn set_known(&self, dev: u64, real: u64, known: Known) {
        if self.origins.insert((dev, real), known).is_none() {
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

/// Enters a filesystem that is not known yet. A device number that another one had before is this
/// one's now.
fn know(known: &mut Vec<Filesystem>, dev: u64, id: u64) {
    // None, or one that a copy of the filesystem has too: good for as long as it is mounted.
    let ambiguous = id == 0 || known.iter().any(|f| f.id == id && f.dev != dev);
    let id = if ambiguous { dev | 1 << 63 } else { id };
    match known.iter_mut().find(|f| f.dev == dev) {
        Some(same) => same.id = id,
        None => known.push(Filesystem { dev, id }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_filesystems_never_meet() {
        let map = InoMap::new([(10, 1), (20, 2)]);
        assert_eq!(map.combine(10, 5), NodeId(5));
        assert_eq!(map.combine(20, 5), NodeId(1 << 56 | 5));
        // Unknown device, 0 and 1, and numbers that are too long: handed out, and stable.
        for (dev, real) in [(30, 5), (10, 0), (10, 1), (10, 1 << 60)] {
            let n = map.combine(dev, real);
            assert_eq!(n.0 >> 56, 0xff);
            assert_eq!(map.combine(dev, real), n);
        }
    }

    #[test]
    fn a_source_is_found_wherever_its_filesystem_stands_and_no_other_file_is_it() {
        let time = |sec| Timestamp { sec, nsec: 1 };
        let source = |sec| Source {
            fs: 7,
            ino: 5,
            btime: time(sec),
        };
        let map = InoMap::new([(10, 1), (20, 7), (30, 7), (40, 0)]);
        assert_eq!(map.own_number(20, 5, time(9)), NodeId(1 << 56 | 5));
        assert_eq!(map.node_of(&source(1)), Some(NodeId(1 << 56 | 5)));
        assert_eq!(map.own_number(20, 5, time(1)), NodeId(1 << 56 | 5));
        let other = map.own_number(20, 5, time(9));
        assert!(other.0 >> FS_SHIFT == BY_BIRTH && !is_dynamic(other));
        assert_eq!(map.node_of(&source(9)), Some(other));
        assert_eq!(map.number_in_listing(20, 5), None);
        assert_eq!(map.node_of(&Source { fs: 8, ..source(1) }), None);
        // The third filesystem is a copy of the second, the fourth has no identity.
        assert!(
            map.filesystems.load()[2..]
                .iter()
                .all(|f| f.id == f.dev | 1 << 63)
        );
    }

    #[test]
    fn a_file_that_is_gone_takes_no_number_from_the_one_that_has_its_inode_number() {
        let time = |sec| Timestamp { sec, nsec: 1 };
        let map = InoMap::new([(10, 1)]);
        let mut new = crate::sys::stat::stat_fd(tempfile::tempfile().unwrap()).unwrap();
        (new.dev, new.ino, new.btime) = (10, 5, time(2));
        // Made between the removal of the old file and its being noted.
        map.keep(&new, NodeId(77));
        assert!(!map.drop_origin(10, 5, time(1)));
        assert_eq!(map.number(&new), NodeId(77));
        assert!(map.drop_origin(10, 5, time(2)));
        assert_eq!(map.number(&new), NodeId(5));
    }
}
