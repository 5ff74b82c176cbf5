//! `uaufs diff`.

use clap::Args;
use std::io::BufWriter;
use std::path::PathBuf;
use unionfs::diff::{Letters, Lower, Printer, diff};
use unionfs::sys::limits;

/// A comparison that is asked for.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct DiffArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
    /// Lower branches are plain directories: `.wh.` names on them hide nothing
    #[arg(long)]
    pub plain: bool,
    /// The branch whose changes are shown
    #[arg(value_name = "UPPER")]
    pub upper: PathBuf,
    /// The branches below it, topmost first. Without any, copies are told by the books of UPPER
    #[arg(value_name = "LOWER")]
    pub lowers: Vec<PathBuf>,
}

/// Prints what UPPER changes.
///
/// # Errors
/// A branch or directory that cannot be read.
pub fn run(args: &DiffArgs) -> anyhow::Result<u8> {
    // A directory on each branch is open for every step of depth.
    limits::raise_open_files();
    let lowers: Vec<Lower<'_>> = args
        .lowers
        .iter()
        .map(|path| Lower {
            path,
            whiteouts: !args.plain,
        })
        .collect();
    let out = BufWriter::new(std::io::stdout().lock());
    let mut printer = Printer::new(out, args.json, Letters::Modified);
    diff(&args.upper, &lowers, &mut |changed| printer.print(changed))?;
    printer.finish()?;
    Ok(0)
}
