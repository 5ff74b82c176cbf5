//! Values of options: numbers, sizes, times, policies and id maps, to and from their text.

use std::fmt;
use std::time::Duration;

use super::{
    CopyupPolicy, CreatePolicy, DirOpaque, Format, FormatWord, IdMap, IdRange, IoMode, OpenMode,
    SpillPolicy, Udba, text,
};

/// A value that was refused: what is wrong with it, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// "unknown level `x`"
    pub wrong: String,
    /// "none, reval or notify"
    pub right: String,
}

impl Problem {
    pub fn new(wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Self {
            wrong: wrong.into(),
            right: right.into(),
        }
    }

    fn unknown(what: &str, value: &[u8], right: &str) -> Self {
        match value {
            b"" => Self::new(format!("{what} is missing"), right),
            _ => Self::new(format!("unknown {what} `{}`", text::shown(value)), right),
        }
    }
}

/// How long the branch chosen by free space is kept if the option does not say (aufs(5), "mfs").
const HOLD_DEFAULT: u64 = 30;
/// Longest time it may be kept, in seconds.
const HOLD_MAX: u64 = 3600;

/// Longest life time accepted, in seconds: a hundred years.
const SECONDS_MAX: u64 = 100 * 366 * 24 * 3600;

/// A decimal number between `min` and `max`.
pub(super) fn number(value: &[u8], min: u64, max: u64) -> Result<u64, Problem> {
    digits(value)
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| {
            Problem::new(
                format!("`{}` is not a usable number", text::shown(value)),
                format!("a whole number from {min} to {max}"),
            )
        })
}

/// `rdcache`: seconds that a listing is kept. Source: aufs(5).
pub(super) fn listing_seconds(value: &[u8]) -> Result<u64, Problem> {
    number(value, 0, 3600)
}

/// `rdblk`: bytes of a block of a listing, which takes the longest name. Source: aufs(5).
pub(super) fn listing_block(value: &[u8]) -> Result<u64, Problem> {
    const LEAST: u64 = 255;
    match value {
        b"def" | b"0" => Ok(0),
        _ => number(value, LEAST, u64::from(u32::MAX)).map_err(|problem| Problem {
            right: format!("def, 0 or at least {LEAST}"),
            ..problem
        }),
    }
}

/// `rdhash`: entries of the hash table of a listing. Source: aufs(5).
pub(super) fn listing_hash(value: &[u8]) -> Result<u64, Problem> {
    match value {
        b"def" => Ok(0),
        _ => number(value, 0, u64::from(u32::MAX)),
    }
}

/// Digits and nothing else (`str::parse` would take a sign too).
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// A user or group id.
pub(super) fn id(value: &[u8]) -> Result<u32, Problem> {
    // The highest value means "no id" to chown(2).
    number(value, 0, u64::from(u32::MAX - 1)).map(|id| id as u32)
}

/// A size in bytes; the suffixes k, m, g and t multiply by powers of 1024.
pub(super) fn size(value: &[u8]) -> Result<u64, Problem> {
    let (number, shift) = match value.split_last() {
        Some((b'k' | b'K', number)) => (number, 10),
        Some((b'm' | b'M', number)) => (number, 20),
        Some((b'g' | b'G', number)) => (number, 30),
        Some((b't' | b'T', number)) => (number, 40),
        _ => (value, 0),
    };
    digits(number)
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| {
            Problem::new(
                format!("`{}` is not a size", text::shown(value)),
                "bytes, or a number with k, m, g or t, as in 100m",
            )
        })
}

/// A time in seconds, with up to nine decimals.
pub(super) fn seconds(value: &[u8]) -> Result<Duration, Problem> {
    let (whole, fraction) = match value.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&value[..dot], &value[dot + 1..]),
        None => (value, &b"0"[..]),
    };
    let nanos = |fraction: &[u8]| match fraction.len() {
        length @ 1..=9 => Some(digits(fraction)? * 10_u64.pow(9 - length as u32)),
        _ => None,
    };
    digits(whole)
        .filter(|&whole| whole <= SECONDS_MAX)
        .and_then(|whole| Some(Duration::new(whole, nanos(fraction)? as u32)))
        .ok_or_else(|| {
            Problem::new(
                format!("`{}` is not a time", text::shown(value)),
                "seconds, as in 1 or 0.5",
            )
        })
}

