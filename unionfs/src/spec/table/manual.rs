//! What the manual says about each option: the table's rows once more, in whole sentences.
//!
//! `--help` has one line a row and no room for more. `docs/options.md` and, through it, the manual
//! page uaufs(5) are made of this; the tests below say how.

/// One option in the manual.
pub(super) struct Entry {
    /// The first name of its row in the table.
    pub name: &'static str,
    /// What holds if the option is not given; empty if that is said in the text or goes without saying.
    pub default: &'static str,
    /// What it does, in Markdown.
    pub text: &'static str,
}

const fn entry(name: &'static str, default: &'static str, text: &'static str) -> Entry {
    Entry {
        name,
        default,
        text,
    }
}

/// Every option that does something. The order is the table's.
#[rustfmt::skip]
pub(super) static ENTRIES: &[Entry] = &[
    entry("br", "", "the branches, topmost first"),
    entry("add", "", "insert a branch; index 0 is the top"),
    entry("append", "", "add a branch at the bottom"),
    entry("prepend", "", "add a branch on top"),
    entry("del", "", "remove a branch"),
    entry("mod", "", "change permission and attributes of a branch"),

    entry("lowerdir", "", "readonly layers, topmost first"),
    entry("lowerdir+", "", "one more readonly layer, below the others; a colon belongs to the path"),
    entry("datadir+", "", "one more data-only layer, below the others; a colon belongs to the path"),
    entry("upperdir", "", "the writable layer; without it the mount is readonly"),
    entry("workdir", "", "for work in progress; on the filesystem of `upperdir`, and required with it"),
    entry("redirect_dir", "", "`on`: directories of lower layers can be renamed; `off`, `follow` or `nofollow`: that is EXDEV"),

    entry("udba", "see above", "how changes made on a branch itself are noticed: never; names are checked again after SEC seconds; by watches. `fsnotify` is `notify`"),
    entry("watches", "65536", "`udba=notify`: most branch directories watched at a time; further ones are checked again after 1 s (fs.inotify.max_user_watches limits them, too)"),
    entry("create", "`tdp`", "the branch of new entries, see the policies below"),
    entry("cpup", "`tdp`", "the branch that copied-up files go to: `tdp` topmost with the parent, `bup` nearest above with the parent, `bu` nearest above"),
    entry("moveonenospc", "off", "a write, or something new, that fails with ENOSPC or EDQUOT goes on on another writable branch: the file is moved there whole, also while it is open (one of several names only upwards). `mfs` (or no value): the one with most free space; `pmfs`: those that hold the directory first. Excludes passthrough; as in mergerfs, `true` and `false` are understood"),
    entry("fhsm_sec", "30", "how often `uaufs fhsm` looks at the branches with `+fhsm`, in seconds, up to 3600"),
    entry("diropq", "`whiteouted`", "new directories are marked opaque only over a whiteout, or always (`w`, `a`)"),
    entry("dirwh", "3", "of a directory with more whiteouts than this, rmdir(2), and rename(2) over it, leave the whiteouts to a thread in the background"),
    entry("dirren", "see above", "directories that lie on several branches can be renamed, or EXDEV"),
    entry("dirperm1", "see above", "only the topmost directory's permission counts, or read and search permission of every branch's (decisions.md tells how)"),
    entry("plink", "on", "names of one lower file stay one file when copied up"),
    entry("shwh", "off", "the whiteouts and marks of branches on which they count are shown as names, `.wh.NAME`; on readonly mounts (`ro`), else refused"),
    entry("sum", "off", "statfs adds up all branches"),
    entry("wsum", "off", "taken for `sum`, with a warning: branches are not weighted"),
    entry("namelen", "see above", "longest name, 14 to 255"),
    entry("strict", "off", "a whiteout beside the entry it hides, or one that is no regular file, is EIO, and the name is not listed; else the entry wins, and a whiteout of any type hides what is below"),
    entry("format", "by form", "how writable branches record deletions: `.wh.NAME`, or 0/0 devices. `auto`: every branch that does not say it is read as what is found on it (see `+auto`)"),
    entry("supervise", "on", "a small process beside the daemon (`uaufs-watch`) takes the mount away when the daemon dies: what is asked meanwhile waits, and fails then; else a dead mount stays and answers ENOTCONN"),
    entry("droplvl", "", "AUFS form: 1 = `udba=none,dirperm1,nodirren`; 2 the same; 3 = that and `noplink`; negative levels bring the defaults back"),
    entry("ephemeral", "", "AUFS form: `droplvl=3`"),

    entry("io", "`auto`", "how file data travels: through the kernel alone, the page cache, or always to the daemon"),
    entry("open", "`auto`", "whether each open(2) is sent to the daemon"),
    entry("timeout", "by `udba`", "how long the kernel keeps names and attributes"),
    entry("writeback", "off", "the kernel collects writes; ENOSPC and EROFS are then reported late"),
    entry("volatile", "off", "nothing is synced: fast, and lost in a crash"),
    entry("fsync", "1", "`fsync=0` is `volatile`"),
    entry("threads", "cores, at most 4", "worker threads, 1 to 256"),
    entry("threaded", "1", "overlay form: `threaded=0` is `threads=1`"),

    entry("uidmapping", "", "user ids BRANCH.. on the branches show as MOUNT.. in the mount, N of them"),
    entry("gidmapping", "", "the same for groups"),
    entry("squash_to_uid", "", "every file shows this owner"),
    entry("squash_to_gid", "", "every file shows this group"),
    entry("squash_to_root", "", "both with 0"),
    entry("xattr_permissions", "0", "owners and modes are kept in `security.fuseoverlayfs.override_stat` (1) or `user.containers.override_stat` (2)"),
    entry("acl", "on", "POSIX ACLs"),

    entry("ro", "", "readonly, as in mount(8)"),
    entry("rw", "", "writable, as in mount(8)"),
    entry("suid", "", "set-user-id bits count, as in mount(8)"),
    entry("nosuid", "", "they do not"),
    entry("dev", "", "device nodes work, as in mount(8)"),
    entry("nodev", "", "they do not"),
    entry("exec", "", "programs can be run, as in mount(8)"),
    entry("noexec", "", "they cannot"),
    entry("allow_other", "", "other users may enter; the default is yes where possible"),
    entry("fsname", "", "the source shown in the mount table"),
    entry("context", "", "SELinux label, in quotes if it has commas"),
    entry("fscontext", "", "likewise, of the filesystem"),
    entry("defcontext", "", "likewise, of files without one"),
    entry("rootcontext", "", "likewise, of the root directory"),
];

