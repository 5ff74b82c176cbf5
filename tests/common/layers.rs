//! Layers as data: what one branch holds before the union sees it, and how it is written to disk.

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use unionfs::spec::Format;

/// The longest name that `.wh.NAME` can hide.
pub const LONGEST_PLAIN_WHITEOUT: usize = 251;

/// All files of layers were last changed at this second of the epoch.
pub const OLD: i64 = 1_000_000_000;

/// A file name: bytes, shown escaped and shortened.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub Vec<u8>);

impl Deref for Name {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len() > 20 {
            write!(f, "\"{}..\"*{}", self[..1].escape_ascii(), self.len())
        } else {
            write!(f, "\"{}\"", self.escape_ascii())
        }
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Self(name.as_bytes().to_vec())
    }
}

/// Few names, so that layers and operations meet: among them one that is not UTF-8, one whose
/// whiteout just fits and one whose whiteout must be a device.
pub fn name(n: u8) -> Name {
    Name(match n % 9 {
        0 => b"a".to_vec(),
        1 => b"b".to_vec(),
        2 => b"c".to_vec(),
        3 => b"d".to_vec(),
        4 => b"e".to_vec(),
        5 => b"\xff\xfe".to_vec(),
        6 => vec![b'n'; 250],
        7 => vec![b'w'; 253],
        _ => b"x.wh.y".to_vec(),
    })
}

/// What a file has besides its data.
#[derive(Clone, PartialEq, Eq)]
pub struct Meta {
    pub mode: u32,
    pub uid: u32,
    /// Value of [`XATTR`], if it has that.
    pub xattr: Option<u8>,
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:o}", self.mode)?;
        if self.uid != 0 {
            write!(f, " uid {}", self.uid)?;
        }
        self.xattr.map_or(Ok(()), |x| write!(f, " attr {x}"))
    }
}

/// The attribute that files and directories of layers may have.
pub const XATTR: &str = "user.layer";

impl Meta {
    pub fn plain(mode: u32) -> Self {
        Self {
            mode,
            uid: 0,
            xattr: None,
        }
    }
}

/// One entry of a layer's directory.
#[derive(Clone)]
pub enum Entry {
    /// Files with the same `link` in one layer are one file, as the first of them says.
    File {
        meta: Meta,
        data: Vec<u8>,
        link: Option<u8>,
    },
    Dir(Tree),
    Symlink(Vec<u8>),
    Fifo,
    /// A character device 0/0, an ordinary entry in the AUFS format.
    Null,
}

/// A directory of a layer.
#[derive(Clone)]
pub struct Tree {
    pub meta: Meta,
    pub entries: BTreeMap<Name, Entry>,
    pub whiteouts: BTreeSet<Name>,
    pub opaque: bool,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { meta, data, link } => {
                write!(f, "file {meta:?} {} bytes", data.len())?;
                link.map_or(Ok(()), |l| write!(f, " link {l}"))
            }
            Self::Dir(tree) => write!(f, "{tree:?}"),
            Self::Symlink(_) => write!(f, "symlink"),
            Self::Fifo => write!(f, "fifo"),
            Self::Null => write!(f, "null"),
        }
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dir {:?} {:?}", self.meta, self.entries)?;
        if !self.whiteouts.is_empty() {
            write!(f, " without {:?}", self.whiteouts)?;
        }
        write!(f, "{}", if self.opaque { " opaque" } else { "" })
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            meta: Meta::plain(0o755),
            entries: BTreeMap::new(),
            whiteouts: BTreeSet::new(),
            opaque: false,
        }
    }
}

/// For layers written by hand.
impl Tree {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(mut self, name: &str, entry: Entry) -> Self {
        self.entries.insert(name.into(), entry);
        self
    }

    pub fn file(self, name: &str, data: &str) -> Self {
        let data = data.as_bytes().to_vec();
        let meta = Meta::plain(0o644);
        let link = None;
        self.with(name, Entry::File { meta, data, link })
    }

    pub fn linked(self, name: &str, link: u8) -> Self {
        let (meta, data) = (Meta::plain(0o644), vec![b'0' + link; 5]);
        let link = Some(link);
        self.with(name, Entry::File { meta, data, link })
    }

    pub fn dir(self, name: &str, tree: Tree) -> Self {
        self.with(name, Entry::Dir(tree))
    }

