//! The default filter of system calls, for x86-64 and aarch64.
//!
//! Three groups: calls of an age with this list that are refused (EPERM, the same ones as in
//! Docker's default profile), calls that are newer than the list (ENOSYS, so that programs use
//! what they used before), and the rest, which is allowed. A capability re-allows the calls that
//! it is about. Calls by another architecture's numbers end the process.

use super::caps::CapSet;
use crate::error::Explain;
use crate::sys;
use anyhow::{Context, Result};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Highest system call number that this list knows (removexattrat, Linux 6.13).
const LAST_KNOWN: i64 = 466;

/// The flags of clone(2) that make namespaces.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// What the filter depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Capabilities of the container.
    pub caps: CapSet,
    /// Namespaces and mounts are allowed, for containers inside.
    pub nest: bool,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Refused whatever the capabilities.
const NEVER: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_nfsservctl,
    libc::SYS_vhangup,
];

/// Old calls that only x86-64 has.
#[cfg(target_arch = "x86_64")]
const NEVER_HERE: &[i64] = &[
    libc::SYS_sysfs,
    libc::SYS_ustat,
    libc::SYS_uselib,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_HERE: &[i64] = &[];

/// Calls that make or change namespaces and mounts: refused without CAP_SYS_ADMIN, unless nested.
const NAMESPACES: &[i64] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The kernel still wants CAP_SYS_ADMIN over the namespace: one that was made inside.
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Calls refused without one of the capabilities named.
const BY_CAPABILITY: &[(&[&str], &[i64])] = &[
    (
        &["SYS_ADMIN"],
        &[
            libc::SYS_fanotify_init,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_lookup_dcookie,
        ],
    ),
    (&["SYS_ADMIN", "BPF"], &[libc::SYS_bpf]),
    (&["SYS_ADMIN", "PERFMON"], &[libc::SYS_perf_event_open]),
    (&["SYS_ADMIN", "SYSLOG"], &[libc::SYS_syslog]),
    (
        &["SYS_BOOT"],
        &[
            libc::SYS_reboot,
            libc::SYS_kexec_load,
            libc::SYS_kexec_file_load,
        ],
    ),
    (
        &["SYS_MODULE"],
        &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
        ],
    ),
    (&["SYS_PACCT"], &[libc::SYS_acct]),
    (
        &["SYS_TIME"],
        &[libc::SYS_settimeofday, libc::SYS_clock_settime],
    ),
    (&["DAC_READ_SEARCH"], &[libc::SYS_open_by_handle_at]),
    (
        &["SYS_NICE"],
        &[
            libc::SYS_mbind,
            libc::SYS_set_mempolicy,
            libc::SYS_get_mempolicy,
            libc::SYS_move_pages,
            libc::SYS_migrate_pages,
            libc::SYS_set_mempolicy_home_node,
        ],
    ),
    (&["SYS_PTRACE"], &[libc::SYS_kcmp]),
    #[cfg(target_arch = "x86_64")]
    (&["SYS_RAWIO"], &[libc::SYS_ioperm, libc::SYS_iopl]),
];

/// Installs the filter of a profile. Needs no_new_privs or CAP_SYS_ADMIN.
pub fn install(profile: &Profile) -> Result<()> {
    for program in compile(profile)? {
        sys::install_seccomp(&program).remedy(
            || "installing the system call filter".into(),
            |errno| match errno {
                rustix::io::Errno::INVAL => {
                    "the kernel lacks CONFIG_SECCOMP_FILTER: use --security-opt seccomp=unconfined"
                }
                _ => "",
            },
        )?;
    }
    Ok(())
}

