//! Branches that are full: with `moveonenospc` writing goes on on another one.

use crate::fixture::{World, eventually, program};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use unionfs::fuse::unmount;

const MIB: usize = 1 << 20;

/// Ways in which data reaches the daemon.
const WAYS: [&str; 4] = [
    "udba=reval",
    "udba=none",
    "io=direct",
    "udba=none,writeback",
];

/// Branches of their own small size. Everything is unmounted when dropped.
struct Small {
    world: World,
    branches: Vec<&'static str>,
}

impl Small {
    /// Branches with the options of a tmpfs each.
    fn new(branches: &[(&'static str, &str)]) -> Option<Self> {
        let mut small = Self {
            world: World::new()?,
            branches: Vec::new(),
        };
        for (name, options) in branches {
            small.world.mkdir(name, 0o755);
            let done = Command::new("mount")
                .args(["-t", "tmpfs", "-o", options, "uaufs-test"])
                .arg(small.world.path(name))
                .status();
            assert!(done.unwrap().success(), "{name}");
            small.branches.push(name);
        }
        Some(small)
    }

    /// Where a file lies.
    fn holders(&self, path: &str) -> Vec<&'static str> {
        let holds = |b: &&&str| self.world.path(&format!("{b}/{path}")).exists();
        self.branches.iter().filter(holds).copied().collect()
    }

    fn content(&self, path: &str) -> Vec<u8> {
        fs::read(self.world.path(path)).unwrap()
    }

    fn open(&self, path: &str) -> File {
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true);
        how.open(self.world.path(path)).unwrap()
    }

    fn leave(&self) {
        while unmount(&self.world.path("m"), true).is_ok() {}
    }

    /// A daemon that can be killed.
    fn serve(&self, options: &str) -> Child {
        let daemon = Command::new(program())
            .current_dir(self.world.path(""))
            .args(["-f", "-o", options, "m"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let device = || fs::metadata(self.world.path("m")).map_or(0, |m| m.dev());
        let outside = fs::metadata(self.world.path("")).unwrap().dev();
        eventually("the mount", || ![0, outside].contains(&device()));
        daemon
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.leave();
        for branch in &self.branches {
            let _ = unmount(&self.world.path(branch), true);
        }
    }
}

/// Data of which every part tells where it belongs.
fn pattern(len: usize) -> Vec<u8> {
    let words = (0..len as u64 / 8).flat_map(u64::to_le_bytes);
    words.collect()
}

/// Writes in pieces, as programs do; to where it came if that failed.
fn write_pieces(file: &mut File, data: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    for piece in data.chunks(64 << 10) {
        file.write_all(piece).map_err(|err| (done, err))?;
        done += piece.len();
    }
    file.sync_all().map_err(|err| (done, err))
}

fn upper_is_small() -> Option<Small> {
    Small::new(&[("b0", "size=2m"), ("b1", "size=32m")])
}

#[test]
fn a_write_that_does_not_fit_goes_on_on_the_branch_below_under_the_same_number() {
    for way in WAYS {
        let Some(small) = upper_is_small() else {
            return;
        };
        let w = &small.world;
        w.mkdir("b0/d", 0o750);
        w.mounted(&format!("br=b0=rw:b1=rw,moveonenospc,{way}"), || {
            let data = pattern(8 * MIB);
            let mut file = small.open("m/d/f");
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))
                .unwrap();
            let mut reader = File::open(w.path("m/d/f")).unwrap();
            let number = file.metadata().unwrap().ino();
            write_pieces(&mut file, &data).unwrap_or_else(|err| panic!("{way}: {err:?}"));
            assert_eq!(small.holders("d/f"), ["b1"], "{way}");
            assert!(small.content("b1/d/f") == data, "{way}: on the branch");
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert!(read == data, "{way}: by a descriptor from before");
            let now = fs::metadata(w.path("m/d/f")).unwrap();
            assert_eq!((now.ino(), now.mode() & 0o7777), (number, 0o640), "{way}");
            let dir = fs::metadata(w.path("b1/d")).unwrap();
            assert_eq!(dir.mode() & 0o7777, 0o750, "{way}");
            file.seek(SeekFrom::Start(0)).unwrap();
            file.write_all(b"again").unwrap();
            file.sync_all().unwrap();
            assert_eq!(&small.content("b1/d/f")[..5], b"again", "{way}");
        });
    }
}

