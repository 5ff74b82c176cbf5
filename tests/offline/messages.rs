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
