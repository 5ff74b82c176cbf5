//! POSIX ACLs as extended attributes hold them (linux/posix_acl_xattr.h).

/// The attribute of the ACL that decides who may do what with a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";

/// The attribute of the ACL that new files in a directory get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// `struct posix_acl_xattr_header`: version, 4 bytes.
pub const HEADER: usize = 4;
/// `struct posix_acl_xattr_entry`: tag and permissions of 2 bytes, id of 4.
pub const ENTRY: usize = 8;
/// Tag of an entry for one user.
pub const USER: u16 = 0x02;
/// Tag of the entry for the file's group.
pub const GROUP_OBJ: u16 = 0x04;
/// Tag of an entry for one group.
pub const GROUP: u16 = 0x08;
/// Tag of what users and groups can have at most.
pub const MASK: u16 = 0x10;
/// Tag of the entry for everybody else.
pub const OTHER: u16 = 0x20;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Whom it is for.
    pub tag: u16,
    /// Permission bits, as those of others in a mode.
    pub bits: u32,
    /// Which user or group.
    pub id: u32,
}

/// The entries of an ACL; `None` = malformed.
pub fn parse(value: &[u8]) -> Option<Vec<Entry>> {
    let (header, entries) = value.split_first_chunk::<HEADER>()?;
    if u32::from_le_bytes(*header) != 2 || entries.len() % ENTRY != 0 {
        return None;
    }
    let parse = |e: &[u8]| Entry {
        tag: u16::from_le_bytes([e[0], e[1]]),
        bits: u16::from_le_bytes([e[2], e[3]]).into(),
        id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
    };
    Some(entries.chunks_exact(ENTRY).map(parse).collect())
}

/// The most of a mode that lets nobody do what this ACL does not, for a file that cannot have it:
/// whoever has an entry of his own is one of the group or of the others then. A malformed one gives
/// them nothing.
pub fn mode_within(value: &[u8], mode: u32) -> u32 {
    let (mut group, mut other) = (0, 0);
    if let Some(acl) = parse(value) {
        let of = |tag| acl.iter().find(|e| e.tag == tag).map(|e| e.bits);
        let mask = of(MASK).unwrap_or(0o7);
        let named = acl.iter().filter(|e| matches!(e.tag, USER | GROUP));
        let all = named.fold(0o7, |all, e| all & e.bits & mask);
        group = of(GROUP_OBJ).unwrap_or(0) & mask & all;
        other = of(OTHER).unwrap_or(0) & all;
    }
    mode & (0o7700 | group << 3 | other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut raw = 2u32.to_le_bytes().to_vec();
        for (tag, bits) in entries {
            raw.extend(tag.to_le_bytes());
            raw.extend(bits.to_le_bytes());
            raw.extend(7u32.to_le_bytes());
        }
        raw
    }

    #[test]
    fn a_mode_in_place_of_an_acl_gives_nobody_more() {
        let base = [(0x01, 7), (GROUP_OBJ, 5), (OTHER, 5)];
        let with = |more: &[(u16, u16)]| acl(&[&base[..], more].concat());
        // The mode's bits of the group are the mask.
        let grants = with(&[(USER, 7), (MASK, 7)]);
        assert_eq!(mode_within(&grants, 0o775), 0o755);
        let masked = with(&[(USER, 7), (MASK, 1)]);
        assert_eq!(mode_within(&masked, 0o2715), 0o2711);
        let refuses = with(&[(USER, 0), (MASK, 5)]);
        assert_eq!(mode_within(&refuses, 0o4755), 0o4700);
        let refuses = with(&[(GROUP, 4), (MASK, 7)]);
        assert_eq!(mode_within(&refuses, 0o775), 0o744);
        assert_eq!(mode_within(&acl(&base), 0o755), 0o755);
        assert_eq!(mode_within(b"?", 0o755), 0o700);
    }
}
