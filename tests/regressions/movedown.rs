//! Single files moved to a lower writable branch, and pseudo-links made hard links.

use crate::fixture::{Fixture, is_root};
use unionfs::errno::Errno;
use unionfs::types::NodeId;
use unionfs::union::merge::{MoveDown, Outcome, Reason};

fn two_writable() -> Fixture {
    let mut f = Fixture::new();
    f.put("a/file", "upper");
    f.put("a/d/deep", "deep");
    f.put("b/other", "other");
    f.put_link("a/file", "a/l1");
    f.put_link("a/file", "a/l2");
    f.take("a/file");
    f.put("a/file", "upper");
    f.open(&["a=rw", "b=rw"], "udba=none");
    f
}

fn down(f: &Fixture, path: &str, how: MoveDown) -> Result<Outcome, Errno> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    f.union().move_down(f.node(dir), name.as_bytes(), how)
}

#[test]
fn a_file_moves_down_with_its_number_and_an_open_one_goes_on() {
    if !is_root() {
        return;
    }
    let mut f = two_writable();
    let node = f.node("d/deep");
    f.union().open_node(node, libc::O_RDWR).unwrap();
    assert_eq!(
        down(&f, "d/deep", MoveDown::default()),
        Ok(Outcome::Moved(4))
    );
    assert!(!f.path("a/d/deep").exists());
    assert_eq!(f.on_branch("b/d/deep"), "deep");
    f.write_node(node, "written").unwrap();
    assert_eq!(f.on_branch("b/d/deep"), "written");
    assert_eq!(f.node("d/deep"), node);
    f.open(&["a=rw", "b=rw"], "udba=none");
    assert_eq!(f.node("d/deep"), node);
    assert_eq!(f.read("d/deep"), "written");
}

#[test]
fn what_cannot_move_stays_and_says_why() {
    if !is_root() {
        return;
    }
    let f = two_writable();
    f.put("b/file", "lower");
    let left = |reason| Ok(Outcome::Left(reason));
    let plain = MoveDown::default();
    assert_eq!(down(&f, "d", plain), left(Reason::Directory));
    assert_eq!(down(&f, "l1", plain), left(Reason::HardLinked));
    assert_eq!(down(&f, "other", plain), left(Reason::Bottom));
    assert_eq!(down(&f, "file", plain), left(Reason::Exists));
    assert_eq!(f.on_branch("b/file"), "lower");
    let kept = MoveDown {
        overwrite: true,
        keep_upper: true,
        ..plain
    };
    assert_eq!(down(&f, "file", kept), Ok(Outcome::Moved(5)));
    assert_eq!(f.on_branch("a/file") + &f.on_branch("b/file"), "upperupper");
    let busy: NodeId = f.node("d/deep");
    f.union().set_busy_check(move |node| node == busy);
    assert_eq!(down(&f, "d/deep", plain), left(Reason::Busy));
    assert_eq!(f.on_branch("a/d/deep"), "deep");
}

#[test]
fn flushed_pseudo_links_are_hard_links_of_all_names() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    f.put("ro/x", "old");
    f.put_link("ro/x", "ro/d/y");
    f.put_dir("rw");
    f.open(&["rw=rw", "ro=ro"], "udba=none");
    f.write("x", "new").unwrap();
    let node = f.node("x");
    assert_eq!(f.union().plinked(), [node]);
    assert_eq!(f.union().plink_drop(node), Err(Errno::BUSY));
    f.union().plink_up(f.node("d"), b"y").unwrap();
    f.union().plink_up(f.node(""), b"x").unwrap();
    f.union().plink_drop(node).unwrap();
    assert!(f.union().plinked().is_empty());
    assert_eq!(f.number_on_branch("rw/d/y"), f.number_on_branch("rw/x"));
    assert_eq!((f.attr("x").nlink, f.read("d/y").as_str()), (2, "new"));
    f.open(&["rw=rw", "ro=ro"], "udba=none");
    assert_eq!((f.node("x"), f.attr("d/y").nlink), (node, 2));
}

#[test]
fn a_device_of_that_name_below_is_not_replaced_unasked() {
    if !is_root() {
        return;
    }
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let f = two_writable();
    let device = f.path("b/file");
    if mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR, 0).is_err() {
        return;
    }
    let left = Ok(Outcome::Left(Reason::Exists));
    assert_eq!(down(&f, "file", MoveDown::default()), left);
    assert!(device.exists() && f.path("a/file").exists());
}
