//! Lines about open files and their data.

use super::exec::{OPEN_FLAGS, Place, Slot, errno_name, list_open, quiet, show_xattr, time};
use super::exec::{xattr_names, xattr_value};
use super::line::{Args, Line};
use super::sys::{self, Answer, HERE, Mapping};
use anyhow::{Context, Result};
use std::os::fd::{AsRawFd, RawFd};

/// What O_DIRECT asks of offsets, lengths and addresses.
const BLOCK: usize = 4096;

/// Bytes whose address suits O_DIRECT.
#[repr(align(4096))]
#[derive(Clone, Copy)]
struct Aligned([u8; BLOCK]);

impl Place {
    /// Carries out a line about data; `None` if it is about something else.
    pub fn data(&mut self, line: &Line) -> Result<Option<Answer<String>>> {
        let mut args = line.args();
        let args = &mut args;
        Ok(Some(match line.verb() {
            "open" => self.open(args)?,
            "close" => {
                let slot = self.slots.get_mut(args.slot()?).context("no such slot")?;
                slot.take().map(|_| String::new()).ok_or(libc::EBADF)
            }
            "put" => self.put(args)?,
            "cat" => {
                let (dir, path) = self.path(args)?;
                open_regular(dir, &path, libc::O_RDONLY).and_then(|fd| digest(fd.as_raw_fd()))
            }
            "truncate" => {
                let (dir, path) = self.path(args)?;
                let len = args.number()?;
                if dir == HERE {
                    self.after(dir, &path, |_, path| sys::truncate(path, len))
                } else {
                    Err(libc::EBADF)
                }
            }
            "map" => self.map(args)?,
            "unmap" => self
                .mapping
                .take()
                .map(|_| String::new())
                .ok_or(libc::EBADF),
            "peek" => {
                let (offset, len) = (args.slot()?, args.slot()?);
                let map = self.mapping.as_ref().ok_or(libc::EBADF);
                map.and_then(|(m, _)| m.read(offset, len)).map(|d| sum(&d))
            }
            "poke" => {
                let (offset, len, seed) = (args.slot()?, args.slot()?, args.number()?);
                let map = self.mapping.as_ref().ok_or(libc::EBADF);
                map.and_then(|(m, file)| {
                    refuse_capable(file.as_raw_fd())?;
                    let n = m.write(offset, &pattern(seed, offset as i64, len))?;
                    m.sync()?;
                    Ok(n.to_string())
                })
            }
            verb => return self.on_slot(verb, args),
        }))
    }

