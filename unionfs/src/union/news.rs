//! What a change on a branch, made behind the union's back, means for what the kernel knows.
//!
//! The names that the union holds of a watched directory are what the kernel was told. So news are
//! compared with them: what the union did itself is none.

use super::Union;
use super::namespace::Need;
use crate::errno::{Errno, Result};
use crate::node::index::{Changed, Found};
use crate::node::{Namespace, Node, Present};
use crate::sys::inotify::{Event, What};
use crate::sys::stat::stat_at;
use crate::types::{BranchId, Effect, Kind, NodeId};
use crate::whiteout::{NameClass, classify};
use rustc_hash::FxHashSet;
use std::sync::Arc;

/// Nodes whose attributes and pages are out of date, and the directories in which lookups may be
/// under way that bring along old ones.
#[derive(Debug, Default)]
pub(super) struct Outdated {
    nodes: FxHashSet<NodeId>,
    parents: FxHashSet<NodeId>,
}

impl Outdated {
    fn add(&mut self, node: &Node) {
        self.nodes.insert(node.id);
        self.parents
            .extend(node.home().parent.map(|parent| parent.id));
    }
}

impl Union {
    /// Passes on what was gathered.
    pub(super) fn tell_outdated(&self, outdated: &Outdated) {
        for &parent in &outdated.parents {
            self.tell(Effect::Settle { parent });
        }
        for &node in &outdated.nodes {
            self.tell(Effect::InvalInode { node });
        }
    }

    fn tell_entry(&self, parent: &Node, name: &[u8]) {
        self.tell(Effect::InvalEntry {
            parent: parent.id,
            name: name.to_vec(),
        });
    }

    /// What the kernel knows of the names in a directory is worth nothing, and nobody can say what
    /// it knows: dropping the directory's own name drops what is below.
    pub(super) fn tell_shrink(&self, node: &Node) {
        let home = node.home();
        if let Some(parent) = &home.parent {
            self.tell_entry(parent, &home.name);
        }
    }

    /// The names of a directory were read again, and these had changed. It is locked.
    pub(super) fn tell_changed(&self, node: &Arc<Node>, ns: &Namespace, changed: &[Changed]) {
        let mut outdated = Outdated::default();
        outdated.add(node);
        for Changed { name, same_dir } in changed {
            match ns.index.as_ref().map(|i| i.get(name)) {
                Some(Found::Present(found)) if *same_dir => {
                    self.renew(node, name, &found, &mut outdated);
                }
                _ => self.tell_entry(node, name),
            }
        }
        self.tell_outdated(&outdated);
    }

    /// The node of a name, if the kernel may know it. The directory is locked.
    fn known_child(&self, dir: &Arc<Node>, name: &[u8], found: &Present) -> Option<Arc<Node>> {
        let stat = self
            .dir_fd_on(dir, found.top)
            .and_then(|fd| stat_at(fd, name))
            .ok()?;
        self.nodes.get(self.inos.number(&stat))
    }

    /// A directory's branches may be others now, or the marks in it. Its parent is locked.
    fn renew(&self, parent: &Arc<Node>, name: &[u8], found: &Present, outdated: &mut Outdated) {
        let Some(node) = self.known_child(parent, name, found) else {
            return;
        };
        if node.kind != Kind::Dir || !node.is_at(parent.id, name) {
            return self.tell_entry(parent, name);
        }
        let before = node.layers();
        if let Err(err) = self.child(parent, name, found, 0) {
            log::debug!("a directory that changed on its branches: {err}");
            return self.tell_entry(parent, name);
        }
        outdated.add(&node);
        node.note_guarded(&node.layers(), None);
        if !Arc::ptr_eq(&before, &node.layers()) {
            self.read_again(&node);
        }
        let id = node.id;
        drop(node);
        self.forget(id, 0);
    }

    /// Has the names of a directory read again if they are stale, and tells what changed.
    fn read_again(&self, node: &Arc<Node>) {
        self.watch(node);
        let Some(dir) = node.dir() else { return };
        let mut ns = dir.ns.write();
        if ns.dead || ns.index.is_none() || !dir.watch.is_stale() {
            return;
        }
        if let Err(err) = self.load(node, &mut ns) {
            log::debug!("names of a directory that changed on its branches: {err}");
        }
    }

    fn doubt_names(&self, node: &Arc<Node>) {
        if let Some(dir) = node.dir() {
            dir.watch.set_stale();
            self.read_again(node);
        }
    }

    /// As [`Self::renew`], for a directory in which something happened.
    fn renew_itself(&self, node: &Arc<Node>, outdated: &mut Outdated) {
        outdated.add(node);
        let home = node.home();
        let Some(parent) = home.parent.filter(|_| home.linked) else {
            return;
        };
        let Ok(ns) = self.ns_read(&parent, Need::Names) else {
            return;
        };
        if let Ok(Found::Present(found)) = self.resolve(&parent, &ns, &home.name) {
            self.renew(&parent, &home.name, &found, outdated);
        }
    }

