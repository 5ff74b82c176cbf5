//! Branches that unionfs-fuse wrote: read as a readonly branch, converted, and known to the check.

use super::fixture::{Fixture, is_root};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use unionfs::convert::{End, Request, Why, run};
use unionfs::fsck::{self, Problem};
use unionfs::spec::Format;

/// A branch that hides a name beside its own, one in a directory that it does not have, and the lower
/// part of a directory that was made anew.
fn branch() -> Fixture {
    let f = Fixture::new();
    for file in ["d/gone", "d/kept", "only/gone", "only/kept", "again/old"] {
        f.put(&format!("low/{file}"), "low");
    }
    f.put("rw/d/new", "rw");
    f.put("rw/again/new", "rw");
    for mark in ["d/gone_HIDDEN~", "only/gone_HIDDEN~", "stale/x/y_HIDDEN~"] {
        f.put(&format!("rw/.unionfs/{mark}"), "");
    }
    f.put_dir("rw/.unionfs/again_HIDDEN~");
    let mode = fs::Permissions::from_mode(0o751);
    fs::set_permissions(f.path("low/only"), mode).unwrap();
    f
}

fn request(f: &Fixture, to: Format) -> Request {
    Request {
        branch: f.path("rw"),
        to,
        from: None,
        workdir: None,
        user_attributes: false,
        lowers: vec![f.path("low")],
        dry_run: false,
    }
}

fn check(f: &Fixture) {
    let names = |path: &str| f.names(path);
    assert_eq!(names("/"), ["again", "d", "only"]);
    assert_eq!(names("/d"), ["kept", "new"]);
    assert_eq!(names("/only"), ["kept"]);
    assert_eq!(names("/again"), ["new"]);
    assert_eq!(f.attr("/only").mode & 0o7777, 0o751);
}

#[test]
fn a_readonly_branch_hides_what_unionfs_fuse_deleted() {
    if !is_root() {
        return;
    }
    let mut f = branch();
    f.open(&["rw=ro+wh", "low=ro"], "");
    check(&f);
    assert!(f.find("/only/gone").is_err());
    f.close();
    // Below a writable branch too.
    f.put_dir("top");
    f.open(&["top=rw", "rw=ro+wh", "low=ro"], "");
    check(&f);
    f.create("/only/gone", "top").unwrap();
    assert_eq!(f.names("/only"), ["gone", "kept"]);
}

#[test]
fn a_converted_branch_of_unionfs_fuse_shows_the_same() {
    if !is_root() {
        return;
    }
    for to in [Format::Aufs, Format::Overlay] {
        let mut f = branch();
        let before = f.path("rw/d").metadata().unwrap().mtime_nsec();
        let alone = Request {
            lowers: Vec::new(),
            ..request(&f, to)
        };
        let End::Impossible(obstacles) = run(&alone).unwrap() else {
            panic!("the directory is not known");
        };
        assert!(
            obstacles
                .iter()
                .any(|o| o.path == b"only" && o.why == Why::NeedsLower)
        );
        assert!(f.path("rw/.unionfs/again_HIDDEN~").exists());
        assert!(matches!(run(&request(&f, to)).unwrap(), End::Converted(_)));
        assert!(!f.path("rw/.unionfs").exists() && !f.path("rw/stale").exists());
        assert_eq!(f.path("rw/d").metadata().unwrap().mtime_nsec(), before);
        if to == Format::Aufs {
            f.open(&["rw=ro+wh", "low=ro"], "");
        } else {
            let at = |name: &str| f.path(name).display().to_string();
            let options = format!("lowerdir={}:{}", at("rw"), at("low"));
            f.open_as(&options);
        }
        check(&f);
    }
}

#[test]
fn the_check_says_what_unionfs_fuse_left() {
    let f = branch();
    let report = fsck::check(&fsck::Request {
        branches: vec![f.path("rw")],
        ..fsck::Request::default()
    })
    .unwrap();
    let problems: Vec<Problem> = report.branches[0]
        .findings
        .iter()
        .map(|f| f.problem)
        .collect();
    assert_eq!(problems, [Problem::UnionfsFuse]);
}
