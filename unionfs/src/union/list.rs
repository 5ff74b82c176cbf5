//! READDIR and READDIRPLUS: positions are stable without a handle.

use super::Union;
use super::namespace::Need;
use super::watch::Trust;
use crate::errno::Result;
use crate::node::Node;
use crate::node::index::Found;
use crate::sys::stat::stat_at;
use crate::types::*;
use std::sync::Arc;

/// Cookies: 1 and 2 are behind `.` and `..`, position `p` of the index is `p + 3`.
const FIRST: u64 = 3;

/// Names taken from the index in one go for READDIRPLUS, which must drop the lock to stat them.
const BATCH: usize = 64;

impl Union {
    /// OPENDIR.
    ///
    /// Two listings at a time cannot share the kernel's cache: one that is under way goes on in what
    /// the other has read meanwhile, which may be older than its beginning (fs/fuse/readdir.c,
    /// `fuse_readdir_cached`, compares versions at the beginning only). Of several opens the first
    /// one has the cache.
    pub fn open_dir(&self, node: NodeId) -> Result<OpenedDir> {
        let node = self.dir_node(node)?;
        self.copy_on_open(&node)?;
        let alone = node.count_open() == 0;
        let keep_cache = matches!(self.trust(&node), Trust::Forever | Trust::Watched);
        Ok(OpenedDir {
            keep_cache,
            use_cache: keep_cache && alone,
        })
    }

    /// READDIR from `cookie` (0 = start); includes `.` and `..`.
    pub fn list(&self, node: NodeId, cookie: u64, sink: &mut ListSink<'_>) -> Result<()> {
        let node = self.dir_node(node)?;
        if !list_dots(&node, cookie, sink) {
            return Ok(());
        }
        let ns = self.ns_read(&node, Need::Listing)?;
        let Some(index) = &ns.index else {
            return Ok(());
        };
        let (stack, plink) = (self.stack(), self.options().plink);
        for (position, name, kind, top, real) in index.iter_from(cookie.saturating_sub(FIRST - 1)) {
            let branch = stack.get(top);
            let dev = branch.map_or(0, |b| b.dev);
            // Then it depends on the link count.
            let own_numbers = !plink && kind != Kind::Dir && branch.is_some_and(|b| !b.writable());
            let known = self.inos.number_in_listing(dev, real);
            let ino = match known.filter(|_| !own_numbers) {
                Some(ino) => ino,
                None => match self.dir_fd_on(&node, top).and_then(|d| stat_at(d, name)) {
                    Ok(stat) => self.file_number(node.id, name, top, &stat),
                    // Removed meanwhile.
                    Err(_) => continue,
                },
            };
            if !sink(DirEntry {
                cookie: position + FIRST,
                ino,
                kind,
                name,
            }) {
                break;
            }
        }
        Ok(())
    }

    /// The last cookie of a listing of all names that are known now; `None` if they were not read.
    pub fn listing_end(&self, node: NodeId) -> Option<u64> {
        let node = self.nodes.get(node)?;
        let ns = node.dir()?.ns.read();
        let end = ns.index.as_ref()?.end();
        Some(end + FIRST - 1)
    }

    /// READDIRPLUS. An entry that the sink refuses does not count as looked up.
    pub fn list_plus(&self, node: NodeId, cookie: u64, sink: &mut ListPlusSink<'_>) -> Result<()> {
        let node = self.dir_node(node)?;
        let mut dots = Vec::new();
        list_dots(&node, cookie, &mut |e| {
            dots.push((e.cookie, e.ino, e.name == b"."));
            true
        });
        for (cookie, ino, own) in dots {
            let id = if own { node.id } else { ino };
            let attr = self.getattr(id)?;
            let name: &[u8] = if own { b"." } else { b".." };
            let entry = DirEntry {
                cookie,
                ino,
                kind: Kind::Dir,
                name,
            };
            if !sink(DirEntryPlus {
                entry,
                found: Entry {
                    attr,
                    generation: 0,
                },
            }) {
                return Ok(());
            }
        }
        let mut next = cookie.saturating_sub(FIRST - 1);
        loop {
            let batch: Vec<(u64, Vec<u8>)> = {
                let ns = self.ns_read(&node, Need::Listing)?;
                let Some(index) = &ns.index else {
                    return Ok(());
                };
                index
                    .iter_from(next)
                    .take(BATCH)
                    .map(|(p, name, ..)| (p, name.to_vec()))
                    .collect()
            };
            let Some((last, _)) = batch.last() else {
                return Ok(());
            };
            next = last + 1;
            for (position, name) in &batch {
                let Some(found) = self.look_up_listed(&node, name) else {
                    continue;
                };
                let entry = DirEntry {
                    cookie: position + FIRST,
                    ino: found.attr.ino,
                    kind: found.attr.kind(),
                    name,
                };
                if !sink(DirEntryPlus { entry, found }) {
                    self.forget(found.attr.ino, 1);
                    return Ok(());
                }
            }
        }
    }

    /// As LOOKUP; `None` = it vanished since the list was read, or cannot be looked up: one such
    /// name must not fail the whole list.
    fn look_up_listed(&self, node: &Arc<Node>, name: &[u8]) -> Option<Entry> {
        let child = {
            let ns = self.ns_read(node, Need::Names).ok()?;
            let Found::Present(found) = self.resolve(node, &ns, name).ok()? else {
                return None;
            };
            self.child(node, name, &found, 1)
        };
        child
            .and_then(|child| self.entry(&child))
            .inspect_err(|err| log::debug!("a listed name: {err}"))
            .ok()
    }
}

/// Gives `.` and `..` where `cookie` asks for them; false = the sink is full.
fn list_dots(node: &Arc<Node>, cookie: u64, sink: &mut ListSink<'_>) -> bool {
    if cookie == 0
        && !sink(DirEntry {
            cookie: 1,
            ino: node.id,
            kind: Kind::Dir,
            name: b".",
        })
    {
        return false;
    }
    let parent = node.home().parent.map_or(node.id, |p| p.id);
    cookie > 1
        || sink(DirEntry {
            cookie: 2,
            ino: parent,
            kind: Kind::Dir,
            name: b"..",
        })
}
