//! `ulaunch run`: from the command line to a running container and its end.

use crate::cgroup::group;
use crate::cli::RunArgs;
use crate::console;
use crate::error::{self, Explain};
use crate::fsd::FsConfig;
use crate::guard::Guard;
use crate::host::Facts;
use crate::outer::{self, Outer};
use crate::plan::{Caller, Plan, UsernsPlan};
use crate::spec::{IdMapping, Limits, Root, Volume};
use crate::state::{self, ProcessId, Record, Status, Store};
use crate::step::{dev, userns};
use crate::supervise::{Container, Outcome};
use crate::sync::{Channel, Go, OuterReport};
use crate::sys::{self, ChildProcess, Cloned};
use crate::{manage, selfexe, terminal};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use unionfs::ostext::OsText;

/// Where `ulaunch` inside a container keeps its layers, and its locks.
const NESTED: [(&str, &str); 2] = [("data", "/var/lib/ulaunch"), ("run", "/run/ulaunch")];

/// Runs a container; returns the exit code for the user.
pub fn run(store: &Store, args: RunArgs) -> Result<u8> {
    // What the caller left open is none of the container's business.
    sys::close_on_exec_from(3).explain(|| "closing inherited descriptors".into())?;
    let name = args.name();
    let mut spec = args.into_spec()?;
    let facts = Facts::gather(spec.limits != Limits::default())?;
    let id = state::new_id()?;
    let caller = Caller {
        terminal: terminal::size(),
        term: std::env::var_os("TERM").map(OsText),
    };
    if spec.security.nest {
        // A union refuses the names that another one on top of it needs for its bookkeeping, so
        // containers inside keep their layers in a directory that is none. The host's own of these
        // names, seen through a union over /, are not for them.
        spec.volumes.extend(NESTED.map(|(name, target)| Volume {
            source: store.nested(&id).join(name).into(),
            target: target.into(),
            read_only: false,
        }));
    }
    let plan = Plan::new(&id, &spec, &facts, &caller)?;
    let fresh_layer = needs_layer(&spec.root);
    let mut record = Record::new(id, name, spec);
    record.maps = plan.userns.maps().cloned();
    record.layer = layer_of(store, &record, fresh_layer);
    record.cgroups = group::directories(&plan.cgroup)
        .into_iter()
        .map(OsText::from)
        .collect();
    for notice in &plan.notices {
        console::complain(&format!("notice: {notice}"));
    }
    if record.spec.detach {
        return detach(store, record, &plan);
    }
    supervise(store, record, &plan, None)
}

/// Only readonly branches: the changes go to a fresh layer.
fn needs_layer(root: &Root) -> bool {
    match root {
        Root::Directory(_) => false,
        Root::Union(branches) => !branches.iter().any(|(_, perm)| perm.starts_with("rw")),
    }
}

fn layer_of(store: &Store, record: &Record, fresh: bool) -> Option<OsText> {
    match &record.spec.root {
        Root::Union(_) if fresh => Some(store.layer(&record.id).into()),
        Root::Union(branches) => branches
            .iter()
            .find(|(_, perm)| perm.starts_with("rw"))
            .map(|(path, _)| path.clone()),
        Root::Directory(path) => Some(path.clone()),
    }
}

/// The supervisor goes on in the background; the id is printed once the command runs.
fn detach(store: &Store, record: Record, plan: &Plan) -> Result<u8> {
    let (ours, theirs) = Channel::pair()?;
    match sys::clone_process(0).explain(|| "going to the background".into())? {
        Cloned::Child => {
            drop(ours);
            rustix::process::setsid().ok();
            let code = supervise(store, record, plan, Some(&theirs)).unwrap_or_else(|error| {
                let _ = theirs.send(&Some(error::message(&error)));
                125
            });
            sys::exit_now(code.into())
        }
        Cloned::Parent(_) => {
            drop(theirs);
            match ours.receive::<Option<String>>()? {
                Some(None) => {
                    console::print(&record.id)?;
                    Ok(0)
                }
                Some(Some(message)) => bail!("{message}"),
                None => bail!(
                    "the container ended before its command ran: see `ulaunch logs {}`",
                    record.id
                ),
            }
        }
    }
}

