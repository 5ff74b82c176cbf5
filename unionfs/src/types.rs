//! Plain values that cross the border of the core: node numbers, attributes, callers, listings.

use crate::errno::Result;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The number of a node: FUSE nodeid, `st_ino` and `d_ino` at once, stable for the life of the
/// mount and (on branches that can remember) over remounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The root of the union (FUSE_ROOT_ID).
    pub const ROOT: Self = Self(1);
}

/// The stable identity of a branch: it survives reordering, the position does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchId(pub u16);

impl BranchId {
    /// No branch has it: where a node is that was on one that is gone.
    pub const NONE: Self = Self(u16::MAX);
}

/// Position of a branch in the stack, 0 = topmost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchIndex(pub u16);

/// File type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// regular file
    File,
    /// directory
    Dir,
    /// symbolic link
    Symlink,
    /// named pipe
    Fifo,
    /// socket
    Socket,
    /// character device
    Char,
    /// block device
    Block,
}

impl Kind {
    /// From the `S_IFMT` bits of a mode.
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Dir,
            libc::S_IFLNK => Self::Symlink,
            libc::S_IFIFO => Self::Fifo,
            libc::S_IFSOCK => Self::Socket,
            libc::S_IFCHR => Self::Char,
            libc::S_IFBLK => Self::Block,
            _ => Self::File,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "directory",
            Self::Symlink => "symlink",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Char => "character device",
            Self::Block => "block device",
        }
    }

    /// The `S_IFMT` bits.
    pub fn to_mode(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Symlink => libc::S_IFLNK,
            Self::Fifo => libc::S_IFIFO,
            Self::Socket => libc::S_IFSOCK,
            Self::Char => libc::S_IFCHR,
            Self::Block => libc::S_IFBLK,
        }
    }
}

/// A point in time: seconds (may be negative) and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds.
    pub sec: i64,
    /// 0..1_000_000_000
    pub nsec: u32,
}

impl Timestamp {
    /// Is this time of a file so recent that a change from now on may get the same one?
    ///
    /// Kernels before 6.13 count by a clock that ticks, some filesystems (vfat, ext3, NFS of such)
    /// in steps of up to two seconds.
    pub fn may_recur(self) -> bool {
        let step = match self.nsec {
            0 => Duration::from_secs(2),
            _ => Duration::ZERO,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let then = u64::try_from(self.sec).map_or(Duration::ZERO, |s| Duration::new(s, self.nsec));
        now.unwrap_or_default().saturating_sub(then) < step + Duration::from_millis(20)
    }
}

/// What stat(2) tells about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Union inode number.
    pub ino: NodeId,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Type bits and permission bits.
    pub mode: u32,
    /// Link count.
    pub nlink: u32,
    /// Owner, as users of the mount see it.
    pub uid: u32,
    /// Group, as users of the mount see it.
    pub gid: u32,
    /// Device number (of a device node), as `makedev` encodes it.
    pub rdev: u64,
    /// Access time.
    pub atime: Timestamp,
    /// Data change time.
    pub mtime: Timestamp,
    /// Attribute change time.
    pub ctime: Timestamp,
}

impl Attr {
    /// File type.
    pub fn kind(&self) -> Kind {
        Kind::from_mode(self.mode)
    }
}

/// The answer to a successful lookup or creation. Each one handed out counts once towards
/// `forget`.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Attributes, `attr.ino` is the node.
    pub attr: Attr,
    /// Changes whenever a number is used again for another file.
    pub generation: u64,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug)]
pub enum Lookup {
    /// The name exists.
    Found(Entry),
    /// It does not: may be cached as a negative entry for the entry lifetime.
    Absent,
}

/// Who asks: ids on the wire, before any mapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Filesystem uid.
    pub uid: u32,
    /// Filesystem gid.
    pub gid: u32,
    /// Process, 0 if unknown.
    pub pid: u32,
}

/// Who changes the data of a file, as far as set-id bits are concerned.
#[derive(Clone, Copy)]
pub enum Writer<'a> {
    /// With CAP_FSETID: they stay.
    Privileged,
    /// Anybody else. Is he in this group (an id of the branch)? Then setgid stays on a file that its
    /// group may not execute.
    Ordinary(&'a dyn Fn(u32) -> bool),
}

impl Writer<'_> {
    /// May setgid stay when he sets the mode? (`in_group_or_capable` in Linux.)
    pub fn keeps_setgid(self, group: u32) -> bool {
        match self {
            Self::Privileged => true,
            Self::Ordinary(is_member) => is_member(group),
        }
    }

    /// What a write makes of the mode of a file: `setattr_should_drop_suidgid` in Linux.
    pub fn leaves(self, mode: u32, group: u32) -> u32 {
        let Self::Ordinary(is_member) = self else {
            return mode;
        };
        let setgid = mode & libc::S_ISGID;
        let drop = setgid != 0 && (mode & libc::S_IXGRP != 0 || !is_member(group));
        mode & !(libc::S_ISUID | if drop { setgid } else { 0 })
    }
}

