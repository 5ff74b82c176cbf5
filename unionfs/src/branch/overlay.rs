//! The attributes by which overlayfs and fuse-overlayfs mark files: which there are, and their values.
//!
//! One listing tells which are present, so that files without any cost one system call. Source:
//! Documentation/filesystems/overlayfs.rst; fuse-overlayfs(1).

use crate::errno::{Errno, Result};
use crate::sys::RealStat;
use crate::sys::walk::joined;
use crate::sys::xattr::{self, Target};
use crate::types::Kind;
use rustix::fd::{AsFd, BorrowedFd};
use std::borrow::Cow;
use std::ffi::CString;
use std::sync::Arc;

/// Where overlayfs keeps its attributes: mounted by root, and with `userxattr`.
pub const NAMESPACES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// fuse-overlayfs's own attributes.
pub const FUSE_OVERLAYFS: &[u8] = b"user.fuseoverlayfs.";

bitflags::bitflags! {
    /// Attributes of a file that mean something to overlayfs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Attributes: u8 {
        /// Directory: `y` = hides everything below it, `x` = may hold whiteouts by attribute.
        const OPAQUE = 1;
        /// Where the lower part is.
        const REDIRECT = 2;
        /// The data is below.
        const METACOPY = 4;
        /// An empty file that is a whiteout.
        const WHITEOUT = 8;
        /// Identity and caches of overlayfs: no meaning for anybody else.
        const OTHER = 16;
        /// One of an overlay that lies inside this one.
        const ESCAPED = 32;
    }
}

impl Attributes {
    /// Those of a file.
    pub fn of(file: &Target<'_>) -> Result<Self> {
        match file.list() {
            Ok(names) => Ok(Self::listed(&names)),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(Self::empty()),
            Err(err) => Err(err),
        }
    }

    /// Those in the result of a listxattr(2).
    pub fn listed(names: &[u8]) -> Self {
        xattr::names(names).map(Self::named).collect()
    }

    fn named(name: &[u8]) -> Self {
        let short = NAMESPACES
            .iter()
            .chain([&FUSE_OVERLAYFS])
            .find_map(|prefix| name.strip_prefix(*prefix));
        match short {
            None => Self::empty(),
            Some(b"opaque") => Self::OPAQUE,
            Some(b"redirect") => Self::REDIRECT,
            Some(b"metacopy") => Self::METACOPY,
            Some(b"whiteout") => Self::WHITEOUT,
            Some(inner) if inner.starts_with(b"overlay.") => Self::ESCAPED,
            Some(_) => Self::OTHER,
        }
    }
}

/// What an attribute of overlayfs's is called on a branch of that format when a user of the mount
/// has it: an overlay that lies inside. (overlayfs.rst, "Nesting overlayfs mounts"; Linux 6.7.)
const ESCAPE: &[u8] = b"overlay.";

/// The name that an attribute which users call `name` has on a branch in the overlay format.
pub fn stored_name(name: &[u8]) -> Cow<'_, [u8]> {
    let prefix = NAMESPACES.into_iter().find(|p| name.starts_with(p));
    match prefix {
        Some(prefix) => Cow::Owned([prefix, ESCAPE, &name[prefix.len()..]].concat()),
        None => Cow::Borrowed(name),
    }
}

/// What users call an attribute that is found on a branch in the overlay format; `None` = it is a
/// mark, which they do not see.
pub fn shown_name(stored: &[u8]) -> Option<Cow<'_, [u8]>> {
    for prefix in NAMESPACES {
        if let Some(short) = stored.strip_prefix(prefix) {
            let inner = short.strip_prefix(ESCAPE)?;
            return Some(Cow::Owned([prefix, inner].concat()));
        }
    }
    (!stored.starts_with(FUSE_OVERLAYFS)).then_some(Cow::Borrowed(stored))
}

/// The value of an attribute in one namespace. What may not be read is not there.
pub fn get_in(file: &Target<'_>, prefix: &[u8], short: &[u8]) -> Result<Option<Vec<u8>>> {
    match file.get(&[prefix, short].concat()) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Ok(None),
        Err(err) => Err(err),
    }
}

/// Sets an attribute: root's, or where that is not permitted the other. `user_only`: not root's.
pub fn set(file: &Target<'_>, short: &[u8], value: &[u8], user_only: bool) -> Result<()> {
    let [trusted, user] = NAMESPACES.map(|prefix| [prefix, short].concat());
    if !user_only && file.set(&trusted, value, 0).is_ok() {
        return Ok(());
    }
    file.set(&user, value, 0)
}

