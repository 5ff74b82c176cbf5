//! `ulaunch`: containers on a union filesystem.
fn main() {}
