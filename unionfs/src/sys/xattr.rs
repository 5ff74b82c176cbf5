//! Extended attributes by directory descriptor and name, without following symbolic links.
//!
//! Linux 6.13 has `getxattrat` and friends. Before, the thread (which has a working directory of
//! its own) changes into the directory and uses `lgetxattr` on the bare name: no absolute path is
//! ever resolved, so a daemon whose root lies in its own mount cannot wait for itself.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use crate::sys::creds;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::XattrFlags;
use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicBool, Ordering};

// The numbers are the same on every architecture (asm-generic/unistd.h).
const SYS_SETXATTRAT: libc::c_long = 463;
const SYS_GETXATTRAT: libc::c_long = 464;
const SYS_LISTXATTRAT: libc::c_long = 465;
const SYS_REMOVEXATTRAT: libc::c_long = 466;

/// `struct xattr_args` of linux/xattr.h.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Set once the kernel answered ENOSYS.
static OLD_KERNEL: AtomicBool = AtomicBool::new(false);

/// A file named by a directory and one component.
pub struct Target<'a> {
    dir: BorrowedFd<'a>,
    name: Cow<'a, CStr>,
    /// The name is a magic link of `/proc/self/fd`, which stands for the file itself.
    follow: bool,
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Errno::INVAL)
}

fn check(ret: libc::c_long) -> Result<usize> {
    if ret >= 0 {
        return Ok(ret as usize);
    }
    let errno = Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO);
    if errno == Errno::NOSYS {
        OLD_KERNEL.store(true, Ordering::Relaxed);
    }
    Err(errno)
}

fn new_kernel() -> bool {
    !OLD_KERNEL.load(Ordering::Relaxed)
}

impl<'a> Target<'a> {
    /// `name` in `dir`.
    pub fn at(dir: BorrowedFd<'a>, name: &'a CStr) -> Self {
        Self {
            dir,
            name: Cow::Borrowed(name),
            follow: false,
        }
    }

    /// A directory by its own descriptor, which may be an `O_PATH` one.
    pub fn dir(fd: BorrowedFd<'a>) -> Self {
        Self::at(fd, c".")
    }

    /// Any file by its own descriptor. The xattr calls refuse `O_PATH` descriptors, so this goes
    /// through the descriptor's magic link.
    pub fn fd(fd: BorrowedFd<'a>) -> Result<Self> {
        let name = c_name(fd.as_raw_fd().to_string().as_bytes())?;
        Ok(Self {
            dir: crate::sys::loc::proc_self_fd()?,
            name: Cow::Owned(name),
            follow: true,
        })
    }

    fn flags(&self) -> libc::c_int {
        if self.follow {
            0
        } else {
            libc::AT_SYMLINK_NOFOLLOW
        }
    }

    /// Runs `f` with a path that names the target relative to this thread's working directory.
    fn relative<T>(&self, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
        creds::private_cwd()?;
        // An O_PATH descriptor of a directory is enough for fchdir.
        rustix::process::fchdir(self.dir)?;
        f(&self.name)
    }

    /// Reads one attribute into `buf`; an empty buffer asks for the size.
    fn get_into(&self, attr: &CStr, buf: &mut [u8]) -> Result<usize> {
        if new_kernel() {
            let args = XattrArgs {
                value: buf.as_mut_ptr() as u64,
                size: buf.len() as u32,
                flags: 0,
            };
            // SAFETY: the strings are NUL-terminated and outlive the call; `args` describes `buf`,
            // which the kernel fills with at most `size` bytes.
            let ret = check(unsafe {
                libc::syscall(
                    SYS_GETXATTRAT,
                    self.dir.as_raw_fd(),
                    self.name.as_ptr(),
                    self.flags(),
                    attr.as_ptr(),
                    &raw const args,
                    size_of::<XattrArgs>(),
                )
            });
            if ret != Err(Errno::NOSYS) {
                return ret;
            }
        }
        self.relative(|path| match (self.follow, buf.is_empty()) {
            (false, true) => rustix::fs::lgetxattr_query(path, attr),
            (true, true) => rustix::fs::getxattr_query(path, attr),
            (false, false) => rustix::fs::lgetxattr(path, attr, buf),
            (true, false) => rustix::fs::getxattr(path, attr, buf),
        })
    }

