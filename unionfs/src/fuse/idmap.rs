//! Translation of owners between the mount (the wire) and the branches. Pure.
//!
//! Source: fuse-overlayfs(1), `uidmapping`, `gidmapping`, `squash_to_uid`, `squash_to_gid`.

use crate::errno::{Errno, Result};
use crate::spec::{IdMap, Options};
use crate::sys::acl;
use crate::sys::creds::OVERFLOW_ID;
use crate::types::{Attr, Caller, DirPermission, SetAttr};

/// The xattr of a POSIX ACL.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The maps of a mount.
#[derive(Clone, Debug, Default)]
pub struct IdMaps {
    uid: IdMap,
    gid: IdMap,
    squash_uid: Option<u32>,
    squash_gid: Option<u32>,
}

impl IdMaps {
    /// As the options ask.
    pub fn new(options: &Options) -> Self {
        Self {
            uid: options.uid_map.clone(),
            gid: options.gid_map.clone(),
            squash_uid: options.squash_uid,
            squash_gid: options.squash_gid,
        }
    }

    /// Are the ids of ACL entries to be rewritten?
    fn maps_ids(&self) -> bool {
        !self.uid.0.is_empty() || !self.gid.0.is_empty()
    }

    /// The owner of new files: the caller on the branch. A caller outside the map owns them as
    /// [`OVERFLOW_ID`], so that the mounter can still prepare a tree for mapped users.
    pub fn caller(&self, wire: Caller) -> Caller {
        Caller {
            uid: to_branch(&self.uid, wire.uid).unwrap_or(OVERFLOW_ID),
            gid: to_branch(&self.gid, wire.gid).unwrap_or(OVERFLOW_ID),
            ..wire
        }
    }

    /// The owner to set on the branch.
    ///
    /// # Errors
    /// EINVAL when the map does not cover it, as chown(2) on an idmapped mount.
    pub fn set_attr(&self, wire: SetAttr) -> Result<SetAttr> {
        let map = |map: &IdMap, id: Option<u32>| {
            id.map(|id| to_branch(map, id).ok_or(Errno::INVAL))
                .transpose()
        };
        Ok(SetAttr {
            uid: map(&self.uid, wire.uid)?,
            gid: map(&self.gid, wire.gid)?,
            ..wire
        })
    }

    /// The attributes as users of the mount see them.
    pub fn attr(&self, branch: Attr) -> Attr {
        Attr {
            uid: self.wire_uid(branch.uid),
            gid: self.wire_gid(branch.gid),
            ..branch
        }
    }

    /// Permissions of a directory as users of the mount see them.
    pub fn permission(&self, mut branch: DirPermission) -> DirPermission {
        branch.uid = self.wire_uid(branch.uid);
        branch.gid = self.wire_gid(branch.gid);
        if let Some(acl) = &mut branch.acl {
            self.xattr_to_wire(ACCESS_ACL, acl);
        }
        branch
    }

    /// A uid of the branches as users of the mount see it.
    fn wire_uid(&self, id: u32) -> u32 {
        self.squash_uid.unwrap_or_else(|| to_wire(&self.uid, id))
    }

    /// A gid of the branches as users of the mount see it.
    pub(super) fn wire_gid(&self, id: u32) -> u32 {
        self.squash_gid.unwrap_or_else(|| to_wire(&self.gid, id))
    }

    /// Rewrites the value of a POSIX ACL xattr read from a branch; other xattrs stay as they are.
    pub fn xattr_to_wire(&self, name: &[u8], value: &mut [u8]) {
        if self.maps_ids() && is_acl(name) {
            // A malformed ACL is passed on as it is: the kernel refuses it.
            let _ = map_acl(
                value,
                |id| Some(to_wire(&self.uid, id)),
                |id| Some(to_wire(&self.gid, id)),
            );
        }
    }

