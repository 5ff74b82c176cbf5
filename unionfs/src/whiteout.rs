//! The names and marks by which a branch says "not here": pure classification, no I/O.
//!
//! AUFS and OCI layers: `.wh.NAME` hides NAME on the branches below, `.wh..wh..opq` in a directory
//! hides everything below it, every other `.wh..wh.` name is bookkeeping (spec: aufs.5; OCI image
//! layer specification). overlayfs: a character device 0/0 called NAME, and the `overlay.opaque`
//! attribute (Documentation/filesystems/overlayfs.rst).

use crate::sys::Name;

/// What every reserved name starts with.
pub const PREFIX: &[u8] = b".wh.";
/// What bookkeeping names start with.
pub const META_PREFIX: &[u8] = b".wh..wh.";
/// Marks its directory as opaque.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
/// The same, as fuse-overlayfs 1.x writes it besides.
pub const OPAQUE_FO: &[u8] = b".wh..opq";
/// The file that whiteouts are hard links of, in the branch root.
pub const BASE: &[u8] = b".wh..wh.aufs";
/// Pseudo-links, in the branch root.
pub const PLINK_DIR: &[u8] = b".wh..wh.plnk";
/// Orphans, in the branch root.
pub const ORPHAN_DIR: &[u8] = b".wh..wh.orph";
/// Our own bookkeeping, in the branch root (in the work directory for the overlay format).
pub const STORE_DIR: &[u8] = b".wh..wh.uaufs";

/// In the bookkeeping: a conversion to another format was begun and not finished.
pub const CONVERTING: &[u8] = b"convert";

/// The longest name of a file on any Linux filesystem.
pub const NAME_MAX: usize = 255;

/// What a name on a branch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameClass<'a> {
    /// An ordinary entry.
    Plain,
    /// Hides this name on the branches below.
    Whiteout(&'a [u8]),
    /// Marks the directory it is in as opaque.
    Opaque,
    /// Bookkeeping: never shown, no other meaning.
    Reserved,
}

/// Classifies a name found on a branch.
pub fn classify(name: &[u8]) -> NameClass<'_> {
    let Some(hidden) = name.strip_prefix(PREFIX) else {
        return NameClass::Plain;
    };
    match hidden {
        // `.wh.` alone hides nothing; AUFS shows it, and nobody can make it through a union.
        b"" => NameClass::Plain,
        b".opq" => NameClass::Opaque,
        _ if name == OPAQUE => NameClass::Opaque,
        _ if hidden.starts_with(PREFIX) => NameClass::Reserved,
        // OCI: `.wh..` and `.wh...` would hide the directory itself or its parent.
        b"." | b".." => NameClass::Reserved,
        _ => NameClass::Whiteout(hidden),
    }
}

/// May users of the union not use this name at all? (AUFS: EPERM for everything that begins with
/// `.wh.`)
pub fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX)
}

/// `.wh.NAME`; `None` when that would be too long for a filesystem.
pub fn whiteout_name(name: &[u8]) -> Option<Name> {
    if name.len() + PREFIX.len() > NAME_MAX {
        return None;
    }
    let mut out = Name::from_slice(PREFIX);
    out.extend_from_slice(name);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_classified_as_aufs_and_oci_do() {
        let table: &[(&[u8], NameClass<'_>)] = &[
            (b"a", NameClass::Plain),
            (b".wh", NameClass::Plain),
            (b".wh.", NameClass::Plain),
            (b".wh.a", NameClass::Whiteout(b"a")),
            (b".wh..a", NameClass::Whiteout(b".a")),
            (b".wh.\xff", NameClass::Whiteout(b"\xff")),
            (b".wh..wh..opq", NameClass::Opaque),
            (b".wh..opq", NameClass::Opaque),
            (b".wh..wh.aufs", NameClass::Reserved),
            (b".wh..wh.a.12ab", NameClass::Reserved),
            (b".wh..", NameClass::Reserved),
            (b".wh...", NameClass::Reserved),
        ];
        for (name, want) in table {
            assert_eq!(classify(name), *want, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn a_whiteout_name_fits_or_is_refused() {
        assert_eq!(whiteout_name(&[b'x'; 251]).map(|n| n.len()), Some(255));
        assert_eq!(whiteout_name(&[b'x'; 252]), None);
    }
}
