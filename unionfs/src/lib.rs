//! A union filesystem in userspace: AUFS semantics on any kernel that has FUSE.

pub mod daemon;
pub mod errno;
pub mod fuse;
pub mod setup;
pub mod spec;
pub mod stats;
pub mod types;
pub mod union;
