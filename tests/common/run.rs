//! Does to a union and to the model the same, as a kernel would: by node numbers that it got from
//! lookups, each counted and given back.

use super::branches::{Branches, Stack};
use super::layers::{LONGEST_PLAIN_WHITEOUT, Name, name};
use super::ops::{Op, Pick, mode};
use super::reference::{Body, Id, Model, Node, ROOT};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use unionfs::errno::{self, Errno, errno_name};
use unionfs::spec::Format;
use unionfs::types::{BranchId, Caller, Entry, Kind, Lookup, NodeId, RenameFlags};
use unionfs::union::Union;
use unionfs::union::merge::MergeOptions;

pub const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};
const UMASK: u32 = 0o022;

/// A union, the model of it, and what the kernel holds.
pub struct Run {
    pub branches: Branches,
    pub model: Model,
    union: Option<Union>,
    /// Nodes that the kernel knows.
    pub known: BTreeMap<Id, NodeId>,
    /// References it holds.
    pub counts: BTreeMap<NodeId, u64>,
    /// The number every file has had since it was first seen.
    numbers: BTreeMap<Id, NodeId>,
    /// Link counts of files are compared: after a crash they may be wrong.
    pub exact_links: bool,
    /// Files were moved between branches: inode numbers are used again, and a later mount may tell
    /// other numbers of files made since.
    reused: bool,
    /// What was really done, for a failure's report.
    log: Vec<String>,
}

impl Run {
    pub fn new(stack: Stack) -> Result<Self> {
        let (branches, model) = Branches::write(stack)?;
        Self::on(branches, model)
    }

    /// A union of these branches, which is to show what the model says.
    pub fn on(branches: Branches, model: Model) -> Result<Self> {
        let union = Union::open(&branches.spec)?;
        Ok(Self {
            branches,
            model,
            union: Some(union),
            known: BTreeMap::new(),
            counts: BTreeMap::new(),
            numbers: BTreeMap::new(),
            exact_links: true,
            reused: false,
            log: Vec::new(),
        })
    }

    /// Runs a whole sequence and all checks.
    pub fn check_all(mut self, ops: &[Op]) -> Result<()> {
        self.check_steps(ops)
            .with_context(|| format!("after\n  {}\n", self.log.join("\n  ")))?;
        self.union = None;
        self.branches.check_readonly()
    }

    fn check_steps(&mut self, ops: &[Op]) -> Result<()> {
        self.compare().context("at the start")?;
        for (at, op) in ops.iter().enumerate() {
            self.step(op)
                .with_context(|| format!("in step {at}, {op:?}"))?;
        }
        self.compare().context("at the end")?;
        self.forget_all(false)?;
        self.compare().context("after everything was forgotten")?;
        self.remount(true).context("at the end")?;
        self.compare().context("after the last remount")?;
        self.forget_all(true)
    }

    pub fn union(&self) -> Result<&Union> {
        self.union.as_ref().context("no union is open")
    }

    pub fn say(&mut self, what: std::fmt::Arguments<'_>) {
        self.log.push(what.to_string());
    }

    /// The kernel got an entry: one reference more. Checks that the number is the file's own.
    pub fn note(&mut self, id: Id, entry: &Entry) -> Result<NodeId> {
        let ino = entry.attr.ino;
        *self.counts.entry(ino).or_default() += 1;
        if let Some(known) = self.numbers.get(&id) {
            ensure!(
                *known == ino,
                "file {id} had the number {known:?} and now has {ino:?}"
            );
        }
        let other = self.numbers.iter().find(|(o, n)| **n == ino && **o != id);
        if let Some((other, _)) = other {
            bail!("file {id} has the number {ino:?} of file {other}");
        }
        self.numbers.insert(id, ino);
        self.known.insert(id, ino);
        Ok(ino)
    }

    /// The node of a file, looked up from the root if the kernel does not know it (any more).
    pub fn node(&mut self, id: Id) -> Result<NodeId> {
        if id == ROOT {
            return Ok(NodeId::ROOT);
        }
        let named = self.model.a_name_of(id);
        if let Some(known) = self.known.get(&id)
            && (named.is_none() || !self.branches.stack.reval)
        {
            return Ok(*known);
        }
        let (dir, name) = named.context("the file has no name")?;
        self.look_up(dir, &name)?
            .with_context(|| format!("{name:?} is not there"))
    }

