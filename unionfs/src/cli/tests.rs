//! Tests of the command line.

use super::*;
use std::os::unix::ffi::OsStringExt;

fn parse_words(words: &[&str]) -> Result<Parsed, String> {
    parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
}

fn mount(words: &[&str]) -> MountArgs {
    match parse_words(words) {
        Ok(Parsed::Run(Command::Mount(args))) => args,
        other => panic!("{words:?}: {other:?}"),
    }
}

fn printed(words: &[&str]) -> String {
    match parse_words(words) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{words:?}: {other:?}"),
    }
}

#[test]
fn definitions_are_sound() {
    Uaufs::command().debug_assert();
    MountHelper::command().debug_assert();
    UmountHelper::command().debug_assert();
    FuseOverlayfs::command().debug_assert();
}

#[test]
fn a_mount_in_any_order() {
    let expected = MountArgs {
        foreground: true,
        debug: false,
        options: vec!["br=/a".into(), "ro".into()],
        source: Some("label".into()),
        mountpoint: "/mnt".into(),
        called_as: CalledAs::Uaufs,
        fake: false,
        sloppy: false,
    };
    for words in [
        &["uaufs", "-f", "-o", "br=/a", "-o", "ro", "label", "/mnt"][..],
        &[
            "/usr/bin/uaufs",
            "label",
            "/mnt",
            "-o",
            "br=/a",
            "-fo",
            "ro",
        ],
        &["uaufs", "label", "-obr=/a", "/mnt", "-oro", "-f"],
    ] {
        assert_eq!(mount(words), expected);
    }
    assert_eq!(mount(&["uaufs", "/mnt"]).source, None);
}

#[test]
fn operands_and_options_are_bytes() {
    let words = [&b"uaufs"[..], b"-o", b"br=/\xff", b"/\xfe"];
    let words = words.map(|word| OsString::from_vec(word.to_vec()));
    let Ok(Parsed::Run(Command::Mount(args))) = parse(words.clone()) else {
        panic!()
    };
    assert_eq!(args.mountpoint.as_os_str(), &words[3]);
    assert_eq!(args.options, [words[2].clone()]);
}

#[test]
fn only_an_exact_first_word_is_a_subcommand() {
    let umount = |lazy| {
        Ok(Parsed::Run(Command::Umount(umount::UmountArgs {
            lazy,
            mountpoint: "/mnt".into(),
        })))
    };
    assert_eq!(parse_words(&["uaufs", "umount", "/mnt"]), umount(false));
    assert_eq!(
        parse_words(&["uaufs", "umount", "-l", "/mnt"]),
        umount(true)
    );
    for word in ["./umount", "umoun", "help"] {
        assert_eq!(mount(&["uaufs", word]).mountpoint, Path::new(word));
    }
    assert_eq!(
        mount(&["uaufs", "-f", "umount"]).mountpoint,
        Path::new("umount")
    );
    assert_eq!(
        mount(&["uaufs", "x", "umount"]).mountpoint,
        Path::new("umount")
    );
}

#[test]
fn helpers_follow_mount_and_umount() {
    let args = mount(&[
        "/sbin/mount.fuse.uaufs",
        "none",
        "/mnt",
        "-sfnv",
        "-o",
        "rw",
        "-t",
        "x",
    ]);
    assert!(args.fake && args.sloppy && args.debug && !args.foreground);
    assert_eq!((args.source, args.called_as), (None, CalledAs::MountHelper));
    assert_eq!(
        mount(&["mount.uaufs", "a", "/mnt"]).source,
        Some("a".into())
    );
    assert_eq!(
        parse_words(&["umount.uaufs", "/mnt", "-l", "-n"]),
        Ok(Parsed::Run(Command::Umount(umount::UmountArgs {
            lazy: true,
            mountpoint: "/mnt".into()
        })))
    );
}

