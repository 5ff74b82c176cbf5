//! Changes made on a branch itself, behind the union's back.

use super::fixture::{Fixture, is_root, next_tick};
use unionfs::errno::Errno;

#[test]
fn a_file_that_was_renamed_on_its_branch_is_reached_by_its_new_name() {
    if !is_root() {
        return;
    }
    for branch in ["c", "a"] {
        let mut t = Fixture::new();
        t.put_dir("c");
        t.put_dir("a");
        t.put(&format!("{branch}/old"), "x");
        t.open(&["c=rw", "a=ro"], "udba=reval:0");
        assert_eq!(t.read("old"), "x");
        let at = |name: &str| t.as_ref().join(branch).join(name);
        std::fs::rename(at("old"), at("new")).unwrap();
        assert_eq!(t.read("new"), "x", "{branch}");
        t.write("new", "yy").unwrap();
        assert_eq!(t.on_branch("c/new"), "yy");
    }
}

#[test]
fn a_directory_with_a_file_that_the_union_has_not_seen_is_not_removed() {
    if !is_root() {
        return;
    }
    for format in ["aufs", "overlay"] {
        let mut t = Fixture::new();
        for dir in ["d", "e"] {
            t.put(&format!("a/{dir}/x"), "x");
        }
        t.put_dir("c");
        t.put_dir("w");
        let base = t.as_ref().display().to_string();
        match format {
            "aufs" => t.open(&["c=rw", "a=ro"], "udba=none,dirren"),
            _ => t.open_as(&format!(
                "lowerdir={base}/a,upperdir={base}/c,workdir={base}/w"
            )),
        }
        t.unlink("d/x").unwrap();
        t.union()
            .mkdir(&t.caller, t.node(""), b"mine", 0o755, 0o022)
            .unwrap();
        assert!(t.names("d").is_empty() && t.names("mine").is_empty());
        t.put("c/d/stranger", "keep me");
        t.put("c/mine/stranger", "keep me");
        for dir in ["d", "mine"] {
            assert_eq!(t.rmdir(dir), Err(Errno::NOTEMPTY), "{format}");
            assert_eq!(t.on_branch(&format!("c/{dir}/stranger")), "keep me");
        }
        // The failed attempts have seen it: a fresh union has not.
        t.forget();
        assert_eq!(t.rename("e", "d"), Err(Errno::NOTEMPTY), "{format}");
        assert_eq!(t.rename("e", "mine"), Err(Errno::NOTEMPTY), "{format}");
        assert_eq!(t.read("d/stranger"), "keep me");
        assert_eq!(t.read("mine/stranger"), "keep me");
        assert_eq!(t.read("e/x"), "x");
    }
}

#[test]
fn a_directory_that_gets_a_file_meanwhile_is_not_replaced() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/d/x", "x");
    t.put("a/e/x", "x");
    t.put_dir("c");
    t.open(&["c=rw", "a=ro"], "udba=none,dirren");
    t.unlink("d/x").unwrap();
    assert!(t.names("d").is_empty());
    t.put("c/d/stranger", "keep me");
    assert_eq!(t.rename("e", "d"), Err(Errno::NOTEMPTY));
    assert_eq!(t.on_branch("c/d/stranger"), "keep me");
    t.open(&["c=rw", "a=ro"], "udba=none,dirren");
    assert_eq!(t.names("d"), ["stranger"]);
    assert_eq!(t.names("e"), ["x"]);
}

/// Something that the union does in a directory.
type Change = fn(&Fixture);

#[test]
fn a_file_put_beside_a_change_of_the_union_is_listed() {
    if !is_root() {
        return;
    }
    let changes: &[(&str, Change)] = &[
        ("create", |t| {
            t.create("d/new", "").unwrap();
        }),
        ("copy-up", |t| t.write("d/x", "new").unwrap()),
        ("copy-up of a directory", |t| {
            t.write("d/sub/y", "new").unwrap();
        }),
        ("unlink", |t| t.unlink("d/x").unwrap()),
        ("rename", |t| t.rename("d/x", "d/z").unwrap()),
        ("link", |t| t.link("d/x", "d/z").unwrap()),
        ("rmdir", |t| {
            t.unlink("d/sub/y").unwrap();
            t.rmdir("d/sub").unwrap();
        }),
    ];
    std::thread::scope(|scope| {
        for (name, change) in changes {
            scope.spawn(move || stranger_beside(name, *change));
        }
    });
}

fn stranger_beside(name: &str, change: Change) {
    let mut t = Fixture::new();
    t.put("a/d/x", "x");
    t.put("a/d/sub/y", "y");
    t.put("c/d/own", "own");
    t.open(&["c=rw", "a=ro"], "udba=reval:1");
    t.names("d");
    next_tick();
    t.put("c/d/stranger", "hello");
    next_tick();
    change(&t);
    std::thread::sleep(std::time::Duration::from_millis(1050));
    assert!(t.names("d").contains(&"stranger".into()), "{name}");
    assert_eq!(t.read("d/stranger"), "hello");
}

