//! Property test of the union against a reference model: random layers, random operations, and
//! after them the whole tree compared. Needs root (owners, devices, trusted attributes) and no mount.
//!
//! `PROPTEST_CASES` sets how many stacks are tried. A failure that was found and mended stays as a
//! named test below.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::branches::Stack;
use common::ops::{Op, operations, stack, stack_with_two_writable};
use common::run::Run;
use proptest::prelude::*;

/// Stacks tried by default in each property.
const CASES: u32 = 150;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    }
}

fn check(stack: Stack, ops: &[Op]) -> Result<(), TestCaseError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // One line each: easier to read than what proptest prints of them.
    let case = format!("{stack:?}\n{ops:?}");
    Run::new(stack)
        .and_then(|run| run.check_all(ops))
        .map_err(|err| TestCaseError::fail(format!("{err:#}\n{case}")))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_union_shows_what_the_model_says(stack in stack(), ops in operations()) {
        check(stack, &ops)?;
    }

    #[test]
    fn a_union_with_two_writable_branches_does_too(
        stack in stack_with_two_writable(),
        ops in operations(),
    ) {
        check(stack, &ops)?;
    }
}
