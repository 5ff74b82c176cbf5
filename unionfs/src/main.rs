//! `uaufs`: parse, run, exit code.
fn main() {}
