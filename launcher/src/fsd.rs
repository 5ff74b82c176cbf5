//! The union daemon of one container: a process of its own, outside of the container's namespaces
//! for processes and mounts.

use crate::console;
use crate::error;
use crate::selfexe;
use crate::spec::IdMapping;
use crate::sync::{Channel, DaemonReport};
use crate::sys;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use unionfs::control::new_instance;
use unionfs::control::query::Queries;
use unionfs::fuse::{IoPlan, MountRequest, ServeConfig, mount_detached, plan, serve};
use unionfs::ostext::OsText;
use unionfs::spec::{IdMap, IdRange, MountFlags, MountSpec};
use unionfs::sys::creds::OVERFLOW_ID;
use unionfs::union::Union;

/// The hidden subcommand.
pub const COMMAND: &str = "fsd";

/// What the daemon serves.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FsConfig {
    /// Topmost first: path and permission.
    pub branches: Vec<(OsText, String)>,
    /// Value of the option `udba=`, if it is not the usual one.
    pub udba: Option<String>,
    /// Directories that the union does not show.
    pub hidden: Vec<OsText>,
    /// Ids of the container by ids of the host, where only the container is in a user namespace.
    pub uid_map: Vec<IdMapping>,
    /// The same for groups.
    pub gid_map: Vec<IdMapping>,
    /// Owners that have no id in the daemon's user namespace show as root.
    pub foreign_as_root: bool,
}

/// Opens /dev/fuse in the user namespace of the caller, as the kernel demands for mounting it there.
pub fn open_device() -> Result<OwnedFd> {
    Ok(unionfs::fuse::mount::open_device()?)
}

/// The union's mount, attached nowhere. Devices are dead on it: those of the container are mounts
/// of their own, and a node made inside must not reach the host's hardware.
pub fn make_mount(device: &OwnedFd) -> Result<OwnedFd> {
    let request = MountRequest {
        mountpoint: "/".into(),
        source: "ulaunch".into(),
        subtype: "uaufs".into(),
        flags: MountFlags {
            nodev: true,
            ..MountFlags::default()
        },
        read_only: false,
    };
    Ok(mount_detached(&request, device)?)
}

/// The daemon: descriptors of its connection, of the device and of its configuration.
pub fn main(args: &[OsString]) -> u8 {
    match adopt(args) {
        Ok([channel, device, config]) => {
            let channel = Arc::new(Channel::adopt(channel));
            match run(&channel, device, config) {
                Ok(()) => 0,
                Err(error) => {
                    let message = error::message(&error);
                    if channel
                        .send(&DaemonReport::Failed(message.clone()))
                        .is_err()
                    {
                        console::complain(&format!("union daemon: {message}"));
                    }
                    1
                }
            }
        }
        Err(error) => {
            console::complain(&error::message(&error));
            1
        }
    }
}

fn adopt(args: &[OsString]) -> Result<[OwnedFd; 3]> {
    let fds: Vec<OwnedFd> = sys::adopt_all(args)?;
    fds.try_into()
        .ok()
        .context("fsd is started by ulaunch only")
}

fn run(channel: &Arc<Channel>, device: OwnedFd, config: OwnedFd) -> Result<()> {
    sys::reset_signals();
    // Neither the command nor another container may look into it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::setsid().ok();
    let config: FsConfig = selfexe::read_value(config)?;
    let mut spec = MountSpec::parse(&[options(&config)])?;
    spec.options.uid_map = id_map(&config.uid_map);
    spec.options.gid_map = id_map(&config.gid_map);
    if config.foreign_as_root {
        (spec.options.uid_map, spec.options.gid_map) = (foreign_as_root(), foreign_as_root());
    }
    let mut union = Union::open(&spec)?;
    for path in &config.hidden {
        union.hide(path.path())?;
    }
    rustix::process::chdir("/")?;
    let mut serving = ServeConfig::new(IoPlan::choose(&spec, plan::may_passthrough())?);
    let ready = Arc::clone(channel);
    serving.on_ready = Some(Box::new(move |_| {
        // The other side gone means that the mount goes too, and with it this daemon.
        let _ = ready.send(&DaemonReport::Ready);
    }));
    let union = Arc::new(union);
    // Asked from inside, it shows labels in place of the host's paths; nothing inside can change it.
    let queries = Queries {
        union: Arc::clone(&union),
        instance: new_instance(),
        stats: Arc::clone(&serving.stats),
        socket: None,
        hide_paths: true,
    };
    serving.ioctl = Some(queries.hook());
    serve(union, device, serving)?;
    Ok(())
}

fn id_map(ranges: &[IdMapping]) -> IdMap {
    // The kernel speaks of host ids here (no user namespace owns the mount); the branches hold the
    // container's.
    let range = |r: &IdMapping| IdRange {
        branch: r.inside,
        mount: r.outside,
        count: r.count,
    };
    IdMap(ranges.iter().map(range).collect())
}

/// All ids as they are, but the overflow id as 0. New files of 0 belong to 0, since the first range
/// that fits is taken.
fn foreign_as_root() -> IdMap {
    let same = |first: u32, count| IdRange {
        branch: first,
        mount: first,
        count,
    };
    IdMap(vec![
        same(0, OVERFLOW_ID),
        IdRange {
            branch: OVERFLOW_ID,
            mount: 0,
            count: 1,
        },
        same(OVERFLOW_ID + 1, u32::MAX - OVERFLOW_ID - 1),
    ])
}

/// The union's options in the AUFS grammar.
fn options(config: &FsConfig) -> OsString {
    let mut text = b"br=".to_vec();
    for (i, (path, perm)) in config.branches.iter().enumerate() {
        if i > 0 {
            text.push(b':');
        }
        for &byte in path.as_bytes() {
            if b":,=\\".contains(&byte) {
                text.push(b'\\');
            }
            text.push(byte);
        }
        text.push(b'=');
        text.extend_from_slice(perm.as_bytes());
    }
    text.extend_from_slice(b",dirren,dirperm1,namelen=255");
    if let Some(udba) = &config.udba {
        text.extend_from_slice(b",udba=");
        text.extend_from_slice(udba.as_bytes());
    }
    OsString::from_vec(text)
}
