//! What a disk may hold after a loss of power: everything up to the last flush, and of what was
//! written since then nothing, everything, the beginning, or any sectors.

use crate::disk::Event;
use crate::fuzz::invent::Dice;
use anyhow::Result;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// A write that may be lost.
struct Pending {
    disk: usize,
    at: usize,
    data: Vec<u8>,
}

/// A moment at which the power is lost.
pub struct Moment<'a> {
    disks: &'a Disks,
    /// What of the cache reached the disk: disk, place, bytes.
    kept: Vec<(usize, usize, &'a [u8])>,
    /// So many steps had been answered.
    pub done: usize,
    /// For reports.
    pub name: String,
}

/// What is safe on each disk.
struct Disks {
    images: Vec<Vec<u8>>,
    /// The blocks that are not all zeros, of each.
    used: Vec<BTreeSet<usize>>,
}

impl Disks {
    fn new(images: &[Vec<u8>]) -> Self {
        let blocks = |image: &Vec<u8>| {
            let blocks = image.chunks(BLOCK).enumerate();
            let used = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
            used.map(|(number, _)| number).collect()
        };
        Self {
            images: images.to_vec(),
            used: images.iter().map(blocks).collect(),
        }
    }

    fn write(&mut self, pending: &Pending) {
        let Pending { disk, at, data } = pending;
        self.images[*disk][*at..at + data.len()].copy_from_slice(data);
        self.used[*disk].extend(at / BLOCK..=(at + data.len() - 1) / BLOCK);
    }
}

impl Moment<'_> {
    /// Writes what a disk holds to a file.
    pub fn save(&self, disk: usize, path: &Path) -> Result<()> {
        let image = &self.disks.images[disk];
        let file = File::create(path)?;
        file.set_len(image.len() as u64)?;
        for number in &self.disks.used[disk] {
            let at = number * BLOCK;
            file.write_all_at(&image[at..at + BLOCK], at as u64)?;
        }
        for (_, at, data) in self.kept.iter().filter(|(of, ..)| *of == disk) {
            file.write_all_at(data, *at as u64)?;
        }
        Ok(())
    }
}

/// Goes through the moments before each flush and the one at the end, with `subsets` of what was
/// in the caches then.
pub fn each(
    base: &[Vec<u8>],
    events: Vec<Event>,
    dice: &mut Dice,
    subsets: usize,
    mut look: impl FnMut(&Moment<'_>) -> Result<()>,
) -> Result<()> {
    let mut disks = Disks::new(base);
    let mut pending: Vec<Pending> = Vec::new();
    let (mut done, mut flushes) = (0, 0);
    // Since the last moment: something was written, something was answered.
    let (mut written, mut answered) = (false, true);
    for event in events
        .into_iter()
        .chain([Event::Flush { disk: usize::MAX }])
    {
        match event {
            Event::Write { disk, at, data } => {
                written = true;
                pending.push(Pending { disk, at, data });
            }
            Event::Done(steps) => {
                answered = true;
                done = steps;
            }
            Event::Flush { disk } => {
                let mut moment = |kept, name: &str| {
                    look(&Moment {
                        disks: &disks,
                        kept,
                        done,
                        name: format!("before flush {flushes}, {done} steps done, {name}"),
                    })
                };
                if answered {
                    moment(Vec::new(), "the cache is lost")?;
                }
                if written {
                    for number in 0..subsets {
                        let kept = choose(&pending, dice, number % 2 == 0);
                        moment(kept, "a part of the cache is lost")?;
                    }
                    if subsets > 1 {
                        let all = pending.iter().map(|p| (p.disk, p.at, &p.data[..]));
                        moment(all.collect(), "nothing is lost")?;
                    }
                }
                // After the flush there is a new state even if nobody was told.
                answered = pending.iter().any(|p| p.disk == disk);
                written = false;
                for flushed in pending.extract_if(.., |p| p.disk == disk) {
                    disks.write(&flushed);
                }
                flushes += usize::from(disk != usize::MAX);
            }
        }
    }
    Ok(())
}

/// The beginning of what was written, or some of it.
fn choose<'a>(
    pending: &'a [Pending],
    dice: &mut Dice,
    beginning: bool,
) -> Vec<(usize, usize, &'a [u8])> {
    if beginning {
        let most = dice.below(pending.len() + 1);
        let kept = pending.iter().take(most);
        return kept.map(|p| (p.disk, p.at, &p.data[..])).collect();
    }
    let of_ten = [2, 5, 8][dice.below(3)];
    let torn = dice.below(2) == 0;
    let mut kept = Vec::new();
    for p in pending {
        let piece = if torn { SECTOR } else { p.data.len() };
        for (number, data) in p.data.chunks(piece).enumerate() {
            if dice.below(10) < of_ten {
                kept.push((p.disk, p.at + number * piece, data));
            }
        }
    }
    kept
}