/// Directories for containers inside, which belong to the container's root.
fn prepare_nested(store: &Store, record: &Record) -> Result<()> {
    if !record.spec.security.nest {
        return Ok(());
    }
    let root = |map: &[IdMapping]| {
        map.iter()
            .find(|range| range.inside == 0)
            .map(|r| r.outside)
    };
    for (name, _) in NESTED {
        let dir = store.nested(&record.id).join(name);
        let what = || format!("making {}", dir.display());
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(&dir).explain(what)?;
        if let (Some(maps), true) = (&record.maps, rustix::process::geteuid().is_root()) {
            std::os::unix::fs::chown(&dir, root(&maps.uids), root(&maps.gids)).explain(what)?;
        }
    }
    Ok(())
}

fn redirect_to_log(store: &Store, id: &str) -> Result<()> {
    let path = store.log(id);
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let log = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
        .explain(|| format!("writing {}", path.display()))?;
    dev::null_stdio()?;
    rustix::stdio::dup2_stdout(&log).explain(|| "redirecting the output".into())?;
    rustix::stdio::dup2_stderr(&log).explain(|| "redirecting the output".into())
}

/// Makes the record and runs the container, under a guard that cleans up should the launcher be
/// killed. With `started` the container is detached.
fn supervise(
    store: &Store,
    mut record: Record,
    plan: &Plan,
    started: Option<&Channel>,
) -> Result<u8> {
    let guard = Guard::start(store, &record)?;
    let made = store.create(&record, needs_layer(&record.spec.root));
    let code = made.and_then(|alive| {
        let outcome = supervise_with(store, &mut record, plan, started);
        let code = finish(store, record.clone(), outcome);
        store.forget_alive(&record.id);
        drop(alive);
        code
    });
    if let Some(guard) = guard {
        guard.dismiss();
    }
    code
}

/// Starts the container and stays with it. `started` is told `None` once the command runs, else why
/// it does not.
fn supervise_with(
    store: &Store,
    record: &mut Record,
    plan: &Plan,
    started: Option<&Channel>,
) -> Result<Outcome> {
    record.supervisor = ProcessId::of(std::process::id() as i32);
    let made = prepare_nested(store, record)
        .and_then(|()| started.map_or(Ok(()), |_| redirect_to_log(store, &record.id)))
        .and_then(|()| group::create(&plan.cgroup));
    let result = made.and_then(|()| {
        let outcome = start(store, record, plan).and_then(|mut container| {
            container.on_started(started.map(|channel| {
                move || {
                    let _ = channel.send(&None::<String>);
                }
            }))
        });
        for left in group::remove(&group::directories(&plan.cgroup)) {
            console::complain(&format!(
                "notice: {}: still busy: remove it later with rmdir",
                left.display()
            ));
        }
        outcome
    });
    if let (Err(error), Some(channel)) = (&result, started) {
        let _ = channel.send(&Some(error::message(error)));
    }
    result
}

fn start(store: &Store, record: &mut Record, plan: &Plan) -> Result<Container> {
    let signals = sys::block_signals().explain(|| "blocking signals".into())?;
    let spec = record.spec.clone();
    if !spec.interactive && !spec.tty {
        let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .explain(|| "opening /dev/null".into())?;
        rustix::stdio::dup2_stdin(&null).explain(|| "closing standard input".into())?;
    }
    let union = union_config(store, record, plan)?;
    let program = selfexe::sealed()?;
    let (report, report_theirs) = Channel::pair()?;
    let (init, init_theirs) = Channel::pair()?;
    let outer = Outer {
        spec: &spec,
        plan,
        union: union.as_ref(),
        program: &program,
        report: &report_theirs,
        init: &init_theirs,
    };
    let between = match outer::start(plan)? {
        Cloned::Parent(process) => process,
        Cloned::Child => {
            // The launcher's own ends: with copies of them open the new process, and those that it
            // starts, would not see the launcher's death.
            drop((report, init));
            outer.run()
        }
    };
    drop((report_theirs, init_theirs));
    let outer_pid = between.pid;
    let mut family = Family(vec![between]);
    if let UsernsPlan::Outer(maps) = &plan.userns {
        userns::write_maps(outer_pid, maps)?;
    }
    group::join(&plan.cgroup, outer_pid, true)?;
    report.send(&Go)?;
    let mut daemon = None;
    // After the family, hence dropped before it: nobody who is to be reaped waits for a dead daemon.
    let mut device = None;
    let init_pid = loop {
        let (message, fds) = next_report(&report, &signals)?;
        let mut fds = fds.into_iter();
        match (message, fds.next()) {
            (OuterReport::Daemon(pid), Some(pidfd)) => {
                daemon = Some(pid);
                device = fds.next();
                family.0.push(ChildProcess { pid, pidfd });
            }
            (OuterReport::Init(pid), Some(pidfd)) => {
                family.0.push(ChildProcess { pid, pidfd });
                break pid;
            }
            (OuterReport::Failed(message), _) => bail!("{message}"),
            _ => bail!("a process of the container reported without its descriptor"),
        }
    };
    if let UsernsPlan::Inner(maps) = &plan.userns {
        userns::write_maps(init_pid, maps)?;
    }
    group::join(&plan.cgroup, init_pid, false)?;
    let mut running = record.clone();
    running.init = ProcessId::of(init_pid);
    running.daemon = daemon.and_then(ProcessId::of);
    running.status = Status::Running;
    store.save(&running)?;
    *record = running;
    init.send(&Go)?;
    let mut take = || family.0.pop();
    let init_process = take().context("there is no init")?;
    Ok(Container {
        init: init_process,
        daemon: daemon.and_then(|_| take()),
        device,
        channel: init,
        signals,
        oom: plan.cgroup.oom_counter.clone(),
        memory: spec.limits.memory,
    })
}

