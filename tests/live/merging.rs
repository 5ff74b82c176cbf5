//! Merges of a live mount while files are made, linked and removed all the time.

use crate::mounted::Mounted;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Files that each worker makes.
const FILES: usize = 400;

/// Makes, links and removes files. Each must be what it was, with its number.
fn work(dir: &Path) {
    let mut made: Vec<(PathBuf, u64)> = Vec::new();
    for n in 0..FILES {
        let sub = if n.is_multiple_of(2) { "" } else { "sub" };
        let path = dir.join(sub).join(n.to_string());
        fs::write(&path, n.to_string()).unwrap();
        made.push((path.clone(), fs::metadata(&path).unwrap().ino()));
        let (old, ino) = made[n * 7 % made.len()].clone();
        let link = dir.join(format!("{n}l"));
        fs::hard_link(&old, &link).unwrap_or_else(|err| panic!("{}: {err}", old.display()));
        assert_eq!(fs::metadata(&link).unwrap().ino(), ino, "{}", old.display());
        if n.is_multiple_of(3) {
            fs::remove_file(&link).unwrap();
        }
        if n.is_multiple_of(5) {
            let (gone, _) = made.swap_remove(n * 11 % made.len());
            fs::remove_file(gone).unwrap();
        }
    }
    for (path, ino) in made {
        assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), name);
    }
}

#[test]
fn files_that_get_inode_numbers_of_merged_ones_are_files_of_their_own() {
    let workers = ["0", "1", "2", "3"];
    let dirs: Vec<String> = workers.iter().map(|w| format!("b0/{w}/sub")).collect();
    let mut all: Vec<&str> = dirs.iter().map(String::as_str).collect();
    all.extend(["b1", "b2"]);
    let Some(m) = Mounted::new(&all, "br=b0=rw:b1=rw:b2=rw") else {
        return;
    };
    std::thread::scope(|scope| {
        let running = workers.map(|worker| {
            let dir = m.path("m").join(worker);
            scope.spawn(move || work(&dir))
        });
        while !running.iter().all(|worker| worker.is_finished()) {
            for (from, to) in [("b0", "b1"), ("b1", "b2")] {
                let code = m.run(&["merge", from, to]).status.code();
                assert!(matches!(code, Some(0 | 4)), "merge: {code:?}");
            }
        }
    });
}