#[test]
fn a_copy_does_not_replace_what_was_put_under_its_name() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/d/x", "lower");
    t.put("a/d/sub/y", "y");
    t.put_dir("c/d");
    t.open(&["c=rw", "a=ro"], "udba=none");
    let node = t.node("d/x");
    t.node("d/sub");
    t.put("c/d/x", "stranger");
    assert_eq!(t.write_node(node, "new"), Err(Errno::STALE));
    assert_eq!(t.on_branch("c/d/x"), "stranger");
    assert_eq!(t.read("d/x"), "stranger");
    t.put("c/d/sub", "a file");
    assert!(t.write("d/sub/y", "new").is_err());
    assert_eq!(t.on_branch("c/d/sub"), "a file");
}

#[test]
fn a_copy_that_is_taken_away_shows_the_lower_file_again() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/d/x", "lower x");
    t.put("a/d/y", "lower y");
    t.put_dir("c");
    t.open(&["c=rw", "a=ro"], "udba=reval:0");
    t.write("d/x", "new").unwrap();
    t.write("d/y", "new").unwrap();
    assert_eq!(t.read("d/x"), "new");
    next_tick();
    t.take("c/d/x");
    assert_eq!(t.read("d/x"), "lower x");
    assert_eq!(t.attr("d/x").size, 7);
    t.write("d/x", "newer").unwrap();
    assert_eq!(t.read("d/x"), "newer");
    std::fs::remove_dir_all(t.path("c/d")).unwrap();
    assert_eq!(t.names("d"), ["x", "y"]);
    assert_eq!(t.read("d/y"), "lower y");
    t.write("d/y", "newest").unwrap();
    assert_eq!(t.on_branch("c/d/y"), "newest");
}

#[test]
fn a_file_is_reached_after_one_of_its_names_was_taken_away() {
    if !is_root() {
        return;
    }
    for branch in ["c", "a"] {
        let mut t = Fixture::new();
        t.put_dir("a");
        t.put_dir("c");
        t.put(&format!("{branch}/d/x"), "data");
        t.put_link(&format!("{branch}/d/x"), &format!("{branch}/y"));
        t.open(&["c=rw", "a=ro"], "udba=reval:0");
        let node = t.node("d/x");
        assert_eq!(t.node("y"), node);
        t.take(&format!("{branch}/d/x"));
        assert_eq!(t.union().getattr(node).unwrap().nlink, 1);
        assert_eq!(t.read("y"), "data");
        t.write_node(node, "new").unwrap();
        assert_eq!(t.read("y"), "new");
    }
}

#[test]
fn a_name_made_below_a_whiteout_of_a_higher_branch_is_there_after_reopening() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("c/d/.wh.x", "");
    t.put("b/d/f", "f");
    t.put("b/d/g", "g");
    let branches = ["c=rw", "b=rw"];
    t.open(&branches, "udba=none");
    t.link("d/f", "d/x").unwrap();
    assert_eq!(t.on_branch("c/d/x"), "f");
    t.open(&branches, "udba=none");
    assert_eq!(t.read("d/x"), "f");
    t.unlink("d/x").unwrap();
    t.rename("d/g", "d/x").unwrap();
    t.open(&branches, "udba=none");
    assert_eq!(t.read("d/x"), "g");
    assert_eq!(t.names("d"), ["f", "x"]);
    // Nothing hides it any more: it stays on its branch.
    assert_eq!(t.on_branch("b/d/x"), "g");
    t.unlink("d/x").unwrap();
}

#[test]
fn what_a_crash_left_of_a_copy_is_no_part_of_another() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("a/x", "lower");
    t.put("a/precious", "as it is");
    t.put_dir("c");
    t.open(&["c=rw", "a=ro"], "udba=none");
    t.close();
    let tmp = "c/.wh..wh.uaufs/tmp";
    for n in 0..20 {
        t.put(&format!("{tmp}/{n}"), "longer than what is copied now");
    }
    t.put(&format!("{tmp}/dir/file"), "");
    t.put_link("a/precious", &format!("{tmp}/20"));
    std::os::unix::fs::symlink(t.path("a/precious"), t.path(&format!("{tmp}/21"))).unwrap();
    t.open(&["c=rw", "a=ro"], "udba=none");
    let left = std::fs::read_dir(t.path(tmp)).unwrap();
    assert_eq!(left.count(), 0, "a mount empties it");
    t.chmod("x", 0o600).unwrap();
    assert_eq!(t.on_branch("c/x"), "lower");
    assert_eq!(t.on_branch("a/precious"), "as it is");
}

#[test]
fn a_whiteout_hides_a_name_in_its_own_directory_only() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    for dir in ["", "d/", "d/s/"] {
        t.put(&format!("a/{dir}test"), "lower");
    }
    t.put("c/.wh.test", "");
    t.put_dir("c/d");
    t.open(&["c=rw", "a=ro"], "");
    assert_eq!(t.find("test"), Err(Errno::NOENT));
    assert_eq!(t.names(""), ["d"]);
    assert_eq!(t.read("d/test"), "lower");
    assert_eq!(t.names("d/s"), ["test"]);
}
