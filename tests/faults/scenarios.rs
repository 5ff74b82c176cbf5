//! What is tried: layers, and what is done to a union of them.

use crate::branches::Mode;
use crate::branches::{lines, tell};
use crate::fuzz::layers::Marks;
use crate::trial::Scenario;
use anyhow::Result;

/// Every form of a branch, and every way of mounting that makes other calls.
pub const MODES: &[Mode] = &[
    Mode {
        name: "aufs",
        marks: Marks::Aufs,
        options: "dirren,dirperm1,namelen=255",
        writable: 1,
    },
    Mode {
        name: "overlay",
        marks: Marks::Overlay,
        options: "redirect_dir=on",
        writable: 1,
    },
    Mode {
        name: "aufs-plain",
        marks: Marks::Aufs,
        options: "udba=none",
        writable: 1,
    },
    Mode {
        name: "aufs-volatile",
        marks: Marks::Aufs,
        options: "dirren,dirperm1,volatile,diropq=always",
        writable: 1,
    },
    Mode {
        name: "overlay-user",
        marks: Marks::Overlay,
        options: "redirect_dir=on,userxattr",
        writable: 1,
    },
    Mode {
        name: "overlay-metacopy",
        marks: Marks::Overlay,
        options: "redirect_dir=on,metacopy=on",
        writable: 1,
    },
];

pub const UPPER: &str = "
    put f 0 20 1 644
    mkdir d 755
    put d/u 0 10 2 644
    mkdir both 755
    put both/up 0 9 3 600
    whiteout gone
    whiteout gonedir
    mkdir o 755
    put o/only 0 3 4 644
    opaque o
";

pub const LOWER: &str = "
    put f 0 30 5 644
    put g 0 40 6 640
    chown g 1000 1000
    put big 0 3000 7 644
    put sparse 0 100 8 644
    put sparse 5000000 100 9 644
    truncate sparse 8000000
    put attrs 0 50 10 600
    setxattr attrs user.a v*30 0
    setxattr attrs trusted.t w*3 0
    setxattr attrs system.posix_acl_access acl:u:7,u1000:7,g:5,m:7,o:0 0
    put setid 0 10 11 755
    chown setid 1000 1000
    chmod setid 6755
    put l1 0 60 12 644
    link l1 l2
    mkdir sub 755
    link l1 sub/l3
    symlink sym target
    mkfifo fifo 640
    mknod dev 600 c 5 1
    put gone 0 10 13 644
    mkdir gonedir 755
    put gonedir/x 0 10 14 644
    mkdir d 750
    put d/x 0 10 15 644
    mkdir d/sub 700
    put d/sub/y 0 10 16 644
    mkdir d/sub/deep 755
    put d/sub/deep/z 0 10 17 644
    mkdir e 755
    put e/z 0 10 18 644
    mkdir both 755
    put both/low 0 10 19 644
    mkdir o 755
    put o/hidden 0 10 20 644
    mkdir many 755
    put many/1 0 1 1 644
    put many/2 0 1 1 644
    put many/3 0 1 1 644
    put many/4 0 1 1 644
    put many/5 0 1 1 644
    mkdir acl 755
    setxattr acl system.posix_acl_default acl:u:7,g:5,g2000:7,m:7,o:5 0
    mkdir n{n*254} 755
    put n{n*254}/x 0 1 1 644
    put lone 0 10 21 644
";

pub const LOWEST: &str = "
    mkdir d 755
    put d/lowest 0 10 22 644
    put g 0 10 23 644
    mkdir e 755
";

/// What names have that only some forms can have.
const LONG: &str = "{n*254}";

/// Files of the upper layer that overlayfs copied up without their data, and of the lower.
const METACOPY: (&str, &str) = (
    "
    put m 0 0 1 644
    truncate m 5000
    setxattr m trusted.overlay.metacopy x*0 0
",
    "
    put m 0 5000 30 644
",
);

/// Only where files have their data below.
const FILLS: &[&str] = &[
    "truncate m 7",
    "truncate m 0",
    "truncate m 9000",
    "open 0 m w|trunc 0",
    "open 0 m rw 0; pwrite 0 3 10 77",
    "chmod m 600",
    "utimens m 5.0 5.0",
    "rename m new none",
    "rename m d/sub/new none",
    "rename g m none",
    "link m new",
    "unlink m",
];

