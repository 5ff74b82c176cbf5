//! Layers on disk: made from lines, and merged into one ordinary tree, which is the model of what
//! a union of them must show.

use super::exec::{Place, errno_of};
use super::line::Line;
use super::sys::{self, HERE};
use super::tree::extents;
use anyhow::{Context, Result};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How a layer says that something below it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// Devices 0/0 and `trusted.overlay.opaque`.
    Overlay,
    /// `.wh.NAME` and `.wh..wh..opq`.
    Aufs,
}

/// The longest name that `.wh.NAME` can hide.
const LONGEST_PLAIN_WHITEOUT: usize = 251;

/// All files of layers are older than any run.
const OLD: i64 = 1_000_000_000;

/// Opens a directory to carry out lines in.
pub fn place(dir: &Path, began: i64) -> Result<Place> {
    let path = c_path(dir)?;
    let root = errno_of(sys::open(
        HERE,
        &path,
        libc::O_RDONLY | libc::O_DIRECTORY,
        0,
    ))
    .with_context(|| dir.display().to_string())?;
    Ok(Place::new(root, began))
}

/// Makes a layer. A line that does not work there leaves nothing behind.
pub fn write(dir: &Path, number: usize, lines: &[Line], marks: Marks) -> Result<()> {
    fs::create_dir_all(dir)?;
    sys::umask(0);
    let mut place = place(dir, 0)?;
    for line in lines {
        if is_whited_out(dir, line) {
            // Where the mark has the very name, nothing else can have it.
            continue;
        }
        parents(dir, line);
        match line.verb() {
            "whiteout" => whiteout(dir, &line.words[1], marks),
            "opaque" => opaque(dir, &line.words[1], marks),
            _ => drop(place.run(line)?),
        }
    }
    let mut count = 0;
    age(dir, OLD + number as i64 * 100_000, &mut count)?;
    sys::umask(0o022);
    Ok(())
}

/// Is something that a line speaks of, or a directory above it, whited out in this layer?
fn is_whited_out(dir: &Path, line: &Line) -> bool {
    let paths = if line.verb() == "link" { 2 } else { 1 };
    line.words.iter().skip(1).take(paths).any(|word| {
        let path = Path::new(OsStr::from_bytes(word));
        path.ancestors().any(|p| {
            let Some(name) = p.file_name() else {
                return false;
            };
            let mark = [b".wh.", name.as_bytes()].concat();
            let entry = dir.join(p);
            let mark = entry.with_file_name(OsStr::from_bytes(&mark));
            let device = fs::symlink_metadata(&entry).is_ok_and(|info| is_mark(&entry, &info));
            device || fs::symlink_metadata(mark).is_ok()
        })
    })
}

/// Makes the directories above what a line makes; where that does not work the line will not.
fn parents(dir: &Path, line: &Line) {
    let Some(path) = line.words.get(1) else {
        return;
    };
    let made = [
        "mkdir", "put", "symlink", "mkfifo", "mknod", "whiteout", "opaque",
    ];
    if made.contains(&line.verb()) {
        let path = dir.join(OsStr::from_bytes(path));
        let _ = path.parent().map(fs::create_dir_all);
    }
}

/// Errors do not matter: the name is taken, or its directory is not there.
fn whiteout(dir: &Path, path: &[u8], marks: Marks) {
    let path = dir.join(OsStr::from_bytes(path));
    let Some(name) = path.file_name() else {
        return;
    };
    if fs::symlink_metadata(&path).is_ok() {
        return;
    }
    if marks == Marks::Overlay || name.len() > LONGEST_PLAIN_WHITEOUT {
        if let Ok(path) = c_path(&path) {
            let _ = sys::mknod(HERE, &path, libc::S_IFCHR, 0);
        }
    } else {
        let mark = [b".wh.", name.as_bytes()].concat();
        let _ = fs::write(path.with_file_name(OsStr::from_bytes(&mark)), b"");
    }
}

fn opaque(dir: &Path, path: &[u8], marks: Marks) {
    let path = dir.join(OsStr::from_bytes(path));
    if !fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
        return;
    }
    if marks == Marks::Aufs {
        let _ = fs::write(path.join(".wh..wh..opq"), b"");
    } else if let Ok(path) = c_path(&path) {
        let _ = sys::setxattr(&path, c"trusted.overlay.opaque", b"y", 0);
    }
}

/// Gives every file a time of its own, long ago.
fn age(path: &Path, base: i64, count: &mut i64) -> Result<()> {
    let info = fs::symlink_metadata(path)?;
    if info.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        for name in names {
            age(&path.join(name), base, count)?;
        }
    }
    // Marks do not count: in each format there are others.
    if !is_mark(path, &info) {
        *count += 1;
    }
    let time = libc::timespec {
        tv_sec: base + *count,
        tv_nsec: *count * 1_001,
    };
    set_times(path, [time, time])
}

fn is_mark(path: &Path, info: &fs::Metadata) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    name.starts_with(b".wh.") || (info.file_type().is_char_device() && info.rdev() == 0)
}

