//! What a container sees as its root and as its mounts, and where its changes go.

use super::world::{World, code, out, pid_of, text, wait_for};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

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
