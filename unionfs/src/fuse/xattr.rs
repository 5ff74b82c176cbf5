//! Extended attributes: sizes, and ACLs that are switched off.

use super::adapter::Adapter;
use super::idmap::is_acl;
use crate::errno::{Errno, Result};
use crate::sys::acl;
use crate::types::{Caller, NodeId};
use fuser::{ReplyXattr, Request};

impl Adapter {
    /// The value of an xattr as users of the mount see it.
    pub(super) fn get_xattr(&self, node: NodeId, name: &[u8], size: u32) -> Result<Vec<u8>> {
        self.refuse_acl(name)?;
        let mut value = self.union.getxattr(node, name)?;
        self.ids.xattr_to_wire(name, &mut value);
        fit(value, size)
    }

    /// Sets an xattr, its ids translated.
    pub(super) fn set_xattr(
        &self,
        request: &Request,
        node: NodeId,
        (name, value): (&[u8], &[u8]),
        flags: i32,
    ) -> Result<()> {
        self.refuse_acl(name)?;
        let mapped = self.ids.xattr_to_branch(name, value)?;
        self.union
            .setxattr(node, name, mapped.as_deref().unwrap_or(value), flags)?;
        if name != acl::ACCESS || request.uid() == 0 {
            return Ok(());
        }
        // An ACL sets the mode, as chmod(2) does. (The kernel would say so with SETXATTR_EXT, which
        // fuser 0.18 has not.)
        self.as_writer(request, true, |writer| self.union.drop_setgid(node, writer))
    }

    /// With `noacl`, POSIX ACLs are neither shown nor taken.
    pub(super) fn refuse_acl(&self, name: &[u8]) -> Result<()> {
        if !self.plan.acl && is_acl(name) {
            Err(Errno::OPNOTSUPP)
        } else {
            Ok(())
        }
    }
}

/// The names of a list that a caller may know of: `trusted.*` only with CAP_SYS_ADMIN, which the
/// kernel checks when it is asked for a value (xattr(7)), but leaves to us in lists.
pub(super) fn shown_to(caller: &Caller, names: Vec<u8>) -> Vec<u8> {
    if caller.uid == 0 || !names.windows(8).any(|w| w == b"trusted.") {
        return names;
    }
    let all = names.split_inclusive(|b| *b == 0);
    let shown = all.filter(|name| !name.starts_with(b"trusted."));
    shown.flatten().copied().collect()
}

/// Does a value fit the caller's buffer? 0 asks for the size only.
pub(super) fn fit(value: Vec<u8>, size: u32) -> Result<Vec<u8>> {
    if size != 0 && value.len() > size as usize {
        Err(Errno::RANGE)
    } else {
        Ok(value)
    }
}

/// Sends a value, or its size when that was asked for.
pub(super) fn send(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        // The kernel limits a value to 64 KiB (XATTR_SIZE_MAX).
        reply.size(value.len() as u32);
    } else {
        reply.data(value);
    }
}
