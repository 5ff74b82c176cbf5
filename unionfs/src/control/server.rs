//! The daemon's end of the control socket.
//!
//! One thread accepts, one serves each connection. A caller is heard only if it is the mount's
//! owner or root of the daemon's user namespace; nothing that it sends can cost more than one
//! packet of memory and one thread, and one that falls silent is cut off.

use super::place::Listening;
use super::protocol::{Failure, Frame, Outcome, Request};
use super::wire;
use crate::errno::{Errno, Result};
use rustix::fd::OwnedFd;
use rustix::net::sockopt::{self, Timeout, socket_peercred};
use rustix::net::{SocketFlags, accept_with};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Builder};
use std::time::Duration;

/// Connections served at once.
const MOST: usize = 16;
/// How long a caller may be silent, and how long it may leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a result in one frame; JSON in JSON grows by its quotes.
const PIECE: usize = 24 << 10;

/// Carries out requests.
pub trait Handler: Send + Sync + 'static {
    /// Does what is asked. Long requests tell how far they are; `progress` answers whether
    /// the caller is still there.
    ///
    /// # Errors
    /// Why it was not done; nothing was changed then.
    fn handle(
        &self,
        request: Request,
        attached: Vec<OwnedFd>,
        progress: &mut dyn FnMut(&str) -> bool,
    ) -> Outcome;
}

/// Serves the socket until the process ends; its name goes with `listening`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(listening: &Listening, handler: Arc<dyn Handler>) -> std::io::Result<()> {
    let socket = listening.socket.try_clone()?;
    let live = Arc::new(AtomicUsize::new(0));
    Builder::new().name("control".into()).spawn(move || {
        loop {
            match accept_with(&socket, SocketFlags::CLOEXEC) {
                Ok(connection) => take(connection, &live, &handler),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    log::warn!("control socket: {errno}");
                    // Out of descriptors, perhaps: that may pass.
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })?;
    Ok(())
}

/// Gives a connection a thread of its own, unless there are too many or it is a stranger's.
fn take(connection: OwnedFd, live: &Arc<AtomicUsize>, handler: &Arc<dyn Handler>) {
    if let Err(failure) = admit(&connection, live) {
        // Who does not read it learns nothing; nobody waits for that.
        let _ = wire::send(&connection, &Frame::Failed(failure), &[]);
        return;
    }
    live.fetch_add(1, Ordering::Relaxed);
    let (mine, handler) = (Slot(Arc::clone(live)), Arc::clone(handler));
    let started = Builder::new().name("control-peer".into()).spawn(move || {
        let _slot = mine;
        if let Err(errno) = serve(&connection, &*handler) {
            log::debug!("control connection: {errno}");
        }
    });
    if let Err(error) = started {
        log::warn!("control connection: {error}");
    }
}

/// A place among the connections; dropping it makes room.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn admit(connection: &OwnedFd, live: &AtomicUsize) -> std::result::Result<(), Failure> {
    let system = |errno| Failure::new(errno, "control socket");
    let peer = socket_peercred(connection).map_err(system)?;
    // Ids that our user namespace does not know show as the overflow id, which is neither.
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(Failure::new(
            Errno::PERM,
            "only the mount's owner and root may change it",
        ));
    }
    for way in [Timeout::Recv, Timeout::Send] {
        sockopt::set_socket_timeout(connection, way, Some(PATIENCE)).map_err(system)?;
    }
    if live.load(Ordering::Relaxed) >= MOST {
        return Err(Failure::new(
            Errno::AGAIN,
            "too many callers at once: try again",
        ));
    }
    Ok(())
}

/// Answers requests until the caller goes.
fn serve(connection: &OwnedFd, handler: &dyn Handler) -> Result<()> {
    loop {
        let (request, attached) = match wire::receive::<Request>(connection) {
            Ok(Some(received)) => received,
            Ok(None) => return Ok(()),
            Err(Errno::BADMSG) => {
                let failure = Failure::new(Errno::BADMSG, "this daemon knows no such request");
                return wire::send(connection, &Frame::Failed(failure), &[]);
            }
            Err(errno) => return Err(errno),
        };
        let mut tell =
            |text: &str| wire::send(connection, &Frame::Progress(text.to_owned()), &[]).is_ok();
        let end = match handler.handle(request, attached, &mut tell) {
            Ok(result) => {
                send_result(connection, &result)?;
                Frame::Done
            }
            Err(failure) => Frame::Failed(failure),
        };
        wire::send(connection, &end, &[])?;
    }
}

fn send_result(connection: &OwnedFd, result: &Value) -> Result<()> {
    let text = result.to_string();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let mut end = rest.len().min(PIECE);
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (piece, left) = rest.split_at(end);
        rest = left;
        wire::send(connection, &Frame::Data(piece.to_owned()), &[])?;
    }
    Ok(())
}
