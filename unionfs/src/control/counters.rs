//! The answer to [`Query::Stats`](super::Query::Stats): what was asked of a mount, and what it holds.

use crate::stats::Stats;
use crate::union::{Counts, Union};
use serde::{Deserialize, Serialize};

/// Everything that is counted of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// The operations that ran.
    pub operations: Vec<Operation>,
    /// What the union holds.
    pub held: Counts,
    /// The process that serves it.
    pub daemon: Daemon,
}

/// The requests of one kind since the mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name in FUSE, in lower case.
    pub name: String,
    /// Requests answered.
    pub count: u64,
    /// Of these, with an error.
    pub errors: u64,
    /// Half of them took less, in microseconds.
    pub p50_us: u64,
    /// All but one in a hundred took less, in microseconds.
    pub p99_us: u64,
}

/// The process that serves a mount, as far as it can see itself in /proc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its number in its own namespace.
    pub pid: u32,
    /// Memory that it occupies, in KiB.
    pub resident_kib: Option<u64>,
    /// Descriptors that it has open.
    pub descriptors: Option<usize>,
}

/// Counts now.
pub(super) fn counted(union: &Union, stats: &Stats) -> Counted {
    let operations = stats.snapshot().into_iter().map(|op| Operation {
        name: op.op.name().to_owned(),
        count: op.count,
        errors: op.errors,
        p50_us: op.percentile(50),
        p99_us: op.percentile(99),
    });
    Counted {
        operations: operations.collect(),
        held: union.counts(),
        daemon: Daemon {
            pid: std::process::id(),
            resident_kib: std::fs::read_to_string("/proc/self/status")
                .ok()
                .and_then(|status| resident(&status)),
            descriptors: std::fs::read_dir("/proc/self/fd")
                .ok()
                // Less the one that lists them.
                .map(|all| all.count().saturating_sub(1)),
        },
    }
}

/// VmRSS of /proc/PID/status (proc(5)).
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_line_that_tells_it() {
        let status = "Name:\tuaufs\nVmHWM:\t   99 kB\nVmRSS:\t   1234 kB\nThreads:\t4\n";
        assert_eq!(resident(status), Some(1234));
        assert_eq!(resident("Name:\tkthreadd\n"), None);
    }
}
