//! Branches of a live mount come, go and change.

use crate::mounted::{Mounted, eventually, text};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Mounted with and without kernel caches that live for ever.
fn in_both_modes(branches: &[&str], options: &str, test: impl Fn(&Mounted)) {
    with_files(branches, &[], options, test);
}

/// As [`in_both_modes`], with these files in the branches before anybody can have looked.
pub fn with_files(
    branches: &[&str],
    files: &[(&str, &str)],
    options: &str,
    test: impl Fn(&Mounted),
) {
    for udba in ["udba=reval", "udba=none", "udba=none,io=cache"] {
        if let Some(m) = Mounted::place(branches) {
            for (name, data) in files {
                m.put(name, data);
            }
            m.mount(&format!("{options},{udba}"));
            test(&m);
        }
    }
}

fn ino(m: &Mounted, name: &str) -> u64 {
    fs::metadata(m.path(name)).unwrap().ino()
}

/// Open for reading and writing.
pub fn open_both(m: &Mounted, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(m.path(name)).unwrap()
}

pub fn rest_of(file: &mut File) -> String {
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_new_branch_is_seen_at_once_whatever_was_cached() {
    let files = [("b1/d/old", "old"), ("b1/file", "lower")];
    with_files(&["b0/d", "b1", "new"], &files, "br=b0=rw:b1=ro", |m| {
        assert!(!m.path("m/fresh").exists() && !m.path("m/d/fresh").exists());
        assert_eq!(m.names("m/d"), ["old"]);
        assert_eq!(m.read("m/file"), "lower");
        let number = ino(m, "m/d");
        m.put("new/fresh", "1");
        m.put("new/d/fresh", "2");
        m.put("new/file", "upper");
        m.ctl(&["add", "0", "new=ro"]);
        assert_eq!(m.branches(), ["new=ro", "b0=rw", "b1=ro"]);
        assert_eq!(m.read("m/fresh"), "1");
        assert_eq!(m.read("m/d/fresh"), "2");
        assert_eq!(m.read("m/file"), "upper");
        assert_eq!(m.names("m/d"), ["fresh", "old"]);
        assert_eq!(ino(m, "m/d"), number, "the directory stays the same one");
        m.ctl(&["del", "new"]);
        assert_eq!(m.read("m/file"), "lower");
        assert_eq!(m.names("m/d"), ["old"]);
        assert_eq!(m.names("m"), ["d", "file"]);
        assert_eq!(ino(m, "m/d"), number);
        assert!(!m.path("m/fresh").exists());
    });
}

#[test]
fn whiteouts_and_opaque_marks_of_a_new_branch_count() {
    in_both_modes(&["b0", "b1", "new/op"], "br=b0=rw:b1=ro", |m| {
        m.put("b1/gone", "x");
        m.put("b1/op/below", "x");
        assert!(m.path("m/gone").exists() && m.path("m/op/below").exists());
        m.put("new/.wh.gone", "");
        m.put("new/op/.wh..wh..opq", "");
        m.put("new/op/own", "x");
        m.ctl(&["add", "1", "new=ro"]);
        assert_eq!(m.names("m"), ["gone", "op"]);
        m.ctl(&["mod", "new=ro+wh"]);
        assert_eq!(m.branches(), ["b0=rw", "new=ro+wh", "b1=ro"]);
        assert_eq!(m.names("m"), ["op"]);
        assert_eq!(m.names("m/op"), ["own"]);
        assert!(!m.path("m/gone").exists());
        m.ctl(&["mod", "new=ro"]);
        assert_eq!(m.read("m/gone"), "x");
        assert_eq!(m.names("m/op"), ["below", "own"]);
    });
}

#[test]
fn an_open_file_keeps_its_data_when_its_name_shows_another() {
    in_both_modes(&["b0", "b1", "new"], "br=b0=rw:b1=ro", |m| {
        m.put("b1/d/file", "lower");
        m.put("b1/hidden/file", "below");
        let mut open = open_both(m, "m/d/file");
        let mut hidden = File::open(m.path("m/hidden/file")).unwrap();
        m.put("new/d/file", "other");
        m.put("new/hidden", "a file now");
        m.ctl(&["add", "1", "new=ro"]);
        assert_eq!(m.read("m/d/file"), "other");
        assert_eq!(m.read("m/hidden"), "a file now");
        assert_eq!(rest_of(&mut open), "lower");
        assert_eq!(rest_of(&mut hidden), "below");
        open.seek(SeekFrom::End(0)).unwrap();
        open.write_all(b" and more").unwrap();
        open.sync_all().unwrap();
        assert_eq!(rest_of(&mut open), "lower and more");
        assert_eq!(m.read("m/d/file"), "other");
        assert_eq!(m.read("b1/d/file"), "lower");
    });
}

#[test]
fn an_open_file_keeps_its_data_when_a_copy_of_it_comes_with_a_branch() {
    in_both_modes(&["b0", "copies", "b1"], "br=copies=rw:b1=ro", |m| {
        m.put("b1/read", "as it lay below");
        m.put("b1/written", "as it lay below");
        let number = ino(m, "m/read");
        for name in ["m/read", "m/written"] {
            let mut file = OpenOptions::new().write(true).open(m.path(name)).unwrap();
            file.write_all(b"copy").unwrap();
        }
        m.ctl(&["prepend", "b0=rw"]);
        m.ctl(&["del", "copies"]);
        let mut read = File::open(m.path("m/read")).unwrap();
        let mut written = open_both(m, "m/written");
        assert_eq!(rest_of(&mut read), "as it lay below");
        assert_eq!(rest_of(&mut written), "as it lay below");
        m.ctl(&["add", "1", "copies=ro"]);
        // Whichever is asked for first.
        assert_eq!(rest_of(&mut written), "as it lay below");
        assert_eq!(m.read("m/read"), "copyt lay below");
        assert_eq!(rest_of(&mut read), "as it lay below");
        written.seek(SeekFrom::End(0)).unwrap();
        written.write_all(b", and more").unwrap();
        assert_eq!(m.read("m/written"), "copyt lay below");
        assert_eq!(rest_of(&mut written), "as it lay below, and more");
        assert_ne!(ino(m, "m/read"), read.metadata().unwrap().ino());
        drop((read, written));
        m.umount();
        m.mount("br=copies=rw:b1=ro");
        assert_eq!(ino(m, "m/read"), number, "it is its own copy again");
        assert_eq!(m.read("copies/written"), "copyt lay below");
        assert_eq!(m.read("b1/written"), "as it lay below");
    });
}

#[test]
fn a_branch_in_use_is_not_removed_and_the_process_is_named() {
    in_both_modes(&["b0", "b1", "b2"], "br=b0=rw:b1=ro:b2=ro", |m| {
        m.put("b1/dir/file", "x");
        m.put("b2/dir/other", "x");
        m.put("b1/only/file", "x");
        let child = |args: &[&str], at: &str| {
            Command::new("sleep")
                .args(args)
                .current_dir(m.path(at))
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut open = Command::new("sleep")
            .arg("60")
            .stdin(File::open(m.path("m/dir/file")).unwrap())
            .spawn()
            .unwrap();
        let message = m.refused(&["del", "b1"]);
        let path = m.path("m/dir/file");
        assert_eq!(
            message,
            format!(
                "uaufs: del {}: branch is busy (EBUSY): pid {} (sleep) has {} open\n",
                m.path("b1").display(),
                open.id(),
                path.display()
            )
        );
        assert_eq!(m.read("m/dir/file"), "x");
        open.kill().unwrap();
        open.wait().unwrap();
        let mut inside = child(&["60"], "m/only");
        eventually("the child", || {
            fs::read_link(format!("/proc/{}/cwd", inside.id())).is_ok_and(|c| c == m.path("m/only"))
        });
        let message = m.refused(&["del", "b1"]);
        assert!(message.contains("is in "), "{message}");
        let still_there = fs::read_link(format!("/proc/{}/cwd", inside.id())).unwrap();
        assert_eq!(
            still_there,
            m.path("m/only"),
            "its directory is not cut off"
        );
        inside.kill().unwrap();
        inside.wait().unwrap();
        // A directory that exists elsewhere too is no reason.
        let mut elsewhere = child(&["60"], "m/dir");
        m.ctl(&["del", "b1"]);
        assert_eq!(m.names("m"), ["dir"]);
        assert_eq!(m.names("m/dir"), ["other"]);
        elsewhere.kill().unwrap();
        elsewhere.wait().unwrap();
    });
}

#[test]
fn the_last_branch_and_wrong_changes_are_refused() {
    let Some(m) = Mounted::new(&["b0", "b1", "b0/inner"], "br=b0=rw") else {
        return;
    };
    let path = |name: &str| m.path(name).display().to_string();
    for (args, message) in [
        (
            &["del", "b0"][..],
            format!(
                "del {}: the last branch of a union cannot be removed (EBUSY)",
                path("b0")
            ),
        ),
        (
            &["del", "nowhere"],
            format!(
                "del {}: no such branch (ENOENT): `uaufs ctl MOUNTPOINT list` shows them",
                path("nowhere")
            ),
        ),
        (
            &["add", "5", "b1=ro"],
            format!(
                "add {}: no place 5: an index from 0 to 1 (EDOM)",
                path("b1")
            ),
        ),
        (
            &["append", "nowhere=ro"],
            "nowhere: no such branch: create it or correct the path (ENOENT)".to_owned(),
        ),
        (
            &["append", "b0/inner=ro"],
            format!(
                "add {}: lies inside the writable branch {}: make that one readonly or move this one out (EINVAL)",
                path("b0/inner"),
                path("b0")
            ),
        ),
        (
            &["append", "m=ro"],
            format!(
                "add {}: the directory lies in the union itself: name one outside of it (EINVAL)",
                path("m")
            ),
        ),
        (
            &["append", "/proc=ro"],
            "add /proc: proc cannot be a branch: use a directory of a disk filesystem (EINVAL)"
                .to_owned(),
        ),
        (
            &["set", ""],
            "set: no option is given (EINVAL): OPT[,OPT...], as in udba=notify".to_owned(),
        ),
        (
            &["append", "b0=ro"],
            format!(
                "add {}: it is a branch already (EEXIST): `uaufs ctl MOUNTPOINT mod` changes its permission",
                path("b0")
            ),
        ),
        (
            &["del", "b1"],
            format!(
                "del {}: no such branch (ENOENT): `uaufs ctl MOUNTPOINT list` shows them",
                path("b1")
            ),
        ),
        (
            &["mod", "b0"],
            "mod b0: needs a permission (EINVAL): as in PATH=ro+wh".to_owned(),
        ),
    ] {
        assert_eq!(m.refused(args), format!("uaufs: {message}\n"), "{args:?}");
    }
    // A remount repeats what is there.
    let out = m.try_ctl(&["set", &format!("append:{}", path("b0"))]);
    assert!(out.status.success() && out.stderr.is_empty());
    let out = m.try_ctl(&["set", &format!("del:{}", path("b1"))]);
    assert!(out.status.success() && text(&out.stderr).contains("it is no branch"));
    assert_eq!(m.branches(), ["b0=rw"]);
}

#[test]
fn a_branch_made_readonly_receives_nothing_more() {
    for options in ["udba=reval", "udba=reval,io=cache", "udba=none,io=cache"] {
        let Some(m) = Mounted::place(&["b0", "b1"]) else {
            return;
        };
        m.mount(&format!("br=b0=rw:b1=rw,{options}"));
        m.put("b1/file", "x");
        let mut open = OpenOptions::new()
            .append(true)
            .open(m.path("m/file"))
            .unwrap();
        open.write_all(b"1").unwrap();
        m.ctl(&["mod", "b1=ro"]);
        assert!(!m.path("b1/.wh..wh.aufs").exists());
        open.write_all(b"2").unwrap();
        open.sync_all().unwrap();
        assert_eq!(
            (m.read("b1/file"), m.read("m/file")),
            ("x1".to_owned(), "x12".to_owned())
        );
        assert_eq!(m.read("b0/file"), "x12");
        drop(open);
        // Somebody else may write to it now, and we again when it is given back.
        m.ctl(&["mod", "b1=rw"]);
        assert!(m.path("b1/.wh..wh.aufs").exists());
        m.ctl(&["del", "b0"]);
        assert_eq!(m.read("m/file"), "x1");
        fs::write(m.path("m/new"), "y").unwrap();
        assert_eq!(m.read("b1/new"), "y");
    }
}

#[test]
fn a_file_that_the_kernel_writes_to_by_itself_keeps_its_branch_writable() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b0=rw:b1=ro,io=passthrough") else {
        return;
    };
    let mut file = File::create(m.path("m/file")).unwrap();
    file.write_all(b"x").unwrap();
    let out = m.try_ctl(&["mod", "b0=ro"]);
    if out.status.success() {
        eprintln!("skipped: no passthrough here");
        return;
    }
    let message = text(&out.stderr);
    assert!(message.contains("branch is busy (EBUSY)"), "{message}");
    drop(file);
    eventually("the release", || {
        m.try_ctl(&["mod", "b0=ro"]).status.success()
    });
    let denied = fs::write(m.path("m/file"), "y").unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn copies_and_links_of_a_branch_come_back_with_it() {
    let Some(m) = Mounted::place(&["rw", "ro"]) else {
        return;
    };
    m.put("ro/d/a", "lower");
    fs::hard_link(m.path("ro/d/a"), m.path("ro/d/b")).unwrap();
    m.mount("br=rw=rw:ro=ro,dirren");
    fs::write(m.path("m/d/a"), "copy").unwrap();
    fs::rename(m.path("m/d"), m.path("m/e")).unwrap();
    let number = ino(&m, "m/e/a");
    let see = |m: &Mounted| (m.names("m/e"), m.read("m/e/b"), ino(m, "m/e/a"));
    let before = see(&m);
    assert_eq!(
        before,
        (vec!["a".into(), "b".into()], "copy".into(), number)
    );
    m.ctl(&["del", "rw"]);
    assert_eq!(m.read("m/d/a"), "lower");
    assert_eq!(m.names("m"), ["d"]);
    m.ctl(&["prepend", "rw=rw"]);
    assert_eq!(see(&m), before);
    assert_eq!(m.names("m"), ["e"]);
}

#[test]
fn more_branches_than_aufs_ever_had() {
    let names: Vec<String> = (0..250)
        .map(|n| format!("branches/{}-{n}", "x".repeat(40)))
        .collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let Some(m) = Mounted::place(&all) else {
        return;
    };
    for (n, name) in names.iter().enumerate() {
        m.put(&format!("{name}/file"), &n.to_string());
        m.put(&format!("{name}/d/{n}"), "");
    }
    m.mount(&format!(
        "br={}=rw:{}=ro",
        names[0],
        names[1..200].join("=ro:")
    ));
    for name in &names[200..] {
        m.ctl(&["append", &format!("{name}=ro")]);
    }
    assert_eq!(m.branches().len(), 250);
    assert_eq!(m.names("m/d").len(), 250);
    m.ctl(&["del", &names[0]]);
    assert_eq!(m.read("m/file"), "1");
    assert_eq!(m.names("m/d").len(), 249);
    assert!(Path::new(&m.path(&names[0]).join("file")).exists());
}

#[test]
fn mount_changes_a_live_union_by_a_remount() {
    let Some(m) = Mounted::new(&["b0", "b1", "b2"], "br=b0=rw:b1=ro") else {
        return;
    };
    let helper = m.path("mount.uaufs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_uaufs"), &helper).unwrap();
    // As mount(8) calls it: the mount table's options first, then the user's.
    let options = format!(
        "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,add:1:{0}/b2=ro+wh,del={0}/b1,mod:{0}/b2=ro,sum,noexec",
        m.path("").display().to_string().trim_end_matches('/')
    );
    let out = Command::new(&helper)
        .args(["uaufs", m.path("m").to_str().unwrap(), "-o", &options])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(m.branches(), ["b0=rw", "b2=ro"]);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table
        .lines()
        .find(|l| l.contains(m.path("m").to_str().unwrap()));
    assert!(line.unwrap().contains("noexec"), "{line:?}");
    m.ctl(&["set", "ro"]);
    let denied = fs::write(m.path("m/file"), "x").unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
    m.ctl(&["set", "rw"]);
    fs::write(m.path("m/file"), "x").unwrap();
}

