//! From limits and hierarchies to groups and the values written into them. Pure.
//!
//! What the union daemon uses on behalf of the container (memory, cpu, I/O) is charged to the
//! container, or the limits would mean nothing; tasks and CPUs are the command's alone, so that
//! the daemon neither eats the tasks nor is confined with it.

use super::detect::{Hierarchy, Version};
use crate::spec::Limits;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use unionfs::ostext::OsText;

/// Length of the period in which a CPU quota counts, in microseconds (the kernel's default).
const PERIOD: u64 = 100_000;

/// Everything to be done for the limits of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupPlan {
    /// Groups in the order of creation.
    pub groups: Vec<Group>,
    /// Where kills for lack of memory are counted.
    pub oom_counter: Option<OomCounter>,
    /// Limits left out, with `--best-effort`.
    pub notices: Vec<String>,
}

/// One group to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its directory.
    pub dir: PathBuf,
    /// Controllers to hand down from the parent first (v2: `cgroup.subtree_control`).
    pub enable: Vec<String>,
    /// Values to write into it.
    pub settings: Vec<Setting>,
    /// v1 cpuset: CPUs and memory nodes are empty at first and must be copied from the parent.
    pub inherit_cpuset: bool,
    /// The union daemon belongs here.
    pub daemon: bool,
    /// The container belongs here.
    pub payload: bool,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// File in the group.
    pub file: &'static str,
    /// What to write.
    pub value: String,
    /// Which option asked for it.
    pub option: &'static str,
    /// The file may be missing (swap accounting switched off).
    pub optional: bool,
}

/// A file that counts OOM kills in its line `oom_kill N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomCounter {
    /// `memory.oom_control` or `memory.events`.
    pub file: OsText,
}

/// One controller's share of the limits.
struct Wanted {
    controller: &'static str,
    /// For messages: the option as typed.
    option: &'static str,
    /// Charged to daemon and command together.
    shared: bool,
}

impl CgroupPlan {
    /// Moves the container into groups of its own below those with the limits. It may then change
    /// the groups that it sees, and its limits are not among them.
    pub fn delegate(&mut self) {
        let holders = self.groups.iter_mut().filter(|group| group.payload);
        let inner: Vec<Group> = holders
            .map(|holder| {
                holder.payload = false;
                Group {
                    dir: holder.dir.join("inner"),
                    enable: Vec::new(),
                    settings: Vec::new(),
                    inherit_cpuset: holder.inherit_cpuset,
                    daemon: false,
                    payload: true,
                }
            })
            .collect();
        self.groups.extend(inner);
        // v1 counts a kill where the process was, v2 in all groups above as well.
        if let Some(counter) = &mut self.oom_counter
            && let (Some(dir), Some(file)) = (
                counter.file.path().parent(),
                counter.file.path().file_name(),
            )
            && file == "memory.oom_control"
        {
            counter.file = dir.join("inner").join(file).into();
        }
    }
}

/// Decides on groups called `ulaunch-ID`.
///
/// A limit without a usable controller is an error, with `best_effort` a notice.
pub fn plan(
    id: &str,
    limits: &Limits,
    hosts: &[Hierarchy],
    best_effort: bool,
) -> Result<CgroupPlan> {
    let mut plan = CgroupPlan::default();
    let name = format!("ulaunch-{id}");
    for wanted in wanted(limits) {
        let Some(hierarchy) = choose(hosts, wanted.controller) else {
            let reason = refusal(hosts, &wanted);
            if !best_effort {
                bail!("{reason}");
            }
            plan.notices.push(format!("{reason}; going on without it"));
            continue;
        };
        match hierarchy.version {
            Version::V1 => add_v1(&mut plan, hierarchy.own.join(&name), &wanted, limits),
            Version::V2 => add_v2(&mut plan, hierarchy, &name, &wanted, limits),
        }
    }
    Ok(plan)
}

