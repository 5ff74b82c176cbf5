//! Which processes use files of a mount: found in /proc, without a request to the mount.
//!
//! A process that may not be looked into (another user's, for a user's daemon) is not found.

use crate::errno::Result;
use crate::shown::ShowPath;
use crate::sys::procs;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, StatxFlags, openat, statx};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A device, as stat(2) tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

/// How a process uses something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It has it open.
    Open,
    /// It is its current directory.
    Cwd,
    /// It is its root directory.
    Root,
    /// It has mapped it, perhaps to run it.
    Map,
    /// It watches it (inotify(7)).
    Watch,
    /// Something is mounted there, as this process sees it.
    Mount,
}

impl Way {
    /// As JSON calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Cwd => "cwd",
            Self::Root => "root",
            Self::Map => "map",
            Self::Watch => "watch",
            Self::Mount => "mount",
        }
    }
}

/// One use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The process.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// How.
    pub way: Way,
    /// Inode number in the mount; 0 = not known.
    pub ino: u64,
    /// As the process sees it; empty where that cannot be told.
    pub path: PathBuf,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.shown();
        write!(f, "pid {} ({}) ", self.pid, self.name)?;
        match self.way {
            Way::Open => write!(f, "has {path} open"),
            Way::Cwd => write!(f, "is in {path}"),
            Way::Root => write!(f, "has its root at {path}"),
            Way::Map => write!(f, "has mapped {path}"),
            Way::Watch => write!(f, "watches a file or directory"),
            Way::Mount => write!(f, "has something mounted at {path}"),
        }
    }
}

/// Never asks the filesystem: a daemon may ask about its own mount.
const QUIET: AtFlags = AtFlags::STATX_DONT_SYNC.union(AtFlags::NO_AUTOMOUNT);

/// The device of the mount at a path.
///
/// # Errors
/// Those of statx(2).
pub fn device_of(path: &Path) -> Result<Device> {
    let stat = statx(CWD, path, QUIET, StatxFlags::INO)?;
    Ok(device_in(&stat))
}

/// The device of an open file.
///
/// # Errors
/// Those of statx(2).
pub fn device_of_fd(fd: impl rustix::fd::AsFd) -> Result<Device> {
    let stat = statx(fd, c"", QUIET | AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    Ok(device_in(&stat))
}

fn device_in(stat: &rustix::fs::Statx) -> Device {
    Device {
        major: stat.stx_dev_major,
        minor: stat.stx_dev_minor,
    }
}

/// Mounts of one mount namespace that matter.
#[derive(Debug, Default)]
struct Mounts {
    /// Ids of the mounts of the device.
    ids: FxHashSet<u64>,
    /// What is mounted on them, as paths from the root of the union.
    on_top: Vec<PathBuf>,
}

/// Every use of `device` by other processes of which `wanted` says so, by inode number; for
/// something mounted, by path from the root of the union.
pub fn users(
    device: Device,
    wanted: &dyn Fn(u64) -> bool,
    covered: &dyn Fn(&Path) -> bool,
) -> Vec<User> {
    let mut namespaces: FxHashMap<OsString, Mounts> = FxHashMap::default();
    let mut found = Vec::new();
    let own = std::process::id();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let process = Process {
            pid,
            dir: entry.path(),
            device,
        };
        let Ok(namespace) = fs::read_link(process.dir.join("ns/mnt")) else {
            continue;
        };
        let mut new = None;
        let mounts = namespaces
            .entry(namespace.into_os_string())
            .or_insert_with(|| {
                new = Some(());
                process.mounts()
            });
        if mounts.ids.is_empty() {
            continue;
        }
        if new.is_some() {
            let here = mounts.on_top.iter().filter(|path| covered(path));
            found.extend(here.map(|path| process.user(Way::Mount, 0, path.clone())));
        }
        process.find(mounts, wanted, &mut found);
    }
    found
}

