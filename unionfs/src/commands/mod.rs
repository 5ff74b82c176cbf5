//! What the subcommands do: one module each, with its arguments and a `run` that returns the exit code.

pub mod busy;
pub mod convert;
pub mod ctl;
pub mod diff;
pub mod fhsm;
pub mod fsck;
pub mod merge;
pub mod mvdown;
pub mod plink;
pub mod stats;
pub mod umount;
pub mod which;

use unionfs::shown::ShowPath;

/// What is not to be changed behind the back of a union: a branch that one has, also as a readonly
/// one, which is not locked.
///
/// # Errors
/// A line that names the branch and the mount point.
fn refuse_if_mounted(branch: &std::path::Path) -> anyhow::Result<()> {
    let Ok(path) = branch.canonicalize() else {
        // Whoever opens it says why.
        return Ok(());
    };
    if let Some(mountpoint) = unionfs::merging::mount_with(&[&path]) {
        anyhow::bail!(
            "{}: is a branch of the union at {}: unmount it first, or remove the branch with uaufs ctl",
            branch.shown(),
            mountpoint.shown()
        );
    }
    Ok(())
}
