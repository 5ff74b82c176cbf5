//! The differences that are known, one by one, each with its reason. Nothing else is passed over.

use super::exec::{Outcome, Place};
use super::line::Line;
use super::sys;
use super::tree::{Identity, Tree};
use std::collections::{BTreeSet, HashSet};
use std::os::fd::AsRawFd;

/// One of them.
pub struct Known {
    pub id: &'static str,
    /// Whose it is: told in the table.
    #[cfg_attr(not(test), allow(dead_code))]
    pub whose: Whose,
    pub reason: &'static str,
}

/// Who does something else than an ordinary filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Union,
    Overlayfs,
}

/// The table of docs/fuzzing.md.
pub const KNOWN: &[Known] = &[
    Known {
        id: "overlayfs-dir-links",
        whose: Whose::Overlayfs,
        reason: "a merged directory has link count 1",
    },
    Known {
        id: "overlayfs-listed-numbers",
        whose: Whose::Overlayfs,
        reason: "listings tell other inode numbers than stat",
    },
    Known {
        id: "overlayfs-rename",
        whose: Whose::Overlayfs,
        reason: "a merged directory whose redirect would be longer than 256 bytes is not renamed (EXDEV); from then on the trees are not compared",
    },
    Known {
        id: "overlayfs-listed-whiteouts",
        whose: Whose::Overlayfs,
        reason: "whiteouts in a directory that lies on one layer only are listed, though they cannot be looked up",
    },
    Known {
        id: "hidden-names-swap",
        whose: Whose::Union,
        reason: "pseudo-links of a file of which some names are hidden stay pseudo-links, which overlayfs does not know: the branches are not given to it",
    },
    Known {
        id: "aufs-root-time",
        whose: Whose::Union,
        reason: "in the AUFS form the root has the time of the mount, at which the union's own files are made in it: it is set anew everywhere",
    },
    Known {
        id: "aufs-passes-over-files",
        whose: Whose::Overlayfs,
        reason: "in the AUFS form a directory is merged with those below a file of its name; overlayfs is left out",
    },
    Known {
        id: "swap-link-counts",
        whose: Whose::Union,
        reason: "on the branches of the other, names that were removed still count, and so does the one in overlayfs's index",
    },
    Known {
        id: "swap-index",
        whose: Whose::Overlayfs,
        reason: "that names of a lower file are one is told by its index alone, which uaufs does not read: on its branches files that had several names are not compared",
    },
    Known {
        id: "overlayfs-revives",
        whose: Whose::Overlayfs,
        reason: "changing the attributes of an open lower device that was removed brings it back; from then on the trees are not compared",
    },
    Known {
        id: "mapped-capabilities",
        whose: Whose::Union,
        reason: "data written through a shared mapping takes file capabilities away when the kernel hands it over: such files are not mapped for writing",
    },
    Known {
        id: "special-data",
        whose: Whose::Union,
        reason: "a written fifo gets no new time, on overlayfs neither: the data of fifos and devices is not compared",
    },
    Known {
        id: "directory-positions",
        whose: Whose::Union,
        reason: "positions in directories are each filesystem's own: they are only given back to it",
    },
    Known {
        id: "overlayfs-no-acl",
        whose: Whose::Overlayfs,
        reason: "an ACL that is not there cannot be removed (ENODATA)",
    },
    Known {
        id: "root-opaque",
        whose: Whose::Union,
        reason: "an opaque mark in the root of a layer counts, as in images; overlayfs ignores it: none is made",
    },
    Known {
        id: "overlayfs-rmdir",
        whose: Whose::Overlayfs,
        reason: "a directory on one layer only that holds nothing but whiteouts is not empty; from then on the trees are not compared",
    },
    Known {
        id: "overlayfs-unlinked-links",
        whose: Whose::Overlayfs,
        reason: "an open file of a lower layer that was unlinked keeps its link count",
    },
    Known {
        id: "overlayfs-dir-times",
        whose: Whose::Overlayfs,
        reason: "what it does to prepare a change, also one that fails then, gives directories a new time",
    },
    Known {
        id: "overlayfs-holes",
        whose: Whose::Overlayfs,
        reason: "lseek finds no holes, or others, in data that was just copied up; from then on the trees are not compared",
    },
    Known {
        id: "overlayfs-old-mapping",
        whose: Whose::Overlayfs,
        reason: "a file that was opened for reading before it was copied up is mapped from its lower layer afterwards, too",
    },
    Known {
        id: "overlayfs-removed",
        whose: Whose::Overlayfs,
        reason: "changing the attributes of an open lower file or directory that was removed may be EEXIST or ENOTDIR; from then on the trees are not compared",
    },
    Known {
        id: "overlayfs-acl-setgid",
        whose: Whose::Overlayfs,
        reason: "removing an ACL takes the set-group-id bit away from who is not in the group, also where there is none; from then on the trees are not compared",
    },
    Known {
        id: "unwritten-holes",
        whose: Whose::Union,
        reason: "space that was set aside and not written is a hole to lseek as long as nothing of it is in the page cache of the branch, where the daemon reads more, or less, than others; the run ends",
    },
    Known {
        id: "chown-of-nothing",
        whose: Whose::Union,
        reason: "chown(2) with neither owner nor group takes no set-id bits away for root, is no error for strangers, and takes the bits away for them only while somebody may be writing past the daemon (io=passthrough): the kernel does not say what it is; it is not made",
    },
    Known {
        id: "removed-directory-time",
        whose: Whose::Union,
        reason: "a removed directory that is open has a new time: the marks in it were removed",
    },
    Known {
        id: "direct-alignment",
        whose: Whose::Union,
        reason: "O_DIRECT at offsets that are no multiples of a block works through the daemon: only aligned reads and writes are made",
    },
    Known {
        id: "long-directory-names",
        whose: Whose::Union,
        reason: "in the AUFS form a directory that takes a name of more than 251 bytes, of which the whiteout is a device, may be EXDEV; the run ends",
    },
    Known {
        id: "fuse-collapse",
        whose: Whose::Union,
        reason: "FUSE passes on neither FALLOC_FL_COLLAPSE_RANGE nor FALLOC_FL_INSERT_RANGE: EOPNOTSUPP",
    },
];

