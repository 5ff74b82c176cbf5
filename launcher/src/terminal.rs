//! The caller's terminal in front of the container's: raw mode, window size, and the bytes between.

use crate::error::Explain;
use anyhow::Result;
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

/// Copies between the caller's standard streams and a terminal. Restores the caller's terminal
/// when dropped.
pub struct Relay {
    /// `None` once the container's terminal was hung up.
    master: Option<OwnedFd>,
    saved: Option<Saved>,
    input_open: bool,
    output_open: bool,
}

/// What came of moving some bytes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    /// There may be more.
    Some,
    /// The source has ended.
    End,
    /// The destination takes no more.
    Refused,
}

impl Relay {
    /// Puts the caller's terminal into raw mode, if it is one.
    pub fn start(master: OwnedFd) -> Result<Self> {
        let relay = Self {
            master: Some(master),
            saved: Saved::of_stdin(),
            input_open: true,
            output_open: true,
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

    /// What to wait for: always as many as [`Relay::copy`] expects.
    pub fn inputs(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::new();
        if self.output_open {
            fds.extend(self.master.as_ref().map(AsFd::as_fd));
        }
        if self.input_open {
            fds.push(rustix::stdio::stdin());
        }
        fds
    }

    /// Copies from those that are ready, in the order of [`Relay::inputs`].
    pub fn copy(&mut self, ready: &[bool]) {
        let mut ready = ready.iter().copied();
        if self.output_open && ready.next() == Some(true) {
            self.copy_output();
        }
        let (true, Some(master)) = (self.input_open, &self.master) else {
            return;
        };
        if ready.next() == Some(true) {
            let moved = transfer(rustix::stdio::stdin(), master.as_fd());
            self.input_open = moved == Moved::Some;
            if moved == Moved::End {
                // What Ctrl-D means to the program behind the terminal.
                let _ = rustix::io::write(master, b"\x04");
            }
        }
    }

    fn copy_output(&mut self) {
        let Some(master) = &self.master else { return };
        match transfer(master.as_fd(), rustix::stdio::stdout()) {
            Moved::Some => {}
            Moved::End => self.output_open = false,
            // Nobody reads any more, as if the window had been closed: the command is told by a
            // hang-up, or it would write on until nothing fits and wait for ever.
            Moved::Refused => {
                self.master = None;
                (self.input_open, self.output_open) = (false, false);
            }
        }
    }

    /// What the command wrote last.
    pub fn drain(&mut self) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while let (true, Some(master)) = (self.output_open, &self.master)
            && poll(&mut [PollFd::new(master, PollFlags::IN)], Some(&now)) == Ok(1)
        {
            self.copy_output();
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

/// One read and as many writes as it takes.
fn transfer(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Moved {
    let mut buffer = [0; 8192];
    let count = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return Moved::End,
        Ok(count) => count,
        Err(Errno::INTR | Errno::AGAIN) => return Moved::Some,
        // The last process that had the terminal open is gone (EIO).
        Err(_) => return Moved::End,
    };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return Moved::Refused,
        }
    }
    Moved::Some
}
