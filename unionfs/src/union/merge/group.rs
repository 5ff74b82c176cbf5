//! Files with several names: the data moves first, then one name after the other.
//!
//! The copy on the lower branch begins as a pseudo-link, to which every name leads from then on,
//! those on the upper branch too. The pseudo-link and its record are the intent: a merge that is
//! killed leaves names that still lead there, and the next one moves them. When no name needs it any
//! more it goes.

use super::raw::Times;
use super::{Outcome, Reason, Way};
use crate::branch::Store;
use crate::branch::log::{Origin, Record, Source};
use crate::branch::plinks::plink_name;
use crate::errno::{Errno, Result};
use crate::node::{Namespace, Node, Place, Present};
use crate::shown::ShowPath;
use crate::sys::stat::stat_at;
use crate::sys::{Name, RealStat};
use crate::types::NodeId;
use crate::union::Union;
use crate::union::copyup::Copy;
use crate::union::links::Plink;
use crate::union::namespace::Need;
use rustix::fd::OwnedFd;
use rustix::fs::AtFlags;
use std::sync::Arc;

impl Union {
    /// Moves one name of a file that has several; its data before the first of them.
    pub(super) fn move_linked(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<Outcome> {
        let stat = {
            let ns = self.ns_read(parent, Need::Names)?;
            match self.judge_link(way, parent, &ns, name, node)? {
                Ok(stat) => stat,
                Err(outcome) => return Ok(outcome),
            }
        };
        if way.keep_upper && !way.options.dry_run {
            return self.copy_linked(way, parent, name, node);
        }
        let mut bytes = 0;
        if self.begun(way, node).is_none() {
            if node.inode().0 != way.from.id {
                return Ok(Outcome::Left(Reason::Upper));
            }
            if self.is_busy(node.id) {
                return Ok(Outcome::Left(Reason::Busy));
            }
            bytes = stat.size;
            if !way.options.dry_run {
                let begun =
                    self.with_copy(way, node, |stat, copy| self.begin(way, node, stat, copy))?;
                match begun {
                    Some(None) => {}
                    Some(Some(reason)) => return Ok(Outcome::Left(reason)),
                    None => return Ok(Outcome::Left(Reason::Changed)),
                }
            }
        }
        if way.options.dry_run {
            return Ok(Outcome::Moved(bytes));
        }
        self.move_link(way, parent, name, node, bytes)
    }

    /// Copies one name of a file that has several, which stays above: the first is a copy, the others
    /// are links of that.
    fn copy_linked(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<Outcome> {
        let first = way.copied.lock().get(&node.id).cloned();
        if let Some((dir, first)) = first {
            return self.put_copy(way, parent, name, node, 0, |lower| {
                self.put_link(way, (parent, lower, name), (&dir, &first), None)
            });
        }
        if self.is_busy(node.id) {
            return Ok(Outcome::Left(Reason::Busy));
        }
        let copied = self.with_copy(way, node, |stat, copy| {
            self.put_copy(way, parent, name, node, stat.size, |lower| {
                self.place_below(way, parent, lower, name, copy)
            })
        })?;
        if let Some(Outcome::Moved(_)) = copied {
            let lower = self.dir_fd_on(parent, way.to.id)?;
            let first = (lower, Name::from_slice(name));
            way.copied.lock().insert(node.id, first);
        }
        Ok(copied.unwrap_or(Outcome::Left(Reason::Upper)))
    }

    /// Has `put` give a copy the name on the lower branch, if the name still leads to this file.
    fn put_copy(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        bytes: u64,
        put: impl FnOnce(&Arc<OwnedFd>) -> Result<()>,
    ) -> Result<Outcome> {
        let mut ns = self.ns_write(parent)?;
        if let Err(outcome) = self.judge_link(way, parent, &ns, name, node)? {
            return Ok(outcome);
        }
        self.put_hidden(way, parent, &mut ns, name, put)?;
        Ok(Outcome::Moved(bytes))
    }

    /// Gives the name on the lower branch to one more link of `file`, in place of what is there.
    /// `moved`: one name less of this node is elsewhere.
    fn put_link(
        &self,
        way: &Way,
        (parent, lower, name): (&Arc<Node>, &Arc<OwnedFd>, &[u8]),
        (dir, file): (&OwnedFd, &[u8]),
        moved: Option<NodeId>,
    ) -> Result<()> {
        let store = way.to.store.as_ref().ok_or(Errno::ROFS)?;
        let temp = store.temp_name();
        self.replace_below(way, parent, lower, name, moved.as_slice(), || {
            let none = AtFlags::empty();
            rustix::fs::linkat(dir, file, store.tmp(), &*temp, none)?;
            rustix::fs::renameat(store.tmp(), &*temp, lower, name).inspect_err(|_| {
                // It lies in the directory that every mount empties.
                let _ = rustix::fs::unlinkat(store.tmp(), &*temp, none);
            })?;
            if let Some(node) = moved {
                self.links.change_delta(node, -1);
            }
            Ok(())
        })
    }

    /// The pseudo-link on the lower branch, if the data is there already.
    fn begun(&self, way: &Way, node: &Node) -> Option<Plink> {
        let plink = self.links.plink(node.id)?;
        let there = (plink.branch, plink.real);
        (plink.branch == way.to.id && node.inode() == there).then_some(plink)
    }

    /// May this name be moved? The names of its directory are locked.
    fn judge_link(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        ns: &Namespace,
        name: &[u8],
        node: &Arc<Node>,
    ) -> Result<std::result::Result<RealStat, Outcome>> {
        let found = self.resolve(parent, ns, name)?;
        let judged = self.judge_name(way, parent, name, node.id, &found)?;
        Ok(judged.and_then(|stat| {
            let number = self.file_number(parent.id, name, way.from.id, &stat);
            if number == node.id && stat.kind() == node.kind {
                Ok(stat)
            } else {
                Err(Outcome::Left(Reason::Changed))
            }
        }))
    }

    /// The data goes below: from now on every name leads there. Changes of the file wait. `Some` =
    /// it must stay.
    fn begin(
        &self,
        way: &Way,
        node: &Arc<Node>,
        stat: &RealStat,
        copy: &mut Copy<'_>,
    ) -> Result<Option<Reason>> {
        if self.is_busy(node.id) {
            return Ok(Some(Reason::Busy));
        }
        let origin = self.remember_origin(node, &way.to, copy, stat)?;
        self.links.mark_regrouped(node.id);
        let old = self.links.plink(node.id);
        let names = {
            let _counting = self.links.counting(&[node.id]);
            let now = self.place_locked(node).and_then(|(_, loc)| loc.stat());
            let Some(now) = now.ok().filter(|now| same_data(now, stat)) else {
                self.inos.forget_real(way.to.dev, copy.stat.ino);
                return Ok(Some(Reason::Changed));
            };
            let names = i32::try_from(self.links.nlink(node, &now)).unwrap_or(i32::MAX);
            let names = names.max(1);
            let made = self.publish_plink(way, node, copy, origin, names);
            if let Err(err) = made {
                self.inos.forget_real(way.to.dev, copy.stat.ino);
                return Err(err);
            }
            self.links.set_delta(node.id, names);
            self.moved_to(node, &way.to, copy, Place::Plink);
            names
        };
        if let Some(file) = &copy.file {
            self.opens.moved(node.id, way.to.id, file);
        }
        let store = way.to.store.as_ref().ok_or(Errno::ROFS)?;
        self.settle(way, store.plinks())?;
        self.leave_plink(node, old);
        self.record_delta(&way.to, origin.source, names);
        Ok(None)
    }

    fn publish_plink(
        &self,
        way: &Way,
        node: &Node,
        copy: &mut Copy<'_>,
        origin: Origin,
        names: i32,
    ) -> Result<()> {
        // What the log says of it may be older than the pseudo-link's own record.
        let source = origin.source;
        copy.store.record(Record::Names { source, names })?;
        self.add_plink(node, &way.to, copy, origin, names)?;
        // Counted links are those of the pseudo-link and of names.
        rustix::fs::unlinkat(copy.store.tmp(), &*copy.temp, AtFlags::empty())?;
        copy.published = true;
        Ok(())
    }

    /// The name becomes a link of the copy below, and goes above.
    fn move_link(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        bytes: u64,
    ) -> Result<Outcome> {
        let _stays = node.change.read();
        let mut ns = self.ns_write(parent)?;
        let Some(plink) = self.begun(way, node) else {
            return Ok(Outcome::Left(Reason::Changed));
        };
        let now = match self.judge_link(way, parent, &ns, name, node)? {
            Ok(now) => now,
            Err(outcome) => return Ok(outcome),
        };
        self.links.mark_regrouped(node.id);
        let (upper, lower) = (
            self.dir_fd_on(parent, way.from.id)?,
            self.dir_fd_on(parent, way.to.id)?,
        );
        let times = Times::of(&lower)?;
        // A merge that was killed may have made the link.
        if stat_at(&lower, name).is_ok_and(|s| s.ino == plink.real) {
            log::debug!("a name is on {} already", way.to.path.shown());
        } else {
            self.link_below(way, parent, &lower, name, node, plink)?;
        }
        let last = (now.nlink == 1).then(|| self.inos.source(&now));
        if let Some(source) = &last {
            self.inos.note_original(source, node.id);
        }
        self.leave_upper(way, parent, &upper, &lower, name)?;
        drop(times);
        node.update_home(|h| {
            (h.parent, h.name) = (Some(parent.clone()), Name::from_slice(name));
            (h.linked, h.place) = (true, Place::Named);
        });
        if let Some(source) = last {
            self.last_link_gone(way, node, &now, source, plink);
        }
        let below = self.visible_below(parent, way.to.id, name)?;
        if let Some(index) = &mut ns.index {
            index.set(
                name,
                &Present::single(way.to.id, node.kind, plink.real, below),
            );
        }
        self.restamp(parent, &mut ns, way.from.id);
        self.restamp(parent, &mut ns, way.to.id);
        Ok(Outcome::Moved(bytes))
    }

    /// Makes the name a link of the copy, in place of what the upper name hides there.
    fn link_below(
        &self,
        way: &Way,
        parent: &Arc<Node>,
        lower: &Arc<OwnedFd>,
        name: &[u8],
        node: &Arc<Node>,
        plink: Plink,
    ) -> Result<()> {
        let store = way.to.store.as_ref().ok_or(Errno::ROFS)?;
        let link = plink_name(node.id, plink.real);
        let names = {
            let _counting = self.links.counting(&[node.id]);
            let stat = stat_at(store.plinks(), &link)?;
            self.links.nlink(node, &stat)
        };
        // Before the link: with it, the count of links tells how many names are left to move.
        store.record(Record::Names {
            source: plink.source,
            names: i32::try_from(names).unwrap_or(i32::MAX),
        })?;
        self.put_link(
            way,
            (parent, lower, name),
            (store.plinks(), &link),
            Some(node.id),
        )
        .inspect_err(|_| self.count_again(store, node, plink))?;
        self.count_again(store, node, plink);
        Ok(())
    }

    /// From here on links that are made and removed count again.
    fn count_again(&self, store: &Store, node: &Node, plink: Plink) {
        let (source, delta) = (plink.source, self.links.delta(node.id));
        store.record_at_last(Record::Links { source, delta });
    }

    /// The upper branch has no name of the file any more.
    fn last_link_gone(
        &self,
        way: &Way,
        node: &Arc<Node>,
        old: &RealStat,
        source: Source,
        plink: Plink,
    ) {
        // Nothing else can have names of it, whatever a crash made of their count.
        let was_source = source.ino == old.ino && source == plink.source;
        if self.inos.drop_origin(old.dev, old.ino, old.btime) {
            self.record_gone(&way.from, old.ino);
        }
        let _counting = self.links.counting(&[node.id]);
        if was_source && self.links.delta(node.id) != 0 {
            self.set_delta(node, &way.to, source, 0);
        }
        if self.links.delta(node.id) == 0 {
            self.remove_plink(node, &way.to, plink.real);
        }
    }
}

/// Is it the same file with the same data? (A link that was made or removed is no change of it.)
fn same_data(a: &RealStat, b: &RealStat) -> bool {
    (a.dev, a.ino, a.size, a.mtime) == (b.dev, b.ino, b.size, b.mtime)
}
