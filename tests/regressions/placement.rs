//! On which branch something is made, and what its directories look like there.

use crate::fixture::{Fixture, is_root};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};
use unionfs::errno::Errno;
use unionfs::types::{SetAttr, SetTime, Timestamp, Writer};

/// `create=rr` puts the first file on the topmost branch and the second on the lowest of two.
fn on_the_lower_branch(union: &mut Fixture) {
    union.open(&["b0=rw", "b1=rw"], "create=rr");
    union.create("first", "").unwrap();
    union.create("d/e/new", "new").unwrap();
}

#[test]
fn directories_are_copied_down_with_owner_and_mode() {
    if !is_root() {
        return;
    }
    let mut union = Fixture::new();
    union.put_dir("b0/d/e");
    union.put_dir("b1");
    fs::set_permissions(union.path("b0/d"), fs::Permissions::from_mode(0o2751)).unwrap();
    std::os::unix::fs::chown(union.path("b0/d/e"), Some(7), Some(8)).unwrap();
    on_the_lower_branch(&mut union);
    assert_eq!(union.on_branch("b1/d/e/new"), "new");
    let (d, e) = (
        union.path("b1/d").metadata().unwrap(),
        union.path("b1/d/e").metadata().unwrap(),
    );
    assert_eq!(d.mode() & 0o7777, 0o2751);
    assert_eq!((e.uid(), e.gid()), (7, 8));
    union.open(&["b0=rw", "b1=rw"], "");
    assert_eq!(union.read("d/e/new"), "new");
}

#[test]
fn a_directory_that_is_copied_down_over_a_whiteout_shows_nothing_from_below() {
    let mut union = Fixture::new();
    union.put_dir("b0/d/e");
    union.put("b1/.wh.d", "");
    union.put("b2/d/e/old", "hidden by b1");
    union.open(&["b0=rw", "b1=rw", "b2=ro"], "create=mfs");
    // Free space is equal: the lower of the two writable branches is taken.
    union.create("d/e/new", "new").unwrap();
    assert_eq!(union.on_branch("b1/d/e/new"), "new");
    assert!(!union.path("b1/.wh.d").exists());
    assert!(union.path("b1/d/.wh..wh..opq").exists());
    for options in ["", "udba=none"] {
        union.open(&["b0=rw", "b1=rw", "b2=ro"], options);
        assert_eq!(union.names("d/e"), ["new"]);
    }
}

#[test]
fn a_directory_shows_a_change_of_a_branch_below_its_top() {
    let mut union = Fixture::new();
    union.put_dir("b0/d/e");
    union.put_dir("b1");
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let touch = |union: &Fixture| {
        let dir = fs::File::open(union.path("b0/d/e")).unwrap();
        dir.set_modified(old).unwrap();
    };
    touch(&union);
    on_the_lower_branch(&mut union);
    assert_ne!(union.attr("d/e").mtime.sec, 1_000_000_000);
    touch(&union);
    union.unlink("d/e/new").unwrap();
    assert_ne!(union.attr("d/e").mtime.sec, 1_000_000_000);
    assert!(!union.path("b1/d/e/new").exists());
}

#[test]
fn nothing_is_made_below_a_whiteout_or_an_opaque_mark_of_a_readonly_branch() {
    let mut union = Fixture::new();
    union.put_dir("b0");
    union.put("b1/.wh.a", "");
    union.put("b1/d/.wh..wh..opq", "");
    union.put("b2/a", "hidden");
    union.put("b2/d/x", "hidden");
    let branches = ["b0=rw", "b1=ro+wh", "b2=rw"];
    union.open(&branches, "create=mfs");
    union.create("a", "new").unwrap();
    union.create("d/x", "new").unwrap();
    assert_eq!(union.on_branch("b0/a"), "new");
    assert_eq!(union.on_branch("b0/d/x"), "new");
    assert_eq!(union.on_branch("b2/a"), "hidden");
    // Where nothing hides it, the policy's branch is taken.
    union.create("other", "").unwrap();
    assert!(union.path("b2/other").exists());
}

#[test]
fn names_below_a_readonly_top_cannot_be_changed() {
    let mut union = Fixture::new();
    union.put("b0/d/x", "0");
    union.put("b1/d/y", "1");
    union.put("b1/e/z", "1");
    for create in ["tdp", "mfs", "rr", "pmfs", "tdmfs:1"] {
        union.open(&["b0=ro", "b1=rw"], &format!("create={create}"));
        assert_eq!(union.create("d/n", "").err(), Some(Errno::ROFS), "{create}");
        assert_eq!(union.unlink("d/y"), Err(Errno::ROFS));
        assert_eq!(union.rename("e/z", "d/z"), Err(Errno::ROFS));
        assert_eq!(union.link("e/z", "d/z"), Err(Errno::ROFS));
        union.write("d/y", "changed in place").unwrap();
        union.create("e/n", "").unwrap();
        union.unlink("e/n").unwrap();
    }
    assert_eq!(union.on_branch("b1/d/y"), "changed in place");
}

