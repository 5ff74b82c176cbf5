//! Changes made on a branch itself, behind the union: `udba=none`, `reval` and `notify`.

use super::fixture::{World, names, text};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How soon `udba=notify` shows a change on a quiet host. Tests run beside others.
const SOON: Duration = Duration::from_millis(500);

/// Waits until something is so; how long that took.
fn within(limit: Duration, what: &str, mut so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < limit, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Two branches with a directory `d` on both, everything in it known to the kernel.
fn world() -> Option<World> {
    let world = World::new()?;
    for (branch, text) in [("up", "upper"), ("low", "lower")] {
        world.put(&format!("{branch}/d/{text}"), text);
        world.put(&format!("{branch}/d/{text}-gone"), text);
        world.put(&format!("{branch}/d/{text}-dir/in"), text);
        world.put(&format!("{branch}/d/{text}-moved/in"), text);
    }
    Some(world)
}

fn know(world: &World) {
    let d = world.path("m/d");
    for _ in 0..2 {
        for name in names(&d) {
            let path = d.join(name);
            let _ = fs::metadata(&path).unwrap();
            if path.is_dir() {
                let _ = (
                    names(&path),
                    read(&path.join("in")),
                    read(&path.join("new")),
                );
            } else {
                let _ = read(&path);
            }
        }
        for absent in ["new", "new-dir", "renamed"] {
            assert!(!d.join(absent).exists());
        }
    }
}

/// Makes changes of every kind on one branch; each must show within `limit`.
fn changes_show(world: &World, branch: &str, mine: &str, limit: Duration) {
    let on = |name: &str| world.path(&format!("{branch}/d/{name}"));
    let seen = |name: &str| world.path(&format!("m/d/{name}"));
    know(world);
    fs::write(on("new"), "1").unwrap();
    within(limit, "a new file", || {
        read(&seen("new")).as_deref() == Some("1")
    });
    within(limit, "it is listed", || {
        names(&seen("")).contains(&"new".to_owned())
    });
    fs::write(on("new"), "longer").unwrap();
    within(limit, "new data", || {
        read(&seen("new")).as_deref() == Some("longer")
    });
    within(limit, "a new size", || {
        fs::metadata(seen("new")).unwrap().len() == 6
    });
    fs::write(on("other"), "replaced").unwrap();
    fs::rename(on("other"), on("new")).unwrap();
    within(limit, "a replaced file", || {
        read(&seen("new")).as_deref() == Some("replaced")
    });
    for round in 0..20 {
        // Filesystems give the number again at once.
        let text = format!("again {round}");
        fs::remove_file(on("new")).unwrap();
        fs::write(on("new"), &text).unwrap();
        within(limit, "a file in place of another", || {
            read(&seen("new")) == Some(text.clone())
        });
    }
    fs::remove_file(on("new")).unwrap();
    within(limit, "a removed file", || !seen("new").exists());
    fs::remove_file(on(&format!("{mine}-gone"))).unwrap();
    within(limit, "a removed file", || {
        !seen(&format!("{mine}-gone")).exists()
    });
    // Before anything else changes this file: news of that would bring the mode along.
    fs::set_permissions(on(mine), fs::Permissions::from_mode(0o600)).unwrap();
    within(limit, "a mode", || {
        fs::metadata(seen(mine)).unwrap().mode() & 0o777 == 0o600
    });
    File::options()
        .append(true)
        .open(on(mine))
        .unwrap()
        .write_all(b" and more")
        .unwrap();
    let whole = format!("{mine} and more");
    within(limit, "appended data", || {
        read(&seen(mine)).as_ref() == Some(&whole)
    });
    fs::create_dir(on("new-dir")).unwrap();
    within(limit, "a directory", || seen("new-dir").is_dir());
    fs::write(on("new-dir/new"), "x").unwrap();
    within(limit, "a file in it", || seen("new-dir/new").exists());
    fs::remove_dir_all(on("new-dir")).unwrap();
    within(limit, "a removed directory", || !seen("new-dir").exists());
    fs::create_dir(on("new-dir")).unwrap();
    within(limit, "a directory again", || seen("new-dir").is_dir());
    within(limit, "an empty one", || names(&seen("new-dir")).is_empty());
    fs::write(on("new-dir/second"), "x").unwrap();
    within(limit, "a file in the second directory", || {
        seen("new-dir/second").exists()
    });
    fs::rename(on(&format!("{mine}-moved")), on("renamed")).unwrap();
    within(limit, "a renamed directory", || {
        read(&seen("renamed/in")).as_deref() == Some(mine)
            && !seen(&format!("{mine}-moved")).exists()
    });
    let odd = OsStr::from_bytes(b"odd-\xff\xfe");
    assert!(!seen("").join(odd).exists());
    fs::write(on("").join(odd), "x").unwrap();
    within(limit, "a name that is no text", || {
        seen("").join(odd).exists()
    });
}

/// Marks and directories of the upper branch that hide or join what is below.
fn marks_show(world: &World, limit: Duration) {
    let on = |name: &str| world.path(&format!("up/d/{name}"));
    let seen = |name: &str| world.path(&format!("m/d/{name}"));
    assert!(seen("lower").exists());
    fs::write(on(".wh.lower"), "").unwrap();
    within(limit, "a whiteout", || !seen("lower").exists());
    fs::remove_file(on(".wh.lower")).unwrap();
    within(limit, "a whiteout taken away", || seen("lower").exists());
    fs::write(on("lower"), "above").unwrap();
    within(limit, "a file above another", || {
        read(&seen("lower")).as_deref() == Some("above")
    });
    fs::remove_file(on("lower")).unwrap();
    within(limit, "the lower file again", || {
        read(&seen("lower")).as_deref() == Some("lower")
    });
    assert!(!seen("lower-dir/new").exists() && seen("lower-dir/in").exists());
    fs::create_dir(on("lower-dir")).unwrap();
    fs::write(on("lower-dir/new"), "x").unwrap();
    within(limit, "a directory that joins", || {
        seen("lower-dir/new").exists() && seen("lower-dir/in").exists()
    });
    fs::write(on("lower-dir/.wh..wh..opq"), "").unwrap();
    within(limit, "an opaque mark", || !seen("lower-dir/in").exists());
    fs::remove_file(on("lower-dir/.wh..wh..opq")).unwrap();
    within(limit, "an opaque mark taken away", || {
        seen("lower-dir/in").exists()
    });
    // Of a directory on both branches the lower part goes and comes.
    let low = |name: &str| world.path(&format!("low/d/{name}"));
    fs::rename(low("lower-dir"), world.path("low/away")).unwrap();
    within(limit, "a lower part that goes", || {
        !seen("lower-dir/in").exists()
    });
    assert!(seen("lower-dir/new").exists());
    fs::rename(world.path("low/away"), low("lower-dir")).unwrap();
    within(limit, "a lower part that comes", || {
        seen("lower-dir/in").exists()
    });
}

#[test]
fn with_notify_changes_on_the_writable_branch_show_at_once() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        changes_show(&world, "up", "upper", SOON);
        marks_show(&world, SOON);
    });
}

