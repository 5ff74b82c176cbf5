//! Who writes: without CAP_FSETID he leaves no set-id bits on a file.
//!
//! The kernel leaves that to us (HANDLE_KILLPRIV_V2): WRITE has a flag, and before it writes to a file by
//! itself (passthrough) it sends a SETATTR in which nothing is set, in the name of the writer.
//! Source: `file_remove_privs` and `setattr_should_drop_suidgid` in Linux.

use super::adapter::Adapter;
use super::permission::Who;
use crate::errno::Result;
use crate::types::{Attr, NodeId, SetAttr, Writer};
use fuser::Request;

impl Adapter {
    /// Runs a change of data in the name of who asks; `ordinary`: he has no CAP_FSETID.
    pub(super) fn as_writer<T>(
        &self,
        request: &Request,
        ordinary: bool,
        change: impl FnOnce(Writer<'_>) -> T,
    ) -> T {
        if !ordinary {
            return change(Writer::Privileged);
        }
        let who = Who::of(request);
        let keeps_setgid = |group| who.is_in(self.ids.wire_gid(group)) || who.more().keeps_set_id();
        change(Writer::Ordinary(&keeps_setgid))
    }

    /// SETATTR, ids as on the wire.
    pub(super) fn set_attr(&self, request: &Request, node: NodeId, set: SetAttr) -> Result<Attr> {
        if set.is_empty() {
            return self.set_nothing(request, node);
        }
        let set = self.ids.set_attr(set)?;
        // The kernel's own flag for this (FATTR_KILL_SUIDGID) does not get through fuser 0.18:
        // every truncation by an ordinary user counts as one that drops set-id bits.
        self.as_writer(request, request.uid() != 0, |writer| {
            self.union.setattr(node, &set, writer)
        })
    }

    /// A request that sets nothing: chown(2) with neither owner nor group, which takes set-id bits
    /// away and is for root and the owner only, or what precedes a write: one past the daemon, or
    /// one that takes file capabilities away, after which root's leaves the set-id bits. Which one
    /// it is, the kernel does not say: while there may be a writer it is a write.
    fn set_nothing(&self, request: &Request, node: NodeId) -> Result<Attr> {
        let attr = self.union.getattr(node)?;
        if self.wire_attr(&attr).uid == request.uid() || self.opens.is_written_past(node.0) {
            self.as_writer(request, request.uid() != 0, |writer| {
                self.union.drop_set_id(node, writer)
            })
        } else {
            Ok(attr)
        }
    }
}
