//! LOOKUP: from a directory and a name to a node.

use super::Union;
use super::namespace::Need;
use crate::errno::{Errno, Result};
use crate::node::index::Found;
use crate::node::{Home, Layer, LayerList, Layers, Node, Place, Present};
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, Name, RealStat};
use crate::types::*;
use rustix::fd::OwnedFd;
use smallvec::SmallVec;
use std::sync::Arc;

/// The branch directories of a merged directory, and descriptors of those that were opened.
type FoundLayers = (LayerList, Vec<(BranchId, u64, OwnedFd)>);

/// A name turned into a node.
pub(super) struct Child {
    pub(super) node: Arc<Node>,
    /// stat of the topmost instance of the name.
    pub(super) stat: RealStat,
    /// The node's data is not that instance: it is a pseudo-link, already copied up elsewhere.
    pub(super) elsewhere: bool,
}

/// What became of a name that was looked for.
enum Sought {
    Found(Child),
    Absent,
    /// Absent as far as the names were read, which may have been too long ago.
    Doubtful,
}

impl Union {
    /// LOOKUP. A found entry counts once towards [`Self::forget`].
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Lookup> {
        let parent = self.dir_node(parent)?;
        if name == b"." || name == b".." {
            return self.lookup_dots(&parent, name);
        }
        self.check_lookup(name)?;
        let mut child = self.find_child(&parent, name)?;
        if matches!(child, Sought::Doubtful) && self.check_now(&parent)? {
            child = self.find_child(&parent, name)?;
        }
        match child {
            Sought::Found(child) => self.entry(&child).map(Lookup::Found),
            Sought::Absent | Sought::Doubtful => Ok(self.tell_absent(&parent, name)),
        }
    }

