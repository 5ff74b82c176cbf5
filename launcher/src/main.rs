//! `ulaunch`: containers on a union filesystem. Parse, do, exit code.

mod as_root;
mod cgroup;
mod cli;
mod console;
mod error;
mod fsd;
mod guard;
mod host;
mod init;
mod manage;
mod outer;
mod parse;
mod plan;
mod run;
mod selfexe;
mod spec;
mod state;
mod step;
mod supervise;
mod sync;
mod sys;
mod terminal;
mod user;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use std::ffi::OsString;
use unionfs::usage;

/// Exit code for what the launcher itself cannot do.
const LAUNCHER_ERROR: u8 = 125;

fn main() -> std::process::ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // The two processes of a container that are not the launcher itself.
    match args.get(1).and_then(|arg| arg.to_str()) {
        Some(init::COMMAND) => init::main(&args[2..]),
        Some(fsd::COMMAND) => return fsd::main(&args[2..]).into(),
        _ => {}
    }
    // A caller that ignores it passes that on, and the ends of children would go unnoticed.
    sys::default_signal(libc::SIGCHLD);
    let subcommand = args.get(1).and_then(|word| {
        let command = Cli::command();
        Some(command.find_subcommand(word)?.get_name().to_owned())
    });
    let code = match Cli::try_parse_from(args) {
        Ok(cli) => dispatch(cli).unwrap_or_else(|error| {
            console::complain(&error::message(&error));
            LAUNCHER_ERROR
        }),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            match console::print(error.to_string().trim_end()) {
                Ok(()) => 0,
                Err(_) => LAUNCHER_ERROR,
            }
        }
        Err(error) => {
            let name = subcommand.map_or("ulaunch".to_owned(), |name| format!("ulaunch {name}"));
            console::complain(&usage::one_line(&name, &error));
            LAUNCHER_ERROR
        }
    };
    code.into()
}

fn dispatch(cli: Cli) -> Result<u8> {
    use rustix::process::{getegid, geteuid, getgid, getuid};
    anyhow::ensure!(
        geteuid() == getuid() && getegid() == getgid(),
        "ulaunch must not be installed set-user-ID: remove the bit (chmod u-s,g-s)"
    );
    // What the launcher makes has the modes it names, whatever the caller's mask; and so begin the
    // commands of containers.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if !matches!(cli.command, Command::Run(_)) {
        // A reader that wants no more ends the others quietly; `run` has to clean up.
        sys::default_signal(libc::SIGPIPE);
    }
    let store = state::Store::open(cli.root, cli.state)?;
    match cli.command {
        Command::Run(args) => run::run(&store, *args),
        Command::Ps { all, json } => manage::ps(&store, all, json),
        Command::Inspect { name } => manage::inspect(&store, &name),
        Command::Diff { name, json } => manage::diff(&store, &name, json),
        Command::Logs { follow, name } => manage::logs(&store, &name, follow),
        Command::Wait { name } => manage::wait(&store, &name),
        Command::Stop { time, name } => manage::stop(&store, &name, time),
        Command::Kill { signal, name } => manage::kill(&store, &name, &signal),
        Command::Rm { force, names } => manage::rm(&store, &names, force),
    }
}