#[test]
fn with_notify_changes_on_a_readonly_branch_show_at_once() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=fsnotify", || {
        changes_show(&world, "low", "lower", SOON);
    });
}

#[test]
fn with_notify_and_the_page_cache_changes_show_at_once() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=notify,io=cache", || {
        changes_show(&world, "up", "upper", SOON);
        // Also to whoever has the file open.
        let mut file = File::open(world.path("m/d/upper")).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        fs::write(world.path("up/d/upper"), "X").unwrap();
        within(SOON, "data of an open file", || {
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_at(&file, &mut byte, 0).unwrap();
            byte == *b"X"
        });
    });
}

#[test]
fn with_reval_changes_show_after_the_lifetime() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=reval:0.1", || {
        changes_show(&world, "up", "upper", Duration::from_secs(2));
        marks_show(&world, Duration::from_secs(2));
    });
    world.mounted("br=up=rw:low=ro,udba=reval:0", || {
        world.put("low/d/at-once", "x");
        assert!(world.path("m/d/at-once").exists());
    });
}

#[test]
fn with_none_what_is_cached_stays() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=none", || {
        know(&world);
        world.put("up/d/new", "x");
        std::thread::sleep(Duration::from_millis(1200));
        assert!(!world.path("m/d/new").exists());
    });
}

