//! The way to a live mount: queries, the socket and its guards.

use crate::mounted::{Mounted, eventually, text};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::sync::Arc;
use unionfs::control::Query;
use unionfs::control::ask::ask_at;
use unionfs::control::query::{Hello, Queries};
use unionfs::spec::MountSpec;
use unionfs::union::Union;

fn hello(mounted: &Mounted) -> Hello {
    ask_at(&mounted.path("m"), &Query::Hello).unwrap()
}

fn socket_path(mounted: &Mounted) -> PathBuf {
    hello(mounted).socket.unwrap().path().to_owned()
}

fn connect(path: &PathBuf) -> OwnedFd {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// What the daemon answers to one packet.
fn answer(socket: &OwnedFd, packet: &[u8]) -> String {
    rustix::net::send(socket, packet, rustix::net::SendFlags::NOSIGNAL).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let (len, _) =
        rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::empty()).unwrap();
    text(&buffer[..len])
}

#[test]
fn branches_are_listed_with_permissions_in_the_order_of_aufs() {
    let Some(m) = Mounted::new(
        &["b0", "b1", "b2"],
        "br=b0=rw+nolwh+icexsec:b1=ro+wh:b2=rr,xino=x",
    ) else {
        return;
    };
    assert_eq!(m.branches(), ["b0=rw+icexsec+nolwh", "b1=ro+wh", "b2=rr"]);
    let table = m.ctl(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4);
    assert!(lines[2].ends_with("/b1"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&m.ctl(&["list", "--json"])).unwrap();
    assert!(json[0]["free"].as_u64().unwrap() > 0);
}

#[test]
fn a_place_that_is_no_union_is_named() {
    let Some(m) = Mounted::place(&[]) else {
        return;
    };
    let message = m.refused(&["list"]);
    assert_eq!(
        message,
        "uaufs: m: no mounted union: name its mount point (ENOTTY)\n"
    );
    let message = text(&m.run(&["ctl", "nowhere", "list"]).stderr);
    assert_eq!(message, "uaufs: nowhere: no such mount point (ENOENT)\n");
}

#[test]
fn options_take_effect_at_once_or_say_why_not() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b0=rw:b1=ro") else {
        return;
    };
    m.put("b1/file", "lower");
    assert_eq!(m.names("m"), ["file"]);
    assert_eq!(m.read("m/file"), "lower");
    m.ctl(&["set", "diropq=always,sum"]);
    fs::create_dir(m.path("m/d")).unwrap();
    assert!(m.path("b0/d/.wh..wh..opq").exists());
    m.ctl(&["set", "diropq=w"]);
    fs::create_dir(m.path("m/e")).unwrap();
    assert!(!m.path("b0/e/.wh..wh..opq").exists());
    for (option, message) in [
        (
            "threads=2",
            "uaufs: threads=2: the worker threads run already (EINVAL): unmount, and mount with it\n",
        ),
        (
            "nonsense",
            "uaufs: nonsense: unknown option (EINVAL): `uaufs --help` lists the options\n",
        ),
    ] {
        assert_eq!(m.refused(&["set", option]), message);
    }
}

#[test]
fn the_socket_goes_with_the_mount_and_a_killed_daemons_is_swept() {
    let Some(m) = Mounted::new(&["b0"], "br=b0=rw") else {
        return;
    };
    let path = socket_path(&m);
    assert!(path.exists());
    m.umount();
    eventually("the socket's end", || !path.exists());

    let mut daemon = m.serve("br=b0=rw,nosupervise");
    let stale = socket_path(&m);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    while unionfs::fuse::unmount(&m.path("m"), true).is_ok() {}
    m.mount("br=b0=rw");
    assert!(!stale.exists());
}

#[test]
fn hostile_packets_hurt_nobody() {
    let Some(m) = Mounted::new(&["b0"], "br=b0=rw") else {
        return;
    };
    let path = socket_path(&m);
    for packet in [
        &b"{"[..],
        b"\xff\xfe",
        b"null",
        br#"{"request":"shutdown"}"#,
        &[b'['; 60 << 10],
    ] {
        let reply = answer(&connect(&path), packet);
        assert!(reply.contains("EBADMSG"), "{reply}");
    }
    let reply = answer(
        &connect(&path),
        br#"{"request":"change","option":"br=/nowhere"}"#,
    );
    assert!(reply.contains("failed"), "{reply}");
    // Silent ones do not keep others out for long, nor use more than their share.
    let silent: Vec<OwnedFd> = (0..15).map(|_| connect(&path)).collect();
    m.ctl(&["set", "sum"]);
    drop(silent);
    assert_eq!(m.branches(), ["b0=rw"]);
}

#[test]
fn another_user_can_ask_but_not_change() {
    let Some(m) = Mounted::new(&["b0"], "br=b0=rw") else {
        return;
    };
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(m.path(""), PermissionsExt::from_mode(0o755)).unwrap();
    let program = m.path("uaufs");
    fs::copy(env!("CARGO_BIN_EXE_uaufs"), &program).unwrap();
    let as_user = |args: &[&str]| {
        let mut command = std::process::Command::new(&program);
        command
            .args(args)
            .current_dir(m.path(""))
            .uid(65533)
            .gid(65533);
        command.output().unwrap()
    };
    let listed = as_user(&["ctl", "m", "list"]);
    assert!(listed.status.success(), "{}", text(&listed.stderr));
    let changed = as_user(&["ctl", "m", "set", "sum"]);
    assert_eq!(
        text(&changed.stderr),
        "uaufs: m: only the mount's owner and root may change it (EACCES)\n"
    );
}

#[test]
fn a_container_sees_labels_and_no_socket() {
    let Some(m) = Mounted::place(&["b0", "b1"]) else {
        return;
    };
    let options = format!("br={0}/b0=rw:{0}/b1=ro", m.path("").display());
    let spec = MountSpec::parse(&[options.into()]).unwrap();
    let queries = Queries {
        union: Arc::new(Union::open(&spec).unwrap()),
        instance: "x".into(),
        stats: Default::default(),
        socket: None,
        hide_paths: true,
    };
    let labels: Vec<String> = queries
        .list()
        .iter()
        .map(|b| b.path.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(labels, ["b0", "b1"]);
}
