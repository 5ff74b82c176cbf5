//! Defects that were found and mended, one test each. They drive a union without a mount, as a
//! kernel would: by node numbers. Needs root; without it the tests pass without doing anything.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod faults;
mod fixture;
mod identity;
mod kept_owners;
mod links;
mod marks;
mod movedown;
mod nodes;
mod on_open;
mod opening;
mod outside;
mod overlay_marks;
mod placement;
mod redirects;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;
mod user;
