//! Carries out one line in a directory, and says what came of it in words that do not depend on
//! the filesystem below. Here: names and attributes; data is next door.

use super::line::{Args, Line};
use super::sys::{self, Answer, HERE, Mapping};
use anyhow::{Context, Result, bail};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

/// Who may do things: uid, gid and further groups.
pub const USERS: [(u32, u32, &[u32]); 4] = [
    (0, 0, &[]),
    (1000, 1000, &[2000]),
    (1001, 1001, &[2000, 2001]),
    (1002, 2000, &[]),
];

pub const SLOTS: usize = 6;

/// Flags of open(2) by their names in a line.
pub const OPEN_FLAGS: [(&str, i32); 14] = [
    ("r", libc::O_RDONLY),
    ("w", libc::O_WRONLY),
    ("rw", libc::O_RDWR),
    ("creat", libc::O_CREAT),
    ("excl", libc::O_EXCL),
    ("trunc", libc::O_TRUNC),
    ("append", libc::O_APPEND),
    ("nofollow", libc::O_NOFOLLOW),
    ("directory", libc::O_DIRECTORY),
    ("path", libc::O_PATH),
    ("direct", libc::O_DIRECT),
    ("sync", libc::O_SYNC),
    ("noatime", libc::O_NOATIME),
    ("dsync", libc::O_DSYNC),
];

/// What came of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub answer: Result<String, i32>,
    /// Link counts of directories that were looked at.
    pub dir_links: Vec<u32>,
}

/// An open file of a run.
pub struct Slot {
    pub fd: OwnedFd,
    pub direct: bool,
    /// Only regular files and directories have data that can be compared.
    pub special: bool,
}

/// A directory that lines are carried out in, and what they have opened there.
pub struct Place {
    pub root: OwnedFd,
    pub slots: [Option<Slot>; SLOTS],
    /// A mapping, and the file it is of.
    pub mapping: Option<(Mapping, OwnedFd)>,
    began: i64,
    dir_links: Vec<u32>,
}

impl Place {
    /// `began`: times from then on are `now`.
    pub fn new(root: OwnedFd, began: i64) -> Self {
        Self {
            root,
            slots: Default::default(),
            mapping: None,
            began,
            dir_links: Vec::new(),
        }
    }

    /// Forgets all open files.
    pub fn close_all(&mut self) {
        self.slots = Default::default();
        self.mapping = None;
    }

    /// Carries out one line. An error is one of the line, not of the filesystem.
    pub fn run(&mut self, line: &Line) -> Result<Outcome> {
        self.dir_links.clear();
        errno_of(sys::fchdir(self.root.as_raw_fd())).context("the directory of the run")?;
        let (uid, gid, groups) = USERS[line.user().min(USERS.len() - 1)];
        if uid != 0 {
            errno_of(sys::become_user(uid, gid, groups))?;
        }
        let done = self
            .data(line)
            .transpose()
            .unwrap_or_else(|| self.names(line));
        if uid != 0 {
            errno_of(sys::become_user(0, 0, &[]))?;
        }
        let answer = done.with_context(|| line.to_string())?;
        Ok(Outcome {
            answer,
            dir_links: self.dir_links.clone(),
        })
    }

