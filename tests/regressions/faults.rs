//! A daemon that is killed, or gets an error, at any call that changes a branch: the next mount shows
//! the old state or the new, and after an error the mount that lives shows the old one.

use super::fixture::{Fixture, is_root};
use super::trace::{Calls, End, Fault, Plan, mark, run};
use std::fs::{self, File};
use std::process::Command;
use std::time::SystemTime;
use unionfs::errno::Result;
use unionfs::types::{SetAttr, Writer};

/// One operation on a union of `upper` and `lower`.
struct Case {
    prepare: fn(&Fixture),
    open: fn(&mut Fixture),
    act: fn(&Fixture) -> Result<()>,
    view: fn(&Fixture) -> String,
}

/// Tells the child what to do: number of the case and directory.
const ASSIGNMENT: &str = "UAUFS_REGRESSIONS_FAULT";

/// Where the child writes whether the call succeeded, and what the mount shows then.
const OUTCOME: &str = "outcome";

const CASES: [Case; 8] = [
    CUT, OVER_ONE, OVER_MANY, COPIED, LINKED, TAKEN, REPLACED, FILLED,
];
const CUT: Case = Case {
    prepare: |t| {
        t.put_dir("upper");
        t.put("lower/file", "something long");
        let file = File::options().write(true).open(t.path("lower/file"));
        file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    },
    open,
    act: |t| {
        let size = SetAttr {
            size: Some(4),
            ..SetAttr::default()
        };
        let node = t.find("file")?;
        t.union().setattr(node, &size, Writer::Privileged).map(drop)
    },
    view: |t| format!("{} {}", t.read("file"), t.attr("file").mtime.sec == 0),
};

/// A rename over a directory that hides names below.
const OVER_ONE: Case = Case {
    prepare: |t| hiding(t, 1),
    open,
    act: |t| t.rename("new", "dir"),
    view: |t| format!("{:?} {:?}", t.names(""), t.names("dir")),
};

/// The same with so many that they are removed in the background.
const OVER_MANY: Case = Case {
    prepare: |t| hiding(t, 9),
    ..OVER_ONE
};

/// One of the names of a lower file is copied up.
const COPIED: Case = Case {
    prepare: |t| {
        t.put_dir("upper");
        t.put("lower/a", "data");
        t.put("lower/other", "");
        t.put_link("lower/a", "lower/b");
        t.put_link("lower/a", "lower/dir/c");
    },
    open,
    act: |t| t.chmod("a", 0o600).map(drop),
    view: |t| {
        let names: [(&str, &str); 5] = [
            ("", "a"),
            ("", "b"),
            ("", "new"),
            ("", "other"),
            ("dir", "c"),
        ];
        let links = |(dir, name): (&str, &'static str)| {
            let there = t.names(dir).iter().any(|n| n == name);
            there.then(|| {
                let attr = t.attr(&format!("{dir}/{name}"));
                (name, attr.nlink, attr.mode & 0o777 == 0o600)
            })
        };
        format!(
            "{:?}",
            names.into_iter().filter_map(links).collect::<Vec<_>>()
        )
    },
};

/// A name below becomes a link of the copy, and gets another name.
const LINKED: Case = Case {
    prepare: |t| {
        (COPIED.prepare)(t);
        let mut before = Fixture::at(&t.path(""));
        open(&mut before);
        before.chmod("a", 0o600).unwrap();
    },
    act: |t| t.rename("b", "new"),
    ..COPIED
};

/// A name below is removed.
const TAKEN: Case = Case {
    act: |t| t.unlink("dir/c"),
    ..COPIED
};

/// A name below is replaced.
const REPLACED: Case = Case {
    act: |t| t.rename("other", "b"),
    ..COPIED
};

/// A file that overlayfs copied up without its data is cut.
const FILLED: Case = Case {
    prepare: |t| {
        (CUT.prepare)(t);
        t.put_dir("work");
        t.put("upper/file", "");
        let holes = File::options()
            .write(true)
            .open(t.path("upper/file"))
            .unwrap();
        holes.set_len("something long".len() as u64).unwrap();
        holes.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let (name, flags) = ("trusted.overlay.metacopy", rustix::fs::XattrFlags::empty());
        rustix::fs::fsetxattr(&holes, name, b"", flags).unwrap();
    },
    open: |t| {
        let [upper, lower, work] =
            ["upper", "lower", "work"].map(|dir| t.path(dir).display().to_string());
        t.open_as(&format!("lowerdir={lower},upperdir={upper},workdir={work}"));
    },
    ..CUT
};

fn hiding(t: &Fixture, whiteouts: usize) {
    for n in 0..whiteouts {
        t.put(&format!("lower/dir/{n}"), "hidden");
        t.put(&format!("upper/dir/.wh.{n}"), "");
    }
    t.put("upper/new/file", "");
}

fn open(t: &mut Fixture) {
    t.open(&["upper=rw", "lower=ro"], "");
}

#[test]
#[ignore = "run by the tests below"]
fn child() {
    let Ok(assignment) = std::env::var(ASSIGNMENT) else {
        return;
    };
    let (number, dir) = assignment.split_once(' ').unwrap();
    let case = &CASES[number.parse::<usize>().unwrap()];
    let mut t = Fixture::at(dir.as_ref());
    (case.open)(&mut t);
    (case.view)(&t);
    mark();
    let done = (case.act)(&t).is_ok();
    mark();
    let shown = (case.view)(&t);
    fs::write(t.path(OUTCOME), format!("{done} {shown}")).unwrap();
}

fn old_or_new_everywhere(number: usize) {
    if !is_root() {
        return;
    }
    let case = &CASES[number];
    let mut quiet = Fixture::new();
    (case.prepare)(&quiet);
    (case.open)(&mut quiet);
    let old = (case.view)(&quiet);
    (case.act)(&quiet).unwrap();
    let new = (case.view)(&quiet);
    assert_ne!(old, new);
    for fault in [Fault::Kill, Fault::Errno(libc::EIO)] {
        for n in 0.. {
            let mut t = Fixture::new();
            (case.prepare)(&t);
            let assignment = format!("{number} {}", t.path("").display());
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .args(["--exact", "faults::child", "--ignored"])
                .env(ASSIGNMENT, assignment);
            let plan = Plan::new(Calls::Changes, None, Some(n), fault);
            let end = run(&mut command, &plan).unwrap();
            let Some(call) = plan.hit() else {
                assert!(n > 3, "only {n} calls were counted");
                break;
            };
            let at = format!("{fault:?} at call {n}, {call}");
            (case.open)(&mut t);
            let shown = (case.view)(&t);
            if end == End::Killed {
                assert!(shown == old || shown == new, "{at}: {shown}");
                continue;
            }
            assert_eq!(end, End::Finished, "{at}");
            let outcome = t.on_branch(OUTCOME);
            let (done, live) = outcome.split_once(' ').unwrap();
            let expected = if done == "true" { &new } else { &old };
            assert_eq!(live, expected, "{at}: the mount");
            assert_eq!(&shown, expected, "{at}: the next mount");
        }
    }
}

#[test]
fn a_lower_file_is_cut_before_its_copy_gets_its_name() {
    old_or_new_everywhere(0);
}

#[test]
fn a_directory_that_is_not_replaced_hides_what_it_hid() {
    old_or_new_everywhere(1);
    old_or_new_everywhere(2);
}

#[test]
fn the_links_of_a_file_with_names_below_count_whatever_becomes_of_one() {
    for number in 3..=6 {
        old_or_new_everywhere(number);
    }
}

#[test]
fn a_file_without_its_data_is_cut_in_one_step() {
    old_or_new_everywhere(7);
}
