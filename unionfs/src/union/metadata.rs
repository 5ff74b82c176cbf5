//! What a copy takes over besides the data: owner, mode, times and extended attributes.

use super::Union;
use super::xattr::{shown_name, stored_name};
use crate::branch::Branch;
use crate::branch::owners::Owners;
use crate::errno::{Errno, Result};
use crate::shown::{ShowPath, Shown};
use crate::spec::IgnoreXattr;
use crate::sys::{Loc, RealStat, acl, creds, xattr};
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
            let _ = self.copy_xattrs(target, source_branch, from, to, true)?;
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
        let acl = self.copy_xattrs(target, source_branch, from, to, owned)?;
        if let Some(acl) = acl {
            mode = acl::mode_within(&acl, mode);
        }
        if stat.kind() != Kind::Symlink {
            to.chmod(mode)?;
        }
        to.set_times(Some(SetTime::At(stat.atime)), Some(SetTime::At(stat.mtime)))
    }

    /// Answers the ACL that there is no place for.
    fn copy_xattrs(
        &self,
        target: &Branch,
        source_branch: &Branch,
        from: &Loc,
        to: &Loc,
        owned: bool,
    ) -> Result<Option<Vec<u8>>> {
        let mut lost = None;
        for name in xattr::names(&list_xattrs(from)?) {
            let wanted = shown_name(source_branch, name);
            let stored = wanted.as_deref().and_then(|n| stored_name(target, n));
            let Some(stored) = stored.filter(|n| owned || **n != *b"security.capability") else {
                continue;
            };
            let value = match from.xattrs(|x| x.get(name)) {
                Ok(value) => value,
                Err(Errno::NODATA) => continue,
                Err(err) if ignores_xattr_error(target, name, err) => continue,
                Err(err) => return Err(err),
            };
            match to.xattrs(|x| x.set(&stored, &value, 0)) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP) => {
                    log::debug!(
                        "{}: no place for attribute {}",
                        target.path.shown(),
                        Shown(name)
                    );
                    if name == acl::ACCESS {
                        lost = Some(value);
                    }
                }
                Err(err) if ignores_xattr_error(target, name, err) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(lost)
    }
}

fn ignores_xattr_error(target: &Branch, name: &[u8], err: Errno) -> bool {
    if matches!(err, Errno::NOMEM | Errno::DQUOT) {
        return false;
    }
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
