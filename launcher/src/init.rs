//! PID 1 of a container: makes its filesystem, starts the command, reaps what is left over, passes
//! signals on, and ends with the command.

use crate::console;
use crate::error;
use crate::plan::InitPlan;
use crate::selfexe;
use crate::step::{Context as Steps, caps, dev, payload::Refusal};
use crate::sync::{Channel, Ending, Go, InitReport};
use crate::sys::{self, Cloned};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Signal, WaitOptions};
use std::ffi::OsString;
use std::os::fd::OwnedFd;

/// The hidden subcommand.
pub const COMMAND: &str = "init";

/// Init: descriptors of its connection, its plan, and the mounts that were made outside.
pub fn main(args: &[OsString]) -> ! {
    let mut fds = match sys::adopt_all(args) {
        Ok(fds) if fds.len() >= 3 => fds.into_iter(),
        _ => {
            console::complain("init is started by ulaunch only");
            sys::exit_now(125)
        }
    };
    let (Some(channel), Some(plan)) = (fds.next(), fds.next()) else {
        sys::exit_now(125)
    };
    let channel = Channel::adopt(channel);
    if let Err(error) = run(&channel, plan, fds.map(Some).collect()) {
        report_failure(&channel, &error);
    }
    sys::exit_now(125)
}

/// Tells the caller why there is no container.
pub fn report_failure(channel: &Channel, error: &anyhow::Error) {
    let _ = channel.send(&InitReport::Failed {
        code: 125,
        message: error::message(error),
    });
}

/// Dies with the launcher. Changing ids or programs undoes it, so it is said again after that.
fn die_with_launcher() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

fn run(channel: &Channel, plan: OwnedFd, slots: Vec<Option<OwnedFd>>) -> Result<()> {
    let signals = sys::block_signals().context("blocking signals")?;
    // Signals of the caller's terminal reach the command once: through the launcher.
    let _ = rustix::process::setsid();
    die_with_launcher()?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Ids are mapped and cgroups joined when this arrives; if the launcher is gone, so are we.
    if channel.receive::<Go>()?.is_none() {
        sys::exit_now(125);
    }
    let plan: InitPlan = selfexe::read_value(plan)?;
    // The host's: a volume may hide the container's own, and what runs in there could change it.
    let null = dev::open_null()?;
    let mut steps = Steps {
        slots,
        ..Steps::default()
    };
    for step in &plan.steps {
        step.run(&mut steps)?;
    }
    die_with_launcher()?;
    for notice in steps.notices.drain(..) {
        channel.send(&InitReport::Notice(notice))?;
    }
    let slave = match steps.terminal.take() {
        Some((master, slave)) => {
            use std::os::fd::AsFd;
            channel.send_with(&InitReport::Terminal, &[master.as_fd()])?;
            Some(slave)
        }
        None => None,
    };
    drop(steps);
    let command = start(&plan, slave.as_ref(), channel)?;
    drop(slave);
    dev::use_as_stdio(&null)?;
    drop(null);
    give_up_privileges()?;
    serve(channel, &signals, command)
}

/// Starts the command; returns its process number once it runs.
fn start(plan: &InitPlan, slave: Option<&OwnedFd>, channel: &Channel) -> Result<i32> {
    let (ours, theirs) = Channel::pair()?;
    match sys::clone_process(0).context("starting the command")? {
        Cloned::Child => {
            drop(ours);
            let refusal = plan.payload.exec(slave);
            let _ = theirs.send(&refusal);
            sys::exit_now(refusal.code.into())
        }
        Cloned::Parent(child) => {
            drop(theirs);
            // A successful exec closes the other end without a word.
            match ours.receive::<Refusal>()? {
                None => {
                    channel.send(&InitReport::Started)?;
                    Ok(child.pid)
                }
                Some(Refusal { code, message }) => {
                    channel.send(&InitReport::Failed { code, message })?;
                    sys::exit_now(code.into())
                }
            }
        }
    }
}

/// Init only has to signal the command, whoever it runs as.
fn give_up_privileges() -> Result<()> {
    let kill = caps::CapSet(1 << 5);
    caps::set(kill)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn serve(channel: &Channel, signals: &OwnedFd, command: i32) -> Result<()> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(channel, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => bail!("waiting: {errno}"),
        }
        // The launcher says nothing after the start: whatever wakes us is its end.
        if !fds[1].revents().is_empty() {
            sys::exit_now(137);
        }
        while let Some(signal) = sys::next_signal(signals)? {
            if signal.number == libc::SIGCHLD {
                if let Some(ending) = reap(command)? {
                    channel.send(&InitReport::Exited(ending))?;
                    sys::exit_now(ending.exit_code().into());
                }
            } else if signal.sender == 0 {
                // From outside: for the command. It may have ended meanwhile.
                let _ = sys::kill(command, signal.number);
            }
        }
    }
}

/// Reaps everything that has ended; tells how the command did, if it is among it.
fn reap(command: i32) -> Result<Option<Ending>> {
    let mut ending = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                if pid.as_raw_nonzero().get() == command {
                    let code = status.exit_status().map(|code| Ending::Code(code as u8));
                    let signal = status.terminating_signal().map(Ending::Signal);
                    ending = code.or(signal).or(ending);
                }
            }
            Ok(None) | Err(Errno::CHILD) => return Ok(ending),
            Err(Errno::INTR) => {}
            Err(errno) => bail!("reaping: {errno}"),
        }
    }
}
