//! `uaufs ctl`: the branches and options of a live mount.

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use unionfs::control::ask::ask_at;
use unionfs::control::protocol::Failure;
use unionfs::control::users::device_of;
use unionfs::control::{Client, Listed, Query, Request};
use unionfs::errno::Errno;
use unionfs::ostext::OsText;
use unionfs::shown::{ShowPath, Shown};
use unionfs::spec::aufs::{Change, Changes, NewBranch, parse_change};
use unionfs::spec::{MountSetting, Setting};

/// What is to be done with which mount.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct CtlArgs {
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// What is to be done
    #[command(subcommand)]
    pub action: Action,
}

/// What is to be done. A branch is PATH[=PERM[+ATTR...]], as in the option `br=`.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Show the branches, topmost first
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Insert a branch, 0 is the top
    Add {
        /// Its place
        index: usize,
        /// Directory and permission
        #[arg(value_name = "PATH[=PERM]")]
        branch: OsString,
    },
    /// Add a branch at the bottom
    Append {
        /// Directory and permission
        #[arg(value_name = "PATH[=PERM]")]
        branch: OsString,
    },
    /// Add a branch on top
    Prepend {
        /// Directory and permission
        #[arg(value_name = "PATH[=PERM]")]
        branch: OsString,
    },
    /// Remove a branch that is not in use
    Del {
        /// Copy up first what is in use (open, mapped, a current directory), where that is possible
        #[arg(long)]
        force: bool,
        /// Its directory
        path: PathBuf,
    },
    /// Change permission and attributes of a branch
    Mod {
        /// Directory and permission
        #[arg(value_name = "PATH=PERM")]
        branch: OsString,
    },
    /// Change options, as `mount -o remount` does: from left to right
    Set {
        /// Options
        #[arg(value_name = "OPT[,OPT...]")]
        options: OsString,
    },
}

/// Does it.
///
/// # Errors
/// One line that says what is wrong; a list of options is carried out up to the wrong one.
pub fn run(args: &CtlArgs) -> anyhow::Result<u8> {
    let branch = |text: &OsStr| -> anyhow::Result<NewBranch> {
        let (branch, warnings) = NewBranch::parse(text)?;
        warn(&warnings);
        Ok(branch)
    };
    let (change, force) = match &args.action {
        Action::List { json } => return list(&args.mountpoint, *json),
        Action::Set { options } if options.as_bytes().iter().all(|b| *b == b',') => {
            bail!("set: no option is given (EINVAL): OPT[,OPT...], as in udba=notify")
        }
        Action::Set { options } => return change_all(&args.mountpoint, parse_change(options)?),
        Action::Add {
            index,
            branch: text,
        } => {
            let (index, branch) = (*index, branch(text)?);
            (Change::AddBranch { index, branch }, false)
        }
        Action::Append { branch: text } => (Change::Append(branch(text)?), false),
        Action::Prepend { branch: text } => (Change::Prepend(branch(text)?), false),
        Action::Del { path, force } => (Change::Del { path: path.clone() }, *force),
        Action::Mod { branch: text } => match branch(text)? {
            NewBranch {
                path,
                perm: Some(perm),
            } => (Change::Mod { path, perm }, false),
            NewBranch { path, perm: None } => {
                bail!(
                    "mod {}: needs a permission (EINVAL): as in PATH=ro+wh",
                    path.shown()
                )
            }
        },
    };
    let client = Client::connect(&args.mountpoint)?;
    warn(&carry_out(&client, &args.mountpoint, change, force)?);
    Ok(0)
}

/// Changes a mount by the options of a remount, from left to right; flags of the mount come last.
///
/// # Errors
/// As [`run`].
pub fn change_all(mountpoint: &Path, parsed: Changes) -> anyhow::Result<u8> {
    warn(&parsed.warnings);
    let client = Client::connect(mountpoint)?;
    let mut flags = Vec::new();
    for change in parsed.changes {
        match change {
            Change::Set(Setting::Mount(flag)) => flags.push(flag),
            other => warn(&repeated(&client, mountpoint, other)?),
        }
    }
    unionfs::fuse::change_flags(mountpoint, &flags)?;
    for flag in flags {
        if matches!(flag, MountSetting::ReadOnly(_)) {
            // It decides what a branch without a permission becomes.
            let told = Change::Set(Setting::Mount(flag));
            warn(&carry_out(&client, mountpoint, told, false)?);
        }
    }
    Ok(0)
}

/// One change of a remount. mount(8) repeats the branches of fstab(5): those that are there stay, and
/// a directory that is no branch is none afterwards, either (both as with AUFS).
fn repeated(client: &Client, mountpoint: &Path, change: Change) -> anyhow::Result<Vec<String>> {
    let told = match &change {
        Change::AddBranch { .. } | Change::Append(_) | Change::Prepend(_) => {
            Some((Errno::EXIST, None))
        }
        Change::Del { path } if path.is_dir() => {
            let none = format!("{}: it is no branch", path.shown());
            Some((Errno::NOENT, Some(none)))
        }
        _ => None,
    };
    let done = carry_out(client, mountpoint, change, false);
    match (told, done) {
        (Some((expected, warning)), Err(error)) if errno_of(&error) == Some(expected) => {
            Ok(warning.into_iter().collect())
        }
        (_, done) => done,
    }
}

