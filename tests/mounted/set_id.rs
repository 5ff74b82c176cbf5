//! Writes take set-id bits and file capabilities away, whichever way they go.

use super::fixture::World;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

const MODES: &[&str] = &["io=passthrough", "io=cache", "io=direct"];

/// `cap_net_raw` as setcap(8) stores it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const CAPABILITY_NAME: &str = "security.capability";

/// A mounted file that root holds open for writing.
struct Held<'a> {
    world: &'a World,
    file: File,
}

impl Held<'_> {
    fn mode(&self) -> u32 {
        let at = |dir: &str| fs::metadata(self.world.path(dir)).unwrap().mode() & 0o7777;
        assert_eq!(at("m/f"), at("up/f"));
        at("m/f")
    }

    /// Gives the file this mode, lets a user write to the descriptor that root has opened, and tells the mode then.
    fn written_by(&self, id: &str, mode: u32) -> u32 {
        self.world.chmod("m/f", mode);
        let by = format!("exec setpriv --reuid {id} --regid {id} --clear-groups echo >&0");
        let done = Command::new("sh")
            .args(["-c", &by])
            .stdin(Stdio::from(self.file.try_clone().unwrap()))
            .status();
        assert!(done.unwrap().success());
        self.mode()
    }
}

fn in_every_mode(body: impl Fn(&Held<'_>, &str)) {
    let Some(world) = World::new() else { return };
    for (mode, before) in MODES.iter().zip(["up", "low", "up"]) {
        for dir in ["up", "low"] {
            let _ = fs::remove_dir_all(world.path(dir));
            world.mkdir(dir, 0o755);
        }
        world.put(&format!("{before}/f"), "data");
        world.mounted(&format!("br=up=rw:low=ro,{mode}"), || {
            let path = world.path("m/f");
            let mut how = OpenOptions::new();
            let file = how.append(true).open(&path).unwrap();
            body(
                &Held {
                    world: &world,
                    file,
                },
                mode,
            );
        });
    }
}

#[test]
fn set_id_bits_go_with_a_strangers_write_and_stay_with_roots() {
    in_every_mode(|held, how| {
        for (id, mode, then) in [
            ("0", 0o6777, 0o6777),
            ("1000", 0o6777, 0o777),
            ("1000", 0o2767, 0o767),
            ("1000", 0o4600, 0o600),
        ] {
            assert_eq!(held.written_by(id, mode), then, "{how}: {id} {mode:o}");
        }
        // By a descriptor of his own.
        held.world.chmod("m/f", 0o6777);
        assert!(held.world.may(1000, &[], "echo >>f"), "{how}");
        assert_eq!(held.mode(), 0o777, "{how}");
        // A member of its group may leave setgid that is none of a program.
        held.world.chmod("m/f", 0o6767);
        assert!(held.world.may(1000, &[0], "echo >>f"), "{how}");
        assert_eq!(held.mode(), 0o2767, "{how}");
    });
}

#[test]
fn nobody_else_takes_set_id_bits_away() {
    in_every_mode(|held, how| {
        held.world.chmod("m/f", 0o6755);
        let _ = held
            .world
            .may(1000, &[], "cat f; chmod 755 f; chgrp 1000 f; : >>f");
        assert_eq!(held.mode(), 0o6755, "{how}");
    });
}

#[test]
fn file_capabilities_go_with_every_write() {
    in_every_mode(|held, how| {
        for id in ["0", "1000"] {
            let flags = rustix::fs::XattrFlags::empty();
            let path = held.world.path("m/f");
            rustix::fs::setxattr(&path, CAPABILITY_NAME, &CAPABILITY, flags).unwrap();
            held.written_by(id, 0o755);
            let mut value = [0u8; 64];
            for dir in ["m/f", "up/f"] {
                let found =
                    rustix::fs::getxattr(held.world.path(dir), CAPABILITY_NAME, &mut value[..]);
                assert_eq!(found, Err(rustix::io::Errno::NODATA), "{how}: {id} {dir}");
            }
        }
    });
}
