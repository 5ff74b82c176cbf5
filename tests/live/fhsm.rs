//! Tiering: files that were not used for long leave an upper branch that fills up.

use crate::mounted::{Mounted, eventually, text};
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, SystemTime};
use unionfs::fuse::unmount;

const FILE: usize = 512 << 10;

/// Three tiers of 8, 16 and 32 MiB with a mount over them; everything goes when dropped.
struct Tiers(Mounted);

impl Tiers {
    fn new(options: &str) -> Option<Self> {
        let tiers = Self(Mounted::place(&["b0", "b1", "b2"])?);
        for (branch, size) in [("b0", "8m"), ("b1", "16m"), ("b2", "32m")] {
            let mut mount = Command::new("mount");
            // Reading what is there is no use that counts here.
            let options = format!("noatime,size={size}");
            mount.args(["-t", "tmpfs", "-o", &options, "uaufs-test"]);
            let status = mount.arg(tiers.0.path(branch)).status();
            assert!(status.unwrap().success());
        }
        tiers.0.mount(options);
        Some(tiers)
    }

    /// A file on a branch, last used so many hours ago.
    fn put(&self, path: &str, hours: u64) {
        let path = self.0.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = path.file_name().unwrap().as_encoded_bytes();
        let data: Vec<u8> = text.iter().copied().cycle().take(FILE).collect();
        fs::write(&path, data).unwrap();
        let then = SystemTime::now() - Duration::from_secs(3600 * hours);
        let times = FileTimes::new().set_accessed(then).set_modified(then);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(times)
            .unwrap();
    }

    /// Name, number, mode and content of everything in the mount.
    fn view(&self) -> Vec<(String, u64, u32, Vec<u8>)> {
        let mut seen = Vec::new();
        let mut todo = vec!["m".to_owned()];
        while let Some(dir) = todo.pop() {
            for name in self.0.names(&dir) {
                let path = format!("{dir}/{name}");
                let stat = fs::metadata(self.0.path(&path)).unwrap();
                let data = if stat.is_dir() {
                    todo.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(self.0.path(&path)).unwrap()
                };
                seen.push((path, stat.ino(), stat.mode(), data));
            }
        }
        seen.sort();
        seen
    }

