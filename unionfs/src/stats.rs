//! Request counters: how often each operation ran, how often it failed, how long it took.
//!
//! Written on every request, so it is a fixed array of relaxed atomics: no lock, no allocation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets of the latency histogram: bucket `i` counts durations below `2^i` microseconds (the
/// last one counts the rest).
pub const BUCKETS: usize = 24;

macro_rules! ops {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// An operation of the FUSE protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op { $($(#[$doc])* $variant),+ }

        impl Op {
            /// Every operation, in the order of [`Stats::snapshot`].
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Lower-case name, as `uaufs stats` prints it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

ops! {
    /// LOOKUP
    Lookup = "lookup",
    /// FORGET and BATCH_FORGET (one per node)
    Forget = "forget",
    /// GETATTR
    Getattr = "getattr",
    /// SETATTR
    Setattr = "setattr",
    /// READLINK
    Readlink = "readlink",
    /// MKNOD
    Mknod = "mknod",
    /// MKDIR
    Mkdir = "mkdir",
    /// SYMLINK
    Symlink = "symlink",
    /// LINK
    Link = "link",
    /// UNLINK
    Unlink = "unlink",
    /// RMDIR
    Rmdir = "rmdir",
    /// RENAME and RENAME2
    Rename = "rename",
    /// CREATE
    Create = "create",
    /// OPEN
    Open = "open",
    /// RELEASE
    Release = "release",
    /// READ
    Read = "read",
    /// WRITE
    Write = "write",
    /// FLUSH
    Flush = "flush",
    /// FSYNC
    Fsync = "fsync",
    /// FALLOCATE
    Fallocate = "fallocate",
    /// LSEEK
    Lseek = "lseek",
    /// COPY_FILE_RANGE
    CopyFileRange = "copy_file_range",
    /// OPENDIR
    Opendir = "opendir",
    /// READDIR
    Readdir = "readdir",
    /// READDIRPLUS
    Readdirplus = "readdirplus",
    /// RELEASEDIR
    Releasedir = "releasedir",
    /// FSYNCDIR
    Fsyncdir = "fsyncdir",
    /// STATFS
    Statfs = "statfs",
    /// GETXATTR
    Getxattr = "getxattr",
    /// LISTXATTR
    Listxattr = "listxattr",
    /// SETXATTR
    Setxattr = "setxattr",
    /// REMOVEXATTR
    Removexattr = "removexattr",
    /// ACCESS
    Access = "access",
    /// IOCTL
    Ioctl = "ioctl",
}

/// The counters of one operation.
#[derive(Default)]
struct Counter {
    count: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

/// The counters of one mount. Shared by all worker threads.
pub struct Stats {
    counters: [Counter; Op::ALL.len()],
}

/// A copy of the counters of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpStats {
    /// Which.
    pub op: Op,
    /// Requests answered.
    pub count: u64,
    /// Of these, answered with an error.
    pub errors: u64,
    /// Sum of the times spent, in nanoseconds.
    pub nanos: u64,
    /// Histogram of the times, see [`BUCKETS`].
    pub buckets: [u64; BUCKETS],
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            counters: std::array::from_fn(|_| Counter::default()),
        }
    }
}

impl Stats {
    /// Counts one answered request.
    pub fn record(&self, op: Op, took: Duration, ok: bool) {
        let counter = &self.counters[op as usize];
        counter.count.fetch_add(1, Relaxed);
        if !ok {
            counter.errors.fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        counter.nanos.fetch_add(nanos, Relaxed);
        counter.buckets[bucket(took)].fetch_add(1, Relaxed);
    }

    /// A copy of all counters, operations that never ran left out. Not atomic as a whole.
    pub fn snapshot(&self) -> Vec<OpStats> {
        Op::ALL
            .iter()
            .zip(&self.counters)
            .map(|(&op, counter)| OpStats {
                op,
                count: counter.count.load(Relaxed),
                errors: counter.errors.load(Relaxed),
                nanos: counter.nanos.load(Relaxed),
                buckets: std::array::from_fn(|i| counter.buckets[i].load(Relaxed)),
            })
            .filter(|stats| stats.count > 0)
            .collect()
    }
}

impl OpStats {
    /// Upper bound, in microseconds, of the time that `percent` (0..=100) of the requests stayed
    /// below.
    pub fn percentile(&self, percent: u64) -> u64 {
        let total: u64 = self.buckets.iter().sum();
        let wanted = (total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return 1 << index;
            }
        }
        1 << (BUCKETS - 1)
    }
}

/// The bucket a duration belongs to.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let bits = u64::BITS - micros.leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_of_microseconds() {
        for (micros, index) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (3, 2),
            (4, 3),
            (1000, 10),
            (u64::MAX, BUCKETS - 1),
        ] {
            assert_eq!(bucket(Duration::from_micros(micros)), index, "{micros} us");
        }
    }

    #[test]
    fn counts_errors_and_percentiles() {
        let stats = Stats::default();
        for micros in [1, 1, 1, 1000] {
            stats.record(Op::Read, Duration::from_micros(micros), micros < 1000);
        }
        let snapshot = stats.snapshot();
        assert_eq!(snapshot.len(), 1);
        let read = snapshot[0];
        assert_eq!((read.op, read.count, read.errors), (Op::Read, 4, 1));
        assert_eq!((read.percentile(50), read.percentile(99)), (2, 1024));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Op::ALL.iter().map(|op| op.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Op::ALL.len());
    }
}