    fn on_slot(&mut self, verb: &str, args: &mut Args<'_>) -> Result<Option<Answer<String>>> {
        const VERBS: &str = " pread pwrite read write ftruncate falloc fsync fdatasync syncfs \
             fchmod fchown futimens fstat seek flock lock getlock copyrange sendfile fls \
             fsetxattr fgetxattr flistxattr frmxattr mshared mprivate fcat ";
        if !VERBS.contains(&format!(" {verb} ")) {
            return Ok(None);
        }
        let slot = self.slots.get(args.slot()?).context("no such slot")?;
        let Some(slot) = slot else {
            return Ok(Some(Err(libc::EBADF)));
        };
        let (fd, direct) = (slot.fd.as_raw_fd(), slot.direct);
        const OF_ALL: &str =
            " fchmod fchown futimens fstat fsetxattr fgetxattr flistxattr frmxattr ";
        if slot.special && !OF_ALL.contains(&format!(" {verb} ")) {
            return Ok(Some(Err(libc::EINVAL)));
        }
        if direct && (verb == "read" || verb == "write") {
            // See `direct-alignment` in known.rs.
            return Ok(Some(Err(libc::EINVAL)));
        }
        Ok(Some(match verb {
            "pread" | "read" => {
                let offset = (verb == "pread").then(|| args.number()).transpose()?;
                read(fd, offset, args.slot()?, direct)
            }
            "pwrite" | "write" => {
                let offset = (verb == "pwrite").then(|| args.number()).transpose()?;
                let (len, seed) = (args.slot()?, args.number()?);
                self.write(fd, offset, len, seed, direct)
            }
            "fcat" if direct => Err(libc::EBADF),
            "fcat" => digest(fd),
            "fls" => sys::lseek(fd, 0, libc::SEEK_SET)
                .and_then(|_| list_open(fd))
                .inspect(|_| {
                    let _ = sys::lseek(fd, 0, libc::SEEK_SET);
                }),
            "fsync" => quiet(sys::fsync(fd)),
            "fdatasync" => quiet(sys::fdatasync(fd)),
            "syncfs" => quiet(sys::syncfs(fd)),
            "seek" => seek(fd, args)?,
            "flock" => {
                let how = match args.text()? {
                    "sh" => libc::LOCK_SH,
                    "ex" => libc::LOCK_EX,
                    _ => libc::LOCK_UN,
                };
                quiet(sys::flock(fd, how | libc::LOCK_NB))
            }
            "lock" | "getlock" => {
                let kind = match args.text()? {
                    "r" => libc::F_RDLCK,
                    "w" => libc::F_WRLCK,
                    _ => libc::F_UNLCK,
                };
                let (start, len) = (args.number()?, args.number()?);
                let ask = verb == "getlock";
                let found = sys::range_lock(fd, kind, start, len, ask);
                found.map(|kind| if ask { kind.to_string() } else { String::new() })
            }
            "copyrange" | "sendfile" | "mshared" | "mprivate" if direct => Err(libc::EINVAL),
            "copyrange" | "sendfile" => self.copy(verb, fd, args)?,
            "mshared" | "mprivate" => self.through_mapping(verb, fd, args)?,
            "fgetxattr" => {
                let name = args.c_string()?;
                sys::fgetxattr(fd, &name).map(|v| show_xattr(&name, &v))
            }
            "flistxattr" => sys::flistxattr(fd).map(|names| xattr_names(&names)),
            _ => self.change_slot(verb, fd, args)?,
        }))
    }

    /// What changes an open file: afterwards it is looked at.
    fn change_slot(
        &mut self,
        verb: &str,
        fd: RawFd,
        args: &mut Args<'_>,
    ) -> Result<Answer<String>> {
        let done = match verb {
            "ftruncate" => sys::ftruncate(fd, args.number()?),
            "falloc" => {
                let mode = match args.text()? {
                    "keep" => libc::FALLOC_FL_KEEP_SIZE,
                    "punch" => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    "zero" => libc::FALLOC_FL_ZERO_RANGE,
                    "zerokeep" => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                    "collapse" => libc::FALLOC_FL_COLLAPSE_RANGE,
                    "insert" => libc::FALLOC_FL_INSERT_RANGE,
                    _ => 0,
                };
                sys::fallocate(fd, mode, args.number()?, args.number()?)
            }
            "fchmod" => sys::fchmod(fd, args.octal()?),
            "fchown" => {
                let (uid, gid) = (args.number()? as u32, args.number()? as u32);
                sys::chown(fd, c"", uid, gid, libc::AT_EMPTY_PATH)
            }
            "futimens" => sys::utimens(fd, None, [time(args)?, time(args)?], 0),
            "fsetxattr" => {
                let (name, value) = (args.c_string()?, xattr_value(args.text()?)?);
                sys::fsetxattr(fd, &name, &value, args.number()? as i32)
            }
            "frmxattr" => sys::fremovexattr(fd, &args.c_string()?),
            // fstat
            _ => Ok(0),
        };
        Ok(done.and_then(|_| self.describe(fd, c"", libc::AT_EMPTY_PATH)))
    }

    fn open(&mut self, args: &mut Args<'_>) -> Result<Answer<String>> {
        let at = args.slot()?;
        let (dir, path) = self.path(args)?;
        let words = args.text()?;
        let mode = args.octal()?;
        // A fifo must not make us wait for somebody at its other end.
        let mut flags = libc::O_NONBLOCK;
        for word in words.split('|') {
            let known = OPEN_FLAGS.iter().find(|(name, _)| *name == word);
            flags |= known.with_context(|| format!("{word}: no such flag"))?.1;
        }
        let opened = sys::open(dir, &path, flags, mode);
        Ok(match opened {
            Ok(fd) => {
                let look = self.describe(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH);
                let direct = flags & libc::O_DIRECT != 0;
                let slot = self.slots.get_mut(at).context("no such slot")?;
                let info = sys::statx(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH);
                *slot = Some(Slot {
                    fd,
                    direct,
                    special: info.is_ok_and(|i| is_special(&i)),
                });
                look
            }
            Err(errno) => Err(errno),
        })
    }