/// Who may use one instance of a directory.
#[derive(Clone, Debug)]
pub struct DirPermission {
    /// Permission bits.
    pub mode: u32,
    /// Owner on the branch.
    pub uid: u32,
    /// Group on the branch.
    pub gid: u32,
    /// The value of `system.posix_acl_access`, if there is one.
    pub acl: Option<Vec<u8>>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's clock.
    Now,
    /// This.
    At(Timestamp),
}

/// A SETATTR request; `None` = leave alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Data change time.
    pub mtime: Option<SetTime>,
}

impl SetAttr {
    /// Is nothing set?
    pub fn is_empty(&self) -> bool {
        self.size.is_none() && !self.is_metadata()
    }

    /// Is anything but the length set?
    pub fn is_metadata(&self) -> bool {
        self.mode.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.atime.is_some()
            || self.mtime.is_some()
    }
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirEntry<'a> {
    /// Stable position: reading on from here yields what comes after this entry.
    pub cookie: u64,
    /// Node number.
    pub ino: NodeId,
    /// Type.
    pub kind: Kind,
    /// Name.
    pub name: &'a [u8],
}

/// One entry of a listing with attributes (READDIRPLUS).
#[derive(Clone, Copy, Debug)]
pub struct DirEntryPlus<'a> {
    /// As in a plain listing.
    pub entry: DirEntry<'a>,
    /// Attributes and generation; the lookup count was raised unless the name is `.` or `..`.
    pub found: Entry,
}

/// A receiver of listing entries; returns false when its buffer is full (the entry was not taken).
pub type ListSink<'a> = dyn FnMut(DirEntry<'_>) -> bool + 'a;
/// A receiver of listing entries with attributes; false = full, the entry was not taken.
pub type ListPlusSink<'a> = dyn FnMut(DirEntryPlus<'_>) -> bool + 'a;

bitflags::bitflags! {
    /// Flags of renameat2(2).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RenameFlags: u32 {
        /// Fail with EEXIST when the target exists.
        const NOREPLACE = 1;
        /// Swap the two.
        const EXCHANGE = 2;
        /// Leave a whiteout: refused with EINVAL.
        const WHITEOUT = 4;
    }
}

/// statfs(2) of the union.
#[derive(Clone, Copy, Debug)]
pub struct StatFs {
    /// Total blocks in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for ordinary users.
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Block size.
    pub bsize: u32,
    /// Longest name.
    pub namelen: u32,
    /// Fragment size.
    pub frsize: u32,
}

/// How long the kernel may trust an answer.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Names.
    pub entry: Duration,
    /// Attributes.
    pub attr: Duration,
    /// Absent names (zero = do not cache).
    pub negative: Duration,
}

/// How the adapter must answer an `open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The page cache of the node may be kept over this open.
    pub keep_cache: bool,
    /// A file descriptor in the writable branch backs the node and may be passed through.
    pub passthrough: bool,
}

/// How a directory was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedDir {
    /// A listing that the kernel remembers may be kept over this open.
    pub keep_cache: bool,
    /// The kernel may list from what it remembers, and remember what is listed.
    pub use_cache: bool,
}

/// What the kernel must be told after the reply, with no lock held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Forget the name `name` of `parent` (positive or negative).
    InvalEntry {
        /// Directory.
        parent: NodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Ask again about the name `name` of `parent` before trusting it; whoever uses what it leads to
    /// now is not disturbed.
    ExpireEntry {
        /// Directory.
        parent: NodeId,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Forget attributes and pages of `node`.
    InvalInode {
        /// The node.
        node: NodeId,
    },
    /// Wait for what is under way in a directory: the kernel takes what an answer said into its
    /// caches some time after the answer, and an invalidation in between would do nothing.
    Settle {
        /// The directory.
        parent: NodeId,
    },
}

/// The result of a getxattr or listxattr.
pub type XattrResult = Result<Vec<u8>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_recurs_for_as_long_as_its_clock_stands_still() {
        let ago = |millis: u64, whole: bool| {
            let then = SystemTime::now() - Duration::from_millis(millis);
            let then = then.duration_since(UNIX_EPOCH).unwrap();
            Timestamp {
                sec: then.as_secs() as i64,
                nsec: if whole { 0 } else { then.subsec_nanos().max(1) },
            }
        };
        assert!(ago(0, false).may_recur() && ago(0, true).may_recur());
        assert!(!ago(500, false).may_recur() && ago(500, true).may_recur());
        assert!(!ago(4000, true).may_recur());
    }
}
