//! Create and copy-up policies against the rules of aufs(5) written down a second time, plainly and
//! slowly: random stacks, permissions, marks and free space.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use proptest::prelude::*;
use std::time::Duration;
use unionfs::errno::Errno;
use unionfs::policy::{Facts, NewName, copy_up, create};
use unionfs::spec::{CopyupPolicy, CreatePolicy};
use unionfs::types::BranchIndex;

/// One branch, as far as policies look at it.
#[derive(Clone, Copy, Debug)]
struct Branch {
    writable: bool,
    has_parent: bool,
    free: u64,
}

#[derive(Clone, Debug)]
struct World {
    branches: Vec<Branch>,
    whiteout: Option<usize>,
    parent_opaque: Option<usize>,
    /// Of directories above the parent.
    above: Option<usize>,
    is_dir: bool,
}

impl World {
    fn writable(&self, at: usize) -> bool {
        self.branches[at].writable
    }

    fn parents(&self) -> Vec<usize> {
        let all = 0..self.branches.len();
        all.filter(|&b| self.branches[b].has_parent).collect()
    }

    fn opaque_ancestor(&self) -> Option<usize> {
        match (self.parent_opaque, self.above) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The first writable branch met on the way up from `from`.
    fn up(&self, from: usize) -> Option<usize> {
        let mut at = from;
        loop {
            if self.writable(at) {
                return Some(at);
            }
            if at == 0 {
                return None;
            }
            at -= 1;
        }
    }

    fn tdp(&self) -> Option<usize> {
        self.up(self.parents()[0])
    }

    fn mfs(&self) -> Option<usize> {
        let mut best: Option<usize> = None;
        for at in 0..self.branches.len() {
            let free = self.branches[at].free;
            // ">=": of equals the lower one.
            if self.writable(at) && best.is_none_or(|b| free >= self.branches[b].free) {
                best = Some(at);
            }
        }
        best
    }

    fn pmfs(&self) -> Option<usize> {
        let mut best = self.tdp()?;
        let parents = self.parents();
        if parents.len() > 1 {
            for at in parents {
                if self.writable(at) && self.branches[at].free > self.branches[best].free {
                    best = at;
                }
            }
        }
        Some(best)
    }

    fn mfsrr(&self, low: u64, robin: &mut Robin) -> Option<usize> {
        let best = self.mfs()?;
        if self.branches[best].free < low {
            robin.next(self)
        } else {
            Some(best)
        }
    }

    fn tdmfs(&self, low: u64) -> Option<usize> {
        let bottom = *self.parents().last()?;
        for at in 0..self.branches.len() {
            let allowed = at <= bottom
                && self.whiteout.is_none_or(|w| at <= w)
                && self.opaque_ancestor().is_none_or(|o| at <= o);
            if allowed && self.writable(at) && self.branches[at].free > low {
                return Some(at);
            }
        }
        self.exception().or_else(|| self.mfs())
    }

    fn exception(&self) -> Option<usize> {
        let mut at = match (self.whiteout, self.parent_opaque) {
            (None, None) => return None,
            (Some(w), None) => w,
            (None, Some(o)) => o,
            (Some(w), Some(o)) => w.min(o),
        };
        if let Some(opaque) = self.opaque_ancestor() {
            at = at.min(opaque);
        }
        self.writable(at).then_some(at)
    }

    fn create(&self, policy: CreatePolicy, robin: &mut Robin) -> Option<usize> {
        let always = !matches!(
            policy,
            CreatePolicy::TopDownParent | CreatePolicy::TopDownMostFree { .. }
        );
        if let (true, Some(at)) = (always, self.exception()) {
            return Some(at);
        }
        let at = match policy {
            CreatePolicy::TopDownParent => self.tdp(),
            CreatePolicy::TopDownMostFree { low, .. } => self.tdmfs(low),
            CreatePolicy::RoundRobin => robin.next(self),
            CreatePolicy::MostFree { .. } => self.mfs(),
            CreatePolicy::MostFreeRoundRobin { low, .. } => self.mfsrr(low, robin),
            CreatePolicy::ParentMostFree { .. } => self.pmfs(),
            CreatePolicy::ParentMostFreeRoundRobin { low, .. } => {
                let best = self.pmfs()?;
                if self.branches[best].free < low {
                    self.mfsrr(low, robin)
                } else {
                    Some(best)
                }
            }
        }?;
        match self.opaque_ancestor() {
            Some(opaque) if opaque < at => self.up(opaque),
            _ => Some(at),
        }
    }

    fn copy_up(&self, entry: usize, policy: CopyupPolicy) -> Option<usize> {
        if self.writable(entry) {
            return Some(entry);
        }
        let with_parent = |at: &usize| self.writable(*at) && self.branches[*at].has_parent;
        match policy {
            CopyupPolicy::TopDownParent => {
                let first = (0..entry).find(with_parent);
                first.or_else(|| self.up(entry))
            }
            CopyupPolicy::BottomUpParent => {
                let last = (0..=entry).rev().find(with_parent);
                last.or_else(|| self.up(self.parents()[0]))
            }
            CopyupPolicy::BottomUp => self.up(entry),
        }
    }
}

/// Round robin as a ring that is turned until a writable branch is in front.
struct Robin(Vec<usize>);

impl Robin {
    fn new(world: &World) -> Self {
        // From the top, then upwards from the bottom.
        let mut ring: Vec<usize> = (0..world.branches.len()).rev().collect();
        ring.rotate_right(1);
        Self(ring)
    }

