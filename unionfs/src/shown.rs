//! File names as people and programs read them: names need not be UTF-8 and may hold line breaks.

use serde::{Serialize, Serializer};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A path or name to be shown. As text, what would not survive a line of a terminal is escaped as
/// in `\n` and `\xff` (and `\` as `\\`); in JSON it is a string, or a list of bytes where it is no
/// UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown<'a>(pub &'a [u8]);

/// Paths are shown the same way in every message and output.
pub trait ShowPath {
    /// The path to be shown.
    fn shown(&self) -> Shown<'_>;
}

impl ShowPath for Path {
    fn shown(&self) -> Shown<'_> {
        Shown(self.as_os_str().as_bytes())
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' | '\n' | '\t' | '\r' => write!(f, "{}", c.escape_default())?,
                    c if c.is_control() => {
                        let mut buf = [0; 4];
                        for byte in c.encode_utf8(&mut buf).bytes() {
                            write!(f, "\\x{byte:02x}")?;
                        }
                    }
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.serialize_bytes(self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_takes_one_line_and_no_two_look_alike() {
        let table: &[(&[u8], &str, &str)] = &[
            (b"/a b", "/a b", "\"/a b\""),
            ("\u{e4}".as_bytes(), "\u{e4}", "\"\u{e4}\""),
            (b"a\nb\\n", r"a\nb\\n", r#""a\nb\\n""#),
            (b"\xff\x01", r"\xff\x01", "[255,1]"),
        ];
        for (name, text, json) in table {
            assert_eq!(Shown(name).to_string(), *text);
            assert_eq!(serde_json::to_string(&Shown(name)).unwrap(), *json);
        }
    }
}
