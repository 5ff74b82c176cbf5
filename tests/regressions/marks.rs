//! Whiteouts that are shown, that contradict what is there, and that are removed in bulk.

use super::fixture::{Fixture, is_root};
use super::identity::Tmpfs;
use std::time::{Duration, Instant};
use unionfs::errno::Errno;
use unionfs::types::NodeId;

fn has(t: &Fixture, path: &str) -> bool {
    t.path(path).symlink_metadata().is_ok()
}

#[test]
fn strict_refuses_what_contradicts_itself_and_lists_it_not() {
    let mut t = Fixture::new();
    for top in ["", "d/", "one/"] {
        t.put(&format!("c/{top}.wh.both"), "");
        t.put(&format!("c/{top}both"), "upper");
        t.put_dir(&format!("c/{top}.wh.odd"));
        t.put(&format!("c/{top}.wh.gone"), "");
        t.put(&format!("c/{top}fine"), "fine");
    }
    for top in ["", "d/"] {
        for name in ["both", "odd", "gone"] {
            t.put(&format!("a/{top}{name}"), "lower");
        }
    }
    for (options, names) in [
        ("strict", &["fine"][..]),
        ("strict,udba=none", &["fine"]),
        ("", &["both", "fine"]),
    ] {
        t.open(&["c=rw", "a=ro"], options);
        for top in ["d", "one"] {
            // Before the listing, and after it.
            for _ in 0..2 {
                let find = |name: &str| t.find(&format!("{top}/{name}")).map(|_| ());
                let absent = Err(Errno::NOENT);
                let broken = Err(Errno::IO);
                let both = if names.len() == 1 { broken } else { Ok(()) };
                let odd = if names.len() == 1 { broken } else { absent };
                assert_eq!(find("both"), both, "{top} {options}");
                assert_eq!(find("odd"), odd, "{top} {options}");
                assert_eq!(find("gone"), absent, "{top} {options}");
                assert_eq!(t.names(top), names, "{top} {options}");
            }
        }
        assert_eq!(t.create("d/odd", "new").is_err(), names.len() == 1);
    }
    assert_eq!(t.read("d/odd"), "new");
}

#[test]
fn whiteouts_are_shown_on_request_and_cannot_be_changed() {
    let mut t = Fixture::new();
    t.put("c/d/.wh.x", "");
    t.put("c/d/y", "y");
    t.put("c/e/.wh..wh..opq", "");
    t.put("b/d/.wh.y", "");
    t.put("b/d/.wh.z", "");
    t.put("a/d/x", "x");
    t.put("a/d/z", "z");
    t.put("a/d/.wh.ignored", "");
    t.put("a/e/f", "f");
    t.open(&["c=rw", "b=ro+wh", "a=ro"], "ro,shwh");
    assert_eq!(t.names("d"), [".wh.x", ".wh.y", ".wh.z", "y"]);
    assert_eq!(t.names("e"), [".wh..wh..opq"]);
    t.check_numbers("d");
    assert_eq!(t.read("d/.wh.x"), "");
    assert_eq!(t.find("d/x"), Err(Errno::NOENT));
    assert_eq!(t.find("d/.wh.ignored"), Err(Errno::NOENT));
    assert_eq!(t.find(".wh..wh.uaufs"), Err(Errno::PERM));
    assert!(!t.names("").contains(&".wh..wh.uaufs".to_owned()));
    assert_eq!(t.unlink("d/.wh.x"), Err(Errno::PERM));
    assert_eq!(t.create("d/.wh.n", "").map(|_| ()), Err(Errno::PERM));
    t.open(&["c=rw", "b=ro+wh", "a=ro"], "");
    assert_eq!(t.names("d"), ["y"]);
    assert_eq!(t.find("d/.wh.x"), Err(Errno::PERM));
}