/// The kernel refuses this for the union; for the others it is left out.
pub fn refused_by_fuse(line: &Line) -> bool {
    let mut args = line.args();
    line.verb() == "falloc"
        && args.word().is_ok()
        && matches!(args.text(), Ok("collapse" | "insert"))
}

/// Is this difference between an ordinary filesystem and another one known?
pub fn excuse(line: &Line, whose: Whose, want: &Outcome, got: &Outcome) -> Option<&'static str> {
    match whose {
        Whose::Union => match (line.verb(), &got.answer) {
            ("rename", Err(libc::EXDEV)) if want.answer.is_ok() && line.has_long_name() => {
                Some("long-directory-names")
            }
            (_, Ok(new)) if want.dir_links == [0] && only_time_differs(want, new) => {
                Some("removed-directory-time")
            }
            _ => None,
        },
        Whose::Overlayfs => overlayfs(line, want, got),
    }
}

fn overlayfs(line: &Line, want: &Outcome, got: &Outcome) -> Option<&'static str> {
    if want.answer == got.answer {
        return Some("overlayfs-dir-links");
    }
    match (line.verb(), &want.answer, &got.answer) {
        ("rename", _, Err(libc::EXDEV)) => Some("overlayfs-rename"),
        ("rmdir" | "rename", Ok(_), Err(libc::ENOTEMPTY)) => Some("overlayfs-rmdir"),
        ("seek", _, _) => Some("overlayfs-holes"),
        (verb, Ok(old), Err(libc::ENOTDIR | libc::EEXIST))
            if ATTRIBUTES.contains(&verb)
                && (old.contains(" links 0") || want.dir_links == [0]) =>
        {
            Some("overlayfs-removed")
        }
        ("mprivate", Ok(want), Ok(got)) if after_mapped(want) == after_mapped(got) => {
            Some("overlayfs-old-mapping")
        }
        (_, Ok(old), Ok(new)) if old.replace(" links 0 ", " links 1 ") == *new => {
            Some("overlayfs-unlinked-links")
        }
        (_, Ok(_), Ok(new)) if got.dir_links.len() == 1 && only_time_differs(want, new) => {
            Some("overlayfs-dir-times")
        }
        ("ls" | "fls", Ok(want), Ok(got)) if without_devices(got, want) => {
            Some("overlayfs-listed-whiteouts")
        }
        ("seekdir", Ok(_), Ok(got)) if got.ends_with(" names") => {
            Some("overlayfs-listed-whiteouts")
        }
        ("rmxattr" | "frmxattr", Ok(old), Ok(new))
            if line.names_acl() && without_setgid(old) == *new =>
        {
            Some("overlayfs-acl-setgid")
        }
        ("rmxattr" | "frmxattr", Ok(_), Err(libc::ENODATA)) if line.names_acl() => {
            Some("overlayfs-no-acl")
        }
        _ => None,
    }
}

/// Do two answers of lseek differ because of what is in the page cache? `native`: the file that was
/// asked.
pub fn is_unwritten_hole(line: &Line, want: &Outcome, got: &Outcome, native: &Place) -> bool {
    let mut args = line.args();
    let Ok(slot) = args.slot() else {
        return false;
    };
    let file = native.slots[slot].as_ref().map(|slot| slot.fd.as_raw_fd());
    line.verb() == "seek"
        && matches!(
            line.words.last().map(Vec::as_slice),
            Some(b"hole" | b"data")
        )
        && (want.answer.is_ok() || got.answer.is_ok())
        && file.is_some_and(|fd| sys::has_unwritten(fd).unwrap_or(false))
}