    /// The value of an xattr as it is to be written to a branch; `None` = unchanged.
    ///
    /// # Errors
    /// EINVAL for an ACL that is malformed or names an id outside the map.
    pub fn xattr_to_branch(&self, name: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>> {
        if !self.maps_ids() || !is_acl(name) {
            return Ok(None);
        }
        let mut mapped = value.to_vec();
        map_acl(
            &mut mapped,
            |id| to_branch(&self.uid, id),
            |id| to_branch(&self.gid, id),
        )?;
        Ok(Some(mapped))
    }
}

/// Does this xattr hold a POSIX ACL?
pub(super) fn is_acl(name: &[u8]) -> bool {
    matches!(name, ACCESS_ACL | b"system.posix_acl_default")
}

/// Wire -> branch; `None` = not covered. An empty map is the identity.
fn to_branch(map: &IdMap, id: u32) -> Option<u32> {
    if map.0.is_empty() {
        return Some(id);
    }
    map.0
        .iter()
        .find_map(|range| shift(id, range.mount, range.branch, range.count))
}

/// Branch -> wire; not covered = [`OVERFLOW_ID`].
fn to_wire(map: &IdMap, id: u32) -> u32 {
    if map.0.is_empty() {
        return id;
    }
    map.0
        .iter()
        .find_map(|range| shift(id, range.branch, range.mount, range.count))
        .unwrap_or(OVERFLOW_ID)
}

/// Moves `id` from a range starting at `from` to the one starting at `to`.
fn shift(id: u32, from: u32, to: u32, count: u32) -> Option<u32> {
    let offset = id.checked_sub(from).filter(|offset| *offset < count)?;
    to.checked_add(offset)
}

/// Rewrites the ids of named users and groups. Source: linux/posix_acl_xattr.h.
fn map_acl(
    value: &mut [u8],
    uid: impl Fn(u32) -> Option<u32>,
    gid: impl Fn(u32) -> Option<u32>,
) -> Result<()> {
    if value.is_empty() {
        return Ok(());
    }
    let entries = value.get_mut(acl::HEADER..).ok_or(Errno::INVAL)?;
    let mut entries = entries.chunks_exact_mut(acl::ENTRY);
    for entry in &mut entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match tag {
            acl::USER => uid(id).ok_or(Errno::INVAL)?,
            acl::GROUP => gid(id).ok_or(Errno::INVAL)?,
            _ => continue,
        };
        entry[4..].copy_from_slice(&mapped.to_le_bytes());
    }
    if entries.into_remainder().is_empty() {
        Ok(())
    } else {
        Err(Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Grammar, IdRange};
    use proptest::prelude::*;

    fn range(branch: u32, mount: u32, count: u32) -> IdRange {
        IdRange {
            branch,
            mount,
            count,
        }
    }

    fn maps(ranges: &[IdRange]) -> IdMaps {
        let mut options = Options::defaults(Grammar::Overlay);
        options.uid_map = IdMap(ranges.to_vec());
        options.gid_map = IdMap(ranges.to_vec());
        IdMaps::new(&options)
    }

    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut value = 2u32.to_le_bytes().to_vec();
        for (tag, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(7u16.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn containers_map_is_applied_both_ways() {
        // The branch's root is the mount's 1000, the branch's 1.. are the mount's 100000..
        let maps = maps(&[range(0, 1000, 1), range(1, 100_000, 65536)]);
        let caller = maps.caller(Caller {
            uid: 1000,
            gid: 100_004,
            pid: 7,
        });
        assert_eq!((caller.uid, caller.gid, caller.pid), (0, 5, 7));
        assert_eq!(
            (maps.wire_uid(0), maps.wire_gid(5), maps.wire_uid(70_000)),
            (1000, 100_004, OVERFLOW_ID)
        );
        assert_eq!(
            maps.caller(Caller {
                uid: 5,
                gid: 5,
                pid: 0
            })
            .uid,
            OVERFLOW_ID
        );
        let set = SetAttr {
            uid: Some(5),
            ..SetAttr::default()
        };
        assert_eq!(maps.set_attr(set).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn squash_changes_only_what_is_shown() {
        let mut options = Options::defaults(Grammar::Overlay);
        options.squash_uid = Some(42);
        let maps = IdMaps::new(&options);
        assert_eq!((maps.wire_uid(0), maps.wire_gid(9)), (42, 9));
        assert_eq!(
            maps.caller(Caller {
                uid: 1,
                gid: 2,
                pid: 3
            })
            .uid,
            1
        );
    }

    #[test]
    fn acl_entries_of_named_ids_are_mapped() {
        let maps = maps(&[range(0, 1000, 10)]);
        let name = b"system.posix_acl_access";
        let on_branch = acl(&[
            (1, u32::MAX),
            (acl::USER, 3),
            (acl::GROUP, 4),
            (0x10, u32::MAX),
        ]);
        let on_wire = acl(&[
            (1, u32::MAX),
            (acl::USER, 1003),
            (acl::GROUP, 1004),
            (0x10, u32::MAX),
        ]);
        let mut value = on_branch.clone();
        maps.xattr_to_wire(name, &mut value);
        assert_eq!(value, on_wire);
        assert_eq!(
            maps.xattr_to_branch(name, &on_wire).unwrap(),
            Some(on_branch)
        );
        assert_eq!(maps.xattr_to_branch(b"user.x", &on_wire).unwrap(), None);
        assert_eq!(
            maps.xattr_to_branch(name, &acl(&[(acl::USER, 5)]))
                .unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(
            maps.xattr_to_branch(name, &on_wire[..9]).unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(maps.xattr_to_branch(name, b"ab").unwrap_err(), Errno::INVAL);
    }

    proptest! {
        #[test]
        fn mapping_there_and_back_is_the_identity(id in 0u32..200_000, branch in 0u32..100_000, mount in 0u32..100_000, count in 1u32..100_000) {
            let map = IdMap(vec![range(branch, mount, count)]);
            if let Some(there) = to_branch(&map, id) {
                prop_assert_eq!(to_wire(&map, there), id);
            }
        }

        #[test]
        fn no_acl_value_panics(value in proptest::collection::vec(any::<u8>(), 0..64)) {
            let maps = maps(&[range(0, 1000, 10)]);
            let _ = maps.xattr_to_branch(b"system.posix_acl_default", &value);
            maps.xattr_to_wire(b"system.posix_acl_default", &mut value.clone());
        }
    }
}
