//! The caller's end of the control socket.

use super::ask::ask_at;
use super::place::connect_to;
use super::protocol::{Failure, Frame, Outcome, Request};
use super::query::{Hello, Query};
use super::wire;
use crate::errno::Errno;
use crate::shown::ShowPath;
use rustix::fd::{BorrowedFd, OwnedFd};
use serde_json::Value;
use std::path::Path;

/// A connection to the daemon of one mount.
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Connects to the daemon of the union mounted at `mountpoint`.
    ///
    /// # Errors
    /// It is no union, it cannot be changed, or not by this user.
    pub fn connect(mountpoint: &Path) -> Result<Self, Failure> {
        let hello: Hello = ask_at(mountpoint, &Query::Hello)?;
        let at = mountpoint.shown();
        let Some(socket) = hello.socket else {
            return Err(Failure::new(
                Errno::OPNOTSUPP,
                format_args!("{at}: this mount cannot be changed while it is live"),
            ));
        };
        match connect_to(socket.path()) {
            Ok(socket) => Ok(Self { socket }),
            Err(errno @ (Errno::ACCESS | Errno::PERM)) => Err(Failure::new(
                errno,
                format_args!("{at}: only the mount's owner and root may change it"),
            )),
            Err(errno) => Err(Failure::because(
                errno,
                format_args!("{at}: the mount's control socket cannot be reached"),
                socket.path().shown(),
            )),
        }
    }

    /// Has a request carried out; `progress` is told how far it is.
    ///
    /// # Errors
    /// What the daemon says.
    pub fn request(
        &self,
        request: &Request,
        attached: &[BorrowedFd<'_>],
        progress: &mut dyn FnMut(&str),
    ) -> Outcome {
        let lost = |errno| Failure::new(errno, "the mount's daemon cannot be reached");
        wire::send(&self.socket, request, attached).map_err(lost)?;
        let mut result = String::new();
        loop {
            let received = wire::receive::<Frame>(&self.socket).map_err(lost)?;
            let (frame, _) = received.ok_or_else(|| lost(Errno::CONNABORTED))?;
            match frame {
                Frame::Progress(text) => progress(&text),
                Frame::Data(piece) => result.push_str(&piece),
                Frame::Done if result.is_empty() => return Ok(Value::Null),
                Frame::Done => {
                    return serde_json::from_str(&result).map_err(|_| lost(Errno::BADMSG));
                }
                Frame::Failed(failure) => return Err(failure),
            }
        }
    }
}