    /// Makes a file, or opens it, and writes to it: `put PATH OFFSET LENGTH SEED MODE`.
    fn put(&mut self, args: &mut Args<'_>) -> Result<Answer<String>> {
        let (dir, path) = self.path(args)?;
        let (offset, len, seed) = (args.number()?, args.slot()?, args.number()?);
        let mode = args.octal()?;
        Ok(self.after(dir, &path, |dir, path| {
            let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_NONBLOCK;
            let fd = sys::open(dir, path, flags, mode)?;
            sys::write(fd.as_raw_fd(), &pattern(seed, offset, len), Some(offset))
        }))
    }

    fn write(
        &mut self,
        fd: RawFd,
        offset: Option<i64>,
        len: usize,
        seed: i64,
        direct: bool,
    ) -> Answer<String> {
        let at = offset.unwrap_or(0);
        let written = if direct {
            let offset = offset.map(|o| o / BLOCK as i64 * BLOCK as i64);
            let mut block = Aligned([0; BLOCK]);
            block.0.copy_from_slice(&pattern(seed, at, BLOCK));
            sys::write(fd, &block.0, offset)?
        } else {
            sys::write(fd, &pattern(seed, at, len), offset)?
        };
        let position = sys::lseek(fd, 0, libc::SEEK_CUR).unwrap_or(0);
        let look = self.describe(fd, c"", libc::AT_EMPTY_PATH)?;
        Ok(format!("{written} at {position}: {look}"))
    }

    /// `copyrange FROM OFFSET TO OFFSET LENGTH`, `sendfile FROM OFFSET TO LENGTH`.
    fn copy(&mut self, verb: &str, from: RawFd, args: &mut Args<'_>) -> Result<Answer<String>> {
        let from_at = args.number()?;
        let to = self.number(args)?;
        let to_at = if verb == "copyrange" {
            args.number()?
        } else {
            0
        };
        let len = args.slot()?;
        let direct = self
            .slots
            .iter()
            .flatten()
            .find(|s| to == Ok(s.fd.as_raw_fd()));
        if direct.is_some_and(|s| s.direct || s.special) {
            return Ok(Err(libc::EINVAL));
        }
        if verb == "sendfile" && to == Ok(from) {
            // What it reads while it writes there is chance.
            return Ok(Err(libc::EINVAL));
        }
        let done = to.and_then(|to| {
            let n = if verb == "copyrange" {
                sys::copy_file_range((from, from_at), (to, to_at), len)?
            } else {
                sys::sendfile((from, from_at), to, len)?
            };
            let look = self.describe(to, c"", libc::AT_EMPTY_PATH)?;
            Ok(format!("{n}: {look}"))
        });
        Ok(done)
    }

    /// Keeps a mapping of a file for later.
    fn map(&mut self, args: &mut Args<'_>) -> Result<Answer<String>> {
        let fd = self.number(args)?;
        let how = args.text()?;
        let len = args.slot()?;
        self.mapping = None;
        let map = fd.and_then(|fd| Mapping::new(fd, len, how != "private", how != "readonly"));
        let map = match map {
            Ok(map) => map,
            Err(errno) => return Ok(Err(errno)),
        };
        // The slot is open: there is a mapping of it.
        let file = fd.and_then(sys::duplicate);
        Ok(file.map(|file| {
            self.mapping = Some((map, file));
            String::new()
        }))
    }

