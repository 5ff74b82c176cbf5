//! Changing owners and modes that are kept in an attribute (`xattr_permissions`, see
//! [`crate::branch::owners`]).

use super::Union;
use crate::branch::Branch;
use crate::branch::log::Recovered;
use crate::branch::owners::Owners;
use crate::errno::{Errno, Result};
use crate::setup::SetupError;
use crate::sys::stat::stat_fd;
use crate::sys::{Loc, RealStat, xattr};
use crate::types::{Caller, Kind, SetAttr, Writer};
use rustix::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// For the writable branch of `xattr_permissions=MODE`: its root gets the attribute, if it has none.
/// What is on it already is read as it is; fuse-overlayfs before 1.14 used another attribute.
pub(super) fn adopt(
    opened: &mut [(Arc<Branch>, Recovered)],
    mode: Option<u8>,
) -> std::result::Result<(), SetupError> {
    let Some(mode) = mode else { return Ok(()) };
    for (branch, _) in opened.iter_mut().filter(|(b, _)| b.writable()) {
        let Some(branch) = Arc::get_mut(branch) else {
            continue;
        };
        let asked = Owners::asked(mode);
        if branch.owners == Some(asked) || (mode == 2 && branch.owners == Some(Owners::User)) {
            continue;
        }
        branch.owners = Some(asked);
        let root = xattr::Target::dir(branch.root.as_fd());
        let written = stat_fd(&*branch.root).and_then(|stat| asked.write(&root, &stat));
        let what = "xattr_permissions: the filesystem must keep that attribute";
        written.map_err(|errno| SetupError::path(&branch.path, errno, what))?;
    }
    Ok(())
}

impl Union {
    /// SETATTR of owner and mode.
    pub(super) fn set_owner(owners: Owners, loc: &Loc, set: &SetAttr) -> Result<()> {
        let mut shown = loc.stat()?;
        loc.xattrs(|file| {
            owners.read(&file, &mut shown)?;
            shown.uid = set.uid.unwrap_or(shown.uid);
            shown.gid = set.gid.unwrap_or(shown.gid);
            if shown.kind() != Kind::Dir && (set.uid.is_some() || set.gid.is_some()) {
                // With the rights of the daemon.
                shown.mode = Writer::Ordinary(&|_| true).leaves(shown.mode, shown.gid);
            }
            if let Some(mode) = set.mode {
                if shown.kind() == Kind::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                shown.mode = shown.mode & !0o7777 | mode & 0o7777;
            }
            owners.write(&file, &shown)
        })
    }

    /// The owner of something new in `dir`, by the rules of mkdir(2) and open(2).
    pub(super) fn new_owner(
        branch: &Branch,
        dir: &Arc<OwnedFd>,
        caller: &Caller,
        kind: Kind,
        mode: u32,
    ) -> Result<(u32, u32, u32)> {
        let above = branch.shown(&Loc::dir(dir.clone()), stat_fd(&**dir)?)?;
        let mut mode = mode & 0o7777;
        let inherited = above.mode & libc::S_ISGID != 0;
        if inherited && kind == Kind::Dir {
            mode |= libc::S_ISGID;
        }
        let gid = if inherited { above.gid } else { caller.gid };
        Ok((caller.uid, gid, mode))
    }

    /// What becomes of set-id bits by a write, of a file whose mode is kept so.
    pub(super) fn drop_kept_set_id(owners: Owners, fd: &OwnedFd, writer: Writer<'_>) -> Result<()> {
        let mut shown = stat_fd(fd)?;
        let file = xattr::Target::fd(fd.as_fd())?;
        owners.read(&file, &mut shown)?;
        let mode = writer.leaves(shown.mode, shown.gid);
        if mode == shown.mode {
            return Ok(());
        }
        owners.write(&file, &RealStat { mode, ..shown })
    }
}
