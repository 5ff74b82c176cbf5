//! One member directory of the union: its descriptors, its whiteout dialect, its bookkeeping.
//!
//! Knows one branch and nothing of the others. All access is by a directory descriptor and one
//! component; the path is kept only to be shown.

pub mod books;
pub mod detect;
pub mod dirren;
pub mod hidden;
pub mod lacks;
pub mod log;
pub mod marks;
pub mod metacopy;
pub mod offline;
pub mod opaque;
pub mod open;
pub mod overlay;
pub mod owners;
pub mod plinks;
pub mod removals;
pub mod store;
pub mod times;

pub use store::Store;

use crate::spec::{BranchPerm, Format};
use crate::types::BranchId;
use rustix::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// An opened branch.
#[derive(Debug)]
pub struct Branch {
    /// Identity, stable over reordering.
    pub id: BranchId,
    /// As given, absolute: for listings and messages only.
    pub path: PathBuf,
    /// Permission and attributes.
    pub perm: BranchPerm,
    /// Whiteout dialect.
    pub format: Format,
    /// The directory (`O_PATH`), on a private clone of its mount where that is permitted.
    pub root: Arc<OwnedFd>,
    /// Device of its filesystem.
    pub dev: u64,
    /// Identity of its filesystem, which (unlike the device) is the same after a reboot and
    /// another filesystem's never: `f_fsid` of statvfs(3). 0 where it has none.
    pub fs: u64,
    /// The mount its files are reached through; another one below it is not entered.
    pub mnt_id: u64,
    /// Inode number of the root directory.
    pub root_ino: u64,
    /// The private clone has no submounts, so every directory below belongs to the branch.
    pub is_clone: bool,
    /// What unionfs-fuse deleted; readonly branches only whose whiteouts count.
    pub hidden: Option<Arc<hidden::Hidden>>,
    /// Owners and modes are kept in this attribute; overlay format only.
    pub owners: Option<owners::Owners>,
    /// Bookkeeping; writable branches only.
    pub store: Option<Arc<Store>>,
}

impl Branch {
    /// May the union write here?
    pub fn writable(&self) -> bool {
        self.store.is_some() && self.perm.writable()
    }

    /// Can a file have several names here? (True where the union does not write.)
    pub fn can_link(&self) -> bool {
        self.store.as_ref().is_none_or(|s| !s.lacks().links)
    }

    /// Do whiteouts and opaque marks on it count?
    pub fn honours_whiteouts(&self) -> bool {
        self.perm.whiteouts
    }
}
