//! A branch that no daemon serves: opened by its path for checking and converting.

use super::store::{WORK_STORE, take_lock};
use crate::errno::{Errno, Result};
use crate::setup::SetupError;
use crate::spec::Format;
use crate::sys::creds;
use crate::whiteout::STORE_DIR;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, openat};
use std::path::{Path, PathBuf};

const LISTING: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// An opened branch. While this exists no daemon of ours can write to it, if it has bookkeeping.
#[derive(Debug)]
pub struct Offline {
    /// As given: for messages only.
    pub path: PathBuf,
    /// The directory, open for reading.
    pub root: OwnedFd,
    /// What its bookkeeping, the user or the marks on it say it is.
    pub format: Format,
    /// The work directory of the overlay format.
    work: Option<OwnedFd>,
    books: Option<OwnedFd>,
    lock: Option<OwnedFd>,
}

/// Opens the directory at `path`, which is a `role` to the user.
///
/// # Errors
/// Says what `path` is not.
pub fn open_dir(path: &Path, role: &str) -> std::result::Result<OwnedFd, SetupError> {
    openat(CWD, path, LISTING, Mode::empty()).map_err(|errno| {
        let what = match errno {
            Errno::NOENT => format!("no such {role}: correct the path"),
            Errno::NOTDIR => format!("a {role} must be a directory"),
            _ => format!("cannot open the {role}"),
        };
        SetupError::path(path, errno, what)
    })
}

const CANNOT_READ_BOOKS: &str = "cannot read the branch's bookkeeping";

type Own = (Option<OwnedFd>, Option<Format>);

/// The bookkeeping below a branch's root, if there is any, and the format that it records.
fn own_books(path: &Path, root: &OwnedFd) -> std::result::Result<Own, SetupError> {
    let read = |errno| SetupError::path(path, errno, CANNOT_READ_BOOKS);
    let own = existing(root.as_fd(), STORE_DIR).map_err(read)?;
    let recorded = match &own {
        Some(books) => recorded_format(books).map_err(read)?,
        None => None,
    };
    Ok((own, recorded))
}

/// The format that the bookkeeping in the work directory, or else on the branch, records.
///
/// # Errors
/// Those of reading it.
pub fn recorded_in(
    path: &Path,
    root: &OwnedFd,
    work: Option<&OwnedFd>,
) -> std::result::Result<Option<Format>, SetupError> {
    let read = |errno| SetupError::path(path, errno, CANNOT_READ_BOOKS);
    let home = match work {
        Some(work) => existing(work.as_fd(), WORK_STORE),
        None => existing(root.as_fd(), STORE_DIR),
    };
    match home {
        Ok(Some(books)) => recorded_format(&books).map_err(read),
        Ok(None) => Ok(None),
        // A plain user's mount on a branch that was somebody else's: by its marks.
        Err(Errno::ACCESS) => Ok(None),
        Err(err) => Err(read(err)),
    }
}

fn format_by_marks(path: &Path, root: &OwnedFd) -> std::result::Result<Format, SetupError> {
    let found = super::detect::in_tree(root)
        .map_err(|errno| SetupError::path(path, errno, "cannot read the branch"))?;
    Ok(found.unwrap_or(Format::Aufs))
}

/// The format of the branch at `path`: what its bookkeeping records, else what is found on it.
///
/// # Errors
/// Those of opening and reading it.
pub fn format_at(path: &Path) -> std::result::Result<Format, SetupError> {
    let root = open_dir(path, "branch")?;
    match own_books(path, &root)?.1 {
        Some(format) => Ok(format),
        None => format_by_marks(path, &root),
    }
}

/// Has somebody the lock of the branch at `path` in this moment? Nothing is waited for.
///
/// # Errors
/// Those of opening the branch.
pub fn is_locked(path: &Path) -> std::result::Result<bool, SetupError> {
    let root = open_dir(path, "branch")?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let books = existing(root.as_fd(), STORE_DIR).ok().flatten();
    let lock = books.and_then(|books| openat(books, c"lock", flags, Mode::empty()).ok());
    Ok(lock.is_some_and(|lock| {
        let tried = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
        tried == Err(Errno::AGAIN)
    }))
}

