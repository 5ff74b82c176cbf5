//! Branches that cannot be merged.

use std::fs;
use std::process::Command;

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
