//! What the user reads: lines on standard output and error that no text in them can break.

use crate::error::Explain;
use anyhow::Result;
use std::io::Write;

/// Writes a line to standard output.
pub fn print(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.explain(|| "writing to standard output".into())
}

/// Writes a line to standard error, if that still leads anywhere.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "ulaunch: {}", plain(line));
}

/// A text of which nothing starts a new line or commands the terminal.
pub fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(plain("a\nb\x1b[31m\u{9b}ü"), "a\\nb\\u{1b}[31m\\u{9b}ü");
    }
}
