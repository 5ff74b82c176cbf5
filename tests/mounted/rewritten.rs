//! Lower files that are rewritten hold what was written, no more and no less: longer and shorter ones,
//! in every way, and by several processes while they are copied up.
#![allow(unsafe_code)]

use super::fixture::World;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use unionfs::fuse::unmount;

/// Ways in which data travels.
const MODES: &[&str] = &[
    "udba=reval",
    "udba=none,io=cache",
    "udba=none,io=passthrough",
    "udba=none,open=none,writeback",
];

/// Data of which every word tells its place and whose it is.
fn pattern(whose: u64, length: usize) -> Vec<u8> {
    let words = 0..(length as u64).div_ceil(8);
    let mut data: Vec<u8> = words
        .flat_map(|n| ((whose << 40) | n).to_le_bytes())
        .collect();
    data.truncate(length);
    data
}

/// Gives the file at a path this content. A file `PATH.from` holds it too.
type Way = fn(&Path, &[u8]);

const WAYS: &[(&str, Way)] = &[
    ("cut and written", |path, data| {
        fs::write(path, data).unwrap()
    }),
    ("given its length, then written", |path, data| {
        let file = writable(path);
        file.set_len(data.len() as u64).unwrap();
        file.write_all_at(data, 0).unwrap();
    }),
    ("written, then cut", |path, data| {
        let file = writable(path);
        file.write_all_at(data, 0).unwrap();
        file.set_len(data.len() as u64).unwrap();
    }),
    ("written from its end in pages", |path, data| {
        let file = writable(path);
        for (n, page) in data.chunks(4096).enumerate().rev() {
            file.write_all_at(page, n as u64 * 4096).unwrap();
        }
        file.set_len(data.len() as u64).unwrap();
    }),
    ("cut to nothing, then appended to", |path, data| {
        writable(path).set_len(0).unwrap();
        let mut file = OpenOptions::new().append(true).open(path).unwrap();
        for piece in data.chunks(5_000) {
            file.write_all(piece).unwrap();
        }
    }),
    ("replaced", |path, data| {
        let new = path.with_extension("new");
        fs::write(&new, data).unwrap();
        fs::rename(&new, path).unwrap();
    }),
    ("replaced by a lower file", |path, _| {
        let from = path.with_extension("from");
        fs::rename(&from, path).unwrap();
        fs::copy(path, from).unwrap();
    }),
    ("mapped", |path, data| {
        let file = writable(path);
        file.set_len(data.len() as u64).unwrap();
        write_mapped(&file, data);
    }),
    ("copied over by the kernel", |path, data| {
        let file = writable(path);
        let from = File::open(path.with_extension("from")).unwrap();
        let (mut read_at, mut write_at) = (0, 0);
        while write_at < data.len() as u64 {
            let want = data.len() - write_at as usize;
            let (from_at, to_at) = (Some(&mut read_at), Some(&mut write_at));
            let done = rustix::fs::copy_file_range(&from, from_at, &file, to_at, want).unwrap();
            assert_ne!(done, 0);
        }
        file.set_len(data.len() as u64).unwrap();
    }),
];

fn writable(path: &Path) -> File {
    let mut how = OpenOptions::new();
    how.read(true).write(true).open(path).unwrap()
}

/// A shared mapping of a whole file.
struct Mapping(*mut libc::c_void, usize);