    /// Takes one event in.
    pub(super) fn hear(&self, event: &Event, outdated: &mut Outdated) {
        if event.what == What::Lost {
            // It goes in for each node by itself, so that others come between.
            return self.gate.outside(|| self.doubt_everything());
        }
        let watches = self.watches.load();
        let Some(watches) = &*watches else { return };
        let targets = watches.targets(event.watch);
        if event.what == What::Gone {
            watches.drop_id(event.watch);
        }
        for (node, branch) in targets {
            // One that was forgotten in the moment in which it was reached is none any more. One
            // that was not cannot be, as long as it is held here.
            let known = self.nodes.get(node.id);
            if known.is_none_or(|known| !Arc::ptr_eq(&known, &node)) {
                continue;
            }
            self.refresh(&node);
            let heard = match event.what {
                What::Name => self.hear_name(&node, &event.name, outdated),
                What::File => self.hear_file(&node, branch, &event.name, outdated),
                What::Itself => {
                    self.renew_itself(&node, outdated);
                    Ok(())
                }
                What::Gone => {
                    self.hear_gone(&node, outdated);
                    Ok(())
                }
                What::Lost => Ok(()),
            };
            if let Err(err) = heard {
                log::debug!("news of a branch: {err}");
                outdated.add(&node);
                self.tell_entry(&node, &event.name);
            }
            let id = node.id;
            drop(node);
            self.forget(id, 0);
        }
    }

    fn hear_name(&self, node: &Arc<Node>, name: &[u8], outdated: &mut Outdated) -> Result<()> {
        let class = classify(name);
        if class != NameClass::Plain && self.options().show_whiteouts {
            // It is a name itself, too.
            outdated.add(node);
            self.doubt_names(node);
        }
        match class {
            NameClass::Plain => self.compare(node, name, true, outdated),
            NameClass::Whiteout(hidden) => self.compare(node, hidden, false, outdated),
            NameClass::Opaque => {
                self.renew_itself(node, outdated);
                Ok(())
            }
            NameClass::Reserved => Ok(()),
        }
    }

    /// Compares a name with the branches. `itself`: the name was told of, not its whiteout.
    fn compare(
        &self,
        node: &Arc<Node>,
        name: &[u8],
        itself: bool,
        outdated: &mut Outdated,
    ) -> Result<()> {
        let mut ns = node.dir().ok_or(Errno::NOTDIR)?.ns.write();
        if ns.dead {
            return Ok(());
        }
        let now = self.probe(node, name).inspect_err(|_| {
            // What the index knows of it holds no more, but it cannot say what is wrong.
            node.dir().inspect(|dir| dir.watch.set_stale());
        })?;
        let Some(index) = &mut ns.index else {
            // Nobody knows any more what the kernel was told.
            outdated.add(node);
            self.tell_entry(node, name);
            return Ok(());
        };
        let was = index.get(name);
        let own = itself && index.is_own_news(name);
        if !same_file(&was, &now) {
            match &now {
                Found::Present(found) => index.put(name, found),
                Found::Whiteout => index.take(name, true),
                Found::Absent => index.take(name, false),
            }
            outdated.add(node);
            self.tell_entry(node, name);
            return Ok(());
        }
        let Found::Present(found) = &now else {
            // On one branch a whiteout hides nothing, but it is there.
            if was != now && node.layers().len() > 1 {
                index.take(name, now == Found::Whiteout);
            }
            return Ok(());
        };
        if was != now {
            index.put(name, found);
        }
        if found.kind == Kind::Dir {
            if was != now {
                self.renew(node, name, found, outdated);
            }
        } else if itself
            && !own
            && let Some(child) = self.known_child(node, name, found)
        {
            // Another file may have got the number of the one that was here.
            outdated.add(&child);
            outdated.parents.insert(node.id);
        }
        Ok(())
    }

    /// Data or attributes of a file changed on a branch.
    fn hear_file(
        &self,
        node: &Arc<Node>,
        branch: BranchId,
        name: &[u8],
        outdated: &mut Outdated,
    ) -> Result<()> {
        let dir = node.dir().ok_or(Errno::NOTDIR)?;
        let ns = dir.ns.read();
        let Some(Found::Present(found)) = ns.index.as_ref().map(|index| index.get(name)) else {
            return Ok(());
        };
        if found.kind == Kind::Dir {
            if found.layers.contains(&branch) {
                self.renew(node, name, &found, outdated);
            }
        } else if found.top == branch
            && let Some(child) = self.known_child(node, name, &found)
        {
            outdated.add(&child);
            outdated.parents.insert(node.id);
        }
        Ok(())
    }

    /// A watched directory was removed. (Its number may live on as another one.)
    fn hear_gone(&self, node: &Arc<Node>, outdated: &mut Outdated) {
        if let Some(dir) = node.dir() {
            dir.watch.reset();
            dir.watch.set_stale();
            outdated.add(node);
            self.tell_shrink(node);
        }
    }

    /// Events were lost, or nobody listened so far: everything that is known is compared with the
    /// branches.
    pub(super) fn doubt_everything(&self) {
        let mut nodes = self.nodes.all();
        nodes.sort_by_cached_key(|node| node.ancestors().count());
        let mut outdated = Outdated::default();
        for node in &nodes {
            let _inside = self.enter();
            self.refresh(node);
            outdated.add(node);
            let Some(dir) = node.dir() else { continue };
            self.renew_itself(node, &mut outdated);
            if dir.ns.read().index.is_none() {
                self.tell_shrink(node);
            } else {
                self.doubt_names(node);
            }
        }
        self.tell_outdated(&outdated);
    }
}

/// Is it one file to the kernel, or none?
fn same_file(a: &Found, b: &Found) -> bool {
    match (a, b) {
        (Found::Present(a), Found::Present(b)) => {
            (a.top, a.kind, a.real) == (b.top, b.kind, b.real)
        }
        (Found::Present(_), _) | (_, Found::Present(_)) => false,
        _ => true,
    }
}
