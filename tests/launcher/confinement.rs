//! What a container cannot do or reach.

use super::world::{
    World, code, is_gone, kill, out, payload, pid_of, status_field, text, wait_for,
};
use std::fs;

#[test]
fn a_container_is_confined() {
    let Some(world) = World::new() else { return };
    let mut launcher = world.spawn(&["--rm", "--name", "c"], "exec sleep 60");
    let record = world.running("c");
    let pid = payload(&record);
    wait_for("the command was executed", || {
        status_field(pid, "Name") == "sleep"
    });
    for (field, value) in [
        ("CapEff", "00000000a80425fb"),
        ("CapPrm", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!(status_field(pid, field), value, "{field}");
    }
    for namespace in ["mnt", "pid", "net", "uts", "ipc", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(fds, 3, "only standard input, output and error");
    // The program behind PID 1 is a sealed copy.
    let init = pid_of(&record, "init");
    assert!(
        fs::read_link(format!("/proc/{init}/exe"))
            .unwrap()
            .to_string_lossy()
            .contains("memfd:")
    );
    let exe = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{init}/exe"));
    assert!(exe.is_err());
    // The daemon is not in the container's namespaces.
    let daemon = pid_of(&record, "daemon");
    let pid_namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert_ne!(pid_namespace(daemon), pid_namespace(pid));
    kill(init);
    launcher.wait().unwrap();
    wait_for("the daemon ends by itself", || is_gone(daemon));
    world.assert_empty();
}

#[test]
fn descriptors_of_the_caller_stay_out() {
    let Some(world) = World::new() else { return };
    let inherited: Vec<_> = (0..20).map(|_| fs::File::open("/").unwrap()).collect();
    for file in &inherited {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    }
    let output = world.run(&[], "ls /proc/self/fd | wc -l");
    // Standard streams and the directory being listed.
    assert_eq!(out(&output).trim(), "4", "{}", text(&output));
    for fd in 3..24 {
        let output = world.run(&["--workdir", &format!("/proc/self/fd/{fd}")], "true");
        assert_eq!(code(&output), 125, "{fd}: {}", text(&output));
    }
}

#[test]
fn system_calls_and_paths_that_could_reach_the_host_are_closed() {
    let Some(world) = World::new() else { return };
    let script = "
        cat /proc/kcore /proc/keys /proc/timer_list | wc -c
        ls /sys/firmware | wc -l
        for try in 'mount -t tmpfs x /tmp' 'unshare -U true' 'unshare -m true' 'mount -o remount,rw /sys' \
            'echo 1 > /proc/sys/kernel/panic' 'echo h > /proc/sysrq-trigger' 'hostname other' \
            'mkdir /sys/fs/cgroup/x' 'chroot /proc/1/root true' 'cat /proc/1/environ'; do
            if sh -c \"$try\" 2>/dev/null; then echo \"allowed: $try\"; fi
        done
        mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk >/dev/null 2>&1 && echo 'allowed: disk'
        mknod /dev/disk b 254 0 && head -c 1 /dev/disk >/dev/null 2>&1 && echo 'allowed: /dev/disk'
        echo written > /dev/null && head -c 2 /dev/zero | wc -c";
    let output = world.run(&[], script);
    assert_eq!(
        out(&output).split_whitespace().collect::<Vec<_>>(),
        ["0", "0", "2"],
        "{}",
        text(&output)
    );
}
