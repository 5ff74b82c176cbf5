//! `coo_reg`, `coo_all`, `moo`: what is opened is copied up.

use super::fixture::Fixture;
use std::sync::atomic::{AtomicBool, Ordering};
use unionfs::types::{NodeId, Writer};

fn open(t: &Fixture, path: &str) -> NodeId {
    let node = t.node(path);
    t.union().open_node(node, libc::O_RDONLY).unwrap();
    node
}

fn has(t: &Fixture, path: &str) -> bool {
    t.path(path).symlink_metadata().is_ok()
}

#[test]
fn reading_copies_up_and_directories_only_with_coo_all() {
    for (perm, dirs) in [("ro+coo_reg", false), ("ro+coo_all", true)] {
        let mut t = Fixture::new();
        t.put_dir("c");
        t.put("a/d/x", "x");
        t.put("a/e/y", "y");
        t.open(&["c=rw", &format!("a={perm}")], "");
        t.attr("d/x");
        assert!(!has(&t, "c/d"));
        t.union().open_dir(t.node("d")).unwrap();
        assert_eq!(has(&t, "c/d"), dirs, "{perm}");
        let node = open(&t, "e/y");
        assert_eq!(t.on_branch("c/e/y"), "y", "{perm}");
        assert_eq!(t.on_branch("a/e/y"), "y", "{perm}");
        assert_eq!(t.read_node(node).unwrap(), "y");
        assert_eq!(t.node("e/y"), node);
    }
}

#[test]
fn nothing_writable_above_is_no_error() {
    let mut t = Fixture::new();
    t.put("a/x", "x");
    t.put_dir("c");
    for branches in [["a=ro+coo_all", "c=rw"], ["a=rw+moo", "c=ro"]] {
        t.open(&branches, "");
        let node = open(&t, "x");
        t.union().open_dir(t.node("")).unwrap();
        assert_eq!(t.read_node(node).unwrap(), "x");
        assert!(!has(&t, "c/x") && has(&t, "a/x"));
    }
}

#[test]
fn moo_moves_a_file_with_its_number_and_what_lies_below_shows_when_it_is_gone() {
    let mut t = Fixture::new();
    t.put_dir("c");
    t.put("m/d/x", "middle");
    t.put("m/lone", "lone");
    t.put("a/d/x", "lowest");
    t.open(&["c=rw", "m=rw+moo", "a=ro"], "");
    let number = t.node("d/x");
    let lone = t.node("lone");
    assert_eq!(open(&t, "d/x"), number);
    assert_eq!(open(&t, "lone"), lone);
    assert!(has(&t, "m/d") && !has(&t, "m/d/x") && !has(&t, "m/lone"));
    assert_eq!(
        (t.read("d/x"), t.read("lone")),
        ("middle".into(), "lone".into())
    );
    t.check_numbers("d");
    t.open(&["c=rw", "m=rw+moo", "a=ro"], "");
    assert_eq!((t.node("d/x"), t.node("lone")), (number, lone));
    // Nothing is below the one: no whiteout for it.
    t.unlink("lone").unwrap();
    assert!(!has(&t, "c/.wh.lone"));
    t.unlink("d/x").unwrap();
    assert!(has(&t, "c/d/.wh.x"));
    assert!(t.names("d").is_empty());
}

#[test]
fn a_file_of_several_names_stays_on_its_writable_branch() {
    let mut t = Fixture::new();
    t.put_dir("c");
    t.put("m/x", "x");
    t.put_link("m/x", "m/y");
    t.open(&["c=rw", "m=rw+moo"], "");
    open(&t, "x");
    t.write("x", "new").unwrap();
    assert!(!has(&t, "c/x") && has(&t, "m/x"));
    assert_eq!(t.read("y"), "new");
}

#[test]
fn the_names_of_a_lower_file_stay_one_file() {
    let mut t = Fixture::new();
    t.put_dir("c");
    t.put("a/x", "x");
    t.put_link("a/x", "a/y");
    t.open(&["c=rw", "a=ro+coo_reg"], "");
    open(&t, "x");
    assert_eq!(open(&t, "y"), t.node("x"));
    t.write("y", "new").unwrap();
    assert_eq!((t.read("x"), t.attr("x").nlink), ("new".into(), 2));
    assert_eq!(t.on_branch("a/x"), "x");
}

#[test]
fn an_unlinked_file_is_read_where_it_is() {
    let mut t = Fixture::new();
    t.put_dir("c");
    t.put("m/x", "x");
    t.open(&["c=rw", "m=rw+moo"], "");
    let node = t.node("x");
    t.unlink("x").unwrap();
    t.union().open_node(node, libc::O_RDONLY).unwrap();
    assert_eq!(t.read_node(node).unwrap(), "x");
    assert!(!has(&t, "c/x"));
}

#[test]
fn no_write_is_lost_while_a_file_moves() {
    const SIZE: usize = 4 << 20;
    let mut t = Fixture::new();
    t.put_dir("c");
    for round in 0..4 {
        t.put(&format!("m/f{round}"), &"-".repeat(SIZE));
    }
    t.open(&["c=rw", "m=rw+moo"], "udba=none");
    for round in 0..4 {
        let name = format!("f{round}");
        let node = t.node(&name);
        let done = AtomicBool::new(false);
        let union = t.union();
        let mut written = 0;
        std::thread::scope(|s| {
            s.spawn(|| {
                union.open_node(node, libc::O_RDONLY).unwrap();
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) || written == 0 {
                let at = written * 997 % SIZE;
                union
                    .write(node, at as u64, b"W", Writer::Privileged)
                    .unwrap();
                written += 1;
            }
        });
        let data = std::fs::read(t.path(&format!("c/{name}"))).unwrap();
        assert_eq!(data.len(), SIZE);
        for n in 0..written {
            assert_eq!(data[n * 997 % SIZE], b'W', "write {n} of {written}");
        }
        assert!(!has(&t, &format!("m/{name}")));
    }
}
