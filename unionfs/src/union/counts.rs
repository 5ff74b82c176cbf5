//! How much a union holds in memory: for statistics, and to find leaks.

use super::Union;
use crate::types::Kind;
use serde::{Deserialize, Serialize};

/// Numbers of things held, each at some moment of the asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files and directories that the kernel knows, the root among them.
    pub nodes: usize,
    /// Of these, directories.
    pub directories: usize,
    /// Names of directories that are kept.
    pub names: usize,
    /// Further names of files with several.
    pub link_names: usize,
    /// Absent names that the kernel may remember.
    pub absent_names: usize,
    /// Files with pseudo-links, and files whose links lie on several branches.
    pub links: usize,
    /// Opens that are not released.
    pub opens: u64,
    /// Cached descriptors of directories.
    pub directory_descriptors: usize,
    /// Cached descriptors of data.
    pub data_descriptors: usize,
    /// Directories of branches that are watched (`udba=notify`).
    pub watches: usize,
    /// Inode numbers that are not simply those of the branch's files.
    pub numbers: usize,
    /// Files that are being copied up.
    pub copying_up: usize,
}

impl Union {
    /// Counts what is held. What the kernel has forgotten is gone before.
    pub fn counts(&self) -> Counts {
        // Of removed directories that waited for their children, too.
        self.node_count();
        let mut counts = Counts {
            link_names: self.names.len(),
            absent_names: self.absent.len(),
            links: self.links.len(),
            directory_descriptors: self.dir_fds.len(),
            data_descriptors: self.data_fds.len(),
            watches: self.watches.load().as_ref().map_or(0, |w| w.len()),
            numbers: self.inos.len(),
            copying_up: self.copyups.len(),
            ..Counts::default()
        };
        for node in self.nodes.all() {
            counts.nodes += 1;
            counts.opens += node.open_count();
            counts.directories += usize::from(node.kind == Kind::Dir);
            // One that is being changed right now counts as empty.
            let names = node.dir().and_then(|dir| dir.ns.try_read());
            let index = names.as_ref().and_then(|ns| ns.index.as_ref());
            counts.names += index.map_or(0, crate::node::Index::len);
        }
        counts
    }
}
