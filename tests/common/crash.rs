//! What a daemon that is killed leaves behind: the next mount shows the tree before the operation
//! or after it, whole.

use super::branches::{Branches, Stack};
use super::run::Run;
use super::trace::{End, kill_before_change, mark};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::process::Command;

/// Tells the child what to do: directory and number of the case.
const ASSIGNMENT: &str = "UAUFS_MODEL_CRASH";

/// Where the child writes what times the directories have, which a merge must not change.
const TIMES: &str = "times";

/// An operation that is interrupted.
pub struct Case {
    pub stack: Stack,
    /// Done before, in the same mount.
    pub first: &'static [&'static str],
    /// What is interrupted.
    pub line: &'static str,
}

/// In the child: does its part on the branches it was given. Does nothing in any other process.
pub fn play_child(cases: &[Case]) -> Result<()> {
    let Ok(assignment) = std::env::var(ASSIGNMENT) else {
        return Ok(());
    };
    let (number, dir) = assignment.split_once(' ').context("number and directory")?;
    let case = &cases[number.parse::<usize>()?];
    let (branches, model) = Branches::at(case.stack.clone(), Path::new(dir));
    let mut run = Run::on(branches, model)?;
    for line in case.first {
        run.line(line)?;
    }
    if case.line == "merge" {
        std::fs::write(Path::new(dir).join(TIMES), run.dir_times()?)?;
    }
    mark();
    run.line(case.line)?;
    mark();
    Ok(())
}

/// Interrupts a case before every change it makes. `child` is the name of the test that calls
/// [`play_child`] on the same cases.
pub fn interrupt_everywhere(case: &Case, number: usize, child: &str) -> Result<()> {
    let mut quiet = Run::new(case.stack.clone())?;
    for line in case.first {
        quiet.line(line)?;
    }
    let before = quiet.model.clone();
    quiet.line(case.line)?;
    let after = quiet.model.clone();
    for n in 0.. {
        let (branches, _) = Branches::write(case.stack.clone())?;
        let dir = branches.dir().context("just written")?.to_owned();
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["--exact", child, "--ignored", "--test-threads=1"])
            .env(ASSIGNMENT, format!("{number} {}", dir.display()));
        let end = kill_before_change(&mut command, n)?;
        let reopened = |model| {
            let mut run = Run::on(Branches::at(case.stack.clone(), &dir).0, model)?;
            // The books of link counts are not written in one step with the links; but a merge
            // knows how many there are in all.
            let exact = case.line == "merge" && !run.model.has_hidden_links();
            run.exact_links = exact || end == End::Finished;
            run.compare().map(|()| run)
        };
        if let Ok(mut run) = reopened(after.clone()) {
            if case.line == "merge" {
                // What was done and what is left to do look the same.
                let times = std::fs::read_to_string(dir.join(TIMES))?;
                ensure!(
                    run.dir_times()? == times,
                    "killed before change {n}: other times"
                );
                run.line(case.line)
                    .with_context(|| format!("again, after it was killed before change {n}"))?;
                ensure!(run.dir_times()? == times, "merged again: other times");
            }
            run.check_all(&[])?;
        } else if end == End::Finished {
            bail!("it did nothing");
        } else {
            let mut run = reopened(before.clone())
                .with_context(|| format!("killed before change {n}, neither old nor new"))?;
            run.line(case.line)
                .with_context(|| format!("again, after it was killed before change {n}"))?;
            run.check_all(&[])
                .with_context(|| format!("again, after it was killed before change {n}"))?;
        }
        branches.check_readonly()?;
        if end == End::Finished {
            break;
        }
    }
    Ok(())
}
