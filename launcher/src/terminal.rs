//! The caller's terminal in front of the container's: raw mode, window size, and the bytes between.

use crate::error::Explain;
use crate::sys;
use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Rows and columns of the caller's terminal, if there is one.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(rustix::stdio::stdin())
        .or_else(|_| tcgetwinsize(rustix::stdio::stdout()))
        .ok()?;
    (size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// The caller's terminal and its modes.
pub struct Saved {
    terminal: OwnedFd,
    modes: Termios,
}

impl Saved {
    /// Of the terminal at standard input, if there is one.
    pub fn of_stdin() -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        Some(Self {
            modes: tcgetattr(stdin).ok()?,
            terminal: rustix::io::fcntl_dupfd_cloexec(stdin, 3).ok()?,
        })
    }

    /// Sets the modes as they were.
    pub fn restore(&self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.modes);
    }
}

/// Bytes moved at a time: what a pipe takes at once when it takes anything, see pipe(7).
const CHUNK: usize = 4096;
/// Seconds for the last output to be taken when the container was told to end.
const HURRY_SECONDS: i64 = 1;

/// Copies between the caller's standard streams and a terminal. Restores the caller's terminal
/// when dropped.
///
/// It never waits for either side: the launcher has signals to pass on meanwhile.
pub struct Relay {
    /// `None` once the container's terminal was hung up.
    master: Option<OwnedFd>,
    saved: Option<Saved>,
    input: Flow,
    output: Flow,
}

/// One direction: what was read and is not written yet.
struct Flow {
    pending: Vec<u8>,
    /// The source has not ended.
    open: bool,
}

/// The destination takes no more.
struct Refused;

impl Flow {
    fn new() -> Self {
        Self {
            pending: Vec::new(),
            open: true,
        }
    }

    /// What to wait for, if for anything.
    fn wait<'a>(
        &self,
        from: BorrowedFd<'a>,
        to: BorrowedFd<'a>,
    ) -> Option<(BorrowedFd<'a>, PollFlags)> {
        match (self.pending.is_empty(), self.open) {
            (false, _) => Some((to, PollFlags::OUT)),
            (true, true) => Some((from, PollFlags::IN)),
            (true, false) => None,
        }
    }

    /// One write, or one read, after [`Flow::wait`].
    fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Refused> {
        if !self.pending.is_empty() {
            match rustix::io::write(to, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return Err(Refused),
            }
            return Ok(());
        }
        let mut buffer = [0; CHUNK];
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => self.open = false,
            Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The last process that had the terminal open is gone (EIO).
            Err(_) => self.open = false,
        }
        Ok(())
    }
}

impl Relay {
    /// Puts the caller's terminal into raw mode, if it is one.
    pub fn start(master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).explain(|| "preparing the terminal".into())?;
        let relay = Self {
            master: Some(master),
            saved: Saved::of_stdin(),
            input: Flow::new(),
            output: Flow::new(),
        };
        relay
            .make_raw()
            .explain(|| "raw mode of the terminal".into())?;
        Ok(relay)
    }

    fn make_raw(&self) -> Result<(), Errno> {
        let Some(saved) = &self.saved else {
            return Ok(());
        };
        let mut raw = saved.modes.clone();
        raw.make_raw();
        tcsetattr(&saved.terminal, OptionalActions::Flush, &raw)
    }

    /// Leaves the caller's terminal as it was while `stop` lasts.
    pub fn pause(&self, stop: impl FnOnce()) {
        self.saved.iter().for_each(Saved::restore);
        stop();
        let _ = self.make_raw();
    }

    /// What to wait for: always as much as [`Relay::copy`] expects.
    pub fn waits(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let Some(master) = self.master.as_ref().map(AsFd::as_fd) else {
            return Vec::new();
        };
        let output = self.output.wait(master, rustix::stdio::stdout());
        let input = self.input.wait(rustix::stdio::stdin(), master);
        output.into_iter().chain(input).collect()
    }

    /// Moves what is ready, in the order of [`Relay::waits`].
    pub fn copy(&mut self, ready: &[bool]) {
        let mut ready = ready.iter().copied();
        let has_input = self.input.open || !self.input.pending.is_empty();
        if (self.output.open || !self.output.pending.is_empty()) && ready.next() == Some(true) {
            self.move_output();
        }
        if has_input && ready.next() == Some(true) {
            self.move_input();
        }
    }

    fn move_input(&mut self) {
        let Some(master) = &self.master else { return };
        let was_open = self.input.open;
        if self
            .input
            .step(rustix::stdio::stdin(), master.as_fd())
            .is_err()
        {
            self.input.open = false;
            self.input.pending.clear();
        } else if was_open && !self.input.open {
            // What Ctrl-D means to the program behind the terminal.
            self.input.pending.push(4);
        }
    }

    fn move_output(&mut self) {
        let Some(master) = &self.master else { return };
        if self
            .output
            .step(master.as_fd(), rustix::stdio::stdout())
            .is_err()
        {
            // Nobody reads any more, as if the window had been closed: the command is told by a
            // hang-up, or it would write on until nothing fits and wait for ever.
            self.master = None;
        }
    }

    /// Passes on what the command wrote last, until a signal says that nobody waits for it. In a
    /// `hurry` a reader that takes nothing is soon left alone.
    pub fn drain(&mut self, signals: &OwnedFd, hurry: bool) {
        let seconds = |tv_sec| Timespec { tv_sec, tv_nsec: 0 };
        while let Some(master) = &self.master {
            if self.output.pending.is_empty() {
                let mut fds = [PollFd::new(master, PollFlags::IN)];
                if !self.output.open || poll(&mut fds, Some(&seconds(0))) != Ok(1) {
                    return;
                }
            } else {
                let stdout = rustix::stdio::stdout();
                let mut fds = [
                    PollFd::from_borrowed_fd(stdout, PollFlags::OUT),
                    PollFd::new(signals, PollFlags::IN),
                ];
                let limit = hurry.then(|| seconds(HURRY_SECONDS));
                match poll(&mut fds, limit.as_ref()) {
                    Ok(1..) if !fds[0].revents().is_empty() => {}
                    Ok(1..) if !asked_to_end(signals) => continue,
                    Err(Errno::INTR) => continue,
                    _ => return,
                }
            }
            self.move_output();
        }
    }

    /// Gives the container's terminal the size of the caller's.
    pub fn resize(&self) {
        if let (Ok(size), Some(master)) = (tcgetwinsize(rustix::stdio::stdin()), &self.master) {
            let _ = tcsetwinsize(master, size);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.saved.iter().for_each(Saved::restore);
    }
}

/// Reads the pending signals: is there one among them that ends programs?
fn asked_to_end(signals: &OwnedFd) -> bool {
    let mut asked = false;
    while let Ok(Some(signal)) = sys::next_signal(signals) {
        asked |= sys::ends_programs(signal.number);
    }
    asked
}
