//! Several users in one tree: what each may do, and what its files become, is compared with an
//! ordinary filesystem that holds the same tree.

use super::fixture::{World, text};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

const ALICE: u32 = 1001;
const BOB: u32 = 1002;
/// A group with members besides those of its number.
const TEAM: u32 = 1234;

/// Every way in which the kernel and the daemon share the work.
const MODES: &[&str] = &[
    "udba=reval",
    "udba=none",
    "udba=none,open=none",
    "udba=notify,io=cache",
];

/// Path, mode, owner and group; a directory where the path ends with a slash.
type Entry = (&'static str, u32, u32, u32);

/// Where the entries lie that an ordinary filesystem has all in one place.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// All on the writable branch.
    Upper,
    /// All on a lower branch.
    Lower,
    /// Directories on both, files below.
    Split,
}

/// A user: uid (and gid), other groups, and what setpriv(1) is told besides.
#[derive(Clone, Copy)]
struct As(u32, &'static [u32], &'static str);

const PLAIN: &str = "";
/// Root that is no better than its permission bits.
const POWERLESS: &str = "--bounding-set=-dac_override,-dac_read_search,-fowner,-fsetid,-chown";
/// A user who may do what the permission bits forbid.
const OVERRIDING: &str = "--inh-caps=+dac_override --ambient-caps=+dac_override";

fn make(world: &World, top: &str, (path, mode, uid, gid): Entry) {
    let at = format!("{top}/{path}");
    let at = at.trim_end_matches('/');
    if path.ends_with('/') {
        world.mkdir(at, 0o755);
    } else if let Some(path) = path.strip_suffix('@') {
        symlink("nowhere", world.path(&format!("{top}/{path}"))).unwrap();
        return;
    } else {
        world.put(at, path);
    }
    world.chown(at, uid, gid);
    world.chmod(at, mode);
}

fn spread(world: &World, entries: &[Entry], how: Spread) {
    for &entry in entries {
        let is_dir = entry.0.ends_with('/');
        if matches!(how, Spread::Upper) || (is_dir && matches!(how, Spread::Split)) {
            make(world, "b0", entry);
        }
        if !matches!(how, Spread::Upper) {
            make(world, "b1", entry);
        }
    }
}

/// What a tree shows: type and mode, owner, group, size of files, and ACLs.
fn shown(top: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let size = if stat.is_file() { stat.size() } else { 0 };
            let mut line = format!("{:o} {}:{} {size}", stat.mode(), stat.uid(), stat.gid());
            for acl in [c"system.posix_acl_access", c"system.posix_acl_default"] {
                let mut value = [0; 256];
                if let Ok(len) = rustix::fs::lgetxattr(&path, acl, &mut value[..]) {
                    line += &format!(" {:?}", &value[..len]);
                }
            }
            if stat.is_dir() {
                todo.push(path.clone());
            }
            let name = path.strip_prefix(top).unwrap().display().to_string();
            found.insert(name, line);
        }
    }
    found
}

/// Runs the commands in a directory, each by itself; "ok" or "no" for each.
fn run(world: &World, place: &str, who: As, commands: &[&str]) -> Vec<String> {
    let one =
        |command: &&str| format!("if ({command}) >/dev/null 2>&1; then echo ok; else echo no; fi");
    let script: Vec<String> = commands.iter().map(one).collect();
    let script = script.join("\n");
    let As(uid, groups, more) = who;
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = match &groups[..] {
        [] => "--clear-groups".to_owned(),
        some => format!("--groups={}", some.join(",")),
    };
    let setpriv = format!("setpriv --reuid {uid} --regid {uid} {groups} {more}");
    let output = world.try_as(
        0,
        &[],
        &format!("cd ../{place} && {setpriv} sh -c '{script}'"),
    );
    let lines: Vec<String> = text(&output).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), commands.len(), "{lines:?}");
    lines
        .iter()
        .zip(commands)
        .map(|(line, c)| format!("{line}: {c}"))
        .collect()
}

/// Everybody's commands, one user after the other, in an ordinary tree and in unions that show the
/// same: answers and trees must be the same.
fn compare(entries: &[Entry], acl: Option<(&str, &[u8])>, steps: &[(As, &[&str])]) {
    for how in [Spread::Upper, Spread::Lower, Spread::Split] {
        for mode in MODES {
            let Some(world) = World::new() else { return };
            for dir in ["b0", "b1", "plain"] {
                world.mkdir(dir, 0o755);
            }
            for &entry in entries {
                make(&world, "plain", entry);
            }
            spread(&world, entries, how);
            if let Some((path, acl)) = acl {
                for top in ["plain", "b0", "b1"] {
                    let path = format!("{top}/{path}");
                    if world.path(&path).exists() {
                        world.set_xattr(&path, "system.posix_acl_default", acl);
                    }
                }
            }
            let below = shown(&world.path("b1"));
            world.mounted(&format!("br=b0=rw:b1=ro,dirren,{mode}"), || {
                for (who, commands) in steps {
                    let expected = run(&world, "plain", *who, commands);
                    let got = run(&world, "m", *who, commands);
                    assert_eq!(got, expected, "user {} ({how:?}, {mode})", who.0);
                }
                let (expected, got) = (shown(&world.path("plain")), shown(&world.path("m")));
                assert_eq!(got, expected, "{how:?}, {mode}");
            });
            assert_eq!(
                shown(&world.path("b1")),
                below,
                "the lower branch is as it was"
            );
        }
    }
}

