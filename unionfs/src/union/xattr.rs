//! GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.

use super::Union;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::types::*;

/// Attributes that are marks of the overlay format, not of the file.
const MARKS: &[&[u8]] = &[
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
];

pub(super) fn is_mark(name: &[u8]) -> bool {
    MARKS.iter().any(|prefix| name.starts_with(prefix))
}

impl Union {
    /// Are attributes of this name marks on some branch?
    fn hides_xattr(&self, name: &[u8]) -> bool {
        is_mark(name)
            && self
                .stack()
                .branches()
                .iter()
                .any(|b| b.format == Format::Overlay)
    }

    fn refuses_xattr(&self, name: &[u8]) -> bool {
        !self.options().acl && name.starts_with(b"system.posix_acl_")
    }

    /// GETXATTR: the whole value.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> XattrResult {
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        if self.hides_xattr(name) {
            return Err(Errno::NODATA);
        }
        let node = self.node(node)?;
        self.with_place(&node, |_, loc| loc.xattrs(|x| x.get(name)))
    }

    /// LISTXATTR: names, each with its NUL.
    pub fn listxattr(&self, node: NodeId) -> XattrResult {
        let node = self.node(node)?;
        let mut names = self.with_place(&node, |_, loc| loc.xattrs(|x| x.list()))?;
        if names
            .windows(9)
            .any(|w| w == b".overlay." || w == b"fuseoverl")
            || !self.options().acl
        {
            names = names
                .split_inclusive(|b| *b == 0)
                .filter(|n| {
                    let bare = n.strip_suffix(b"\0").unwrap_or(n);
                    !self.hides_xattr(bare) && !self.refuses_xattr(bare)
                })
                .flatten()
                .copied()
                .collect();
        }
        Ok(names)
    }

    /// SETXATTR, `flags` as in setxattr(2).
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if self.hides_xattr(name) {
            return Err(Errno::PERM);
        }
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(node)?;
        let _stays = node.change.read();
        self.make_writable(&node)?;
        self.with_place(&node, |_, loc| {
            loc.xattrs(|x| x.set(name, value, flags as u32))
        })
    }

    /// REMOVEXATTR.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        if self.hides_xattr(name) {
            return Err(Errno::NODATA);
        }
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(node)?;
        let _stays = node.change.read();
        // Nothing to remove: nothing is copied up for it.
        self.with_place(&node, |_, loc| loc.xattrs(|x| x.get(name)))?;
        self.make_writable(&node)?;
        self.with_place(&node, |_, loc| loc.xattrs(|x| x.remove(name)))
    }
}
