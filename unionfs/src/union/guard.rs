//! `nodirperm1`: directories of which a lower instance allows less than the topmost may.
//!
//! The kernel checks the attributes that it is shown, which are the topmost instance's. So for a
//! guarded directory the server of the mount asks here who may search and read the others, and lets
//! the kernel remember nothing of what is in it. Source: aufs(5), dirperm1.

use super::Union;
use crate::errno::{Errno, Result};
use crate::node::Node;
use crate::types::{DirPermission, Kind, Lookup, NodeId};
use std::sync::Arc;

/// Everybody may read and search.
const OPEN: u32 = 0o555;

impl Union {
    /// Must the lower instances of a directory be asked about permission? Also true of one that
    /// may get a higher instance with a mode of its own later. Costs one load where the answer is
    /// known.
    pub fn guarded(&self, dir: NodeId) -> bool {
        if self.options().dirperm1 {
            return false;
        }
        match self.known(dir) {
            Some(node) if node.kind == Kind::Dir => {
                node.guarded().unwrap_or_else(|| self.find_guarded(&node))
            }
            _ => false,
        }
    }

    fn find_guarded(&self, node: &Arc<Node>) -> bool {
        let layers = node.layers();
        let found = self.withholds(node);
        // What cannot be looked at is asked each time.
        node.note_guarded(&layers, found.ok());
        found.unwrap_or(true)
    }

    fn withholds(&self, node: &Arc<Node>) -> Result<bool> {
        let stack = self.stack();
        let layers = node.layers();
        for (depth, layer) in layers.iter().enumerate().filter(|(_, l)| !l.sealed) {
            let position = stack.position(layer.branch).ok_or(Errno::STALE)?;
            let above = &stack.branches()[..usize::from(position.0)];
            if depth == 0 && !above.iter().any(|b| b.writable()) {
                continue;
            }
            let stat = crate::sys::stat::stat_fd(self.dir_fd(node, layer)?)?;
            if stat.mode & OPEN != OPEN {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// LOOKUP for somebody who may not search `parent`: a directory that the kernel knows already.
    ///
    /// A refusal would make the kernel drop it, and with it what others have mounted there. Its
    /// attributes are what has to be refused ([`Self::guarded_parent`]).
    ///
    /// # Errors
    /// EACCES for everything else.
    pub fn lookup_known_dir(&self, parent: NodeId, name: &[u8]) -> Result<Lookup> {
        let Lookup::Found(entry) = self.lookup(parent, name)? else {
            return Err(Errno::ACCESS);
        };
        let id = entry.attr.ino;
        let known = self.nodes.get(id).is_some_and(|n| n.lookup_count() > 1);
        if known && entry.attr.kind() == Kind::Dir {
            return Ok(Lookup::Found(entry));
        }
        self.forget(id, 1);
        Err(Errno::ACCESS)
    }

    /// The guarded directory in which a directory lies: whoever may not search it may not know the
    /// attributes, and the kernel must not remember them.
    pub fn guarded_parent(&self, dir: NodeId) -> Option<NodeId> {
        if self.options().dirperm1 {
            return None;
        }
        let node = self.known(dir).filter(|n| n.kind == Kind::Dir)?;
        let parent = node.home().parent?.id;
        self.guarded(parent).then_some(parent)
    }

    /// Who may do what with the instances below the topmost one.
    ///
    /// # Errors
    /// Those of reaching them.
    pub fn lower_permissions(&self, dir: NodeId) -> Result<Vec<DirPermission>> {
        let node = self.dir_node(dir)?;
        let mut found = Vec::new();
        for layer in node.layers().iter().skip(1).filter(|l| !l.sealed) {
            let fd = self.dir_fd(&node, layer)?;
            let stat = crate::sys::stat::stat_fd(&fd)?;
            let acl = crate::sys::Loc::dir(fd).xattrs(|x| x.get(b"system.posix_acl_access"));
            found.push(DirPermission {
                mode: stat.mode & 0o7777,
                uid: stat.uid,
                gid: stat.gid,
                acl: acl.ok().filter(|_| self.options().acl),
            });
        }
        Ok(found)
    }
}
