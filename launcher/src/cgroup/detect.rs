//! Which cgroup hierarchies this process lives in, read from /proc. cgroups(7).
//!
//! Parsing is pure; [`probe`] adds what only the filesystem knows.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use unionfs::sys::procs;

/// Version of a hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per set of controllers.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy, seen from the group this process is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// v1 or v2.
    pub version: Version,
    /// Controllers that can be used from [`Hierarchy::own`] (v2: after [`probe`]).
    pub controllers: Vec<String>,
    /// Directory of the group this process is in.
    pub own: PathBuf,
    /// The group is the root of the hierarchy as mounted.
    pub is_root: bool,
    /// Groups can be made in it (after [`probe`]).
    pub writable: bool,
}

/// Reads the hierarchies of this process.
pub fn detect() -> Vec<Hierarchy> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut found = parse(&mounts, &groups);
    found.iter_mut().for_each(probe);
    found
}

/// Puts /proc/self/mountinfo and /proc/self/cgroup together. A hierarchy whose own group is not
/// visible in its mount is left out.
pub fn parse(mountinfo: &str, cgroups: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some(mount) = CgroupMount::parse(line) else {
            continue;
        };
        let Some(path) = own_path(cgroups, &mount) else {
            continue;
        };
        let Ok(below) = Path::new(path).strip_prefix(&mount.root) else {
            continue;
        };
        if below.components().any(|part| part.as_os_str() == "..") {
            continue;
        }
        let own = mount.point.join(below);
        // A hierarchy may be mounted more than once; later mounts hide nothing of the first.
        if found
            .iter()
            .any(|known| known.version == mount.version && known.controllers == mount.controllers)
        {
            continue;
        }
        found.push(Hierarchy {
            version: mount.version,
            controllers: mount.controllers,
            is_root: below.as_os_str().is_empty(),
            own,
            writable: false,
        });
    }
    found
}

/// Fills in what can be done in the own group.
pub fn probe(hierarchy: &mut Hierarchy) {
    use rustix::fs::{Access, access};
    hierarchy.writable = access(&hierarchy.own, Access::WRITE_OK | Access::EXEC_OK).is_ok();
    if hierarchy.version == Version::V2 {
        let list = std::fs::read_to_string(hierarchy.own.join("cgroup.controllers"));
        hierarchy.controllers = list
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
    }
}

/// The cgroup part of one line of mountinfo, proc_pid_mountinfo(5).
struct CgroupMount {
    version: Version,
    controllers: Vec<String>,
    root: PathBuf,
    point: PathBuf,
}

impl CgroupMount {
    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (unescape(left.next()?), unescape(left.next()?));
        let mut right = right.split(' ');
        let version = match right.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        // Super options of v1: `rw`, `ro` and flags beside controller names; `name=` for a
        // hierarchy without a controller.
        const FLAGS: [&str; 6] = [
            "rw",
            "ro",
            "xattr",
            "noprefix",
            "clone_children",
            "release_agent",
        ];
        let options = right.nth(1).unwrap_or_default();
        let controllers = match version {
            Version::V2 => Vec::new(),
            Version::V1 => options
                .split(',')
                .filter(|word| {
                    !FLAGS
                        .iter()
                        .any(|flag| word.split('=').next() == Some(flag))
                })
                .map(str::to_owned)
                .collect(),
        };
        Some(Self {
            version,
            controllers,
            root,
            point,
        })
    }
}

/// The path in /proc/self/cgroup of the hierarchy behind a mount.
fn own_path<'a>(cgroups: &'a str, mount: &CgroupMount) -> Option<&'a str> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, list, path) = (fields.next()?, fields.next()?, fields.next()?);
        let same = match mount.version {
            Version::V2 => id == "0" && list.is_empty(),
            Version::V1 => {
                !list.is_empty()
                    && list
                        .split(',')
                        .all(|name| mount.controllers.iter().any(|c| c == name))
            }
        };
        same.then_some(path)
    })
}

/// Undoes the octal escapes of mountinfo (`\040`).
fn unescape(text: &str) -> PathBuf {
    OsString::from_vec(procs::unescape(text.as_bytes())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID_MOUNTS: &str = "\
30 20 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 20 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 20 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 20 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 20 8:1 / / rw - ext4 /dev/vda rw
35 20 0:27 / /mnt/with\\040space rw - cgroup cgroup rw,memory";
    const HYBRID_GROUPS: &str = "9:name=systemd:/\n4:memory:/a/b\n1:cpu:/\n0::/";

    #[test]
    fn hybrid_hosts() {
        let found = parse(HYBRID_MOUNTS, HYBRID_GROUPS);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/cpu"));
        assert!(found[0].is_root);
        assert_eq!(found[1].own, Path::new("/sys/fs/cgroup/memory/a/b"));
        assert!(!found[1].is_root);
        assert_eq!(found[2].controllers, ["name=systemd"]);
        assert_eq!(found[3].version, Version::V2);
    }

    #[test]
    fn mounts_of_a_part_of_the_hierarchy() {
        let mounts = "31 20 0:27 /ctr /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct";
        let found = parse(mounts, "3:cpu,cpuacct:/ctr/inner\n");
        assert_eq!(found[0].own, Path::new("/sys/fs/cgroup/cpu,cpuacct/inner"));
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert!(parse(mounts, "3:cpu,cpuacct:/elsewhere\n").is_empty());
        assert!(parse(mounts, "3:cpu,cpuacct:/../up\n").is_empty());
    }

    #[test]
    fn escapes_in_mount_points() {
        assert_eq!(
            unescape("/mnt/with\\040space"),
            Path::new("/mnt/with space")
        );
        assert_eq!(unescape("/a\\"), Path::new("/a\\"));
    }
}
