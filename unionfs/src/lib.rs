//! A union filesystem in userspace: AUFS semantics on any kernel that has FUSE.
//!
//! ```text
//! cli (binary) -> spec          what is asked for, as data
//! fuse         -> union         translation; the only place that knows fuser
//! union        -> node, stack, policy, branch     one operation a file
//! branch       -> whiteout, sys one directory and its dialect
//! ```
//! Which locks there are and the order in which they are taken: ARCHITECTURE.md, "Lock order".

pub mod branch;
pub mod control;
pub mod convert;
pub mod daemon;
pub mod diff;
pub mod errno;
pub mod fsck;
pub mod fuse;
pub mod ino;
pub mod merging;
pub mod node;
pub mod ostext;
pub mod policy;
pub mod setup;
pub mod shown;
pub mod spec;
pub mod stack;
pub mod stats;
pub mod sys;
pub mod types;
pub mod union;
pub mod usage;
pub mod whiteout;
