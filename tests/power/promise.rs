//! What must be there after a loss of power: the tree before or after a step, whole, and not
//! before the last step that was made durable.

use crate::fuzz::line::Line;
use crate::fuzz::tree::{self, Tree};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// A union after some steps.
pub struct Snapshot {
    pub tree: Tree,
    /// Data of regular files, by inode number.
    pub data: BTreeMap<u64, Vec<u8>>,
}

impl Snapshot {
    fn ino(&self, path: &[u8]) -> Option<u64> {
        let path = if path.is_empty() { b"." } else { path };
        self.tree.get(path).map(|item| item.identity.0)
    }
}

/// What a step does, by inode number.
#[derive(Default)]
struct Effect {
    /// Whose inode or entries it changes.
    touched: BTreeSet<u64>,
    /// Whose data it changes.
    wrote: Option<u64>,
    created: Option<u64>,
    synced: Option<Synced>,
}

enum Synced {
    All(u64),
    Data(u64),
    Everything,
}

/// Snapshots before the first step and after each, and what the steps make durable.
pub struct Promise {
    snapshots: Vec<Snapshot>,
    effects: Vec<Effect>,
    /// Syncing does nothing: no loss is too great.
    pub volatile: bool,
    /// While the data of a file is brought in from below its time may be a new one
    /// (docs/decisions.md).
    pub completes: bool,
}

fn parent(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte == b'/');
    &path[..end.unwrap_or(0)]
}

/// The files that slots and the mapping are of.
#[derive(Default)]
struct Open {
    slots: BTreeMap<usize, u64>,
    mapped: Option<u64>,
}

impl Promise {
    pub fn new(steps: &[Line], snapshots: Vec<Snapshot>) -> Result<Self> {
        let mut open = Open::default();
        let pairs = steps.iter().zip(snapshots.windows(2));
        let effects: Result<Vec<_>> = pairs
            .map(|(line, pair)| effect(line, &pair[0], &pair[1], &mut open))
            .collect();
        Ok(Self {
            effects: effects?,
            snapshots,
            volatile: false,
            completes: false,
        })
    }

    /// Does this tree, with this data, keep the promise when so many steps had been answered?
    pub fn check(&self, done: usize, seen: &Snapshot) -> Result<()> {
        let last = (done + 1).min(self.effects.len());
        let (tree_floor, data_floor) = self.floors(done);
        let mut best: Option<(usize, Vec<String>)> = None;
        for state in (tree_floor..=last).rev() {
            let wrong = self.compare(state, last, &data_floor, seen);
            if wrong.is_empty() {
                return Ok(());
            }
            if best.as_ref().is_none_or(|(_, b)| wrong.len() < b.len()) {
                best = Some((state, wrong));
            }
        }
        let (state, mut wrong) = best.context("no state is allowed")?;
        wrong.truncate(5);
        ensure!(
            wrong.is_empty(),
            "no state after {tree_floor} to {last} steps; the nearest, after {state}: {}",
            wrong.join("; ")
        );
        Ok(())
    }

    /// After how many steps the tree must be, and the data of each file.
    fn floors(&self, done: usize) -> (usize, BTreeMap<u64, usize>) {
        let (mut tree, mut data) = (0, BTreeMap::new());
        if self.volatile {
            return (tree, data);
        }
        for (number, effect) in self.effects[..done].iter().enumerate() {
            let last_of = |wanted: &dyn Fn(&Effect) -> bool| {
                let before = &self.effects[..=number];
                before.iter().rposition(wanted).map_or(0, |at| at + 1)
            };
            match effect.synced {
                Some(Synced::All(ino)) => {
                    tree = tree.max(last_of(&|e| e.touched.contains(&ino)));
                    data.insert(ino, number + 1);
                }
                Some(Synced::Data(ino)) => {
                    tree = tree.max(last_of(&|e| e.created == Some(ino)));
                    data.insert(ino, number + 1);
                }
                Some(Synced::Everything) => {
                    tree = number + 1;
                    let all = self.effects.iter().filter_map(|e| e.wrote);
                    data.extend(all.map(|ino| (ino, number + 1)));
                }
                None => {}
            }
        }
        (tree, data)
    }

