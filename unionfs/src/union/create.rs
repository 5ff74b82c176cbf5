//! MKNOD, MKDIR, SYMLINK, CREATE, LINK: new names.

use super::Union;
use super::copyup::{How, file_type};
use super::spill::says_full;
use crate::branch::Branch;
use crate::branch::owners::Owners;
use crate::errno::{Errno, Result, twice};
use crate::node::index::Found;
use crate::node::{Home, Index, Layer, LayerList, Layers, Namespace, Node, Place, Present};
use crate::shown::ShowPath;
use crate::spec::DirOpaque;
use crate::sys::loc::open_subdir;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::{Loc, Name, RealStat, creds};
use crate::types::*;
use parking_lot::RwLockReadGuard;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, openat};
use smallvec::smallvec;
use std::sync::Arc;

/// How often a link is prepared anew because another change came first.
const RETRIES: usize = 8;

/// What is made.
enum New<'a> {
    File,
    Dir,
    Symlink(&'a [u8]),
    Special(Kind, u64),
}

/// Permission bits asked for, and the umask that applies unless the directory has a default ACL.
#[derive(Clone, Copy)]
struct Modes {
    mode: u32,
    umask: u32,
}

/// What was made.
struct Made {
    entry: Entry,
    node: Arc<Node>,
    branch: BranchId,
    file: Option<Arc<OwnedFd>>,
}

