//! The watcher: a small process beside the daemon that takes the mount away when the daemon dies.
//!
//! It has a second descriptor of the FUSE device. So when the daemon dies the connection stays:
//! whoever uses the mount waits, for as long as it takes to detach it, and gets an error when the
//! descriptor is closed then; nobody meets a mount that answers ENOTCONN until somebody removes it.
//!
//! Nothing here may wait for the dead mount without an end: paths are only touched by a thread that
//! is left behind if need be, and closing the device is what ends every such wait.

use super::logger;
use super::sys;
use super::watch::Word;
use crate::control::wire;
use crate::fuse::leftover::{Leftover, Place, detach, is_connected, still_mounted};
use crate::shown::ShowPath;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

/// The name that ps(1) shows.
const NAME: &std::ffi::CStr = c"uaufs-watch";
/// Milliseconds that the rest of a process may take to end when its first thread has.
const LAST_THREADS: i64 = 1000;
/// How long detaching may take before the connection is ended: fusermount3 may lie on the mount, a
/// parent directory on another dead one, and what was written may wait for the daemon.
const DETACH: Duration = Duration::from_secs(2);
/// How long it may take after that.
const DETACH_ABORTED: Duration = Duration::from_secs(5);

/// What is known of the daemon, and how to hear of its end.
pub(super) struct Watcher {
    channel: OwnedFd,
    pid: Pid,
    /// Ready when the whole process is gone. `None` before Linux 5.3: the channel's end must do.
    process: Option<OwnedFd>,
}

/// A mount that is watched over.
struct Watched {
    mount: Leftover,
    device: OwnedFd,
    socket: Option<PathBuf>,
    /// Ready when a thread is gone that lives as long as the daemon. Another one may wait for an answer
    /// of the daemon itself when that is killed, and stay for ever. `None` before Linux 6.9.
    thread: Option<OwnedFd>,
}

impl Watcher {
    /// A watcher of this process. `channel`: where it will be told.
    pub(super) fn of_this_process(channel: OwnedFd) -> Self {
        let pid = getpid();
        Self {
            channel,
            pid,
            process: pidfd_open(pid, PidfdFlags::empty()).ok(),
        }
    }

    /// Runs in the new process until the daemon has ended one way or the other.
    pub(super) fn run(self, keep_stderr: bool) -> ! {
        self.part_with_the_daemon(keep_stderr);
        if let Some(watched) = self.wait() {
            self.clean_up(watched);
        }
        std::process::exit(0)
    }

    /// Gives up everything that this process has as a copy of the daemon: it is no reason for
    /// anybody to wait, and no signal that is meant for the daemon ends it.
    fn part_with_the_daemon(&self, keep_stderr: bool) {
        let _ = rustix::process::setsid();
        let _ = nix::sys::signal::SigSet::all().thread_block();
        let _ = rustix::thread::set_name(NAME);
        let _ = rustix::process::chdir("/");
        if !keep_stderr {
            logger::use_syslog();
        }
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        if let Ok(null) = &null {
            let _ = dup2_stdin(null);
            let _ = dup2_stdout(null);
            if !keep_stderr {
                let _ = dup2_stderr(null);
            }
        }
        let known = [Some(&self.channel), self.process.as_ref()];
        let known: Vec<_> = known
            .into_iter()
            .flatten()
            .map(AsRawFd::as_raw_fd)
            .collect();
        std::mem::forget(null);
        sys::close_all_but(&known);
    }

    /// Listens until the daemon has ended. `None` = nothing is left to do.
    fn wait(&self) -> Option<Watched> {
        let mut watched: Option<Watched> = None;
        loop {
            let thread = watched.as_ref().and_then(|watched| watched.thread.as_ref());
            let mut fds = vec![PollFd::new(&self.channel, PollFlags::IN)];
            for end in [self.process.as_ref(), thread].into_iter().flatten() {
                fds.push(PollFd::new(end, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return watched,
            }
            let (told, ended) = fds.split_at(1);
            let happened = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let (told, ended) = (happened(&told[0]), ended.iter().any(happened));
            // What was said comes before what happened: an orderly end is told.
            if told {
                match wire::receive::<Word>(&self.channel) {
                    Ok(Some((Word::Done, _))) => return None,
                    Ok(Some((word, fds))) => hear(&mut watched, word, fds),
                    Ok(None) | Err(_) => return watched,
                }
            } else if ended {
                if self.is_gone(LAST_THREADS) || self.is_dying() {
                    return watched;
                }
                // It was the thread alone, which nobody expects.
                watched.iter_mut().for_each(|watched| watched.thread = None);
            }
        }
    }

    /// Has the first thread ended, and are others left?
    fn is_dying(&self) -> bool {
        let pid = self.pid.as_raw_nonzero();
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| status_of_zombie(&stat).is_some())
    }

    /// Detaches the mount, ends its connection, removes the socket, and says why.
    fn clean_up(&self, watched: Watched) {
        let Watched {
            mount,
            device,
            socket,
            ..
        } = watched;
        let stuck = !self.is_gone(LAST_THREADS);
        let places = mount.places(device.as_fd());
        if stuck {
            // A thread of the daemon waits in the kernel for an answer of its own, with the device
            // open: closing ours will not be enough.
            mount.abort(device.as_fd());
        }
        let device = Arc::new(Mutex::new(Some(device)));
        let detached = start_detaching(places.clone(), Arc::clone(&device), stuck);
        let in_time = ended(detached.as_ref(), DETACH);
        // While it is connected, what has the device's number is the same filesystem.
        let left = device.lock().take().and_then(|device| {
            let sure = in_time && !stuck;
            sure.then(|| mount.places(device.as_fd()).len())
        });
        if !in_time {
            ended(detached.as_ref(), DETACH_ABORTED);
        }
        let left = left.unwrap_or_else(|| still_mounted(&places));
        if let Some(socket) = socket {
            // The next mount may have swept it away.
            let _ = std::fs::remove_file(socket);
        }
        let ending = if self.is_gone(LAST_THREADS) {
            self.ending()
        } else {
            Ending::Unknown
        };
        let at = mount.mountpoint().shown();
        match (places.len(), left) {
            (_, 1..) => log::error!(
                "the daemon of {at} {ending}; its mount could not be taken away: uaufs umount --lazy {at}"
            ),
            (0, 0) => log::error!("the daemon of {at} {ending}; it was not mounted any more"),
            _ => log::error!("the daemon of {at} {ending}; the mount was taken away"),
        }
    }

    /// Is every thread of the daemon gone, now or within some milliseconds?
    fn is_gone(&self, milliseconds: i64) -> bool {
        let timeout = Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        };
        self.process.as_ref().is_none_or(|process| {
            let mut fds = [PollFd::new(process, PollFlags::IN)];
            poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
        })
    }

