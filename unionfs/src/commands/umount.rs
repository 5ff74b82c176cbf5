//! `uaufs umount`.

use clap::Args;
use std::path::PathBuf;

/// An unmount that is asked for.
#[derive(Args, Debug, PartialEq, Eq)]
pub struct UmountArgs {
    /// Detach now, clean up when the last user is gone
    #[arg(short, long)]
    pub lazy: bool,
    /// Where the union is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
}

/// Unmounts.
///
/// # Errors
/// No union there, or it is busy.
pub fn run(args: &UmountArgs) -> anyhow::Result<u8> {
    unionfs::fuse::unmount(&args.mountpoint, args.lazy)?;
    Ok(0)
}
