//! Real mounts: the command's life in the foreground and background, and the library's entry
//! points. Each test passes over itself without root or /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::mount::{MoveMountFlags, move_mount};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use unionfs::fuse::mount::open_device;
use unionfs::fuse::notify::effects;
use unionfs::fuse::{IoPlan, MountRequest, ServeConfig, ServeEnd, mount_detached, serve, unmount};
use unionfs::spec::{BranchPerm, BranchSpec, Grammar, MountFlags, MountSpec, Options};
use unionfs::types::{Effect, NodeId};
use unionfs::union::Union;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A scratch directory with `rw`, `ro` (holding `file`) and a mount point `m`; unmounts when
/// dropped.
struct Scratch(tempfile::TempDir);

impl Scratch {
    /// `None` where nothing can be mounted.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || open_device().is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for name in ["rw", "ro", "m"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("ro/file"), "lower\n").unwrap();
        Some(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A served mount of which the caller has the process.
    fn in_foreground(&self, options: &str) -> Child {
        let child = self
            .command(&["-f", "-o", options, "m"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the mount", || self.path("m/file").exists());
        child
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uaufs"));
        command
            .current_dir(self.0.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Unmounts by the command. Tries again when busy: a process that another test is just starting
    /// shares our open files for a moment.
    fn umount(&self) {
        eventually("unmounting", || self.run(&["umount", "m"]).status.success());
        assert!(!self.mounted());
    }

    fn mounted(&self) -> bool {
        is_mounted(&self.path("m"))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: most tests have unmounted already.
        while self.mounted() && unmount(&self.path("m"), true).is_ok() {}
    }
}

fn is_mounted(path: &Path) -> bool {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().any(|line| {
        line.split(' ')
            .nth(1)
            .is_some_and(|at| Path::new(at) == path)
    })
}

/// Waits until something is so.
fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn stop(child: &mut Child, signal: Signal) -> i32 {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let mut code = None;
    eventually("the end of the process", || {
        code = child.try_wait().unwrap();
        code.is_some()
    });
    code.and_then(|status| status.code()).expect("an exit code")
}

#[test]
fn the_command_returns_when_the_mount_is_live() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    // Standard error is a pipe here, and `output` waits for its end, as container engines do.
    let output = scratch.run(&["-o", "br=rw=rw:ro=ro", "m"]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(
        fs::read_to_string(scratch.path("m/file")).unwrap(),
        "lower\n"
    );
    scratch.umount();
}

#[test]
fn failures_are_one_line_and_leave_nothing() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let table: [(&[&str], &str); 3] = [
        (&["-o", "br=rw=rw", "nowhere"], "(ENOENT)"),
        (&["-o", "br=rw=rw", "ro/file"], "(ENOTDIR)"),
        (&["-o", "br=missing=rw", "m"], "missing"),
    ];
    for (args, expected) in table {
        let output = scratch.run(args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
        assert!(
            message.starts_with("uaufs: ") && message.contains(expected),
            "{message}"
        );
        assert!(!scratch.mounted());
    }
}

#[test]
fn signals_end_the_foreground() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut child = scratch.in_foreground("br=rw=rw:ro=ro");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
        assert!(scratch.path("m/file").exists(), "SIGHUP is ignored");
        assert_eq!(stop(&mut child, signal), 0);
        assert!(!scratch.mounted());
    }
}

#[test]
fn a_busy_mount_is_served_until_its_last_user_is_gone() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let mut child = scratch.in_foreground("br=rw=rw:ro=ro");
    let mut file = fs::File::open(scratch.path("m/file")).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    eventually("the mount is out of sight", || !scratch.mounted());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower\n");
    drop(file);
    eventually("the end of the process", || {
        child.try_wait().unwrap().is_some()
    });
}

#[test]
fn a_dead_mount_is_named_and_can_be_unmounted() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let mut child = scratch.in_foreground("br=rw=rw:ro=ro,nosupervise");
    child.kill().unwrap();
    child.wait().unwrap();
    let output = scratch.run(&["-o", "br=rw=rw:ro=ro", "m"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.trim_end().ends_with("(ENOTCONN)"), "{message}");
    scratch.umount();
}

#[test]
fn no_way_of_data_writes_to_a_lower_file() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    for mode in [
        "io=passthrough",
        "io=cache",
        "io=direct",
        "udba=none,open=none",
    ] {
        let options = format!("br=rw=rw:ro=ro,{mode}");
        assert!(
            scratch.run(&["-o", &options, "m"]).status.success(),
            "{mode}"
        );
        let path = scratch.path("m/file");
        let mut reader = fs::File::open(&path).unwrap();
        let mut writer = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        writer.write_all(b"UPPER").unwrap();
        // A second one, when the data has moved to the writable branch.
        let mut second = fs::OpenOptions::new().append(true).open(&path).unwrap();
        second.write_all(b"more\n").unwrap();
        for file in [&mut reader, &mut writer] {
            let mut text = String::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "UPPER\nmore\n", "{mode}");
        }
        drop((reader, writer, second));
        // With no open left, the next one may be a passthrough one.
        let mut third = fs::OpenOptions::new().write(true).open(&path).unwrap();
        third.write_all(b"THIRD").unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "THIRD\nmore\n",
            "{mode}"
        );
        drop(third);
        scratch.umount();
        assert_eq!(
            fs::read_to_string(scratch.path("ro/file")).unwrap(),
            "lower\n",
            "{mode}"
        );
        assert_eq!(
            fs::read_to_string(scratch.path("rw/file")).unwrap(),
            "THIRD\nmore\n"
        );
        fs::remove_file(scratch.path("rw/file")).unwrap();
    }
}

