//! The overlayfs and fuse-overlayfs option grammar.
//!
//! Container engines write it, for a program of which they know no version: an unknown option is a
//! warning, never an error. Source: fuse-overlayfs(1); Documentation/filesystems/overlayfs.rst.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::parse::{refuse, settings, unknown_option};
use super::table::{self, Action, LayerKey};
use super::text::{self, Token};
use super::{BranchPerm, BranchSpec, Format, FormatWord, Grammar, MountFlags, MountSpec, Options};
use crate::setup::SetupError;

/// The directories of the union. An option given twice counts the last time.
#[derive(Default)]
struct Layers {
    lower: Vec<PathBuf>,
    /// Below those: layers whose names are not merged.
    data: Vec<PathBuf>,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
}

/// The union that the options of a mount ask for.
pub(super) fn mount_spec(tokens: &[Token<'_>]) -> Result<MountSpec, SetupError> {
    let mut layers = Layers::default();
    let mut options = Options::defaults(Grammar::Overlay);
    let mut mount = MountFlags::default();
    let mut warnings = Vec::new();
    for token in tokens {
        match table::lookup(Grammar::Overlay, &token.name()) {
            Some(def) => match def.action {
                Action::Layer(key) => layers.add(key, token, &def.usage())?,
                _ => {
                    for setting in settings(def, token, &mut warnings)? {
                        setting.apply(&mut options, &mut mount);
                    }
                }
            },
            // Part of the union would be missing without it: not to be passed over.
            None if names_branch(token) => return Err(unknown_option(Grammar::Overlay, token)),
            None => {
                warnings.push(format!(
                    "unknown argument ignored: {}",
                    text::shown(token.raw)
                ));
            }
        }
    }
    if layers.upper.is_none() {
        mount.read_only = true;
        if layers.work.take().is_some() {
            warnings.push("workdir: no effect: there is no upperdir to work for".to_owned());
        }
    }
    let branches = layers.branches(options.format)?;
    Ok(MountSpec {
        grammar: Grammar::Overlay,
        branches,
        options,
        mount,
        warnings,
    })
}

/// Is it an option of the AUFS grammar that names branches?
fn names_branch(token: &Token<'_>) -> bool {
    table::lookup(Grammar::Aufs, &token.name())
        .is_some_and(|def| matches!(def.action, Action::Branch(_)))
}

impl Layers {
    fn add(&mut self, key: LayerKey, token: &Token<'_>, usage: &str) -> Result<(), SetupError> {
        if token.separator != Some(b'=') || token.value.is_empty() {
            return Err(refuse(
                token.raw,
                "names no directory",
                format!("`{usage}`"),
            ));
        }
        match key {
            LayerKey::Lower => (self.lower, self.data) = lower_layers(token)?,
            LayerKey::LowerOne if !self.data.is_empty() => {
                return Err(refuse(
                    token.raw,
                    "an ordinary layer below a data-only one",
                    "all lowerdir+= before datadir+=",
                ));
            }
            LayerKey::LowerOne => self.lower.push(text::path(token.value)),
            LayerKey::DataOne => self.data.push(text::path(token.value)),
            LayerKey::Upper => self.upper = Some(text::path(token.value)),
            LayerKey::Work => self.work = Some(text::path(token.value)),
        }
        Ok(())
    }

    fn branches(self, format: Option<FormatWord>) -> Result<Vec<BranchSpec>, SetupError> {
        if self.lower.is_empty() {
            return Err(refuse(
                b"lowerdir",
                "no lower layer is given",
                "lowerdir=A[:B...]",
            ));
        }
        if let (Some(upper), None) = (&self.upper, &self.work) {
            let what = [b"upperdir=", upper.as_os_str().as_bytes()].concat();
            return Err(refuse(
                &what,
                "workdir is missing",
                "workdir=W, an empty directory on the filesystem of upperdir",
            ));
        }
        let guessed = format.filter(|word| *word == FormatWord::Auto);
        let perm = |perm: BranchPerm| BranchPerm {
            format: guessed,
            ..perm
        };
        let fixed = format.and_then(FormatWord::fixed);
        let upper = self.upper.map(|path| BranchSpec {
            path,
            perm: perm(BranchPerm::RW),
            format: Some(fixed.unwrap_or(Format::Overlay)),
            workdir: self.work,
        });
        let layer = |path, perm| BranchSpec {
            path,
            perm,
            format: Some(Format::Overlay),
            workdir: None,
        };
        let ordinary = perm(BranchPerm::RO_WH);
        let data_only = BranchPerm {
            data_only: true,
            ..BranchPerm::RO
        };
        let lower = self.lower.into_iter().map(|path| layer(path, ordinary));
        let data = self.data.into_iter().map(|path| layer(path, data_only));
        Ok(upper.into_iter().chain(lower).chain(data).collect())
    }
}

/// The layers of `lowerdir=A:B::D`: ordinary ones, and (each after two colons) data-only ones below
/// them. A single colon at either end is tolerated.
fn lower_layers(token: &Token<'_>) -> Result<(Vec<PathBuf>, Vec<PathBuf>), SetupError> {
    let mut parts = &text::split(token.value, b':')[..];
    if let [b"", rest @ ..] = parts {
        parts = rest;
    }
    if let [rest @ .., b""] = parts {
        parts = rest;
    }
    if parts.is_empty() {
        return Err(refuse(token.raw, "names no directory", "lowerdir=A[:B...]"));
    }
    let (mut lower, mut data) = (Vec::new(), Vec::new());
    let mut doubled = false;
    for part in parts {
        // Two colons have an empty part between them.
        match (part.is_empty(), doubled) {
            (true, false) if !lower.is_empty() => doubled = true,
            (false, true) => {
                data.push(text::path(part));
                doubled = false;
            }
            (false, false) if data.is_empty() => lower.push(text::path(part)),
            _ => return Err(odd_colons(token)),
        }
    }
    if doubled {
        return Err(odd_colons(token));
    }
    Ok((lower, data))
}

fn odd_colons(token: &Token<'_>) -> SetupError {
    refuse(
        token.raw,
        "layers cannot be told from data-only ones",
        "A[:B...][::D...], with two colons before each data-only layer, which come last",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{IdMap, IdRange, Udba};
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::time::Duration;

    const LAYERS: &str = "lowerdir=/a:/b,upperdir=/u,workdir=/w";

    fn parse(options: &[&str]) -> Result<MountSpec, String> {
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        MountSpec::parse(&options).map_err(|error| error.to_string())
    }

    fn with(options: &str) -> MountSpec {
        parse(&[LAYERS, options]).unwrap()
    }

    fn paths(spec: &MountSpec) -> Vec<&str> {
        spec.branches
            .iter()
            .map(|branch| branch.path.to_str().unwrap())
            .collect()
    }

    #[test]
    fn upper_is_the_writable_top() {
        let spec = parse(&[LAYERS]).unwrap();
        assert_eq!(paths(&spec), ["/u", "/a", "/b"]);
        let [upper, lower, _] = &spec.branches[..] else {
            panic!("{spec:?}")
        };
        assert_eq!(
            (upper.perm, upper.format),
            (BranchPerm::RW, Some(Format::Overlay))
        );
        assert_eq!(upper.workdir.as_deref(), Some("/w".as_ref()));
        assert_eq!(
            (lower.perm, lower.format),
            (BranchPerm::RO_WH, Some(Format::Overlay))
        );
        assert_eq!(spec.options, Options::defaults(Grammar::Overlay));
        assert_eq!(spec.mount, MountFlags::default());
        assert!(spec.warnings.is_empty());
    }

    #[test]
    fn without_upper_the_mount_is_readonly() {
        let spec = parse(&["lowerdir=/a:/b,private"]).unwrap();
        assert!(spec.mount.read_only && spec.branches.iter().all(|branch| !branch.perm.writable()));
        let spec = parse(&["lowerdir=/a,workdir=/w"]).unwrap();
        assert_eq!(
            spec.warnings,
            ["workdir: no effect: there is no upperdir to work for"]
        );
    }

    #[test]
    fn several_options_and_escapes_as_engines_write_them() {
        let spec = parse(&[
            r"workdir=/w\,1",
            "upperdir=/u",
            r"lowerdir=/a\:b:/l/X/../diff1",
            "dev,suid",
        ]);
        assert_eq!(paths(&spec.unwrap()), ["/u", "/a:b", "/l/X/../diff1"]);
        assert_eq!(
            paths(&parse(&["lowerdir+=/a,lowerdir+=/b:c"]).unwrap()),
            ["/a", "/b:c"]
        );
        assert_eq!(paths(&parse(&["lowerdir=:/a:/b:"]).unwrap()), ["/a", "/b"]);
        let label = with("context=\"u:o:t:s0:c1,c2\",volatile");
        assert_eq!(label.mount.context, ["context=u:o:t:s0:c1,c2"]);
        assert!(label.options.volatile);
    }

    #[test]
    fn data_only_layers_come_last() {
        for options in [
            "lowerdir=/a:/b::/c::/d",
            "lowerdir=/a:/b,datadir+=/c,datadir+=/d",
        ] {
            let spec = parse(&[options]).unwrap();
            assert_eq!(paths(&spec), ["/a", "/b", "/c", "/d"]);
            let data: Vec<bool> = spec.branches.iter().map(|b| b.perm.data_only).collect();
            assert_eq!(data, [false, false, true, true]);
            assert_eq!(spec.branches[3].perm.to_string(), "ro+data");
        }
    }

    #[test]
    fn options_of_engines_take_effect() {
        let options = with(
            "uidmapping=:0:1000:1:1:100000:65536,gidmapping=0:5:1,squash_to_uid=1,squash_to_gid=2,\
             timeout=0.5,fsync=0,noacl,writeback=1,threaded=0,redirect_dir=off",
        );
        assert!(options.warnings.is_empty(), "{:?}", options.warnings);
        let options = options.options;
        assert_eq!(
            options.uid_map.0[1],
            IdRange {
                branch: 1,
                mount: 100_000,
                count: 65536
            }
        );
        assert_eq!(
            options.gid_map,
            IdMap(vec![IdRange {
                branch: 0,
                mount: 5,
                count: 1
            }])
        );
        assert_eq!((options.squash_uid, options.squash_gid), (Some(1), Some(2)));
        assert_eq!(options.timeout, Some(Duration::from_millis(500)));
        assert!(options.volatile && !options.acl && options.writeback && !options.dir_rename);
        assert_eq!(options.threads, Some(1));
        assert_eq!(with("squash_to_root").options.squash_gid, Some(0));
        assert_eq!(
            with("udba=reval:2,io=cache").options.udba,
            Udba::Reval(Duration::from_secs(2))
        );
        assert_eq!(with("format=aufs").branches[0].format, Some(Format::Aufs));
        assert!(
            with("format=auto")
                .branches
                .iter()
                .all(|branch| branch.perm.format == Some(FormatWord::Auto))
        );
    }

    #[test]
    fn what_has_no_effect_is_told() {
        for silent in [
            "xino=on",
            "metacopy=off",
            "index=off",
            "noatime",
            "fast_ino=0",
            "private",
            ",",
        ] {
            assert!(with(silent).warnings.is_empty(), "{silent}");
        }
        for (option, warning) in [
            (
                "metacopy=on",
                "metacopy=on: no effect: copies are always complete",
            ),
            (
                "static_nlink",
                "static_nlink: no effect: link counts are exact",
            ),
            (
                "noxattrs=1",
                "noxattrs=1: no effect: extended attributes stay on",
            ),
            (
                "lazytime",
                "lazytime: no effect: times are those of the branches' files",
            ),
            ("foo=1", "unknown argument ignored: foo=1"),
            ("create:mfs", ""),
        ] {
            match parse(&[LAYERS, option]) {
                Ok(spec) => assert_eq!(spec.warnings, [warning], "{option}"),
                Err(error) => assert!(warning.is_empty(), "{error}"),
            }
        }
        assert_eq!(
            with("xattr_permissions=2").options.xattr_permissions,
            Some(2)
        );
    }

    #[test]
    fn errors_say_what_would_be_right() {
        for (options, message) in [
            (
                "upperdir=/u,workdir=/w",
                "lowerdir: no lower layer is given (EINVAL): lowerdir=A[:B...]",
            ),
            (
                "lowerdir=/a,upperdir=/u",
                "upperdir=/u: workdir is missing (EINVAL): workdir=W, an empty directory on the \
                 filesystem of upperdir",
            ),
            (
                "lowerdir=/a::/b,lowerdir+=/c",
                "lowerdir+=/c: an ordinary layer below a data-only one (EINVAL): all lowerdir+= \
                 before datadir+=",
            ),
            (
                "lowerdir=",
                "lowerdir=: names no directory (EINVAL): `lowerdir=A[:B...]`",
            ),
            (
                "lowerdir=/a,timeout=soon",
                "timeout=soon: `soon` is not a time (EINVAL): seconds, as in 1 or 0.5",
            ),
            (
                "lowerdir=/a,uidmapping=0:1",
                "uidmapping=0:1: 2 numbers are no map (EINVAL): \
                 BRANCH:MOUNT:COUNT[:BRANCH:MOUNT:COUNT...]",
            ),
        ] {
            assert_eq!(parse(&[options]).unwrap_err(), message);
        }
    }

    #[test]
    fn two_colons_stand_between_a_layer_and_a_data_only_one() {
        for odd in [
            "/a::/b:/c",
            "/a:::/b",
            "::/b",
            "/b::",
            ":::/b",
            "/a::/b::",
            "::/a:/b",
            "/a:::",
            ":::",
            "::",
        ] {
            let option = format!("lowerdir={odd}");
            let want = format!(
                "{option}: layers cannot be told from data-only ones (EINVAL): A[:B...][::D...], \
                 with two colons before each data-only layer, which come last"
            );
            assert_eq!(parse(&[&option]).unwrap_err(), want);
        }
        let error = parse(&["lowerdir=:"]).unwrap_err();
        assert!(error.contains("names no directory"), "{error}");
        assert_eq!(paths(&parse(&["lowerdir=:/a::/b:"]).unwrap()), ["/a", "/b"]);
    }

    proptest! {
        #[test]
        fn arbitrary_options_never_panic(mut tail: Vec<u8>) {
            let mut option = b"lowerdir=/a,".to_vec();
            option.append(&mut tail);
            let _ = MountSpec::parse(&[OsString::from_vec(option)]);
        }
    }
}
