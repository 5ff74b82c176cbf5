//! What is done to a union before its power is lost.

use crate::branches::Mode;
use crate::branches::{lines, tell};
use crate::fuzz::layers::Marks;
use crate::lab::Scenario;
use anyhow::Result;

const AUFS: Mode = Mode {
    name: "aufs",
    marks: Marks::Aufs,
    options: "dirren,dirperm1,namelen=255",
    writable: 1,
};

const OVERLAY: Mode = Mode {
    name: "overlay",
    marks: Marks::Overlay,
    options: "redirect_dir=on",
    writable: 1,
};

const METACOPY: Mode = Mode {
    name: "overlay-metacopy",
    marks: Marks::Overlay,
    options: "redirect_dir=on,metacopy=on",
    writable: 1,
};

const VOLATILE: Mode = Mode {
    name: "aufs-volatile",
    marks: Marks::Aufs,
    options: "dirren,dirperm1,volatile",
    writable: 1,
};

/// Every file has no second name: a copy is told from its file by nothing that is written down.
const NO_PLINK: Mode = Mode {
    name: "aufs-noplink",
    marks: Marks::Aufs,
    options: "noplink,udba=none",
    writable: 1,
};

/// New files go to two branches in turn.
const TWO: Mode = Mode {
    name: "two-writable",
    marks: Marks::Aufs,
    options: "create=rr,dirren,dirperm1",
    writable: 2,
};

const UPPER: &str = "
    put f 0 5000 1 644
    mkdir d 755
    put d/u 0 10 2 644
    whiteout gone
    whiteout gonedir
";

const LOWER: &str = "
    put f 0 30 5 644
    put g 0 9000 6 640
    chown g 1000 1000
    put db 0 20000 7 644
    put db-wal 0 4000 8 644
    put l1 0 60 12 644
    link l1 l2
    put gone 0 10 13 644
    mkdir gonedir 755
    put gonedir/x 0 10 14 644
    mkdir d 750
    put d/x 0 6000 15 644
    mkdir d/sub 700
    put d/sub/y 0 10 16 644
    mkdir e 755
    put e/z 0 10 18 644
";

/// For two writable branches: the middle one.
const MIDDLE: &str = "
    put m 0 5000 3 644
    mkdir d 755
    put d/m 0 5000 4 644
";

