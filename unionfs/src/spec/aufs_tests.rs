//! Tests of the AUFS grammar: every option, every error, round trips.

use super::*;
use crate::spec::{
    CopyOnOpen, CopyupPolicy, CreatePolicy, DirOpaque, IoMode, MountSetting, OpenMode, SpillPolicy,
    Udba,
};
use proptest::prelude::*;
use std::time::Duration;

fn parse(options: &[&str]) -> Result<MountSpec, String> {
    let options: Vec<OsString> = options.iter().map(OsString::from).collect();
    MountSpec::parse(&options).map_err(|error| error.to_string())
}

fn spec(options: &str) -> MountSpec {
    parse(&[options]).unwrap()
}

fn error(options: &str) -> String {
    parse(&[options]).unwrap_err()
}

fn branches(spec: &MountSpec) -> Vec<String> {
    spec.branches
        .iter()
        .map(|branch| branch.to_option().into_string().unwrap())
        .collect()
}

#[test]
fn branches_in_all_spellings() {
    for (options, expected) in [
        ("br:/a=rw:/b=ro", &["/a=rw", "/b=ro"][..]),
        ("br=/a=rw:/b=ro+wh:/c=rr", &["/a=rw", "/b=ro+wh", "/c=rr"]),
        ("dirs=/a:/b:/c", &["/a=rw", "/b=ro", "/c=ro"]),
        ("br=/a=:/b=", &["/a=rw", "/b=ro"]),
        ("ro,br=/a:/b", &["/a=ro", "/b=ro"]),
        ("br=/a,ro", &["/a=ro"]),
        ("br:/a,br:/b", &["/a=rw", "/b=ro"]),
        ("append:/a,append=/b=ro", &["/a=rw", "/b=ro"]),
        ("br=/a=rw,prepend:/b", &["/b=rw", "/a=rw"]),
        ("br=/a:/b,add:1:/c=rw", &["/a=rw", "/c=rw", "/b=ro"]),
        ("br=/a,ins:1:/c", &["/a=rw", "/c=ro"]),
        ("add:0:/a,add=0=/b", &[]),
        ("br=/a:/b:/c,del:/b", &["/a=rw", "/c=ro"]),
        ("br=/a:/b,mod:/b=rr+wh,del=/a", &["/b=rr+wh"]),
        (
            r"br=/a\:b=rw:/c\,d\=e\\f",
            &[r"/a\:b=rw", r"/c\,d\=e\\f=ro"],
        ),
    ] {
        match parse(&[options]) {
            Ok(spec) => assert_eq!(branches(&spec), expected, "{options}"),
            Err(error) => assert!(expected.is_empty(), "{error}"),
        }
    }
}

#[test]
fn paths_are_bytes() {
    let options = [OsString::from_vec(b"br=/\xff\xfe=rw:/b".to_vec())];
    let spec = MountSpec::parse(&options).unwrap();
    assert_eq!(spec.branches[0].path.as_os_str().as_bytes(), b"/\xff\xfe");
}

#[test]
fn dockers_line_is_taken_verbatim() {
    let spec = spec(
        "br:/var/lib/docker/aufs/diff/1=rw:/var/lib/docker/aufs/diff/0=ro+wh,dio,\
         xino=/dev/shm/aufs.xino,dirperm1",
    );
    assert_eq!(spec.branches.len(), 2);
    assert!(spec.options.dirperm1 && spec.branches[1].perm == BranchPerm::RO_WH);
    assert_eq!(
        spec.warnings,
        ["xino=/dev/shm/aufs.xino: no effect: inode numbers are stable without a table file"]
    );
}

/// What an option sets; it must set nothing else.
fn set_by(option: &str) -> Vec<Setting> {
    let changes = parse_change(OsStr::new(option)).unwrap();
    assert!(
        changes.warnings.is_empty(),
        "{option}: {:?}",
        changes.warnings
    );
    let settings = changes.changes.into_iter().map(|change| match change {
        Change::Set(setting) => setting,
        other => panic!("{option}: {other:?}"),
    });
    settings.collect()
}