/// The text that [`seconds`] reads back.
pub(super) fn seconds_text(time: Duration) -> String {
    let text = format!("{}.{:09}", time.as_secs(), time.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `1` or `0`; nothing means `1`.
pub(super) fn switch(value: &[u8]) -> Result<bool, Problem> {
    match value {
        b"" | b"1" => Ok(true),
        b"0" => Ok(false),
        _ => Err(Problem::unknown("value", value, "0 or 1")),
    }
}

/// `udba=none|reval[:SEC]|notify`
pub(super) fn udba(value: &[u8]) -> Result<Udba, Problem> {
    match text::cut(value, b':') {
        (b"none", None) => Ok(Udba::None),
        (b"reval", None) => Ok(Udba::Reval(Duration::from_secs(1))),
        (b"reval", Some(time)) => seconds(time).map(Udba::Reval),
        (b"notify" | b"fsnotify", None) => Ok(Udba::Notify),
        _ => Err(Problem::unknown(
            "level",
            value,
            "none, reval, reval:SEC or notify",
        )),
    }
}

/// `create=` (spec: aufs(5), "Policies to Select One among Multiple Writable Branches").
pub(super) fn create_policy(value: &[u8]) -> Result<CreatePolicy, Problem> {
    let parts: Vec<&[u8]> = value.split(|&byte| byte == b':').collect();
    let policy = match parts[..] {
        [b"tdp" | b"top-down-parent"] => CreatePolicy::TopDownParent,
        [b"rr" | b"round-robin"] => CreatePolicy::RoundRobin,
        [b"mfs" | b"most-free-space", ref time @ ..] if time.len() <= 1 => {
            CreatePolicy::MostFree { hold: hold(time)? }
        }
        [b"pmfs", ref time @ ..] if time.len() <= 1 => {
            CreatePolicy::ParentMostFree { hold: hold(time)? }
        }
        [b"tdmfs" | b"top-down-mfs", low, ref time @ ..] if time.len() <= 1 => {
            CreatePolicy::TopDownMostFree {
                low: size(low)?,
                hold: hold(time)?,
            }
        }
        [b"mfsrr", low, ref time @ ..] if time.len() <= 1 => CreatePolicy::MostFreeRoundRobin {
            low: size(low)?,
            hold: hold(time)?,
        },
        [b"pmfsrr", low, ref time @ ..] if time.len() <= 1 => {
            CreatePolicy::ParentMostFreeRoundRobin {
                low: size(low)?,
                hold: hold(time)?,
            }
        }
        _ => {
            return Err(Problem::unknown(
                "policy",
                value,
                "tdp, rr, mfs[:SEC], pmfs[:SEC], tdmfs:LOW[:SEC], mfsrr:LOW[:SEC] or pmfsrr:LOW[:SEC]",
            ));
        }
    };
    Ok(policy)
}

/// The optional time at the end of a policy.
fn hold(time: &[&[u8]]) -> Result<Duration, Problem> {
    let time = time
        .first()
        .map_or(Ok(HOLD_DEFAULT), |time| number(time, 0, HOLD_MAX));
    time.map(Duration::from_secs)
}

/// `cpup=`
pub(super) fn copyup_policy(value: &[u8]) -> Result<CopyupPolicy, Problem> {
    match value {
        b"tdp" | b"top-down-parent" => Ok(CopyupPolicy::TopDownParent),
        b"bup" | b"bottom-up-parent" => Ok(CopyupPolicy::BottomUpParent),
        b"bu" | b"bottom-up" => Ok(CopyupPolicy::BottomUp),
        _ => Err(Problem::unknown("policy", value, "tdp, bup or bu")),
    }
}

/// `moveonenospc`, `moveonenospc=`; `true` and `false` as mergerfs(1) writes them.
pub(super) fn spill_policy(value: &[u8]) -> Result<Option<SpillPolicy>, Problem> {
    match value {
        b"" | b"1" | b"true" | b"mfs" => Ok(Some(SpillPolicy::MostFree)),
        b"pmfs" => Ok(Some(SpillPolicy::ParentMostFree)),
        b"0" | b"false" => Ok(None),
        _ => Err(Problem::unknown("policy", value, "mfs, pmfs or 0")),
    }
}

/// `diropq=`
pub(super) fn dir_opaque(value: &[u8]) -> Result<DirOpaque, Problem> {
    match value {
        b"w" | b"whiteouted" => Ok(DirOpaque::Whiteouted),
        b"a" | b"always" => Ok(DirOpaque::Always),
        _ => Err(Problem::unknown("rule", value, "whiteouted or always")),
    }
}

/// `format=`
pub(super) fn format(value: &[u8]) -> Result<FormatWord, Problem> {
    match value {
        b"aufs" => Ok(FormatWord::Fixed(Format::Aufs)),
        b"overlay" => Ok(FormatWord::Fixed(Format::Overlay)),
        b"auto" => Ok(FormatWord::Auto),
        _ => Err(Problem::unknown("format", value, "aufs, overlay or auto")),
    }
}

/// `io=`
pub(super) fn io_mode(value: &[u8]) -> Result<IoMode, Problem> {
    match value {
        b"auto" => Ok(IoMode::Auto),
        b"passthrough" => Ok(IoMode::Passthrough),
        b"cache" => Ok(IoMode::Cache),
        b"direct" => Ok(IoMode::Direct),
        _ => Err(Problem::unknown(
            "mode",
            value,
            "auto, passthrough, cache or direct",
        )),
    }
}

/// `open=`
pub(super) fn open_mode(value: &[u8]) -> Result<OpenMode, Problem> {
    match value {
        b"auto" => Ok(OpenMode::Auto),
        b"answered" => Ok(OpenMode::Answered),
        b"none" => Ok(OpenMode::None),
        _ => Err(Problem::unknown("mode", value, "auto, answered or none")),
    }
}

/// `uidmapping=`, `gidmapping=`: `BRANCH:MOUNT:COUNT`, repeated. Empty parts are skipped, because
/// container engines write a colon before the first number.
pub(super) fn id_map(value: &[u8]) -> Result<IdMap, Problem> {
    const RIGHT: &str = "BRANCH:MOUNT:COUNT[:BRANCH:MOUNT:COUNT...]";
    let numbers = value
        .split(|&byte| byte == b':')
        .filter(|part| !part.is_empty())
        .map(|part| number(part, 0, u64::from(u32::MAX)).map(|number| number as u32))
        .collect::<Result<Vec<u32>, Problem>>()?;
    let (triples, rest) = numbers.as_chunks::<3>();
    if triples.is_empty() || !rest.is_empty() {
        return Err(Problem::new(
            format!("{} numbers are no map", numbers.len()),
            RIGHT,
        ));
    }
    let mut ranges: Vec<IdRange> = Vec::with_capacity(triples.len());
    for &[branch, mount, count] in triples {
        if count == 0 || branch.checked_add(count).is_none() || mount.checked_add(count).is_none() {
            return Err(Problem::new(
                format!("range {branch}:{mount}:{count} is empty or leaves the 32 bits of an id"),
                RIGHT,
            ));
        }
        let range = IdRange {
            branch,
            mount,
            count,
        };
        if ranges.iter().any(|other| overlap(other, &range)) {
            return Err(Problem::new(
                format!("range {branch}:{mount}:{count} overlaps another"),
                "ranges that share no id, on either side",
            ));
        }
        ranges.push(range);
    }
    Ok(IdMap(ranges))
}

fn overlap(a: &IdRange, b: &IdRange) -> bool {
    let meet = |x: u32, y: u32| x < y + b.count && y < x + a.count;
    meet(a.branch, b.branch) || meet(a.mount, b.mount)
}

impl fmt::Display for Udba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Reval(time) => write!(f, "reval:{}", seconds_text(*time)),
            Self::Notify => f.write_str("notify"),
        }
    }
}

