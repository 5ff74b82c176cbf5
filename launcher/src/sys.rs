//! Wrappers of the system calls that `rustix` lacks or cannot offer as safe; the only unsafe code
//! of this crate.
#![allow(unsafe_code)]

use rustix::io::Errno;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// Where a process finds itself after [`clone_process`].
pub enum Cloned {
    /// The new process.
    Child,
    /// The one that called, with the child's number (in the caller's pid namespace) and pidfd.
    Parent(ChildProcess),
}

/// A child that nobody else reaps.
#[derive(Debug)]
pub struct ChildProcess {
    /// Process number.
    pub pid: i32,
    /// Becomes readable when the process ends.
    pub pidfd: OwnedFd,
}

impl ChildProcess {
    /// Waits for its end and takes its status; `None` if somebody else did.
    pub fn reap(&self) -> Option<rustix::process::WaitStatus> {
        let pid = rustix::process::Pid::from_raw(self.pid);
        let ended = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
        ended.ok().flatten().map(|(_, status)| status)
    }
}

/// fork(2) with namespace flags (`CLONE_NEW*`, `CLONE_PARENT`), by clone3(2).
///
/// The caller must be the only thread of its process: the child goes on with ordinary Rust code.
pub fn clone_process(flags: libc::c_int) -> Result<Cloned, Errno> {
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: (flags | libc::CLONE_PIDFD) as u64,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        // With CLONE_PARENT the signal is the parent's own; the kernel wants 0 then.
        exit_signal: if flags & libc::CLONE_PARENT == 0 {
            libc::SIGCHLD as u64
        } else {
            0
        },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: no CLONE_VM and no stack, so this behaves as fork(2): both sides keep their own copy
    // of the memory. `args` and `pidfd` outlive the call.
    let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match errno_result(ret) {
        Ok(0) => Ok(Cloned::Child),
        Ok(pid) => {
            // SAFETY: CLONE_PIDFD stored a fresh descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent(ChildProcess {
                pid: pid as i32,
                pidfd,
            }))
        }
        Err(Errno::NOSYS) => clone_process_old(flags),
        Err(errno) => Err(errno),
    }
}

/// [`clone_process`] for kernels before 5.3, by clone(2).
fn clone_process_old(flags: libc::c_int) -> Result<Cloned, Errno> {
    // SAFETY: as above; a null stack means "the same address in a copy of the memory".
    let ret = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags | libc::SIGCHLD,
            0usize,
            0usize,
            0usize,
            0usize,
        )
    };
    match errno_result(ret)? {
        0 => Ok(Cloned::Child),
        pid => {
            let pid = pid as i32;
            let name = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH)?;
            let pidfd = rustix::process::pidfd_open(name, rustix::process::PidfdFlags::empty())?;
            Ok(Cloned::Parent(ChildProcess { pid, pidfd }))
        }
    }
}