#[test]
fn every_option_that_sets_something() {
    use Setting as S;
    let mount = |setting| S::Mount(setting);
    for (option, setting) in [
        ("udba=none", S::Udba(Udba::None)),
        ("udba=reval", S::Udba(Udba::Reval(Duration::from_secs(1)))),
        ("udba=reval:0", S::Udba(Udba::Reval(Duration::ZERO))),
        (
            "udba=reval:2.5",
            S::Udba(Udba::Reval(Duration::from_millis(2500))),
        ),
        ("udba=notify", S::Udba(Udba::Notify)),
        ("udba=fsnotify", S::Udba(Udba::Notify)),
        ("create=rr", S::Create(CreatePolicy::RoundRobin)),
        ("create_policy=tdp", S::Create(CreatePolicy::TopDownParent)),
        ("cpup=bu", S::Copyup(CopyupPolicy::BottomUp)),
        ("copyup=bup", S::Copyup(CopyupPolicy::BottomUpParent)),
        (
            "copyup_policy=top-down-parent",
            S::Copyup(CopyupPolicy::TopDownParent),
        ),
        ("diropq=w", S::DirOpaque(DirOpaque::Whiteouted)),
        ("diropq=whiteouted", S::DirOpaque(DirOpaque::Whiteouted)),
        ("diropq=a", S::DirOpaque(DirOpaque::Always)),
        ("diropq=always", S::DirOpaque(DirOpaque::Always)),
        ("dirren", S::DirRename(true)),
        ("nodirren", S::DirRename(false)),
        ("dirperm1", S::Dirperm1(true)),
        ("nodirperm1", S::Dirperm1(false)),
        ("plink", S::Plink(true)),
        ("noplink", S::Plink(false)),
        ("shwh", S::ShowWhiteouts(true)),
        ("noshwh", S::ShowWhiteouts(false)),
        ("sum", S::Sum(true)),
        ("nosum", S::Sum(false)),
        ("acl", S::Acl(true)),
        ("noacl", S::Acl(false)),
        ("namelen=255", S::NameMax(255)),
        ("strict", S::Strict(true)),
        ("nostrict", S::Strict(false)),
        (
            "format=overlay",
            S::Format(FormatWord::Fixed(Format::Overlay)),
        ),
        ("format=aufs", S::Format(FormatWord::Fixed(Format::Aufs))),
        ("format=auto", S::Format(FormatWord::Auto)),
        ("io=passthrough", S::Io(IoMode::Passthrough)),
        ("io=direct", S::Io(IoMode::Direct)),
        ("open=answered", S::Open(OpenMode::Answered)),
        ("open=none", S::Open(OpenMode::None)),
        ("volatile", S::Volatile(true)),
        ("fsync=0", S::Volatile(true)),
        ("fsync=1", S::Volatile(false)),
        ("moveonenospc", S::MoveOnEnospc(Some(SpillPolicy::MostFree))),
        (
            "moveonenospc=pmfs",
            S::MoveOnEnospc(Some(SpillPolicy::ParentMostFree)),
        ),
        ("moveonenospc=0", S::MoveOnEnospc(None)),
        ("fhsm_sec=5", S::FhsmSec(5)),
        ("writeback", S::Writeback(true)),
        ("writeback=0", S::Writeback(false)),
        ("threads=4", S::Threads(4)),
        ("supervise", S::Supervise(true)),
        ("nosupervise", S::Supervise(false)),
        ("timeout=3600", S::Timeout(Duration::from_secs(3600))),
        ("ro", mount(MountSetting::ReadOnly(true))),
        ("rw", mount(MountSetting::ReadOnly(false))),
        ("nodev", mount(MountSetting::Nodev(true))),
        ("dev", mount(MountSetting::Nodev(false))),
        ("nosuid", mount(MountSetting::Nosuid(true))),
        ("suid", mount(MountSetting::Nosuid(false))),
        ("noexec", mount(MountSetting::Noexec(true))),
        ("exec", mount(MountSetting::Noexec(false))),
        ("allow_other", mount(MountSetting::AllowOther(true))),
        (r"fsname=a\,b", mount(MountSetting::Fsname("a,b".into()))),
    ] {
        assert_eq!(set_by(option), [setting], "{option}");
    }
    assert_eq!(
        set_by("droplvl=1"),
        [S::Udba(Udba::None), S::Dirperm1(true), S::DirRename(false)]
    );
    assert_eq!(set_by("droplvl=2"), set_by("droplvl=1"));
    assert_eq!(set_by("droplvl=3").last(), Some(&S::Plink(false)));
    assert_eq!(set_by("ephemeral"), set_by("droplvl=3"));
    assert_eq!(set_by("droplvl=-3").last(), Some(&S::Plink(true)));
}

