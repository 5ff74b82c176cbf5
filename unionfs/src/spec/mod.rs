//! What a mount is asked to be: the parsed form of every option, and nothing that does I/O.
//!
//! [`aufs`] and [`overlay`] turn the two option grammars into a [`MountSpec`]; the union is built
//! from it. [`table`] lists the options of both, once, for the parsers, the help text and the
//! suggestions in error messages.
//! Source of the grammar: aufs(5); fuse-overlayfs(1); Documentation/filesystems/overlayfs.rst.

pub mod aufs;
pub mod overlay;
mod parse;
mod perm;
mod setting;
pub mod table;
mod text;
mod value;

pub use parse::Unknown;
pub use setting::{MountSetting, Setting};

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Which of the two option languages a mount was written in; it decides the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// `br=/rw=rw:/ro=ro`
    Aufs,
    /// `lowerdir=A:B,upperdir=U,workdir=W`
    Overlay,
}

/// May the union write to a branch?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `rw`: creates, copy-up target, changes in place, whiteouts.
    ReadWrite,
    /// `ro`: never written by the union, others may change it.
    ReadOnly,
    /// `rr`: never written by anybody ("real readonly").
    RealReadOnly,
}

/// When a file is copied up merely because it is opened (`+coo_reg`, `+coo_all`, `+moo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyOnOpen {
    /// Only changes copy up.
    #[default]
    Never,
    /// Regular files are copied up when opened.
    Regular,
    /// Regular files and directories are.
    All,
    /// As `Regular`, and the source is removed (`moo`, writable branches only).
    Move,
}

bitflags::bitflags! {
    /// Classes of xattr whose errors are ignored when the branch is a copy-up target (`+icex*`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IgnoreXattr: u8 {
        /// `security.*`
        const SECURITY = 1;
        /// `system.*` (POSIX ACLs)
        const SYSTEM = 2;
        /// `trusted.*`
        const TRUSTED = 4;
        /// `user.*`
        const USER = 8;
        /// anything else
        const OTHER = 16;
    }
}

/// Permission word and attributes of a branch, e.g. `ro+wh+icexsec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchPerm {
    /// The permission word.
    pub access: Access,
    /// Whiteouts and opaque marks on it count. Always true of a writable branch.
    pub whiteouts: bool,
    /// `+nolwh`: every whiteout is a file of its own, not a hard link of the base.
    pub no_link_whiteout: bool,
    /// `+coo_reg`, `+coo_all`, `+moo`.
    pub copy_on_open: CopyOnOpen,
    /// `+fhsm`: takes part in tiering.
    pub fhsm: bool,
    /// `+icex*`.
    pub ignore_xattr: IgnoreXattr,
    /// `+aufs`, `+overlay`, `+auto`: the format of its marks; `None` = as elsewhere said.
    pub format: Option<FormatWord>,
    /// A data-only layer of overlayfs's: its names are not merged, and its files are reached only
    /// through files above it that lack their data. Never true of a writable branch.
    pub data_only: bool,
}

impl BranchPerm {
    /// `rw`
    pub const RW: Self = Self {
        access: Access::ReadWrite,
        whiteouts: true,
        no_link_whiteout: false,
        copy_on_open: CopyOnOpen::Never,
        fhsm: false,
        ignore_xattr: IgnoreXattr::empty(),
        format: None,
        data_only: false,
    };
    /// `ro`
    pub const RO: Self = Self {
        access: Access::ReadOnly,
        whiteouts: false,
        ..Self::RW
    };
    /// `ro+wh`
    pub const RO_WH: Self = Self {
        access: Access::ReadOnly,
        ..Self::RW
    };

    /// May the union write here?
    pub fn writable(&self) -> bool {
        self.access == Access::ReadWrite
    }
}

/// On-disk format of the whiteouts of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.wh.NAME`, `.wh..wh..opq`: AUFS and OCI layers.
    Aufs,
    /// Character devices 0/0 and `trusted.overlay.opaque` / `user.overlay.opaque`; `.wh.` files are read too.
    Overlay,
}

/// What is said of the format of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatWord {
    /// This one.
    Fixed(Format),
    /// What its bookkeeping says; of a readonly branch, else what its marks say.
    Auto,
}