fn set_times(path: &Path, times: [libc::timespec; 2]) -> Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    errno_of(sys::utimens(HERE, Some(&c_path(path)?), times, flags))?;
    Ok(())
}

/// What a merged tree does not show.
pub struct Merged {
    /// Some files have names that are hidden.
    pub hides_names: bool,
    /// A directory was merged with one below a file: overlayfs does not.
    pub passed_over_file: bool,
}

/// Merges layers (topmost first, marks as overlayfs makes them) into an empty directory, by the
/// rules of overlayfs or those of AUFS. Names that are hidden count as links: they are made `aside`,
/// another one.
pub fn merge(layers: &[PathBuf], into: &Path, aside: &Path, rules: Marks) -> Result<Merged> {
    let mut merge = Merge {
        copies: HashMap::new(),
        rules,
        passed_over_file: false,
    };
    merge.directory(layers, into)?;
    let mut hidden = 0;
    for (copy, links) in merge.copies.values() {
        for _ in fs::symlink_metadata(copy)?.nlink()..u64::from(*links) {
            fs::hard_link(copy, aside.join(hidden.to_string()))?;
            hidden += 1;
        }
    }
    Ok(Merged {
        hides_names: hidden > 0,
        passed_over_file: merge.passed_over_file,
    })
}

struct Merge {
    /// Where a file of a layer was copied to, and how many names it has there.
    copies: HashMap<(u64, u64), (PathBuf, u32)>,
    rules: Marks,
    passed_over_file: bool,
}

impl Merge {
    /// The directory of each of these layers takes part.
    fn directory(&mut self, layers: &[PathBuf], into: &Path) -> Result<()> {
        let mut names = BTreeSet::new();
        for layer in layers {
            for entry in fs::read_dir(layer)? {
                names.insert(entry?.file_name());
            }
        }
        for name in names {
            let here: Vec<PathBuf> = layers.iter().map(|l| l.join(&name)).collect();
            self.name(&here, &into.join(&name))?;
        }
        copy_attributes(&layers[0], into)
    }

    fn name(&mut self, layers: &[PathBuf], into: &Path) -> Result<()> {
        let mut dirs = Vec::new();
        let mut file_between = false;
        for layer in layers {
            let Ok(info) = fs::symlink_metadata(layer) else {
                continue;
            };
            let is_whiteout = info.file_type().is_char_device() && info.rdev() == 0;
            if !info.is_dir() {
                if dirs.is_empty() && !is_whiteout {
                    return self.file(layer, &info, into);
                }
                if is_whiteout || self.rules == Marks::Overlay {
                    break;
                }
                file_between = true;
                continue;
            }
            self.passed_over_file |= file_between;
            dirs.push(layer.clone());
            let opaque = c"trusted.overlay.opaque";
            if sys::getxattr(&c_path(layer)?, opaque).is_ok() {
                break;
            }
        }
        if dirs.is_empty() {
            return Ok(());
        }
        fs::create_dir(into)?;
        self.directory(&dirs, into)
    }

    fn file(&mut self, from: &Path, info: &fs::Metadata, into: &Path) -> Result<()> {
        let key = (info.dev(), info.ino());
        if let Some((first, _)) = self.copies.get(&key) {
            fs::hard_link(first, into)?;
            return Ok(());
        }
        let kind = info.file_type();
        if kind.is_file() {
            let source = errno_of(sys::open(HERE, &c_path(from)?, libc::O_RDONLY, 0))?;
            let copy = fs::File::create(into)?;
            copy.set_len(info.len())?;
            for (at, data) in errno_of(extents(source.as_raw_fd()))? {
                errno_of(sys::write(copy.as_raw_fd(), &data, Some(at)))?;
            }
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(from)?, into)?;
        } else {
            let into = c_path(into)?;
            errno_of(sys::mknod(HERE, &into, info.mode(), info.rdev()))?;
        }
        let links = info.nlink() as u32;
        self.copies.insert(key, (into.to_owned(), links));
        copy_attributes(from, into)
    }
}

fn copy_attributes(from: &Path, to: &Path) -> Result<()> {
    let info = fs::symlink_metadata(from)?;
    let (source, target) = (c_path(from)?, c_path(to)?);
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    errno_of(sys::chown(HERE, &target, info.uid(), info.gid(), flags))?;
    if !info.is_symlink() {
        errno_of(sys::chmod(HERE, &target, info.mode() & 0o7777))?;
    }
    let names = errno_of(sys::listxattr(&source))?;
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if !name.starts_with(b"trusted.overlay.") {
            let name = CString::new(name)?;
            let value = errno_of(sys::getxattr(&source, &name))?;
            errno_of(sys::setxattr(&target, &name, &value, 0))?;
        }
    }
    let time = |tv_sec, tv_nsec| libc::timespec { tv_sec, tv_nsec };
    let times = [
        time(info.atime(), info.atime_nsec()),
        time(info.mtime(), info.mtime_nsec()),
    ];
    set_times(to, times)
}

pub fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
