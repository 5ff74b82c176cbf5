//! Mounts, unmounts, and commands on branches: the daemon or the command is killed before each of its
//! calls, and each of them fails. The union shows what it showed before; done again, all is well.

use crate::branches::lines;
use crate::branches::{Branches, Mode};
use crate::fuzz::layers::Marks;
use crate::fuzz::tree::Tree;
use crate::scenarios::{LOWER, LOWEST, MODES, UPPER};
use crate::trace::{self, Calls, Fault, Plan};
use crate::trial::{Lab, Times, answered, equal};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

/// What is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A daemon that comes up, on branches on which another one was killed.
    Mount,
    /// A daemon that ends.
    Unmount,
    /// A command on branches that nobody uses.
    Command(&'static [&'static str]),
    /// One that brings the first branch to the overlay format.
    Convert(&'static [&'static str]),
    /// A daemon while a command asks it for something.
    Asked(&'static [&'static str]),
}

/// Something that is no operation of a union.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    name: &'static str,
    mode: Mode,
    work: Work,
    /// Branches are left as a daemon leaves them that is killed, and damaged.
    damaged: bool,
}

/// Two writable branches.
const TWO: Mode = Mode {
    name: "two",
    marks: Marks::Aufs,
    options: "dirren,dirperm1,namelen=255",
    writable: 2,
};

const fn job(name: &'static str, mode: Mode, work: Work, damaged: bool) -> Job {
    Job {
        name,
        mode,
        work,
        damaged,
    }
}

pub const JOBS: &[Job] = &[
    job("mount", MODES[0], Work::Mount, true),
    job("mount of overlay", MODES[1], Work::Mount, false),
    job("unmount", MODES[0], Work::Unmount, false),
    job("unmount of overlay", MODES[1], Work::Unmount, false),
    job("merge", TWO, Work::Command(&["merge", "b0", "b1"]), false),
    job(
        "merge --mode copy",
        TWO,
        Work::Command(&["merge", "--mode", "copy", "b0", "b1"]),
        false,
    ),
    job(
        "fsck --repair",
        MODES[0],
        Work::Command(&["fsck", "--repair", "b0", "b1", "b2"]),
        true,
    ),
    job(
        "convert",
        MODES[0],
        Work::Convert(&["convert", "--to", "overlay", "--workdir", "work", "b0"]),
        false,
    ),
    job(
        "mvdown",
        TWO,
        Work::Asked(&["mvdown", "-o", "m/d/u", "m/one", "m/both/up"]),
        false,
    ),
];

/// What was done with the union before.
const FIRST: &str = "
    chmod l1 600
    unlink sub/l3
    unlink d/sub/y
    rename e moved none
    rename g d/g none
    put new 0 7 1 640
    link new new2
    put one 0 7 1 640
    setxattr one user.a v*30 0
    unlink f
    mkdir d/sub/dir 750
";

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name)
    }
}

/// A job without faults.
pub struct Expected {
    shown: Tree,
    /// Calls that are made.
    pub calls: usize,
}

impl Lab {
    /// Carries out a job without faults.
    pub fn expect(&self, job: Job) -> Result<Expected> {
        let branches = self.prepare(job)?;
        let shown = branches.shown()?;
        // Mounting has mended what it can.
        let branches = self.prepare(job)?;
        let plan = Plan::new(Calls::Changes, Some(branches.device()?), None, Fault::Kill);
        let plan = Arc::new(plan);
        ensure!(work(job, &branches, &plan)?, "it fails");
        let calls = plan.count();
        check(job, branches, &shown)?;
        Ok(Expected { shown, calls })
    }

