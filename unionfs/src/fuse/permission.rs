//! Search and read permission of the lower instances of a directory: `nodirperm1`.
//!
//! The kernel has checked the topmost instance. It remembers no names of guarded directories, and
//! no attributes of directories in them, so that every walk through one comes here, with the
//! credentials of whoever walks.

use super::adapter::Adapter;
use crate::errno::{Errno, Result};
use crate::sys::acl;
use crate::sys::procs::{self, Credentials};
use crate::types::{Attr, DirPermission, Kind, Lifetimes, Lookup, NodeId};
use fuser::{ReplyAttr, Request};
use std::cell::OnceCell;
use std::time::Duration;

/// Permission to look names up.
pub(super) const SEARCH: u32 = 1;
/// Permission to list.
pub(super) const READ: u32 = 4;

impl Adapter {
    /// May the caller do this (bits as in a mode) with every lower instance of a directory?
    ///
    /// # Errors
    /// EACCES if not.
    pub(super) fn check_lower(&self, request: &Request, dir: NodeId, wanted: u32) -> Result<()> {
        if request.uid() == 0 || !self.union.guarded(dir) {
            return Ok(());
        }
        let who = Who::of(request);
        let denied = |rule| !who.may(wanted, &self.ids.permission(rule));
        let rules = self.union.lower_permissions(dir)?;
        if rules.into_iter().any(denied) && !who.more().searches_all() {
            return Err(Errno::ACCESS);
        }
        Ok(())
    }

    /// LOOKUP, if the caller may search the directory.
    pub(super) fn lookup_checked(
        &self,
        request: &Request,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Lookup> {
        match self.check_lower(request, parent, SEARCH) {
            Ok(()) => self.union.lookup(parent, name),
            // A refusal would make the kernel take mounts off this name, for everybody; this error
            // does not (`fuse_dentry_revalidate`).
            Err(Errno::ACCESS) if procs::is_mounted_on(request.pid(), name) => Err(Errno::NOMEM),
            Err(Errno::ACCESS) => self.union.lookup_known_dir(parent, name),
            Err(err) => Err(err),
        }
    }

    /// GETATTR. Of a directory in a guarded one, only if the caller may search that: this is what
    /// the kernel asks before it enters one whose name it knows.
    pub(super) fn getattr_checked(&self, request: &Request, node: NodeId) -> Result<Attr> {
        let attr = self.union.getattr(node)?;
        if request.uid() != 0
            && let Some(parent) = self.guarded_parent(&attr)
        {
            self.check_lower(request, parent, SEARCH)?;
        }
        Ok(attr)
    }

    /// Files are not looked up for it: only directories are concerned.
    fn guarded_parent(&self, attr: &Attr) -> Option<NodeId> {
        match attr.kind() {
            Kind::Dir => self.union.guarded_parent(attr.ino),
            _ => None,
        }
    }

    /// How long the kernel may trust an answer about an entry of a directory.
    pub(super) fn lifetimes_in(&self, dir: NodeId, entry: Option<&Attr>) -> Lifetimes {
        let mut lifetimes = self.union.lifetimes_in(dir, entry);
        if self.union.guarded(dir) {
            (lifetimes.entry, lifetimes.negative) = (Duration::ZERO, Duration::ZERO);
            if entry.is_some_and(|entry| entry.kind() == Kind::Dir) {
                lifetimes.attr = Duration::ZERO;
            }
        }
        lifetimes
    }

    /// Sends attributes of a node with their lifetime.
    pub(super) fn send_attr(&self, reply: ReplyAttr, attr: &Attr) {
        self.send_attr_for(reply, attr, self.union.attr_lifetime(attr));
    }

    /// Sends attributes of a node that was changed.
    pub(super) fn send_changed_attr(&self, reply: ReplyAttr, attr: &Attr) {
        self.send_attr_for(reply, attr, self.union.changed_attr_lifetime(attr));
    }

    fn send_attr_for(&self, reply: ReplyAttr, attr: &Attr, lifetime: Duration) {
        let lifetime = match self.guarded_parent(attr) {
            Some(_) => Duration::ZERO,
            None => lifetime,
        };
        reply.attr(&lifetime, &self.wire_attr(attr));
    }
}

/// Who asks. What the request does not tell is looked up when it matters.
pub(super) struct Who {
    uid: u32,
    gid: u32,
    pid: u32,
    more: OnceCell<Credentials>,
}

impl Who {
    /// Who sent a request.
    pub(super) fn of(request: &Request) -> Self {
        Self {
            uid: request.uid(),
            gid: request.gid(),
            pid: request.pid(),
            more: OnceCell::new(),
        }
    }

