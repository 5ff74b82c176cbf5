//! Branches that the kernel's overlayfs has written, shown as it shows them: it makes the layers,
//! and what it then shows is what the union must show.

use super::fixture::{World, text};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

/// The kernel's options that leave all its marks.
const ALL_MARKS: &str = "metacopy=on,redirect_dir=on";

/// A mount of the kernel's overlayfs on `k`; unmounted when dropped.
struct Kernel<'a>(&'a World);

impl Drop for Kernel<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path("k")).output();
    }
}

/// Runs a script in a directory of the world.
fn sh(w: &World, dir: &str, script: &str) {
    let script = format!("set -e\n{script}");
    let output = Command::new("sh")
        .args(["-c", &script])
        .current_dir(w.path(dir))
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}: {}", text(&output));
}

/// Mounts the kernel's overlayfs; `None` where it has not these options.
fn kernel<'a>(w: &'a World, options: &str) -> Option<Kernel<'a>> {
    w.mkdir("k", 0o755);
    let output = Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", options, "k"])
        .current_dir(w.path(""))
        .output()
        .unwrap();
    if !output.status.success() {
        eprintln!("skipped: no overlayfs with {options}: {}", text(&output));
        return None;
    }
    Some(Kernel(w))
}

/// Layers made of the scratch directory's paths.
fn options(w: &World, lower: &[&str], upper: Option<(&str, &str)>) -> String {
    let path = |name: &str| w.path(name).display().to_string();
    let lower: Vec<String> = lower.iter().map(|l| path(l)).collect();
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = upper {
        w.mkdir(upper, 0o755);
        w.mkdir(work, 0o755);
        options += &format!(",upperdir={},workdir={}", path(upper), path(work));
    }
    options
}

/// Everything that is shown of a tree: attributes, extended attributes, contents.
fn shot(top: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![top.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(top).unwrap().display().to_string();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut said = format!("{:o} {}:{}", meta.mode(), meta.uid(), meta.gid());
            if meta.is_dir() {
                todo.push(path.clone());
            } else {
                let (links, size) = (meta.nlink(), meta.len());
                let (sec, nsec) = (meta.mtime(), meta.mtime_nsec());
                said += &format!(" links {links} size {size} mtime {sec}.{nsec:09}");
            }
            if meta.is_file() {
                said += &format!(" data {:016x}", digest(&fs::read(&path).unwrap()));
            }
            found.insert(name, format!("{said} xattrs {:?}", xattrs(&path)));
        }
    }
    found
}

fn digest(data: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(len);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}

#[track_caller]
fn same(kernel: &BTreeMap<String, String>, union: &BTreeMap<String, String>) {
    let names = |shot: &BTreeMap<String, String>| shot.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(kernel), names(union));
    for (name, shown) in kernel {
        assert_eq!(shown, &union[name], "{name}");
    }
}

/// A world with layers in which overlayfs copied files up without their data; `None` where it cannot.
fn with_metacopies() -> Option<World> {
    World::new().filter(make_metacopies)
}

/// Two layers over a third, in which the kernel has left all that it leaves of files without data:
/// changed twice, renamed, moved, linked, below renamed directories. False = it cannot.
fn make_metacopies(w: &World) -> bool {
    for name in [
        "same",
        "renamed",
        "d/moved",
        "linked",
        "twice",
        "d/sub/deep",
        "h1",
    ] {
        w.put(
            &format!("low/{name}"),
            &format!("data of {name}\n").repeat(500),
        );
    }
    sh(
        w,
        "low",
        "ln h1 h2; truncate -s 100000 same; setfattr -n user.old -v 1 twice",
    );
    let first = options(w, &["low"], Some(("up1", "work1")));
    {
        let Some(_k) = kernel(w, &format!("{first},{ALL_MARKS},index=on")) else {
            return false;
        };
        let script = "chmod 600 same twice; chown 5:6 linked; mv renamed new; mv d/moved moved; \
             ln linked link; mv d e; chmod 700 e/sub/deep; setfattr -n user.x -v 1 same; \
             touch -h -d 2001-02-03 twice; chmod 640 h1";
        sh(w, "k", script);
    }
    let second = options(w, &["up1", "low"], Some(("up2", "work2")));
    let Some(_k) = kernel(w, &format!("{second},{ALL_MARKS},index=on")) else {
        return false;
    };
    let script = "chmod 644 twice; mv new newer; chmod 755 e/sub/deep; mv moved e/back";
    sh(w, "k", script);
    true
}

