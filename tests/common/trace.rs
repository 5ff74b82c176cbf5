//! Follows the system calls of a program by which it changes a filesystem, and at one of them kills
//! the program or lets the call fail: ptrace(2). The program itself knows nothing of it.
#![allow(unsafe_code)]

use anyhow::{Context, Result, bail};
use std::collections::{HashMap, HashSet};
use std::io::Error;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A program makes this call (with an argument that fails) before and after what is tested, if it
/// wants only that to count.
const MARK: libc::c_long = libc::SYS_getsid;

const FICLONE: u64 = 0x4004_9409;

/// Who makes no call for so long has no work.
const QUIET: Duration = Duration::from_millis(20);

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed before it.
    Kill,
    /// It is not made, and answers this.
    Errno(i32),
}

/// Which calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those that change a filesystem.
    Changes,
    /// Those that open something, too.
    ChangesAndOpens,
}

/// Counts calls from 0, and does something at one of them.
pub struct Plan {
    calls: Calls,
    /// Only calls about what lies on this device count. (Descriptors have no path where a program has
    /// its own view of a filesystem.)
    device: Option<u64>,
    at: Option<usize>,
    fault: Fault,
    counting: AtomicBool,
    /// Nothing is counted any more.
    over: AtomicBool,
    count: AtomicUsize,
    /// The call that the fault was for.
    hit: Mutex<Option<String>>,
    /// Told of each call that counts, before it is made.
    watcher: Option<Watcher>,
}

/// Somebody who is told the numbers of calls.
type Watcher = Box<dyn Fn(usize) + Send + Sync>;

impl Plan {
    /// `at` = `None`: calls are only counted.
    pub fn new(calls: Calls, device: Option<u64>, at: Option<usize>, fault: Fault) -> Self {
        Self {
            calls,
            device,
            at,
            fault,
            counting: AtomicBool::new(false),
            over: AtomicBool::new(false),
            count: AtomicUsize::new(0),
            hit: Mutex::new(None),
            watcher: None,
        }
    }

    /// Calls are counted, and somebody is told of each before it is made.
    pub fn watched(device: u64, watcher: impl Fn(usize) + Send + Sync + 'static) -> Self {
        Self {
            watcher: Some(Box::new(watcher)),
            ..Self::new(Calls::Changes, Some(device), None, Fault::Kill)
        }
    }

    /// What is tested begins.
    pub fn begin(&self) {
        self.counting.store(true, Ordering::SeqCst);
    }

    /// It is over, and the program runs unhindered from its next call on.
    pub fn end(&self) {
        self.counting.store(false, Ordering::SeqCst);
        self.over.store(true, Ordering::SeqCst);
    }

    /// Waits until the call of the fault was made, or no calls are made any more.
    pub fn settle(&self) {
        let mut last = None;
        while self.hit().is_none() && last != Some(self.count()) {
            last = Some(self.count());
            std::thread::sleep(QUIET);
        }
    }

    /// How many calls were counted.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// The call that was hit, if it came.
    pub fn hit(&self) -> Option<String> {
        let hit = self.hit.lock().unwrap_or_else(PoisonError::into_inner);
        hit.clone()
    }

    /// Counts a call. What is to become of it?
    fn meet(&self, thread: libc::pid_t, call: &Call) -> Option<Fault> {
        if call.number == MARK {
            self.counting.fetch_xor(true, Ordering::SeqCst);
        }
        if !self.counting.load(Ordering::SeqCst) {
            return None;
        }
        let place = call.place(thread, self.calls)?;
        if !place.is_on(thread, self.device) {
            return None;
        }
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        if let Some(watcher) = &self.watcher {
            watcher(number);
        }
        if self.at != Some(number) {
            return None;
        }
        let mut hit = self.hit.lock().unwrap_or_else(PoisonError::into_inner);
        *hit = Some(call.to_string());
        Some(self.fault)
    }
}

/// How a traced program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It came to its end, and the fault with it or not.
    Finished,
    /// The same, with this status.
    Failed(i32),
    Killed,
}

/// Called by the program: what is tested begins, or is done.
pub fn mark() {
    // SAFETY: a call on an integer; there is no such process, so it only fails.
    unsafe { libc::getsid(libc::pid_t::MAX) };
}

/// Runs a program and kills it when it is about to make its change number `n` (from 0) between two
/// marks.
pub fn kill_before_change(command: &mut Command, n: usize) -> Result<End> {
    let plan = Plan::new(Calls::Changes, None, Some(n), Fault::Kill);
    match run(command, &plan)? {
        End::Failed(status) => bail!("the child failed: {status}"),
        end => Ok(end),
    }
}

