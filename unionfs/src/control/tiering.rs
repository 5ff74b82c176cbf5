//! Tiering from outside of the daemon: of each branch marked `+fhsm` that is fuller than its upper
//! mark, the files that were used longest ago go to the next lower such branch, by mvdown.
//!
//! Source: aufhsm(8), aufs(5) `fhsm`. Nothing is remembered between two passes.

use super::ask::ask_at;
use super::client::Client;
use super::protocol::{Failure, MoveWhich, Request};
use super::query::{Listed, Query};
use super::users::{Way, device_of, users};
use crate::errno::{Errno, Result};
use crate::ostext::OsText;
use crate::shown::ShowPath;
use crate::sys::loc::open_beneath;
use crate::sys::stat::{stat_at, stat_fd};
use crate::sys::walk::{Step, entries, tree};
use crate::types::{Kind, Timestamp};
use crate::whiteout::is_reserved;
use rustc_hash::FxHashSet;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fstatvfs, openat};
use serde_json::Value;
use std::cell::Cell;
use std::collections::BinaryHeap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Files looked at in one go: what is remembered of a branch, however many it holds.
const BATCH: usize = 4096;

/// What st_blocks counts.
const BLOCK: u64 = 512;

/// Percent of a branch's space (or inodes): above the upper mark it is drained, to the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Draining begins above this.
    pub upper: u8,
    /// Draining ends at this or below.
    pub lower: u8,
}

impl Marks {
    /// Both, if they make sense.
    pub fn new(upper: u8, lower: u8) -> Option<Self> {
        (lower < upper && upper <= 100).then_some(Self { upper, lower })
    }

    /// `UPPER:LOWER`
    pub fn parse(text: &str) -> Option<Self> {
        let (upper, lower) = text.split_once(':')?;
        Self::new(upper.parse().ok()?, lower.parse().ok()?)
    }
}

/// A branch that takes part.
#[derive(Debug)]
pub struct Tier {
    /// Its directory, as the mount tells it.
    pub path: PathBuf,
    /// When it is drained.
    pub marks: Marks,
    dir: OwnedFd,
}

/// The branches of a mount that take part, topmost first.
///
/// # Errors
/// No union there; fewer than two such branches; one that cannot be opened.
pub fn tiers(
    mountpoint: &Path,
    marks: impl Fn(&Path) -> Marks,
) -> std::result::Result<Vec<Tier>, Failure> {
    let listed: Vec<Listed> = ask_at(mountpoint, &Query::List)?;
    let mut found = Vec::new();
    for branch in listed.iter().filter(|b| takes_part(&b.perm)) {
        let path = branch.path.path().to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, &path, flags, Mode::empty())
            .map_err(|errno| Failure::new(errno, format_args!("{}", path.shown())))?;
        let marks = marks(&path);
        found.push(Tier { path, marks, dir });
    }
    if found.len() < 2 {
        return Err(Failure::because(
            Errno::INVAL,
            format_args!(
                "{}: tiering needs two writable branches with +fhsm",
                mountpoint.shown()
            ),
            "`uaufs ctl MOUNTPOINT mod BRANCH=rw+fhsm` marks one",
        ));
    }
    Ok(found)
}

/// By the words of a branch's permission.
fn takes_part(perm: &str) -> bool {
    let mut words = perm.split('+');
    words.next() == Some("rw") && words.any(|word| word == "fhsm")
}

/// How full a branch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    used: u64,
    total: u64,
    files: u64,
    files_total: u64,
}

impl Usage {
    fn of(dir: &OwnedFd) -> Result<Self> {
        let fs = fstatvfs(dir)?;
        let used = fs.f_blocks.saturating_sub(fs.f_bfree);
        let bytes = |blocks: u64| blocks.saturating_mul(fs.f_frsize);
        Ok(Self {
            used: bytes(used),
            // As df(1): what is set aside for root is nobody's.
            total: bytes(used.saturating_add(fs.f_bavail)),
            files: fs.f_files.saturating_sub(fs.f_ffree),
            files_total: fs.f_files,
        })
    }

