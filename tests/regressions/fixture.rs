//! Branches in a temporary directory, a union of them, and operations by path.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use unionfs::errno::{Errno, Result};
use unionfs::spec::MountSpec;
use unionfs::types::{Attr, Caller, Lookup, NodeId, RenameFlags, SetAttr, Writer};
use unionfs::union::Union;

/// Who asks, where it does not matter.
pub const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
};

/// Can these tests do anything here?
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Branches on disk and at most one union of them.
pub struct Fixture {
    dir: PathBuf,
    /// Removed with the fixture.
    _temporary: Option<TempDir>,
    union: Option<Union>,
    /// References that the kernel would hold.
    held: RefCell<BTreeMap<NodeId, u64>>,
    pub caller: Caller,
}

impl Fixture {
    /// An empty place, on a filesystem that uses inode numbers again (most disk filesystems do).
    pub fn new() -> Self {
        let temporary = tempfile::Builder::new()
            .prefix("uaufs-regressions-")
            .tempdir()
            .unwrap();
        let at = Self::at(temporary.path());
        Self {
            _temporary: Some(temporary),
            ..at
        }
    }

    /// Branches that somebody else made, and removes.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _temporary: None,
            union: None,
            held: RefCell::default(),
            caller: ROOT_USER,
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Makes a directory behind the union's back, and those above it.
    pub fn put_dir(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    /// Writes a file behind the union's back, and the directories above it.
    pub fn put(&self, path: &str, data: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    /// Makes a hard link behind the union's back.
    pub fn put_link(&self, old: &str, new: &str) {
        let new = self.path(new);
        fs::create_dir_all(new.parent().unwrap()).unwrap();
        fs::hard_link(self.path(old), new).unwrap();
    }

    /// Removes a file behind the union's back.
    pub fn take(&self, path: &str) {
        fs::remove_file(self.path(path)).unwrap();
    }

    /// What a branch holds.
    pub fn on_branch(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Writes files until one has this inode number: `None` where numbers are not used again.
    pub fn put_with_number(&self, path: &str, data: &str, number: u64) -> Option<()> {
        let (path, spare) = (self.path(path), self.path("spare"));
        fs::create_dir_all(&spare).unwrap();
        let found = (0..1000).any(|n| {
            fs::write(&path, data).unwrap();
            if path.metadata().unwrap().ino() == number {
                return true;
            }
            fs::rename(&path, spare.join(n.to_string())).unwrap();
            false
        });
        fs::remove_dir_all(&spare).unwrap();
        found.then_some(())
    }

    pub fn number_on_branch(&self, path: &str) -> u64 {
        self.path(path).metadata().unwrap().ino()
    }

    /// Opens a union of these branches (`DIR` or `DIR=PERMISSION`, topmost first) in place of the
    /// one that is open.
    pub fn open(&mut self, branches: &[&str], options: &str) {
        self.close();
        let paths: Vec<String> = branches
            .iter()
            .map(|b| format!("{}/{b}", self.dir.display()))
            .collect();
        self.open_as(&format!("br={},{options}", paths.join(":")));
    }

    /// As [`Self::open`], in the words of mount(8).
    pub fn open_as(&mut self, options: &str) {
        self.close();
        let words: Vec<OsString> = options
            .split(',')
            .filter(|w| !w.is_empty())
            .map(OsString::from)
            .collect();
        let spec = MountSpec::parse(&words).unwrap();
        self.union = Some(Union::open(&spec).unwrap());
    }

    /// Closes the union as a crash would: nothing is put away.
    pub fn close(&mut self) {
        self.held.borrow_mut().clear();
        self.union = None;
    }

    pub fn union(&self) -> &Union {
        self.union.as_ref().unwrap()
    }

    /// The kernel drops everything it knows.
    pub fn forget(&self) {
        for (node, count) in std::mem::take(&mut *self.held.borrow_mut()) {
            self.union().forget(node, count);
        }
    }

    pub fn hold(&self, node: NodeId) -> NodeId {
        *self.held.borrow_mut().entry(node).or_default() += 1;
        node
    }

    /// Looks a path up, component by component.
    pub fn find(&self, path: &str) -> Result<NodeId> {
        let mut at = NodeId::ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            at = match self.union().lookup(at, name.as_bytes())? {
                Lookup::Found(entry) => self.hold(entry.attr.ino),
                Lookup::Absent => return Err(Errno::NOENT),
            };
        }
        Ok(at)
    }

    pub fn node(&self, path: &str) -> NodeId {
        self.find(path)
            .unwrap_or_else(|err| panic!("{path}: {err}"))
    }

    fn split<'a>(&self, path: &'a str) -> Result<(NodeId, &'a [u8])> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(dir)?, name.as_bytes()))
    }

    pub fn attr(&self, path: &str) -> Attr {
        self.union().getattr(self.node(path)).unwrap()
    }

    pub fn read_node(&self, node: NodeId) -> Result<String> {
        let mut buf = [0; 4096];
        let len = self.union().read(node, 0, &mut buf)?;
        Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
    }

    /// The content of a file.
    pub fn read(&self, path: &str) -> String {
        self.find(path)
            .and_then(|node| self.read_node(node))
            .unwrap_or_else(|err| panic!("{path}: {err}"))
    }

    pub fn write_node(&self, node: NodeId, data: &str) -> Result<()> {
        let size = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        self.union().setattr(node, &size, Writer::Privileged)?;
        self.union()
            .write(node, 0, data.as_bytes(), Writer::Privileged)?;
        Ok(())
    }

    /// Gives a file new content.
    pub fn write(&self, path: &str, data: &str) -> Result<()> {
        self.write_node(self.find(path)?, data)
    }

    pub fn create(&self, path: &str, data: &str) -> Result<NodeId> {
        let (dir, name) = self.split(path)?;
        let made = self
            .union()
            .create(&self.caller, dir, name, 0o644, 0o022, libc::O_RDWR)?;
        let node = self.hold(made.0.attr.ino);
        self.union()
            .write(node, 0, data.as_bytes(), Writer::Privileged)?;
        self.union().release(node);
        Ok(node)
    }

    pub fn link(&self, old: &str, new: &str) -> Result<()> {
        let (node, (dir, name)) = (self.find(old)?, self.split(new)?);
        let entry = self.union().link(&self.caller, node, dir, name)?;
        self.hold(entry.attr.ino);
        Ok(())
    }

    pub fn rename(&self, old: &str, new: &str) -> Result<()> {
        let (from, to) = (self.split(old)?, self.split(new)?);
        let flags = RenameFlags::empty();
        self.union().rename(&self.caller, from, to, flags)
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.split(path)?;
        self.union().unlink(&self.caller, dir, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.split(path)?;
        self.union().rmdir(&self.caller, dir, name)
    }

    pub fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        let set = SetAttr {
            mode: Some(mode),
            ..SetAttr::default()
        };
        self.union()
            .setattr(self.find(path)?, &set, Writer::Privileged)
    }

    /// Names of a directory, sorted, with the numbers that the listing tells.
    pub fn list(&self, path: &str) -> Result<BTreeMap<String, NodeId>> {
        let mut found = BTreeMap::new();
        self.union().list(self.find(path)?, 0, &mut |entry| {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            if name != "." && name != ".." {
                found.insert(name, entry.ino);
            }
            true
        })?;
        Ok(found)
    }

    pub fn names(&self, path: &str) -> Vec<String> {
        let listed = self
            .list(path)
            .unwrap_or_else(|err| panic!("{path}: {err}"));
        listed.into_keys().collect()
    }

    /// Fails unless every listed number is that of the file, and no other file's.
    pub fn check_numbers(&self, path: &str) {
        for (name, listed) in self.list(path).unwrap() {
            let looked_up = self.node(&format!("{path}/{name}"));
            assert_eq!(listed, looked_up, "number of {path}/{name}");
        }
    }
}

impl AsRef<Path> for Fixture {
    fn as_ref(&self) -> &Path {
        &self.dir
    }
}

/// Waits until a kernel with coarse timestamps gives a new one.
pub fn next_tick() {
    std::thread::sleep(Duration::from_millis(20));
}
