//! The rows of the option table.
//!
//! Source: aufs(5) for the AUFS form; fuse-overlayfs(1) and Documentation/filesystems/overlayfs.rst
//! for the overlay form; mount(8) for the flags of the mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use super::super::value::{self, Problem};
use super::super::{MountSetting, Setting, Udba, text};
use super::{Action, BranchVerb, Group, LayerKey, Meaning, OptionDef, Scope};
use Action::{Branch, Flag, Ignored, Layer, NoEffect, Toggle, Unused, Value};
use Group::{Accepted, Branches, Data, Ids, Layers, Mount, Union};
use Scope::{Aufs, Both, Overlay};

const fn def(
    group: Group,
    scope: Scope,
    names: &'static [&'static str],
    value: &'static str,
    action: Action,
    help: &'static str,
) -> OptionDef {
    OptionDef {
        names,
        value,
        scope,
        group,
        help,
        action,
    }
}

/// An option that is accepted and changes nothing.
const fn accepted(scope: Scope, names: &'static [&'static str], action: Action) -> OptionDef {
    def(Accepted, scope, names, "[=VALUE]", action, "")
}

/// An option that other programs have, and that could only be misunderstood here.
const fn refused(scope: Scope, names: &'static [&'static str], instead: &'static str) -> OptionDef {
    def(
        Group::Refused,
        scope,
        names,
        "[=VALUE]",
        Action::Refused(instead),
        "",
    )
}

/// `Ok` of the setting made from a value, for the column of actions.
fn set<T>(value: Result<T, Problem>, setting: fn(T) -> Setting) -> Result<Meaning, Problem> {
    value.map(|value| setting(value).into())
}

