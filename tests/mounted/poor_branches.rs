//! A writable branch on a filesystem that lacks much (docs/reliability.md, "Poor branches").

use crate::fixture::{World, names, program, text};
use crate::poor::{self, Lacks};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, chownat, mknodat, renameat_with};
use rustix::io::Errno;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use unionfs::fuse::unmount;

/// A world with the writable branch `p/up` on such a filesystem, over `low`.
struct Poor {
    world: World,
}

impl Poor {
    fn new(lacks: Lacks) -> Option<Self> {
        let poor = Self {
            world: World::new()?,
        };
        for dir in ["source/up", "p", "low"] {
            poor.world.mkdir(dir, 0o755);
        }
        poor::mount(&poor.world.path("source"), &poor.world.path("p"), lacks).unwrap();
        Some(poor)
    }

    fn mounted(&self, options: &str, body: impl FnOnce(&World)) {
        let options = format!("br=p/up=rw:low=ro+wh,{options}");
        self.world.mounted(&options, || body(&self.world));
    }
}

impl Drop for Poor {
    fn drop(&mut self) {
        let _ = unmount(&self.world.path("m"), true);
        let _ = unmount(&self.world.path("p"), true);
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_mount_tells_in_one_line_what_the_branch_lacks() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    let mount = |branch: &str| {
        let output = Command::new(program())
            .current_dir(poor.world.path(""))
            .args(["-o", branch, "m"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        poor.world.umount();
        text(&output)
    };
    let told = mount("br=p/up=rw:low");
    assert_eq!(told.lines().count(), 1, "{told}");
    for word in ["p/up", "extended attributes", "device nodes", "EXCHANGE"] {
        assert!(told.contains(word), "{told}");
    }
    assert!(!told.contains("hard links"), "{told}");
    assert_eq!(mount("br=low=rw:p/up"), "");
}

#[test]
fn an_acl_that_a_copy_cannot_have_becomes_a_mode_that_gives_nobody_more() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    let world = &poor.world;
    world.put("low/d/f", "old");
    // u::rw- u:5:rw- g::r-- m::rw- o::r--; the mode shows the mask as the group's.
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 6, u32::MAX),
        (0x02, 6, 5),
        (0x04, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 4, u32::MAX),
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    world.set_xattr("low/d/f", "system.posix_acl_access", &acl);
    world.set_xattr("low/d/f", "user.kept", b"no");
    assert_eq!(mode(&world.path("low/d/f")), 0o664);
    poor.mounted("", |world| {
        fs::write(world.path("m/d/f"), "new").unwrap();
        assert_eq!(mode(&world.path("m/d/f")), 0o644);
        let set = rustix::fs::setxattr(
            world.path("m/d/f"),
            c"user.more",
            b"x",
            rustix::fs::XattrFlags::empty(),
        );
        assert_eq!(set, Err(Errno::OPNOTSUPP));
    });
    assert_eq!(world.read("low/d/f"), "old");
}

#[test]
fn without_device_nodes_devices_can_be_removed_and_not_be_changed() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    let world = &poor.world;
    let bits = Mode::from_bits_truncate(0o600);
    let node = world.path("low/null");
    mknodat(
        CWD,
        &node,
        FileType::CharacterDevice,
        bits,
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    poor.mounted("", |world| {
        let change = chownat(
            CWD,
            world.path("m/null"),
            Some(rustix::fs::Uid::from_raw(5)),
            None,
            AtFlags::empty(),
        );
        assert_eq!(change, Err(Errno::PERM));
        let made = mknodat(CWD, world.path("m/new"), FileType::BlockDevice, bits, 1);
        assert_eq!(made, Err(Errno::PERM));
        fs::remove_file(world.path("m/null")).unwrap();
        assert!(names(&world.path("m")).is_empty());
    });
    assert_eq!(names(&world.path("p/up/.wh..wh.uaufs/tmp")), [""; 0]);
    poor.mounted("", |world| assert!(names(&world.path("m")).is_empty()));
}

#[test]
fn without_hard_links_the_names_of_a_lower_file_part() {
    let lacks = Lacks {
        link: true,
        ..Lacks::default()
    };
    let Some(poor) = Poor::new(lacks) else {
        return;
    };
    let world = &poor.world;
    world.put("low/a", "old");
    for name in ["low/b", "low/c"] {
        fs::hard_link(world.path("low/a"), world.path(name)).unwrap();
    }
    let check = |world: &World| {
        assert_eq!(names(&world.path("m")), ["b", "c", "d"]);
        assert_eq!(world.read("m/b"), "new");
        assert_eq!(world.read("m/c"), "old");
        assert_eq!(world.read("m/d"), "old");
        assert_eq!(fs::metadata(world.path("m/b")).unwrap().nlink(), 1);
    };
    poor.mounted("", |world| {
        fs::write(world.path("m/b"), "new").unwrap();
        fs::rename(world.path("m/a"), world.path("m/d")).unwrap();
        let (from, to) = (world.path("m/c"), world.path("m/e"));
        let linked = fs::hard_link(from, to).unwrap_err();
        assert_eq!(linked.raw_os_error(), Some(libc::EPERM));
        check(world);
    });
    // A link that is refused copies nothing.
    assert!(!world.path("p/up/c").exists());
    assert_eq!(names(&world.path("p/up/.wh..wh.plnk")), [""; 0]);
    poor.mounted("", check);
}

#[test]
fn renames_that_the_branch_has_no_flags_for_are_done_where_the_union_can_do_them() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    poor.world.put("low/d/f", "x");
    poor.world.put("low/g", "y");
    poor.mounted("dirren", |world| {
        let rename = |from: &str, to: &str, flags| {
            let (from, to) = (world.path(from), world.path(to));
            renameat_with(CWD, from, CWD, to, flags)
        };
        assert_eq!(
            rename("m/g", "m/d", RenameFlags::NOREPLACE),
            Err(Errno::EXIST)
        );
        assert_eq!(rename("m/g", "m/h", RenameFlags::NOREPLACE), Ok(()));
        assert_eq!(
            rename("m/h", "m/d", RenameFlags::EXCHANGE),
            Err(Errno::INVAL)
        );
        assert_eq!(rename("m/d", "m/e", RenameFlags::empty()), Ok(()));
        assert_eq!(names(&world.path("m")), ["e", "h"]);
    });
    poor.mounted("dirren", |world| {
        assert_eq!(names(&world.path("m")), ["e", "h"]);
        assert_eq!(world.read("m/e/f"), "x");
    });
}

