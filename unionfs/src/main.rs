//! `uaufs`: parse, run, exit code.

mod cli;
mod commands;
mod mount_command;

use std::io::Write as _;
use std::process::ExitCode;

use cli::{CalledAs, Command, MountArgs, Parsed, UsageError};
use mount_command::MountJob;
use unionfs::spec::aufs::parse_remount;
use unionfs::spec::{MountSpec, Unknown};

fn main() -> ExitCode {
    match parse_and_run() {
        Ok(code) => ExitCode::from(code),
        // As a program that SIGPIPE ends: whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::from(128 + 13),
        Err(error) => {
            eprintln!("uaufs: {error:#}");
            let usage = error.downcast_ref::<UsageError>();
            ExitCode::from(usage.map_or(1, |error| error.code))
        }
    }
}

/// Did the reader of the output go away?
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = match cause.downcast_ref::<serde_json::Error>() {
            Some(json) => json.io_error_kind(),
            None => cause.downcast_ref::<std::io::Error>().map(|e| e.kind()),
        };
        kind == Some(std::io::ErrorKind::BrokenPipe)
    })
}

fn parse_and_run() -> anyhow::Result<u8> {
    match cli::parse(std::env::args_os())? {
        Parsed::Print(text) => {
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(0)
        }
        Parsed::Run(Command::Mount(args)) => mount(args),
        Parsed::Run(Command::Busy(args)) => commands::busy::run(&args),
        Parsed::Run(Command::Which(args)) => commands::which::run(&args),
        Parsed::Run(Command::Ctl(args)) => commands::ctl::run(&args),
        Parsed::Run(Command::Convert(args)) => commands::convert::run(&args),
        Parsed::Run(Command::Diff(args)) => commands::diff::run(&args),
        Parsed::Run(Command::Fhsm(args)) => commands::fhsm::run(&args),
        Parsed::Run(Command::Fsck(args)) => commands::fsck::run(&args),
        Parsed::Run(Command::Merge(args)) => commands::merge::run(&args),
        Parsed::Run(Command::Mvdown(args)) => commands::mvdown::run(&args),
        Parsed::Run(Command::Plink(args)) => commands::plink::run(&args),
        Parsed::Run(Command::Stats(args)) => commands::stats::run(&args),
        Parsed::Run(Command::Umount(args)) => commands::umount::run(&args),
    }
}

fn mount(args: MountArgs) -> anyhow::Result<u8> {
    if let Some(changes) = parse_remount(&args.options) {
        return commands::ctl::change_all(&args.mountpoint, changes?);
    }
    let unknown = if args.sloppy {
        Unknown::Warn
    } else {
        Unknown::Refuse
    };
    let mut spec = MountSpec::parse_with(&args.options, unknown)?;
    if args.fake {
        unionfs::fuse::check_mountpoint(&args.mountpoint)?;
        return Ok(0);
    }
    // The name under which its users look for the mount in the mount table.
    let subtype = match args.called_as {
        CalledAs::FuseOverlayfs => "fuse-overlayfs",
        _ => "uaufs",
    };
    let label = spec.mount.fsname.take().or(args.source);
    mount_command::run(MountJob {
        spec,
        mountpoint: args.mountpoint,
        source: label.unwrap_or_else(|| subtype.into()),
        subtype: subtype.into(),
        foreground: args.foreground,
        debug: args.debug,
    })
}
