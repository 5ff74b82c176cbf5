//! Branches written out by name, and what is told of them.

use super::*;
use std::ffi::OsStr;
use std::fs::{create_dir_all, write};
use std::os::unix::ffi::OsStrExt;

fn tree(dir: &Path, files: &[&str]) {
    create_dir_all(dir).unwrap();
    for file in files {
        let path = dir.join(file);
        if file.ends_with('/') {
            create_dir_all(path).unwrap();
        } else {
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, "").unwrap();
        }
    }
}

fn lines_of(upper: &Path, lowers: &[std::path::PathBuf], json: bool) -> String {
    let lowers: Vec<_> = lowers
        .iter()
        .map(|path| Lower {
            path,
            whiteouts: true,
        })
        .collect();
    let mut out = Vec::new();
    let mut printer = Printer::new(&mut out, json, Letters::Modified);
    diff(upper, &lowers, &mut |changed| printer.print(changed)).unwrap();
    printer.finish().unwrap();
    String::from_utf8(out).unwrap()
}

fn lines(upper: &[&str], lowers: &[&[&str]]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    tree(&dir.path().join("u"), upper);
    let paths: Vec<_> = (0..lowers.len())
        .map(|at| dir.path().join(at.to_string()))
        .collect();
    for (path, files) in paths.iter().zip(lowers) {
        tree(path, files);
    }
    let text = lines_of(&dir.path().join("u"), &paths, false);
    text.lines().map(str::to_owned).collect()
}

#[test]
fn added_modified_deleted() {
    let upper = [
        "etc/passwd",
        "etc/new",
        ".wh.gone",
        "etc/.wh.motd",
        "new/x",
        ".wh..wh.uaufs/log",
    ];
    let lower = ["etc/passwd", "etc/motd", "gone/file", "kept"];
    assert_eq!(
        lines(&upper, &[&lower]),
        [
            "M /etc",
            "D /etc/motd",
            "A /etc/new",
            "M /etc/passwd",
            "D /gone",
            "A /new",
            "A /new/x"
        ]
    );
}

#[test]
fn an_opaque_directory_deletes_what_it_does_not_hold() {
    assert_eq!(
        lines(
            &["d/.wh..wh..opq", "d/a", "d/n", "d/s/"],
            &[&["d/a", "d/b", "d/c/x", "d/s/y"]]
        ),
        [
            "M /d", "M /d/a", "D /d/b", "D /d/c", "A /d/n", "M /d/s", "D /d/s/y"
        ]
    );
    assert_eq!(
        lines(&[".wh..wh..opq", "a"], &[&["a", "b"]]),
        ["M /a", "D /b"]
    );
    // A whiteout beside the directory does the same.
    assert_eq!(
        lines(&[".wh.d", "d/a"], &[&["d/b"]]),
        ["M /d", "A /d/a", "D /d/b"]
    );
}

#[test]
fn whiteouts_below_count() {
    assert_eq!(lines(&["f"], &[&[".wh.f"], &["f"]]), ["A /f"]);
    assert_eq!(
        lines(&["d/f"], &[&["d/.wh..wh..opq"], &["d/f"]]),
        ["M /d", "A /d/f"]
    );
    assert_eq!(lines(&[".wh.f"], &[&[".wh.f"], &["f"]]), [""; 0]);
}

#[test]
fn an_entry_beside_its_whiteout_wins() {
    assert_eq!(lines(&[".wh.f", "f"], &[&["f"]]), ["M /f"]);
}

#[test]
fn what_unionfs_fuse_hides_is_gone() {
    let upper = [
        ".unionfs/gone_HIDDEN~",
        ".unionfs/never_HIDDEN~",
        ".unionfs/d/e/x_HIDDEN~",
        ".unionfs/gone/y_HIDDEN~",
        ".unionfs/again_HIDDEN~/",
        "again/new",
        "f",
    ];
    let lower = ["gone/y", "d/e/x", "d/e/z", "again/old", "f"];
    assert_eq!(
        lines(&upper, &[&lower]),
        [
            "M /again",
            "A /again/new",
            "D /again/old",
            "M /d",
            "M /d/e",
            "D /d/e/x",
            "M /f",
            "D /gone",
        ]
    );
    // On a branch between, which does not hold the directory.
    let middle = [".unionfs/d/e/x_HIDDEN~", ".unionfs/again_HIDDEN~"];
    assert_eq!(
        lines(&["d/e/x", "again/old"], &[&middle, &lower]),
        ["A /again", "A /again/old", "M /d", "M /d/e", "A /d/e/x"]
    );
}

#[test]
fn another_type_is_told_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let (u, l) = (dir.path().join("u"), dir.path().join("l"));
    tree(&u, &["a", "b/x"]);
    tree(&l, &["a/y", "b"]);
    let text = lines_of(&u, &[l], true);
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let want = serde_json::json!([
        {"path": "/a", "change": "M", "kind": "file", "was": "directory"},
        {"path": "/b", "change": "M", "kind": "directory", "was": "file"},
        {"path": "/b/x", "change": "A", "kind": "file"},
    ]);
    assert_eq!(found, want);
    assert_eq!(
        lines_of(&dir.path().join("u/b"), &[], true).lines().count(),
        3
    );
    std::fs::remove_file(u.join("b/x")).unwrap();
    assert_eq!(lines_of(&u.join("b"), &[], true), "[]\n");
}

#[test]
fn names_of_any_bytes_take_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (u, l) = (dir.path().join("u"), dir.path().join("l"));
    create_dir_all(&u).unwrap();
    create_dir_all(&l).unwrap();
    write(u.join(OsStr::from_bytes(b"\xff\n")), "").unwrap();
    assert_eq!(
        lines_of(&u, std::slice::from_ref(&l), false),
        "A /\\xff\\n\n"
    );
    let found: serde_json::Value = serde_json::from_str(&lines_of(&u, &[l], true)).unwrap();
    assert_eq!(found[0]["path"], serde_json::json!([47, 255, 10]));
}

#[test]
fn a_deep_tree_needs_no_deep_stack() {
    let dir = tempfile::tempdir().unwrap();
    let (u, l) = (dir.path().join("u"), dir.path().join("l"));
    create_dir_all(&u).unwrap();
    create_dir_all(&l).unwrap();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    let mut at = rustix::fs::open(&u, flags, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..600 {
        rustix::fs::mkdirat(&at, "d", rustix::fs::Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    assert_eq!(lines_of(&u, &[l], false).lines().count(), 600);
    crate::sys::remove::tree(&u).unwrap();
}

/// Overlay marks, as the kernel's overlayfs writes them; needs root.
#[test]
fn devices_and_attributes_are_marks_too() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (u, l) = (dir.path().join("u"), dir.path().join("l"));
    tree(&u, &["d/n", "moved/"]);
    tree(&l, &["d/a", "f", "old/x", "old/y"]);
    let null = |path: &Path| {
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
    };
    for name in ["f", "old", "moved/y"] {
        null(&u.join(name));
    }
    let set = |path: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(u.join(path), name, value, flags).unwrap();
    };
    set("d", "trusted.overlay.opaque", b"y");
    set("moved", "trusted.overlay.redirect", b"old");
    let found = lines_of(&u, &[l], false);
    let want = [
        "M /d",
        "D /d/a",
        "A /d/n",
        "D /f",
        "A /moved",
        "A /moved/x",
        "D /old",
    ];
    assert_eq!(found.lines().collect::<Vec<_>>(), want);
}
