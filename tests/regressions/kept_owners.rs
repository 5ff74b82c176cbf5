//! Owners and modes in an attribute: `xattr_permissions`, and layers of containers-storage.

use crate::fixture::{Fixture, is_root};
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr, makedev};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use unionfs::errno::Errno;
use unionfs::types::{Caller, Kind, SetAttr, Writer};

const KEPT: &str = "user.containers.override_stat";

fn kept(f: &Fixture, path: &str) -> String {
    let mut value = [0; 64];
    let len = lgetxattr(f.path(path), KEPT, &mut value[..]).unwrap();
    String::from_utf8_lossy(&value[..len]).into_owned()
}

fn keep(f: &Fixture, path: &str, value: &str) {
    lsetxattr(f.path(path), KEPT, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Owners are kept in the attribute.
const KEEPING: &str = ",xattr_permissions=2";

fn open(f: &mut Fixture, more: &str) {
    let at = |name: &str| f.path(name).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}{more}",
        at("low"),
        at("up"),
        at("work")
    );
    f.open_as(&options);
}

fn start() -> Fixture {
    let mut f = Fixture::new();
    for dir in ["up", "work"] {
        f.put_dir(dir);
    }
    f.put("low/d/file", "low");
    std::os::unix::fs::chown(f.path("low/d/file"), Some(7), Some(8)).unwrap();
    open(&mut f, KEEPING);
    f
}

#[test]
fn what_is_made_and_changed_keeps_its_owner_in_an_attribute() {
    if !is_root() {
        return;
    }
    let mut f = start();
    let root = f.node("/");
    let user = Caller {
        uid: 1000,
        gid: 50,
        ..Caller::default()
    };
    f.union().mkdir(&user, root, b"dir", 0o750, 0o022).unwrap();
    let device = makedev(1, 3);
    f.union()
        .mknod(&user, root, b"null", libc::S_IFCHR | 0o666, 0, device)
        .unwrap();
    let set = SetAttr {
        uid: Some(9),
        mode: Some(0o4711),
        ..SetAttr::default()
    };
    f.union()
        .setattr(f.node("/d/file"), &set, Writer::Privileged)
        .unwrap();
    for remounted in [false, true] {
        if remounted {
            f.close();
            open(&mut f, KEEPING);
        }
        let (dir, null, file) = (f.attr("/dir"), f.attr("/null"), f.attr("/d/file"));
        assert_eq!((dir.uid, dir.gid, dir.mode & 0o7777), (1000, 50, 0o750));
        assert_eq!(
            (null.kind(), null.rdev, null.uid),
            (Kind::Char, device, 1000)
        );
        assert_eq!((file.uid, file.gid, file.mode & 0o7777), (9, 8, 0o4711));
    }
    assert_eq!(kept(&f, "up/dir"), "1000:50:750");
    assert_eq!(kept(&f, "up/null"), "1000:50:666:char-1-3");
    assert_eq!(kept(&f, "up/d/file"), "9:8:4711");
    let real = |path: &str| f.path(path).symlink_metadata().unwrap();
    assert_eq!((real("up/dir").uid(), real("up/d/file").uid()), (0, 0));
    assert_eq!(real("up/d/file").mode() & 0o7000, 0);
    assert!(!real("up/null").file_type().is_char_device());
    // Writing by others takes setuid away.
    let file = f.node("/d/file");
    f.union()
        .write(file, 0, b"x", Writer::Ordinary(&|_| false))
        .unwrap();
    assert_eq!(f.attr("/d/file").mode & 0o7777, 0o711);
    // It is the union's own.
    assert_eq!(
        f.union().getxattr(file, KEPT.as_bytes()),
        Err(Errno::NODATA)
    );
    let names = f.union().listxattr(file).unwrap();
    assert!(!names.windows(8).any(|w| w == b"override"));
}

#[test]
fn a_layer_whose_root_has_the_attribute_shows_what_it_says() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    for dir in ["up", "work"] {
        f.put_dir(dir);
    }
    f.put("low/d/file", "low");
    keep(&f, "low", "0:0:755");
    keep(&f, "low/d", "5:6:2770");
    keep(&f, "low/d/file", "1000:1001:4755:file");
    open(&mut f, "");
    let dir = f.attr("/d");
    assert_eq!((dir.uid, dir.gid, dir.mode & 0o7777), (5, 6, 0o2770));
    // A copy is given them for real, on a branch that keeps no attribute.
    f.write("/d/file", "up").unwrap();
    let real = f.path("up/d/file").symlink_metadata().unwrap();
    assert_eq!((real.uid(), real.gid()), (1000, 1001));
    let mut value = [0; 64];
    assert!(lgetxattr(f.path("up/d/file"), KEPT, &mut value[..]).is_err());
}