/// What the process between says next, unless a signal asks the launcher to end.
fn next_report(report: &Channel, signals: &OwnedFd) -> Result<(OuterReport, Vec<OwnedFd>)> {
    let mut fds = [
        PollFd::new(report, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).explain(|| "waiting for the container".into()),
        }
        if !fds[0].revents().is_empty() {
            return report
                .receive_with::<OuterReport>()?
                .context("the container could not be made: a process of it was killed");
        }
        while let Some(signal) = sys::next_signal(signals).explain(|| "reading a signal".into())? {
            if sys::ends_programs(signal.number) {
                bail!(
                    "stopped by signal {} before the command ran (EINTR)",
                    signal.number
                );
            }
        }
    }
}

/// Processes of a container that is being made: ended and reaped unless they were taken.
struct Family(Vec<ChildProcess>);

impl Drop for Family {
    fn drop(&mut self) {
        // The youngest first: init, then the daemon that serves it.
        while let Some(child) = self.0.pop() {
            let _ = sys::pidfd_signal(child.pidfd.as_fd(), libc::SIGKILL);
            child.reap();
        }
    }
}

/// The union of this container, its fresh layer prepared to look like the branch below it.
fn union_config(store: &Store, record: &Record, plan: &Plan) -> Result<Option<FsConfig>> {
    let Root::Union(asked) = &record.spec.root else {
        return Ok(None);
    };
    let mut branches = asked.clone();
    if needs_layer(&record.spec.root) {
        let layer = store.layer(&record.id);
        if let Some((top, _)) = branches.first() {
            let what = || format!("--branch {}", top.path().display());
            let like =
                std::fs::metadata(top.path()).remedy(what, |_| "give an existing directory")?;
            let mode = std::fs::Permissions::from_mode(like.mode() & 0o7777);
            std::fs::set_permissions(&layer, mode).explain(what)?;
        }
        branches.insert(0, (layer.into(), "rw".into()));
    }
    // With few ids most owners in a tree have none here; `nobody` would lock even root out.
    let foreign_as_root = matches!(plan.userns, UsernsPlan::Outer(_));
    let (uid_map, gid_map) = match &plan.userns {
        UsernsPlan::Inner(maps) => (maps.uids.clone(), maps.gids.clone()),
        _ => (Vec::new(), Vec::new()),
    };
    Ok(Some(FsConfig {
        branches,
        udba: record.spec.udba.clone(),
        hidden: store.directories(),
        uid_map,
        gid_map,
        foreign_as_root,
    }))
}

/// Records the end, removes what is not kept, and tells the user.
fn finish(store: &Store, mut record: Record, outcome: Result<Outcome>) -> Result<u8> {
    let (code, reason, oom_kills) = match outcome {
        Ok(outcome) => (outcome.code, outcome.reason, outcome.oom_kills),
        Err(error) => (125, Some(error::message(&error)), 0),
    };
    if let Some(reason) = &reason {
        console::complain(reason);
    }
    record.status = Status::Exited;
    record.finished = Some(state::now());
    record.exit_code = Some(code);
    record.oom_kills = oom_kills;
    let never_ran = record.init.is_none();
    record.reason = reason;
    (record.supervisor, record.init, record.daemon) = (None, None, None);
    record.cgroups.clear();
    if record.spec.remove || never_ran {
        manage::remove_files(store, &record)?;
    } else if let Err(error) = store.save(&record) {
        // The code is the command's all the same.
        console::complain(&format!("notice: {error:#}"));
    }
    Ok(code)
}
