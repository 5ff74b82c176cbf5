//! Signals of a serving process: SIGTERM and SIGINT unmount, SIGUSR1 logs the counters, SIGHUP is
//! ignored.
//!
//! They are blocked in every thread and waited for by one, so that no system call of a worker is
//! interrupted.

use crate::errno::Errno;
use crate::fuse::mount::MountHandle;
use crate::setup::SetupError;
use crate::stats::Stats;
use nix::sys::signal::{SigSet, Signal};
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::thread::gettid;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::Builder;

/// Blocks the signals in this thread and those it will start. Call before there are others.
///
/// # Errors
/// Of sigprocmask(2).
pub fn block() -> io::Result<()> {
    handled().thread_block().map_err(io::Error::from)
}

/// The signals that [`watch`] waits for.
fn handled() -> SigSet {
    [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ]
    .into_iter()
    .collect()
}

/// PIDFD_THREAD of linux/pidfd.h: told of the end of one thread.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// Starts the thread that answers the signals of the process. It lives as long as the process; returns
/// its pidfd, where the kernel has that (Linux 6.9).
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(mount: MountHandle, stats: Arc<Stats>) -> io::Result<Option<OwnedFd>> {
    let (tell, told) = channel();
    Builder::new().name("signals".into()).spawn(move || {
        // Somebody waits for it.
        let _ = tell.send(pidfd_open(gettid(), PIDFD_THREAD).ok());
        let mut ending = false;
        loop {
            match handled().wait() {
                Ok(Signal::SIGUSR1) => log_stats(&stats),
                Ok(Signal::SIGTERM | Signal::SIGINT) => {
                    end(&mount, ending);
                    ending = true;
                }
                // SIGHUP asks for nothing; a failed wait has nothing to say.
                _ => {}
            }
        }
    })?;
    Ok(told.recv().ok().flatten())
}

/// Unmounts. In use, the mount leaves the tree at once and is served until its last user is gone;
/// a second signal (`again`) ends the process right away.
fn end(mount: &MountHandle, again: bool) {
    if again {
        log::warn!("second signal: open files of the mount are cut off");
        std::process::exit(1);
    }
    match mount.unmount(false) {
        Ok(()) => {}
        Err(SetupError::Path {
            errno: Errno::BUSY, ..
        }) => {
            log::warn!("the mount is in use: detached, and served until its last user is gone");
            if let Err(error) = mount.unmount(true) {
                log::error!("{error}");
            }
        }
        Err(error) => {
            log::error!("{error}");
            std::process::exit(1);
        }
    }
}

/// Logs one line per operation that ran.
fn log_stats(stats: &Stats) {
    for op in stats.snapshot() {
        log::warn!(
            "{}: {} requests, {} errors, half below {} us, 99 % below {} us",
            op.op.name(),
            op.count,
            op.errors,
            op.percentile(50),
            op.percentile(99)
        );
    }
}