/// What the daemon refused with.
fn errno_of(error: &anyhow::Error) -> Option<Errno> {
    let failure = error.downcast_ref::<Failure>()?;
    Some(Errno::from_raw_os_error(failure.errno))
}

/// Sends one change, with the directory that it names. Returns what the daemon warns of.
fn carry_out(
    client: &Client,
    mountpoint: &Path,
    mut change: Change,
    force: bool,
) -> anyhow::Result<Vec<String>> {
    if let Change::AddBranch { branch, .. } | Change::Append(branch) | Change::Prepend(branch) =
        &change
    {
        refuse_circle(mountpoint, &branch.path)?;
    }
    let named = match &mut change {
        Change::AddBranch { branch, .. } | Change::Append(branch) | Change::Prepend(branch) => {
            Some((&mut branch.path, true))
        }
        Change::Mod { path, .. } => Some((path, true)),
        // A branch whose directory is gone can still be removed.
        Change::Del { path } => Some((path, false)),
        Change::Set(_) => None,
    };
    let mut directory = None;
    let shown = change_name(named.as_ref().map(|(path, _)| path.as_path()));
    if let Some((path, needed)) = named {
        match open_branch(path) {
            Ok(fd) => directory = Some(fd),
            Err(error) if needed => return Err(error),
            Err(_) => {}
        }
        *path = std::path::absolute(&*path).with_context(|| shown.clone())?;
    }
    let request = Request::Change {
        option: OsText(change.to_option()),
        force,
    };
    let attached: Vec<_> = directory.iter().map(AsFd::as_fd).collect();
    let mut progress = |text: &str| eprintln!("uaufs: {text}");
    let result = client.request(&request, &attached, &mut progress)?;
    if result.get("writable") == Some(&Value::Bool(true)) {
        // A union without a writable branch was mounted readonly.
        let done = unionfs::fuse::change_flags(mountpoint, &[MountSetting::ReadOnly(false)]);
        if let Err(error) = done {
            warn(&[format!("the mount stays readonly: {error}")]);
        }
    }
    let warnings = result.get("warnings").and_then(Value::as_array);
    let texts = warnings.into_iter().flatten().filter_map(Value::as_str);
    Ok(texts.map(str::to_owned).collect())
}

/// A union below itself waits for itself, for ever. The daemon sees only what lies in it; what lies in
/// another union that has this one for a branch, or a branch in it, is looked for here.
fn refuse_circle(mountpoint: &Path, branch: &Path) -> anyhow::Result<()> {
    let Ok(union) = device_of(mountpoint) else {
        return Ok(());
    };
    let in_union = |path: &Path| device_of(path).is_ok_and(|device| device == union);
    if !in_union(branch)
        && let Some(way) = leads_to(branch, &in_union, NESTED_MOST)
    {
        bail!(
            "{}: it is in a union whose branch {} is in {}: a union cannot be below itself",
            branch.shown(),
            way.shown(),
            mountpoint.shown()
        );
    }
    Ok(())
}

/// Unions in unions that are looked through: the kernel allows two.
const NESTED_MOST: usize = 8;

/// The branch of the union around `path`, or of one below that, which is where `found` says.
fn leads_to(path: &Path, found: &impl Fn(&Path) -> bool, depth: usize) -> Option<PathBuf> {
    let branches = ask_at::<Vec<Listed>>(path, &Query::List).ok()?;
    let mut paths = branches.iter().map(|branch| branch.path.path());
    paths.find_map(|path| match found(path) {
        true => Some(path.to_path_buf()),
        false if depth > 0 => leads_to(path, found, depth - 1),
        false => None,
    })
}

fn change_name(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| path.shown().to_string())
}

fn open_branch(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let what = match errno {
            Errno::NOENT => "no such branch: create it or correct the path",
            Errno::NOTDIR => "a branch must be a directory",
            _ => "cannot open the branch",
        };
        let error = unionfs::setup::SetupError::Path {
            path: path.to_path_buf(),
            what: what.to_owned(),
            errno,
        };
        error.into()
    })
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        eprintln!("uaufs: warning: {warning}");
    }
}

fn list(mountpoint: &Path, json: bool) -> anyhow::Result<u8> {
    let branches: Vec<Listed> = ask_at(mountpoint, &Query::List)?;
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &branches)?;
        writeln!(out)?;
        return Ok(0);
    }
    let rows: Vec<[String; 5]> = branches
        .iter()
        .map(|b| {
            [
                b.index.to_string(),
                b.id.to_string(),
                b.perm.clone(),
                human(b.free),
                Shown(b.path.as_bytes()).to_string(),
            ]
        })
        .collect();
    let head = ["INDEX", "ID", "PERM", "FREE", "PATH"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].len());
        cells.max().unwrap_or(0)
    };
    let (index, id, perm, free) = (width(0), width(1), width(2), width(3));
    for row in [&head].into_iter().chain(&rows) {
        writeln!(
            out,
            "{:>index$}  {:>id$}  {:<perm$}  {:>free$}  {}",
            row[0], row[1], row[2], row[3], row[4]
        )?;
    }
    Ok(0)
}

/// Bytes in the largest unit of which there is at least one.
fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "K", "M", "G", "T"] {
        if value < 1024.0 {
            let decimals = usize::from(value < 10.0 && unit != "B");
            return format!("{value:.decimals$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}P")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5K"),
            (20 << 30, "20G"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
