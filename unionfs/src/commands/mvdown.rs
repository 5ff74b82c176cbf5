//! `uaufs mvdown`.

use anyhow::{Context, bail};
use clap::Args;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use unionfs::control::protocol::MoveWhich;
use unionfs::control::{Client, Request};
use unionfs::errno::{Errno, errno_name};
use unionfs::ostext::OsText;
use unionfs::shown::ShowPath;
use unionfs::sys::stat::stat_fd;

/// Files to be moved.
///
/// Refused, with the reason: directories, files with several names, files that another branch or a
/// whiteout between the two would hide, files that the kernel writes to without asking. Exit code: 1
/// if any file was refused.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct MvdownArgs {
    /// Change nothing, tell what would be done
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Print a JSON object for each file, one a line
    #[arg(long)]
    pub json: bool,
    /// Replace a file of the lower branch
    #[arg(short, long)]
    pub overwrite: bool,
    /// Leave the upper file where it is
    #[arg(short, long)]
    pub keep_upper: bool,
    /// The branch to move from (default: the one that shows the file)
    #[arg(short = 'b', long, value_name = "BRANCH")]
    pub from: Option<PathBuf>,
    /// The branch to move to (default: the next writable one below)
    #[arg(short = 'B', long, value_name = "BRANCH")]
    pub to: Option<PathBuf>,
    /// Files of a mounted union
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
}

/// Moves each file.
///
/// # Errors
/// A branch that cannot be opened, or standard output that cannot be written.
pub fn run(args: &MvdownArgs) -> anyhow::Result<u8> {
    let branch = |path: &Option<PathBuf>| path.as_deref().map(open_dir).transpose();
    let (from, to) = (branch(&args.from)?, branch(&args.to)?);
    let mut code = 0;
    for file in &args.files {
        let done = move_one(args, file, from.as_ref(), to.as_ref());
        let path = file.shown();
        match (&done, args.json) {
            (Ok(bytes), true) => {
                let line = serde_json::json!({"path": path, "moved": true, "bytes": bytes});
                println!("{line}");
            }
            (Err(error), true) => {
                let error = format!("{error:#}");
                println!(
                    "{}",
                    serde_json::json!({"path": path, "moved": false, "error": error})
                );
            }
            (Ok(_), false) => {}
            (Err(error), false) => eprintln!("uaufs: mvdown: {path}: {error:#}"),
        }
        if done.is_err() {
            code = 1;
        }
    }
    Ok(code)
}

fn move_one(
    args: &MvdownArgs,
    file: &Path,
    from: Option<&OwnedFd>,
    to: Option<&OwnedFd>,
) -> anyhow::Result<u64> {
    let name = file.file_name().context("has no name (EINVAL)")?;
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // Held open until it is done: its number is valid so long.
    let dir = match open_dir(parent) {
        Err(_) if !parent.exists() => {
            bail!("no such file (ENOENT): name a file of a mounted union")
        }
        dir => dir?,
    };
    let number = stat_fd(&dir)
        .map_err(|errno| anyhow::anyhow!("{}", errno_name(errno)))?
        .ino;
    let which = MoveWhich {
        parent: number,
        name: OsText(OsString::from(name)),
        from: from.is_some(),
        to: to.is_some(),
        overwrite: args.overwrite,
        own_copy: false,
        keep_upper: args.keep_upper,
        dry_run: args.dry_run,
    };
    let attached: Vec<_> = from.into_iter().chain(to).map(AsFd::as_fd).collect();
    let client = match Client::connect(parent) {
        // The root of a mount lies in no union, either.
        Err(_) if file.is_dir() => bail!("is a directory (EISDIR): name files of the union"),
        Err(failure) if failure.errno == Errno::NOTTY.raw_os_error() => {
            bail!("lies in no mounted union (ENOTTY): name a file of one")
        }
        client => client?,
    };
    let result = client.request(&Request::MoveDown(which), &attached, &mut |_| {})?;
    Ok(result
        .get("bytes")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or(0))
}

fn open_dir(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let path = path.shown();
        anyhow::anyhow!("{path}: cannot be opened ({})", errno_name(errno))
    })
}
