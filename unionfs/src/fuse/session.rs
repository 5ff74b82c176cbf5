//! [`serve`]: runs the request loop of one mount until the mount is gone.

use super::adapter::Adapter;
use super::notify::{EffectQueue, NotifyThread, effects};
use super::plan::IoPlan;
use crate::errno::{Errno, Result};
use crate::setup::SetupError;
use crate::stats::Stats;
use crate::sys::limits;
use crate::types::{Caller, NodeId};
use crate::union::Union;
use fuser::{Config, Session, SessionACL};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

/// Answers an ioctl(2) on a node of the mount: who asks (in ids of the mount, not mapped), the node, the command and its input; the
/// result is the output, cut to what the command can carry. ENOTTY for unknown commands.
pub type IoctlHook = Arc<dyn Fn(&Caller, NodeId, u32, &[u8]) -> Result<Vec<u8>> + Send + Sync>;

/// Called once, when INIT is done and the mount answers, with the plan as the kernel left it.
pub type ReadyHook = Box<dyn FnOnce(&IoPlan) + Send>;

/// How to serve a mount.
pub struct ServeConfig {
    /// How opens are answered and data flows.
    pub plan: IoPlan,
    /// Worker threads, at least 1; see [`default_threads`].
    pub threads: usize,
    /// Give each worker its own descriptor of the device (FUSE_DEV_IOC_CLONE). Needs /dev/fuse to
    /// be open-able in this process; left alone when it is not. False for anything but /dev/fuse.
    pub clone_device: bool,
    /// What the kernel is to be told, see [`super::notify::effects`].
    pub effects: Option<EffectQueue>,
    /// Control queries.
    pub ioctl: Option<IoctlHook>,
    /// Counts the requests.
    pub stats: Arc<Stats>,
    /// Readiness.
    pub on_ready: Option<ReadyHook>,
}

impl ServeConfig {
    /// The usual configuration for a plan: [`default_threads`] workers with a device each.
    pub fn new(plan: IoPlan) -> Self {
        Self {
            plan,
            threads: default_threads(),
            clone_device: true,
            effects: None,
            ioctl: None,
            stats: Arc::default(),
            on_ready: None,
        }
    }
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServeEnd {
    /// The last user of the mount is gone, or the connection was aborted.
    Unmounted,
}

/// Worker threads of a mount that asks for no number: one per core, at most 4. More only cost
/// wake-ups: a round trip is bound by the cores.
pub fn default_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(4)
}

/// Serves `union` on `device`, an open /dev/fuse whose mount exists (or is being made by somebody
/// else right now). Blocks until the mount is gone, then shuts the union down. Also raises
/// RLIMIT_NOFILE of the process to its hard limit.
///
/// Any descriptor that yields one message per read will do as `device`, such as one end of a
/// SOCK_SEQPACKET pair in tests.
///
/// # Errors
/// [`SetupError::System`] when the handshake fails, threads cannot be started or the device fails.
pub fn serve(
    union: Arc<Union>,
    device: OwnedFd,
    config: ServeConfig,
) -> core::result::Result<ServeEnd, SetupError> {
    limits::raise_open_files();
    let end = run(&union, device, config);
    union.shutdown();
    end
}

/// Handshake, then the request loop.
fn run(
    union: &Arc<Union>,
    device: OwnedFd,
    config: ServeConfig,
) -> core::result::Result<ServeEnd, SetupError> {
    let settled = Arc::new(OnceLock::new());
    let adapter = Adapter::new(Arc::clone(union), &config, Arc::clone(&settled));
    let mut session_config = Config::default();
    session_config.n_threads = Some(config.threads.max(1));
    session_config.clone_fd = config.clone_device && config.threads > 1 && device_opens();

    let notified = device
        .try_clone()
        .map_err(|error| system("cannot duplicate the FUSE device", &error))?;
    let session =
        Session::from_fd(adapter, device, SessionACL::All, session_config).map_err(|error| {
            system(
                "FUSE handshake failed: was the mount made, and is it still there?",
                &error,
            )
        })?;
    let queue = config.effects.unwrap_or_else(|| effects().1);
    let sender = queue.sender();
    let notify = NotifyThread::start(queue, session.notifier(), notified)
        .map_err(|error| system("cannot start the notification thread", &error))?;
    union.set_sink(move |effect| sender.send(effect));
    union.start_watching();
    let plan = settled.get().unwrap_or(&config.plan);
    log::info!("{plan}");
    if let Some(ready) = config.on_ready {
        ready(plan);
    }

    let end = session.run();
    union.stop_watching();
    notify.stop();
    match end {
        Err(error) if !connection_ended(&error) => {
            Err(system("the FUSE connection failed", &error))
        }
        _ => Ok(ServeEnd::Unmounted),
    }
}

/// What a worker meets when the last user of the mount goes in the moment in which it answers or
/// asks for the next request: no failure, the same end (fs/fuse/dev.c).
fn connection_ended(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNABORTED | libc::ENODEV | libc::ENOTCONN)
    )
}

/// Can each worker open a device of its own?
fn device_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(super::mount::DEVICE)
        .is_ok()
}

/// An I/O error with what it means.
fn system(what: &str, error: &io::Error) -> SetupError {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    SetupError::System {
        what: format!("{what}: {error}"),
        errno,
    }
}
