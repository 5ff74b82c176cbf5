//! This program as a sealed file in memory: what runs inside a container is never the file on
//! disk, so nothing in there can overwrite it through /proc/PID/exe (CVE-2019-5736).

use crate::error::Explain;
use crate::sys;
use anyhow::Result;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, FdFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A sealed copy of the running program.
pub fn sealed() -> Result<OwnedFd> {
    let what = || "copying ulaunch into memory".to_owned();
    let mut program = File::open("/proc/self/exe").explain(what)?;
    let memory = memory_file("ulaunch", MemfdFlags::EXEC)
        .remedy(what, |_| "`sysctl vm.memfd_noexec=1` allows it")?;
    let mut copy = File::from(memory);
    std::io::copy(&mut program, &mut copy).explain(what)?;
    rustix::fs::fcntl_add_seals(&copy, SEALS).explain(what)?;
    Ok(copy.into())
}

/// A value as a sealed file, for the process that will be exec'ed.
pub fn value_file<T: Serialize>(value: &T) -> Result<OwnedFd> {
    let what = || "handing a plan over".to_owned();
    let memory = memory_file("ulaunch-plan", MemfdFlags::NOEXEC_SEAL).explain(what)?;
    let mut file = File::from(memory);
    file.write_all(&serde_json::to_vec(value)?).explain(what)?;
    file.rewind().explain(what)?;
    rustix::fs::fcntl_add_seals(&file, SEALS).explain(what)?;
    Ok(file.into())
}

/// A sealable file. `kind` says whether it is a program, which hosts with vm.memfd_noexec ask for
/// and kernels before 6.3 do not know.
fn memory_file(name: &str, kind: MemfdFlags) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | kind) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        result => result,
    }
}

/// Reads what [`value_file`] wrote.
pub fn read_value<T: DeserializeOwned>(file: OwnedFd) -> Result<T> {
    let mut bytes = Vec::new();
    File::from(file)
        .read_to_end(&mut bytes)
        .explain(|| "reading a plan".into())?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Replaces this process by the program, with descriptors named by their numbers after `command`.
/// Returns only on failure.
pub fn exec(program: BorrowedFd<'_>, command: &str, fds: &[BorrowedFd<'_>]) -> anyhow::Error {
    let mut argv = vec![c"ulaunch".to_owned()];
    let numbers = fds.iter().map(|fd| fd.as_raw_fd().to_string());
    for word in std::iter::once(command.to_owned()).chain(numbers) {
        match CString::new(word) {
            Ok(word) => argv.push(word),
            Err(error) => return error.into(),
        }
    }
    for fd in fds {
        if let Err(error) = rustix::io::fcntl_setfd(fd, FdFlags::empty())
            .explain(|| "handing a descriptor over".into())
        {
            return error;
        }
    }
    let errno = sys::exec_fd(program.as_fd(), &argv, &[]);
    anyhow::anyhow!(
        "starting a part of ulaunch: {}",
        crate::error::describe(errno)
    )
}