impl FormatWord {
    /// The format, if it is said.
    pub fn fixed(self) -> Option<Format> {
        match self {
            Self::Fixed(format) => Some(format),
            Self::Auto => None,
        }
    }

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fixed(Format::Aufs) => "aufs",
            Self::Fixed(Format::Overlay) => "overlay",
            Self::Auto => "auto",
        }
    }
}

/// One member directory of the union.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchSpec {
    /// As the user wrote it (unescaped); made absolute before the daemon changes directory.
    pub path: PathBuf,
    /// Permission and attributes.
    pub perm: BranchPerm,
    /// On-disk format unless the permission has a word on it; `None` = the grammar's default.
    pub format: Option<Format>,
    /// Overlay grammar: the directory for work in progress on the same filesystem.
    pub workdir: Option<PathBuf>,
}

/// How changes made behind the union are noticed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Udba {
    /// Never: caches are trusted for ever.
    None,
    /// Entries are checked again after this lifetime.
    Reval(Duration),
    /// Watches on the branches.
    Notify,
}

/// Where a new entry is created (`create=`). Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CreatePolicy {
    /// Top of the parent, else the first writable above it.
    TopDownParent,
    /// Topmost writable with more than `low` bytes free, else most free space.
    TopDownMostFree {
        /// bytes
        low: u64,
        /// cache time
        hold: Duration,
    },
    /// Round robin over writable branches.
    RoundRobin,
    /// Most free space.
    MostFree {
        /// cache time
        hold: Duration,
    },
    /// Most free space; round robin when that has less than `low`.
    MostFreeRoundRobin {
        /// bytes
        low: u64,
        /// cache time
        hold: Duration,
    },
    /// Most free among the branches that hold the parent.
    ParentMostFree {
        /// cache time
        hold: Duration,
    },
    /// As above, `MostFreeRoundRobin` when that has less than `low`.
    ParentMostFreeRoundRobin {
        /// bytes
        low: u64,
        /// cache time
        hold: Duration,
    },
}

/// Which writable branch an existing entry is copied to (`cpup=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyupPolicy {
    /// `tdp`: topmost writable that holds the parent, between the parent's top and the entry.
    TopDownParent,
    /// `bup`: nearest writable above that holds the parent.
    BottomUpParent,
    /// `bu`: nearest writable above.
    BottomUp,
}

/// Which branch a file is moved to whose own is full (`moveonenospc=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillPolicy {
    /// `mfs`: the one with most free space.
    MostFree,
    /// `pmfs`: the same, but those that hold the directory come first.
    ParentMostFree,
}

/// When a new directory is marked opaque (`diropq=`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirOpaque {
    /// Only over a whiteout.
    Whiteouted,
    /// Always.
    Always,
}

/// How opens are answered and data flows (`io=`, `open=`); `Auto` decides at mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Passthrough where the kernel allows it, else the page cache.
    Auto,
    /// Kernel passthrough for data in the writable branch.
    Passthrough,
    /// The page cache (readahead, mmap), reads and writes served by the daemon.
    Cache,
    /// Every read and write goes to the daemon.
    Direct,
}

/// Is `open(2)` sent to the daemon?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Decided from `udba` and `io`.
    Auto,
    /// Every open is answered.
    Answered,
    /// Zero-message opens (ENOSYS).
    None,
}

/// Translation of ids between the branches and the mount (`uidmapping=`): triples
/// BRANCH:MOUNT:COUNT. Source: fuse-overlayfs(1), where container engines write the container's id
/// (as it is in the layers) first and the host's (as it must show) second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap(pub Vec<IdRange>);

/// One range of an [`IdMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id on the branches.
    pub branch: u32,
    /// First id as users of the mount see it.
    pub mount: u32,
    /// How many.
    pub count: u32,
}