    /// How the daemon ended. Where somebody has reaped it already, kernels before Linux 6.15 do not
    /// tell any more.
    fn ending(&self) -> Ending {
        let pid = self.pid.as_raw_nonzero();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let reaped = || sys::status_of_reaped(self.process.as_ref()?.as_fd());
        status_of_zombie(&stat)
            .or_else(reaped)
            .map_or(Ending::Unknown, Ending::of)
    }
}

/// Notes what the daemon tells.
fn hear(watched: &mut Option<Watched>, word: Word, mut fds: Vec<OwnedFd>) {
    match (word, watched) {
        (Word::Mounted(mount), watched) => {
            *watched = fds.pop().map(|device| Watched {
                mount,
                device,
                socket: None,
                thread: None,
            });
        }
        (Word::Listening(socket), Some(watched)) => {
            watched.socket = Some(socket.path().to_path_buf());
        }
        (Word::Living, Some(watched)) => watched.thread = fds.pop(),
        _ => {}
    }
}

/// Detaches in a thread of its own: whatever it waits for, this process goes on. `None` = there is
/// none to be had.
fn start_detaching(
    places: Vec<Place>,
    device: Arc<Mutex<Option<OwnedFd>>>,
    stuck: bool,
) -> Option<Receiver<()>> {
    let (done, is_done) = channel();
    let detaching = move || {
        for place in &places {
            let ours = || {
                let device = device.lock();
                stuck || device.as_ref().is_none_or(|fd| is_connected(fd.as_fd()))
            };
            if let Err(error) = detach(place, ours, stuck) {
                log::debug!("{error}");
            }
        }
        // The other side may have stopped waiting.
        let _ = done.send(());
    };
    match Builder::new().name("detach".into()).spawn(detaching) {
        Ok(_) => Some(is_done),
        Err(error) => {
            log::debug!("no thread: {error}");
            None
        }
    }
}

fn ended(detached: Option<&Receiver<()>>, patience: Duration) -> bool {
    detached.is_some_and(|done| {
        // A thread that panicked has ended, too.
        done.recv_timeout(patience) != Err(RecvTimeoutError::Timeout)
    })
}

/// The wait status in a line of /proc/PID/stat, if it is that of a process that has ended and was
/// not reaped: proc_pid_stat(5), fields 3 and 52.
fn status_of_zombie(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace();
    if !matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(48)?.parse().ok()
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Signal(i32),
    Code(i32),
    Unknown,
}

impl Ending {
    fn of(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code(status >> 8 & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Unknown => f.write_str("died"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_zombie_is_read() {
        let fields = |state: &str, code: i32| {
            let middle = vec!["0"; 48].join(" ");
            format!("7 (a) b) {state} {middle} {code}\n")
        };
        assert_eq!(status_of_zombie(&fields("Z", 9)), Some(9));
        assert_eq!(status_of_zombie(&fields("S", 9)), None);
        assert_eq!(status_of_zombie(""), None);
        assert_eq!(Ending::of(9).to_string(), "was killed by signal 9");
        assert_eq!(Ending::of(0x86).to_string(), "was killed by signal 6");
        assert_eq!(Ending::of(0x100).to_string(), "ended with exit code 1");
    }

    #[test]
    fn the_end_of_a_process_is_known_before_and_after_it_was_reaped() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let (channel, _other) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let watcher = Watcher {
            channel,
            pid,
            process: pidfd_open(pid, PidfdFlags::empty()).ok(),
        };
        assert!(!watcher.is_gone(0));
        child.kill().unwrap();
        assert!(watcher.is_gone(5000));
        assert_eq!(watcher.ending(), Ending::Signal(9));
        child.wait().unwrap();
        let after = watcher.ending();
        // Told since Linux 6.15.
        assert!(
            matches!(after, Ending::Signal(9) | Ending::Unknown),
            "{after}"
        );
    }
}
