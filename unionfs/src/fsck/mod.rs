//! Checking branches that no union uses, and repairing them: what is found, as data.
//!
//! Every repair is one step or steps that mean the same in any prefix, so that a check that is
//! killed is simply run again. Nothing that could be a user's data is removed unless that was asked
//! for: it is set aside in `.wh..wh.uaufs/lost/`.

mod books;
mod fix;
mod lower;
mod names;
mod report;

pub use report::{Branch as BranchReport, Finding, Outcome, Problem, Remedy, Report};

use crate::branch::offline::Offline;
use crate::errno::Errno;
use crate::setup::SetupError;
use crate::spec::Format;
use crate::sys::walk::{Step, tree};
use std::path::PathBuf;

/// Which of the two stays where a whiteout lies beside an entry of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// The entry, as the union shows it.
    #[default]
    Entry,
    /// The whiteout: the entry is removed.
    Whiteout,
}

/// What is to be checked, and how.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Topmost first. With several, what the upper ones say of the lower ones is checked too.
    pub branches: Vec<PathBuf>,
    /// What they are, whatever they look like.
    pub format: Option<Format>,
    /// Where the bookkeeping of the first is (overlay format).
    pub workdir: Option<PathBuf>,
    /// Mend what can be mended.
    pub repair: bool,
    /// Which of the two stays.
    pub prefer: Prefer,
    /// Also tell what is no problem: marks without effect, devices, other mounts.
    pub notes: bool,
}

/// Checks the branches, and repairs them if that was asked for.
///
/// # Errors
/// A branch that cannot be opened or read, or that is in use: then nothing was changed on it.
pub fn check(request: &Request) -> Result<Report, SetupError> {
    let mut branches = Vec::new();
    for (position, path) in request.branches.iter().enumerate() {
        let work = request.workdir.as_deref().filter(|_| position == 0);
        branches.push(Offline::open(path, work, request.format)?);
    }
    let mut report = Report::default();
    for position in 0..branches.len() {
        let (here, lower) = branches[position..].split_at_mut(1);
        let mut checker = Checker {
            branch: &mut here[0],
            lower,
            request,
            findings: Vec::new(),
        };
        let path = &request.branches[position];
        checker
            .run()
            .map_err(|errno| SetupError::path(path, errno, "cannot check the branch"))?;
        let findings = checker.findings;
        report.branches.push(BranchReport {
            path: branches[position].path.clone(),
            format: branches[position].format,
            findings,
        });
    }
    Ok(report)
}

/// The check of one branch.
struct Checker<'a> {
    branch: &'a mut Offline,
    /// Those below it, as far as they were named.
    lower: &'a [Offline],
    request: &'a Request,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn run(&mut self) -> Result<(), Errno> {
        let mut redirects = self.check_books()?;
        let root = rustix::io::dup(&self.branch.root)?;
        // Told along: does the path lead to the same directory on the branches below?
        tree(&root, true, |step, own_path| match step {
            Step::Dir(here) => self.check_dir(&here, own_path, &mut redirects),
            Step::Closed(path, errno) => {
                let problem = match errno {
                    Errno::XDEV => Problem::OtherMount,
                    _ => Problem::Unreadable,
                };
                let remedy = Remedy::ByHand("make it readable");
                self.found(path.to_vec(), problem, remedy, |_| Ok(()));
                Ok(Vec::new())
            }
        })?;
        self.check_redirect_records(redirects);
        Ok(())
    }

    /// Notes a problem; `fix` is called if it is to be repaired and can be.
    fn found(
        &mut self,
        path: Vec<u8>,
        problem: Problem,
        remedy: Remedy,
        fix: impl FnOnce(&mut Offline) -> Result<(), Errno>,
    ) {
        if problem.is_note() && !self.request.notes {
            return;
        }
        let outcome = match remedy {
            _ if problem.is_note() => Outcome::Note,
            Remedy::ByHand(_) => Outcome::Left,
            _ if !self.request.repair => Outcome::Found,
            _ => match fix(self.branch) {
                Ok(()) => Outcome::Repaired,
                Err(errno) => Outcome::Failed(errno),
            },
        };
        self.findings.push(Finding {
            path,
            problem,
            remedy,
            outcome,
        });
    }

    /// How to get something out of the way without losing it.
    fn aside(&self) -> Remedy {
        if self.branch.may_have_books() {
            Remedy::SetAside
        } else {
            Remedy::ByHand("name the work directory with --workdir, where it can be set aside")
        }
    }
}