impl Union {
    /// MKNOD (regular files too). `umask` is applied unless the parent has a default ACL.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> Result<Entry> {
        let new = match Kind::from_mode(mode) {
            Kind::File => New::File,
            Kind::Dir | Kind::Symlink => return Err(Errno::INVAL),
            kind => New::Special(kind, rdev),
        };
        self.make(caller, parent, name, &new, Modes { mode, umask })
            .map(|made| made.entry)
    }

    /// MKDIR.
    pub fn mkdir(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        self.make(caller, parent, name, &New::Dir, Modes { mode, umask })
            .map(|made| made.entry)
    }

    /// SYMLINK.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry> {
        let modes = Modes {
            mode: 0o777,
            umask: 0,
        };
        self.make(caller, parent, name, &New::Symlink(target), modes)
            .map(|made| made.entry)
    }

    /// CREATE: makes a regular file and opens it as [`Self::open_node`] does.
    pub fn create(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        _flags: i32,
    ) -> Result<(Entry, Opened)> {
        let made = self.make(caller, parent, name, &New::File, Modes { mode, umask })?;
        if let Some(file) = made.file {
            self.opened_new(&made.node, made.branch, file);
        }
        Ok((
            made.entry,
            Opened {
                keep_cache: true,
                passthrough: true,
            },
        ))
    }

    fn make(
        &self,
        caller: &Caller,
        parent: NodeId,
        name: &[u8],
        new: &New<'_>,
        modes: Modes,
    ) -> Result<Made> {
        let parent = self.dir_node(parent)?;
        self.check_name(name)?;
        let is_dir = matches!(new, New::Dir);
        let target = self.create_target(&parent, name, is_dir)?;
        let fits = |branch: &Branch| self.shows(&parent, branch, name);
        self.where_room_is(target, Some(&parent), fits, |target| {
            self.make_at(caller, &parent, name, new, modes, target)
        })
    }

    /// Makes it on one branch.
    fn make_at(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &[u8],
        new: &New<'_>,
        modes: Modes,
        target: BranchId,
    ) -> Result<Made> {
        let target = self.branch(target)?;
        self.make_dir_on(parent, target.id)?;
        let mut ns = self.ns_write(parent)?;
        let hidden = match self.resolve(parent, &ns, name)? {
            Found::Present(_) => return Err(Errno::EXIST),
            Found::Whiteout => true,
            Found::Absent => false,
        };
        if let New::Special(Kind::Char, 0) = new
            && target.device_hides(name)
        {
            // It would be a whiteout. The kernel's overlayfs refuses it with this error too.
            return Err(Errno::PERM);
        }
        let dir = self.dir_fd_on(parent, target.id)?;
        let file = self.make_on(caller, &target, &dir, name, new, modes, hidden)?;
        let stat = match &file {
            Some(file) => stat_fd(&**file)?,
            None => stat_at(&dir, name)?,
        };
        let stat = target.shown(&Loc::at(dir.clone(), name), stat)?;
        let node = self.new_node(parent, name, &target, &stat);
        self.index_new(parent, &mut ns, name, &target, &stat, hidden);
        let attr = if node.kind == Kind::Dir {
            super::attr::attr_from(node.id, &stat)
        } else {
            self.file_attr(&node, &stat)
        };
        let entry = Entry {
            attr,
            generation: node.generation(),
        };
        Ok(Made {
            entry,
            node,
            branch: target.id,
            file,
        })
    }

    /// The system calls of a creation. `hidden`: a whiteout says that the name is not there.
    #[allow(clippy::too_many_arguments)]
    fn make_on(
        &self,
        caller: &Caller,
        branch: &Branch,
        dir: &Arc<OwnedFd>,
        name: &[u8],
        new: &New<'_>,
        modes: Modes,
        hidden: bool,
    ) -> Result<Option<Arc<OwnedFd>>> {
        // A whiteout on a branch below stays and goes on hiding.
        let own_mark = hidden && branch.has_whiteout(dir, name)?;
        // A whiteout device has the very name: the new entry is made beside it and takes its place.
        let over_device = hidden && has_whiteout_entry(branch, dir, name)?;
        let temp;
        // So is one that gets its owner and mode by an attribute.
        let at = if over_device || branch.owners.is_some() {
            temp = side_name(branch)?;
            &*temp
        } else {
            name
        };
        let file = match branch.owners {
            Some(owners) => make_kept(owners, branch, dir, at, new, (caller, modes))?,
            None => creds::as_caller(caller.uid, caller.gid, modes.umask, || {
                make_entry(dir, at, new, modes.mode)
            })?,
        };
        let finish = || -> Result<()> {
            let always = self.options().dir_opaque == DirOpaque::Always;
            if matches!(new, New::Dir) && (own_mark || always) {
                branch.set_opaque(&open_subdir(dir, at)?)?;
            }
            if over_device {
                replace_device(branch, dir, at, name, matches!(new, New::Dir))?;
            } else if at != name {
                rustix::fs::renameat(dir, at, dir, name)?;
            }
            match hidden {
                true if at == name => branch.remove_whiteout(dir, name)?,
                // It is there, and stays.
                true => branch.drop_whiteout_of_entry(dir, name),
                false => {}
            }
            Ok(())
        };
        finish().inspect_err(|_| undo_new(dir, at, matches!(new, New::Dir)))?;
        Ok(file.map(Arc::new))
    }

    fn new_node(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        branch: &Branch,
        stat: &RealStat,
    ) -> Arc<Node> {
        // An older file may have had this number, behind our back.
        if self.inos.forget_real(branch.dev, stat.ino) {
            self.record_gone(branch, stat.ino);
        }
        if stat.kind() == Kind::Dir {
            self.drop_redirect(branch, stat.ino);
        }
        let mut id = self.inos.number(stat);
        let home = Home {
            parent: Some(parent.clone()),
            name: Name::from_slice(name),
            linked: true,
            branch: branch.id,
            real: stat.ino,
            place: Place::Named,
        };
        let layers = (stat.kind() == Kind::Dir).then(|| {
            let one: LayerList = smallvec![Layer::named(branch.id, stat.ino)];
            Layers::new(one)
        });
        let node = loop {
            let make = || {
                let (home, layers) = (home.clone(), layers.clone());
                Node::new(id, stat.kind(), self.generation(), home, layers)
            };
            let (node, existed) = self.nodes.get_or_insert(id, 1, make);
            if !existed {
                break node;
            }
            // Something else has this number: the source of a copy, perhaps.
            drop(node);
            self.forget(id, 1);
            id = self.inos.fresh();
            self.inos.keep(stat, id);
        };
        node.mark_seen(self.version());
        // In the place of a whiteout, perhaps.
        node.note_published();
        if let Some(dir) = node.dir()
            && self.options().udba == crate::spec::Udba::None
        {
            // A new directory is empty: nobody needs to read it to know.
            dir.ns.write().index = Some(Index::default());
        }
        node
    }

    /// Enters what was made into the index of its directory.
    ///
    /// `hidden`: there was a whiteout, so something may lie below that shows once this is removed.
    pub(super) fn index_new(
        &self,
        parent: &Arc<Node>,
        ns: &mut Namespace,
        name: &[u8],
        branch: &Branch,
        stat: &RealStat,
        hidden: bool,
    ) {
        // Not knowing, one more whiteout does no harm.
        let below = hidden && self.visible_below(parent, branch.id, name).unwrap_or(true);
        if let Some(index) = &mut ns.index {
            let entry = Present::single(branch.id, stat.kind(), stat.ino, below);
            index.set(name, &entry);
        }
        self.changed(parent, ns, branch.id);
    }

    /// LINK.
    pub fn link(
        &self,
        _caller: &Caller,
        node: NodeId,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Entry> {
        let (node, parent) = (self.node(node)?, self.dir_node(parent)?);
        self.check_name(name)?;
        if node.kind == Kind::Dir {
            return Err(Errno::PERM);
        }
        self.may_change(&parent)?;
        match self.link_at(&node, &parent, name, None) {
            Err(err) if says_full(err) => {
                let full = node.inode().0;
                // A link goes up with its file, and nowhere else.
                let fits = |branch: &Branch| {
                    let up = self.is_above(branch.id, full);
                    Ok(up && self.link_branch(&node, &parent, name, Some(branch.id))? == branch.id)
                };
                self.elsewhere((err, full), Some(&parent), fits, |target| {
                    self.link_at(&node, &parent, name, Some(target))
                })
            }
            other => other,
        }
    }

    /// Makes a link where it must be, but not below `least`.
    fn link_at(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        least: Option<BranchId>,
    ) -> Result<Entry> {
        let (target, _stays) = self.bring_for_link(node, parent, name, least)?;
        self.make_dir_on(parent, target.id)?;
        let source_dir = node.home().parent;
        // Two directory locks, in their order: the source's name must stay until it is linked.
        let _order = source_dir
            .as_ref()
            .filter(|s| s.id != parent.id)
            .map(|_| self.rename_lock.lock());
        let _source = match &source_dir {
            Some(dir) if dir.id != parent.id && first_of(dir, parent) => {
                Some(dir.dir().ok_or(Errno::STALE)?.ns.read())
            }
            _ => None,
        };
        let mut ns = self.ns_write(parent)?;
        let _source_after = match &source_dir {
            Some(dir) if dir.id != parent.id && !first_of(dir, parent) => {
                Some(dir.dir().ok_or(Errno::STALE)?.ns.read())
            }
            _ => None,
        };
        let hidden = match self.resolve(parent, &ns, name)? {
            Found::Present(_) => return Err(Errno::EXIST),
            Found::Whiteout => true,
            Found::Absent => false,
        };
        let (branch, source) = self.place_locked(node)?;
        if branch.id != target.id {
            return Err(Errno::STALE);
        }
        if node.kind == Kind::Char && target.device_hides(name) && source.stat()?.is_null_device() {
            return Err(Errno::PERM);
        }
        if !self.shows(parent, &target, name)? {
            return Err(Errno::XDEV);
        }
        let dir = self.dir_fd_on(parent, target.id)?;
        link_to(&source, &target, &dir, name, hidden)?;
        let stat = target.shown(&Loc::at(dir.clone(), name), stat_at(&dir, name)?)?;
        node.update_home(|h| {
            if !h.linked {
                (h.parent, h.name, h.linked) = (Some(parent.clone()), Name::from_slice(name), true);
                if !matches!(h.place, Place::Plink) {
                    h.place = Place::Named;
                }
            }
        });
        if !node.is_at(parent.id, name) {
            self.names.add(node.id, parent.id, name);
        }
        self.index_new(parent, &mut ns, name, &target, &stat, hidden);
        let (node, _) = self.nodes.get_or_insert(node.id, 1, || {
            Node::new(node.id, node.kind, node.generation(), node.home(), None)
        });
        Ok(Entry {
            attr: self.file_attr(&node, &stat),
            generation: node.generation(),
        })
    }
}

