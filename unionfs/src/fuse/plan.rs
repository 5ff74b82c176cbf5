//! How opens are answered and how data flows: one decision per mount, made from plain values.

use crate::setup::SetupError;
use crate::spec::{CopyOnOpen, IoMode, MountSpec, OpenMode, Udba};
use std::fmt;

/// The way of file data between the kernel and the branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The kernel's page cache; misses and writes come as READ and WRITE.
    PageCache,
    /// No page cache: every read and write comes as a request.
    Direct,
    /// The kernel reads and writes files of the writable branch by itself; the rest as `PageCache`.
    Passthrough,
}

/// Who answers open(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// Every OPEN and OPENDIR is a request with an answer and a RELEASE.
    Answered,
    /// OPEN and OPENDIR are answered ENOSYS once; from then on the kernel opens by itself.
    ZeroMessage,
}

/// How a mount does its I/O. Chosen before mounting; INIT may still take back what the kernel
/// lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoPlan {
    /// Who answers opens.
    pub opens: Opens,
    /// OPENDIR is a request with an answer even where [`Self::opens`] says that opens are not: who
    /// may list a directory is decided here (`nodirperm1`), or names change: then the kernel's cache
    /// of a listing is for one open at a time ([`Union::open_dir`](crate::union::Union::open_dir)).
    pub answers_opendir: bool,
    /// How data flows.
    pub data: DataPath,
    /// Writes are collected in the page cache and written later (`writeback`).
    pub writeback: bool,
    /// The branches may change behind the union: pages are dropped when a file's time or size
    /// changed.
    pub revalidate: bool,
    /// POSIX ACLs are enforced.
    pub acl: bool,
    /// Why this plan, for the log.
    pub reason: &'static str,
    /// What the user should know about it.
    pub warnings: Vec<String>,
}

impl IoPlan {
    /// Is OPENDIR left to the kernel?
    pub fn leaves_opendir(&self) -> bool {
        self.opens == Opens::ZeroMessage && !self.answers_opendir
    }

    /// Chooses by the options of a mount. `may_passthrough`: the server has CAP_SYS_ADMIN in the
    /// initial user namespace, which the kernel demands for passthrough.
    ///
    /// # Errors
    /// [`SetupError::Option`] for options that exclude each other.
    pub fn choose(spec: &MountSpec, may_passthrough: bool) -> Result<Self, SetupError> {
        let options = &spec.options;
        let copy_on_open = spec
            .branches
            .iter()
            .any(|branch| branch.perm.copy_on_open != CopyOnOpen::Never);
        let writable = spec
            .branches
            .iter()
            .filter(|branch| branch.perm.writable())
            .count();
        refuse_conflicts(spec, copy_on_open)?;

        let (data, reason) = match options.io {
            IoMode::Direct => (DataPath::Direct, "asked for"),
            IoMode::Cache => (DataPath::PageCache, "asked for"),
            IoMode::Passthrough if may_passthrough => (DataPath::Passthrough, "asked for"),
            IoMode::Passthrough => (
                DataPath::PageCache,
                "passthrough needs root of the initial user namespace",
            ),
            IoMode::Auto if options.open == OpenMode::None => {
                (DataPath::PageCache, "open=none excludes passthrough")
            }
            IoMode::Auto if options.writeback => {
                (DataPath::PageCache, "writeback excludes passthrough")
            }
            IoMode::Auto if !may_passthrough => {
                (DataPath::PageCache, "no privilege for passthrough")
            }
            IoMode::Auto if options.move_on_enospc.is_some() => (
                DataPath::PageCache,
                "moveonenospc: the daemon must see every write",
            ),
            IoMode::Auto if options.xattr_permissions.is_some() => (
                DataPath::PageCache,
                "xattr_permissions excludes passthrough",
            ),
            IoMode::Auto if copy_on_open => (DataPath::PageCache, "a branch copies up on open"),
            IoMode::Auto if writable != 1 => (
                DataPath::PageCache,
                "passthrough needs exactly one writable branch",
            ),
            IoMode::Auto => (DataPath::Passthrough, "root and one writable branch"),
        };
        let exclusive = options.udba == Udba::None;
        let opens = match options.open {
            OpenMode::Answered => Opens::Answered,
            OpenMode::None => Opens::ZeroMessage,
            OpenMode::Auto if exclusive && data == DataPath::PageCache && !copy_on_open => {
                Opens::ZeroMessage
            }
            OpenMode::Auto => Opens::Answered,
        };
        let mut plan = Self {
            opens,
            answers_opendir: !options.dirperm1 || writable > 0,
            data,
            writeback: options.writeback,
            revalidate: !exclusive,
            acl: options.acl,
            reason,
            warnings: Vec::new(),
        };
        plan.warn(options.io);
        Ok(plan)
    }