/// Options that change how the union behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `udba=`
    pub udba: Udba,
    /// `watches=`: most directories on branches that are watched at a time (`udba=notify`).
    pub watches: usize,
    /// `create=`
    pub create: CreatePolicy,
    /// `cpup=`
    pub copyup: CopyupPolicy,
    /// `moveonenospc`: what does not fit on a branch goes to another; `None` = that is an error.
    pub move_on_enospc: Option<SpillPolicy>,
    /// `fhsm_sec=`: seconds between two looks at branches with `+fhsm`.
    pub fhsm_sec: u32,
    /// `diropq=`
    pub dir_opaque: DirOpaque,
    /// `dirren`: directories that live on several branches can be renamed.
    pub dir_rename: bool,
    /// `dirperm1`: permission of a directory is the topmost's alone.
    pub dirperm1: bool,
    /// `plink`: names of one lower file stay one file over copy-up.
    pub plink: bool,
    /// `shwh`: whiteouts are shown as names.
    pub show_whiteouts: bool,
    /// `sum`: statfs adds the branches up.
    pub sum: bool,
    /// `dirwh=`: a directory with more whiteouts than this is removed in the background.
    pub dirwh: u32,
    /// `format=`: on-disk format of writable branches, or (`auto`) of all; `None` = the grammar's.
    pub format: Option<FormatWord>,
    /// `namelen=`: longest name accepted (242 for AUFS, up to 255).
    pub name_max: u16,
    /// `strict`: a whiteout beside a real entry, or one that is no regular file, is EIO (AUFS); else the entry wins.
    pub strict: bool,
    /// `volatile`, `fsync=0`: nothing is synced.
    pub volatile: bool,
    /// `io=`
    pub io: IoMode,
    /// `open=`
    pub open: OpenMode,
    /// `writeback`
    pub writeback: bool,
    /// `supervise`: a watcher takes the mount away if the daemon dies.
    pub supervise: bool,
    /// `timeout=`: lifetime of entries and attributes; `None` = by `udba`.
    pub timeout: Option<Duration>,
    /// `uidmapping=`
    pub uid_map: IdMap,
    /// `gidmapping=`
    pub gid_map: IdMap,
    /// `squash_to_uid=`
    pub squash_uid: Option<u32>,
    /// `squash_to_gid=`
    pub squash_gid: Option<u32>,
    /// `noacl` clears it.
    pub acl: bool,
    /// `xattr_permissions=1|2`: owners and modes are kept in an xattr.
    pub xattr_permissions: Option<u8>,
    /// `threads=`: FUSE worker threads; `None` = min(cores, 4).
    pub threads: Option<usize>,
}

/// Flags of the mount itself, as mount(2) knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// `ro`
    pub read_only: bool,
    /// `nodev`
    pub nodev: bool,
    /// `nosuid`
    pub nosuid: bool,
    /// `noexec`
    pub noexec: bool,
    /// `allow_other`; `None` = when possible.
    pub allow_other: Option<bool>,
    /// `fsname=`: the label shown as source; wins over the one on the command line.
    pub fsname: Option<OsString>,
    /// SELinux `context=`, `fscontext=`, `defcontext=`, `rootcontext=`: `key=value`, unquoted. A
    /// value may contain commas, so it needs quotes in the data of mount(2), but none in fsconfig(2).
    pub context: Vec<String>,
}

/// Everything that is asked of a mount.
#[derive(Clone, Debug, PartialEq)]
pub struct MountSpec {
    /// Where the defaults came from.
    pub grammar: Grammar,
    /// Topmost first, never empty.
    pub branches: Vec<BranchSpec>,
    /// Union behaviour.
    pub options: Options,
    /// Kernel mount flags.
    pub mount: MountFlags,
    /// Options that were accepted without effect, and why; printed as warnings.
    pub warnings: Vec<String>,
}

impl Options {
    /// The defaults of a grammar (docs/decisions.md, "Defaults by grammar").
    pub fn defaults(grammar: Grammar) -> Self {
        let overlay = grammar == Grammar::Overlay;
        Self {
            udba: if overlay {
                Udba::None
            } else {
                Udba::Reval(Duration::from_secs(1))
            },
            create: CreatePolicy::TopDownParent,
            copyup: CopyupPolicy::TopDownParent,
            move_on_enospc: None,
            fhsm_sec: 30,
            dir_opaque: DirOpaque::Whiteouted,
            dir_rename: overlay,
            dirperm1: overlay,
            plink: true,
            show_whiteouts: false,
            sum: false,
            dirwh: 3,
            format: None,
            name_max: if overlay { 255 } else { 242 },
            strict: false,
            volatile: false,
            io: IoMode::Auto,
            open: OpenMode::Auto,
            writeback: false,
            supervise: true,
            timeout: None,
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            squash_uid: None,
            squash_gid: None,
            acl: true,
            xattr_permissions: None,
            threads: None,
            watches: 65536,
        }
    }
}
