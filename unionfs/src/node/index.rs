//! The merged names of one directory, with stable positions.
//!
//! Built in one pass over the layers, topmost first, and then kept up to date by the union's own
//! changes. A name keeps its position (the directory cookie) for as long as the index lives, also
//! over a rebuild, so that a listing can go on from a cookie without any handle.

use crate::sys::{Name, RealStat};
use crate::types::{BranchId, Kind, Timestamp};
use hashbrown::{DefaultHashBuilder, HashTable};
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::hash::BuildHasher;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The branches that hold a directory, topmost first.
pub type BranchList = SmallVec<[BranchId; 4]>;

/// A name that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// The branch that decides.
    pub top: BranchId,
    /// Its type.
    pub kind: Kind,
    /// Its inode number there.
    pub real: u64,
    /// Would something of this name be seen if the topmost one were not there?
    pub below: bool,
    /// Directories: every branch that contributes, before looking at opaque marks.
    pub layers: BranchList,
}

impl Present {
    /// A name to which one branch contributes.
    pub fn single(top: BranchId, kind: Kind, real: u64, below: bool) -> Self {
        Self {
            top,
            kind,
            real,
            below,
            layers: BranchList::from_slice(&[top]),
        }
    }
}

/// What an index says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It exists.
    Present(Present),
    /// It is hidden by a whiteout and nothing above it.
    Whiteout,
    /// Nothing is known of it on any layer.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// The name was here once; its position is not given to another.
    Gone,
    /// Only a whiteout.
    Whiteout,
    Entry(Kind),
}

#[derive(Debug)]
struct Record {
    /// The directory cookie: ascending, never given to another name.
    position: u64,
    offset: u32,
    len: u16,
    top: BranchId,
    slot: Slot,
    /// Something visible below the top.
    below: bool,
    /// During the build: lower layers do not count any more.
    blocked: bool,
    real: u64,
}

/// When a layer's directory last changed, as seen while it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Data change time.
    pub mtime: Timestamp,
    /// Attribute change time.
    pub ctime: Timestamp,
}

/// Longer than the tick in which filesystems count their times.
const TICK: Duration = Duration::from_millis(20);

impl Stamp {
    /// Of a directory as it is.
    pub fn of(stat: &RealStat) -> Self {
        Self {
            mtime: stat.mtime,
            ctime: stat.ctime,
        }
    }

    /// So young that another change may still get the same times?
    pub fn is_young(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let then = Duration::new(u64::try_from(self.ctime.sec).unwrap_or(0), self.ctime.nsec);
        now.saturating_sub(then) < TICK
    }
}

/// Merged names. Not synchronised: the directory's lock guards it.
#[derive(Debug)]
pub struct Index {
    names: Vec<u8>,
    records: Vec<Record>,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Names whose marks contradict what is there (`strict`).
    broken: FxHashSet<u32>,
    /// Directories on more than one branch.
    merged: FxHashMap<u32, BranchList>,
    live: u32,
    subdirs: u32,
    next_position: u64,
    gone_since_compaction: u32,
    /// One for each layer, in order; empty when nobody checks.
    pub stamps: SmallVec<[Stamp; 2]>,
    /// When the stamps were last compared.
    pub checked: Instant,
    /// A stamp was so young when it was taken that a later change may have got the same one.
    pub unsettled: bool,
    /// A lower entry of another type ends what a directory is made of.
    others_end: bool,
    /// Changes by the union of which the watches will tell; `None` where nobody watches.
    own: Option<Ledger>,
}

/// What the union did to which name (its hash), how often, and when it last did.
type Ledger = FxHashMap<u64, (u32, Instant)>;

/// A change by the union is told within this time, or was told together with another.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// Names in the ledger before the old ones are dropped.
const LEDGER_MOST: usize = 4096;

/// What an index said before it was built anew.
#[derive(Debug)]
pub struct Snapshot {
    names: Vec<(Slot, BranchId, u64)>,
    merged: FxHashMap<u32, BranchList>,
}

/// A name of which an index says something else than before.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// The name.
    pub name: Name,
    /// Still the same directory, but on other branches.
    pub same_dir: bool,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            records: Vec::new(),
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            broken: FxHashSet::default(),
            merged: FxHashMap::default(),
            live: 0,
            subdirs: 0,
            next_position: 0,
            gone_since_compaction: 0,
            stamps: SmallVec::new(),
            checked: Instant::now(),
            unsettled: false,
            others_end: false,
            own: None,
        }
    }
}

impl Index {
    fn name_of(&self, record: &Record) -> &[u8] {
        &self.names[record.offset as usize..][..usize::from(record.len)]
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.table
            .find(hash, |&at| self.name_of(&self.records[at as usize]) == name)
            .copied()
    }

    /// The record of `name`, made (as `Gone`) if it is new.
    fn find_or_add(&mut self, name: &[u8]) -> u32 {
        if let Some(at) = self.find(name) {
            return at;
        }
        let at = self.records.len() as u32;
        let position = self.next_position;
        self.next_position += 1;
        self.records.push(Record {
            position,
            offset: self.names.len() as u32,
            len: name.len() as u16,
            top: BranchId(0),
            slot: Slot::Gone,
            below: false,
            blocked: false,
            real: 0,
        });
        self.names.extend_from_slice(name);
        self.insert_in_table(at);
        at
    }

