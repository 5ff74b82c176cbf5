//! Parsers of option values: sizes, volumes, id maps, rlimits. Pure; errors say what would be right.

use crate::spec::{IdMapping, Ulimit, Volume};
use anyhow::{Result, bail, ensure};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// A number of bytes: `64M`, `1g`, `512k`, `100` or `100b`.
pub fn size(text: &str) -> Result<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &lower[digits.len()..] {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => bail!("`{text}` is not a size: write a number with an optional k, m, g or t"),
    };
    strict_number(digits)
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| anyhow::anyhow!("`{text}` is not a size: write for example 64M"))
}

/// A size limit for `--memory`; the kernel needs some memory to run anything at all.
pub fn memory(text: &str) -> Result<u64> {
    let bytes = size(text)?;
    ensure!(
        bytes >= 4 << 20,
        "`{text}` is too little memory: give at least 4M"
    );
    Ok(bytes)
}

/// `--memory-swap`: a size, or -1 for no limit.
pub fn memory_swap(text: &str) -> Result<Option<u64>> {
    if text == "-1" {
        Ok(None)
    } else {
        size(text).map(Some)
    }
}

/// `--cpus`: a decimal number of CPUs, in thousandths.
pub fn milli_cpus(text: &str) -> Result<u64> {
    let wrong = || anyhow::anyhow!("`{text}` is not a number of CPUs: write for example 0.5");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    ensure!(!fraction.is_empty() && fraction.len() <= 9, wrong());
    let whole = strict_number(if whole.is_empty() { "0" } else { whole }).ok_or_else(wrong)?;
    let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
    strict_number(fraction).ok_or_else(wrong)?;
    let milli = strict_number(&digits).ok_or_else(wrong)?;
    let total = whole
        .checked_mul(1000)
        .and_then(|w| w.checked_add(milli))
        .ok_or_else(wrong)?;
    ensure!(
        total >= 10,
        "`{text}` is too little: give at least 0.01 CPUs"
    );
    Ok(total)
}

/// `--cpu-shares`: 2 to 262144.
pub fn cpu_shares(text: &str) -> Result<u64> {
    match strict_number(text) {
        Some(shares @ 2..=262_144) => Ok(shares),
        _ => bail!("`{text}` is not a weight: give 2 to 262144 (1024 is normal)"),
    }
}

/// `--pids-limit`: at least one task for init and one for the command.
pub fn pids(text: &str) -> Result<u64> {
    match strict_number(text) {
        Some(count) if count >= 2 => Ok(count),
        _ => bail!("`{text}` is not a number of tasks: give at least 2 (init and the command)"),
    }
}

/// A list of CPUs as cpuset(7) writes it: `0-2,4`.
pub fn cpu_list(text: &str) -> Result<String> {
    let good = !text.is_empty()
        && text.split(',').all(|part| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            matches!((strict_number(from), strict_number(to)), (Some(a), Some(b)) if a <= b)
        });
    ensure!(
        good,
        "`{text}` is not a list of CPUs: write for example 0-2,4"
    );
    Ok(text.to_owned())
}

/// A decimal number and nothing else: no sign, no space.
pub fn strict_number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// A user or group id: a decimal number below 4294967295 (which means "no change" to the kernel).
pub fn id(text: &str) -> Option<u32> {
    strict_number(text)
        .and_then(|id| u32::try_from(id).ok())
        .filter(|id| *id != u32::MAX)
}

/// `--udba`: a value of the mount option of that name.
pub fn udba(text: &str) -> Result<String> {
    ensure!(
        matches!(text, "none" | "reval" | "notify"),
        "`{text}` is not a way to notice changes: use none, reval or notify"
    );
    Ok(text.to_owned())
}

/// The name of a container.
pub fn container_name(text: &str) -> Result<String> {
    let mut bytes = text.bytes();
    let good = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && text.len() <= 128;
    ensure!(
        good,
        "`{text}` is not a name: use letters, digits, `_`, `.` and `-`, at most 128"
    );
    Ok(text.to_owned())
}