    fn find_child(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Sought> {
        let ns = self.ns_read(parent, Need::Names)?;
        match self.resolve(parent, &ns, name)? {
            Found::Present(found) => match self.child(parent, name, &found, 1) {
                Ok(child) => Ok(Sought::Found(child)),
                // Gone behind the union's back. (ESTALE is passed on: it may be a race, and
                // an absent name would be remembered.)
                Err(Errno::NOENT) => Ok(Sought::Absent),
                Err(err) => Err(err),
            },
            Found::Whiteout | Found::Absent if self.doubts_absence(parent, &ns) => {
                Ok(Sought::Doubtful)
            }
            Found::Whiteout | Found::Absent => Ok(Sought::Absent),
        }
    }

    fn tell_absent(&self, parent: &Node, name: &[u8]) -> Lookup {
        self.note_absent(parent, name);
        Lookup::Absent
    }

    /// For exporting over NFS.
    fn lookup_dots(&self, dir: &Arc<Node>, name: &[u8]) -> Result<Lookup> {
        let id = match (name, dir.home().parent) {
            (b"..", Some(parent)) => parent.id,
            _ => dir.id,
        };
        let (node, _) = self.nodes.get_or_insert(id, 1, || unreachable_root(dir));
        let attr = self.attr_of(&node).inspect_err(|_| self.forget(id, 1))?;
        Ok(Lookup::Found(Entry {
            attr,
            generation: node.generation(),
        }))
    }

    fn child_attr(&self, child: &Child) -> Result<Attr> {
        let mut attr = self.file_attr(&child.node, &child.stat);
        self.check_data(&child.node, &mut attr)?;
        Ok(attr)
    }

    /// Attributes of a child, after the directory's lock was dropped. The reference that was counted
    /// for the kernel is given back on failure.
    pub(super) fn entry(&self, child: &Child) -> Result<Entry> {
        let attr = if child.elsewhere || child.node.kind == Kind::Dir {
            self.attr_of(&child.node)
        } else {
            self.child_attr(child)
        };
        let attr = attr.inspect_err(|_| self.forget(child.node.id, 1))?;
        Ok(Entry {
            attr,
            generation: child.node.generation(),
        })
    }

    /// The node of a name that was resolved to `found`. The directory is locked; `references` are
    /// counted for the kernel.
    pub(super) fn child(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Present,
        references: u64,
    ) -> Result<Child> {
        let dir = self.dir_fd_on(parent, found.top)?;
        let stat = stat_at(&dir, name)?;
        if stat.kind() == Kind::Dir {
            self.dir_child(parent, name, found, stat, &dir, references)
        } else {
            let branch = self.branch(found.top)?;
            let stat = branch.shown(&Loc::at(dir, name), stat)?;
            Ok(self.file_child(parent, name, found, stat, references))
        }
    }

    /// The number of a non-directory. With `noplink` each name of a file on a readonly branch has
    /// one of its own: what is written under one name is not seen under the others.
    pub(super) fn file_number(
        &self,
        parent: NodeId,
        name: &[u8],
        top: BranchId,
        stat: &RealStat,
    ) -> NodeId {
        let number = self.inos.number(stat);
        if self.options().plink || stat.nlink < 2 || stat.kind() == Kind::Dir {
            return number;
        }
        let readonly = self.branch(top).is_ok_and(|b| !b.writable());
        // Names that were joined in an earlier mount stay so.
        if readonly && self.links.plink(number).is_none() {
            self.inos.alias(parent, name)
        } else {
            number
        }
    }

    pub(super) fn file_child(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Present,
        stat: RealStat,
        references: u64,
    ) -> Child {
        let mut id = self.file_number(parent.id, name, found.top, &stat);
        // A number that lives on as something else: the file was replaced behind our back.
        if self.nodes.get(id).is_some_and(|n| n.kind != stat.kind()) {
            id = self.inos.fresh();
        }
        // Also of a file that has one name left here: the others may have moved to another branch.
        let plink = self.links.plink(id);
        let home = Home {
            parent: Some(parent.clone()),
            name: Name::from_slice(name),
            linked: true,
            branch: plink.map_or(found.top, |p| p.branch),
            real: plink.map_or(stat.ino, |p| p.real),
            place: if plink.is_some() {
                Place::Plink
            } else {
                Place::Named
            },
        };
        let make = || Node::new(id, stat.kind(), self.generation(), home.clone(), None);
        let (node, existed) = self.nodes.get_or_insert(id, references, make);
        let version = self.version();
        let stale = existed && !node.has_seen(version);
        // Not right for the present branches: what its name shows is what it is.
        let homeless = stale && self.stack().get(node.inode().0).is_none();
        if stale
            && let Some(plink) = plink
            && node.inode() != (plink.branch, plink.real)
        {
            self.data_moved(&node, node.inode().0);
            node.update_home(|h| *h = home.clone());
        }
        let mut elsewhere = node.inode() != (found.top, stat.ino);
        if existed && elsewhere && self.links.plink(id).is_none() {
            let there = (found.top, stat.ino);
            let stays = stale && self.stays(&node, parent, &node.home(), there);
            if (stays || !node.is_at(parent.id, name)) && !homeless {
                // Another file has this number: one that was copied from a file that is gone, or
                // from a filesystem that had another place, or a copy that came with a branch while
                // the file is open. The two must never be one node.
                drop(node);
                self.forget(id, references);
                self.inos.keep(&stat, self.inos.fresh());
                return self.file_child(parent, name, found, stat, references);
            }
            // Its copy was removed behind the union's back: the name is what lies below again.
            self.data_moved(&node, node.inode().0);
            node.update_home(|h| *h = home.clone());
            elsewhere = false;
        }
        if existed && !elsewhere {
            // Behind the union's back it was renamed, or removed and its number is another file's now.
            let only_here = stat.nlink < 2 && !node.is_at(parent.id, name);
            node.update_home(|h| {
                // It was reached by a descriptor or a pseudo-link only; now it has a name again.
                if stale || only_here || !h.linked || !matches!(h.place, Place::Named) {
                    (h.parent, h.name) = (home.parent, home.name);
                    (h.linked, h.place) = (true, Place::Named);
                }
            });
        }
        if existed && stat.nlink > 1 && !node.is_at(parent.id, name) {
            self.names.add(id, parent.id, name);
        }
        if !existed || (stale && !elsewhere) {
            node.mark_seen(version);
        }
        Child {
            node,
            stat,
            elsewhere,
        }
    }

    fn dir_child(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Present,
        stat: RealStat,
        dir: &Arc<OwnedFd>,
        references: u64,
    ) -> Result<Child> {
        let mut id = self.dir_number(parent, name, &stat);
        let version = self.version();
        let known = self.nodes.get(id).filter(|n| {
            n.has_seen(version)
                && n.is_at(parent.id, name)
                && n.layers().len() == found.layers.len()
        });
        if let Some(known) = known
            && !self.revalidates()
            && known.inode() == (found.top, stat.ino)
        {
            let (node, existed) = self
                .nodes
                .get_or_insert(id, references, || unreachable_root(&known));
            if existed {
                return Ok(Child {
                    node,
                    stat,
                    elsewhere: false,
                });
            }
        }
        let (layers, fds) = self.find_layers(parent, name, found, &stat, dir)?;
        if version > 0
            && self.nodes.get(id).is_none()
            && let Some(node) = self.stale_dir(parent, name, &fds)
        {
            id = node.id;
            self.keep_number(&node, &stat);
        }
        let home = Home {
            parent: Some(parent.clone()),
            name: Name::from_slice(name),
            linked: true,
            branch: found.top,
            real: stat.ino,
            place: Place::Named,
        };
        let make = || {
            Node::new(
                id,
                Kind::Dir,
                self.generation(),
                home.clone(),
                Some(Layers::new(layers.clone())),
            )
        };
        let (node, existed) = self.nodes.get_or_insert(id, references, make);
        if existed && !node.has_seen(version) {
            self.replace_layers(&node, home, layers);
        } else if existed {
            self.refresh_dir(&node, home, layers);
        }
        node.mark_seen(version);
        for (branch, real, fd) in fds {
            self.cache_dir_fd(&node, branch, real, Arc::new(fd));
        }
        Ok(Child {
            node,
            stat,
            elsewhere: false,
        })
    }

    /// A node of this directory that is not right for the present branches: another one was its
    /// topmost instance.
    fn stale_dir(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        fds: &[(BranchId, u64, OwnedFd)],
    ) -> Option<Arc<Node>> {
        let version = self.version();
        let numbers = fds
            .iter()
            .filter_map(|(_, _, fd)| Some(self.inos.number(&stat_fd(fd).ok()?)));
        numbers
            .filter_map(|number| self.nodes.get(number))
            .find(|n| n.kind == Kind::Dir && !n.has_seen(version) && n.is_at(parent.id, name))
    }

    fn revalidates(&self) -> bool {
        self.options().udba != crate::spec::Udba::None
    }

    /// The number of a directory: its own, unless that is taken by what is shown elsewhere. Two
    /// directories must never be one node.
    fn dir_number(&self, parent: &Arc<Node>, name: &[u8], stat: &RealStat) -> NodeId {
        let own = self.inos.number(stat);
        let Some(node) = self.nodes.get(own) else {
            return own;
        };
        if node.kind != Kind::Dir {
            return self.inos.alias(parent.id, name);
        }
        if node.is_at(parent.id, name) {
            return own;
        }
        match self.at_home(&node) {
            // The same directory at two places (overlapping branches).
            Some(there) if (there.dev, there.ino) == (stat.dev, stat.ino) => {
                self.inos.alias(parent.id, name)
            }
            // Another one: a copy of what shows here again, or one that got its inode number.
            Some(there) if there.ino == node.inode().1 => {
                let id = self.inos.fresh();
                self.inos.keep(stat, id);
                id
            }
            // It was moved here behind the union's back.
            _ => own,
        }
    }

    /// What is at the place that the node of a directory knows, on its topmost branch.
    fn at_home(&self, node: &Arc<Node>) -> Option<RealStat> {
        let home = node.home();
        let parent = home.parent.filter(|_| home.linked)?;
        let dir = self.dir_fd_on(&parent, home.branch).ok()?;
        stat_at(dir, &home.name).ok()
    }

    /// A known directory was looked up again: takes over what changed behind the union's back.
    fn refresh_dir(&self, node: &Arc<Node>, home: Home, layers: LayerList) {
        let old = node.layers();
        let same = old.len() == layers.len()
            && old
                .iter()
                .zip(&layers)
                .all(|(a, b)| (a.branch, a.real) == (b.branch, b.real));
        if !same {
            self.give_layers(node, layers, None);
            if let Some(dir) = node.dir() {
                // In order: the parent's lock is held, this is its child.
                let mut ns = dir.ns.write();
                ns.dead = false;
                if self.options().udba == crate::spec::Udba::Notify {
                    // Kept, to see what changed when the names are read again.
                    dir.watch.set_stale();
                } else {
                    ns.index = None;
                }
            }
        }
        // Their modes may have changed, too.
        node.note_guarded(&node.layers(), None);
        node.update_home(|h| *h = home);
    }

    /// The branch directories that make up `name`, with descriptors of those that were opened.
    pub(super) fn find_layers(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        found: &Present,
        top: &RealStat,
        dir: &Arc<OwnedFd>,
    ) -> Result<FoundLayers> {
        let mut layers = SmallVec::new();
        let mut fds = Vec::new();
        for (i, &id) in found.layers.iter().enumerate() {
            let branch = self.branch(id)?;
            let at = if i == 0 {
                dir.clone()
            } else {
                self.dir_fd_on(parent, id)?
            };
            let stat = if i == 0 { *top } else { stat_at(&at, name)? };
            if stat.dev != branch.dev || (stat.mnt_id != branch.mnt_id && stat.mnt_id != 0) {
                layers.push(Layer {
                    branch: id,
                    real: stat.ino,
                    path: None,
                    sealed: true,
                });
                continue;
            }
            let fd = self.with_descriptors(|| open_subdir(&at, name))?;
            // What is behind the name may have been replaced since it was looked at.
            let real = stat_fd(&fd)?.ino;
            layers.push(Layer::named(id, real));
            let last = i + 1 == found.layers.len();
            if branch.honours_whiteouts() {
                if let Some(lower) = self.redirect_of(&branch, &fd, &stat)? {
                    // A directory that became opaque after it was renamed has given up its lower
                    // parts: the mark wins over an older redirect.
                    if !branch.is_opaque(&fd)? {
                        layers.extend(self.redirected_layers(parent, id, &lower)?);
                    }
                    fds.push((id, real, fd));
                    break;
                }
                if !last && branch.is_opaque(&fd)? {
                    fds.push((id, real, fd));
                    break;
                }
            }
            fds.push((id, real, fd));
        }
        Ok((layers, fds))
    }
}

/// For `get_or_insert` on a number that is known to be in the table: if it was forgotten in this
/// very moment, a node without any place is made, which answers ESTALE until it is looked up again.
fn unreachable_root(like: &Arc<Node>) -> Node {
    Node::new(
        like.id,
        Kind::Dir,
        like.generation(),
        like.home(),
        Some(like.layers()),
    )
}