/// The programs of a profile. Each can say one thing, so there are two; the kernel applies both.
pub fn compile(profile: &Profile) -> Result<[BpfProgram; 2]> {
    let refused = program(refused(profile)?, SeccompAction::Allow, libc::EPERM)?;
    let unknown = {
        let mut known: Rules = (0..=LAST_KNOWN)
            .map(|number| (number, Vec::new()))
            .collect();
        // A filter cannot look at the structure that holds clone3's flags.
        if !may_make_namespaces(profile) {
            known.remove(&libc::SYS_clone3);
        }
        let errno = SeccompAction::Errno(libc::ENOSYS as u32);
        build(known, errno, SeccompAction::Allow)?
    };
    Ok([refused, unknown])
}

fn may_make_namespaces(profile: &Profile) -> bool {
    profile.nest || profile.caps.has("SYS_ADMIN")
}

fn refused(profile: &Profile) -> Result<Rules> {
    let mut rules = Rules::new();
    let mut refuse = |calls: &[i64]| rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    refuse(NEVER);
    refuse(NEVER_HERE);
    for (caps, calls) in BY_CAPABILITY {
        if !caps.iter().any(|cap| profile.caps.has(cap)) {
            refuse(calls);
        }
    }
    if !may_make_namespaces(profile) {
        refuse(NAMESPACES);
        // clone(2) may make processes and threads, but no namespaces: one rule for each flag.
        let flag = |bit: u64| condition(0, Len::Qword, Op::MaskedEq(bit), bit);
        let bits = (0..64)
            .map(|bit| 1 << bit)
            .filter(|bit| CLONE_NAMESPACES & bit != 0);
        rules.insert(libc::SYS_clone, bits.map(flag).collect::<Result<_>>()?);
    }
    // Typing into the terminal of whoever looks at it (CVE-2017-5226), by ioctl number.
    let ioctl = |number: u64| condition(1, Len::Dword, Op::Eq, number);
    rules.insert(
        libc::SYS_ioctl,
        vec![ioctl(libc::TIOCSTI)?, ioctl(libc::TIOCLINUX)?],
    );
    // Sockets to the hypervisor reach past the network namespace.
    let vsock = condition(0, Len::Dword, Op::Eq, libc::AF_VSOCK as u64)?;
    rules.insert(libc::SYS_socket, vec![vsock]);
    // Execution domains other than Linux's own (and its query) open rarely tested kernel code.
    let other = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff]
        .map(|domain| SeccompCondition::new(0, Len::Dword, Op::Ne, domain));
    let other = other.into_iter().collect::<Result<Vec<_>, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(other)?]);
    Ok(rules)
}

fn condition(argument: u8, length: Len, op: Op, value: u64) -> Result<SeccompRule> {
    Ok(SeccompRule::new(vec![SeccompCondition::new(
        argument, length, op, value,
    )?])?)
}

fn program(rules: Rules, otherwise: SeccompAction, errno: i32) -> Result<BpfProgram> {
    build(rules, otherwise, SeccompAction::Errno(errno as u32))
}

fn build(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram> {
    let arch = std::env::consts::ARCH
        .try_into()
        .context("the system call filter knows x86-64, aarch64 and riscv64 only: use --security-opt seccomp=unconfined")?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(caps: u64, nest: bool) -> Profile {
        Profile {
            caps: CapSet(caps),
            nest,
        }
    }

    #[test]
    fn programs_fit_the_kernels_limit() {
        for profile in [profile(0, false), profile(u64::MAX >> 24, true)] {
            for program in compile(&profile).unwrap() {
                assert!(program.len() < 4096, "{}", program.len());
            }
        }
    }

    #[test]
    fn capabilities_and_nesting_re_allow() {
        let of = |profile| refused(&profile).unwrap();
        let default = of(profile(0xa804_25fb, false));
        for call in [
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_keyctl,
            libc::SYS_clone,
        ] {
            assert!(default.contains_key(&call), "{call}");
        }
        let nested = of(profile(0xa804_25fb, true));
        assert!(!nested.contains_key(&libc::SYS_mount) && nested.contains_key(&libc::SYS_bpf));
        let admin = of(profile(CapSet::all().0, false));
        assert!(!admin.contains_key(&libc::SYS_mount) && admin.contains_key(&libc::SYS_keyctl));
    }
}