#[test]
fn shown_whiteouts_need_a_readonly_mount() {
    let mut t = Fixture::new();
    t.put_dir("c");
    t.put("b/.wh.x", "");
    let parse = |options: String| {
        let words: Vec<_> = options.split(',').map(Into::into).collect();
        unionfs::spec::MountSpec::parse(&words).unwrap()
    };
    let (c, b) = (t.path("c"), t.path("b"));
    let spec = parse(format!("br={}=rw:{}=ro,shwh", c.display(), b.display()));
    let refused = unionfs::union::Union::open(&spec)
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("add ro"), "{refused}");
    t.open(&["b=ro+wh"], "shwh");
    assert_eq!(t.names(""), [".wh.x"]);
}

#[test]
fn many_whiteouts_are_removed_behind_the_scenes() {
    let trash = |t: &Fixture| t.path("c/.wh..wh.uaufs/trash").read_dir().unwrap().count();
    let mut t = Fixture::new();
    for n in 0..500 {
        for dir in ["d", "e"] {
            t.put(&format!("a/{dir}/{n}"), "");
            t.put(&format!("c/{dir}/.wh.{n}"), "");
        }
    }
    t.put("a/e/.wh.stranger", "");
    t.open(&["c=rw", "a=ro"], "dirwh=10");
    t.rmdir("d").unwrap();
    assert!(!has(&t, "c/d") && has(&t, "c/.wh.d"));
    assert_eq!(t.find("d"), Err(Errno::NOENT));
    let deadline = Instant::now() + Duration::from_secs(10);
    while trash(&t) > 0 {
        assert!(Instant::now() < deadline, "the trash is not emptied");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The end of the union waits for it.
    t.rmdir("e").unwrap();
    t.close();
    assert_eq!(trash(&t), 0);
    // What a crash leaves is removed by the next mount.
    t.put("c/.wh..wh.uaufs/trash/7/.wh.x", "");
    t.open(&["c=rw", "a=ro"], "");
    assert_eq!(trash(&t), 0);
    assert!(t.names("").is_empty());
}

/// Five directories with many whiteouts. Nothing makes the thread slow that removes them, so it is
/// enough that one of several was not done yet.
fn many_whiteouts() -> Fixture {
    let mut t = Fixture::new();
    for dir in 0..5 {
        for n in 0..2000 {
            t.put(&format!("c/{dir}/.wh.{n}"), "");
        }
        t.put_dir(&format!("a/{dir}"));
    }
    t.open(&["c=rw", "a=ro"], "");
    t
}

#[test]
fn rmdir_does_not_wait_until_many_whiteouts_are_removed() {
    let t = many_whiteouts();
    let trash = t.path("c/.wh..wh.uaufs/trash");
    let left = |dir: i32| {
        t.rmdir(&dir.to_string()).unwrap();
        trash.read_dir().unwrap().next().is_some()
    };
    assert!((0..5).any(left), "rmdir always waited");
}

#[test]
fn a_rename_over_a_directory_does_not_wait_for_its_whiteouts_either() {
    let mut t = many_whiteouts();
    let trash = t.path("c/.wh..wh.uaufs/trash");
    let mut waited = true;
    for dir in 0..5 {
        t.put(&format!("c/new{dir}/x"), "new");
        t.put(&format!("a/{dir}/7"), "hidden");
    }
    t.open(&["c=rw", "a=ro"], "");
    for dir in 0..5 {
        t.rename(&format!("new{dir}"), &dir.to_string()).unwrap();
        waited &= trash.read_dir().unwrap().next().is_none();
        assert_eq!(t.names(&dir.to_string()), ["x"], "nothing shows from below");
        assert_eq!(t.find(&format!("new{dir}")), Err(Errno::NOENT));
        t.check_numbers(&dir.to_string());
    }
    assert!(!waited, "rename always waited");
    t.open(&["c=rw", "a=ro"], "");
    assert!(trash.read_dir().unwrap().next().is_none());
    assert_eq!(t.names("3"), ["x"]);
    assert!(!has(&t, "c/.wh.3") && has(&t, "c/3/.wh..wh..opq"));
}

#[test]
fn few_whiteouts_are_gone_when_rmdir_returns() {
    let mut t = Fixture::new();
    for n in 0..3 {
        t.put(&format!("a/d/{n}"), "");
        t.put(&format!("c/d/.wh.{n}"), "");
    }
    t.open(&["c=rw", "a=ro"], "");
    t.rmdir("d").unwrap();
    assert!(
        t.path("c/.wh..wh.uaufs/trash")
            .read_dir()
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_base_with_as_many_links_as_the_filesystem_allows_is_replaced() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    for name in ["a", "b", "c"] {
        t.put(&format!("b1/{name}"), "");
    }
    t.put_dir("b0");
    t.put_dir("links");
    let branches = ["b0=rw", "b1=ro"];
    t.open(&branches, "");
    let base = t.path("b0/.wh..wh.aufs");
    let number = t.number_on_branch("b0/.wh..wh.aufs");
    t.unlink("a").unwrap();
    assert_eq!(t.number_on_branch("b0/.wh.a"), number);
    let full = (0..70_000).find(|n| {
        let link = t.path(&format!("links/{n}"));
        std::fs::hard_link(&base, link).is_err()
    });
    if full.is_none() {
        return;
    }
    t.unlink("b").unwrap();
    t.unlink("c").unwrap();
    assert!(t.names("").is_empty());
    let renewed = t.number_on_branch("b0/.wh..wh.aufs");
    assert_ne!(renewed, number);
    assert_eq!(t.number_on_branch("b0/.wh.c"), renewed);
    t.open(&branches, "");
    assert!(t.names("").is_empty());
}

/// ext4 takes no attribute of more than a block; tmpfs does.
#[test]
fn an_attribute_that_the_copy_cannot_have_fails_the_copy_up_unless_icex_says_otherwise() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    let lower = t.path("b1");
    let _tmpfs = Tmpfs::mount(&lower);
    t.put_dir("b0");
    let big = vec![b'x'; 20_000];
    let set = |path: &std::path::Path, class: &str| {
        let name = format!("{class}.big");
        rustix::fs::setxattr(path, name, &big, rustix::fs::XattrFlags::empty())
    };
    t.put("b0/probe", "");
    for (class, others, own) in [
        ("user", "rw+icexsec+icexsys+icextr+icexoth", "rw+icexusr"),
        ("trusted", "rw+icexsec+icexsys+icexusr+icexoth", "rw+icextr"),
        (
            "security",
            "rw+icexsys+icextr+icexusr+icexoth",
            "rw+icexsec",
        ),
    ] {
        t.put(&format!("b1/{class}"), "data");
        if set(&lower.join(class), class).is_err() || set(&t.path("b0/probe"), class).is_ok() {
            continue;
        }
        for (perm, copied) in [("rw", false), (others, false), (own, true)] {
            t.open(&[&format!("b0={perm}"), "b1=ro"], "");
            assert_eq!(t.write(class, "new").is_ok(), copied, "{class}, {perm}");
            let copy = t.path(&format!("b0/{class}"));
            assert_eq!(copy.exists(), copied, "{class}, {perm}");
        }
        assert_eq!(t.on_branch(&format!("b0/{class}")), "new");
    }
    t.close();
}

/// No kernel asks for such a name; who does must not get out of the branches by it.
#[test]
fn a_mark_that_is_shown_is_one_name_and_no_path() {
    let mut t = Fixture::new();
    t.put("outside", "");
    t.put_dir("b/.wh.d");
    t.put("b/.wh.d/in", "");
    t.open(&["b=ro"], "ro,shwh");
    for name in [&b".wh.d/in"[..], b".wh.d/../../outside"] {
        assert_eq!(
            t.union().lookup(NodeId::ROOT, name).err(),
            Some(Errno::PERM)
        );
    }
}