/// Runs a program by the plan, and without output.
pub fn run(command: &mut Command, plan: &Plan) -> Result<End> {
    let trace_me = || {
        // SAFETY: integers only; async-signal-safe.
        match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    };
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    // SAFETY: the closure makes one system call.
    let child = unsafe { command.pre_exec(trace_me) }.spawn()?;
    let pid = child.id() as libc::pid_t;
    wait(pid)?;
    // SAFETY: integers only; the process is our child, which has stopped at exec.
    if unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, OPTIONS) } != 0 {
        bail!("ptrace: {}", Error::last_os_error());
    }
    resume(pid, 0, plan);
    follow(pid, plan)
}

/// Follows a program that runs, by the plan, until it ends. `ready` is called when nothing it does
/// goes unseen any more.
pub fn attach(pid: u32, plan: &Plan, ready: impl FnOnce()) -> Result<End> {
    let pid = pid as libc::pid_t;
    let mut seized = HashSet::new();
    loop {
        let before = seized.len();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = entry?.file_name();
            let thread: libc::pid_t = name.to_str().context("a number")?.parse()?;
            if !seized.insert(thread) {
                continue;
            }
            // SAFETY: integers only. A thread that a seized one made is seized already, and one
            // that has ended is not there: both answer an error and need nothing.
            let done = unsafe {
                let seize = libc::PTRACE_SEIZE;
                libc::ptrace(seize, thread, 0, OPTIONS);
                libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)
            };
            if done == 0 {
                wait(thread)?;
                resume(thread, 0, plan);
            }
        }
        if seized.len() == before {
            break;
        }
    }
    ready();
    follow(pid, plan)
}

const OPTIONS: libc::c_int =
    libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;

/// Waits for one thread to stop.
fn wait(thread: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: the status is a local integer.
    if unsafe { libc::waitpid(thread, &mut status, libc::__WALL) } != thread {
        bail!("waitpid: {}", Error::last_os_error());
    }
    if !libc::WIFSTOPPED(status) {
        bail!("the program ended at once");
    }
    Ok(())
}

fn resume(thread: libc::pid_t, signal: i32, plan: &Plan) {
    let how = if plan.over.load(Ordering::SeqCst) {
        libc::PTRACE_CONT
    } else {
        libc::PTRACE_SYSCALL
    };
    // SAFETY: integers only. A thread that was killed meanwhile is no longer there: fine.
    unsafe { libc::ptrace(how, thread, 0, signal) };
}

fn follow(pid: libc::pid_t, plan: &Plan) -> Result<End> {
    let mut answers: HashMap<libc::pid_t, i32> = HashMap::new();
    loop {
        let mut status = 0;
        // SAFETY: the status is a local integer. Only what this thread traces is waited for.
        let who = unsafe { libc::waitpid(-1, &mut status, libc::__WALL | libc::__WNOTHREAD) };
        if who < 0 {
            bail!("waitpid: {}", Error::last_os_error());
        }
        if libc::WIFEXITED(status) && who == pid {
            return Ok(match libc::WEXITSTATUS(status) {
                0 => End::Finished,
                other => End::Failed(other),
            });
        }
        if libc::WIFSIGNALED(status) && who == pid {
            return Ok(End::Killed);
        }
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let is_event = status >> 16 != 0;
        if signal == libc::SIGTRAP | 0x80 {
            match Call::entered(who) {
                Some(call) => match plan.meet(who, &call) {
                    // SAFETY: integers only; the process is traced by us and was not reaped.
                    Some(Fault::Kill) => drop(unsafe { libc::kill(pid, libc::SIGKILL) }),
                    Some(Fault::Errno(errno)) => {
                        answer(who, None)?;
                        answers.insert(who, errno);
                    }
                    None => {}
                },
                None => {
                    if let Some(errno) = answers.remove(&who) {
                        answer(who, Some(errno))?;
                    }
                }
            }
        }
        let ours = is_event || signal & 0x7f == libc::SIGTRAP;
        // New threads stop by SIGSTOP once if they were not seized.
        let ours = ours || signal == libc::SIGSTOP;
        resume(who, if ours { 0 } else { signal }, plan);
    }
}

