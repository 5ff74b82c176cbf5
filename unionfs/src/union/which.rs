//! Where an entry of the union is on the branches, and which marks decide what is shown.

use super::Union;
use super::namespace::Need;
use crate::branch::Branch;
use crate::branch::plinks::plink_name;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Node, Place};
use crate::sys::loc::open_subdir;
use crate::sys::stat::stat_at;
use crate::types::{BranchId, Kind, NodeId};
use crate::whiteout::{OPAQUE, PLINK_DIR, whiteout_name};
use std::sync::Arc;

/// What is known of an entry.
#[derive(Clone, Debug, Default)]
pub struct Whereabouts {
    /// Path from the root of the union, without a slash at the start.
    pub path: Vec<u8>,
    /// Its node; `None` = there is no such entry.
    pub node: Option<NodeId>,
    /// Position of the branch that serves it.
    pub serving: Option<usize>,
    /// The branches that have to do with it, topmost first.
    pub branches: Vec<Instance>,
}

/// What one branch has to do with it.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Position of the branch.
    pub index: usize,
    /// Path from the branch root, where it is another one than in the union.
    pub at: Option<Vec<u8>>,
    /// What is there.
    pub kind: Option<Kind>,
    /// Is it part of what is shown?
    pub shown: bool,
    /// Paths of the marks that hide what lies below.
    pub marks: Vec<Vec<u8>>,
}

impl Union {
    /// Where `name` in a directory is, or (`None`) the node itself.
    ///
    /// # Errors
    /// ESTALE, ENOTDIR; those of looking at the branches.
    pub fn which(&self, node: NodeId, name: Option<&[u8]>) -> Result<Whereabouts> {
        let node = self.node(node)?;
        if let Some(name) = name {
            self.check_lookup(name)?;
            return self.which_name(&node, name);
        }
        let home = node.home();
        match home.parent {
            Some(parent) if home.linked => self.which_name(&parent, &home.name),
            Some(_) => Err(Errno::NOENT),
            None => self.which_root(&node),
        }
    }

    fn which_root(&self, root: &Arc<Node>) -> Result<Whereabouts> {
        let layers = root.layers();
        let mut branches = Vec::new();
        for (index, branch) in self.stack().branches().iter().enumerate() {
            let opaque = branch.honours_whiteouts() && branch.is_opaque(&branch.root)?;
            branches.push(Instance {
                index,
                at: None,
                kind: Some(Kind::Dir),
                shown: layers.iter().any(|l| l.branch == branch.id),
                marks: opaque.then(|| OPAQUE.to_vec()).into_iter().collect(),
            });
        }
        Ok(Whereabouts {
            node: Some(root.id),
            serving: Some(0),
            branches,
            ..Whereabouts::default()
        })
    }

