//! Reading what a branch remembers without being its writer: for tools that look at a branch that
//! is not mounted, or that another daemon writes to.

use super::Branch;
use super::log::{RECORD_LEN, Record, Recovered};
use crate::errno::{Errno, Result};
use crate::sys::loc::open_beneath;
use crate::whiteout::STORE_DIR;
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The branches of the last mount that wrote to a branch, topmost first: directory and permission.
/// `None` = it tells nothing of that.
///
/// # Errors
/// Those of opening the branch and reading its books.
pub fn last_stack(branch: &Path) -> Result<Option<Vec<(PathBuf, String)>>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, branch, flags, Mode::empty())?;
    let path = [STORE_DIR, b"/stack"].concat();
    let file = match open_beneath(&root, &path, OFlags::RDONLY | OFlags::CLOEXEC) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(err) => return Err(err),
    };
    let size = usize::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| Errno::FBIG)?;
    let mut raw = vec![0; size];
    let len = crate::sys::copy::read_full(&file, &mut raw, 0)?;
    let fields: Vec<&[u8]> = raw[..len].split(|b| *b == 0).collect();
    let pairs = fields.chunks_exact(2).map(|pair| {
        let perm = String::from_utf8_lossy(pair[1]).into_owned();
        (PathBuf::from(OsStr::from_bytes(pair[0])), perm)
    });
    Ok(Some(pairs.collect()))
}

impl Branch {
    /// Where the copies on this branch came from, as its log tells now; nothing is locked, changed
    /// or waited for. Empty where there is no bookkeeping.
    ///
    /// # Errors
    /// Those of opening and reading the log.
    pub fn read_books(&self) -> Result<Recovered> {
        let mut recovered = Recovered::default();
        let path = [STORE_DIR, b"/log"].concat();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let log = match open_beneath(&self.root, &path, flags) {
            Ok(log) => log,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(recovered),
            Err(err) => return Err(err),
        };
        let mut raw = vec![0; RECORD_LEN * 1024];
        let mut at = 0;
        loop {
            let len = crate::sys::copy::read_full(&log, &mut raw, at)?;
            let records = raw[..len].chunks_exact(RECORD_LEN);
            records
                .filter_map(Record::decode)
                .for_each(|record| recovered.replay(record));
            at += len as u64;
            if len < raw.len() {
                return Ok(recovered);
            }
        }
    }
}