    /// Something happens at call number `at`. Answers which call that was; `None` if it did not come.
    pub fn disturb(
        &self,
        job: Job,
        expected: &Expected,
        at: usize,
        fault: Fault,
    ) -> Result<Option<String>> {
        let branches = self.prepare(job)?;
        let plan = Plan::new(Calls::Changes, Some(branches.device()?), Some(at), fault);
        let plan = Arc::new(plan);
        // It may fail, or get over it.
        work(job, &branches, &plan)?;
        let Some(call) = plan.hit() else {
            return Ok(None);
        };
        check(job, branches, &expected.shown)
            .with_context(|| format!("call {at}, {call}: {fault:?}"))?;
        Ok(Some(call))
    }

    fn prepare(&self, job: Job) -> Result<Branches> {
        let layers = [UPPER, LOWER, LOWEST].map(lines);
        let layers: Vec<_> = layers.into_iter().collect::<Result<_>>()?;
        let branches = self.branches(job.mode, &layers)?;
        let mut union = branches.mount()?;
        answered(union.run(&lines(FIRST)?)).context("before it")?;
        union.unmount()?;
        if job.damaged {
            damage(&branches)?;
        }
        Ok(branches)
    }
}

/// What a daemon that is killed may leave, and more: nothing of it is seen.
fn damage(branches: &Branches) -> Result<()> {
    let (root, books) = (branches.branch(0), branches.books(0));
    fs::write(books.join("tmp/1"), "half a copy")?;
    fs::create_dir_all(books.join("trash/2/deep"))?;
    fs::write(books.join("trash/2/deep/.wh.x"), "")?;
    symlink("1.1 2.2 3.3 d", books.join("times/4711"))?;
    fs::write(books.join("links/4711"), "no record")?;
    fs::write(root.join(".wh.new"), "")?;
    let mut log = fs::read(books.join("log"))?;
    log.extend_from_slice(b"torn");
    fs::write(books.join("log"), log)?;
    Ok(())
}

/// Does it, followed by a plan. Has it succeeded?
fn work(job: Job, branches: &Branches, plan: &Arc<Plan>) -> Result<bool> {
    match job.work {
        Work::Mount => {
            branches.mount_traced(plan)?;
            Ok(true)
        }
        Work::Unmount => {
            let mut union = branches.mount()?;
            union.follow(plan);
            union.unmount()?;
            Ok(true)
        }
        Work::Command(words) | Work::Convert(words) => {
            plan.begin();
            let end = trace::run(&mut branches.command(words), plan)?;
            // What was mended is told by a status, too.
            Ok(end == trace::End::Finished || end == trace::End::Failed(1))
        }
        Work::Asked(words) => {
            let mut union = branches.mount()?;
            union.follow(plan);
            let output = branches.command(words).output()?;
            plan.settle();
            plan.end();
            union.bury()?;
            Ok(output.status.success())
        }
    }
}

/// Does it again, and looks.
fn check(job: Job, branches: Branches, shown: &Tree) -> Result<()> {
    let same =
        |branches: &Branches, when| equal(shown, &branches.shown()?, Times::OfFiles).context(when);
    let branches = match job.work {
        Work::Mount | Work::Unmount => branches,
        Work::Command(words) => {
            same(&branches, "before it is done again")?;
            again(&branches, words)?;
            branches
        }
        Work::Asked(words) => {
            same(&branches, "before it is done again")?;
            let union = branches.mount()?;
            again(&branches, words)?;
            union.unmount()?;
            branches
        }
        Work::Convert(words) => {
            again(&branches, words)?;
            branches.converted(MODES[1])
        }
    };
    same(&branches, "at the end")?;
    branches.check_finished()?;
    branches.repair_showing(shown)?;
    branches.check_readonly()
}

fn again(branches: &Branches, words: &[&str]) -> Result<()> {
    let output = branches.command(words).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    // What was mended is told by a status, and so is what has been moved before.
    let fine = output.status.success()
        || words[0] == "fsck"
        || text
            .lines()
            .all(|line| line.contains("no writable branch below"));
    ensure!(fine, "done again: {} {text}", output.status);
    Ok(())
}