#[test]
fn without_a_watch_changes_show_after_a_second() {
    let Some(world) = world() else { return };
    // Room for the two roots, not for the rest.
    world.mounted("br=up=rw:low=ro,udba=notify,watches=2", || {
        know(&world);
        assert!((1..=2).contains(&watches_of(&world)));
        let limit = Duration::from_secs(3);
        world.put("up/d/new", "x");
        fs::remove_file(world.path("low/d/lower-gone")).unwrap();
        world.put("up/d/upper", "other");
        within(limit, "changes", || {
            let seen = |name: &str| world.path(&format!("m/d/{name}"));
            seen("new").exists()
                && !seen("lower-gone").exists()
                && read(&seen("upper")).as_deref() == Some("other")
        });
        assert!((1..=2).contains(&watches_of(&world)));
        world.put("up/at-root", "x");
        within(SOON, "a name in a watched directory", || {
            world.path("m/at-root").exists()
        });
    });
}

/// Watches that the server of the mount holds: of all processes, the one that watches `up`.
fn watches_of(world: &World) -> usize {
    let up = format!(" ino:{:x} ", fs::metadata(world.path("up")).unwrap().ino());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let infos = processes.flat_map(|p| fs::read_dir(p.path().join("fdinfo")).into_iter().flatten());
    infos
        .filter_map(|info| fs::read_to_string(info.ok()?.path()).ok())
        .find(|info| info.contains("inotify wd:") && info.contains(&up))
        .map_or(0, |info| info.matches("inotify wd:").count())
}

#[test]
fn watches_go_when_the_kernel_forgets() {
    let Some(world) = World::new() else { return };
    world.mkdir("low", 0o755);
    for n in 0..300 {
        world.put(&format!("up/t/{n}/f"), "x");
    }
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        for n in 0..300 {
            assert!(world.path(&format!("m/t/{n}/f")).exists());
        }
        assert!(watches_of(&world) > 300);
        within(Duration::from_secs(10), "watches are dropped", || {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            // Nodes that were in use when they were forgotten go with the next ones.
            let _ = world.path("m/t/0/f").exists();
            watches_of(&world) < 30
        });
        world.put("up/t/1/g", "x");
        within(SOON, "a change in what was forgotten", || {
            world.path("m/t/1/g").exists()
        });
    });
}

#[test]
fn when_events_are_lost_everything_is_compared() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        know(&world);
        // More than fs.inotify.max_queued_events, faster than anybody can listen.
        let limit = read(Path::new("/proc/sys/fs/inotify/max_queued_events")).unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let dir = world.path("up/d");
                scope.spawn(move || {
                    let (a, b) = (
                        dir.join(format!("a{thread}")),
                        dir.join(format!("b{thread}")),
                    );
                    fs::write(&a, "").unwrap();
                    for _ in 0..limit.min(20_000) {
                        fs::rename(&a, &b).unwrap();
                        fs::rename(&b, &a).unwrap();
                    }
                });
            }
        });
        world.put("up/d/new", "x");
        fs::remove_file(world.path("up/d/upper-gone")).unwrap();
        within(Duration::from_secs(10), "what was lost", || {
            world.path("m/d/new").exists()
                && !world.path("m/d/upper-gone").exists()
                && names(&world.path("m/d")) == merged(&world)
        });
    });
}

fn merged(world: &World) -> Vec<String> {
    let mut all = names(&world.path("up/d"));
    all.extend(names(&world.path("low/d")));
    all.sort();
    all.dedup();
    all
}

#[test]
fn what_the_union_does_itself_is_no_news() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        let d = world.path("m/d");
        let inside = d.join("made");
        fs::create_dir(&inside).unwrap();
        // A directory in use must not be dropped: its path would be gone.
        let here = File::open(&inside).unwrap();
        for n in 0..200 {
            fs::write(inside.join(n.to_string()), n.to_string()).unwrap();
            fs::rename(inside.join(n.to_string()), inside.join(format!("r{n}"))).unwrap();
            if n % 2 == 0 {
                fs::remove_file(inside.join(format!("r{n}"))).unwrap();
            }
        }
        fs::write(d.join("lower"), "copied up").unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&here));
        assert_eq!(fs::read_link(link).unwrap(), inside);
        assert_eq!(names(&inside).len(), 100);
        assert_eq!(read(&d.join("lower")).as_deref(), Some("copied up"));
    });
}

