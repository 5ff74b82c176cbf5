//! Building a union from what was asked for.

use super::absent::AbsentNames;
use super::copying::CopyUps;
use super::discard::Trash;
use super::gate::Gate;
use super::links::{LinkTable, Plink};
use super::metacopy::KeptData;
use super::names::KnownNames;
use super::open::OpenTable;
use super::placement::Placement;
use super::redirect::Redirects;
use super::{FOREVER, Union};
use crate::branch::Branch;
use crate::branch::log::{Recovered, Source};
use crate::branch::open::open_all;
use crate::errno::Errno;
use crate::ino::InoMap;
use crate::node::{FdCache, Home, Layer, LayerList, Layers, Node, NodeTable, Place};
use crate::setup::SetupError;
use crate::shown::ShowPath;
use crate::spec::{MountSpec, Options};
use crate::stack::Stack;
use crate::sys::{Name, creds};
use crate::types::{Kind, NodeId};
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::sync::{Arc, OnceLock};

impl Union {
    /// Opens the branches, takes the locks of the writable ones, reads their bookkeeping.
    ///
    /// Does not mount anything. Branch paths are resolved now and never again.
    pub fn open(spec: &MountSpec) -> Result<Self, SetupError> {
        refuse_unsupported(spec)?;
        // Opened now, while absolute paths cannot lead into a mount of ours.
        let proc = crate::sys::loc::proc_self_fd().and(crate::sys::procs::proc_dir());
        proc.map_err(|errno| SetupError::System {
            what: "cannot open /proc and /proc/self/fd: mount /proc first".to_owned(),
            errno,
        })?;
        let mut opened = open_all(&spec.branches, spec.grammar)?;
        super::owners::adopt(&mut opened, spec.options.xattr_permissions)?;
        let branches: Vec<Arc<Branch>> = opened.iter().map(|(b, _)| b.clone()).collect();
        // The writable branch's filesystem comes first: its numbers are shown as they are.
        let first = branches
            .iter()
            .filter(|b| b.writable())
            .chain(branches.iter());
        let inos = InoMap::new(first.map(|b| (b.dev, b.fs)));
        let (links, redirects) = (LinkTable::default(), Redirects::default());
        learn(&opened, &inos, &links);
        for branch in &branches {
            redirects.load(branch)?;
        }
        note_stack(&branches);
        let options = possible_options(spec.options.clone(), &branches);
        let budget = descriptor_budget();
        let next_branch = AtomicU32::new(branches.len() as u32);
        let root = Arc::new(root_node(&branches));
        Ok(Self {
            options: ArcSwap::from_pointee(options),
            stack: ArcSwap::from_pointee(Stack::new(branches)),
            nodes: NodeTable::new(root),
            died: AtomicUsize::new(0),
            inos,
            dir_fds: FdCache::new(budget),
            data_fds: FdCache::new(budget),
            kept_data: KeptData::default(),
            opens: OpenTable::default(),
            links,
            names: KnownNames::default(),
            redirects,
            copyups: CopyUps::default(),
            trash: Trash::default(),
            placement: Placement::default(),
            moving: Default::default(),
            rename_lock: Mutex::new(()),
            next_generation: AtomicU64::new(1),
            hidden: Vec::new(),
            privileged: creds::is_privileged(),
            in_userns: !creds::in_initial_userns(),
            sink: OnceLock::new(),
            gate: Gate::default(),
            version: AtomicU64::new(0),
            next_branch,
            absent: AbsentNames::default(),
            watches: ArcSwapOption::empty(),
            watcher: Mutex::new(None),
        })
    }
}

impl Union {
    /// Takes a directory out of the merged tree wherever a branch shows it: the state of a
    /// container that runs on the tree its state lies in. Before the union is served.
    ///
    /// # Errors
    /// Those of opening the path.
    pub fn hide(&mut self, path: &std::path::Path) -> Result<(), SetupError> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let stat = openat(CWD, path, flags, Mode::empty()).and_then(crate::sys::stat::stat_fd);
        let stat =
            stat.map_err(|errno| SetupError::path(path, errno, "cannot be hidden from the union"))?;
        self.hidden.push((stat.dev, stat.ino));
        Ok(())
    }
}

/// Options that are understood but that this version cannot honour are refused, not ignored.
fn refuse_unsupported(spec: &MountSpec) -> Result<(), SetupError> {
    let refuse = |what: &str, hint: &str| {
        Err(SetupError::Option {
            what: what.to_owned(),
            hint: hint.to_owned(),
        })
    };
    if spec.branches.is_empty() {
        return refuse("br", "a union needs at least one branch");
    }
    if spec.branches.len() > usize::from(u16::MAX) {
        return refuse("br", "at most 65535 branches");
    }
    // On a writable one no directory with a whiteout could be removed.
    let readonly = spec.mount.read_only || !spec.branches.iter().any(|b| b.perm.writable());
    if spec.options.show_whiteouts && !readonly {
        return refuse("shwh", "whiteouts are shown on readonly mounts: add ro");
    }
    refuse_unsupported_options(&spec.options)
}

