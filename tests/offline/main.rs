//! What is done with branches that no union uses: checking and repairing them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../regressions/fixture.rs"]
mod fixture;
mod fsck;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;
