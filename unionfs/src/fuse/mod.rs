//! The FUSE adapter: the only module that knows `fuser`.
//!
//! It translates requests into calls of [`crate::union::Union`] and results into replies, and
//! decides nothing about the union itself. The parts:
//!
//! * [`plan`]: how opens are answered and data flows, decided once per mount;
//! * [`mod@mount`]: the mount itself (mount(2), fsmount(2) or fusermount3) and its end;
//! * [`leftover`]: mounts whose daemon has died;
//! * [`session`]: [`serve`] runs the request loop until the mount is gone;
//! * [`notify`]: what the kernel is told without having asked;
//! * [`idmap`]: translation of owners between the mount and the branches.

mod adapter;
mod caps;
mod convert;
mod filesystem;
pub mod fusermount;
pub mod idmap;
pub mod leftover;
mod listings;
pub mod mount;
pub mod notify;
mod opens;
mod permission;
pub mod plan;
pub mod session;
mod writer;
mod xattr;

pub use mount::{
    MountRequest, Mounted, change_flags, check_mountpoint, mount, mount_detached, unmount,
};
pub use plan::IoPlan;
pub use session::{ServeConfig, ServeEnd, serve};
