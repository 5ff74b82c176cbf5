//! What a writable branch remembers: one directory, one lock, one log.
//!
//! ```text
//! .wh..wh.uaufs/        0700, in the branch root (workdir/uaufs/ in the overlay format)
//!   format              "uaufs 2\n" and the branch's dialect
//!   stack               the branches of the last mount, for merging while nothing is mounted
//!   lock                flock'ed by the one daemon that may write, as the branch's root is
//!   log                 origins of copied-up files and link counts, appended
//!   links/              one file per pseudo-link: what it is a copy of
//!   dirren/             one file per renamed directory: where its lower parts are
//!   times/              times of directories that something is being taken from
//!   opaque/             directories that a merge must make opaque again
//!   tmp/                files being copied up; emptied at mount
//!   trash/              directories being removed; emptied at mount
//! .wh..wh.aufs          the base that whiteouts are links of      (AUFS's own)
//! .wh..wh.plnk/         pseudo-links `<node>.<branch inode>`      (AUFS's own)
//! .wh..wh.orph/         orphans                                   (AUFS's own)
//! ```

use super::lacks::Lacks;
use super::log::{RECORD_LEN, Record, Recovered};
use super::marks::create_mark;
use super::removals::Removal;
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::xattr::Target;
use crate::sys::{Name, acl, creds};
use crate::whiteout::{BASE, ORPHAN_DIR, PLINK_DIR, STORE_DIR};
use parking_lot::Mutex;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FlockOperation, Mode, OFlags, openat};
use std::ffi::CStr;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Name of the bookkeeping in a work directory.
pub(super) const WORK_STORE: &[u8] = b"uaufs";

/// How long a mount waits for the branch's lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The bookkeeping of one writable branch.
#[derive(Debug)]
pub struct Store {
    tmp: Arc<OwnedFd>,
    trash: Arc<OwnedFd>,
    plinks: Arc<OwnedFd>,
    home: OwnedFd,
    redirects: OwnedFd,
    times: OwnedFd,
    links: OwnedFd,
    base_dir: OwnedFd,
    /// Guards appends to the log; a leaf lock, held over one small write.
    log: Mutex<Log>,
    serial: AtomicU64,
    lacks: Lacks,
    /// Keep the flocks until the branch is closed: of the books and of the branch itself.
    _locks: (OwnedFd, Option<OwnedFd>),
}

/// The open log, and records that could not be written to it.
#[derive(Debug)]
struct Log {
    file: std::fs::File,
    owed: Vec<u8>,
}

impl Log {
    /// What it says, with what is owed.
    fn replay(&self) -> Result<Recovered> {
        let mut recovered = super::log::replay(&self.file)?;
        let owed = self.owed.chunks_exact(RECORD_LEN);
        for record in owed.filter_map(Record::decode) {
            recovered.replay(record);
        }
        Ok(recovered)
    }

    /// Appends records, after those that are owed. After an error nothing was.
    fn append(&mut self, raw: &[u8]) -> Result<()> {
        let owed = std::mem::take(&mut self.owed);
        let written = if owed.is_empty() {
            self.file.write_all(raw)
        } else {
            self.file.write_all(&[&owed, raw].concat())
        };
        written.map_err(|e| {
            self.owed = owed;
            // A part of a record would misalign everything that follows.
            if let Ok(meta) = self.file.metadata() {
                let whole = meta.len() / RECORD_LEN as u64 * RECORD_LEN as u64;
                if let Err(err) = self.file.set_len(whole) {
                    log::error!("cannot repair the log: {err}");
                }
            }
            Errno::from_io_error(&e).unwrap_or(Errno::IO)
        })
    }
}

/// Temporary names start elsewhere on each mount, so that one left behind by a crash in a directory
/// that nobody empties is not met again.
fn first_serial() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_micros() as u64)
}

fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

fn make_dir(dir: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd> {
    let dir = dir.as_fd();
    let made =
        creds::with_exact_modes(|| rustix::fs::mkdirat(dir, name, Mode::from_bits_truncate(mode)));
    match made {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(err) => return Err(err),
    }
    let made = open_dir(dir, name)?;
    drop_default_acl(&made)?;
    Ok(made)
}

/// What is built in a directory of the books must not inherit the ACL of the branch's root.
fn drop_default_acl(dir: &OwnedFd) -> Result<()> {
    let attributes = Target::dir(dir.as_fd());
    match attributes.get(acl::DEFAULT) {
        Ok(_) => attributes.remove(acl::DEFAULT),
        // There is none, or none can be asked for.
        Err(_) => Ok(()),
    }
}

/// Takes the branch's lock, waiting a moment for a daemon that is about to end: umount(8) returns
/// before the daemon behind the mount has put its books away.
pub(super) fn take_lock(lock: &OwnedFd) -> Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Locks the branch itself, for those whose books lie elsewhere: in another work directory, or in the
/// other format. `None` where the filesystem locks no directories (NFS) or it cannot be read.
fn lock_root(root: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let Ok(dir) = open_dir(root, b".") else {
        return Ok(None);
    };
    match take_lock(&dir) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::AGAIN) => Err(Errno::AGAIN),
        Err(_) => Ok(None),
    }
}

