//! Property test of the union against a reference model: random layers, random operations, and
//! after them the whole tree compared. Needs root (owners, devices, trusted attributes) and no mount.
//!
//! `PROPTEST_CASES` sets how many stacks are tried. A failure that was found and mended stays as a
//! named test below.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod common;

use common::branches::{Perm, Stack};
use common::crash::{Case, interrupt_everywhere, play_child};
use common::layers::{Entry, Tree};
use common::ops::{Op, operations, stack, stack_with_two_writable};
use common::run::Run;
use proptest::prelude::*;

/// Stacks tried by default in each property.
const CASES: u32 = 150;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    }
}

fn check(stack: Stack, ops: &[Op]) -> Result<(), TestCaseError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // One line each: easier to read than what proptest prints of them.
    let case = format!("{stack:?}\n{ops:?}");
    Run::new(stack)
        .and_then(|run| run.check_all(ops))
        .map_err(|err| TestCaseError::fail(format!("{err:#}\n{case}")))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_union_shows_what_the_model_says(stack in stack(), ops in operations()) {
        check(stack, &ops)?;
    }

    #[test]
    fn a_union_with_two_writable_branches_does_too(
        stack in stack_with_two_writable(),
        ops in operations(),
    ) {
        check(stack, &ops)?;
    }
}

/// Runs lines of [`Run::script`] on a union.
fn run(stack: Stack, lines: &[&str]) {
    if rustix::process::geteuid().is_root() {
        Run::new(stack).unwrap().script(lines).unwrap();
    }
}

fn dir() -> Tree {
    Tree::new()
}

/// Names that contain the word LONG stand for one of 253 bytes, as in scripts.
fn with_long(tree: Tree, entry: Entry) -> Tree {
    tree.with(&"w".repeat(253), entry)
}

#[test]
fn a_file_between_two_directories_does_not_end_a_redirect() {
    let stack = Stack::of([
        dir().dir("d", dir()),
        dir().file("d", "in between"),
        dir().dir("d", dir().file("x", "lowest")),
    ]);
    run(stack, &["rename d e", "forget", "write e/x", "remount"]);
}

#[test]
fn a_redirect_stops_at_an_opaque_root() {
    let stack = Stack::of([
        dir(),
        dir().dir("d", dir().file("x", "seen")).opaque(),
        dir().dir("d", dir().file("y", "below the opaque root")),
    ]);
    run(stack, &["rename d e", "forget"]);
}

#[test]
fn a_directory_with_a_long_name_is_removed() {
    let lower = with_long(dir(), Entry::Dir(dir().file("x", "x")));
    run(
        Stack::of([dir(), lower]),
        &["rm LONG/x", "rmdir LONG", "mkdir LONG"],
    );
}

#[test]
fn a_long_whiteout_and_what_takes_its_place() {
    let lower = with_long(dir().dir("d", dir().file("x", "x")), Entry::Dir(dir()));
    let lines = [
        "rmdir LONG",
        "mkdir LONG",
        "rename LONG e",
        "remount",
        "create LONG",
    ];
    run(Stack::of([dir(), lower.clone()]), &lines);
    let mut run = Run::new(Stack::of([dir(), lower])).unwrap();
    run.line("rmdir LONG").unwrap();
    // Refused, so that no moment shows a device in the directory's place.
    run.line("rename d LONG").unwrap();
    run.check_all(&[]).unwrap();
}

#[test]
fn a_null_device_gets_no_name_under_which_it_is_a_whiteout() {
    let lines = [
        "null n",
        "rename n LONG",
        "link n LONG",
        "mkdir d",
        "exchange n d",
    ];
    run(Stack::of([dir()]), &lines);
    let overlay = Stack {
        format: unionfs::spec::Format::Overlay,
        ..Stack::of([dir()])
    };
    run(overlay, &["null n"]);
}

#[test]
fn a_removed_lower_directory_takes_nothing_new() {
    let stack = Stack::of([dir(), dir().dir("d", dir())]);
    let mut run = Run::new(stack).unwrap();
    run.compare().unwrap();
    let held = run.model.child(0, b"d").unwrap();
    run.remove(0, &"d".into(), true).unwrap();
    let file = common::reference::Node::new(common::reference::Body::Fifo, Some(0o600));
    run.make_at(held, &"x".into(), file, 0o600, b"").unwrap();
}