/// Before a call (`None`): it is not made. After it: it has failed with this.
#[cfg(target_arch = "x86_64")]
fn answer(thread: libc::pid_t, errno: Option<i32>) -> Result<()> {
    // SAFETY: the structure is plain data, for which zeros are valid.
    let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure.
    if unsafe { libc::ptrace(libc::PTRACE_GETREGS, thread, 0, &raw mut regs) } != 0 {
        bail!("ptrace: {}", Error::last_os_error());
    }
    match errno {
        None => regs.orig_rax = u64::MAX,
        Some(errno) => regs.rax = (-i64::from(errno)) as u64,
    }
    // SAFETY: the kernel reads one such structure.
    if unsafe { libc::ptrace(libc::PTRACE_SETREGS, thread, 0, &raw const regs) } != 0 {
        bail!("ptrace: {}", Error::last_os_error());
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn answer(_: libc::pid_t, _: Option<i32>) -> Result<()> {
    bail!("calls can be made to fail on x86-64 only")
}

/// A system call that a stopped thread is about to make.
struct Call {
    number: libc::c_long,
    args: [u64; 6],
}

/// What a call is about.
enum Place {
    /// An open file, or a directory that a path starts at.
    Descriptor(i32),
    Anywhere,
}

impl Place {
    fn is_on(&self, thread: libc::pid_t, device: Option<u64>) -> bool {
        match (self, device) {
            // Standard error is for messages.
            (Self::Descriptor(0..=2), Some(_)) => false,
            (Self::Descriptor(fd @ 3..), Some(device)) => {
                std::fs::metadata(format!("/proc/{thread}/fd/{fd}"))
                    .is_ok_and(|found| found.dev() == device)
            }
            _ => true,
        }
    }
}

impl Call {
    /// `None` if that is not why the thread stopped.
    fn entered(thread: libc::pid_t) -> Option<Self> {
        // SAFETY: the structure is plain data, for which zeros are valid.
        let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        let get = libc::PTRACE_GET_SYSCALL_INFO;
        // SAFETY: the kernel writes at most `size` bytes to the structure.
        let len = unsafe { libc::ptrace(get, thread, size, &raw mut info) };
        if len <= 0 || info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
            return None;
        }
        // SAFETY: `op` says which member of the union was written.
        let entry = unsafe { info.u.entry };
        let number = libc::c_long::try_from(entry.nr).ok()?;
        Some(Self {
            number,
            args: entry.args,
        })
    }

    /// What it is about, if it is one that counts.
    fn place(&self, thread: libc::pid_t, calls: Calls) -> Option<Place> {
        let descriptor = |at: usize| Some(Place::Descriptor(self.args[at] as i32));
        match self.number {
            libc::SYS_openat | libc::SYS_openat2 => {
                let flags = if self.number == libc::SYS_openat {
                    self.args[2]
                } else {
                    first_word(thread, self.args[2])
                };
                let changing =
                    libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY);
                let counts = calls == Calls::ChangesAndOpens || flags as i32 & changing != 0;
                if counts { descriptor(0) } else { None }
            }
            libc::SYS_ioctl if self.args[1] == FICLONE => descriptor(0),
            number if lists(OF_FIRST, number) => descriptor(0),
            libc::SYS_symlinkat => descriptor(1),
            libc::SYS_linkat | libc::SYS_copy_file_range => descriptor(2),
            number if lists(OF_PATH, number) => Some(Place::Anywhere),
            _ => None,
        }
    }
}

/// A call, and its name in reports.
type Named = (libc::c_long, &'static str);

/// Calls about a file or directory that is their first argument.
const OF_FIRST: &[Named] = &[
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_mknodat, "mknodat"),
    (libc::SYS_write, "write"),
    (libc::SYS_writev, "writev"),
    (libc::SYS_pwrite64, "pwrite"),
    (libc::SYS_pwritev, "pwritev"),
    (libc::SYS_pwritev2, "pwritev2"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_fallocate, "fallocate"),
    (libc::SYS_fchown, "fchown"),
    (libc::SYS_fchownat, "fchownat"),
    (libc::SYS_fchmod, "fchmod"),
    (libc::SYS_fchmodat, "fchmodat"),
    (libc::SYS_utimensat, "utimensat"),
    (libc::SYS_fsetxattr, "fsetxattr"),
    (libc::SYS_fremovexattr, "fremovexattr"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
    // The library does not know these.
    (452, "fchmodat2"),
    (463, "setxattrat"),
    (466, "removexattrat"),
];

/// Calls about what another of their arguments says, or that count only with some arguments.
const OTHERS: &[Named] = &[
    (libc::SYS_openat, "openat"),
    (libc::SYS_openat2, "openat2"),
    (libc::SYS_ioctl, "ioctl(FICLONE)"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_copy_file_range, "copy_file_range"),
];

/// Calls about a path alone.
const OF_PATH: &[Named] = &[
    (libc::SYS_setxattr, "setxattr"),
    (libc::SYS_lsetxattr, "lsetxattr"),
    (libc::SYS_removexattr, "removexattr"),
    (libc::SYS_lremovexattr, "lremovexattr"),
    (libc::SYS_truncate, "truncate"),
];

fn lists(calls: &[Named], number: libc::c_long) -> bool {
    calls.iter().any(|(listed, _)| *listed == number)
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut all = OF_FIRST.iter().chain(OTHERS).chain(OF_PATH);
        match all.find(|(listed, _)| *listed == self.number) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "call {}", self.number),
        }
    }
}

/// A word of a thread's memory.
fn first_word(thread: libc::pid_t, at: u64) -> u64 {
    // SAFETY: the other process's memory is read, by the kernel, into the answer.
    unsafe { libc::ptrace(libc::PTRACE_PEEKDATA, thread, at, 0) as u64 }
}
