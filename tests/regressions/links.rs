//! Hard links over branches: their books after a crash, and descriptors.

use super::fixture::{Fixture, is_root};
use std::fs;
use std::path::Path;
use unionfs::errno::Errno;

/// Damage done to the log between two mounts.
#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    /// The last bytes did not reach the disk.
    Lost(u64),
    Missing,
}

fn damage(log: &Path, how: Damage) {
    match how {
        Damage::None => {}
        Damage::Lost(bytes) => {
            let file = fs::File::options().write(true).open(log).unwrap();
            let len = file.metadata().unwrap().len();
            file.set_len(len.saturating_sub(bytes)).unwrap();
        }
        Damage::Missing => fs::remove_file(log).unwrap(),
    }
}

fn linked() -> Fixture {
    let t = Fixture::new();
    t.put("a/l", "old");
    for name in ["a/m", "a/n", "a/o"] {
        t.put_link("a/l", name);
    }
    t.put_dir("c");
    t
}

#[test]
fn no_name_of_a_file_shows_old_data_whatever_happened_to_the_log() {
    if !is_root() {
        return;
    }
    let branches = ["c=rw", "a=ro"];
    let whole = [40, 80, 120, 160, 200, 240, 4096].map(Damage::Lost);
    let torn = [1, 13, 41, 79, 130].map(Damage::Lost);
    for how in [Damage::None, Damage::Missing]
        .into_iter()
        .chain(whole)
        .chain(torn)
    {
        for steps in 0..5 {
            let mut t = linked();
            t.open(&branches, "udba=none");
            t.write("l", "new").unwrap();
            let mut names = vec!["l", "m", "n", "o"];
            if steps > 0 {
                t.unlink("n").unwrap();
                names.retain(|n| *n != "n");
            }
            if steps > 1 {
                t.rename("m", "z").unwrap();
                names.retain(|n| *n != "m");
                names.push("z");
            }
            if steps > 2 {
                t.unlink("l").unwrap();
                names.retain(|n| *n != "l");
            }
            if steps > 3 {
                t.link("o", "p").unwrap();
                names.push("p");
            }
            t.close();
            damage(&t.path("c/.wh..wh.uaufs/log"), how);
            t.open(&branches, "udba=none");
            names.sort_unstable();
            assert_eq!(t.names(""), names, "{how:?}, {steps} steps");
            // One name after the other goes; the others are what they were.
            while let Some(gone) = names.pop() {
                for name in names.iter().chain([&gone]) {
                    assert_eq!(t.read(name), "new", "{name}: {how:?}, {steps} steps");
                    assert_eq!(t.node(name), t.node(gone), "{name}: {how:?}, {steps} steps");
                }
                t.unlink(gone).unwrap();
                assert_eq!(t.find(gone), Err(Errno::NOENT));
            }
            assert_eq!(t.names("").len(), 0);
        }
    }
}

#[test]
fn an_open_file_is_there_after_its_last_name_went() {
    if !is_root() {
        return;
    }
    let mut t = linked();
    t.open(&["c=rw", "a=ro"], "udba=none");
    let node = t.node("l");
    t.union().open_node(node, libc::O_RDWR).unwrap();
    t.write_node(node, "new").unwrap();
    for (name, left) in [("m", 3), ("l", 2), ("o", 1), ("n", 0)] {
        t.unlink(name).unwrap();
        let attr = t.union().getattr(node).unwrap();
        assert_eq!((attr.nlink, attr.size), (left, 3), "after {name} went");
        assert_eq!(t.read_node(node).unwrap(), "new");
    }
    t.write_node(node, "newest").unwrap();
    assert_eq!(t.read_node(node).unwrap(), "newest");
    t.union().release(node);
    t.forget();
    assert_eq!(t.union().node_count(), 1);
    assert_eq!(fs::read_dir(t.path("c/.wh..wh.plnk")).unwrap().count(), 0);
}