    fn next(&mut self, world: &World) -> Option<usize> {
        let front = self.0.iter().position(|&at| world.writable(at))?;
        let chosen = self.0[front];
        if !world.is_dir {
            self.0.rotate_left(front + 1);
        }
        Some(chosen)
    }
}

fn world() -> impl Strategy<Value = World> {
    let branch =
        (any::<bool>(), any::<bool>(), 0..6u64).prop_map(|(writable, has_parent, free)| {
            Branch {
                writable,
                has_parent,
                // What a readonly branch has free is not asked for.
                free: if writable { free } else { 0 },
            }
        });
    let branches = proptest::collection::vec(branch, 1..7);
    (branches, any::<usize>()).prop_flat_map(|(mut branches, parent)| {
        let count = branches.len();
        branches[parent % count].has_parent = true;
        let mark = || proptest::option::weighted(0.3, 0..count);
        (mark(), mark(), mark(), any::<bool>()).prop_map(
            move |(whiteout, parent_opaque, above, is_dir)| World {
                branches: branches.clone(),
                whiteout,
                parent_opaque,
                above,
                is_dir,
            },
        )
    })
}

fn policy() -> impl Strategy<Value = CreatePolicy> {
    (0..7, 0..6u64).prop_map(|(which, low)| {
        let hold = Duration::ZERO;
        match which {
            0 => CreatePolicy::TopDownParent,
            1 => CreatePolicy::TopDownMostFree { low, hold },
            2 => CreatePolicy::RoundRobin,
            3 => CreatePolicy::MostFree { hold },
            4 => CreatePolicy::MostFreeRoundRobin { low, hold },
            5 => CreatePolicy::ParentMostFree { hold },
            _ => CreatePolicy::ParentMostFreeRoundRobin { low, hold },
        }
    })
}

/// A decision as the union's code writes it.
fn decision(at: Option<usize>) -> Result<BranchIndex, Errno> {
    at.map(|at| BranchIndex(at as u16)).ok_or(Errno::ROFS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn something_new_goes_where_the_written_rules_say(
        world in world(),
        policies in proptest::collection::vec((policy(), any::<bool>()), 1..8),
    ) {
        let of = |is: fn(&Branch) -> bool| world.branches.iter().map(is).collect::<Vec<_>>();
        let (writable, has_parent) = (of(|b| b.writable), of(|b| b.has_parent));
        let free: Vec<u64> = world.branches.iter().map(|b| b.free).collect();
        let (mut turn, mut robin) = (0, Robin::new(&world));
        for (policy, is_dir) in policies {
            let world = World { is_dir, ..world.clone() };
            let new = NewName {
                facts: Facts { writable: &writable, has_parent: &has_parent },
                free: &free,
                whiteout: world.whiteout,
                parent_opaque: world.parent_opaque,
                above_opaque: world.opaque_ancestor(),
                is_dir,
            };
            let want = decision(world.create(policy, &mut robin));
            prop_assert_eq!(create(policy, &new, &mut turn), want, "{:?}", policy);
        }
    }

    #[test]
    fn something_old_is_copied_where_the_written_rules_say(
        world in world(),
        entry in any::<proptest::sample::Index>(),
        which in 0..3usize,
    ) {
        let of = |is: fn(&Branch) -> bool| world.branches.iter().map(is).collect::<Vec<_>>();
        let (writable, has_parent) = (of(|b| b.writable), of(|b| b.has_parent));
        // The parent is there, at least, where the entry is.
        let parents = world.parents();
        let entry = *entry.get(&parents);
        let policy = [
            CopyupPolicy::TopDownParent,
            CopyupPolicy::BottomUpParent,
            CopyupPolicy::BottomUp,
        ][which];
        let facts = Facts { writable: &writable, has_parent: &has_parent };
        let got = copy_up(facts, BranchIndex(entry as u16), policy);
        prop_assert_eq!(got, decision(world.copy_up(entry, policy)), "{:?}", policy);
    }
}