impl Offline {
    /// Opens the branch at `path`. `format`: what it is, whatever it looks like; `work`: where the
    /// bookkeeping of the overlay format is (its `workdir`). Nothing is created.
    ///
    /// # Errors
    /// EBUSY when a daemon writes to it; those of opening.
    pub fn open(
        path: &Path,
        work: Option<&Path>,
        format: Option<Format>,
    ) -> std::result::Result<Self, SetupError> {
        let root = open_dir(path, "branch")?;
        let work = work.map(|work| open_dir(work, "workdir")).transpose()?;
        let read = |errno| SetupError::path(path, errno, CANNOT_READ_BOOKS);
        let (own, recorded) = own_books(path, &root)?;
        let format = match format.or(recorded) {
            Some(format) => format,
            None if work.is_some() => Format::Overlay,
            None => format_by_marks(path, &root)?,
        };
        let books = match (&work, format) {
            (Some(work), _) => existing(work.as_fd(), WORK_STORE).map_err(read)?,
            (None, Format::Overlay) => None,
            (None, Format::Aufs) => own,
        };
        let mut branch = Self {
            path: path.to_path_buf(),
            root,
            format,
            work,
            books,
            lock: None,
        };
        branch.lock_existing()?;
        Ok(branch)
    }

    fn lock_existing(&mut self) -> std::result::Result<(), SetupError> {
        let Some(books) = &self.books else {
            return Ok(());
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let locked = match openat(books, c"lock", flags, Mode::empty()) {
            Ok(lock) => take_lock(&lock).map(|()| Some(lock)),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err),
        };
        self.lock = locked.map_err(|errno| match errno {
            Errno::AGAIN => SetupError::path(
                &self.path,
                Errno::BUSY,
                "is in use by a mounted union: unmount it first",
            ),
            _ => SetupError::path(&self.path, errno, "cannot lock the branch"),
        })?;
        Ok(())
    }

    /// The bookkeeping directory, if there is one.
    pub fn books(&self) -> Option<&OwnedFd> {
        self.books.as_ref()
    }

    /// The work directory, if one was named.
    pub fn work(&self) -> Option<&OwnedFd> {
        self.work.as_ref()
    }

    /// Is there a place for bookkeeping? Not in the overlay format without a work directory.
    pub fn may_have_books(&self) -> bool {
        self.format != Format::Overlay || self.work.is_some()
    }

    /// The directory that AUFS's own entries are in.
    pub fn meta(&self) -> Option<BorrowedFd<'_>> {
        match self.format {
            Format::Overlay => self.books.as_ref().map(AsFd::as_fd),
            Format::Aufs => Some(self.root.as_fd()),
        }
    }

    /// The directory `name` of the bookkeeping; both are made if they do not exist, and the lock is
    /// taken.
    ///
    /// # Errors
    /// EROFS where there is no place for it; EAGAIN when a daemon was faster.
    pub fn books_dir(&mut self, name: &[u8]) -> Result<OwnedFd> {
        if self.books.is_none() {
            let (home, dir) = match (&self.work, self.format) {
                (Some(work), _) => (work, WORK_STORE),
                (None, Format::Overlay) => return Err(Errno::ROFS),
                (None, Format::Aufs) => (&self.root, STORE_DIR),
            };
            self.books = Some(make_dir(home.as_fd(), dir)?);
        }
        let books = self.books.as_ref().ok_or(Errno::ROFS)?;
        if self.lock.is_none() {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let lock = openat(books, c"lock", flags, Mode::from_bits_truncate(0o600))?;
            take_lock(&lock)?;
            self.lock = Some(lock);
        }
        make_dir(books.as_fd(), name)
    }
}

fn make_dir(home: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let mode = Mode::from_bits_truncate(0o700);
    match creds::with_exact_modes(|| rustix::fs::mkdirat(home, name, mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(err) => return Err(err),
    }
    openat(home, name, LISTING | OFlags::NOFOLLOW, Mode::empty())
}

/// The directory `name` in `home`, if there is one.
pub fn existing(home: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>> {
    match openat(home, name, LISTING | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        // Something of that name that is no directory is reported by the check.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(err) => Err(err),
    }
}

/// What the bookkeeping says the branch is.
pub fn recorded_format(books: &OwnedFd) -> Result<Option<Format>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match openat(books, c"format", flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut raw = [0; 256];
    let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
    let mut lines = raw[..len].split(|b| *b == b'\n');
    Ok(lines.find_map(|line| match line {
        b"format aufs" => Some(Format::Aufs),
        b"format overlay" => Some(Format::Overlay),
        _ => None,
    }))
}