    fn names(&mut self, line: &Line) -> Result<Answer<String>> {
        let mut args = line.args();
        let verb = line.verb();
        Ok(match verb {
            "mkdir" | "mkfifo" | "mksock" | "mknod" => self.make(verb, &mut args)?,
            "symlink" => {
                let (dir, path) = self.path(&mut args)?;
                let target = args.c_string()?;
                self.after(dir, &path, |dir, path| sys::symlink(&target, dir, path))
            }
            "unlink" | "rmdir" => {
                let (dir, path) = self.path(&mut args)?;
                let flags = if verb == "rmdir" {
                    libc::AT_REMOVEDIR
                } else {
                    0
                };
                quiet(sys::unlink(dir, &path, flags))
            }
            "link" => {
                let from = self.path(&mut args)?;
                let (dir, path) = self.path(&mut args)?;
                self.after(dir, &path, |d, p| sys::link((from.0, &from.1), (d, p), 0))
            }
            "linkfd" => {
                let from = self.number(&mut args)?;
                let (dir, path) = self.path(&mut args)?;
                self.after(dir, &path, |d, p| {
                    sys::link((from?, c""), (d, p), libc::AT_EMPTY_PATH)
                })
            }
            "rename" => self.rename(&mut args)?,
            "chmod" => {
                let (dir, path) = self.path(&mut args)?;
                let mode = args.octal()?;
                self.after(dir, &path, |dir, path| sys::chmod(dir, path, mode))
            }
            "chown" => {
                let (dir, path) = self.path(&mut args)?;
                let (uid, gid) = (args.number()? as u32, args.number()? as u32);
                self.after(dir, &path, |dir, path| {
                    sys::chown(dir, path, uid, gid, libc::AT_SYMLINK_NOFOLLOW)
                })
            }
            "utimens" => {
                let (dir, path) = self.path(&mut args)?;
                let times = [time(&mut args)?, time(&mut args)?];
                self.after(dir, &path, |dir, path| {
                    sys::utimens(dir, Some(path), times, libc::AT_SYMLINK_NOFOLLOW)
                })
            }
            "umask" => {
                sys::umask(args.octal()?);
                Ok(String::new())
            }
            _ => self.questions(verb, &mut args)?,
        })
    }

    fn questions(&mut self, verb: &str, args: &mut Args<'_>) -> Result<Answer<String>> {
        let (dir, path) = self.path(args)?;
        Ok(match verb {
            "stat" => self.describe(dir, &path, libc::AT_SYMLINK_NOFOLLOW),
            "statf" => self.describe(dir, &path, 0),
            "readlink" => sys::readlink(dir, &path).map(|t| super::line::escape(&t)),
            "access" => quiet(sys::access(dir, &path, args.number()? as i32)),
            "ls" => list(dir, &path),
            "seekdir" => seek_in_listing(dir, &path, args.slot()?),
            "setxattr" | "rmxattr" | "getxattr" | "listxattr" => {
                // There is no call for these that takes a directory; run() goes back.
                if dir != HERE && sys::fchdir(dir).is_err() {
                    return Ok(Err(libc::EBADF));
                }
                self.xattr(verb, &path, args)?
            }
            _ => bail!("{verb}: no such verb"),
        })
    }

    fn make(&mut self, verb: &str, args: &mut Args<'_>) -> Result<Answer<String>> {
        let (dir, path) = self.path(args)?;
        let mode = args.octal()?;
        if verb == "mkdir" {
            return Ok(self.after(dir, &path, |dir, path| sys::mkdir(dir, path, mode)));
        }
        let (kind, dev) = match verb {
            "mkfifo" => (libc::S_IFIFO, 0),
            "mksock" => (libc::S_IFSOCK, 0),
            _ => {
                let kind = if args.word()? == b"b" {
                    libc::S_IFBLK
                } else {
                    libc::S_IFCHR
                };
                let (major, minor) = (args.number()? as u32, args.number()? as u32);
                (kind, libc::makedev(major, minor))
            }
        };
        Ok(self.after(dir, &path, |d, p| sys::mknod(d, p, kind | mode, dev)))
    }

    fn rename(&mut self, args: &mut Args<'_>) -> Result<Answer<String>> {
        let from = self.path(args)?;
        let to = self.path(args)?;
        let flags = match args.text()? {
            "noreplace" => libc::RENAME_NOREPLACE,
            "exchange" => libc::RENAME_EXCHANGE,
            _ => 0,
        };
        let done = self.after(to.0, &to.1, |d, p| {
            sys::rename((from.0, &from.1), (d, p), flags)
        });
        let old = self.describe(from.0, &from.1, libc::AT_SYMLINK_NOFOLLOW);
        Ok(done.map(|new| match old {
            Ok(old) => format!("{new}, {old}"),
            Err(errno) => format!("{new}, {}", errno_name(errno)),
        }))
    }

