//! The command line: what was asked, as a [`Command`]; nothing is done here.
//!
//! The name the program is called by decides who is speaking: a person (`uaufs`), mount(8) and
//! umount(8) with their helpers' conventions (`mount.uaufs`, `umount.uaufs`), or a container engine
//! that believes to call `fuse-overlayfs`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::commands::{
    busy, convert, ctl, diff, fhsm, fsck, merge, mvdown, plink, stats, umount, which,
};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use unionfs::spec::table;
use unionfs::usage;

/// What the program was called as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CalledAs {
    /// `uaufs`, or any name that is none of the others.
    Uaufs,
    /// `mount.uaufs`, `mount.fuse.uaufs`: run by mount(8).
    MountHelper,
    /// `umount.uaufs`, `umount.fuse.uaufs`: run by umount(8).
    UmountHelper,
    /// `fuse-overlayfs`: run by a container engine.
    FuseOverlayfs,
}

/// What is to be done. A new subcommand is a variant here and a function that runs it.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// The form without a subcommand, which mounts.
    #[command(skip)]
    Mount(MountArgs),
    /// Bring a branch that is not in use to another on-disk format
    Convert(convert::ConvertArgs),
    /// Show what a branch changes of those below it
    Diff(diff::DiffArgs),
    /// Show which processes keep a branch from being removed
    Busy(busy::BusyArgs),
    /// Show where an entry of a mount is on its branches
    Which(which::WhichArgs),
    /// Ask and change a live mount
    Ctl(ctl::CtlArgs),
    /// Keep branches from filling up: move what was not used for long to lower ones
    Fhsm(fhsm::FhsmArgs),
    /// Check branches that are not in use, and repair them
    Fsck(fsck::FsckArgs),
    /// Move everything from one writable branch to another below it
    Merge(merge::MergeArgs),
    /// Move files of a mount to a writable branch below
    Mvdown(mvdown::MvdownArgs),
    /// List the pseudo-links of a mount, or make hard links of them
    Plink(plink::PlinkArgs),
    /// Count what was asked of a mount, and what it holds
    Stats(stats::StatsArgs),
    /// Unmount a union
    Umount(umount::UmountArgs),
}

/// A mount that is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct MountArgs {
    /// Serve in the foreground.
    pub foreground: bool,
    /// Log on stderr what happens.
    pub debug: bool,
    /// The `-o` strings, in their order.
    pub options: Vec<OsString>,
    /// A label for the mount table.
    pub source: Option<OsString>,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Who is asking; decides messages and defaults.
    pub called_as: CalledAs,
    /// `mount -f`: check everything, but do not mount.
    pub fake: bool,
    /// `mount -s`: unknown options are warnings.
    pub sloppy: bool,
}

/// What came out of the command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Something to run.
    Run(Command),
    /// Help or version, to be printed on stdout.
    Print(String),
}

/// A command line that makes no sense: one line, without the name of the program.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError {
    text: String,
    /// The program's exit code.
    pub code: u8,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for UsageError {}

impl CalledAs {
    /// The role that goes with `argv[0]`.
    pub fn from_argv0(argv0: &OsStr) -> Self {
        match Path::new(argv0).file_name().and_then(OsStr::to_str) {
            Some("mount.uaufs" | "mount.fuse.uaufs" | "mount.fuse3.uaufs") => Self::MountHelper,
            Some("umount.uaufs" | "umount.fuse.uaufs" | "umount.fuse3.uaufs") => Self::UmountHelper,
            Some("fuse-overlayfs") => Self::FuseOverlayfs,
            _ => Self::Uaufs,
        }
    }
}

/// Parses the whole command line, `argv[0]` included.
///
/// # Errors
/// [`UsageError`]: an unknown flag, or something missing or superfluous.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, UsageError> {
    let args: Vec<OsString> = args.into_iter().collect();
    let called_as = args
        .first()
        .map_or(CalledAs::Uaufs, |name| CalledAs::from_argv0(name));
    match called_as {
        CalledAs::Uaufs => run::<Uaufs>(args),
        CalledAs::MountHelper => run::<MountHelper>(args),
        CalledAs::UmountHelper => run::<UmountHelper>(args),
        CalledAs::FuseOverlayfs => run::<FuseOverlayfs>(args),
    }
}

