//! Renamed directories: where their lower parts are found.

use super::fixture::{Fixture, is_root};
use std::path::Path;

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