#[test]
fn a_write_goes_on_on_a_branch_above_and_only_one_copy_is_left() {
    for way in WAYS {
        let Some(small) = Small::new(&[("b0", "size=32m"), ("b1", "size=2m")]) else {
            return;
        };
        let w = &small.world;
        w.put("b1/d/f", "begin");
        w.mounted(&format!("br=b0=rw:b1=rw,moveonenospc,{way}"), || {
            let data = pattern(8 * MIB);
            let mut file = small.open("m/d/f");
            file.seek(SeekFrom::Start(8)).unwrap();
            write_pieces(&mut file, &data).unwrap_or_else(|err| panic!("{way}: {err:?}"));
            assert_eq!(small.holders("d/f"), ["b0"], "{way}");
            let now = small.content("m/d/f");
            assert!(&now[..8] == b"begin\0\0\0" && now[8..] == data, "{way}");
            assert!(now == small.content("b0/d/f"), "{way}");
            fs::remove_file(w.path("m/d/f")).unwrap();
            assert!(small.holders("d/f").is_empty(), "{way}");
        });
    }
}

#[test]
fn where_everything_is_full_it_is_an_error_and_nothing_is_lost() {
    for option in ["moveonenospc", "moveonenospc=0"] {
        let Some(small) = Small::new(&[("b0", "size=2m"), ("b1", "size=4m")]) else {
            return;
        };
        let options = format!("br=b0=rw:b1=rw,{option}");
        small.world.mounted(&options, || {
            let data = pattern(8 * MIB);
            let mut file = small.open("m/f");
            let (done, err) = write_pieces(&mut file, &data).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::StorageFull);
            let (holders, least) = match option {
                "moveonenospc" => (["b1"], 3 * MIB),
                _ => (["b0"], MIB),
            };
            assert_eq!(small.holders("f"), holders);
            assert!(done > least, "{option}: {done}");
            assert!(small.content("m/f")[..done] == data[..done]);
        });
    }
}

#[test]
fn a_file_that_something_between_would_hide_stays() {
    let Some(small) = Small::new(&[("b0", "size=2m"), ("ro", "size=1m"), ("b1", "size=32m")])
    else {
        return;
    };
    let w = &small.world;
    w.put("ro/.wh.deleted", "");
    w.put("ro/opaque/.wh..wh..opq", "");
    w.put("ro/there", "hidden");
    w.put("b1/below", "also hidden");
    w.mkdir("b0/opaque", 0o755);
    for name in ["deleted", "opaque/f", "there", "below"] {
        w.put(&format!("b0/{name}"), "upper");
    }
    w.mounted("br=b0=rw:ro=ro+wh:b1=rw,moveonenospc", || {
        for name in ["deleted", "opaque/f", "there", "below"] {
            let mut file = small.open(&format!("m/{name}"));
            let (_, err) = write_pieces(&mut file, &pattern(4 * MIB)).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::StorageFull, "{name}");
            assert_eq!(small.holders(name)[0], "b0", "{name}");
            file.set_len(5).unwrap();
        }
        assert_eq!(w.read("b1/below"), "also hidden");
        let mut file = small.open("m/free");
        write_pieces(&mut file, &pattern(4 * MIB)).unwrap();
        assert_eq!(small.holders("free"), ["b1"]);
    });
}

#[test]
fn a_file_without_a_name_moves_too_and_one_with_several_only_upwards() {
    let Some(small) = Small::new(&[("b0", "size=16m"), ("b1", "size=2m"), ("b2", "size=32m")])
    else {
        return;
    };
    let w = &small.world;
    w.put("b1/gone", "x");
    w.put("b1/one", "x");
    fs::hard_link(w.path("b1/one"), w.path("b1/two")).unwrap();
    w.mounted("br=b0=rw:b1=rw:b2=rw,moveonenospc,dirperm1", || {
        let data = pattern(4 * MIB);
        let mut file = small.open("m/gone");
        fs::remove_file(w.path("m/gone")).unwrap();
        write_pieces(&mut file, &data).unwrap();
        let mut now = vec![0; data.len()];
        file.read_exact_at(&mut now, 0).unwrap();
        assert!(now == data);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert!(small.holders("gone").is_empty());
        write_pieces(&mut small.open("m/one"), &data).unwrap();
        assert!(small.content("m/two") == data);
        assert_eq!(fs::metadata(w.path("m/two")).unwrap().nlink(), 2);
        assert_eq!(small.holders("one")[0], "b0");
    });
    let Some(small) = upper_is_small() else {
        return;
    };
    let w = &small.world;
    w.put("b0/one", "x");
    fs::hard_link(w.path("b0/one"), w.path("b0/two")).unwrap();
    w.mounted("br=b0=rw:b1=rw,moveonenospc", || {
        let (_, err) = write_pieces(&mut small.open("m/one"), &pattern(4 * MIB)).unwrap_err();
        assert_eq!(err.kind(), ErrorKind::StorageFull);
        assert!(small.content("m/one") == small.content("m/two"));
    });
}

