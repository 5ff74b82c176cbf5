//! The bookkeeping of a branch: what nothing refers to any more.

use super::fix;
use super::{Checker, Problem, Remedy};
use crate::branch::dirren::{self, Recorded};
use crate::branch::offline::existing;
use crate::branch::{log, plinks};
use crate::errno::Result;
use crate::sys::stat::stat_at;
use crate::sys::walk::{entries, joined};
use crate::types::Kind;
use crate::whiteout::{CONVERTING, ORPHAN_DIR, PLINK_DIR, STORE_DIR};
use rustix::fd::{AsFd, OwnedFd};

impl Checker<'_> {
    /// Checks everything that can be judged without the tree; returns the recorded redirects, which
    /// cannot.
    pub(super) fn check_books(&mut self) -> Result<Vec<Recorded>> {
        let books = self.branch.books().map(rustix::io::dup).transpose()?;
        let meta = match self.branch.meta() {
            Some(meta) => Some(rustix::io::dup(meta)?),
            None => None,
        };
        if let Some(meta) = &meta {
            if let Some(orphans) = existing(meta.as_fd(), ORPHAN_DIR)? {
                self.all_of(&orphans, ORPHAN_DIR, Problem::Orphan)?;
            }
            if let Some(plinks) = existing(meta.as_fd(), PLINK_DIR)? {
                self.check_plinks(&plinks, books.as_ref())?;
            }
        }
        let Some(books) = books else {
            return Ok(Vec::new());
        };
        for name in [&b"tmp"[..], b"trash"] {
            if let Some(dir) = existing(books.as_fd(), name)? {
                self.all_of(&dir, &joined(STORE_DIR, name), Problem::Leftover)?;
            }
        }
        if stat_at(&books, CONVERTING).is_ok() {
            let remedy = Remedy::ByHand("run `uaufs convert` again");
            let path = joined(STORE_DIR, CONVERTING);
            self.found(path, Problem::HalfConverted, remedy, |_| Ok(()));
        }
        self.check_log(&books)?;
        match existing(books.as_fd(), dirren::DIR_NAME)? {
            Some(dir) => dirren::read(&dir),
            None => Ok(Vec::new()),
        }
    }

    /// Everything in this directory should not be there.
    fn all_of(&mut self, dir: &OwnedFd, path: &[u8], problem: Problem) -> Result<()> {
        for (name, kind) in entries(dir)? {
            self.found(
                joined(path, &name),
                problem,
                Remedy::Remove,
                |_| match kind {
                    Kind::Dir => fix::remove_in_place(dir, &name),
                    _ => fix::unlink(dir, &name),
                },
            );
        }
        Ok(())
    }

    /// Pseudo-links by which no other name finds its file, and books without a pseudo-link.
    fn check_plinks(&mut self, dir: &OwnedFd, books: Option<&OwnedFd>) -> Result<()> {
        let links = match books {
            Some(books) => existing(books.as_fd(), b"links")?,
            None => None,
        };
        let recovered = match books {
            Some(books) => log::look(books)?.0,
            None => log::Recovered::default(),
        };
        for name in plinks::strays(dir, links.as_ref(), &recovered)? {
            let stat = stat_at(dir, &name)?;
            // One whose file has no other name may be the only place of what was written to it.
            let spare = stat.nlink > 1 && stat.kind() != Kind::Dir;
            let remedy = if spare { Remedy::Remove } else { self.aside() };
            let path = joined(PLINK_DIR, &name);
            self.found(path, Problem::StrayPlink, remedy, |branch| match remedy {
                Remedy::Remove => fix::unlink(dir, &name),
                _ => fix::set_aside(branch, dir, &name),
            });
        }
        let Some(links) = links else {
            return Ok(());
        };
        for name in plinks::stray_books(dir, &links)? {
            let path = joined(&joined(STORE_DIR, b"links"), &name);
            self.found(path, Problem::StrayRecord, Remedy::Remove, |_| {
                fix::unlink(&links, &name)
            });
        }
        Ok(())
    }

    fn check_log(&mut self, books: &OwnedFd) -> Result<()> {
        if log::look(books)?.1 {
            let path = joined(STORE_DIR, b"log");
            self.found(path, Problem::DamagedLog, Remedy::Rewrite, |_| {
                log::rewrite(books)
            });
        }
        Ok(())
    }

    /// After the walk: these belong to no directory of the branch.
    pub(super) fn check_redirect_records(&mut self, left: Vec<Recorded>) {
        for (real, _, _) in left {
            let name = real.to_string().into_bytes();
            let path = joined(&joined(STORE_DIR, dirren::DIR_NAME), &name);
            self.found(path, Problem::StrayRecord, Remedy::Remove, |branch| {
                let dir = branch.books_dir(dirren::DIR_NAME)?;
                fix::unlink(&dir, &name)
            });
        }
    }
}
