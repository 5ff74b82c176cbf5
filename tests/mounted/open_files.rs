//! Open files follow the union: descriptors, mappings, locks and watches outlive copy-up and
//! removal, in every way in which data and opens travel.
#![allow(unsafe_code)]

use super::fixture::{World, eventually, program, text};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::inotify;
use rustix::fs::{FlockOperation, Mode, Timespec, Timestamps, XattrFlags};
use std::fs::{self, File, OpenOptions};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

/// Ways in which data and opens travel.
const MODES: &[&str] = &[
    "udba=none,io=cache,open=answered",
    "udba=none,open=none",
    "udba=none,open=none,writeback",
    "udba=reval,io=cache",
    "udba=none,io=passthrough",
    "udba=reval",
    "io=direct",
];

/// Those of a mount by an ordinary user.
const USER_MODES: &[&str] = &["udba=reval", "udba=none", "udba=none,open=none"];

const OLD: &str = "old old old\n";
/// Longer than a page.
const LONG: usize = 10_000;

/// Where a case works: `PATH` of the mount, with a file `f` of the lower branch in it.
struct Place(PathBuf);

impl Place {
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn open(&self) -> File {
        File::open(self.at("f")).unwrap()
    }

    fn open_rw(&self) -> File {
        let mut how = OpenOptions::new();
        how.read(true).write(true).open(self.at("f")).unwrap()
    }
}

fn read(file: &File) -> String {
    let mut data = vec![0; LONG + 100];
    let length = file.read_at(&mut data, 0).unwrap();
    data.truncate(length);
    String::from_utf8(data).unwrap()
}

