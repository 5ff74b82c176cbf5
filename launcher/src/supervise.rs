//! The launcher while a container runs: one thread that waits for its processes, signals and
//! terminal, and ends everything when one part of it ends.

use crate::cgroup::group;
use crate::cgroup::plan::OomCounter;
use crate::console;
use crate::error::Explain;
use crate::sync::{Channel, Ending, InitReport};
use crate::sys::{self, ChildProcess};
use crate::terminal::Relay;
use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// Seconds that the union daemon has for ending after the container.
const DAEMON_SECONDS: i64 = 5;
/// How long the command has for ending after its union daemon.
const LAST_WILL: Duration = Duration::from_secs(3);

/// A container that was just started.
pub struct Container {
    /// PID 1.
    pub init: ChildProcess,
    /// The union daemon.
    pub daemon: Option<ChildProcess>,
    /// The union's device: while it is open here, who needs a daemon that died waits, instead of
    /// failing at random (ENOTCONN, SIGBUS) before the container is ended.
    pub device: Option<OwnedFd>,
    /// To init.
    pub channel: Channel,
    /// The launcher's signals.
    pub signals: OwnedFd,
    /// Where kills for lack of memory are counted.
    pub oom: Option<OomCounter>,
    /// The memory limit, for the message.
    pub memory: Option<u64>,
}

/// How it ended.
pub struct Outcome {
    /// For the user.
    pub code: u8,
    /// What the code does not tell.
    pub reason: Option<String>,
    /// Processes killed for lack of memory.
    pub oom_kills: u64,
}

/// Why the loop was left.
enum End {
    Command(Ending),
    Refused(u8, String),
    DaemonDied,
    InitDied,
}

impl Container {
    /// Stays until the end. `started` is called when the command runs.
    pub fn on_started(&mut self, started: Option<impl FnOnce()>) -> Result<Outcome> {
        let end = self.wait(started);
        // Whatever it was: nothing of the container survives it.
        let _ = sys::pidfd_signal(self.init.pidfd.as_fd(), libc::SIGKILL);
        // Not even SIGKILL ends one that waits for an answer; this does, if nobody can give it.
        self.device = None;
        self.init.reap();
        let (daemon_died, daemon_status) = self.end_daemon();
        let oom_kills = self.oom.as_ref().map_or(0, group::oom_kills);
        let end = match end {
            // A container whose files are gone fails in many ways (SIGBUS, ENOTCONN, ...), and that
            // may be seen before the daemon's death, which is the reason of each of them.
            Ok(End::Command(Ending::Code(0))) => End::Command(Ending::Code(0)),
            _ if daemon_died => End::DaemonDied,
            end => end?,
        };
        let mut outcome = match end {
            End::Command(ending) => Outcome {
                code: ending.exit_code(),
                reason: None,
                oom_kills,
            },
            End::Refused(code, reason) => Outcome {
                code,
                reason: Some(reason),
                oom_kills,
            },
            End::DaemonDied => Outcome {
                code: 125,
                reason: Some(format!(
                    "union daemon died ({daemon_status}): the container was ended"
                )),
                oom_kills,
            },
            End::InitDied => Outcome {
                code: 137,
                reason: Some("the container was killed (SIGKILL)".into()),
                oom_kills,
            },
        };
        if oom_kills > 0 && outcome.code == 137 {
            let limit = self.memory.map_or("memory limit".to_owned(), |m| {
                format!("memory limit {}M", m >> 20)
            });
            outcome.reason = Some(format!("killed: {limit} exceeded"));
        }
        Ok(outcome)
    }

