//! Users and groups of the container, read from its own /etc/passwd and /etc/group.
//!
//! Runs inside the container: no name service of the host is asked, and files that are not small
//! regular ones are not read.

use crate::error::Explain;
use crate::parse;
use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use unionfs::ostext::OsText;

/// Larger files are refused.
const MAX_SIZE: u64 = 4 << 20;

/// Who a command runs as.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: OsString,
}

/// Looks `USER[:GROUP]` up; root when none is given.
pub fn resolve(user: Option<&OsText>) -> Result<Identity> {
    let text = match user {
        Some(user) => user.to_str().context("--user: not UTF-8")?,
        None => "0",
    };
    find(text, &read("/etc/passwd")?, || read("/etc/group"))
}

/// Is this the form of a user or group name? useradd(8)
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 256
        && text.bytes().enumerate().all(|(at, byte)| {
            byte.is_ascii_alphanumeric() || byte == b'_' || (at > 0 && b".-$".contains(&byte))
        })
}

fn find(text: &str, passwd: &[u8], group: impl FnOnce() -> Result<Vec<u8>>) -> Result<Identity> {
    let (user, asked_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let entry = match parse::id(user) {
        Some(uid) => entries(passwd).find(|fields| number(fields, 2) == Some(uid)),
        None => entries(passwd).find(|fields| fields[0] == user.as_bytes()),
    };
    let uid = match (parse::id(user), &entry) {
        (Some(uid), _) => uid,
        (None, Some(fields)) => number(fields, 2).context("--user: damaged /etc/passwd")?,
        (None, None) => bail!("--user {user}: no such user in the container's /etc/passwd"),
    };
    let home = entry
        .as_ref()
        .and_then(|fields| fields.get(5))
        .filter(|home| !home.is_empty());
    let home = OsString::from_vec(home.unwrap_or(&&b"/"[..]).to_vec());
    if asked_group.is_none() && entry.is_none() {
        return Ok(Identity {
            uid,
            gid: 0,
            groups: Vec::new(),
            home,
        });
    }
    // Root without a group asked for needs no look into /etc/group: its groups change nothing.
    if text == "0" {
        return Ok(Identity {
            uid,
            gid: 0,
            groups: Vec::new(),
            home,
        });
    }
    let group = group()?;
    let gid = match asked_group {
        None => entry
            .as_ref()
            .and_then(|fields| number(fields, 3))
            .unwrap_or(0),
        Some(name) => match parse::id(name) {
            Some(gid) => gid,
            None => entries(&group)
                .find(|fields| fields[0] == name.as_bytes())
                .and_then(|fields| number(&fields, 2))
                .with_context(|| {
                    format!("--user {text}: no group {name} in the container's /etc/group")
                })?,
        },
    };
    let login = entry.as_ref().map(|fields| fields[0].to_vec());
    // An explicit group replaces the memberships, as in other container programs.
    let groups = match (asked_group, login) {
        (None, Some(login)) => memberships(&group, &login),
        _ => Vec::new(),
    };
    Ok(Identity {
        uid,
        gid,
        groups,
        home,
    })
}

fn memberships(group: &[u8], login: &[u8]) -> Vec<u32> {
    entries(group)
        .filter(|fields| {
            let members = fields.get(3).copied().unwrap_or_default();
            members
                .split(|byte| *byte == b',')
                .any(|member| member == login)
        })
        .filter_map(|fields| number(&fields, 2))
        .collect()
}

fn entries(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .filter(|fields: &Vec<&[u8]>| fields.len() >= 3)
}

fn number(fields: &[&[u8]], at: usize) -> Option<u32> {
    std::str::from_utf8(fields.get(at)?)
        .ok()
        .and_then(parse::id)
}

/// The content of a small regular file; empty when there is none.
fn read(path: &str) -> Result<Vec<u8>> {
    let what = || format!("reading the container's {path}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(Vec::new()),
        result => result.explain(what)?,
    };
    let stat = rustix::fs::fstat(&fd).explain(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || stat.st_size as u64 > MAX_SIZE
    {
        bail!(
            "{}: not a small regular file: give --user as a number",
            what()
        );
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_SIZE)
        .read_to_end(&mut bytes)
        .explain(what)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:2:d:/sbin:/bin/false\nbroken\n";
    const GROUP: &[u8] = b"root:x:0:\nbin:x:2:\nadm:x:4:daemon,x\ntty:x:5:daemon\n";

    fn found(text: &str) -> Result<Identity> {
        find(text, PASSWD, || Ok(GROUP.to_vec()))
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        }
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(found("0").unwrap(), identity(0, 0, &[], "/root"));
        assert_eq!(found("daemon").unwrap(), identity(1, 2, &[4, 5], "/sbin"));
        assert_eq!(found("1").unwrap(), identity(1, 2, &[4, 5], "/sbin"));
        assert_eq!(found("daemon:tty").unwrap(), identity(1, 5, &[], "/sbin"));
        assert_eq!(found("77").unwrap(), identity(77, 0, &[], "/"));
        assert_eq!(found("77:88").unwrap(), identity(77, 88, &[], "/"));
        assert!(found("nobody").is_err() && found("0:nogroup").is_err());
    }
}