impl Store {
    /// Opens or makes the bookkeeping of the branch `root`, takes its lock and clears leftovers.
    ///
    /// Errors: EAGAIN (`Errno::AGAIN`) when another daemon writes to this branch; EROFS, EACCES
    /// when it cannot be written at all.
    pub fn open(
        root: BorrowedFd<'_>,
        work: Option<BorrowedFd<'_>>,
        format: Format,
    ) -> Result<(Self, Recovered)> {
        let (home, name): (_, &[u8]) = match work {
            Some(work) => (work, WORK_STORE),
            None => (root, STORE_DIR),
        };
        let dir = make_dir(home, name, 0o700)?;
        let lock_flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = openat(&dir, c"lock", lock_flags, Mode::from_bits_truncate(0o600))?;
        take_lock(&lock)?;
        let root_lock = lock_root(root)?;
        write_format(&dir, format)?;
        let meta = if format == Format::Overlay {
            dir.as_fd()
        } else {
            root
        };
        let base_dir = open_dir(meta, b".")?;
        create_mark(&base_dir, BASE)?;
        let plinks = make_dir(meta, PLINK_DIR, 0o700)?;
        make_dir(meta, ORPHAN_DIR, 0o700)?;
        let redirects = make_dir(&dir, super::dirren::DIR_NAME, 0o700)?;
        let (tmp, trash) = (
            make_dir(&dir, b"tmp", 0o700)?,
            make_dir(&dir, b"trash", 0o700)?,
        );
        for leftover in [&tmp, &trash] {
            crate::sys::remove::contents(leftover)?;
        }
        let lacks = Lacks::probe(&tmp);
        let times = make_dir(&dir, super::times::DIR_NAME, 0o700)?;
        super::times::restore(root, &times)?;
        let links = make_dir(&dir, b"links", 0o700)?;
        let (old_log, mut recovered) = super::log::read(&dir)?;
        recovered.settle(|removal| removal.is_done(root))?;
        super::plinks::read(&plinks, &links, &mut recovered)?;
        let log = super::log::compact(&dir, old_log, &recovered)?;
        let store = Self {
            tmp: Arc::new(tmp),
            trash: Arc::new(trash),
            plinks: Arc::new(plinks),
            home: dir,
            redirects,
            times,
            links,
            base_dir,
            log: Mutex::new(Log {
                file: log,
                owed: Vec::new(),
            }),
            serial: AtomicU64::new(first_serial()),
            lacks,
            _locks: (lock, root_lock),
        };
        Ok((store, recovered))
    }

    /// What the books say now. Nobody may change them meanwhile.
    pub fn replay(&self) -> Result<Recovered> {
        let mut recovered = self.log.lock().replay()?;
        // No change is under way.
        recovered.settle(|_| Ok(true))?;
        super::plinks::read(&self.plinks, &self.links, &mut recovered)?;
        Ok(recovered)
    }

    /// The branch is not written any more: removes AUFS's own entries that hold nothing. The books
    /// stay.
    pub fn retire(&self) {
        use rustix::fs::{AtFlags, unlinkat};
        // What is not empty is needed, and what cannot be removed does no harm.
        let _ = unlinkat(&self.base_dir, BASE, AtFlags::empty());
        for dir in [PLINK_DIR, ORPHAN_DIR] {
            let _ = unlinkat(&self.base_dir, dir, AtFlags::REMOVEDIR);
        }
    }

    /// What the filesystem cannot do.
    pub fn lacks(&self) -> Lacks {
        self.lacks
    }

    /// The directory in which files are built before they get their name.
    pub fn tmp(&self) -> &Arc<OwnedFd> {
        &self.tmp
    }

    /// The directory to which directories are moved before they are emptied.
    pub fn trash(&self) -> &Arc<OwnedFd> {
        &self.trash
    }

    /// The pseudo-link directory.
    pub fn plinks(&self) -> &Arc<OwnedFd> {
        &self.plinks
    }

    /// A name that is used once.
    pub fn temp_name(&self) -> Name {
        Name::from_slice(
            self.serial
                .fetch_add(1, Ordering::Relaxed)
                .to_string()
                .as_bytes(),
        )
    }

    /// Directory and name of the whiteout base.
    pub fn base(&self) -> Option<(BorrowedFd<'_>, &'static [u8])> {
        Some((self.base_dir.as_fd(), BASE))
    }

    /// The base has as many links as the filesystem allows: starts a new one.
    pub fn renew_base(&self) {
        let temp = self.temp_name();
        // Two threads may both do it; the later rename wins and nothing is lost.
        if create_mark(&self.tmp, &temp).is_ok() {
            let _ = rustix::fs::renameat(&self.tmp, &*temp, &self.base_dir, BASE);
        }
    }

    /// Appends a record to the log.
    pub fn record(&self, record: Record) -> Result<()> {
        self.log.lock().append(&record.encode())
    }

