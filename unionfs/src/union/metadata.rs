//! What a copy takes over besides the data: owner, mode, times and extended attributes.

use super::Union;
use super::xattr::{shown_name, stored_name};
use crate::branch::Branch;
use crate::branch::owners::Owners;
use crate::errno::{Errno, Result};
use crate::shown::{ShowPath, Shown};
use crate::spec::IgnoreXattr;
use crate::sys::xattr;
use crate::sys::{Loc, RealStat, creds};
use crate::types::{Kind, SetTime};

impl Union {
    /// Owner, attributes, mode and times, in the order in which none undoes another.
    pub(super) fn copy_metadata(
        &self,
        target: &Branch,
        source_branch: &Branch,
        from: &Loc,
        to: &Loc,
        stat: &RealStat,
    ) -> Result<()> {
        if let Some(owners) = target.owners {
            self.copy_xattrs(target, source_branch, from, to, true)?;
            if stat.kind() != Kind::Symlink {
                to.chmod(Owners::real_mode(stat.mode))?;
            }
            to.xattrs(|file| owners.write(&file, stat))?;
            return to.set_times(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)));
        }
        let mut mode = stat.mode & 0o7777;
        // The id that stands for all owners without one.
        let foreign = self.in_userns && [stat.uid, stat.gid].contains(&creds::OVERFLOW_ID);
        let owned = match to.chown(Some(stat.uid), Some(stat.gid)) {
            Ok(()) => !foreign,
            Err(Errno::PERM | Errno::INVAL) => false,
            Err(err) => return Err(err),
        };
        if !owned {
            // A user's daemon cannot keep a foreign owner: then nothing that gives the owner's
            // power may be kept either.
            mode &= !(libc::S_ISUID | libc::S_ISGID);
        }
        self.copy_xattrs(target, source_branch, from, to, owned)?;
        if stat.kind() != Kind::Symlink {
            to.chmod(mode)?;
        }
        to.set_times(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
    }

    fn copy_xattrs(
        &self,
        target: &Branch,
        source_branch: &Branch,
        from: &Loc,
        to: &Loc,
        owned: bool,
    ) -> Result<()> {
        for name in xattr::names(&list_xattrs(from)?) {
            let wanted = shown_name(source_branch, name);
            let stored = wanted.as_deref().and_then(|n| stored_name(target, n));
            let Some(stored) = stored.filter(|n| owned || **n != *b"security.capability") else {
                continue;
            };
            let copied = from
                .xattrs(|x| x.get(name))
                .and_then(|value| to.xattrs(|x| x.set(&stored, &value, 0)));
            match copied {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(Errno::OPNOTSUPP) => {
                    log::debug!(
                        "{}: no place for attribute {}",
                        target.path.shown(),
                        Shown(name)
                    );
                }
                Err(err)
                    if !matches!(err, Errno::NOMEM | Errno::DQUOT)
                        && ignores_xattr(target, name) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }
}

fn ignores_xattr(target: &Branch, name: &[u8]) -> bool {
    let class = match name.split(|b| *b == b'.').next() {
        Some(b"security") => IgnoreXattr::SECURITY,
        Some(b"system") => IgnoreXattr::SYSTEM,
        Some(b"trusted") => IgnoreXattr::TRUSTED,
        Some(b"user") => IgnoreXattr::USER,
        _ => IgnoreXattr::OTHER,
    };
    target.perm.ignore_xattr.contains(class)
}

/// listxattr(2); nothing where the filesystem has no attributes.
pub(super) fn list_xattrs(loc: &Loc) -> Result<Vec<u8>> {
    match loc.xattrs(|x| x.list()) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Vec::new()),
        other => other,
    }
}