#[cfg(test)]
mod tests {
    //! `docs/options.md` holds marked blocks that are made of the table. A test compares them; with
    //! `UPDATE_DOCS=1` in the environment (scripts/manual sets it) it writes them instead.

    use super::super::*;
    use super::*;
    use std::collections::BTreeMap;
    use std::fmt::Write as _;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/options.md");

    fn entry_of(def: &OptionDef) -> &'static Entry {
        ENTRIES
            .iter()
            .find(|entry| entry.name == def.names[0])
            .unwrap_or_else(|| panic!("spec/table/manual.rs lacks {}", def.names[0]))
    }

    /// "`dirren`, `nodirren`": what a user writes.
    fn written(def: &OptionDef) -> String {
        let forms = def.names.iter().flat_map(|name| {
            let no = matches!(def.action, Action::Toggle(_)).then(|| format!("`no{name}`"));
            std::iter::once(format!("`{name}{}`", def.value)).chain(no)
        });
        forms.collect::<Vec<_>>().join(", ")
    }

    fn cell(text: &str) -> String {
        text.replace('|', "\\|")
    }

    fn table_of(members: &[&OptionDef]) -> String {
        let defaults = members.iter().any(|def| !entry_of(def).default.is_empty());
        let mut text = String::from(match defaults {
            true => "| option | default | meaning |\n|--|--|--|\n",
            false => "| option | meaning |\n|--|--|\n",
        });
        for def in members {
            let entry = entry_of(def);
            let (option, meaning) = (cell(&written(def)), cell(entry.text));
            let _ = match defaults {
                true => writeln!(text, "| {option} | {} | {meaning} |", cell(entry.default)),
                false => writeln!(text, "| {option} | {meaning} |"),
            };
        }
        text
    }

    /// What the user is told about an option that does nothing; `None` if nothing is lost by it.
    fn caution(def: &OptionDef) -> Option<&'static str> {
        if let Action::Unused(_, why) = def.action {
            return Some(why);
        }
        let value = matches!(def.action, Action::Value(_)).then_some(&b"on"[..]);
        def.meaning(def.names[0], value).unwrap().caution
    }

    fn scope(def: &OptionDef) -> &'static str {
        match def.scope {
            Scope::Aufs => "AUFS form",
            Scope::Overlay => "overlay form",
            Scope::Both => "both forms",
        }
    }

    fn silent_list() -> String {
        let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for def in OPTIONS.iter().filter(|def| def.group == Group::Accepted) {
            if caution(def).is_none() {
                let names = def.names.iter().map(|name| format!("`{name}`"));
                lists.entry(scope(def)).or_default().extend(names);
            }
        }
        lists.iter().fold(String::new(), |mut text, (form, names)| {
            let _ = writeln!(text, "- {form}: {}", names.join(", "));
            text
        })
    }

    fn warned_table() -> String {
        let mut text = String::from("| option | form | what the warning says |\n|--|--|--|\n");
        for def in OPTIONS.iter().filter(|def| def.group == Group::Accepted) {
            if let Some(why) = caution(def) {
                // Such an option is silent where its value only says what happens anyway.
                let off = match def.action {
                    Action::Value(_) => " (not if it is `off` or `0`)",
                    _ => "",
                };
                let why = cell(why.strip_prefix("no effect: ").unwrap_or(why));
                let names: Vec<String> = def.names.iter().map(|n| format!("`{n}`")).collect();
                let form = scope(def);
                let _ = writeln!(text, "| {}{off} | {form} | {why} |", names.join(", "));
            }
        }
        text
    }

    fn refused_table() -> String {
        let mut text = String::from("| option | form | use instead |\n|--|--|--|\n");
        for def in OPTIONS {
            if let Action::Refused(instead) = def.action {
                let names: Vec<String> = def.names.iter().map(|n| format!("`{n}`")).collect();
                let (names, form) = (names.join(", "), scope(def));
                let _ = writeln!(text, "| {names} | {form} | {} |", cell(instead));
            }
        }
        text
    }

    /// What belongs between `<!-- options: NAME -->` and `<!-- end -->`.
    fn block(name: &str) -> String {
        let group = match name {
            "Branches" => Group::Branches,
            "Layers" => Group::Layers,
            "Union" => Group::Union,
            "Data" => Group::Data,
            "Owners" => Group::Ids,
            "Mount" => Group::Mount,
            "accepted" => return silent_list(),
            "warned" => return warned_table(),
            "refused" => return refused_table(),
            _ => panic!("docs/options.md: no such block: {name}"),
        };
        let members: Vec<&OptionDef> = OPTIONS.iter().filter(|def| def.group == group).collect();
        table_of(&members)
    }

    fn with_blocks(page: &str) -> String {
        let mut out = String::new();
        let mut inside = false;
        for line in page.lines() {
            let name = line
                .strip_prefix("<!-- options: ")
                .and_then(|rest| rest.strip_suffix(" -->"));
            inside &= line != "<!-- end -->";
            if !inside {
                let _ = writeln!(out, "{line}");
            }
            if let Some(name) = name {
                inside = true;
                let _ = write!(out, "\n{}\n", block(name));
            }
        }
        out
    }

    #[test]
    fn every_option_that_does_something_is_in_the_manual() {
        let mut left: Vec<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        for def in OPTIONS {
            if matches!(def.group, Group::Accepted | Group::Refused) {
                continue;
            }
            assert!(!entry_of(def).text.is_empty(), "{}", def.names[0]);
            left.retain(|name| *name != def.names[0]);
        }
        assert!(left.is_empty(), "not in the table: {left:?}");
    }

    #[test]
    fn the_page_of_options_is_up_to_date() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        let right = with_blocks(&page);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(PAGE, right).unwrap();
        } else if page != right {
            let line = page
                .lines()
                .zip(right.lines())
                .find(|(is, ought)| is != ought);
            panic!("docs/options.md is not what spec/table says: run scripts/manual ({line:?})");
        }
    }

    #[test]
    fn every_group_has_its_block_on_the_page() {
        let page = std::fs::read_to_string(PAGE).unwrap();
        for name in [
            "Branches", "Layers", "Union", "Data", "Owners", "Mount", "accepted", "warned",
            "refused",
        ] {
            let marker = format!("<!-- options: {name} -->\n");
            assert_eq!(page.matches(&marker).count(), 1, "{name}");
        }
    }
}