/// What is done, and after ` | ` what was done before. Lines are separated by `;`.
const STEPS: &[&str] = &[
    // Copies.
    "chmod g 600; open 0 g r 0; fsync 0",
    "open 0 g rw 0; pwrite 0 100 5000 20; fsync 0",
    "open 0 l1 rw 0; pwrite 0 10 20 9; fdatasync 0",
    "open 0 g rw 0; pwrite 0 100 5000 20; fdatasync 0; pwrite 0 4000 50 21; fdatasync 0",
    "open 0 d/sub/y rw 0; pwrite 0 0 5 20; fdatasync 0",
    "truncate g 100; open 0 g r 0; fsync 0",
    "open 0 g w|trunc 0; pwrite 0 0 3000 20; fsync 0",
    "rename g new none; open 0 . r|directory 0; fsync 0",
    "rename d/x new none; open 0 . r|directory 0; fsync 0; open 1 d r|directory 0; fsync 1",
    "link g new; open 0 new r 0; fsync 0",
    "chmod l1 600; open 0 l2 rw 0; pwrite 0 10 20 9; fsync 0",
    "open 0 g rw|append 0; write 0 6000 20; fdatasync 0; write 0 100 21; fdatasync 0",
    "setxattr g user.a v*30 0; open 0 g r 0; fsync 0",
    // New files.
    "open 0 new rw|creat|excl 644; pwrite 0 0 5000 20; fsync 0",
    "open 0 new rw|creat|excl 644; fdatasync 0; pwrite 0 0 9000 20; fdatasync 0",
    "open 0 d/sub/new rw|creat|excl 644; pwrite 0 0 50 20; fsync 0; rename d/sub/new d/new none; \
     open 1 d r|directory 0; fsync 1",
    "open 0 gone rw|creat 644; pwrite 0 0 5000 20; fsync 0",
    "symlink new target; open 0 . r|directory 0; fsync 0",
    // A new file takes the place of an old one.
    "open 0 g.new w|creat|excl 600; pwrite 0 0 7000 20; fsync 0; close 0; rename g.new g none; \
     open 1 . r|directory 0; fsync 1",
    "open 0 f.new w|creat|excl 600; pwrite 0 0 7000 20; fsync 0; close 0; rename f.new f none; \
     open 1 . r|directory 0; fsync 1",
    "open 0 d/x.new w|creat|excl 600; pwrite 0 0 70 20; fdatasync 0; close 0; \
     rename d/x.new d/x none; open 1 d r|directory 0; fsync 1",
    "rename f g none; open 1 . r|directory 0; fsync 1",
    // Removals.
    "unlink f; open 0 . r|directory 0; fsync 0",
    "unlink g; open 0 . r|directory 0; fsync 0; unlink d/u; open 1 d r|directory 0; fsync 1",
    "unlink d/sub/y; open 0 d/sub r|directory 0; fsync 0; rmdir d/sub; open 1 d r|directory 0; \
     fsync 1",
    "mkdir gonedir 755; open 0 gonedir r|directory 0; fsync 0; put gonedir/new 0 10 1 644; fsync 0",
    "mkdir gone 755; open 0 . r|directory 0; fsync 0",
    // A database with a log of its own.
    "open 0 db rw 0; open 1 db-wal rw 0; pwrite 1 0 4120 20; fsync 1; pwrite 0 4096 4096 20; \
     fsync 0; ftruncate 1 0; fsync 1; pwrite 1 0 4120 21; fdatasync 1; pwrite 0 8192 4096 21; \
     fdatasync 0",
    "open 0 db rw 0; open 1 db-journal rw|creat|excl 600; pwrite 1 0 4096 20; fsync 1; \
     open 2 . r|directory 0; fsync 2; pwrite 0 4096 4096 22; fsync 0; close 1; unlink db-journal; \
     fsync 2",
    // Mappings.
    "open 0 g rw 0; map 0 shared 9000; poke 100 5000 20; poke 50 100 21",
    "open 0 new rw|creat|excl 644; ftruncate 0 9000; map 0 shared 9000; poke 100 5000 20; fsync 0",
];

/// A file without its data, as overlayfs copies them up, and what is below it.
const NO_DATA: &str = "
    put mc 0 0 9 644
    truncate mc 9000
    setxattr mc trusted.overlay.metacopy x*0 0
";
const DATA: &str = "
    put mc 0 9000 9 644
";

/// With such a file.
const COMPLETED: &[&str] = &[
    "chmod mc 600; open 0 mc rw 0; pwrite 0 5 10 20; fdatasync 0; pwrite 0 4090 10 21; fdatasync 0",
    "open 0 mc rw|append 0; write 0 50 20; fsync 0",
    "rename mc new none; open 0 . r|directory 0; fsync 0",
    "link mc new; open 0 new rw 0; pwrite 0 5 10 20; fdatasync 0",
    "open 0 mc rw 0; map 0 shared 9000; poke 100 5000 20",
];

/// The union is mounted again meanwhile.
const REMOUNTS: &[&str] = &[
    "chmod g 600; unlink f; remount; put new 0 10 1 644",
    "remount; chmod l2 640; remount | chmod l1 600; rename d/x x none; unlink db",
];

