//! `uaufs convert`: the union shows the same before and after, the kernel's overlayfs agrees, and a
//! conversion that is killed is finished by the next.

use super::fixture::{Fixture, is_root};
use super::trace::{End, kill_before_change, mark};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use unionfs::convert::{End as Converted, Request, Why, run};
use unionfs::spec::Format;
use unionfs::types::Kind;

/// Mode, change time, size and content by path.
type View = BTreeMap<String, (u32, i64, u64, String)>;

const LOWERS: [&str; 2] = ["l1", "l2"];

fn request(f: &Fixture, to: Format, work: bool) -> Request {
    Request {
        branch: f.path("rw"),
        to,
        from: None,
        workdir: work.then(|| f.path("work")),
        user_attributes: false,
        lowers: Vec::new(),
        dry_run: false,
    }
}

fn convert(f: &Fixture, to: Format) -> Converted {
    run(&request(f, to, true)).unwrap()
}

fn open_aufs(f: &mut Fixture) {
    f.open(
        &["rw=rw", "l1=ro+wh", "l2=ro+wh"],
        "dirren,dirperm1,namelen=255",
    );
}

fn open_overlay(f: &mut Fixture) {
    let at = |name: &str| f.path(name).display().to_string();
    let lower = format!("lowerdir={}:{}", at("l1"), at("l2"));
    let options = format!("{lower},upperdir={},workdir={}", at("rw"), at("work"));
    f.open_as(&options);
}

/// What the union shows.
fn view(f: &Fixture) -> View {
    let mut found = View::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for name in f.names(&dir) {
            let path = format!("{dir}/{name}");
            let attr = f.attr(&path);
            let data = match attr.kind() {
                Kind::File => f.read(&path),
                Kind::Dir => {
                    todo.push(path.clone());
                    String::new()
                }
                other => format!("{other:?}"),
            };
            let size = if attr.kind() == Kind::Dir {
                0
            } else {
                attr.size
            };
            found.insert(path, (attr.mode, attr.mtime.sec, size, data));
        }
    }
    found
}

/// What a directory shows.
fn real_view(top: &Path) -> View {
    let mut found = View::new();
    let mut todo = vec![String::new()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(format!("{}{dir}", top.display())).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{dir}/{}", entry.file_name().to_string_lossy());
            // The kernel's overlayfs lists whiteouts in directories that have nothing below.
            let meta = match entry.path().symlink_metadata() {
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.unwrap(),
            };
            let (mut size, mut data) = (meta.len(), String::new());
            if meta.is_dir() {
                size = 0;
                todo.push(path.clone());
            } else if meta.is_file() {
                data = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
            }
            found.insert(path, (meta.mode(), meta.mtime(), size, data));
        }
    }
    found
}

/// The view of the kernel's overlayfs; `None` where it cannot be mounted here.
fn kernel_view(f: &Fixture) -> Option<View> {
    for dir in ["kernel-work", "mnt"] {
        f.put_dir(dir);
    }
    let at = |name: &str| f.path(name).display().to_string();
    let options = format!(
        "redirect_dir=on,lowerdir={}:{},upperdir={},workdir={}",
        at("l1"),
        at("l2"),
        at("rw"),
        at("kernel-work")
    );
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options, &at("mnt")])
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        return None;
    }
    let mnt = f.path("mnt");
    let view = std::panic::catch_unwind(|| real_view(&mnt));
    assert!(
        Command::new("umount")
            .arg(at("mnt"))
            .status()
            .unwrap()
            .success()
    );
    Some(view.unwrap())
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % n
    }

    fn path(&mut self) -> String {
        let names = ["a", "b", "c"];
        let depth = 1 + self.below(3);
        let parts: Vec<_> = (0..depth).map(|_| names[self.below(3)]).collect();
        parts.join("/")
    }
}