impl fmt::Display for CreatePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopDownParent => f.write_str("tdp"),
            Self::RoundRobin => f.write_str("rr"),
            Self::MostFree { hold } => write!(f, "mfs:{}", hold.as_secs()),
            Self::ParentMostFree { hold } => write!(f, "pmfs:{}", hold.as_secs()),
            Self::TopDownMostFree { low, hold } => write!(f, "tdmfs:{low}:{}", hold.as_secs()),
            Self::MostFreeRoundRobin { low, hold } => write!(f, "mfsrr:{low}:{}", hold.as_secs()),
            Self::ParentMostFreeRoundRobin { low, hold } => {
                write!(f, "pmfsrr:{low}:{}", hold.as_secs())
            }
        }
    }
}

impl fmt::Display for CopyupPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TopDownParent => "tdp",
            Self::BottomUpParent => "bup",
            Self::BottomUp => "bu",
        })
    }
}

impl fmt::Display for SpillPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MostFree => "mfs",
            Self::ParentMostFree => "pmfs",
        })
    }
}

impl fmt::Display for DirOpaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whiteouted => "whiteouted",
            Self::Always => "always",
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aufs => "aufs",
            Self::Overlay => "overlay",
        })
    }
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Passthrough => "passthrough",
            Self::Cache => "cache",
            Self::Direct => "direct",
        })
    }
}