    fn fhsm(&self, args: &[&str]) -> String {
        let out = self.0.run(&[&["fhsm", "m"], args].concat());
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    fn refused(&self, args: &[&str]) -> String {
        let out = self.0.run(&[&["fhsm", "m"], args].concat());
        assert!(!out.status.success(), "{args:?}");
        text(&out.stderr)
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        while unmount(&self.0.path("m"), true).is_ok() {}
        for branch in ["b0", "b1", "b2"] {
            let _ = unmount(&self.0.path(branch), true);
        }
    }
}

#[test]
fn a_branch_above_its_mark_is_drained_coldest_first_and_the_view_stays() {
    let Some(tiers) = Tiers::new("br=b0=rw+fhsm:b1=rw+fhsm:b2=rw+fhsm,udba=none") else {
        return;
    };
    // Of sixteen places fourteen: 87 %.
    let age = |n: u64| 100 + n * 5 % 12;
    for n in 0..12 {
        tiers.put(&format!("b0/d/f{n:02}"), age(n));
    }
    let mut oldest: Vec<u64> = (0..12).collect();
    oldest.sort_by_key(|n| std::cmp::Reverse(age(*n)));
    let mut oldest: Vec<String> = oldest.iter().map(|n| format!("f{n:02}")).collect();
    oldest.truncate(6);
    tiers.put("b0/linked", 200);
    fs::hard_link(tiers.0.path("b0/linked"), tiers.0.path("b0/d/again")).unwrap();
    tiers.put("b0/open", 150);
    let open = File::open(tiers.0.path("m/open")).unwrap();
    let before = tiers.view();
    let marks = ["--upper", "80", "--lower", "51"];
    let planned = tiers.fhsm(&[&["--dry-run"][..], &marks].concat());
    assert_eq!(tiers.0.names("b1").len(), 0, "{planned}");
    let done = tiers.fhsm(&[&["--once", "--json"][..], &marks].concat());
    assert!(tiers.view() == before, "{done}");
    let lines: Vec<serde_json::Value> = done
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (total, moved) = lines.split_last().unwrap();
    let order: Vec<_> = moved.iter().map(|l| l["path"].as_str().unwrap()).collect();
    let expected: Vec<String> = oldest.iter().map(|name| format!("d/{name}")).collect();
    assert_eq!(order, expected, "{done}");
    assert_eq!(total["moved"], 6, "{done}");
    assert_eq!((&total["busy"], &total["left"]), (&1.into(), &0.into()));
    assert_eq!(total["hard_linked"], 2, "{done}");
    assert!(total["before"].as_u64() > Some(80) && total["after"].as_u64() <= Some(51));
    oldest.sort();
    assert_eq!(tiers.0.names("b1/d"), oldest);
    assert_eq!(
        planned.lines().filter(|l| l.starts_with("moved")).count(),
        6
    );
    assert!(tiers.0.path("b0/open").exists() && tiers.0.path("b0/linked").exists());
    // Below the mark nothing more is done.
    assert_eq!(tiers.fhsm(&["--once", "--upper", "80"]), "");
    drop(open);
    // A branch below that has no room is passed over.
    let b1 = tiers.0.path("b1").display().to_string();
    let none = format!("{b1}=2:1");
    tiers.fhsm(&[
        "--once", "--branch", &none, "--upper", "40", "--lower", "30",
    ]);
    let passed = format!("b2/d/{}", oldest[0]);
    assert!(tiers.0.path(&passed).exists(), "b1 is drained as well");
    assert!(tiers.view() == before);
}

#[test]
fn it_watches_until_it_is_told_to_end_and_there_is_one_for_a_mount() {
    let Some(tiers) = Tiers::new("br=b0=rw+fhsm:b1=rw+fhsm:b2=rw,fhsm_sec=1") else {
        return;
    };
    let mut helper = tiers.0.command(&["fhsm", "m"]).spawn().unwrap();
    eventually("the second is refused", || {
        let out = tiers.0.run(&["fhsm", "m", "--once"]);
        text(&out.stderr).contains("EBUSY")
    });
    for n in 0..14 {
        tiers.put(&format!("b0/f{n:02}"), 100 - n);
    }
    eventually("what was used longest ago moves", || {
        tiers.0.path("b1/f05").exists() && !tiers.0.path("b0/f05").exists()
    });
    assert!(tiers.0.path("b0/f13").exists());
    let pid = i32::try_from(helper.id()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(helper.wait().unwrap().success());
    // The last one is never drained.
    for n in 14..36 {
        tiers.put(&format!("b1/f{n:02}"), 1);
    }
    assert!(!tiers.fhsm(&["--once"]).contains("b1"));
    assert!(tiers.0.names("b2").is_empty());
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let Some(tiers) = Tiers::new("br=b0=rw+fhsm:b1=rw:b2=rw") else {
        return;
    };
    let one = tiers.refused(&["--once"]);
    assert!(one.contains("two writable branches with +fhsm"), "{one}");
    tiers.0.ctl(&["mod", "b1=rw+fhsm"]);
    assert_eq!(tiers.0.branches()[1], "b1=rw+fhsm");
    assert_eq!(tiers.fhsm(&["--once"]), "");
    for args in [
        &["--upper", "40"][..],
        &["--upper", "101"],
        &["--branch", "b0"],
        &["--branch", "b0=40:60"],
        &["--branch", "b2=80:60"],
    ] {
        let line = tiers.refused(&[&["--once"], args].concat());
        assert_eq!(line.lines().count(), 1, "{line}");
    }
}