#[test]
fn a_copy_that_does_not_fit_is_made_on_another_branch_above_its_source() {
    let Some(small) = Small::new(&[
        ("b0", "size=1m"),
        ("b1", "size=16m"),
        ("ro", "size=16m"),
        ("b2", "size=32m"),
    ]) else {
        return;
    };
    let w = &small.world;
    let data = pattern(4 * MIB);
    for name in ["d/append", "d/chmod", "d/cut"] {
        w.put(&format!("ro/{name}"), "");
        fs::write(w.path(&format!("ro/{name}")), &data).unwrap();
    }
    w.mkdir("b0/d", 0o755);
    w.mounted("br=b0=rw:b1=rw:ro=ro:b2=rw,moveonenospc", || {
        let number = fs::metadata(w.path("m/d/append")).unwrap().ino();
        small
            .open("m/d/append")
            .write_at(b"END", 4 * MIB as u64)
            .unwrap();
        w.chmod("m/d/chmod", 0o600);
        small.open("m/d/cut").set_len(3 * MIB as u64).unwrap();
        for name in ["d/append", "d/chmod", "d/cut"] {
            assert_eq!(small.holders(name), ["b1", "ro"], "{name}");
            assert!(small.content(&format!("m/{name}"))[..3 * MIB] == data[..3 * MIB]);
        }
        assert_eq!(&small.content("m/d/append")[4 * MIB..], b"END");
        assert_eq!(fs::metadata(w.path("m/d/append")).unwrap().ino(), number);
    });
    assert!(small.content("ro/d/append") == data);
}

#[test]
fn something_new_is_made_on_another_branch_if_there_are_no_inodes_left() {
    let Some(small) = Small::new(&[("b0", "size=8m,nr_inodes=32"), ("b1", "size=8m")]) else {
        return;
    };
    let w = &small.world;
    w.mkdir("b0/d", 0o755);
    w.put("b1/e/old", "old");
    for (option, create) in [("moveonenospc=0", "tdp"), ("moveonenospc", "tdp")] {
        w.mounted(&format!("br=b0=rw:b1=rw,create={create},{option}"), || {
            let fill = (0..64).find_map(|n| File::create(w.path(&format!("b0/fill{n}"))).err());
            assert!(fill.is_some());
            let made = |name: &str, result: io::Result<()>| match option {
                "moveonenospc" => {
                    result.unwrap_or_else(|err| panic!("{name}: {err}"));
                    assert_eq!(small.holders(name), ["b1"], "{name}");
                }
                _ => assert_eq!(result.unwrap_err().kind(), ErrorKind::StorageFull),
            };
            let at = |name: &str| w.path("m").join(name);
            made("d/file", File::create(at("d/file")).map(drop));
            made("d/dir", fs::create_dir(at("d/dir")));
            made("d/fifo", mkfifo(&at("d/fifo")));
            let link = symlink("target", at("d/link"));
            if option == "moveonenospc" {
                link.unwrap();
                assert!(w.path("b1/d/link").is_symlink());
            } else {
                assert!(link.is_err());
            }
        });
    }
    // Policies that look at free space know that it is of no use without inodes.
    w.mounted("br=b0=rw:b1=rw,create=mfs:0", || {
        fs::write(w.path("b1/ballast"), pattern(4 * MIB)).unwrap();
        File::create(w.path("m/d/by-policy")).unwrap();
        assert_eq!(small.holders("d/by-policy"), ["b1"]);
    });
}

fn mkfifo(path: &std::path::Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    Ok(mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0)?)
}

