//! One parsed option that is not about branches: what it sets, and how it is written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use super::{
    CopyupPolicy, CreatePolicy, DirOpaque, FormatWord, IdMap, IoMode, MountFlags, OpenMode,
    Options, SpillPolicy, Udba, text, value,
};

/// A change of one field of [`Options`] or [`MountFlags`].
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// `udba=`
    Udba(Udba),
    /// `watches=`
    Watches(usize),
    /// `create=`
    Create(CreatePolicy),
    /// `cpup=`
    Copyup(CopyupPolicy),
    /// `moveonenospc`
    MoveOnEnospc(Option<SpillPolicy>),
    /// `fhsm_sec=`
    FhsmSec(u32),
    /// `diropq=`
    DirOpaque(DirOpaque),
    /// `dirwh=`
    Dirwh(u32),
    /// `dirren`
    DirRename(bool),
    /// `dirperm1`
    Dirperm1(bool),
    /// `plink`
    Plink(bool),
    /// `shwh`
    ShowWhiteouts(bool),
    /// `sum`
    Sum(bool),
    /// `namelen=`
    NameMax(u16),
    /// `strict`
    Strict(bool),
    /// `format=`
    Format(FormatWord),
    /// `volatile`
    Volatile(bool),
    /// `io=`
    Io(IoMode),
    /// `open=`
    Open(OpenMode),
    /// `writeback`
    Writeback(bool),
    /// `threads=`
    Threads(usize),
    /// `supervise`
    Supervise(bool),
    /// `timeout=`
    Timeout(Duration),
    /// `acl`
    Acl(bool),
    /// `uidmapping=`
    UidMap(IdMap),
    /// `gidmapping=`
    GidMap(IdMap),
    /// `squash_to_uid=`
    SquashUid(u32),
    /// `squash_to_gid=`
    SquashGid(u32),
    /// `xattr_permissions=`
    XattrPermissions(u8),
    /// A flag of the mount itself.
    Mount(MountSetting),
}

/// A change of one field of [`MountFlags`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSetting {
    /// `ro`, `rw`
    ReadOnly(bool),
    /// `nodev`, `dev`
    Nodev(bool),
    /// `nosuid`, `suid`
    Nosuid(bool),
    /// `noexec`, `exec`
    Noexec(bool),
    /// `allow_other`
    AllowOther(bool),
    /// `fsname=`
    Fsname(OsString),
    /// `context=` and its kin: key and value.
    Context(&'static str, String),
}

impl Setting {
    /// Stores the setting where it belongs.
    pub fn apply(&self, options: &mut Options, mount: &mut MountFlags) {
        match self {
            Self::Udba(udba) => options.udba = *udba,
            Self::Watches(count) => options.watches = *count,
            Self::Create(policy) => options.create = *policy,
            Self::Copyup(policy) => options.copyup = *policy,
            Self::MoveOnEnospc(policy) => options.move_on_enospc = *policy,
            Self::FhsmSec(seconds) => options.fhsm_sec = *seconds,
            Self::DirOpaque(rule) => options.dir_opaque = *rule,
            Self::Dirwh(count) => options.dirwh = *count,
            Self::DirRename(on) => options.dir_rename = *on,
            Self::Dirperm1(on) => options.dirperm1 = *on,
            Self::Plink(on) => options.plink = *on,
            Self::ShowWhiteouts(on) => options.show_whiteouts = *on,
            Self::Sum(on) => options.sum = *on,
            Self::NameMax(length) => options.name_max = *length,
            Self::Strict(on) => options.strict = *on,
            Self::Format(format) => options.format = Some(*format),
            Self::Volatile(on) => options.volatile = *on,
            Self::Io(mode) => options.io = *mode,
            Self::Open(mode) => options.open = *mode,
            Self::Writeback(on) => options.writeback = *on,
            Self::Threads(count) => options.threads = Some(*count),
            Self::Supervise(on) => options.supervise = *on,
            Self::Timeout(time) => options.timeout = Some(*time),
            Self::Acl(on) => options.acl = *on,
            Self::UidMap(map) => options.uid_map = map.clone(),
            Self::GidMap(map) => options.gid_map = map.clone(),
            Self::SquashUid(id) => options.squash_uid = Some(*id),
            Self::SquashGid(id) => options.squash_gid = Some(*id),
            Self::XattrPermissions(mode) => {
                options.xattr_permissions = Some(*mode).filter(|&mode| mode != 0);
            }
            Self::Mount(setting) => setting.apply(mount),
        }
    }

