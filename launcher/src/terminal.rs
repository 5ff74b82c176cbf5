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

/// Copies between the caller's standard streams and a terminal. Restores the caller's terminal
/// when dropped.
pub struct Relay {
    master: OwnedFd,
    saved: Option<Termios>,
    input_open: bool,
    output_open: bool,
}

impl Relay {
    /// Puts the caller's terminal into raw mode, if it is one.
    pub fn start(master: OwnedFd) -> Result<Self> {
        let stdin = rustix::stdio::stdin();
        let saved = tcgetattr(stdin).ok();
        if let Some(saved) = &saved {
            let mut raw = saved.clone();
            raw.make_raw();
            tcsetattr(stdin, OptionalActions::Flush, &raw)
                .explain(|| "raw mode of the terminal".into())?;
        }
        Ok(Self {
            master,
            saved,
            input_open: true,
            output_open: true,
        })
    }

    /// What to wait for: always as many as [`Relay::copy`] expects.
    pub fn inputs(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = Vec::new();
        if self.output_open {
            fds.push(self.master.as_fd());
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
            self.output_open = transfer(self.master.as_fd(), rustix::stdio::stdout());
        }
        if self.input_open && ready.next() == Some(true) {
            self.input_open = transfer(rustix::stdio::stdin(), self.master.as_fd());
            if !self.input_open {
                // End of input: what Ctrl-D means to the program behind the terminal.
                let _ = rustix::io::write(&self.master, b"\x04");
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
        while self.output_open
            && poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&now)) == Ok(1)
        {
            self.output_open = transfer(self.master.as_fd(), rustix::stdio::stdout());
        }
    }

    /// Gives the container's terminal the size of the caller's.
    pub fn resize(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            let _ = tcsetwinsize(&self.master, size);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(saved) = &self.saved {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, saved);
        }
    }
}

/// One read and as many writes as it takes; false at the end.
fn transfer(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 8192];
    let count = match rustix::io::read(from, &mut buffer) {
        Ok(0) => return false,
        Ok(count) => count,
        Err(Errno::INTR | Errno::AGAIN) => return true,
        // The last process that had the terminal open is gone (EIO).
        Err(_) => return false,
    };
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return false,
        }
    }
    true
}
