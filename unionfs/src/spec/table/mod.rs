//! The table of options: looked up by the parsers, printed by `--help`, searched for suggestions.

mod list;
#[cfg(test)]
mod manual;

use std::fmt::Write as _;

use super::value::Problem;
use super::{Grammar, Setting, text};
use list::OPTIONS;

/// Which grammar knows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Aufs,
    Overlay,
    Both,
}

impl Scope {
    fn covers(self, grammar: Grammar) -> bool {
        match self {
            Self::Both => true,
            Self::Aufs => grammar == Grammar::Aufs,
            Self::Overlay => grammar == Grammar::Overlay,
        }
    }
}

/// Under which heading `--help` shows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Branches,
    Layers,
    Union,
    Data,
    Ids,
    Mount,
    Accepted,
    /// Not shown.
    Refused,
}

impl Group {
    /// Those that are shown, with their headings.
    const ALL: [(Self, &str); 7] = [
        (Self::Branches, "Branches (AUFS form)"),
        (Self::Layers, "Layers (overlay form)"),
        (Self::Union, "Union"),
        (Self::Data, "Data and caching"),
        (Self::Ids, "Owners"),
        (Self::Mount, "Mount flags"),
        (Self::Accepted, "Accepted for compatibility"),
    ];
}

/// What is done with the branches of an option of the AUFS grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BranchVerb {
    /// `br`, `dirs`
    List,
    /// `add`, `ins`
    Add,
    /// `append`
    Append,
    /// `prepend`
    Prepend,
    /// `del`
    Del,
    /// `mod`
    Mod,
}

/// Which directories an option of the overlay grammar names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerKey {
    /// `lowerdir`
    Lower,
    /// `lowerdir+`
    LowerOne,
    /// `datadir+`
    DataOne,
    /// `upperdir`
    Upper,
    /// `workdir`
    Work,
}

/// What a value means.
pub(super) struct Meaning {
    /// Fields to set.
    pub settings: Vec<Setting>,
    /// What the user should know: why it has no effect, or not quite the one expected.
    pub caution: Option<&'static str>,
}

impl Meaning {
    const NOTHING: Self = Self {
        settings: Vec::new(),
        caution: None,
    };

    fn no_effect(why: &'static str) -> Self {
        Self {
            caution: Some(why),
            ..Self::NOTHING
        }
    }
}

impl From<Setting> for Meaning {
    fn from(setting: Setting) -> Self {
        vec![setting].into()
    }
}

impl From<Vec<Setting>> for Meaning {
    fn from(settings: Vec<Setting>) -> Self {
        Self {
            settings,
            caution: None,
        }
    }
}