#[test]
fn a_directory_exchanged_with_its_own_child_is_refused_and_stays_whole() {
    let stack = Stack::of([dir(), dir().dir("a", dir().file("b", "b").file("c", "c"))]);
    run(stack, &["exchange a/b a", "write a/c"]);
}

/// A second writable branch between the first and a readonly one.
fn two_writable(top: Tree, second: Tree, lowest: Tree) -> Stack {
    let mut stack = Stack::of([top, second, lowest]);
    stack.branches[1].0 = Perm::Rw;
    stack
}

#[test]
fn nothing_is_linked_or_renamed_below_a_whiteout() {
    let stack = two_writable(
        dir().dir("p", dir().without("x")),
        dir().dir("p", dir().file("f", "f").file("g", "g")),
        dir().dir("p", dir().file("x", "hidden")),
    );
    run(
        stack,
        &["link p/f p/x", "rename p/g p/x", "create p/x", "remount"],
    );
}

#[test]
fn nothing_is_made_below_an_opaque_directory() {
    let stack = two_writable(
        dir().dir("p", dir().opaque()),
        dir().file("f", "f").dir("p", dir().file("x", "hidden")),
        dir(),
    );
    run(stack, &["link f p/f", "rename f p/g", "remount"]);
}

#[test]
fn what_is_made_in_a_redirected_directory_is_seen() {
    let stack = two_writable(
        dir().dir("b", dir()),
        dir(),
        dir().dir("d", dir().dir("a", dir().file("x", "x"))),
    );
    run(
        stack,
        &["exchange b d", "create b/a/new", "remount", "write b/a/x"],
    );
}

#[test]
fn a_link_does_not_meet_a_file_where_its_directory_would_be() {
    let stack = two_writable(
        dir().dir("p", dir()),
        dir().file("p", "hidden").file("f", "f"),
        dir(),
    );
    run(stack, &["link f p/f", "rename f p/g"]);
}

#[test]
fn names_of_one_lower_file_stay_one_file() {
    let lower = dir()
        .linked("a", 1)
        .linked("b", 1)
        .dir("d", dir().linked("c", 1));
    let lines = [
        "write a",
        "rename d/c d/e",
        "rm a",
        "remount",
        "chmod b",
        "rm b",
        "rm d/e",
    ];
    run(Stack::of([dir(), lower]), &lines);
}

#[test]
fn the_links_of_a_file_are_counted_once_whichever_branch_keeps_the_books() {
    let lower = dir().dir("a", dir().linked("x", 1).dir("b", dir().linked("y", 1)));
    let stack = two_writable(dir(), dir(), lower);
    run(stack, &["chmod a", "rm a/x", "write a/b/y", "remount"]);
}

/// Operations that take several steps on the branch.
/// Leaves nothing but marks in a directory.
const NO_MANY: &[&str] = &[
    "rm many/1",
    "rm many/2",
    "rm many/3",
    "rm many/4",
    "rm many/5",
];

