//! Names that a branch hides on those below it, written down elsewhere than in their directory:
//! the deletions of unionfs-fuse, which are read whole when the branch is opened.

use super::Union;
use crate::branch::Branch;
use crate::errno::Result;
use crate::node::{Index, Layer, Node};
use crate::types::{BranchIndex, NodeId};
use std::iter::Peekable;
use std::sync::Arc;

/// The branches that hide names so, topmost first, with their positions.
pub(super) type Hiding = Peekable<std::vec::IntoIter<(BranchIndex, Arc<Branch>)>>;

impl Union {
    /// Those of the present stack.
    pub(super) fn hiding(&self) -> Hiding {
        let stack = self.stack();
        let all: Vec<_> = if stack.hides() {
            let of = |b: &Arc<Branch>| Some((stack.position(b.id)?, b.clone()));
            let hiding = stack.branches().iter().filter(|b| b.hidden.is_some());
            hiding.filter_map(of).collect()
        } else {
            Vec::new()
        };
        all.into_iter().peekable()
    }

    /// While the names of `node` are read: what the branches above `layer` hide in it, whether or
    /// not they hold the directory themselves; `included`: and its own branch.
    pub(super) fn hide_above(
        &self,
        hiding: &mut Hiding,
        node: &Arc<Node>,
        layer: &Layer,
        included: bool,
        index: &mut Index,
    ) -> Result<()> {
        if hiding.peek().is_none() {
            return Ok(());
        }
        let Some(position) = self.stack().position(layer.branch) else {
            return Ok(());
        };
        let reached = |at: BranchIndex| at < position || (included && at == position);
        let mut path = None;
        while let Some((_, branch)) = hiding.next_if(|(at, _)| reached(*at)) {
            let path = match &path {
                Some(path) => path,
                None => path.insert(self.layer_path(node, layer.branch)?),
            };
            for name in branch.hidden.iter().flat_map(|hidden| hidden.names(path)) {
                index.add_whiteout(name);
            }
        }
        Ok(())
    }

    /// Is this where a branch writes down what it hides?
    pub(super) fn is_hiding_place(branch: &Branch, dir: NodeId, name: &[u8]) -> bool {
        branch
            .hidden
            .as_ref()
            .is_some_and(|hidden| dir == NodeId::ROOT && name == hidden.meta())
    }
}