impl fmt::Display for OpenMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Answered => "answered",
            Self::None => "none",
        })
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(f, "{colon}{}:{}:{}", range.branch, range.mount, range.count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_take_suffixes() {
        for (text, bytes) in [
            ("0", 0),
            ("30", 30),
            ("1k", 1 << 10),
            ("100m", 100 << 20),
            ("2G", 2 << 30),
            ("1t", 1 << 40),
        ] {
            assert_eq!(size(text.as_bytes()), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "+1", "1x", "1.5g", "99999999999t"] {
            assert!(size(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn times_take_decimals() {
        assert_eq!(seconds(b"0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds(b"12"), Ok(Duration::from_secs(12)));
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "nan",
            "inf",
            "1e3",
            "0.0000000001",
            "99999999999999",
        ] {
            assert!(seconds(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn maps_accept_what_container_engines_write() {
        let map = id_map(b":0:1000:1:1:100000:65536").unwrap();
        assert_eq!(map.to_string(), "0:1000:1:1:100000:65536");
        assert_eq!(
            map.0[1],
            IdRange {
                branch: 1,
                mount: 100_000,
                count: 65536
            }
        );
        for text in [
            "",
            ":",
            "0:1",
            "0:1:0",
            "0:1:2:3",
            "0:4294967295:1",
            "0:0:10:5:100:1",
            "a:b:c",
        ] {
            assert!(id_map(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn policies_and_their_aliases() {
        let hold = Duration::from_secs(30);
        for (text, policy) in [
            ("tdp", CreatePolicy::TopDownParent),
            ("top-down-parent", CreatePolicy::TopDownParent),
            ("rr", CreatePolicy::RoundRobin),
            ("round-robin", CreatePolicy::RoundRobin),
            ("mfs", CreatePolicy::MostFree { hold }),
            ("mfs:30", CreatePolicy::MostFree { hold }),
            (
                "most-free-space:2",
                CreatePolicy::MostFree {
                    hold: Duration::from_secs(2),
                },
            ),
            (
                "tdmfs:1k",
                CreatePolicy::TopDownMostFree { low: 1024, hold },
            ),
            (
                "tdmfs:100m:10",
                CreatePolicy::TopDownMostFree {
                    low: 100 << 20,
                    hold: Duration::from_secs(10),
                },
            ),
            ("mfsrr:5", CreatePolicy::MostFreeRoundRobin { low: 5, hold }),
            ("pmfs", CreatePolicy::ParentMostFree { hold }),
            (
                "pmfsrr:4194304",
                CreatePolicy::ParentMostFreeRoundRobin { low: 4 << 20, hold },
            ),
        ] {
            assert_eq!(create_policy(text.as_bytes()), Ok(policy), "{text}");
        }
        for text in [
            "",
            "foo",
            "tdmfs",
            "mfs:",
            "mfs:3601",
            "mfs:1:2",
            "rr:1",
            "tdmfs:1:2:3",
            "mfsrr",
        ] {
            assert!(create_policy(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(copyup_policy(b"bottom-up"), Ok(CopyupPolicy::BottomUp));
        assert_eq!(
            copyup_policy(b"bottom-up-parent"),
            Ok(CopyupPolicy::BottomUpParent)
        );
        for (text, policy) in [
            ("", Some(SpillPolicy::MostFree)),
            ("true", Some(SpillPolicy::MostFree)),
            ("pmfs", Some(SpillPolicy::ParentMostFree)),
            ("0", None),
            ("false", None),
        ] {
            assert_eq!(spill_policy(text.as_bytes()), Ok(policy), "{text}");
        }
        assert!(spill_policy(b"rr").is_err());
    }

    proptest! {
        #[test]
        fn times_round_trip(secs in 0..=SECONDS_MAX, nanos in 0..1_000_000_000_u32) {
            let time = Duration::new(secs, nanos);
            prop_assert_eq!(seconds(seconds_text(time).as_bytes()), Ok(time));
        }

        #[test]
        fn values_never_panic(value: Vec<u8>) {
            let _ = (size(&value), seconds(&value), udba(&value), create_policy(&value), id_map(&value));
        }

        #[test]
        fn maps_of_any_numbers_never_panic(numbers: Vec<u32>) {
            let text: Vec<String> = numbers.iter().map(u32::to_string).collect();
            if let Ok(map) = id_map(text.join(":").as_bytes()) {
                prop_assert_eq!(id_map(map.to_string().as_bytes()), Ok(map));
            }
        }
    }
}
