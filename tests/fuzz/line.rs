//! One line of a case: words, of which each may hold any bytes.

use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::fmt;

/// A step, in words: `as USER` if it is not root's, the verb, what it is applied to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub words: Vec<Vec<u8>>,
}

impl Line {
    pub fn of(words: &[&[u8]]) -> Self {
        let words = words.iter().map(|w| w.to_vec()).collect();
        Self { words }
    }

    pub fn parse(text: &str) -> Result<Option<Self>> {
        let text = text.split('#').next().unwrap_or_default();
        let words: Result<Vec<_>> = text.split_whitespace().map(unescape).collect();
        let words = words.with_context(|| format!("in the line {text:?}"))?;
        Ok((!words.is_empty()).then_some(Self { words }))
    }

    /// Who does it: an index of [`super::exec::USERS`].
    pub fn user(&self) -> usize {
        if self.words[0] == b"as" {
            let word = self.words.get(1).and_then(|w| w.first());
            word.map_or(0, |b| usize::from(b.wrapping_sub(b'0')))
        } else {
            0
        }
    }

    pub fn verb(&self) -> &str {
        let at = if self.words[0] == b"as" { 2 } else { 0 };
        self.words
            .get(at)
            .and_then(|w| std::str::from_utf8(w).ok())
            .unwrap_or_default()
    }

    /// Is a POSIX ACL spoken of?
    pub fn names_acl(&self) -> bool {
        self.words
            .iter()
            .any(|w| w.starts_with(b"system.posix_acl"))
    }

    /// Is there a name whose whiteout is a device in both formats?
    pub fn has_long_name(&self) -> bool {
        let names = self.words.iter().flat_map(|w| w.split(|b| *b == b'/'));
        names.into_iter().any(|name| name.len() > 251)
    }

    /// What follows the verb.
    pub fn args(&self) -> Args<'_> {
        let at = if self.words[0] == b"as" { 3 } else { 1 };
        Args {
            rest: self.words.get(at..).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, word) in self.words.iter().enumerate() {
            let space = if n == 0 { "" } else { " " };
            write!(f, "{space}{}", escape(word))?;
        }
        Ok(())
    }
}

/// Words that are taken one after the other.
#[derive(Clone)]
pub struct Args<'a> {
    rest: &'a [Vec<u8>],
}

impl<'a> Args<'a> {
    pub fn word(&mut self) -> Result<&'a [u8]> {
        let (first, rest) = self.rest.split_first().context("a word is missing")?;
        self.rest = rest;
        Ok(first)
    }

    pub fn text(&mut self) -> Result<&'a str> {
        Ok(std::str::from_utf8(self.word()?)?)
    }

    pub fn c_string(&mut self) -> Result<CString> {
        Ok(CString::new(self.word()?)?)
    }

    pub fn number(&mut self) -> Result<i64> {
        let word = self.text()?;
        word.parse().with_context(|| format!("{word}: no number"))
    }

    pub fn octal(&mut self) -> Result<u32> {
        let word = self.text()?;
        u32::from_str_radix(word, 8).with_context(|| format!("{word}: not octal"))
    }

    pub fn slot(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.number()?)?)
    }
}

/// Runs of this many equal bytes are written as `{BYTE*COUNT}`.
const RUN: usize = 16;

pub fn escape(word: &[u8]) -> String {
    if word.is_empty() {
        return "{}".into();
    }
    let mut text = String::new();
    let mut at = 0;
    while at < word.len() {
        let byte = word[at];
        let run = word[at..].iter().take_while(|b| **b == byte).count();
        let shown = match byte {
            b' ' | b'#' | b'{' | b'}' => format!("\\x{byte:02x}"),
            _ => byte.escape_ascii().to_string(),
        };
        if run >= RUN {
            text += &format!("{{{shown}*{run}}}");
            at += run;
        } else {
            text += &shown;
            at += 1;
        }
    }
    text
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let mut word = Vec::new();
    let mut rest = text;
    if text == "{}" {
        return Ok(word);
    }
    while !rest.is_empty() {
        if let Some(run) = rest.strip_prefix('{') {
            let (byte, more) = one(run)?;
            let more = more.strip_prefix('*').context("'*' is missing")?;
            let (count, more) = more.split_once('}').context("'}' is missing")?;
            let count: usize = count.parse()?;
            word.resize(word.len() + count, byte);
            rest = more;
        } else {
            let (byte, more) = one(rest)?;
            word.push(byte);
            rest = more;
        }
    }
    Ok(word)
}

fn one(text: &str) -> Result<(u8, &str)> {
    let Some(escaped) = text.strip_prefix('\\') else {
        let first = *text.as_bytes().first().context("a byte is missing")?;
        return Ok((first, text.get(1..).context("not ASCII")?));
    };
    let (code, more) = escaped.split_at_checked(1).context("after '\\'")?;
    Ok(match code {
        "x" => {
            let (digits, more) = more.split_at_checked(2).context("after '\\x'")?;
            (u8::from_str_radix(digits, 16)?, more)
        }
        "n" => (b'\n', more),
        "t" => (b'\t', more),
        "r" => (b'\r', more),
        "\\" | "'" | "\"" => (code.as_bytes()[0], more),
        _ => bail!("\\{code}: unknown"),
    })
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn what_is_written_is_read_again() {
        let words: [&[u8]; 5] = [b"mkdir", b"", b"a b#{}\\\xff\n'", &[b'n'; 255], b"644"];
        let line = Line::of(&words);
        let text = line.to_string();
        assert!(text.contains("{n*255}"), "{text}");
        assert_eq!(Line::parse(&text).unwrap(), Some(line));
        assert_eq!(Line::parse(" # nothing").unwrap(), None);
    }
}