/// What an option does.
#[derive(Clone, Copy)]
pub(super) enum Action {
    /// Changes the list of branches (AUFS).
    Branch(BranchVerb),
    /// Names directories (overlay).
    Layer(LayerKey),
    /// `name` and `noname`.
    Toggle(fn(bool) -> Setting),
    /// `name`, without a value.
    Flag(fn() -> Meaning),
    /// `name=value`.
    Value(fn(&[u8]) -> Result<Meaning, Problem>),
    /// Nothing, whatever the value; nothing is lost by it either.
    Ignored,
    /// Nothing, and the user is told why.
    NoEffect(&'static str),
    /// The same, after a look at the value.
    Unused(fn(&[u8]) -> Result<u64, Problem>, &'static str),
    /// An error that says what to use instead.
    Refused(&'static str),
}

/// One row of the table.
pub(super) struct OptionDef {
    /// The name, then its synonyms.
    names: &'static [&'static str],
    /// What follows the name, as `--help` shows it: `=SEC`, or `[=0|1]` if it can be left out.
    value: &'static str,
    scope: Scope,
    group: Group,
    help: &'static str,
    /// What it does.
    pub action: Action,
}

impl OptionDef {
    /// How the option is written, as in `udba=none|reval[:SEC]|notify`.
    pub fn usage(&self) -> String {
        let no = if matches!(self.action, Action::Toggle(_)) {
            "[no]"
        } else {
            ""
        };
        format!("{no}{}{}", self.names[0], self.value)
    }

    /// What this option means with the given value.
    ///
    /// `name` tells `plink` from `noplink`; `value` is `None` if no value was written. Options about
    /// branches and layers mean nothing here: their own grammar reads them.
    pub fn meaning(&self, name: &str, value: Option<&[u8]>) -> Result<Meaning, Problem> {
        match (self.action, value) {
            (Action::Toggle(_) | Action::Flag(_), Some(_)) => Err(Problem::new(
                "takes no value",
                format!("`{}`", self.usage()),
            )),
            (Action::Toggle(set), None) => Ok(set(self.names.contains(&name)).into()),
            (Action::Flag(set), None) => Ok(set()),
            (Action::Value(_) | Action::Unused(..), None | Some(b""))
                if !self.value.starts_with('[') =>
            {
                Err(Problem::new("needs a value", format!("`{}`", self.usage())))
            }
            (Action::Value(read), value) => read(value.unwrap_or_default()),
            (Action::Unused(check, why), value) => {
                check(value.unwrap_or_default()).map(|_| Meaning::no_effect(why))
            }
            (Action::NoEffect(why), _) => Ok(Meaning::no_effect(why)),
            (Action::Refused(instead), _) => Err(Problem::new("is not supported", instead)),
            (Action::Ignored | Action::Branch(_) | Action::Layer(_), _) => Ok(Meaning::NOTHING),
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.contains(&name)
            || matches!(self.action, Action::Toggle(_))
                && name
                    .strip_prefix("no")
                    .is_some_and(|name| self.names.contains(&name))
    }

    /// Every name a user can write, for suggestions.
    fn spellings(&self) -> impl Iterator<Item = String> {
        let negated = matches!(self.action, Action::Toggle(_));
        self.names.iter().flat_map(move |name| {
            std::iter::once((*name).to_owned()).chain(negated.then(|| format!("no{name}")))
        })
    }
}

/// The option of that name in that grammar.
pub(super) fn lookup(grammar: Grammar, name: &str) -> Option<&'static OptionDef> {
    // Private words of other programs in fstab (mount(8), "x-*").
    let name = if name.starts_with("x-") || name.starts_with("X-") {
        "x-*"
    } else {
        name
    };
    OPTIONS
        .iter()
        .find(|def| def.scope.covers(grammar) && def.is_named(name))
}

/// The known name that is nearest to an unknown one.
pub(super) fn suggestion(grammar: Grammar, name: &str) -> Option<String> {
    let known: Vec<String> = OPTIONS
        .iter()
        .filter(|def| def.scope.covers(grammar))
        .flat_map(OptionDef::spellings)
        .collect();
    text::nearest(name, known.iter().map(String::as_str)).map(str::to_owned)
}

/// The options as `--help` shows them: a heading and one line each.
pub fn help() -> String {
    let mut text = String::new();
    for (group, heading) in Group::ALL {
        // Writing to a String cannot fail.
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}{heading}:");
        let members = OPTIONS.iter().filter(|def| def.group == group);
        if group == Group::Accepted {
            let names: Vec<&str> = members.flat_map(|def| def.names).copied().collect();
            wrap(&mut text, &names);
            continue;
        }
        for def in members {
            let usage = def.usage();
            let _ = match usage.len() {
                ..=27 => writeln!(text, "  {usage:<27} {}", def.help),
                _ => writeln!(text, "  {usage}\n{:30}{}", "", def.help),
            };
        }
    }
    text
}

/// Writes words into indented lines of at most 80 characters.
fn wrap(text: &mut String, words: &[&str]) {
    let mut column = 0;
    for word in words {
        if column > 0 && column + 1 + word.len() > 80 {
            text.push('\n');
            column = 0;
        }
        text.push_str(if column == 0 { "  " } else { " " });
        text.push_str(word);
        column += 1 + word.len() + usize::from(column == 0);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_name_is_listed_twice_in_one_grammar() {
        for grammar in [Grammar::Aufs, Grammar::Overlay] {
            let mut seen = HashSet::new();
            for def in OPTIONS.iter().filter(|def| def.scope.covers(grammar)) {
                for name in def.spellings() {
                    assert!(seen.insert(name.clone()), "{name} in {grammar:?}");
                }
            }
        }
    }

    #[test]
    fn every_row_that_does_something_is_explained() {
        for def in OPTIONS {
            let silent = matches!(def.group, Group::Accepted | Group::Refused);
            assert_eq!(def.help.is_empty(), silent, "{}", def.names[0]);
            assert!(
                def.help.len() <= 50,
                "{} is explained too broadly",
                def.names[0]
            );
        }
    }

    #[test]
    fn values_are_announced_by_what_reads_them() {
        for def in OPTIONS {
            let takes_value = !def.value.is_empty();
            match def.action {
                Action::Toggle(_) | Action::Flag(_) => assert!(!takes_value, "{}", def.names[0]),
                Action::Value(_) | Action::Branch(_) | Action::Layer(_) => {
                    assert!(takes_value, "{}", def.names[0]);
                }
                Action::Ignored | Action::NoEffect(_) | Action::Unused(..) | Action::Refused(_) => {
                }
            }
        }
    }

    #[test]
    fn help_fits_a_terminal_and_names_every_option() {
        let help = help();
        assert!(help.lines().all(|line| line.len() <= 80), "{help}");
        for def in OPTIONS.iter().filter(|def| def.group != Group::Refused) {
            assert!(help.contains(def.names[0]), "{}", def.names[0]);
        }
    }
}
