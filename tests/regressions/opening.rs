//! What is refused before anything is mounted.

use super::fixture::{Fixture, is_root};
use std::ffi::OsString;
use std::fs;
use unionfs::spec::MountSpec;
use unionfs::union::Union;

#[test]
fn a_work_directory_that_is_a_branch_or_above_one_is_refused_and_stays_as_it_is() {
    if !is_root() {
        return;
    }
    let t = Fixture::new();
    t.put("low/file", "low");
    t.put("works/low2/file", "low");
    t.put_dir("up");
    t.put_dir("works/up2");
    let path = |name: &str| t.path(name).display().to_string();
    for (upper, work) in [
        ("up", "low"),
        ("up", "works"),
        ("works/up2", "works"),
        ("up", "up"),
    ] {
        let words = [
            format!("lowerdir={}:{}", path("low"), path("works/low2")),
            format!("upperdir={}", path(upper)),
            format!("workdir={}", path(work)),
        ];
        let spec = MountSpec::parse(&words.map(OsString::from)).unwrap();
        let error = Union::open(&spec).err().expect(work).to_string();
        assert!(
            error.starts_with(&format!("{}: workdir", path(work))),
            "{error}"
        );
        assert!(
            error.contains(" is a branch: give a directory of its own"),
            "{error}"
        );
        assert!(!t.path(work).join("uaufs").exists(), "{work}");
    }
    assert_eq!(fs::read_dir(t.path("low")).unwrap().count(), 1);
}