/// Is a file's data elsewhere, by its mark?
fn lacks_data(path: &Path) -> bool {
    xattrs(path).contains_key("trusted.overlay.metacopy")
}

#[test]
fn files_copied_up_without_data_show_it_from_below() {
    let Some(w) = with_metacopies() else { return };
    for name in ["twice", "newer", "e/sub/deep", "e/back"] {
        assert!(lacks_data(&w.path("up2").join(name)), "{name}");
    }
    let lower = options(&w, &["up2", "up1", "low"], None);
    let shown = {
        let Some(_k) = kernel(&w, &format!("ro,{lower},{ALL_MARKS}")) else {
            return;
        };
        shot(&w.path("k"))
    };
    for more in ["", ",udba=reval", ",io=direct"] {
        w.mounted(&format!("{lower}{more}"), || {
            same(&shown, &shot(&w.path("m")))
        });
    }
    // On a writable layer of its own, and copied up from it to another.
    let upper = options(&w, &["up1", "low"], Some(("up2", "work2")));
    w.mounted(&upper, || {
        same(&shown, &shot(&w.path("m")));
        // It does not look like one hole, which tar and cp would not read.
        assert!(w.path("m/twice").metadata().unwrap().blocks() >= 13);
        // Reading brings nothing in.
        assert!(lacks_data(&w.path("up2/twice")));
    });
    let upper = options(&w, &["up2", "up1", "low"], Some(("up3", "work3")));
    w.mounted(&upper, || {
        sh(&w, "m", "find . -type f -exec touch -a {} +");
        same(&shown, &shot(&w.path("m")));
    });
    for name in ["twice", "newer", "e/sub/deep", "e/back", "same", "link"] {
        let copy = w.path("up3").join(name);
        assert!(!lacks_data(&copy), "{name}");
        let data = digest(&fs::read(&copy).unwrap());
        assert!(shown[name].contains(&format!("data {data:016x}")), "{name}");
    }
}

/// Changes of every kind, which begin at files without data.
const CHANGES: &str = "echo more >> same
    chmod 604 newer
    truncate -s 5000 twice
    mv twice d2
    mv e/back moved-again
    ln newer third
    printf abc | dd of=e/sub/deep bs=1 seek=7 conv=notrunc 2>/dev/null
    exec 3<e/sub/deep; rm e/sub/deep; cat <&3 > read-after-unlink
    setfattr -n user.new -v 2 newer
    touch -d 2002-03-04 same newer d2 e moved-again read-after-unlink .";

#[test]
fn a_change_completes_a_file_without_data_first() {
    let Some(w) = with_metacopies() else { return };
    sh(&w, "", "cp -a up2 copy");
    let shown = {
        let by_kernel = options(&w, &["up1", "low"], Some(("copy", "work-copy")));
        let Some(_k) = kernel(&w, &format!("{by_kernel},{ALL_MARKS},index=off")) else {
            return;
        };
        sh(&w, "k", CHANGES);
        shot(&w.path("k"))
    };
    let own = options(&w, &["up1", "low"], Some(("up2", "work2")));
    sh(&w, "", "rm -rf work2");
    w.mkdir("work2", 0o755);
    w.mounted(&own, || {
        sh(&w, "m", CHANGES);
        same(&shown, &shot(&w.path("m")));
    });
    w.mounted(&own, || same(&shown, &shot(&w.path("m"))));
    // The kernel reads what was left.
    let lower = options(&w, &["up2", "up1", "low"], None);
    let Some(_k) = kernel(&w, &format!("ro,{lower},{ALL_MARKS}")) else {
        return;
    };
    same(&shown, &shot(&w.path("k")));
}

#[test]
fn an_open_file_keeps_its_data_from_below_and_sees_writes() {
    let Some(w) = with_metacopies() else { return };
    let own = options(&w, &["up1", "low"], Some(("up2", "work2")));
    for io in ["", ",io=cache", ",io=direct"] {
        w.mounted(&format!("{own}{io}"), || {
            let path = w.path("m/twice");
            let old = fs::File::open(&path).unwrap();
            let mut start = [0; 4];
            old.read_exact_at(&mut start, 0).unwrap();
            let new = fs::OpenOptions::new().write(true).open(&path).unwrap();
            new.write_all_at(format!("{io:>10}").as_bytes(), 0).unwrap();
            let mut seen = [0; 10];
            old.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(seen, *format!("{io:>10}").as_bytes());
            let all = fs::read_to_string(&path).unwrap();
            assert!(all.ends_with("data of twice\n") && all.len() == 7000);
        });
    }
    assert!(!lacks_data(&w.path("up2/twice")));
}