fn wanted(limits: &Limits) -> Vec<Wanted> {
    let mut list = Vec::new();
    let mut want = |asked: bool, controller, option, shared| {
        if asked {
            list.push(Wanted {
                controller,
                option,
                shared,
            });
        }
    };
    want(limits.memory.is_some(), "memory", "--memory", true);
    want(limits.milli_cpus.is_some(), "cpu", "--cpus", true);
    want(
        limits.milli_cpus.is_none() && limits.cpu_shares.is_some(),
        "cpu",
        "--cpu-shares",
        true,
    );
    want(
        limits.cpuset_cpus.is_some(),
        "cpuset",
        "--cpuset-cpus",
        false,
    );
    want(limits.pids.is_some(), "pids", "--pids-limit", false);
    list
}

fn choose<'a>(hosts: &'a [Hierarchy], controller: &str) -> Option<&'a Hierarchy> {
    hosts
        .iter()
        .find(|host| host.writable && host.controllers.iter().any(|name| name == controller))
}

fn refusal(hosts: &[Hierarchy], wanted: &Wanted) -> String {
    let Wanted {
        controller, option, ..
    } = wanted;
    match hosts
        .iter()
        .find(|host| host.controllers.iter().any(|name| name == controller))
    {
        None => format!(
            "{option}: the host has no cgroup controller `{controller}`: mount it, or use --best-effort"
        ),
        Some(host) if host.version == Version::V2 => format!(
            "{option}: {} is not writable: start inside a delegated group (systemd-run --user --scope -p Delegate=yes), or use --best-effort",
            host.own.display()
        ),
        Some(host) => format!(
            "{option}: {} is not writable: let the administrator give you a group there (mkdir and chown), or use --best-effort",
            host.own.display()
        ),
    }
}

fn add_v1(plan: &mut CgroupPlan, dir: PathBuf, wanted: &Wanted, limits: &Limits) {
    let settings = settings(wanted.controller, Version::V1, limits);
    if wanted.controller == "memory" {
        plan.oom_counter = Some(OomCounter {
            file: dir.join("memory.oom_control").into(),
        });
    }
    // Controllers mounted together share the group; the daemon stays out if one of them must not
    // count it.
    if let Some(group) = plan.groups.iter_mut().find(|group| group.dir == dir) {
        group.settings.extend(settings);
        group.daemon &= wanted.shared;
        group.inherit_cpuset |= wanted.controller == "cpuset";
        return;
    }
    plan.groups.push(Group {
        dir,
        enable: Vec::new(),
        settings,
        inherit_cpuset: wanted.controller == "cpuset",
        daemon: wanted.shared,
        payload: true,
    });
}

/// v2: limits on shared resources lie on `NAME`, the others on `NAME/payload`; the daemon lives in
/// `NAME/fs`, because a group with controllers below it cannot have processes itself.
fn add_v2(plan: &mut CgroupPlan, host: &Hierarchy, name: &str, wanted: &Wanted, limits: &Limits) {
    let parent = host.own.join(name);
    let (payload, daemon) = (parent.join("payload"), parent.join("fs"));
    if !plan.groups.iter().any(|group| group.dir == parent) {
        let group = |dir: &Path, daemon, payload| Group {
            dir: dir.to_owned(),
            enable: Vec::new(),
            settings: Vec::new(),
            inherit_cpuset: false,
            daemon,
            payload,
        };
        plan.groups.push(group(&parent, false, false));
        plan.groups.push(group(&payload, false, true));
        plan.groups.push(group(&daemon, true, false));
    }
    let target = if wanted.shared { &parent } else { &payload };
    for group in &mut plan.groups {
        let reached = group.dir == parent || (!wanted.shared && group.dir == payload);
        if reached {
            group.enable.push(wanted.controller.to_owned());
        }
        if group.dir == *target {
            group
                .settings
                .extend(settings(wanted.controller, Version::V2, limits));
        }
    }
    if wanted.controller == "memory" {
        plan.oom_counter = Some(OomCounter {
            file: parent.join("memory.events").into(),
        });
    }
}

