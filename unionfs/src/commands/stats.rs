//! `uaufs stats`: what was asked of a mount, and what it holds.

use clap::Args;
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use unionfs::control::Query;
use unionfs::control::ask::ask_at;
use unionfs::control::counters::Counted;

/// Which mount is asked.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct StatsArgs {
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Prints a line for each operation that ran, and one for each thing that is held.
///
/// # Errors
/// The path is in no union, or cannot be opened.
pub fn run(args: &StatsArgs) -> anyhow::Result<u8> {
    let counted: Counted = ask_at(&args.mountpoint, &Query::Stats)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &counted)?;
        writeln!(out)?;
        return Ok(0);
    }
    writeln!(
        out,
        "{:<22} {:>12} {:>10} {:>9} {:>9}",
        "OPERATION", "COUNT", "ERRORS", "50% <us", "99% <us"
    )?;
    for op in &counted.operations {
        writeln!(
            out,
            "{:<22} {:>12} {:>10} {:>9} {:>9}",
            op.name, op.count, op.errors, op.p50_us, op.p99_us
        )?;
    }
    writeln!(out)?;
    for part in [
        serde_json::to_value(counted.held)?,
        serde_json::to_value(counted.daemon)?,
    ] {
        for (name, value) in part.as_object().into_iter().flatten() {
            if *value != Value::Null {
                writeln!(
                    out,
                    "{:<22} {:>12}",
                    name.replace('_', " "),
                    value.to_string()
                )?;
            }
        }
    }
    Ok(0)
}
