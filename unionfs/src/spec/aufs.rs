//! The AUFS option grammar: a list of changes, which a mount folds over an empty union and a live
//! change applies to a running one.
//!
//! Source: aufs(5), "Mount Options". Beyond AUFS, a backslash makes `:`, `,`, `=` and itself part of
//! a path.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::parse::{Unknown, refuse, refuse_value, settings, unknown_option};
use super::table::{self, Action, BranchVerb};
use super::text::{self, Token};
use super::{
    BranchPerm, BranchSpec, Format, FormatWord, Grammar, MountFlags, MountSpec, Options, Setting,
    perm, value,
};
use crate::setup::SetupError;

/// A branch as an option writes it, before its place in the union is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBranch {
    /// Unescaped.
    pub path: PathBuf,
    /// `None`: it depends on the place, see [`NewBranch::at`].
    pub perm: Option<BranchPerm>,
}

/// One step of a change of a union.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `add:INDEX:BRANCH`
    AddBranch {
        /// Place among the branches, 0 is the top.
        index: usize,
        /// The branch.
        branch: NewBranch,
    },
    /// `append:BRANCH`, and each branch of `br=`.
    Append(NewBranch),
    /// `prepend:BRANCH`
    Prepend(NewBranch),
    /// `del:PATH`
    Del {
        /// The branch.
        path: PathBuf,
    },
    /// `mod:PATH=PERM`
    Mod {
        /// The branch.
        path: PathBuf,
        /// Its new permission and attributes.
        perm: BranchPerm,
    },
    /// Any other option.
    Set(Setting),
}

/// An option string, parsed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// To be made strictly in this order (aufs(5), "remount").
    pub changes: Vec<Change>,
    /// What the user should know, one line each.
    pub warnings: Vec<String>,
}

impl NewBranch {
    /// Parses `PATH[=PERM[+ATTR...]]`; the second value holds warnings.
    ///
    /// # Errors
    /// [`SetupError::Option`]: no path, an unknown permission word or attribute.
    pub fn parse(text: &OsStr) -> Result<(Self, Vec<String>), SetupError> {
        let whole = text.as_bytes();
        let (path, word) = text::cut(whole, b'=');
        let path = branch_path(whole, path)?;
        // `PATH=` leaves the permission out, as `PATH` does.
        let (perm, warnings) = match word.filter(|word| !word.is_empty()) {
            Some(word) => {
                let (perm, warnings) = branch_perm(whole, word)?;
                (Some(perm), warnings)
            }
            None => (None, Vec::new()),
        };
        Ok((Self { path, perm }, warnings))
    }

    /// The branch at its place. Without a permission word, the top of a union that is not mounted
    /// readonly is `rw`, and everything else is `ro`.
    ///
    /// `format`: see [`Options::format`].
    pub fn at(&self, index: usize, read_only: bool, format: Option<FormatWord>) -> BranchSpec {
        let default = if index == 0 && !read_only {
            BranchPerm::RW
        } else {
            BranchPerm::RO
        };
        let (perm, format) = formatted(self.perm.unwrap_or(default), format);
        BranchSpec {
            path: self.path.clone(),
            perm,
            format,
            workdir: None,
        }
    }

    /// `PATH=PERM`, or `PATH`, as [`NewBranch::parse`] reads it.
    pub fn to_option(&self) -> OsString {
        branch_option(&self.path, self.perm)
    }
}

impl BranchSpec {
    /// `PATH=PERM`, as an option writes it.
    pub fn to_option(&self) -> OsString {
        branch_option(&self.path, Some(self.perm))
    }
}

impl Change {
    /// The option that makes this change, as [`parse_change`] reads it.
    pub fn to_option(&self) -> OsString {
        match self {
            Self::AddBranch { index, branch } => {
                prefixed(&format!("add:{index}:"), &branch.to_option())
            }
            Self::Append(branch) => prefixed("append:", &branch.to_option()),
            Self::Prepend(branch) => prefixed("prepend:", &branch.to_option()),
            Self::Del { path } => prefixed("del:", &branch_option(path, None)),
            Self::Mod { path, perm } => prefixed("mod:", &branch_option(path, Some(*perm))),
            Self::Set(setting) => setting.to_option(),
        }
    }