struct Process {
    pid: u32,
    dir: PathBuf,
    device: Device,
}

impl Process {
    fn user(&self, way: Way, ino: u64, path: PathBuf) -> User {
        let name = fs::read(self.dir.join("comm")).unwrap_or_default();
        User {
            pid: self.pid,
            name: crate::shown::Shown(name.trim_ascii_end()).to_string(),
            way,
            ino,
            path,
        }
    }

    fn mounts(&self) -> Mounts {
        let table = fs::read(self.dir.join("mountinfo")).unwrap_or_default();
        parse_mounts(&table, self.device)
    }

    fn find(&self, mounts: &Mounts, wanted: &dyn Fn(u64) -> bool, found: &mut Vec<User>) {
        for (way, link) in [(Way::Cwd, "cwd"), (Way::Root, "root")] {
            let link = self.dir.join(link);
            if let Some(ino) = self.ino_behind(&link).filter(|ino| wanted(*ino)) {
                found.push(self.user(way, ino, fs::read_link(link).unwrap_or_default()));
            }
        }
        let mut seen = FxHashSet::default();
        for (ino, path) in self.maps() {
            if wanted(ino) && seen.insert(ino) {
                found.push(self.user(Way::Map, ino, path));
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(fds) = openat(CWD, self.dir.join("fdinfo"), flags, Mode::empty()) else {
            return;
        };
        for entry in Dir::read_from(&fds).into_iter().flatten().flatten() {
            let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
            let info = fs::read(self.dir.join("fdinfo").join(name)).unwrap_or_default();
            let info = parse_fdinfo(&info, self.device);
            let link = self.dir.join("fd").join(name);
            if info.mount.is_some_and(|id| mounts.ids.contains(&id))
                && let Some(ino) = info.ino.or_else(|| self.ino_behind(&link))
                && wanted(ino)
            {
                found.push(self.user(Way::Open, ino, fs::read_link(link).unwrap_or_default()));
            }
            for ino in info.watched.into_iter().filter(|ino| wanted(*ino)) {
                found.push(self.user(Way::Watch, ino, PathBuf::new()));
            }
        }
    }

    /// The inode number behind a link of /proc, if it is on the device.
    fn ino_behind(&self, link: &Path) -> Option<u64> {
        let stat = statx(CWD, link, QUIET, StatxFlags::INO).ok()?;
        (device_in(&stat) == self.device).then_some(stat.stx_ino)
    }

    fn maps(&self) -> Vec<(u64, PathBuf)> {
        let table = fs::read(self.dir.join("maps")).unwrap_or_default();
        parse_maps(&table, self.device)
    }
}

/// Source: proc_pid_mountinfo(5).
fn parse_mounts(table: &[u8], device: Device) -> Mounts {
    let wanted = format!("{}:{}", device.major, device.minor);
    let mut mounts = Mounts::default();
    let mut points: FxHashMap<u64, Vec<u8>> = FxHashMap::default();
    let lines: Vec<Vec<&[u8]>> = table
        .split(|b| *b == b'\n')
        .map(|line| line.split(|b| *b == b' ').collect())
        .collect();
    for fields in lines.iter().filter(|f| f.len() > 4) {
        if fields[2] == wanted.as_bytes()
            && let Some(id) = number(fields[0], 10)
        {
            mounts.ids.insert(id);
            if fields[3] == b"/" {
                points.insert(id, procs::unescape(fields[4]));
            }
        }
    }
    for fields in lines.iter().filter(|f| f.len() > 4) {
        if let Some(below) = number(fields[1], 10).and_then(|id| points.get(&id))
            && let Some(rest) = procs::unescape(fields[4]).strip_prefix(&below[..])
        {
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            mounts.on_top.push(OsString::from_vec(rest.to_vec()).into());
        }
    }
    mounts
}

#[derive(Debug, Default, PartialEq, Eq)]
struct FdInfo {
    mount: Option<u64>,
    ino: Option<u64>,
    watched: Vec<u64>,
}

/// Source: proc_pid_fdinfo(5).
fn parse_fdinfo(text: &[u8], device: Device) -> FdInfo {
    let mut info = FdInfo::default();
    for line in text.split(|b| *b == b'\n') {
        if let Some(value) = line.strip_prefix(b"mnt_id:") {
            info.mount = number(value.trim_ascii(), 10);
        } else if let Some(value) = line.strip_prefix(b"ino:") {
            info.ino = number(value.trim_ascii(), 10);
        } else if let Some(watch) = line.strip_prefix(b"inotify ") {
            let field = |name: &[u8]| {
                let mut fields = watch.split(|b| *b == b' ');
                fields.find_map(|f| number(f.strip_prefix(name)?, 16))
            };
            // The kernel's own form of a device number: 12 bits major, 20 bits minor.
            let sdev = u64::from(device.major) << 20 | u64::from(device.minor);
            if field(b"sdev:") == Some(sdev) {
                info.watched.extend(field(b"ino:"));
            }
        }
    }
    info
}

/// Source: proc_pid_maps(5).
fn parse_maps(table: &[u8], device: Device) -> Vec<(u64, PathBuf)> {
    let wanted = format!("{:02x}:{:02x}", device.major, device.minor);
    let mut found = Vec::new();
    for line in table.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b' ').filter(|f| !f.is_empty());
        if fields.nth(3) == Some(wanted.as_bytes())
            && let Some(ino) = fields.next().and_then(|f| number(f, 10))
        {
            let path = line.iter().position(|b| *b == b'/').map(|at| &line[at..]);
            let path = OsString::from_vec(path.unwrap_or_default().to_vec());
            found.push((ino, path.into()));
        }
    }
    found
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Device = Device {
        major: 0,
        minor: 0x2a,
    };