    fn is_above(&self, mark: u8) -> bool {
        let above =
            |used: u64, total: u64| u128::from(used) * 100 > u128::from(total) * u128::from(mark);
        above(self.used, self.total) || above(self.files, self.files_total)
    }

    /// The fuller of space and inodes, in percent.
    fn percent(&self) -> u8 {
        let part = |used: u64, total: u64| {
            let part = u128::from(used) * 100 / u128::from(total.max(1));
            u8::try_from(part).unwrap_or(100).min(100)
        };
        part(self.used, self.total).max(part(self.files, self.files_total))
    }

    /// With one file more.
    fn plus(self, bytes: u64) -> Self {
        Self {
            used: self.used.saturating_add(bytes),
            files: self.files.saturating_add(1),
            ..self
        }
    }

    fn minus(self, bytes: u64) -> Self {
        Self {
            used: self.used.saturating_sub(bytes),
            files: self.files.saturating_sub(1),
            ..self
        }
    }
}

/// A file that may be moved. The order is that of moving.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cold {
    used: Timestamp,
    changed: Timestamp,
    path: Vec<u8>,
    bytes: u64,
    nlink: u32,
}

/// The regular files of a branch that were used longest ago: `most` of them after `last`, in order.
fn coldest(dir: &OwnedFd, most: usize, last: Option<&Cold>) -> Result<Vec<Cold>> {
    let mut found: BinaryHeap<Cold> = BinaryHeap::new();
    tree(dir, (), |step, ()| {
        let Step::Dir(here) = step else {
            return Ok(Vec::new());
        };
        let mut dirs = Vec::new();
        for (name, kind) in entries(here.dir)? {
            match kind {
                _ if is_reserved(&name) => {}
                Kind::Dir => dirs.push((name, ())),
                Kind::File => {
                    let stat = match stat_at(here.dir, &name) {
                        Ok(stat) => stat,
                        Err(Errno::NOENT) => continue,
                        Err(err) => return Err(err),
                    };
                    let cold = Cold {
                        used: stat.atime,
                        changed: stat.mtime,
                        path: here.join(&name),
                        bytes: stat.blocks.saturating_mul(BLOCK),
                        nlink: stat.nlink,
                    };
                    if last.is_none_or(|last| cold > *last) {
                        found.push(cold);
                    }
                    if found.len() > most {
                        found.pop();
                    }
                }
                _ => {}
            }
        }
        Ok::<_, Errno>(dirs)
    })?;
    Ok(found.into_sorted_vec())
}

/// What is told of a pass.
#[derive(Debug)]
pub enum Told<'a> {
    /// A file was moved (or would be).
    Moved {
        /// From the root of the mount.
        path: &'a [u8],
        /// The branch it was on.
        from: &'a Path,
        /// The branch it is on.
        to: &'a Path,
        /// Bytes of its data.
        bytes: u64,
    },
    /// A file stays.
    Left {
        /// From the root of the mount.
        path: &'a [u8],
        /// Why.
        reason: &'a str,
    },
    /// All that there was to do with a branch that was above its mark.
    Drained {
        /// The branch.
        branch: &'a Path,
        /// What was done.
        count: Count,
    },
}

/// What was done with a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Percent used before.
    pub before: u8,
    /// Percent used after.
    pub after: u8,
    /// Files moved.
    pub moved: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Files in use, which stay.
    pub busy: u64,
    /// Files of several names, which stay.
    pub hard_linked: u64,
    /// Others that stay.
    pub left: u64,
}

/// One pass over the branches of a mount.
pub struct Pass<'a> {
    /// Where the union is mounted.
    pub mountpoint: &'a Path,
    /// The branches, see [`tiers`].
    pub tiers: &'a [Tier],
    /// Nothing is moved.
    pub dry_run: bool,
    /// Is it to end early?
    pub stop: &'a dyn Fn() -> bool,
}

