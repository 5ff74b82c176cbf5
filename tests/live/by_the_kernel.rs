//! Files that the kernel reads and writes by itself (`io=passthrough`), with several writable branches:
//! they stay on their branch while they are open.

use crate::mounted::{Mounted, eventually};
use std::fs::{self, File, OpenOptions};
use std::io::Write;

/// With a file `m/d/file` on `b1`, which holds "1" and is open.
fn with_open_file(options: &str, test: impl Fn(&Mounted, &mut File)) {
    let Some(m) = Mounted::place(&["b0", "b1/d", "b2/dir"]) else {
        return;
    };
    m.put("b1/d/file", "1");
    m.mount(&format!("{options},io=passthrough"));
    let mut how = OpenOptions::new();
    let mut file = how.append(true).open(m.path("m/d/file")).unwrap();
    test(&m, &mut file);
}

/// What is written now is there when the file is closed.
fn goes_on(m: &Mounted, file: &mut File, name: &str) {
    file.write_all(b"2").unwrap();
    assert_eq!(m.read(name), "12");
}

fn is_closed(m: &Mounted, file: &mut File, name: &str) {
    // The kernel's own descriptor goes with the last open: another file takes its place.
    *file = File::open("/dev/null").unwrap();
    eventually("what was written", || m.read(name) == "12");
}

#[test]
fn a_branch_that_learns_to_copy_on_open_keeps_them() {
    for attribute in ["coo_reg", "coo_all", "moo"] {
        with_open_file("br=b1=rw", |m, file| {
            m.ctl(&["prepend", "b0=rw"]);
            m.ctl(&["mod", &format!("b1=rw+{attribute}")]);
            assert_eq!(m.read("m/d/file"), "1");
            goes_on(m, file, "m/d/file");
            is_closed(m, file, "m/d/file");
            eventually("the move", || {
                m.read("m/d/file") == "12" && m.path("b0/d/file").exists()
            });
            assert_eq!(m.read("b0/d/file"), "12", "{attribute}");
        });
    }
}

#[test]
fn another_branch_gets_none_by_a_rename_or_a_link() {
    with_open_file("br=b0=rw:b1=rw:b2=ro", |m, file| {
        // Opaque on the upper branch: what goes into it has to be there.
        fs::remove_dir(m.path("m/dir")).unwrap();
        fs::create_dir(m.path("m/dir")).unwrap();
        let moved = fs::rename(m.path("m/d/file"), m.path("m/dir/file"));
        let name = if moved.is_ok() {
            "m/dir/file"
        } else {
            "m/d/file"
        };
        let linked = fs::hard_link(m.path(name), m.path("m/dir/link"));
        for done in [moved, linked] {
            let errno = done.err().and_then(|err| err.raw_os_error());
            assert!(matches!(errno, None | Some(libc::EXDEV)), "{errno:?}");
        }
        goes_on(m, file, name);
        is_closed(m, file, name);
        eventually("the last close", || {
            fs::rename(m.path(name), m.path("m/dir/other")).is_ok()
        });
        assert_eq!(m.read("b0/dir/other"), "12");
    });
}