/// What is done, and what is on the writable branch afterwards.
type Case = (&'static str, fn(&Place), &'static [&'static str]);

const CASES: &[Case] = &[
    ("reader", a_reader_sees_later_writes, &["f"]),
    ("truncated", a_reader_sees_a_truncation, &["f"]),
    ("writers", two_writers_and_an_appender_meet, &["f"]),
    ("mapped", a_mapping_made_before_is_coherent, &["f"]),
    ("mapclosed", a_mapping_outlives_its_descriptor, &["f"]),
    ("locks", locks_survive, &["f"]),
    ("watch", watches_survive, &["f"]),
    ("gone", a_removed_file_is_changed, &[".wh.f"]),
    ("gonero", a_removed_file_is_changed_by_a_reader, &[".wh.f"]),
    ("gonecopy", a_copy_is_removed_and_changed, &[".wh.f"]),
    (
        "gonelinked",
        a_removed_file_goes_on_under_another_name,
        &[".wh.f", "again"],
    ),
    ("replaced", a_replaced_file_is_changed, &[".wh.g", "f"]),
    ("parent", file_and_parent_are_removed, &[".wh.d"]),
    (
        "reborn",
        a_directory_of_the_same_name_is_another,
        &["d", "d/.wh..wh..opq", "d/f"],
    ),
];

fn a_reader_sees_later_writes(at: &Place) {
    let (reader, writer) = (at.open(), at.open_rw());
    assert_eq!(read(&reader), OLD);
    writer.write_at(b"NEW", 0).unwrap();
    assert_eq!(read(&reader), "NEW old old\n");
    writer.write_at(&[b'x'; LONG], OLD.len() as u64).unwrap();
    assert_eq!(read(&reader).len(), OLD.len() + LONG);
    assert_eq!(reader.metadata().unwrap().len() as usize, OLD.len() + LONG);
    drop(writer);
    at.open_rw().write_at(b"again", 0).unwrap();
    assert_eq!(&read(&reader)[..5], "again");
    assert_eq!(
        reader.metadata().unwrap().ino(),
        at.at("f").metadata().unwrap().ino()
    );
}

fn a_reader_sees_a_truncation(at: &Place) {
    let reader = at.open();
    assert_eq!(read(&reader), OLD);
    File::create(at.at("f")).unwrap();
    assert_eq!(read(&reader), "");
    fs::write(at.at("f"), "refilled").unwrap();
    assert_eq!(read(&reader), "refilled");
    at.open_rw().set_len(2).unwrap();
    assert_eq!(
        (read(&reader), reader.metadata().unwrap().len()),
        ("re".into(), 2)
    );
}

fn two_writers_and_an_appender_meet(at: &Place) {
    let (one, two) = (at.open_rw(), at.open_rw());
    let appender = OpenOptions::new().append(true).open(at.at("f")).unwrap();
    one.write_at(b"1", 0).unwrap();
    two.write_at(b"2", 1).unwrap();
    rustix::io::write(&appender, b"end\n").unwrap();
    one.write_at(b"3", 2).unwrap();
    rustix::io::write(&appender, b"END\n").unwrap();
    for file in [&one, &two, &at.open()] {
        assert_eq!(read(file), "123 old old\nend\nEND\n");
    }
    one.sync_all().unwrap();
}

/// The first page of a file.
struct Mapping(*mut libc::c_void);

const PAGE: usize = 4096;

impl Mapping {
    fn new(file: &File, protection: i32, flags: i32) -> Self {
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(null, PAGE, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at)
    }

    fn read(&self, length: usize) -> String {
        // SAFETY: within the mapping, which is readable and lives as long as `self`. Volatile: the
        // file changes.
        let byte = |i| unsafe { self.0.cast::<u8>().add(i).read_volatile() };
        String::from_utf8((0..length).map(byte).collect()).unwrap()
    }

    fn write(&self, at: usize, byte: u8) {
        assert!(at < PAGE);
        // SAFETY: within the mapping, which the callers made writable.
        unsafe { self.0.cast::<u8>().add(at).write_volatile(byte) };
    }

    fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.0, PAGE, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody uses any more.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

fn a_mapping_made_before_is_coherent(at: &Place) {
    let reader = at.open();
    let shared = Mapping::new(&reader, libc::PROT_READ, libc::MAP_SHARED);
    let private = Mapping::new(
        &reader,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE,
    );
    private.write(0, b'P');
    assert_eq!(shared.read(OLD.len()), OLD);
    let writer = at.open_rw();
    writer.write_at(b"NEW", 0).unwrap();
    assert_eq!(shared.read(OLD.len()), "NEW old old\n");
    // A shared mapping of the writer, too.
    let written = Mapping::new(
        &writer,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED,
    );
    written.write(1, b'*');
    assert_eq!(shared.read(3), "N*W");
    written.sync();
    assert_eq!(read(&reader), "N*W old old\n");
    assert_eq!(private.read(3), "Pld");
}

fn a_mapping_outlives_its_descriptor(at: &Place) {
    let shared = Mapping::new(&at.open(), libc::PROT_READ, libc::MAP_SHARED);
    assert_eq!(shared.read(3), "old");
    let mut writer = OpenOptions::new();
    let writer = writer.write(true).open(at.at("f")).unwrap();
    writer.write_at(b"NEW", 0).unwrap();
    drop(writer);
    assert_eq!(shared.read(3), "NEW");
    fs::write(at.at("f"), OLD.to_uppercase()).unwrap();
    assert_eq!(shared.read(3), "OLD");
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn locks_survive(at: &Place) {
    let blocked = |lock: &libc::flock, file: &File| {
        fcntl(file, FcntlArg::F_OFD_SETLK(lock)) == Err(Errno::EAGAIN)
    };
    let exclusive = whole_file(libc::F_WRLCK);
    let (flocked, described, owned) = (at.open(), at.open_rw(), at.open_rw());
    rustix::fs::flock(&flocked, FlockOperation::LockExclusive).unwrap();
    // The last byte by the process, the others by the description.
    let mut last = exclusive;
    last.l_start = 100;
    fcntl(&owned, FcntlArg::F_SETLK(&last)).unwrap();
    let mut first = exclusive;
    first.l_len = 100;
    fcntl(&described, FcntlArg::F_OFD_SETLK(&first)).unwrap();
    // Kept open to the end: a process loses its locks when it closes any descriptor of the file.
    let writer = at.open_rw();
    writer.write_at(b"NEW", 0).unwrap();
    let late = at.open_rw();
    for file in [&writer, &late] {
        let flock = rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive);
        assert_eq!(flock, Err(rustix::io::Errno::WOULDBLOCK));
        assert!(blocked(&first, file) && blocked(&last, file));
    }
    rustix::fs::flock(&flocked, FlockOperation::Unlock).unwrap();
    rustix::fs::flock(&late, FlockOperation::NonBlockingLockExclusive).unwrap();
    let unlock = whole_file(libc::F_UNLCK);
    fcntl(&described, FcntlArg::F_OFD_SETLK(&unlock)).unwrap();
    assert!(!blocked(&first, &late) && blocked(&last, &late));
    fcntl(&owned, FcntlArg::F_SETLK(&unlock)).unwrap();
    assert!(!blocked(&last, &late));
}

fn watches_survive(at: &Place) {
    let watcher = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    let wanted = inotify::WatchFlags::MODIFY | inotify::WatchFlags::ATTRIB;
    inotify::add_watch(&watcher, at.at("f"), wanted).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut seen = move |wanted: inotify::ReadFlags| {
        eventually("an event", || {
            let mut events = inotify::Reader::new(&watcher, &mut buffer);
            std::iter::from_fn(|| events.next().ok().map(|e| e.events()))
                .any(|e| e.contains(wanted))
        });
    };
    let writer = at.open_rw();
    // The first copies up.
    for _ in 0..2 {
        writer.write_at(b"NEW", 0).unwrap();
        seen(inotify::ReadFlags::MODIFY);
    }
    fs::set_permissions(at.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    seen(inotify::ReadFlags::ATTRIB);
    fs::write(at.at("f"), "again").unwrap();
    seen(inotify::ReadFlags::MODIFY);
}

/// Changes everything of an open file that has no name, through a descriptor.
fn change_unnamed(file: &File, data: bool) {
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let expected = if data {
        file.write_at(b"NEW", 0).unwrap();
        assert_eq!(read(file), "NEW old old\n");
        file.set_len(5).unwrap();
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, 8).unwrap();
        file.write_at(b"!", 8).unwrap();
        "NEW o\0\0\0!"
    } else {
        OLD
    };
    assert_eq!(read(file), expected);
    rustix::fs::fchmod(file, Mode::from_raw_mode(0o640)).unwrap();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    rustix::fs::fchown(file, Some(uid), Some(gid)).unwrap();
    let then = Timespec {
        tv_sec: 1_234_567,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: then,
        last_modification: then,
    };
    rustix::fs::futimens(file, &times).unwrap();
    rustix::fs::fsetxattr(file, c"user.x", b"y", XattrFlags::empty()).unwrap();
    let stat = file.metadata().unwrap();
    assert_eq!(
        (stat.mode() & 0o7777, stat.mtime(), stat.nlink()),
        (0o640, 1_234_567, 0)
    );
    let mut value = [0; 8];
    assert_eq!(rustix::fs::fgetxattr(file, c"user.x", &mut value), Ok(1));
    rustix::fs::fremovexattr(file, c"user.x").unwrap();
    file.sync_all().unwrap();
    // Opened once more without a name.
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    assert_eq!(read(&again), expected);
    assert_eq!(read(file), expected);
}

fn a_removed_file_is_changed(at: &Place) {
    let file = at.open_rw();
    fs::remove_file(at.at("f")).unwrap();
    change_unnamed(&file, true);
    assert!(!at.at("f").exists());
}

fn a_removed_file_is_changed_by_a_reader(at: &Place) {
    let file = at.open();
    fs::remove_file(at.at("f")).unwrap();
    change_unnamed(&file, false);
    assert!(!at.at("f").exists());
}

fn a_copy_is_removed_and_changed(at: &Place) {
    let (before, file) = (at.open(), at.open_rw());
    file.write_at(b"o", 0).unwrap();
    fs::remove_file(at.at("f")).unwrap();
    change_unnamed(&file, true);
    assert_eq!(read(&before), "NEW o\0\0\0!");
}

fn a_removed_file_goes_on_under_another_name(at: &Place) {
    let file = at.open_rw();
    fs::hard_link(at.at("f"), at.at("again")).unwrap();
    fs::remove_file(at.at("f")).unwrap();
    file.write_at(b"NEW", 0).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    assert_eq!(fs::read_to_string(at.at("again")).unwrap(), "NEW old old\n");
}

fn a_replaced_file_is_changed(at: &Place) {
    let (old, new) = (at.open_rw(), File::open(at.at("g")).unwrap());
    fs::rename(at.at("g"), at.at("f")).unwrap();
    assert_eq!((read(&old), read(&new)), (OLD.into(), "other".into()));
    change_unnamed(&old, true);
    let writer = at.open_rw();
    writer.write_at(b"O", 0).unwrap();
    assert_eq!(
        (read(&new), read(&at.open())),
        ("Other".into(), "Other".into())
    );
}

fn file_and_parent_are_removed(at: &Place) {
    let path = at.at("d/f");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let reader = File::open(&path).unwrap();
    let dir = File::open(at.at("d")).unwrap();
    fs::remove_file(&path).unwrap();
    fs::remove_dir(at.at("d")).unwrap();
    change_unnamed(&file, true);
    assert_eq!(read(&reader), "NEW o\0\0\0!");
    assert_eq!(dir.metadata().unwrap().nlink(), 0);
    let inside = format!("/proc/self/fd/{}/new", dir.as_raw_fd());
    let made = File::create(inside).map(|_| ());
    assert_eq!(made.unwrap_err().raw_os_error(), Some(libc::ENOENT));
    assert!(!at.at("d").exists());
}

fn a_directory_of_the_same_name_is_another(at: &Place) {
    let path = at.at("d/f");
    let mut how = OpenOptions::new();
    let old = how.read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::remove_dir(at.at("d")).unwrap();
    fs::create_dir(at.at("d")).unwrap();
    let mut how = OpenOptions::new();
    let how = how.read(true).write(true).create_new(true).mode(0o644);
    let new = how.open(&path).unwrap();
    new.write_at(b"other", 0).unwrap();
    change_unnamed(&old, true);
    assert_eq!(fs::read_to_string(&path).unwrap(), "other");
    assert_eq!(fs::read_dir(at.at("d")).unwrap().count(), 1);
}

/// Prepares both branches for all cases.
fn prepare(world: &World) {
    world.mkdir("b0", 0o755);
    for (name, ..) in CASES {
        world.put(&format!("b1/{name}/f"), OLD);
        world.put(&format!("b1/{name}/g"), "other");
        world.put(&format!("b1/{name}/d/f"), OLD);
    }
}

/// Runs all cases on one mount. Afterwards the lower branch is as before, and the upper one holds
/// what has a name and nothing else.
fn run(world: &World, mode: &str) {
    let lower = world.tree("b1");
    world.mount(&format!("br=b0=rw:b1=ro,{mode}"));
    for (name, case, _) in CASES {
        eprintln!("{name} ({mode})");
        case(&Place(world.path("m").join(name)));
    }
    world.umount();
    assert_eq!(world.tree("b1"), lower, "{mode}");
    let mut upper = Vec::new();
    for (name, _, left) in CASES {
        assert_eq!(world.read(&format!("b1/{name}/f")), OLD, "{mode}");
        upper.push((*name).to_owned());
        upper.extend(left.iter().map(|path| format!("{name}/{path}")));
    }
    upper.sort();
    assert_eq!(world.tree("b0"), upper, "{mode}");
    for leftovers in [
        ".wh..wh.uaufs/tmp",
        ".wh..wh.uaufs/trash",
        ".wh..wh.plnk",
        ".wh..wh.orph",
    ] {
        assert!(
            world.tree(&format!("b0/{leftovers}")).is_empty(),
            "{leftovers} ({mode})"
        );
    }
    fs::remove_dir_all(world.path("b0")).unwrap();
    world.mkdir("b0", 0o755);
}

#[test]
fn open_files_follow_the_union_in_every_mode() {
    let Some(world) = World::new() else { return };
    prepare(&world);
    for mode in MODES {
        run(&world, mode);
    }
}

/// Set for the part of a test that runs as an ordinary user: its directory.
const USER_DIR: &str = "UAUFS_TEST_USER_DIR";

/// The part of the tests below that runs as an ordinary user.
#[test]
fn as_user() {
    let Some(dir) = std::env::var_os(USER_DIR) else {
        return;
    };
    let world = World::existing(dir.into());
    prepare(&world);
    for mode in USER_MODES {
        run(&world, mode);
    }
}

/// Runs [`as_user`] as an ordinary user who can open /dev/fuse, by `how` (words before a command).
fn run_as_user(how: &str) {
    let Some(world) = World::new() else { return };
    world.chown("", 1000, 1000);
    world.chown("m", 1000, 1000);
    // Copies: the user may not be able to reach the build directory.
    fs::copy(std::env::current_exe().unwrap(), world.path("test")).unwrap();
    fs::copy(program(), world.path("uaufs")).unwrap();
    // In a mount namespace of its own /dev/fuse is as udev leaves it on ordinary hosts.
    let script = format!(
        "mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse &&
         exec setpriv --reuid 1000 --regid 1000 --clear-groups {how} ./test --exact open_files::as_user --nocapture"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .current_dir(world.path(""))
        .env(USER_DIR, world.path(""))
        .env("UAUFS", world.path("uaufs"))
        .output()
        .unwrap();
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

#[test]
fn open_files_follow_a_union_in_a_user_namespace() {
    run_as_user("unshare --user --map-root-user --mount");
}

#[test]
fn open_files_follow_a_union_that_a_user_mounted() {
    run_as_user("");
}
