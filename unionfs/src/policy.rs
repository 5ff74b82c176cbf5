//! Where something new is made and where something existing is copied to: decisions on plain facts.
//!
//! Positions are stack positions, 0 = topmost. Source of the rules: aufs(5), "create" and "cpup"
//! policies.

use crate::errno::{Errno, Result};
use crate::spec::{CopyupPolicy, CreatePolicy};
use crate::types::BranchIndex;

/// What a policy knows of the stack: which positions are writable, and which hold the parent.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// By position.
    pub writable: &'a [bool],
    /// By position: does the parent directory exist there?
    pub has_parent: &'a [bool],
}

/// What is known of a new name, for the policies that look at more than the parent.
#[derive(Clone, Copy, Debug)]
pub struct NewName<'a> {
    /// The stack.
    pub facts: Facts<'a>,
    /// By position: bytes free there; only those of writable positions count.
    pub free: &'a [u64],
    /// The topmost position that has a whiteout of the name.
    pub whiteout: Option<usize>,
    /// The position on which the parent is opaque.
    pub parent_opaque: Option<usize>,
    /// The topmost position on which the parent or a directory above it is opaque.
    pub above_opaque: Option<usize>,
    /// A directory is made: round robin does not go on.
    pub is_dir: bool,
}

impl Facts<'_> {
    fn top_of_parent(&self) -> usize {
        self.has_parent.iter().position(|p| *p).unwrap_or(0)
    }

    fn bottom_of_parent(&self) -> usize {
        let last = self.writable.len().saturating_sub(1);
        self.has_parent.iter().rposition(|p| *p).unwrap_or(last)
    }

    /// The nearest writable position at or above `from`.
    fn nearest_above(&self, from: usize, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        (0..=from.min(self.writable.len().saturating_sub(1)))
            .rev()
            .find(|&p| self.writable[p] && wanted(p))
    }

    fn is_writable(&self, position: usize) -> bool {
        self.writable.get(position) == Some(&true)
    }
}

fn index(position: Option<usize>) -> Result<BranchIndex> {
    position.map(|p| BranchIndex(p as u16)).ok_or(Errno::ROFS)
}

/// May names of a directory be changed at all? A writable branch must stand at or above its
/// topmost instance, even if the name lies below on a writable one (AUFS).
pub fn may_change_names(facts: Facts<'_>) -> bool {
    facts
        .nearest_above(facts.top_of_parent(), |_| true)
        .is_some()
}

/// `create=tdp`: the parent's topmost branch if it is writable, else the nearest writable above.
pub fn create_top_down_parent(facts: Facts<'_>) -> Result<BranchIndex> {
    index(facts.nearest_above(facts.top_of_parent(), |_| true))
}

/// The branch for something new. `turn` counts the branches that round robin has passed.
///
/// EROFS when there is none.
pub fn create(policy: CreatePolicy, new: &NewName<'_>, turn: &mut u64) -> Result<BranchIndex> {
    let by_parent = matches!(
        policy,
        CreatePolicy::TopDownParent | CreatePolicy::TopDownMostFree { .. }
    );
    if !by_parent && let Some(exception) = new.exception() {
        return index(Some(exception));
    }
    let chosen = match policy {
        CreatePolicy::TopDownParent => new.top_down_parent(),
        CreatePolicy::TopDownMostFree { low, .. } => new.top_down_most_free(low),
        CreatePolicy::RoundRobin => new.round_robin(turn),
        CreatePolicy::MostFree { .. } => new.most_free(),
        CreatePolicy::MostFreeRoundRobin { low, .. } => new.most_free_or_robin(low, turn),
        CreatePolicy::ParentMostFree { .. } => new.parent_most_free(),
        CreatePolicy::ParentMostFreeRoundRobin { low, .. } => match new.parent_most_free() {
            Some(at) if new.free[at] < low => new.most_free_or_robin(low, turn),
            other => other,
        },
    };
    index(chosen.and_then(|at| new.not_below_opaque(at)))
}

/// The writable position with most bytes free; of equals the lower one.
pub fn most_free(writable: &[bool], free: &[u64]) -> Option<BranchIndex> {
    (0..writable.len())
        .filter(|&p| writable[p])
        .max_by_key(|&p| free[p])
        .map(|p| BranchIndex(p as u16))
}

