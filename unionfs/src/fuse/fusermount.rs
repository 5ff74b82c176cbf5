//! Mounting for plain users: the setuid helper fusermount3 and its file descriptor protocol.
//!
//! The helper mounts and hands the device back over the socket named by `_FUSE_COMMFD`.
//! Source: fusermount3(1), libfuse `util/fusermount.c`.

use super::mount::{MountRequest, readonly};
use crate::errno::Errno;
use crate::setup::SetupError;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The helper's names, newest first.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];
/// What plain users may do.
const CONFIG: &str = "/etc/fuse.conf";

type Result<T> = core::result::Result<T, SetupError>;

/// Mounts by the helper. Returns the device and what was not done as asked.
///
/// # Errors
/// When the helper is missing or refuses, with its own words.
pub(super) fn mount(request: &MountRequest) -> Result<(OwnedFd, Vec<String>)> {
    let (allow_other, warnings) = decide_allow_other(request)?;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(|errno| SetupError::System {
        what: "socketpair(2) failed".into(),
        errno,
    })?;
    // Only the helper's end may survive its exec, else the end of the helper would not be seen.
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC).map_err(|errno| {
        SetupError::System {
            what: "fcntl(2) failed".into(),
            errno,
        }
    })?;
    let child = spawn(|command| {
        command
            .arg("-o")
            .arg(options(request, allow_other))
            .arg("--")
            .arg(&request.mountpoint)
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
    })?;
    drop(theirs);
    let device = receive_device(&ours);
    let output = child
        .wait_with_output()
        .map_err(|error| helper_error(request, &error.to_string()))?;
    match device {
        Some(device) if output.status.success() => Ok((device, warnings)),
        _ => Err(helper_error(request, &words(&output))),
    }
}

/// Unmounts by the helper.
///
/// # Errors
/// When the helper is missing or refuses, with its own words.
pub(super) fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let output = spawn(|command| {
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        command
            .arg("--")
            .arg(mountpoint)
            .stdin(Stdio::null())
            .output()
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = words(&output);
    let errno = if words.contains("busy") {
        Errno::BUSY
    } else if words.contains("not found in") {
        Errno::INVAL
    } else {
        Errno::PERM
    };
    Err(SetupError::path(
        mountpoint,
        errno,
        format!("fusermount3 refused: {words}"),
    ))
}

/// Runs `start` on the first helper that exists.
fn spawn<T>(mut start: impl FnMut(&mut Command) -> io::Result<T>) -> Result<T> {
    for helper in HELPERS {
        match start(&mut Command::new(helper)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                return Err(SetupError::path(Path::new(helper), errno, "cannot be run"));
            }
            Ok(started) => return Ok(started),
        }
    }
    let what = "fusermount3: not found: install fuse3, or mount as root or in a user namespace (unshare -Urm)";
    Err(SetupError::System {
        what: what.into(),
        errno: Errno::NOENT,
    })
}

/// May others use the mount, and what is to be said about it?
fn decide_allow_other(request: &MountRequest) -> Result<(bool, Vec<String>)> {
    let permitted = user_allow_other(&std::fs::read_to_string(CONFIG).unwrap_or_default());
    match request.flags.allow_other {
        Some(false) => Ok((false, Vec::new())),
        _ if permitted => Ok((true, Vec::new())),
        Some(true) => Err(SetupError::Option {
            what: "allow_other".into(),
            hint: format!("not permitted to plain users (EPERM): add user_allow_other to {CONFIG}"),
        }),
        None => {
            let warning = format!(
                "only you can use this mount: user_allow_other in {CONFIG} would let others"
            );
            Ok((false, vec![warning]))
        }
    }
}

/// Does fuse.conf let plain users say allow_other? Source: fuse(8), "Configuration".
fn user_allow_other(config: &str) -> bool {
    config
        .lines()
        .any(|line| line.split('#').next().unwrap_or_default().trim() == "user_allow_other")
}

/// The option string of the helper. `dev` and `suid` are refused to plain users, so they are left
/// out: such a mount is always `nosuid,nodev`.
fn options(request: &MountRequest, allow_other: bool) -> OsString {
    let mut options = b"default_permissions".to_vec();
    let flags = [
        (allow_other, ",allow_other"),
        (readonly(request), ",ro"),
        (request.flags.noexec, ",noexec"),
    ];
    for (_, flag) in flags.iter().filter(|(wanted, _)| *wanted) {
        options.extend_from_slice(flag.as_bytes());
    }
    options.extend_from_slice(b",subtype=");
    options.extend(escape(request.subtype.as_bytes()));
    options.extend_from_slice(b",fsname=");
    options.extend(escape(request.source.as_bytes()));
    OsString::from_vec(options)
}

/// Escapes a value for the helper, which splits at commas.
fn escape(value: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

/// Receives the device; `None` when the helper ended without sending one.
fn receive_device(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Err(Errno::INTR) => {}
            other => break other.ok()?,
        }
    };
    if received.bytes == 0 {
        return None;
    }
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// The helper's complaint on one line.
fn words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        format!("no reason given ({})", output.status)
    } else {
        lines.join("; ")
    }
}

fn helper_error(request: &MountRequest, words: &str) -> SetupError {
    SetupError::path(
        &request.mountpoint,
        Errno::PERM,
        format!("fusermount3 refused: {words}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MountFlags;

    #[test]
    fn values_are_escaped_for_the_helper() {
        let request = MountRequest {
            mountpoint: "/m".into(),
            source: OsString::from_vec(b"a,b\\\xff".to_vec()),
            subtype: "uaufs".into(),
            flags: MountFlags {
                noexec: true,
                ..MountFlags::default()
            },
            read_only: true,
        };
        assert_eq!(
            options(&request, false).as_bytes(),
            b"default_permissions,ro,noexec,subtype=uaufs,fsname=a\\,b\\\\\xff"
        );
    }

    #[test]
    fn fuse_conf_is_read_as_the_helper_reads_it() {
        assert!(user_allow_other(
            "# comment\nmount_max = 10\nuser_allow_other # yes\n"
        ));
        assert!(!user_allow_other("#user_allow_other\n"));
        assert!(!user_allow_other(""));
    }
}