/// The values for one controller, in the order in which they must be written.
fn settings(controller: &str, version: Version, limits: &Limits) -> Vec<Setting> {
    let set = |file, value: String, option| Setting {
        file,
        value,
        option,
        optional: false,
    };
    let mut list = Vec::new();
    match (controller, version) {
        ("memory", Version::V1) => {
            let bytes = limits.memory.unwrap_or(u64::MAX);
            list.push(set("memory.limit_in_bytes", bytes.to_string(), "--memory"));
            if let Some(total) = limits.memory_swap.unwrap_or(Some(bytes)) {
                list.push(Setting {
                    optional: limits.memory_swap.is_none(),
                    ..set(
                        "memory.memsw.limit_in_bytes",
                        total.to_string(),
                        "--memory-swap",
                    )
                });
            }
        }
        ("memory", Version::V2) => {
            let bytes = limits.memory.unwrap_or(u64::MAX);
            list.push(set("memory.max", bytes.to_string(), "--memory"));
            if let Some(total) = limits.memory_swap.unwrap_or(Some(bytes)) {
                list.push(Setting {
                    optional: limits.memory_swap.is_none(),
                    ..set(
                        "memory.swap.max",
                        (total - bytes).to_string(),
                        "--memory-swap",
                    )
                });
            }
        }
        ("cpu", _) => {
            if let Some(milli) = limits.milli_cpus {
                let quota = (milli * PERIOD / 1000).max(1000);
                if version == Version::V1 {
                    list.push(set("cpu.cfs_period_us", PERIOD.to_string(), "--cpus"));
                    list.push(set("cpu.cfs_quota_us", quota.to_string(), "--cpus"));
                } else {
                    list.push(set("cpu.max", format!("{quota} {PERIOD}"), "--cpus"));
                }
            }
            if let Some(shares) = limits.cpu_shares {
                if version == Version::V1 {
                    list.push(set("cpu.shares", shares.to_string(), "--cpu-shares"));
                } else {
                    list.push(set(
                        "cpu.weight",
                        weight(shares).to_string(),
                        "--cpu-shares",
                    ));
                }
            }
        }
        ("cpuset", _) => {
            let cpus = limits.cpuset_cpus.clone().unwrap_or_default();
            list.push(set("cpuset.cpus", cpus, "--cpuset-cpus"));
        }
        ("pids", _) => {
            let count = limits.pids.unwrap_or(u64::MAX);
            list.push(set("pids.max", count.to_string(), "--pids-limit"));
        }
        _ => {}
    }
    list
}

