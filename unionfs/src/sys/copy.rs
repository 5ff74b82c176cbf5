//! Copying the data of a file: reflink, else copy_file_range of its data extents, holes kept.

use crate::errno::{Errno, Result};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::SeekFrom;

/// The most that one copy_file_range or read asks for.
const CHUNK: usize = 8 << 20;

/// Copies the first `size` bytes of `from` to the empty file `to` and makes it `size` long.
///
/// Tries FICLONE (shares extents), then copies extent by extent (SEEK_DATA / SEEK_HOLE), by
/// copy_file_range where the two filesystems allow it, else by read and write.
pub fn copy_data(from: impl AsFd, to: impl AsFd, size: u64, whole: bool) -> Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if size == 0 {
        return Ok(());
    }
    if whole && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // The length first: the tail of a sparse file is then a hole without writing.
    rustix::fs::ftruncate(to, size)?;
    copy_extents(from, to, size)
}

/// Copies the data among the first `size` bytes of `from` to `to`, which is at least as long and has
/// no data there.
pub fn copy_extents(from: impl AsFd, to: impl AsFd, size: u64) -> Result<()> {
    let (from, to) = (from.as_fd(), to.as_fd());
    let mut at = 0;
    while at < size {
        let (start, end) = match next_extent(from, at, size)? {
            Some(extent) => extent,
            None => break,
        };
        copy_extent(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

/// The next run of data at or after `at`, clipped to `size`; `None` = only a hole is left.
fn next_extent(file: BorrowedFd<'_>, at: u64, size: u64) -> Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // No such feature there: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Some((at, size))),
        Err(err) => return Err(err),
    };
    if start >= size {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(size);
    Ok(Some((start, end.min(size).max(start + 1))))
}

fn copy_extent(from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<()> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let want = usize::try_from(end - read_at).unwrap_or(CHUNK).min(CHUNK);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
            // The file became shorter under us.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(
                Errno::XDEV
                | Errno::INVAL
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::PERM
                | Errno::IO,
            ) => {
                return copy_by_hand(from, to, read_at, end);
            }
            Err(err) => return Err(err),
        }
    }
    Ok(())
}

fn copy_by_hand(from: BorrowedFd<'_>, to: BorrowedFd<'_>, mut at: u64, end: u64) -> Result<()> {
    let mut buf = vec![0u8; 1 << 20];
    while at < end {
        let want = buf
            .len()
            .min(usize::try_from(end - at).unwrap_or(buf.len()));
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut buf[..want], at))?;
        if got == 0 {
            return Ok(());
        }
        write_all(to, &buf[..got], at)?;
        at += got as u64;
    }
    Ok(())
}

/// pwrite(2) until everything is written.
pub fn write_all(to: impl AsFd, mut data: &[u8], mut at: u64) -> Result<()> {
    while !data.is_empty() {
        let n = rustix::io::retry_on_intr(|| rustix::io::pwrite(to.as_fd(), data, at))?;
        if n == 0 {
            return Err(Errno::IO);
        }
        data = &data[n..];
        at += n as u64;
    }
    Ok(())
}

/// pread(2) until `buf` is full or the file ends; returns the bytes read.
pub fn read_full(from: impl AsFd, buf: &mut [u8], at: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let n = rustix::io::retry_on_intr(|| {
            rustix::io::pread(from.as_fd(), &mut buf[done..], at + done as u64)
        })?;
        if n == 0 {
            break;
        }
        done += n;
    }
    Ok(done)
}