    /// The value of an attribute. Errors: ENODATA, EOPNOTSUPP, ... (getxattr(2)).
    pub fn get(&self, attr: &[u8]) -> Result<Vec<u8>> {
        let attr = c_name(attr)?;
        read_growing(|buf| self.get_into(&attr, buf))
    }

    fn list_into(&self, buf: &mut [u8]) -> Result<usize> {
        if new_kernel() {
            // SAFETY: as in `get_into`.
            let ret = check(unsafe {
                libc::syscall(
                    SYS_LISTXATTRAT,
                    self.dir.as_raw_fd(),
                    self.name.as_ptr(),
                    self.flags(),
                    buf.as_mut_ptr(),
                    buf.len(),
                )
            });
            if ret != Err(Errno::NOSYS) {
                return ret;
            }
        }
        self.relative(|path| match (self.follow, buf.is_empty()) {
            (false, true) => rustix::fs::llistxattr_query(path),
            (true, true) => rustix::fs::listxattr_query(path),
            (false, false) => rustix::fs::llistxattr(path, buf),
            (true, false) => rustix::fs::listxattr(path, buf),
        })
    }

    /// All attribute names, each followed by a NUL (listxattr(2)).
    pub fn list(&self) -> Result<Vec<u8>> {
        read_growing(|buf| self.list_into(buf))
    }

    /// Sets an attribute; `flags` are `XATTR_CREATE` and `XATTR_REPLACE`.
    pub fn set(&self, attr: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let attr = c_name(attr)?;
        if new_kernel() {
            let args = XattrArgs {
                value: value.as_ptr() as u64,
                size: value.len() as u32,
                flags,
            };
            // SAFETY: as in `get_into`; the kernel only reads `value`.
            let ret = check(unsafe {
                libc::syscall(
                    SYS_SETXATTRAT,
                    self.dir.as_raw_fd(),
                    self.name.as_ptr(),
                    self.flags(),
                    attr.as_ptr(),
                    &raw const args,
                    size_of::<XattrArgs>(),
                )
            });
            if ret != Err(Errno::NOSYS) {
                return ret.map(|_| ());
            }
        }
        let flags = XattrFlags::from_bits_retain(flags);
        self.relative(|path| match self.follow {
            false => rustix::fs::lsetxattr(path, &attr, value, flags),
            true => rustix::fs::setxattr(path, &attr, value, flags),
        })
    }

    /// Removes an attribute.
    pub fn remove(&self, attr: &[u8]) -> Result<()> {
        let attr = c_name(attr)?;
        if new_kernel() {
            // SAFETY: as in `get_into`.
            let ret = check(unsafe {
                libc::syscall(
                    SYS_REMOVEXATTRAT,
                    self.dir.as_raw_fd(),
                    self.name.as_ptr(),
                    self.flags(),
                    attr.as_ptr(),
                )
            });
            if ret != Err(Errno::NOSYS) {
                return ret.map(|_| ());
            }
        }
        self.relative(|path| match self.follow {
            false => rustix::fs::lremovexattr(path, &attr),
            true => rustix::fs::removexattr(path, &attr),
        })
    }
}

/// The names in the result of a listxattr(2).
pub fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == 0).filter(|name| !name.is_empty())
}

/// Calls `read` with a buffer that is usually big enough, else with one of the size it asks for.
fn read_growing(read: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut small = [0u8; 512];
    match read(&mut small) {
        Ok(len) => return Ok(small[..len].to_vec()),
        Err(Errno::RANGE) => {}
        Err(err) => return Err(err),
    }
    loop {
        let size = read(&mut [])?;
        let mut buf = vec![0; size.max(1)];
        match read(&mut buf) {
            Ok(len) => {
                buf.truncate(len);
                return Ok(buf);
            }
            // It grew between the two calls.
            Err(Errno::RANGE) => {}
            Err(err) => return Err(err),
        }
    }
}

/// Does the filesystem behind `dir` keep `user.*` attributes? (`dir` must be open, not `O_PATH`.)
pub fn supports_user_xattrs(dir: impl AsFd) -> bool {
    !matches!(
        rustix::fs::fgetxattr_query(dir, c"user.uaufs.probe"),
        Err(Errno::OPNOTSUPP | Errno::NOSYS)
    )
}
