//! `uaufs ctl MOUNTPOINT del --force`: what is held is copied up first.
#![allow(unsafe_code)]

use crate::branches::{open_both, rest_of, with_files};
use crate::mounted::{Mounted, eventually, text};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// A file that is mapped for reading, and not open any more.
struct Mapping(*mut libc::c_void, usize);

impl Mapping {
    fn of(file: File) -> Self {
        let length = file.metadata().unwrap().len() as usize;
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(null, length, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at, length)
    }

    fn bytes(&self) -> Vec<u8> {
        // SAFETY: within the mapping, which is readable and lives as long as `self`.
        let byte = |i| unsafe { self.0.cast::<u8>().add(i).read_volatile() };
        (0..self.1).map(byte).collect()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn send_fd(socket: &UnixStream, file: File) {
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(b"x")],
        &mut control,
        SendFlags::empty(),
    );
    assert_eq!(sent, Ok(1));
}

fn receive_fd(socket: &UnixStream) -> OwnedFd {
    let mut bytes = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let data = &mut [IoSliceMut::new(&mut bytes)];
    recvmsg(socket, data, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut received = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received.extend(fds);
        }
    }
    received.pop().unwrap()
}

#[test]
fn what_is_in_use_can_be_copied_up_first_and_nothing_else_is() {
    let files = [
        ("b1/d/read", "read"),
        ("b1/d/written", "written"),
        ("b1/d/mapped", "mapped"),
        ("b1/d/looked-at", "x"),
        ("b1/in/looked-at", "x"),
        ("b1/only-seen/file", "x"),
        ("b2/d/below", "below"),
    ];
    with_files(&["b0", "b1", "b2"], &files, "br=b0=rw:b1=ro:b2=ro", |m| {
        let mut read = File::open(m.path("m/d/read")).unwrap();
        let mut written = open_both(m, "m/d/written");
        let map = Mapping::of(File::open(m.path("m/d/mapped")).unwrap());
        let mut inside = Command::new("sleep")
            .arg("60")
            .current_dir(m.path("m/in"))
            .spawn()
            .unwrap();
        for name in ["d/looked-at", "in/looked-at", "only-seen/file"] {
            assert_eq!(m.read(&format!("m/{name}")), "x");
        }
        assert!(m.refused(&["del", "b1"]).contains("branch is busy (EBUSY)"));
        m.ctl(&["del", "--force", "b1"]);
        assert_eq!(rest_of(&mut read), "read");
        written.write_all(b"changed").unwrap();
        assert_eq!(rest_of(&mut written), "changed");
        assert_eq!(map.bytes(), b"mapped");
        let still_there = fs::read_link(format!("/proc/{}/cwd", inside.id())).unwrap();
        assert_eq!(still_there, m.path("m/in"));
        inside.kill().unwrap();
        inside.wait().unwrap();
        assert_eq!(m.names("b0"), ["d", "in"]);
        assert_eq!(m.names("b0/d"), ["mapped", "read", "written"]);
        assert!(m.names("b0/in").is_empty());
        assert_eq!(m.names("m/d"), ["below", "mapped", "read", "written"]);
        assert_eq!(m.read("m/d/read"), "read");
    });
}

#[test]
fn what_no_process_shows_to_be_in_use_is_copied_up_too() {
    let files = [("b1/d/sent", "sent"), ("b1/d/looked-at", "x")];
    with_files(&["b0", "b1"], &files, "br=b0=rw:b1=ro", |m| {
        // In flight: in the descriptor table of nobody.
        let (here, there) = UnixStream::pair().unwrap();
        send_fd(&here, File::open(m.path("m/d/sent")).unwrap());
        assert_eq!(m.read("m/d/looked-at"), "x");
        m.ctl(&["del", "--force", "b1"]);
        assert_eq!(rest_of(&mut File::from(receive_fd(&there))), "sent");
        assert_eq!(m.names("m/d"), ["sent"]);
        assert_eq!(m.names("b0/d"), ["sent"]);
    });
}

#[test]
fn what_the_kernel_writes_by_itself_is_not_copied_away_from_it() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b1=rw,io=passthrough") else {
        return;
    };
    let mut file = File::create(m.path("m/file")).unwrap();
    file.write_all(b"1").unwrap();
    m.ctl(&["prepend", "b0=rw"]);
    let out = m.try_ctl(&["del", "--force", "b1"]);
    file.write_all(b"2").unwrap();
    drop(file);
    eventually("what was written", || m.read("m/file") == "12");
    if out.status.success() {
        eprintln!("passthrough is not there: nothing was in the way");
        return;
    }
    let message = text(&out.stderr);
    assert!(message.contains("branch is busy (EBUSY)"), "{message}");
    eventually("the release", || m.try_ctl(&["del", "b1"]).status.success());
    assert!(!m.path("m/file").exists());
}
