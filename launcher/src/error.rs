//! How errors are worded: what was tried, why it failed with the errno's name, what to do.

use rustix::io::Errno;
use unionfs::errno::errno_name;

/// Adds "what was tried" to the error of a system call.
pub trait Explain<T> {
    /// Turns the errno into `WHAT: TEXT (ENAME)`.
    fn explain(self, what: impl FnOnce() -> String) -> anyhow::Result<T>;

    /// As [`Explain::explain`], followed by what would be right: `WHAT: TEXT (ENAME): REMEDY`.
    /// The remedy may depend on the errno; an empty one is left out.
    fn remedy(
        self,
        what: impl FnOnce() -> String,
        remedy: impl FnOnce(Errno) -> &'static str,
    ) -> anyhow::Result<T>;
}

impl<T> Explain<T> for Result<T, Errno> {
    fn explain(self, what: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(|errno| anyhow::anyhow!("{}: {}", what(), describe(errno)))
    }

    fn remedy(
        self,
        what: impl FnOnce() -> String,
        remedy: impl FnOnce(Errno) -> &'static str,
    ) -> anyhow::Result<T> {
        self.map_err(|errno| match remedy(errno) {
            "" => anyhow::anyhow!("{}: {}", what(), describe(errno)),
            hint => anyhow::anyhow!("{}: {}: {hint}", what(), describe(errno)),
        })
    }
}

impl<T> Explain<T> for std::io::Result<T> {
    fn explain(self, what: impl FnOnce() -> String) -> anyhow::Result<T> {
        self.map_err(errno_of).explain(what)
    }

    fn remedy(
        self,
        what: impl FnOnce() -> String,
        remedy: impl FnOnce(Errno) -> &'static str,
    ) -> anyhow::Result<T> {
        self.map_err(errno_of).remedy(what, remedy)
    }
}

/// Longest message in bytes; what the user gave can be longer than any message may be.
const MAX_MESSAGE: usize = 2000;

/// An error as one message: what was tried, then why it failed.
pub fn message(error: &anyhow::Error) -> String {
    shorten(format!("{error:#}"))
}

/// The text, its middle left out where it is too long: the end of a message tells most.
pub fn shorten(text: String) -> String {
    if text.len() <= MAX_MESSAGE {
        return text;
    }
    let boundary = |at: usize| (0..=at).rev().find(|at| text.is_char_boundary(*at));
    let head = boundary(MAX_MESSAGE / 2).unwrap_or(0);
    let tail = boundary(text.len() - MAX_MESSAGE / 2).unwrap_or(head);
    format!("{}...{}", &text[..head], &text[tail..])
}

/// The errno inside an I/O error; EIO for the few that carry none.
pub fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// `permission denied (EACCES)`.
pub fn describe(errno: Errno) -> String {
    let full = std::io::Error::from_raw_os_error(errno.raw_os_error()).to_string();
    let text = full.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    let lower = chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect::<String>())
        .unwrap_or_default();
    format!("{lower} ({})", name(errno))
}

/// The symbolic name, with the few that only a launcher meets.
fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::SRCH => "ESRCH",
        Errno::CHILD => "ECHILD",
        Errno::NOEXEC => "ENOEXEC",
        Errno::USERS => "EUSERS",
        Errno::TIMEDOUT => "ETIMEDOUT",
        Errno::TOOBIG => "E2BIG",
        Errno::LIBACC => "ELIBACC",
        other => errno_name(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_is_named_and_explained() {
        let error = Err::<(), _>(Errno::PERM)
            .remedy(
                || "user namespaces".into(),
                |_| "set user.max_user_namespaces",
            )
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "user namespaces: operation not permitted (EPERM): set user.max_user_namespaces"
        );
    }

    #[test]
    fn long_messages_keep_both_ends() {
        let text = format!("a{}z", "ü".repeat(50_000));
        let short = shorten(text);
        assert!(short.starts_with("aü") && short.ends_with("üz") && short.len() < 2100);
        assert_eq!(shorten("short".into()), "short");
    }
}