#[test]
fn sticky_directories_protect_the_names_of_others() {
    let entries: &[Entry] = &[
        ("t/", 0o1777, 0, 0),
        ("t/root", 0o666, 0, 0),
        ("t/alice", 0o644, ALICE, ALICE),
        ("t/alice2", 0o644, ALICE, ALICE),
        ("t/bob", 0o644, BOB, BOB),
        ("t/bob2", 0o644, BOB, BOB),
        ("t/adir/", 0o777, ALICE, ALICE),
        ("t/adir2/", 0o777, ALICE, ALICE),
        ("t/bdir/", 0o777, BOB, BOB),
        // Alice owns the directory: the bit does not bind her.
        ("own/", 0o1777, ALICE, ALICE),
        ("own/bob", 0o644, BOB, BOB),
        ("own/bob2", 0o644, BOB, BOB),
        ("own/root", 0o644, 0, 0),
        // No bit.
        ("free/", 0o777, 0, 0),
        ("free/root", 0o644, 0, 0),
        ("free/bob", 0o644, BOB, BOB),
        // The bit without write permission.
        ("shut/", 0o1755, 0, 0),
        ("shut/alice", 0o644, ALICE, ALICE),
    ];
    compare(
        entries,
        None,
        &[
            (
                As(ALICE, &[], PLAIN),
                &[
                    "rm -f t/root",
                    "rm -f t/bob",
                    "mv -T t/root t/moved",
                    "mv -T t/bob free/moved",
                    "mv -fT t/alice t/bob",
                    "mv -fT t/alice t/root",
                    "mv -T free/root t/fromfree",
                    "rmdir t/bdir",
                    "mv -T t/bdir t/moved",
                    "mv -T t/adir t/bdir",
                    "ln -sfn x t/bob",
                    "rm -f shut/alice",
                    "rm -f own/bob",
                    "mv -fT own/root own/bob2",
                    "rmdir t/adir2",
                    "mv -T t/alice2 own/alice2",
                    "touch t/new t/newer",
                ],
            ),
            (
                As(BOB, &[ALICE], PLAIN),
                &[
                    "rm -f t/new",
                    "mv -T own/alice2 t/alice2",
                    "rm -f free/root free/moved",
                    "mv -fT t/bob t/newer",
                    "mv -fT t/bob t/bob2",
                    "rmdir t/adir",
                ],
            ),
            (
                As(0, &[], POWERLESS),
                &[
                    "rm -f t/new",
                    "mv -T t/bob2 free/b",
                    "rm -f own/bob2",
                    "rm -f free/bob t/root",
                ],
            ),
            (
                As(BOB, &[], OVERRIDING),
                &["rm -f t/newer", "rm -f shut/alice"],
            ),
            (
                As(0, &[], PLAIN),
                &["rm -f t/newer", "mv -T t/adir free/adir"],
            ),
        ],
    );
}

#[test]
fn new_entries_get_group_and_mode_as_elsewhere() {
    let entries: &[Entry] = &[
        ("open/", 0o777, 0, 0),
        ("team/", 0o2777, 0, TEAM),
        ("team/old", 0o664, 0, TEAM),
        ("team/sub/", 0o2770, 0, TEAM),
        ("set/", 0o777, ALICE, TEAM),
        ("set/uid", 0o6777, ALICE, TEAM),
        ("set/gid", 0o2777, ALICE, TEAM),
        ("set/lock", 0o2666, ALICE, TEAM),
        ("set/all", 0o6777, ALICE, TEAM),
        ("set/cut", 0o6777, ALICE, TEAM),
        ("set/dir/", 0o2755, ALICE, TEAM),
    ];
    let making: &[&str] = &[
        "umask 0 && echo x > open/0-$(id -u) && mkdir open/d0-$(id -u)",
        "umask 027 && echo x > team/27-$(id -u) && mkdir team/d27-$(id -u)",
        "umask 077 && mkfifo team/f77-$(id -u) && ln -s x team/l-$(id -u)",
        "mkdir -p team/deep-$(id -u)/er && echo x > team/deep-$(id -u)/er/file",
        "umask 0 && mkdir -m 2755 open/m-$(id -u) && install -m 2755 /dev/null team/i-$(id -u)",
        "echo x > team/sub/x-$(id -u)",
    ];
    compare(
        entries,
        None,
        &[
            (As(ALICE, &[], PLAIN), making),
            (As(BOB, &[TEAM], PLAIN), making),
            // A member of the group. (Of others' writes the daemon is not told enough.)
            (As(BOB, &[TEAM], PLAIN), &["echo more >> set/lock"]),
            (
                As(BOB, &[], PLAIN),
                &[
                    "echo more >> set/uid",
                    "echo more >> set/gid",
                    ": > set/cut",
                    "chmod g+s set/all",
                    "chgrp 1002 set/all",
                ],
            ),
            (
                As(ALICE, &[], PLAIN),
                &[
                    "chmod 2755 set/dir",
                    "chgrp 1001 set/all",
                    "chmod 6755 set/all",
                    "chgrp 1234 set/all",
                    "chown 1002 set/all",
                ],
            ),
            (
                As(0, &[], PLAIN),
                &["chown 1002 set/all", "echo root >> set/gid"],
            ),
        ],
    );
}