    /// What is wrong if the tree is to be that after `state` steps.
    fn compare(
        &self,
        state: usize,
        last: usize,
        data_floor: &BTreeMap<u64, usize>,
        seen: &Snapshot,
    ) -> Vec<String> {
        let want = &self.snapshots[state];
        let wrote = |ino: u64| self.effects[..last].iter().any(|e| e.wrote == Some(ino));
        let mut wrong = tree::differences(&want.tree, &seen.tree, 60);
        wrong.retain(|line| {
            let path = line.split(": ").next().unwrap_or_default();
            let Some(item) = want.tree.get(path.as_bytes()) else {
                return true;
            };
            let of = |field: &str| line.contains(&format!(": {field} is "));
            // In a directory where something was begun and taken back it is a new one.
            let vague = item.dir_links.is_some() || wrote(item.identity.0) || self.completes;
            let vague = of("mtime") && vague;
            let data = (of("content") || of("size")) && wrote(item.identity.0);
            // Known, see docs/reliability.md: the count of a file with several lower names.
            !vague && !data && !of("links")
        });
        for (path, item) in &want.tree {
            let ino = item.identity.0;
            let found = seen.ino(path).and_then(|found| seen.data.get(&found));
            if let (true, Some(found)) = (wrote(ino), found) {
                let floor = data_floor.get(&ino).copied().unwrap_or(0);
                if let Err(error) = self.check_data(ino, floor..=last, found) {
                    wrong.push(format!("{}: {error}", path.escape_ascii()));
                }
            }
        }
        wrong
    }

    /// Each byte must be one that was there at one of these times.
    fn check_data(
        &self,
        ino: u64,
        times: std::ops::RangeInclusive<usize>,
        found: &[u8],
    ) -> Result<()> {
        let first = *times.start();
        let mut versions: Vec<&[u8]> = Vec::new();
        for time in times {
            if time > 0 && self.effects[time - 1].created == Some(ino) {
                // Before there was none, or another one with this number.
                versions = vec![b""];
            }
            versions.extend(self.snapshots[time].data.get(&ino).map(Vec::as_slice));
        }
        versions.dedup();
        let lengths = versions.iter().map(|v| v.len());
        let (least, most) = (lengths.clone().min(), lengths.max());
        ensure!(
            Some(found.len()) >= least && Some(found.len()) <= most,
            "it has {} bytes, should have {least:?} to {most:?} (since step {first})",
            found.len()
        );
        for (at, byte) in found.iter().enumerate() {
            let known = versions.iter().any(|v| v.get(at).unwrap_or(&0) == byte);
            ensure!(known, "byte {at} is {byte:#x}, which it never was");
        }
        Ok(())
    }
}

fn effect(line: &Line, before: &Snapshot, after: &Snapshot, open: &mut Open) -> Result<Effect> {
    let mut effect = Effect::default();
    let mut args = line.args();
    let verb = line.verb();
    match verb {
        "open" => {
            let (slot, path, flags) = (args.slot()?, args.word()?, args.text()?);
            let ino = after.ino(path).context("what is opened is there")?;
            open.slots.insert(slot, ino);
            if before.ino(path).is_none() {
                effect.created = Some(ino);
                effect
                    .touched
                    .extend([Some(ino), after.ino(parent(path))].into_iter().flatten());
            }
            if flags.contains("trunc") {
                effect.wrote = Some(ino);
            }
        }
        "close" | "unmap" | "remount" | "mvdown" => {}
        "map" => open.mapped = open.slots.get(&args.slot()?).copied(),
        "put" | "truncate" => {
            let path = args.word()?;
            effect.wrote = after.ino(path);
            if before.ino(path).is_none() {
                effect.created = effect.wrote;
                effect.touched.extend(after.ino(parent(path)));
            }
        }
        "poke" => {
            effect.wrote = open.mapped;
            effect.synced = open.mapped.map(Synced::Data);
        }
        "pwrite" | "write" | "ftruncate" | "falloc" => {
            effect.wrote = open.slots.get(&args.slot()?).copied();
        }
        "fsync" | "fdatasync" => {
            let ino = *open.slots.get(&args.slot()?).context("nothing is open")?;
            effect.synced = Some(match verb {
                "fsync" => Synced::All(ino),
                _ => Synced::Data(ino),
            });
        }
        "syncfs" => effect.synced = Some(Synced::Everything),
        "fchmod" => effect.touched.extend(open.slots.get(&args.slot()?)),
        // The others name one path or two.
        _ => {
            let paths = if matches!(verb, "rename" | "link") {
                2
            } else {
                1
            };
            for _ in 0..paths {
                let path = args.word()?;
                let named = [before.ino(path), after.ino(path)];
                effect.touched.extend(named.into_iter().flatten());
                if !matches!(verb, "chmod" | "chown" | "utimens" | "setxattr" | "rmxattr") {
                    let dirs = [before, after].map(|s| s.ino(parent(path)));
                    effect.touched.extend(dirs.into_iter().flatten());
                }
            }
        }
    }
    effect.touched.extend(effect.wrote);
    Ok(effect)
}
