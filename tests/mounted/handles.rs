//! What a union has no operation for: file handles are good as long as the file is known, and
//! unnamed files are made another way.
#![allow(unsafe_code)]

use super::fixture::{World, eventually};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

const ROOM: usize = 128;

/// `struct file_handle` with room for what it holds.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; ROOM],
}

fn handle_of(path: &Path) -> Handle {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut handle = Handle {
        bytes: ROOM as u32,
        kind: 0,
        data: [0; ROOM],
    };
    let mut mount = 0;
    // SAFETY: the path is terminated; the handle has the room that it tells, and the kernel's layout.
    let done = unsafe {
        let raw = (&raw mut handle).cast();
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), raw, &raw mut mount, 0)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    handle
}

/// What a file holds that is reached by its handle only.
fn read_by(place: &Path, handle: &Handle) -> io::Result<String> {
    let place = File::open(place)?;
    let mut handle = *handle;
    // SAFETY: as above.
    let fd = unsafe {
        libc::open_by_handle_at(place.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDONLY)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else has.
    let mut file = unsafe { File::from_raw_fd(fd) };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_handle_stays_that_of_its_file_while_the_file_is_known() {
    for mode in [
        "udba=reval",
        "udba=none",
        "udba=none,open=none",
        "udba=notify",
    ] {
        let Some(world) = World::new() else { return };
        world.put("low/a", "low");
        world.put("low/b", "other");
        world.put("low/d/x", "x");
        world.mkdir("up", 0o755);
        world.mounted(&format!("br=up=rw:low=ro,dirren,{mode}"), || {
            let m = world.path("m");
            let (handle, other) = (handle_of(&m.join("a")), handle_of(&m.join("b")));
            let dir = handle_of(&m.join("d"));
            assert!(handle != other && handle != dir);
            assert_eq!(read_by(&m, &handle).unwrap(), "low", "{mode}");
            // Copied up, renamed, in a directory that is renamed.
            let mut file = OpenOptions::new().append(true).open(m.join("a")).unwrap();
            file.write_all(b" and more").unwrap();
            drop(file);
            fs::rename(m.join("a"), m.join("d/a")).unwrap();
            fs::rename(m.join("d"), m.join("e")).unwrap();
            assert_eq!(handle_of(&m.join("e/a")), handle, "{mode}");
            assert_eq!(handle_of(&m.join("e")), dir, "{mode}");
            assert_eq!(read_by(&m, &handle).unwrap(), "low and more", "{mode}");
            // Another file of the name has another handle, and the old one leads nowhere.
            fs::remove_file(m.join("e/a")).unwrap();
            fs::write(m.join("e/a"), "new").unwrap();
            assert_ne!(handle_of(&m.join("e/a")), handle, "{mode}");
            eventually("the end of the removed file", || {
                let gone = read_by(&m, &handle);
                gone.is_err_and(|err| err.raw_os_error() == Some(libc::ESTALE))
            });
            assert_eq!(read_by(&m, &other).unwrap(), "other", "{mode}");
        });
        // Of a mount that has not seen the file yet it says so, and never shows another.
        let handle = {
            world.mount(&format!("br=up=rw:low=ro,dirren,{mode}"));
            let handle = handle_of(&world.path("m/b"));
            world.umount();
            handle
        };
        world.mounted(&format!("br=up=rw:low=ro,dirren,{mode}"), || {
            let unknown = read_by(&world.path("m"), &handle).unwrap_err();
            assert_eq!(unknown.raw_os_error(), Some(libc::ESTALE), "{mode}");
        });
    }
}

#[test]
fn unnamed_files_are_made_by_a_name_that_is_removed() {
    let Some(world) = World::new() else { return };
    world.put("low/d/x", "x");
    world.mkdir("up", 0o755);
    for mode in ["udba=reval", "udba=none", "udba=none,open=none"] {
        world.mounted(&format!("br=up=rw:low=ro,{mode}"), || {
            let d = world.path("m/d");
            let mut unnamed = OpenOptions::new();
            unnamed.read(true).write(true).custom_flags(libc::O_TMPFILE);
            let refused = unnamed.open(&d).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP), "{mode}");
            // A library that tries it first.
            let mut file = tempfile::tempfile_in(&d).unwrap();
            file.write_all(b"data").unwrap();
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), file.metadata().unwrap().nlink()), ("data", 0));
            // Another one, which is a program.
            let python = "import tempfile as t\nwith t.TemporaryFile(dir=\".\") as f: f.write(b\"x\")\n\
                          assert f.closed";
            let script = format!("cd d && python3 -c '{python}'");
            assert!(world.may(0, &[], &script), "{mode}");
            drop(file);
        });
        assert_eq!(world.tree("up"), ["d"], "{mode}: nothing is left");
    }
}
