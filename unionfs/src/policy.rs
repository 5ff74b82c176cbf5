//! Where something new is made and where something existing is copied to: decisions on plain facts.
//!
//! Positions are stack positions, 0 = topmost. Source of the rules: aufs(5), "create" and "cpup"
//! policies.

use crate::errno::{Errno, Result};
use crate::spec::CopyupPolicy;
use crate::types::BranchIndex;

/// What a policy knows of the stack: which positions are writable, and which hold the parent.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// By position.
    pub writable: &'a [bool],
    /// By position: does the parent directory exist there?
    pub has_parent: &'a [bool],
}

impl Facts<'_> {
    fn top_of_parent(&self) -> usize {
        self.has_parent.iter().position(|p| *p).unwrap_or(0)
    }

    /// The nearest writable position at or above `from`.
    fn nearest_above(&self, from: usize, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        (0..=from.min(self.writable.len().saturating_sub(1)))
            .rev()
            .find(|&p| self.writable[p] && wanted(p))
    }
}

fn index(position: Option<usize>) -> Result<BranchIndex> {
    position.map(|p| BranchIndex(p as u16)).ok_or(Errno::ROFS)
}

/// `create=tdp`: the parent's topmost branch if it is writable, else the nearest writable above.
pub fn create_top_down_parent(facts: Facts<'_>) -> Result<BranchIndex> {
    index(facts.nearest_above(facts.top_of_parent(), |_| true))
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
            assert_eq!(
                create_top_down_parent(Facts {
                    writable,
                    has_parent
                }),
                *want,
                "{writable:?} {has_parent:?}"
            );
        }
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
    }
}