    pub fn without(mut self, name: &str) -> Self {
        self.whiteouts.insert(name.into());
        self
    }

    pub fn opaque(mut self) -> Self {
        self.opaque = true;
        self
    }

    /// Takes out what a format cannot express: there a whiteout has the very name of what it hides
    /// and a null device is one.
    pub fn normalise(&mut self, format: Format, honours: bool) {
        let by_device =
            |name: &Name| format == Format::Overlay || name.len() > LONGEST_PLAIN_WHITEOUT;
        let entries = &self.entries;
        self.whiteouts
            .retain(|n| !by_device(n) || (honours && !entries.contains_key(n)));
        for (name, entry) in &mut self.entries {
            match entry {
                Entry::Dir(tree) => tree.normalise(format, honours),
                Entry::Null if by_device(name) => *entry = Entry::Fifo,
                _ => {}
            }
        }
    }

    /// Every hard link group: the first of its files (in the order of names), and how many.
    pub fn links(&self) -> BTreeMap<u8, (Meta, Vec<u8>, u32)> {
        let mut found = BTreeMap::new();
        self.collect_links(&mut found);
        found
    }

    fn collect_links(&self, found: &mut BTreeMap<u8, (Meta, Vec<u8>, u32)>) {
        for entry in self.entries.values() {
            match entry {
                Entry::Dir(tree) => tree.collect_links(found),
                Entry::File {
                    meta,
                    data,
                    link: Some(link),
                } => {
                    let first = || (meta.clone(), data.clone(), 0);
                    found.entry(*link).or_insert_with(first).2 += 1;
                }
                _ => {}
            }
        }
    }

    /// Writes the layer into an existing directory.
    pub fn write(&self, at: &Path, format: Format) -> Result<()> {
        self.write_dir(at, format, &mut BTreeMap::new())
            .with_context(|| format!("writing the layer {}", at.display()))
    }

    fn write_dir(
        &self,
        at: &Path,
        format: Format,
        links: &mut BTreeMap<u8, PathBuf>,
    ) -> Result<()> {
        for (name, entry) in &self.entries {
            let path = at.join(OsStr::from_bytes(name));
            match entry {
                Entry::File { meta, data, link } => {
                    if let Some(first) = link.and_then(|l| links.get(&l)) {
                        std::fs::hard_link(first, &path)?;
                        continue;
                    }
                    std::fs::write(&path, data)?;
                    set_meta(&path, meta)?;
                    if let Some(link) = link {
                        links.insert(*link, path.clone());
                    }
                }
                Entry::Dir(tree) => {
                    std::fs::create_dir(&path)?;
                    tree.write_dir(&path, format, links)?;
                }
                Entry::Symlink(target) => {
                    symlink(OsStr::from_bytes(target), &path)?;
                    lchown(&path, Some(7), Some(7))?;
                }
                Entry::Fifo => make_node(&path, FileType::Fifo)?,
                Entry::Null => make_node(&path, FileType::CharacterDevice)?,
            }
            set_old(&path)?;
        }
        for name in &self.whiteouts {
            if format == Format::Overlay || name.len() > LONGEST_PLAIN_WHITEOUT {
                make_node(&at.join(OsStr::from_bytes(name)), FileType::CharacterDevice)?;
            } else {
                let mark = [b".wh.", &**name].concat();
                std::fs::write(at.join(OsStr::from_bytes(&mark)), b"")?;
            }
        }
        if self.opaque {
            match format {
                Format::Aufs => std::fs::write(at.join(".wh..wh..opq"), b"")?,
                Format::Overlay => {
                    let name = "trusted.overlay.opaque";
                    rustix::fs::lsetxattr(at, name, b"y", XattrFlags::empty())?;
                }
            }
        }
        set_meta(at, &self.meta)
    }
}

fn make_node(path: &Path, kind: FileType) -> Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_bits_truncate(0o644), 0)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))?;
    Ok(())
}

fn set_meta(path: &Path, meta: &Meta) -> Result<()> {
    chown(path, Some(meta.uid), Some(meta.uid))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(meta.mode))?;
    if let Some(value) = meta.xattr {
        rustix::fs::lsetxattr(path, XATTR, &[value], XattrFlags::empty())?;
    }
    Ok(())
}

fn set_old(path: &Path) -> Result<()> {
    let old = Timespec {
        tv_sec: OLD,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