    /// Adds the warnings that follow from the plan.
    fn warn(&mut self, asked: IoMode) {
        if asked == IoMode::Passthrough && self.data != DataPath::Passthrough {
            self.warnings
                .push(format!("io=passthrough: {}: io=cache is used", self.reason));
        }
        if self.writeback && self.revalidate {
            self.warnings.push(
                "writeback: changes made behind the union are not seen in cached files: udba=none or no writeback".into(),
            );
        }
        if self.opens == Opens::ZeroMessage && self.revalidate {
            self.warnings
                .push("open=none: entries added behind the union may stay unlisted: udba=none or open=answered".into());
        }
    }
}

/// Options that cannot be honoured together.
fn refuse_conflicts(spec: &MountSpec, copy_on_open: bool) -> Result<(), SetupError> {
    let options = &spec.options;
    let conflict = |what: &str, hint: &str| {
        Err(SetupError::Option {
            what: what.into(),
            hint: hint.into(),
        })
    };
    match (options.io, options.open, options.writeback) {
        (IoMode::Passthrough, OpenMode::None, _) => conflict(
            "io=passthrough",
            "needs opens to be answered: open=answered, or io=cache with open=none",
        ),
        (IoMode::Direct, OpenMode::None, _) => conflict(
            "io=direct",
            "needs opens to be answered: open=answered, or io=cache with open=none",
        ),
        (IoMode::Passthrough, ..) if options.move_on_enospc.is_some() => conflict(
            "io=passthrough",
            "the kernel's own writes cannot go on on another branch: io=cache with moveonenospc",
        ),
        (IoMode::Passthrough, _, true) => conflict(
            "writeback",
            "cannot be combined with io=passthrough: leave one of them out",
        ),
        (IoMode::Direct, _, true) => conflict(
            "writeback",
            "cannot be combined with io=direct: leave one of them out",
        ),
        (_, OpenMode::None, _) if copy_on_open => conflict(
            "open=none",
            "a branch copies up on open (coo, moo), which needs open=answered",
        ),
        // The kernel's own writes to a file do not wait while it moves to another branch.
        (IoMode::Passthrough, ..) if moves_writable(spec) => conflict(
            "io=passthrough",
            "files leave a writable branch when they are opened (coo, moo): io=cache",
        ),
        _ => Ok(()),
    }
}

/// Does a writable branch give its files to one above it when they are opened?
fn moves_writable(spec: &MountSpec) -> bool {
    let mut writable = spec.branches.iter().filter(|b| b.perm.writable()).skip(1);
    writable.any(|b| b.perm.copy_on_open != CopyOnOpen::Never)
}

impl fmt::Display for IoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = match self.data {
            DataPath::PageCache if self.writeback => "cache,writeback",
            DataPath::PageCache => "cache",
            DataPath::Direct => "direct",
            DataPath::Passthrough => "passthrough",
        };
        let opens = match self.opens {
            Opens::Answered => "answered",
            Opens::ZeroMessage => "none",
        };
        write!(f, "io={data}, open={opens} ({})", self.reason)
    }
}