#[test]
fn a_link_whose_directory_does_not_fit_goes_up_with_its_file() {
    let Some(small) = Small::new(&[("b0", "size=8m"), ("b1", "size=8m,nr_inodes=32")]) else {
        return;
    };
    let w = &small.world;
    w.put("b1/d/file", "data");
    w.mkdir("b0/e", 0o755);
    w.mounted("br=b0=rw:b1=rw,moveonenospc", || {
        let fill = (0..64).find_map(|n| File::create(w.path(&format!("b1/fill{n}"))).err());
        assert!(fill.is_some());
        fs::hard_link(w.path("m/d/file"), w.path("m/e/link")).unwrap();
        assert_eq!(small.holders("e/link"), ["b0"]);
        fs::write(w.path("m/d/file"), "new").unwrap();
        assert_eq!(w.read("m/e/link"), "new");
    });
}

#[test]
fn reserved_space_copied_ranges_and_mapped_pages_go_on_too() {
    let Some(small) = upper_is_small() else {
        return;
    };
    let w = &small.world;
    w.mounted("br=b0=rw:b1=rw,moveonenospc", || {
        let file = small.open("m/reserved");
        file.write_at(b"kept", 0).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 6 << 20).unwrap();
        assert_eq!(small.holders("reserved"), ["b1"]);
        assert_eq!(&small.content("m/reserved")[..5], b"kept\0");
        drop(file);
        fs::write(w.path("b0/ballast"), pattern(MIB)).unwrap();
        let data = pattern(3 * MIB);
        fs::write(w.path("m/source"), &data).unwrap();
        fs::copy(w.path("m/source"), w.path("m/copied")).unwrap();
        assert!(small.content("m/copied") == data);
        let script = "import mmap, os\n\
            f = os.open('m/mapped', os.O_RDWR | os.O_CREAT)\n\
            os.truncate(f, 6 << 20)\n\
            m = mmap.mmap(f, 6 << 20)\n\
            for at in range(0, 6 << 20, 4096): m[at] = 65 + (at >> 12) % 26\n\
            m.flush()\n\
            os.fsync(f)\n";
        let python = Command::new("python3")
            .args(["-c", script])
            .current_dir(w.path(""))
            .status();
        if python.is_ok_and(|status| status.success()) {
            assert_eq!(small.holders("mapped"), ["b1"]);
            let pages = small.content("m/mapped");
            let right = |(n, page): (usize, &[u8])| page[0] == 65 + (n % 26) as u8;
            assert!(pages.chunks(4096).enumerate().all(right));
        }
    });
}

#[test]
fn a_daemon_that_is_killed_in_the_midst_leaves_the_file_on_one_branch_or_on_the_other() {
    for (sizes, delay) in [
        (["size=4m", "size=64m"], 0),
        (["size=4m", "size=64m"], 2),
        (["size=4m", "size=64m"], 5),
        (["size=64m", "size=4m"], 1),
        (["size=64m", "size=4m"], 3),
        (["size=64m", "size=4m"], 8),
    ] {
        let Some(small) = Small::new(&[("b0", sizes[0]), ("b1", sizes[1])]) else {
            return;
        };
        let w = &small.world;
        let data = pattern(16 * MIB);
        let begun = 3 * MIB;
        let from = if sizes[0] == "size=4m" { "b0" } else { "b1" };
        fs::write(w.path(&format!("{from}/f")), &data[..begun]).unwrap();
        let options = "br=b0=rw:b1=rw,moveonenospc,io=direct";
        let mut daemon = small.serve(options);
        let mut file = small.open("m/f");
        file.seek(SeekFrom::End(0)).unwrap();
        let rest = data[begun..].to_vec();
        let writer = std::thread::spawn(move || match write_pieces(&mut file, &rest) {
            Ok(()) => rest.len(),
            Err((done, _)) => done,
        });
        // It is moved after a MiB.
        let full = || {
            fs::metadata(w.path(&format!("{from}/f")))
                .map_or(true, |m| m.len() as usize >= begun + MIB - (64 << 10))
        };
        eventually("the branch is full", full);
        std::thread::sleep(Duration::from_millis(delay));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let done = begun + writer.join().unwrap();
        small.leave();
        w.mounted(options, || {
            assert_eq!(small.content("m/f")[..done], data[..done]);
            let names: Vec<_> = fs::read_dir(w.path("m")).unwrap().collect();
            assert_eq!(names.len(), 1);
            let file = OpenOptions::new().append(true).open(w.path("m/f")).unwrap();
            (&file).write_all(b"goes on").unwrap();
            for branch in ["b0", "b1"] {
                let tmp = w.path(&format!("{branch}/.wh..wh.uaufs/tmp"));
                assert_eq!(fs::read_dir(tmp).unwrap().count(), 0);
            }
        });
    }
}

