//! Real mounts, used as programs and users use them. Each test passes over itself without root or
//! /dev/fuse.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod dead_daemon;
mod fixture;
mod fstab;
mod full;
mod handles;
mod hostile;
mod listing;
mod open_files;
mod overlayfs_formats;
mod permissions;
mod plinks;
#[allow(missing_docs, reason = "shared with a program")]
#[path = "../poor/mod.rs"]
mod poor;
mod poor_branches;
mod rewritten;
mod set_id;
mod udba;
mod users;
