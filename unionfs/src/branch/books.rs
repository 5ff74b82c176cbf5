//! Reading what a branch remembers without being its writer: for tools that look at a branch that
//! is not mounted, or that another daemon writes to.

use super::Branch;
use super::log::{RECORD_LEN, Record, Recovered};
use crate::errno::{Errno, Result};
use crate::sys::loc::open_beneath;
use crate::whiteout::STORE_DIR;
use rustix::fs::OFlags;

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
