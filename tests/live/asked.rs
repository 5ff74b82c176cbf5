//! What a mount tells of its entries and of who uses them.

use crate::mounted::{Mounted, eventually, text};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::process::Command;

fn which(m: &Mounted, path: &str) -> Value {
    let out = m.run(&["which", "--json", path]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    all[0].clone()
}

/// Index, type, shown and marks of each branch.
fn instances(which: &Value) -> Value {
    let branches = which["branches"].as_array().unwrap().iter();
    branches
        .map(|b| json!([b["index"], b["kind"], b["shown"], b["marks"]]))
        .collect()
}

#[test]
fn which_tells_every_instance_and_the_marks_that_decide() {
    let Some(m) = Mounted::place(&["b0", "b1", "b2"]) else {
        return;
    };
    m.put("b0/d/.wh.gone", "");
    m.put("b0/d/top", "0");
    m.put("b1/d/.wh..wh..opq", "");
    m.put("b1/d/top", "1");
    m.put("b1/d/gone", "1");
    m.put("b2/d/top", "2");
    m.put("b2/d/below", "2");
    m.mount("br=b0=rw:b1=ro+wh:b2=ro");
    let top = which(&m, "m/d/top");
    assert_eq!(
        (&top["serving"], &top["path"]),
        (&json!(0), &json!("d/top"))
    );
    assert_ne!(top["ino"], json!(0));
    let opaque = json!(["d/.wh..wh..opq"]);
    assert_eq!(
        instances(&top),
        json!([
            [0, "file", true, []],
            [1, "file", false, opaque],
            [2, "file", false, []]
        ])
    );
    let gone = which(&m, "m/d/gone");
    assert_eq!((&gone["serving"], &gone["ino"]), (&Value::Null, &json!(0)));
    assert_eq!(
        instances(&gone),
        json!([[0, null, false, ["d/.wh.gone"]], [1, "file", false, opaque]])
    );
    assert_eq!(
        instances(&which(&m, "m/d/below")),
        json!([[1, null, false, opaque], [2, "file", false, []]])
    );
    assert_eq!(
        instances(&which(&m, "m/d")),
        json!([
            [0, "directory", true, []],
            [1, "directory", true, opaque],
            [2, "directory", false, []]
        ])
    );
    assert_eq!(which(&m, "m")["serving"], json!(0));
    let plain = text(&m.run(&["which", "m/d/gone"]).stdout);
    assert!(
        plain.starts_with("m/d/gone: not in the union\n  0 ")
            && plain.contains("marked by d/.wh.gone"),
        "{plain}"
    );
    let out = m.run(&["which", "b0/d/top"]);
    assert_eq!(
        text(&out.stderr),
        "uaufs: b0/d/top: in no mounted union (ENOTTY)\n"
    );
}

#[test]
fn which_follows_renamed_directories_and_pseudo_links() {
    let Some(m) = Mounted::place(&["b0", "b1"]) else {
        return;
    };
    m.put("b1/old/file", "x");
    m.put("b1/a", "x");
    fs::hard_link(m.path("b1/a"), m.path("b1/b")).unwrap();
    m.mount("br=b0=rw:b1=ro,dirren");
    fs::rename(m.path("m/old"), m.path("m/new")).unwrap();
    let file = which(&m, "m/new/file");
    assert_eq!(file["serving"], json!(1));
    assert_eq!(file["branches"][0]["at"], json!("old/file"));
    fs::write(m.path("m/a"), "y").unwrap();
    assert_eq!(m.read("m/b"), "y");
    let linked = which(&m, "m/b");
    assert_eq!(linked["serving"], json!(0));
    let at = linked["branches"][0]["at"].as_str().unwrap();
    assert!(at == "a" || at.starts_with(".wh..wh.plnk/"), "{linked}");
}

#[test]
fn a_mark_is_named_as_one() {
    let Some(m) = Mounted::new(&["b0"], "br=b0=rw") else {
        return;
    };
    let out = m.run(&["which", "m/.wh.file"]);
    assert_eq!(
        text(&out.stderr),
        "uaufs: m/.wh.file: no name in a union, but a mark: ask about the name behind `.wh.` (EPERM)\n"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let Some(m) = Mounted::new(&["b0"], "br=b0=rw") else {
        return;
    };
    for args in [&["stats", "m"][..], &["stats", "--json", "m"], &["--help"]] {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let out = m.command(args).stdout(writer).output().unwrap();
        assert_eq!(text(&out.stderr), "", "{args:?}");
        assert_eq!(out.status.code(), Some(141), "{args:?}");
    }
}

#[test]
fn busy_names_processes_and_their_files() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b0=rw:b1=ro") else {
        return;
    };
    m.put("b1/d/file", "x");
    let busy = || -> Value {
        let out = m.run(&["busy", "--json", "m", "b1"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    assert_eq!(m.read("m/d/file"), "x");
    assert_eq!(busy(), json!([]), "what is only cached is not in use");
    let mut child = Command::new("sleep")
        .arg("60")
        .stdin(File::open(m.path("m/d/file")).unwrap())
        .current_dir(m.path("m/d"))
        .spawn()
        .unwrap();
    eventually("two uses", || busy().as_array().unwrap().len() == 2);
    let found = busy();
    let uses: Vec<&str> = found
        .as_array()
        .unwrap()
        .iter()
        .map(|u| {
            assert_eq!(u["pid"], json!(child.id()));
            u["use"].as_str().unwrap()
        })
        .collect();
    assert_eq!(uses, ["cwd", "open"]);
    let plain = text(&m.run(&["busy", "m", "b1"]).stdout);
    assert!(
        plain.contains(&format!("pid {} (sleep) is in ", child.id())),
        "{plain}"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(busy(), json!([]));
    let out = m.run(&["busy", "m", "nowhere"]);
    assert_eq!(
        text(&out.stderr),
        "uaufs: nowhere: no such branch (ENOENT): `uaufs ctl MOUNTPOINT list` shows them\n"
    );
}

#[test]
fn root_is_told_paths_whatever_the_ids_are_mapped_to() {
    use unionfs::control::ask::ask_at;
    use unionfs::control::query::Held;
    use unionfs::control::{Listed, Query};
    let Some(m) = Mounted::new(
        &["b0", "b1"],
        "br=b0=rw:b1=ro,uidmapping=0:1000:65536,gidmapping=0:1000:65536",
    ) else {
        return;
    };
    m.put("b1/d/file", "x");
    assert_eq!(m.read("m/d/file"), "x");
    let branches: Vec<Listed> = ask_at(&m.path("m"), &Query::List).unwrap();
    let branch = branches[1].id;
    let held: Vec<Held> = ask_at(&m.path("m"), &Query::Held { branch }).unwrap();
    assert!(!held.is_empty() && held.iter().all(|h| h.path.is_some()));
}

#[test]
fn stats_count_requests_and_what_is_held() {
    let Some(m) = Mounted::new(&["b0", "b1"], "br=b0=rw:b1=ro,udba=notify") else {
        return;
    };
    let stats = || -> Value {
        let out = m.run(&["stats", "--json", "m"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let held = |name: &str| stats()["held"][name].as_u64().unwrap();
    fs::create_dir(m.path("m/d")).unwrap();
    let file = File::create(m.path("m/d/file")).unwrap();
    assert_eq!((held("nodes"), held("directories")), (3, 2));
    // The other is the directory through which it is asked.
    assert_eq!(held("opens"), 2);
    assert!(held("data_descriptors") == 1 && held("watches") > 0);
    let stats_now = stats();
    let made = stats_now["operations"].as_array().unwrap().iter();
    let made: Vec<&Value> = made.filter(|op| op["name"] == "mkdir").collect();
    assert_eq!((made.len(), &made[0]["count"]), (1, &json!(1)));
    assert!(stats_now["daemon"]["resident_kib"].as_u64() > Some(100));
    drop(file);
    fs::remove_file(m.path("m/d/file")).unwrap();
    fs::remove_dir(m.path("m/d")).unwrap();
    eventually("all is forgotten", || {
        held("nodes") == 1 && held("opens") == 1 && held("data_descriptors") == 0
    });
    let plain = text(&m.run(&["stats", "m"]).stdout);
    assert!(
        plain
            .lines()
            .any(|l| l.split_whitespace().eq(["nodes", "1"])),
        "{plain}"
    );
    assert!(text(&m.run(&["stats", "b0"]).stderr).contains("(ENOTTY)"));
}