    fn xattr(&mut self, verb: &str, path: &CStr, args: &mut Args<'_>) -> Result<Answer<String>> {
        if verb == "listxattr" {
            return Ok(sys::listxattr(path).map(|names| xattr_names(&names)));
        }
        let name = args.c_string()?;
        Ok(match verb {
            "setxattr" => {
                let value = xattr_value(args.text()?)?;
                let flags = args.number()? as i32;
                self.after(HERE, path, |_, path| {
                    sys::setxattr(path, &name, &value, flags)
                })
            }
            "rmxattr" => self.after(HERE, path, |_, path| sys::removexattr(path, &name)),
            _ => sys::getxattr(path, &name).map(|v| show_xattr(&name, &v)),
        })
    }

    /// A path: as it is, or `@SLOT/REST` from an open directory.
    pub fn path(&self, args: &mut Args<'_>) -> Result<(RawFd, CString)> {
        let word = args.word()?;
        if let Some(rest) = word.strip_prefix(b"@") {
            let at = usize::from(rest.first().context("@: no slot")?.wrapping_sub(b'0'));
            let rest = rest.get(2..).unwrap_or_default();
            let slot = self.slots.get(at).context("@: no such slot")?;
            // No descriptor has this number.
            let fd = slot.as_ref().map_or(9999, |s| s.fd.as_raw_fd());
            let rest = if rest.is_empty() { b"." } else { rest };
            return Ok((fd, CString::new(rest)?));
        }
        Ok((HERE, CString::new(word)?))
    }

    /// The descriptor in a slot.
    pub fn number(&self, args: &mut Args<'_>) -> Result<Answer<RawFd>> {
        let slot = self.slots.get(args.slot()?).context("no such slot")?;
        Ok(slot.as_ref().map(|s| s.fd.as_raw_fd()).ok_or(libc::EBADF))
    }

    /// Does something to a file, and looks at it afterwards.
    pub fn after(
        &mut self,
        dir: RawFd,
        path: &CStr,
        change: impl FnOnce(RawFd, &CStr) -> Answer<usize>,
    ) -> Answer<String> {
        change(dir, path)?;
        // Who made it may be unable to look at it.
        let look = self.describe(dir, path, libc::AT_SYMLINK_NOFOLLOW);
        Ok(look.unwrap_or_else(errno_name))
    }

    /// What statx(2) tells.
    pub fn describe(&mut self, dir: RawFd, path: &CStr, flags: i32) -> Answer<String> {
        let info = sys::statx(dir, path, flags)?;
        let is_dir = u32::from(info.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        let mut text = format!("{:o} {}:{}", info.stx_mode, info.stx_uid, info.stx_gid);
        if is_dir {
            self.dir_links.push(info.stx_nlink);
        } else {
            text += &format!(" size {} links {}", info.stx_size, info.stx_nlink);
        }
        if info.stx_rdev_major != 0 {
            text += &format!(" rdev {}:{}", info.stx_rdev_major, info.stx_rdev_minor);
        }
        let mtime = &info.stx_mtime;
        text += &self.show_time(mtime.tv_sec, mtime.tv_nsec);
        Ok(text)
    }

    pub fn show_time(&self, sec: i64, nsec: u32) -> String {
        if (self.began..self.began + 36_000).contains(&sec) {
            " now".into()
        } else {
            format!(" {sec}.{nsec:09}")
        }
    }
}

/// Now, in seconds, a little early: the kernel's clock for files is a tick behind.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs() as i64 - 1)
}

/// An errno that ends the run.
pub fn errno_of<T>(answer: Answer<T>) -> Result<T> {
    answer.map_err(|errno| anyhow::anyhow!(errno_name(errno)))
}

pub fn quiet(answer: Answer<usize>) -> Answer<String> {
    answer.map(|_| String::new())
}

/// `SECONDS.NANOSECONDS`, `now` or `omit`.
pub fn time(args: &mut Args<'_>) -> Result<libc::timespec> {
    let word = args.text()?;
    let (tv_sec, tv_nsec) = match word {
        "now" => (0, libc::UTIME_NOW),
        "omit" => (0, libc::UTIME_OMIT),
        _ => {
            let (sec, nsec) = word.split_once('.').context("no '.' in a time")?;
            (sec.parse()?, nsec.parse()?)
        }
    };
    Ok(libc::timespec { tv_sec, tv_nsec })
}