/// Ends the process at once, without running destructors or flushing what a fork copied.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` on close-on-exec. close_range(2), else /proc/self/fd.
pub fn close_on_exec_from(first: RawFd) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    // SAFETY: only descriptor flags change.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            u32::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    match errno_result(ret) {
        Ok(_) => return Ok(()),
        Err(Errno::NOSYS | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let listing = std::fs::read_dir("/proc/self/fd").map_err(crate::error::errno_of)?;
    for entry in listing.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok());
        if let Some(fd) = number.filter(|fd| *fd >= first) {
            // SAFETY: only a descriptor flag changes; a descriptor closed meanwhile is an EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Takes ownership of a descriptor number that was handed over by exec.
///
/// Fails with EBADF when it is not open. Each number may be adopted once.
pub fn adopt_fd(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: F_GETFD only reads a flag.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if flags < 0 {
        return Err(last_errno());
    }
    // SAFETY: open (just checked), and by the protocol of exec'ed helpers owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adopts descriptors named by their numbers, and marks them close-on-exec again.
pub fn adopt_all(numbers: &[std::ffi::OsString]) -> Result<Vec<OwnedFd>, Errno> {
    let mut fds = Vec::with_capacity(numbers.len());
    for number in numbers {
        let number = number
            .to_str()
            .and_then(|n| n.parse::<RawFd>().ok())
            .filter(|n| *n > 2);
        let fd = adopt_fd(number.ok_or(Errno::BADF)?)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        fds.push(fd);
    }
    Ok(fds)
}

/// Replaces the program by the file behind `fd` (fexecve). Returns only on failure.
pub fn exec_fd(fd: BorrowedFd<'_>, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    last_errno()
}

/// Replaces the program by the file at `path`. Returns only on failure.
pub fn exec_path(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    last_errno()
}

/// A C string of an operating-system string; EINVAL when it holds a NUL.
pub fn c_string(text: &OsStr) -> Result<CString, Errno> {
    CString::new(text.as_bytes()).map_err(|_| Errno::INVAL)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([std::ptr::null()])
        .collect()
}

/// Leaves the namespaces named by `flags` for new ones. The caller is single-threaded.
pub fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: without CLONE_FILES and CLONE_FS sharing in a single-threaded process no other code
    // can observe a change of the descriptor table or the root.
    errno_result(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// All signals are blocked in this process; returns a signalfd that reads them.
pub fn block_signals() -> Result<OwnedFd, Errno> {
    let all = full_set();
    // SAFETY: `all` is an initialised set; a null old set is allowed.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut()) };
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const all, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(last_errno());
    }
    // SAFETY: a fresh descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Everything but the signals that the kernel raises for faults of the process itself.
fn full_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the whole set, the others change it.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in [
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGTRAP,
        ] {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        set.assume_init()
    }
}

/// One signal read from a signalfd.
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Who sent it, 0 when it came from outside the pid namespace or from the kernel.
    pub sender: u32,
}

/// The next pending signal of a signalfd made by [`block_signals`]; `None` when there is none.
pub fn next_signal(signals: &OwnedFd) -> Result<Option<Signal>, Errno> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(signals, &mut buffer) {
        Ok(count) if count == buffer.len() => {
            // SAFETY: the kernel filled the whole structure, which is plain data; the read is
            // unaligned because the buffer is bytes.
            let info = unsafe {
                std::ptr::read_unaligned(buffer.as_ptr().cast::<libc::signalfd_siginfo>())
            };
            Ok(Some(Signal {
                number: info.ssi_signo as i32,
                sender: info.ssi_pid,
            }))
        }
        Ok(_) | Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Default actions for all signals and none blocked: what a program expects after exec.
/// (The Rust runtime ignores SIGPIPE, and ignored signals are inherited.)
pub fn reset_signals() {
    // SAFETY: SIG_DFL is no handler; the sets are initialised; numbers without a signal are EINVAL.
    unsafe {
        for number in 1..=64 {
            libc::signal(number, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Is this one of the signals by which people and sessions end programs?
pub fn ends_programs(number: i32) -> bool {
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM].contains(&number)
}

/// Gives a signal its default action.
pub fn default_signal(number: libc::c_int) {
    // SAFETY: SIG_DFL is no handler.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// pidfd_send_signal(2) for any number, real-time signals included.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null siginfo means "as kill(2)".
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    errno_result(ret).map(drop)
}

/// kill(2) for any number, real-time signals included.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    errno_result(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// setrlimit(2) by resource number.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` outlives the call.
    errno_result(unsafe { libc::setrlimit(resource as _, &raw const limit) }.into()).map(drop)
}

/// getrlimit(2) by resource number: soft and hard.
pub fn rlimit(resource: u32) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` outlives the call.
    errno_result(unsafe { libc::getrlimit(resource as _, &raw mut limit) }.into())?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Installs a seccomp filter for this thread. Needs no_new_privs or CAP_SYS_ADMIN.
pub fn install_seccomp(program: &[seccompiler::sock_filter]) -> Result<(), Errno> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let prog = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: both crates lay struct sock_filter out as the kernel does; the kernel copies the
    // program and does not write to it.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            0,
            &raw const prog,
        )
    };
    errno_result(ret).map(drop)
}

/// Brings the loopback interface of the current network namespace up. netdevice(7).
pub fn loopback_up() -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request: libc::ifreq = {
        // SAFETY: all-zero bytes are a valid ifreq.
        unsafe { std::mem::zeroed() }
    };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` is a whole ifreq with a terminated name.
    let ret = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        )
    };
    errno_result(ret.into()).map(drop)
}

fn errno_result(ret: libc::c_long) -> Result<libc::c_long, Errno> {
    if ret < 0 { Err(last_errno()) } else { Ok(ret) }
}

fn last_errno() -> Errno {
    Errno::from_raw_os_error(
        std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}
