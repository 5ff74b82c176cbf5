//! A union filesystem in userspace: AUFS semantics on any kernel that has FUSE.
//!
//! ```text
//! cli (binary) -> spec          what is asked for, as data
//! fuse         -> union         translation; the only place that knows fuser
//! union        -> node, stack, policy, branch     one operation a file
//! branch       -> whiteout, sys one directory and its dialect
//! ```
//! Lock order (a thread takes locks only downwards in this list):
//! 1. `Union::rename_lock`: renames between two directories;
//! 2. `DirState::ns` of directories: ancestors first, unrelated ones by ascending number;
//! 3. leaves, under which nothing else is taken: a node's home and layers, table and cache shards,
//!    the stack pointer, the set of running copy-ups, the branch's log.
//!
//! No lock is held while data is copied, and none while the kernel is notified.

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
pub mod whiteout;