    #[test]
    fn mounts_of_the_device_and_what_is_on_them_are_found() {
        let table = b"21 1 8:1 / / rw - ext4 /dev/a rw\n\
            40 21 0:42 / /m\\040n rw - fuse.uaufs x rw\n\
            41 40 0:5 / /m\\040n/d/e rw - proc proc rw\n\
            42 21 0:42 /sub /other rw - fuse.uaufs x rw\n";
        let mounts = parse_mounts(table, DEVICE);
        assert_eq!(mounts.ids, [40, 42].into_iter().collect());
        assert_eq!(mounts.on_top, [PathBuf::from("d/e")]);
    }

    #[test]
    fn uses_are_read_out_of_proc() {
        let info = parse_fdinfo(b"pos:\t0\nflags:\t02\nmnt_id:\t40\nino:\t77\n", DEVICE);
        assert_eq!((info.mount, info.ino), (Some(40), Some(77)));
        let text = b"inotify wd:1 ino:4d sdev:2a mask:fce\ninotify wd:2 ino:4e sdev:801 mask:1\n";
        assert_eq!(parse_fdinfo(text, DEVICE).watched, [0x4d]);
        let maps = b"7f00-7f01 r-xp 00000000 00:2a 77                   /m/a b\n\
            7f01-7f02 rw-p 00000000 00:00 0 \n";
        assert_eq!(parse_maps(maps, DEVICE), [(77, PathBuf::from("/m/a b"))]);
    }

    #[test]
    fn an_open_file_of_another_process_is_found() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(file.reopen().unwrap())
            .spawn()
            .unwrap();
        let ino = file.as_file().metadata().unwrap().ino();
        let device = device_of(file.path()).unwrap();
        let found = users(device, &|n| n == ino, &|_| false);
        child.kill().unwrap();
        child.wait().unwrap();
        let here = found.iter().find(|u| u.pid == child.id());
        assert!(here.is_some_and(|u| u.way == Way::Open), "{found:?}");
    }
}