    fn wait(&mut self, started: Option<impl FnOnce()>) -> Result<End> {
        let mut started = started;
        let mut relay: Option<Relay> = None;
        let mut hurry = false;
        // When the container is to be gone that has lost its daemon.
        let mut deadline: Option<Instant> = None;
        loop {
            let mut fds: Vec<PollFd<'_>> = vec![
                PollFd::new(&self.channel, PollFlags::IN),
                PollFd::new(&self.signals, PollFlags::IN),
            ];
            let daemon = self.daemon.as_ref().map(|d| d.pidfd.as_fd());
            let daemon = daemon.filter(|_| deadline.is_none());
            fds.extend(daemon.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            let relay_at = fds.len();
            let relayed = relay.as_ref().map(Relay::waits).unwrap_or_default();
            fds.extend(
                relayed
                    .iter()
                    .map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what)),
            );
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(End::DaemonDied);
            }
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).explain(|| "waiting for the container".into()),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[1] {
                hurry |= self.forward_signals(relay.as_ref())?;
            }
            if let Some(relay) = &mut relay {
                relay.copy(&ready[relay_at..]);
            }
            if ready[0] {
                match self.channel.receive_with::<InitReport>()? {
                    None if deadline.is_some() => return Ok(End::DaemonDied),
                    None => return Ok(End::InitDied),
                    Some((InitReport::Exited(ending), _)) => {
                        if let Some(relay) = &mut relay {
                            relay.drain(&self.signals, hurry || deadline.is_some());
                        }
                        // However it ended then, that is why.
                        return Ok(match deadline {
                            Some(_) => End::DaemonDied,
                            None => End::Command(ending),
                        });
                    }
                    Some((InitReport::Failed { code, message }, _)) => {
                        return Ok(End::Refused(code, message));
                    }
                    Some((InitReport::Notice(text), _)) => {
                        console::complain(&format!("notice: {text}"));
                    }
                    Some((InitReport::Terminal, mut fds)) => {
                        relay = fds.pop().map(Relay::start).transpose()?;
                    }
                    Some((InitReport::Started, _)) => {
                        if let Some(started) = started.take() {
                            started();
                        }
                    }
                }
            } else if relay_at == 3 && ready[2] {
                // The command may have something to say, if it can without its files.
                let _ = sys::pidfd_signal(self.init.pidfd.as_fd(), libc::SIGTERM);
                deadline = Some(Instant::now() + LAST_WILL);
            }
        }
    }

    /// Signals to the launcher are meant for the command. Tells whether one was to end it.
    fn forward_signals(&self, relay: Option<&Relay>) -> Result<bool> {
        let mut ends = false;
        while let Some(signal) =
            sys::next_signal(&self.signals).explain(|| "reading a signal".into())?
        {
            match signal.number {
                libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG => {}
                libc::SIGWINCH => {
                    if let Some(relay) = relay {
                        relay.resize();
                    }
                }
                // Stops the launcher alone; the command has a session of its own.
                libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => {
                    let stop = || {
                        let _ = sys::kill(std::process::id() as i32, libc::SIGSTOP);
                    };
                    match relay {
                        Some(relay) => relay.pause(stop),
                        None => stop(),
                    }
                }
                number => {
                    ends |= sys::ends_programs(number);
                    let _ = sys::pidfd_signal(self.init.pidfd.as_fd(), number);
                }
            }
        }
        Ok(ends)
    }

    /// The daemon ends by itself when the last mount of its union is gone. Tells whether it
    /// died instead, and how it ended.
    fn end_daemon(&mut self) -> (bool, String) {
        let Some(daemon) = self.daemon.take() else {
            return (false, String::new());
        };
        let mut fds = [PollFd::new(&daemon.pidfd, PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: DAEMON_SECONDS,
            tv_nsec: 0,
        };
        let late = poll(&mut fds, Some(&timeout)) == Ok(0);
        if late {
            let _ = sys::pidfd_signal(daemon.pidfd.as_fd(), libc::SIGKILL);
        }
        let Some(status) = daemon.reap() else {
            return (false, "unknown".into());
        };
        match (status.terminating_signal(), status.exit_status()) {
            (Some(signal), _) => (!late, format!("signal {signal}")),
            (None, Some(code)) => (code != 0, format!("exit code {code}")),
            _ => (false, "unknown".into()),
        }
    }
}
