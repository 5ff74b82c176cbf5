//! Runs a program and kills it before its n-th change of a filesystem: ptrace(2).
#![allow(unsafe_code)]

use anyhow::{Result, bail};
use std::io::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// The child makes this call (with an argument that fails) before and after what is tested.
const MARK: libc::c_long = libc::SYS_getsid;

/// Calls that change a filesystem. What is opened or created by openat(2) shows in the next one.
const CHANGES: &[libc::c_long] = &[
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_copy_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fchownat,
    libc::SYS_fchmod,
    // fchmodat2
    452,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // setxattrat, removexattrat
    463,
    466,
    libc::SYS_fsync,
];

/// How a traced program ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It came to its end before it was time to kill it.
    Finished,
    Killed,
}

/// Called by the child: what is tested begins, or is done.
pub fn mark() {
    // SAFETY: a call on an integer; there is no such process, so it only fails.
    unsafe { libc::getsid(libc::pid_t::MAX) };
}

/// Runs the program and kills it when it is about to make its change number `n` (from 0) between
/// the two marks.
pub fn kill_before_change(command: &mut Command, n: usize) -> Result<End> {
    let trace_me = || {
        // SAFETY: integers only; async-signal-safe.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    };
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the closure makes one system call.
    let child = unsafe { command.pre_exec(trace_me) }.spawn()?;
    let pid = child.id() as libc::pid_t;
    let mut marked = false;
    let mut changes = 0;
    let mut configured = false;
    loop {
        let mut status = 0;
        // SAFETY: the status is a local integer. Only this thread's children are waited for.
        let who = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if who < 0 {
            bail!("waitpid: {}", Error::last_os_error());
        }
        if libc::WIFEXITED(status) && who == pid {
            if libc::WEXITSTATUS(status) != 0 {
                bail!("the child failed");
            }
            return Ok(End::Finished);
        }
        if libc::WIFSIGNALED(status) && who == pid {
            return Ok(End::Killed);
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        if !configured {
            set_options(pid)?;
            configured = true;
        }
        if let Some(call) = entered(who) {
            marked ^= call == MARK;
            if marked && CHANGES.contains(&call) {
                if changes == n {
                    // SAFETY: integers only; the process is our child and was not reaped.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
                changes += 1;
            }
        }
        // SAFETY: integers only. A thread that was killed meanwhile is no longer there: fine.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, who, 0, 0) };
    }
}

fn set_options(pid: libc::pid_t) -> Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    // SAFETY: integers only.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, options) } != 0 {
        bail!("ptrace: {}", Error::last_os_error());
    }
    Ok(())
}

/// The system call that a stopped thread is about to make, if that is why it stopped.
fn entered(thread: libc::pid_t) -> Option<libc::c_long> {
    // SAFETY: the structure is plain data, for which zeros are valid.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to the structure.
    let len = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) };
    if len <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: `op` says which member of the union was written.
    libc::c_long::try_from(unsafe { info.u.entry.nr }).ok()
}
