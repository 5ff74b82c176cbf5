//! The merged names of one directory, with stable positions.
//!
//! Built in one pass over the layers, topmost first, and then kept up to date by the union's own
//! changes. A name keeps its position (the directory cookie) for as long as the index lives, also
//! over a rebuild, so that a listing can go on from a cookie without any handle.

mod positions;

use crate::sys::{Name, RealStat};
use crate::types::{BranchId, Kind, Timestamp};
use hashbrown::{DefaultHashBuilder, HashTable};
use positions::Positions;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

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

/// A large directory is a million of these: see `a_record_is_small`.
#[derive(Debug)]
struct Record {
    real: u64,
    /// Where its name begins; it ends where the next one begins.
    offset: u32,
    top: BranchId,
    slot: Slot,
    /// `BELOW`, `BLOCKED`.
    marks: u8,
}

/// Something is visible below the top.
const BELOW: u8 = 1;
/// During the build: lower layers do not count any more.
const BLOCKED: u8 = 2;

impl Record {
    fn mark(&mut self, mark: u8, on: bool) {
        self.marks = if on {
            self.marks | mark
        } else {
            self.marks & !mark
        };
    }
}

/// When a layer's directory last changed, as seen while it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Data change time.
    pub mtime: Timestamp,
    /// Attribute change time.
    pub ctime: Timestamp,
}

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
        self.ctime.may_recur()
    }
}

/// Merged names. Not synchronised: the directory's lock guards it.
#[derive(Debug)]
pub struct Index {
    names: Vec<u8>,
    records: Vec<Record>,
    positions: Positions,
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// What few directories need.
    extra: Option<Box<Extra>>,
    live: u32,
    subdirs: u32,
    gone_since_compaction: u32,
    /// One for each layer, in order; empty when nobody checks.
    pub stamps: SmallVec<[Stamp; 1]>,
    /// When the stamps were last compared.
    pub checked: Instant,
    /// A stamp was so young when it was taken that a later change may have got the same one.
    pub unsettled: bool,
    /// A lower entry of another type ends what a directory is made of.
    others_end: bool,
}

#[derive(Debug, Default)]
struct Extra {
    /// Names whose marks contradict what is there (`strict`).
    broken: FxHashSet<u32>,
    /// Directories on more than one branch.
    merged: FxHashMap<u32, BranchList>,
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
            positions: Positions::default(),
            table: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            extra: None,
            live: 0,
            subdirs: 0,
            gone_since_compaction: 0,
            stamps: SmallVec::new(),
            checked: Instant::now(),
            unsettled: false,
            others_end: false,
        }
    }
}

/// The name of a record: they lie one behind the other.
fn name_at<'a>(records: &[Record], names: &'a [u8], at: u32) -> &'a [u8] {
    let at = at as usize;
    let end = records
        .get(at + 1)
        .map_or(names.len(), |r| r.offset as usize);
    &names[records[at].offset as usize..end]
}

/// So few names are looked through as fast as a table is asked, which would be a third of what a
/// small directory takes.
const WITHOUT_TABLE: usize = 16;

impl Index {
    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// The branches of a directory that is on more than one.
    fn merged(&self, at: u32) -> Option<&BranchList> {
        self.extra.as_ref()?.merged.get(&at)
    }

    fn name_of(&self, at: u32) -> &[u8] {
        name_at(&self.records, &self.names, at)
    }

    fn find(&self, name: &[u8]) -> Option<u32> {
        if self.records.len() <= WITHOUT_TABLE {
            return (0..self.records.len() as u32).find(|&at| self.name_of(at) == name);
        }
        let hash = self.hasher.hash_one(name);
        self.table
            .find(hash, |&at| self.name_of(at) == name)
            .copied()
    }

    /// The record of `name`, made (as `Gone`) if it is new.
    fn find_or_add(&mut self, name: &[u8]) -> u32 {
        if let Some(at) = self.find(name) {
            return at;
        }
        let at = self.records.len() as u32;
        self.records.push(Record {
            real: 0,
            offset: self.names.len() as u32,
            top: BranchId(0),
            slot: Slot::Gone,
            marks: 0,
        });
        self.names.extend_from_slice(name);
        if self.records.len() == WITHOUT_TABLE + 1 {
            (0..=at).for_each(|at| self.insert_in_table(at));
        } else if self.records.len() > WITHOUT_TABLE {
            self.insert_in_table(at);
        }
        at
    }

    fn insert_in_table(&mut self, at: u32) {
        let (records, names, hasher) = (&self.records, &self.names, &self.hasher);
        let hash_of = |&i: &u32| hasher.hash_one(name_at(records, names, i));
        self.table.insert_unique(hash_of(&at), at, hash_of);
    }

    /// Drops the records of names that are gone once they are the majority, so that a directory
    /// in which names come and go does not grow. The others keep their positions.
    fn compact(&mut self) {
        let kept = self.records.iter().filter(|r| r.slot != Slot::Gone).count();
        if self.records.len() < 2 * kept + 1024 {
            return;
        }
        let end = self.end();
        let mut positions = Vec::with_capacity(kept);
        let ends: Vec<u32> = (self.records.iter().skip(1).map(|r| r.offset))
            .chain([self.names.len() as u32])
            .collect();
        let old_records = std::mem::take(&mut self.records);
        let old_names = std::mem::take(&mut self.names);
        let extra = self.extra.as_deref_mut();
        let (mut old_merged, old_broken) = extra.map_or_else(Default::default, |extra| {
            let Extra { merged, broken, .. } = extra;
            (std::mem::take(merged), std::mem::take(broken))
        });
        self.table.clear();
        for (old_at, mut record) in old_records.into_iter().enumerate() {
            if record.slot == Slot::Gone {
                continue;
            }
            let at = self.records.len() as u32;
            let name = &old_names[record.offset as usize..ends[old_at] as usize];
            positions.push(self.positions.of(old_at));
            record.offset = self.names.len() as u32;
            self.names.extend_from_slice(name);
            self.records.push(record);
            if let Some(list) = old_merged.remove(&(old_at as u32)) {
                self.extra().merged.insert(at, list);
            }
            if old_broken.contains(&(old_at as u32)) {
                self.extra().broken.insert(at);
            }
        }
        if self.records.len() > WITHOUT_TABLE {
            (0..self.records.len() as u32).for_each(|at| self.insert_in_table(at));
        }
        self.positions = Positions {
            kept: positions,
            next: end,
        };
    }

