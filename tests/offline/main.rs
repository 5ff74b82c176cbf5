//! What is done with branches that no union uses: checking, repairing, converting and merging them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod convert;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../regressions/fixture.rs"]
mod fixture;
mod fsck;
mod merge;
mod messages;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;
mod unionfs_fuse;