/// Every option. Within a group, in the order in which `--help` shows them.
#[rustfmt::skip]
pub(super) static OPTIONS: &[OptionDef] = &[
    def(Branches, Aufs, &["br", "dirs"], "=B[:B...]", Branch(BranchVerb::List), "topmost first; B is PATH[=PERM[+ATTR...]]"),
    def(Branches, Aufs, &["add", "ins"], ":INDEX:B", Branch(BranchVerb::Add), "insert a branch, 0 is the top"),
    def(Branches, Aufs, &["append"], ":B", Branch(BranchVerb::Append), "add a branch at the bottom"),
    def(Branches, Aufs, &["prepend"], ":B", Branch(BranchVerb::Prepend), "add a branch on top"),
    def(Branches, Aufs, &["del"], ":PATH", Branch(BranchVerb::Del), "remove a branch"),
    def(Branches, Aufs, &["mod"], ":PATH=PERM", Branch(BranchVerb::Mod), "change permission and attributes of a branch"),

    def(Layers, Overlay, &["lowerdir"], "=A[:B...]", Layer(LayerKey::Lower), "readonly layers, topmost first"),
    def(Layers, Overlay, &["lowerdir+"], "=A", Layer(LayerKey::LowerOne), "one more readonly layer, below the others"),
    def(Layers, Overlay, &["datadir+"], "=A", Layer(LayerKey::DataOne), "one more data-only layer, below the others"),
    def(Layers, Overlay, &["upperdir"], "=U", Layer(LayerKey::Upper), "the writable layer; without it all is readonly"),
    def(Layers, Overlay, &["workdir"], "=W", Layer(LayerKey::Work), "for work in progress, on upperdir's filesystem"),
    def(Layers, Overlay, &["redirect_dir"], "=on|off", Value(redirect_dir), "rename directories of lower layers (on), or EXDEV"),

    def(Union, Both, &["udba"], "=none|reval[:SEC]|notify", Value(|v| set(value::udba(v), Setting::Udba)), "how changes made on a branch itself are noticed"),
    def(Union, Both, &["watches"], "=N", Value(watches), "udba=notify: most directories watched at a time"),
    def(Union, Both, &["create", "create_policy"], "=POLICY", Value(|v| set(value::create_policy(v), Setting::Create)), "branch of new entries: tdp rr mfs tdmfs pmfs ..."),
    def(Union, Both, &["cpup", "copyup", "copyup_policy"], "=tdp|bup|bu", Value(|v| set(value::copyup_policy(v), Setting::Copyup)), "branch of copied-up files"),
    def(Union, Both, &["moveonenospc"], "[=mfs|pmfs|0]", Value(|v| set(value::spill_policy(v), Setting::MoveOnEnospc)), "a full branch: go on writing on another one"),
    def(Union, Both, &["fhsm_sec"], "=N", Value(fhsm_sec), "seconds between two looks of `uaufs fhsm`"),
    def(Union, Both, &["diropq"], "=whiteouted|always", Value(|v| set(value::dir_opaque(v), Setting::DirOpaque)), "which new directories are marked opaque"),
    def(Union, Both, &["dirwh"], "=N", Value(dirwh), "remove directories with more whiteouts later"),
    def(Union, Both, &["dirren"], "", Toggle(Setting::DirRename), "rename directories that lie on several branches"),
    def(Union, Both, &["dirperm1"], "", Toggle(Setting::Dirperm1), "only the topmost directory's permission counts"),
    def(Union, Both, &["plink"], "", Toggle(Setting::Plink), "hard links stay one file when copied up"),
    def(Union, Both, &["shwh"], "", Toggle(Setting::ShowWhiteouts), "show whiteouts as names"),
    def(Union, Both, &["sum"], "", Toggle(Setting::Sum), "statfs adds up all branches"),
    def(Union, Both, &["wsum"], "", Flag(wsum), "the same as sum"),
    def(Union, Both, &["namelen"], "=N", Value(namelen), "longest name (AUFS form 242, overlay form 255)"),
    def(Union, Both, &["strict"], "", Toggle(Setting::Strict), "a whiteout beside the entry it hides is EIO"),
    def(Union, Both, &["format"], "=aufs|overlay|auto", Value(|v| set(value::format(v), Setting::Format)), "marks of writable branches, or auto: as found"),
    def(Union, Both, &["supervise"], "", Toggle(Setting::Supervise), "if the daemon dies, the mount is taken away"),
    def(Union, Aufs, &["droplvl"], "=1|2|3", Value(drop_level), "speed for features: 1 caching, 3 hard links too"),
    def(Union, Aufs, &["ephemeral"], "", Flag(|| dropped(3).into()), "the same as droplvl=3"),

    def(Data, Both, &["io"], "=auto|passthrough|cache|direct", Value(io_mode), "how file data travels"),
    def(Data, Both, &["open"], "=auto|answered|none", Value(|v| set(value::open_mode(v), Setting::Open)), "whether each open(2) is sent to the daemon"),
    def(Data, Both, &["timeout"], "=SEC", Value(|v| set(value::seconds(v), Setting::Timeout)), "how long the kernel keeps names and attributes"),
    def(Data, Both, &["writeback"], "[=0|1]", Value(|v| set(value::switch(v), Setting::Writeback)), "the kernel collects writes (errors come late)"),
    def(Data, Both, &["volatile"], "", Flag(|| Setting::Volatile(true).into()), "nothing is synced: fast, lost in a crash"),
    def(Data, Both, &["fsync"], "=0|1", Value(|v| set(value::switch(v).map(|on| !on), Setting::Volatile)), "0 is the same as volatile"),
    def(Data, Both, &["threads"], "=N", Value(threads), "worker threads"),
    def(Data, Overlay, &["threaded"], "=0|1", Value(threaded), "0 is the same as threads=1"),

    def(Ids, Both, &["uidmapping"], "=BRANCH:MOUNT:N[:...]", Value(|v| set(value::id_map(v), Setting::UidMap)), "user ids on branches, in the mount, how many"),
    def(Ids, Both, &["gidmapping"], "=BRANCH:MOUNT:N[:...]", Value(|v| set(value::id_map(v), Setting::GidMap)), "the same for groups"),
    def(Ids, Both, &["squash_to_uid"], "=UID", Value(|v| set(value::id(v), Setting::SquashUid)), "every file shows this owner"),
    def(Ids, Both, &["squash_to_gid"], "=GID", Value(|v| set(value::id(v), Setting::SquashGid)), "every file shows this group"),
    def(Ids, Both, &["squash_to_root"], "", Flag(|| vec![Setting::SquashUid(0), Setting::SquashGid(0)].into()), "the same as both with 0"),
    def(Ids, Both, &["xattr_permissions"], "=0|1|2", Value(xattr_permissions), "owner and mode in an xattr"),
    def(Ids, Both, &["acl"], "", Toggle(Setting::Acl), "POSIX ACLs"),

    def(Mount, Both, &["ro"], "", Flag(|| mount(MountSetting::ReadOnly(true))), "readonly"),
    def(Mount, Both, &["rw"], "", Flag(|| mount(MountSetting::ReadOnly(false))), "writable"),
    def(Mount, Both, &["suid"], "", Flag(|| mount(MountSetting::Nosuid(false))), "honour set-user-id bits"),
    def(Mount, Both, &["nosuid"], "", Flag(|| mount(MountSetting::Nosuid(true))), "do not"),
    def(Mount, Both, &["dev"], "", Flag(|| mount(MountSetting::Nodev(false))), "honour device nodes"),
    def(Mount, Both, &["nodev"], "", Flag(|| mount(MountSetting::Nodev(true))), "do not"),
    def(Mount, Both, &["exec"], "", Flag(|| mount(MountSetting::Noexec(false))), "allow to execute files"),
    def(Mount, Both, &["noexec"], "", Flag(|| mount(MountSetting::Noexec(true))), "do not"),
    def(Mount, Both, &["allow_other"], "", Toggle(|on| Setting::Mount(MountSetting::AllowOther(on))), "other users may enter (default where possible)"),
    def(Mount, Both, &["fsname"], "=NAME", Value(fsname), "source shown in the mount table"),
    def(Mount, Both, &["context"], "=LABEL", Value(|v| context("context", v)), "SELinux label, in quotes if it has commas"),
    def(Mount, Both, &["fscontext"], "=LABEL", Value(|v| context("fscontext", v)), "likewise, of the filesystem"),
    def(Mount, Both, &["defcontext"], "=LABEL", Value(|v| context("defcontext", v)), "likewise, of files without one"),
    def(Mount, Both, &["rootcontext"], "=LABEL", Value(|v| context("rootcontext", v)), "likewise, of the root directory"),

    // AUFS: what its tables, its caches and its memory need, this implementation does not have.
    accepted(Aufs, &["xino"], NoEffect("no effect: inode numbers are stable without a table file")),
    accepted(Both, &["noxino", "notrunc_xino", "notrunc_xib"], Ignored),
    accepted(Aufs, &["trunc_xino", "itrunc_xino", "trunc_xib"], NoEffect("no effect: there is no inode table to truncate")),
    accepted(Aufs, &["rdcache"], Unused(value::listing_seconds, "no effect: listings are kept as long as udba allows")),
    accepted(Aufs, &["rdblk"], Unused(value::listing_block, "no effect: memory for listings is sized by itself")),
    accepted(Aufs, &["rdhash"], Unused(value::listing_hash, "no effect: memory for listings is sized by itself")),
    accepted(Aufs, &["warn_perm"], NoEffect("no effect: branch roots are not compared")),
    accepted(Aufs, &["nowarn_perm"], Ignored),
    accepted(Aufs, &["verbose", "v"], NoEffect("no effect: -d on the command line logs more")),
    accepted(Aufs, &["noverbose", "quiet", "q", "silent"], Ignored),
    accepted(Aufs, &["dio"], Ignored),
    accepted(Aufs, &["nodio"], NoEffect("no effect: O_DIRECT is always allowed")),
    accepted(Aufs, &["list_plink"], NoEffect("no effect: `uaufs plink MOUNTPOINT list` shows pseudo-links")),
    accepted(Aufs, &["clean_plink", "si", "nodlgt", "debug", "delete", "imap"], Ignored),
    refused(Aufs, &["idel", "imod"], "del:PATH or mod:PATH=PERM"),

    // overlayfs and fuse-overlayfs.
    accepted(Overlay, &["metacopy"], Value(|v| off_only(v, "no effect: copies are always complete"))),
    accepted(Overlay, &["index"], Value(|v| off_only(v, "no effect: hard links are kept by plink"))),
    accepted(Overlay, &["nfs_export"], Value(|v| off_only(v, "no effect: the mount cannot be exported"))),
    accepted(Overlay, &["verity"], Value(|v| off_only(v, "no effect: digests of lower layers are not checked"))),
    accepted(Overlay, &["xino", "uuid"], Ignored),
    accepted(Overlay, &["userxattr"], NoEffect("no effect: xattrs are chosen by what the layer allows")),
    accepted(Overlay, &["static_nlink"], NoEffect("no effect: link counts are exact")),
    accepted(Overlay, &["fast_ino"], Value(|v| off_only(v, "no effect: inode numbers are stable at no cost"))),
    accepted(Overlay, &["ino32_t"], NoEffect("no effect: inode numbers have 64 bits")),
    accepted(Overlay, &["noxattrs"], Value(|v| off_only(v, "no effect: extended attributes stay on"))),
    accepted(Overlay, &["plugins"], NoEffect("no effect: layers are directories")),
    accepted(Overlay, &["private", "rprivate"], Ignored),

    // mount(8), fstab(5) and libfuse.
    accepted(Both, &["defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "comment", "x-*"], Ignored),
    accepted(Both, &["atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "nostrictatime", "nolazytime", "async", "nomand", "loud"], Ignored),
    accepted(Both, &["strictatime", "lazytime"], NoEffect("no effect: times are those of the branches' files")),
    accepted(Both, &["sync", "dirsync"], NoEffect("no effect: fsync(2) is honoured, writes do not wait")),
    accepted(Both, &["default_permissions", "nonempty"], Ignored),
    accepted(Both, &["allow_root"], NoEffect("no effect: allow_other lets root in, and everybody else")),
    accepted(Both, &["auto_unmount"], NoEffect("no effect: SIGTERM unmounts")),
    accepted(Both, &["subtype"], NoEffect("no effect: the type is fuse.uaufs")),
    refused(Both, &["remount"], "`uaufs ctl MOUNTPOINT` changes a live mount"),
];

fn mount(setting: MountSetting) -> Meaning {
    Setting::Mount(setting).into()
}

fn dirwh(text: &[u8]) -> Result<Meaning, Problem> {
    set(value::number(text, 0, u64::from(u32::MAX)), |count| {
        Setting::Dirwh(count as u32)
    })
}

fn namelen(text: &[u8]) -> Result<Meaning, Problem> {
    // From what POSIX guarantees to what Linux can store.
    set(value::number(text, 14, 255), |length| {
        Setting::NameMax(length as u16)
    })
}

fn fhsm_sec(text: &[u8]) -> Result<Meaning, Problem> {
    // aufs(5): up to an hour.
    set(value::number(text, 0, 3600), |seconds| {
        Setting::FhsmSec(seconds as u32)
    })
}

fn watches(text: &[u8]) -> Result<Meaning, Problem> {
    set(value::number(text, 1, 1 << 24), |count| {
        Setting::Watches(count as usize)
    })
}

fn threads(text: &[u8]) -> Result<Meaning, Problem> {
    set(value::number(text, 1, 256), |count| {
        Setting::Threads(count as usize)
    })
}

fn threaded(text: &[u8]) -> Result<Meaning, Problem> {
    Ok(match value::switch(text)? {
        true => Meaning::NOTHING,
        false => Setting::Threads(1).into(),
    })
}

fn wsum() -> Meaning {
    Meaning {
        settings: vec![Setting::Sum(true)],
        caution: Some("taken for sum: branches are not weighted"),
    }
}

fn io_mode(text: &[u8]) -> Result<Meaning, Problem> {
    set(value::io_mode(text), Setting::Io)
}

fn redirect_dir(text: &[u8]) -> Result<Meaning, Problem> {
    match text {
        b"on" => Ok(Setting::DirRename(true).into()),
        b"off" | b"follow" | b"nofollow" => Ok(Setting::DirRename(false).into()),
        _ => Err(Problem::new("unknown value", "on, off, follow or nofollow")),
    }
}

fn xattr_permissions(text: &[u8]) -> Result<Meaning, Problem> {
    let mode = value::number(text, 0, 2)? as u8;
    Ok(Meaning {
        settings: vec![Setting::XattrPermissions(mode)],
        caution: None,
    })
}

fn fsname(name: &[u8]) -> Result<Meaning, Problem> {
    Ok(mount(MountSetting::Fsname(OsString::from_vec(
        text::unescape(name),
    ))))
}

fn context(key: &'static str, label: &[u8]) -> Result<Meaning, Problem> {
    match std::str::from_utf8(label) {
        Ok(label) if !label.contains(['"', '\\']) => {
            Ok(mount(MountSetting::Context(key, label.to_owned())))
        }
        _ => Err(Problem::new(
            "not a label",
            "as in context=\"user:role:type:s0:c1,c2\"",
        )),
    }
}

/// An option of which only the value that switches it off describes what happens anyway.
fn off_only(text: &[u8], otherwise: &'static str) -> Result<Meaning, Problem> {
    Ok(match text {
        b"off" | b"0" => Meaning::NOTHING,
        _ => Meaning::no_effect(otherwise),
    })
}

/// `droplvl=N`; negative levels bring the defaults back (mount.aufs(8)).
fn drop_level(text: &[u8]) -> Result<Meaning, Problem> {
    match text.strip_prefix(b"-") {
        Some(level) => Ok(restored(value::number(level, 0, 3)?).into()),
        None => Ok(dropped(value::number(text, 0, 3)?).into()),
    }
}

/// What a level gives up. Level 2 concerns the tables of inode numbers, which do not exist here.
fn dropped(level: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    if level >= 1 {
        settings.push(Setting::Udba(Udba::None));
        settings.push(Setting::Dirperm1(true));
        settings.push(Setting::DirRename(false));
    }
    if level >= 3 {
        settings.push(Setting::Plink(false));
    }
    settings
}

/// The defaults of what the level gives up.
fn restored(level: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    if level >= 1 {
        settings.push(Setting::Udba(Udba::Reval(Duration::from_secs(1))));
        settings.push(Setting::Dirperm1(false));
        settings.push(Setting::DirRename(false));
    }
    if level >= 3 {
        settings.push(Setting::Plink(true));
    }
    settings
}
