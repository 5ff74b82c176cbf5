//! From what is asked and what the host offers to what is done. Pure: no system call.

use crate::cgroup::detect::Version;
use crate::cgroup::plan::{self as cgroup, CgroupPlan};
use crate::host::Facts;
use crate::spec::{IdMapping, Network, Root, Security, Spec, Unmask, Userns};
use crate::step::Step;
use crate::step::caps;
use crate::step::dev::Dev;
use crate::step::payload::{Payload, check_user};
use crate::step::seccomp;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use unionfs::ostext::OsText;

/// Ids in the container that a range must at least cover to be useful: 0 to 65535.
const USUAL_IDS: u32 = 65_536;

/// Hidden from the container, as in other container programs: host details and kernel memory.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable, but the host's settings.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Everything that is done for one container.
#[derive(Clone, Debug)]
pub struct Plan {
    /// User namespace.
    pub userns: UsernsPlan,
    /// Namespaces (CLONE_NEW*) that init is born in, besides a user namespace.
    pub namespaces: i32,
    /// Groups and limits.
    pub cgroup: CgroupPlan,
    /// What init does.
    pub init: InitPlan,
    /// What the user should know.
    pub notices: Vec<String>,
}

/// Which user namespaces there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsernsPlan {
    /// None: ids are the host's.
    Host,
    /// Only the container is in one; the union daemon stays outside and translates ids.
    Inner(Maps),
    /// Daemon and container are in the same one, because the caller can mount nothing outside.
    Outer(Maps),
}

/// The maps of a user namespace and how they are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maps {
    /// uid_map
    pub uids: Vec<IdMapping>,
    /// gid_map
    pub gids: Vec<IdMapping>,
    /// How they are written.
    pub method: MapMethod,
}

/// How id maps are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapMethod {
    /// Into /proc/PID/uid_map.
    Direct {
        /// setgroups(2) stays allowed in the namespace.
        setgroups: bool,
    },
    /// By newuidmap(1) and newgidmap(1).
    Helpers,
}

/// What init is told: the steps in order, then the command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitPlan {
    /// Steps before the command.
    pub steps: Vec<Step>,
    /// The command.
    pub payload: Payload,
}

/// What is known of the caller's terminal and environment when planning.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// Rows and columns of its terminal.
    pub terminal: Option<(u16, u16)>,
    /// `TERM`
    pub term: Option<OsText>,
}

impl Maps {
    /// Is 0 the only id inside?
    pub fn single(&self) -> bool {
        self.uids
            .iter()
            .map(|range| u64::from(range.count))
            .sum::<u64>()
            == 1
    }
}

impl UsernsPlan {
    /// The maps, if there is a namespace.
    pub fn maps(&self) -> Option<&Maps> {
        match self {
            Self::Host => None,
            Self::Inner(maps) | Self::Outer(maps) => Some(maps),
        }
    }
}

impl Plan {
    /// Plans container `id`.
    pub fn new(id: &str, spec: &Spec, facts: &Facts, caller: &Caller) -> Result<Self> {
        if let Some(user) = &spec.user {
            check_user(user)?;
        }
        let userns = userns(&spec.userns, facts)?;
        let mut cgroup = cgroup::plan(id, &spec.limits, &facts.cgroups, spec.best_effort)?;
        if spec.security.nest || spec.security.privileged {
            cgroup.delegate();
        }
        let mut namespaces =
            libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
        if spec.network == Network::None {
            namespaces |= libc::CLONE_NEWNET;
        }
        let hostname = spec.hostname.clone().unwrap_or_else(|| id.to_owned());
        let payload = payload(spec, &hostname, &userns, caller);
        let steps = steps(spec, hostname, &userns, &cgroup, facts, caller);
        let mut notices = cgroup.notices.clone();
        if spec.security.nest && !spec.security.privileged && holds_host_root(&userns, facts) {
            notices.push("--nest: root inside is root of the host, so /proc stays masked, and containers inside share it: give --uidmap 0:100000:65536, or root a range in /etc/subuid and /etc/subgid".into());
        }
        Ok(Self {
            userns,
            namespaces,
            cgroup,
            init: InitPlan { steps, payload },
            notices,
        })
    }
}

