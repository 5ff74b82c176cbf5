//! The process between the caller and the container: it has the user namespace (where there is
//! one) and a mount namespace in which nothing is ever mounted, makes the union and volumes as
//! detached mounts, starts the union daemon and init as the caller's children, and ends.
//!
//! The daemon stays behind in this mount namespace: pivot_root in the container's moves only what
//! is in there, so the daemon never waits for its own mount.

use crate::error::{self, Explain};
use crate::fsd::{self, FsConfig};
use crate::init;
use crate::plan::{Plan, UsernsPlan};
use crate::selfexe;
use crate::spec::{Root, Spec};
use crate::step::{caps, mount, userns, volumes};
use crate::sync::{Channel, DaemonReport, Go, OuterReport};
use crate::sys::{self, ChildProcess, Cloned};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FileType;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use unionfs::sys::mount_attr;

/// What the process is given.
pub struct Outer<'a> {
    /// What is asked for.
    pub spec: &'a Spec,
    /// How it is done.
    pub plan: &'a Plan,
    /// The union, where there is one.
    pub union: Option<&'a FsConfig>,
    /// The program to start the others from.
    pub program: &'a OwnedFd,
    /// To the caller.
    pub report: &'a Channel,
    /// Init's end of its connection to the caller.
    pub init: &'a Channel,
}

impl Outer<'_> {
    /// Runs in the new process and ends it.
    pub fn run(&self) -> ! {
        let code = match self.try_run() {
            Ok(()) => 0,
            Err(error) => {
                let _ = self
                    .report
                    .send(&OuterReport::Failed(error::message(&error)));
                1
            }
        };
        sys::exit_now(code)
    }

    fn try_run(&self) -> Result<()> {
        if self.report.receive::<Go>()?.is_none() {
            bail!("ulaunch is gone");
        }
        if matches!(self.plan.userns, UsernsPlan::Outer(_)) {
            userns::become_root()?;
        }
        mount::make_private()?;
        let root = match (&self.spec.root, self.union) {
            (Root::Directory(path), _) => self.directory(path.path())?,
            (Root::Union(_), Some(config)) => self.start_union(config)?,
            (Root::Union(_), None) => bail!("no union was planned"),
        };
        let mut slots = vec![root];
        for volume in &self.spec.volumes {
            slots.push(volumes::prepare(volume)?);
        }
        let child = self.start_init(&slots)?;
        self.report
            .send_with(&OuterReport::Init(child.pid), &[child.pidfd.as_fd()])
    }

    /// A directory as root filesystem: a copy of its mount, in which device nodes are dead (see
    /// [`fsd::make_mount`]) and ids are those of the container.
    fn directory(&self, path: &Path) -> Result<OwnedFd> {
        let what = || format!("--rootfs {}", path.display());
        let mount = mount::clone_host(path, true).remedy(what, |_| "give an existing directory")?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&mount).explain(what)?.st_mode);
        ensure!(
            kind == FileType::Directory,
            "{}: no directory: give an existing directory",
            what()
        );
        mount::restrict(&mount, mount_attr::NODEV, true).explain(what)?;
        if let UsernsPlan::Inner(maps) = &self.plan.userns {
            let namespace = userns::namespace_with(maps)?;
            mount_attr::set_idmap(mount.as_fd(), namespace.as_fd()).remedy(
                || format!("{}: shifting the ids (idmapped mount)", what()),
                |_| "this filesystem or kernel cannot: use --branch, or --userns host",
            )?;
        }
        Ok(mount)
    }

    /// Makes the mount and starts its daemon; returns when it answers.
    fn start_union(&self, config: &FsConfig) -> Result<OwnedFd> {
        let device = fsd::open_device()?;
        let mount = fsd::make_mount(&device)?;
        let (ours, theirs) = Channel::pair()?;
        let file = selfexe::value_file(config)?;
        match sys::clone_process(libc::CLONE_PARENT)
            .explain(|| "starting the union daemon".into())?
        {
            Cloned::Child => {
                let fds = [theirs.as_fd(), device.as_fd(), file.as_fd()];
                let error = selfexe::exec(self.program.as_fd(), fsd::COMMAND, &fds);
                let _ = theirs.send(&DaemonReport::Failed(error::message(&error)));
                sys::exit_now(1)
            }
            Cloned::Parent(daemon) => {
                drop(theirs);
                self.report.send_with(
                    &OuterReport::Daemon(daemon.pid),
                    &[daemon.pidfd.as_fd(), device.as_fd()],
                )?;
                // From here on it is the daemon's and the launcher's: should both die, the
                // connection ends.
                drop(device);
                match ours.receive::<DaemonReport>()? {
                    Some(DaemonReport::Ready) => Ok(mount),
                    Some(DaemonReport::Failed(message)) => bail!("{message}"),
                    None => bail!("the union daemon ended before it answered"),
                }
            }
        }
    }

    fn start_init(&self, slots: &[OwnedFd]) -> Result<ChildProcess> {
        let mut flags = self.plan.namespaces | libc::CLONE_PARENT;
        if matches!(self.plan.userns, UsernsPlan::Inner(_)) {
            flags |= libc::CLONE_NEWUSER;
        }
        let file = selfexe::value_file(&self.plan.init)?;
        match sys::clone_process(flags).explain(|| "making the container's namespaces".into())? {
            Cloned::Child => {
                let mut fds = vec![self.init.as_fd(), file.as_fd()];
                fds.extend(slots.iter().map(AsFd::as_fd));
                let kept = match self.plan.userns {
                    UsernsPlan::Inner(_) => caps::keep_over_exec(),
                    UsernsPlan::Host | UsernsPlan::Outer(_) => Ok(()),
                };
                let error = match kept {
                    Ok(()) => selfexe::exec(self.program.as_fd(), init::COMMAND, &fds),
                    Err(error) => error,
                };
                init::report_failure(self.init, &error);
                sys::exit_now(1)
            }
            Cloned::Parent(child) => Ok(child),
        }
    }
}

/// The namespaces of this process.
pub fn flags(plan: &Plan) -> libc::c_int {
    match plan.userns {
        UsernsPlan::Outer(_) => libc::CLONE_NEWUSER | libc::CLONE_NEWNS,
        UsernsPlan::Host | UsernsPlan::Inner(_) => libc::CLONE_NEWNS,
    }
}

/// Starts the process; it has to call [`Outer::run`].
pub fn start(plan: &Plan) -> Result<Cloned> {
    let started = sys::clone_process(flags(plan)).remedy(
        || "making a user namespace".into(),
        |errno| match errno {
            rustix::io::Errno::PERM => "in a container, start that with --nest; else the host forbids it: sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0",
            rustix::io::Errno::NOSPC | rustix::io::Errno::USERS => "raise sysctl user.max_user_namespaces",
            rustix::io::Errno::INVAL => "the kernel was built without user namespaces",
            _ => "",
        },
    );
    started.context("cannot start a container")
}
