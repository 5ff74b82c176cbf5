//! Making, finding and removing whiteouts and opaque marks on one branch.

use super::{Branch, overlay};
use crate::errno::{Errno, Result};
use crate::shown::ShowPath;
use crate::spec::Format;
use crate::sys::loc::{open_beneath, open_listing};
use crate::sys::stat::stat_at;
use crate::sys::{RealStat, creds, xattr};
use crate::types::Kind;
use crate::whiteout::{NameClass, OPAQUE, OPAQUE_FO, classify, whiteout_name};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};

/// The attribute that overlayfs (as root) marks opaque directories with.
const TRUSTED_OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// The same for `userxattr` mounts.
const USER_OPAQUE: &[u8] = b"user.overlay.opaque";
/// fuse-overlayfs's.
const FO_OPAQUE: &[u8] = b"user.fuseoverlayfs.opaque";

impl Branch {
    /// Is `name` in `dir` hidden by a mark of its own on this branch?
    ///
    /// Does not look at `honours_whiteouts`.
    pub fn has_whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<bool> {
        if self.whiteout_file(dir.as_fd(), name)?.is_some() {
            return Ok(true);
        }
        if self.device_hides(name) {
            return match stat_at(dir.as_fd(), name) {
                Ok(stat) => self.is_whiteout_entry(dir, name, &stat),
                Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
                Err(err) => Err(err),
            };
        }
        Ok(false)
    }

