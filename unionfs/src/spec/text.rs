//! Bytes of an option string: splitting, escapes, quotes, and how a piece is shown in a message.
//!
//! A backslash takes the meaning from `:`, `,`, `=`, `"` and itself; before anything else it is an
//! ordinary byte, as it always was in AUFS. A value that starts with `"` runs to the `"` that ends
//! the option, commas included (mount(8), "context=").

use crate::shown::Shown;
use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Bytes that a backslash makes ordinary.
const ESCAPABLE: &[u8] = b":,=\\\"";

/// Longest piece of user input repeated in a message, in characters.
const SHOWN_MAX: usize = 100;

/// Position of the first `wanted` that no backslash precedes.
pub(super) fn find(text: &[u8], wanted: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        if byte == b'\\'
            && text
                .get(at + 1)
                .is_some_and(|next| ESCAPABLE.contains(next))
        {
            at += 2;
        } else if byte == wanted {
            return Some(at);
        } else {
            at += 1;
        }
    }
    None
}

/// Cuts `text` in two at the first unescaped `separator`, which belongs to neither part.
pub(super) fn cut(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match find(text, separator) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// The parts of `text` between unescaped separators; empty ones included.
pub(super) fn split(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    let mut rest = Some(text);
    while let Some(text) = rest {
        let (part, tail) = cut(text, separator);
        parts.push(part);
        rest = tail;
    }
    parts
}

/// `text` without its escapes.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let escaped = (byte == b'\\')
            .then(|| bytes.next_if(|next| ESCAPABLE.contains(next)))
            .flatten();
        plain.push(escaped.unwrap_or(byte));
    }
    plain
}

/// Appends `text` to `out` so that [`unescape`] gives it back and no separator is seen in it.
pub(super) fn escape_into(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if ESCAPABLE.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

/// A path as the user meant it.
pub(super) fn path(text: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(text)))
}

/// `text` for a one-line message: escaped, the middle of long input left out.
pub(super) fn shown(text: &[u8]) -> String {
    let text = Shown(text).to_string();
    let length = text.chars().count();
    if length <= SHOWN_MAX {
        return text;
    }
    let head: String = text.chars().take(SHOWN_MAX / 2).collect();
    let tail: String = text.chars().skip(length - SHOWN_MAX / 2).collect();
    format!("{head}...{tail}")
}

/// One option of an option string.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    /// As written.
    pub raw: &'a [u8],
    /// The name of the option.
    pub key: &'a [u8],
    /// What stood between name and value: `=`, or `:` as AUFS allows for branches.
    pub separator: Option<u8>,
    /// The value: still escaped, quotes around it removed; empty if there is none.
    pub value: &'a [u8],
}

impl<'a> Token<'a> {
    fn new(raw: &'a [u8]) -> Self {
        let end = raw.iter().position(|&byte| byte == b'=' || byte == b':');
        let (key, separator, value) = match end {
            Some(end) => (&raw[..end], Some(raw[end]), &raw[end + 1..]),
            None => (raw, None, &raw[raw.len()..]),
        };
        let value = match closing_quote(value) {
            Some(close) if close + 1 == value.len() => &value[1..close],
            _ => value,
        };
        Self {
            raw,
            key,
            separator,
            value,
        }
    }

    /// The name of the option, for messages and look-ups; names are ASCII.
    pub fn name(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.key)
    }
}

/// Takes an option string apart. Empty options (`a,,b`) are skipped, as mount(8) does.
pub(super) fn tokens(text: &[u8]) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = option_len(rest);
        if end > 0 {
            found.push(Token::new(&rest[..end]));
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    found
}

/// Length of the first option of `text`.
fn option_len(text: &[u8]) -> usize {
    let comma = find(text, b',').unwrap_or(text.len());
    let Some(equals) = find(&text[..comma], b'=') else {
        return comma;
    };
    match closing_quote(&text[equals + 1..]) {
        Some(close) => equals + 1 + close + 1,
        None => comma,
    }
}

/// Position of the quote that ends a quoted value, if `value` is one.
fn closing_quote(value: &[u8]) -> Option<usize> {
    let body = value.strip_prefix(b"\"")?;
    let close = 1 + find(body, b'"')?;
    matches!(value.get(close + 1), None | Some(b',')).then_some(close)
}

/// The candidate that `name` was probably meant to be; `None` if nothing is close.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // One slip in a short word, a few in a long one; more would be guessing.
    let tolerance = (name.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= tolerance && distance < candidate.len())
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: how many letters to insert, drop or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(text: &[u8]) -> Vec<(&[u8], &[u8])> {
        tokens(text)
            .iter()
            .map(|token| (token.key, token.value))
            .collect()
    }

    #[test]
    fn options_end_at_unescaped_unquoted_commas() {
        assert_eq!(values(b"a,,b=1,"), [(&b"a"[..], &b""[..]), (b"b", b"1")]);
        assert_eq!(
            values(b"br:/a\\,b=rw,ro"),
            [(&b"br"[..], &b"/a\\,b=rw"[..]), (b"ro", b"")]
        );
        assert_eq!(
            values(b"context=\"u:r:t:s0:c1,c2\",ro"),
            [(&b"context"[..], &b"u:r:t:s0:c1,c2"[..]), (b"ro", b"")]
        );
    }

    #[test]
    fn a_lone_quote_is_an_ordinary_byte() {
        assert_eq!(
            values(b"del=\"a,b"),
            [(&b"del"[..], &b"\"a"[..]), (b"b", b"")]
        );
        assert_eq!(
            values(b"del=\"a\"b,c"),
            [(&b"del"[..], &b"\"a\"b"[..]), (b"c", b"")]
        );
    }

    #[test]
    fn backslash_is_special_only_before_special_bytes() {
        assert_eq!(unescape(br"a\:b\,c\=d\\e\xf\"), br"a:b,c=d\e\xf\");
        assert_eq!(split(br"a\:b:c\\:d", b':'), [&br"a\:b"[..], br"c\\", b"d"]);
    }

    #[test]
    fn messages_stay_on_one_short_line() {
        assert_eq!(shown(b"a\nb\xff"), r"a\nb\xff");
        assert_eq!(shown(&[b'x'; 1000]).len(), SHOWN_MAX + 3);
    }

    #[test]
    fn suggestions_are_near() {
        let names = ["udba", "plink", "dirperm1", "ro"];
        assert_eq!(nearest("dirperm", names), Some("dirperm1"));
        assert_eq!(nearest("plnik", names), None);
        assert_eq!(nearest("plinks", names), Some("plink"));
        assert_eq!(nearest("xyzzy", names), None);
    }

    proptest! {
        #[test]
        fn escape_round_trips(text: Vec<u8>) {
            let mut escaped = Vec::new();
            escape_into(&text, &mut escaped);
            prop_assert_eq!(unescape(&escaped), text);
            for separator in *b":,=" {
                prop_assert_eq!(find(&escaped, separator), None);
            }
        }

        #[test]
        fn tokens_never_panic(text: Vec<u8>) {
            tokens(&text);
            split(&text, b':');
            shown(&text);
        }
    }
}
