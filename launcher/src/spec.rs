//! What the user asks of a container, checked for form but not against the host.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use unionfs::ostext::OsText;

/// A container as asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// What becomes `/`.
    pub root: Root,
    /// How the union notices changes made on its branches, as in the mount option `udba=`; `None` =
    /// as is usual.
    #[serde(default)]
    pub udba: Option<String>,
    /// Program and arguments, never empty.
    pub command: Vec<OsText>,
    /// Who runs it: `USER[:GROUP]`, names or numbers.
    pub user: Option<OsText>,
    /// Working directory.
    pub workdir: OsText,
    /// `KEY=VALUE`, later ones win.
    pub env: Vec<OsText>,
    /// Host name; `None` = the container's id.
    pub hostname: Option<String>,
    /// Standard input is connected.
    pub interactive: bool,
    /// A terminal of its own.
    pub tty: bool,
    /// Runs in the background.
    pub detach: bool,
    /// Everything is removed at the end.
    pub remove: bool,
    /// `/` is mounted read-only.
    pub read_only: bool,
    /// Bound directories and files.
    pub volumes: Vec<Volume>,
    /// Paths that become empty filesystems in memory.
    pub tmpfs: Vec<OsText>,
    /// Resource limits by cgroup.
    pub limits: Limits,
    /// Limits that cannot be applied are left out with a notice.
    pub best_effort: bool,
    /// Network namespace.
    pub network: Network,
    /// User namespace.
    pub userns: Userns,
    /// What the command may do.
    pub security: Security,
    /// rlimits.
    pub ulimits: Vec<Ulimit>,
}

/// What becomes `/` of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A directory as it is (bind mount).
    Directory(OsText),
    /// A union of branches, topmost first: path and permission (`rw`, `ro+wh`, ...).
    Union(Vec<(OsText, String)>),
}

/// A host path that shows inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Host path, absolute.
    pub source: OsText,
    /// Path inside, absolute.
    pub target: OsText,
    /// Mounted read-only, with everything below.
    pub read_only: bool,
}

/// Limits; `None` = not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; `Some(None)` = no limit on swap.
    pub memory_swap: Option<Option<u64>>,
    /// Thousandths of a CPU.
    pub milli_cpus: Option<u64>,
    /// Relative weight, 1024 = normal.
    pub cpu_shares: Option<u64>,
    /// List of CPUs as in cpuset(7).
    pub cpuset_cpus: Option<String>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// Network namespace of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Its own, with nothing but a loopback interface.
    None,
    /// The host's.
    Host,
}

/// User namespace of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Userns {
    /// As good as the host allows: a range of subordinate ids, else (root) none, else one id.
    Auto,
    /// None: ids are the host's. Root only.
    Host,
    /// These maps.
    Map {
        /// User ids.
        uids: Vec<IdMapping>,
        /// Group ids.
        gids: Vec<IdMapping>,
    },
}

/// One line of a uid_map, user_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id in the container.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// What the command may do.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Security {
    /// Capabilities added to the default set.
    pub cap_add: CapList,
    /// Capabilities taken from it.
    pub cap_drop: CapList,
    /// No system call is filtered.
    pub seccomp_unconfined: bool,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// Paths masked besides the usual ones.
    pub mask: Vec<OsText>,
    /// Usual masked and read-only paths to leave alone.
    pub unmask: Unmask,
    /// All capabilities, no filter, nothing masked.
    pub privileged: bool,
    /// Another container can be started inside.
    pub nest: bool,
}

/// A set of capabilities by number, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapList {
    /// `ALL`
    pub all: bool,
    /// capabilities(7) numbers.
    pub caps: BTreeSet<u8>,
}

/// Which masked paths are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unmask {
    /// Every one.
    All,
    /// These.
    Paths(Vec<OsText>),
}

impl Default for Unmask {
    fn default() -> Self {
        Self::Paths(Vec::new())
    }
}

/// One rlimit, setrlimit(2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Name as in `--ulimit`, for messages.
    pub name: String,
    /// RLIMIT_* number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` = unlimited.
    pub soft: u64,
    /// Hard limit; `u64::MAX` = unlimited.
    pub hard: u64,
}
