//! inotify(7) on directories that are open.

use crate::errno::{Errno, Result};
use crate::sys::Name;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use std::mem::MaybeUninit;

/// Number of a watch. The kernel gives none twice before it has given all others.
pub type WatchId = i32;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A name came, went, or became another file.
    Name,
    /// Data or attributes of the file changed.
    File,
    /// Attributes of the watched directory itself changed.
    Itself,
    /// The watch is gone: the directory was removed, its filesystem unmounted, or it was taken off.
    Gone,
    /// Events were lost: those of any watch.
    Lost,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of which directory; of none for [`What::Lost`].
    pub watch: WatchId,
    /// What happened.
    pub what: What,
    /// The name in the directory; empty for the last three kinds.
    pub name: Name,
}

/// Filesystems that others change without this kernel knowing: NFS, SMB (two), 9P, Ceph, AFS (two),
/// FUSE. Source: include/uapi/linux/magic.h.
const SHARED: [u32; 8] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x6b41_4653,
    0x6573_5546,
];

/// Does inotify tell of every change on the filesystem of a directory?
pub fn hears_everything(dir: impl AsFd) -> Result<bool> {
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    // The numbers have 32 bits, the field 32 or 64.
    Ok(!SHARED.contains(&(kind as u32)))
}

/// Space for one read: more than 1000 events with short names.
const BUFFER: usize = 32 << 10;

/// An inotify instance.
#[derive(Debug)]
pub struct Inotify(OwnedFd);

impl Inotify {
    /// A new instance. EMFILE: fs.inotify.max_user_instances.
    pub fn new() -> Result<Self> {
        inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map(Self)
    }

    /// Watches an open directory (`O_PATH` will do): names in it, data and attributes of the files
    /// under them, its own attributes. Watching it again gives the same number.
    ///
    /// # Errors
    /// EACCES: the directory may not be read. ENOSPC: fs.inotify.max_user_watches.
    pub fn add(&self, dir: impl AsFd) -> Result<WatchId> {
        let flags = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        // There is no call that takes a descriptor. The link leads to the open directory itself,
        // whatever its path is now.
        let link = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
        inotify::add_watch(&self.0, link, flags)
    }

    /// Takes a watch off. One that is gone already is no error.
    pub fn remove(&self, watch: WatchId) {
        if let Err(err) = inotify::remove_watch(&self.0, watch) {
            log::debug!("watch {watch}: {err}");
        }
    }

    /// For poll(2): readable when there are events.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the events that are there, as many as fit into one read.
    pub fn read(&self, mut sink: impl FnMut(Event)) -> Result<()> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); BUFFER];
        let mut reader = Reader::new(&self.0, &mut buffer);
        loop {
            match reader.next() {
                Ok(event) => {
                    if let Some(what) = meaning(event.events(), event.file_name().is_some()) {
                        let name = event.file_name().map(|n| n.to_bytes()).unwrap_or_default();
                        sink(Event {
                            watch: event.wd(),
                            what,
                            name: Name::from_slice(name),
                        });
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Err(err) => return Err(err),
            }
            if reader.is_buffer_empty() {
                return Ok(());
            }
        }
    }
}

fn meaning(flags: ReadFlags, named: bool) -> Option<What> {
    let names = ReadFlags::CREATE | ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::MOVED_TO;
    if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
        Some(What::Lost)
    } else if flags.contains(ReadFlags::IGNORED) {
        Some(What::Gone)
    } else if !named {
        flags.contains(ReadFlags::ATTRIB).then_some(What::Itself)
    } else if flags.intersects(names) {
        Some(What::Name)
    } else {
        Some(What::File)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn events(inotify: &Inotify) -> Vec<Event> {
        let mut all = Vec::new();
        inotify.read(|event| all.push(event)).unwrap();
        all
    }

    #[test]
    fn names_data_attributes_and_the_end_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let fd = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        let inotify = Inotify::new().unwrap();
        let watch = inotify.add(&fd).unwrap();
        assert_eq!(inotify.add(&fd), Ok(watch));
        assert!(events(&inotify).is_empty());
        fs::write(dir.path().join("f"), "x").unwrap();
        let seen: Vec<_> = events(&inotify)
            .iter()
            .map(|e| (e.what, e.name.to_vec()))
            .collect();
        assert_eq!(
            seen,
            [(What::Name, b"f".to_vec()), (What::File, b"f".to_vec())]
        );
        drop(fd);
        dir.close().unwrap();
        assert_eq!(events(&inotify).last().map(|e| e.what), Some(What::Gone));
    }
}