/// What needs room, and can be tried again.
type Try = fn(&Small) -> io::Result<()>;

const NEEDS_ROOM: [(&str, Try); 6] = [
    ("copy-up", |small| {
        let file = OpenOptions::new()
            .write(true)
            .open(small.world.path("m/big"))?;
        file.write_all_at(b"more", MIB as u64)?;
        file.sync_all()
    }),
    ("write", |small| {
        let mut file = OpenOptions::new()
            .write(true)
            .open(small.world.path("m/own"))?;
        write_pieces(&mut file, &pattern(MIB)).map_err(|(_, err)| err)
    }),
    ("create", |small| {
        fs::write(small.world.path("m/new"), "new")?;
        File::open(small.world.path("m/new"))?.sync_all()
    }),
    ("mkdir", |small| fs::create_dir(small.world.path("m/made"))),
    ("unlink", |small| {
        fs::remove_file(small.world.path("m/gone"))
    }),
    ("rename", |small| {
        let w = &small.world;
        fs::rename(w.path("m/d"), w.path("m/e"))
    }),
];

/// Uses up what is left beside a branch.
fn fill(dir: &std::path::Path) {
    let fails = |result: io::Result<()>| {
        result.is_err_and(|err| {
            assert_eq!(err.kind(), ErrorKind::StorageFull);
            true
        })
    };
    let mut last = None;
    // Files until there are no inodes, then pages until there is no space.
    for n in 0..200 {
        match File::create(dir.join(n.to_string())) {
            Ok(file) => last = Some(file),
            Err(err) => assert!(fails(Err(err))),
        }
    }
    let mut last = last.unwrap();
    while !fails(last.write_all(&[0; 4096])) {}
}

#[test]
fn when_room_is_made_everything_works_again_without_a_remount() {
    for way in WAYS {
        let Some(small) = Small::new(&[("b0", "size=3m,nr_inodes=100"), ("b1", "size=32m")]) else {
            return;
        };
        let w = &small.world;
        w.mkdir("b0/up", 0o755);
        w.mkdir("b0/filler", 0o755);
        fs::write(w.path("b1/big"), pattern(MIB)).unwrap();
        w.put("b1/gone", "");
        w.put("b1/d/x", "x");
        let options = format!("br=b0/up=rw:b1=ro,dirren,{way}");
        let is_right = || {
            let big = small.content("m/big");
            assert!(
                big[..MIB] == pattern(MIB) && &big[MIB..] == b"more",
                "{way}"
            );
            assert!(small.content("m/own") == pattern(MIB), "{way}");
            assert_eq!(
                w.tree("m"),
                ["big", "e", "e/x", "made", "new", "own"],
                "{way}"
            );
        };
        w.mounted(&options, || {
            fs::write(w.path("m/own"), "").unwrap();
            fill(&w.path("b0/filler"));
            let failed: Vec<_> = NEEDS_ROOM
                .iter()
                .filter(|(what, attempt)| match attempt(&small) {
                    Ok(()) => false,
                    Err(err) => {
                        assert_eq!(err.kind(), ErrorKind::StorageFull, "{what}, {way}");
                        true
                    }
                })
                .collect();
            let names: Vec<_> = failed.iter().map(|(what, _)| *what).collect();
            for what in ["copy-up", "write", "create", "mkdir"] {
                assert!(
                    names.contains(&what),
                    "{what} took room that is not there, {way}"
                );
            }
            assert!(small.content("m/big")[..MIB] == pattern(MIB), "{way}");
            fs::remove_dir_all(w.path("b0/filler")).unwrap();
            for (what, attempt) in failed {
                attempt(&small).unwrap_or_else(|err| panic!("{what}, {way}: {err}"));
            }
            is_right();
            assert_eq!(w.tree("b0/up/.wh..wh.uaufs/tmp"), [""; 0], "{way}");
        });
        w.mounted(&options, is_right);
    }
}
