//! `uaufs fsck`.

use anyhow::Context;
use clap::{Args, ValueEnum};
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use unionfs::fsck::{self, Outcome, Report};
use unionfs::shown::ShowPath;
use unionfs::spec::Format;

/// A check that is asked for.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct FsckArgs {
    /// Mend what can be mended
    #[arg(long)]
    pub repair: bool,
    /// Which stays where a whiteout lies beside an entry of its name
    #[arg(long, value_enum, default_value = "entry")]
    pub prefer: Prefer,
    /// What the branches are [default: as recorded, else by the marks on them]
    #[arg(long, value_enum)]
    pub format: Option<FormatName>,
    /// Work directory of the first branch (overlay format)
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Also tell what is no problem
    #[arg(short, long)]
    pub verbose: bool,
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// Branches, topmost first; no union may be using them
    #[arg(value_name = "BRANCH", required = true)]
    pub branches: Vec<PathBuf>,
}

/// See [`fsck::Prefer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Prefer {
    /// The entry
    Entry,
    /// The whiteout: the entry is removed
    Whiteout,
}

/// See [`Format`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// `.wh.NAME`
    Aufs,
    /// 0/0 devices and attributes
    Overlay,
}

impl From<FormatName> for Format {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Aufs => Self::Aufs,
            FormatName::Overlay => Self::Overlay,
        }
    }
}

/// What fsck(8) ends with when it could not check: 1 says that it repaired.
pub const CANNOT_CHECK: u8 = 8;

/// Checks.
///
/// # Errors
/// Only those of writing the report; a branch that cannot be checked ends in exit code 8.
pub fn run(args: &FsckArgs) -> anyhow::Result<u8> {
    if args.repair {
        for branch in &args.branches {
            if let Err(error) = super::refuse_if_mounted(branch) {
                eprintln!("uaufs: {error}");
                return Ok(CANNOT_CHECK);
            }
        }
    }
    let request = fsck::Request {
        branches: args.branches.clone(),
        format: args.format.map(Format::from),
        workdir: args.workdir.clone(),
        repair: args.repair,
        prefer: match args.prefer {
            Prefer::Entry => fsck::Prefer::Entry,
            Prefer::Whiteout => fsck::Prefer::Whiteout,
        },
        notes: args.verbose,
    };
    let report = match fsck::check(&request) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("uaufs: {error}");
            return Ok(CANNOT_CHECK);
        }
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let text = serde_json::to_string_pretty(&report).context("cannot write the report")?;
        writeln!(out, "{text}")?;
    } else {
        print(&report, &mut out)?;
    }
    Ok(report.exit_code())
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    for branch in &report.branches {
        for finding in &branch.findings {
            let path = branch.path.join(OsStr::from_bytes(&finding.path));
            let path = path.shown();
            write!(out, "{path}: {}", finding.problem)?;
            match finding.outcome {
                Outcome::Note => writeln!(out)?,
                Outcome::Found | Outcome::Left => writeln!(out, ": {}", finding.remedy)?,
                Outcome::Repaired => writeln!(out, ": {}: done", finding.remedy)?,
                Outcome::Failed(errno) => {
                    let errno = unionfs::errno::errno_name(errno);
                    writeln!(out, ": {}: failed ({errno})", finding.remedy)?;
                }
            }
        }
    }
    let repaired = report.count(|o| o == Outcome::Repaired);
    let left = report.count(|o| !matches!(o, Outcome::Repaired | Outcome::Note));
    match (repaired, left) {
        (0, 0) => writeln!(out, "clean"),
        _ => writeln!(out, "{repaired} repaired, {left} left"),
    }
}