/// Only where directories of lower branches can be renamed.
const RENAMES: &[&str] = &[
    "rename d new none; open 0 . r|directory 0; fsync 0; open 1 new/x rw 0; pwrite 1 5 10 20; \
     fdatasync 1",
    "rename d/sub e/sub none; open 0 e r|directory 0; fsync 0; open 1 d r|directory 0; fsync 1",
    "rename e gonedir none; open 0 . r|directory 0; fsync 0",
    "rename new newer none; open 0 . r|directory 0; fsync 0 | rename d new none",
    "rename d e exchange; open 0 . r|directory 0; fsync 0",
];

/// With two writable branches. (What was not synced may be lost on one disk and stay on the other.)
const BETWEEN: &[&str] = &[
    "open 0 . r|directory 0; put n1 0 5000 20 644; fsync 0; put n2 0 5000 21 644; fsync 0",
    "open 0 . r|directory 0; mkdir n1 755; fsync 0; mkdir n2 755; fsync 0; open 1 n1 r|directory 0; \
     put n1/a 0 10 1 644; fsync 1; put n1/b 0 10 1 644; fsync 1; open 2 n2 r|directory 0; \
     put n2/a 0 10 1 644; fsync 2; put n2/b 0 10 1 644; fsync 2",
    "unlink m; open 0 . r|directory 0; fsync 0",
    "rename d/m d/new none; open 0 d r|directory 0; fsync 0",
    "rename f m none; open 0 . r|directory 0; fsync 0",
    "rename m f none; open 0 . r|directory 0; fsync 0",
    "rename d new none; open 0 . r|directory 0; fsync 0",
    "open 0 g rw 0; pwrite 0 100 5000 20; fdatasync 0",
    "mvdown f; mvdown d/u",
    "put d/new 0 5000 20 644; mvdown d/new; open 0 d/new rw 0; pwrite 0 5 9 3; fdatasync 0",
    "remount; put d/n1 0 10 1 644; put d/n2 0 10 1 644; remount",
];

/// All of them, or a selection.
pub fn all(quick: bool) -> Result<Vec<Scenario>> {
    let mut found = Vec::new();
    let lower: &[&str] = &[UPPER, LOWER];
    let middle: &[&str] = &[UPPER, MIDDLE, LOWER];
    let texts = || STEPS.iter().chain(RENAMES).chain(REMOUNTS);
    for text in texts() {
        found.push(scenario(AUFS, lower, text, false)?);
    }
    for text in texts() {
        found.push(scenario(OVERLAY, lower, text, false)?);
    }
    for text in COMPLETED {
        let layers = &[NO_DATA, DATA];
        found.push(Scenario {
            completes: true,
            ..scenario(METACOPY, layers, text, false)?
        });
    }
    for text in BETWEEN {
        found.push(scenario(TWO, middle, text, false)?);
        found.push(scenario(TWO, middle, text, true)?);
    }
    if quick {
        // Each takes its turn in one of the formats.
        let mut number = 0;
        found.retain(|_| {
            number += 1;
            number % 3 == 1
        });
    }
    let more = if quick { &STEPS[1..3] } else { STEPS };
    for text in more {
        found.push(scenario(VOLATILE, lower, text, false)?);
        found.push(scenario(NO_PLINK, lower, text, false)?);
        found.push(scenario(METACOPY, lower, text, false)?);
    }
    Ok(found)
}

fn scenario(mode: Mode, layers: &[&str], text: &str, two_disks: bool) -> Result<Scenario> {
    let (steps, first) = text.split_once(" | ").unwrap_or((text, ""));
    let layers: Result<Vec<_>> = layers.iter().map(|text| lines(text)).collect();
    Ok(Scenario {
        mode,
        two_disks,
        completes: false,
        layers: layers?,
        first: lines(&first.replace(';', "\n"))?,
        steps: lines(&steps.replace(';', "\n"))?,
    })
}

impl std::fmt::Display for Scenario {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let disks = if self.two_disks { " on two disks" } else { "" };
        write!(f, "{}{disks}:", self.mode.name)?;
        tell(f, &self.first, &self.steps)
    }
}
