//! A message names the path that was meant, also where it is no UTF-8.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

#[test]
fn a_path_that_is_no_utf8_is_told_as_it_is() {
    let missing = OsStr::from_bytes(b"/nowhere/\xff");
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    let there = tmp.path().as_os_str();
    let words = OsStr::new;
    let mut branches = OsStr::new("br=").to_owned();
    branches.push(missing);
    for args in [
        &[words("busy"), missing, there][..],
        &[words("convert"), missing, words("--to"), words("aufs")],
        &[words("ctl"), missing, words("list")],
        &[words("diff"), missing],
        &[words("fhsm"), missing],
        &[words("fsck"), missing],
        &[words("merge"), missing, there],
        &[words("mvdown"), missing],
        &[words("plink"), missing, words("list")],
        &[words("stats"), missing],
        &[words("umount"), missing],
        &[words("which"), missing],
        &[words("-o"), &branches, there],
        &[words("-o"), words("br=/tmp"), missing],
    ] {
        let out = Command::new(env!("CARGO_BIN_EXE_uaufs"))
            .args(args)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(!out.status.success(), "{args:?}");
        assert!(said.contains(r"\xff"), "{args:?}: {said}");
    }
}

#[test]
fn a_slip_of_the_finger_is_told_on_one_line_with_what_would_be_right() {
    let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::create_dir(tmp.path().join("branch")).unwrap();
    let lines = |args: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_uaufs"));
        let out = program.args(args).current_dir(&tmp).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    for (args, code, message) in [
        (
            &["mvdown", "nowhere"][..],
            1,
            "mvdown: nowhere: lies in no mounted union (ENOTTY): name a file of one",
        ),
        (
            &["mvdown", "nowhere/file"],
            1,
            "mvdown: nowhere/file: no such file (ENOENT): name a file of a mounted union",
        ),
        (
            &["mvdown", "branch"],
            1,
            "mvdown: branch: is a directory (EISDIR): name files of the union",
        ),
        (
            &["convert", "--to", "overlay", "--lower", "nowhere", "branch"],
            1,
            "nowhere: no such branch: correct the path (ENOENT)",
        ),
        // 1 would say that something was mended.
        (
            &["fsck"],
            8,
            "missing: <BRANCH>...: `uaufs fsck --help` shows the usage",
        ),
        (
            &["fsck", "nowhere"],
            8,
            "nowhere: no such branch: correct the path (ENOENT)",
        ),
    ] {
        assert_eq!(
            lines(args),
            (Some(code), format!("uaufs: {message}\n")),
            "{args:?}"
        );
    }
}
