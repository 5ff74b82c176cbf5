//! How containers begin and end: exit codes, signals, terminals, and what is left when a part of them dies.

use super::world::{
    LIMIT, ULAUNCH, World, cgroups, code, is_gone, kill, out, payload, pid_of, status_field, text,
    wait_for,
};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

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
    std::fs::write(world.root().join("data/big"), vec![1; 8 << 20]).unwrap();
    for (script, last_words) in [
        ("exec sleep 60", ""),
        // It can without its files.
        (
            "trap 'echo bye; exit 0' TERM; echo ready; sleep 60 & wait",
            "bye\n",
        ),
        // It takes no notice.
        ("trap '' TERM; echo ready; while :; do :; done", ""),
        // In the middle of something, and in a directory of the union.
        (
            "cd /data; while :; do cat big; ls -R /; mkdir n; rmdir n; done >/dev/null 2>&1",
            "",
        ),
    ] {
        let launcher = world.spawn(&["--rm", "--name", "d", "--memory", "64M"], script);
        let record = world.running("d");
        let groups = cgroups(&record);
        let command = payload(&record);
        if script.starts_with("trap") {
            wait_for("the trap", || {
                let set = |field| u64::from_str_radix(&status_field(command, field), 16).unwrap();
                (set("SigCgt") | set("SigIgn")) & 1 << (libc::SIGTERM - 1) != 0
            });
        }
        kill(pid_of(&record, "daemon"));
        let output = launcher.wait_with_output().unwrap();
        assert_eq!(code(&output), 125, "{script}: {}", text(&output));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "ulaunch: union daemon died (signal 9): the container was ended\n",
            "{script}"
        );
        assert_eq!(
            out(&output).trim_start_matches("ready\n"),
            last_words,
            "{script}"
        );
        wait_for("init is gone", || is_gone(pid_of(&record, "init")));
        wait_for("the command is gone", || is_gone(command));
        assert!(groups.iter().all(|dir| !dir.exists()), "{script}");
        world.assert_empty();
    }
}

#[test]
fn a_killed_launcher_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let mut launcher = world.spawn(&["--rm", "--name", "l", "--memory", "64M"], "exec sleep 60");
    let record = world.running("l");
    let groups = cgroups(&record);
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
