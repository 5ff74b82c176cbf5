//! Where control sockets live: one directory of the mount's owner, closed to everybody else.
//!
//! A daemon that was killed leaves its socket behind; the next mount of this owner removes it.

use crate::errno::{Errno, Result};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, openat};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Ending of a socket's name.
const ENDING: &[u8] = b".sock";

/// A listening socket; dropping it takes it away.
#[derive(Debug)]
pub struct Listening {
    /// Accepts connections.
    pub socket: OwnedFd,
    /// Where it is.
    pub path: PathBuf,
    dir: OwnedFd,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(name) = self.path.file_name() {
            // The directory may have been cleared meanwhile.
            let _ = rustix::fs::unlinkat(&self.dir, name, AtFlags::empty());
        }
    }
}

/// Listens for changes of the mount `instance`.
///
/// # Errors
/// None of the directories can be used: of the last one.
pub fn listen_for(instance: &str) -> Result<Listening> {
    let mut last = Errno::NOENT;
    for place in places() {
        match private_dir(&place).and_then(|dir| listen_in(&place, dir, instance)) {
            Ok(listening) => return Ok(listening),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// The directories to try: the system's for root, the session's, and one that every host has.
fn places() -> Vec<PathBuf> {
    let user = rustix::process::geteuid();
    let mut places = Vec::new();
    if user.is_root() {
        places.push(PathBuf::from("/run/uaufs"));
    }
    if let Some(session) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        places.push(Path::new(&session).join("uaufs"));
    }
    places.push(PathBuf::from(format!("/tmp/uaufs-{}", user.as_raw())));
    places
}

/// Opens or makes a directory that only this user can enter.
fn private_dir(path: &Path) -> Result<OwnedFd> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(CWD, path, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&dir)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        // Somebody else's, or one that others can look into.
        return Err(Errno::PERM);
    }
    Ok(dir)
}

fn listen_in(place: &Path, dir: OwnedFd, instance: &str) -> Result<Listening> {
    // Nobody sweeps between bind and listen.
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    sweep(&dir);
    let name = [instance.as_bytes(), ENDING].concat();
    let socket = new_socket(SocketType::SEQPACKET)?;
    bind(&socket, &address(&dir, &name)?)?;
    let listening = Listening {
        socket,
        path: place.join(std::ffi::OsStr::from_bytes(&name)),
        dir,
    };
    listen(&listening.socket, BACKLOG)?;
    rustix::fs::flock(&listening.dir, FlockOperation::Unlock)?;
    Ok(listening)
}

/// Removes the sockets that nobody listens to.
///
/// Asked with a socket of another type: a listener refuses that at once (EPROTOTYPE), be it stopped
/// or its queue full, and has nothing to accept.
fn sweep(dir: &OwnedFd) {
    let Ok(entries) = Dir::read_from(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_bytes();
        if name.ends_with(ENDING) && probe(dir, name) == Err(Errno::CONNREFUSED) {
            let _ = rustix::fs::unlinkat(dir, entry.file_name(), AtFlags::empty());
        }
    }
}

fn probe(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    connect(&new_socket(SocketType::DGRAM)?, &address(dir, name)?)
}

/// Connects to the socket at a path of any length.
///
/// # Errors
/// ENOENT, EACCES; ECONNREFUSED when nobody listens.
pub(super) fn connect_to(path: &Path) -> Result<OwnedFd> {
    let (Some(place), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::NOENT);
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(CWD, place, flags, Mode::empty())?;
    connect_in(&dir, name.as_bytes())
}

fn connect_in(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    let socket = new_socket(SocketType::SEQPACKET)?;
    connect(&socket, &address(dir, name)?)?;
    Ok(socket)
}

fn new_socket(kind: SocketType) -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// By descriptor, since an address holds 107 bytes only.
fn address(dir: impl AsFd, name: &[u8]) -> Result<SocketAddrUnix> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    SocketAddrUnix::new(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_goes_with_its_mount_and_stale_ones_are_swept() {
        let tmp = tempfile::tempdir().unwrap();
        let place = tmp.path().join("a".repeat(150));
        let dir = || private_dir(&place).unwrap();
        let stale = place.join("dead.sock");
        std::mem::forget(listen_in(&place, dir(), "other").unwrap());
        {
            let socket = new_socket(SocketType::SEQPACKET).unwrap();
            let dir = dir();
            bind(&socket, &address(&dir, b"dead.sock").unwrap()).unwrap();
        }
        assert!(stale.exists());
        let live = listen_in(&place, dir(), "live").unwrap();
        assert!(!stale.exists(), "swept");
        assert!(place.join("other.sock").exists(), "somebody listens");
        assert!(connect_to(&live.path).is_ok());
        let path = live.path.clone();
        drop(live);
        assert!(!path.exists());
        assert_eq!(connect_to(&path).err(), Some(Errno::NOENT));
    }

    #[test]
    fn a_daemon_that_accepts_nothing_holds_up_no_other_mount() {
        let tmp = tempfile::tempdir().unwrap();
        let place = tmp.path().join("sockets");
        let dir = || private_dir(&place).unwrap();
        let stuck = listen_in(&place, dir(), "stuck").unwrap();
        for n in 0..BACKLOG + 4 {
            drop(listen_in(&place, dir(), &n.to_string()).unwrap());
        }
        assert!(stuck.path.exists());
        assert!(
            connect_to(&stuck.path).is_ok(),
            "nothing waits in its queue"
        );
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let tmp = tempfile::tempdir().unwrap();
        let place = tmp.path().join("open");
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(private_dir(&place).err(), Some(Errno::PERM));
    }
}
