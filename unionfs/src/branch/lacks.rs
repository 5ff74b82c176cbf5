//! What the filesystem of a writable branch cannot do (NFS, vfat, many FUSE filesystems), found out by
//! trying.

use super::marks::{create_mark, make_null_device};
use crate::sys::{creds, xattr};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, RenameFlags, fstatfs, linkat, renameat_with, symlinkat, unlinkat};
use std::fmt;

/// Filesystems that can do all of it: ext2 to ext4, XFS, Btrfs. Source: linux/magic.h.
const RICH: [u32; 3] = [0xef53, 0x5846_5342, 0x9123_683e];

/// What it lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// Hard links.
    pub links: bool,
    /// Symbolic links.
    pub symlinks: bool,
    /// Extended attributes of users, and with them most likely all.
    pub xattrs: bool,
    /// Device nodes, though this process may make them.
    pub devices: bool,
    /// Exchanging two names in one step.
    pub exchange: bool,
}

impl Lacks {
    /// Tries all of it in `dir`, an empty directory of our own that is open for reading.
    pub(super) fn probe(dir: &OwnedFd) -> Self {
        let kind = fstatfs(dir).map_or(0, |s| s.f_type as u32);
        if RICH.contains(&kind) {
            return Self::default();
        }
        let (one, two) = (&b"probe"[..], &b"probe.2"[..]);
        let may_make_devices = creds::is_privileged() && creds::in_initial_userns();
        let mut lacks = Self {
            xattrs: !xattr::supports_user_xattrs(dir.as_fd()),
            symlinks: symlinkat(c"x", dir, one).is_err(),
            ..Self::default()
        };
        remove(dir, one);
        lacks.devices = may_make_devices && make_null_device(dir, one).is_err();
        remove(dir, one);
        // Without a file nothing can be said; nor can anything be written then.
        if create_mark(dir, one).is_ok() {
            lacks.links = linkat(dir, one, dir, two, AtFlags::empty()).is_err();
            remove(dir, two);
            lacks.exchange = create_mark(dir, two).is_ok()
                && renameat_with(dir, one, dir, two, RenameFlags::EXCHANGE).is_err();
            remove(dir, two);
        }
        remove(dir, one);
        lacks
    }
}

/// (What is left lies in a directory that the next mount empties.)
fn remove(dir: &OwnedFd, name: &[u8]) {
    let _ = unlinkat(dir, name, AtFlags::empty());
}

/// A list for people, with what follows from it; empty if it can do everything.
impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (
                self.xattrs,
                "extended attributes (copies lose capabilities, and ACLs become modes)",
            ),
            (
                self.links,
                "hard links (the names of a lower file part when it is changed)",
            ),
            (self.symlinks, "symbolic links"),
            (self.devices, "device nodes"),
            (self.exchange, "RENAME_EXCHANGE"),
        ];
        let lacking: Vec<&str> = all.iter().filter(|(l, _)| *l).map(|(_, w)| *w).collect();
        f.write_str(&lacking.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_lacking_is_told() {
        assert_eq!(Lacks::default().to_string(), "");
        let lacks = Lacks {
            devices: true,
            exchange: true,
            ..Lacks::default()
        };
        assert_eq!(lacks.to_string(), "device nodes, RENAME_EXCHANGE");
    }
}
