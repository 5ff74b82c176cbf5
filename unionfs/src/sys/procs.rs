//! What /proc tells of a process that asks for something: proc(5).

use crate::errno::{Errno, Result};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use std::fs::File;
use std::io::Read as _;
use std::sync::OnceLock;

/// CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: either lets a process search and read any directory.
const SEARCH_ANY: u64 = 1 << 1 | 1 << 2;
/// CAP_FSETID: writes and changes of group leave set-id bits.
const KEEP_SET_ID: u64 = 1 << 4;

/// Credentials that a FUSE request does not carry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Supplementary groups, in ids of this process's user namespace.
    pub groups: Vec<u32>,
    /// Effective capabilities over files of this process's user namespace, as bits.
    pub capabilities: u64,
}

/// A descriptor of /proc, opened once before any mount is served, as [`super::loc::proc_self_fd`].
pub fn proc_dir() -> Result<BorrowedFd<'static>> {
    static DIR: OnceLock<std::result::Result<OwnedFd, Errno>> = OnceLock::new();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match DIR.get_or_init(|| openat(CWD, "/proc", flags, Mode::empty())) {
        Ok(fd) => Ok(fd.as_fd()),
        Err(err) => Err(*err),
    }
}

/// The credentials of a process or thread. `None` = it cannot be seen from here (another pid
/// namespace, or gone).
pub fn credentials(pid: u32) -> Option<Credentials> {
    let mut found = parse(&String::from_utf8_lossy(&read(pid, "status")?));
    // Capabilities of another user namespace are none over files of this one.
    if found.capabilities & (SEARCH_ANY | KEEP_SET_ID) != 0 && !shares_user_namespace(pid) {
        found.capabilities = 0;
    }
    Some(found)
}

/// Is anything mounted, where this process sees it, on something called `name` of a FUSE mount? True
/// if that cannot be found out.
pub fn is_mounted_on(pid: u32, name: &[u8]) -> bool {
    let Some(table) = read(pid, "mountinfo") else {
        return true;
    };
    let mut wanted = vec![b'/'];
    for &byte in name {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => wanted.extend(format!("\\{byte:03o}").bytes()),
            _ => wanted.push(byte),
        }
    }
    names_mount(&table, &wanted)
}

/// Does a mountinfo table have a mount point that ends in `wanted`, on a FUSE mount or one that the
/// table does not show?
fn names_mount(table: &[u8], wanted: &[u8]) -> bool {
    let lines = || table.split(|b| *b == b'\n');
    let field = |line: &'_ [u8], at| line.split(|b| *b == b' ').nth(at).map(<[u8]>::to_vec);
    let is_fuse = |id: &[u8]| {
        let parent = lines().find(|line| field(line, 0).as_deref() == Some(id));
        parent.is_none_or(|line| {
            let mut rest = line.split(|b| *b == b' ').skip_while(|f| *f != b"-");
            rest.nth(1).is_none_or(|kind| kind.starts_with(b"fuse"))
        })
    };
    lines().any(|line| {
        field(line, 4).is_some_and(|place| place.ends_with(wanted))
            && field(line, 1).is_none_or(|parent| is_fuse(&parent))
    })
}

/// Undoes the escapes of mountinfo (`\040`): proc_pid_mountinfo(5).
pub fn unescape(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = raw;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let byte = code.and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn read(pid: u32, what: &str) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(
        proc_dir().ok()?,
        format!("{pid}/{what}"),
        flags,
        Mode::empty(),
    )
    .ok()?;
    let mut text = Vec::new();
    File::from(file).read_to_end(&mut text).ok()?;
    Some(text)
}

impl Credentials {
    /// May it search and read every directory?
    pub fn searches_all(&self) -> bool {
        self.capabilities & SEARCH_ANY != 0
    }

    /// May it leave set-id bits on what it changes?
    pub fn keeps_set_id(&self) -> bool {
        self.capabilities & KEEP_SET_ID != 0
    }
}

fn shares_user_namespace(pid: u32) -> bool {
    let namespace = |who: &str| readlinkat(proc_dir()?, format!("{who}/ns/user"), Vec::new());
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(theirs), Ok(ours)) => theirs == ours,
        _ => false,
    }
}

fn parse(status: &str) -> Credentials {
    let mut found = Credentials::default();
    for line in status.lines() {
        if let Some(groups) = line.strip_prefix("Groups:") {
            let numbers = groups.split_whitespace();
            found.groups = numbers.filter_map(|g| g.parse().ok()).collect();
        } else if let Some(bits) = line.strip_prefix("CapEff:") {
            found.capabilities = u64::from_str_radix(bits.trim(), 16).unwrap_or(0);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_of_any_bytes_are_read() {
        assert_eq!(unescape(br"/a\040b\134c\012"), b"/a b\\c\n");
        assert_eq!(unescape(br"/a\"), br"/a\");
    }

    #[test]
    fn groups_and_capabilities_are_found() {
        let status = "Name:\tGroups: 7\nGroups:\t4 24 1000 \nCapEff:\t0000000000000004\n";
        let found = parse(status);
        assert_eq!(found.groups, [4, 24, 1000]);
        assert!(found.searches_all());
        assert!(!parse("Groups:\t\nCapEff:\t0000000000000001\n").searches_all());
        assert_eq!(parse(""), Credentials::default());
    }

    #[test]
    fn mounts_on_fuse_are_found_by_their_last_name() {
        let table = b"20 1 8:1 / / rw - ext4 /dev/vda rw\n\
            30 20 0:40 / /mnt/u rw shared:1 - fuse.uaufs uaufs rw\n\
            31 30 8:1 /x /mnt/u/d/x rw - ext4 /dev/vda rw\n\
            32 7 8:1 /y /elsewhere/y rw - ext4 /dev/vda rw\n";
        for (name, found) in [("/x", true), ("/u", false), ("/y", true), ("/d", false)] {
            assert_eq!(names_mount(table, name.as_bytes()), found, "{name}");
        }
        assert!(is_mounted_on(u32::MAX, b"x"));
        assert!(!is_mounted_on(std::process::id(), b"no such mount"));
    }

    #[test]
    fn a_process_sees_its_own_credentials() {
        let groups = rustix::process::getgroups().unwrap();
        let own = credentials(std::process::id()).unwrap();
        assert_eq!(own.groups.len(), groups.len());
        assert_eq!(credentials(u32::MAX), None);
    }
}
