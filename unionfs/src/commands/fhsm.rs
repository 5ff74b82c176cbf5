//! `uaufs fhsm`: keeps the upper branches of a mount from filling up.

use anyhow::{Context, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::fd::AsFd;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;
use std::cell::Cell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use unionfs::control::Query;
use unionfs::control::ask::{ask_at, open};
use unionfs::control::query::Hello;
use unionfs::control::tiering::{Marks, Pass, Tier, Told, tiers};
use unionfs::errno::Errno;
use unionfs::shown::{ShowPath, Shown};

/// What is moved when.
///
/// Looks at the branches that are marked `+fhsm`, every `fhsm_sec` seconds (an option of the mount,
/// 30 by default). Of a branch that is fuller than its upper mark, the files that were used longest
/// ago go to the next lower marked branch with room, until the lower mark is reached. Files that are
/// open and files of several names stay; the last branch is never drained. Ends on SIGTERM.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct FhsmArgs {
    /// Percent of space or inodes above which a branch is drained
    #[arg(long, value_name = "PERCENT", default_value_t = 75)]
    pub upper: u8,
    /// Percent to which it is drained
    #[arg(long, value_name = "PERCENT", default_value_t = 50)]
    pub lower: u8,
    /// Both for one branch
    #[arg(long = "branch", value_name = "PATH=UPPER:LOWER")]
    pub branches: Vec<String>,
    /// Look once, and end
    #[arg(long)]
    pub once: bool,
    /// Change nothing, tell what would be done, and end
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Print JSON objects, one a line
    #[arg(long)]
    pub json: bool,
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Watches and drains until it is told to end.
///
/// # Errors
/// Marks that make no sense; no mount, or one without two marked branches; another one is at it.
pub fn run(args: &FhsmArgs) -> anyhow::Result<u8> {
    let default = Marks::new(args.upper, args.lower).with_context(|| {
        let (upper, lower) = (args.upper, args.lower);
        format!("--upper {upper} --lower {lower}: --lower must be less, and --upper at most 100")
    })?;
    let single = args
        .branches
        .iter()
        .map(|text| single_marks(text))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let marks = |path: &Path| {
        let own = single.iter().find(|(branch, _)| branch == path);
        own.map_or(default, |(_, marks)| *marks)
    };
    let signals = Signals::take()?;
    let first = tiers(&args.mountpoint, marks)?;
    for (branch, _) in &single {
        if !first.iter().any(|tier| tier.path == *branch) {
            let branch = branch.shown();
            bail!(
                "--branch {branch}: no branch with +fhsm: `uaufs ctl MOUNTPOINT list` shows them"
            );
        }
    }
    // One at a time: a lock on the mount's root, which is no request to its daemon.
    let root = open(&args.mountpoint)?;
    if !args.dry_run {
        lock(&root, &args.mountpoint)?;
    }
    pass(args, &first, &signals)?;
    drop(first);
    while !args.once && !args.dry_run && !signals.wait(interval(&args.mountpoint)?)? {
        // The branches may be others by now.
        pass(args, &tiers(&args.mountpoint, marks)?, &signals)?;
    }
    Ok(0)
}

fn single_marks(text: &str) -> anyhow::Result<(PathBuf, Marks)> {
    let (path, marks) = text.rsplit_once('=').unwrap_or((text, ""));
    let marks = Marks::parse(marks).with_context(|| {
        format!("--branch {text}: PATH=UPPER:LOWER, percent, the lower one less than the upper")
    })?;
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    Ok((path, marks))
}

fn lock(root: impl AsFd, mountpoint: &Path) -> anyhow::Result<()> {
    match flock(root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => bail!(
            "{}: another `uaufs fhsm` is at work (EBUSY): one for each mount",
            mountpoint.shown()
        ),
        Err(errno) => Err(errno.into()),
    }
}

fn interval(mountpoint: &Path) -> anyhow::Result<Duration> {
    let hello: Hello = ask_at(mountpoint, &Query::Hello)?;
    Ok(Duration::from_secs(hello.fhsm_sec.max(1)))
}

fn pass(args: &FhsmArgs, tiers: &[Tier], signals: &Signals) -> anyhow::Result<()> {
    let (failed, error) = (Cell::new(false), Cell::new(None));
    let stop = || failed.get() || signals.came();
    let pass = Pass {
        mountpoint: &args.mountpoint,
        tiers,
        dry_run: args.dry_run,
        stop: &stop,
    };
    pass.run(&mut |told| {
        let line = match args.json {
            true => as_json(&told),
            false => as_text(&told),
        };
        if let Err(why) = writeln!(std::io::stdout().lock(), "{line}") {
            failed.set(true);
            error.set(Some(why));
        }
    })?;
    match error.take() {
        Some(error) => Err(error).context("standard output"),
        None => Ok(()),
    }
}

fn as_text(told: &Told<'_>) -> String {
    let shown = |path: &Path| path.shown().to_string();
    match told {
        Told::Moved {
            path,
            from,
            to,
            bytes,
        } => format!(
            "moved {}: {} -> {} ({bytes} bytes)",
            Shown(path),
            shown(from),
            shown(to)
        ),
        Told::Left { path, reason } => format!("left {}: {reason}", Shown(path)),
        Told::Drained { branch, count: c } => format!(
            "{}: {}% -> {}%, {} moved ({} bytes), {} busy, {} hard-linked, {} left",
            shown(branch),
            c.before,
            c.after,
            c.moved,
            c.bytes,
            c.busy,
            c.hard_linked,
            c.left
        ),
    }
}

fn as_json(told: &Told<'_>) -> String {
    let shown = |path: &Path| json!(path.shown());
    let line = match told {
        Told::Moved {
            path,
            from,
            to,
            bytes,
        } => json!({
            "path": Shown(path), "from": shown(from), "to": shown(to), "bytes": bytes,
        }),
        Told::Left { path, reason } => json!({"path": Shown(path), "left": reason}),
        Told::Drained { branch, count: c } => json!({
            "branch": shown(branch), "before": c.before, "after": c.after, "moved": c.moved,
            "bytes": c.bytes, "busy": c.busy, "hard_linked": c.hard_linked, "left": c.left,
        }),
    };
    line.to_string()
}

/// SIGTERM and SIGINT, as something to wait for.
struct Signals {
    fd: SignalFd,
    came: Cell<bool>,
}

impl Signals {
    fn take() -> anyhow::Result<Self> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let came = Cell::new(false);
        Ok(Self { fd, came })
    }

    fn came(&self) -> bool {
        if !self.came.get() {
            self.came.set(matches!(self.fd.read_signal(), Ok(Some(_))));
        }
        self.came.get()
    }

    /// Waits for one, so long at most; did one come?
    fn wait(&self, time: Duration) -> anyhow::Result<bool> {
        let end = Instant::now() + time;
        while !self.came() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Not shorter than it should be, and longer waits are begun anew.
            let left =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], left) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }
}
