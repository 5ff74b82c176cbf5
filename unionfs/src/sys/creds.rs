//! Acting as the caller: per-thread filesystem ids and umask, so that what is created has its
//! owner, group, set-group-id inheritance and default ACL from the first moment.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use std::cell::Cell;

/// `SECBIT_NO_SETUID_FIXUP`: changing filesystem ids leaves the capabilities alone
/// (capabilities(7)). Without it a thread that acts for a user loses CAP_DAC_OVERRIDE, and the
/// user's supplementary groups, which FUSE does not tell, would decide.
const SECBIT_NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;

/// What the kernel shows for owners without an id in the user namespace
/// (/proc/sys/kernel/overflowuid).
pub const OVERFLOW_ID: u32 = 65_534;

/// Is this process in the initial user namespace? Source: user_namespaces(7), uid_map.
pub fn in_initial_userns() -> bool {
    // A kernel without user namespaces has no such file and no other namespace.
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else {
        return true;
    };
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

thread_local! {
    /// Has this thread its own umask and working directory, and is it allowed to change ids?
    static PRIVATE: Cell<Option<bool>> = const { Cell::new(None) };
    /// The umask of this thread, once it has its own.
    static UMASK: Cell<u32> = const { Cell::new(0o7777) };
}

/// Gives the calling thread its own umask and working directory (unshare(2), `CLONE_FS`; needs no
/// privilege) and finds out whether it may act under other ids.
fn prepare() -> Result<bool> {
    if let Some(may_change_ids) = PRIVATE.get() {
        return Ok(may_change_ids);
    }
    // SAFETY: CLONE_FS only detaches this thread's root, cwd and umask; no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::PERM));
    }
    // SAFETY: prctl with integer arguments only.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    let fixed = bits >= 0
        // SAFETY: prctl with integer arguments only.
        && unsafe {
            libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong | SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        } == 0;
    PRIVATE.set(Some(fixed));
    Ok(fixed)
}

fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: raw system calls on integers. The raw form changes this thread only (the C library's
    // wrappers do too for these two calls). They report failure only by not changing anything.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

/// Restores the daemon's ids when dropped.
struct RestoreIds {
    uid: u32,
    gid: u32,
}

impl Drop for RestoreIds {
    fn drop(&mut self) {
        set_fs_ids(self.uid, self.gid);
    }
}

/// Runs `f` with the filesystem ids of the caller and the given umask, on this thread only.
///
/// A daemon that may not change ids (a plain user's) keeps its own: everything it creates is its
/// own anyway. Source: setfsuid(2), capabilities(7).
pub fn as_caller<T>(uid: u32, gid: u32, umask: u32, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let may_change_ids = prepare()?;
    set_umask(umask);
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if !may_change_ids || own == (uid, gid) {
        return f();
    }
    let _restore = RestoreIds {
        uid: own.0,
        gid: own.1,
    };
    set_fs_ids(uid, gid);
    f()
}

/// Sets this thread's umask (cached: most calls find it set already).
fn set_umask(umask: u32) {
    if UMASK.get() != umask {
        rustix::process::umask(rustix::fs::Mode::from_bits_truncate(umask));
        UMASK.set(umask);
    }
}

/// Runs `f` with umask 0, so that modes given to mkdirat and openat are taken as they are.
pub fn with_exact_modes<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    prepare()?;
    set_umask(0);
    f()
}

/// Gives this thread its own working directory, so that `fchdir` in it moves nobody else.
pub fn private_cwd() -> Result<()> {
    prepare().map(|_| ())
}

/// May this process give files to other users? (CAP_CHOWN in its user namespace.)
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}