impl Mapping {
    fn new(file: &File) -> Self {
        let length = file.metadata().unwrap().len() as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (null, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(null, length, protection, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at, length)
    }

    fn write(&self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.1);
        // SAFETY: within the mapping; `data` lies elsewhere.
        unsafe {
            let to = self.0.cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        let done = unsafe { libc::msync(self.0, self.1, libc::MS_SYNC) };
        assert_eq!(done, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn write_mapped(file: &File, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mapping = Mapping::new(file);
    mapping.write(0, data);
    mapping.sync();
}

/// Lengths before, then, and at last: around pages and requests.
const LENGTHS: &[[usize; 3]] = &[
    [5_000, 9_000, 100],
    [9_000, 100, 5_000],
    [4_096, 4_097, 8_192],
    [4_097, 4_095, 0],
    [0, 5_000, 12_288],
    [300_000, 1, 300_001],
    [10_000, 700_000, 650_000],
];

#[test]
fn a_rewritten_lower_file_holds_what_a_plain_one_would() {
    let Some(world) = World::new() else { return };
    for mode in MODES {
        // The same files on the lower branch, and beside it where the union has no part in it.
        for top in ["low", "shadow"] {
            world.mkdir(top, 0o755);
            for_each_file(|file, lengths, _| {
                let path = world.path(&format!("{top}/{file}"));
                fs::write(&path, pattern(1, lengths[0])).unwrap();
                fs::write(path.with_extension("from"), pattern(2, lengths[1])).unwrap();
            });
        }
        world.mkdir("up", 0o755);
        let options = format!("br=up=rw:low=ro,{mode}");
        world.mounted(&options, || {
            for_each_file(|file, lengths, way| rewrite(&world, mode, file, lengths, way));
        });
        world.mounted(&options, || {
            for_each_file(|file, lengths, _| {
                let now = fs::read(world.path(&format!("m/{file}"))).unwrap();
                assert!(now == pattern(3, lengths[2]), "{file}, {mode}: remounted");
            });
        });
        for_each_file(|file, lengths, _| {
            let path = world.path(&format!("low/{file}"));
            assert!(fs::read(&path).unwrap() == pattern(1, lengths[0]));
            assert!(fs::read(path.with_extension("from")).unwrap() == pattern(2, lengths[1]));
        });
        for top in ["low", "shadow", "up"] {
            fs::remove_dir_all(world.path(top)).unwrap();
        }
    }
}

/// Every way with every row of lengths, and each with and without pages in the kernel's cache.
fn for_each_file(mut f: impl FnMut(&str, &[usize; 3], usize)) {
    for n in 0..WAYS.len() {
        for (row, lengths) in LENGTHS.iter().enumerate() {
            for kind in ["cold", "warm"] {
                f(&format!("{kind}-{n}-{row}"), lengths, n);
            }
        }
    }
}

/// Rewrites a file twice, the second time in the next way, in the mount and beside it.
fn rewrite(world: &World, mode: &str, file: &str, lengths: &[usize; 3], first: usize) {
    let path = world.path(&format!("m/{file}"));
    let shadow = world.path(&format!("shadow/{file}"));
    let reader = file.starts_with("warm").then(|| {
        let reader = File::open(&path).unwrap();
        assert!(whole(&reader) == pattern(1, lengths[0]));
        reader
    });
    for (step, &length) in lengths[1..].iter().enumerate() {
        let (name, way) = WAYS[(first + step) % WAYS.len()];
        let data = pattern(step as u64 + 2, length);
        for path in [&shadow, &path] {
            if step > 0 {
                fs::write(path.with_extension("from"), &data).unwrap();
            }
            way(path, &data);
        }
        let what = format!("{file}, {name}, {lengths:?}, {mode}");
        let right = fs::read(&shadow).unwrap();
        assert!(right == data, "{what}: the test itself");
        assert!(fs::read(&path).unwrap() == right, "{what}");
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.len() as usize, length, "{what}");
        if let Some(reader) = &reader
            && reader.metadata().unwrap().ino() == stat.ino()
        {
            assert!(
                whole(reader) == right,
                "{what}: by a descriptor from before"
            );
        }
    }
}

/// What a descriptor reads from the beginning to the end.
fn whole(file: &File) -> Vec<u8> {
    let mut data = vec![0; 1 << 20];
    let length = file.read_at(&mut data, 0).unwrap();
    data.truncate(length);
    data
}

/// The length to which the file is cut again and again; it has more below.
const KEPT: usize = 16 << 20;
const TAIL: usize = 3_000;
/// What is appended at once.
const RECORD: usize = 64;
const RECORDS: u32 = 300;
const CUTS: usize = 20;

/// The part of a child: what it does with which file.
const PART: &str = "UAUFS_TEST_PART";

fn record(who: &str, n: u32) -> String {
    format!("{who} {n:0width$}\n", width = RECORD - 3)
}

#[test]
fn child() {
    let (Some(part), Some(path)) = (std::env::var_os(PART), std::env::var_os("UAUFS_TEST_FILE"))
    else {
        return;
    };
    let path = Path::new(&path);
    // All begin at once: when the other end of this pipe is closed.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    match part.to_str().unwrap() {
        "map" => {
            let mapping = Mapping::new(&writable(path));
            for n in 1..=50_u64 {
                mapping.write(8_192, &n.to_le_bytes());
                mapping.sync();
            }
        }
        "cut" => {
            for _ in 0..CUTS {
                writable(path).set_len(KEPT as u64).unwrap();
            }
        }
        who => {
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            for n in 0..RECORDS {
                assert_eq!(file.write(record(who, n).as_bytes()).unwrap(), RECORD);
            }
        }
    }
}

fn start(part: &str, path: OsString) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "rewritten::child", "--nocapture"])
        .env(PART, part)
        .env("UAUFS_TEST_FILE", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn processes_that_append_map_and_cut_while_a_file_is_copied_up_lose_nothing() {
    let Some(world) = World::new() else { return };
    world.mkdir("low", 0o755);
    let lower = Memory::new(&world, "low");
    let old = pattern(1, KEPT + TAIL);
    fs::write(world.path("low/f"), &old).unwrap();
    for mode in MODES {
        world.mkdir("up", 0o755);
        let options = format!("br=up=rw:low=ro,volatile,{mode}");
        world.mounted(&options, || {
            let path = world.path("m/f").into_os_string();
            let mut children =
                ["a", "b", "map", "cut"].map(|part| (part, start(part, path.clone())));
            for (_, child) in &mut children {
                drop(child.stdin.take());
            }
            for (part, mut child) in children {
                assert!(child.wait().unwrap().success(), "{part}, {mode}");
            }
            // After the last cut: nobody's records are torn, in the wrong order or missing.
            let mut last = OpenOptions::new().append(true).open(&path).unwrap();
            last.write_all(record("a", RECORDS).as_bytes()).unwrap();
            check_appended(&fs::read(&path).unwrap(), &old, mode);
        });
        check_appended(&fs::read(world.path("up/f")).unwrap(), &old, mode);
        assert!(fs::read(world.path("low/f")).unwrap() == old, "{mode}");
        fs::remove_dir_all(world.path("up")).unwrap();
    }
    drop(lower);
}

/// The beginning is the old one but for what was mapped, and whole records follow.
fn check_appended(now: &[u8], old: &[u8], mode: &str) {
    assert_eq!(now[8_192..8_200], 50_u64.to_le_bytes(), "{mode}: mapped");
    assert!(now[..8_192] == old[..8_192], "{mode}: before");
    assert!(now[8_200..KEPT] == old[8_200..KEPT], "{mode}: after");
    let mut next = [None; 2];
    for (n, piece) in now[KEPT..].chunks(RECORD).enumerate() {
        let text = String::from_utf8_lossy(piece);
        let who = usize::from(text.starts_with('b'));
        let number: u32 = text
            .get(2..)
            .and_then(|number| number.trim_end().parse().ok())
            .unwrap_or_else(|| panic!("{mode}: record {n} is {text:?}"));
        assert_eq!(text, record(["a", "b"][who], number), "{mode}: record {n}");
        // After the first one none is missing: a cut takes all that is there.
        let expected = *next[who].get_or_insert(number);
        assert_eq!(number, expected, "{mode}: record {n}");
        next[who] = Some(number + 1);
    }
    assert_eq!(next[0], Some(RECORDS + 1), "{mode}: the last of one");
    assert!(
        next[1].is_none_or(|next| next == RECORDS),
        "{mode}: of the other"
    );
}

/// A directory on a filesystem in memory, so that copying to a disk has to read and write.
struct Memory(std::path::PathBuf);

impl Memory {
    fn new(world: &World, name: &str) -> Self {
        let at = world.path(name);
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "uaufs-test"])
            .arg(&at)
            .status();
        assert!(done.unwrap().success());
        Self(at)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = unmount(&self.0, true);
    }
}