    /// LOOKUP, compared with the model.
    pub fn look_up(&mut self, dir: Id, name: &[u8]) -> Result<Option<NodeId>> {
        let parent = self.node(dir)?;
        let found = self
            .union()?
            .lookup(parent, name)
            .with_context(|| format!("lookup of \"{}\"", name.escape_ascii()))?;
        match (found, self.model.child(dir, name)) {
            (Lookup::Found(entry), Some(id)) => self.note(id, &entry).map(Some),
            (Lookup::Absent, None) => Ok(None),
            (Lookup::Found(entry), None) => {
                *self.counts.entry(entry.attr.ino).or_default() += 1;
                bail!("\"{}\" was found but should not exist", name.escape_ascii())
            }
            (Lookup::Absent, Some(_)) => {
                bail!("\"{}\" was not found", name.escape_ascii())
            }
        }
    }

    /// The kernel drops everything it knows.
    pub fn forget_all(&mut self, backwards: bool) -> Result<()> {
        self.say(format_args!("forget"));
        let union = self.union.as_ref().context("no union is open")?;
        let mut counts: Vec<_> = std::mem::take(&mut self.counts).into_iter().collect();
        if backwards {
            counts.reverse();
        }
        for (node, count) in counts {
            union.forget(node, count);
        }
        ensure!(
            union.node_count() == 1,
            "{} nodes are left after everything was forgotten",
            union.node_count()
        );
        self.known.clear();
        self.prune();
        Ok(())
    }

    /// Files without a name that the kernel does not hold are gone, and their numbers free.
    fn prune(&mut self) {
        let held: BTreeSet<Id> = self.known.keys().copied().collect();
        self.model.prune(&held);
        let alive: BTreeSet<Id> = self.model.reachable().into_iter().chain(held).collect();
        self.numbers.retain(|id, _| alive.contains(id));
    }

    /// Closes the union (`clean`: after telling it so) and opens it again on the same branches.
    pub fn remount(&mut self, clean: bool) -> Result<()> {
        self.say(format_args!("remount"));
        if clean {
            self.forget_all(false)?;
            self.union()?.shutdown();
        }
        self.union = None;
        self.counts.clear();
        self.known.clear();
        self.prune();
        if self.reused {
            self.numbers.clear();
        }
        self.union = Some(Union::open(&self.branches.spec)?);
        Ok(())
    }

    /// Directories to choose from; those that were removed but are held come last.
    fn dirs(&self) -> Vec<Id> {
        let mut dirs = self.model.reachable();
        let held = self.known.keys().filter(|id| !dirs.contains(id));
        let held: Vec<Id> = held.copied().collect();
        dirs.extend(held);
        dirs.retain(|id| self.model.is_dir(*id));
        dirs
    }

    pub fn dir(&self, n: u8) -> Id {
        let dirs = self.dirs();
        dirs[usize::from(n) % dirs.len()]
    }

    /// The change times that the union shows of all directories, one a line.
    pub fn dir_times(&mut self) -> Result<String> {
        let mut told = String::new();
        for id in self.model.reachable() {
            if self.model.is_dir(id) {
                let node = self.node(id)?;
                let mtime = self.union()?.getattr(node)?.mtime;
                told += &format!("directory {id}: {}.{:09}\n", mtime.sec, mtime.nsec);
            }
        }
        Ok(told)
    }

    /// Files of every kind to choose from, those without a name last.
    fn file(&self, n: u8) -> Id {
        let mut files = self.model.reachable();
        let held = self.known.keys().filter(|id| !files.contains(id));
        let held: Vec<Id> = held.copied().collect();
        files.extend(held);
        files[usize::from(n) % files.len()]
    }

    fn regular(&self, n: u8) -> Option<Id> {
        let mut files: Vec<Id> = self.model.reachable();
        files.extend(
            self.known
                .keys()
                .filter(|id| !files.contains(id))
                .copied()
                .collect::<Vec<_>>(),
        );
        files.retain(|id| self.model.node(*id).kind() == Kind::File);
        files.get(usize::from(n) % files.len().max(1)).copied()
    }