    /// Appends a record of what has happened. If it cannot be written, it is with the next one, or at
    /// the end of the mount.
    pub fn record_at_last(&self, record: Record) {
        let raw = record.encode();
        let mut log = self.log.lock();
        if let Err(err) = log.append(&raw) {
            log::warn!("the log of a branch cannot be written now: {err}");
            log.owed.extend_from_slice(&raw);
        }
    }

    /// Says in the log that a name is about to go.
    pub fn record_removal(&self, removal: &Removal) -> Result<()> {
        self.log.lock().append(&removal.encode())
    }

    /// The directory of the recorded redirects.
    pub(super) fn redirects(&self) -> &OwnedFd {
        &self.redirects
    }

    /// The bookkeeping's own directory.
    pub(super) fn home(&self) -> &OwnedFd {
        &self.home
    }

    /// The directory of the times that are to be set back.
    pub(super) fn times(&self) -> &OwnedFd {
        &self.times
    }

    /// The directory of the records of pseudo-links.
    pub(super) fn link_books(&self) -> &OwnedFd {
        &self.links
    }

    /// Writes a small file of the bookkeeping whole, in place of an older one of this name.
    pub(super) fn write_record(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        raw: &[u8],
        durable: bool,
    ) -> Result<()> {
        let temp = self.temp_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.tmp, &*temp, flags, Mode::from_bits_truncate(0o600))?;
        let written = || -> Result<()> {
            crate::sys::copy::write_all(&file, raw, 0)?;
            if durable {
                rustix::fs::fdatasync(&file)?;
            }
            rustix::fs::renameat(&self.tmp, &*temp, dir, name)
        };
        written().inspect_err(|_| {
            // On a full branch nothing may be left that fills it more.
            let _ = rustix::fs::unlinkat(&self.tmp, &*temp, rustix::fs::AtFlags::empty());
        })
    }

    /// Notes the branches of the mount: path and permission, topmost first. The first time nothing
    /// waits for the disk; later a loss of power must not leave an empty note.
    pub fn note_stack<'a>(&self, all: impl Iterator<Item = (&'a [u8], String)>) -> Result<()> {
        let mut raw = Vec::new();
        for (path, perm) in all {
            raw.extend_from_slice(path);
            raw.push(0);
            raw.extend_from_slice(perm.as_bytes());
            raw.push(0);
        }
        let before = read_small(&self.home, c"stack")?;
        if before.as_ref() == Some(&raw) {
            return Ok(());
        }
        self.write_record(&self.home, b"stack", &raw, before.is_some())
    }

    /// Makes the log durable.
    pub fn sync(&self) -> Result<()> {
        let mut log = self.log.lock();
        if !log.owed.is_empty() {
            log.append(&[])?;
        }
        rustix::fs::fdatasync(&log.file)
    }
}

/// A small file of the bookkeeping; `None` = there is none, or nothing is in it.
fn read_small(dir: &OwnedFd, name: &CStr) -> Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(err) => return Err(err),
    };
    let size = usize::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::FBIG)?;
    let mut raw = vec![0; size];
    let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
    raw.truncate(len);
    Ok((!raw.is_empty()).then_some(raw))
}

/// Records the format of a branch in its bookkeeping.
pub fn write_format(dir: &OwnedFd, format: Format) -> Result<()> {
    let text = format!(
        "uaufs 2\nformat {}\n",
        if format == Format::Aufs {
            "aufs"
        } else {
            "overlay"
        }
    );
    if read_small(dir, c"format")?.as_deref() == Some(text.as_bytes()) {
        // Written anew it could be empty after a loss of power.
        return Ok(());
    }
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, c"format", flags, Mode::from_bits_truncate(0o600))?;
    crate::sys::copy::write_all(&file, text.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::branch::log::{Origin, Source};
    use crate::types::Timestamp;

    #[test]
    fn a_second_writer_is_refused_and_the_log_is_read_back() {
        let tmp = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(tmp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let source = Source {
            fs: 1,
            ino: 7,
            btime: Timestamp::default(),
        };
        let origin = Origin {
            source,
            btime: Timestamp::default(),
        };
        {
            let (store, seen) = Store::open(root.as_fd(), None, Format::Aufs).unwrap();
            assert!(seen.origins.is_empty());
            let second = Store::open(root.as_fd(), None, Format::Aufs);
            assert_eq!(second.err(), Some(Errno::AGAIN));
            store.record(Record::Origin { real: 5, origin }).unwrap();
            store.record(Record::Origin { real: 6, origin }).unwrap();
            store.record(Record::Gone { real: 6 }).unwrap();
            store.record(Record::Links { source, delta: 1 }).unwrap();
        }
        let (_store, seen) = Store::open(root.as_fd(), None, Format::Aufs).unwrap();
        assert_eq!(seen.origins.get(&5), Some(&origin));
        assert_eq!(seen.origins.len(), 1);
        assert_eq!(seen.links.get(&source), Some(&1));
    }

    #[test]
    fn leftovers_are_removed_at_any_depth() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("a/b/c")).unwrap();
        std::fs::write(tmp.path().join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("/", tmp.path().join("a/l")).unwrap();
        let root = rustix::fs::open(tmp.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        crate::sys::remove::contents(&root).unwrap();
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
