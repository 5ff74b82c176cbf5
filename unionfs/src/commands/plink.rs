//! `uaufs plink`.

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use unionfs::control::{Client, Request};
use unionfs::ostext::OsText;
use unionfs::shown::ShowPath;

/// What is to be done with the pseudo-links of a mount.
///
/// A lower file with several names that was copied up is found by the others through a pseudo-link,
/// also after a remount. `flush` makes hard links of all names on the writable branch, so that it
/// needs none.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct PlinkArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// What is to be done
    #[command(subcommand)]
    pub action: Action,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Action {
    /// Show the pseudo-linked files with all their names
    List,
    /// Make every name a hard link on the branch of the data, and drop the pseudo-links
    Flush,
}

/// A name of a pseudo-linked file, and the number of its directory.
type Found = (u64, PathBuf);

/// Lists or flushes.
///
/// # Errors
/// No mount there, one that may not be changed, or a directory that cannot be read.
pub fn run(args: &PlinkArgs) -> anyhow::Result<u8> {
    let client = Client::connect(&args.mountpoint)?;
    let numbers = client.request(&Request::Plinks, &[], &mut |_| {})?;
    let numbers: BTreeSet<u64> = serde_json::from_value(numbers)?;
    let names = if numbers.is_empty() {
        BTreeMap::new()
    } else {
        names_of(&args.mountpoint, &numbers)?
    };
    match args.action {
        Action::List => {
            list(&names, args.json)?;
            Ok(0)
        }
        Action::Flush => {
            // The daemon does not wait for a client that is busy listing a large tree.
            let client = Client::connect(&args.mountpoint)?;
            flush(&client, &numbers, &names, args.json)
        }
    }
}

fn list(names: &BTreeMap<u64, Vec<Found>>, json: bool) -> anyhow::Result<()> {
    let shown = |path: &Path| path.shown().to_string();
    if json {
        let all: Vec<Value> = names
            .iter()
            .map(|(ino, found)| {
                let paths: Vec<_> = found
                    .iter()
                    .map(|(_, path)| OsText::from(path.clone()))
                    .collect();
                serde_json::json!({"ino": ino, "names": paths})
            })
            .collect();
        println!("{}", Value::Array(all));
        return Ok(());
    }
    for (ino, found) in names {
        for (_, path) in found {
            println!("{ino:>20} {}", shown(path));
        }
    }
    Ok(())
}

fn flush(
    client: &Client,
    numbers: &BTreeSet<u64>,
    names: &BTreeMap<u64, Vec<Found>>,
    json: bool,
) -> anyhow::Result<u8> {
    let (mut linked, mut kept) = (0, 0);
    for (parent, path) in names.values().flatten() {
        let shown = path.shown();
        let name = path.file_name().context("a name")?.to_owned();
        // The daemon knows a directory as long as the kernel does, which may forget what nobody uses.
        let _known = path
            .parent()
            .map(hold)
            .transpose()
            .with_context(|| format!("plink flush: {shown}"))?;
        let request = Request::PlinkUp {
            parent: *parent,
            name: OsText(name),
        };
        client
            .request(&request, &[], &mut |_| {})
            .with_context(|| format!("plink flush: {shown}"))?;
        linked += 1;
    }
    for ino in numbers {
        let request = Request::PlinkDrop { ino: *ino };
        if let Err(failure) = client.request(&request, &[], &mut |_| {}) {
            eprintln!(
                "uaufs: plink flush: {ino}: {failure}: it is open, or has names that are not shown"
            );
            kept += 1;
        }
    }
    if json {
        println!(
            "{}",
            serde_json::json!({"names": linked, "files": numbers.len() - kept, "kept": kept})
        );
    }
    Ok(if kept == 0 { 0 } else { 4 })
}

/// Has a directory open, without a need to read it.
fn hold(dir: &Path) -> std::io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(dir)
}

/// Every name below a directory whose file has one of these numbers.
fn names_of(top: &Path, numbers: &BTreeSet<u64>) -> anyhow::Result<BTreeMap<u64, Vec<Found>>> {
    let device = std::fs::symlink_metadata(top)?.dev();
    let mut names: BTreeMap<u64, Vec<Found>> = BTreeMap::new();
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        let shown = || format!("{}", dir.shown());
        let meta = std::fs::symlink_metadata(&dir).with_context(shown)?;
        if meta.dev() != device {
            continue;
        }
        for entry in std::fs::read_dir(&dir).with_context(shown)? {
            let entry = entry.with_context(shown)?;
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else if numbers.contains(&entry.ino()) {
                names
                    .entry(entry.ino())
                    .or_default()
                    .push((meta.ino(), entry.path()));
            }
        }
    }
    Ok(names)
}
