//! Owners and modes that are kept in an attribute, as fuse-overlayfs does (`xattr_permissions`) and
//! containers-storage (`force_mask`): `UID:GID:MODE[:TYPE]`, MODE in octal, TYPE of what could not be
//! made: `pipe`, `socket`, `block-MAJOR-MINOR`, `char-MAJOR-MINOR`.
//!
//! The root of a branch tells: if it has the attribute, all files may. Source: fuse-overlayfs(1),
//! `override_mode` in fuse-overlayfs 1.16, `idtools` of containers-storage.

use super::Branch;
use crate::errno::{Errno, Result};
use crate::sys::xattr::Target;
use crate::sys::{Loc, RealStat};
use crate::types::Kind;
use rustix::fs::{major, makedev, minor};
use std::borrow::Cow;

/// Which attribute it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// `security.fuseoverlayfs.override_stat` (`xattr_permissions=1`).
    Privileged,
    /// `user.containers.override_stat` (`xattr_permissions=2`).
    Containers,
    /// `user.fuseoverlayfs.override_stat`, as fuse-overlayfs before 1.14 wrote it.
    User,
}

/// Attributes of users that a plain user's daemon could not set are kept under this name.
const KEPT: &[u8] = b"user.containers.override_";
/// Those.
const SECURITY: &[u8] = b"security.";

/// What a file shows instead of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Override {
    uid: u32,
    gid: u32,
    mode: u32,
    /// Of a regular file that stands for something else.
    kind: Option<(Kind, u64)>,
}

impl Override {
    fn parse(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
        let mut parts = text.splitn(4, ':');
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let mode = u32::from_str_radix(parts.next()?, 8).ok()? & 0o7777;
        let kind = match parts.next() {
            None | Some("file" | "dir" | "symlink") => None,
            Some("pipe") => Some((Kind::Fifo, 0)),
            Some("socket") => Some((Kind::Socket, 0)),
            Some(device) => Some(parse_device(device)?),
        };
        Some(Self {
            uid,
            gid,
            mode,
            kind,
        })
    }

    fn of(stat: &RealStat) -> Self {
        let special = !matches!(stat.kind(), Kind::File | Kind::Dir | Kind::Symlink);
        Self {
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode & 0o7777,
            kind: special.then(|| (stat.kind(), stat.rdev)),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("{}:{}:{:o}", self.uid, self.gid, self.mode);
        if let Some((kind, rdev)) = self.kind {
            let (major, minor) = (major(rdev), minor(rdev));
            match kind {
                Kind::Fifo => text.push_str(":pipe"),
                Kind::Socket => text.push_str(":socket"),
                Kind::Block => text.push_str(&format!(":block-{major}-{minor}")),
                Kind::Char => text.push_str(&format!(":char-{major}-{minor}")),
                Kind::File | Kind::Dir | Kind::Symlink => {}
            }
        }
        text
    }

    fn apply(&self, stat: &mut RealStat) {
        (stat.uid, stat.gid) = (self.uid, self.gid);
        stat.mode = stat.mode & !0o7777 | self.mode;
        if let (Some((kind, rdev)), Kind::File) = (self.kind, stat.kind()) {
            stat.mode = stat.mode & 0o7777 | kind.to_mode();
            (stat.rdev, stat.size) = (rdev, 0);
        }
    }
}

fn parse_device(text: &str) -> Option<(Kind, u64)> {
    let mut parts = text.splitn(3, '-');
    let kind = match parts.next()? {
        "block" => Kind::Block,
        "char" => Kind::Char,
        _ => return None,
    };
    let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some((kind, makedev(major, minor)))
}

impl Owners {
    /// What `xattr_permissions=` asks for.
    pub fn asked(mode: u8) -> Self {
        if mode == 1 {
            Self::Privileged
        } else {
            Self::Containers
        }
    }

    fn attribute(self) -> &'static [u8] {
        match self {
            Self::Privileged => b"security.fuseoverlayfs.override_stat",
            Self::Containers => b"user.containers.override_stat",
            Self::User => b"user.fuseoverlayfs.override_stat",
        }
    }

    /// The one that the root of a branch has.
    pub fn on_root(root: &Target<'_>) -> Option<Self> {
        [Self::Privileged, Self::Containers, Self::User]
            .into_iter()
            .find(|owners| root.get(owners.attribute()).is_ok())
    }

