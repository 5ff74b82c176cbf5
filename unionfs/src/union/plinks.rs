//! Pseudo-links as tools see them: listed, and made hard links of all names (`auplink flush`).

use super::Union;
use super::rename::At;
use crate::branch::plinks::plink_name;
use crate::errno::{Errno, Result};
use crate::sys::stat::stat_at;
use crate::types::{Kind, NodeId};

impl Union {
    /// The files that have a pseudo-link.
    pub fn plinked(&self) -> Vec<NodeId> {
        let mut all = self.links.all_plinks();
        all.sort_unstable();
        all
    }

    /// Makes a name that leads to a pseudo-linked file a hard link on the branch of its data.
    ///
    /// # Errors
    /// Those of making the directories and the link; nothing for other files and names.
    pub fn plink_up(&self, parent: NodeId, name: &[u8]) -> Result<()> {
        let parent = self.dir_node(parent)?;
        self.check_name(name)?;
        let at = At { dir: &parent, name };
        let (held, _) = self.hold(at)?;
        let node = held.node()?;
        if node.kind == Kind::Dir {
            return Ok(());
        }
        let Some(plink) = self.links.plink(node.id) else {
            return Ok(());
        };
        let branch = self.branch(plink.branch)?;
        self.make_dir_on(&parent, branch.id)?;
        self.materialise(node, at, &branch)
    }

    /// Removes the pseudo-link of a file all of whose names are hard links.
    ///
    /// # Errors
    /// EBUSY: it is the only way to the data of a name, or of an open file.
    pub fn plink_drop(&self, node: NodeId) -> Result<()> {
        let Some(plink) = self.links.plink(node) else {
            return Ok(());
        };
        let branch = self.branch(plink.branch)?;
        let store = branch.store.as_ref().ok_or(Errno::STALE)?;
        let stat = stat_at(store.plinks(), &plink_name(node, plink.real))?;
        let alive = self.nodes.get(node);
        let reached_by_it = alive
            .as_ref()
            .is_some_and(|n| matches!(n.home().place, crate::node::Place::Plink));
        if stat.nlink < 2 || self.links.delta(node) > 0 || reached_by_it {
            return Err(Errno::BUSY);
        }
        if store.remove_plink(node, plink.real) {
            self.links.remove_plink(node);
        }
        Ok(())
    }
}
