//! System calls that no crate wraps safely, and the few shapes in which the core uses the others.
//!
//! Everything works on directory descriptors and one path component. `unsafe` is allowed in the
//! leaf modules that say so and nowhere else in the crate.

pub mod acl;
pub mod clone_tree;
pub mod copy;
pub mod creds;
pub mod inotify;
pub mod ioctl;
pub mod limits;
pub mod loc;
pub mod mount_attr;
pub mod procs;
pub mod remove;
pub mod stat;
pub mod unlock;
pub mod walk;
pub mod xattr;

pub use loc::Loc;
pub use stat::RealStat;
pub use unlock::{Unlocked, with_write_permission};

/// A file name of a branch: at most 255 bytes, usually under 16, then without allocation.
pub type Name = smallvec::SmallVec<[u8; 16]>;
