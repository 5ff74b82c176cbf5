//! Limits on memory, tasks and processor time.

use super::world::{World, cgroups, code, kill, out, payload, pid_of, status_field, text};
use std::fs;
use std::time::Instant;

#[test]
fn memory_beyond_the_limit_kills_and_says_so() {
    let Some(world) = World::new() else { return };
    let output = world.run(
        &["--memory", "64M"],
        "x=$(head -c 200m /dev/zero | tr '\\0' x)",
    );
    assert_eq!(code(&output), 137, "{}", text(&output));
    assert!(
        text(&output).contains("killed: memory limit 64M exceeded"),
        "{}",
        text(&output)
    );
    world.assert_empty();
}

#[test]
fn tasks_and_cpu_are_limited_and_groups_removed() {
    let Some(world) = World::new() else { return };
    let output = world.run(
        &["--pids-limit", "10"],
        "for i in $(seq 40); do sleep 1 & done; wait",
    );
    assert!(text(&output).contains("can't fork"), "{}", text(&output));
    // Half of a CPU for a second of wall time is about half a second of CPU time.
    let start = Instant::now();
    let output = world.run(&["--cpus", "0.5"], "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; cat /proc/self/stat | cut -d' ' -f16; times");
    assert_eq!(code(&output), 0, "{}", text(&output));
    let wall = start.elapsed().as_secs_f64();
    let times = out(&output);
    let used: f64 = times
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter_map(seconds)
        .next()
        .unwrap_or(0.0);
    assert!(used < 0.75 * wall, "{used} s of CPU in {wall} s");
    let mut launcher = world.spawn(
        &[
            "--rm",
            "--name",
            "g",
            "--memory",
            "64M",
            "--cpus",
            "0.25",
            "--cpuset-cpus",
            "0",
            "--pids-limit",
            "20",
        ],
        "exec sleep 60",
    );
    let record = world.running("g");
    let groups = cgroups(&record);
    assert!(
        !groups.is_empty() && groups.iter().all(|dir| dir.is_dir()),
        "{groups:?}"
    );
    let pid = payload(&record);
    let joined = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(joined.matches("ulaunch-").count() >= 1, "{joined}");
    assert_eq!(status_field(pid, "Cpus_allowed_list"), "0");
    kill(pid_of(&record, "init"));
    launcher.wait().unwrap();
    assert!(groups.iter().all(|dir| !dir.exists()), "{groups:?}");
    world.assert_empty();
}

/// `0m1.25s` as seconds.
fn seconds(text: &str) -> Option<f64> {
    let (minutes, rest) = text.split_once('m')?;
    Some(minutes.parse::<f64>().ok()? * 60.0 + rest.trim_end_matches('s').parse::<f64>().ok()?)
}