/// Two lower branches, and a writable one after changes.
fn changed(seed: u64) -> Fixture {
    let (mut f, mut dice) = (Fixture::new(), Dice(seed * 7919 + 1));
    for dir in ["rw", "l1", "l2", "work"] {
        f.put_dir(dir);
    }
    for lower in LOWERS {
        for _ in 0..8 {
            let path = f.path(&format!("{lower}/{}", dice.path()));
            // Where a file is in the way the tree stays smaller.
            if dice.below(2) == 0 {
                let _ = fs::create_dir_all(&path);
            } else if path.parent().is_some_and(|p| fs::create_dir_all(p).is_ok()) {
                let _ = fs::write(&path, format!("{lower} {}", dice.below(1000)));
            }
        }
    }
    f.put("rw/o/.wh..wh..opq", "");
    f.put("rw/o/kept", "kept");
    f.put("l1/o/hidden", "hidden");
    // The umask of this thread is whatever a union needed last.
    for dir in ["rw", "l1", "l2"] {
        set_modes(&f.path(dir));
    }
    open_aufs(&mut f);
    for _ in 0..40 {
        // What is not possible in this tree is passed over.
        let (path, other) = (dice.path(), dice.path());
        match dice.below(6) {
            0 => drop(f.create(&path, "new")),
            1 => drop(f.unlink(&path)),
            2 => drop(f.rmdir(&path)),
            3 | 4 => drop(f.rename(&path, &other)),
            _ => drop(f.chmod(&path, 0o700)),
        }
    }
    f.forget();
    f
}

fn set_modes(path: &Path) {
    let is_dir = path.is_dir();
    let mode = fs::Permissions::from_mode(if is_dir { 0o755 } else { 0o644 });
    fs::set_permissions(path, mode).unwrap();
    if is_dir {
        for entry in fs::read_dir(path).unwrap() {
            set_modes(&entry.unwrap().path());
        }
    }
}

#[test]
fn the_view_is_the_same_in_both_formats_and_in_the_kernel() {
    if !is_root() {
        return;
    }
    let mut marks = (0, 0, 0);
    for seed in 0..60 {
        let mut f = changed(seed);
        let before = view(&f);
        f.close();
        let Converted::Converted(changes) = convert(&f, Format::Overlay) else {
            panic!("seed {seed}: obstacles")
        };
        marks.0 += changes.whiteouts;
        marks.1 += changes.opaque;
        marks.2 += changes.redirects;
        let left = real_view(&f.path("rw"));
        assert!(
            !left.keys().any(|p| p.contains("/.wh.")),
            "seed {seed}: {left:?}"
        );
        if let Some(kernel) = kernel_view(&f) {
            assert_eq!(kernel, before, "seed {seed}, the kernel");
        }
        open_overlay(&mut f);
        assert_eq!(view(&f), before, "seed {seed}, overlay");
        f.close();
        let end = convert(&f, Format::Aufs);
        assert!(
            matches!(end, Converted::Converted(_)),
            "seed {seed}: {end:?}"
        );
        open_aufs(&mut f);
        assert_eq!(view(&f), before, "seed {seed}, back in AUFS");
    }
    assert!(marks.0 > 20 && marks.1 > 5 && marks.2 > 5, "{marks:?}");
}

const CRASH_DIR: &str = "UAUFS_CONVERT_CRASH";

#[test]
#[ignore = "run by the test below"]
fn crash_child() {
    let Ok(told) = std::env::var(CRASH_DIR) else {
        return;
    };
    let (to, dir) = told.split_once(' ').unwrap();
    let to = if to == "aufs" {
        Format::Aufs
    } else {
        Format::Overlay
    };
    let dir = Path::new(dir);
    mark();
    run(&Request {
        branch: dir.join("rw"),
        to,
        from: None,
        workdir: Some(dir.join("work")),
        user_attributes: false,
        lowers: Vec::new(),
        dry_run: false,
    })
    .unwrap();
    mark();
}

/// Kills a conversion before every change it makes.
fn interrupt(prepare: impl Fn() -> Fixture, to: Format, open: fn(&mut Fixture)) {
    let mut whole = prepare();
    let end = convert(&whole, to);
    assert!(matches!(end, Converted::Converted(_)), "{end:?}");
    open(&mut whole);
    let want: Vec<_> = view(&whole)
        .into_iter()
        .map(|(p, v)| (p, v.0, v.3))
        .collect();
    for n in 0.. {
        let mut f = prepare();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "convert::crash_child", "--ignored"])
            .env(CRASH_DIR, format!("{to} {}", f.path("").display()));
        let end = kill_before_change(&mut command, n).unwrap();
        let again = convert(&f, to);
        assert!(
            matches!(again, Converted::Converted(_)),
            "step {n}: {again:?}"
        );
        open(&mut f);
        let seen: Vec<_> = view(&f).into_iter().map(|(p, v)| (p, v.0, v.3)).collect();
        assert_eq!(seen, want, "step {n}");
        f.close();
        if to == Format::Overlay {
            let left = real_view(&f.path("rw"));
            assert!(
                !left.keys().any(|p| p.contains("/.wh.")),
                "step {n}: {left:?}"
            );
        }
        if end == End::Finished {
            assert!(n > 10, "only {n} steps were interrupted");
            break;
        }
    }
}