impl Union {
    /// Brings a file to the branch on which it is to be linked, `least` or higher, and keeps it there.
    fn bring_for_link<'a>(
        &self,
        node: &'a Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
        least: Option<BranchId>,
    ) -> Result<(Arc<Branch>, RwLockReadGuard<'a, ()>)> {
        for _ in 0..RETRIES {
            let stays = node.change.read();
            let target = self.link_branch(node, parent, name, least)?;
            if node.inode().0 == target {
                // Under another name its data would not be found.
                self.complete_data(node, How::default())?;
                return Ok((self.branch(target)?, stays));
            }
            if !self.branch(target)?.can_link() {
                return Err(Errno::PERM);
            }
            drop(stays);
            self.bring_up(node, target)?;
        }
        Err(Errno::BUSY)
    }
}

/// Is `a` locked before `b`? Ancestors first, unrelated ones by ascending number.
pub(super) fn first_of(a: &Arc<Node>, b: &Arc<Node>) -> bool {
    if b.ancestors().any(|n| n.id == a.id) {
        return true;
    }
    if a.ancestors().any(|n| n.id == b.id) {
        return false;
    }
    a.id < b.id
}

fn make_entry(dir: &OwnedFd, name: &[u8], new: &New<'_>, mode: u32) -> Result<Option<OwnedFd>> {
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    match new {
        New::File => {
            let flags =
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            return openat(dir, name, flags, mode).map(Some);
        }
        New::Dir => rustix::fs::mkdirat(dir, name, mode)?,
        New::Symlink(target) => rustix::fs::symlinkat(*target, dir, name)?,
        New::Special(kind, rdev) => rustix::fs::mknodat(dir, name, file_type(*kind), mode, *rdev)?,
    }
    Ok(None)
}

