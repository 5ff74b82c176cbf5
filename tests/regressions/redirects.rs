//! Renamed directories: where their lower parts are found.

use super::fixture::{Fixture, is_root};
use std::path::Path;
use unionfs::errno::Errno;

fn set_redirect(dir: &Path, value: &str) {
    let name = "trusted.overlay.redirect";
    rustix::fs::lsetxattr(dir, name, value.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn redirects_of_a_branch_that_became_readonly_are_followed() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("b/d/x", "x");
    t.put("b/d/sub/y", "y");
    t.put_dir("a");
    t.put_dir("c");
    t.open(&["a=rw", "b=ro"], "udba=none,dirren");
    t.rename("d", "e").unwrap();
    t.rename("e/sub", "s").unwrap();
    let branches = ["c=rw", "a=ro+wh", "b=ro"];
    for _ in 0..2 {
        t.open(&branches, "udba=none,dirren");
        assert_eq!(t.names(""), ["e", "s"]);
        assert_eq!(
            (t.names("e"), t.names("s")),
            (vec!["x".into()], vec!["y".into()])
        );
        assert_eq!((t.read("e/x"), t.read("s/y")), ("x".into(), "y".into()));
    }
    // Renamed once more, above the readonly redirect.
    t.rename("e", "f").unwrap();
    t.write("s/y", "new").unwrap();
    for _ in 0..2 {
        assert_eq!(t.names(""), ["f", "s"]);
        assert_eq!((t.read("f/x"), t.read("s/y")), ("x".into(), "new".into()));
        t.open(&branches, "udba=none,dirren");
    }
}

#[test]
fn a_redirect_that_is_no_path_shows_no_other_directory() {
    if !is_root() {
        return;
    }
    for value in [".", "..", "/", "/a/../b", "a/b"] {
        let mut t = Fixture::new();
        t.put("low/p/other/x", "x");
        t.put_dir("up/p/d");
        t.put_dir("work");
        set_redirect(&t.path("up/p/d"), value);
        let base = t.as_ref().display().to_string();
        t.open_as(&format!(
            "lowerdir={base}/low,upperdir={base}/up,workdir={base}/work"
        ));
        assert_eq!(t.find("p/d").err(), Some(Errno::INVAL), "{value}");
        assert_eq!(t.read("p/other/x"), "x");
    }
}

#[test]
fn a_redirect_to_a_name_that_is_too_long_leaves_the_upper_part() {
    if !is_root() {
        return;
    }
    let long = "n".repeat(256);
    for value in [long.clone(), format!("/{long}"), format!("/d/{long}/x")] {
        let mut t = Fixture::new();
        t.put("low/d/x", "x");
        t.put("up/d/y", "y");
        t.put_dir("work");
        set_redirect(&t.path("up/d"), &value);
        let base = t.as_ref().display().to_string();
        t.open_as(&format!(
            "lowerdir={base}/low,upperdir={base}/up,workdir={base}/work"
        ));
        // As the kernel's overlayfs shows it.
        assert_eq!(t.names("d"), ["y"], "{value}");
    }
}

#[test]
fn a_redirect_without_a_slash_leads_to_a_sibling() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    // As the kernel's overlayfs leaves them after `mv p/d p/e` and `mv p/e/sub p/e/moved`.
    t.put("low/p/d/x", "x");
    t.put("low/p/d/sub/y", "y");
    t.put("low/d/wrong", "wrong");
    t.put("low/sub/wrong", "wrong");
    t.put_dir("up/p/e/moved");
    t.put_dir("top");
    t.put_dir("work");
    set_redirect(&t.path("up/p/e"), "d");
    set_redirect(&t.path("up/p/e/moved"), "sub");
    let base = t.as_ref().display().to_string();
    let layers = format!("lowerdir={base}/up:{base}/low,upperdir={base}/top,workdir={base}/work");
    for _ in 0..2 {
        t.open_as(&layers);
        assert_eq!(t.names("p/e/moved"), ["y"]);
        assert_eq!(t.read("p/e/moved/y"), "y");
        assert_eq!(t.read("p/e/x"), "x");
    }
    // Met on the way of another redirect: the walk goes on beside, too.
    t.rename("p", "q").unwrap();
    for _ in 0..2 {
        assert_eq!(t.read("q/e/x"), "x");
        assert_eq!(t.names("q/e/moved"), ["y"]);
        t.open_as(&layers);
    }
    t.rename("q/e", "e").unwrap();
    for _ in 0..2 {
        assert_eq!(t.read("e/x"), "x");
        assert_eq!(t.names("e/moved"), ["y"]);
        t.open_as(&layers);
    }
}

#[test]
fn a_file_whose_data_is_nowhere_is_refused_not_shown_as_holes() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    for dir in ["up", "work"] {
        t.put_dir(dir);
    }
    t.put("b/f", "1234");
    t.put_dir("a/f");
    let holes = std::fs::File::create(t.path("b/f")).unwrap();
    holes.set_len(4).unwrap();
    let name = "trusted.overlay.metacopy";
    rustix::fs::lsetxattr(t.path("b/f"), name, b"", rustix::fs::XattrFlags::empty()).unwrap();
    let [up, work, b, a] = ["up", "work", "b", "a"].map(|p| t.path(p).display().to_string());
    t.open_as(&format!("lowerdir={b}:{a},upperdir={up},workdir={work}"));
    assert_eq!(t.attr("f").size, 4);
    assert_eq!(t.read_node(t.node("f")), Err(Errno::IO));
    assert_eq!(t.write("f", "new"), Err(Errno::IO));
    assert_eq!(t.chmod("f", 0o600).map(|_| ()), Err(Errno::IO));
    assert!(!t.path("up/f").exists());
}
