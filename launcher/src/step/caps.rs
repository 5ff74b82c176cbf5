//! Capabilities: names, the default set, and giving up all others. capabilities(7).

use crate::error::Explain;
use crate::spec::{CapList, Security};
use anyhow::{Result, bail};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Names without `CAP_`, by number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker gives a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, bit N = capability number N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapSet(pub u64);

impl CapSet {
    /// Is the capability called `name` (without `CAP_`) in it?
    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|cap| self.0 & (1 << cap) != 0)
    }

    /// Every capability that has a name.
    pub fn all() -> Self {
        Self((1 << NAMES.len()) - 1)
    }
}

/// Capabilities by name, `CAP_` and case being optional, or `ALL`.
pub fn parse_list(names: &[String]) -> Result<CapList> {
    let mut list = CapList {
        all: false,
        caps: BTreeSet::new(),
    };
    for name in names.iter().flat_map(|names| names.split(',')) {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match (short, number(short)) {
            ("ALL", _) => list.all = true,
            (_, Some(cap)) => drop(list.caps.insert(cap)),
            _ => bail!("`{name}` is not a capability: see capabilities(7)"),
        }
    }
    Ok(list)
}

fn number(name: &str) -> Option<u8> {
    NAMES
        .iter()
        .position(|known| *known == name)
        .map(|cap| cap as u8)
}

/// What a container gets: the default set, or all with `--privileged`, then `--cap-drop ALL` and
/// `--cap-add ALL`, then single names, of which a drop wins over an add.
pub fn resolve(security: &Security) -> CapSet {
    let bits = |list: &CapList| list.caps.iter().fold(0, |set, cap| set | 1u64 << cap);
    let default = DEFAULT
        .iter()
        .filter_map(|name| number(name))
        .fold(0, |set, cap| set | 1 << cap);
    let base = match security {
        Security {
            privileged: true, ..
        } => CapSet::all().0,
        _ if security.cap_drop.all => 0,
        _ if security.cap_add.all => CapSet::all().0,
        _ => default,
    };
    CapSet((base | bits(&security.cap_add)) & !bits(&security.cap_drop))
}

/// Takes everything outside `keep` from the bounding set. Needs CAP_SETPCAP.
pub fn limit_bounding_set(keep: CapSet) -> Result<()> {
    for cap in (0..64).filter(|cap| keep.0 & (1 << cap) == 0) {
        let bit = CapabilitySet::from_bits_retain(1 << cap);
        match rustix::thread::capability_is_in_bounding_set(bit) {
            Ok(true) => rustix::thread::remove_capability_from_bounding_set(bit)
                .explain(|| "limiting the capabilities".into())?,
            Ok(false) => {}
            // The first number that the kernel does not know.
            Err(_) => break,
        }
    }
    Ok(())
}

/// Sets the permitted and effective sets of this process; inheritable and ambient become empty.
pub fn set(keep: CapSet) -> Result<()> {
    let what = || "setting the capabilities".to_owned();
    let held = rustix::thread::capabilities(None).explain(what)?;
    let set = held.permitted & CapabilitySet::from_bits_retain(keep.0);
    // The sets must not contain bits beyond what the kernel knows, so they are cut from held ones.
    let sets = CapabilitySets {
        effective: set,
        permitted: set,
        inheritable: CapabilitySet::empty(),
    };
    let _ = rustix::thread::clear_ambient_capability_set();
    rustix::thread::set_capabilities(None, sets).explain(what)
}

/// Lets the capabilities of a new user namespace pass the next exec.
///
/// As long as no id of the caller is mapped there, it is not root in it, and exec would take them.
pub fn keep_over_exec() -> Result<()> {
    let what = || "keeping the capabilities of the user namespace".to_owned();
    let mut sets = rustix::thread::capabilities(None).explain(what)?;
    sets.inheritable = sets.permitted;
    rustix::thread::set_capabilities(None, sets).explain(what)?;
    for bit in sets.permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(bit, true).explain(what)?;
    }
    Ok(())
}

/// The effective set of this process.
pub fn effective() -> CapSet {
    rustix::thread::capabilities(None)
        .map(|sets| CapSet(sets.effective.bits()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(add: &[&str], drop: &[&str]) -> Security {
        let list = |names: &[&str]| {
            parse_list(
                &names
                    .iter()
                    .map(|name| (*name).to_owned())
                    .collect::<Vec<_>>(),
            )
            .unwrap()
        };
        Security {
            cap_add: list(add),
            cap_drop: list(drop),
            ..Security::default()
        }
    }

    #[test]
    fn the_default_is_dockers() {
        assert_eq!(resolve(&security(&[], &[])).0, 0xa804_25fb);
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(resolve(&security(&[], &["all"])).0, 0);
        assert_eq!(resolve(&security(&["cap_chown"], &["ALL"])).0, 1);
        assert!(resolve(&security(&["SYS_ADMIN"], &[])).has("SYS_ADMIN"));
        assert!(!resolve(&security(&["ALL"], &["KILL"])).has("KILL"));
        assert!(!resolve(&security(&["KILL"], &["KILL"])).has("KILL"));
        assert!(parse_list(&["CAP_NOPE".into()]).is_err());
    }
}
