//! What lies in one directory of a branch.

use super::fix;
use super::lower;
use super::{Checker, Prefer, Problem, Remedy};
use crate::branch::hidden::META;
use crate::branch::overlay::{self, Attributes, Redirect};
use crate::branch::{dirren::Recorded, marks};
use crate::errno::{Errno, Result};
use crate::spec::Format;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::{Children, Here, entries};
use crate::sys::{Name, xattr};
use crate::types::Kind;
use crate::whiteout::*;
use rustix::fd::AsFd;
use std::ffi::CString;

/// What marks of the other format need.
const CONVERT: &str = "bring it to one format with `uaufs convert`";

impl Checker<'_> {
    /// Checks a directory; returns those in it that are to be checked. `own_path`: on the branches
    /// below it has the same path. Redirects of directories that are there are taken from the list.
    pub(super) fn check_dir(
        &mut self,
        here: &Here<'_>,
        own_path: bool,
        redirects: &mut Vec<Recorded>,
    ) -> Result<Children<bool>> {
        let stat = stat_fd(here.dir)?;
        let known = redirects.len();
        redirects.retain(|(real, btime, _)| (*real, *btime) != (stat.ino, stat.btime));
        let attributes = Attributes::of(&xattr::Target::dir(here.dir.as_fd()))?;
        let redirected = redirects.len() < known
            || (self.overlay() && attributes.contains(Attributes::REDIRECT));
        let own_path = own_path && !redirected;
        self.check_attributes(here, attributes, own_path)?;
        let mut children = Vec::new();
        for (name, kind) in entries(here.dir)? {
            match classify(&name) {
                NameClass::Plain
                    if here.path.is_empty() && META.contains(&&*name) && kind == Kind::Dir =>
                {
                    let remedy = Remedy::ByHand("bring them to a format with `uaufs convert`");
                    self.found(name.to_vec(), Problem::UnionfsFuse, remedy, |_| Ok(()));
                }
                NameClass::Plain => {
                    let enter = self.check_plain(here, &name, kind, own_path)?;
                    if enter && kind == Kind::Dir {
                        children.push((name, own_path));
                    }
                }
                NameClass::Whiteout(hidden) => {
                    self.check_whiteout(here, &name, hidden, (kind, own_path), redirects)?;
                }
                NameClass::Opaque => self.check_opaque(here, &name, kind, own_path),
                NameClass::Reserved => self.check_reserved(here, &name, kind)?,
            }
        }
        Ok(children)
    }

    fn overlay(&self) -> bool {
        self.branch.format == Format::Overlay
    }

    /// The overlay format's marks of the directory itself.
    fn check_attributes(
        &mut self,
        here: &Here<'_>,
        attributes: Attributes,
        own_path: bool,
    ) -> Result<()> {
        let marks = Attributes::OPAQUE | Attributes::REDIRECT | Attributes::METACOPY;
        if !attributes.intersects(marks) {
            return Ok(());
        }
        if !self.overlay() {
            let remedy = Remedy::ByHand(CONVERT);
            self.found(here.path.to_vec(), Problem::MixedFormat, remedy, |_| Ok(()));
            return Ok(());
        }
        let target = xattr::Target::dir(here.dir.as_fd());
        let by_hand = |what| Remedy::ByHand(what);
        if attributes.contains(Attributes::OPAQUE) {
            match overlay::opaque(&target)? {
                overlay::Opaque::Yes => self.check_idle_opaque(here.path, own_path),
                overlay::Opaque::Whiteouts => {}
                overlay::Opaque::No => self.found(
                    here.path.to_vec(),
                    Problem::OddAttribute,
                    by_hand("set overlay.opaque to y, or remove it"),
                    |_| Ok(()),
                ),
            }
        }
        if attributes.contains(Attributes::REDIRECT)
            && let Some(Redirect::FromRoot(to)) = self.sound_redirect(&target, here.path)?
        {
            self.check_redirect(here.path, &to);
        }
        Ok(())
    }

    /// Where a redirect leads; one that is no path is a problem of its own.
    fn sound_redirect(
        &mut self,
        target: &xattr::Target<'_>,
        path: &[u8],
    ) -> Result<Option<Redirect>> {
        let found = Redirect::of(target);
        if found == Err(Errno::INVAL) {
            let remedy = "remove overlay.redirect, or set it to an absolute path";
            let odd = Problem::OddAttribute;
            self.found(path.to_vec(), odd, Remedy::ByHand(remedy), |_| Ok(()));
            return Ok(None);
        }
        found
    }

    /// The lower parts of the directory at `path` are said to be at `to`.
    pub(super) fn check_redirect(&mut self, path: &[u8], to: &[u8]) {
        if !self.lower.is_empty() && lower::has_directory(self.lower, to) == Some(false) {
            let remedy = Remedy::ByHand("name all branches below, or remove the redirect");
            self.found(path.to_vec(), Problem::LostRedirect, remedy, |_| Ok(()));
        }
    }

    /// Returns whether a directory is to be entered.
    fn check_plain(
        &mut self,
        here: &Here<'_>,
        name: &Name,
        kind: Kind,
        own_path: bool,
    ) -> Result<bool> {
        match kind {
            Kind::Char if stat_at(here.dir, name)?.is_null_device() => {
                if !self.overlay() && whiteout_name(name).is_some() {
                    let remedy = Remedy::ByHand("`uaufs convert` if it was meant to hide a name");
                    self.found(here.join(name), Problem::NullDevice, remedy, |_| Ok(()));
                } else {
                    self.check_idle_whiteout(here, name, name, own_path);
                }
            }
            Kind::File if self.overlay() => self.check_data(here, name, own_path)?,
            _ => {}
        }
        // A whiteout beside it that is going to win is met by its own name; what lies in a
        // directory that will be gone needs no check.
        Ok(match (self.request.prefer, whiteout_name(name)) {
            (Prefer::Whiteout, Some(mark)) if self.request.repair => {
                !matches!(stat_at(here.dir, &mark), Ok(stat) if stat.kind() == Kind::File)
            }
            _ => true,
        })
    }

    /// A file of the overlay format whose data is below.
    fn check_data(&mut self, here: &Here<'_>, name: &Name, own_path: bool) -> Result<()> {
        let c_name = CString::new(&**name).map_err(|_| Errno::INVAL)?;
        let target = xattr::Target::at(here.dir.as_fd(), &c_name);
        let attributes = Attributes::of(&target)?;
        if !attributes.contains(Attributes::METACOPY) || self.lower.is_empty() {
            return Ok(());
        }
        let path = match self.sound_redirect(&target, &here.join(name))? {
            Some(redirect) => redirect.path_in(here.path),
            None if own_path && !attributes.contains(Attributes::REDIRECT) => here.join(name),
            None => return Ok(()),
        };
        if lower::has_data(self.lower, &path) == Some(false) {
            let remedy = Remedy::ByHand("name all branches below; without its data it is lost");
            self.found(here.join(name), Problem::LostData, remedy, |_| Ok(()));
        }
        Ok(())
    }

    fn check_whiteout(
        &mut self,
        here: &Here<'_>,
        mark: &Name,
        hidden: &[u8],
        (kind, own_path): (Kind, bool),
        redirects: &[Recorded],
    ) -> Result<()> {
        if kind != Kind::File {
            let remedy = self.aside();
            self.found(here.join(mark), Problem::OddWhiteout, remedy, |branch| {
                fix::set_aside(branch, here.dir, mark)
            });
            return Ok(());
        }
        let entry = match stat_at(here.dir, hidden) {
            Ok(stat) if self.overlay() && stat.is_null_device() => return Ok(()),
            Ok(stat) => stat,
            Err(Errno::NOENT) => {
                self.check_idle_whiteout(here, mark, hidden, own_path);
                return Ok(());
            }
            Err(err) => return Err(err),
        };
        // Its lower parts are where the record says, whatever has its name below.
        let redirected = redirects
            .iter()
            .any(|(real, btime, _)| (*real, *btime) == (entry.ino, entry.btime));
        let entry = entry.kind();
        let format = self.branch.format;
        let path = here.join(mark);
        match self.request.prefer {
            Prefer::Entry => self.found(
                path,
                Problem::WhiteoutBesideEntry,
                Remedy::RemoveWhiteout,
                |_| {
                    if redirected {
                        return fix::unlink(here.dir, mark);
                    }
                    marks::drop_whiteout(format, here.dir, mark, hidden, entry)
                },
            ),
            Prefer::Whiteout => {
                let remedy = if entry == Kind::Dir && !self.branch.may_have_books() {
                    self.aside()
                } else {
                    Remedy::RemoveEntry
                };
                self.found(path, Problem::WhiteoutBesideEntry, remedy, |branch| {
                    fix::remove(branch, here.dir, hidden, entry)
                });
            }
        }
        Ok(())
    }

    fn check_idle_whiteout(&mut self, here: &Here<'_>, mark: &[u8], hidden: &[u8], own_path: bool) {
        if self.request.notes
            && own_path
            && !self.lower.is_empty()
            && lower::has(self.lower, here.path, hidden) == Some(false)
        {
            let remedy = Remedy::ByHand("it does no harm");
            self.found(here.join(mark), Problem::IdleWhiteout, remedy, |_| Ok(()));
        }
    }

    fn check_idle_opaque(&mut self, path: &[u8], own_path: bool) {
        if self.request.notes
            && own_path
            && !self.lower.is_empty()
            && lower::has_directory(self.lower, path) == Some(false)
        {
            let remedy = Remedy::ByHand("it does no harm");
            self.found(path.to_vec(), Problem::IdleOpaque, remedy, |_| Ok(()));
        }
    }

    fn check_opaque(&mut self, here: &Here<'_>, name: &Name, kind: Kind, own_path: bool) {
        if kind == Kind::File {
            self.check_idle_opaque(here.path, own_path);
            return;
        }
        let remedy = match self.aside() {
            Remedy::SetAside => Remedy::Replace,
            other => other,
        };
        self.found(here.join(name), Problem::OddOpaque, remedy, |branch| {
            fix::replace_mark(branch, here.dir, name)
        });
    }

    fn check_reserved(&mut self, here: &Here<'_>, name: &Name, kind: Kind) -> Result<()> {
        let path = here.join(name);
        if here.path.is_empty() && ROOT_NAMES.contains(&&**name) {
            self.check_root_name(here, name, kind);
        } else if [&b".wh.."[..], b".wh..."].contains(&&**name) {
            let empty = kind == Kind::File && stat_at(here.dir, name)?.size == 0;
            let remedy = if empty { Remedy::Remove } else { self.aside() };
            self.found(path, Problem::VoidWhiteout, remedy, |branch| match remedy {
                Remedy::Remove => fix::unlink(here.dir, name),
                _ => fix::set_aside(branch, here.dir, name),
            });
        } else if is_temporary(name) {
            self.check_temporary(here, name, kind)?;
        } else if name.starts_with(b".wh..wh..dr.") || &**name == b".wh..wh.hino" {
            if self.overlay() {
                self.found(path, Problem::MixedFormat, Remedy::ByHand(CONVERT), |_| {
                    Ok(())
                });
            }
        } else {
            let remedy = Remedy::ByHand("it does no harm");
            self.found(path, Problem::UnknownReserved, remedy, |_| Ok(()));
        }
        Ok(())
    }

    /// AUFS's own entries and our bookkeeping, in the root.
    fn check_root_name(&mut self, here: &Here<'_>, name: &Name, kind: Kind) {
        let path = name.to_vec();
        if self.overlay() {
            self.found(path, Problem::MixedFormat, Remedy::ByHand(CONVERT), |_| {
                Ok(())
            });
            return;
        }
        let wanted = if &**name == BASE {
            Kind::File
        } else {
            Kind::Dir
        };
        if kind == wanted {
            return;
        }
        if &**name == STORE_DIR {
            let remedy = Remedy::ByHand("move it away");
            self.found(path, Problem::OddBookkeeping, remedy, |_| Ok(()));
            return;
        }
        self.found(path, Problem::OddBookkeeping, Remedy::SetAside, |branch| {
            fix::set_aside(branch, here.dir, name)
        });
    }

    /// Something that was being made or removed.
    fn check_temporary(&mut self, here: &Here<'_>, name: &Name, kind: Kind) -> Result<()> {
        let empty = kind != Kind::Dir || {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
            let dir = crate::sys::loc::open_beneath(here.dir, name, flags)?;
            marks::count_marks(&dir, self.branch.format)?.is_some()
        };
        let remedy = if empty { Remedy::Remove } else { self.aside() };
        let path = here.join(name);
        self.found(path, Problem::Leftover, remedy, |branch| match remedy {
            Remedy::Remove if kind == Kind::Dir => fix::remove_in_place(here.dir, name),
            Remedy::Remove => fix::unlink(here.dir, name),
            _ => fix::set_aside(branch, here.dir, name),
        });
        Ok(())
    }
}

