//! Host name, loopback interface and the cgroup namespace.

use crate::error::Explain;
use crate::sys;
use anyhow::Result;

/// sethostname(2)
pub fn hostname(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).explain(|| format!("--hostname {name}"))
}

/// Brings `lo` up.
pub fn loopback() -> Result<()> {
    sys::loopback_up().explain(|| "bringing the loopback interface up".into())
}

/// Enters a cgroup namespace whose root is the group just joined. Kernels before 4.6 have none.
pub fn cgroup_namespace() -> Result<()> {
    match sys::unshare(libc::CLONE_NEWCGROUP) {
        Err(rustix::io::Errno::INVAL) => Ok(()),
        result => result.explain(|| "entering a cgroup namespace".into()),
    }
}
