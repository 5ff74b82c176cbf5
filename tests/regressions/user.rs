//! A daemon without privilege: what the owner of the files may do natively, the union does.

use super::fixture::{Fixture, is_root};
use rustix::fs::{Gid, Uid};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use unionfs::errno::Errno;
use unionfs::types::{Caller, Writer};

/// nobody
const USER: u32 = 65534;

/// Runs `body` on a thread that is a plain user's; the files of the fixture are given to it first.
fn as_user(mut t: Fixture, body: fn(&mut Fixture)) {
    give(t.as_ref());
    t.caller = Caller {
        uid: USER,
        gid: USER,
        pid: 1,
    };
    let done = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        body(&mut t);
        t.close();
        // Removed by root: a plain user cannot list all of it.
        t
    });
    drop(done.join().unwrap());
}

fn give(path: &Path) {
    chown(path, Some(USER), Some(USER)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

fn set_mode(t: &Fixture, path: &str, mode: u32) {
    std::fs::set_permissions(t.path(path), PermissionsExt::from_mode(mode)).unwrap();
}

fn mode(t: &Fixture, path: &str) -> u32 {
    t.path(path).metadata().unwrap().mode() & 0o7777
}

#[test]
fn a_user_creates_in_a_directory_that_cannot_be_listed() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    t.put_dir("c/upper");
    t.put("a/both/x", "x");
    t.put("c/both/y", "y");
    t.put_dir("a/lower");
    for dir in ["c/upper", "c/both", "a/both", "a/lower"] {
        set_mode(&t, dir, 0o333);
    }
    as_user(t, |t| {
        t.open(&["c=rw", "a=ro"], "udba=none");
        for dir in ["upper", "both", "lower"] {
            t.create(&format!("{dir}/new"), "new").unwrap();
            assert_eq!(t.read(&format!("{dir}/new")), "new");
            assert_eq!(t.create(&format!("{dir}/new"), ""), Err(Errno::EXIST));
            assert_eq!(t.list(dir), Err(Errno::ACCESS));
        }
        assert_eq!(
            (t.read("both/x"), t.read("both/y")),
            ("x".into(), "y".into())
        );
        t.unlink("both/x").unwrap();
        assert_eq!(t.find("both/x"), Err(Errno::NOENT));
        t.create("both/x", "again").unwrap();
        t.rename("both/x", "upper/x").unwrap();
        assert_eq!(t.find("both/x"), Err(Errno::NOENT));
        t.open(&["c=rw", "a=ro"], "udba=none");
        assert_eq!(t.read("upper/x"), "again");
        assert_eq!(t.find("both/x"), Err(Errno::NOENT));
        t.unlink("upper/x").unwrap();
        t.unlink("upper/new").unwrap();
        t.rmdir("upper").unwrap();
        // Whether it is empty cannot be known.
        assert_eq!(t.rmdir("both"), Err(Errno::ACCESS));
    });
}

#[test]
fn a_user_writes_a_file_that_cannot_be_read() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    t.put("c/x", "secret");
    set_mode(&t, "c/x", 0o200);
    as_user(t, |t| {
        t.open(&["c=rw"], "udba=none");
        let node = t.node("x");
        t.union().open_node(node, libc::O_WRONLY).unwrap();
        t.union().write(node, 0, b"S", Writer::Privileged).unwrap();
        t.write_node(node, "written").unwrap();
        t.chmod("x", 0o600).unwrap();
        // The descriptor at hand cannot read.
        assert_eq!(t.read_node(node).unwrap(), "written");
        t.union().release(node);
        t.chmod("x", 0o400).unwrap();
        t.forget();
        assert_eq!(t.read("x"), "written");
        t.chmod("x", 0o600).unwrap();
        t.write("x", "more").unwrap();
        assert_eq!(t.read("x"), "more");
    });
}

#[test]
fn a_user_stats_merged_directories_that_cannot_be_listed() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    t.put("c/d/x", "x");
    t.put("a/d/y", "y");
    t.put("a/d/e/z", "z");
    for dir in ["c/d", "a/d", "a/d/e"] {
        set_mode(&t, dir, 0o311);
    }
    as_user(t, |t| {
        t.open(&["c=rw", "a=ro"], "udba=none");
        assert_eq!(t.attr("d").mode & 0o7777, 0o311);
        assert_eq!(t.attr("d/e").mode & 0o7777, 0o311);
        assert_eq!(
            (t.read("d/x"), t.read("d/y"), t.read("d/e/z")),
            ("x".into(), "y".into(), "z".into())
        );
        assert_eq!(t.find("d/none"), Err(Errno::NOENT));
        t.write("d/e/z", "new").unwrap();
        assert_eq!(t.read("d/e/z"), "new");
    });
}

#[test]
fn a_user_changes_a_lower_directory_that_is_write_protected() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    t.put("a/d/x", "x");
    t.put("a/d/e/y", "y");
    t.put_dir("c");
    for dir in ["a/d", "a/d/e"] {
        set_mode(&t, dir, 0o555);
    }
    as_user(t, |t| {
        t.open(&["c=rw", "a=ro"], "udba=none");
        t.chmod("d", 0o500).unwrap();
        assert_eq!((mode(t, "c/d"), mode(t, "a/d")), (0o500, 0o555));
        // The files in it may be written, which copies them up.
        t.write("d/x", "new").unwrap();
        t.write("d/e/y", "new").unwrap();
        assert_eq!((mode(t, "c/d"), mode(t, "c/d/e")), (0o500, 0o555));
        assert_eq!(
            (t.read("d/x"), t.read("d/e/y")),
            ("new".into(), "new".into())
        );
        assert_eq!(t.names("d"), ["e", "x"]);
    });
}

#[test]
fn a_user_removes_a_write_protected_directory_with_whiteouts() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    for dir in ["d", "e", "f"] {
        t.put(&format!("a/{dir}/x"), "x");
    }
    t.put_dir("c");
    as_user(t, |t| {
        t.open(&["c=rw", "a=ro"], "udba=none");
        for dir in ["d", "e"] {
            t.unlink(&format!("{dir}/x")).unwrap();
            t.chmod(dir, 0o555).unwrap();
        }
        t.rmdir("d").unwrap();
        t.create("new", "").unwrap();
        t.union()
            .mkdir(&t.caller, t.node(""), b"g", 0o755, 0)
            .unwrap();
        t.rename("g", "e").unwrap();
        assert_eq!(t.names(""), ["e", "f", "new"]);
        assert!(t.names("e").is_empty());
        t.open(&["c=rw", "a=ro"], "udba=none");
        assert_eq!(t.names(""), ["e", "f", "new"]);
        assert!(t.names("e").is_empty());
        let trash = t.path("c/.wh..wh.uaufs/trash");
        assert_eq!(std::fs::read_dir(trash).unwrap().count(), 0);
    });
}