/// What is done, and after ` | ` what was done before. Lines are separated by `;`.
const STEPS: &[&str] = &[
    // Copies.
    "chmod g 600",
    "chown g 1 1",
    "utimens g 5.0 5.0",
    "truncate g 7",
    "setxattr g user.new x*3 0",
    "open 0 g rw 0; pwrite 0 3 10 77",
    "open 0 g w|trunc 0",
    "chmod big 600",
    "chmod sparse 600",
    "chmod attrs 640",
    "rmxattr attrs user.a",
    "utimens setid 7.0 7.0",
    "chown sym 3 3",
    "chmod fifo 600",
    "chmod dev 644",
    "chmod l1 600",
    "chmod sub/l3 600",
    "chmod l2 640 | chmod l1 600",
    "chmod d/sub/deep/z 600",
    "chmod d/sub/deep 700",
    // What is new.
    "put new 0 5 1 644",
    "put d/sub/new 0 0 1 644",
    "put gone 0 0 1 644",
    "put acl/new 0 0 1 644",
    "mkdir new 755",
    "mkdir e/new 755",
    "mkdir gonedir 755",
    "mkdir gone 755",
    "mkdir acl/new 755",
    "symlink new target",
    "symlink gone target",
    "mkfifo new 600",
    "mknod gone 600 c 1 3",
    // Links.
    "link f new",
    "link g new",
    "link g d/sub/new",
    "link g gone",
    "link l1 new",
    "link l1 new | chmod l2 600",
    "link sym gone",
    // Removals.
    "unlink f",
    "unlink g",
    "unlink d/u",
    "unlink d/sub/y",
    "unlink l1",
    "unlink l1 | chmod l2 600",
    "unlink l2 | chmod l1 600; unlink l1",
    "unlink sub/l3 | chmod l1 600; unlink l1; unlink l2",
    "rmdir e | unlink e/z",
    "rmdir o | unlink o/only",
    "rmdir new | mkdir new 755",
    "rmdir many | unlink many/1; unlink many/2; unlink many/3; unlink many/4; unlink many/5",
    "rmdir n{n*254} | unlink n{n*254}/x",
    // Renames of files.
    "rename f new none",
    "rename g new none",
    "rename g d/sub/new none",
    "rename f g none",
    "rename g f none",
    "rename g lone none",
    "rename g gone none",
    "rename f gone noreplace",
    "rename g gone noreplace",
    "rename l1 new none",
    "rename l1 g none",
    "rename l1 new none | chmod l2 600",
    "rename attrs d/sub/new none",
    "rename sym new none",
    "rename f g exchange",
    "rename g lone exchange",
    // Renames of directories.
    "rename both/up both/new none",
    "rename new newer none | mkdir new 755; put new/x 0 1 1 644",
    "rename new gonedir none | mkdir new 755",
    "rename new e none | mkdir new 755; unlink e/z",
    "rename o new none",
];

/// Only where directories of lower branches can be renamed.
const RENAMES: &[&str] = &[
    "rename d new none",
    "rename d/sub new none",
    "rename e new none",
    "rename e gonedir none",
    "rename d e none | unlink e/z",
    "rename d/sub e none | unlink e/z",
    "rename new newer none | rename d new none",
    "rename new d none | rename d new none",
    "rename new/sub sub2 none | rename d new none",
    "rename d e exchange",
    "rename d g exchange",
    "rename d/sub f exchange",
    "rename e many none | unlink many/1; unlink many/2; unlink many/3; unlink many/4; unlink many/5",
    "put new/n 0 0 1 644 | rename d new none",
    "unlink new/x | rename d new none",
];

/// All of them.
pub fn all() -> Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for mode in MODES {
        let renames = mode.name != "aufs-plain";
        let metacopy = mode.name == "overlay-metacopy";
        let mut layers = [UPPER, LOWER, LOWEST].map(str::to_owned);
        if metacopy {
            layers[0].push_str(METACOPY.0);
            layers[1].push_str(METACOPY.1);
        }
        // Else a name that long is listed, and none.
        let long_names = mode.marks != Marks::Aufs || mode.options.contains("namelen=255");
        let mut layers: Vec<_> = layers.iter().map(|l| lines(l)).collect::<Result<_>>()?;
        for layer in layers.iter_mut().filter(|_| !long_names) {
            layer.retain(|line| !line.has_long_name());
        }
        let more = RENAMES.iter().filter(|_| renames);
        let fills = FILLS.iter().filter(|_| metacopy);
        for text in STEPS.iter().chain(more).chain(fills) {
            let (act, first) = text.split_once(" | ").unwrap_or((text, ""));
            if text.contains(LONG) && !long_names {
                continue;
            }
            found.push(Scenario {
                mode: *mode,
                layers: layers.clone(),
                first: lines(&first.replace(';', "\n"))?,
                act: lines(&act.replace(';', "\n"))?,
            });
        }
    }
    Ok(found)
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:", self.mode.name)?;
        tell(f, &self.first, &self.act)
    }
}