/// A host name, hostname(7): at most 64 bytes.
pub fn hostname(text: &str) -> Result<String> {
    let good = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    ensure!(
        good,
        "`{text}` is not a host name: use letters, digits, `.` and `-`, at most 64"
    );
    Ok(text.to_owned())
}

/// `SRC:DST[:ro|rw]`.
pub fn volume(text: &OsStr) -> Result<Volume> {
    let shown = text.to_string_lossy();
    let parts: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b':').collect();
    let (source, target, mode) = match parts[..] {
        [source, target] => (source, target, &b"rw"[..]),
        [source, target, mode] => (source, target, mode),
        _ => bail!("`{shown}` is not a volume: write SRC:DST or SRC:DST:ro"),
    };
    let read_only = match mode {
        b"rw" => false,
        b"ro" => true,
        _ => bail!("`{shown}`: unknown mode: write ro or rw"),
    };
    ensure!(!source.is_empty(), "`{shown}` has no source: write SRC:DST");
    let source = std::path::absolute(Path::new(OsStr::from_bytes(source)))?;
    Ok(Volume {
        source: source.into(),
        target: inside_path(target, &shown)?.into(),
        read_only,
    })
}

/// A mount target inside: absolute, without `..`, not `/` itself.
pub fn inside_path(path: &[u8], shown: &str) -> Result<OsString> {
    let parts = || path.split(|byte| *byte == b'/');
    ensure!(
        path.first() == Some(&b'/'),
        "`{shown}`: the path inside must be absolute"
    );
    ensure!(
        parts().all(|part| part != b".."),
        "`{shown}`: `..` is not allowed inside"
    );
    ensure!(
        parts().any(|part| !part.is_empty() && part != b"."),
        "`{shown}`: `/` itself is given by --rootfs or --branch"
    );
    Ok(OsString::from_vec(path.to_vec()))
}

/// `--branch PATH[=PERM]`: the path and the permission, `ro` when none is given.
///
/// The permission is what follows the last `=` if it starts with one of AUFS's permission words;
/// a path that ends so is written with an explicit permission.
pub fn branch(text: &OsStr) -> (OsString, String) {
    let bytes = text.as_bytes();
    if let Some(at) = bytes.iter().rposition(|byte| *byte == b'=') {
        let word = String::from_utf8_lossy(&bytes[at + 1..]);
        let first = word.split('+').next().unwrap_or_default();
        if matches!(first, "rw" | "ro" | "rr") {
            return (
                OsStr::from_bytes(&bytes[..at]).to_owned(),
                word.into_owned(),
            );
        }
    }
    (text.to_owned(), "ro".to_owned())
}

/// `--uidmap C:H:N`.
pub fn id_mapping(text: &str) -> Result<IdMapping> {
    let numbers: Vec<Option<u32>> = text.split(':').map(id).collect();
    match numbers[..] {
        [Some(inside), Some(outside), Some(count)]
            if count > 0
                && inside.checked_add(count).is_some()
                && outside.checked_add(count).is_some() =>
        {
            Ok(IdMapping {
                inside,
                outside,
                count,
            })
        }
        _ => bail!(
            "`{text}` is not an id map: write CONTAINER:HOST:COUNT, for example 0:100000:65536"
        ),
    }
}

