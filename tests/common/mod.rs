//! A union driven by operations on plain data, beside a reference model of what it must show.

pub mod branches;
pub mod change;
pub mod check;
pub mod crash;
pub mod layers;
pub mod listing;
pub mod ops;
pub mod reference;
pub mod run;
pub mod script;
#[allow(dead_code, reason = "shared with other tests")]
pub mod trace;