#[test]
fn default_acls_are_inherited_and_win_over_the_umask() {
    let entries: &[Entry] = &[
        ("d/", 0o777, 0, TEAM),
        ("d/s/", 0o2777, ALICE, TEAM),
        ("d/s/old", 0o640, 0, 0),
    ];
    // u::rwx, u:BOB:rw-, g::r-x, m::rwx, o::---
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (0x01u16, 7u16, u32::MAX),
        (0x02, 6, BOB),
        (0x04, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    for dir in ["d", "d/s"] {
        compare(
            entries,
            Some((dir, &acl)),
            &[
                (
                    As(ALICE, &[], PLAIN),
                    &[
                        "umask 077 && echo x > d/a && mkdir d/b && echo x > d/b/c",
                        "umask 022 && echo x > d/s/a && mkdir -m 700 d/s/b && mkfifo d/s/f",
                        "umask 0 && mkdir -p d/s/n/n/n && chmod g-w d/s/n",
                        "ln -s x d/s/l",
                    ],
                ),
                (
                    As(BOB, &[], PLAIN),
                    &[
                        "cat d/a",
                        "echo y >> d/a",
                        "echo y >> d/s/a",
                        "ls d/s/n",
                        "cat d/s/b/x",
                        "touch d/s/old",
                    ],
                ),
            ],
        );
    }
}

#[test]
fn groups_and_capabilities_open_what_they_open_elsewhere() {
    let entries: &[Entry] = &[
        ("team/", 0o770, 0, TEAM),
        ("team/file", 0o640, 0, TEAM),
        ("team/write", 0o620, 0, TEAM),
        ("team/not", 0o606, 0, TEAM),
        ("alice/", 0o700, ALICE, ALICE),
        ("alice/file", 0o600, ALICE, ALICE),
        ("alice/run", 0o700, ALICE, ALICE),
        ("pass/", 0o711, 0, 0),
        ("pass/file", 0o644, 0, 0),
        ("none/", 0o000, BOB, BOB),
        ("none/file", 0o000, BOB, BOB),
        ("mine", 0o644, ALICE, ALICE),
        ("link@", 0, 0, 0),
    ];
    let looking: &[&str] = &[
        "ls team",
        "cat team/file",
        "echo x >> team/write",
        "cat team/not",
        "touch team/new-$(id -u)",
        "rm -f team/file-$(id -u)",
        "ls alice",
        "cat alice/file",
        "ls pass",
        "cat pass/file",
        "ls none",
        "cat none/file",
        "test -r team/file",
        "test -w team/write",
        "test -x alice/run",
        "cd none",
        "cd pass",
        "mkdir none/x",
    ];
    compare(
        entries,
        None,
        &[
            (As(ALICE, &[], PLAIN), looking),
            (As(ALICE, &[TEAM], PLAIN), looking),
            (As(BOB, &[7, TEAM], PLAIN), looking),
            (As(0, &[], POWERLESS), looking),
            (As(BOB, &[], OVERRIDING), looking),
            (
                As(ALICE, &[TEAM], PLAIN),
                &[
                    "chgrp 1234 mine",
                    "chgrp 7 mine",
                    "chown 1002 mine",
                    "chmod 600 team/file",
                    "chmod 664 mine",
                    "touch -d 2001-01-01 mine",
                    "touch -d 2001-01-01 team/write",
                    "touch team/write",
                    "ln alice/file pass/link",
                    "ln mine team/link",
                    "rm -rf team/link",
                ],
            ),
            (
                As(0, &[], POWERLESS),
                &["chown 1002 mine", "chmod 600 mine", "touch mine"],
            ),
        ],
    );
}