    fn which_name(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Whereabouts> {
        let ns = self.ns_read(parent, Need::Names)?;
        let mut found = Whereabouts {
            path: join(&self.path_of(parent), name),
            ..Whereabouts::default()
        };
        let mut shown: Vec<BranchId> = Vec::new();
        let mut elsewhere = None;
        if let Found::Present(present) = self.resolve(parent, &ns, name)? {
            let node = self.child(parent, name, &present, 0)?.node;
            let (branch, real) = node.inode();
            if node.kind == Kind::Dir {
                shown = node.layers().iter().map(|l| l.branch).collect();
            } else {
                shown.push(branch);
                // A copy is reached by its pseudo-link, or by the name that was copied up.
                let home = node.home();
                elsewhere = match (&home.place, &home.parent) {
                    (Place::Plink, _) => Some(join(PLINK_DIR, &plink_name(node.id, real))),
                    (Place::Named, Some(dir)) if branch != present.top => self
                        .layer_path(dir, branch)
                        .ok()
                        .map(|dir| join(&dir, &home.name)),
                    _ => None,
                }
                .map(|at| (branch, at));
            }
            let position = shown.first().and_then(|top| self.stack().position(*top));
            found.serving = position.map(|p| usize::from(p.0));
            found.node = Some(node.id);
            for (index, branch) in self.stack().branches().iter().enumerate() {
                let at = self.instance_path(&node, parent, branch, name);
                self.look_on(index, branch, at, &found.path, &mut found.branches)?;
            }
            let id = node.id;
            drop(node);
            drop(ns);
            // The kernel may not know it, and then nobody else will forget it.
            self.forget(id, 0);
        } else {
            for (index, branch) in self.stack().branches().iter().enumerate() {
                let at = self.parent_path(parent, branch).map(|dir| join(&dir, name));
                self.look_on(index, branch, at, &found.path, &mut found.branches)?;
            }
        }
        let stack = self.stack();
        for instance in &mut found.branches {
            let id = stack.branches()[instance.index].id;
            instance.shown = shown.contains(&id);
            if let Some((_, at)) = elsewhere.take_if(|(branch, _)| *branch == id) {
                instance.at = Some(at);
            }
        }
        if let Some((branch, at)) = elsewhere
            && let Some(position) = stack.position(branch)
        {
            let index = usize::from(position.0);
            let place = found.branches.iter().position(|i| i.index > index);
            let instance = Instance {
                index,
                at: Some(at),
                kind: Some(Kind::File),
                shown: true,
                marks: Vec::new(),
            };
            found
                .branches
                .insert(place.unwrap_or(found.branches.len()), instance);
        }
        Ok(found)
    }

    /// Where the instance of a node on a branch is, or would be.
    fn instance_path(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        branch: &Branch,
        name: &[u8],
    ) -> Option<Vec<u8>> {
        if node.layer_on(branch.id).is_some() {
            return self.layer_path(node, branch.id).ok();
        }
        self.parent_path(parent, branch).map(|dir| join(&dir, name))
    }

    /// Where a directory is on a branch, or (if it is no part of it) its path in the union.
    fn parent_path(&self, dir: &Arc<Node>, branch: &Branch) -> Option<Vec<u8>> {
        if dir.layer_on(branch.id).is_some() {
            return self.layer_path(dir, branch.id).ok();
        }
        Some(self.path_of(dir))
    }

    /// Adds what a branch holds at `at`, and the marks on the way there.
    fn look_on(
        &self,
        index: usize,
        branch: &Arc<Branch>,
        at: Option<Vec<u8>>,
        path: &[u8],
        found: &mut Vec<Instance>,
    ) -> Result<()> {
        let Some(at) = at.filter(|_| !branch.perm.data_only) else {
            return Ok(());
        };
        let mut marks = Vec::new();
        let mut kind = None;
        let mut dir = branch.root.clone();
        let mut walked: Vec<u8> = Vec::new();
        let parts: Vec<&[u8]> = at.split(|b| *b == b'/').collect();
        for (depth, part) in parts.iter().enumerate() {
            let last = depth + 1 == parts.len();
            if branch.honours_whiteouts() && branch.has_whiteout(&dir, part)? {
                let mark = whiteout_name(part).filter(|m| stat_at(&dir, m).is_ok());
                marks.push(join(&walked, mark.as_deref().unwrap_or(part)));
            }
            if let Some(hidden) = &branch.hidden
                && hidden.hides(&walked, part)
            {
                marks.push(hidden.mark(&walked, part));
            }
            let stat = match stat_at(&dir, part) {
                Ok(stat) => stat,
                Err(Errno::NOENT | Errno::NAMETOOLONG) => break,
                Err(err) => return Err(err),
            };
            walked = join(&walked, part);
            let hides =
                branch.honours_whiteouts() && branch.is_whiteout_entry(&*dir, part, &stat)?;
            if last && !hides {
                kind = Some(stat.kind());
            }
            if stat.kind() != Kind::Dir {
                break;
            }
            dir = match open_subdir(&dir, part) {
                Ok(fd) => Arc::new(fd),
                Err(Errno::XDEV) => break,
                Err(err) => return Err(err),
            };
            if branch.honours_whiteouts() && branch.is_opaque(&dir)? {
                marks.push(join(&walked, OPAQUE));
            }
        }
        if kind.is_some() || !marks.is_empty() {
            found.push(Instance {
                index,
                at: (at != path).then_some(at),
                kind,
                shown: false,
                marks,
            });
        }
        Ok(())
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}
