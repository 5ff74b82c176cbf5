//! Permission words and attributes of a branch, to and from their text (`ro+wh+icexsec`).
//!
//! Source: aufs(5), "Branch Syntax". AUFS takes an unknown word for `ro` and stops at an unknown
//! attribute; here both are errors, because a union that silently cannot be written to (or that
//! silently shows deleted files) is worse than one that is not mounted.

use std::fmt;

use super::value::Problem;
use super::{Access, BranchPerm, CopyOnOpen, Format, FormatWord, IgnoreXattr, text};

/// What a user may write after the permission word.
const RIGHT: &str =
    "rw, ro or rr, with attributes as in ro+wh (a `=` or `:` in a path is written \\= or \\:)";

/// The classes of `+icex*`, in the order in which AUFS prints them.
const IGNORE_XATTR: [(&str, IgnoreXattr); 5] = [
    ("icexsec", IgnoreXattr::SECURITY),
    ("icexsys", IgnoreXattr::SYSTEM),
    ("icextr", IgnoreXattr::TRUSTED),
    ("icexusr", IgnoreXattr::USER),
    ("icexoth", IgnoreXattr::OTHER),
];

/// The attributes that say the format of a branch's marks.
const FORMATS: [FormatWord; 3] = [
    FormatWord::Fixed(Format::Aufs),
    FormatWord::Fixed(Format::Overlay),
    FormatWord::Auto,
];

/// Reads `rw`, `ro+wh`, ... . Attributes that do not fit the word are dropped, as AUFS does, and
/// told in the second value.
pub(super) fn parse(value: &[u8]) -> Result<(BranchPerm, Vec<String>), Problem> {
    let mut words = value.split(|&byte| byte == b'+');
    let mut perm = match words.next().unwrap_or_default() {
        b"rw" => BranchPerm::RW,
        b"ro" => BranchPerm::RO,
        b"rr" => BranchPerm {
            access: Access::RealReadOnly,
            ..BranchPerm::RO
        },
        word => {
            return Err(Problem::new(
                format!("unknown permission `{}`", text::shown(word)),
                RIGHT,
            ));
        }
    };
    let mut dropped = Vec::new();
    for word in words {
        if let Some(reason) = add_attribute(&mut perm, word)? {
            dropped.push(format!("+{}: no effect: {reason}", text::shown(word)));
        }
    }
    Ok((perm, dropped))
}

/// Sets one attribute; `Some(reason)` if it has no effect.
fn add_attribute(perm: &mut BranchPerm, word: &[u8]) -> Result<Option<&'static str>, Problem> {
    let writable = perm.writable();
    match word {
        b"wh" if writable => return Ok(Some("whiteouts of a rw branch always count")),
        b"wh" => perm.whiteouts = true,
        b"nolwh" if !writable => return Ok(Some("only a rw branch receives whiteouts")),
        b"nolwh" => perm.no_link_whiteout = true,
        b"moo" if !writable => return Ok(Some("files can be moved away from a rw branch only")),
        b"moo" => perm.copy_on_open = CopyOnOpen::Move,
        b"coo_reg" => perm.copy_on_open = CopyOnOpen::Regular,
        b"coo_all" => perm.copy_on_open = CopyOnOpen::All,
        b"fhsm" if !writable => return Ok(Some("files are moved between rw branches only")),
        b"fhsm" => perm.fhsm = true,
        b"unpin" => return Ok(Some("branches are not pinned")),
        b"icex" => perm.ignore_xattr = IgnoreXattr::all(),
        _ => return add_class_or_format(perm, word).map(|()| None),
    }
    Ok(None)
}

fn add_class_or_format(perm: &mut BranchPerm, word: &[u8]) -> Result<(), Problem> {
    if let Some(&(_, class)) = IGNORE_XATTR
        .iter()
        .find(|(name, _)| name.as_bytes() == word)
    {
        perm.ignore_xattr |= class;
        return Ok(());
    }
    match FORMATS.iter().find(|f| f.word().as_bytes() == word) {
        Some(format) => {
            perm.format = Some(*format);
            Ok(())
        }
        None => Err(Problem::new(
            format!("unknown branch attribute `+{}`", text::shown(word)),
            "wh, nolwh, coo_reg, coo_all, moo, fhsm, icex[sec|sys|tr|usr|oth], aufs|overlay|auto",
        )),
    }
}

