//! Making, joining, reading and removing the groups of a plan.

use super::plan::{CgroupPlan, Group, OomCounter, Setting};
use crate::error::{Explain, errno_of};
use anyhow::Result;
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a group may stay busy after its last process has ended.
const REMOVAL_TIME: Duration = Duration::from_secs(2);

/// Makes the groups and writes their limits. On failure what was made is removed again.
pub fn create(plan: &CgroupPlan) -> Result<()> {
    let made = plan.groups.iter().try_for_each(create_one);
    if made.is_err() {
        remove(&directories(plan));
    }
    made
}

/// The directories of a plan, innermost last.
pub fn directories(plan: &CgroupPlan) -> Vec<PathBuf> {
    plan.groups.iter().map(|group| group.dir.clone()).collect()
}

fn create_one(group: &Group) -> Result<()> {
    let parent = group.dir.parent().unwrap_or(Path::new("/"));
    if !group.enable.is_empty() {
        let list: Vec<String> = group.enable.iter().map(|name| format!("+{name}")).collect();
        write(&parent.join("cgroup.subtree_control"), &list.join(" ")).remedy(
            || {
                format!(
                    "handing cgroup controllers to the container in {}",
                    parent.display()
                )
            },
            |errno| match errno {
                Errno::BUSY => {
                    "the group has processes of its own: start ulaunch in a group below it"
                }
                _ => "start inside a delegated group, or use --best-effort",
            },
        )?;
    }
    std::fs::create_dir(&group.dir)
        .explain(|| format!("making the cgroup {}", group.dir.display()))?;
    if group.inherit_cpuset {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            inherit_cpuset(&group.dir, file)?;
        }
    }
    group
        .settings
        .iter()
        .try_for_each(|setting| apply(&group.dir, setting))
}

fn apply(dir: &Path, setting: &Setting) -> Result<()> {
    match write(&dir.join(setting.file), &setting.value) {
        Err(error) if setting.optional && error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        // Without the file there is no way to honour what was asked.
        result => result.remedy(
            || {
                format!(
                    "{}: writing {} to {}",
                    setting.option, setting.value, setting.file
                )
            },
            |errno| match errno {
                Errno::NOENT => "this kernel has no such limit: use --best-effort or leave it out",
                Errno::INVAL => "the value is beyond what the parent group allows",
                _ => "",
            },
        ),
    }
}

/// Copies a cpuset file from the nearest ancestor where it is not empty.
fn inherit_cpuset(dir: &Path, file: &str) -> Result<()> {
    for ancestor in dir.ancestors().skip(1) {
        let Ok(value) = std::fs::read_to_string(ancestor.join(file)) else {
            break;
        };
        if !value.trim().is_empty() {
            return write(&dir.join(file), value.trim())
                .explain(|| format!("--cpuset-cpus: setting {file} of {}", dir.display()));
        }
    }
    anyhow::bail!(
        "--cpuset-cpus: no group above {} has {file}: set it there",
        dir.display()
    )
}

/// Puts process `pid` into the groups meant for the daemon or for the container.
///
/// On v1 a process without privileges can only move one with its own user id, so this is done
/// before the process changes it.
pub fn join(plan: &CgroupPlan, pid: i32, daemon: bool) -> Result<()> {
    for group in plan
        .groups
        .iter()
        .filter(|g| if daemon { g.daemon } else { g.payload })
    {
        write(&group.dir.join("cgroup.procs"), &pid.to_string()).remedy(
            || format!("joining the cgroup {}", group.dir.display()),
            |errno| match errno {
                Errno::ACCESS | Errno::PERM => "start ulaunch inside the delegated group",
                _ => "",
            },
        )?;
    }
    Ok(())
}

/// How many processes were killed for lack of memory.
pub fn oom_kills(counter: &OomCounter) -> u64 {
    let text = std::fs::read_to_string(counter.file.path()).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Removes groups, innermost first, waiting a little for the last processes to leave.
/// Returns those that could not be removed.
pub fn remove(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let deadline = Instant::now() + REMOVAL_TIME;
    let mut left: Vec<PathBuf> = dirs.to_vec();
    let mut pause = Duration::from_micros(200);
    loop {
        for dir in left.clone().iter().rev() {
            match std::fs::remove_dir(dir).map_err(errno_of) {
                Ok(()) | Err(Errno::NOENT) => left.retain(|other| other != dir),
                // A container may have made groups in its own.
                Err(Errno::BUSY | Errno::NOTEMPTY) => remove_children(dir),
                Err(_) => {}
            }
        }
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn remove_children(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_children(&entry.path());
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}

/// Cgroup files take one write and must not be created or truncated.
fn write(path: &Path, value: &str) -> std::io::Result<()> {
    use std::io::Write;
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_oom_kills_in_both_formats() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.events");
        let counter = OomCounter {
            file: file.clone().into(),
        };
        assert_eq!(oom_kills(&counter), 0);
        std::fs::write(&file, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n").unwrap();
        assert_eq!(oom_kills(&counter), 3);
        std::fs::write(&file, "low 0\nmax 5\noom 2\noom_kill 2\noom_group_kill 0\n").unwrap();
        assert_eq!(oom_kills(&counter), 2);
    }

    #[test]
    fn cpusets_come_from_the_nearest_ancestor_that_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(dir.path().join("cpuset.cpus"), "0-3\n").unwrap();
        std::fs::write(dir.path().join("a/cpuset.cpus"), "\n").unwrap();
        std::fs::write(inner.join("cpuset.cpus"), "").unwrap();
        inherit_cpuset(&inner, "cpuset.cpus").unwrap();
        assert_eq!(
            std::fs::read_to_string(inner.join("cpuset.cpus")).unwrap(),
            "0-3"
        );
    }

    #[test]
    fn removal_reaches_groups_made_inside() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("ulaunch-x");
        std::fs::create_dir_all(group.join("inner/deeper")).unwrap();
        assert!(remove(std::slice::from_ref(&group)).is_empty());
        assert!(!group.exists());
    }
}
