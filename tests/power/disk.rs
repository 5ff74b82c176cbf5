//! Disks whose every write and flush is noted: files of a small FUSE filesystem, in memory. A loop
//! device on one passes each write on before it answers it, and a flush of its cache as FSYNC.

use anyhow::{Context, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

/// What a disk is told, and what happens above it.
#[derive(Debug)]
pub enum Event {
    Write {
        disk: usize,
        at: usize,
        data: Vec<u8>,
    },
    /// Everything that was written to this disk before stays.
    Flush { disk: usize },
    /// So many steps have been answered.
    Done(usize),
}

#[derive(Default)]
struct State {
    images: Vec<Vec<u8>>,
    events: Option<Vec<Event>>,
}

/// The disks, which can be mounted.
pub struct Disks {
    state: Arc<Mutex<State>>,
    dir: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disks {
    /// Disks with this content, below an empty directory.
    pub fn serve(dir: &Path, images: Vec<Vec<u8>>) -> Result<Self> {
        let state = State {
            images,
            events: None,
        };
        let state = Arc::new(Mutex::new(state));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("disks".into())];
        let server = Server {
            state: Arc::clone(&state),
        };
        // One thread: events are in the order in which they are answered.
        let session = Session::new(server, dir, &config).context("cannot mount the disks")?;
        Ok(Self {
            state,
            dir: dir.to_owned(),
            session: Some(session.spawn()?),
        })
    }

    pub fn path(&self, disk: usize) -> PathBuf {
        self.dir.join(disk.to_string())
    }

    /// From now on everything is noted. Answers what the disks hold now.
    pub fn begin(&self) -> Vec<Vec<u8>> {
        let mut state = lock(&self.state);
        state.events = Some(Vec::new());
        state.images.clone()
    }

    /// So many steps have been answered.
    pub fn done(&self, steps: usize) {
        if let Some(events) = &mut lock(&self.state).events {
            events.push(Event::Done(steps));
        }
    }

    /// What was noted; nothing is any more.
    pub fn end(&self) -> Vec<Event> {
        lock(&self.state).events.take().unwrap_or_default()
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(error) = session.umount_and_join()
        {
            eprintln!("power: the disks cannot be unmounted: {error}");
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Server {
    state: Arc<Mutex<State>>,
}

/// How long the kernel may remember names and attributes, which never change.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

impl Server {
    /// The number of the first disk is 2.
    fn disk(ino: INodeNo) -> Option<usize> {
        usize::try_from(ino.0).ok()?.checked_sub(2)
    }

    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match Self::disk(ino) {
            None => (FileType::Directory, 0o700, 0),
            Some(disk) => {
                let size = lock(&self.state).images.get(disk)?.len() as u64;
                (FileType::RegularFile, 0o600, size)
            }
        };
        Some(FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|name| name.parse::<u64>().ok());
        match number.and_then(|number| self.attr(INodeNo(number + 2))) {
            Some(attr) => reply.entry(&FOR_EVER, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&FOR_EVER, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No page cache between the loop device and this.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let state = lock(&self.state);
        let image = Self::disk(ino).and_then(|disk| state.images.get(disk));
        let Some(image) = image else {
            return reply.error(Errno::EISDIR);
        };
        let from = (offset as usize).min(image.len());
        let to = (from + size as usize).min(image.len());
        reply.data(&image[from..to]);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = lock(&self.state);
        let (Some(disk), at) = (Self::disk(ino), offset as usize) else {
            return reply.error(Errno::EISDIR);
        };
        let image = state.images.get_mut(disk);
        let Some(place) = image.and_then(|image| image.get_mut(at..at + data.len())) else {
            return reply.error(Errno::ENOSPC);
        };
        place.copy_from_slice(data);
        if let Some(events) = &mut state.events {
            let data = data.to_vec();
            events.push(Event::Write { disk, at, data });
        }
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        if let (Some(disk), Some(events)) = (Self::disk(ino), &mut lock(&self.state).events) {
            events.push(Event::Flush { disk });
        }
        reply.ok();
    }
}
