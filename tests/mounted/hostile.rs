//! Branches that are damaged, hostile, or lie where no sane one does: the mount shows what it can
//! and goes on.

use super::fixture::{World, eventually, names, text};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::fs::{mkdirat, openat, renameat, setxattr, unlinkat};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::process::Command;

#[test]
fn loops_and_marks_that_are_none_hurt_nobody() {
    let Some(world) = World::new() else { return };
    for name in [".wh..wh.x", ".wh..wh..wh.y", ".wh..wh.orph", "d/.wh..wh.z"] {
        world.put(&format!("low/{name}"), "mark");
    }
    // Whiteouts that are no regular files, and opaque marks that are directories.
    world.mkdir("up/.wh.dir", 0o755);
    symlink("nowhere", world.path("up/.wh.link")).unwrap();
    for name in ["dir", "link", "fine", "d/in"] {
        world.put(&format!("low/{name}"), "lower");
    }
    world.mkdir("up/d/.wh..wh.opq", 0o755);
    for (target, name) in [("b", "a"), ("a", "b"), (".", "self")] {
        symlink(target, world.path(&format!("low/{name}"))).unwrap();
    }
    world.mounted("br=up=rw:low=ro", || {
        let m = world.path("m");
        for name in names(&m).iter().chain(&names(&m.join("d"))) {
            assert!(!name.starts_with(".wh."), "{name}");
        }
        assert_eq!(world.read("m/fine"), "lower");
        assert_eq!(world.read("m/self/self/fine"), "lower");
        let looped = fs::read(m.join("a")).unwrap_err();
        assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
        // They can be written over.
        for name in ["dir", "link", "d/new"] {
            let _ = fs::remove_file(m.join(name));
            fs::write(m.join(name), "new").unwrap();
            assert_eq!(world.read(&format!("m/{name}")), "new");
        }
    });
}

/// Made and walked by descriptors: no path reaches the end.
#[test]
fn a_tree_deeper_than_any_path_is_copied_up_and_removed() {
    const DEEP: usize = 250;
    const NAME: &str = "a directory with a long name";
    let Some(world) = World::new() else { return };
    world.mkdir("up", 0o755);
    world.mkdir("low/deep", 0o755);
    let dir = |at: &OwnedFd| openat(at, NAME, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut at: OwnedFd = File::open(world.path("low/deep")).unwrap().into();
    for _ in 0..DEEP {
        mkdirat(&at, NAME, Mode::RWXU).unwrap();
        at = dir(&at);
    }
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::APPEND;
    let file = |at: &OwnedFd, name| File::from(openat(at, name, flags, Mode::RWXU).unwrap());
    file(&at, "file").write_all(b"low").unwrap();
    world.mounted("br=up=rw:low=ro", || {
        let mut at: OwnedFd = File::open(world.path("m/deep")).unwrap().into();
        for _ in 0..DEEP {
            at = dir(&at);
        }
        file(&at, "file").write_all(b"er").unwrap();
        renameat(&at, "file", &at, "moved").unwrap();
        let mut read = String::new();
        file(&at, "moved").read_to_string(&mut read).unwrap();
        assert_eq!(read, "lower");
        unlinkat(&at, "moved", AtFlags::empty()).unwrap();
        drop(at);
        let mut removal = Command::new("rm");
        let output = removal.arg("-r").arg(world.path("m/deep")).output();
        assert_eq!(text(&output.unwrap()), "");
    });
}

/// An attribute whose name is no UTF-8.
const ODD: &[u8] = b"user.\xff\xfe";

#[test]
fn as_many_attributes_as_a_file_can_have_are_copied_up() {
    let Some(world) = World::new() else { return };
    world.mkdir("up", 0o755);
    world.put("low/file", "data");
    let file = world.path("low/file");
    let set = |n: usize| {
        setxattr(
            &file,
            format!("user.{n:04}"),
            &[b'v'; 30],
            XattrFlags::empty(),
        )
    };
    setxattr(&file, ODD, b"odd", XattrFlags::empty()).unwrap();
    let many = (0..2000).take_while(|n| set(*n).is_ok()).count();
    assert_ne!(many, 0);
    world.mounted("br=up=rw:low=ro", || {
        let appended = OpenOptions::new().append(true).open(world.path("m/file"));
        appended.unwrap().write_all(b"more").unwrap();
        for n in 0..many {
            let mut value = [0; 64];
            let name = format!("user.{n:04}");
            let length = rustix::fs::getxattr(world.path("up/file"), name, &mut value).unwrap();
            assert_eq!(&value[..length], [b'v'; 30]);
        }
        let mut value = [0; 64];
        let length = rustix::fs::getxattr(world.path("up/file"), ODD, &mut value).unwrap();
        assert_eq!(&value[..length], b"odd");
    });
    assert_eq!(world.read("up/file"), "datamore");
}

#[test]
fn branches_may_lie_under_the_mount_point() {
    let Some(world) = World::new() else { return };
    world.mkdir("m/up", 0o755);
    world.put("m/low/file", "lower");
    world.mounted("br=m/up=rw:m/low=ro", || {
        fs::write(world.path("m/new"), "new").unwrap();
        fs::write(world.path("m/file"), "changed").unwrap();
        assert_eq!(names(&world.path("m")), ["file", "new"]);
        assert_eq!(world.read("m/new"), "new");
    });
    assert_eq!(world.read("m/up/new"), "new");
    assert_eq!(world.read("m/low/file"), "lower");
}

#[test]
fn a_lazy_unmount_under_load_ends_with_the_last_user() {
    let Some(world) = World::new() else { return };
    world.mkdir("up", 0o755);
    world.put("low/file", "lower");
    world.mount("br=up=rw:low=ro");
    let script =
        "i=0; while [ $i -lt 2000 ]; do echo $i >f$((i % 7)); cat file; i=$((i + 1)); done";
    let mut load = Command::new("sh")
        .args(["-c", script])
        .current_dir(world.path("m"))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the load", || world.path("up/f6").exists());
    let mut umount = Command::new(super::fixture::program());
    let output = umount.args(["umount", "-l"]).arg(world.path("m")).output();
    assert!(output.unwrap().status.success());
    assert!(load.wait().unwrap().success());
    assert!(!world.path("m/file").exists());
    assert_eq!(world.read("up/f4"), "1999\n");
}
