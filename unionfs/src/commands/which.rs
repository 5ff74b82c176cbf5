//! `uaufs which`: where an entry of a mount is on its branches.

use clap::Args;
use rustix::fs::{CWD, FileType, Mode, OFlags, openat};
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use unionfs::control::query::{OnBranch, Which};
use unionfs::control::{Query, ask};
use unionfs::errno::Errno;
use unionfs::ostext::OsText;
use unionfs::setup::SetupError;
use unionfs::shown::{ShowPath, Shown};

/// What is asked about.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct WhichArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
    /// Paths in a mounted union; they need not exist
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
}

/// Prints, for every path, the branch that serves it, the others that hold it, and the marks that
/// decide.
///
/// # Errors
/// A path that is in no union, or cannot be opened.
pub fn run(args: &WhichArgs) -> anyhow::Result<u8> {
    let found: Vec<(&Path, Which)> = args
        .paths
        .iter()
        .map(|path| Ok((path.as_path(), look_up(path)?)))
        .collect::<Result<_, SetupError>>()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let all: Vec<&Which> = found.iter().map(|(_, which)| which).collect();
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
        return Ok(0);
    }
    for (path, which) in &found {
        write!(out, "{}: ", path.shown())?;
        match which.serving {
            Some(index) => writeln!(out, "served by branch {index}")?,
            None => writeln!(out, "not in the union")?,
        }
        for branch in &which.branches {
            writeln!(out, "  {}", line(branch))?;
        }
    }
    Ok(0)
}

fn line(on: &OnBranch) -> String {
    let shown = |text: &OsText| Shown(text.as_bytes()).to_string();
    let mut line = format!("{} {}={}", on.index, shown(&on.branch), on.perm);
    if let Some(kind) = &on.kind {
        let state = if on.shown { "" } else { ", hidden" };
        line.push_str(&format!(": {kind}{state}"));
    }
    if let Some(at) = &on.at {
        line.push_str(&format!(", at {}", shown(at)));
    }
    for mark in &on.marks {
        line.push_str(&format!(", marked by {}", shown(mark)));
    }
    line
}

fn look_up(path: &Path) -> Result<Which, SetupError> {
    let failed = |errno| SetupError::Path {
        path: path.to_path_buf(),
        what: match errno {
            Errno::NOTTY => "in no mounted union".to_owned(),
            Errno::NOENT => "no such directory in the union".to_owned(),
            Errno::PERM => {
                "no name in a union, but a mark: ask about the name behind `.wh.`".to_owned()
            }
            _ => "cannot be asked about".to_owned(),
        },
        errno,
    };
    // A directory is asked itself: it may be the root of the mount.
    if let Ok(dir) = open(path, OFlags::DIRECTORY | OFlags::NOFOLLOW) {
        return ask(&dir, &Query::Which { name: None }).map_err(failed);
    }
    let (parent, name) = split(path).ok_or_else(|| failed(Errno::INVAL))?;
    match open(parent, OFlags::DIRECTORY) {
        Ok(dir) => {
            let name = Some(OsText(name.to_owned()));
            ask(&dir, &Query::Which { name }).map_err(failed)
        }
        // The file can perhaps be opened though its directory cannot be listed.
        Err(Errno::ACCESS) => {
            let file = open(path, OFlags::NONBLOCK | OFlags::NOFOLLOW).map_err(failed)?;
            let mode = rustix::fs::fstat(&file).map_err(failed)?.st_mode;
            if FileType::from_raw_mode(mode) != FileType::RegularFile {
                return Err(failed(Errno::ACCESS));
            }
            ask(&file, &Query::Which { name: None }).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(
        CWD,
        path,
        flags | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Directory and name; `None` for paths that end in `..`.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return None;
    };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    Some((parent.unwrap_or(Path::new(".")), name))
}