/// Names and numbers of the rlimits, setrlimit(2).
const RLIMITS: &[(&str, u32)] = &[
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// `--ulimit NAME=SOFT[:HARD]`, -1 or `unlimited` for no limit.
pub fn ulimit(text: &str) -> Result<Ulimit> {
    let wrong = || anyhow::anyhow!("`{text}` is not an rlimit: write NAME=SOFT[:HARD]");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let Some((_, resource)) = RLIMITS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = RLIMITS.iter().map(|(known, _)| *known).collect();
        bail!("`{name}` is not an rlimit: use one of {}", names.join(", "));
    };
    let value = |text: &str| match text {
        "-1" | "unlimited" => Some(u64::MAX),
        digits => strict_number(digits),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (
        value(soft).ok_or_else(wrong)?,
        value(hard).ok_or_else(wrong)?,
    );
    ensure!(
        soft <= hard,
        "`{text}`: the soft limit is above the hard one"
    );
    Ok(Ulimit {
        name: name.to_owned(),
        resource: *resource,
        soft,
        hard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("1g", 1 << 30),
            ("512k", 512 << 10),
            ("7", 7),
        ] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "M", "1x", "-1", "+1", " 1", "1 M", "99999999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(memory("1k").is_err());
        assert_eq!(memory_swap("-1").unwrap(), None);
    }

    #[test]
    fn cpus() {
        for (text, milli) in [
            ("0.5", 500),
            ("2", 2000),
            (".25", 250),
            ("1.5", 1500),
            ("0.01", 10),
        ] {
            assert_eq!(milli_cpus(text).unwrap(), milli, "{text}");
        }
        for text in ["", ".", "0", "0.001", "1.", "-1", "1e3", "1.x"] {
            assert!(milli_cpus(text).is_err(), "{text}");
        }
        for text in ["0", "0-2,4", "1,1"] {
            assert_eq!(cpu_list(text).unwrap(), text);
        }
        for text in ["", "2-1", "a", "1,,2", "-1"] {
            assert!(cpu_list(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_are_strict() {
        assert_eq!(id("0"), Some(0));
        assert_eq!(id("4294967294"), Some(4_294_967_294));
        for text in [
            "4294967295",
            "4294967296",
            "+0",
            " 0",
            "0 ",
            "",
            "-1",
            "0x1",
        ] {
            assert_eq!(id(text), None, "{text}");
        }
    }

    #[test]
    fn volumes() {
        let parsed = volume(OsStr::new("/a:/b:ro")).unwrap();
        assert_eq!(
            (parsed.source.path(), parsed.read_only),
            (Path::new("/a"), true)
        );
        for text in [
            "/a",
            ":/b",
            "/a:b",
            "/a:/b:xx",
            "/a:/b/../c",
            "/a:/",
            "/a:/./",
            "/a:/b:ro:x",
        ] {
            assert!(volume(OsStr::new(text)).is_err(), "{text}");
        }
        assert!(volume(OsStr::from_bytes(b"/\xff:/\xfe")).is_ok());
    }

    #[test]
    fn branches() {
        let parse = |text: &str| {
            let (path, perm) = branch(OsStr::new(text));
            (path.into_string().unwrap(), perm)
        };
        assert_eq!(parse("/"), ("/".into(), "ro".into()));
        assert_eq!(parse("/=ro"), ("/".into(), "ro".into()));
        assert_eq!(parse("/a=b"), ("/a=b".into(), "ro".into()));
        assert_eq!(parse("/a=b=rw"), ("/a=b".into(), "rw".into()));
        assert_eq!(parse("/a=ro+wh"), ("/a".into(), "ro+wh".into()));
    }

    #[test]
    fn names() {
        for text in ["a", "_x", "a.b-c_1"] {
            assert!(container_name(text).is_ok(), "{text}");
        }
        for text in ["", ".", "..", "-a", "a/b", "../x", &"a".repeat(129)] {
            assert!(container_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn maps_and_rlimits() {
        let map = id_mapping("0:100000:65536").unwrap();
        assert_eq!(
            map,
            IdMapping {
                inside: 0,
                outside: 100_000,
                count: 65_536
            }
        );
        for text in ["0:1", "0:1:0", "a:b:c", "1:2:4294967295", "0:1:2:3"] {
            assert!(id_mapping(text).is_err(), "{text}");
        }
        let limit = ulimit("nofile=100:200").unwrap();
        assert_eq!((limit.soft, limit.hard), (100, 200));
        assert_eq!(ulimit("core=-1").unwrap().hard, u64::MAX);
        for text in ["nofile", "foo=1", "nofile=2:1", "nofile=x"] {
            assert!(ulimit(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".*") {
            let _ = (size(&text), milli_cpus(&text), cpu_list(&text), ulimit(&text));
            let _ = (volume(OsStr::new(&text)), branch(OsStr::new(&text)), id_mapping(&text));
        }
    }
}