#[test]
fn settings_reach_their_fields() {
    let spec = spec(
        "br=/a=rw:/b=rw:/c,udba=notify,create=mfs,cpup=bu,diropq=a,dirwh=7,dirren,dirperm1,noplink,\
         shwh,sum,namelen=255,strict,format=overlay,volatile,io=cache,open=none,writeback,threads=2,\
         timeout=5,noacl,nosupervise,moveonenospc=pmfs,fhsm_sec=7,uidmapping=0:1:1,squash_to_gid=3,nosuid,nodev,noexec,allow_other,fsname=x",
    );
    let hold = Duration::from_secs(30);
    let mut expected = Options::defaults(Grammar::Aufs);
    expected.udba = Udba::Notify;
    expected.create = CreatePolicy::MostFree { hold };
    expected.copyup = CopyupPolicy::BottomUp;
    expected.dir_opaque = DirOpaque::Always;
    (expected.dirwh, expected.fhsm_sec) = (7, 7);
    expected.move_on_enospc = Some(SpillPolicy::ParentMostFree);
    (expected.dir_rename, expected.dirperm1, expected.plink) = (true, true, false);
    (expected.show_whiteouts, expected.sum, expected.strict) = (true, true, true);
    (expected.name_max, expected.format) = (255, Some(FormatWord::Fixed(Format::Overlay)));
    (expected.volatile, expected.writeback, expected.acl) = (true, true, false);
    (expected.io, expected.open) = (IoMode::Cache, OpenMode::None);
    (expected.threads, expected.timeout) = (Some(2), Some(Duration::from_secs(5)));
    expected.supervise = false;
    expected.uid_map = value::id_map(b"0:1:1").unwrap();
    expected.squash_gid = Some(3);
    assert_eq!(spec.options, expected);
    let formats: Vec<_> = spec.branches.iter().map(|branch| branch.format).collect();
    assert_eq!(
        formats,
        [Some(Format::Overlay), Some(Format::Overlay), None]
    );
    assert_eq!(
        spec.mount,
        MountFlags {
            nodev: true,
            nosuid: true,
            noexec: true,
            allow_other: Some(true),
            fsname: Some("x".into()),
            ..MountFlags::default()
        }
    );
}

#[test]
fn the_last_of_several_settings_counts() {
    let spec = spec("noplink,br=/a,plink,nosuid,suid,udba=none,udba=notify");
    assert!(spec.options.plink && !spec.mount.nosuid && spec.options.udba == Udba::Notify);
}

#[test]
fn options_without_effect_say_so_unless_nothing_is_lost() {
    for silent in [
        "noxino",
        "notrunc_xino",
        "notrunc_xib",
        "dio",
        "quiet",
        "q",
        "silent",
        "noverbose",
        "si=1f",
        "nodlgt",
        "debug=1",
        "delete=all",
        "imap=x",
        "relatime",
        "noatime",
        "nodiratime",
        "clean_plink",
        "nowarn_perm",
        "_netdev",
        "nofail",
        "auto",
        "noauto",
        "user",
        "defaults",
        "x-systemd.automount",
        "x-mount.mkdir=0755",
        "comment=a b",
        "default_permissions",
        "nonempty",
    ] {
        let spec = spec(&format!("br=/a,{silent}"));
        assert!(spec.warnings.is_empty(), "{silent}: {:?}", spec.warnings);
        assert_eq!(spec.options, Options::defaults(Grammar::Aufs), "{silent}");
    }
    for told in [
        "xino=/x",
        "trunc_xino",
        "trunc_xino=/a",
        "itrunc_xino=1",
        "trunc_xib",
        "rdcache=10",
        "rdblk=512",
        "rdblk=def",
        "rdhash=32",
        "warn_perm",
        "verbose",
        "v",
        "nodio",
        "list_plink",
        "strictatime",
        "sync",
        "allow_root",
        "auto_unmount",
    ] {
        let spec = spec(&format!("br=/a,{told}"));
        let [warning] = &spec.warnings[..] else {
            panic!("{told}: {:?}", spec.warnings)
        };
        assert!(
            warning.starts_with(&format!("{told}: no effect: ")),
            "{warning}"
        );
    }
    let spec = spec("br=/a,wsum");
    assert!(spec.options.sum);
    assert_eq!(
        spec.warnings,
        ["wsum: taken for sum: branches are not weighted"]
    );
}