    /// Makes a change of the branches of a union that is not mounted yet. Settings change nothing
    /// here: [`Setting::apply`] stores them.
    fn edit(&self, spec: &mut MountSpec) -> Result<(), SetupError> {
        let count = spec.branches.len();
        let insert = |spec: &mut MountSpec, index: usize, branch: &NewBranch| {
            if spec.branches.iter().any(|other| other.path == branch.path) {
                // Not as an option: it may be one of several in `br=`.
                let (what, wrong) = (branch.to_option(), "the branch is there already");
                return Err(refuse(what.as_bytes(), wrong, "each directory once"));
            }
            let branch = branch.at(index, spec.mount.read_only, spec.options.format);
            spec.branches.insert(index, branch);
            Ok(())
        };
        match self {
            Self::AddBranch { index, branch } if *index <= count => insert(spec, *index, branch),
            Self::AddBranch { .. } => {
                Err(self.refuse("no such place", format!("an index from 0 to {count}")))
            }
            Self::Append(branch) => insert(spec, count, branch),
            Self::Prepend(branch) => insert(spec, 0, branch),
            Self::Del { path } => {
                let index = self.position(spec, path)?;
                spec.branches.remove(index);
                Ok(())
            }
            Self::Mod { path, perm } => {
                let index = self.position(spec, path)?;
                let branch = &mut spec.branches[index];
                (branch.perm, branch.format) = formatted(*perm, spec.options.format);
                Ok(())
            }
            Self::Set(_) => Ok(()),
        }
    }

    fn position(&self, spec: &MountSpec, path: &Path) -> Result<usize, SetupError> {
        spec.branches
            .iter()
            .position(|branch| branch.path == path)
            .ok_or_else(|| self.refuse("no such branch", "a branch named before it, as in br="))
    }

    fn refuse(&self, wrong: &str, right: impl AsRef<str>) -> SetupError {
        refuse(self.to_option().as_bytes(), wrong, right)
    }
}

/// Parses the options of a live change.
///
/// # Errors
/// [`SetupError::Option`] that names the option; nothing is to be changed then.
pub fn parse_change(options: &OsStr) -> Result<Changes, SetupError> {
    parse(&text::tokens(options.as_bytes()), Unknown::Refuse)
}

/// What mount(8) adds to the options of a remount out of the mount table: it describes the mount as
/// it is.
const OF_THE_TABLE: &[&str] = &[
    "remount",
    "user_id",
    "group_id",
    "rootmode",
    "fd",
    "default_permissions",
    "allow_other",
    "blksize",
    "max_read",
    "defaults",
];

/// Parses the options of `mount -o remount,...`; `None` = they are those of a mount.
///
/// # Errors
/// As [`parse_change`].
pub fn parse_remount(options: &[OsString]) -> Option<Result<Changes, SetupError>> {
    let tokens = options.iter().flat_map(|o| text::tokens(o.as_bytes()));
    let mut tokens: Vec<Token<'_>> = tokens.collect();
    if !tokens.iter().any(|t| &*t.name() == "remount") {
        return None;
    }
    tokens.retain(|t| !OF_THE_TABLE.contains(&&*t.name()));
    Some(parse(&tokens, Unknown::Refuse))
}

