//! Two files are never taken for one, also when lower files were replaced while nothing was mounted.

use super::fixture::{Fixture, is_root};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use unionfs::branch::Store;
use unionfs::spec::Format;

/// A tmpfs of its own.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "uaufs-test"])
            .arg(at)
            .status();
        assert!(mounted.unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_lower_file_with_the_number_of_one_that_was_copied_up_is_another_file() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/d/x", "old x");
    t.put_dir("c");
    let branches = ["c=rw", "a=ro"];
    t.open(&branches, "udba=none");
    t.write("d/x", "new x").unwrap();
    let number = t.number_on_branch("a/d/x");
    t.close();
    t.take("a/d/x");
    if t.put_with_number("a/d/y", "y", number).is_none() {
        return;
    }
    for first in ["d/x", "d/y"] {
        t.open(&branches, "udba=none");
        let one = t.node(first);
        assert_eq!((t.read("d/x"), t.read("d/y")), ("new x".into(), "y".into()));
        assert_ne!(t.node("d/x"), t.node("d/y"));
        assert_eq!(t.node(first), one);
        t.check_numbers("d");
    }
    t.write("d/y", "new y").unwrap();
    for _ in 0..2 {
        assert_eq!(
            (t.read("d/x"), t.read("d/y")),
            ("new x".into(), "new y".into())
        );
        t.open(&branches, "udba=none");
    }
    assert_eq!(t.on_branch("a/d/y"), "y");
}

#[test]
fn a_lower_file_with_the_number_of_one_with_pseudo_links_is_another_file() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/l", "old");
    t.put_link("a/l", "a/m");
    t.put_dir("c");
    let branches = ["c=rw", "a=ro"];
    t.open(&branches, "udba=none");
    t.write("l", "new").unwrap();
    let number = t.number_on_branch("a/l");
    t.close();
    t.take("a/l");
    t.take("a/m");
    if t.put_with_number("a/p", "other", number).is_none() {
        return;
    }
    t.put_link("a/p", "a/q");
    for round in 0..2 {
        t.open(&branches, "udba=none");
        let expected = if round == 0 { "other" } else { "changed" };
        assert_eq!((&*t.read("p"), &*t.read("q")), (expected, expected));
        assert_eq!(t.read("l"), "new");
        assert_eq!(t.attr("p").nlink, 2);
        t.check_numbers("");
        t.write("q", "changed").unwrap();
        assert_eq!(t.read("p"), "changed");
    }
    assert_eq!(t.on_branch("a/p"), "other");
    assert_eq!(t.on_branch("c/l"), "new");
}

#[test]
fn a_filesystem_inserted_among_the_branches_does_not_confuse_files() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put_dir("c");
    let (_one, _two) = (Tmpfs::mount(&t.path("a")), Tmpfs::mount(&t.path("b")));
    t.put("a/l", "a's l");
    t.put_link("a/l", "a/m");
    t.put("a/x", "a's x");
    t.open(&["c=rw", "a=ro"], "udba=none");
    t.write("l", "new l").unwrap();
    t.write("x", "new x").unwrap();
    let (l, x) = (t.node("l"), t.node("x"));
    t.close();
    t.put("b/p", "b's p");
    t.put_link("b/p", "b/q");
    t.put("b/y", "b's y");
    for _ in 0..2 {
        // The second filesystem takes the first one's place in the order.
        t.open(&["c=rw", "b=ro", "a=ro"], "udba=none");
        for (name, content) in [
            ("l", "new l"),
            ("m", "new l"),
            ("x", "new x"),
            ("q", "b's p"),
            ("p", "b's p"),
            ("y", "b's y"),
        ] {
            assert_eq!(t.read(name), content, "{name}");
        }
        assert_eq!(t.node("l"), t.node("m"));
        t.check_numbers("");
    }
    t.write("p", "new p").unwrap();
    assert_eq!(t.read("q"), "new p");
    t.open(&["c=rw", "b=ro", "a=ro"], "udba=none");
    assert_eq!((t.read("q"), t.read("m")), ("new p".into(), "new l".into()));
    // Without the filesystem, and with it again, nothing is lost.
    t.open(&["c=rw", "b=ro"], "udba=none");
    assert_eq!((t.read("q"), t.read("l")), ("new p".into(), "new l".into()));
    t.open(&["c=rw", "a=ro"], "udba=none");
    assert_eq!((t.read("m"), t.read("l")), ("new l".into(), "new l".into()));
    assert_eq!((t.node("l"), t.node("x")), (l, x));
    t.close();
}

#[test]
fn nothing_is_remembered_of_a_copied_directory_that_was_replaced() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put_dir("a/e");
    t.put_dir("c");
    t.open(&["c=rw", "a=ro"], "udba=none");
    t.create("e/x", "").unwrap();
    t.unlink("e/x").unwrap();
    let number = t.number_on_branch("c/e");
    t.union()
        .mkdir(&t.caller, t.node(""), b"n", 0o755, 0o022)
        .unwrap();
    t.rename("n", "e").unwrap();
    t.close();
    // A new file may get its inode number.
    let branch = std::fs::File::open(t.path("c")).unwrap();
    let (_, seen) = Store::open(branch.as_fd(), None, Format::Aufs).unwrap();
    assert!(!seen.origins.contains_key(&number));
}

#[test]
fn a_directory_that_shows_again_is_not_the_renamed_copy_of_it() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/d/x", "x");
    t.put_dir("c");
    let branches = ["c=rw", "a=ro"];
    t.open(&branches, "udba=none,dirren");
    t.rename("d", "e").unwrap();
    t.close();
    // The whiteout goes: both names show what lies below.
    t.take("c/.wh.d");
    t.open(&branches, "udba=none,dirren");
    let renamed = t.node("e");
    for path in ["e/x", "d/x"] {
        assert_eq!(t.read(path), "x", "{path}");
    }
    assert_eq!(t.node("e"), renamed);
    assert_ne!(t.node("d"), renamed);
    t.create("e/new", "e").unwrap();
    t.create("d/new", "d").unwrap();
    assert_eq!(
        (t.on_branch("c/e/new"), t.on_branch("c/d/new")),
        ("e".into(), "d".into())
    );
    assert_eq!((t.read("e/new"), t.read("d/new")), ("e".into(), "d".into()));
}
