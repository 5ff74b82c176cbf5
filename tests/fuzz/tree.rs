//! A whole tree as data: every name, attribute and byte that two filesystems must agree on.

use super::exec::{errno_name, read_listing, show_xattr};
use super::sys::{self, Answer, HERE};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

/// Names the file for as long as it lives: inode number and time of birth.
pub type Identity = (u64, i64, u32);

/// One name of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// What must be the same, by field.
    pub fields: BTreeMap<&'static str, String>,
    pub identity: Identity,
    /// Link count of a directory.
    pub dir_links: Option<u32>,
    /// The inode number that the listing of its directory tells; 0 for the root.
    pub listed: u64,
}

/// A tree by path.
pub type Tree = BTreeMap<Vec<u8>, Item>;

/// How a tree is looked at.
pub struct View {
    /// Times from then on are all alike.
    pub began: i64,
    /// Also the time of the last change of each file, and marks of unions: for layers, which stay.
    pub exact: bool,
}

/// Reads everything below a directory.
pub fn read(root: &OwnedFd, view: &View) -> Tree {
    let mut tree = Tree::new();
    if let Err(errno) = sys::fchdir(root.as_raw_fd()).map(drop) {
        tree.insert(b".".to_vec(), failed(errno));
        return tree;
    }
    tree.insert(b".".to_vec(), item(b".", view));
    directory(b"", view, &mut tree);
    tree
}

fn failed(errno: i32) -> Item {
    let fields = BTreeMap::from([("error", errno_name(errno))]);
    Item {
        fields,
        ..Item::default()
    }
}

fn directory(path: &[u8], view: &View, tree: &mut Tree) {
    let own = if path.is_empty() { b"." } else { path };
    let listed = c_path(own)
        .and_then(|p| sys::open(HERE, &p, libc::O_RDONLY | libc::O_DIRECTORY, 0))
        .and_then(|fd| read_listing(fd.as_raw_fd(), 8192));
    let listed = match listed {
        Ok(listed) => listed,
        Err(errno) => {
            let item = tree.entry(own.to_vec()).or_default();
            item.fields.insert("listing", errno_name(errno));
            return;
        }
    };
    for entry in listed {
        if entry.name == b"." || entry.name == b".." {
            continue;
        }
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend(&entry.name);
        let mut found = item(&below, view);
        found.listed = entry.ino;
        let kind = found.fields.get("kind").cloned().unwrap_or_default();
        if kind != entry.kind.to_string() {
            found.fields.insert("listed kind", entry.kind.to_string());
        }
        let is_dir = found.dir_links.is_some();
        if tree.insert(below.clone(), found).is_some() {
            let item = tree.entry(below.clone()).or_default();
            item.fields.insert("listed", "twice".into());
        }
        if is_dir {
            directory(&below, view, tree);
        }
    }
}

fn c_path(path: &[u8]) -> Answer<CString> {
    CString::new(path).map_err(|_| libc::EINVAL)
}

fn item(path: &[u8], view: &View) -> Item {
    match c_path(path).and_then(|path| look(&path, view)) {
        Ok(item) => item,
        Err(errno) => failed(errno),
    }
}