    /// The option that sets this, as a user would write it.
    pub fn to_option(&self) -> OsString {
        let toggle = |name: &str, on: bool| format!("{}{name}", if on { "" } else { "no" });
        let text = match self {
            Self::Udba(udba) => format!("udba={udba}"),
            Self::Watches(count) => format!("watches={count}"),
            Self::Create(policy) => format!("create={policy}"),
            Self::Copyup(policy) => format!("cpup={policy}"),
            Self::MoveOnEnospc(Some(policy)) => format!("moveonenospc={policy}"),
            Self::MoveOnEnospc(None) => "moveonenospc=0".to_owned(),
            Self::FhsmSec(seconds) => format!("fhsm_sec={seconds}"),
            Self::DirOpaque(rule) => format!("diropq={rule}"),
            Self::Dirwh(count) => format!("dirwh={count}"),
            Self::DirRename(on) => toggle("dirren", *on),
            Self::Dirperm1(on) => toggle("dirperm1", *on),
            Self::Plink(on) => toggle("plink", *on),
            Self::ShowWhiteouts(on) => toggle("shwh", *on),
            Self::Sum(on) => toggle("sum", *on),
            Self::NameMax(length) => format!("namelen={length}"),
            Self::Strict(on) => toggle("strict", *on),
            Self::Format(format) => format!("format={}", format.word()),
            Self::Volatile(on) => format!("fsync={}", u8::from(!*on)),
            Self::Io(mode) => format!("io={mode}"),
            Self::Open(mode) => format!("open={mode}"),
            Self::Writeback(on) => format!("writeback={}", u8::from(*on)),
            Self::Threads(count) => format!("threads={count}"),
            Self::Supervise(on) => toggle("supervise", *on),
            Self::Timeout(time) => format!("timeout={}", value::seconds_text(*time)),
            Self::Acl(on) => toggle("acl", *on),
            Self::UidMap(map) => format!("uidmapping={map}"),
            Self::GidMap(map) => format!("gidmapping={map}"),
            Self::SquashUid(id) => format!("squash_to_uid={id}"),
            Self::SquashGid(id) => format!("squash_to_gid={id}"),
            Self::XattrPermissions(mode) => format!("xattr_permissions={mode}"),
            Self::Mount(setting) => return setting.to_option(),
        };
        text.into()
    }
}

impl MountSetting {
    fn apply(&self, mount: &mut MountFlags) {
        match self {
            Self::ReadOnly(on) => mount.read_only = *on,
            Self::Nodev(on) => mount.nodev = *on,
            Self::Nosuid(on) => mount.nosuid = *on,
            Self::Noexec(on) => mount.noexec = *on,
            Self::AllowOther(on) => mount.allow_other = Some(*on),
            Self::Fsname(name) => mount.fsname = Some(name.clone()),
            Self::Context(key, label) => {
                let prefix = format!("{key}=");
                mount.context.retain(|other| !other.starts_with(&prefix));
                mount.context.push(prefix + label);
            }
        }
    }

    fn to_option(&self) -> OsString {
        match self {
            Self::ReadOnly(on) => if *on { "ro" } else { "rw" }.into(),
            Self::Nodev(on) => if *on { "nodev" } else { "dev" }.into(),
            Self::Nosuid(on) => if *on { "nosuid" } else { "suid" }.into(),
            Self::Noexec(on) => if *on { "noexec" } else { "exec" }.into(),
            Self::AllowOther(on) => if *on { "allow_other" } else { "noallow_other" }.into(),
            Self::Fsname(name) => with_value("fsname", name),
            Self::Context(key, label) => format!("{key}=\"{label}\"").into(),
        }
    }
}

/// `name=value`, the value escaped.
fn with_value(name: &str, value: &OsStr) -> OsString {
    let mut option = format!("{name}=").into_bytes();
    text::escape_into(value.as_bytes(), &mut option);
    OsString::from_vec(option)
}