    /// Gives back the room that was taken while it was built, for names to come.
    pub fn fit(&mut self) {
        self.names.shrink_to_fit();
        self.records.shrink_to_fit();
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
            self.set_merged(at, None);
        }
    }

    fn set_merged(&mut self, at: u32, branches: Option<&BranchList>) {
        match (branches, &mut self.extra) {
            (Some(branches), _) => {
                self.extra().merged.insert(at, branches.clone());
            }
            (None, Some(extra)) => {
                extra.merged.remove(&at);
            }
            (None, None) => {}
        }
    }

    /// Starts building anew; names keep their positions.
    pub fn begin(&mut self) {
        for at in 0..self.records.len() as u32 {
            self.set_slot(at, Slot::Gone);
            self.records[at as usize].marks = 0;
        }
        if let Some(extra) = &mut self.extra {
            extra.broken.clear();
        }
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
            merged: (self.extra.as_ref()).map_or_else(Default::default, |e| e.merged.clone()),
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
            if !same || before.merged.get(&at) != self.merged(at) {
                changed.push(Changed {
                    name: Name::from_slice(self.name_of(at)),
                    same_dir: same,
                });
            }
        }
        changed
    }

    /// From now on somebody watches: changes by the union are remembered until they are told.
    pub fn keep_ledger(&mut self) {
        self.extra().own.get_or_insert_default();
    }

    fn note_own(&mut self, name: &[u8]) {
        let hash = self.hasher.hash_one(name);
        let Some(ledger) = self.extra.as_mut().and_then(|e| e.own.as_mut()) else {
            return;
        };
        let now = Instant::now();
        if ledger.len() >= LEDGER_MOST {
            ledger.retain(|_, (_, when)| now - *when < TOLD_WITHIN);
        }
        let (count, when) = ledger.entry(hash).or_insert((0, now));
        if now - *when >= TOLD_WITHIN {
            *count = 0;
        }
        (*count, *when) = (*count + 1, now);
    }

    /// A watch tells of `name`: is it what the union did itself?
    pub fn is_own_news(&mut self, name: &[u8]) -> bool {
        let hash = self.hasher.hash_one(name);
        let Some(ledger) = self.extra.as_mut().and_then(|e| e.own.as_mut()) else {
            return false;
        };
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
            _ if record.marks & BLOCKED != 0 => {}
            Slot::Entry(top) => {
                record.mark(BELOW, true);
                if top == Kind::Dir && kind == Kind::Dir {
                    let first = record.top;
                    self.extra()
                        .merged
                        .entry(at)
                        .or_insert_with(|| BranchList::from_slice(&[first]))
                        .push(branch);
                } else if top == Kind::Dir {
                    record.mark(BLOCKED, self.others_end);
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
        self.records[at as usize].mark(BLOCKED, true);
        if self.records[at as usize].slot == Slot::Gone {
            self.set_slot(at, Slot::Whiteout);
        }
    }

    /// As [`Self::add_whiteout`], by AUFS's rule (`strict`): a whiteout that is no `regular` file, or
    /// beside what it hides, makes the name unusable if this layer decides it.
    pub fn add_strict_whiteout(&mut self, branch: BranchId, name: &[u8], regular: bool) {
        let at = self.find_or_add(name);
        let record = &mut self.records[at as usize];
        record.mark(BLOCKED, true);
        let broken = match record.slot {
            Slot::Gone => !regular,
            Slot::Entry(_) if record.top == branch => true,
            Slot::Entry(_) | Slot::Whiteout => return,
        };
        self.set_slot(at, Slot::Whiteout);
        if broken {
            self.extra().broken.insert(at);
        }
    }

    /// Is a name unusable because its marks contradict what is there?
    pub fn is_broken(&self, name: &[u8]) -> bool {
        let broken = self.extra.as_ref().map(|extra| &extra.broken);
        broken.is_some_and(|b| !b.is_empty() && self.find(name).is_some_and(|at| b.contains(&at)))
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
                below: record.marks & BELOW != 0,
                layers: match self.merged(at) {
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
        (record.top, record.real) = (present.top, present.real);
        record.mark(BELOW, present.below);
        self.set_merged(at, (present.layers.len() > 1).then_some(&present.layers));
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
            self.records[at as usize].mark(BELOW, false);
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
        self.positions.of(self.records.len())
    }

    /// The existing names from `position` on, with their positions.
    pub fn iter_from(
        &self,
        position: u64,
    ) -> impl Iterator<Item = (u64, &[u8], Kind, BranchId, u64)> {
        let start = self.positions.at_or_after(position).min(self.records.len());
        (start..self.records.len()).filter_map(|at| {
            let record = &self.records[at];
            let Slot::Entry(kind) = record.slot else {
                return None;
            };
            let name = self.name_of(at as u32);
            Some((self.positions.of(at), name, kind, record.top, record.real))
        })
    }
}

#[cfg(test)]
mod tests;