fn userns(asked: &Userns, facts: &Facts) -> Result<UsernsPlan> {
    if facts.admin {
        return admin_userns(asked, facts);
    }
    let maps = match asked {
        Userns::Host => bail!("--userns host: needs root (CAP_SYS_ADMIN): use auto"),
        Userns::Map { uids, gids } => Maps {
            uids: uids.clone(),
            gids: gids.clone(),
            method: match own_ids_only(uids, gids, facts) {
                true => MapMethod::Direct { setgroups: false },
                false if facts.set_ids => MapMethod::Direct { setgroups: true },
                false if facts.map_helpers => MapMethod::Helpers,
                false => bail!(
                    "--uidmap: newuidmap and newgidmap are missing: install the package uidmap"
                ),
            },
        },
        // Inside another container: every id that exists here exists in the new one.
        Userns::Auto if facts.set_ids => Maps {
            uids: identity(&facts.own_uids),
            gids: identity(&facts.own_gids),
            method: MapMethod::Direct { setgroups: true },
        },
        Userns::Auto
            if facts.map_helpers && !facts.sub_uids.is_empty() && !facts.sub_gids.is_empty() =>
        {
            Maps {
                uids: own_and_subordinate(facts.uid, &facts.sub_uids),
                gids: own_and_subordinate(facts.gid, &facts.sub_gids),
                method: MapMethod::Helpers,
            }
        }
        Userns::Auto => {
            let only = |outside| {
                vec![IdMapping {
                    inside: 0,
                    outside,
                    count: 1,
                }]
            };
            Maps {
                uids: only(facts.uid),
                gids: only(facts.gid),
                method: MapMethod::Direct { setgroups: false },
            }
        }
    };
    ensure_root_mapped(&maps)?;
    Ok(UsernsPlan::Outer(maps))
}

fn admin_userns(asked: &Userns, facts: &Facts) -> Result<UsernsPlan> {
    let (uids, gids) = match asked {
        Userns::Host => return Ok(UsernsPlan::Host),
        Userns::Map { uids, gids } => (uids.clone(), gids.clone()),
        Userns::Auto => {
            let (uids, gids) = (
                subordinate(0, &facts.sub_uids),
                subordinate(0, &facts.sub_gids),
            );
            let covered = |map: &[IdMapping]| map.iter().map(|r| u64::from(r.count)).sum::<u64>();
            let enough = u64::from(USUAL_IDS);
            if !facts.set_ids || covered(&uids) < enough || covered(&gids) < enough {
                return Ok(UsernsPlan::Host);
            }
            (uids, gids)
        }
    };
    let maps = Maps {
        uids,
        gids,
        method: MapMethod::Direct { setgroups: true },
    };
    ensure_root_mapped(&maps)?;
    Ok(UsernsPlan::Inner(maps))
}

fn ensure_root_mapped(maps: &Maps) -> Result<()> {
    let mapped = |map: &[IdMapping]| map.iter().any(|range| range.inside == 0);
    ensure!(
        mapped(&maps.uids) && mapped(&maps.gids),
        "--uidmap, --gidmap: id 0 of the container must be mapped: begin with 0:HOST:COUNT"
    );
    Ok(())
}

/// May the caller write the maps without help?
fn own_ids_only(uids: &[IdMapping], gids: &[IdMapping], facts: &Facts) -> bool {
    let only = |map: &[IdMapping], id| matches!(map, [one] if one.outside == id && one.count == 1);
    only(uids, facts.uid) && only(gids, facts.gid)
}

fn identity(own: &[IdMapping]) -> Vec<IdMapping> {
    own.iter()
        .map(|range| IdMapping {
            outside: range.inside,
            ..*range
        })
        .collect()
}

/// The caller's id as 0, then its subordinate ranges.
fn own_and_subordinate(id: u32, ranges: &[(u32, u32)]) -> Vec<IdMapping> {
    let mut map = vec![IdMapping {
        inside: 0,
        outside: id,
        count: 1,
    }];
    map.extend(subordinate(1, ranges));
    map
}

/// Subordinate ranges one after the other, from `inside` on.
fn subordinate(mut inside: u32, ranges: &[(u32, u32)]) -> Vec<IdMapping> {
    let mut map = Vec::new();
    for &(outside, count) in ranges {
        let count = count.min(u32::MAX - inside).min(u32::MAX - outside);
        if count > 0 {
            map.push(IdMapping {
                inside,
                outside,
                count,
            });
            inside += count;
        }
    }
    map
}

