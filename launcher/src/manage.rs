//! The commands on containers that exist.

use crate::as_root::as_container_root;
use crate::cgroup::group;
use crate::console::{self, plain};
use crate::error::Explain;
use crate::guard;
use crate::spec::Root;
use crate::state::{Record, Status, Store};
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use unionfs::diff::{Letters, Lower, Printer, diff as compare};
use unionfs::sys::remove;

/// How often a container without a descriptor to wait on is looked at.
const LOOK: Duration = Duration::from_millis(50);

fn is_running(store: &Store, record: &Record) -> bool {
    record.status != Status::Exited && store.is_alive(&record.id)
}

/// `ulaunch ps`
pub fn ps(store: &Store, all: bool, json: bool) -> Result<u8> {
    store.sweep()?;
    let mut shown = Vec::new();
    for record in store.all()? {
        let Some(record) = guard::settle(store, record)? else {
            continue;
        };
        let running = is_running(store, &record);
        if running || all {
            shown.push((record, running));
        }
    }
    if json {
        let list: Vec<_> = shown
            .iter()
            .map(|(r, running)| serde_json::json!({"id": r.id, "name": r.name, "running": running, "exit_code": r.exit_code, "created": r.created, "command": r.spec.command}))
            .collect();
        console::print(&serde_json::to_string(&list)?)?;
        return Ok(0);
    }
    console::print(&format!(
        "{:<14}{:<18}{:<12}COMMAND",
        "ID", "NAME", "STATUS"
    ))?;
    for (record, running) in shown {
        let status = match (running, record.exit_code) {
            (true, _) => "running".to_owned(),
            (false, Some(code)) => format!("exited {code}"),
            (false, None) => "dead".to_owned(),
        };
        let command: Vec<_> = record
            .spec
            .command
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        console::print(&format!(
            "{:<14}{:<18}{status:<12}{}",
            record.id,
            record.name,
            plain(&command.join(" "))
        ))?;
    }
    Ok(0)
}

/// `ulaunch inspect`
pub fn inspect(store: &Store, name: &str) -> Result<u8> {
    console::print(&serde_json::to_string_pretty(&store.find(name)?)?)?;
    Ok(0)
}

/// `ulaunch diff`
pub fn diff(store: &Store, name: &str, json: bool) -> Result<u8> {
    let record = store.find(name)?;
    let Root::Union(branches) = &record.spec.root else {
        bail!(
            "{name}: runs on a plain directory (--rootfs), which keeps no record of changes: use --branch"
        );
    };
    let layer = record
        .layer
        .as_ref()
        .context("the container has no writable layer")?;
    // What lies above the layer is not below it; a fresh layer lies above everything.
    let above = branches.iter().position(|(path, _)| path == layer);
    let lowers: Vec<Lower<'_>> = branches[above.map_or(0, |at| at + 1)..]
        .iter()
        .map(|(path, perm)| Lower {
            path: path.path(),
            whiteouts: perm.starts_with("rw") || perm.split('+').any(|word| word == "wh"),
        })
        .collect();
    let show = || {
        let out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut printer = Printer::new(out, json, Letters::Changed);
        compare(layer.path(), &lowers, &mut |changed| printer.print(changed))?;
        printer.finish().explain(|| "writing".into())
    };
    match &record.maps {
        // Directories that only the container's ids may read.
        Some(maps) if !rustix::process::geteuid().is_root() => as_container_root(maps, show)?,
        _ => show()?,
    }
    Ok(0)
}

/// `ulaunch logs`
pub fn logs(store: &Store, name: &str, follow: bool) -> Result<u8> {
    let record = store.find(name)?;
    let path = store.log(&record.id);
    let mut log = std::fs::File::open(&path).remedy(
        || format!("logs of {name}"),
        |_| "only detached containers (run -d) have a log",
    )?;
    let mut out = std::io::stdout().lock();
    loop {
        let running = is_running(store, &record);
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        out.write_all(&text)?;
        out.flush()?;
        if !follow || !running {
            return Ok(0);
        }
        std::thread::sleep(LOOK);
        log.stream_position()?;
    }
}

