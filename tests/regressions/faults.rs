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
    act: fn(&Fixture) -> Result<()>,
    view: fn(&Fixture) -> String,
}

/// Tells the child what to do: number of the case and directory.
const ASSIGNMENT: &str = "UAUFS_REGRESSIONS_FAULT";

/// Where the child writes whether the call succeeded, and what the mount shows then.
const OUTCOME: &str = "outcome";

const CASES: [Case; 3] = [CUT, OVER_ONE, OVER_MANY];
const CUT: Case = Case {
    prepare: |t| {
        t.put_dir("upper");
        t.put("lower/file", "something long");
        let file = File::options().write(true).open(t.path("lower/file"));
        file.unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    },
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
    act: |t| t.rename("new", "dir"),
    view: |t| format!("{:?} {:?}", t.names(""), t.names("dir")),
};

/// The same with so many that they are removed in the background.
const OVER_MANY: Case = Case {
    prepare: |t| hiding(t, 9),
    ..OVER_ONE
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
    open(&mut t);
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
    open(&mut quiet);
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
            open(&mut t);
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