/// Open descriptors of this process; the tests beside this one have a few.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn removing_names_of_files_with_others_takes_no_descriptors() {
    if !is_root() {
        return;
    }
    const FILES: usize = 3000;
    for lower in [true, false] {
        let before = descriptors();
        let mut t = Fixture::new();
        let place = if lower { "a" } else { "c" };
        t.put_dir("a");
        t.put_dir("c");
        for n in 0..FILES {
            t.put(&format!("{place}/t/{n}"), "");
            for tree in ["t2", "t3"] {
                t.put_link(&format!("{place}/t/{n}"), &format!("{place}/{tree}/{n}"));
            }
        }
        t.open(&["c=rw", "a=ro"], "udba=none");
        for n in 0..FILES {
            // The kernel knows every file by all its names.
            let node = t.node(&format!("t/{n}"));
            assert_eq!(t.node(&format!("t2/{n}")), node);
            assert_eq!(t.node(&format!("t3/{n}")), node);
        }
        for (tree, other) in [("t", "t2"), ("t2", "t3")] {
            for n in 0..FILES {
                t.unlink(&format!("{tree}/{n}")).unwrap();
            }
            assert!(descriptors() < before + FILES / 4, "{lower} {tree}");
            t.rmdir(tree).unwrap();
            for n in (0..FILES).step_by(100) {
                let node = t.node(&format!("{other}/{n}"));
                t.union().getattr(node).unwrap();
                t.write_node(node, "still here").unwrap();
            }
        }
        assert_eq!(t.read("t3/0"), "still here");
    }
}

#[test]
fn a_file_known_by_two_names_survives_the_rename_over_one() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("c/d/x", "file");
    t.put_link("c/d/x", "c/y");
    t.put("c/other", "other");
    t.open(&["c=rw"], "udba=none");
    let node = t.node("d/x");
    assert_eq!(t.node("y"), node);
    t.rename("other", "d/x").unwrap();
    assert_eq!(t.read_node(node).unwrap(), "file");
    assert_eq!(t.union().getattr(node).unwrap().nlink, 1);
    t.rename("y", "z").unwrap();
    assert_eq!(t.read_node(node).unwrap(), "file");
    t.unlink("z").unwrap();
    assert_eq!(t.union().getattr(node).unwrap().nlink, 0);
    assert_eq!(t.read_node(node).unwrap(), "file");
}

#[test]
fn without_pseudo_links_a_written_name_parts_from_the_others() {
    if !is_root() {
        return;
    }
    for options in ["noplink", "noplink,udba=none", "droplvl=3"] {
        let mut t = Fixture::new();
        t.put("b1/a", "old");
        t.put_link("b1/a", "b1/b");
        t.put_link("b1/a", "b1/d/c");
        t.put_link("b1/a", "b1/d/e");
        t.put_dir("b0");
        t.open(&["b0=rw", "b1=ro"], options);
        // All were seen before anything is written, and one is open.
        let (a, b) = (t.node("a"), t.node("b"));
        let (c, e) = (t.node("d/c"), t.node("d/e"));
        t.write_node(b, "new").unwrap();
        assert_eq!(t.on_branch("b0/b"), "new");
        assert!(!t.path("b0/a").exists());
        assert_eq!(t.read_node(a).unwrap(), "old");
        assert_eq!((t.read("a"), t.read("b")), ("old".into(), "new".into()));
        // link(2) joins the two names that it is about.
        t.link("d/c", "x").unwrap();
        t.write_node(c, "joined").unwrap();
        assert_eq!((t.read("x"), t.attr("x").nlink), ("joined".into(), 2));
        assert_eq!(t.read("d/e"), "old");
        // One that is removed while open is written without the others.
        t.unlink("d/e").unwrap();
        assert_eq!(t.union().getattr(e).unwrap().nlink, 0);
        t.write_node(e, "gone").unwrap();
        assert_eq!(t.read_node(e).unwrap(), "gone");
        assert_eq!(t.read("a"), "old");
        t.rename("a", "d/f").unwrap();
        t.check_numbers("");
        t.check_numbers("d");
        t.forget();
        for _ in 0..2 {
            assert_eq!(t.names(""), ["b", "d", "x"]);
            assert_eq!(t.names("d"), ["c", "f"]);
            assert_eq!((t.read("b"), t.read("d/f")), ("new".into(), "old".into()));
            assert_eq!(
                (t.read("d/c"), t.read("x")),
                ("joined".into(), "joined".into())
            );
            t.check_numbers("d");
            t.open(&["b0=rw", "b1=ro"], options);
        }
        assert_eq!(t.on_branch("b1/a"), "old");
    }
}

#[test]
fn links_are_counted_before_the_other_names_were_seen() {
    if !is_root() {
        return;
    }
    let mut t = linked();
    let branches = ["c=rw", "a=ro"];
    for (name, count) in [("l", 4), ("m", 4)] {
        t.open(&branches, "udba=none");
        assert_eq!(t.attr(name).nlink, count, "{name}: nothing is copied up");
    }
    t.write("n", "new").unwrap();
    t.unlink("o").unwrap();
    for name in ["l", "m", "n"] {
        t.open(&branches, "udba=none");
        assert_eq!(t.attr(name).nlink, 3, "{name}: copied up, and one gone");
    }
}