    /// Writes through a mapping that goes at once, and reads the file.
    fn through_mapping(
        &mut self,
        verb: &str,
        fd: RawFd,
        args: &mut Args<'_>,
    ) -> Result<Answer<String>> {
        let (offset, len, seed) = (args.slot()?, args.slot()?, args.number()?);
        let changed = (|| {
            refuse_capable(fd)?;
            let map = Mapping::new(fd, offset + len, verb == "mshared", true)?;
            let n = map.write(offset, &pattern(seed, offset as i64, len))?;
            map.sync()?;
            let seen = sum(&map.read(0, offset + len)?);
            drop(map);
            let file = read(fd, Some(offset as i64), len, false)?;
            let look = self.describe(fd, c"", libc::AT_EMPTY_PATH)?;
            Ok(format!("{n}, mapped {seen}, read {file}: {look}"))
        })();
        Ok(changed)
    }
}

fn open_regular(dir: RawFd, path: &std::ffi::CStr, flags: i32) -> Answer<std::os::fd::OwnedFd> {
    let fd = sys::open(dir, path, flags | libc::O_NONBLOCK, 0)?;
    let info = sys::statx(fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
    // A device has no end.
    if is_special(&info) {
        Err(libc::EINVAL)
    } else {
        Ok(fd)
    }
}

fn is_special(info: &libc::statx) -> bool {
    let kind = u32::from(info.stx_mode) & libc::S_IFMT;
    kind != libc::S_IFREG && kind != libc::S_IFDIR
}

fn seek(fd: RawFd, args: &mut Args<'_>) -> Result<Answer<String>> {
    let offset = args.number()?;
    let is_dir = |info: libc::statx| u32::from(info.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
    if sys::statx(fd, c"", libc::AT_EMPTY_PATH).is_ok_and(is_dir) {
        // Positions in directories are each filesystem's own.
        return Ok(Err(libc::EISDIR));
    }
    let whence = match args.text()? {
        "set" => libc::SEEK_SET,
        "cur" => libc::SEEK_CUR,
        "end" => libc::SEEK_END,
        "data" => libc::SEEK_DATA,
        _ => libc::SEEK_HOLE,
    };
    Ok(sys::lseek(fd, offset, whence).map(|n| n.to_string()))
}

fn read(fd: RawFd, offset: Option<i64>, len: usize, direct: bool) -> Answer<String> {
    if direct {
        let offset = offset.map(|o| o / BLOCK as i64 * BLOCK as i64);
        let mut block = Aligned([0; BLOCK]);
        let n = sys::read(fd, &mut block.0, offset)?;
        return Ok(sum(&block.0[..n]));
    }
    let mut buf = vec![0; len];
    let n = sys::read(fd, &mut buf, offset)?;
    Ok(sum(&buf[..n]))
}

/// See `mapped-capabilities` in known.rs.
fn refuse_capable(fd: RawFd) -> Answer<()> {
    match sys::fgetxattr(fd, c"security.capability") {
        Ok(_) => Err(libc::EINVAL),
        Err(_) => Ok(()),
    }
}

/// Everything in a file.
pub fn digest(fd: RawFd) -> Answer<String> {
    let mut whole = Vec::new();
    let mut buf = vec![0; 1 << 16];
    loop {
        let n = sys::read(fd, &mut buf, Some(whole.len() as i64))?;
        if n == 0 {
            return Ok(sum(&whole));
        }
        whole.extend_from_slice(&buf[..n]);
    }
}

/// How many bytes, and of what: the beginning as text, the whole as a sum.
pub fn sum(data: &[u8]) -> String {
    let head = data[..data.len().min(8)].escape_ascii();
    format!("{} bytes {head} {:08x}", data.len(), crc32fast::hash(data))
}

/// Bytes that tell whence they come and where they belong.
pub fn pattern(seed: i64, offset: i64, len: usize) -> Vec<u8> {
    let letter = b'a' + (seed.rem_euclid(26)) as u8;
    (0..len)
        .map(|i| {
            let at = offset as usize + i;
            match at % 8 {
                0 => letter,
                n => b'0' + ((at >> (3 * n)) % 10) as u8,
            }
        })
        .collect()
}

/// For messages: an answer in words.
pub fn show(answer: &Answer<String>) -> String {
    match answer {
        Ok(text) if text.is_empty() => "ok".into(),
        Ok(text) => text.clone(),
        Err(errno) => errno_name(*errno),
    }
}