#[test]
fn engines_find_fuse_overlayfs() {
    let args = mount(&[
        "fuse-overlayfs",
        "-o",
        "lowerdir=/a",
        "-d",
        "-s",
        "umount",
        "/mnt",
    ]);
    assert_eq!(args.options, ["lowerdir=/a", "threads=1"]);
    assert_eq!(
        (args.source, args.called_as),
        (Some("umount".into()), CalledAs::FuseOverlayfs)
    );
    assert!(args.debug && args.foreground);
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!("fuse-overlayfs: version 1.13 (uaufs {version})\n");
    assert_eq!(printed(&["/usr/bin/fuse-overlayfs", "--version"]), expected);
}

#[test]
fn help_and_version_are_printed() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        printed(&["uaufs", "--version"]),
        format!("uaufs {version}\n")
    );
    let help = printed(&["uaufs", "--help"]);
    for word in [
        "umount",
        "MOUNTPOINT",
        "udba=none|reval[:SEC]|notify",
        "lowerdir=A",
    ] {
        assert!(help.contains(word), "{word} in {help}");
    }
    assert!(printed(&["uaufs", "umount", "--help"]).contains("MOUNTPOINT"));
    assert!(printed(&["uaufs", "umount", "--version"]).contains(version));
    assert!(printed(&["mount.uaufs", "-h"]).contains("SOURCE"));
}

#[test]
fn errors_are_one_line() {
    for (words, message) in [
        (
            &["uaufs"][..],
            "MOUNTPOINT is missing: `uaufs --help` shows the usage",
        ),
        (
            &["uaufs", ""],
            "MOUNTPOINT is missing: `uaufs --help` shows the usage",
        ),
        (
            &["uaufs", "-x", "/m"],
            "-x: unknown argument: `uaufs --help` shows the usage",
        ),
        (
            &["uaufs", "/m", "-o"],
            "--options <OPT[,OPT...]>: the value is missing: `uaufs --help` shows the usage",
        ),
        (
            &["uaufs", "a", "b", "c"],
            "c: one argument too many: `uaufs --help` shows the usage",
        ),
        (
            &["uaufs", "umount"],
            "missing: <MOUNTPOINT>: `uaufs umount --help` shows the usage",
        ),
        (
            &["uaufs", "umount", "a", "b"],
            "b: not expected here: `uaufs umount --help` shows the usage",
        ),
        (
            &["uaufs", "ctl"],
            "it is not said what is to be done: `uaufs ctl --help` shows the usage",
        ),
        (
            &["uaufs", "ctl", "/m"],
            "it is not said what is to be done: `uaufs ctl --help` shows the usage",
        ),
        (
            &["uaufs", "ctl", "/m", "lits"],
            "lits: not expected here: `uaufs ctl --help` shows the usage",
        ),
        (
            &["uaufs", "ctl", "/m", "add"],
            "missing: <INDEX> <PATH[=PERM]>: `uaufs ctl --help` shows the usage",
        ),
        (
            &["uaufs", "ctl", "/m", "add", "x", "/b"],
            "<INDEX>: `x` cannot be used: `uaufs ctl --help` shows the usage",
        ),
        (
            &["uaufs", "convert", "--to", "x", "/b"],
            "--to <TO>: `x` cannot be used (it takes: aufs overlay): `uaufs convert --help` shows the usage",
        ),
        (
            &["uaufs", "convert", "--to", "aufs", "--to", "aufs", "/b"],
            "--to <TO> cannot be given twice: `uaufs convert --help` shows the usage",
        ),
        (
            &[
                "uaufs",
                "merge",
                "--with-whiteouts",
                "--mode",
                "copy",
                "a",
                "b",
            ],
            "--with-whiteouts cannot be given with --mode <MODE>: `uaufs merge --help` shows the usage",
        ),
        (
            &["mount.uaufs", "a"],
            "missing: <MOUNTPOINT>: `mount.uaufs --help` shows the usage",
        ),
    ] {
        assert_eq!(parse_words(words).unwrap_err(), message, "{words:?}");
    }
}