#[test]
fn a_file_that_is_renamed_over_one_of_a_higher_branch_is_brought_there_with_its_links() {
    if !is_root() {
        return;
    }
    let mut union = Fixture::new();
    union.put("b0/t", "old");
    union.put("b1/d/a", "data");
    union.put_link("b1/d/a", "b1/d/b");
    let branches = ["b0=rw", "b1=rw"];
    union.open(&branches, "");
    let open = union.node("d/b");
    let number = union.attr("d/a").ino;
    union.rename("d/a", "t").unwrap();
    assert_eq!(union.on_branch("b0/t"), "data");
    assert_eq!(union.attr("t").ino, number);
    for remounted in [false, true] {
        if remounted {
            union.open(&branches, "");
        } else {
            union.write_node(open, "new").unwrap();
        }
        assert_eq!(
            (union.read("t"), union.read("d/b")),
            ("new".into(), "new".into())
        );
        assert_eq!(union.attr("t").nlink, 2);
    }
    // The other name lies on the lower branch only, and goes with the copy all the same.
    union.rename("d/b", "d/c").unwrap();
    assert_eq!(
        (union.read("d/c"), union.attr("t").nlink),
        ("new".into(), 2)
    );
    union.unlink("t").unwrap();
    union.open(&branches, "");
    assert_eq!(
        (union.read("d/c"), union.attr("d/c").nlink),
        ("new".into(), 1)
    );
    assert_eq!(union.names("d"), ["c"]);
}

#[test]
fn the_last_name_on_a_lower_branch_is_counted_when_it_is_removed_there() {
    if !is_root() {
        return;
    }
    let mut union = Fixture::new();
    union.put("b0/t", "old");
    union.put("b1/a", "data");
    union.put_link("b1/a", "b1/b");
    union.open(&["b0=rw", "b1=rw"], "");
    union.rename("a", "t").unwrap();
    union.unlink("b").unwrap();
    assert_eq!(
        (union.attr("t").nlink, union.names("")),
        (1, vec!["t".into()])
    );
    union.open(&["b0=rw", "b1=rw"], "");
    assert_eq!((union.read("t"), union.attr("t").nlink), ("data".into(), 1));
}

#[test]
fn a_write_that_runs_while_its_file_is_brought_up_is_not_lost() {
    if !is_root() {
        return;
    }
    let mut union = Fixture::new();
    union.put("b0/t", "old");
    union.put("b1/a", &"x".repeat(1 << 20));
    union.open(&["b0=rw", "b1=rw"], "udba=none,volatile");
    let node = union.node("a");
    let core = union.union();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for at in 0..4096u64 {
                core.write(node, at * 256, b"y", unionfs::types::Writer::Privileged)
                    .unwrap();
            }
        });
        let root = unionfs::types::NodeId::ROOT;
        core.rename(
            &union.caller,
            (root, b"a"),
            (root, b"t"),
            unionfs::types::RenameFlags::empty(),
        )
        .unwrap();
        writer.join().unwrap();
    });
    let data = fs::read(union.path("b0/t")).unwrap();
    assert!(data.iter().step_by(256).all(|b| *b == b'y'));
}

/// The names of a directory are read while something above a whiteout has the name; then that goes.
#[test]
fn a_whiteout_below_what_was_removed_is_not_forgotten() {
    type Removal = fn(&Fixture);
    let removals: [(&str, Removal); 3] = [
        ("a", |union| union.unlink("a").unwrap()),
        ("a", |union| union.rename("a", "b").unwrap()),
        ("a/", |union| union.rmdir("a").unwrap()),
    ];
    for (kind, remove) in removals {
        for (marked, branches) in [
            ("b1", ["b0=rw", "b1=rw", "b2=ro"]),
            ("b1", ["b0=rw", "b1=ro+wh", "b2=rw"]),
        ] {
            let mut union = Fixture::new();
            match kind {
                "a" => union.put("b0/a", ""),
                _ => union.put_dir("b0/a"),
            }
            union.put(&format!("{marked}/.wh.a"), "");
            union.put_dir("b2");
            union.open(&branches, "create=rr,udba=none");
            assert_eq!(union.names(""), ["a"]);
            remove(&union);
            // Each is made on another branch, in turn.
            for turn in ["1", "2", "3"] {
                union.create("a", turn).unwrap();
                union.create("other", "").unwrap();
                let beside = ["b0", "b1"].map(|b| {
                    union.path(b).join("a").exists() && union.path(b).join(".wh.a").exists()
                });
                assert_eq!(beside, [false, false], "{branches:?}");
                assert_eq!(union.read("a"), turn, "{branches:?}");
                union.unlink("a").unwrap();
                union.unlink("other").unwrap();
                union.create("again", "").unwrap();
                union.unlink("again").unwrap();
            }
        }
    }
}

#[test]
fn each_time_alone_copies_a_file_up_and_leaves_the_lower_one_alone() {
    if !is_root() {
        return;
    }
    let at = |sec| Some(SetTime::At(Timestamp { sec, nsec: 7 }));
    for (atime, mtime) in [(at(1_100_000_000), None), (None, at(1_100_000_000))] {
        let mut t = Fixture::new();
        t.put("a/file", "data");
        t.put_dir("b");
        let before = fs::metadata(t.path("a/file")).unwrap();
        t.open(&["b=rw", "a=ro"], "udba=none");
        let set = SetAttr {
            atime,
            mtime,
            ..SetAttr::default()
        };
        let node = t.find("file").unwrap();
        t.union().setattr(node, &set, Writer::Privileged).unwrap();
        let copy = fs::metadata(t.path("b/file")).unwrap();
        let kept = (before.atime(), before.mtime());
        let wanted = (
            atime.map_or(kept.0, |_| 1_100_000_000),
            mtime.map_or(kept.1, |_| 1_100_000_000),
        );
        assert_eq!((copy.atime(), copy.mtime()), wanted);
        let lower = fs::metadata(t.path("a/file")).unwrap();
        assert_eq!((lower.atime(), lower.mtime()), kept);
        assert_eq!(lower.ctime_nsec(), before.ctime_nsec());
    }
}