/// Without hard links on a writable branch there are no pseudo-links.
fn possible_options(mut options: Options, branches: &[Arc<Branch>]) -> Options {
    options.plink &= branches.iter().all(|b| b.can_link());
    options
}

/// The same for what does not depend on the branches.
pub(super) fn refuse_unsupported_options(o: &Options) -> Result<(), SetupError> {
    let refuse = |what: &str, hint: &str| {
        Err(SetupError::Option {
            what: what.to_owned(),
            hint: hint.to_owned(),
        })
    };
    if o.timeout.is_some_and(|t| t > FOREVER) {
        return refuse("timeout", "at most 2^30 seconds");
    }
    Ok(())
}

/// Takes over what the books of the writable branches say.
pub(super) fn learn(opened: &[(Arc<Branch>, Recovered)], inos: &InoMap, links: &LinkTable) {
    number_sources(opened, inos);
    for (branch, recovered) in opened {
        recover(branch, recovered, inos, links);
    }
    for (_, recovered) in opened {
        for source in &recovered.last_word {
            if let Some(node) = inos.node_of(source) {
                links.set_delta(node, recovered.links.get(source).copied().unwrap_or(0));
            }
        }
    }
}

/// Each writable branch remembers what it was mounted with.
pub(super) fn note_stack(branches: &[Arc<Branch>]) {
    use std::os::unix::ffi::OsStrExt;
    for branch in branches {
        let all = branches
            .iter()
            .map(|b| (b.path.as_os_str().as_bytes(), b.perm.to_string()));
        if let Some(store) = &branch.store
            && let Err(err) = store.note_stack(all)
        {
            let path = branch.path.shown();
            log::warn!("{path}: cannot note the branches of this mount: {err}");
        }
    }
}

/// How many directory (and as many data) descriptors may be cached: a quarter of the limit each,
/// so that half is left for open files and for work in progress.
fn descriptor_budget() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(4096) / 4)
        .unwrap_or(1024)
        .clamp(64, 4096)
}

/// Gives every recorded source its number, in an order that does not change from mount to mount: of
/// two with one inode number the older keeps it.
fn number_sources(opened: &[(Arc<Branch>, Recovered)], inos: &InoMap) {
    let origins = opened.iter().flat_map(|(_, r)| r.origins.values());
    let links = opened.iter().flat_map(|(_, r)| r.links.keys());
    let mut sources: Vec<Source> = origins.map(|o| o.source).chain(links.copied()).collect();
    sources.sort_unstable();
    for source in &sources {
        inos.node_of(source);
    }
}

/// Takes over what a branch remembers. What concerns filesystems that are no branches now waits in
/// its log.
fn recover(branch: &Arc<Branch>, recovered: &Recovered, inos: &InoMap, links: &LinkTable) {
    for (&real, origin) in &recovered.origins {
        if let Some(node) = inos.node_of(&origin.source) {
            inos.set_origin(branch.dev, real, *origin, node);
        }
    }
    for (source, &delta) in recovered.links.iter().filter(|(_, delta)| **delta != 0) {
        if let Some(node) = inos.node_of(source)
            && links.plink(node).is_none()
        {
            links.set_delta(node, delta);
        }
    }
    for &(named, real) in &recovered.plinks {
        let Some(origin) = recovered.origins.get(&real) else {
            continue;
        };
        let (Some(node), Some(store)) = (inos.node_of(&origin.source), &branch.store) else {
            continue;
        };
        // A crash can leave the one from which it was brought up, on a lower branch.
        if let Some(upper) = links.plink(node) {
            if upper.branch != branch.id {
                store.remove_plink(named, real);
            }
            continue;
        }
        if node != named
            && let Err(err) = store.renumber_plink(named, node, real)
        {
            log::warn!(
                "{}: pseudo-link {}.{real} cannot be renamed: {err}",
                branch.path.shown(),
                named.0
            );
            continue;
        }
        let plink = Plink {
            branch: branch.id,
            real,
            source: origin.source,
        };
        links.add_plink(node, plink);
        // What other branches recorded of it is older.
        let delta = recovered.links.get(&origin.source);
        links.set_delta(node, delta.copied().unwrap_or_default());
    }
}

/// The layers of the root.
pub(super) fn root_layers(branches: &[Arc<Branch>]) -> LayerList {
    let mut layers = SmallVec::new();
    for branch in branches.iter().filter(|b| !b.perm.data_only) {
        layers.push(Layer::named(branch.id, branch.root_ino));
        // An opaque mark in a branch root hides the branches below (OCI images have them).
        if branch.honours_whiteouts() && branch.is_opaque(&branch.root).unwrap_or(false) {
            break;
        }
    }
    layers
}

fn root_node(branches: &[Arc<Branch>]) -> Node {
    let layers = root_layers(branches);
    let home = Home {
        parent: None,
        name: Name::new(),
        linked: true,
        branch: branches[0].id,
        real: branches[0].root_ino,
        place: Place::Named,
    };
    Node::new(NodeId::ROOT, Kind::Dir, 0, home, Some(Layers::new(layers)))
}

impl From<Errno> for SetupError {
    fn from(errno: Errno) -> Self {
        Self::System {
            what: "cannot read the bookkeeping of a writable branch".to_owned(),
            errno,
        }
    }
}
