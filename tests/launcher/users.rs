//! Users and ids: those of the container, those it is mapped to, and plain users as callers.

use super::world::{LIMIT, ULAUNCH, World, code, copy_program, out, text};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

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