/// A way in which the program is called.
trait Role: CommandFactory + FromArgMatches {
    /// The name in messages of clap.
    const NAME: &'static str;

    fn command_of(self) -> Result<Command, UsageError>;
}

fn run<R: Role>(args: Vec<OsString>) -> Result<Parsed, UsageError> {
    let command = R::command()
        .after_help(format!(
            "OPTIONS of -o (docs/options.md):\n\n{}",
            table::help()
        ))
        .mut_subcommands(|subcommand| subcommand.version(env!("CARGO_PKG_VERSION")));
    let subcommand = args
        .get(1)
        .and_then(|word| command.find_subcommand(word))
        .map(|subcommand| format!("{} {}", R::NAME, subcommand.get_name()));
    let parsed = command
        .try_get_matches_from(args)
        .and_then(|matches| R::from_arg_matches(&matches));
    match parsed {
        Ok(role) => role.command_of().map(Parsed::Run),
        Err(error) if !error.use_stderr() => Ok(Parsed::Print(error.to_string())),
        Err(error) => {
            let name = subcommand.as_deref().unwrap_or(R::NAME);
            Err(UsageError {
                text: usage::one_line(name, &error),
                code: match name {
                    "uaufs fsck" => fsck::CANNOT_CHECK,
                    _ => 1,
                },
            })
        }
    }
}

/// A union filesystem in userspace with the semantics of AUFS.
#[derive(Debug, Parser)]
#[command(
    name = "uaufs",
    version,
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = true,
    override_usage = "uaufs [-f] [-d] [-o OPT[,OPT...]]... [SOURCE] MOUNTPOINT\n       uaufs SUBCOMMAND ..."
)]
struct Uaufs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Serve in the foreground
    #[arg(short, long)]
    foreground: bool,
    /// Log on stderr what happens
    #[arg(short, long)]
    debug: bool,
    /// Mount options, see below
    #[arg(short, long = "options", value_name = "OPT[,OPT...]")]
    options: Vec<OsString>,
    #[command(flatten)]
    place: Place,
}

/// Source and mount point.
#[derive(Args, Debug)]
struct Place {
    /// A label for the mount table (default "uaufs"), and where to mount
    #[arg(value_names = ["SOURCE", "MOUNTPOINT"], num_args = 0..=2)]
    operands: Vec<OsString>,
}

impl Place {
    /// The last operand is the mount point, one before it the source.
    fn split(self, name: &str) -> Result<(Option<OsString>, PathBuf), UsageError> {
        let mut operands = self.operands;
        let mountpoint = operands.pop().filter(|mountpoint| !mountpoint.is_empty());
        let mountpoint = mountpoint.ok_or_else(|| {
            let text = format!("MOUNTPOINT is missing: `{name} --help` shows the usage");
            UsageError { text, code: 1 }
        })?;
        Ok((operands.pop(), mountpoint.into()))
    }
}

impl Role for Uaufs {
    const NAME: &'static str = "uaufs";

    fn command_of(self) -> Result<Command, UsageError> {
        if let Some(command) = self.command {
            return Ok(command);
        }
        let (source, mountpoint) = self.place.split(Self::NAME)?;
        Ok(Command::Mount(MountArgs {
            foreground: self.foreground,
            debug: self.debug,
            options: self.options,
            source,
            mountpoint,
            called_as: CalledAs::Uaufs,
            fake: false,
            sloppy: false,
        }))
    }
}

