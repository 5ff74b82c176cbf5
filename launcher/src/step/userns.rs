//! Ids in the user namespace: who a process becomes in it, and how its maps are written.

use crate::error::Explain;
use crate::plan::{MapMethod, Maps};
use crate::spec::IdMapping;
use crate::sync::{Channel, Go};
use crate::sys::{self, Cloned};
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::fmt::Write;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

/// Becomes user and group 0 of the namespace, with no supplementary groups where that is allowed.
pub fn become_root() -> Result<()> {
    let what = || "becoming root of the user namespace".to_owned();
    match rustix::thread::set_thread_groups(&[]) {
        // setgroups is denied along with a single-id map: the caller's groups remain, unmapped.
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno).explain(what),
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).explain(what)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).explain(what)
}

/// Writes the id maps of process `pid`'s new user namespace.
pub fn write_maps(pid: i32, maps: &Maps) -> Result<()> {
    match maps.method {
        MapMethod::Helpers => {
            helper("newuidmap", pid, &maps.uids)?;
            helper("newgidmap", pid, &maps.gids)
        }
        MapMethod::Direct { setgroups } => {
            if !setgroups {
                // Else a group that a file denies access to could be dropped (CVE-2018-7169); the
                // kernel demands it of a caller without CAP_SETGID.
                write(pid, "setgroups", "deny")?;
            }
            write(pid, "uid_map", &lines(&maps.uids))?;
            write(pid, "gid_map", &lines(&maps.gids))
        }
    }
}

/// A user namespace with these maps that nothing but the descriptor holds.
pub fn namespace_with(maps: &Maps) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    let holder = match sys::clone_process(libc::CLONE_NEWUSER)
        .explain(|| "making a user namespace".into())?
    {
        Cloned::Parent(child) => child,
        Cloned::Child => {
            drop(ours);
            let _ = theirs.receive::<Go>();
            sys::exit_now(0)
        }
    };
    drop(theirs);
    let path = format!("/proc/{}/ns/user", holder.pid);
    let namespace = write_maps(holder.pid, maps).and_then(|()| {
        rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .explain(|| format!("opening {path}"))
    });
    // The end of the connection ends the holder.
    drop(ours);
    holder.reap();
    namespace
}

fn lines(map: &[IdMapping]) -> String {
    map.iter().fold(String::new(), |mut text, range| {
        let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.count);
        text
    })
}

fn write(pid: i32, file: &str, value: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{file}");
    std::fs::write(&path, value).remedy(
        || format!("writing {file} of the user namespace"),
        |errno| match errno {
            Errno::PERM => "the host forbids it: see `sysctl kernel.apparmor_restrict_unprivileged_userns`, or map ids that are yours",
            Errno::INVAL => "ranges must not overlap",
            _ => "",
        },
    )
}

/// newuidmap(1), newgidmap(1): set-user-ID programs of the host that know /etc/subuid.
fn helper(program: &str, pid: i32, map: &[IdMapping]) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).stdin(Stdio::null());
    for range in map {
        for number in [range.inside, range.outside, range.count] {
            command.arg(number.to_string());
        }
    }
    let output = command
        .output()
        .with_context(|| format!("{program}: install the package uidmap, or use --userns map"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: check /etc/subuid and /etc/subgid",
            text.lines().next().unwrap_or(program)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_lines() {
        let range = |inside, outside, count| IdMapping {
            inside,
            outside,
            count,
        };
        assert_eq!(
            lines(&[range(0, 1000, 1), range(1, 100_000, 65_535)]),
            "0 1000 1\n1 100000 65535\n"
        );
    }
}