    pub fn name(&self, dir: Id, pick: &Pick) -> Name {
        let children = self.model.children(dir);
        match pick {
            Pick::Existing(n) if !children.is_empty() => {
                let at = usize::from(*n) % children.len();
                children.into_keys().nth(at).unwrap_or_else(|| name(*n))
            }
            Pick::Existing(n) | Pick::Any(n) => name(*n),
        }
    }

    /// One operation, on both.
    pub fn step(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Create { dir, name, mode: m } => {
                let node = Node::new(Body::File(Vec::new()), Some(mode(*m) & !UMASK));
                self.make(*dir, name, node, mode(*m), b"")
            }
            Op::Mkdir { dir, name, mode: m } => {
                let node = Node::new(Body::Dir(BTreeMap::new()), Some(mode(*m) & 0o1777 & !UMASK));
                self.make(*dir, name, node, mode(*m) & 0o1777, b"")
            }
            Op::Symlink {
                dir,
                name: n,
                target,
            } => {
                let target = name(*target).0;
                self.make(
                    *dir,
                    n,
                    Node::new(Body::Symlink(target.clone()), None),
                    0,
                    &target,
                )
            }
            Op::Mknod { dir, name, null } => {
                let body = if *null { Body::Null } else { Body::Fifo };
                self.make(*dir, name, Node::new(body, Some(0o644)), 0o644, b"")
            }
            Op::Link { node, dir, name } => self.link(*node, *dir, name),
            Op::Remove { dir, name } => {
                let dir = self.dir(*dir);
                let name = self.name(dir, name);
                let as_dir = self
                    .model
                    .child(dir, &name)
                    .is_some_and(|c| self.model.is_dir(c));
                self.remove(dir, &name, as_dir)
            }
            Op::RemoveAs { dir, name, as_dir } => {
                let dir = self.dir(*dir);
                let name = self.name(dir, name);
                self.remove(dir, &name, *as_dir)
            }
            Op::RemoveTree { dir } => {
                let dir = self.dir(*dir);
                self.remove_tree(dir)
            }
            Op::Rename { from, to, flags } => {
                let (from_dir, to_dir) = (self.dir(from.0), self.dir(to.0));
                let (old, new) = (self.name(from_dir, &from.1), self.name(to_dir, &to.1));
                self.rename((from_dir, &old), (to_dir, &new), *flags)
            }
            Op::MoveDir { node, to, flags } => {
                let dir = self.dir(*node);
                let Some((from_dir, old)) = self.model.a_name_of(dir) else {
                    return Ok(());
                };
                let to_dir = self.dir(to.0);
                let new = self.name(to_dir, &to.1);
                self.rename((from_dir, &old), (to_dir, &new), *flags)
            }
            Op::Write { node, data } => match self.regular(*node) {
                Some(id) => self.write(id, *data),
                None => Ok(()),
            },
            Op::Truncate { node, size } => match self.regular(*node) {
                Some(id) => self.truncate(id, *size),
                None => Ok(()),
            },
            Op::Chmod { node, .. }
            | Op::Chown { node, .. }
            | Op::SetXattr { node, .. }
            | Op::RemoveXattr { node, .. }
                if self.is_lost(self.file(*node)) =>
            {
                Ok(())
            }
            Op::Chmod { node, mode: m } => self.chmod(self.file(*node), mode(*m)),
            Op::Chown { node, uid } => self.chown(self.file(*node), u32::from(*uid)),
            Op::SetXattr {
                node,
                attr,
                value,
                flags,
            } => self.set_xattr(self.file(*node), *attr, *value, *flags),
            Op::RemoveXattr { node, attr } => self.remove_xattr(self.file(*node), *attr),
            Op::Lookup { dir, name } => {
                let dir = self.dir(*dir);
                let name = self.name(dir, name);
                self.look_up(dir, &name).map(drop)
            }
            Op::List {
                dir,
                chunk,
                plus,
                changes,
            } => self.list_while_changing(*dir, usize::from(*chunk), *plus, changes),
            Op::Forget { backwards } => self.forget_all(*backwards),
            Op::Remount { clean } => self.remount(*clean),
            // Sometimes to the end, sometimes only a few entries.
            Op::Merge => self.merge_some(self.log.len() % 8),
            Op::Compare => self.compare(),
        }
    }

    /// Merges the first writable branch into the second. Nobody sees a difference.
    pub fn merge(&mut self) -> Result<()> {
        self.merge_some(0)
    }

    /// The same, stopped after so many steps; 0 = not stopped.
    fn merge_some(&mut self, most: usize) -> Result<()> {
        let writable: Vec<BranchId> = self.branches.stack.writable().collect();
        let [from, to, ..] = writable[..] else {
            return Ok(());
        };
        if self.branches.stack.format != Format::Aufs {
            return Ok(());
        }
        self.say(format_args!("merge {most}"));
        let mut steps = 0;
        let options = MergeOptions {
            copy: most >= 6,
            ..MergeOptions::default()
        };
        let mut failed = Vec::new();
        let merged = self.union()?.merge(from, to, options, &mut |step| {
            if let Err(err) = step.done {
                failed.push(format!("{}: {err}", step.path.escape_ascii()));
            }
            steps += 1;
            match steps == most && most != 7 {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        ensure!(failed.is_empty(), "{failed:?}");
        self.say(format_args!("{merged:?}"));
        // Names that no one saw are gone: they were counted.
        self.exact_links &= !self.model.has_hidden_links();
        self.reused = !self.branches.stack.in_memory;
        self.compare()
    }

    fn make(&mut self, dir: u8, pick: &Pick, node: Node, mode: u32, target: &[u8]) -> Result<()> {
        let dir = self.dir(dir);
        let name = self.name(dir, pick);
        self.make_at(dir, &name, node, mode, target)
    }

    pub fn make_at(
        &mut self,
        dir: Id,
        name: &Name,
        node: Node,
        mode: u32,
        target: &[u8],
    ) -> Result<()> {
        self.say(format_args!("make {:?} {name:?} in {dir}", node.kind()));
        let mut want = self.model.refuses_new(dir, name);
        if node.body == Body::Null && self.is_mark(name) {
            want.push(Errno::PERM);
        }
        let parent = self.node(dir)?;
        let union = self.union()?;
        let got = match node.body {
            Body::File(_) => union
                .create(&CALLER, parent, name, mode, UMASK, libc::O_RDWR)
                .map(|(entry, _)| entry),
            Body::Dir(_) => union.mkdir(&CALLER, parent, name, mode, UMASK),
            Body::Symlink(_) => union.symlink(&CALLER, parent, name, target),
            Body::Fifo => union.mknod(&CALLER, parent, name, libc::S_IFIFO | mode, UMASK, 0),
            Body::Null => union.mknod(&CALLER, parent, name, libc::S_IFCHR | mode, UMASK, 0),
        };
        if let Some(entry) = judge(got, &want, &[])? {
            if node.kind() == Kind::File {
                union.release(entry.attr.ino);
            }
            let id = self.model.make(dir, name, node);
            self.note(id, &entry)?;
            self.compare_attr(id, &entry.attr)?;
        }
        Ok(())
    }

    fn link(&mut self, node: u8, dir: u8, pick: &Pick) -> Result<()> {
        let files: Vec<Id> = self.model.reachable();
        let id = files[usize::from(node) % files.len()];
        let dir = self.dir(dir);
        let name = self.name(dir, pick);
        self.link_as(id, dir, &name)
    }

    pub fn link_as(&mut self, id: Id, dir: Id, name: &Name) -> Result<()> {
        self.say(format_args!("link {id} as {name:?} in {dir}"));
        let mut want = self.model.refuses_new(dir, name);
        let null = self.model.node(id).body == Body::Null;
        if self.model.is_dir(id) || (null && self.is_mark(name)) {
            want.push(Errno::PERM);
        }
        let (file, parent) = (self.node(id)?, self.node(dir)?);
        let got = self.union()?.link(&CALLER, file, parent, name);
        if let Some(entry) = judge(got, &want, self.may_cross())? {
            self.model.link(id, dir, name);
            self.note(id, &entry)?;
            self.compare_attr(id, &entry.attr)?;
        }
        Ok(())
    }

    /// Is a null device of this name a whiteout? In the AUFS format where the name is too long for
    /// any other.
    fn is_mark(&self, name: &[u8]) -> bool {
        self.branches.stack.format == Format::Overlay || name.len() > LONGEST_PLAIN_WHITEOUT
    }

    /// With two writable branches a rename or link may be one between filesystems.
    fn may_cross(&self) -> &'static [Errno] {
        if self.branches.stack.several_writable() {
            &[Errno::XDEV]
        } else {
            &[]
        }
    }

    pub fn remove(&mut self, dir: Id, name: &Name, as_dir: bool) -> Result<()> {
        self.say(format_args!("remove {name:?} in {dir}"));
        let want = self.model.refuses_removal(dir, name, as_dir);
        let parent = self.node(dir)?;
        let union = self.union()?;
        let got = if as_dir {
            union.rmdir(&CALLER, parent, name)
        } else {
            union.unlink(&CALLER, parent, name)
        };
        if judge(got, &want, &[])?.is_some() {
            self.model.remove(dir, name);
            self.prune();
        }
        Ok(())
    }

    fn remove_tree(&mut self, dir: Id) -> Result<()> {
        if dir == ROOT {
            return Ok(());
        }
        for (name, child) in self.model.children(dir) {
            let as_dir = self.model.is_dir(child);
            if as_dir {
                self.remove_tree(child)?;
            } else {
                self.remove(dir, &name, false)?;
            }
        }
        match self.model.a_name_of(dir) {
            Some((parent, name)) => self.remove(parent, &name, true),
            None => Ok(()),
        }
    }

    pub fn rename(&mut self, from: (Id, &Name), to: (Id, &Name), flags: RenameFlags) -> Result<()> {
        self.say(format_args!("rename {from:?} {to:?} {flags:?}"));
        let mut want = self
            .model
            .refuses_rename((from.0, from.1), (to.0, to.1), flags);
        let mut may = self.may_cross();
        let both = [
            self.model.child(from.0, from.1),
            self.model.child(to.0, to.1),
        ];
        let moved = if flags.contains(RenameFlags::EXCHANGE) {
            2
        } else {
            1
        };
        let heavy = both[..moved]
            .iter()
            .flatten()
            .any(|id| self.model.has_lower_children(*id));
        if heavy && !self.branches.stack.dir_rename {
            may = &[Errno::XDEV];
        }
        let null = |id: Option<Id>| id.is_some_and(|id| self.model.node(id).body == Body::Null);
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        let marks = (null(both[0]) && self.is_mark(to.1))
            || (exchange && null(both[1]) && self.is_mark(from.1));
        if marks && both[0] != both[1] {
            want.push(Errno::PERM);
        }
        if both[0].is_some_and(|id| self.model.is_dir(id)) && to.1.len() > LONGEST_PLAIN_WHITEOUT {
            // A whiteout device under the new name is not easily replaced by a directory.
            may = &[Errno::XDEV];
        }
        let (a, b) = (self.node(from.0)?, self.node(to.0)?);
        let got = self.union()?.rename(&CALLER, (a, from.1), (b, to.1), flags);
        if judge(got, &want, may)?.is_some() {
            self.model.rename(from, to, flags);
            self.prune();
        }
        Ok(())
    }
}

/// Compares a result with the errors that are expected (none: success) and those that may be.
pub fn judge<T>(got: errno::Result<T>, want: &[Errno], may: &[Errno]) -> Result<Option<T>> {
    let named = |list: &[Errno]| list.iter().map(|e| errno_name(*e)).collect::<Vec<_>>();
    match got {
        Ok(value) if want.is_empty() => Ok(Some(value)),
        Ok(_) => bail!("succeeded, expected {:?}", named(want)),
        Err(err) if want.contains(&err) || may.contains(&err) => Ok(None),
        Err(err) if want.is_empty() => bail!("failed: {}", errno_name(err)),
        Err(err) => bail!("failed: {}, expected {:?}", errno_name(err), named(want)),
    }
}