fn error_of(done: std::io::Result<()>) -> Option<i32> {
    done.err().and_then(|err| err.raw_os_error())
}

#[test]
fn data_that_is_nowhere_is_an_error_not_holes() {
    let Some(w) = with_metacopies() else { return };
    sh(&w, "low", "rm twice; rm -r renamed; mkdir renamed");
    // Marks that others could have set lead nowhere.
    w.put("low/secret", "secret");
    sh(
        &w,
        "up2",
        "truncate -s 6 forged; chown 1000 forged; setfattr -n user.overlay.metacopy forged; \
        setfattr -n user.overlay.redirect -v /secret forged
        touch empty; setfattr -n trusted.overlay.metacopy empty",
    );
    w.mounted(&options(&w, &["up2", "up1", "low"], None), || {
        for name in ["twice", "newer", "forged", "empty"] {
            let read = fs::read(w.path("m").join(name)).map(drop);
            assert_eq!(error_of(read), Some(libc::EIO), "{name}");
        }
    });
    let own = options(&w, &["up1", "low"], Some(("up2", "work2")));
    w.mounted(&own, || {
        let opened = fs::OpenOptions::new().append(true).open(w.path("m/twice"));
        let written = opened.and_then(|f| f.write_all_at(b"x", 0));
        assert_eq!(error_of(written), Some(libc::EIO));
        assert!(lacks_data(&w.path("up2/twice")));
    });
}

/// A layer with whiteouts that are such by an attribute, as mkcomposefs makes them, over `low`.
fn make_attribute_whiteouts(w: &World) {
    for name in ["a", "b", "d/x", "d/y", "d/z/1", "e/1", "gone/1", "kept/1"] {
        w.put(&format!("low/{name}"), name);
    }
    let script = "mkdir d e kept; : > a; : > d/x; : > d/z; : > gone; : > d/empty; echo here > d/y
        for i in a d/x d/z gone; do setfattr -n trusted.overlay.whiteout $i; done
        # Not empty: no whiteout.
        setfattr -n trusted.overlay.whiteout d/y
        for i in . d; do setfattr -n trusted.overlay.opaque -v x $i; done";
    w.mkdir("mid", 0o755);
    sh(w, "mid", script);
}

#[test]
fn whiteouts_by_an_attribute_hide_what_is_below() {
    let Some(w) = World::new() else { return };
    make_attribute_whiteouts(&w);
    let layers = options(&w, &["mid", "low"], None);
    let shown = {
        let Some(_k) = kernel(&w, &format!("ro,{layers}")) else {
            return;
        };
        shot(&w.path("k"))
    };
    for hidden in ["a", "d/x", "d/z", "gone"] {
        assert!(!shown.contains_key(hidden), "the kernel shows {hidden}");
    }
    for more in ["", ",udba=reval"] {
        w.mounted(&format!("{layers}{more}"), || {
            // By name, before anything was listed.
            for (path, is) in [
                ("d/x", false),
                ("d/empty", true),
                ("d/y", true),
                ("a", false),
            ] {
                assert_eq!(w.path("m").join(path).exists(), is, "{path}");
            }
            same(&shown, &shot(&w.path("m")));
        });
    }
    let mid = options(&w, &["mid"], None);
    w.mounted(&mid, || {
        assert!(!w.path("m/d/x").exists() && w.path("m/d/empty").exists())
    });
    // On the writable branch: names come back, whatever they are.
    let own = options(&w, &["low"], Some(("mid", "work")));
    let script = "echo new > a; mkdir d/x; echo new > d/x/1; mkdir made; mv made gone; ln a d/z
        rm d/empty; mkdir t; mv t d/empty";
    w.mounted(&own, || {
        same(&shown, &shot(&w.path("m")));
        sh(&w, "m", script);
        sh(&w, "m", "rm -r d");
        assert!(!w.path("m/d").exists());
        sh(
            &w,
            "m",
            "mkdir d && test -z \"$(ls d)\" && test -z \"$(ls gone)\"",
        );
    });
    w.mounted(&own, || {
        assert_eq!(w.read("m/a"), "new\n");
        sh(
            &w,
            "m",
            "test -z \"$(ls d)\" && test -z \"$(ls gone)\" && test -d made || test ! -e made",
        );
    });
}

