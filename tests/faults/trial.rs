//! Trials of one scenario: the daemon is killed before each of its calls, and each of them fails.

use crate::branches::{Branches, Mode};
use crate::fuzz::exec::errno_name;
use crate::fuzz::line::Line;
use crate::fuzz::tree::{self, Tree};
use crate::trace::{Calls, Fault, Plan};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

/// Something that is done to a union, and what was done before.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub mode: Mode,
    pub layers: Vec<Vec<Line>>,
    pub first: Vec<Line>,
    pub act: Vec<Line>,
}

/// What is done with the branches of a daemon that was killed, before they are mounted again.
#[derive(Clone, Copy, Debug)]
pub enum Meanwhile {
    Nothing,
    Repair,
}

/// A scenario without faults.
pub struct Known {
    before: Tree,
    after: Tree,
    /// Calls that are made.
    pub calls: usize,
}

/// Where trials take place.
pub struct Lab {
    pub dir: PathBuf,
    pub program: OsString,
}

impl Lab {
    pub fn branches(&self, mode: Mode, layers: &[Vec<Line>]) -> Result<Branches> {
        let dir = self.dir.join("t");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("what an earlier trial left")?;
        }
        fs::create_dir(&dir)?;
        Branches::write(&dir, &self.program, mode, layers)
    }

    /// Carries out a scenario without faults.
    pub fn observe(&self, scenario: &Scenario, calls: Calls) -> Result<Known> {
        let branches = self.branches(scenario.mode, &scenario.layers)?;
        let mut union = branches.mount()?;
        answered(union.run(&scenario.first)).context("before it")?;
        let before = branches.look(&union);
        let plan = Plan::new(calls, Some(branches.device()?), None, Fault::Kill);
        let plan = Arc::new(plan);
        let done = union.run_traced(&scenario.act, &plan)?;
        answered(done)?;
        let after = branches.look(&union);
        ensure!(before != after, "it changes nothing");
        union.unmount()?;
        equal(&after, &branches.shown()?, Times::All).context("after a remount")?;
        branches.check_clean()?;
        branches.check_readonly()?;
        Ok(Known {
            before,
            after,
            calls: plan.count(),
        })
    }

    /// Kills the daemon before call number `at`. Answers which call that was; `None` if it did not
    /// come.
    pub fn kill(
        &self,
        scenario: &Scenario,
        known: &Known,
        at: usize,
        meanwhile: Meanwhile,
    ) -> Result<Option<String>> {
        let branches = self.branches(scenario.mode, &scenario.layers)?;
        let mut union = branches.mount()?;
        answered(union.run(&scenario.first)).context("before it")?;
        let plan = Plan::new(
            Calls::Changes,
            Some(branches.device()?),
            Some(at),
            Fault::Kill,
        );
        let plan = Arc::new(plan);
        let _ = union.run_traced(&scenario.act, &plan)?;
        let Some(call) = plan.hit() else {
            union.unmount()?;
            return Ok(None);
        };
        union.bury()?;
        let checked = || -> Result<()> {
            if let Meanwhile::Repair = meanwhile {
                branches.repair()?;
            }
            let mut union = branches.mount()?;
            let seen = branches.look(&union);
            let new = equal(&known.after, &seen, Times::OfFiles);
            if let Err(new) = new {
                if let Err(old) = equal(&known.before, &seen, Times::OfFiles) {
                    bail!("neither new ({new:#}) nor old ({old:#})");
                }
                answered(union.run(&scenario.act)).context("again")?;
                let seen = branches.look(&union);
                equal(&known.after, &seen, Times::OfFiles).context("done again")?;
            }
            let seen = branches.look(&union);
            union.unmount()?;
            branches.check_finished()?;
            branches.repair_showing(&seen)?;
            branches.check_readonly()
        };
        checked().with_context(|| format!("killed before call {at}, {call}, {meanwhile:?}"))?;
        Ok(Some(call))
    }

    /// Lets call number `at` fail. Answers which call that was; `None` if it did not come.
    pub fn fail(
        &self,
        scenario: &Scenario,
        known: &Known,
        (calls, at): (Calls, usize),
        errno: i32,
    ) -> Result<Option<String>> {
        let branches = self.branches(scenario.mode, &scenario.layers)?;
        let mut union = branches.mount()?;
        answered(union.run(&scenario.first)).context("before it")?;
        let plan = Plan::new(
            calls,
            Some(branches.device()?),
            Some(at),
            Fault::Errno(errno),
        );
        let plan = Arc::new(plan);
        let done = union.run_traced(&scenario.act, &plan)?;
        let Some(call) = plan.hit() else {
            union.unmount()?;
            return Ok(None);
        };
        let checked = || -> Result<()> {
            let seen = branches.look(&union);
            match done {
                Ok(()) => equal(&known.after, &seen, Times::OfFiles).context("it succeeded")?,
                Err(got) => {
                    ensure!(got == errno, "the caller got {}", errno_name(got));
                    equal(&known.before, &seen, Times::OfFiles).context("it failed")?;
                    branches.check_no_temporary()?;
                    answered(union.run(&scenario.act)).context("again")?;
                    let seen = branches.look(&union);
                    equal(&known.after, &seen, Times::OfFiles).context("done again")?;
                }
            }
            branches.check_no_temporary()?;
            union.unmount()?;
            let seen = branches.shown()?;
            equal(&known.after, &seen, Times::OfFiles).context("after a remount")?;
            // A directory that could not be emptied is emptied by a mount.
            branches.check_finished()?;
            branches.repair_showing(&seen)?;
            branches.check_readonly()
        };
        let name = errno_name(errno);
        checked().with_context(|| format!("call {at}, {call}, fails with {name}"))?;
        Ok(Some(call))
    }
}

pub fn answered(done: Result<(), i32>) -> Result<()> {
    done.map_err(|errno| anyhow::anyhow!(errno_name(errno)))
}

/// Which times of the last change of data are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Times {
    All,
    /// A directory in which something was begun and taken back has a new one.
    OfFiles,
}

/// Fails if the trees differ.
pub fn equal(want: &Tree, got: &Tree, times: Times) -> Result<()> {
    let mut found = tree::differences(want, got, 40);
    if times == Times::OfFiles {
        found.retain(|line| {
            let path = line.split(": ").next().unwrap_or_default();
            let dir = want
                .get(path.as_bytes())
                .is_some_and(|i| i.dir_links.is_some());
            !(dir && line.contains(": mtime is "))
        });
    }
    found.truncate(6);
    ensure!(found.is_empty(), "{}", found.join("; "));
    Ok(())
}