#[test]
fn changes_behind_the_union_are_seen_when_the_clock_has_not_moved() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    // Short lifetimes, so that all of it is within one step of two seconds.
    poor.mounted("udba=reval:0.05", |world| {
        let past = || std::thread::sleep(Duration::from_millis(300));
        for round in 0..4 {
            let name = format!("f{round}");
            let (inside, outside) = (world.path("m").join(&name), world.path("p/up").join(&name));
            let before = names(&world.path("m")).len();
            fs::write(&outside, "one").unwrap();
            past();
            assert_eq!(names(&world.path("m")).len(), before + 1, "round {round}");
            assert_eq!(fs::read_to_string(&inside).unwrap(), "one");
            fs::write(&outside, "two").unwrap();
            past();
            assert_eq!(fs::read_to_string(&inside).unwrap(), "two", "round {round}");
        }
    });
}

#[test]
fn a_branch_that_cannot_have_the_marks_of_overlayfs_is_not_half_converted() {
    let Some(poor) = Poor::new(Lacks::default()) else {
        return;
    };
    poor.world.put("low/gone", "x");
    poor.world.put("low/kept", "y");
    poor.mounted("", |world| fs::remove_file(world.path("m/gone")).unwrap());
    let mut convert = Command::new(program());
    convert.arg("convert").arg(poor.world.path("p/up"));
    let output = convert.args(["--to", "overlay"]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("(EPERM)"), "{}", text(&output));
    poor.mounted("", |world| {
        assert_eq!(names(&world.path("m")), ["kept"]);
    });
}
