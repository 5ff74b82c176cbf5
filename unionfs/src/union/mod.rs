//! The one facade of the core: every operation of the union, on node numbers and plain values.

use crate::errno::{Errno, Result};
use crate::setup::SetupError;
use crate::spec::{MountSpec, Options};
use crate::types::*;

/// A mounted or mountable union. All methods may be called from any thread at once.
pub struct Union {
    options: Options,
}

#[allow(unused_variables)]
impl Union {
    /// Opens the branches, takes the locks of the writable ones, finishes what a crash left.
    /// Does not mount anything. Branch paths are resolved now and never again.
    pub fn open(spec: &MountSpec) -> core::result::Result<Self, SetupError> { Ok(Self { options: spec.options.clone() }) }
    /// The options in force.
    pub fn options(&self) -> &Options { &self.options }
    /// True when no branch is writable: mount with MS_RDONLY.
    pub fn read_only(&self) -> bool { false }
    /// How long the kernel may trust answers.
    pub fn lifetimes(&self) -> Lifetimes { Lifetimes { entry: Default::default(), attr: Default::default(), negative: Default::default() } }
    /// LOOKUP. A found entry counts once towards [`Self::forget`].
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Result<Lookup> { Err(Errno::NOSYS) }
    /// FORGET.
    pub fn forget(&self, node: NodeId, count: u64) {}
    /// GETATTR.
    pub fn getattr(&self, node: NodeId) -> Result<Attr> { Err(Errno::NOSYS) }
    /// SETATTR. Truncation by a caller without CAP_FSETID drops setuid, setgid and capabilities when `kill_priv`.
    pub fn setattr(&self, caller: &Caller, node: NodeId, set: &SetAttr, kill_priv: bool) -> Result<Attr> { Err(Errno::NOSYS) }
    /// READLINK.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> { Err(Errno::NOSYS) }
    /// MKNOD (regular files too). `umask` is applied unless the parent has a default ACL.
    pub fn mknod(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, umask: u32, rdev: u64) -> Result<Entry> { Err(Errno::NOSYS) }
    /// MKDIR.
    pub fn mkdir(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, umask: u32) -> Result<Entry> { Err(Errno::NOSYS) }
    /// SYMLINK.
    pub fn symlink(&self, caller: &Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<Entry> { Err(Errno::NOSYS) }
    /// LINK.
    pub fn link(&self, caller: &Caller, node: NodeId, parent: NodeId, name: &[u8]) -> Result<Entry> { Err(Errno::NOSYS) }
    /// UNLINK.
    pub fn unlink(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> { Err(Errno::NOSYS) }
    /// RMDIR.
    pub fn rmdir(&self, caller: &Caller, parent: NodeId, name: &[u8]) -> Result<()> { Err(Errno::NOSYS) }
    /// RENAME and RENAME2.
    pub fn rename(&self, caller: &Caller, from: (NodeId, &[u8]), to: (NodeId, &[u8]), flags: RenameFlags) -> Result<()> { Err(Errno::NOSYS) }
    /// CREATE: makes a regular file and opens it as [`Self::open_node`] does.
    pub fn create(&self, caller: &Caller, parent: NodeId, name: &[u8], mode: u32, umask: u32, flags: i32) -> Result<(Entry, Opened)> { Err(Errno::NOSYS) }
    /// OPEN of a non-directory. `flags` as in open(2). Pins the data descriptor until [`Self::release`].
    pub fn open_node(&self, node: NodeId, flags: i32) -> Result<Opened> { Err(Errno::NOSYS) }
    /// RELEASE of one [`Self::open_node`] or [`Self::create`].
    pub fn release(&self, node: NodeId) {}
    /// The descriptor behind a node whose [`Opened::passthrough`] is true, to be registered with the kernel.
    pub fn passthrough_fd(&self, node: NodeId) -> Result<std::sync::Arc<std::os::fd::OwnedFd>> { Err(Errno::NOSYS) }
    /// READ into `buf`; returns the bytes read (short only at the end of the file).
    pub fn read(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> { Err(Errno::NOSYS) }
    /// WRITE. Copies up first if needed. `append`: the file was opened O_APPEND (the kernel already chose the offset).
    pub fn write(&self, node: NodeId, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> { Err(Errno::NOSYS) }
    /// FSYNC / FSYNCDIR.
    pub fn fsync(&self, node: NodeId, datasync: bool) -> Result<()> { Err(Errno::NOSYS) }
    /// FALLOCATE, `mode` as in fallocate(2).
    pub fn fallocate(&self, node: NodeId, offset: u64, length: u64, mode: i32) -> Result<()> { Err(Errno::NOSYS) }
    /// LSEEK with SEEK_DATA or SEEK_HOLE.
    pub fn lseek(&self, node: NodeId, offset: i64, whence: i32) -> Result<i64> { Err(Errno::NOSYS) }
    /// COPY_FILE_RANGE.
    pub fn copy_file_range(&self, from: (NodeId, u64), to: (NodeId, u64), length: u64) -> Result<usize> { Err(Errno::NOSYS) }
    /// OPENDIR: may the kernel keep its cached listing?
    pub fn open_dir(&self, node: NodeId) -> Result<Opened> { Err(Errno::NOSYS) }
    /// READDIR from `cookie` (0 = start); includes `.` and `..`.
    pub fn list(&self, node: NodeId, cookie: u64, sink: &mut ListSink<'_>) -> Result<()> { Err(Errno::NOSYS) }
    /// READDIRPLUS. An entry the sink refuses does not count as looked up.
    pub fn list_plus(&self, node: NodeId, cookie: u64, sink: &mut ListPlusSink<'_>) -> Result<()> { Err(Errno::NOSYS) }
    /// GETXATTR: the whole value.
    pub fn getxattr(&self, node: NodeId, name: &[u8]) -> XattrResult { Err(Errno::NOSYS) }
    /// LISTXATTR: names, each with its NUL.
    pub fn listxattr(&self, node: NodeId) -> XattrResult { Err(Errno::NOSYS) }
    /// SETXATTR, `flags` as in setxattr(2).
    pub fn setxattr(&self, node: NodeId, name: &[u8], value: &[u8], flags: i32) -> Result<()> { Err(Errno::NOSYS) }
    /// REMOVEXATTR.
    pub fn removexattr(&self, node: NodeId, name: &[u8]) -> Result<()> { Err(Errno::NOSYS) }
    /// STATFS.
    pub fn statfs(&self, node: NodeId) -> Result<StatFs> { Err(Errno::NOSYS) }
    /// Called once when the mount is gone: drops temporary data, writes back what is to be remembered.
    pub fn shutdown(&self) {}
}