impl Pass<'_> {
    /// Drains what is above its mark, the topmost branch first, but never the last one.
    ///
    /// # Errors
    /// The mount, its daemon or a branch cannot be reached.
    pub fn run(&self, tell: &mut dyn FnMut(Told<'_>)) -> std::result::Result<(), Failure> {
        for at in 0..self.tiers.len().saturating_sub(1) {
            let tier = &self.tiers[at];
            let lost = |errno| Failure::new(errno, tier.path.shown());
            let usage = Usage::of(&tier.dir).map_err(lost)?;
            if usage.is_above(tier.marks.upper) && !(self.stop)() {
                let count = self.drain(at, usage, tell)?;
                let branch = &tier.path;
                tell(Told::Drained { branch, count });
            }
        }
        Ok(())
    }

    fn drain(
        &self,
        at: usize,
        before: Usage,
        tell: &mut dyn FnMut(Told<'_>),
    ) -> std::result::Result<Count, Failure> {
        let tier = &self.tiers[at];
        let lost = |errno| Failure::new(errno, tier.path.shown());
        let usage = Cell::new(before);
        let mut count = Count {
            before: before.percent(),
            ..Count::default()
        };
        let mut last: Option<Cold> = None;
        let enough = || !usage.get().is_above(tier.marks.lower) || (self.stop)();
        while !enough() {
            let files = coldest(&tier.dir, BATCH, last.as_ref()).map_err(lost)?;
            let open = self.open_files()?;
            // The daemon cuts off who is silent for long: only now.
            let client = Client::connect(self.mountpoint)?;
            for file in &files {
                if enough() {
                    break;
                }
                let path = &file.path;
                match self.move_one(at, file, &open, &client)? {
                    Ok((to, bytes)) => {
                        count.moved += 1;
                        count.bytes += bytes;
                        usage.set(match self.dry_run {
                            true => usage.get().minus(file.bytes),
                            false => Usage::of(&tier.dir).map_err(lost)?,
                        });
                        let from = &tier.path;
                        tell(Told::Moved {
                            path,
                            from,
                            to,
                            bytes,
                        });
                    }
                    Err(Stays::Busy) => count.busy += 1,
                    Err(Stays::HardLinked) => count.hard_linked += 1,
                    Err(Stays::Other(reason)) => {
                        count.left += 1;
                        let reason = &reason;
                        tell(Told::Left { path, reason });
                    }
                }
            }
            if files.len() < BATCH {
                break;
            }
            last = files.into_iter().next_back();
        }
        count.after = usage.get().percent();
        Ok(count)
    }

    /// Inode numbers of what any process has open or mapped.
    fn open_files(&self) -> std::result::Result<FxHashSet<u64>, Failure> {
        let device = device_of(self.mountpoint)
            .map_err(|errno| Failure::new(errno, self.mountpoint.shown()))?;
        let all = users(device, &|_| true, &|_| false);
        let in_use = all.iter().filter(|u| matches!(u.way, Way::Open | Way::Map));
        Ok(in_use.map(|user| user.ino).collect())
    }

    /// Where the file went, and its bytes; or why it stays.
    fn move_one(
        &self,
        at: usize,
        file: &Cold,
        open: &FxHashSet<u64>,
        client: &Client,
    ) -> std::result::Result<std::result::Result<(&Path, u64), Stays>, Failure> {
        if file.nlink > 1 {
            return Ok(Err(Stays::HardLinked));
        }
        let root = super::ask::open(self.mountpoint)?;
        let (dir, name) = split(&file.path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Held open until it is done: its number is valid so long.
        let parent = match open_beneath(&root, dir, flags) {
            Ok(parent) => parent,
            Err(errno) => return Ok(Err(Stays::of(errno))),
        };
        let number = match stat_fd(&parent).and_then(|p| Ok((p.ino, stat_at(&parent, name)?))) {
            Ok((_, stat)) if open.contains(&stat.ino) => return Ok(Err(Stays::Busy)),
            Ok((number, _)) => number,
            Err(errno) => return Ok(Err(Stays::of(errno))),
        };
        let fits = |tier: &&Tier| {
            let usage = Usage::of(&tier.dir);
            usage.is_ok_and(|u| !u.plus(file.bytes).is_above(tier.marks.upper))
        };
        let Some(to) = self.tiers[at + 1..].iter().find(fits) else {
            return Ok(Err(Stays::of(Errno::NOSPC)));
        };
        let which = MoveWhich {
            parent: number,
            name: OsText(OsStr::from_bytes(name).to_owned()),
            from: true,
            to: true,
            own_copy: true,
            dry_run: self.dry_run,
            ..MoveWhich::default()
        };
        let attached = [self.tiers[at].dir.as_fd(), to.dir.as_fd()];
        match client.request(&Request::MoveDown(which), &attached, &mut |_| {}) {
            Ok(result) => {
                let bytes = result.get("bytes").and_then(Value::as_u64);
                Ok(Ok((&to.path, bytes.unwrap_or(0))))
            }
            Err(failure) if failure.errno == Errno::BUSY.raw_os_error() => Ok(Err(Stays::Busy)),
            Err(failure) if failure.errno == Errno::MLINK.raw_os_error() => {
                Ok(Err(Stays::HardLinked))
            }
            Err(failure) if is_lost(&failure) => Err(failure),
            Err(failure) => Ok(Err(Stays::Other(failure.text))),
        }
    }
}

/// Why a file stays.
enum Stays {
    Busy,
    HardLinked,
    Other(String),
}

impl Stays {
    fn of(errno: Errno) -> Self {
        let what = match errno {
            Errno::NOSPC => "no branch below has room",
            _ => "cannot be reached in the mount",
        };
        Self::Other(Failure::new(errno, what).text)
    }
}

/// The daemon itself cannot be reached: nothing else can be moved either.
fn is_lost(failure: &Failure) -> bool {
    [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::PIPE,
        Errno::NOTCONN,
    ]
    .iter()
    .any(|errno| failure.errno == errno.raw_os_error())
}

/// Directory and name; the root is `.`.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b".", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, FileTimes};
    use std::time::{Duration, SystemTime};

    #[test]
    fn marks_make_sense_or_are_refused() {
        let marks = Marks {
            upper: 80,
            lower: 60,
        };
        assert_eq!(Marks::parse("80:60"), Some(marks));
        for text in ["", "80", "60:80", "80:80", "101:5", "80:-1", "80:60:1"] {
            assert_eq!(Marks::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_fuller_of_space_and_inodes_counts() {
        let usage = Usage {
            used: 50,
            total: 100,
            files: 9,
            files_total: 10,
        };
        assert_eq!(usage.percent(), 90);
        assert!(usage.is_above(89) && !usage.is_above(90));
        // btrfs counts no inodes.
        let usage = Usage {
            files_total: 0,
            files: 0,
            ..usage
        };
        assert!(usage.is_above(49) && !usage.is_above(50));
        assert!(usage.plus(1).is_above(50) && !usage.minus(1).is_above(49));
    }

    #[test]
    fn files_come_in_the_order_of_use_in_batches_and_marks_do_not() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("d")).unwrap();
        fs::create_dir(tmp.path().join(".wh..wh.uaufs")).unwrap();
        for (name, age) in [("d/b", 3), ("a", 2), ("d/c", 1), (".wh.x", 9)] {
            let file = File::create(tmp.path().join(name)).unwrap();
            let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age);
            let times = FileTimes::new().set_accessed(then).set_modified(then);
            file.set_times(times).unwrap();
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = openat(CWD, tmp.path(), flags, Mode::empty()).unwrap();
        let first = coldest(&dir, 2, None).unwrap();
        let paths = |all: &[Cold]| all.iter().map(|c| c.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&first), [b"d/b".to_vec(), b"a".to_vec()]);
        let rest = coldest(&dir, 2, first.last()).unwrap();
        assert_eq!(paths(&rest), [b"d/c".to_vec()]);
        assert_eq!(split(b"d/c"), (&b"d"[..], &b"c"[..]));
    }

    #[test]
    fn only_writable_branches_take_part() {
        assert!(takes_part("rw+fhsm") && takes_part("rw+coo_reg+fhsm+nolwh"));
        assert!(!takes_part("rw") && !takes_part("ro+fhsm") && !takes_part("rw+fhsmx"));
    }
}