#[test]
fn files_that_are_copied_up_at_once_do_not_mix() {
    const FILES: usize = 48;
    let Some(world) = World::new() else { return };
    world.mkdir("low", 0o755);
    let _lower = Memory::new(&world, "low");
    for n in 0..FILES {
        let data = pattern(n as u64 + 1, 200_000 + n * 1_000);
        fs::write(world.path(&format!("low/{n}")), data).unwrap();
    }
    world.mkdir("up", 0o755);
    world.mounted("br=up=rw:low=ro,volatile", || {
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let world = &world;
                scope.spawn(move || {
                    for n in (worker..FILES).step_by(8) {
                        let file = writable(&world.path(&format!("m/{n}")));
                        file.write_all_at(b"8 bytes.", 0).unwrap();
                    }
                });
            }
        });
    });
    for n in 0..FILES {
        let mut right = pattern(n as u64 + 1, 200_000 + n * 1_000);
        right[..8].copy_from_slice(b"8 bytes.");
        let copy = fs::read(world.path(&format!("up/{n}"))).unwrap();
        assert!(copy == right, "{n}");
    }
}

#[test]
fn others_go_on_while_a_large_file_is_copied_up() {
    const SIZE: usize = 48 << 20;
    /// On a busy machine nobody may look while the copy is made.
    const TRIES: usize = 20;
    let Some(world) = World::new() else { return };
    world.mkdir("low", 0o755);
    let _lower = Memory::new(&world, "low");
    fs::write(world.path("low/0"), vec![1; SIZE]).unwrap();
    for n in 1..TRIES {
        fs::hard_link(world.path("low/0"), world.path(&format!("low/{n}"))).unwrap();
    }
    world.mkdir("up", 0o755);
    let tmp = world.path("up/.wh..wh.uaufs/tmp");
    let is_copying = || fs::read_dir(&tmp).is_ok_and(|mut left| left.next().is_some());
    // With `noplink` each name is copied for itself.
    world.mounted("br=up=rw:low=ro,volatile,noplink,threads=2", || {
        let goes_on = (0..TRIES).any(|n| {
            let path = world.path(&format!("m/{n}"));
            let seen = std::thread::scope(|scope| {
                let copied = scope.spawn(|| {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
                });
                while !copied.is_finished() {
                    if is_copying() {
                        fs::write(world.path(&format!("m/new{n}")), "").unwrap();
                        if is_copying() {
                            return true;
                        }
                    }
                }
                false
            });
            let copy = fs::metadata(world.path(&format!("up/{n}"))).unwrap();
            assert_eq!(copy.len(), SIZE as u64);
            fs::remove_file(path).unwrap();
            seen
        });
        assert!(goes_on, "every file was made after the copy");
    });
}