impl NewName<'_> {
    /// Where a mark decides whatever the policy: on the branch that hides the name, if it is
    /// writable.
    fn exception(&self) -> Option<usize> {
        let mark = least(self.whiteout, self.parent_opaque)?;
        let at = least(Some(mark), self.above_opaque)?;
        self.facts.is_writable(at).then_some(at)
    }

    /// Below an opaque directory nothing would be seen.
    fn not_below_opaque(&self, at: usize) -> Option<usize> {
        match self.above_opaque {
            Some(opaque) if opaque < at => self.facts.nearest_above(opaque, |_| true),
            _ => Some(at),
        }
    }

    fn top_down_parent(&self) -> Option<usize> {
        self.facts
            .nearest_above(self.facts.top_of_parent(), |_| true)
    }

    fn top_down_most_free(&self, low: u64) -> Option<usize> {
        let mut last = self.facts.bottom_of_parent();
        for mark in [self.whiteout, self.above_opaque].into_iter().flatten() {
            last = last.min(mark);
        }
        (0..=last)
            .find(|&p| self.facts.is_writable(p) && self.free[p] > low)
            .or_else(|| self.exception())
            .or_else(|| self.most_free())
    }

    fn most_free(&self) -> Option<usize> {
        most_free(self.facts.writable, self.free).map(|p| usize::from(p.0))
    }

    fn most_free_or_robin(&self, low: u64, turn: &mut u64) -> Option<usize> {
        match self.most_free() {
            Some(at) if self.free[at] < low => self.round_robin(turn),
            other => other,
        }
    }

    /// `tdp`, but of several branches that hold the parent the one with most free space; of equals
    /// the upper one.
    fn parent_most_free(&self) -> Option<usize> {
        let first = self.top_down_parent()?;
        let parents = self.facts.has_parent.iter();
        if parents.filter(|p| **p).count() <= 1 {
            return Some(first);
        }
        let better = |best: usize, p: usize| {
            let wanted = self.facts.is_writable(p) && self.facts.has_parent[p];
            if wanted && self.free[p] > self.free[best] {
                p
            } else {
                best
            }
        };
        Some((0..self.facts.writable.len()).fold(first, better))
    }

    /// Goes through all branches from the top, then from the bottom upwards, again and again, and
    /// passes those that cannot be written.
    fn round_robin(&self, turn: &mut u64) -> Option<usize> {
        let count = self.facts.writable.len() as u64;
        for step in 0..count {
            let at = ((count - (*turn + step) % count) % count) as usize;
            if self.facts.is_writable(at) {
                if !self.is_dir {
                    *turn = (*turn + step + 1) % count;
                }
                return Some(at);
            }
        }
        None
    }
}

/// The upper of two positions that may not exist.
fn least(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    a.into_iter().chain(b).min()
}

