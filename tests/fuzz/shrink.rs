//! Makes a failing case small: leaves out layers and lines as long as it fails in the same way.

use super::case::Case;
use std::time::{Duration, Instant};

/// How long shrinking may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// `fails`: does a case fail as the first one did?
pub fn shrink(case: Case, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let until = Instant::now() + PATIENCE;
    let mut small = case;
    let mut chunk = small.len().div_ceil(2);
    while Instant::now() < until {
        let before = small.len();
        small = without_lines(small, chunk, until, &mut fails);
        if chunk > 1 {
            chunk /= 2;
        } else if small.len() == before {
            break;
        }
    }
    let mut number = 0;
    while number < small.layers.len() && small.layers.len() > 1 && Instant::now() < until {
        let fewer = small.without_layer(number);
        if fails(&fewer) {
            small = fewer;
        } else {
            number += 1;
        }
    }
    if !small.options.is_empty() {
        let mut plain = small.clone();
        plain.options = String::new();
        if fails(&plain) {
            small = plain;
        }
    }
    small
}

/// Tries to leave out each run of `chunk` lines, from the end.
fn without_lines(
    mut small: Case,
    chunk: usize,
    until: Instant,
    fails: &mut impl FnMut(&Case) -> bool,
) -> Case {
    let mut end = small.len();
    while end > 0 && Instant::now() < until {
        let start = end.saturating_sub(chunk);
        let keep: Vec<bool> = (0..small.len()).map(|n| n < start || n >= end).collect();
        let fewer = small.with(&keep);
        if fails(&fewer) {
            small = fewer;
        }
        end = start;
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_is_left() {
        let lines: String = (0..40).map(|n| format!("stat f{n}\n")).collect();
        let text = format!("union overlay volatile\nlayer\nstat x\nlayer\nstat y\nsteps\n{lines}");
        let small = shrink(Case::parse(&text).unwrap(), |case| {
            let text = case.to_string();
            ["stat y", "stat f7\n", "stat f31\n"]
                .iter()
                .all(|l| text.contains(l))
        });
        let want = "union overlay \nlayer # 0\nstat y\nsteps\nstat f7\nstat f31\n";
        assert_eq!(small.to_string(), want);
    }
}
