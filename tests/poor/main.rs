//! `poorfs SOURCE MOUNTPOINT [--no-link] [--GRANTED...]`: mirrors a directory as a filesystem that lacks
//! much, as a program in the foreground. See docs/reliability.md, "Poor branches".

#[path = "mod.rs"]
mod poor;

use anyhow::{Context, Result, bail};
use poor::Lacks;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: poorfs SOURCE MOUNTPOINT [OPTION...]

SOURCE shows at MOUNTPOINT without extended attributes, device nodes, types in
listings, flags of rename, O_TMPFILE and file handles, with times of 2 seconds
and without birth times.

  --xattr --device --d-type --rename-flags --tmpfile --handle --fine-times
                 what is named it can
  --no-link      nor has it hard links";

struct Options {
    source: PathBuf,
    mountpoint: PathBuf,
    lacks: Lacks,
}

fn parse() -> Result<Option<Options>> {
    let mut paths = Vec::new();
    let mut lacks = Lacks::default();
    for word in std::env::args_os().skip(1) {
        match word.to_str() {
            Some("--xattr") => lacks.xattr = false,
            Some("--device") => lacks.device = false,
            Some("--d-type") => lacks.d_type = false,
            Some("--rename-flags") => lacks.rename_flags = false,
            Some("--tmpfile") => lacks.tmpfile = false,
            Some("--handle") => lacks.handle = false,
            Some("--fine-times") => lacks.fine_times = false,
            Some("--no-link") => lacks.link = true,
            Some("-h" | "--help") => return Ok(None),
            Some(option) if option.starts_with('-') => bail!("{option}: no such option\n{USAGE}"),
            _ => paths.push(PathBuf::from(word)),
        }
    }
    let [source, mountpoint]: [PathBuf; 2] = paths.try_into().ok().context(USAGE)?;
    Ok(Some(Options {
        source,
        mountpoint,
        lacks,
    }))
}

fn main() -> ExitCode {
    match parse().and_then(|options| options.as_ref().map_or_else(help, run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("poorfs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn help() -> Result<()> {
    println!("{USAGE}");
    Ok(())
}

fn run(options: &Options) -> Result<()> {
    // One descriptor for each file that the kernel knows.
    let most = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: most,
        maximum: most,
    };
    setrlimit(Resource::Nofile, limit)?;
    for worker in poor::mount(&options.source, &options.mountpoint, options.lacks)? {
        worker.join().ok().context("a worker panicked")??;
    }
    Ok(())
}