#[test]
fn misplaced_attributes_warn() {
    let spec = spec("br=/a=rw+wh:/b=ro+nolwh+coo_reg");
    assert_eq!(branches(&spec), ["/a=rw", "/b=ro+coo_reg"]);
    assert_eq!(spec.branches[1].perm.copy_on_open, CopyOnOpen::Regular);
    assert_eq!(
        spec.warnings,
        [
            "/a=rw+wh: +wh: no effect: whiteouts of a rw branch always count",
            "/b=ro+nolwh+coo_reg: +nolwh: no effect: only a rw branch receives whiteouts",
        ]
    );
}

#[test]
fn errors_say_what_would_be_right() {
    const PERM: &str = "rw, ro or rr, with attributes as in ro+wh (a `=` or `:` in a path is \
                        written \\= or \\:)";
    for (options, message) in [
        (
            "br=/a=xyz",
            format!("/a=xyz: unknown permission `xyz` (EINVAL): {PERM}"),
        ),
        (
            "br=/a=rw:/b=ro+what",
            "/b=ro+what: unknown branch attribute `+what` (EINVAL): wh, nolwh, coo_reg, coo_all, \
             moo, fhsm, icex[sec|sys|tr|usr|oth], aufs|overlay|auto"
                .into(),
        ),
        (
            "br=/a,udba=foo",
            "udba=foo: unknown level `foo` (EINVAL): none, reval, reval:SEC or notify".into(),
        ),
        (
            "br=/a,rdcache=3601",
            "rdcache=3601: `3601` is not a usable number (EINVAL): a whole number from 0 to 3600"
                .into(),
        ),
        (
            "br=/a,rdblk=254",
            "rdblk=254: `254` is not a usable number (EINVAL): def, 0 or at least 255".into(),
        ),
        (
            "br=/a,udba",
            "udba: needs a value (EINVAL): `udba=none|reval[:SEC]|notify`".into(),
        ),
        (
            "br=/a,udba=",
            "udba=: needs a value (EINVAL): `udba=none|reval[:SEC]|notify`".into(),
        ),
        (
            "br=/a,create=foo",
            "create=foo: unknown policy `foo` (EINVAL): tdp, rr, mfs[:SEC], pmfs[:SEC], \
             tdmfs:LOW[:SEC], mfsrr:LOW[:SEC] or pmfsrr:LOW[:SEC]"
                .into(),
        ),
        (
            "br=/a,plink=1",
            "plink=1: takes no value (EINVAL): `[no]plink`".into(),
        ),
        (
            "br=/a,dirprem1",
            "dirprem1: unknown option (EINVAL): did you mean `dirperm1`?".into(),
        ),
        (
            "br=/a,nosuchoption",
            "nosuchoption: unknown option (EINVAL): `uaufs --help` lists the options".into(),
        ),
        (
            "br=/a,create:mfs",
            "create:mfs: only branches follow a colon (EINVAL): `create=POLICY`".into(),
        ),
        ("br=", "br=: needs a value (EINVAL): `br=B[:B...]`".into()),
        (
            "br=/a::/b",
            "'': a branch has no path (EINVAL): PATH[=PERM], with `:` between branches".into(),
        ),
        (
            "br=/a:/a",
            "/a: the branch is there already (EINVAL): each directory once".into(),
        ),
        (
            "br=/a,add:2:/b",
            "add:2:/b: no such place (EINVAL): an index from 0 to 1".into(),
        ),
        (
            "br=/a,add:/b",
            "add:/b: needs an index and a branch (EINVAL): `add:INDEX:B`".into(),
        ),
        (
            "br=/a,append:/b:/c",
            "append:/b:/c: takes one branch (EINVAL): `append:B`; a colon in a path is written \\:"
                .into(),
        ),
        (
            "br=/a,del:/b",
            "del:/b: no such branch (EINVAL): a branch named before it, as in br=".into(),
        ),
        (
            "br=/a,mod:/a",
            "mod:/a: needs a permission (EINVAL): `mod:PATH=PERM`".into(),
        ),
        (
            "br=/a,del:/a",
            "-o: no branch is left (EINVAL): at least one, as in br=/rw=rw:/ro=ro".into(),
        ),
        (
            "br=/a:/b:/a=ro",
            "/a=ro: the branch is there already (EINVAL): each directory once".into(),
        ),
        (
            "br=/a,idel:0",
            "idel:0: is not supported (EINVAL): del:PATH or mod:PATH=PERM".into(),
        ),
        (
            "br=/a,namelen=256",
            "namelen=256: `256` is not a usable number (EINVAL): a whole number from 14 to 255"
                .into(),
        ),
        (
            "br=/a,io=passthrough-lower",
            "io=passthrough-lower: unknown mode `passthrough-lower` (EINVAL): auto, passthrough, \
             cache or direct"
                .into(),
        ),
        (
            "br=/a,remount",
            "remount: is not supported (EINVAL): `uaufs ctl MOUNTPOINT` changes a live mount"
                .into(),
        ),
    ] {
        assert!(
            error(options) == message || message.is_empty(),
            "{options}: {}",
            error(options)
        );
    }
}