fn crash_cases() -> Vec<Case> {
    let lower = || {
        let d = dir().file("x", "x").dir("sub", dir().file("y", "y"));
        let many = ["1", "2", "3", "4", "5"]
            .iter()
            .fold(dir(), |d, n| d.file(n, n));
        let tree = dir().file("f", "lower f").file("g", "lower g").dir("d", d);
        let tree = tree
            .dir("e", dir().file("z", "z"))
            .linked("l", 1)
            .linked("m", 1)
            .dir("many", many);
        with_long(tree, Entry::Dir(dir().file("x", "x")))
    };
    let stack = || {
        Stack::of([
            dir().file("f", "upper f").dir("d", dir().file("u", "u")),
            lower(),
        ])
    };
    let table: &[(&'static [&'static str], &'static str)] = &[
        (&[], "rm f"),
        (&[], "rm g"),
        (&[], "rm l"),
        (&[], "write g"),
        (&[], "write d/sub/y"),
        (&[], "write l"),
        (&[], "chmod d/sub"),
        (&[], "link g d/sub/new"),
        (&[], "rename f new"),
        (&[], "rename g d/sub/new"),
        (&[], "rename f g"),
        (&[], "rename g f"),
        (&[], "rename l d/l"),
        (&[], "rename d new"),
        (&[], "rename d/sub new"),
        (&[], "exchange f g"),
        (&[], "exchange d e"),
        (&[], "exchange d g"),
        (&["rm f"], "create f"),
        (&["rm f"], "mkdir f"),
        (&["rm f"], "rename g f"),
        (&["rm e/z"], "rmdir e"),
        (&["rm e/z"], "rename d e"),
        (&["rm e/z"], "rename d/sub e"),
        (&["rm e/z", "rmdir e"], "mkdir e"),
        (&["rm e/z", "rmdir e"], "rename d e"),
        (&["write l", "rm l"], "rm m"),
        (&["write l"], "rename m n"),
        (&["rm LONG/x"], "rmdir LONG"),
        (&["rm LONG/x", "rmdir LONG"], "create LONG"),
        (&["rm LONG/x", "rmdir LONG"], "mkdir LONG"),
        (&["rm LONG/x", "rmdir LONG"], "rename f LONG"),
        (&["rename d new"], "rename new d"),
        (&["rename d new"], "rename new newer"),
        (&["rename d new"], "rename new/sub sub"),
        // More marks than `dirwh` allows for: they are removed in the background.
        (NO_MANY, "rmdir many"),
        (NO_MANY, "rename e many"),
        (NO_MANY, "rename d/sub many"),
    ];
    let formats = [unionfs::spec::Format::Aufs, unionfs::spec::Format::Overlay];
    let of = |format| {
        table.iter().map(move |(first, line)| Case {
            stack: Stack {
                format,
                in_memory: true,
                ..stack()
            },
            first,
            line,
        })
    };
    formats.into_iter().flat_map(of).collect()
}

#[test]
#[ignore = "the process that the next test kills"]
fn child_that_is_killed() {
    play_child(&crash_cases()).unwrap();
}