/// The word and its attributes in AUFS's canonical order, as in `rw+coo_reg+icexsec+nolwh`.
impl fmt::Display for BranchPerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.access {
            Access::ReadWrite => "rw",
            Access::ReadOnly => "ro",
            Access::RealReadOnly => "rr",
        })?;
        match self.copy_on_open {
            CopyOnOpen::Regular => f.write_str("+coo_reg")?,
            CopyOnOpen::All => f.write_str("+coo_all")?,
            CopyOnOpen::Never | CopyOnOpen::Move => {}
        }
        if self.fhsm {
            f.write_str("+fhsm")?;
        }
        if self.ignore_xattr.is_all() {
            f.write_str("+icex")?;
        } else {
            for (name, class) in IGNORE_XATTR {
                if self.ignore_xattr.contains(class) {
                    write!(f, "+{name}")?;
                }
            }
        }
        if self.whiteouts && !self.writable() {
            f.write_str("+wh")?;
        }
        if self.copy_on_open == CopyOnOpen::Move {
            f.write_str("+moo")?;
        }
        if self.no_link_whiteout {
            f.write_str("+nolwh")?;
        }
        if let Some(format) = self.format {
            write!(f, "+{}", format.word())?;
        }
        // Told, but not read back: only the overlay form has such layers.
        if self.data_only {
            f.write_str("+data")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any permission that can be written down.
    pub fn any_perm() -> impl Strategy<Value = BranchPerm> {
        let coo = prop_oneof![
            Just(CopyOnOpen::Never),
            Just(CopyOnOpen::Regular),
            Just(CopyOnOpen::All),
            Just(CopyOnOpen::Move)
        ];
        let access = prop_oneof![
            Just(Access::ReadWrite),
            Just(Access::ReadOnly),
            Just(Access::RealReadOnly)
        ];
        (
            access,
            any::<bool>(),
            any::<bool>(),
            coo,
            any::<bool>(),
            0..32_u8,
            prop::option::of(prop::sample::select(&FORMATS[..])),
        )
            .prop_map(
                |(access, whiteouts, no_link_whiteout, copy_on_open, fhsm, classes, format)| {
                    let writable = access == Access::ReadWrite;
                    BranchPerm {
                        access,
                        whiteouts: writable || whiteouts,
                        no_link_whiteout: writable && no_link_whiteout,
                        copy_on_open: match copy_on_open {
                            CopyOnOpen::Move if !writable => CopyOnOpen::Never,
                            other => other,
                        },
                        fhsm: writable && fhsm,
                        ignore_xattr: IgnoreXattr::from_bits_truncate(classes),
                        format,
                        data_only: false,
                    }
                },
            )
    }

    fn canonical(text: &str) -> String {
        parse(text.as_bytes()).unwrap().0.to_string()
    }

    #[test]
    fn attributes_are_printed_in_canonical_order() {
        for (written, printed) in [
            ("rw", "rw"),
            ("rw+nolwh+icexsec+coo_reg", "rw+coo_reg+icexsec+nolwh"),
            ("ro+wh+coo_all", "ro+coo_all+wh"),
            ("rr+icex", "rr+icex"),
            ("rr+wh", "rr+wh"),
            ("rw+icexoth+icexusr+icextr+icexsys+icexsec", "rw+icex"),
            ("rw+coo_all+moo", "rw+moo"),
            ("rw+moo+coo_reg", "rw+coo_reg"),
            ("rw+fhsm", "rw+fhsm"),
            ("ro+overlay+wh", "ro+wh+overlay"),
            ("ro+auto+aufs", "ro+aufs"),
        ] {
            assert_eq!(canonical(written), printed, "{written}");
        }
    }

    #[test]
    fn misplaced_attributes_are_dropped_and_told() {
        for (written, printed, told) in [
            (
                "rw+wh",
                "rw",
                "+wh: no effect: whiteouts of a rw branch always count",
            ),
            (
                "ro+nolwh",
                "ro",
                "+nolwh: no effect: only a rw branch receives whiteouts",
            ),
            (
                "ro+moo",
                "ro",
                "+moo: no effect: files can be moved away from a rw branch only",
            ),
            (
                "ro+unpin",
                "ro",
                "+unpin: no effect: branches are not pinned",
            ),
        ] {
            let (perm, dropped) = parse(written.as_bytes()).unwrap();
            assert_eq!(
                (perm.to_string().as_str(), &dropped[..]),
                (printed, &[told.to_owned()][..])
            );
        }
    }

    #[test]
    fn unknown_words_are_errors() {
        let wrong = |text: &str| parse(text.as_bytes()).unwrap_err().wrong;
        assert_eq!(wrong("xyz"), "unknown permission `xyz`");
        assert_eq!(wrong("RW"), "unknown permission `RW`");
        assert_eq!(wrong("ro+what"), "unknown branch attribute `+what`");
        assert_eq!(wrong("ro+"), "unknown branch attribute `+`");
    }

    proptest! {
        #[test]
        fn permissions_round_trip(perm in any_perm()) {
            prop_assert_eq!(parse(perm.to_string().as_bytes()).unwrap().0, perm);
        }

        #[test]
        fn permissions_never_panic(value: Vec<u8>) {
            let _ = parse(&value);
        }
    }
}