#[test]
fn sloppy_mounts_warn_about_unknown_options() {
    let options = [OsString::from("br=/a,what=1")];
    let spec = MountSpec::parse_with(&options, Unknown::Warn).unwrap();
    assert_eq!(spec.warnings, ["unknown argument ignored: what=1"]);
}

#[test]
fn live_changes_keep_their_order() {
    let changes = parse_change(OsStr::new("del:/b,noplink,append:/c=ro+wh,mod:/a=ro")).unwrap();
    let branch = NewBranch {
        path: "/c".into(),
        perm: Some(BranchPerm::RO_WH),
    };
    assert_eq!(
        changes.changes,
        [
            Change::Del { path: "/b".into() },
            Change::Set(Setting::Plink(false)),
            Change::Append(branch),
            Change::Mod {
                path: "/a".into(),
                perm: BranchPerm::RO
            },
        ]
    );
    assert_eq!(parse_change(OsStr::new("")).unwrap(), Changes::default());
}

fn any_path() -> impl Strategy<Value = PathBuf> {
    proptest::collection::vec(1..=u8::MAX, 1..40)
        .prop_map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
}

fn any_branch() -> impl Strategy<Value = NewBranch> {
    (any_path(), proptest::option::of(perm::tests::any_perm()))
        .prop_map(|(path, perm)| NewBranch { path, perm })
}

fn any_setting() -> impl Strategy<Value = Setting> {
    let hold = || (0..=3600_u64).prop_map(Duration::from_secs);
    prop_oneof![
        any::<bool>().prop_map(Setting::Plink),
        any::<bool>().prop_map(Setting::DirRename),
        any::<bool>().prop_map(Setting::Volatile),
        any::<u32>().prop_map(Setting::Dirwh),
        (0..1_000_000_u64).prop_map(|ms| Setting::Timeout(Duration::from_millis(ms))),
        (0..1_000_000_u64).prop_map(|ms| Setting::Udba(Udba::Reval(Duration::from_millis(ms)))),
        hold().prop_map(|hold| Setting::Create(CreatePolicy::MostFree { hold })),
        (any::<u64>(), hold())
            .prop_map(|(low, hold)| Setting::Create(CreatePolicy::TopDownMostFree { low, hold })),
        any::<bool>().prop_map(|on| Setting::Mount(MountSetting::ReadOnly(on))),
        any::<bool>().prop_map(|on| Setting::Mount(MountSetting::AllowOther(on))),
        any_path().prop_map(|path| Setting::Mount(MountSetting::Fsname(path.into_os_string()))),
        "[a-z:,0-9]{1,20}"
            .prop_map(|label| Setting::Mount(MountSetting::Context("context", label))),
    ]
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (0..1000_usize, any_branch())
            .prop_map(|(index, branch)| Change::AddBranch { index, branch }),
        any_branch().prop_map(Change::Append),
        any_branch().prop_map(Change::Prepend),
        any_path().prop_map(|path| Change::Del { path }),
        (any_path(), perm::tests::any_perm()).prop_map(|(path, perm)| Change::Mod { path, perm }),
        any_setting().prop_map(Change::Set),
    ]
}

proptest! {
    #[test]
    fn changes_round_trip(changes in proptest::collection::vec(any_change(), 0..5)) {
        let options: Vec<OsString> = changes.iter().map(Change::to_option).collect();
        let text = options.join(OsStr::new(","));
        prop_assert_eq!(parse_change(&text).unwrap().changes, changes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(text: Vec<u8>) {
        let text = OsString::from_vec(text);
        let _ = (MountSpec::parse(std::slice::from_ref(&text)), parse_change(&text));
    }

    #[test]
    fn garbled_options_never_panic(text in "(br|add|mod|del|udba|create|x-|no|=|:|,|/|\\\\|\"|[0-9]|ro|rw|\\+){0,20}") {
        let text = OsString::from(text);
        let _ = (MountSpec::parse(std::slice::from_ref(&text)), parse_change(&text));
    }
}