/// A description of a file with the set-group-id bit taken away.
fn without_setgid(text: &str) -> String {
    let (mode, rest) = text.split_once(' ').unwrap_or((text, ""));
    let bits = u32::from_str_radix(mode, 8).unwrap_or(0) & !libc::S_ISGID;
    format!("{bits:o} {rest}")
}

/// What came after a mapping, of which the length and the data are told first.
fn after_mapped(text: &str) -> Option<&str> {
    let (_, mapped) = text.split_once(", mapped ")?;
    mapped.split_once(", ").map(|(_, rest)| rest)
}

/// Is the only difference that directories have a new time, at the end of what is told of them?
fn only_time_differs(want: &Outcome, new: &str) -> bool {
    let Ok(old) = &want.answer else {
        return false;
    };
    let cut = |text: &str| text.rsplit_once(' ').map(|(rest, _)| rest.to_owned());
    let same = |old: &str, new: &str| {
        old == new || old.starts_with("40") && new.ends_with(" now") && cut(old) == cut(new)
    };
    let (old, new) = (old.split(", "), new.split(", "));
    old.clone().count() == new.clone().count() && old.zip(new).all(|(old, new)| same(old, new))
}

/// Takes out directories of overlayfs that have a new time.
pub fn drop_new_times(found: &mut Vec<String>, tree: &Tree) {
    let is_dir = |text: &String| {
        let path = text.split(": mtime is now, ").next().unwrap_or_default();
        let item = tree.iter().find(|(p, _)| super::line::escape(p) == path);
        text.contains(": mtime is now, ") && item.is_some_and(|(_, i)| i.dir_links.is_some())
    };
    found.retain(|text| !is_dir(text));
}

/// Is the only difference of two listings that one has some more character devices?
fn without_devices(more: &str, fewer: &str) -> bool {
    let fewer: BTreeSet<&str> = fewer.split(' ').collect();
    let more: BTreeSet<&str> = more.split(' ').collect();
    let device = format!(":{}", libc::DT_CHR);
    fewer.is_subset(&more) && more.difference(&fewer).all(|e| e.ends_with(&device))
}

/// Do the trees differ after this?
pub fn parts_trees(id: &str) -> bool {
    matches!(
        id,
        "overlayfs-rename"
            | "overlayfs-rmdir"
            | "long-directory-names"
            | "overlayfs-holes"
            | "overlayfs-acl-setgid"
            | "overlayfs-removed"
            | "unwritten-holes"
    )
}

/// Why a known difference is none to mend.
pub fn reason(id: &str) -> &'static str {
    let known = KNOWN.iter().find(|k| k.id == id);
    known.map_or("NOT IN THE TABLE", |k| k.reason)
}

/// Takes out higher link counts: who has not seen names go does not know that they are gone, or
/// sees one more in the index of overlayfs.
pub fn drop_more_links(found: &mut Vec<String>) {
    found.retain(|text| {
        let counts = text.split_once(": links is ").map(|(_, c)| c);
        let Some((got, want)) = counts.and_then(|c| c.split_once(", should be ")) else {
            return true;
        };
        got.parse::<u32>().ok() <= want.parse::<u32>().ok()
    });
}

/// Takes out files with several names, which only the index of overlayfs holds together.
pub fn drop_linked(found: &mut Vec<String>, tree: &Tree, linked: &HashSet<Identity>) {
    found.retain(|text| {
        let item = tree
            .iter()
            .find(|(path, _)| text.starts_with(&(super::line::escape(path) + ": ")));
        !item.is_some_and(|(_, i)| linked.contains(&i.identity))
    });
}

/// What changes the attributes of an open file.
const ATTRIBUTES: [&str; 5] = ["fchmod", "fchown", "futimens", "fsetxattr", "frmxattr"];

/// Does overlayfs perhaps bring back a file that was removed?
pub fn revives(line: &Line, want: &Outcome) -> bool {
    let gone = |text: &String| text.contains(" links 0");
    ATTRIBUTES.contains(&line.verb()) && want.answer.as_ref().is_ok_and(gone)
}

/// Takes the whiteouts that overlayfs lists out of its tree.
pub fn drop_listed_whiteouts(tree: &mut Tree) {
    tree.retain(|_, item| {
        let of = |name: &str| item.fields.get(name).map(String::as_str);
        !(of("error") == Some("ENOENT") && of("listed kind") == Some("2"))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_difference_is_explained_in_the_table() {
        let page = include_str!("../../docs/fuzzing.md");
        for known in KNOWN {
            let whose = match known.whose {
                Whose::Union => "uaufs",
                Whose::Overlayfs => "overlayfs",
            };
            let row = format!("| `{}` | {whose} | {} |", known.id, known.reason);
            assert!(page.contains(&row), "docs/fuzzing.md lacks the row\n{row}");
        }
        assert_eq!(page.matches("\n| `").count(), KNOWN.len(), "rows too many");
    }
}