/// Removes every attribute of overlayfs that is not escaped.
pub fn remove_all(file: &Target<'_>) -> Result<()> {
    for name in xattr::names(&file.list()?) {
        let known = Attributes::named(name);
        if known.is_empty() || known == Attributes::ESCAPED {
            continue;
        }
        match file.remove(name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

/// What the opaque attribute of a directory says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opaque {
    /// Nothing, or something else.
    #[default]
    No,
    /// Nothing below shows.
    Yes,
    /// Merged, but empty files in it may be whiteouts by attribute.
    Whiteouts,
}

/// The opaque state by attribute, of a directory that has one.
pub fn opaque(dir: &Target<'_>) -> Result<Opaque> {
    for prefix in NAMESPACES.iter().chain([&FUSE_OVERLAYFS]) {
        if let Some(value) = get_in(dir, prefix, b"opaque")? {
            return Ok(match &value[..] {
                b"y" => Opaque::Yes,
                b"x" => Opaque::Whiteouts,
                _ => Opaque::No,
            });
        }
    }
    Ok(Opaque::No)
}

/// Is this directory marked to hold whiteouts that are such by an attribute?
pub fn holds_whiteouts(dir: &Target<'_>) -> Result<bool> {
    Ok(Attributes::of(dir)?.contains(Attributes::OPAQUE) && opaque(dir)? == Opaque::Whiteouts)
}

/// Is this entry of `dir` a whiteout by an attribute: an empty regular file that has it, in a
/// directory marked to hold such? Only empty files cost a system call. (overlayfs.rst, "whiteouts
/// and opaque directories"; Linux 6.7.)
pub fn is_whiteout_file(dir: impl AsFd, name: &[u8], stat: &RealStat) -> Result<bool> {
    Ok(stat.kind() == Kind::File
        && stat.size == 0
        && has_whiteout_attribute(dir.as_fd(), name)?
        && holds_whiteouts(&Target::dir(dir.as_fd()))?)
}

/// Has an entry the attribute, whatever it is?
pub fn has_whiteout_attribute(dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    match Attributes::of(&Target::at(dir, &name)) {
        Ok(attributes) => Ok(attributes.contains(Attributes::WHITEOUT)),
        // Removed meanwhile.
        Err(Errno::NOENT) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Where the branches below keep the lower part of a renamed directory, or the data of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// At this path from the branch roots.
    FromRoot(Arc<[u8]>),
    /// In its own parent, under this name: overlayfs writes that for renames within one directory.
    Beside(Arc<[u8]>),
}

impl Redirect {
    /// What the value of the attribute says: an absolute path without dots, or a single name.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let parts = match value.strip_prefix(b"/") {
            Some(path) => path,
            None if value.contains(&b'/') => return None,
            None => value,
        };
        let usable = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
        if value.contains(&0) || !parts.split(|b| *b == b'/').all(usable) {
            return None;
        }
        Some(match value.starts_with(b"/") {
            true => Self::FromRoot(parts.into()),
            false => Self::Beside(parts.into()),
        })
    }

    /// The redirect of a directory. INVAL for a value that is no path: as in overlayfs it is an
    /// error, and never leads to other directories.
    pub fn of(dir: &Target<'_>) -> Result<Option<Self>> {
        for prefix in NAMESPACES {
            if let Some(value) = get_in(dir, prefix, b"redirect")? {
                return Self::parse(&value).map(Some).ok_or(Errno::INVAL);
            }
        }
        Ok(None)
    }

    /// The path from the branch roots, of what would be in the directory at `parent` without it.
    pub fn path_in(&self, parent: &[u8]) -> Vec<u8> {
        match self {
            Self::FromRoot(path) => path.to_vec(),
            Self::Beside(name) => joined(parent, name),
        }
    }
}

/// Records in the attribute that the lower parts of a directory are at `path` from the branch roots.
pub fn set_redirect(dir: &Target<'_>, path: &[u8], user_only: bool) -> Result<()> {
    set(dir, b"redirect", &[b"/", path].concat(), user_only)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_tells_which_attributes_there_are() {
        let listed = |names: &[u8]| Attributes::listed(names);
        assert_eq!(listed(b""), Attributes::empty());
        assert_eq!(
            listed(b"user.overlayx\0security.selinux\0"),
            Attributes::empty()
        );
        assert_eq!(
            listed(b"trusted.overlay.opaque\0user.overlay.redirect\0"),
            Attributes::OPAQUE | Attributes::REDIRECT
        );
        // Escaped for an overlay inside: no mark of this one.
        assert_eq!(
            listed(b"user.overlay.overlay.opaque\0"),
            Attributes::ESCAPED
        );
        assert_eq!(listed(b"user.fuseoverlayfs.opaque\0"), Attributes::OPAQUE);
    }

    #[test]
    fn attributes_of_an_overlay_inside_have_one_more_prefix() {
        for (shown, stored) in [
            ("trusted.overlay.opaque", "trusted.overlay.overlay.opaque"),
            ("user.overlay.x", "user.overlay.overlay.x"),
            (
                "trusted.overlay.overlay.x",
                "trusted.overlay.overlay.overlay.x",
            ),
            ("user.overlayx", "user.overlayx"),
            ("trusted.x", "trusted.x"),
        ] {
            assert_eq!(*stored_name(shown.as_bytes()), *stored.as_bytes());
            let back = shown_name(stored.as_bytes()).unwrap();
            assert_eq!(*back, *shown.as_bytes());
        }
        for mark in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "user.fuseoverlayfs.opaque",
        ] {
            assert_eq!(shown_name(mark.as_bytes()), None, "{mark}");
        }
    }

    #[test]
    fn redirects_lead_down_only() {
        for good in [&b"name"[..], b"/a/b", b"/\xff", b"..."] {
            let found = Redirect::parse(good).expect("a redirect");
            let path = good
                .strip_prefix(b"/")
                .map_or([b"p/", good].concat(), <[u8]>::to_vec);
            assert_eq!(found.path_in(b"p"), path);
        }
        for bad in [
            &b""[..],
            b"/",
            b"a/b",
            b"..",
            b"/a/../b",
            b"/a//b",
            b"/a/",
            b"a\0",
        ] {
            assert_eq!(Redirect::parse(bad), None, "{bad:?}");
        }
    }
}
