//! Mounts whose daemon has died: finding them in the mount table and taking them away.
//!
//! Nothing here sends a request to the dead daemon by itself; but a path may lead through another
//! filesystem, and detaching may have to wait for what the daemon was to do.

use super::fusermount;
use super::mount::{Identity, MountHandle, is_there};
use crate::errno::Errno;
use crate::ostext::OsText;
use crate::setup::SetupError;
use crate::sys::procs::unescape;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where the kernel lets connections be ended: Documentation/filesystems/fuse.rst.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What is left of a mount when its daemon has died.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leftover {
    mountpoint: OsText,
    identity: Option<Identity>,
}

/// A place where the filesystem is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    identity: Option<Identity>,
}

impl Leftover {
    /// Of the mount that was made.
    pub fn of(handle: &MountHandle) -> Self {
        let (mountpoint, identity) = handle.parts();
        Self {
            mountpoint: mountpoint.to_path_buf().into(),
            identity,
        }
    }

    /// Where it was mounted.
    pub fn mountpoint(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Where the filesystem of this connection is mounted now: moved elsewhere, bound a second time, or
    /// nowhere any more. In the order of the mount table, a mount before those on it: the path of one
    /// that lies on the dead mount leads through that, but goes together with it.
    pub fn places(&self, connection: BorrowedFd<'_>) -> Vec<Place> {
        let table = std::fs::read("/proc/self/mountinfo");
        // Asked after the table was read: the number of the device, and the place, can be another
        // filesystem's once this one is gone.
        if !is_connected(connection) {
            return Vec::new();
        }
        match (self.identity, table) {
            (Some(identity), Ok(table)) => listed(&table, identity.device),
            _ => vec![Place {
                path: self.mountpoint().to_path_buf(),
                identity: self.identity,
            }],
        }
    }

    /// Ends the connection though others have it open. Needs the filesystem for that, which hosts with
    /// systemd have mounted; its files are the owner's.
    pub fn abort(&self, connection: BorrowedFd<'_>) {
        let Some(identity) = self.identity.filter(|_| is_connected(connection)) else {
            return;
        };
        let file = format!("{CONNECTIONS}/{}/abort", identity.device.1);
        if let Err(error) = std::fs::write(&file, "1") {
            log::debug!("{file}: {error}");
        }
    }
}

/// The FUSE mounts of a device in a mount table: proc_pid_mountinfo(5).
fn listed(table: &[u8], device: (u32, u32)) -> Vec<Place> {
    let number = format!("{}:{}", device.0, device.1).into_bytes();
    let lines = table.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
            if fields.nth(1)? != number {
                return None;
            }
            let path = fields.nth(1)?;
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            kind.starts_with(b"fuse").then(|| Place {
                path: OsString::from_vec(unescape(path)).into(),
                identity: Some(Identity {
                    id: Some(id),
                    device,
                }),
            })
        })
        .collect()
}

/// How many of these places the mount table still has.
pub fn still_mounted(places: &[Place]) -> usize {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let devices = places.iter().filter_map(|place| place.identity);
    let mut devices: Vec<_> = devices.map(|identity| identity.device).collect();
    devices.dedup();
    let listed = devices.iter().flat_map(|device| listed(&table, *device));
    let is_one = |now: &Place| places.iter().any(|place| place.identity == now.identity);
    listed.filter(is_one).count()
}

/// Is there still a filesystem behind the device?
pub fn is_connected(connection: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(connection, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok() && !fds[0].revents().contains(PollFlags::ERR)
}

/// Detaches what is mounted at a place, with everything that is mounted below; not if another mount
/// covers it. `ours` is asked last: is there still the filesystem to which the numbers of the place
/// belong? The kernel gives them to others as soon as it is gone. `force`: its connection is ended first, if this process may do that.
///
/// # Errors
/// Why it is still there.
pub fn detach(place: &Place, ours: impl Fn() -> bool, force: bool) -> Result<(), SetupError> {
    let Place { path, identity } = place;
    if !is_there(path, *identity) || !ours() {
        let what = "another mount has taken this place, or covers it";
        return Err(SetupError::path(path, Errno::NOENT, what));
    }
    let lazy = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
    if force && rustix::mount::unmount(path, lazy | UnmountFlags::FORCE).is_ok() {
        return Ok(());
    }
    match rustix::mount::unmount(path, lazy) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount::unmount(path, true),
        Err(errno) => Err(SetupError::path(path, errno, "cannot be detached")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_a_filesystem_is_found() {
        let table = br"20 1 8:1 / / rw - ext4 /dev/vda rw
30 20 0:40 / /mnt/a\040b rw shared:1 - fuse.uaufs uaufs rw
31 30 0:41 / /mnt/a\040b/c rw - fuse.uaufs uaufs rw
32 20 0:40 /d /elsewhere rw - fuse.uaufs uaufs rw
33 20 0:40 / /reused rw - tmpfs tmpfs rw
";
        let place = |id, path: &str| Place {
            path: path.into(),
            identity: Some(Identity {
                id: Some(id),
                device: (0, 40),
            }),
        };
        assert_eq!(
            listed(table, (0, 40)),
            [place(30, "/mnt/a b"), place(32, "/elsewhere")]
        );
        assert_eq!(listed(table, (8, 1)), []);
        assert_eq!(listed(b"", (0, 40)), []);
    }

    #[test]
    fn a_place_that_another_mount_has_is_left_alone() {
        let place = Place {
            path: "/proc".into(),
            identity: Some(Identity {
                id: Some(u64::MAX),
                device: (u32::MAX, 0),
            }),
        };
        assert!(
            detach(&place, || true, false)
                .unwrap_err()
                .to_string()
                .contains("another mount")
        );
    }
}