    fn insert_in_table(&mut self, at: u32) {
        let (records, names, hasher) = (&self.records, &self.names, &self.hasher);
        let hash_of = |&i: &u32| {
            let r: &Record = &records[i as usize];
            hasher.hash_one(&names[r.offset as usize..][..usize::from(r.len)])
        };
        self.table.insert_unique(hash_of(&at), at, hash_of);
    }

    /// Drops the records of names that are gone once they are the majority, so that a directory
    /// in which names come and go does not grow. The others keep their positions.
    fn compact(&mut self) {
        let kept = self.records.iter().filter(|r| r.slot != Slot::Gone).count();
        if self.records.len() < 2 * kept + 1024 {
            return;
        }
        let old_records = std::mem::take(&mut self.records);
        let old_names = std::mem::take(&mut self.names);
        let mut old_merged = std::mem::take(&mut self.merged);
        let old_broken = std::mem::take(&mut self.broken);
        self.table.clear();
        for (old_at, mut record) in old_records.into_iter().enumerate() {
            if record.slot == Slot::Gone {
                continue;
            }
            let at = self.records.len() as u32;
            let name = &old_names[record.offset as usize..][..usize::from(record.len)];
            record.offset = self.names.len() as u32;
            self.names.extend_from_slice(name);
            self.records.push(record);
            if let Some(list) = old_merged.remove(&(old_at as u32)) {
                self.merged.insert(at, list);
            }
            if old_broken.contains(&(old_at as u32)) {
                self.broken.insert(at);
            }
            self.insert_in_table(at);
        }
    }

    fn set_slot(&mut self, at: u32, slot: Slot) {
        let record = &mut self.records[at as usize];
        for (old, sign) in [(record.slot, -1i32), (slot, 1)] {
            if let Slot::Entry(kind) = old {
                self.live = self.live.wrapping_add_signed(sign);
                if kind == Kind::Dir {
                    self.subdirs = self.subdirs.wrapping_add_signed(sign);
                }
            }
        }
        record.slot = slot;
        if slot != Slot::Entry(Kind::Dir) {
            self.merged.remove(&at);
        }
    }

    /// Starts building anew; names keep their positions.
    pub fn begin(&mut self) {
        for at in 0..self.records.len() as u32 {
            self.set_slot(at, Slot::Gone);
            let record = &mut self.records[at as usize];
            (record.below, record.blocked) = (false, false);
        }
        self.broken.clear();
        self.stamps.clear();
        self.checked = Instant::now();
        self.unsettled = false;
    }

