//! What the kernel is told without having asked: the effects of changes, sent by a thread of their
//! own.
//!
//! A notification may wait for a directory lock that the kernel holds while it waits for an answer
//! of ours. So it is never sent from a request handler: handlers and the control plane drop
//! [`Effect`]s into an [`EffectSender`] and go on.

use crate::types::Effect;
use crate::whiteout::META_PREFIX;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Makes a queue of effects: the sender goes to whoever changes the union, the queue to
/// [`super::ServeConfig`].
pub fn effects() -> (EffectSender, EffectQueue) {
    let (sender, receiver) = channel();
    (
        EffectSender(sender.clone()),
        EffectQueue { sender, receiver },
    )
}

/// Where effects are dropped. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct EffectSender(Sender<Message>);

impl EffectSender {
    /// Queues an effect. After the end of the mount it is dropped silently.
    pub fn send(&self, effect: Effect) {
        let _ = self.0.send(Message::Tell(effect));
    }

    /// Waits until the kernel has been told everything that was queued before; false = it was not
    /// within `patience`. Not to be called by whoever answers requests.
    pub fn flush(&self, patience: Duration) -> bool {
        let (done, is_done) = channel();
        self.0.send(Message::Sync(done)).is_ok() && is_done.recv_timeout(patience).is_ok()
    }
}

/// The receiving end, see [`effects`].
#[derive(Debug)]
pub struct EffectQueue {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
}

impl EffectQueue {
    /// Another sender into it.
    pub(super) fn sender(&self) -> EffectSender {
        EffectSender(self.sender.clone())
    }
}

#[derive(Debug)]
enum Message {
    Tell(Effect),
    /// Everything before was told.
    Sync(Sender<()>),
    Stop,
}

/// The running thread; ends with [`Self::stop`].
pub(super) struct NotifyThread {
    sender: Sender<Message>,
    thread: JoinHandle<()>,
}

impl NotifyThread {
    /// Starts to pass the effects of `queue` on to the kernel.
    ///
    /// `device`: the connection, for the one kind of notification that `fuser` has not.
    pub(super) fn start(
        queue: EffectQueue,
        notifier: Notifier,
        device: OwnedFd,
    ) -> io::Result<Self> {
        let EffectQueue { sender, receiver } = queue;
        let thread = Builder::new().name("notify".into()).spawn(move || {
            loop {
                match receiver.recv() {
                    Ok(Message::Tell(effect)) => {
                        if let Err(error) = tell(&notifier, &device, &effect) {
                            log::debug!("notification {effect:?}: {error}");
                        }
                    }
                    Ok(Message::Sync(done)) => {
                        // Who asked may have given up.
                        let _ = done.send(());
                    }
                    Ok(Message::Stop) | Err(_) => break,
                }
            }
        })?;
        Ok(Self { sender, thread })
    }

    /// Ends the thread. Call after the end of the mount, when no notification can wait any more.
    pub(super) fn stop(self) {
        let _ = self.sender.send(Message::Stop);
        if self.thread.join().is_err() {
            log::error!("the notification thread panicked");
        }
    }
}

/// Sends one notification.
fn tell(notifier: &Notifier, device: &OwnedFd, effect: &Effect) -> io::Result<()> {
    match effect {
        Effect::ExpireEntry { parent, name } => expire(device, parent.0, name),
        Effect::InvalEntry { parent, name } => {
            notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
        }
        // Length 0 = to the end of the file.
        Effect::InvalInode { node } => notifier.inval_inode(INodeNo(node.0), 0, 0),
        // Lookups hold the directory's lock until their result is in the caches, and this waits for
        // that lock (fs/fuse/dir.c, `fuse_reverse_inval_entry`). No file can have the name.
        Effect::Settle { parent } => {
            notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(META_PREFIX))
        }
    }
}

/// FUSE_NOTIFY_INVAL_ENTRY of linux/fuse.h.
const INVAL_ENTRY: i32 = 3;
/// FUSE_EXPIRE_ONLY of linux/fuse.h (7.38): nothing is dropped, only looked up again. Older kernels
/// take no notice and drop the entry.
const EXPIRE_ONLY: u32 = 1;

/// Sends `fuse_out_header`, `fuse_notify_inval_entry_out` and the name.
fn expire(device: &OwnedFd, parent: u64, name: &[u8]) -> io::Result<()> {
    let length = 16 + 16 + name.len() + 1;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&(length as u32).to_ne_bytes());
    message.extend_from_slice(&INVAL_ENTRY.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(&parent.to_ne_bytes());
    message.extend_from_slice(&(name.len() as u32).to_ne_bytes());
    message.extend_from_slice(&EXPIRE_ONLY.to_ne_bytes());
    message.extend_from_slice(name);
    message.push(0);
    match rustix::io::write(device, &message) {
        // The kernel knows no such entry.
        Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
