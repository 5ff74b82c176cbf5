//! What is left when a launcher was killed: taken away by a guard that outlives it, or by the next
//! command that comes across the record.

use crate::cgroup::group;
use crate::error::Explain;
use crate::manage;
use crate::state::{self, Record, Status, Store};
use crate::step::dev;
use crate::sync::{Channel, Go};
use crate::sys::{self, ChildProcess, Cloned};
use crate::terminal::Saved;
use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// Seconds that a process of the container may take to end.
const END_SECONDS: i64 = 5;
/// Exit code of a container whose launcher was killed.
const KILLED: u8 = 137;

/// A process that waits for the launcher's end and cleans up if that comes too early.
pub struct Guard {
    channel: Channel,
    process: ChildProcess,
}

impl Guard {
    /// Starts a guard for a container that leaves something behind; others need none.
    ///
    /// It must be started before the launcher locks the record as alive, or the guard would hold
    /// the lock as well.
    pub fn start(store: &Store, record: &Record) -> Result<Option<Self>> {
        if record.cgroups.is_empty() && !record.spec.remove && !record.spec.tty {
            return Ok(None);
        }
        // Before the launcher changes it.
        let terminal = record.spec.tty.then(Saved::of_stdin).flatten();
        let (ours, theirs) = Channel::pair()?;
        match sys::clone_process(0).explain(|| "starting the launcher's guard".into())? {
            Cloned::Parent(process) => Ok(Some(Self {
                channel: ours,
                process,
            })),
            Cloned::Child => {
                drop(ours);
                watch(store, &record.id, &theirs, terminal.as_ref());
                sys::exit_now(0)
            }
        }
    }

    /// The launcher has cleaned up by itself.
    pub fn dismiss(self) {
        let _ = self.channel.send(&Go);
        self.process.reap();
    }
}

fn watch(store: &Store, id: &str, launcher: &Channel, terminal: Option<&Saved>) {
    // Not killed along with the launcher by its terminal, and nobody's reason to wait.
    let _ = rustix::process::setsid();
    let _ = sys::block_signals();
    let _ = dev::null_stdio();
    if let Ok(None) = launcher.receive::<Go>() {
        terminal.into_iter().for_each(Saved::restore);
        let _ = match store.load(id) {
            Ok(record) => settle(store, record).map(drop),
            Err(_) => store.sweep(),
        };
    }
}

/// Ends and removes what a killed launcher left of a container. Returns the record as it is then:
/// `None` when the container was to be removed at its end.
pub fn settle(store: &Store, mut record: Record) -> Result<Option<Record>> {
    if record.status == Status::Exited || store.is_alive(&record.id) {
        return Ok(Some(record));
    }
    for process in [record.init, record.daemon].into_iter().flatten() {
        let Some(pidfd) = process.open() else {
            continue;
        };
        let _ = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
        let timeout = Timespec {
            tv_sec: END_SECONDS,
            tv_nsec: 0,
        };
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    }
    let groups: Vec<PathBuf> = record
        .cgroups
        .iter()
        .map(|dir| dir.path().to_path_buf())
        .collect();
    let left = group::remove(&groups);
    record.cgroups = left.into_iter().map(Into::into).collect();
    record.status = Status::Exited;
    record.exit_code = Some(KILLED);
    record.finished = Some(state::now());
    record.reason = Some("the launcher was killed".into());
    (record.supervisor, record.init, record.daemon) = (None, None, None);
    store.forget_alive(&record.id);
    if record.spec.remove {
        manage::remove_files(store, &record)?;
        return Ok(None);
    }
    // If that cannot be written now (ENOSPC), the next command comes to the same end.
    let _ = store.save(&record);
    Ok(Some(record))
}
