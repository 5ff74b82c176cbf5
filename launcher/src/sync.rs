//! Messages between the processes of one container: JSON over a sequenced-packet socket pair,
//! with descriptors attached where a message carries some.

use crate::error::Explain;
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Longest message in bytes. Messages are short; whatever is long travels in a memfd.
const MAX_MESSAGE: usize = 32 * 1024;
/// Most descriptors in one message.
const MAX_FDS: usize = 4;

/// One end of a connection between two processes of a container.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What init (PID 1 of the container) reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum InitReport {
    /// The container's terminal (the master end is attached).
    Terminal,
    /// The command runs.
    Started,
    /// The command could not be started.
    Failed {
        /// 125, 126 or 127.
        code: u8,
        /// Why.
        message: String,
    },
    /// Something could not be done that the container can live without.
    Notice(String),
    /// The command ended.
    Exited(Ending),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(i32),
}

impl Ending {
    /// The exit code of a shell for it: 128+N for a signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => (128 + signal).clamp(129, 255) as u8,
        }
    }
}

/// The permission to go on, once ids are mapped and cgroups joined.
#[derive(Debug, Serialize, Deserialize)]
pub struct Go;

/// What the process between the caller and the container reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum OuterReport {
    /// Pid of the union daemon (its pidfd and the FUSE device are attached).
    Daemon(i32),
    /// Pid of the container's init (its pidfd is attached).
    Init(i32),
    /// It could not be done.
    Failed(String),
}

/// What the union daemon reports.
#[derive(Debug, Serialize, Deserialize)]
pub enum DaemonReport {
    /// The union answers.
    Ready,
    /// It could not be served.
    Failed(String),
}

impl Channel {
    /// A connected pair, both ends close-on-exec.
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .explain(|| "socketpair".into())?;
        Ok((Self(one), Self(other)))
    }

    /// An end that was handed over by exec.
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a message.
    pub fn send<M: Serialize>(&self, message: &M) -> Result<()> {
        self.send_with(message, &[])
    }

    /// Sends a message with descriptors.
    pub fn send_with<M: Serialize>(&self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let sent = rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        );
        sent.explain(|| "message to another process of the container".into())
            .map(drop)
    }

    /// The next message; `None` when the other side is gone.
    pub fn receive<M: DeserializeOwned>(&self) -> Result<Option<M>> {
        Ok(self.receive_with()?.map(|(message, _)| message))
    }

    /// The next message and its descriptors (close-on-exec); `None` when the other side is gone.
    pub fn receive_with<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let received = rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            );
            match received {
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Ok(None),
                other => {
                    break other.explain(|| "message from a process of the container".into())?;
                }
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        anyhow::ensure!(
            !received.flags.contains(ReturnFlags::TRUNC),
            "message too long"
        );
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        let message = serde_json::from_slice(&bytes[..received.bytes])
            .context("message of another version of ulaunch")?;
        Ok(Some((message, fds)))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_descriptors_and_the_end_is_seen() {
        let (one, other) = Channel::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        one.send_with(&InitReport::Terminal, &[null.as_fd()])
            .unwrap();
        one.send(&InitReport::Exited(Ending::Signal(9))).unwrap();
        drop(one);
        let (message, fds) = other.receive_with::<InitReport>().unwrap().unwrap();
        assert!(matches!(message, InitReport::Terminal));
        assert_eq!(fds.len(), 1);
        let message = other.receive::<InitReport>().unwrap();
        assert!(matches!(
            message,
            Some(InitReport::Exited(Ending::Signal(9)))
        ));
        assert!(other.receive::<InitReport>().unwrap().is_none());
    }

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(Ending::Code(42).exit_code(), 42);
        assert_eq!(Ending::Signal(9).exit_code(), 137);
        assert_eq!(Ending::Signal(64).exit_code(), 192);
    }
}
