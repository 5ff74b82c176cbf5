//! The directory cookies of an index: almost always one after the other, and then they take no room.

/// The positions (directory cookies) of the records: ascending, never given to another name.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// Of the records that outlived a compaction.
    pub(super) kept: Vec<u64>,
    /// Of the first one after them; the others follow one by one.
    pub(super) next: u64,
}

impl Positions {
    /// Of the record with this number.
    pub(super) fn of(&self, at: usize) -> u64 {
        match self.kept.get(at) {
            Some(position) => *position,
            None => self.next + (at - self.kept.len()) as u64,
        }
    }

    /// The first record that has this position or a later one.
    pub(super) fn at_or_after(&self, position: u64) -> usize {
        match position.checked_sub(self.next) {
            Some(behind) => self
                .kept
                .len()
                .saturating_add(usize::try_from(behind).unwrap_or(usize::MAX)),
            None => self.kept.partition_point(|p| *p < position),
        }
    }
}