/// The branch to which an entry whose topmost instance is at `entry` is copied up. An entry on a
/// writable branch stays there.
pub fn copy_up(facts: Facts<'_>, entry: BranchIndex, policy: CopyupPolicy) -> Result<BranchIndex> {
    let entry = usize::from(entry.0);
    if facts.writable[entry] {
        return index(Some(entry));
    }
    let with_parent = |p: usize| facts.has_parent[p];
    index(match policy {
        CopyupPolicy::TopDownParent => (facts.top_of_parent()..entry)
            .find(|&p| facts.writable[p] && with_parent(p))
            .or_else(|| facts.nearest_above(entry, |_| true)),
        CopyupPolicy::BottomUpParent => facts
            .nearest_above(entry, with_parent)
            .or_else(|| facts.nearest_above(facts.top_of_parent(), |_| true)),
        CopyupPolicy::BottomUp => facts.nearest_above(entry, |_| true),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const W: bool = true;
    const O: bool = false;

    #[test]
    fn creation_follows_the_parent_and_never_goes_below_it() {
        let cases: &[(&[bool], &[bool], Result<BranchIndex>)] = &[
            (&[W, O], &[W, W], Ok(BranchIndex(0))),
            (&[W, O], &[O, W], Ok(BranchIndex(0))),
            (&[W, W, O], &[O, W, W], Ok(BranchIndex(1))),
            (&[O, W], &[W, W], Err(Errno::ROFS)),
            (&[O, O], &[W, W], Err(Errno::ROFS)),
            (&[W, O, W], &[O, W, W], Ok(BranchIndex(0))),
        ];
        for (writable, has_parent, want) in cases {
            let facts = Facts {
                writable,
                has_parent,
            };
            assert_eq!(
                create_top_down_parent(facts),
                *want,
                "{writable:?} {has_parent:?}"
            );
            assert_eq!(may_change_names(facts), want.is_ok());
        }
    }

    const HOLD: Duration = Duration::ZERO;

    fn new<'a>(writable: &'a [bool], has_parent: &'a [bool], free: &'a [u64]) -> NewName<'a> {
        NewName {
            facts: Facts {
                writable,
                has_parent,
            },
            free,
            whiteout: None,
            parent_opaque: None,
            above_opaque: None,
            is_dir: false,
        }
    }

    fn chosen(policy: CreatePolicy, new: &NewName<'_>) -> u16 {
        create(policy, new, &mut 0).unwrap().0
    }

    #[test]
    fn most_free_space_wins_and_of_equals_the_lower_branch() {
        let mfs = CreatePolicy::MostFree { hold: HOLD };
        assert_eq!(chosen(mfs, &new(&[W, W, W], &[W, O, O], &[4, 16, 8])), 1);
        assert_eq!(chosen(mfs, &new(&[W, W, O], &[W, W, W], &[8, 8, 99])), 1);
        let none = create(mfs, &new(&[O, O], &[W, W], &[1, 1]), &mut 0);
        assert_eq!(none, Err(Errno::ROFS));
    }

    #[test]
    fn the_topmost_with_enough_space_is_taken_but_none_below_the_parent() {
        let tdmfs = CreatePolicy::TopDownMostFree { low: 4, hold: HOLD };
        let all = [W, W, W];
        assert_eq!(chosen(tdmfs, &new(&all, &all, &[2, 8, 16])), 1);
        // Exactly `low` is not enough.
        assert_eq!(chosen(tdmfs, &new(&all, &all, &[4, 8, 16])), 1);
        // The parent ends above: then it is the one with most space.
        assert_eq!(chosen(tdmfs, &new(&all, &[W, O, O], &[2, 8, 16])), 2);
        let hidden = NewName {
            whiteout: Some(0),
            ..new(&all, &all, &[2, 8, 16])
        };
        assert_eq!(chosen(tdmfs, &hidden), 0);
    }

    #[test]
    fn round_robin_skips_readonly_branches_and_stays_for_directories() {
        let all = [W, W, W];
        let file = new(&[W, W, O], &all, &[0, 0, 0]);
        let mut turn = 0;
        let mut next = |n: &NewName<'_>| create(CreatePolicy::RoundRobin, n, &mut turn).unwrap().0;
        let files: Vec<u16> = (0..8).map(|_| next(&file)).collect();
        assert_eq!(files, [0, 1, 0, 1, 0, 1, 0, 1]);
        let dir = NewName {
            is_dir: true,
            ..file
        };
        assert_eq!([next(&dir), next(&dir), next(&file)], [0, 0, 0]);
    }

    #[test]
    fn little_space_makes_most_free_go_round() {
        let mfsrr = CreatePolicy::MostFreeRoundRobin {
            low: 10,
            hold: HOLD,
        };
        let pmfsrr = CreatePolicy::ParentMostFreeRoundRobin { low: 4, hold: HOLD };
        let pmfs = CreatePolicy::ParentMostFree { hold: HOLD };
        let all = [W, W];
        assert_eq!(chosen(mfsrr, &new(&all, &all, &[5, 9])), 0);
        assert_eq!(chosen(mfsrr, &new(&all, &all, &[5, 10])), 1);
        // Only the branch that holds the parent counts, unless it is nearly full.
        assert_eq!(chosen(pmfs, &new(&all, &[W, O], &[2, 16])), 0);
        assert_eq!(chosen(pmfs, &new(&all, &all, &[2, 16])), 1);
        assert_eq!(chosen(pmfs, &new(&all, &all, &[7, 7])), 0);
        assert_eq!(chosen(pmfsrr, &new(&all, &[W, O], &[2, 16])), 1);
    }

    #[test]
    fn marks_decide_before_policies_and_nothing_is_made_below_an_opaque_directory() {
        let mfs = CreatePolicy::MostFree { hold: HOLD };
        let all = [W, W, W];
        let plain = new(&all, &all, &[1, 2, 3]);
        let cases = [
            (Some(0), None, None, 0),
            (None, Some(1), Some(1), 1),
            (Some(2), Some(1), Some(0), 0),
            // No exception, but the policy's branch is cut off.
            (None, None, Some(1), 1),
        ];
        for (whiteout, parent_opaque, above_opaque, want) in cases {
            let name = NewName {
                whiteout,
                parent_opaque,
                above_opaque,
                ..plain
            };
            assert_eq!(chosen(mfs, &name), want, "{name:?}");
        }
        // The mark lies on a readonly branch.
        let readonly = NewName {
            above_opaque: Some(1),
            ..new(&[W, O, W], &all, &[1, 2, 3])
        };
        assert_eq!(chosen(mfs, &readonly), 0);
    }

    #[test]
    fn copy_up_policies_differ_where_they_should() {
        use CopyupPolicy::{BottomUp, BottomUpParent, TopDownParent};
        let writable = &[W, W, W, O];
        let has_parent = &[O, W, O, W];
        let facts = Facts {
            writable,
            has_parent,
        };
        let entry = BranchIndex(3);
        assert_eq!(copy_up(facts, entry, TopDownParent), Ok(BranchIndex(1)));
        assert_eq!(copy_up(facts, entry, BottomUpParent), Ok(BranchIndex(1)));
        assert_eq!(copy_up(facts, entry, BottomUp), Ok(BranchIndex(2)));
        assert_eq!(
            copy_up(facts, BranchIndex(2), TopDownParent),
            Ok(BranchIndex(2))
        );
        // Nobody has the parent: `bup` looks above it, the others above the entry.
        let lonely = Facts {
            writable,
            has_parent: &[O, O, O, W],
        };
        assert_eq!(copy_up(lonely, entry, TopDownParent), Ok(BranchIndex(2)));
        assert_eq!(copy_up(lonely, entry, BottomUpParent), Ok(BranchIndex(2)));
    }
}