/// May this process register backing files with the kernel? True for CAP_SYS_ADMIN in the initial
/// user namespace (`capable()` in fs/fuse/backing.c).
pub fn may_passthrough() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    let admin =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    admin && crate::sys::creds::in_initial_userns()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{BranchPerm, BranchSpec, Grammar, MountFlags, Options, SpillPolicy};

    fn spec(grammar: Grammar, perms: &[BranchPerm]) -> MountSpec {
        let branch = |&perm| BranchSpec {
            path: "/b".into(),
            perm,
            format: None,
            workdir: None,
        };
        MountSpec {
            grammar,
            branches: perms.iter().map(branch).collect(),
            options: Options::defaults(grammar),
            mount: MountFlags::default(),
            warnings: Vec::new(),
        }
    }

    fn choose(spec: &MountSpec, root: bool) -> (DataPath, Opens) {
        let plan = IoPlan::choose(spec, root).unwrap();
        (plan.data, plan.opens)
    }

    #[test]
    fn defaults_follow_privilege_and_branches() {
        use DataPath::*;
        use Opens::*;
        let (rw, ro) = (BranchPerm::RW, BranchPerm::RO);
        let coo = BranchPerm {
            copy_on_open: CopyOnOpen::Regular,
            ..ro
        };
        let table: &[(Grammar, &[BranchPerm], bool, DataPath, Opens)] = &[
            (Grammar::Aufs, &[rw, ro], true, Passthrough, Answered),
            (Grammar::Aufs, &[rw, ro], false, PageCache, Answered),
            (Grammar::Aufs, &[rw, rw], true, PageCache, Answered),
            (Grammar::Overlay, &[rw, ro], true, Passthrough, Answered),
            (Grammar::Overlay, &[rw, ro], false, PageCache, ZeroMessage),
            (Grammar::Overlay, &[ro, ro], true, PageCache, ZeroMessage),
            (Grammar::Overlay, &[rw, coo], true, PageCache, Answered),
            (Grammar::Overlay, &[rw, coo], false, PageCache, Answered),
        ];
        for (grammar, perms, root, data, opens) in table {
            assert_eq!(
                choose(&spec(*grammar, perms), *root),
                (*data, *opens),
                "{grammar:?} {perms:?} root={root}"
            );
        }
    }

    #[test]
    fn options_force_the_mode() {
        let mut spec = spec(Grammar::Overlay, &[BranchPerm::RW, BranchPerm::RO]);
        spec.options.open = OpenMode::None;
        assert_eq!(
            choose(&spec, true),
            (DataPath::PageCache, Opens::ZeroMessage)
        );
        spec.options.open = OpenMode::Answered;
        assert_eq!(choose(&spec, false), (DataPath::PageCache, Opens::Answered));
        spec.options.io = IoMode::Direct;
        assert_eq!(choose(&spec, true), (DataPath::Direct, Opens::Answered));
        spec.options.io = IoMode::Passthrough;
        assert_eq!(IoPlan::choose(&spec, false).unwrap().warnings.len(), 1);
    }

    #[test]
    fn moving_on_from_a_full_branch_excludes_passthrough() {
        let mut spec = spec(Grammar::Aufs, &[BranchPerm::RW, BranchPerm::RO]);
        spec.options.move_on_enospc = Some(SpillPolicy::MostFree);
        assert_eq!(choose(&spec, true), (DataPath::PageCache, Opens::Answered));
        spec.options.io = IoMode::Passthrough;
        assert!(IoPlan::choose(&spec, true).is_err());
    }

    #[test]
    fn contradictions_are_refused() {
        let mut spec = spec(Grammar::Overlay, &[BranchPerm::RW]);
        spec.options.io = IoMode::Passthrough;
        spec.options.writeback = true;
        assert!(IoPlan::choose(&spec, true).is_err());
        spec.options.writeback = false;
        spec.options.open = OpenMode::None;
        assert!(IoPlan::choose(&spec, true).is_err());
        spec.options.io = IoMode::Auto;
        spec.branches[0].perm.copy_on_open = CopyOnOpen::All;
        assert!(IoPlan::choose(&spec, true).is_err());
        spec.options.open = OpenMode::Auto;
        spec.options.io = IoMode::Passthrough;
        assert!(IoPlan::choose(&spec, true).is_ok());
        spec.branches.push(spec.branches[0].clone());
        assert!(IoPlan::choose(&spec, true).is_err());
    }
}
