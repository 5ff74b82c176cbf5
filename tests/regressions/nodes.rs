//! What is remembered of nodes, and for how long.

use super::fixture::{Fixture, is_root};
use std::sync::atomic::{AtomicBool, Ordering};
use unionfs::types::{Lookup, NodeId, SetAttr, Writer};

#[test]
fn forgotten_nodes_go_whoever_uses_them_meanwhile() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    for dir in ["d", "e"] {
        for name in ["x", "y", "z"] {
            t.put(&format!("a/{dir}/{name}"), "");
        }
    }
    t.put_dir("c");
    t.open(&["c=rw", "a=ro"], "udba=none");
    let (union, stop) = (t.union(), AtomicBool::new(false));
    let look_up = |parent, name: &[u8]| match union.lookup(parent, name).unwrap() {
        Lookup::Found(entry) => entry.attr.ino,
        Lookup::Absent => panic!("not there"),
    };
    let mut known: Vec<NodeId> = Vec::new();
    for dir in [&b"d"[..], b"e"] {
        let dir = look_up(NodeId::ROOT, dir);
        known.push(dir);
        for name in [&b"x"[..], b"y", b"z"] {
            known.push(look_up(dir, name));
        }
    }
    for node in &known {
        union.forget(*node, 1);
    }
    assert_eq!(union.node_count(), 1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for node in &known {
                        let _ = union.getattr(*node);
                    }
                }
            });
        }
        for round in 0..2000 {
            let dir = look_up(NodeId::ROOT, if round % 2 == 0 { b"d" } else { b"e" });
            let files = [&b"x"[..], b"y", b"z"].map(|name| look_up(dir, name));
            for node in files.into_iter().chain([dir]) {
                union.forget(node, 1);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(union.node_count(), 1);
}

#[test]
fn a_directory_that_loses_its_lower_part_does_not_keep_it_open() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put_dir("b/d");
    t.put_dir("a/d");
    t.open(&["b=rw", "a=ro"], "udba=none");
    let union = t.union();
    let Lookup::Found(entry) = union.lookup(NodeId::ROOT, b"d").unwrap() else {
        panic!("not there");
    };
    assert_eq!(union.counts().directory_descriptors, 2);
    t.rename("d", "e").unwrap();
    assert_eq!(union.counts().directory_descriptors, 1);
    union.forget(entry.attr.ino, 1);
    assert_eq!(union.counts().directory_descriptors, 0);
}

/// `cap_net_raw=ep` as setcap(8) stores it (`struct vfs_cap_data`, version 2).
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const CAPABILITY_NAME: &str = "security.capability";

/// Has the copy on the branch a capability?
fn is_capable(t: &Fixture, path: &str) -> bool {
    let mut buf = [0u8; 64];
    rustix::fs::lgetxattr(t.path(path), CAPABILITY_NAME, &mut buf[..]).is_ok()
}

fn set_capable(t: &Fixture, path: &str) {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::lsetxattr(t.path(path), CAPABILITY_NAME, &CAPABILITY, flags).unwrap();
}

/// No member of any group.
const STRANGER: Writer<'_> = Writer::Ordinary(&|_| false);

#[test]
fn a_write_drops_privileges_without_looking_for_capabilities() {
    if !is_root() {
        return;
    }
    let mut t = Fixture::new();
    t.put("c/x", "x");
    t.put("a/y", "y");
    for path in ["c/x", "a/y"] {
        set_capable(&t, path);
    }
    t.open(&["c=rw", "a=ro"], "udba=none");
    for path in ["x", "y"] {
        let (node, copy) = (t.node(path), format!("c/{path}"));
        let write = || t.union().write(node, 0, b"z", STRANGER).unwrap();
        write();
        assert!(!is_capable(&t, &copy));
        for (before, after) in [(0o4755, 0o755), (0o6755, 0o755), (0o2644, 0o644)] {
            t.chmod(path, before).unwrap();
            write();
            assert_eq!(t.attr(path).mode & 0o7777, after);
        }
        let name = CAPABILITY_NAME.as_bytes();
        t.union().setxattr(node, name, &CAPABILITY, 0).unwrap();
        t.chmod(path, 0o4755).unwrap();
        let size = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        t.union().setattr(node, &size, STRANGER).unwrap();
        assert_eq!(t.attr(path).mode & 0o7777, 0o755);
        assert!(!is_capable(&t, &copy));
    }
}
