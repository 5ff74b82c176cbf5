//! A root filesystem for containers, the commands about them, and what /proc tells of their processes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const ULAUNCH: &str = env!("CARGO_BIN_EXE_ulaunch");
/// Longest time for one command.
pub const LIMIT: &str = "60";

/// A root filesystem and a place for containers, removed at the end.
pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    /// `None` where these tests cannot run.
    pub fn new() -> Option<Self> {
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

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub fn branch(&self) -> String {
        format!("--branch={}=ro", self.root().display())
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", LIMIT, ULAUNCH]);
        command.arg("--root").arg(self.dir.path().join("store"));
        command.arg("--state").arg(self.dir.path().join("state"));
        command.stdin(Stdio::null());
        command
    }

    pub fn ulaunch(&self, args: &[&str]) -> Output {
        self.command().args(args).output().unwrap()
    }

    /// Runs a shell script in a container on the union.
    pub fn run(&self, options: &[&str], script: &str) -> Output {
        let branch = self.branch();
        let mut args = vec!["run", "--rm", &branch];
        args.extend(options);
        args.extend(["--", "sh", "-c", script]);
        self.ulaunch(&args)
    }

    pub fn inspect(&self, name: &str) -> serde_json::Value {
        let output = self.ulaunch(&["inspect", name]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)))
    }

    /// Starts a container in the background; returns the launcher.
    pub fn spawn(&self, options: &[&str], script: &str) -> Child {
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
    pub fn running(&self, name: &str) -> serde_json::Value {
        let mut record = serde_json::Value::Null;
        wait_for("the container runs", || {
            let shown = self.ulaunch(&["inspect", name]);
            record = serde_json::from_slice(&shown.stdout).unwrap_or_default();
            record["status"] == "running"
        });
        record
    }

    /// Nothing of any container is left in the store.
    pub fn assert_empty(&self) {
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
pub fn copy_program(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

pub fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(error)
    )
}

pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

#[track_caller]
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "not within 15 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn pid_of(record: &serde_json::Value, process: &str) -> i32 {
    record[process]["pid"].as_i64().unwrap() as i32
}

pub fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z")
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The command of a container: the one child of its init.
pub fn payload(record: &serde_json::Value) -> i32 {
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

pub fn status_field(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

/// The cgroup directories that the record of a container names.
pub fn cgroups(record: &serde_json::Value) -> Vec<PathBuf> {
    let listed = record["cgroups"].as_array().unwrap();
    listed
        .iter()
        .map(|dir| dir.as_str().unwrap().into())
        .collect()
}