/// Makes something whose owner, mode and (special files) type are kept in an attribute.
fn make_kept(
    owners: Owners,
    branch: &Branch,
    dir: &Arc<OwnedFd>,
    at: &[u8],
    new: &New<'_>,
    (caller, modes): (&Caller, Modes),
) -> Result<Option<OwnedFd>> {
    let (kind, rdev) = match new {
        New::File => (Kind::File, 0),
        New::Dir => (Kind::Dir, 0),
        New::Symlink(_) => (Kind::Symlink, 0),
        New::Special(kind, rdev) => (*kind, *rdev),
    };
    let owner = Union::new_owner(branch, dir, caller, kind, modes.mode & !modes.umask)?;
    let real = Owners::real_mode(owner.2);
    let plain = matches!(new, New::Special(..)).then_some(&New::File);
    let file = creds::with_exact_modes(|| make_entry(dir, at, plain.unwrap_or(new), real))?;
    let loc = Loc::at(dir.clone(), at);
    let write = || {
        let shown = loc.stat()?.with_owner(owner).with_type(kind, rdev);
        loc.xattrs(|file| owners.write(&file, &shown))
    };
    write().inspect_err(|_| undo_new(dir, at, matches!(new, New::Dir)))?;
    Ok(file.filter(|_| plain.is_none()))
}

fn undo_new(dir: &OwnedFd, name: &[u8], is_dir: bool) {
    if is_dir && let Ok(fd) = open_subdir(dir, name) {
        let _ = crate::sys::remove::contents(&fd);
    }
    let flags = if is_dir {
        AtFlags::REMOVEDIR
    } else {
        AtFlags::empty()
    };
    if let Err(err) = rustix::fs::unlinkat(dir, name, flags) {
        log::error!("cannot take back a failed creation: {err}");
    }
}

/// Is there an entry of this very name that hides it?
fn has_whiteout_entry(branch: &Branch, dir: &OwnedFd, name: &[u8]) -> Result<bool> {
    match stat_at(dir, name) {
        Ok(stat) => branch.is_whiteout_entry(dir, name, &stat),
        Err(_) => Ok(false),
    }
}

/// A name beside the final one, in the same directory, so that group and default ACL are inherited.
fn side_name(branch: &Branch) -> Result<Name> {
    let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
    let mut name = Name::from_slice(crate::whiteout::META_PREFIX);
    name.extend_from_slice(b"new.");
    name.extend_from_slice(&store.temp_name());
    Ok(name)
}

/// Puts the new entry in the place of a whiteout device, in one step.
fn replace_device(
    branch: &Branch,
    dir: &OwnedFd,
    from: &[u8],
    to: &[u8],
    is_dir: bool,
) -> Result<()> {
    if !is_dir {
        return rustix::fs::renameat(dir, from, dir, to);
    }
    rustix::fs::renameat_with(dir, from, dir, to, rustix::fs::RenameFlags::EXCHANGE)?;
    if let Err(err) = twice(|| rustix::fs::unlinkat(dir, from, AtFlags::empty())) {
        // It has a name that nobody sees, and the new entry is there.
        log::warn!("{}: a whiteout was left: {err}", branch.path.shown());
    }
    Ok(())
}

fn link_to(
    source: &Loc,
    branch: &Branch,
    dir: &Arc<OwnedFd>,
    name: &[u8],
    hidden: bool,
) -> Result<()> {
    let link_as = |dir: &OwnedFd, at: &[u8]| match source {
        Loc::Name(from, old) => rustix::fs::linkat(from, &**old, dir, at, AtFlags::empty()),
        Loc::Fd(fd) => {
            use rustix::fd::AsRawFd;
            let link = fd.as_raw_fd().to_string();
            rustix::fs::linkat(
                crate::sys::loc::proc_self_fd()?,
                link.as_bytes(),
                dir,
                at,
                AtFlags::SYMLINK_FOLLOW,
            )
        }
    };
    if hidden && has_whiteout_entry(branch, dir, name)? {
        // Where every mount empties: what a crash left would be counted as a link.
        let store = branch.store.as_ref().ok_or(Errno::ROFS)?;
        let temp = store.temp_name();
        link_as(store.tmp(), &temp)?;
        rustix::fs::renameat(store.tmp(), &*temp, dir, name)
            .inspect_err(|_| undo_new(store.tmp(), &temp, false))?;
    } else {
        link_as(dir, name)?;
    }
    if hidden {
        branch.drop_whiteout_of_entry(dir, name);
    }
    Ok(())
}
