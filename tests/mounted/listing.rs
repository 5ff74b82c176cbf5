//! What a listing tells of files without looking at them, and while others list and change the same.

use super::fixture::World;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// Threads that list and change one directory.
const THREADS: usize = 6;
/// Names that are there anyhow: more than fit in one answer to a listing.
const OTHERS: usize = 300;

/// Makes and removes names of its own for a while; each must be listed exactly while it is there.
fn make_and_list(dir: &Path, thread: usize, end: Instant) -> usize {
    let mut made = BTreeSet::new();
    let mut round = 0;
    while Instant::now() < end {
        let name = format!("{thread}.{}", round * 7 % 19);
        if made.remove(&name) {
            fs::remove_file(dir.join(&name)).unwrap();
        } else {
            File::create(dir.join(&name)).unwrap();
            made.insert(name);
        }
        let own = |name: &String| name.starts_with(&format!("{thread}."));
        let names = fs::read_dir(dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let listed: BTreeSet<String> = names.filter(own).collect();
        assert_eq!(listed, made, "thread {thread}, round {round}");
        round += 1;
    }
    round
}

#[test]
fn what_is_made_is_listed_whoever_else_lists() {
    let Some(world) = World::new() else { return };
    world.mkdir("up/d", 0o755);
    for other in 0..OTHERS {
        world.put(&format!("low/d/other.{other}"), "");
    }
    for mode in [
        "io=passthrough",
        "io=cache,open=answered",
        "open=none,dirperm1",
    ] {
        world.mounted(&format!("br=up=rw:low=ro,udba=none,{mode}"), || {
            let (dir, end) = (world.path("m/d"), Instant::now() + Duration::from_secs(1));
            std::thread::scope(|scope| {
                let run = |thread| make_and_list(&dir, thread, end);
                let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || run(t))).collect();
                assert!(threads.into_iter().all(|t| t.join().unwrap() > 0), "{mode}");
            });
        });
        fs::remove_dir_all(world.path("up")).unwrap();
        world.mkdir("up/d", 0o755);
    }
}

#[test]
fn a_listing_goes_on_while_names_come_and_go() {
    for mode in [
        "udba=reval",
        "udba=none",
        "udba=none,open=none",
        "udba=notify",
    ] {
        let Some(world) = World::new() else { return };
        for n in 0..FILES {
            world.put(
                &format!("{}/d/file-{n}", if n % 2 == 0 { "up" } else { "low" }),
                "",
            );
        }
        world.mounted(&format!("br=up=rw:low=ro,{mode}"), || {
            let d = world.path("m/d");
            let fd = openat(CWD, &d, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut entries = RawDir::new(fd, &mut buffer);
            let mut seen = BTreeMap::<String, u32>::new();
            let mut stays: BTreeMap<String, u32> =
                (0..FILES).map(|n| (format!("file-{n}"), 1)).collect();
            for step in 0.. {
                let Some(entry) = entries.next() else { break };
                let name = entry.unwrap().file_name().to_str().unwrap().to_owned();
                *seen.entry(name).or_default() += 1;
                if step % 100 != 99 {
                    continue;
                }
                // One that was seen, and one that was or was not.
                for n in [step, step * 7] {
                    let name = format!("file-{}", n % FILES);
                    if stays.remove(&name).is_some() {
                        fs::remove_file(d.join(&name)).unwrap();
                    }
                }
                fs::write(d.join(format!("new-{step}")), "").unwrap();
                if step == 499 {
                    // Behind the union, and noticed: the names are merged anew.
                    world.put("up/d/stranger", "");
                    fs::remove_file(world.path("up/d/file-1998")).unwrap();
                    stays.remove("file-1998");
                    std::thread::sleep(Duration::from_millis(1100));
                    assert!(
                        d.join("file-1000").exists() && d.join("no").symlink_metadata().is_err()
                    );
                }
            }
            let once = seen.iter().all(|(_, times)| *times == 1);
            assert!(once, "{mode}: listed twice");
            for name in stays.keys() {
                assert!(seen.contains_key(name), "{mode}: {name} is not listed");
            }
        });
    }
}
