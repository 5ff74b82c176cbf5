//! Asking and changing live mounts. Each test passes over itself without root or /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod asked;
mod branches;
mod by_the_kernel;
mod channel;
mod fhsm;
mod forced;
mod merging;
mod mounted;
