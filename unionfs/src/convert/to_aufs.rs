//! overlayfs's marks become AUFS's.

use super::{Job, attributes_at, is_null_device};
use crate::branch::overlay::{self, Attributes, Opaque};
use crate::branch::{dirren, marks};
use crate::errno::{Errno, Result};
use crate::sys::stat::RealStat;
use crate::sys::walk::Here;
use crate::sys::{Name, xattr};
use crate::types::Kind;
use crate::whiteout::{BASE, OPAQUE, whiteout_name};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, linkat, unlinkat};
use std::ffi::CString;

impl Job {
    /// The marks in a directory and its own.
    pub(super) fn dir_to_aufs(
        &mut self,
        here: &Here<'_>,
        names: &[(Name, Kind)],
        before: &RealStat,
        redirect: Option<&[u8]>,
    ) -> Result<()> {
        let target = xattr::Target::dir(here.dir.as_fd());
        let attributes = Attributes::of(&target)?;
        let opaque = match attributes.contains(Attributes::OPAQUE) {
            true => overlay::opaque(&target)?,
            false => Opaque::No,
        };
        if here.path.is_empty() {
            marks::create_mark(here.dir, BASE)?;
        }
        for (name, kind) in names {
            if is_null_device(here, name, *kind)? {
                self.whiteout_to_aufs(here, name)?;
            } else if *kind != Kind::Dir {
                self.file_to_aufs(here, name, opaque)?;
            }
        }
        if opaque == Opaque::Yes {
            self.changes.opaque += 1;
            self.make_mark(here, OPAQUE)?;
        }
        if let Some(path) = redirect
            && attributes.contains(Attributes::REDIRECT)
            && opaque != Opaque::Yes
        {
            self.changes.redirects += 1;
            let tmp = self.aufs.books_dir(b"tmp")?;
            let books = self.aufs.books_dir(dirren::DIR_NAME)?;
            dirren::write(&books, &tmp, (before.ino, before.btime, path))?;
            self.redirects
                .push((before.ino, before.btime, path.to_vec()));
        }
        if !attributes.is_empty() {
            overlay::remove_all(&target)?;
        }
        Ok(())
    }

    fn whiteout_to_aufs(&mut self, here: &Here<'_>, name: &Name) -> Result<()> {
        // A name that is too long for the other form is hidden by a device in both formats.
        let Some(mark) = whiteout_name(name) else {
            return Ok(());
        };
        self.changes.whiteouts += 1;
        self.make_mark(here, &mark)?;
        unlinkat(here.dir, &**name, AtFlags::empty())
    }

    /// What overlayfs noted at a file, and whiteouts by attribute.
    fn file_to_aufs(&mut self, here: &Here<'_>, name: &Name, dir: Opaque) -> Result<()> {
        let attributes = attributes_at(here, name)?;
        if attributes.contains(Attributes::WHITEOUT)
            && dir == Opaque::Whiteouts
            && let Some(mark) = whiteout_name(name)
        {
            self.changes.whiteouts += 1;
            self.make_mark(here, &mark)?;
            return unlinkat(here.dir, &**name, AtFlags::empty());
        }
        if attributes.is_empty() {
            return Ok(());
        }
        let name = CString::new(&**name).map_err(|_| Errno::INVAL)?;
        overlay::remove_all(&xattr::Target::at(here.dir.as_fd(), &name))
    }

    /// A hard link of the base, where that can be had.
    fn make_mark(&self, here: &Here<'_>, mark: &[u8]) -> Result<()> {
        match linkat(&self.root, BASE, here.dir, mark, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(_) => marks::create_mark(here.dir, mark),
        }
    }
}
