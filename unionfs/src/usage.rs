//! Errors in the command line on one line, for both programs.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What was wrong, and where to read what would be right. `name` is what was called, with its
/// subcommand.
pub fn one_line(name: &str, error: &clap::Error) -> String {
    let help = format!("`{name} --help` shows the usage");
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let argument = context(ContextKind::InvalidArg);
    let value = context(ContextKind::InvalidValue);
    let line = match error.kind() {
        ErrorKind::MissingRequiredArgument => format!("missing: {argument}: {help}"),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("it is not said what is to be done: {help}")
        }
        ErrorKind::UnknownArgument if argument.starts_with('-') => {
            format!("{argument}: unknown argument: {help}")
        }
        // One argument too many, or the wrong command of a subcommand.
        ErrorKind::UnknownArgument => format!("{argument}: not expected here: {help}"),
        ErrorKind::InvalidSubcommand => {
            let named = context(ContextKind::InvalidSubcommand);
            format!("{named}: no such command: {help}")
        }
        ErrorKind::InvalidValue if value.is_empty() => {
            format!("{argument}: the value is missing: {help}")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let usable = match context(ContextKind::ValidValue) {
                usable if usable.is_empty() => String::new(),
                usable => format!(" (it takes: {usable})"),
            };
            format!("{argument}: `{value}` cannot be used{usable}: {help}")
        }
        ErrorKind::TooManyValues => format!("{value}: one argument too many: {help}"),
        ErrorKind::ArgumentConflict => match context(ContextKind::PriorArg) {
            prior if prior == argument => format!("{argument} cannot be given twice: {help}"),
            prior => format!("{argument} cannot be given with {prior}: {help}"),
        },
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("{}: {help}", first.trim_start_matches("error: "))
        }
    };
    line.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    #[test]
    fn a_command_that_does_not_exist_is_named() {
        let program = Command::new("p").subcommand_required(true);
        let program = program.subcommand(Command::new("run"));
        let error = program.try_get_matches_from(["p", "rum"]).unwrap_err();
        let told = "rum: no such command: `p --help` shows the usage";
        assert_eq!(one_line("p", &error), told);
    }
}
