//! What the overlay format means to its other readers: the kernel's overlayfs and fuse-overlayfs.

use crate::fixture::{Fixture, is_root};
use std::os::unix::fs::FileTypeExt;

fn open(f: &mut Fixture, lower: &[&str]) {
    let at = |name: &str| f.path(name).display().to_string();
    let lower: Vec<String> = lower.iter().map(|l| at(l)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        at("up"),
        at("work")
    );
    f.open_as(&options);
}

#[test]
fn a_file_between_two_lower_directories_ends_the_upper_of_them() {
    let mut f = Fixture::new();
    for dir in ["up", "work"] {
        f.put_dir(dir);
    }
    f.put("l1/d/a", "1");
    f.put("l2/d", "a file");
    f.put("l3/d/b", "3");
    open(&mut f, &["l1", "l2", "l3"]);
    assert_eq!(f.names("/d"), ["a"]);
    assert!(f.find("/d/b").is_err());
}

#[test]
fn a_directory_moved_without_its_hidden_lower_part_keeps_no_whiteout_devices() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    for dir in ["up", "work"] {
        f.put_dir(dir);
    }
    f.put("low/d/gone", "1");
    f.put("low/d/copied", "1");
    open(&mut f, &["low"]);
    f.write("/d/copied", "2").unwrap();
    f.unlink("/d/gone").unwrap();
    let device = f.path("up/d/gone").symlink_metadata().unwrap();
    assert!(device.file_type().is_char_device());
    f.rename("/d", "/moved").unwrap();
    assert_eq!(f.names("/moved"), ["copied"]);
    assert!(f.path("up/moved/gone").symlink_metadata().is_err());
    assert!(f.find("/d").is_err());
    // And gets none: what the copy hid below it stayed behind.
    f.unlink("/moved/copied").unwrap();
    assert!(f.path("up/moved/copied").symlink_metadata().is_err());
}