    /// What a file shows, given what it is.
    ///
    /// # Errors
    /// EIO for a value that means nothing.
    pub fn read(self, file: &Target<'_>, stat: &mut RealStat) -> Result<()> {
        match file.get(self.attribute()) {
            Ok(value) => Override::parse(&value).ok_or(Errno::IO)?.apply(stat),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => {}
            Err(err) => return Err(err),
        }
        Ok(())
    }

    /// Has a file show this owner, mode and (special files) type. What cannot have the attribute (a
    /// symbolic link, for users) stays as it is.
    pub fn write(self, file: &Target<'_>, shown: &RealStat) -> Result<()> {
        let value = Override::of(shown).text();
        match file.set(self.attribute(), value.as_bytes(), 0) {
            Err(Errno::PERM) if shown.kind() == Kind::Symlink => Ok(()),
            other => other,
        }
    }

    /// What an attribute that is found on a file is called; `None` = it is one of these.
    pub fn shown_name(self, stored: &[u8]) -> Option<Cow<'_, [u8]>> {
        if let Some(kept) = stored.strip_prefix(KEPT) {
            let theirs = self == Self::Containers && kept.starts_with(SECURITY);
            return theirs.then_some(Cow::Borrowed(kept));
        }
        (stored != self.attribute()).then_some(Cow::Borrowed(stored))
    }

    /// What an attribute is called on a file; `None` = it would be one of these.
    pub fn stored_name(self, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        if name.starts_with(KEPT) || name == self.attribute() {
            return None;
        }
        if self == Self::Containers && name.starts_with(SECURITY) {
            return Some(Cow::Owned([KEPT, name].concat()));
        }
        Some(Cow::Borrowed(name))
    }

    /// The permission bits of the file itself: its owner, the daemon, can use it, and nobody gets
    /// more than is shown.
    pub fn real_mode(shown: u32) -> u32 {
        shown & 0o777 | 0o700
    }
}

impl Branch {
    /// What a file of this branch shows, of which `stat` is what it is.
    pub fn shown(&self, loc: &Loc, mut stat: RealStat) -> Result<RealStat> {
        if let Some(owners) = self.owners {
            loc.xattrs(|file| owners.read(&file, &mut stat))?;
        }
        Ok(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuse_overlayfs_and_containers_storage_write_is_read_and_written_the_same() {
        for (text, uid, mode, kind) in [
            ("0:0:555", 0, 0o555, None),
            ("1000:50:4755", 1000, 0o4755, None),
            ("1:2:644:pipe", 1, 0o644, Some((Kind::Fifo, 0))),
            ("1:2:644:socket", 1, 0o644, Some((Kind::Socket, 0))),
            (
                "1:2:600:char-1-3",
                1,
                0o600,
                Some((Kind::Char, makedev(1, 3))),
            ),
            (
                "1:2:600:block-259-70000",
                1,
                0o600,
                Some((Kind::Block, makedev(259, 70000))),
            ),
        ] {
            let read = Override::parse(text.as_bytes()).unwrap();
            assert_eq!(
                (read.uid, read.mode, read.kind),
                (uid, mode, kind),
                "{text}"
            );
            assert_eq!(read.text(), text);
        }
        assert!(Override::parse(b"0:0:755:dir").unwrap().kind.is_none());
        // fuse-overlayfs writes the type bits, too.
        assert_eq!(Override::parse(b"0:0:100644").unwrap().mode, 0o644);
        for bad in [
            &b""[..],
            b"0:0",
            b"x:0:755",
            b"0:0:9",
            b"0:0:1:tape-1-2",
            b"0:0:1:char",
        ] {
            assert_eq!(Override::parse(bad), None);
        }
    }

    #[test]
    fn its_own_attributes_are_hidden_and_others_kept() {
        let c = Owners::Containers;
        assert_eq!(c.shown_name(b"user.containers.override_stat"), None);
        assert_eq!(c.stored_name(b"user.containers.override_stat"), None);
        assert_eq!(c.shown_name(b"user.x").as_deref(), Some(&b"user.x"[..]));
        let stored = c.stored_name(b"security.capability").unwrap();
        assert_eq!(&*stored, b"user.containers.override_security.capability");
        assert_eq!(
            c.shown_name(&stored).as_deref(),
            Some(&b"security.capability"[..])
        );
        assert_eq!(
            Owners::User.stored_name(b"security.x").as_deref(),
            Some(&b"security.x"[..])
        );
    }
}
