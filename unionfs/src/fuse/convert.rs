//! Between the values of the core and those of the protocol library. Pure.

use crate::errno::Errno;
use crate::types::{Attr, Kind, SetTime, Timestamp};
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An errno for a reply.
pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

/// A file type for a reply.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Char => FileType::CharDevice,
        Kind::Block => FileType::BlockDevice,
    }
}

/// Attributes for a reply.
pub(super) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The attributes of a negative entry: node number 0 makes the kernel remember the absence.
pub(super) fn absent_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// A device number of `makedev(3)` in the 32 bits of the protocol (`new_encode_dev`,
/// linux/kdev_t.h).
pub(super) fn encode_dev(dev: u64) -> u32 {
    let (major, minor) = (libc::major(dev), libc::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of [`encode_dev`].
pub(super) fn decode_dev(dev: u32) -> u64 {
    libc::makedev(
        (dev & 0xf_ff00) >> 8,
        (dev & 0xff) | ((dev >> 12) & 0xf_ff00),
    )
}

/// A time for a reply; one that [`SystemTime`] cannot hold becomes the epoch.
fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nsec.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// A time of a request.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// A time of a request, undoing an error of fuser 0.18: it builds the time of (seconds < 0,
/// nanoseconds) as `epoch - (|seconds| + nanoseconds)`, where the nanoseconds count forwards. So
/// before the epoch, both parts of the distance are taken as they were put in.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nsec: since.subsec_nanos(),
        },
        Err(before) => {
            let before = before.duration();
            Timestamp {
                sec: 0i64.saturating_sub_unsigned(before.as_secs()),
                nsec: before.subsec_nanos(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_carry_times_before_the_epoch() {
        let time = system_time(Timestamp {
            sec: -2,
            nsec: 800_000_000,
        });
        assert_eq!(time, UNIX_EPOCH - Duration::new(1, 200_000_000));
        let last = Timestamp {
            sec: i64::MAX,
            nsec: 999_999_999,
        };
        assert!(system_time(last) >= UNIX_EPOCH);
        let _ = system_time(Timestamp {
            sec: i64::MIN,
            nsec: 0,
        });
    }

    #[test]
    fn requests_before_the_epoch_are_repaired() {
        // What fuser makes of sec = -2, nsec = 800_000_000.
        let garbled = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(
            timestamp(garbled),
            Timestamp {
                sec: -2,
                nsec: 800_000_000
            }
        );
        assert_eq!(
            timestamp(UNIX_EPOCH - Duration::from_secs(5)),
            Timestamp { sec: -5, nsec: 0 }
        );
        assert_eq!(
            timestamp(UNIX_EPOCH + Duration::new(3, 4)),
            Timestamp { sec: 3, nsec: 4 }
        );
    }

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (4095, 0xf_ffff)] {
            let dev = libc::makedev(major, minor);
            assert_eq!(decode_dev(encode_dev(dev)), dev, "{major}:{minor}");
        }
        assert_eq!(encode_dev(libc::makedev(1, 3)), 0x103);
    }
}
