//! /dev: an own small tree with the harmless nodes of the host, a devpts of its own, and the
//! container's terminal.

use super::{Context, mount};
use crate::error::Explain;
use anyhow::{Result, ensure};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::MountAttrFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::Path;

/// What /dev holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dev {
    /// Group 5 (`tty`) is mapped and owns terminals.
    pub tty_group: bool,
    /// /dev/fuse is there, for containers inside.
    pub fuse: bool,
    /// A terminal is opened: its rows and columns.
    pub terminal: Option<(u16, u16)>,
}

/// Name, major and minor number of the nodes every container has.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links that programs expect.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

/// Builds /dev.
pub fn build(context: &mut Context, plan: &Dev) -> Result<()> {
    let target = mount::system_directory(context.root()?, Path::new("/dev"))?;
    // Not writable for all and sticky, or the kernel refuses O_CREAT on the nodes
    // (fs.protected_regular). `nodev`: nodes made inside by mknod are dead; the host's nodes are
    // mounts of their own and work.
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let options = [("mode", "0755"), ("size", "64k")];
    let dev = mount::new_filesystem("tmpfs", &options, flags).explain(|| "mounting /dev".into())?;
    mount::attach(&dev, &target).explain(|| "attaching /dev".into())?;
    for (name, major, minor) in NODES {
        bind_node(&dev, name, major, minor)?;
    }
    if plan.fuse {
        bind_node(&dev, "fuse", 10, 229)?;
    }
    for (to, name) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).explain(|| format!("making /dev/{name}"))?;
    }
    for (fs, name, options, flags) in [
        (
            "tmpfs",
            "shm",
            &[("mode", "1777"), ("size", "64m")][..],
            flags,
        ),
        ("mqueue", "mqueue", &[], flags),
    ] {
        submount(&dev, fs, name, options, flags)?;
    }
    let pts = mount_pts(&dev, plan.tty_group)?;
    if let Some((rows, columns)) = plan.terminal {
        context.terminal = Some(open_terminal(&dev, &pts, rows, columns)?);
    }
    Ok(())
}

/// A detached mount of a device node of the host, checked to be the one it is called.
///
/// The check matters: in its place a link or another file would be mounted where programs, and
/// masks, trust the name.
pub fn host_node(name: &str, major: u32, minor: u32) -> Result<OwnedFd> {
    let path = Path::new("/dev").join(name);
    let what = || format!("device {}", path.display());
    let node = mount::clone_host_node(&path).explain(what)?;
    let stat = rustix::fs::fstat(&node).explain(what)?;
    ensure!(
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(major, minor),
        "{}: is not the device {major}:{minor}: repair /dev of the host",
        path.display()
    );
    Ok(node)
}

fn bind_node(dev: &OwnedFd, name: &str, major: u32, minor: u32) -> Result<()> {
    let node = host_node(name, major, minor)?;
    let what = || format!("making /dev/{name}");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let point = rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o666)).explain(what)?;
    mount::attach(&node, &point).explain(what)
}

fn submount(
    dev: &OwnedFd,
    fs: &str,
    name: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<OwnedFd> {
    let what = || format!("mounting /dev/{name}");
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).explain(what)?;
    let point = mount::open_strict(dev, Path::new(name), OFlags::PATH).explain(what)?;
    let submount = mount::new_filesystem(fs, options, flags).explain(what)?;
    mount::attach(&submount, &point).explain(what)?;
    Ok(submount)
}

/// A devpts of the container's own; `gid=5` only where group 5 is mapped, or it is refused.
fn mount_pts(dev: &OwnedFd, tty_group: bool) -> Result<OwnedFd> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mut options = vec![("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620")];
    if tty_group {
        options.push(("gid", "5"));
    }
    submount(dev, "devpts", "pts", &options, flags)
}

/// Opens a terminal in the container's devpts and binds it to /dev/console: master and slave.
///
/// The slave is opened through the master (TIOCGPTPEER), never by a name that could be changed.
fn open_terminal(
    dev: &OwnedFd,
    pts: &OwnedFd,
    rows: u16,
    columns: u16,
) -> Result<(OwnedFd, OwnedFd)> {
    let what = || "opening a terminal".to_owned();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let master = rustix::fs::openat2(pts, "ptmx", flags, Mode::empty(), resolve).explain(what)?;
    rustix::pty::unlockpt(&master).explain(what)?;
    let slave_flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, slave_flags).explain(what)?;
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).explain(what)?;
    let what = || "making /dev/console".to_owned();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let point =
        rustix::fs::openat(dev, "console", flags, Mode::from_raw_mode(0o600)).explain(what)?;
    let console = mount::clone_tree(&slave, Path::new(""), false).explain(what)?;
    mount::attach(&console, &point).explain(what)?;
    Ok((master, slave))
}

/// Opens /dev/null.
pub fn open_null() -> Result<OwnedFd> {
    rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY,
        Mode::empty(),
    )
    .explain(|| "opening /dev/null".into())
}

/// Replaces descriptors 0, 1 and 2 of this process by copies of `file`.
pub fn use_as_stdio(file: &OwnedFd) -> Result<()> {
    let what = || "replacing the standard streams".to_owned();
    rustix::stdio::dup2_stdin(file).explain(what)?;
    rustix::stdio::dup2_stdout(file).explain(what)?;
    rustix::stdio::dup2_stderr(file).explain(what)
}

/// Replaces descriptors 0, 1 and 2 of this process by /dev/null.
pub fn null_stdio() -> Result<()> {
    use_as_stdio(&open_null()?)
}
