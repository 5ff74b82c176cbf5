//! A daemon that is killed: who uses the mount gets an error in the end, and nothing of it stays.
//!
//! Each test has a mount namespace of its own (of its thread), and nothing in it touches the mount
//! itself: only processes of which it knows the number do, and it waits for them no longer than
//! [`PATIENCE`].

use super::fixture::{World, program};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, mount_move,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);
const USER: u32 = 1000;
/// Where root's daemon has its control socket.
const SOCKETS: &str = "/run/uaufs";

/// A place that nothing outside sees, with two branches.
struct Lab {
    world: World,
    /// Who mounts: root, or a plain user.
    user: Option<u32>,
    children: Vec<Child>,
}

impl Lab {
    fn new(user: Option<u32>) -> Option<Self> {
        let world = World::new()?;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        fs::create_dir_all(SOCKETS).unwrap();
        mount(
            "sockets",
            SOCKETS,
            "tmpfs",
            MountFlags::empty(),
            c"mode=700",
        )
        .unwrap();
        for dir in ["b0", "b1/d", "m", "other", "run", "low", "high"] {
            world.mkdir(dir, 0o755);
        }
        world.put("b1/d/f", "lower\n");
        File::create(world.path("b1/big"))
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let lab = Self {
            world,
            user,
            children: Vec::new(),
        };
        if let Some(user) = user {
            for dir in [
                "", "b0", "b1", "b1/d", "b1/d/f", "b1/big", "m", "run", "low", "high",
            ] {
                lab.world.chown(dir, user, user);
            }
            // /dev/fuse as it is on ordinary hosts, in this namespace.
            let node = lab.path("fuse");
            let device = rustix::fs::makedev(10, 229);
            let (kind, mode) = (rustix::fs::FileType::CharacterDevice, 0o666.into());
            rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, device).unwrap();
            lab.world.chmod("fuse", 0o666);
            mount_bind(&node, "/dev/fuse").unwrap();
        }
        Some(lab)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    /// A command of the one who mounts.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let user = user.to_string();
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
                command.arg(program);
                command
            }
        };
        command
            .current_dir(self.path(""))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        command
    }

    /// Mounts in the foreground; the number of the daemon. What it says goes to `said`.
    fn serve(&mut self, options: &str, at: &str) -> i32 {
        let before = self.answering();
        let said = File::options()
            .create(true)
            .append(true)
            .open(self.path("said"))
            .unwrap();
        let mut command = self.command(program());
        let child = command
            .args(["-f", "-o", options, at])
            .stderr(said)
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        self.children.push(child);
        eventually("the mount", || self.answering() > before);
        pid
    }

    /// How many daemons have said so far that they answer.
    fn answering(&self) -> usize {
        let said = fs::read_to_string(self.path("said")).unwrap_or_default();
        said.matches("uaufs: io=").count()
    }

    fn is_mounted(&self, at: &str) -> bool {
        is_mounted(&self.path(at))
    }

    /// The control sockets.
    fn sockets(&self) -> Vec<PathBuf> {
        let place = match self.user {
            None => PathBuf::from(SOCKETS),
            Some(_) => self.path("run/uaufs"),
        };
        let entries = fs::read_dir(place).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// The errors that daemons and watchers have told.
    fn errors(&self) -> Vec<String> {
        let said = fs::read_to_string(self.path("said")).unwrap();
        let errors = said.lines().filter(|line| line.contains("error"));
        errors.map(str::to_owned).collect()
    }

    /// Starts somebody who uses the mount when told to. `prepare` and `use_it` are Python.
    fn user(&self, prepare: &str, use_it: &str) -> User {
        let script = format!(
            "import mmap, os, sys\n\
             {prepare}\n\
             print('ready', flush=True)\n\
             sys.stdin.readline()\n\
             try:\n    {use_it}\n    print('done')\n\
             except OSError as error:\n    print(os.strerror(error.errno))\n"
        );
        let mut command = self.command("/usr/bin/python3");
        command.args(["-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = child.stdout.take().unwrap();
        let mut user = User {
            child,
            said,
            text: String::new(),
        };
        user.hear(|text| text.contains("ready\n"));
        user
    }

    /// Waits for the end of a daemon and its watcher.
    fn ended(&mut self, daemon: i32, watcher: Option<i32>) -> ExitStatus {
        let at = self.children.iter().position(|c| c.id() as i32 == daemon);
        let mut child = self.children.swap_remove(at.unwrap());
        // Not reaped before: so it can be told what ended it, whatever the kernel.
        eventually("the daemon's end", || is_gone(daemon));
        eventually("the watcher's end", || watcher.is_none_or(is_gone));
        child.wait().unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        for at in ["m", "other", "high", "low"] {
            let path = self.path(at);
            while is_mounted(&path) {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW | UnmountFlags::FORCE;
                if rustix::mount::unmount(&path, flags).is_err() {
                    break;
                }
            }
        }
        for child in &mut self.children {
            let pid = child.id() as i32;
            if waited(|| is_gone(pid)) {
                let _ = child.wait();
            }
        }
    }
}

/// A process that uses the mount.
struct User {
    child: Child,
    said: ChildStdout,
    text: String,
}

impl User {
    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    fn go(&mut self) {
        self.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }

    /// Does it wait for an answer of the daemon?
    fn waits(&self) -> bool {
        let channel = fs::read_to_string(format!("/proc/{}/wchan", self.pid())).unwrap_or_default();
        // For the answer or for a page; or (D) for who holds a directory meanwhile.
        let waits = ["request_wait_answer", "fuse", "folio_wait"];
        state(self.pid()) == Some('D') || waits.iter().any(|wait| channel.contains(wait))
    }

    fn hear(&mut self, enough: impl Fn(&str) -> bool) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec {
            tv_sec: PATIENCE.as_secs() as i64,
            tv_nsec: 0,
        };
        while !enough(&self.text) {
            let ready = poll(&mut [PollFd::new(&self.said, PollFlags::IN)], Some(&limit));
            assert_eq!(ready, Ok(1), "it says nothing after {:?}", self.text);
            let mut bytes = [0; 256];
            match rustix::io::read(&self.said, &mut bytes).unwrap() {
                0 => return,
                n => self.text += &String::from_utf8_lossy(&bytes[..n]),
            }
        }
    }

    /// What came of it: an error in words, `done`, or the signal that ended it.
    fn end(mut self) -> String {
        self.hear(|_| false);
        let pid = self.pid();
        eventually("its end", || is_gone(pid));
        match self.child.wait().unwrap().signal() {
            Some(signal) => format!("signal {signal}"),
            None => self.text.trim_start_matches("ready\n").trim().to_owned(),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // One that cannot be killed is left behind: nothing here waits for it.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

fn waited(mut so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !so() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[track_caller]
fn eventually(what: &str, so: impl FnMut() -> bool) {
    assert!(waited(so), "not in time: {what}");
}

/// In the mount table of this thread's namespace.
fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mut lines = table.lines();
    lines.any(|line| line.split(' ').nth(4) == path.to_str())
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Has it ended, with all of its threads? Said of a zombie, too.
fn is_gone(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let alone = threads.count() <= 1;
    alone && matches!(state(pid), None | Some('Z' | 'X'))
}

/// Names and states of the threads of a process.
fn threads_of(pid: i32) -> Vec<(String, char)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let read = |path: PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
        Some((name.to_owned(), rest.chars().next()?))
    };
    threads
        .filter_map(|thread| read(thread.ok()?.path()))
        .collect()
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Stops a process; returns when it has stopped.
fn stop(pid: i32) {
    signal(pid, Signal::STOP);
    eventually("it stops", || state(pid) == Some('T'));
}

/// The children of a daemon: its watcher.
fn watcher(daemon: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).unwrap();
    let mut children = children.split_whitespace();
    let first = children.next()?.parse().unwrap();
    assert_eq!(children.next(), None, "one watcher");
    eventually("it has its name", || {
        fs::read_to_string(format!("/proc/{first}/comm")).unwrap() == "uaufs-watch\n"
    });
    Some(first)
}

/// Ways of using a mount that need its daemon: what is done before, and then.
const USES: &[(&str, &str, &str)] = &[
    ("a name is looked up", "", "os.stat('m/new')"),
    ("a directory is listed", "", "os.listdir('m/d')"),
    ("a file is made", "", "open('m/made', 'w')"),
    (
        "an open file is read",
        "f = os.open('m/big', os.O_RDONLY)",
        "os.pread(f, 4096, 48 << 20)",
    ),
    (
        "an open file is written",
        "f = os.open('m/written', os.O_RDWR | os.O_CREAT)",
        "os.pwrite(f, b'x' * 4096, 0); os.fsync(f)",
    ),
    (
        "a mapping is touched",
        "f = open('m/big', 'rb'); p = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)",
        "p[48 << 20]",
    ),
    (
        "the current directory is used",
        "os.chdir('m/d')",
        "os.stat('new')",
    ),
];

/// What may come of it. A mapping has no other way to say it than SIGBUS; a path leads to the directory
/// below when the mount is gone.
const ENDS: [&str; 5] = [
    "Software caused connection abort",
    "Transport endpoint is not connected",
    "signal 7",
    "No such file or directory",
    "Input/output error",
];

/// The daemon is killed; `in_flight`: while everybody waits for an answer, else just before they ask.
fn is_killed(user: Option<u32>, in_flight: bool) {
    let Some(mut lab) = Lab::new(user) else {
        return;
    };
    let options = "br=b0=rw:b1=ro,io=cache,udba=none";
    let daemon = lab.serve(options, "m");
    let watcher = watcher(daemon);
    assert_eq!(lab.sockets().len(), 1);
    let mut users: Vec<User> = USES
        .iter()
        .map(|(_, prepare, use_it)| lab.user(prepare, use_it))
        .collect();
    if in_flight {
        stop(daemon);
        for (user, (what, ..)) in users.iter_mut().zip(USES) {
            user.go();
            eventually(what, || user.waits());
        }
    }
    signal(daemon, Signal::KILL);
    if !in_flight {
        users.iter_mut().for_each(User::go);
    }
    // At once: the branch is not locked any more, and the place is free.
    eventually("the daemon is gone", || is_gone(daemon));
    let again = lab
        .command("timeout")
        .args(["-s", "KILL", "20"])
        .arg(program())
        .args(["-o", options, "m"])
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", super::fixture::text(&again));
    for (user, (what, ..)) in users.into_iter().zip(USES) {
        let end = user.end();
        // Made, or found, in the new mount.
        let fresh = !in_flight && matches!(*what, "a file is made" | "a directory is listed");
        assert!(
            ENDS.contains(&&*end) || (fresh && end == "done"),
            "{what}: {end}"
        );
        let late = !in_flight || user_is_late(what);
        assert!(late || end != "No such file or directory", "{what}: {end}");
    }
    assert_eq!(lab.ended(daemon, watcher).signal(), Some(9));
    let line = format!(
        "uaufs: error: the daemon of {} was killed by signal 9; the mount was taken away",
        lab.path("m").display()
    );
    assert_eq!(lab.errors(), [line]);
    // That of the new mount.
    assert_eq!(lab.sockets().len(), 1);
    let mut read = lab.user("", "print(open('m/d/f').read())");
    read.go();
    assert_eq!(read.end(), "lower\n\ndone");
    let umount = lab
        .command(program())
        .args(["umount", "m"])
        .status()
        .unwrap();
    assert!(umount.success());
    assert!(!lab.is_mounted("m"));
    eventually("its socket goes, too", || lab.sockets().is_empty());
}

/// Uses that begin at a path are looked up again when the answer is an error.
fn user_is_late(what: &str) -> bool {
    matches!(
        what,
        "a name is looked up" | "a directory is listed" | "a file is made"
    )
}

#[test]
fn who_waits_for_a_daemon_that_is_killed_gets_an_error_and_nothing_stays() {
    is_killed(None, true);
}

#[test]
fn who_asks_a_daemon_that_was_killed_gets_an_error_and_nothing_stays() {
    is_killed(None, false);
}

#[test]
fn who_waits_for_a_users_daemon_that_is_killed_gets_an_error_and_nothing_stays() {
    is_killed(Some(USER), true);
}

#[test]
fn who_asks_a_users_daemon_that_was_killed_gets_an_error_and_nothing_stays() {
    is_killed(Some(USER), false);
}

#[test]
fn a_mount_that_was_moved_and_one_that_was_bound_go_too() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    let daemon = lab.serve("br=b0=rw:b1=ro", "m");
    let watcher = watcher(daemon);
    mount_move(lab.path("m"), lab.path("other")).unwrap();
    mount_bind(lab.path("other/d"), lab.path("low")).unwrap();
    // One that lies on the union itself, and a stranger's.
    mount_bind(lab.path("other/d"), lab.path("other/d")).unwrap();
    mount("x", lab.path("m"), "tmpfs", MountFlags::empty(), None).unwrap();
    signal(daemon, Signal::KILL);
    lab.ended(daemon, watcher);
    let mounted = ["m", "other", "low", "other/d"].map(|at| lab.is_mounted(at));
    assert_eq!(mounted, [true, false, false, false]);
    assert_eq!(lab.errors().len(), 1);
}

#[test]
fn a_mount_that_another_one_covers_is_named() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    let daemon = lab.serve("br=b0=rw:b1=ro,io=cache", "m");
    let watcher = watcher(daemon);
    let mut user = lab.user(
        "f = os.open('m/big', os.O_RDONLY)",
        "os.pread(f, 1, 48 << 20)",
    );
    mount("x", lab.path("m"), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(lab.path("m/stranger"), "x").unwrap();
    stop(daemon);
    user.go();
    eventually("it waits", || user.waits());
    signal(daemon, Signal::KILL);
    lab.ended(daemon, watcher);
    assert!(ENDS.contains(&&*user.end()));
    assert_eq!(fs::read_to_string(lab.path("m/stranger")).unwrap(), "x");
    let errors = lab.errors();
    assert!(
        errors.len() == 1 && errors[0].contains("could not be taken away"),
        "{errors:?}"
    );
}

#[test]
fn an_orderly_end_takes_the_watcher_along_and_tells_nothing() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    for by_signal in [false, true] {
        let daemon = lab.serve("br=b0=rw:b1=ro", "m");
        let watcher = watcher(daemon).unwrap();
        if by_signal {
            signal(daemon, Signal::TERM);
        } else {
            rustix::mount::unmount(lab.path("m"), UnmountFlags::NOFOLLOW).unwrap();
        }
        // It is the daemon that waits for it.
        eventually("the daemon's end", || is_gone(daemon));
        assert_eq!(state(watcher), None);
        assert_eq!(lab.ended(daemon, None).code(), Some(0));
        assert_eq!(lab.errors(), [""; 0]);
        assert!(lab.sockets().is_empty());
    }
}

#[test]
fn a_killed_watcher_is_not_missed() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    let daemon = lab.serve("br=b0=rw:b1=ro", "m");
    let watcher = watcher(daemon).unwrap();
    // Signals that are meant for the daemon do nothing to it.
    for harmless in [Signal::TERM, Signal::INT, Signal::HUP] {
        signal(watcher, harmless);
    }
    signal(watcher, Signal::KILL);
    eventually("the watcher is killed", || is_gone(watcher));
    let mut user = lab.user("", "print(open('m/d/f').read())");
    user.go();
    assert_eq!(user.end(), "lower\n\ndone");
    rustix::mount::unmount(lab.path("m"), UnmountFlags::NOFOLLOW).unwrap();
    assert_eq!(lab.ended(daemon, Some(watcher)).code(), Some(0));
}

