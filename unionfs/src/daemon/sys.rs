//! fork(2).
#![allow(unsafe_code)]

use nix::unistd::{ForkResult, Pid};

/// Which of the two processes this is.
pub(super) enum Fork {
    /// The new one.
    Child,
    /// The old one, and the new one's id.
    Parent(Pid),
}

/// Forks. The process must have a single thread.
pub(super) fn fork() -> nix::Result<Fork> {
    // SAFETY: fork(2) is unsafe because in a process of several threads the child may only call
    // async-signal-safe functions. The only caller, `background`, demands a single thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Fork::Child),
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}
