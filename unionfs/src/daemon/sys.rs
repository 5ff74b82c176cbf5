//! fork(2), close_range(2), and how a process that is no child has ended.
#![allow(unsafe_code)]

use nix::unistd::{ForkResult, Pid};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// Which of the two processes this is.
pub(super) enum Fork {
    /// The new one.
    Child,
    /// The old one, and the new one's id.
    Parent(Pid),
}

/// Forks. The process must have a single thread.
pub(super) fn fork() -> nix::Result<Fork> {
    // SAFETY: fork(2) is unsafe because in a process of several threads the child may only call
    // async-signal-safe functions. The callers, `background` and `Watch::start`, demand a single
    // thread.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Fork::Child),
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}

/// Closes every descriptor but standard input, output and error and those of `keep`. For a process
/// that was just forked and never returns to what it is a copy of: whatever owned the others is not
/// used, nor dropped, any more.
pub(super) fn close_all_but(keep: &[RawFd]) {
    let mut keep = keep.to_vec();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        close_range(first, fd - 1);
        first = first.max(fd + 1);
    }
    close_range(first, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    if first > last {
        return;
    }
    // SAFETY: integers only; see `close_all_but` for the descriptors.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if done == 0 {
        return;
    }
    // Before Linux 5.9, or filtered by seccomp.
    let Ok(listing) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = listing
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open {
        if (first..=last).contains(&fd) {
            // SAFETY: as above. The listing's own descriptor is gone already: EBADF.
            unsafe { libc::close(fd) };
        }
    }
}

/// `struct pidfd_info` of linux/pidfd.h, its first version.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// PIDFD_INFO_EXIT of linux/pidfd.h.
const INFO_EXIT: u64 = 1 << 3;
/// PIDFD_GET_INFO, `_IOWR(0xFF, 11, struct pidfd_info)` of linux/pidfd.h.
const GET_INFO: u32 = 3 << 30 | (size_of::<PidfdInfo>() as u32) << 16 | 0xff << 8 | 11;

/// The wait status of a process that has ended and was reaped. `None` = it was not reaped yet, or
/// the kernel (before Linux 6.15) does not tell.
pub(super) fn status_of_reaped(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // The type of the command differs between C libraries.
    let command = GET_INFO as libc::Ioctl;
    // SAFETY: the command says how long the structure is, of which every bit pattern is valid, and
    // it is borrowed for the call.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), command, &raw mut info) };
    (done == 0 && info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}
