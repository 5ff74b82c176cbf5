//! What the kernel is told without having asked: the effects of changes, sent by a thread of their
//! own.
//!
//! A notification may wait for a directory lock that the kernel holds while it waits for an answer
//! of ours. So it is never sent from a request handler: handlers and the control plane drop
//! [`Effect`]s into an [`EffectSender`] and go on.

use crate::types::Effect;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

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
}

/// The receiving end, see [`effects`].
#[derive(Debug)]
pub struct EffectQueue {
    sender: Sender<Message>,
    receiver: Receiver<Message>,
}

#[derive(Debug)]
enum Message {
    Tell(Effect),
    Stop,
}

/// The running thread; ends with [`Self::stop`].
pub(super) struct NotifyThread {
    sender: Sender<Message>,
    thread: JoinHandle<()>,
}

impl NotifyThread {
    /// Starts to pass the effects of `queue` on to the kernel.
    pub(super) fn start(queue: EffectQueue, notifier: Notifier) -> io::Result<Self> {
        let EffectQueue { sender, receiver } = queue;
        let thread = Builder::new().name("notify".into()).spawn(move || {
            while let Ok(Message::Tell(effect)) = receiver.recv() {
                if let Err(error) = tell(&notifier, &effect) {
                    log::debug!("notification {effect:?}: {error}");
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
fn tell(notifier: &Notifier, effect: &Effect) -> io::Result<()> {
    match effect {
        Effect::InvalEntry { parent, name } => {
            notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name))
        }
        // Length 0 = to the end of the file.
        Effect::InvalInode { node } => notifier.inval_inode(INodeNo(node.0), 0, 0),
    }
}
