//! What this host and this user offer: read once, before anything is planned.

use crate::cgroup::detect::{self, Hierarchy};
use crate::error::Explain;
use crate::parse;
use crate::spec::IdMapping;
use crate::step::caps;
use anyhow::Result;
use std::path::Path;

/// Facts that decide how a container is made.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The caller's user id.
    pub uid: u32,
    /// The caller's group id.
    pub gid: u32,
    /// CAP_SYS_ADMIN: namespaces and mounts need no user namespace.
    pub admin: bool,
    /// CAP_SETUID and CAP_SETGID: any id of the own namespace can be mapped.
    pub set_ids: bool,
    /// Subordinate user ids of the caller, as first id and count.
    pub sub_uids: Vec<(u32, u32)>,
    /// Subordinate group ids of the caller.
    pub sub_gids: Vec<(u32, u32)>,
    /// newuidmap(1) and newgidmap(1) are installed.
    pub map_helpers: bool,
    /// The ids that exist in the own user namespace.
    pub own_uids: Vec<IdMapping>,
    /// The group ids that exist there.
    pub own_gids: Vec<IdMapping>,
    /// Cgroup hierarchies; empty unless limits are asked for.
    pub cgroups: Vec<Hierarchy>,
}

impl Facts {
    /// Looks. Cgroups are looked at only when `limits` are asked for.
    pub fn gather(limits: bool) -> Result<Self> {
        use rustix::process::{getgid, getuid};
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        let held = caps::effective();
        let login = login_name(&read("/etc/passwd"), uid);
        let names = |id: u32| {
            let mut names = vec![id.to_string()];
            names.extend(login.clone());
            if id == 0 {
                // What other container programs reserve for their own root.
                names.push("containers".into());
            }
            names
        };
        Ok(Self {
            uid,
            gid,
            admin: held.has("SYS_ADMIN"),
            set_ids: held.has("SETUID") && held.has("SETGID"),
            sub_uids: sub_ids(&read("/etc/subuid"), &names(uid)),
            sub_gids: sub_ids(&read("/etc/subgid"), &names(uid)),
            map_helpers: in_path("newuidmap") && in_path("newgidmap"),
            own_uids: id_map(&required("/proc/self/uid_map")?),
            own_gids: id_map(&required("/proc/self/gid_map")?),
            cgroups: if limits { detect::detect() } else { Vec::new() },
        })
    }
}

fn read(path: &str) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

fn required(path: &str) -> Result<String> {
    std::fs::read_to_string(path).explain(|| format!("reading {path}"))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || Path::new("/usr/bin").join(program).is_file()
}

/// The name of a user id in passwd(5).
fn login_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (parse::id(fields.nth(1)?)? == uid).then(|| name.to_owned())
    })
}

/// Ranges of the first of `names` that has any, subuid(5).
fn sub_ids(file: &str, names: &[String]) -> Vec<(u32, u32)> {
    names
        .iter()
        .map(|name| {
            let ranges = file.lines().filter_map(|line| {
                let mut fields = line.trim().split(':');
                let matches = fields.next()? == name;
                let range = (parse::id(fields.next()?)?, parse::id(fields.next()?)?);
                (matches && range.1 > 0).then_some(range)
            });
            ranges.collect::<Vec<_>>()
        })
        .find(|ranges| !ranges.is_empty())
        .unwrap_or_default()
}

/// /proc/PID/uid_map, user_namespaces(7).
fn id_map(text: &str) -> Vec<IdMapping> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>());
            let mut next = || numbers.next()?.ok();
            Some(IdMapping {
                inside: next()?,
                outside: next()?,
                count: next()?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_by_number_then_name() {
        let file = "alice:100000:65536\n# x\n1001:300000:10\nalice:200000:5\nbad:x:y\n";
        let names = |list: &[&str]| {
            list.iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(sub_ids(file, &names(&["1001", "alice"])), [(300_000, 10)]);
        assert_eq!(
            sub_ids(file, &names(&["7", "alice"])),
            [(100_000, 65_536), (200_000, 5)]
        );
        assert!(sub_ids(file, &names(&["7", "bad"])).is_empty());
    }

    #[test]
    fn maps_and_logins() {
        let map = id_map("         0          0 4294967295\n");
        assert_eq!(
            map,
            [IdMapping {
                inside: 0,
                outside: 0,
                count: 4_294_967_295
            }]
        );
        assert_eq!(
            login_name("root:x:0:0::/:\nu:x:1001:1::/:\n", 1001),
            Some("u".into())
        );
    }
}