const ROOT_NAMES: [&[u8]; 4] = [BASE, PLINK_DIR, ORPHAN_DIR, STORE_DIR];

/// `.wh..wh.new.NUMBER` (ours, in the making) or `.wh..wh.NAME.XXXX` (AUFS's).
fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(META_PREFIX) else {
        return false;
    };
    let Some(dot) = rest.iter().rposition(|b| *b == b'.') else {
        return false;
    };
    let (stem, tail) = (&rest[..dot], &rest[dot + 1..]);
    let ours = stem == b"new" && !tail.is_empty() && tail.iter().all(u8::is_ascii_digit);
    let aufs = !stem.is_empty() && tail.len() == 4 && tail.iter().all(u8::is_ascii_hexdigit);
    // The records of renamed directories end in numbers too.
    ours || (aufs && !rest.starts_with(b".dr."))
}

#[cfg(test)]
mod tests {
    use super::is_temporary;

    #[test]
    fn temporary_names_are_known_from_records() {
        for name in [".wh..wh.new.17", ".wh..wh.a.12ab", ".wh..wh.a.b.0000"] {
            assert!(is_temporary(name.as_bytes()), "{name}");
        }
        for name in [
            ".wh..wh.plnk",
            ".wh..wh..opq",
            ".wh..wh..dr.2_3665f09b-162e910a_1950",
            ".wh..wh..dr.2_3.1950",
            ".wh..wh.hino",
            ".wh..wh.new.",
            ".wh.a.12ab",
        ] {
            assert!(!is_temporary(name.as_bytes()), "{name}");
        }
    }
}