/// `ulaunch wait`
pub fn wait(store: &Store, name: &str) -> Result<u8> {
    let id = store.find(name)?.id;
    while store.is_alive(&id) {
        std::thread::sleep(LOOK);
    }
    match store.load(&id).ok().and_then(|record| record.exit_code) {
        Some(code) => console::print(&code.to_string())?,
        None => bail!("{name}: ended without a record (removed, or its launcher was killed)"),
    }
    Ok(0)
}

fn running_init(store: &Store, name: &str) -> Result<(Record, OwnedFd)> {
    let record = store.find(name)?;
    ensure!(
        is_running(store, &record),
        "{name}: is not running: see `ulaunch ps -a`"
    );
    let init = record.init.and_then(|process| process.open());
    let init = init.with_context(|| format!("{name}: is not running any more"))?;
    Ok((record, init))
}

/// `ulaunch kill`
pub fn kill(store: &Store, name: &str, signal: &str) -> Result<u8> {
    let number = signal_number(signal).with_context(|| {
        format!("--signal {signal}: unknown: use a name such as TERM, or a number")
    })?;
    // From outside it would stop PID 1 alone, and the command would go on.
    ensure!(
        number != libc::SIGSTOP,
        "--signal STOP: cannot be passed on to the command: use TSTP"
    );
    let (_, init) = running_init(store, name)?;
    sys::pidfd_signal(init.as_fd(), number).explain(|| format!("signalling {name}"))?;
    Ok(0)
}

/// `ulaunch stop`
pub fn stop(store: &Store, name: &str, seconds: u32) -> Result<u8> {
    let (record, init) = running_init(store, name)?;
    sys::pidfd_signal(init.as_fd(), libc::SIGTERM).explain(|| format!("signalling {name}"))?;
    let timeout = Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    if poll(&mut [PollFd::new(&init, PollFlags::IN)], Some(&timeout)) == Ok(0) {
        let _ = sys::pidfd_signal(init.as_fd(), libc::SIGKILL);
    }
    while store.is_alive(&record.id) {
        std::thread::sleep(LOOK);
    }
    Ok(0)
}

fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    const NAMES: [(&str, i32); 14] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("TSTP", libc::SIGTSTP),
        ("WINCH", libc::SIGWINCH),
    ];
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// `ulaunch rm`
pub fn rm(store: &Store, names: &[String], force: bool) -> Result<u8> {
    for name in names {
        let Some(record) = guard::settle(store, store.find(name)?)? else {
            continue;
        };
        if is_running(store, &record) {
            ensure!(
                force,
                "{name}: is running (EBUSY): stop it first, or use --force"
            );
            if let Some(init) = record.init.and_then(|process| process.open()) {
                let _ = sys::pidfd_signal(init.as_fd(), libc::SIGKILL);
            }
            while store.is_alive(&record.id) {
                std::thread::sleep(LOOK);
            }
        }
        // A launcher that was killed could not do it.
        let groups: Vec<PathBuf> = record
            .cgroups
            .iter()
            .map(|dir| dir.path().to_path_buf())
            .collect();
        group::remove(&groups);
        remove_files(store, &record)?;
    }
    Ok(0)
}

/// Removes a container's directory, with files in it that belong to subordinate ids.
pub fn remove_files(store: &Store, record: &Record) -> Result<()> {
    let dir = store.directory(&record.id);
    let what = || format!("removing {}", dir.display());
    let remove = || {
        // The record goes last: whoever is killed here can be followed by another.
        remove::tree(&store.layer(&record.id))?;
        remove::tree(&store.nested(&record.id))?;
        remove::tree(&dir)
    };
    match &record.maps {
        Some(maps) if !rustix::process::geteuid().is_root() => match remove() {
            Err(Errno::ACCESS | Errno::PERM) => as_container_root(maps, || remove().explain(what)),
            result => result.explain(what),
        },
        _ => remove().explain(what),
    }
}
