//! Branches that the kernel's overlayfs has written, shown as it shows them: it makes the layers,
//! and what it then shows is what the union must show.

use super::fixture::{World, text};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

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
