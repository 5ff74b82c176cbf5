//! `uaufs`: parse, run, exit code.

mod mount_command;

use mount_command::MountJob;
use std::process::ExitCode;
use unionfs::spec::{BranchPerm, BranchSpec, Grammar, MountFlags, MountSpec, Options};

fn main() -> ExitCode {
    match parse().and_then(mount_command::run) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("uaufs: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Stand-in for the command line: `[-f] [-d] -o br=/rw=rw:/ro=ro MOUNTPOINT`.
fn parse() -> anyhow::Result<MountJob> {
    let grammar = Grammar::Aufs;
    let mut spec = MountSpec {
        grammar,
        branches: Vec::new(),
        options: Options::defaults(grammar),
        mount: MountFlags::default(),
        warnings: Vec::new(),
    };
    let (mut foreground, mut debug, mut mountpoint) = (false, false, None);
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-f") => foreground = true,
            Some("-d") => debug = true,
            Some("-o") => {
                let options = words.next().unwrap_or_default();
                for option in options.to_string_lossy().split(',') {
                    match option.split_once('=') {
                        Some(("br", list)) => {
                            for item in list.split(':') {
                                let (path, perm) = item.split_once('=').unwrap_or((item, "ro"));
                                let perm = if perm == "rw" {
                                    BranchPerm::RW
                                } else {
                                    BranchPerm::RO
                                };
                                spec.branches.push(BranchSpec {
                                    path: path.into(),
                                    perm,
                                    format: None,
                                    workdir: None,
                                });
                            }
                        }
                        _ if option == "udba=none" => spec.options.udba = unionfs::spec::Udba::None,
                        _ => anyhow::bail!("{option}: unknown option"),
                    }
                }
            }
            _ => mountpoint = Some(word.into()),
        }
    }
    let mountpoint = mountpoint.ok_or_else(|| anyhow::anyhow!("MOUNTPOINT: missing"))?;
    Ok(MountJob {
        spec,
        mountpoint,
        source: "uaufs".into(),
        subtype: "uaufs".into(),
        foreground,
        debug,
    })
}
