//! What a listing tells of files without looking at them.

use super::fixture::World;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Enough names for many answers.
const FILES: usize = 2000;

/// Names with the numbers that getdents64(2) tells. Nothing is looked up on the way: the kernel
/// asks for attributes with the first part of a listing, and after that for names and numbers only.
fn listed(dir: &Path) -> BTreeMap<String, u64> {
    let fd = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(fd, &mut buffer);
    let mut found = BTreeMap::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        assert!(
            found.insert(name.clone(), entry.ino()).is_none(),
            "{name} is listed twice"
        );
    }
    found
}

fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Checks every number of a listing, which was read as a whole before.
fn check(dir: &Path, names: usize, what: &str) {
    let found = listed(dir);
    assert_eq!(found.len(), names + 2, "{what}");
    for (name, listed) in &found {
        let looked_up = match name.as_str() {
            "." => number(dir),
            // Of the root it is a matter of taste, and nobody asks.
            ".." => continue,
            name => number(&dir.join(name)),
        };
        assert_eq!(*listed, looked_up, "{what}: {name}");
    }
}

#[test]
fn every_listed_number_is_that_of_the_file() {
    let Some(world) = World::new() else { return };
    for n in 0..FILES {
        world.put(&format!("low/d/file-{n}"), "");
        if n % 3 == 0 {
            world.put(&format!("up/d/file-{n}"), "");
        }
    }
    for name in ["low/d/sub", "up/d/sub", "low/d/below"] {
        world.mkdir(name, 0o755);
    }
    for n in 0..100 {
        let (old, new) = (
            format!("low/d/file-{}", n * 3 + 1),
            format!("low/d/link-{n}"),
        );
        fs::hard_link(world.path(&old), world.path(&new)).unwrap();
    }
    let names = FILES + 102;
    let d = world.path("m/d");
    for mode in [
        "udba=reval",
        "udba=none",
        "udba=none,open=none",
        "udba=notify",
        "noplink",
    ] {
        world.mounted(&format!("br=up=rw:low=ro,dirren,{mode}"), || {
            check(&d, names, &format!("{mode}, cold"));
            check(&d, names, &format!("{mode}, warm"));
        });
        world.mounted(&format!("br=up=rw:low=ro,dirren,{mode}"), || {
            // Copies keep the numbers of their sources.
            for n in (1..FILES).step_by(17) {
                world.chmod(&format!("m/d/file-{n}"), 0o600);
            }
            fs::rename(d.join("file-1"), d.join("moved")).unwrap();
            fs::rename(d.join("below"), d.join("renamed")).unwrap();
            check(&d, names, &format!("{mode}, changed"));
        });
        world.mounted(&format!("br=up=rw:low=ro,dirren,{mode}"), || {
            check(&d, names, &format!("{mode}, mounted again"));
            fs::rename(d.join("moved"), d.join("file-1")).unwrap();
            fs::rename(d.join("renamed"), d.join("below")).unwrap();
        });
    }
}