#[test]
fn udba_can_be_changed_while_mounted() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=none", || {
        let set = |udba: &str| ctl(&world, &["set", udba]);
        know(&world);
        world.put("up/d/new", "x");
        world.put("up/d/upper", "changed");
        std::thread::sleep(Duration::from_millis(50));
        let seen = |name: &str| world.path(&format!("m/d/{name}"));
        assert!(!seen("new").exists());
        set("udba=notify");
        within(SOON, "what changed before", || seen("new").exists());
        within(SOON, "data", || {
            read(&seen("upper")).as_deref() == Some("changed")
        });
        fs::remove_file(world.path("up/d/new")).unwrap();
        within(SOON, "what changes now", || !seen("new").exists());
        set("udba=reval:0.1");
        assert_eq!(watches_of(&world), 0);
        fs::remove_file(world.path("low/d/lower")).unwrap();
        within(Duration::from_secs(2), "what changes later", || {
            !seen("lower").exists()
        });
    });
}

/// Changes the live mount.
fn ctl(world: &World, words: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_uaufs"))
        .arg("ctl")
        .arg(world.path("m"))
        .args(words)
        .current_dir(world.path(""))
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {}", text(&output));
}

#[test]
fn with_notify_changes_on_a_branch_that_was_added_show_at_once() {
    let Some(world) = world() else { return };
    world.put("more/d/more", "x");
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        know(&world);
        let d = world.path("m/d");
        assert!(!d.join("more").exists());
        ctl(&world, &["append", "more=ro"]);
        within(SOON, "what it holds", || d.join("more").exists());
        assert!(!d.join("new").exists());
        world.put("more/d/new", "x");
        within(SOON, "a change on it", || d.join("new").exists());
        ctl(&world, &["del", "more"]);
        within(SOON, "its end", || !d.join("more").exists());
        changes_show(&world, "up", "upper", SOON);
    });
}

/// Says that it is done when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Prints how long changes take to show while others work on the mount.
#[test]
fn under_load_changes_show_in_time() {
    let Some(world) = world() else { return };
    world.mounted("br=up=rw:low=ro,udba=notify", || {
        know(&world);
        let done = AtomicBool::new(false);
        let mut times: Vec<Duration> = std::thread::scope(|scope| {
            for worker in 0..4 {
                let (dir, done) = (world.path(&format!("m/w{worker}")), &done);
                scope.spawn(move || {
                    fs::create_dir(&dir).unwrap();
                    let mut n = 0u64;
                    while !done.load(Ordering::Relaxed) {
                        let file = dir.join((n % 100).to_string());
                        fs::write(&file, "x").unwrap();
                        let _ = (fs::metadata(&file).unwrap(), read(&file), names(&dir).len());
                        if n.is_multiple_of(3) {
                            fs::remove_file(&file).unwrap();
                        }
                        n += 1;
                    }
                });
            }
            // A failure must not leave them working.
            let _stop = Stop(&done);
            (0..2000)
                .map(|n| {
                    let (branch, name) = (["up", "low"][n % 2], n / 4 % 50);
                    let (on, seen) = (
                        world.path(&format!("{branch}/d/n{name}")),
                        world.path(&format!("m/d/n{name}")),
                    );
                    let there = on.exists();
                    if there {
                        fs::remove_file(&on).unwrap();
                    } else {
                        fs::write(&on, "x").unwrap();
                    }
                    let expected = ["up", "low"]
                        .iter()
                        .any(|b| world.path(&format!("{b}/d/n{name}")).exists());
                    within(Duration::from_secs(5), "a change", || {
                        seen.exists() == expected
                    })
                })
                .collect()
        });
        times.sort();
        let (p50, p99) = (times[1000], times[1980]);
        println!("p50 {p50:?}, p99 {p99:?}, most {:?}", times[1999]);
        assert!(p99 < SOON, "p99 {p99:?}");
    });
}
