//! From `-o` strings to a [`MountSpec`]: which grammar, and what both have in common.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use super::table::{self, Action, OptionDef};
use super::text::{self, Token};
use super::value::Problem;
use super::{Grammar, MountSpec, Setting, aufs, overlay};
use crate::setup::SetupError;

/// What to do about an option that is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Refuse to mount. The overlay grammar warns all the same, as its drop-in must.
    #[default]
    Refuse,
    /// Warn and go on (`mount -s`).
    Warn,
}

impl MountSpec {
    /// Parses the options of a mount; several `-o` are as good as one.
    ///
    /// # Errors
    /// [`SetupError::Option`] that names the option and says what would be right.
    pub fn parse(options: &[OsString]) -> Result<Self, SetupError> {
        Self::parse_with(options, Unknown::Refuse)
    }

    /// As [`MountSpec::parse`], with a choice about unknown options.
    ///
    /// # Errors
    /// As [`MountSpec::parse`].
    pub fn parse_with(options: &[OsString], unknown: Unknown) -> Result<Self, SetupError> {
        let tokens: Vec<Token<'_>> = options
            .iter()
            .flat_map(|option| text::tokens(option.as_bytes()))
            .collect();
        match grammar(&tokens)? {
            Grammar::Aufs => aufs::mount_spec(&tokens, unknown),
            Grammar::Overlay => overlay::mount_spec(&tokens),
        }
    }
}

/// The grammar of the first option that names a branch or layer.
fn grammar(tokens: &[Token<'_>]) -> Result<Grammar, SetupError> {
    let names_branch = |grammar, token: &Token<'_>| {
        table::lookup(grammar, &token.name())
            .is_some_and(|def| matches!(def.action, Action::Branch(_) | Action::Layer(_)))
    };
    for token in tokens {
        for grammar in [Grammar::Aufs, Grammar::Overlay] {
            if names_branch(grammar, token) {
                return Ok(grammar);
            }
        }
    }
    // A misspelt `br=` or `lowerdir=` is the likeliest reason.
    let known = |token: &Token<'_>| {
        [Grammar::Aufs, Grammar::Overlay]
            .iter()
            .any(|&grammar| table::lookup(grammar, &token.name()).is_some())
    };
    match tokens.iter().find(|token| !known(token)) {
        Some(token) => {
            let near = |grammar| table::suggestion(grammar, &token.name());
            Err(unknown_name(
                token,
                near(Grammar::Overlay).or_else(|| near(Grammar::Aufs)),
            ))
        }
        None => Err(refuse(
            b"-o",
            "no branches are given",
            "-o br=/rw=rw:/ro=ro, or -o lowerdir=A:B,upperdir=U,workdir=W",
        )),
    }
}

/// An error about `what`; its errno is what mount(2) would say.
pub(super) fn refuse(what: &[u8], wrong: &str, right: impl AsRef<str>) -> SetupError {
    SetupError::Option {
        what: text::shown(what),
        hint: format!("{wrong} (EINVAL): {}", right.as_ref()),
    }
}

/// [`refuse`] for a value that was looked at.
pub(super) fn refuse_value(what: &[u8], problem: &Problem) -> SetupError {
    refuse(what, &problem.wrong, &problem.right)
}

/// The error for an option that `grammar` does not know.
pub(super) fn unknown_option(grammar: Grammar, token: &Token<'_>) -> SetupError {
    let name = token.name();
    let (this, other, its) = match grammar {
        Grammar::Aufs => ("br=", Grammar::Overlay, "lowerdir="),
        Grammar::Overlay => ("lowerdir=", Grammar::Aufs, "br="),
    };
    if table::lookup(other, &name).is_some() {
        let right = format!("it belongs to the {its} form, and a mount is written in one of them");
        return refuse(token.raw, &format!("no option of the {this} form"), right);
    }
    unknown_name(token, table::suggestion(grammar, &name))
}

fn unknown_name(token: &Token<'_>, suggestion: Option<String>) -> SetupError {
    let right = if token.raw.starts_with(b"/") {
        "branches are written br=/rw=rw:/ro=ro".to_owned()
    } else if let Some(near) = suggestion {
        format!("did you mean `{near}`?")
    } else {
        "`uaufs --help` lists the options".to_owned()
    };
    refuse(token.raw, "unknown option", right)
}

/// What an option outside the list of branches sets; what there is to say goes to `warnings`.
pub(super) fn settings(
    def: &OptionDef,
    token: &Token<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Setting>, SetupError> {
    if token.separator == Some(b':') && !matches!(def.action, Action::Ignored | Action::Refused(_))
    {
        let right = format!("`{}`", def.usage());
        return Err(refuse(token.raw, "only branches follow a colon", right));
    }
    let value = token.separator.map(|_| token.value);
    let meaning = def
        .meaning(&token.name(), value)
        .map_err(|problem| refuse_value(token.raw, &problem))?;
    if let Some(caution) = meaning.caution {
        warnings.push(format!("{}: {caution}", text::shown(token.raw)));
    }
    Ok(meaning.settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<MountSpec, String> {
        let options: Vec<OsString> = options.iter().map(OsString::from).collect();
        MountSpec::parse(&options).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_branch_option_tells_the_grammar() {
        for (options, grammar) in [
            (&["ro,nosuid", "br:/a"][..], Grammar::Aufs),
            (&["udba=none,dirs=/a"], Grammar::Aufs),
            (&["append:/a=rw"], Grammar::Aufs),
            (
                &["workdir=/w", "upperdir=/u", "lowerdir=/l"],
                Grammar::Overlay,
            ),
            (&["timeout=1,lowerdir=/l"], Grammar::Overlay),
        ] {
            assert_eq!(
                parse(options).map(|spec| spec.grammar),
                Ok(grammar),
                "{options:?}"
            );
        }
    }

    #[test]
    fn without_branches_both_forms_are_shown() {
        let message = "-o: no branches are given (EINVAL): -o br=/rw=rw:/ro=ro, \
                       or -o lowerdir=A:B,upperdir=U,workdir=W";
        for options in [&[][..], &[""], &["ro", "udba=none"], &["xino=off"]] {
            assert_eq!(parse(options).unwrap_err(), message, "{options:?}");
        }
    }

    #[test]
    fn a_misspelt_branch_option_is_named() {
        assert_eq!(
            parse(&["lowdir=/a,ro"]).unwrap_err(),
            "lowdir=/a: unknown option (EINVAL): did you mean `lowerdir`?"
        );
        assert_eq!(
            parse(&["/a=rw:/b=ro"]).unwrap_err(),
            "/a=rw:/b=ro: unknown option (EINVAL): branches are written br=/rw=rw:/ro=ro"
        );
    }

    #[test]
    fn the_grammars_do_not_mix() {
        assert_eq!(
            parse(&["br=/a=rw,lowerdir=/b"]).unwrap_err(),
            "lowerdir=/b: no option of the br= form (EINVAL): it belongs to the lowerdir= form, \
             and a mount is written in one of them"
        );
        assert_eq!(
            parse(&["lowerdir=/b,append:/c=ro"]).unwrap_err(),
            "append:/c=ro: no option of the lowerdir= form (EINVAL): it belongs to the br= form, \
             and a mount is written in one of them"
        );
    }
}