    /// What it says now, to be compared with what it says after it was built anew.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            names: self
                .records
                .iter()
                .map(|r| (r.slot, r.top, r.real))
                .collect(),
            merged: self.merged.clone(),
        }
    }

    /// The names that changed since `before`, which no compaction came after.
    pub fn changed_since(&self, before: &Snapshot) -> Vec<Changed> {
        let mut changed = Vec::new();
        for (at, record) in self.records.iter().enumerate() {
            let old = before.names.get(at).copied();
            let (slot, top, real) = old.unwrap_or((Slot::Gone, BranchId(0), 0));
            let same = match (slot, record.slot) {
                (Slot::Entry(a), Slot::Entry(b)) => (a, top, real) == (b, record.top, record.real),
                (Slot::Entry(_), _) | (_, Slot::Entry(_)) => false,
                _ => continue,
            };
            let at = at as u32;
            if !same || before.merged.get(&at) != self.merged.get(&at) {
                changed.push(Changed {
                    name: Name::from_slice(self.name_of(record)),
                    same_dir: same,
                });
            }
        }
        changed
    }

    /// From now on somebody watches: changes by the union are remembered until they are told.
    pub fn keep_ledger(&mut self) {
        self.own.get_or_insert_default();
    }

    fn note_own(&mut self, name: &[u8]) {
        let Some(ledger) = &mut self.own else { return };
        let now = Instant::now();
        if ledger.len() >= LEDGER_MOST {
            ledger.retain(|_, (_, when)| now - *when < TOLD_WITHIN);
        }
        let (count, when) = ledger.entry(self.hasher.hash_one(name)).or_insert((0, now));
        if now - *when >= TOLD_WITHIN {
            *count = 0;
        }
        (*count, *when) = (*count + 1, now);
    }

    /// A watch tells of `name`: is it what the union did itself?
    pub fn is_own_news(&mut self, name: &[u8]) -> bool {
        let Some(ledger) = &mut self.own else {
            return false;
        };
        let hash = self.hasher.hash_one(name);
        let Some((count, when)) = ledger.get_mut(&hash) else {
            return false;
        };
        let own = *count > 0 && when.elapsed() < TOLD_WITHIN;
        *count = count.saturating_sub(1);
        if *count == 0 || !own {
            ledger.remove(&hash);
        }
        own
    }

    /// While building: where a directory meets something else on a lower layer, is that passed over
    /// (AUFS), or is it the end of what the directory is made of (overlayfs)?
    pub fn end_at_other_types(&mut self, ends: bool) {
        self.others_end = ends;
    }

    /// While building, from the topmost layer down: `branch` holds `name`.
    pub fn add_entry(&mut self, branch: BranchId, name: &[u8], kind: Kind, real: u64) {
        let at = self.find_or_add(name);
        let record = &mut self.records[at as usize];
        match record.slot {
            _ if record.blocked => {}
            Slot::Entry(top) => {
                record.below = true;
                if top == Kind::Dir && kind == Kind::Dir {
                    let first = record.top;
                    self.merged
                        .entry(at)
                        .or_insert_with(|| BranchList::from_slice(&[first]))
                        .push(branch);
                } else if top == Kind::Dir {
                    record.blocked = self.others_end;
                }
            }
            Slot::Gone | Slot::Whiteout => {
                (record.top, record.real) = (branch, real);
                self.set_slot(at, Slot::Entry(kind));
            }
        }
    }

    /// While building, after the entries of the same layer: `branch` hides `name` below it.
    pub fn add_whiteout(&mut self, name: &[u8]) {
        let at = self.find_or_add(name);
        self.records[at as usize].blocked = true;
        if self.records[at as usize].slot == Slot::Gone {
            self.set_slot(at, Slot::Whiteout);
        }
    }

    /// As [`Self::add_whiteout`], by AUFS's rule (`strict`): a whiteout that is no `regular` file, or
    /// beside what it hides, makes the name unusable if this layer decides it.
    pub fn add_strict_whiteout(&mut self, branch: BranchId, name: &[u8], regular: bool) {
        let at = self.find_or_add(name);
        let record = &mut self.records[at as usize];
        record.blocked = true;
        let broken = match record.slot {
            Slot::Gone => !regular,
            Slot::Entry(_) if record.top == branch => true,
            Slot::Entry(_) | Slot::Whiteout => return,
        };
        self.set_slot(at, Slot::Whiteout);
        if broken {
            self.broken.insert(at);
        }
    }

    /// Is a name unusable because its marks contradict what is there?
    pub fn is_broken(&self, name: &[u8]) -> bool {
        !self.broken.is_empty() && self.find(name).is_some_and(|at| self.broken.contains(&at))
    }

    /// What is known of `name`.
    pub fn get(&self, name: &[u8]) -> Found {
        let Some(at) = self.find(name) else {
            return Found::Absent;
        };
        let record = &self.records[at as usize];
        match record.slot {
            Slot::Gone => Found::Absent,
            Slot::Whiteout => Found::Whiteout,
            Slot::Entry(kind) => Found::Present(Present {
                top: record.top,
                kind,
                real: record.real,
                below: record.below,
                layers: match self.merged.get(&at) {
                    Some(list) => list.clone(),
                    None => BranchList::from_slice(&[record.top]),
                },
            }),
        }
    }

    /// After a change by the union: `name` now is what `present` says.
    pub fn set(&mut self, name: &[u8], present: &Present) {
        self.note_own(name);
        self.put(name, present);
    }

    /// After a change by somebody else: `name` now is what `present` says.
    pub fn put(&mut self, name: &[u8], present: &Present) {
        let at = self.find_or_add(name);
        self.set_slot(at, Slot::Entry(present.kind));
        let record = &mut self.records[at as usize];
        (record.top, record.real, record.below) = (present.top, present.real, present.below);
        if present.layers.len() > 1 {
            self.merged.insert(at, present.layers.clone());
        } else {
            self.merged.remove(&at);
        }
    }

    /// After a removal by the union; `whiteout` = something below is hidden now.
    pub fn remove(&mut self, name: &[u8], whiteout: bool) {
        self.note_own(name);
        self.take(name, whiteout);
    }

    /// After a removal by somebody else.
    pub fn take(&mut self, name: &[u8], whiteout: bool) {
        if let Some(at) = self.find(name) {
            self.set_slot(at, if whiteout { Slot::Whiteout } else { Slot::Gone });
            self.records[at as usize].below = false;
            self.gone_since_compaction += 1;
            if self.gone_since_compaction >= 1024 {
                self.gone_since_compaction = 0;
                self.compact();
            }
        }
    }

    /// Names that exist.
    pub fn len(&self) -> usize {
        self.live as usize
    }

    /// Does no name exist?
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Directories among them.
    pub fn subdirs(&self) -> u32 {
        self.subdirs
    }

    /// Behind the last position that was given to a name.
    pub fn end(&self) -> u64 {
        self.next_position
    }

    /// The existing names from `position` on, with their positions.
    pub fn iter_from(
        &self,
        position: u64,
    ) -> impl Iterator<Item = (u64, &[u8], Kind, BranchId, u64)> {
        let start = self.records.partition_point(|r| r.position < position);
        self.records[start..].iter().filter_map(|r| match r.slot {
            Slot::Entry(kind) => Some((r.position, self.name_of(r), kind, r.top, r.real)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