#[test]
fn with_nosupervise_there_is_no_watcher() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    let daemon = lab.serve("br=b0=rw:b1=ro,nosupervise", "m");
    assert_eq!(watcher(daemon), None);
    signal(daemon, Signal::KILL);
    lab.ended(daemon, None);
    assert!(lab.is_mounted("m"), "as dead mounts are");
}

#[test]
fn a_union_whose_branch_lies_on_another_outlives_that_ones_daemon() {
    let Some(mut lab) = Lab::new(None) else {
        return;
    };
    let below = lab.serve("br=b0=rw:b1=ro,io=cache", "low");
    let watcher_below = watcher(below);
    lab.world.mkdir("top", 0o755);
    let above = lab.serve("br=top=rw:low=ro,io=cache", "high");
    let watcher_above = watcher(above);
    let mut user = lab.user(
        "f = os.open('high/big', os.O_RDONLY)",
        "os.pread(f, 1, 48 << 20)",
    );
    stop(below);
    user.go();
    eventually("it waits", || user.waits());
    signal(below, Signal::KILL);
    lab.ended(below, watcher_below);
    let end = user.end();
    assert!(ENDS.contains(&&*end), "{end}");
    assert!(!lab.is_mounted("low"));
    // The other one answers, and ends as it should.
    let mut user = lab.user("", "open('high/new', 'w').write('x')");
    user.go();
    let end = user.end();
    assert!(end == "done" || ENDS.contains(&&*end), "{end}");
    rustix::mount::unmount(lab.path("high"), UnmountFlags::NOFOLLOW).unwrap();
    assert_eq!(lab.ended(above, watcher_above).code(), Some(0));
    assert_eq!(lab.errors().len(), 1);
}