fn look(path: &CString, view: &View) -> Answer<Item> {
    let info = sys::statx(HERE, path, libc::AT_SYMLINK_NOFOLLOW)?;
    let birth = &info.stx_btime;
    let identity = (info.stx_ino, birth.tv_sec, birth.tv_nsec);
    let mode = u32::from(info.stx_mode);
    let kind = mode & libc::S_IFMT;
    let mut fields = BTreeMap::from([
        ("kind", (kind >> 12).to_string()),
        ("mode", format!("{:o}", mode & 0o7777)),
        ("owner", format!("{}:{}", info.stx_uid, info.stx_gid)),
    ]);
    let mut dir_links = None;
    if kind == libc::S_IFDIR {
        dir_links = Some(info.stx_nlink);
    } else {
        fields.insert("links", info.stx_nlink.to_string());
        fields.insert("size", info.stx_size.to_string());
    }
    if kind == libc::S_IFCHR || kind == libc::S_IFBLK {
        let rdev = format!("{}:{}", info.stx_rdev_major, info.stx_rdev_minor);
        fields.insert("rdev", rdev);
    }
    let mtime = &info.stx_mtime;
    let recent = (view.began..view.began + 36_000).contains(&mtime.tv_sec);
    let mtime = if recent && !view.exact {
        "now".into()
    } else {
        format!("{}.{:09}", mtime.tv_sec, mtime.tv_nsec)
    };
    fields.insert("mtime", mtime);
    if view.exact {
        let ctime = &info.stx_ctime;
        fields.insert("ctime", format!("{}.{:09}", ctime.tv_sec, ctime.tv_nsec));
    }
    xattrs(path, view, &mut fields);
    if kind == libc::S_IFREG {
        let content = content(path).unwrap_or_else(errno_name);
        fields.insert("content", content);
    } else if kind == libc::S_IFLNK {
        let target = sys::readlink(HERE, path).map(|t| super::line::escape(&t));
        fields.insert("target", target.unwrap_or_else(errno_name));
    }
    Ok(Item {
        fields,
        identity,
        dir_links,
        listed: 0,
    })
}

fn xattrs(path: &CString, view: &View, fields: &mut BTreeMap<&'static str, String>) {
    let names = match sys::listxattr(path) {
        Ok(names) => names,
        Err(errno) => {
            fields.insert("xattrs", errno_name(errno));
            return;
        }
    };
    let mut shown = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if name.starts_with(b"trusted.overlay.") && !view.exact {
            // On the ordinary filesystem there are none; a union that shows its own is found out.
            shown.push(format!("{} is shown", name.escape_ascii()));
            continue;
        }
        let Ok(name) = CString::new(name) else {
            continue;
        };
        let value = sys::getxattr(path, &name).map(|v| show_xattr(&name, &v));
        shown.push(value.unwrap_or_else(|e| format!("{name:?}: {}", errno_name(e))));
    }
    shown.sort();
    fields.insert("xattrs", shown.join(" "));
}

fn content(path: &CString) -> Answer<String> {
    let fd = sys::open(HERE, path, libc::O_RDONLY | libc::O_NONBLOCK, 0)?;
    let fd = fd.as_raw_fd();
    super::data::digest(fd)
}

/// The data of an open file, and nothing of its holes: `(offset, bytes)`.
pub fn extents(fd: i32) -> Answer<Vec<(i64, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let from = match sys::lseek(fd, at, libc::SEEK_DATA) {
            Ok(from) => from as i64,
            Err(libc::ENXIO) => return Ok(found),
            Err(errno) => return Err(errno),
        };
        let to = sys::lseek(fd, from, libc::SEEK_HOLE)? as i64;
        let mut data = vec![0; (to - from) as usize];
        let mut done = 0;
        while done < data.len() {
            match sys::read(fd, &mut data[done..], Some(from + done as i64))? {
                0 => break,
                n => done += n,
            }
        }
        data.truncate(done);
        found.push((from, data));
        at = to;
    }
}

/// What differs, one line a field; at most so many.
pub fn differences(want: &Tree, got: &Tree, most: usize) -> Vec<String> {
    let mut found = Vec::new();
    let paths: std::collections::BTreeSet<_> = want.keys().chain(got.keys()).collect();
    for path in paths {
        let shown = super::line::escape(path);
        match (want.get(path), got.get(path)) {
            (Some(_), None) => found.push(format!("{shown}: missing")),
            (None, Some(_)) => found.push(format!("{shown}: too much")),
            (Some(want), Some(got)) => {
                let names: std::collections::BTreeSet<_> =
                    want.fields.keys().chain(got.fields.keys()).collect();
                for name in names {
                    let none = "none".to_owned();
                    let a = want.fields.get(name).unwrap_or(&none);
                    let b = got.fields.get(name).unwrap_or(&none);
                    if a != b {
                        found.push(format!("{shown}: {name} is {b}, should be {a}"));
                    }
                }
            }
            (None, None) => {}
        }
        if found.len() >= most {
            break;
        }
    }
    found
}