    pub(super) fn more(&self) -> &Credentials {
        // Whoever cannot be seen has no other groups and no capabilities.
        self.more
            .get_or_init(|| procs::credentials(self.pid).unwrap_or_default())
    }

    pub(super) fn is_in(&self, group: u32) -> bool {
        self.gid == group || self.more().groups.contains(&group)
    }

    /// As `acl_permission_check` in Linux (fs/namei.c).
    fn may(&self, wanted: u32, rule: &DirPermission) -> bool {
        let bits = if self.uid == rule.uid {
            rule.mode >> 6
        } else if let Some(acl) = rule.acl.as_deref().and_then(acl::parse) {
            return self.may_by_acl(wanted, rule, &acl);
        } else if self.is_in(rule.gid) {
            rule.mode >> 3
        } else {
            rule.mode
        };
        bits & wanted == wanted
    }

    /// For whoever is not the owner. Source: `posix_acl_permission` in Linux.
    fn may_by_acl(&self, wanted: u32, rule: &DirPermission, acl: &[acl::Entry]) -> bool {
        let of = |tag| acl.iter().find(|e| e.tag == tag).map(|e| e.bits);
        let mask = of(acl::MASK).unwrap_or(0o7);
        if let Some(named) = acl.iter().find(|e| e.tag == acl::USER && e.id == self.uid) {
            return named.bits & mask & wanted == wanted;
        }
        let mut member = false;
        for entry in acl {
            let group = match entry.tag {
                acl::GROUP_OBJ => rule.gid,
                acl::GROUP => entry.id,
                _ => continue,
            };
            if self.is_in(group) {
                member = true;
                if entry.bits & wanted == wanted {
                    return entry.bits & mask & wanted == wanted;
                }
            }
        }
        !member && of(acl::OTHER).unwrap_or(0) & wanted == wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(uid: u32, gid: u32, groups: &[u32]) -> Who {
        let more = Credentials {
            groups: groups.to_vec(),
            ..Credentials::default()
        };
        Who {
            uid,
            gid,
            pid: 0,
            more: more.into(),
        }
    }

    fn rule(mode: u32, acl: &[(u16, u16, u32)]) -> DirPermission {
        let mut raw = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in acl {
            raw.extend(tag.to_le_bytes());
            raw.extend(bits.to_le_bytes());
            raw.extend(id.to_le_bytes());
        }
        DirPermission {
            mode,
            uid: 1,
            gid: 10,
            acl: (!acl.is_empty()).then_some(raw),
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (mode, owner, group, other) in [
            (0o700, true, false, false),
            (0o070, false, true, false),
            (0o007, false, false, true),
            (0o711, true, false, false),
            (0o755, true, true, true),
        ] {
            let rule = rule(mode, &[]);
            assert_eq!(who(1, 10, &[]).may(READ | SEARCH, &rule), owner, "{mode:o}");
            assert_eq!(who(2, 10, &[]).may(READ | SEARCH, &rule), group, "{mode:o}");
            assert_eq!(who(2, 2, &[3, 10]).may(READ, &rule), group, "{mode:o}");
            assert_eq!(who(2, 2, &[3]).may(READ, &rule), other, "{mode:o}");
        }
        assert!(who(2, 2, &[]).may(SEARCH, &rule(0o711, &[])));
    }

    #[test]
    fn acls_decide_as_in_the_kernel() {
        let acl = &[
            (0x01, 7, u32::MAX),
            (acl::USER, 7, 5),
            (acl::USER, 0, 6),
            (acl::GROUP_OBJ, 5, u32::MAX),
            (acl::GROUP, 1, 20),
            (acl::GROUP, 7, 30),
            (acl::MASK, 5, u32::MAX),
            (acl::OTHER, 4, u32::MAX),
        ];
        let rule = rule(0o754, acl);
        let may = |w: Who, wanted| w.may(wanted, &rule);
        assert!(may(who(5, 0, &[]), READ | SEARCH));
        assert!(
            !may(who(6, 10, &[]), SEARCH),
            "a named user's entry is final"
        );
        assert!(may(who(7, 10, &[]), READ | SEARCH));
        assert!(may(who(7, 20, &[]), SEARCH));
        assert!(!may(who(7, 20, &[]), READ), "a member never falls to other");
        assert!(may(who(7, 20, &[30]), READ));
        assert!(may(who(7, 7, &[]), READ));
        assert!(!may(who(7, 7, &[]), SEARCH));
        // Malformed: the mode alone.
        let mut broken = rule.clone();
        broken.acl = Some(vec![1, 2, 3]);
        assert!(!who(7, 7, &[]).may(SEARCH, &broken));
        assert!(who(7, 7, &[]).may(READ, &broken));
    }
}
