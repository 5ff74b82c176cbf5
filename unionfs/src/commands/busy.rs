//! `uaufs busy`: who keeps a branch from being removed.

use anyhow::bail;
use clap::Args;
use rustc_hash::FxHashSet;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use unionfs::control::ask::ask_at;
use unionfs::control::query::Held;
use unionfs::control::users::{User, device_of, users};
use unionfs::control::{Listed, Query};
use unionfs::ostext::OsText;
use unionfs::shown::ShowPath;

/// Which branch of which mount.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct BusyArgs {
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// The branch's directory
    #[arg(value_name = "BRANCH")]
    pub branch: PathBuf,
}

/// Prints the processes that use what is on this branch only, and what they use of it.
///
/// # Errors
/// No union there, or it has no such branch.
pub fn run(args: &BusyArgs) -> anyhow::Result<u8> {
    let branches: Vec<Listed> = ask_at(&args.mountpoint, &Query::List)?;
    let wanted = std::fs::canonicalize(&args.branch).unwrap_or_else(|_| args.branch.clone());
    let Some(branch) = branches.iter().find(|b| b.path.path() == wanted) else {
        bail!(
            "{}: no such branch (ENOENT): `uaufs ctl MOUNTPOINT list` shows them",
            args.branch.shown()
        );
    };
    let held: Vec<Held> = ask_at(&args.mountpoint, &Query::Held { branch: branch.id })?;
    let found = uses(&args.mountpoint, &held)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let all: Vec<Value> = found.iter().map(as_json).collect();
        serde_json::to_writer_pretty(&mut out, &all)?;
        writeln!(out)?;
        return Ok(0);
    }
    for user in &found {
        writeln!(out, "{user}")?;
    }
    Ok(0)
}

fn uses(mountpoint: &Path, held: &[Held]) -> anyhow::Result<Vec<User>> {
    let nodes: FxHashSet<u64> = held.iter().map(|h| h.ino).collect();
    let paths: FxHashSet<&Path> = held
        .iter()
        .filter_map(|h| Some(h.path.as_ref()?.path()))
        .collect();
    let covered = |path: &Path| paths.contains(path);
    Ok(users(
        device_of(mountpoint)?,
        &|ino| nodes.contains(&ino),
        &covered,
    ))
}

fn as_json(user: &User) -> Value {
    json!({
        "pid": user.pid,
        "name": user.name,
        "use": user.way.name(),
        "ino": user.ino,
        "path": OsText::from(user.path.clone()),
    })
}
