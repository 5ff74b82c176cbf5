//! The branches of a union in order: an immutable value, replaced as a whole.

use crate::branch::Branch;
use crate::types::{BranchId, BranchIndex};
use smallvec::SmallVec;
use std::sync::Arc;

/// The branches, topmost first.
#[derive(Clone, Debug)]
pub struct Stack {
    branches: Vec<Arc<Branch>>,
    /// Position by identity; `u16::MAX` = no longer a member.
    positions: Vec<u16>,
    /// Does one hide names that are written down elsewhere than in their directory?
    hides: bool,
}

impl Stack {
    /// A stack of these branches, topmost first.
    pub fn new(branches: Vec<Arc<Branch>>) -> Self {
        let len = branches
            .iter()
            .map(|b| usize::from(b.id.0) + 1)
            .max()
            .unwrap_or(0);
        let mut positions = vec![u16::MAX; len];
        for (i, branch) in branches.iter().enumerate() {
            positions[usize::from(branch.id.0)] = i as u16;
        }
        let hides = branches.iter().any(|b| b.hidden.is_some());
        Self {
            branches,
            positions,
            hides,
        }
    }

    /// Does a branch hide names that are written down elsewhere than in their directory?
    pub fn hides(&self) -> bool {
        self.hides
    }

    /// Topmost first.
    pub fn branches(&self) -> &[Arc<Branch>] {
        &self.branches
    }

    /// The branch of this identity, if it is still a member.
    pub fn get(&self, id: BranchId) -> Option<&Arc<Branch>> {
        self.branches.get(usize::from(self.position(id)?.0))
    }

    /// By position: is this true of the branch there?
    pub fn each(&self, is: impl Fn(&Branch) -> bool) -> SmallVec<[bool; 16]> {
        self.branches.iter().map(|b| is(b)).collect()
    }

    /// Where a branch stands, 0 = topmost.
    pub fn position(&self, id: BranchId) -> Option<BranchIndex> {
        match self.positions.get(usize::from(id.0)) {
            Some(&p) if p != u16::MAX => Some(BranchIndex(p)),
            _ => None,
        }
    }
}