/// Mounts a union; run by mount(8) for the type uaufs (mount(8), "External helpers").
#[derive(Debug, Parser)]
#[command(name = "mount.uaufs", version)]
struct MountHelper {
    /// A label for the mount table
    source: OsString,
    /// Where to mount
    mountpoint: PathBuf,
    /// Tolerate unknown options
    #[arg(short)]
    sloppy: bool,
    /// Check everything, but do not mount
    #[arg(short)]
    fake: bool,
    /// Do not write /etc/mtab (it is never written)
    #[arg(short)]
    no_mtab: bool,
    /// Say more
    #[arg(short)]
    verbose: bool,
    /// Mount options, see below
    #[arg(short, value_name = "OPT[,OPT...]")]
    options: Vec<OsString>,
    /// Type of filesystem, as mount(8) was told
    #[arg(short, value_name = "TYPE")]
    types: Option<OsString>,
}

impl Role for MountHelper {
    const NAME: &'static str = "mount.uaufs";

    fn command_of(self) -> Result<Command, UsageError> {
        // The type only chose this helper, and there is no mtab to leave alone.
        let Self {
            types: _,
            no_mtab: _,
            ..
        } = self;
        Ok(Command::Mount(MountArgs {
            foreground: false,
            debug: self.verbose,
            options: self.options,
            source: Some(self.source).filter(|source| source != "none"),
            mountpoint: self.mountpoint,
            called_as: CalledAs::MountHelper,
            fake: self.fake,
            sloppy: self.sloppy,
        }))
    }
}

/// Unmounts a union; run by umount(8) for the type uaufs (umount(8), "External helpers").
#[derive(Debug, Parser)]
#[command(name = "umount.uaufs", version)]
struct UmountHelper {
    /// Where the union is mounted
    mountpoint: PathBuf,
    /// Do not write /etc/mtab (it is never written)
    #[arg(short)]
    no_mtab: bool,
    /// Detach now, clean up when the last user is gone
    #[arg(short)]
    lazy: bool,
    /// Say more
    #[arg(short)]
    verbose: bool,
    /// Type of filesystem, as umount(8) was told
    #[arg(short, value_name = "TYPE")]
    types: Option<OsString>,
}

impl Role for UmountHelper {
    const NAME: &'static str = "umount.uaufs";

    fn command_of(self) -> Result<Command, UsageError> {
        // As above; and an unmount has nothing to say beyond its errors.
        let Self {
            types: _,
            no_mtab: _,
            verbose: _,
            lazy,
            mountpoint,
        } = self;
        Ok(Command::Umount(umount::UmountArgs { lazy, mountpoint }))
    }
}

/// What container engines look for: they check for 1.10 or later, and 1.13 is what is matched.
const FUSE_OVERLAYFS_VERSION: &str =
    concat!("version 1.13 (uaufs ", env!("CARGO_PKG_VERSION"), ")");

/// A drop-in replacement of fuse-overlayfs (fuse-overlayfs(1)).
#[derive(Debug, Parser)]
#[command(name = "fuse-overlayfs:", version = FUSE_OVERLAYFS_VERSION)]
#[command(override_usage = "fuse-overlayfs [-f] [-d] [-s] -o OPT[,OPT...] [SOURCE] MOUNTPOINT")]
struct FuseOverlayfs {
    /// Serve in the foreground
    #[arg(short)]
    foreground: bool,
    /// Log on stderr what happens; implies -f
    #[arg(short, long)]
    debug: bool,
    /// One worker thread
    #[arg(short)]
    single: bool,
    /// Mount options, see below
    #[arg(short, value_name = "OPT[,OPT...]")]
    options: Vec<OsString>,
    #[command(flatten)]
    place: Place,
}

impl Role for FuseOverlayfs {
    const NAME: &'static str = "fuse-overlayfs";

    fn command_of(self) -> Result<Command, UsageError> {
        let (source, mountpoint) = self.place.split(Self::NAME)?;
        let mut options = self.options;
        if self.single {
            options.push("threads=1".into());
        }
        Ok(Command::Mount(MountArgs {
            foreground: self.foreground || self.debug,
            debug: self.debug,
            options,
            source,
            mountpoint,
            called_as: CalledAs::FuseOverlayfs,
            fake: false,
            sloppy: false,
        }))
    }
}

#[cfg(test)]
mod tests;
