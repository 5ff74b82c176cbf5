//! statx(2) reduced to what the union uses.

use crate::errno::Result;
use crate::types::{Kind, Timestamp};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp, statx};

/// What a branch says about one of its files.
#[derive(Clone, Copy, Debug)]
pub struct RealStat {
    /// Inode number on the branch's filesystem.
    pub ino: u64,
    /// Device of the filesystem (`makedev`).
    pub dev: u64,
    /// Mount the file was reached through; 0 where the kernel does not tell (before 5.8).
    pub mnt_id: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Link count.
    pub nlink: u32,
    /// Owner on the branch.
    pub uid: u32,
    /// Group on the branch.
    pub gid: u32,
    /// Device number of a device node.
    pub rdev: u64,
    /// Bytes.
    pub size: u64,
    /// 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Access time.
    pub atime: Timestamp,
    /// Data change time.
    pub mtime: Timestamp,
    /// Attribute change time.
    pub ctime: Timestamp,
    /// Birth time; zero where the filesystem has none.
    pub btime: Timestamp,
}

impl RealStat {
    /// File type.
    pub fn kind(&self) -> Kind {
        Kind::from_mode(self.mode)
    }

    /// The same with another owner, group and permission bits.
    pub fn with_owner(self, (uid, gid, mode): (u32, u32, u32)) -> Self {
        let mode = self.mode & !0o7777 | mode & 0o7777;
        Self {
            uid,
            gid,
            mode,
            ..self
        }
    }

    /// The same as another type.
    pub fn with_type(self, kind: Kind, rdev: u64) -> Self {
        let mode = self.mode & 0o7777 | kind.to_mode();
        Self { mode, rdev, ..self }
    }

    /// A character device 0/0: overlayfs's whiteout.
    pub fn is_null_device(&self) -> bool {
        self.kind() == Kind::Char && self.rdev == 0
    }
}

fn time(t: StatxTimestamp) -> Timestamp {
    Timestamp {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    }
}

impl From<Statx> for RealStat {
    fn from(s: Statx) -> Self {
        Self {
            ino: s.stx_ino,
            dev: rustix::fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            mnt_id: s.stx_mnt_id,
            mode: u32::from(s.stx_mode),
            nlink: s.stx_nlink,
            uid: s.stx_uid,
            gid: s.stx_gid,
            rdev: rustix::fs::makedev(s.stx_rdev_major, s.stx_rdev_minor),
            size: s.stx_size,
            blocks: s.stx_blocks,
            blksize: s.stx_blksize,
            atime: time(s.stx_atime),
            mtime: time(s.stx_mtime),
            ctime: time(s.stx_ctime),
            btime: time(s.stx_btime),
        }
    }
}

/// `STATX_MNT_ID` (Linux 5.8), which rustix has no name for.
const MNT_ID: u32 = 0x1000;

fn mask() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::from_bits_retain(MNT_ID)
}

/// stat of `name` in `dir`, without following a symbolic link or triggering an automount.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<RealStat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    statx(dir, name, flags, mask()).map(RealStat::from)
}

/// stat of an open file (an `O_PATH` descriptor too).
pub fn stat_fd(fd: impl AsFd) -> Result<RealStat> {
    statx(fd, c"", AtFlags::EMPTY_PATH, mask()).map(RealStat::from)
}
