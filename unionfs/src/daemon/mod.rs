//! The process around a mount: going to the background, signals, the log, and the watch over it.
//!
//! The order matters: [`background`] forks while there is one thread only; the daemon keeps its
//! standard error until [`Readiness::announce`], so that every failure up to then is still a line
//! on the terminal and an exit code of the command.

pub mod logger;
pub mod signals;
mod sys;
pub mod watch;
mod watcher;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, open};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::io;
use std::os::fd::OwnedFd;
use sys::Fork;

/// Which of the two processes this is after [`background`].
#[derive(Debug)]
pub enum Process {
    /// The command itself: the daemon is ready, or has failed and said so; exit with this code.
    Command(u8),
    /// The daemon: mount, then announce.
    Daemon(Readiness),
}

/// The daemon's duty to say that the mount is live. Dropped without [`Self::announce`], the
/// command exits with an error.
#[derive(Debug)]
pub struct Readiness(OwnedFd);

/// Splits the process in two. Returns in the command only when the daemon is ready or gone.
///
/// Must be called while the process has a single thread: only the calling one lives on in the
/// daemon, and locks held by others would stay locked for ever.
///
/// # Errors
/// Of pipe(2), fork(2), setsid(2).
pub fn background() -> io::Result<Process> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Fork::Child => {
            drop(reader);
            // A session of its own: no terminal sends it SIGHUP or SIGINT.
            rustix::process::setsid()?;
            Ok(Process::Daemon(Readiness(writer)))
        }
        Fork::Parent(child) => {
            drop(writer);
            let mut byte = [0];
            let ready = rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut byte))? == 1;
            Ok(Process::Command(if ready { 0 } else { failure(child) }))
        }
    }
}

/// The exit code for a daemon that never became ready. It has told the reason itself, unless a
/// signal ended it.
fn failure(daemon: Pid) -> u8 {
    match waitpid(daemon, None) {
        Ok(WaitStatus::Exited(_, code)) => u8::try_from(code).unwrap_or(1).max(1),
        Ok(WaitStatus::Signaled(_, signal, _)) => {
            eprintln!("uaufs: the daemon was killed by {signal} before the mount was live");
            1
        }
        _ => 1,
    }
}

impl Readiness {
    /// Lets the command return: leaves the terminal (standard input and output, and standard error
    /// unless `keep_stderr`) and the current directory, then tells.
    ///
    /// Standard error goes before the word is given: callers wait for its end of file.
    ///
    /// # Errors
    /// Of open(2), dup2(2), chdir(2); the command then exits with an error.
    pub fn announce(self, keep_stderr: bool) -> io::Result<()> {
        rustix::process::chdir("/")?;
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        if !keep_stderr {
            dup2_stderr(&null)?;
        }
        // A command that was killed meanwhile needs no word.
        match rustix::io::write(&self.0, &[0]) {
            Ok(_) | Err(rustix::io::Errno::PIPE) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