#[test]
fn a_readonly_union_becomes_writable_with_its_first_writable_branch() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b1=ro") else {
        return;
    };
    assert!(fs::write(m.path("m/file"), "x").is_err());
    m.ctl(&["prepend", "b0=rw"]);
    fs::write(m.path("m/file"), "x").unwrap();
    assert_eq!(m.read("b0/file"), "x");
    m.ctl(&["mod", "b0=ro"]);
    let denied = fs::write(m.path("m/other"), "x").unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));
}

#[test]
fn a_change_that_fails_keeps_renamed_directories() {
    let Some(m) = Mounted::place(&["b0", "b1"]) else {
        return;
    };
    m.put("b1/old/file", "x");
    m.mount("br=b0=rw:b1=ro,dirren");
    fs::rename(m.path("m/old"), m.path("m/new")).unwrap();
    // Where a record should be.
    let unreadable = m.path("b0/.wh..wh.uaufs/dirren/1");
    fs::create_dir(&unreadable).unwrap();
    m.refused(&["mod", "b0=rw+nolwh"]);
    fs::remove_dir(&unreadable).unwrap();
    m.ctl(&["mod", "b1=ro+wh"]);
    assert_eq!(m.names("m/new"), ["file"]);
    assert_eq!(m.read("m/new/file"), "x");
}

