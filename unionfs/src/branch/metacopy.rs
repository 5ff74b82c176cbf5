//! Files that overlayfs copied up without their data (`metacopy=on`): telling them, and where the
//! data is said to be.
//!
//! Such a file has the right length and attributes and nothing but holes. What the value of the
//! mark says (a version, flags, a digest for fs-verity) is not looked at. Source:
//! Documentation/filesystems/overlayfs.rst, "Metadata only copy up"; fs/overlayfs/util.c.

use super::Branch;
use super::overlay::{self, Attributes, NAMESPACES, Redirect};
use crate::errno::{Errno, Result};
use crate::shown::ShowPath;
use crate::spec::Format;
use crate::sys::RealStat;
use crate::sys::xattr::Target;

/// Where the data of a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In the file itself.
    Own,
    /// Below, under the same name.
    Below,
    /// Below, there.
    At(Redirect),
}

impl Branch {
    /// Has this regular file no data of its own? One listing of its attributes, and none in the
    /// AUFS format.
    pub fn lacks_data(&self, file: &Target<'_>) -> Result<bool> {
        Ok(self.format == Format::Overlay && Attributes::of(file)?.contains(Attributes::METACOPY))
    }

    /// Where the data of a regular file is.
    ///
    /// A mark of root's is root's word. One in `user.*` could be set by whoever may write to the
    /// file, and could lead to a file that he may not read: it counts if the file is the daemon's
    /// own or root's, and nobody else may write to it.
    ///
    /// # Errors
    /// EIO for a mark that does not count, and one that cannot be followed.
    pub fn data_of(
        &self,
        file: &Target<'_>,
        stat: impl FnOnce() -> Result<RealStat>,
    ) -> Result<Data> {
        if self.format != Format::Overlay {
            return Ok(Data::Own);
        }
        for prefix in NAMESPACES {
            if overlay::get_in(file, prefix, b"metacopy")?.is_none() {
                continue;
            }
            if prefix.starts_with(b"user.") && !is_trusted(&stat()?) {
                log::warn!(
                    "{}: a file without its data has a mark that others could have set \
                     (user.overlay.metacopy): give it to root, writable for nobody else",
                    self.path.shown()
                );
                return Err(Errno::IO);
            }
            return match overlay::get_in(file, prefix, b"redirect")? {
                None => Ok(Data::Below),
                Some(to) => Redirect::parse(&to).map(Data::At).ok_or(Errno::IO),
            };
        }
        Ok(Data::Own)
    }
}

/// Can only root or the daemon's user have set attributes of this file?
fn is_trusted(stat: &RealStat) -> bool {
    let own = stat.uid == 0 || stat.uid == rustix::process::geteuid().as_raw();
    own && stat.mode & (libc::S_IWGRP | libc::S_IWOTH) == 0
}

/// The data is the file's own from now on: the last step of completing it.
///
/// # Errors
/// Those of removing the mark; the file is as it was then.
pub fn set_own(file: &Target<'_>) -> Result<()> {
    for prefix in NAMESPACES {
        match file.remove(&[prefix, b"metacopy"].concat()) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            // Not seen, so not there as far as anybody can tell.
            Err(Errno::PERM | Errno::ACCESS) if prefix.starts_with(b"trusted.") => {}
            Err(err) => return Err(err),
        }
    }
    for prefix in NAMESPACES {
        // Means nothing at a file that has its data: of no harm if it stays.
        let _ = file.remove(&[prefix, b"redirect"].concat());
    }
    Ok(())
}
