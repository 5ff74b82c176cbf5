//! Branches that are merged while no union uses them, and those that cannot be.

use crate::fixture::{Fixture, is_root};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use unionfs::types::BranchId;
use unionfs::union::merge::{Item, MergeOptions, Outcome};

/// Every entry of a branch but the books: path, and what a user sees of it.
fn tree(top: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let shown = path.strip_prefix(top).unwrap().display().to_string();
            let opaque = shown.ends_with(".wh..wh..opq");
            if !opaque && shown.starts_with(".wh..wh.") {
                continue;
            }
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                found.push(format!("{shown} {:o}", meta.mode()));
                todo.push(path);
            } else {
                let data = fs::read_to_string(&path).unwrap();
                if shown.contains(".wh.") {
                    found.push(shown);
                    continue;
                }
                found.push(format!("{shown} {:o} {data}", meta.mode()));
            }
        }
    }
    found.sort();
    found
}

/// An upper branch with everything that counts, and a lower one.
fn two(f: &Fixture) {
    f.put("up/f", "new");
    f.put("up/d/x", "x");
    f.put_link("up/d/x", "up/x2");
    f.put("up/.wh.gone", "");
    f.put("up/.wh.never", "");
    f.put("up/o/only", "only");
    f.put("up/o/sub/deep", "deep");
    f.put("up/o/.wh..wh..opq", "");
    f.put("lo/f", "old");
    f.put("lo/gone", "gone");
    f.put("lo/d/kept", "kept");
    f.put("lo/o/hidden", "hidden");
    fs::set_permissions(f.path("up/d"), PermissionsExt::from_mode(0o750)).unwrap();
}

fn merge(f: &Fixture, args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_uaufs"))
        .args(["merge", "--bottom"])
        .args(args)
        .args([f.path("up"), f.path("lo")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

const MERGED: [&str; 8] = [
    "d 40750",
    "d/kept 100644 kept",
    "d/x 100644 x",
    "f 100644 new",
    "o 40755",
    "o/only 100644 only",
    "o/sub 40755",
    "o/sub/deep 100644 deep",
];

#[test]
fn a_copy_shows_all_by_itself_and_the_source_stays() {
    if !is_root() {
        return;
    }
    let f = Fixture::new();
    two(&f);
    let before = tree(&f.path("up"));
    let said = merge(&f, &["--mode", "copy"]);
    assert!(said.contains("entries copied"), "{said}");
    let mut merged = MERGED.to_vec();
    merged.push("x2 100644 x");
    assert_eq!(tree(&f.path("lo")), merged);
    assert_eq!(tree(&f.path("up")), before);
    assert_eq!(f.number_on_branch("lo/d/x"), f.number_on_branch("lo/x2"));
    // Once more changes nothing.
    merge(&f, &["--mode", "copy"]);
    assert_eq!(tree(&f.path("lo")), merged);
    assert_eq!(tree(&f.path("up")), before);
}

#[test]
fn a_moved_branch_is_empty_and_whiteouts_stay_where_they_are_asked_for() {
    if !is_root() {
        return;
    }
    for (mode, marks) in [
        ("move", &[][..]),
        ("move_with_wh", &[".wh.gone", ".wh.never", "o/.wh..wh..opq"]),
    ] {
        let f = Fixture::new();
        two(&f);
        merge(&f, &["--mode", mode]);
        let mut merged: Vec<&str> = MERGED.iter().chain(marks).copied().collect();
        merged.push("x2 100644 x");
        merged.sort_unstable();
        assert_eq!(tree(&f.path("lo")), merged, "{mode}");
        assert!(tree(&f.path("up")).is_empty(), "{mode}");
    }
}

#[test]
fn a_copy_that_is_stopped_leaves_the_source_as_it_was_when_it_is_done_again() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    two(&f);
    let before = tree(&f.path("up"));
    f.open(&["up=rw", "lo=rw"], "udba=none");
    let options = MergeOptions {
        copy: true,
        ..MergeOptions::default()
    };
    let stop = f.union().merge(
        BranchId(0),
        BranchId(1),
        options,
        &mut |step| match step.item {
            Item::OpaqueMark => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(stop.unwrap().stopped);
    assert_ne!(tree(&f.path("up")), before);
    f.close();
    merge(&f, &["--mode", "copy"]);
    assert_eq!(tree(&f.path("up")), before);
}

#[test]
fn a_branch_is_not_merged_with_itself() {
    let f = Fixture::new();
    f.put("up/f", "f");
    let out = Command::new(env!("CARGO_BIN_EXE_uaufs"))
        .args(["merge", "--bottom"])
        .args([f.path("up"), f.path("up")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("named twice"),
        "{said}"
    );
    assert!(!f.path("up/.wh..wh.uaufs").exists());
}

#[test]
fn what_was_copied_below_does_not_show_when_it_is_removed() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    two(&f);
    f.open(&["up=rw", "lo=rw"], "udba=none");
    assert_eq!(f.names(""), ["d", "f", "o", "x2"]);
    assert_eq!(f.names("o"), ["only", "sub"]);
    let options = MergeOptions {
        copy: true,
        ..MergeOptions::default()
    };
    let (from, to) = (BranchId(0), BranchId(1));
    let mut left = Vec::new();
    f.union()
        .merge(from, to, options, &mut |step| {
            if !matches!(step.done, Ok(Outcome::Moved(_))) {
                left.push(String::from_utf8_lossy(step.path).into_owned());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(f.on_branch("lo/d/x"), "x");
    for path in ["f", "d/x", "x2", "o/only", "o/sub/deep"] {
        f.unlink(path).unwrap();
    }
    f.rmdir("o/sub").unwrap();
    f.rmdir("o").unwrap();
    assert_eq!(f.names(""), ["d"]);
    assert_eq!(f.names("d"), ["kept"]);
    f.open(&["up=rw", "lo=rw"], "udba=none");
    assert_eq!(f.names(""), ["d"]);
    assert_eq!(f.names("d"), ["kept"]);
}

#[test]
fn a_branch_with_marks_of_overlayfs_is_not_merged() {
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| tmp.path().join(name);
    fs::create_dir_all(path("up/d")).unwrap();
    fs::create_dir_all(path("lo/d")).unwrap();
    fs::write(path("up/d/y"), "").unwrap();
    fs::write(path("lo/d/x"), "").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path("up/d"), c"user.overlay.opaque", b"y", flags).unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_uaufs"))
        .args(["merge", "--bottom"])
        .args([path("up"), path("lo")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("AUFS format"),
        "{said}"
    );
    assert!(path("up/d/y").exists() && !path("lo/d/y").exists());
    assert!(!path("up/.wh..wh.uaufs").exists());
}
