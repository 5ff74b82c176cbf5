//! The ioctl(2) by which a mount is asked.
#![allow(unsafe_code)]

use crate::errno::{Errno, Result};
use rustix::fd::{AsFd, AsRawFd};

/// Bytes that travel in each direction.
pub const SIZE: usize = 8192;

/// `_IOWR('u', 0x55, [u8; SIZE])` of asm-generic/ioctl.h.
pub const COMMAND: u32 = 3 << 30 | (SIZE as u32) << 16 | (b'u' as u32) << 8 | 0x55;

/// Sends `buffer` to the filesystem behind `fd` and receives its answer in it.
///
/// # Errors
/// ENOTTY when the filesystem knows no such question; what it answers else.
pub fn exchange(fd: impl AsFd, buffer: &mut [u8; SIZE]) -> Result<()> {
    // The type of the command differs between C libraries.
    let command = COMMAND as libc::Ioctl;
    // SAFETY: the command says that the kernel reads and writes SIZE bytes at the pointer, which is
    // the length of the buffer, and the buffer is borrowed for the call.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), command, buffer.as_mut_ptr()) };
    if done < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}
