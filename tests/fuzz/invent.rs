//! Invents cases: layers, and steps that fit the tree as it is.

use super::case::Case;
use super::exec::{Place, SLOTS, read_listing};
use super::line::Line;
use super::sys::{self, HERE};
use std::ffi::CString;
use std::os::fd::AsRawFd;

/// Few names, so that layers and steps meet: two that are as long as names can be, one that is not
/// UTF-8, one with a blank.
const NAMES: [&[u8]; 16] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"a",
    b"b",
    b"f g",
    b"\xff\xfe",
    &[b'n'; 255],
    &[b'w'; 250],
];

/// How deep directories are nested.
const DEPTH: usize = 4;

/// Random numbers, the same on every machine.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// A line of words.
macro_rules! line {
    ($($word:expr),*) => { Line { words: vec![$($word.to_word()),*] } };
}

trait Word {
    fn to_word(&self) -> Vec<u8>;
}
impl Word for &str {
    fn to_word(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
}
impl Word for String {
    fn to_word(&self) -> Vec<u8> {
        self.clone().into_bytes()
    }
}
impl Word for Vec<u8> {
    fn to_word(&self) -> Vec<u8> {
        self.clone()
    }
}
impl Word for usize {
    fn to_word(&self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

/// The options of a union, by chance.
const OPTIONS: [&str; 9] = [
    "volatile",
    "volatile",
    "volatile",
    "",
    "io=cache",
    "io=cache,volatile",
    "open=answered,volatile",
    "io=cache,open=none,volatile",
    "threads=1",
];

/// Layers and options; the steps come one by one.
pub fn case(dice: &mut Dice) -> Case {
    let grammar = if dice.percent(75) { "overlay" } else { "aufs" };
    let count = 1 + dice.below(5);
    let mut pool = Pool::default();
    let layers = (0..count)
        .rev()
        .map(|n| layer(dice, &mut pool, n + 1 < count))
        .collect::<Vec<_>>();
    Case {
        grammar: grammar.into(),
        options: dice.pick(&OPTIONS).into(),
        layers: layers.into_iter().rev().collect(),
        steps: Vec::new(),
    }
}

/// What a layer is made by. `above`: there are layers below.
fn layer(dice: &mut Dice, pool: &mut Pool, above: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    // Names of this layer and those below meet often.
    for number in 0..3 + dice.below(26) {
        let line = match dice.below(if above { 26 } else { 21 }) {
            0..6 => {
                let path = pool.fresh(dice);
                pool.dirs.push(path.clone());
                line!["mkdir", path, mode(dice, true)]
            }
            6..13 => {
                let path = pool.fresh(dice);
                pool.files.push(path.clone());
                line![
                    "put",
                    path,
                    sparse_offset(dice),
                    dice.below(6000),
                    dice.below(26),
                    mode(dice, false)
                ]
            }
            13 => line!["symlink", pool.fresh(dice), dice.pick(&NAMES).to_vec()],
            14 => line!["mkfifo", pool.fresh(dice), "644"],
            15 => line!["mknod", pool.fresh(dice), "644", "c", "1", "3"],
            16 => line!["link", pool.file(dice), pool.fresh(dice)],
            17 => line!["chown", pool.any(dice), owner(dice), owner(dice)],
            18 => line!["chmod", pool.any(dice), mode(dice, number % 2 == 0)],
            19 => {
                let (name, value) = xattr(dice);
                line!["setxattr", pool.any(dice), name, value, "0"]
            }
            20 => line!["truncate", pool.file(dice), dice.below(200_000)],
            21..25 => line!["whiteout", pool.any(dice)],
            _ => {
                let dir = pool.dir(dice);
                // That of a layer is another matter: `root-opaque` in known.rs.
                let verb = if dir == b"." { "whiteout" } else { "opaque" };
                line![verb, dir]
            }
        };
        lines.push(line);
    }
    lines
}

fn mode(dice: &mut Dice, dir: bool) -> String {
    let modes: &[&str] = if dir {
        &[
            "755", "755", "777", "700", "1777", "2775", "2777", "711", "555",
        ]
    } else {
        &[
            "644", "644", "666", "600", "755", "4755", "2755", "444", "0", "6777",
        ]
    };
    dice.pick(modes).into()
}

fn owner(dice: &mut Dice) -> String {
    dice.pick(&["0", "1000", "1001", "2000", "2001", "65534", "-1"])
        .into()
}

/// Never none: see `chown-of-nothing` in known.rs.
fn group(dice: &mut Dice) -> String {
    dice.pick(&["0", "1000", "1001", "2000", "2001"]).into()
}

fn sparse_offset(dice: &mut Dice) -> usize {
    if dice.percent(25) {
        dice.below(150_000)
    } else {
        0
    }
}

/// Name and value of an extended attribute.
fn xattr(dice: &mut Dice) -> (String, String) {
    let acls = [
        "acl:u:7,u1000:7,g:5,m:7,o:0",
        "acl:u:6,u1001:0,g:4,m:5,o:4",
        "acl:u:7,g:5,g2000:7,m:7,o:5",
        "acl:u:6,g:5,o:0",
        "acl:u:7,u1000:6,g:0,g2000:5,m:1,o:7",
    ];
    match dice.below(10) {
        0..4 => {
            let name = dice.pick(&["user.x", "user.y", "user.long.name"]);
            (
                name.into(),
                format!("{}*{}", dice.pick(&["v", "w"]), dice.below(120)),
            )
        }
        4 => ("trusted.t".into(), format!("t*{}", dice.below(40))),
        5 => ("security.s".into(), format!("s*{}", dice.below(40))),
        6 => ("security.capability".into(), "cap".into()),
        7 | 8 => ("system.posix_acl_access".into(), dice.pick(&acls).into()),
        _ => ("system.posix_acl_default".into(), dice.pick(&acls).into()),
    }
}

/// What there is, or might be.
#[derive(Default)]
pub struct Pool {
    dirs: Vec<Vec<u8>>,
    files: Vec<Vec<u8>>,
}

impl Pool {
    /// Looks at the tree as it is.
    pub fn read(&mut self, place: &Place) {
        self.dirs.clear();
        self.files.clear();
        let mut todo = vec![Vec::new()];
        while let Some(dir) = todo.pop() {
            let own: &[u8] = if dir.is_empty() { b"." } else { &dir };
            let Ok(path) = CString::new(own) else {
                continue;
            };
            let from = if dir.is_empty() {
                place.root.as_raw_fd()
            } else {
                HERE
            };
            let Ok(fd) = sys::open(from, &path, libc::O_RDONLY | libc::O_DIRECTORY, 0) else {
                continue;
            };
            let mut listed = read_listing(fd.as_raw_fd(), 8192).unwrap_or_default();
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            for entry in listed {
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let path = join(&dir, &entry.name);
                if entry.kind == libc::DT_DIR {
                    self.dirs.push(path.clone());
                    todo.push(path);
                } else {
                    self.files.push(path);
                }
            }
        }
    }

    fn dir(&self, dice: &mut Dice) -> Vec<u8> {
        if self.dirs.is_empty() || dice.percent(12) {
            return b".".to_vec();
        }
        self.dirs[dice.below(self.dirs.len())].clone()
    }

    fn file(&self, dice: &mut Dice) -> Vec<u8> {
        if self.files.is_empty() || dice.percent(4) {
            return self.fresh(dice);
        }
        self.files[dice.below(self.files.len())].clone()
    }

    fn any(&self, dice: &mut Dice) -> Vec<u8> {
        match dice.below(20) {
            0 => self.fresh(dice),
            1..8 => self.dir(dice),
            _ => self.file(dice),
        }
    }

    /// Any name in a directory that exists.
    fn fresh(&self, dice: &mut Dice) -> Vec<u8> {
        let dir = self.dir(dice);
        let name = dice.pick(&NAMES);
        if dir == b"." || dir.iter().filter(|b| **b == b'/').count() >= DEPTH {
            return name.to_vec();
        }
        join(&dir, name)
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// Invents a step.
pub fn step(dice: &mut Dice, pool: &Pool, place: &Place) -> Line {
    let mut line = match dice.below(100) {
        0..38 => names(dice, pool),
        38..50 => attributes(dice, pool),
        50..60 => questions(dice, pool),
        60..70 => open(dice, pool),
        _ => on_slot(dice, pool, place),
    };
    let user = dice.below(14);
    if (1..4).contains(&user) && line.verb() != "umask" {
        let mut words = vec![b"as".to_vec(), user.to_string().into_bytes()];
        words.append(&mut line.words);
        line.words = words;
    }
    line
}

fn names(dice: &mut Dice, pool: &Pool) -> Line {
    match dice.below(40) {
        0..4 => line!["mkdir", pool.fresh(dice), mode(dice, true)],
        4..6 => line!["rmdir", pool.dir(dice)],
        6..11 => line!["unlink", pool.file(dice)],
        11 => line!["rmdir", pool.any(dice)],
        12 => line!["unlink", pool.any(dice)],
        13..17 => {
            let (offset, len) = (sparse_offset(dice), dice.below(9000));
            line![
                "put",
                pool.any(dice),
                offset,
                len,
                dice.below(26),
                mode(dice, false)
            ]
        }
        17..19 => line![
            "put",
            pool.fresh(dice),
            "0",
            dice.below(9000),
            dice.below(26),
            mode(dice, false)
        ],
        19 => line!["symlink", pool.fresh(dice), pool.any(dice)],
        20 => line!["mkfifo", pool.fresh(dice), mode(dice, false)],
        21 => line!["mksock", pool.fresh(dice), mode(dice, false)],
        22 => line![
            "mknod",
            pool.fresh(dice),
            mode(dice, false),
            dice.pick(&["c", "b"]),
            "1",
            "5"
        ],
        23..27 => line!["link", pool.file(dice), pool.fresh(dice)],
        27 => line!["link", pool.any(dice), pool.any(dice)],
        28..34 => line!["rename", pool.any(dice), pool.fresh(dice), "-"],
        34 => line!["rename", pool.any(dice), pool.any(dice), "-"],
        35 => line!["rename", pool.dir(dice), pool.any(dice), "-"],
        36 => line!["rename", pool.any(dice), pool.fresh(dice), "noreplace"],
        37..39 => line!["rename", pool.any(dice), pool.any(dice), "exchange"],
        _ => line!["umask", dice.pick(&["0", "22", "22", "77", "2"])],
    }
}

fn attributes(dice: &mut Dice, pool: &Pool) -> Line {
    let is_dir = dice.percent(40);
    let path = if is_dir {
        pool.dir(dice)
    } else {
        pool.file(dice)
    };
    match dice.below(16) {
        0..3 => line!["chmod", path, mode(dice, is_dir)],
        3..5 => line!["chown", path, owner(dice), group(dice)],
        5..7 => line!["utimens", path, moment(dice), moment(dice)],
        7..9 => line!["truncate", pool.any(dice), dice.below(80_000)],
        9..13 => {
            let (name, value) = xattr(dice);
            line![
                "setxattr",
                path,
                name,
                value,
                dice.pick(&["0", "0", "0", "1", "2"])
            ]
        }
        _ => line!["rmxattr", path, xattr(dice).0],
    }
}

fn moment(dice: &mut Dice) -> String {
    match dice.below(4) {
        0 => "now".into(),
        1 => "omit".into(),
        _ => format!(
            "{}.{:09}",
            1_100_000_000 + dice.below(1_000_000),
            dice.below(1_000_000_000)
        ),
    }
}

fn questions(dice: &mut Dice, pool: &Pool) -> Line {
    match dice.below(16) {
        0..3 => line!["stat", pool.any(dice)],
        3 => line!["statf", pool.any(dice)],
        4 => line!["readlink", pool.any(dice)],
        5..7 => line!["access", pool.any(dice), dice.below(8)],
        7..9 => line!["ls", pool.dir(dice)],
        9 => line!["seekdir", pool.dir(dice), dice.below(9)],
        10 => line!["getxattr", pool.any(dice), xattr(dice).0],
        11 => line!["listxattr", pool.any(dice)],
        12..15 => line!["cat", pool.any(dice)],
        _ => line!["compare"],
    }
}

fn open(dice: &mut Dice, pool: &Pool) -> Line {
    let slot = dice.below(SLOTS);
    let mut flags = dice.pick(&["r", "r", "w", "rw", "rw", "rw"]).to_owned();
    if dice.percent(20) {
        let more = dice.pick(&[
            "trunc",
            "append",
            "nofollow",
            "directory",
            "path",
            "direct",
            "sync",
            "noatime",
            "dsync",
            "append",
        ]);
        flags = format!("{flags}|{more}");
    }
    let path = if dice.percent(30) {
        flags += "|creat";
        if dice.percent(30) {
            flags += "|excl";
        }
        pool.fresh(dice)
    } else if dice.percent(20) {
        flags = "r".into();
        pool.dir(dice)
    } else {
        pool.any(dice)
    };
    line!["open", slot, path, flags, mode(dice, false)]
}

/// Something with an open file.
fn on_slot(dice: &mut Dice, pool: &Pool, place: &Place) -> Line {
    let open: Vec<usize> = (0..SLOTS).filter(|n| place.slots[*n].is_some()).collect();
    if open.is_empty() {
        return line!["open", dice.below(SLOTS), pool.file(dice), "rw", "644"];
    }
    let slot = open[dice.below(open.len())];
    let other = open[dice.below(open.len())];
    let offset = if dice.percent(70) {
        dice.below(9000)
    } else {
        dice.below(200_000)
    };
    let len = if dice.percent(80) {
        dice.below(5000)
    } else {
        dice.below(40_000)
    };
    match dice.below(52) {
        0..5 => line!["pread", slot, offset, len],
        5..11 => line!["pwrite", slot, offset, len, dice.below(26)],
        11 => line!["read", slot, len],
        12..14 => line!["write", slot, len, dice.below(26)],
        14..16 => line!["ftruncate", slot, offset],
        16..19 => {
            let how = dice.pick(&[
                "plain", "keep", "punch", "zero", "zerokeep", "collapse", "insert",
            ]);
            line!["falloc", slot, how, offset, len + 1]
        }
        19 => line!["fsync", slot],
        20 => line![dice.pick(&["fdatasync", "syncfs"]), slot],
        21 => line!["fchmod", slot, mode(dice, false)],
        22 => line!["fchown", slot, owner(dice), group(dice)],
        23 => line!["futimens", slot, moment(dice), moment(dice)],
        24..28 => line!["fstat", slot],
        28..30 => line![
            "seek",
            slot,
            offset,
            dice.pick(&["set", "cur", "end", "data", "hole"])
        ],
        30 => line!["flock", slot, dice.pick(&["sh", "ex", "un"])],
        31 => line!["lock", slot, dice.pick(&["r", "w", "u"]), offset, len],
        32 => line!["getlock", slot, dice.pick(&["r", "w"]), offset, len],
        33..36 => line!["copyrange", slot, dice.below(3000), other, offset, len],
        36 => line!["sendfile", slot, dice.below(3000), other, len],
        37 => line!["fls", slot],
        38 => {
            let (name, value) = xattr(dice);
            line!["fsetxattr", slot, name, value, "0"]
        }
        39 => line!["flistxattr", slot],
        40 => line!["frmxattr", slot, xattr(dice).0],
        41 => line!["mshared", slot, dice.below(5000), len + 1, dice.below(26)],
        42 => line!["mprivate", slot, dice.below(5000), len + 1, dice.below(26)],
        43 => line!["fcat", slot],
        44 => line!["linkfd", slot, pool.fresh(dice)],
        45 => line![
            "map",
            slot,
            dice.pick(&["shared", "readonly", "private"]),
            "8192"
        ],
        46 => line!["poke", dice.below(4096), dice.below(3000), dice.below(26)],
        47 => line!["peek", dice.below(4096), dice.below(3000)],
        48 => {
            let inside = [format!("@{slot}/").as_bytes(), dice.pick(&NAMES)].concat();
            match dice.below(4) {
                0 => line!["mkdir", inside, "755"],
                1 => line!["put", inside, "0", len, dice.below(26), "644"],
                2 => line!["unlink", inside],
                _ => line!["stat", inside],
            }
        }
        49 => line!["unmap"],
        _ => line!["close", slot],
    }
}
