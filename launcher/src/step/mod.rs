//! The steps that turn fresh namespaces into a container: values first, their execution beside it.
//!
//! The plan lists them (pure), init executes them in order. Each step names what it tried when it
//! fails.

pub mod caps;
pub mod dev;
pub mod kernfs;
pub mod mount;
pub mod net;
pub mod payload;
pub mod rootfs;
pub mod seccomp;
pub mod userns;
pub mod volumes;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use unionfs::ostext::OsText;

/// One thing that init does before the command starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Become id 0 of the user namespace.
    BecomeRoot,
    /// Take the group just joined as the root of all cgroup paths.
    CgroupNamespace,
    /// No mount made here shows outside, and none from outside shows here.
    PrivateMounts,
    /// Set the host name.
    Hostname(String),
    /// Bring the loopback interface up.
    Loopback,
    /// Attach the mount in descriptor slot 0: all later targets lie in it.
    Root,
    /// /proc
    Proc,
    /// /sys: the own network namespace's, else the host's.
    Sysfs {
        /// A new sysfs shows the network namespace of the container.
        own_network: bool,
        /// Mounted read-only.
        read_only: bool,
    },
    /// /sys/fs/cgroup with the hierarchies that hold the container.
    Cgroups {
        /// v1 hierarchies, each by its list of controllers.
        v1: Vec<String>,
        /// The unified hierarchy.
        v2: bool,
        /// Mounted read-only.
        read_only: bool,
    },
    /// /dev
    Dev(dev::Dev),
    /// A bound host path (its mount is in a descriptor slot).
    Volume {
        /// Descriptor slot.
        slot: usize,
        /// Where it goes.
        target: OsText,
    },
    /// An empty filesystem in memory.
    Tmpfs(OsText),
    /// Hide these paths, where they exist.
    Mask(Vec<OsText>),
    /// Make these paths read-only, where they exist.
    ReadOnly(Vec<OsText>),
    /// Make the attached root `/` and drop the host's tree.
    Pivot,
    /// Make `/` itself read-only.
    ReadOnlyRoot,
}

/// What steps hand on to each other.
#[derive(Default)]
pub struct Context {
    /// Mounts made outside, by slot; taken by the step that attaches them.
    pub slots: Vec<Option<OwnedFd>>,
    /// The root directory of the container, from [`Step::Root`] on.
    pub root: Option<OwnedFd>,
    /// The terminal: master and slave.
    pub terminal: Option<(OwnedFd, OwnedFd)>,
    /// What the user should be told.
    pub notices: Vec<String>,
}

impl Context {
    /// The root directory of the container.
    fn root(&self) -> Result<&OwnedFd> {
        self.root
            .as_ref()
            .context("no root filesystem is attached yet")
    }

    fn take_slot(&mut self, slot: usize) -> Result<OwnedFd> {
        self.slots
            .get_mut(slot)
            .and_then(Option::take)
            .context("a mount was not handed over")
    }
}

impl Step {
    /// Executes the step.
    pub fn run(&self, context: &mut Context) -> Result<()> {
        match self {
            Self::BecomeRoot => userns::become_root(),
            Self::CgroupNamespace => net::cgroup_namespace(),
            Self::PrivateMounts => mount::make_private(),
            Self::Hostname(name) => net::hostname(name),
            Self::Loopback => net::loopback(),
            Self::Root => rootfs::attach(context),
            Self::Proc => kernfs::proc(context),
            Self::Sysfs {
                own_network,
                read_only,
            } => kernfs::sysfs(context, *own_network, *read_only),
            Self::Cgroups { v1, v2, read_only } => kernfs::cgroups(context, v1, *v2, *read_only),
            Self::Dev(plan) => dev::build(context, plan),
            Self::Volume { slot, target } => volumes::bind(context, *slot, target.path()),
            Self::Tmpfs(target) => volumes::tmpfs(context, target.path()),
            Self::Mask(paths) => kernfs::mask(context, paths),
            Self::ReadOnly(paths) => kernfs::read_only(context, paths),
            Self::Pivot => rootfs::pivot(context),
            Self::ReadOnlyRoot => rootfs::read_only(context),
        }
    }
}
