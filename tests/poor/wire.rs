//! The messages of linux/fuse.h, as far as they are needed.

use rustix::fs::Stat;
use rustix::io::Errno;
use std::ffi::CStr;

/// What SETATTR changes.
pub mod set {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// A request; what follows its header is taken from the front.
pub struct Request<'a> {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// `None` = it is shorter than its header.
    pub fn parse(raw: &'a [u8]) -> Option<Self> {
        let mut header = Self {
            opcode: 0,
            unique: 0,
            node: 0,
            uid: 0,
            gid: 0,
            body: raw,
        };
        (raw.len() >= 40).then_some(())?;
        header.u32();
        header.opcode = header.u32();
        header.unique = header.u64();
        header.node = header.u64();
        (header.uid, header.gid) = (header.u32(), header.u32());
        header.u64();
        Some(header)
    }

    /// The next bytes; zeros where there are none.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.body.len());
        bytes[..len].copy_from_slice(&self.body[..len]);
        self.body = &self.body[len..];
        bytes
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }

    /// The next name.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = CStr::from_bytes_until_nul(self.body).map_err(|_| Errno::INVAL)?;
        self.body = &self.body[name.count_bytes() + 1..];
        Ok(name)
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.body
    }
}

/// An answer, without its header.
pub type Answer = Result<Vec<u8>, Errno>;

/// The answer as it is written to the device.
pub fn message(unique: u64, answer: Answer) -> Vec<u8> {
    let (error, body) = match answer {
        Ok(body) => (0, body),
        Err(errno) => (-errno.raw_os_error(), Vec::new()),
    };
    let mut out = Out::default();
    out.u32((16 + body.len()) as u32)
        .u32(error as u32)
        .u64(unique);
    out.0.extend(body);
    out.0
}

/// Builds the body of an answer.
#[derive(Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// `struct fuse_attr`; without `fine` the times are those of vfat.
    pub fn attr(&mut self, stat: &Stat, fine: bool) -> &mut Self {
        let shown = |sec: i64, nsec: u64| match fine {
            true => (sec as u64, nsec as u32),
            false => ((sec & !1) as u64, 0),
        };
        let times = [
            shown(stat.st_atime, stat.st_atime_nsec),
            shown(stat.st_mtime, stat.st_mtime_nsec),
            shown(stat.st_ctime, stat.st_ctime_nsec),
        ];
        self.u64(stat.st_ino)
            .u64(stat.st_size as u64)
            .u64(stat.st_blocks as u64);
        for (sec, _) in times {
            self.u64(sec);
        }
        for (_, nsec) in times {
            self.u32(nsec);
        }
        self.u32(stat.st_mode).u32(stat.st_nlink as u32);
        self.u32(stat.st_uid)
            .u32(stat.st_gid)
            .u32(stat.st_rdev as u32);
        self.u32(stat.st_blksize as u32).u32(0)
    }

    /// `struct fuse_dirent`; false = there is no room for it.
    pub fn entry(&mut self, (ino, next, kind): (u64, u64, u32), name: &[u8], room: usize) -> bool {
        let len = (24 + name.len()).next_multiple_of(8);
        if self.0.len() + len > room {
            return false;
        }
        let end = self.0.len() + len;
        self.u64(ino).u64(next).u32(name.len() as u32).u32(kind);
        self.0.extend(name);
        self.0.resize(end, 0);
        true
    }
}