#[test]
fn attributes_of_an_overlay_inside_are_the_users() {
    let Some(w) = World::new() else { return };
    w.put("low/d/f", "f");
    w.put("low/g", "g");
    // Marks of an overlay whose layers lie in the mount.
    let script = "setfattr -n trusted.overlay.opaque -v y d
        setfattr -n trusted.overlay.metacopy d/f; setfattr -n trusted.overlay.redirect -v /g d/f
        setfattr -n user.mine -v 1 d/f; setfattr -n trusted.overlay.overlay.deep -v 2 g";
    let own = options(&w, &["low"], Some(("up", "work")));
    {
        let Some(_k) = kernel(&w, &own) else { return };
        sh(&w, "k", script);
        if !xattrs(&w.path("up/g")).contains_key("trusted.overlay.overlay.overlay.deep") {
            eprintln!("skipped: a kernel before 6.7");
            return;
        }
    }
    let lower = options(&w, &["up", "low"], None);
    let shown = {
        let Some(_k) = kernel(&w, &format!("ro,{lower}")) else {
            return;
        };
        shot(&w.path("k"))
    };
    assert!(shown["d/f"].contains("trusted.overlay.redirect"));
    w.mounted(&lower, || same(&shown, &shot(&w.path("m"))));
    // Stored as the kernel does it, also by copying up and from a branch where they need no escape.
    let ours = options(&w, &["low"], Some(("up-b", "work-b")));
    w.mounted(&ours, || {
        sh(&w, "m", script);
        same(&shown, &shot(&w.path("m")));
        sh(
            &w,
            "m",
            "setfattr -n trusted.overlay.x -v 1 g; setfattr -x trusted.overlay.x g",
        );
        sh(&w, "m", "! setfattr -x trusted.overlay.x g 2>/dev/null");
    });
    let plain = |name: &str, keep: &[&str]| {
        let mut all = xattrs(&w.path(name));
        all.retain(|name, _| keep.iter().any(|k| name.ends_with(k)));
        all
    };
    for name in ["d", "d/f", "g"] {
        let keep = [
            ".overlay.opaque",
            ".overlay.metacopy",
            ".overlay.redirect",
            "mine",
            "deep",
        ];
        let [kernel, ours] = ["up", "up-b"].map(|up| plain(&format!("{up}/{name}"), &keep));
        assert_eq!(kernel, ours, "{name}");
    }
    let copied = options(&w, &["up-b", "low"], Some(("up-c", "work-c")));
    w.mounted(&copied, || {
        sh(
            &w,
            "m",
            "chmod 600 d/f g; chmod 600 d; chmod 644 d/f g; chmod 755 d",
        );
        same(&shown, &shot(&w.path("m")));
    });
}

