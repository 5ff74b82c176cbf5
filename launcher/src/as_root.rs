//! Work on files of a container's ids: done as root of a user namespace with its maps.

use crate::error::{self, Explain};
use crate::plan::Maps;
use crate::step::userns;
use crate::sync::{Channel, Go};
use crate::sys::{self, Cloned};
use anyhow::{Result, bail};

/// Runs `work` in a child that is root of a user namespace with these maps. The child shares the
/// caller's standard output.
pub fn as_container_root(maps: &Maps, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, theirs) = Channel::pair()?;
    let child = match sys::clone_process(libc::CLONE_NEWUSER)
        .explain(|| "making a user namespace".into())?
    {
        Cloned::Parent(child) => child,
        Cloned::Child => {
            drop(ours);
            // Without the word to go on the maps were not written, and nobody waits for an answer.
            if let Ok(Some(Go)) = theirs.receive::<Go>() {
                let done = userns::become_root().and_then(|()| work());
                let _ = theirs.send(&done.map_err(|error| error::message(&error)));
            }
            sys::exit_now(0)
        }
    };
    drop(theirs);
    let result = userns::write_maps(child.pid, maps)
        .and_then(|()| ours.send(&Go))
        .and_then(|()| ours.receive::<Result<(), String>>());
    // The end of the connection ends a child that still waits.
    drop(ours);
    child.reap();
    match result? {
        Some(Ok(())) => Ok(()),
        Some(Err(message)) => bail!("{message}"),
        None => bail!("a helper process ended early"),
    }
}
