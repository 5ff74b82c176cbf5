//! mount(8), umount(8) and fstab(5), as they find the helpers.

use super::fixture::{World, program, text};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

/// What mount(8) looks for.
const HELPERS: &[&str] = &[
    "mount.uaufs",
    "mount.fuse.uaufs",
    "umount.uaufs",
    "umount.fuse.uaufs",
];

/// Branches, the helpers, and an fstab of these lines; `@` is the place.
struct Host(World);

impl Host {
    fn new(fstab: &str) -> Option<Self> {
        let world = World::new()?;
        world.put("b0/top", "top");
        world.put("b1/low", "low");
        world.put("b2/more", "more");
        world.mkdir("n", 0o755);
        world.mkdir("sbin", 0o755);
        for helper in HELPERS {
            symlink(program(), world.path(&format!("sbin/{helper}"))).unwrap();
        }
        let host = Self(world);
        fs::write(host.0.path("fstab"), host.here(fstab)).unwrap();
        Some(host)
    }

    fn here(&self, text: &str) -> String {
        let place = self.0.path("").display().to_string();
        text.replace('@', place.trim_end_matches('/'))
    }

    /// Runs a script in a mount namespace in which /sbin has nothing but the helpers. What it
    /// mounts ends with it.
    fn run(&self, script: &str) -> Output {
        let script = self.here(&format!(
            "mount --bind @/sbin $(readlink -f /sbin) && {script}"
        ));
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", &script])
            .current_dir(self.0.path(""))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// The lines that a script prints; it must not say anything else.
    fn lines(&self, script: &str) -> Vec<String> {
        let output = self.run(script);
        assert!(output.status.success(), "{script}: {}", text(&output));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{script}");
        let place = self.here("@");
        let shown = String::from_utf8_lossy(&output.stdout).replace(&place, "@");
        shown.lines().map(str::to_owned).collect()
    }
}

/// What findmnt(8) shows of the mount at `m` or `n`, and what is in it.
const SHOW: &str = "findmnt -n -o SOURCE,FSTYPE,TARGET --raw";

#[test]
fn mount_and_umount_take_both_names_of_the_type() {
    let Some(host) = Host::new("") else { return };
    for kind in ["uaufs", "fuse.uaufs"] {
        let script = format!(
            "mount -t {kind} -o br=@/b0=rw:@/b1=ro label @/m; {SHOW} @/m; ls @/m; \
             echo x > @/m/new; umount @/m; ls @/m; cat @/b0/new; rm @/b0/new"
        );
        assert_eq!(
            host.lines(&script),
            ["label fuse.uaufs @/m", "low", "top", "x"],
            "{kind}"
        );
    }
    // What mount(8) says itself is left to it; the reason is ours.
    let output = host.run("mount -t uaufs -o br=@/nowhere=rw label @/m");
    assert!(!output.status.success());
    let message = text(&output);
    assert!(message.contains("nowhere: no such branch"), "{message}");
}

#[test]
fn an_fstab_line_mounts_by_its_mount_point() {
    let options =
        "_netdev,nofail,x-systemd.automount,x-systemd.requires=/tmp,comment=x,noatime,dev";
    let fstab = format!(
        "# comment\n\
         none @/m uaufs br=@/b0=rw:@/b1=ro,noauto,{options} 0 0\n\
         label @/n fuse.uaufs br=@/b1=ro,ro,nosuid,{options} 0 0\n"
    );
    let Some(host) = Host::new(&fstab) else {
        return;
    };
    let both = format!("{SHOW} @/m; ls @/m; umount @/m; ls @/m");
    let by_point = format!("mount -T @/fstab @/m; {both}");
    assert_eq!(
        host.lines(&by_point),
        ["uaufs fuse.uaufs @/m", "low", "top"]
    );
    // All of them: one is not asked for, the other is not mounted twice.
    let all = format!(
        "mount -a -T @/fstab; mount -a -T @/fstab; ! mountpoint -q @/m; {SHOW} @/n; ls @/n; \
         ! touch @/n/new 2>/dev/null; grep -c '@/n .*nosuid' /proc/self/mounts; umount @/n"
    );
    assert_eq!(host.lines(&all), ["label fuse.uaufs @/n", "low", "1"]);
    let of_the_type = "mount -a -t nouaufs,nofuse.uaufs -T @/fstab; mount -a -O no_netdev -T @/fstab; \
                       ! mountpoint -q @/n; echo none";
    assert_eq!(host.lines(of_the_type), ["none"]);
}

#[test]
fn a_busy_union_is_unmounted_lazily_and_a_remount_changes_it() {
    let fstab = "none @/m uaufs br=@/b0=rw:@/b1=ro,noauto,_netdev,nofail,x-systemd.automount 0 0\n";
    let Some(host) = Host::new(fstab) else { return };
    let busy = "mount -T @/fstab @/m; exec 7<@/m/low; ! umount @/m 2>/dev/null; umount -l @/m; \
                ! mountpoint -q @/m; cat <&7; exec 7<&-";
    assert_eq!(host.lines(busy), ["low"]);
    let remount = "mount -T @/fstab @/m; mount -T @/fstab -o remount,append:@/b2=ro,ro @/m; ls @/m; \
                   ! touch @/m/new 2>/dev/null; mount -o remount,del:@/b1,rw @/m; ls @/m; \
                   touch @/m/new; umount @/m; rm @/b0/new";
    assert_eq!(host.lines(remount), ["low", "more", "top", "more", "top"]);
}
