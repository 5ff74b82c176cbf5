//! A filesystem that mirrors a directory and lacks much, as branches of users do. It has to be right in
//! all else.
//!
//! It speaks to /dev/fuse itself: the library cannot list names without their types.

mod fs;
#[allow(dead_code, reason = "shared with another test")]
#[path = "../common/fuse_numbers.rs"]
mod fuse_numbers;
mod wire;

pub use fs::Lacks;

use anyhow::{Context, Result, bail};
use fs::Poor;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Mounts; the threads that serve end with the mount.
pub fn mount(
    source: &Path,
    mountpoint: &Path,
    lacks: Lacks,
) -> Result<Vec<JoinHandle<Result<()>>>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        openat(CWD, source, flags, Mode::empty()).with_context(|| source.display().to_string())?;
    let poor = Arc::new(Poor::new(root, lacks)?);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = openat(CWD, "/dev/fuse", flags, Mode::empty()).context("/dev/fuse")?;
    let data = format!(
        "fd={},rootmode=40755,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let (what, kind, data) = (c"poorfs", c"fuse.poorfs", CString::new(data)?);
    rustix::mount::mount(what, mountpoint, kind, MountFlags::empty(), &*data)
        .with_context(|| format!("{}: mount(2)", mountpoint.display()))?;
    let device = Arc::new(device);
    let worker = |_| {
        let (poor, device) = (poor.clone(), device.clone());
        std::thread::spawn(move || serve(&poor, &device))
    };
    Ok((0..4).map(worker).collect())
}

/// Answers requests until the mount is gone.
fn serve(poor: &Poor, device: &OwnedFd) -> Result<()> {
    let mut buffer = vec![0; fs::MAX_WRITE + 4096];
    loop {
        let len = match rustix::io::read(device, &mut buffer) {
            Ok(len) => len,
            Err(Errno::NODEV) => return Ok(()),
            // A request that was taken back, or a signal.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            Err(error) => return Err(error).context("reading requests"),
        };
        let Some(request) = wire::Request::parse(&buffer[..len]) else {
            bail!("a request of {len} bytes is cut off");
        };
        let unique = request.unique;
        let Some(answer) = poor.answer(request) else {
            continue;
        };
        match rustix::io::write(device, &wire::message(unique, answer)) {
            // Nobody waits for it any more.
            Ok(_) | Err(Errno::NOENT | Errno::INTR) => {}
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error).context("writing an answer"),
        }
    }
}