/// The union that the options of a mount ask for: plain options first, then branches, each from
/// left to right.
pub(super) fn mount_spec(tokens: &[Token<'_>], unknown: Unknown) -> Result<MountSpec, SetupError> {
    let Changes { changes, warnings } = parse(tokens, unknown)?;
    let mut spec = MountSpec {
        grammar: Grammar::Aufs,
        branches: Vec::new(),
        options: Options::defaults(Grammar::Aufs),
        mount: MountFlags::default(),
        warnings,
    };
    for change in &changes {
        if let Change::Set(setting) = change {
            setting.apply(&mut spec.options, &mut spec.mount);
        }
    }
    for change in &changes {
        change.edit(&mut spec)?;
    }
    if spec.branches.is_empty() {
        return Err(refuse(
            b"-o",
            "no branch is left",
            "at least one, as in br=/rw=rw:/ro=ro",
        ));
    }
    Ok(spec)
}

fn parse(tokens: &[Token<'_>], unknown: Unknown) -> Result<Changes, SetupError> {
    let mut parsed = Changes::default();
    for token in tokens {
        match table::lookup(Grammar::Aufs, &token.name()) {
            Some(def) => match def.action {
                Action::Branch(verb) => branch_changes(verb, token, &def.usage(), &mut parsed)?,
                _ => {
                    let settings = settings(def, token, &mut parsed.warnings)?;
                    parsed.changes.extend(settings.into_iter().map(Change::Set));
                }
            },
            None if unknown == Unknown::Warn => {
                parsed.warnings.push(format!(
                    "unknown argument ignored: {}",
                    text::shown(token.raw)
                ));
            }
            None => return Err(unknown_option(Grammar::Aufs, token)),
        }
    }
    Ok(parsed)
}

/// The changes that one option about branches asks for.
fn branch_changes(
    verb: BranchVerb,
    token: &Token<'_>,
    usage: &str,
    parsed: &mut Changes,
) -> Result<(), SetupError> {
    let right = || format!("`{usage}`");
    if token.value.is_empty() {
        return Err(refuse(token.raw, "needs a value", right()));
    }
    let branch = |item: &[u8], parsed: &mut Changes| {
        if text::find(item, b':').is_some() {
            let right = format!("{}; a colon in a path is written \\:", right());
            return Err(refuse(token.raw, "takes one branch", right));
        }
        let (branch, warnings) = NewBranch::parse(OsStr::from_bytes(item))?;
        parsed.warnings.extend(warnings);
        Ok(branch)
    };
    let change = match verb {
        BranchVerb::List => {
            for item in text::split(token.value, b':') {
                let branch = branch(item, parsed)?;
                parsed.changes.push(Change::Append(branch));
            }
            return Ok(());
        }
        BranchVerb::Add => {
            let (index, item) = text::cut(token.value, b':');
            let Some(item) = item else {
                return Err(refuse(token.raw, "needs an index and a branch", right()));
            };
            let index = value::number(index, 0, u64::from(u16::MAX))
                .map_err(|problem| refuse_value(token.raw, &problem))?;
            Change::AddBranch {
                index: index as usize,
                branch: branch(item, parsed)?,
            }
        }
        BranchVerb::Append => Change::Append(branch(token.value, parsed)?),
        BranchVerb::Prepend => Change::Prepend(branch(token.value, parsed)?),
        BranchVerb::Del => Change::Del {
            path: branch_path(token.raw, token.value)?,
        },
        BranchVerb::Mod => {
            let (path, word) = text::cut(token.value, b'=');
            let path = branch_path(token.raw, path)?;
            let Some(word) = word else {
                return Err(refuse(token.raw, "needs a permission", right()));
            };
            let (perm, warnings) = branch_perm(token.raw, word)?;
            parsed.warnings.extend(warnings);
            Change::Mod { path, perm }
        }
    };
    parsed.changes.push(change);
    Ok(())
}

/// The permission and format of a branch where [`Options::format`] is this.
fn formatted(perm: BranchPerm, format: Option<FormatWord>) -> (BranchPerm, Option<Format>) {
    let guessed = format.filter(|word| *word == FormatWord::Auto);
    let fixed = format.and_then(FormatWord::fixed);
    let perm = BranchPerm {
        format: perm.format.or(guessed),
        ..perm
    };
    (perm, fixed.filter(|_| perm.writable()))
}

/// The path of a branch; `whole` is what a message shows.
fn branch_path(whole: &[u8], path: &[u8]) -> Result<PathBuf, SetupError> {
    if path.is_empty() {
        // Nothing cannot be shown as it is.
        let what = if whole.is_empty() { b"''" } else { whole };
        return Err(refuse(
            what,
            "a branch has no path",
            "PATH[=PERM], with `:` between branches",
        ));
    }
    Ok(text::path(path))
}

/// The permission of a branch, and warnings about attributes that were dropped.
fn branch_perm(whole: &[u8], word: &[u8]) -> Result<(BranchPerm, Vec<String>), SetupError> {
    let (perm, dropped) = perm::parse(word).map_err(|problem| refuse_value(whole, &problem))?;
    let warnings = dropped
        .into_iter()
        .map(|dropped| format!("{}: {dropped}", text::shown(whole)))
        .collect();
    Ok((perm, warnings))
}

fn branch_option(path: &Path, perm: Option<BranchPerm>) -> OsString {
    let mut option = Vec::new();
    text::escape_into(path.as_os_str().as_bytes(), &mut option);
    if let Some(perm) = perm {
        option.extend_from_slice(format!("={perm}").as_bytes());
    }
    OsString::from_vec(option)
}

fn prefixed(prefix: &str, rest: &OsStr) -> OsString {
    let mut option = OsString::from(prefix);
    option.push(rest);
    option
}

#[cfg(test)]
#[path = "aufs_tests.rs"]
mod tests;
