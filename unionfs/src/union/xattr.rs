//! GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.
//!
//! On a branch in the overlay format overlayfs's own attributes are marks, which users do not see;
//! theirs of these names (of an overlay inside the mount) are stored under escaped ones.

use super::Union;
use crate::branch::{Branch, overlay};
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::xattr;
use crate::types::*;
use std::borrow::Cow;

/// What an attribute that is found on a branch is called; `None` = it is a mark.
pub(super) fn shown_name<'a>(branch: &Branch, stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    match branch.format {
        Format::Overlay
            if branch
                .owners
                .is_some_and(|o| o.shown_name(stored).is_none()) =>
        {
            None
        }
        Format::Overlay => match branch.owners.and_then(|o| o.shown_name(stored)) {
            Some(theirs) if *theirs != *stored => Some(theirs),
            _ => overlay::shown_name(stored),
        },
        Format::Aufs => Some(Cow::Borrowed(stored)),
    }
}

/// What an attribute is called on a branch; `None` = it would be a mark there.
pub(super) fn stored_name<'a>(branch: &Branch, name: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    match branch.format {
        Format::Overlay if name.starts_with(overlay::FUSE_OVERLAYFS) => None,
        Format::Overlay if branch.owners.is_some_and(|o| o.stored_name(name).is_none()) => None,
        Format::Overlay if branch.owners.is_some() && name.starts_with(b"security.") => {
            branch.owners.and_then(|o| o.stored_name(name))
        }
        Format::Overlay => Some(overlay::stored_name(name)),
        Format::Aufs => Some(Cow::Borrowed(name)),
    }
}

impl Union {
    fn refuses_xattr(&self, name: &[u8]) -> bool {
        !self.options().acl && name.starts_with(b"system.posix_acl_")
    }

    /// Would an attribute of this name be a mark on some branch?
    fn is_mark(&self, name: &[u8]) -> bool {
        name.starts_with(overlay::FUSE_OVERLAYFS)
            && self
                .stack()
                .branches()
                .iter()
                .any(|b| b.format == Format::Overlay)
    }

    /// GETXATTR: the whole value.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> XattrResult {
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(node)?;
        self.with_place(&node, |branch, loc| {
            let stored = stored_name(branch, name).ok_or(Errno::NODATA)?;
            loc.xattrs(|x| x.get(&stored))
        })
    }

    /// LISTXATTR: names, each with its NUL.
    pub fn listxattr(&self, node: NodeId) -> XattrResult {
        let node = self.node(node)?;
        let acl = self.options().acl;
        self.with_place(&node, |branch, loc| {
            let names = loc.xattrs(|x| x.list())?;
            if branch.format != Format::Overlay && acl {
                return Ok(names);
            }
            let mut shown = Vec::with_capacity(names.len());
            for stored in xattr::names(&names) {
                if let Some(name) = shown_name(branch, stored)
                    && !self.refuses_xattr(&name)
                {
                    shown.extend_from_slice(&name);
                    shown.push(0);
                }
            }
            Ok(shown)
        })
    }

    /// SETXATTR, `flags` as in setxattr(2).
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        if self.is_mark(name) {
            return Err(Errno::PERM);
        }
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(node)?;
        let _stays = node.change.read();
        self.make_writable(&node)?;
        self.with_place(&node, |branch, loc| {
            let stored = stored_name(branch, name).ok_or(Errno::PERM)?;
            loc.xattrs(|x| x.set(&stored, value, flags as u32))
        })
    }

    /// REMOVEXATTR.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        if self.refuses_xattr(name) {
            return Err(Errno::OPNOTSUPP);
        }
        let node = self.node(node)?;
        let _stays = node.change.read();
        // Nothing to remove: nothing is copied up for it. That there was no ACL is no error
        // (`vfs_remove_acl` in Linux).
        let there = self.with_place(&node, |branch, loc| {
            if !branch.writable() && !self.can_be_copied(branch.id) {
                return Err(Errno::ROFS);
            }
            let stored = stored_name(branch, name).ok_or(Errno::NODATA)?;
            loc.xattrs(|x| x.get(&stored))
        });
        match there {
            Err(Errno::NODATA) if name.starts_with(b"system.posix_acl_") => return Ok(()),
            other => drop(other?),
        }
        self.make_writable(&node)?;
        self.with_place(&node, |branch, loc| {
            let stored = stored_name(branch, name).ok_or(Errno::NODATA)?;
            loc.xattrs(|x| x.remove(&stored))
        })
    }
}