#[test]
fn a_readonly_branch_of_a_union_is_neither_converted_nor_repaired() {
    let Some(m) = Mounted::place(&["b0", "b1"]) else {
        return;
    };
    m.put("b1/.wh.gone", "");
    m.mount("br=b0=rw:b1=ro+wh");
    let place = m.path("m");
    let reason = format!("is a branch of the union at {}", place.display());
    for (args, code) in [
        (&["convert", "--to", "overlay", "b1"][..], 1),
        (&["fsck", "--repair", "b1"], 8),
    ] {
        let out = m.run(args);
        assert_eq!(out.status.code(), Some(code), "{args:?}");
        assert!(text(&out.stderr).contains(&reason), "{}", text(&out.stderr));
    }
    assert_eq!(m.run(&["fsck", "b1"]).status.code(), Some(0));
    assert!(m.path("b1/.wh.gone").exists());
    m.umount();
    let out = m.run(&["convert", "--to", "overlay", "b1"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out.stderr));
}

#[test]
fn a_union_does_not_get_one_for_a_branch_that_has_it_for_a_branch() {
    let Some(m) = Mounted::new(&["b0", "b1", "other", "nested"], "br=b0=rw") else {
        return;
    };
    m.put("m/dir/file", "in both");
    let out = m.run(&["-o", "br=b1=rw:m=ro", "none", "other"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for branch in ["other", "other/dir"] {
        let why = m.refused(&["append", &format!("{branch}=ro")]);
        assert!(why.contains("a union cannot be below itself"), "{why}");
    }
    assert_eq!(m.branches().len(), 1);
    let out = m.run(&["-o", "br=b1=ro", "none", "nested"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    m.ctl(&["append", "nested=ro"]);
    while unionfs::fuse::unmount(&m.path("other"), true).is_ok() {}
    m.ctl(&["del", "nested"]);
    while unionfs::fuse::unmount(&m.path("nested"), true).is_ok() {}
}
