//! The one facade of the core: every operation of the union, on node numbers and plain values.
//!
//! Each file of this module is one group of operations. They all follow the same three steps: find
//! out what the branches say, decide, act on one writable branch.

mod absent;
mod attr;
mod change;
mod copying;
mod copyup;
mod counts;
mod create;
mod data;
mod dirs;
mod discard;
mod exchange;
mod gate;
mod guard;
mod held;
mod hidden;
mod links;
mod list;
mod live;
mod lookup;
mod make_dir;
pub mod merge;
mod metacopy;
mod metadata;
mod moves;
mod names;
mod namespace;
mod news;
mod on_open;
mod open;
mod owners;
mod placement;
mod plinks;
mod redirect;
mod refresh;
mod remove;
mod rename;
mod setup;
mod spill;
mod visible;
mod watch;
mod watcher;
mod which;
mod xattr;

use crate::shown::ShowPath;
use arc_swap::{ArcSwap, ArcSwapOption, Guard};

use crate::errno::{Errno, Result};
use crate::ino::InoMap;
use crate::node::{FdCache, Node, NodeTable};
use crate::spec::Options;
use crate::stack::Stack;
use crate::types::*;
pub use change::LiveError;
pub use counts::Counts;
pub use held::OnlyThere;
pub use which::{Instance, Whereabouts};

use absent::AbsentNames;
use copying::CopyUps;
use discard::Trash;
use gate::{Gate, Inside};
use links::LinkTable;
use metacopy::{BELOW, KeptData};
use names::KnownNames;
use open::OpenTable;
use parking_lot::Mutex;
use placement::Placement;
use redirect::Redirects;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use watch::Watches;
use watcher::Watcher;

/// A mounted or mountable union. All methods may be called from any thread at once.
pub struct Union {
    /// Replaced as a whole by live changes; read without a lock.
    options: ArcSwap<Options>,
    /// Replaced as a whole by live changes; read without a lock.
    stack: ArcSwap<Stack>,
    nodes: NodeTable,
    /// Nodes that died since memory was last given back to the system.
    died: AtomicUsize,
    inos: InoMap,
    /// Directories (`O_PATH`) by node, branch and inode number there: a number that comes back as
    /// another directory must not find the old one.
    dir_fds: FdCache<(NodeId, BranchId, u64)>,
    /// Data descriptors of nodes.
    data_fds: FdCache<(NodeId, BranchId)>,
    /// Data of nodes that is not where they are and cannot be found again.
    kept_data: KeptData,
    opens: OpenTable,
    links: LinkTable,
    names: KnownNames,
    redirects: Redirects,
    copyups: CopyUps,
    trash: Trash,
    placement: Placement,
    moving: merge::Moving,
    /// Lock order 1: held over renames between two directories, so that the order of the two
    /// directory locks (ancestor first) cannot change while it is determined.
    rename_lock: Mutex<()>,
    next_generation: AtomicU64,
    /// Directories that are not shown: device and inode number.
    hidden: Vec<(u64, u64)>,
    /// May the daemon give files to others?
    privileged: bool,
    /// Some owners have no id here.
    in_userns: bool,
    /// Where effects go.
    sink: OnceLock<Sink>,
    /// Operations are inside, changes of the stack close it.
    gate: Gate,
    /// Counts the changes of the stack.
    version: AtomicU64,
    /// The next branch that is added gets this identity.
    next_branch: AtomicU32,
    absent: AbsentNames,
    /// With `udba=notify`, while they are served.
    watches: ArcSwapOption<Watches>,
    watcher: Mutex<Option<Watcher>>,
}

struct Sink(Box<dyn Fn(Effect) + Send + Sync>);

/// Fewer dead nodes than this (some 10 MB) are not worth giving their memory back.
const TRIM_AFTER: usize = 1 << 15;

/// "For ever", as far as a kernel cache is concerned.
const FOREVER: Duration = Duration::from_secs(1 << 30);

impl Union {
    /// The options in force.
    pub fn options(&self) -> Guard<Arc<Options>> {
        self.options.load()
    }

    /// True when no branch is writable: mount with MS_RDONLY.
    pub fn read_only(&self) -> bool {
        !self.stack().branches().iter().any(|b| b.writable())
    }

    /// The branches as they stand now.
    pub fn stack(&self) -> Arc<Stack> {
        self.stack.load_full()
    }

    /// From now on what the kernel should know without having asked goes here; one sink for the
    /// life of the union. The sink must not wait for anything.
    pub fn set_sink(&self, sink: impl Fn(Effect) + Send + Sync + 'static) {
        if self.sink.set(Sink(Box::new(sink))).is_err() {
            log::error!("the union is served twice");
        }
    }

    fn tell(&self, effect: Effect) {
        if let Some(sink) = self.sink.get() {
            (sink.0)(effect);
        }
    }

    /// Begins an operation: the branches stay as they are until the result is dropped. Waits while
    /// they are changed. Everything that may run beside live changes is done within.
    pub fn enter(&self) -> Inside<'_> {
        self.gate.enter()
    }

    /// FORGET.
    pub fn forget(&self, node: NodeId, count: u64) {
        let dead = self.nodes.forget(node, count);
        for node in &dead {
            self.drop_caches_of(node);
        }
        let died = self.died.fetch_add(dead.len(), Ordering::Relaxed) + dead.len();
        drop(dead);
        // Each time that half of what was there has died: the work is in proportion.
        if died >= TRIM_AFTER && died >= self.nodes.len() {
            self.died.store(0, Ordering::Relaxed);
            crate::sys::limits::trim_heap();
        }
    }

    fn drop_caches_of(&self, node: &Node) {
        if node.kind == Kind::Dir {
            self.unwatch(node);
            for layer in node.layers().iter().chain(node.hidden_layers().iter()) {
                self.dir_fds.remove((node.id, layer.branch, layer.real));
            }
        } else {
            self.data_fds.remove((node.id, node.inode().0));
            if node.has_own_data(self.version()) == Some(false) {
                self.data_fds.remove((node.id, BELOW));
            }
            self.kept_data.forget(node.id);
            self.opens.remove(node.id);
            self.links.forget(node.id);
            self.names.forget(node.id);
        }
    }

    /// Nodes alive: for statistics and leak tests.
    pub fn node_count(&self) -> usize {
        for dead in self.nodes.reap_all() {
            self.drop_caches_of(&dead);
        }
        self.nodes.len()
    }

    /// Called once when the mount is gone: makes the bookkeeping durable.
    pub fn shutdown(&self) {
        for branch in self.stack().branches() {
            if let Some(store) = &branch.store
                && let Err(err) = store.sync()
            {
                log::warn!(
                    "{}: cannot sync the bookkeeping: {err}",
                    branch.path.shown()
                );
            }
        }
    }

    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.known(id).ok_or(Errno::STALE)
    }

    fn dir_node(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.kind == Kind::Dir {
            Ok(node)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    fn generation(&self) -> u64 {
        self.next_generation.fetch_add(1, Ordering::Relaxed)
    }

    /// Runs `f`; if the process is out of descriptors, closes the cached ones and tries once more.
    fn with_descriptors<T>(&self, f: impl Fn() -> Result<T>) -> Result<T> {
        match f() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.dir_fds.clear();
                self.data_fds.clear();
                f()
            }
            other => other,
        }
    }
}