fn steps(
    spec: &Spec,
    hostname: String,
    userns: &UsernsPlan,
    cgroup: &CgroupPlan,
    facts: &Facts,
    caller: &Caller,
) -> Vec<Step> {
    let Security {
        privileged, nest, ..
    } = spec.security;
    let mut steps = Vec::new();
    if userns.maps().is_some() {
        steps.push(Step::BecomeRoot);
    }
    steps.extend([
        Step::CgroupNamespace,
        Step::PrivateMounts,
        Step::Hostname(hostname),
    ]);
    if spec.network == Network::None {
        steps.push(Step::Loopback);
    }
    // /proc and /sys before the host's are gone, or the kernel refuses new ones in a user
    // namespace.
    let own_network = spec.network == Network::None;
    steps.extend([
        Step::Root,
        Step::Proc,
        Step::Sysfs {
            own_network,
            read_only: !privileged,
        },
    ]);
    steps.extend(cgroup_mounts(cgroup, facts, privileged || nest));
    steps.push(Step::Dev(Dev {
        tty_group: userns.maps().is_none_or(|maps| {
            maps.gids
                .iter()
                .any(|r| (r.inside..r.inside + r.count).contains(&5))
        }),
        fuse: nest || privileged,
        terminal: spec.tty.then(|| caller.terminal.unwrap_or((24, 80))),
    }));
    steps.extend(spec.tmpfs.iter().cloned().map(Step::Tmpfs));
    let volumes = spec.volumes.iter().enumerate();
    // Slot 0 is the root.
    steps.extend(volumes.map(|(at, volume)| Step::Volume {
        slot: at + 1,
        target: volume.target.clone(),
    }));
    let (masked, read_only) = masks(&spec.security, nest && !holds_host_root(userns, facts));
    if !masked.is_empty() {
        steps.push(Step::Mask(masked));
    }
    if !read_only.is_empty() {
        steps.push(Step::ReadOnly(read_only));
    }
    steps.push(Step::Pivot);
    if spec.read_only {
        steps.push(Step::ReadOnlyRoot);
    }
    steps
}

/// Shows the hierarchies in which the container has a group of its own.
fn cgroup_mounts(cgroup: &CgroupPlan, facts: &Facts, writable: bool) -> Option<Step> {
    let used = |host: &&crate::cgroup::detect::Hierarchy| {
        cgroup
            .groups
            .iter()
            .any(|group| group.payload && group.dir.starts_with(&host.own))
    };
    let used: Vec<_> = facts.cgroups.iter().filter(used).collect();
    let v1: Vec<String> = used
        .iter()
        .filter(|host| host.version == Version::V1)
        .map(|host| host.controllers.join(","))
        .collect();
    let v2 = used.iter().any(|host| host.version == Version::V2);
    (!used.is_empty()).then_some(Step::Cgroups {
        v1,
        v2,
        read_only: !writable,
    })
}

/// Can a process of the container have the id 0 of the host? It owns /proc/sys and the like, even
/// without any capability: a file name written to kernel.core_pattern runs outside.
fn holds_host_root(userns: &UsernsPlan, facts: &Facts) -> bool {
    let whole = |own: &[IdMapping]| matches!(own, [one] if one.count == u32::MAX);
    let maps_root = |maps: &Maps| {
        let mut ranges = maps.uids.iter().chain(&maps.gids);
        ranges.any(|range| range.outside == 0)
    };
    whole(&facts.own_uids) && userns.maps().is_none_or(maps_root)
}

/// What is hidden and what is read-only; nothing of the usual with `open`.
fn masks(security: &Security, open: bool) -> (Vec<OsText>, Vec<OsText>) {
    let kept = |list: &[&str]| -> Vec<OsText> {
        match &security.unmask {
            _ if open => Vec::new(),
            Unmask::All => Vec::new(),
            Unmask::Paths(not) => list
                .iter()
                .filter(|path| {
                    !not.iter()
                        .any(|other| other.path() == std::path::Path::new(path))
                })
                .map(|path| (*path).into())
                .collect(),
        }
    };
    let mut masked = kept(&MASKED);
    masked.extend(security.mask.iter().cloned());
    (masked, kept(&READ_ONLY))
}

fn payload(spec: &Spec, hostname: &str, userns: &UsernsPlan, caller: &Caller) -> Payload {
    let text = |text: String| OsText(text.into());
    let mut env = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        text(format!("HOSTNAME={hostname}")),
        "container=ulaunch".into(),
    ];
    if spec.tty {
        let mut term = std::ffi::OsString::from("TERM=");
        term.push(
            caller
                .term
                .as_deref()
                .unwrap_or(std::ffi::OsStr::new("xterm")),
        );
        env.push(OsText(term));
    }
    env.extend(spec.env.iter().cloned());
    let caps = caps::resolve(&spec.security);
    let unconfined = spec.security.seccomp_unconfined;
    Payload {
        command: spec.command.clone(),
        env,
        workdir: spec.workdir.clone(),
        user: spec.user.clone(),
        caps,
        no_new_privs: spec.security.no_new_privs,
        seccomp: (!unconfined).then_some(seccomp::Profile {
            caps,
            nest: spec.security.nest,
        }),
        ulimits: spec.ulimits.clone(),
        // When memory runs out, the command goes before the daemon that serves its files.
        oom_score_adj: (spec.limits.memory.is_some() && matches!(spec.root, Root::Union(_)))
            .then_some(500),
        single_id: userns.maps().is_some_and(Maps::single),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
