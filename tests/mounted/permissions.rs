//! Who may do what: directories of several branches, and the rules of an ordinary filesystem.

use super::fixture::World;

const USER: u32 = 1000;
const GROUP: u32 = 1234;

/// Options of every way in which opens and lookups are answered.
const MODES: &[&str] = &[
    "udba=reval",
    "udba=none",
    "udba=none,open=none",
    "udba=none,io=cache",
];

/// A directory that is open on the upper branch and private on the lower one.
fn private_below() -> Option<World> {
    let world = World::new()?;
    world.put("b0/d/u", "upper");
    world.put("b1/d/x", "lower");
    world.mkdir("b1/d/sub", 0o755);
    world.chmod("b0/d", 0o777);
    world.chmod("b1/d", 0o700);
    Some(world)
}

#[test]
fn every_branch_must_allow_search_and_listing() {
    let Some(world) = private_below() else { return };
    for mode in MODES {
        world.mounted(&format!("br=b0=rw:b1=ro,{mode}"), || {
            // What root looked up before is of no use to others.
            assert!(
                world.may(0, &[], "ls -l d; cat d/u d/x; ls d/sub; ! cat d/none"),
                "{mode}"
            );
            for denied in [
                "ls d",
                "cat d/u",
                "cat d/x",
                "stat d/x",
                "ls d/sub",
                "stat d/none 2>&1 | grep -q 'No such'",
                "touch d/new",
                "mkdir d/new",
                "ln -s x d/new",
                "mkfifo d/new",
                "rm -f d/u",
                "rmdir d/sub",
                "mv d/u elsewhere",
            ] {
                assert!(!world.may(USER, &[], denied), "{denied} ({mode})");
            }
            assert!(world.may(USER, &[], "stat d"), "{mode}");
            assert!(world.may(0, &[], "cat d/u d/x && ! ls d/new"), "{mode}");
        });
    }
    world.mounted("br=b0=rw:b1=ro,dirperm1", || {
        assert!(world.may(USER, &[], "ls d/sub && cat d/u d/x && touch d/new"));
    });
}

#[test]
fn a_refusal_leaves_mounts_and_working_directories_alone() {
    let Some(world) = private_below() else { return };
    world.mounted("br=b0=rw:b1=ro", || {
        let refused = "setpriv --reuid 1000 --clear-groups ls d/sub";
        let script = format!(
            "mount -t tmpfs none d/sub && touch d/sub/inside && ! {refused} && sleep 1.2 &&
             ! {refused} && ls d/sub/inside && umount d/sub &&
             cd d/sub && ! (cd ../.. && {refused}) && pwd -P && ls"
        );
        let output = world.try_as(0, &[], &script);
        let _ = world.try_as(0, &[], "umount d/sub");
        assert!(output.status.success(), "{}", super::fixture::text(&output));
    });
}

#[test]
fn owners_groups_and_acls_of_the_lower_directory_count() {
    let Some(world) = private_below() else { return };
    world.chown("b1/d", 5, GROUP);
    world.chmod("b1/d", 0o750);
    let options = "br=b0=rw:b1=ro";
    world.mounted(options, || {
        assert!(world.may(5, &[], "ls d && cat d/x"));
        assert!(world.may(USER, &[7, GROUP], "ls d && cat d/x"));
        assert!(!world.may(USER, &[7], "cat d/x"));
        let capable = "setpriv --reuid 1000 --clear-groups --inh-caps=+dac_read_search \
                       --ambient-caps=+dac_read_search cat d/x";
        assert!(world.may(0, &[], capable));
        // Capabilities of a user namespace are none here.
        assert!(!world.may(USER, &[], "unshare -U --keep-caps cat d/x"));
    });
    // Searched, but not listed; user 1001 neither.
    let entry = |tag: u16, bits: u16, id: u32| {
        let mut raw = tag.to_le_bytes().to_vec();
        raw.extend(bits.to_le_bytes());
        raw.extend(id.to_le_bytes());
        raw
    };
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (0x01, 7, u32::MAX),
        (0x02, 1, USER),
        (0x04, 0, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(entry(tag, bits, id));
    }
    world.set_xattr("b1/d", "system.posix_acl_access", &acl);
    world.mounted(options, || {
        assert!(world.may(USER, &[], "cat d/x"));
        assert!(!world.may(USER, &[], "ls d"));
        assert!(!world.may(1001, &[], "cat d/x"));
    });
}

#[test]
fn chmod_of_a_lower_directory_does_not_open_what_is_below() {
    let Some(world) = World::new() else { return };
    world.mkdir("b0", 0o755);
    world.put("b1/d/x", "lower");
    world.chmod("b1/d", 0o700);
    for mode in MODES {
        world.mounted(&format!("br=b0=rw:b1=ro,{mode}"), || {
            assert!(world.may(0, &[], "cat d/x && ls d && chmod 755 d && cat d/x"));
            assert!(!world.may(USER, &[], "ls d"), "{mode}");
            assert!(!world.may(USER, &[], "cat d/x"), "{mode}");
            assert!(world.may(0, &[], "ls -ld d | grep -q ^drwxr-xr-x"));
        });
        std::fs::remove_dir_all(world.path("b0/d")).unwrap();
    }
}
