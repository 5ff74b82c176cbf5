//! `uaufs convert`.

use super::fsck::FormatName;
use clap::Args;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use unionfs::convert::{self, End, Request};
use unionfs::shown::ShowPath;

/// A conversion that is asked for.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct ConvertArgs {
    /// What the branch is to be
    #[arg(long, value_enum)]
    pub to: FormatName,
    /// What it is [default: as recorded, else by the marks on it]
    #[arg(long, value_enum)]
    pub from: Option<FormatName>,
    /// Work directory of the overlay format, for the bookkeeping
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Write attributes that plain users may write (overlayfs: userxattr)
    #[arg(long)]
    pub userxattr: bool,
    /// A branch below, topmost first: what unionfs-fuse hides in directories of it needs them here
    #[arg(long, value_name = "DIR")]
    pub lower: Vec<PathBuf>,
    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// The branch; no union may be using it
    #[arg(value_name = "BRANCH")]
    pub branch: PathBuf,
}

/// Converts. Exit code 4: something stands in the way, and nothing was changed.
///
/// # Errors
/// Those of the conversion; it can be run again.
pub fn run(args: &ConvertArgs) -> anyhow::Result<u8> {
    if !args.dry_run {
        super::refuse_if_mounted(&args.branch)?;
    }
    let end = convert::run(&Request {
        branch: args.branch.clone(),
        to: args.to.into(),
        from: args.from.map(Into::into),
        workdir: args.workdir.clone(),
        user_attributes: args.userxattr,
        lowers: args.lower.clone(),
        dry_run: args.dry_run,
    })?;
    let mut out = std::io::stdout().lock();
    match end {
        End::Converted(changes) if args.json => {
            let report = serde_json::json!({ "converted": changes, "dry_run": args.dry_run });
            writeln!(out, "{report}")?;
        }
        End::Converted(changes) => {
            let verb = if args.dry_run {
                "to convert"
            } else {
                "converted"
            };
            writeln!(
                out,
                "{} whiteouts, {} opaque directories, {} renamed directories {verb}",
                changes.whiteouts, changes.opaque, changes.redirects
            )?;
        }
        End::Impossible(obstacles) => {
            if args.json {
                writeln!(out, "{}", serde_json::json!({ "obstacles": obstacles }))?;
            }
            for obstacle in &obstacles {
                let path = args
                    .branch
                    .join(std::ffi::OsStr::from_bytes(&obstacle.path));
                let path = path.shown();
                if !args.json {
                    writeln!(out, "{path}: {}", obstacle.why)?;
                }
            }
            eprintln!(
                "uaufs: {}: nothing was changed, for the reasons listed",
                args.branch.shown()
            );
            return Ok(4);
        }
    }
    Ok(0)
}