#[test]
fn layers_of_overlayfs_are_branches_among_others() {
    let Some(w) = with_metacopies() else { return };
    sh(
        &w,
        "up2",
        "setfattr -n user.overlay.overlay.inner -v 1 newer",
    );
    let lower = options(&w, &["up2", "up1", "low"], None);
    let shown = {
        let Some(_k) = kernel(&w, &format!("ro,{lower},{ALL_MARKS}")) else {
            return;
        };
        shot(&w.path("k"))
    };
    // What the kernel takes for an ordinary attribute is another overlay's here.
    let name = |shot: &BTreeMap<String, String>| {
        let mut shot = shot.clone();
        for said in shot.values_mut() {
            *said = said.replace("user.overlay.overlay.inner", "user.overlay.inner");
        }
        shot
    };
    let shown = name(&shown);
    for branches in [
        "br=up2=ro+wh+overlay:up1=ro+wh+overlay:low=ro",
        "br=up2=ro+wh:up1=ro+wh:low=ro,format=auto",
        "br=up2=ro+wh+auto:up1=ro+wh+overlay:low=ro+aufs,format=aufs",
    ] {
        w.mounted(branches, || same(&shown, &shot(&w.path("m"))));
    }
    w.mounted("br=up2=ro+wh:up1=ro+wh:low=ro", || {
        assert!(
            w.path("m/renamed").exists(),
            "AUFS's format unless it is said"
        );
    });
    // Below a branch in the AUFS format, with whiteouts of its own form.
    w.put("mid/.wh.newer", "");
    w.mkdir("rw", 0o755);
    let all = "br=rw=rw:mid=ro+wh:up2=ro+wh:up1=ro+wh:low=ro,format=auto,dirren";
    w.mounted(all, || {
        let mut expected = shown.clone();
        expected.remove("newer");
        same(&expected, &shot(&w.path("m")));
        let list = Command::new(super::fixture::program())
            .args(["ctl", "m", "list"])
            .current_dir(w.path(""))
            .output();
        let list = text(&list.unwrap());
        let of = |branch: &str| {
            let line = list.lines().find(|l| l.ends_with(&format!("/{branch}")));
            line.unwrap().split_whitespace().nth(2).unwrap().to_owned()
        };
        assert_eq!(
            ["rw", "mid", "up1", "low"].map(of),
            ["rw+aufs", "ro+wh+aufs", "ro+wh+overlay", "ro+aufs"]
        );
        sh(
            &w,
            "m",
            "chmod 604 twice; rm same; touch -h -d 2001-02-03 twice",
        );
        assert!(w.path("rw/.wh.same").exists() && !lacks_data(&w.path("rw/twice")));
    });
    // The format of a writable branch is what its books say, whatever lies in it.
    sh(&w, "rw", "mknod null c 0 0");
    w.mounted(all, || {
        assert!(w.path("m/null").exists() && !w.path("m/same").exists())
    });
}

#[test]
fn data_only_layers_are_reached_by_redirects_alone() {
    let Some(w) = World::new() else { return };
    w.put("data1/objects/aa/1", "one");
    w.put("data2/objects/aa/1", "hidden by the first");
    w.put("data2/objects/bb/2", "twice two");
    w.mkdir("meta/d", 0o755);
    let script = "truncate -s 3 d/one; truncate -s 9 two; truncate -s 4 lost
        for i in d/one two lost; do setfattr -n trusted.overlay.metacopy $i; done
        setfattr -n trusted.overlay.redirect -v /objects/aa/1 d/one
        setfattr -n trusted.overlay.redirect -v /objects/bb/2 two";
    sh(&w, "meta", script);
    let lower = options(&w, &["meta"], None);
    let [one, two] = ["data1", "data2"].map(|d| w.path(d).display().to_string());
    let lower = format!("{lower}::{one}::{two}");
    let lost = |dir: &str| error_of(fs::read(w.path(dir).join("lost")).map(drop));
    let shown = {
        let Some(_k) = kernel(&w, &format!("ro,{lower},{ALL_MARKS}")) else {
            return;
        };
        assert_eq!(lost("k"), Some(libc::EIO));
        fs::remove_file(w.path("meta/lost")).unwrap();
        shot(&w.path("k"))
    };
    w.mounted(&lower, || same(&shown, &shot(&w.path("m"))));
    sh(
        &w,
        "meta",
        "truncate -s 4 lost; setfattr -n trusted.overlay.metacopy lost",
    );
    w.mkdir("up", 0o755);
    w.mkdir("work", 0o755);
    w.mounted(&format!("{lower},upperdir=up,workdir=work"), || {
        assert_eq!(lost("m"), Some(libc::EIO));
        sh(
            &w,
            "m",
            "echo more >> two; chmod 600 d/one; test \"$(cat d/one)\" = one",
        );
        assert_eq!(w.read("up/two"), "twice twomore\n");
        assert!(!lacks_data(&w.path("up/d/one")) && !w.path("m/objects").exists());
    });
}

#[test]
fn a_completion_that_was_killed_is_done_again() {
    let Some(w) = with_metacopies() else { return };
    // As it leaves the file before the mark is removed.
    sh(
        &w,
        "up2",
        "head -c 5000 /dev/zero | tr '\\0' x | dd of=twice conv=notrunc 2>/dev/null",
    );
    let own = options(&w, &["up1", "low"], Some(("up2", "work2")));
    let whole = "data of twice\n".repeat(500);
    w.mounted(&own, || {
        assert!(
            w.read("m/twice") == whole,
            "shows what is below until it is complete"
        );
        sh(&w, "m", "echo more >> twice");
    });
    assert!(w.read("up2/twice") == whole + "more\n");
    assert!(!lacks_data(&w.path("up2/twice")));
}
