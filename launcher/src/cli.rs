//! The command line: options as they are typed, turned into a [`Spec`].

use crate::parse;
use crate::spec::{Limits, Network, Root, Security, Spec, Unmask, Userns};
use crate::step::caps;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::BufRead;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use unionfs::ostext::OsText;

/// Containers on a union filesystem, without privileges.
#[derive(Parser, Debug)]
#[command(name = "ulaunch", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where layers and containers are kept [default: /var/lib/ulaunch as root, else $XDG_DATA_HOME/ulaunch]
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where running containers are recorded [default: /run/ulaunch as root, else $XDG_RUNTIME_DIR/ulaunch]
    #[arg(long, global = true, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// List containers
    Ps {
        /// Those that have ended, too
        #[arg(short, long)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything known about a container, as JSON
    Inspect {
        /// Name or id (or its beginning)
        name: String,
    },
    /// List what a container changed: A added, C changed, D deleted
    Diff {
        /// Name or id (or its beginning)
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a detached container wrote
    Logs {
        /// Wait for more
        #[arg(short, long)]
        follow: bool,
        /// Name or id (or its beginning)
        name: String,
    },
    /// Wait until a container ends and print its exit code
    Wait {
        /// Name or id (or its beginning)
        name: String,
    },
    /// Send TERM to a container's command, then KILL
    Stop {
        /// Seconds between the two
        #[arg(short, long, value_name = "S", default_value_t = 10)]
        time: u32,
        /// Name or id (or its beginning)
        name: String,
    },
    /// Send a signal to a container's command
    Kill {
        /// Name or number
        #[arg(short, long, value_name = "SIG", default_value = "KILL")]
        signal: String,
        /// Name or id (or its beginning)
        name: String,
    },
    /// Remove containers and what they changed
    Rm {
        /// Kill running ones first
        #[arg(short, long)]
        force: bool,
        /// Names or ids (or their beginnings)
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// Options of `run`.
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("root_of").required(true).args(["rootfs", "branches"]))]
pub struct RunArgs {
    /// Directory that becomes /, as it is
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Branch of the union that becomes /, topmost first; permission ro unless given
    #[arg(long = "branch", value_name = "PATH[=PERM]")]
    branches: Vec<OsString>,
    /// How changes made on the branches themselves are noticed: none, reval (after a second) or notify (at once)
    #[arg(long, value_name = "WAY", value_parser = parse::udba, conflicts_with = "rootfs")]
    udba: Option<String>,
    /// Run in the background and print the container's id
    #[arg(short, long)]
    detach: bool,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal of its own
    #[arg(short, long, conflicts_with = "detach")]
    tty: bool,
    /// Remove the container and its changes at the end
    #[arg(long)]
    rm: bool,
    /// Name of the container [default: its id]
    #[arg(long, value_parser = parse::container_name)]
    name: Option<String>,
    /// Host name [default: the id]
    #[arg(long, value_parser = parse::hostname)]
    hostname: Option<String>,
    /// Who runs the command, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<OsString>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    workdir: OsString,
    /// Environment variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// File of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Show a host path inside
    #[arg(short, long = "volume", value_name = "SRC:DST[:ro|rw]")]
    volumes: Vec<OsString>,
    /// Empty filesystem in memory
    #[arg(long, value_name = "DST")]
    tmpfs: Vec<OsString>,
    /// Mount / read-only
    #[arg(long)]
    read_only: bool,
    /// Memory limit
    #[arg(short, long, value_name = "SIZE", value_parser = parse::memory)]
    memory: Option<u64>,
    /// Limit of memory and swap together, -1 = none [default: as --memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Number of CPUs worth of time, such as 0.5
    #[arg(long, value_name = "N", value_parser = parse::milli_cpus)]
    cpus: Option<u64>,
    /// Weight against other groups, 1024 = normal
    #[arg(long, value_name = "N", value_parser = parse::cpu_shares)]
    cpu_shares: Option<u64>,
    /// CPUs to run on
    #[arg(long, value_name = "LIST", value_parser = parse::cpu_list)]
    cpuset_cpus: Option<String>,
    /// Most tasks at a time
    #[arg(long, value_name = "N", value_parser = parse::pids)]
    pids_limit: Option<u64>,
    /// Leave out limits that cannot be applied, with a notice
    #[arg(long)]
    best_effort: bool,
    /// none: loopback only; host: the host's network
    #[arg(long, value_name = "MODE", default_value = "none")]
    network: String,
    /// auto: as isolated as the host allows; host: no user namespace; map: --uidmap and --gidmap
    #[arg(long, value_name = "MODE")]
    userns: Option<String>,
    /// Map user ids (implies --userns map)
    #[arg(long, value_name = "C:H:N", value_parser = parse::id_mapping)]
    uidmap: Vec<crate::spec::IdMapping>,
    /// Map group ids [default: as --uidmap]
    #[arg(long, value_name = "C:H:N", value_parser = parse::id_mapping)]
    gidmap: Vec<crate::spec::IdMapping>,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// seccomp=unconfined, no-new-privileges=true|false, mask=PATHS, unmask=ALL|PATHS (colons between)
    #[arg(long, value_name = "OPT")]
    security_opt: Vec<OsString>,
    /// All capabilities, no system call filter, nothing masked
    #[arg(long)]
    privileged: bool,
    /// Allow another container inside: /dev/fuse, namespaces, /proc unmasked where ids are not the host's
    #[arg(long)]
    nest: bool,
    /// Resource limit of each process
    #[arg(long, value_name = "NAME=SOFT[:HARD]", value_parser = parse::ulimit)]
    ulimit: Vec<crate::spec::Ulimit>,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<OsString>,
}

impl RunArgs {
    /// The name asked for, if any.
    pub fn name(&self) -> Option<String> {
        self.name.clone()
    }

    /// Checks what clap cannot check and puts the container together.
    pub fn into_spec(self) -> Result<Spec> {
        let env = self.environment()?;
        let security = self.security()?;
        let userns = self.userns()?;
        let limits = self.limits()?;
        let volumes = self
            .volumes
            .iter()
            .map(|text| parse::volume(text).context("--volume"));
        let tmpfs = self.tmpfs.iter().map(|text| {
            let path = parse::inside_path(text.as_bytes(), &text.to_string_lossy());
            Ok(OsText(path.context("--tmpfs")?))
        });
        let network = match self.network.as_str() {
            "none" => Network::None,
            "host" => Network::Host,
            other => bail!("--network {other}: unknown mode: use none or host"),
        };
        Ok(Spec {
            volumes: volumes.collect::<Result<_>>()?,
            tmpfs: tmpfs.collect::<Result<_>>()?,
            root: match self.rootfs {
                Some(path) => Root::Directory(std::path::absolute(path)?.into()),
                None => Root::Union(
                    self.branches
                        .iter()
                        .map(|text| absolute_branch(text))
                        .collect::<Result<_>>()?,
                ),
            },
            udba: self.udba,
            command: self.command.into_iter().map(OsText).collect(),
            user: self.user.map(OsText),
            workdir: OsText(self.workdir),
            env,
            hostname: self.hostname,
            interactive: self.interactive,
            tty: self.tty,
            detach: self.detach,
            remove: self.rm,
            read_only: self.read_only,
            limits,
            best_effort: self.best_effort,
            network,
            userns,
            security,
            ulimits: self.ulimit,
        })
    }

    fn limits(&self) -> Result<Limits> {
        let memory_swap = match &self.memory_swap {
            None => None,
            Some(text) => Some(parse::memory_swap(text).context("--memory-swap")?),
        };
        if let Some(swap) = memory_swap {
            let memory = self
                .memory
                .context("--memory-swap: give --memory as well")?;
            ensure!(
                swap.is_none_or(|total| total >= memory),
                "--memory-swap is memory and swap together: give at least the value of --memory"
            );
        }
        Ok(Limits {
            memory: self.memory,
            memory_swap,
            milli_cpus: self.cpus,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus.clone(),
            pids: self.pids_limit,
        })
    }

    fn userns(&self) -> Result<Userns> {
        let mapped = !self.uidmap.is_empty() || !self.gidmap.is_empty();
        match self.userns.as_deref() {
            None | Some("map") if mapped => {
                let or = |one: &[_], other: &[_]| if one.is_empty() { other } else { one }.to_vec();
                Ok(Userns::Map {
                    uids: or(&self.uidmap, &self.gidmap),
                    gids: or(&self.gidmap, &self.uidmap),
                })
            }
            Some("map") => bail!("--userns map: give --uidmap, for example 0:100000:65536"),
            Some(mode) if mapped => bail!("--uidmap goes with --userns map, not {mode}"),
            None | Some("auto") => Ok(Userns::Auto),
            Some("host") => Ok(Userns::Host),
            Some(mode) => bail!("--userns {mode}: unknown mode: use auto, host or map"),
        }
    }

    fn security(&self) -> Result<Security> {
        let mut security = Security {
            cap_add: caps::parse_list(&self.cap_add).context("--cap-add")?,
            cap_drop: caps::parse_list(&self.cap_drop).context("--cap-drop")?,
            no_new_privs: true,
            privileged: self.privileged,
            nest: self.nest,
            seccomp_unconfined: self.privileged,
            ..Security::default()
        };
        if self.privileged {
            security.unmask = Unmask::All;
        }
        for option in &self.security_opt {
            security_option(&mut security, option).context("--security-opt")?;
        }
        Ok(security)
    }

    /// `--env-file` lines first, then `--env`, later ones winning.
    fn environment(&self) -> Result<Vec<OsText>> {
        let mut env = Vec::new();
        for path in &self.env_file {
            let file = std::fs::File::open(path)
                .with_context(|| format!("--env-file {}", path.display()))?;
            for line in std::io::BufReader::new(file).split(b'\n') {
                let line = line.with_context(|| format!("--env-file {}", path.display()))?;
                let line = line.trim_ascii();
                if !line.is_empty() && !line.starts_with(b"#") {
                    env.extend(env_entry(OsStr::from_bytes(line))?);
                }
            }
        }
        for text in &self.env {
            env.extend(env_entry(text)?);
        }
        Ok(env)
    }
}

/// `KEY=VALUE` as it is; `KEY` alone with the caller's value, if it has one.
fn env_entry(text: &OsStr) -> Result<Option<OsText>> {
    let bytes = text.as_bytes();
    let key = bytes.split(|byte| *byte == b'=').next().unwrap_or_default();
    ensure!(
        !key.is_empty(),
        "--env `{}`: no name: write KEY=VALUE",
        text.to_string_lossy()
    );
    if bytes.contains(&b'=') {
        return Ok(Some(OsText(text.to_owned())));
    }
    Ok(std::env::var_os(text).map(|value| {
        let entry = [bytes, b"=", value.as_bytes()].concat();
        OsText(OsString::from_vec(entry))
    }))
}

fn absolute_branch(text: &OsStr) -> Result<(OsText, String)> {
    let (path, perm) = parse::branch(text);
    ensure!(
        !path.is_empty(),
        "--branch `{}`: no path: write PATH=ro",
        text.to_string_lossy()
    );
    Ok((std::path::absolute(path)?.into(), perm))
}

fn security_option(security: &mut Security, option: &OsStr) -> Result<()> {
    let shown = option.to_string_lossy().into_owned();
    let mut parts = option
        .as_bytes()
        .splitn(2, |byte| *byte == b'=' || *byte == b':');
    let (key, value) = (parts.next().unwrap_or_default(), parts.next());
    let paths = |value: &[u8]| -> Result<Vec<OsText>> {
        value
            .split(|byte| *byte == b':')
            .map(|path| Ok(OsText(parse::inside_path(path, &shown)?)))
            .collect()
    };
    match (key, value) {
        (b"seccomp", Some(b"unconfined")) => security.seccomp_unconfined = true,
        (b"no-new-privileges", None | Some(b"true")) => security.no_new_privs = true,
        (b"no-new-privileges", Some(b"false")) => security.no_new_privs = false,
        (b"mask", Some(value)) => security.mask.extend(paths(value)?),
        (b"unmask", Some(b"ALL" | b"all")) => security.unmask = Unmask::All,
        (b"unmask", Some(value)) => {
            if let Unmask::Paths(list) = &mut security.unmask {
                list.extend(paths(value)?);
            }
        }
        _ => bail!(
            "{shown}: not supported: use seccomp=unconfined, no-new-privileges=true|false, mask=PATH or unmask=PATH|ALL"
        ),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn spec(args: &[&str]) -> Result<Spec> {
        let cli = Cli::try_parse_from(["ulaunch", "run"].iter().chain(args))?;
        match cli.command {
            Command::Run(args) => args.into_spec(),
            other => bail!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let spec = spec(&["--rootfs", "/r", "-it", "sh", "-c", "ls --all"]).unwrap();
        assert!(spec.interactive && spec.tty);
        assert_eq!(spec.command.len(), 3);
        let spec = self::spec(&["--branch", "/=ro", "--branch", "/a", "--", "-x"]).unwrap();
        assert_eq!(
            spec.root,
            Root::Union(vec![("/".into(), "ro".into()), ("/a".into(), "ro".into())])
        );
        assert_eq!(spec.command, vec!["-x".into()]);
    }

    #[test]
    fn contradictions_are_refused() {
        for args in [
            &["sh"][..],
            &["--rootfs", "/r"],
            &["--rootfs", "/r", "--branch", "/", "sh"],
            &["--rootfs", "/r", "--udba", "notify", "sh"],
            &["--branch", "/", "--udba", "often", "sh"],
            &["--rootfs", "/r", "-d", "-t", "sh"],
            &["--rootfs", "/r", "--memory-swap", "1g", "sh"],
            &["--rootfs", "/r", "-m", "2g", "--memory-swap", "1g", "sh"],
            &[
                "--rootfs", "/r", "--userns", "host", "--uidmap", "0:1:1", "sh",
            ],
            &["--rootfs", "/r", "--userns", "map", "sh"],
            &["--rootfs", "/r", "--network", "bridge", "sh"],
            &["--rootfs", "/r", "--security-opt", "label=x", "sh"],
            &["--rootfs", "/r", "--cap-add", "NOPE", "sh"],
            &["--rootfs", "/r", "--pid", "host", "sh"],
        ] {
            assert!(spec(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn the_environment_is_not_inherited() {
        let spec = spec(&[
            "--rootfs",
            "/r",
            "-e",
            "A=1",
            "-e",
            "PATH",
            "-e",
            "NO_SUCH_X",
            "sh",
        ])
        .unwrap();
        assert_eq!(spec.env.len(), 2);
    }
}