/// The seed of a branch that has marks of each kind.
const RICH: u64 = 3;

#[test]
fn a_conversion_to_overlay_that_is_killed_is_finished_by_the_next() {
    if is_root() {
        let prepare = || {
            let mut f = changed(RICH);
            f.close();
            f
        };
        interrupt(prepare, Format::Overlay, open_overlay);
    }
}

#[test]
fn a_conversion_to_aufs_that_is_killed_is_finished_by_the_next() {
    if is_root() {
        let prepare = || {
            let mut f = changed(RICH);
            f.close();
            convert(&f, Format::Overlay);
            f
        };
        interrupt(prepare, Format::Aufs, open_aufs);
    }
}

#[test]
fn obstacles_are_told_and_nothing_is_changed() {
    if !is_root() {
        return;
    }
    let mut f = Fixture::new();
    f.put("l1/one", "old");
    f.put_link("l1/one", "l1/two");
    for dir in ["rw", "l2", "work"] {
        f.put_dir(dir);
    }
    open_aufs(&mut f);
    f.write("one", "new").unwrap();
    f.close();
    let dev = f.path("rw/device");
    let mode = rustix::fs::Mode::from_bits_truncate(0o600);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &dev, kind, mode, 0).unwrap();
    let before = real_view(&f.path("rw"));
    let Converted::Impossible(obstacles) = run(&request(&f, Format::Overlay, false)).unwrap()
    else {
        panic!("a device cannot be kept")
    };
    let why: Vec<_> = obstacles.iter().map(|o| o.why).collect();
    assert_eq!(why, [Why::NeedsWorkdir, Why::Device]);
    assert_eq!(real_view(&f.path("rw")), before);
    // With a work directory the pseudo-link moves, and both names stay one file.
    fs::remove_file(&dev).unwrap();
    let end = run(&request(&f, Format::Overlay, true)).unwrap();
    assert!(matches!(end, Converted::Converted(_)), "{end:?}");
    open_overlay(&mut f);
    assert_eq!((f.read("one"), f.read("two")), ("new".into(), "new".into()));
}

#[test]
fn owners_in_an_attribute_are_not_lost() {
    let f = Fixture::new();
    f.put("rw/f", "f");
    let name = "user.fuseoverlayfs.override_stat";
    for (file, kept) in [("rw", "0:0:40755"), ("rw/f", "5:6:104755")] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(f.path(file), name, kept.as_bytes(), flags).unwrap();
    }
    let request = Request {
        from: Some(Format::Overlay),
        ..request(&f, Format::Aufs, false)
    };
    let Converted::Impossible(obstacles) = run(&request).unwrap() else {
        panic!("converted");
    };
    let told = obstacles[0].why.to_string();
    assert!(told.contains("xattr_permissions"), "{told}");
    let mut value = [0; 16];
    let len = rustix::fs::lgetxattr(f.path("rw/f"), name, &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"5:6:104755");
}

#[test]
fn a_half_converted_branch_is_not_mounted_and_a_used_one_not_converted() {
    if !is_root() {
        return;
    }
    let mut f = changed(RICH);
    let busy = run(&request(&f, Format::Overlay, true)).unwrap_err();
    assert!(busy.to_string().contains("EBUSY"), "{busy}");
    f.close();
    fs::write(f.path("rw/.wh..wh.uaufs/convert"), "to overlay\n").unwrap();
    let at = |name: &str| f.path(name).display().to_string();
    let branches = format!("br={}=rw:{}=ro", at("rw"), at("l1"));
    let spec = unionfs::spec::MountSpec::parse(&[branches.into()]).unwrap();
    let refused = unionfs::union::Union::open(&spec)
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("uaufs convert"), "{refused}");
    let other_way = run(&request(&f, Format::Aufs, true)).unwrap_err();
    assert!(
        other_way.to_string().contains("half converted"),
        "{other_way}"
    );
    let end = convert(&f, Format::Overlay);
    assert!(matches!(end, Converted::Converted(_)), "{end:?}");
    let mode = f.path("rw").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o700, 0o700);
}
