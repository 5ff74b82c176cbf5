//! `uaufs merge`.

use clap::{Args, ValueEnum};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use unionfs::control::moving::StepLine;
use unionfs::control::protocol::MergeHow;
use unionfs::merging::{Below, Job, merge};
use unionfs::shown::Shown;
use unionfs::sys::limits;

/// Something had to stay on the upper branch.
const LEFT: u8 = 4;

/// What becomes of the two branches.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// The source is emptied. Of its whiteouts only those that still hide something below the
    /// destination are left, there
    #[default]
    Move,
    /// The source is emptied. All its whiteouts and opaque marks go to the destination, which is then
    /// a layer that can be put on other branches
    MoveWithWh,
    /// The source stays as it is, and the destination alone shows what both show together
    Copy,
}

/// A merge that is asked for.
///
/// Exit code: 0 everything was moved, 4 something had to stay (it is listed), 1 it was not begun or
/// ended early. It may be stopped or killed at any time: the union shows the same, and the same
/// command goes on.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct MergeArgs {
    /// Change nothing, list what would be moved
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Print a JSON object for each entry, one a line, and one with the totals
    #[arg(long)]
    pub json: bool,
    /// List every entry, not only what had to stay
    #[arg(short, long)]
    pub verbose: bool,
    /// What becomes of the two branches (aubrsync has the same)
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: Mode,
    /// The same as --mode move_with_wh
    #[arg(long, conflicts_with = "mode")]
    pub with_whiteouts: bool,
    /// A branch below DST_BRANCH, topmost first (default: those of the last mount). Not for
    /// branches that are mounted now
    #[arg(long, value_name = "BRANCH", conflicts_with = "bottom")]
    pub lower: Vec<PathBuf>,
    /// Nothing lies below DST_BRANCH
    #[arg(long)]
    pub bottom: bool,
    /// The writable branch that is emptied
    #[arg(value_name = "SRC_BRANCH")]
    pub source: PathBuf,
    /// The writable branch below it that receives
    #[arg(value_name = "DST_BRANCH")]
    pub target: PathBuf,
}

/// Merges, whether the branches are mounted or not.
///
/// # Errors
/// Why it was not begun, or ended early.
pub fn run(args: &MergeArgs) -> anyhow::Result<u8> {
    limits::raise_open_files();
    let job = Job {
        from: args.source.clone(),
        to: args.target.clone(),
        how: MergeHow {
            keep_whiteouts: args.with_whiteouts || args.mode == Mode::MoveWithWh,
            copy: args.mode == Mode::Copy,
            dry_run: args.dry_run,
        },
        below: if args.bottom || !args.lower.is_empty() {
            Below::Branches(args.lower.clone())
        } else {
            Below::AsMounted
        },
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let total = merge(&job, &mut |line| {
        let mut line = line.clone();
        let moved = line.done == "moved";
        if moved && args.mode == Mode::Copy {
            "copied".clone_into(&mut line.done);
        }
        if written.is_ok() && (args.json || args.verbose || args.dry_run || !moved) {
            written = print(&mut out, &line, args);
        }
    });
    let total = total.inspect_err(|_| {
        // What was told already is not lost with the error.
        let _ = out.flush();
    })?;
    written?;
    if args.json {
        serde_json::to_writer(&mut out, &total)?;
        writeln!(out)?;
    } else {
        let would = if args.dry_run { "would be " } else { "" };
        let done = match args.mode {
            Mode::Copy => "copied",
            Mode::Move | Mode::MoveWithWh => "moved",
        };
        let (moved, bytes) = (total.moved, total.bytes);
        write!(out, "{moved} entries {would}{done} ({bytes} bytes)")?;
        writeln!(out, ", {} left, {} failed", total.left, total.failed)?;
    }
    out.flush()?;
    let complete = total.left == 0 && total.failed == 0 && !total.stopped;
    Ok(if complete { 0 } else { LEFT })
}

fn print(out: &mut impl Write, line: &StepLine, args: &MergeArgs) -> anyhow::Result<()> {
    if args.json {
        serde_json::to_writer(&mut *out, line)?;
        writeln!(out)?;
        return Ok(());
    }
    let (path, done) = (Shown(line.path.as_bytes()), &line.done);
    write!(out, "{done:<6} {:<11} {path}", line.kind)?;
    match (&line.reason, &line.hint) {
        (Some(reason), Some(hint)) => writeln!(out, ": {reason}: {hint}")?,
        (Some(reason), None) => writeln!(out, ": {reason}")?,
        _ => writeln!(out)?,
    }
    Ok(())
}