/// The daemon is killed while a thread of it is in the kernel, and waits for an answer of the daemon.
fn is_stuck(user: Option<u32>) {
    let Some(mut lab) = Lab::new(user) else {
        return;
    };
    if user.is_some() {
        // As systemd has it; root needs it not.
        let at = "/sys/fs/fuse/connections";
        mount("none", at, "fusectl", MountFlags::empty(), None).unwrap();
    }
    lab.world.mkdir("b0/watched", 0o755);
    let below = lab.serve("br=b1=ro,timeout=0", "low");
    let watcher_below = watcher(below);
    // A change on b0 is told to the kernel, which waits for the directory's lock, which who looks up
    // a name holds until the only worker has answered, which waits for the stopped daemon below.
    let above = lab.serve("br=b0=rw:low=ro,udba=notify,threads=1", "high");
    let watcher_above = watcher(above);
    let mut first = lab.user("", "print(os.path.exists('high/watched/absent'))");
    first.go();
    assert_eq!(first.end(), "False\ndone");
    stop(below);
    let mut other = lab.user("", "os.stat('high/d')");
    other.go();
    eventually("the worker is busy with it", || other.waits());
    let mut user = lab.user("", "os.stat('high/watched/new')");
    user.go();
    eventually("it waits", || user.waits());
    lab.world.put("b0/watched/absent", "");
    eventually("a thread waits for a lock", || {
        threads_of(above).contains(&("notify".to_owned(), 'D'))
    });
    signal(above, Signal::KILL);
    // The worker is free to end; the thread that notifies is not.
    signal(below, Signal::CONT);
    lab.ended(above, watcher_above);
    for user in [user, other] {
        let end = user.end();
        assert!(ENDS.contains(&&*end), "{end}");
    }
    assert!(!lab.is_mounted("high"));
    signal(below, Signal::TERM);
    lab.ended(below, watcher_below);
}

#[test]
fn a_thread_of_the_daemon_that_waits_for_an_answer_of_its_own_is_freed() {
    is_stuck(None);
}

#[test]
fn a_thread_of_a_users_daemon_that_waits_for_an_answer_of_its_own_is_freed() {
    is_stuck(Some(USER));
}