    /// What `.wh.NAME` is, if there is one. Of whatever type, it hides the name (a regular file is
    /// what AUFS makes, and all that it accepts).
    pub fn whiteout_file(&self, dir: impl AsFd, name: &[u8]) -> Result<Option<Kind>> {
        let Some(mark) = whiteout_name(name) else {
            return Ok(None);
        };
        match stat_at(dir.as_fd(), &mark) {
            Ok(stat) => Ok(Some(stat.kind())),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Is a 0/0 device of this name a whiteout here? In the AUFS format only for names that are
    /// too long for `.wh.NAME`.
    pub fn device_hides(&self, name: &[u8]) -> bool {
        self.format == Format::Overlay || whiteout_name(name).is_none()
    }

    /// Is this the 0/0 device by which the branch hides `name`?
    pub fn is_whiteout_device(&self, stat: &RealStat, name: &[u8]) -> bool {
        stat.is_null_device() && self.device_hides(name)
    }

    /// Is this entry a mark that hides its own name: a 0/0 device or, in the overlay format, an
    /// empty file with an attribute in a directory that is marked to have such?
    pub fn is_whiteout_entry(&self, dir: impl AsFd, name: &[u8], stat: &RealStat) -> Result<bool> {
        Ok(self.is_whiteout_device(stat, name)
            || (self.format == Format::Overlay && overlay::is_whiteout_file(dir, name, stat)?))
    }

    /// May this directory hold whiteouts that are such by an attribute?
    pub fn has_whiteout_files(&self, dir: &OwnedFd) -> Result<bool> {
        Ok(self.format == Format::Overlay
            && overlay::holds_whiteouts(&xattr::Target::dir(dir.as_fd()))?)
    }

    /// Hides `name` on the branches below. Nothing of that name may be on this branch in the
    /// overlay format (see [`Self::replace_by_whiteout`]); in the AUFS format the entry may still
    /// be there and stays visible until it is removed.
    ///
    /// Errors: EEXIST never (an existing whiteout is success); ENAMETOOLONG when neither form fits.
    pub fn make_whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<()> {
        let dir = dir.as_fd();
        match (self.format, whiteout_name(name)) {
            (Format::Aufs, Some(mark)) => self.link_base(dir, &mark),
            (Format::Aufs, None) => match make_null_device(dir, name) {
                Err(err) if no_devices(err) => Err(Errno::NAMETOOLONG),
                done => done,
            },
            (Format::Overlay, mark) => match (make_null_device(dir, name), mark) {
                (Err(Errno::EXIST), _) if self.has_whiteout(dir, name)? => Ok(()),
                (Err(err), Some(mark)) if no_devices(err) => self.link_base(dir, &mark),
                (done, _) => done,
            },
        }
    }

    /// Can [`Self::make_whiteout`] stand beside the entry it will hide? (Else the entry must be
    /// replaced by it in one step.)
    pub fn whiteout_is_separate(&self, name: &[u8]) -> bool {
        self.format == Format::Aufs && whiteout_name(name).is_some()
    }

    /// Puts a whiteout device in the place of the existing non-directory `name`, atomically.
    pub fn replace_by_whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<()> {
        let dir = dir.as_fd();
        let store = self.store.as_ref().ok_or(Errno::ROFS)?;
        let temp = store.temp_name();
        match make_null_device(store.tmp(), &temp) {
            Ok(()) => {}
            Err(err) if no_devices(err) => {
                let mark = whiteout_name(name).ok_or(Errno::NAMETOOLONG)?;
                self.link_base(dir, &mark)?;
                return rustix::fs::unlinkat(dir, name, AtFlags::empty());
            }
            Err(err) => return Err(err),
        }
        rustix::fs::renameat(store.tmp(), &*temp, dir, name).inspect_err(|_| {
            // The device is of no use any more; the error that counts is the rename's.
            let _ = rustix::fs::unlinkat(store.tmp(), &*temp, AtFlags::empty());
        })
    }

    /// Makes a 0/0 device, whatever the format: for an exchange with what it is to hide. False =
    /// devices cannot be made here.
    ///
    /// # Errors
    /// Others than that.
    pub fn make_device(&self, dir: impl AsFd, name: &[u8]) -> Result<bool> {
        match make_null_device(dir, name) {
            Ok(()) => Ok(true),
            Err(err) if no_devices(err) => Ok(false),
            Err(err) => Err(err),
        }
    }

    /// Removes the whiteout of `name`, in whichever form it is. No whiteout: fine.
    pub fn remove_whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<()> {
        let dir = dir.as_fd();
        if let Some(mark) = whiteout_name(name) {
            match rustix::fs::unlinkat(dir, &*mark, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// The entry `name` is there, and its whiteout counts no more. One that cannot be removed changes
    /// nothing of what is seen: the entry goes before it.
    pub fn drop_whiteout_of_entry(&self, dir: impl AsFd, name: &[u8]) {
        if let Err(err) = self.remove_whiteout(dir, name) {
            log::warn!("{}: a needless whiteout was left: {err}", self.path.shown());
        }
    }

    /// Creates `mark` as a hard link of the base file, or as a file of its own (`nolwh`, a
    /// filesystem without links, a base at its link limit).
    fn link_base(&self, dir: impl AsFd, mark: &[u8]) -> Result<()> {
        let dir = dir.as_fd();
        let store = self.store.as_ref().ok_or(Errno::ROFS)?;
        if let (false, Some(base)) = (self.perm.no_link_whiteout, store.base()) {
            let (base_dir, base_name) = base;
            match rustix::fs::linkat(base_dir, base_name, dir, mark, AtFlags::empty()) {
                Ok(()) | Err(Errno::EXIST) => return Ok(()),
                Err(Errno::MLINK) => store.renew_base(),
                Err(Errno::NOENT | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                }
                Err(err) => return Err(err),
            }
        }
        create_mark(dir, mark)
    }

    /// How many whiteouts, marks and bookkeeping files a directory of this branch holds. `None` = it
    /// holds something else, too: that was put there behind the union's back and must not be removed
    /// with it.
    pub fn count_marks(&self, dir: impl AsFd) -> Result<Option<usize>> {
        count_marks(dir, self.format)
    }

    /// Is this directory opaque here? Does not look at `honours_whiteouts`.
    pub fn is_opaque(&self, dir: &OwnedFd) -> Result<bool> {
        for mark in [OPAQUE, OPAQUE_FO] {
            if self.format == Format::Aufs && mark == OPAQUE_FO {
                continue;
            }
            match stat_at(dir, mark) {
                Ok(_) => return Ok(true),
                Err(Errno::NOENT) => {}
                Err(err) => return Err(err),
            }
        }
        if self.format == Format::Overlay {
            let target = xattr::Target::dir(dir.as_fd());
            for name in [TRUSTED_OPAQUE, USER_OPAQUE, FO_OPAQUE] {
                match target.get(name) {
                    Ok(value) if value == b"y" => return Ok(true),
                    Ok(_) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {
                    }
                    Err(err) => return Err(err),
                }
            }
        }
        Ok(false)
    }

    /// Marks this directory opaque.
    pub fn set_opaque(&self, dir: &OwnedFd) -> Result<()> {
        // The attribute alone where it can be had: the kernel's overlayfs would show the file.
        if self.format == Format::Overlay && self.set_opaque_attribute(dir) {
            return Ok(());
        }
        self.link_base(dir, OPAQUE)
    }

    /// The overlay format's mark, which does not lie in the directory. False = not possible here.
    pub fn set_opaque_attribute(&self, dir: &OwnedFd) -> bool {
        let target = xattr::Target::dir(dir.as_fd());
        // It would take the place of the value by which empty files in it are whiteouts.
        if overlay::holds_whiteouts(&target).unwrap_or(true) {
            return false;
        }
        // Root's attribute first; a user namespace may only write the other.
        target.set(TRUSTED_OPAQUE, b"y", 0).is_ok() || target.set(USER_OPAQUE, b"y", 0).is_ok()
    }

    /// Makes a whiteout file of this full name, also in the overlay format.
    pub fn make_whiteout_file(&self, dir: impl AsFd, mark: &[u8]) -> Result<()> {
        self.link_base(dir, mark)
    }
}

/// How many whiteouts, marks and bookkeeping files a directory holds; `None` = something else, too.
pub fn count_marks(dir: impl AsFd, format: Format) -> Result<Option<usize>> {
    let dir = dir.as_fd();
    let overlay = format == Format::Overlay;
    let files = overlay && overlay::holds_whiteouts(&xattr::Target::dir(dir))?;
    let mut marks = 0;
    for entry in rustix::fs::Dir::read_from(open_listing(dir)?)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let is_mark = classify(name) != NameClass::Plain || {
            let stat = stat_at(dir, name)?;
            let device = overlay || whiteout_name(name).is_none();
            (device && stat.is_null_device())
                || (files && overlay::is_whiteout_file(dir, name, &stat)?)
        };
        if !is_mark {
            return Ok(None);
        }
        marks += 1;
    }
    Ok(Some(marks))
}

/// Does this error of mknod(2) say that there can be no devices here, or not of this user?
fn no_devices(err: Errno) -> bool {
    matches!(
        err,
        Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL
    )
}

pub(crate) fn make_null_device(dir: impl AsFd, name: &[u8]) -> Result<()> {
    let dir = dir.as_fd();
    match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::EXIST) if stat_at(dir, name)?.is_null_device() => Ok(()),
        other => other,
    }
}

/// Removes a whiteout. An entry beside it hides what is below as before: a directory by becoming
/// opaque first.
pub(crate) fn drop_whiteout(
    format: Format,
    dir: &OwnedFd,
    mark: &[u8],
    hidden: &[u8],
    entry: Kind,
) -> Result<()> {
    if entry == Kind::Dir {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = open_beneath(dir, hidden, flags)?;
        let target = xattr::Target::dir(entry.as_fd());
        let by_attribute = format == Format::Overlay
            && (overlay::opaque(&target)? == overlay::Opaque::Yes
                || overlay::set(&target, b"opaque", b"y", false).is_ok());
        if !by_attribute {
            create_mark(&entry, OPAQUE)?;
        }
        rustix::fs::fsync(&entry)?;
    }
    match rustix::fs::unlinkat(dir, mark, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// An empty file, mode 0444.
pub(crate) fn create_mark(dir: impl AsFd, name: &[u8]) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_bits_truncate(0o444);
    match creds::with_exact_modes(|| rustix::fs::openat(dir, name, flags, mode)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(err) => Err(err),
    }
}
