//! The daemon's end of the watch over it: starting the watcher, and telling it what to know.
//!
//! The watcher (`watcher`) is a child of the daemon, not its parent: so the daemon keeps
//! the process number and the exit status that whoever started it waits for.

use super::sys::{self, Fork};
use super::watcher::Watcher;
use crate::control::wire;
use crate::fuse::leftover::Leftover;
use crate::ostext::OsText;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// How long the watcher may take to end when nothing is left to watch.
const PATIENCE: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What the daemon tells its watcher.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// The mount is made; the device is attached.
    Mounted(Leftover),
    /// The control socket is there.
    Listening(OsText),
    /// A thread lives that does as long as the daemon; its pidfd is attached.
    Living,
    /// Nothing is left to watch.
    Done,
}

/// A watcher that runs. Dropped without [`Self::done`] it takes away what it was told of.
#[derive(Debug)]
pub struct Watch {
    channel: OwnedFd,
    watcher: Pid,
}

impl Watch {
    /// Starts the watcher of this process. `keep_stderr`: it has its say on standard error, else in
    /// the system log.
    ///
    /// Must be called while the process has a single thread, and before it has opened what must not
    /// outlive it (locks, branches).
    ///
    /// # Errors
    /// Of socketpair(2) and fork(2), such as EAGAIN where a user may have no more processes.
    pub fn start(keep_stderr: bool) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Before there is a second process, since then this one could be gone already.
        let watcher = Watcher::of_this_process(theirs);
        match sys::fork()? {
            Fork::Child => watcher.run(keep_stderr),
            Fork::Parent(child) => Ok(Self {
                channel: ours,
                watcher: child,
            }),
        }
    }

    /// There is a mount now, and this is its device.
    pub fn mounted(&self, mount: Leftover, device: BorrowedFd<'_>) {
        self.tell(&Word::Mounted(mount), &[device]);
    }

    /// There is a control socket now.
    pub fn listening(&self, socket: &Path) {
        self.tell(&Word::Listening(socket.to_path_buf().into()), &[]);
    }

    /// This is the pidfd of a thread that ends with the daemon and not before.
    pub fn living(&self, thread: BorrowedFd<'_>) {
        self.tell(&Word::Living, &[thread]);
    }

    /// The mount is gone in an orderly way. Returns when the watcher has ended.
    pub fn done(self) {
        self.tell(&Word::Done, &[]);
        let mut fds = [PollFd::new(&self.channel, PollFlags::IN)];
        let ended = loop {
            match poll(&mut fds, Some(&PATIENCE)) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.is_ok_and(|ready| ready > 0),
            }
        };
        // One that was stopped by somebody is nobody's reason to wait.
        let how = (!ended).then_some(WaitPidFlag::WNOHANG);
        // Reaped already where the caller ignores SIGCHLD.
        let _ = waitpid(self.watcher, how);
    }

    /// A watcher that was killed is not replaced: the mount is served without one.
    fn tell(&self, word: &Word, fds: &[BorrowedFd<'_>]) {
        if let Err(errno) = wire::send(&self.channel, word, fds) {
            log::warn!("nobody watches over the mount any more: {errno}");
        }
    }
}
