//! The mount command: from a parsed request to a served mount and its end.

use anyhow::Context;
use log::LevelFilter;
use parking_lot::Mutex;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use unionfs::control::live::Live;
use unionfs::control::place::{Listening, listen_for};
use unionfs::control::query::Queries;
use unionfs::control::{new_instance, server};
use unionfs::daemon::watch::Watch;
use unionfs::daemon::{self, Process, Readiness, logger, signals};
use unionfs::fuse::leftover::Leftover;
use unionfs::fuse::notify::effects;
use unionfs::fuse::{
    IoPlan, MountRequest, Mounted, ServeConfig, check_mountpoint, mount, plan, serve,
};
use unionfs::shown::ShowPath;
use unionfs::spec::MountSpec;
use unionfs::union::Union;

/// A mount as asked for on the command line.
pub struct MountJob {
    /// The union.
    pub spec: MountSpec,
    /// Where.
    pub mountpoint: PathBuf,
    /// Label in mount(8).
    pub source: OsString,
    /// `fuse.SUBTYPE` in mount(8).
    pub subtype: String,
    /// `-f`: stay in the foreground.
    pub foreground: bool,
    /// `-d`: debug log on standard error.
    pub debug: bool,
}

/// Mounts and, in the daemon or in the foreground, serves until the mount is gone. Returns the
/// exit code.
///
/// # Errors
/// Whatever keeps the union from being mounted; nothing stays mounted then.
pub fn run(mut job: MountJob) -> anyhow::Result<u8> {
    let level = match (job.debug, job.foreground) {
        (true, _) => LevelFilter::Debug,
        (false, true) => LevelFilter::Info,
        (false, false) => LevelFilter::Warn,
    };
    logger::init(level);
    check_mountpoint(&job.mountpoint)?;
    // The daemon changes directory, so nothing may stay relative.
    job.mountpoint = std::fs::canonicalize(&job.mountpoint)
        .with_context(|| format!("{}", job.mountpoint.shown()))?;
    for branch in &mut job.spec.branches {
        branch.path = std::path::absolute(&branch.path)?;
        branch.workdir = branch
            .workdir
            .as_deref()
            .map(std::path::absolute)
            .transpose()?;
    }
    let plan = IoPlan::choose(&job.spec, plan::may_passthrough())?;
    for warning in job.spec.warnings.iter().chain(&plan.warnings) {
        log::warn!("{warning}");
    }
    if job.foreground {
        return mount_and_serve(job, plan, None);
    }
    match daemon::background().context("cannot go to the background")? {
        Process::Command(code) => Ok(code),
        Process::Daemon(readiness) => mount_and_serve(job, plan, Some(readiness)),
    }
}

/// Opens the branches, mounts, serves.
fn mount_and_serve(
    job: MountJob,
    plan: IoPlan,
    readiness: Option<Readiness>,
) -> anyhow::Result<u8> {
    // Before there are threads, and before branches are opened and locked.
    let watch = supervise(&job);
    // Before mounting, so that branches at, above or below the mount point are not covered by it.
    let union = Arc::new(Union::open(&job.spec)?);
    // From here on a signal must not leave a mount without a server.
    signals::block().context("cannot block signals")?;
    let asked_read_only = job.spec.mount.read_only;
    let Mounted {
        device,
        handle,
        warnings,
    } = mount(&MountRequest {
        mountpoint: job.mountpoint.clone(),
        source: job.source,
        subtype: job.subtype,
        flags: job.spec.mount,
        read_only: union.read_only(),
    })?;
    if let Some(watch) = &watch {
        watch.mounted(Leftover::of(&handle), device.as_fd());
    }
    for warning in warnings {
        log::warn!("{warning}");
    }
    let mut config = ServeConfig::new(plan);
    if let Some(threads) = job.spec.options.threads {
        config.threads = threads;
    }
    let (live, keep_stderr) = (handle.clone(), job.debug);
    let settled = Arc::new(OnceLock::new());
    let plan = Arc::clone(&settled);
    config.on_ready = Some(Box::new(move |settled| {
        // INIT comes once.
        let _ = plan.set(settled.clone());
        live.raise_readahead();
        if let Some(readiness) = readiness {
            announce(readiness, keep_stderr);
        }
    }));
    // Taken away again when serving has ended.
    let (effects, queue) = effects();
    config.effects = Some(queue);
    let live = Live {
        union: Arc::clone(&union),
        effects,
        mountpoint: job.mountpoint,
        grammar: job.spec.grammar,
        asked_read_only: AtomicBool::new(asked_read_only),
        plan: settled,
        changing: Mutex::new(()),
    };
    let listening = control(live, &mut config);
    if let (Some(watch), Some(listening)) = (&watch, &listening) {
        watch.listening(&listening.path);
    }
    let thread = signals::watch(handle.clone(), Arc::clone(&config.stats))
        .context("cannot start the signal thread")?;
    if let (Some(watch), Some(thread)) = (&watch, &thread) {
        watch.living(thread.as_fd());
    }
    drop(thread);
    let end = serve(union, device, config).map(|_| 0).map_err(|error| {
        // Nothing answers there any more: do not leave a dead mount behind.
        if let Err(error) = handle.unmount(true) {
            log::debug!("{error}");
        }
        error.into()
    });
    drop(listening);
    if let Some(watch) = watch {
        watch.done();
    }
    end
}

/// Starts the watcher, unless none is wanted or none can be had.
fn supervise(job: &MountJob) -> Option<Watch> {
    if !job.spec.options.supervise {
        return None;
    }
    Watch::start(job.foreground || job.debug)
        .inspect_err(|error| log::warn!("nobody watches over the mount: {error}"))
        .ok()
}

/// Lets the mount be asked and, where a socket can be made, changed.
fn control(live: Live, config: &mut ServeConfig) -> Option<Listening> {
    let instance = new_instance();
    let union = Arc::clone(&live.union);
    let handler = Arc::new(live);
    let listening = listen_for(&instance)
        .map_err(std::io::Error::from)
        .and_then(|listening| server::start(&listening, handler).map(|()| listening))
        .inspect_err(|error| log::info!("the live mount cannot be changed: {error}"))
        .ok();
    let queries = Queries {
        union,
        instance,
        stats: Arc::clone(&config.stats),
        socket: listening.as_ref().map(|l| l.path.clone()),
        hide_paths: false,
    };
    config.ioctl = Some(queries.hook());
    listening
}

/// Leaves the terminal and lets the command return.
fn announce(readiness: Readiness, keep_stderr: bool) {
    if !keep_stderr {
        logger::use_syslog();
    }
    if let Err(error) = readiness.announce(keep_stderr) {
        log::error!("cannot leave the terminal: {error}");
    }
}
