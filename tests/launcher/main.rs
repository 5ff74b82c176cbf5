//! `ulaunch` from outside: what a container is, judged by /proc, cgroups and exit codes.
//!
//! Needs root, FUSE and a static busybox; without them each test says so and passes. Every test
//! keeps its containers in a directory of its own and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod confinement;
mod filesystem;
mod life;
mod limits;
mod users;
mod world;