/// All names with their types, sorted. The number of each must be that which stat(2) tells.
fn list(dir: RawFd, path: &CStr) -> Answer<String> {
    let fd = sys::open(dir, path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    list_open(fd.as_raw_fd())
}

pub fn list_open(dir: RawFd) -> Answer<String> {
    let mut found = read_listing(dir, 600)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    let shown: Vec<String> = found
        .iter()
        .map(|e| format!("{}:{}", super::line::escape(&e.name), e.kind))
        .collect();
    Ok(shown.join(" "))
}

pub fn read_listing(dir: RawFd, room: usize) -> Answer<Vec<sys::Entry>> {
    let mut found = Vec::new();
    loop {
        let some = sys::getdents(dir, room)?;
        if some.is_empty() {
            return Ok(found);
        }
        found.extend(some);
    }
}

/// Reads a directory, goes back to after the entry `skip` and reads on: that must be the rest.
fn seek_in_listing(dir: RawFd, path: &CStr, skip: usize) -> Answer<String> {
    let fd = sys::open(dir, path, libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    let fd = fd.as_raw_fd();
    let all = read_listing(fd, 300)?;
    let skip = skip % all.len().max(1);
    let Some(from) = all.get(skip) else {
        return Ok("empty".into());
    };
    sys::lseek(fd, from.next, libc::SEEK_SET)?;
    let rest = read_listing(fd, 4096)?;
    sys::lseek(fd, 0, libc::SEEK_SET)?;
    let again = read_listing(fd, 4096)?;
    let names =
        |list: &[sys::Entry]| -> Vec<Vec<u8>> { list.iter().map(|e| e.name.clone()).collect() };
    if names(&rest) != names(&all[skip + 1..]) {
        return Ok("after seeking other names come".into());
    }
    if names(&again) != names(&all) {
        return Ok("from the beginning other names come".into());
    }
    Ok(format!("{} names", all.len()))
}

/// A value as it is written in a line: `HEX`, a repeated byte `B*COUNT`, `acl:ENTRIES` or `cap`.
pub fn xattr_value(text: &str) -> Result<Vec<u8>> {
    if let Some(entries) = text.strip_prefix("acl:") {
        return acl(entries);
    }
    if text == "cap" {
        // Version 2, cap_net_raw, effective.
        let words = [0x0200_0001u32, 1 << 13, 0, 0, 0];
        return Ok(words.iter().flat_map(|w| w.to_le_bytes()).collect());
    }
    let (byte, count) = text.split_once('*').context("no value of an xattr")?;
    Ok(byte.repeat(count.parse()?).into_bytes())
}

/// `u:7,u1000:5,g:4,g2000:4,m:7,o:4`.
fn acl(entries: &str) -> Result<Vec<u8>> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for entry in entries.split(',').filter(|e| !e.is_empty()) {
        let (who, perm) = entry.split_once(':').context("an ACL entry has no ':'")?;
        let (tag, id) = match who.split_at(1) {
            ("u", "") => (1u16, u32::MAX),
            ("u", id) => (2, id.parse()?),
            ("g", "") => (4, u32::MAX),
            ("g", id) => (8, id.parse()?),
            ("m", _) => (16, u32::MAX),
            _ => (32, u32::MAX),
        };
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.parse::<u16>()?.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Ok(bytes)
}

pub fn show_xattr(name: &CStr, value: &[u8]) -> String {
    let name = name.to_string_lossy();
    if name.starts_with("user.") || name.starts_with("trusted.") {
        format!("{name}={}", super::line::escape(value))
    } else {
        let hex: String = value.iter().map(|b| format!("{b:02x}")).collect();
        format!("{name}={hex}")
    }
}

/// The names of attributes, sorted.
pub fn xattr_names(list: &[u8]) -> String {
    let mut names: Vec<_> = list
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    names.sort();
    names.join(" ")
}

pub fn errno_name(errno: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENODATA, "ENODATA"),
        (libc::ERANGE, "ERANGE"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ESTALE, "ESTALE"),
        (libc::ENOTCONN, "ENOTCONN"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ESPIPE, "ESPIPE"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
    ];
    let name = known.iter().find(|(n, _)| *n == errno);
    name.map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).into())
}
