//! `ulaunch` from outside: what a container is, judged by /proc, cgroups and exit codes.
//!
//! Needs root, FUSE and a static busybox; without them each test says so and passes. Every test
//! keeps its containers in a directory of its own and leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const ULAUNCH: &str = env!("CARGO_BIN_EXE_ulaunch");
/// Longest time for one command.
const LIMIT: &str = "60";

/// A root filesystem and a place for containers, removed at the end.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// `None` where these tests cannot run.
    fn new() -> Option<Self> {
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .iter()
            .find(|path| Path::new(path).exists());
        let missing = match busybox {
            _ if !rustix::process::geteuid().is_root() => "root",
            _ if !Path::new("/dev/fuse").exists() => "/dev/fuse",
            None => "busybox (install busybox-static)",
            Some(_) => "",
        };
        if !missing.is_empty() {
            eprintln!("skipped: needs {missing}");
            return None;
        }
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = world.root();
        for dir in ["bin", "etc", "root", "tmp", "data"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        copy_program(Path::new(busybox.unwrap()), &root.join("bin/busybox"));
        let list = Command::new(root.join("bin/busybox"))
            .arg("--list")
            .output()
            .unwrap()
            .stdout;
        for name in String::from_utf8(list)
            .unwrap()
            .lines()
            .filter(|name| *name != "busybox")
        {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\ndaemon:x:1:2::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:daemon\n").unwrap();
        fs::write(root.join("etc/motd"), "hello\n").unwrap();
        Some(world)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn branch(&self) -> String {
        format!("--branch={}=ro", self.root().display())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", LIMIT, ULAUNCH]);
        command.arg("--root").arg(self.dir.path().join("store"));
        command.arg("--state").arg(self.dir.path().join("state"));
        command.stdin(Stdio::null());
        command
    }

    fn ulaunch(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Runs a shell script in a container on the union.
    fn run(&self, options: &[&str], script: &str) -> Output {
        let branch = self.branch();
        let mut args = vec!["run", "--rm", &branch];
        args.extend(options);
        args.extend(["--", "sh", "-c", script]);
        self.ulaunch(&args)
    }

    fn inspect(&self, name: &str) -> serde_json::Value {
        let output = self.ulaunch(&["inspect", name]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    }

    /// Starts a container in the background; returns the launcher.
    fn spawn(&self, options: &[&str], script: &str) -> Child {
        // Not below timeout(1): the tests signal the launcher itself.
        let mut command = Command::new(ULAUNCH);
        command.arg("--root").arg(self.dir.path().join("store"));
        command.arg("--state").arg(self.dir.path().join("state"));
        command
            .arg("run")
            .arg(self.branch())
            .args(options)
            .args(["--", "sh", "-c", script]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Waits until the container called `name` runs; its record.
    fn running(&self, name: &str) -> serde_json::Value {
        let mut record = serde_json::Value::Null;
        wait_for("the container runs", || {
            let shown = self.ulaunch(&["inspect", name]);
            record = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            record["status"] == "running"
        });
        record
    }

    /// Nothing of any container is left in the store.
    fn assert_empty(&self) {
        for dir in ["store/containers", "state"] {
            let names: Vec<_> = fs::read_dir(self.dir.path().join(dir))
                .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
                .unwrap_or_default();
            let left: Vec<_> = names.iter().filter(|name| *name != ".lock").collect();
            assert!(left.is_empty(), "{dir}: {left:?}");
        }
    }
}

/// Copies by another process: a descriptor for writing that was open here could be inherited by
/// a command that another test starts just then, and the program would be "busy".
fn copy_program(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(error)
    )
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "not within 15 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pid_of(record: &serde_json::Value, process: &str) -> i32 {
    record[process]["pid"].as_i64().unwrap() as i32
}

fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z")
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The command of a container: the one child of its init.
fn payload(record: &serde_json::Value) -> i32 {
    let init = pid_of(record, "init");
    let children = format!("/proc/{init}/task/{init}/children");
    let mut child = None;
    wait_for("init has a child", || {
        let list = fs::read_to_string(&children).unwrap_or_default();
        child = list
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    child.unwrap()
}

fn status_field(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let Some(world) = World::new() else { return };
    for (args, expected) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 42"], 42),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
        (&["--no-such-option", "true"], 125),
        (&["--workdir", "/nowhere", "true"], 125),
        (&["--user", "nobody-here", "true"], 125),
        (&["--user", "1000:", "true"], 125),
        (&["--pids-limit", "0", "true"], 125),
    ] {
        let branch = world.branch();
        let output = world.ulaunch(&[&["run", "--rm", &branch], args].concat());
        assert_eq!(code(&output), expected, "{args:?}: {}", text(&output));
        if (125..128).contains(&expected) {
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(
                message.starts_with("ulaunch: ") && message.lines().count() == 1,
                "{message}"
            );
        }
    }
    world.assert_empty();
}

#[test]
fn the_root_is_a_union_and_changes_stay_in_the_layer() {
    let Some(world) = World::new() else { return };
    let branch = world.branch();
    let script = "grep ' / ' /proc/mounts; echo new > /etc/new; rm /etc/motd; rm -r /data; mkdir /data; echo x >> /etc/group";
    let output = world.ulaunch(&["run", "--name", "c", &branch, "--", "sh", "-c", script]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(out(&output).contains("fuse.uaufs"));
    assert_eq!(
        fs::read_to_string(world.root().join("etc/motd")).unwrap(),
        "hello\n"
    );
    let diff = out(&world.ulaunch(&["diff", "c"]));
    for line in [
        "A /etc/new",
        "D /etc/motd",
        "C /etc/group",
        "C /etc",
        "C /data",
    ] {
        assert!(diff.lines().any(|l| l == line), "{line} in {diff}");
    }
    assert_eq!(code(&world.ulaunch(&["rm", "c"])), 0);
    world.assert_empty();
}

#[test]
fn changes_of_the_branches_are_noticed_as_asked() {
    let Some(world) = World::new() else { return };
    for (udba, listens) in [("none", false), ("notify", true)] {
        let option = format!("--udba={udba}");
        let script = "cat /etc/motd; until grep -q changed /etc/motd; do sleep 0.05; done";
        let mut launcher = world.spawn(&["--rm", "--name", udba, &option], script);
        let daemon = pid_of(&world.running(udba), "daemon");
        let listening = || {
            let open = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap();
            let links = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            links
                .into_iter()
                .any(|link| link.ends_with("anon_inode:inotify"))
        };
        if listens {
            wait_for("the branches are watched", listening);
            fs::write(world.root().join("etc/motd"), "changed\n").unwrap();
            assert!(launcher.wait().unwrap().success());
        } else {
            assert!(!listening(), "{udba}");
            assert_eq!(code(&world.ulaunch(&["kill", udba])), 0);
            launcher.wait().unwrap();
        }
    }
}

#[test]
fn a_container_is_confined() {
    let Some(world) = World::new() else { return };
    let mut launcher = world.spawn(&["--rm", "--name", "c"], "exec sleep 60");
    let record = world.running("c");
    let pid = payload(&record);
    wait_for("the command was executed", || {
        status_field(pid, "Name") == "sleep"
    });
    for (field, value) in [
        ("CapEff", "00000000a80425fb"),
        ("CapPrm", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status_field(pid, field), value, "{field}");
    }
    for namespace in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(fds, 3, "only standard input, output and error");
    // The program behind PID 1 is a sealed copy.
    let init = pid_of(&record, "init");
    assert!(
        fs::read_link(format!("/proc/{init}/exe"))
            .unwrap()
            .to_string_lossy()
            .contains("memfd:")
    );
    let exe = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{init}/exe"));
    assert!(exe.is_err());
    // The daemon is not in the container's namespaces.
    let daemon = pid_of(&record, "daemon");
    let pid_namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_ne!(pid_namespace(daemon), pid_namespace(pid));
    kill(init);
    launcher.wait().unwrap();
    wait_for("the daemon ends by itself", || is_gone(daemon));
    world.assert_empty();
}

#[test]
fn descriptors_of_the_caller_stay_out() {
    let Some(world) = World::new() else { return };
    let inherited: Vec<_> = (0..20).map(|_| fs::File::open("/").unwrap()).collect();
    for file in &inherited {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    }
    let output = world.run(&[], "ls /proc/self/fd | wc -l");
    // Standard streams and the directory being listed.
    assert_eq!(out(&output).trim(), "4", "{}", text(&output));
    for fd in 3..24 {
        let output = world.run(&["--workdir", &format!("/proc/self/fd/{fd}")], "true");
        assert_eq!(code(&output), 125, "{fd}: {}", text(&output));
    }
}

#[test]
fn system_calls_and_paths_that_could_reach_the_host_are_closed() {
    let Some(world) = World::new() else { return };
    let script = "
        cat /proc/kcore /proc/keys /proc/timer_list | wc -c
        ls /sys/firmware | wc -l
        for try in 'mount -t tmpfs x /tmp' 'unshare -U true' 'unshare -m true' 'mount -o remount,rw /sys' \
            'echo 1 > /proc/sys/kernel/panic' 'echo h > /proc/sysrq-trigger' 'hostname other' \
            'mkdir /sys/fs/cgroup/x' 'chroot /proc/1/root true' 'cat /proc/1/environ'; do
            if sh -c \"$try\" 2>/dev/null; then echo \"allowed: $try\"; fi
        done
        mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk >/dev/null 2>&1 && echo 'allowed: disk'
        mknod /dev/disk b 254 0 && head -c 1 /dev/disk >/dev/null 2>&1 && echo 'allowed: /dev/disk'
        echo written > /dev/null && head -c 2 /dev/zero | wc -c";
    let output = world.run(&[], script);
    assert_eq!(
        out(&output).split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "2"],
        "{}",
        text(&output)
    );
}

#[test]
fn hostile_root_filesystems_are_refused() {
    let Some(world) = World::new() else { return };
    let canary = world.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    for name in ["proc", "sys", "dev"] {
        let link = world.root().join(name);
        symlink("../canary", &link).unwrap();
        let root = world.root();
        let output = world.ulaunch(&["run", "--rm", "--rootfs", root.to_str().unwrap(), "true"]);
        assert_eq!(code(&output), 125, "{name}: {}", text(&output));
        fs::remove_file(link).unwrap();
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
    let volume = |target: &str| format!("--volume={}:{target}", canary.display());
    for target in ["/proc", "/proc/sys", "/", "/../x", "relative"] {
        let output = world.run(&[&volume(target)], "true");
        assert_eq!(code(&output), 125, "{target}: {}", text(&output));
    }
    // A link in the root leads nowhere but inside.
    fs::create_dir(world.root().join("canary")).unwrap();
    symlink("../../../../../../canary", world.root().join("data/link")).unwrap();
    let output = world.run(&[&volume("/data/link/sub")], "ls -d /canary/sub");
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
    world.assert_empty();
}

#[test]
fn a_plain_directory_as_root() {
    let Some(world) = World::new() else { return };
    let root = world.root();
    let root = root.to_str().unwrap();
    let script =
        "touch /made; ls -ln /etc/motd /made; mknod /tmp/disk b 254 0; head -c 1 /tmp/disk";
    let output = world.ulaunch(&["run", "--rm", "--rootfs", root, "sh", "-c", script]);
    assert!(
        code(&output) != 0,
        "no device is reachable: {}",
        text(&output)
    );
    // The same ids inside, in a user namespace of other ids.
    let map = [
        "run",
        "--rm",
        "--uidmap",
        "0:200000:65536",
        "--rootfs",
        root,
    ];
    let script = "ls -ln /etc/motd /made; touch /again; cat /proc/self/uid_map";
    let output = world.ulaunch(&[&map[..], &["sh", "-c", script]].concat());
    let owners = out(&output)
        .lines()
        .filter(|line| line.contains(" 0        0 "))
        .count();
    assert_eq!(owners, 2, "{}", text(&output));
    assert_eq!(fs::metadata(world.root().join("again")).unwrap().uid(), 0);
    world.assert_empty();
}

#[test]
fn volumes_tmpfs_and_read_only() {
    let Some(world) = World::new() else { return };
    let shared = world.dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "outside").unwrap();
    let writable = format!("--volume={}:/mnt/w", shared.display());
    let readonly = format!("--volume={}:/mnt/r:ro", shared.display());
    let file = format!("--volume={}:/etc/motd:ro", shared.join("in").display());
    let script = "cat /mnt/r/in /etc/motd; echo inside > /mnt/w/out
        touch /mnt/r/x 2>/dev/null && echo bad1; touch /x 2>/dev/null && echo bad2
        touch /scratch/x && echo good";
    let options = [
        &*writable,
        &readonly,
        &file,
        "--tmpfs",
        "/scratch",
        "--read-only",
    ];
    let output = world.run(&options, script);
    assert_eq!(out(&output), "outsideoutsidegood\n", "{}", text(&output));
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "inside\n");
}

#[test]
fn memory_beyond_the_limit_kills_and_says_so() {
    let Some(world) = World::new() else { return };
    let output = world.run(
        &["--memory", "64M"],
        "x=$(head -c 200m /dev/zero | tr '\\0' x)",
    );
    assert_eq!(code(&output), 137, "{}", text(&output));
    assert!(
        text(&output).contains("killed: memory limit 64M exceeded"),
        "{}",
        text(&output)
    );
    world.assert_empty();
}

#[test]
fn tasks_and_cpu_are_limited_and_groups_removed() {
    let Some(world) = World::new() else { return };
    let output = world.run(
        &["--pids-limit", "10"],
        "for i in $(seq 40); do sleep 1 & done; wait",
    );
    assert!(text(&output).contains("can't fork"), "{}", text(&output));
    // Half of a CPU for a second of wall time is about half a second of CPU time.
    let start = Instant::now();
    let output = world.run(&["--cpus", "0.5"], "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; cat /proc/self/stat | cut -d' ' -f16; times");
    assert_eq!(code(&output), 0, "{}", text(&output));
    let wall = start.elapsed().as_secs_f64();
    let times = out(&output);
    let used: f64 = times
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(seconds)
        .next()
        .unwrap_or(0.0);
    assert!(used < 0.75 * wall, "{used} s of CPU in {wall} s");
    let mut launcher = world.spawn(
        &[
            "--rm",
            "--name",
            "g",
            "--memory",
            "64M",
            "--cpus",
            "0.25",
            "--cpuset-cpus",
            "0",
            "--pids-limit",
            "20",
        ],
        "exec sleep 60",
    );
    let record = world.running("g");
    let groups: Vec<PathBuf> = record["cgroups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dir| dir.as_str().unwrap().into())
        .collect();
    assert!(
        !groups.is_empty() && groups.iter().all(|dir| dir.is_dir()),
        "{groups:?}"
    );
    let pid = payload(&record);
    let joined = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(joined.matches("ulaunch-").count() >= 1, "{joined}");
    assert_eq!(status_field(pid, "Cpus_allowed_list"), "0");
    kill(pid_of(&record, "init"));
    launcher.wait().unwrap();
    assert!(groups.iter().all(|dir| !dir.exists()), "{groups:?}");
    world.assert_empty();
}

/// `0m1.25s` as seconds.
fn seconds(text: &str) -> Option<f64> {
    let (minutes, rest) = text.split_once('m')?;
    Some(minutes.parse::<f64>().ok()? * 60.0 + rest.trim_end_matches('s').parse::<f64>().ok()?)
}

#[test]
fn signals_reach_the_command_and_orphans_are_reaped() {
    let Some(world) = World::new() else { return };
    let launcher = world.spawn(
        &["--rm", "--name", "s"],
        "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done",
    );
    world.running("s");
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_raw(launcher.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(launcher.wait_with_output().unwrap().status.code(), Some(7));
    let script =
        "for i in 1 2 3 4 5; do sh -c 'sleep 0.1 & exit' ; done; sleep 0.6; ps | grep -c '[Zz] '";
    let output = world.run(&[], script);
    assert_eq!(out(&output).trim(), "0", "{}", text(&output));
}

#[test]
fn a_terminal_of_its_own() {
    let Some(world) = World::new() else { return };
    let inner = format!(
        "{ULAUNCH} --root {0}/store --state {0}/state run --rm -it {1} -- sh -c 'tty; stty size; ls -l /dev/console; set -m; sleep 1 & kill %1; echo jobs'",
        world.dir.path().display(),
        world.branch()
    );
    let script = format!("stty rows 33 cols 101; {inner}");
    let output = Command::new("timeout")
        .args([LIMIT, "script", "-qec", &script, "/dev/null"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = text(&output);
    for part in ["/dev/pts/0", "33 101", "/dev/console", "jobs"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(!shown.contains("can't access tty"), "{shown}");
}

#[test]
fn a_dead_daemon_ends_the_container_and_is_named() {
    let Some(world) = World::new() else { return };
    let launcher = world.spawn(&["--rm", "--name", "d", "--memory", "64M"], "exec sleep 60");
    let record = world.running("d");
    kill(pid_of(&record, "daemon"));
    let output = launcher.wait_with_output().unwrap();
    assert_eq!(code(&output), 125);
    assert!(
        text(&output).contains("union daemon died (signal 9)"),
        "{}",
        text(&output)
    );
    wait_for("init is gone", || is_gone(pid_of(&record, "init")));
    world.assert_empty();
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let mut launcher = world.spawn(&["--rm", "--name", "l", "--memory", "64M"], "exec sleep 60");
    let record = world.running("l");
    let groups: Vec<PathBuf> = record["cgroups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|dir| dir.as_str().unwrap().into())
        .collect();
    launcher.kill().unwrap();
    assert_eq!(launcher.wait().unwrap().signal(), Some(9));
    for process in ["init", "daemon"] {
        wait_for(process, || is_gone(pid_of(&record, process)));
    }
    wait_for("the groups are gone", || {
        groups.iter().all(|dir| !dir.exists())
    });
    wait_for("the record is gone", || {
        !world
            .dir
            .path()
            .join("store/containers")
            .join(record["id"].as_str().unwrap())
            .exists()
    });
    world.assert_empty();
}

#[test]
fn the_life_of_a_detached_container() {
    let Some(world) = World::new() else { return };
    let branch = world.branch();
    let script = "trap 'echo bye; exit 5' TERM; echo started; while :; do sleep 0.05; done";
    let output = world.ulaunch(&[
        "run", "-d", "--name", "web", &branch, "--", "sh", "-c", script,
    ]);
    let id = out(&output).trim().to_owned();
    assert_eq!((code(&output), id.len()), (0, 12), "{}", text(&output));
    let again = world.ulaunch(&["run", "-d", "--name", "web", &branch, "true"]);
    assert_eq!(code(&again), 125, "names are unique");
    wait_for("its output", || {
        out(&world.ulaunch(&["logs", "web"])).contains("started")
    });
    assert!(out(&world.ulaunch(&["ps"])).contains("web"));
    assert_eq!(code(&world.ulaunch(&["rm", "web"])), 125, "it is running");
    assert_eq!(code(&world.ulaunch(&["stop", "-t", "5", &id])), 0);
    assert_eq!(out(&world.ulaunch(&["wait", "web"])).trim(), "5");
    assert!(out(&world.ulaunch(&["logs", "web"])).contains("bye"));
    assert!(
        !out(&world.ulaunch(&["ps"])).contains("web")
            && out(&world.ulaunch(&["ps", "-a"])).contains("web")
    );
    assert_eq!(code(&world.ulaunch(&["rm", "web"])), 0);
    world.assert_empty();
}

#[test]
fn users_groups_and_environment() {
    let Some(world) = World::new() else { return };
    let output = world.run(
        &["--user", "daemon", "-e", "A=b c", "--hostname", "box"],
        "id -u; id -g; id -G; echo $A $HOME; hostname; grep CapEff /proc/self/status",
    );
    let shown = out(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(
        lines[..5],
        ["1", "2", "2 5", "b c /", "box"],
        "{}",
        text(&output)
    );
    assert!(lines[5].ends_with("0000000000000000"));
    let output = world.run(&[], "env | cut -d= -f1 | sort | tr '\\n' ' '");
    assert!(!out(&output).contains("CARGO"), "{}", text(&output));
}

#[test]
fn root_can_map_a_container_to_other_ids() {
    let Some(world) = World::new() else { return };
    let branch = world.branch();
    let map = "0:200000:65536";
    let script = "cat /proc/self/uid_map; id -u; touch /tmp/f && chown 5:7 /tmp/f && ls -ln /tmp/f; ls -ln /etc/motd; sleep 0.2";
    let output = world.ulaunch(&[
        "run", "--name", "m", "--uidmap", map, &branch, "--", "sh", "-c", script,
    ]);
    let shown = out(&output);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(shown.contains("200000"), "{shown}");
    let owners: Vec<_> = shown
        .lines()
        .filter(|l| l.starts_with("-rw"))
        .map(|l| {
            l.split_whitespace()
                .skip(2)
                .take(2)
                .collect::<Vec<_>>()
                .join(":")
        })
        .collect();
    assert_eq!(owners, ["5:7", "0:0"], "{shown}");
    let layer = world.inspect("m")["layer"].as_str().unwrap().to_owned();
    let file = fs::metadata(Path::new(&layer).join("tmp/f")).unwrap();
    assert_eq!(
        (file.uid(), file.gid()),
        (5, 7),
        "the layer holds the container's ids"
    );
    world.ulaunch(&["rm", "m"]);
    world.assert_empty();
}

#[test]
fn a_container_in_a_container() {
    let Some(world) = World::new() else { return };
    let bin = format!(
        "--volume={}:/mnt/bin:ro",
        Path::new(ULAUNCH).parent().unwrap().display()
    );
    let inner = "/mnt/bin/ulaunch run --rm --branch /=ro -- sh -c 'echo inner $$; echo x > /etc/inner; cat /etc/inner'";
    let output = world.ulaunch(&[
        "run", "--rm", "--nest", "--branch", "/=ro", &bin, "--", "sh", "-c", inner,
    ]);
    assert_eq!(code(&output), 0, "{}", text(&output));
    assert!(out(&output).contains("inner 2\nx\n"), "{}", text(&output));
    assert!(!Path::new("/etc/inner").exists());
    // Root of the host, capabilities or not, owns its settings.
    let nest = ["run", "--rm", "--nest", "--branch", "/=ro", &bin];
    let settings = "test -w /proc/sys/kernel/core_pattern || test -w /proc/sysrq-trigger";
    let output = world.ulaunch(&[&nest[..], &["sh", "-c", settings]].concat());
    assert_eq!(code(&output), 1, "{}", text(&output));
    // Its limits lie above the groups that it can change.
    let limits = "echo max > /sys/fs/cgroup/pids/pids.max; for i in $(seq 40); do sleep 1 & done";
    let limited = [&nest[..], &["--pids-limit", "20", "sh", "-c", limits]].concat();
    let output = world.ulaunch(&limited);
    assert!(
        code(&output) != 0 && text(&output).to_lowercase().contains("fork"),
        "{}",
        text(&output)
    );
    // With ids of its own it does not, and gets a /proc of its own.
    let _fuse = OpenFuse::new();
    let mapped = [&nest[..], &["--uidmap", "0:200000:65536"]].concat();
    let output = world.ulaunch(&[&mapped[..], &["sh", "-c", settings]].concat());
    assert_eq!(code(&output), 1, "{}", text(&output));
    let inner = "/mnt/bin/ulaunch run --rm --branch /=ro -- sh -c 'ls -d /proc/[0-9]* | wc -l'";
    let output = world.ulaunch(&[&mapped[..], &["sh", "-c", inner]].concat());
    assert!(
        out(&output).trim().len() == 1 && code(&output) == 0,
        "{}",
        text(&output)
    );
    world.assert_empty();
}

#[test]
fn what_the_caller_is_like_changes_nothing() {
    let Some(world) = World::new() else { return };
    let run = |around: &str, inner: &str| {
        let dir = world.dir.path().display();
        let script = format!(
            "{around} {ULAUNCH} --root {dir}/store --state {dir}/state run --rm {} -- sh -c '{inner}'",
            world.branch()
        );
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "20", "sh", "-c", &script]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    for (around, inner, expected) in [
        ("trap \"\" CHLD; exec", "true; exit 3", 3),
        ("umask 077; exec", "exit $(umask)", 22),
        ("exec >&- 2>&-; exec", "echo x", 0),
        // Deeper than there are descriptors, and not to be entered.
        (
            "ulimit -n 100; exec",
            "for i in $(seq 300); do mkdir d; cd d; done; chmod 0 .",
            0,
        ),
    ] {
        let output = run(around, inner);
        assert_eq!(code(&output), expected, "{around}: {}", text(&output));
    }
    // Nobody reads the terminal any more: the command is hung up.
    let dir = world.dir.path().display();
    let script = format!(
        "{ULAUNCH} --root {dir}/store --state {dir}/state run --rm -t {} -- yes | head -n 1",
        world.branch()
    );
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "20", "sh", "-c", &script]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output));
    // Messages stay one line, whatever is in them.
    let long = format!("/a\nb\x1b[31m{}", "x".repeat(40_000));
    let output = world.ulaunch(&["run", "--rm", "--rootfs", &long, "true"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.lines().count() == 1 && !message.contains('\x1b') && message.len() < 4096);
    world.assert_empty();
}

/// /dev/fuse is open to everybody while one of these lives, as udev leaves it on ordinary hosts.
struct OpenFuse;

/// How many there are, and the mode to go back to. Tests run side by side.
static OPEN_FUSE: std::sync::Mutex<(u32, u32)> = std::sync::Mutex::new((0, 0));

impl OpenFuse {
    fn new() -> Self {
        let mut open = OPEN_FUSE.lock().unwrap();
        if open.0 == 0 {
            open.1 = fs::metadata("/dev/fuse").unwrap().mode() & 0o777;
            fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(0o666)).unwrap();
        }
        open.0 += 1;
        Self
    }
}

impl Drop for OpenFuse {
    fn drop(&mut self) {
        let mut open = OPEN_FUSE.lock().unwrap();
        open.0 -= 1;
        if open.0 == 0 {
            let _ = fs::set_permissions("/dev/fuse", fs::Permissions::from_mode(open.1));
        }
    }
}

/// A user that exists for one test.
struct TempUser {
    name: String,
    _fuse: OpenFuse,
}

impl TempUser {
    fn new(name: &str) -> Self {
        let status = Command::new("useradd")
            .args(["-m", "-s", "/bin/sh", name])
            .status()
            .unwrap();
        assert!(status.success());
        Self {
            name: name.into(),
            _fuse: OpenFuse::new(),
        }
    }

    /// Gives or takes subordinate ids.
    fn set_range(&self, range: Option<&str>) {
        for path in ["/etc/subuid", "/etc/subgid"] {
            let file = fs::read_to_string(path).unwrap_or_default();
            let mut lines: Vec<String> = file
                .lines()
                .filter(|line| !line.starts_with(&format!("{}:", self.name)))
                .map(str::to_owned)
                .collect();
            lines.extend(range.map(|range| format!("{}:{range}", self.name)));
            fs::write(
                path,
                lines
                    .iter()
                    .map(|line| format!("{line}\n"))
                    .collect::<String>(),
            )
            .unwrap();
        }
    }

    fn sh(&self, script: &str) -> Output {
        Command::new("timeout")
            .args(["-k", "5", LIMIT, "su", &self.name, "-c", script])
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for TempUser {
    fn drop(&mut self) {
        self.set_range(None);
        let _ = Command::new("userdel")
            .args(["-r", &self.name])
            .stderr(Stdio::null())
            .status();
    }
}

#[test]
fn a_plain_user() {
    let Some(world) = World::new() else { return };
    if !Path::new("/usr/bin/newuidmap").exists() {
        eprintln!("skipped: needs newuidmap (install uidmap)");
        return;
    }
    let user = TempUser::new("ulaunch-test");
    let program = world.dir.path().join("ulaunch");
    copy_program(Path::new(ULAUNCH), &program);
    let ulaunch = format!("{} --root ~/data --state ~/state", program.display());
    let branch = world.branch();

    user.set_range(Some("300000:65536"));
    let script = "cat /proc/self/uid_map; touch /tmp/f; chown 5:7 /tmp/f; ls -ln /tmp/f; mkdir -m 700 /tmp/p; chown 9 /tmp/p; rm /etc/motd; exit 7";
    let output = user.sh(&format!("{ulaunch} run --name r {branch} -- sh -c '{script}'; echo code $?; {ulaunch} diff r; {ulaunch} rm r; ls -A ~/data/containers"));
    let shown = text(&output);
    for part in ["300000", " 5        7", "code 7", "A /tmp/p", "D /etc/motd"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    assert!(
        shown.trim_end().ends_with(".lock"),
        "nothing is left: {shown}"
    );

    let nested = format!(
        "--volume={}:/mnt/ulaunch:ro --volume=/lib:/lib:ro --volume=/lib64:/lib64:ro",
        program.display()
    );
    let output = user.sh(&format!("{ulaunch} run --rm --nest {nested} {branch} -- /mnt/ulaunch run --rm --rootfs / -- sh -c 'echo inner $(id -u)'"));
    assert!(text(&output).contains("inner 0"), "{}", text(&output));

    user.set_range(None);
    let output = user.sh(&format!("{ulaunch} run --rm {branch} -- sh -c 'cat /proc/self/uid_map; ls -ln /etc/motd; touch /f && echo made; grep -h . /proc/self/setgroups'; {ulaunch} run --rm -m 64M {branch} true; echo code $?; {ulaunch} run --rm --best-effort -m 64M {branch} true; echo code $?"));
    let shown = text(&output);
    for part in ["made", "deny", " 0        0 ", "code 125", "code 0"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}