#[test]
fn a_killed_daemon_leaves_the_old_tree_or_the_new() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut failures = Vec::new();
    for (number, case) in crash_cases().iter().enumerate() {
        if let Err(err) = interrupt_everywhere(case, number, "child_that_is_killed") {
            let (format, first, line) = (case.stack.format, case.first, case.line);
            failures.push(format!("{format:?} {first:?} \"{line}\": {err:#}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Opens of what lies on a branch with `moo`.
fn moving_cases() -> Vec<Case> {
    let stack = || {
        let second = dir()
            .file("f", "second f")
            .file("g", "g")
            .dir("d", dir().file("x", "x"));
        let lowest = dir().file("f", "lowest f").dir("d", dir().file("y", "y"));
        let mut stack = two_writable(dir(), second, lowest);
        stack.branches[1].0 = Perm::RwMoo;
        Stack {
            in_memory: true,
            ..stack
        }
    };
    let table: &[(&'static [&'static str], &'static str)] = &[
        (&[], "open f"),
        (&[], "open g"),
        (&[], "open d/x"),
        (&[], "write f"),
        (&[], "write d/x"),
        (&["rename g d/g"], "open d/g"),
        (&["open f", "rm f"], "create f"),
    ];
    let case = |(first, line): &(&'static [&'static str], &'static str)| Case {
        stack: stack(),
        first,
        line,
    };
    table.iter().map(case).collect()
}

#[test]
#[ignore = "the process that the next test kills"]
fn moving_child_that_is_killed() {
    play_child(&moving_cases()).unwrap();
}

#[test]
fn a_file_that_is_moved_up_is_whole_wherever_the_daemon_is_killed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (number, case) in moving_cases().iter().enumerate() {
        let child = "moving_child_that_is_killed";
        if let Err(err) = interrupt_everywhere(case, number, child) {
            panic!("{:?} \"{}\": {err:#}", case.first, case.line);
        }
    }
    // That they move at all.
    let mut run = Run::new(moving_cases()[0].stack.clone()).unwrap();
    run.line("open f").unwrap();
    let holds = |branch: usize| run.branches.spec.branches[branch].path.join("f").exists();
    assert_eq!([holds(0), holds(1), holds(2)], [true, false, true]);
}

/// Merges of everything that a branch can hold.
fn merge_cases() -> Vec<Case> {
    let upper = || {
        let d = dir().file("x", "new x").without("y").file("own", "own");
        dir()
            .file("f", "upper f")
            .file("over", "a file over a directory")
            .dir("under", dir().file("z", "a directory over a file"))
            .dir("d", d)
            .dir("o", dir().file("only", "only").opaque())
            .dir("fresh", dir().dir("deep", dir().file("leaf", "leaf")))
            .without("g")
            .without("gone")
            .without("low")
    };
    let lower = || {
        let d = dir().file("x", "old x").file("y", "y").file("kept", "kept");
        dir()
            .file("f", "lower f")
            .file("g", "g")
            .dir("gone", dir().file("a", "a"))
            .dir("over", dir().file("b", "b"))
            .file("under", "a file")
            .dir("d", d)
            .dir("o", dir().file("hidden", "hidden"))
    };
    let lowest = || {
        dir()
            .file("low", "low")
            .file("g", "lowest g")
            .dir("o", dir().file("deepest", "deepest"))
            .dir("d", dir().file("y", "lowest y"))
    };
    let linked_upper = || {
        let d = dir().linked("l2", 1).linked("m2", 2).file("x", "x");
        dir()
            .linked("l1", 1)
            .dir("d", d)
            .dir("fresh", dir().linked("l3", 1).linked("n", 3))
            .dir("gone", dir().linked("m1", 2))
    };
    let linked_lower = || {
        dir()
            .dir("d", dir().linked("o1", 4).linked("o2", 4))
            .linked("o3", 4)
            .linked("q1", 5)
            .dir("q", dir().linked("q2", 5))
            .file("l1", "hidden")
    };
    let linked_lowest = || dir().linked("p1", 6).dir("d", dir().linked("p2", 6));
    let mut last = Stack::of([upper(), lower()]);
    last.branches[1].0 = Perm::Rw;
    let mut opaque = last.clone();
    opaque.branches[0].1 = upper().opaque();
    let table: [(Stack, &'static [&'static str]); 5] = [
        (
            two_writable(upper(), lower(), lowest()),
            &["rm d/x", "mkdir d/x", "create d/x/n"],
        ),
        (last, &[]),
        (opaque, &[]),
        (
            two_writable(linked_upper(), linked_lower(), linked_lowest()),
            &[],
        ),
        (
            two_writable(linked_upper(), linked_lower(), linked_lowest()),
            // Copies of lower files, of which some names stay where they were.
            &["write o3", "chmod d/p2", "write l1"],
        ),
    ];
    table
        .into_iter()
        .map(|(stack, first)| Case {
            stack: Stack {
                in_memory: true,
                ..stack
            },
            first,
            line: "merge",
        })
        .collect()
}

#[test]
fn a_merged_branch_is_empty_and_the_tree_the_same() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for case in merge_cases() {
        let mut run = Run::new(case.stack).unwrap();
        for line in case.first {
            run.line(line).unwrap();
        }
        run.line("merge").unwrap();
        let branch = &run.branches.spec.branches[0].path;
        let left: Vec<_> = std::fs::read_dir(branch)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".wh..wh."))
            .collect();
        assert_eq!(left, [""; 0]);
        run.check_all(&[]).unwrap();
    }
}

#[test]
#[ignore = "the process that the next test kills"]
fn merging_child_that_is_killed() {
    play_child(&merge_cases()).unwrap();
}

#[test]
fn a_killed_merge_shows_the_same_tree_and_goes_on() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for (number, case) in merge_cases().iter().enumerate() {
        let child = "merging_child_that_is_killed";
        if let Err(err) = interrupt_everywhere(case, number, child) {
            panic!("case {number}: {err:#}");
        }
    }
}