/// v1 shares (2 to 262144) as a v2 weight (1 to 10000), the line that container runtimes use.
fn weight(shares: u64) -> u64 {
    1 + (shares.saturating_sub(2) * 9999) / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(controllers: &[&str], writable: bool) -> Hierarchy {
        Hierarchy {
            version: Version::V1,
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            own: Path::new("/cg").join(controllers.join(",")),
            is_root: true,
            writable,
        }
    }

    #[test]
    fn delegated_groups_hold_no_limits() {
        let hosts = [v1(&["memory"], true), v2(&["pids", "cpu", "cpuset"])];
        let mut plan = plan("x", &all(), &hosts, false).unwrap();
        plan.delegate();
        let inner: Vec<_> = plan.groups.iter().filter(|group| group.payload).collect();
        assert_eq!(inner.len(), 2);
        assert!(
            inner
                .iter()
                .all(|group| group.settings.is_empty() && group.dir.ends_with("inner"))
        );
        let counter = plan.oom_counter.unwrap();
        assert!(counter.file.path().ends_with("inner/memory.oom_control"));
    }

    fn v2(controllers: &[&str]) -> Hierarchy {
        Hierarchy {
            version: Version::V2,
            own: "/cg2".into(),
            ..v1(controllers, true)
        }
    }

    fn all() -> Limits {
        Limits {
            memory: Some(64 << 20),
            milli_cpus: Some(500),
            cpuset_cpus: Some("0".into()),
            pids: Some(50),
            ..Limits::default()
        }
    }

    fn written(plan: &CgroupPlan) -> Vec<String> {
        let of = |group: &Group| {
            let line = |s: &Setting| format!("{}/{}={}", group.dir.display(), s.file, s.value);
            group.settings.iter().map(line).collect::<Vec<_>>()
        };
        plan.groups.iter().flat_map(of).collect()
    }

    #[test]
    fn no_limits_need_no_groups() {
        assert_eq!(
            plan("x", &Limits::default(), &[], false).unwrap(),
            CgroupPlan::default()
        );
    }

    #[test]
    fn separate_v1_hierarchies() {
        let hosts = [
            v1(&["cpu"], true),
            v1(&["memory"], true),
            v1(&["pids"], true),
            v1(&["cpuset"], true),
        ];
        let plan = plan("x", &all(), &hosts, false).unwrap();
        assert_eq!(
            written(&plan),
            [
                "/cg/memory/ulaunch-x/memory.limit_in_bytes=67108864",
                "/cg/memory/ulaunch-x/memory.memsw.limit_in_bytes=67108864",
                "/cg/cpu/ulaunch-x/cpu.cfs_period_us=100000",
                "/cg/cpu/ulaunch-x/cpu.cfs_quota_us=50000",
                "/cg/cpuset/ulaunch-x/cpuset.cpus=0",
                "/cg/pids/ulaunch-x/pids.max=50",
            ]
        );
        let daemon: Vec<bool> = plan.groups.iter().map(|group| group.daemon).collect();
        assert_eq!(daemon, [true, true, false, false]);
    }

    #[test]
    fn controllers_mounted_together_share_a_group() {
        let plan = plan(
            "x",
            &all(),
            &[v1(&["cpu", "memory", "pids", "cpuset"], true)],
            false,
        )
        .unwrap();
        assert_eq!(plan.groups.len(), 1);
        assert!(!plan.groups[0].daemon && plan.groups[0].inherit_cpuset);
    }

    #[test]
    fn the_unified_hierarchy() {
        let plan = plan(
            "x",
            &all(),
            &[v2(&["cpu", "memory", "pids", "cpuset"])],
            false,
        )
        .unwrap();
        assert_eq!(
            written(&plan),
            [
                "/cg2/ulaunch-x/memory.max=67108864",
                "/cg2/ulaunch-x/memory.swap.max=0",
                "/cg2/ulaunch-x/cpu.max=50000 100000",
                "/cg2/ulaunch-x/payload/cpuset.cpus=0",
                "/cg2/ulaunch-x/payload/pids.max=50",
            ]
        );
        assert_eq!(plan.groups[0].enable, ["memory", "cpu", "cpuset", "pids"]);
        assert_eq!(plan.groups[1].enable, ["cpuset", "pids"]);
        assert!(plan.groups[1].payload && plan.groups[2].daemon);
    }

    #[test]
    fn hybrid_hosts_use_whichever_has_the_controller() {
        let plan = plan(
            "x",
            &all(),
            &[v1(&["cpu"], true), v2(&["memory", "pids", "cpuset"])],
            false,
        );
        let lines = written(&plan.unwrap());
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("/cg/cpu/ulaunch-x/cpu.cfs_quota_us"))
        );
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with("/cg2/ulaunch-x/memory.max"))
        );
    }

    #[test]
    fn a_limit_that_cannot_be_applied_is_refused_unless_told_otherwise() {
        let limits = Limits {
            memory: Some(64 << 20),
            ..Limits::default()
        };
        for hosts in [vec![], vec![v1(&["memory"], false)]] {
            let error = plan("x", &limits, &hosts, false).unwrap_err().to_string();
            assert!(
                error.starts_with("--memory: ") && error.contains("--best-effort"),
                "{error}"
            );
            let plan = plan("x", &limits, &hosts, true).unwrap();
            assert_eq!((plan.groups.len(), plan.notices.len()), (0, 1));
        }
    }

    #[test]
    fn shares_and_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }
}
