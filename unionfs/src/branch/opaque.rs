//! Directories whose opaque mark is to come back: `.wh..wh.uaufs/opaque/<inode>`, each a symbolic
//! link to the directory's birth time.
//!
//! A merge that copies takes the mark away while it is in the directory. One that is stopped or killed
//! there leaves the note, and the next one puts the mark back at its end.

use super::Store;
use crate::errno::{Errno, Result};
use crate::sys::RealStat;
use rustix::fs::{AtFlags, Mode, mkdirat, readlinkat, symlinkat, unlinkat};

const DIR_NAME: &str = "opaque";

fn place(dir: &RealStat) -> String {
    format!("{DIR_NAME}/{}", dir.ino)
}

/// Tells the directory from a later one that got its inode number.
fn birth(dir: &RealStat) -> String {
    format!("{}.{}", dir.btime.sec, dir.btime.nsec)
}

impl Store {
    /// Notes that the directory is to be opaque again.
    pub fn note_opaque(&self, dir: &RealStat) -> Result<()> {
        match mkdirat(self.home(), DIR_NAME, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(err) => return Err(err),
        }
        self.forget_opaque(dir)?;
        symlinkat(birth(dir), self.home(), place(dir))
    }

    /// Is it to be?
    pub fn is_noted_opaque(&self, dir: &RealStat) -> bool {
        readlinkat(self.home(), place(dir), Vec::new())
            .is_ok_and(|noted| noted.as_bytes() == birth(dir).as_bytes())
    }

    /// It is.
    pub fn forget_opaque(&self, dir: &RealStat) -> Result<()> {
        match unlinkat(self.home(), place(dir), AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }
}