#[test]
fn a_second_daemon_does_not_write_to_the_same_branch() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    for name in ["work", "elsewhere", "m2"] {
        fs::create_dir(scratch.path(name)).unwrap();
    }
    let aufs = "br=rw=rw:ro=ro";
    let overlay = "lowerdir=ro,upperdir=rw,workdir=work";
    let elsewhere = "lowerdir=ro,upperdir=rw,workdir=elsewhere";
    for (n, (first, second)) in [
        (aufs, aufs),
        (overlay, overlay),
        (overlay, elsewhere),
        (aufs, elsewhere),
    ]
    .into_iter()
    .enumerate()
    {
        let mounted = scratch.run(&["-o", first, "m"]);
        assert!(mounted.status.success(), "{first}: {mounted:?}");
        fs::write(scratch.path("m/file"), n.to_string()).unwrap();
        let refused = scratch.run(&["-o", second, "m2"]);
        let message = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(
            refused.status.code(),
            Some(1),
            "{first}, {second}: {message}"
        );
        assert!(
            message.contains("another union already writes to this branch")
                && message.lines().count() == 1,
            "{message}"
        );
        assert!(!is_mounted(&scratch.path("m2")));
        // The first is as it was, and a reader is welcome.
        fs::write(scratch.path("m/file2"), "more").unwrap();
        let reader = scratch.run(&["-o", "br=rw=ro:ro=ro,udba=reval", "m2"]);
        assert!(reader.status.success(), "{reader:?}");
        assert_eq!(
            fs::read_to_string(scratch.path("m2/file")).unwrap(),
            n.to_string()
        );
        eventually("unmounting", || {
            scratch.run(&["umount", "m2"]).status.success()
        });
        scratch.umount();
        let next = scratch.run(&["-o", first, "m"]);
        assert!(next.status.success(), "{first}: the lock is gone: {next:?}");
        scratch.umount();
        // The books name a format.
        fs::remove_dir_all(scratch.path("rw")).unwrap();
        fs::create_dir(scratch.path("rw")).unwrap();
    }
}

#[test]
fn a_detached_mount_is_served_and_attached_later() {
    let Some(scratch) = Scratch::new() else {
        return;
    };
    let branch = |name: &str, perm| BranchSpec {
        path: scratch.path(name),
        perm,
        format: None,
        workdir: None,
    };
    let spec = MountSpec {
        grammar: Grammar::Aufs,
        branches: vec![branch("rw", BranchPerm::RW), branch("ro", BranchPerm::RO)],
        options: Options::defaults(Grammar::Aufs),
        mount: MountFlags::default(),
        warnings: Vec::new(),
    };
    let union = Arc::new(Union::open(&spec).unwrap());
    let device = open_device().unwrap();
    let request = MountRequest {
        mountpoint: scratch.path("m"),
        source: "la,bel".into(),
        subtype: "uaufs".into(),
        flags: MountFlags::default(),
        read_only: false,
    };
    let tree = mount_detached(&request, &device).unwrap();
    let (told, queue) = effects();
    let (ready, is_ready) = channel();
    let mut config = ServeConfig::new(IoPlan::choose(&spec, true).unwrap());
    config.effects = Some(queue);
    config.on_ready = Some(Box::new(move |_| ready.send(()).unwrap()));
    let server = std::thread::spawn(move || serve(union, device, config));
    is_ready.recv_timeout(PATIENCE).unwrap();

    assert!(!scratch.mounted());
    move_mount(
        &tree,
        "",
        rustix::fs::CWD,
        scratch.path("m"),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .unwrap();
    drop(tree);
    assert!(scratch.mounted());
    assert_eq!(
        fs::read_to_string(scratch.path("m/file")).unwrap(),
        "lower\n"
    );
    told.send(Effect::InvalEntry {
        parent: NodeId::ROOT,
        name: b"file".to_vec(),
    });
    told.send(Effect::InvalInode { node: NodeId::ROOT });
    assert_eq!(
        fs::read_to_string(scratch.path("m/file")).unwrap(),
        "lower\n"
    );
    scratch.umount();
    assert_eq!(server.join().unwrap().unwrap(), ServeEnd::Unmounted);
}
