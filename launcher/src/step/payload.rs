//! The last steps of the command's own process: session, limits, user, capabilities, filter, exec.

use super::caps::{self, CapSet};
use super::seccomp;
use crate::error::{self, Explain, describe};
use crate::parse;
use crate::spec::Ulimit;
use crate::sys;
use crate::user::{self, Identity};
use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use unionfs::ostext::OsText;

/// What runs in the container, and as what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Payload {
    /// Program and arguments, never empty.
    pub command: Vec<OsText>,
    /// The whole environment but HOME; later entries win.
    pub env: Vec<OsText>,
    /// Working directory.
    pub workdir: OsText,
    /// `USER[:GROUP]`; `None` = root.
    pub user: Option<OsText>,
    /// Capabilities, for root; other users get them in the bounding set only.
    pub caps: CapSet,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// The filter of system calls.
    pub seccomp: Option<seccomp::Profile>,
    /// rlimits.
    pub ulimits: Vec<Ulimit>,
    /// Added to the chance of being killed when memory runs out, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Only this id exists (single-id map): `--user` can name no other.
    pub single_id: bool,
}

/// Why a command does not run: the exit code and the message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// 125, 126 or 127.
    pub code: u8,
    /// Why.
    pub message: String,
}

impl Refusal {
    fn new(code: u8, message: String) -> Self {
        Self { code, message }
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(125, error::message(&error))
    }
}

impl Payload {
    /// Turns this process, a fresh child of init, into the command. Returns only on failure.
    pub fn exec(&self, terminal: Option<&OwnedFd>) -> Refusal {
        match self.prepare(terminal) {
            Ok(env) => self.exec_found(&env),
            Err(error) => error.into(),
        }
    }

    fn prepare(&self, terminal: Option<&OwnedFd>) -> Result<Vec<CString>> {
        let who = user::resolve(self.user.as_ref())?;
        rustix::process::setsid().explain(|| "starting a session".into())?;
        if let Some(slave) = terminal {
            take_terminal(slave, &who)?;
        }
        self.set_limits()?;
        // Without no_new_privs the kernel takes a filter only from CAP_SYS_ADMIN, so that goes
        // first; with it, last, so that fewer calls are made under it.
        if let (Some(profile), false) = (&self.seccomp, self.no_new_privs) {
            seccomp::install(profile)?;
        }
        caps::limit_bounding_set(self.caps)?;
        self.become_user(&who)?;
        enter(self.workdir.path())?;
        caps::set(if who.uid == 0 {
            self.caps
        } else {
            CapSet::default()
        })?;
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true).explain(|| "setting no_new_privs".into())?;
            self.seccomp.as_ref().map_or(Ok(()), seccomp::install)?;
        }
        sys::reset_signals();
        self.environment(&who)
    }

    fn set_limits(&self) -> Result<()> {
        for limit in &self.ulimits {
            // Raising a hard limit takes CAP_SYS_RESOURCE: what is asked for is capped by what
            // there is rather than refused.
            let (_, ceiling) = sys::rlimit(limit.resource).unwrap_or((0, u64::MAX));
            let result = match sys::set_rlimit(limit.resource, limit.soft, limit.hard) {
                Err(Errno::PERM) => {
                    let hard = limit.hard.min(ceiling);
                    sys::set_rlimit(limit.resource, limit.soft.min(hard), hard)
                }
                result => result,
            };
            result.explain(|| format!("--ulimit {}", limit.name))?;
        }
        if let Some(score) = self.oom_score_adj {
            std::fs::write("/proc/self/oom_score_adj", score.to_string())
                .explain(|| "setting oom_score_adj".into())?;
        }
        Ok(())
    }

    fn become_user(&self, who: &Identity) -> Result<()> {
        let what = || format!("--user: becoming user {} and group {}", who.uid, who.gid);
        let hint = |errno| match errno {
            Errno::INVAL if self.single_id => {
                "only id 0 is mapped here: add a range to /etc/subuid and /etc/subgid"
            }
            Errno::INVAL => "the id is outside of the mapped range",
            _ => "",
        };
        let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        match rustix::thread::set_thread_groups(&groups) {
            // Denied along with a single-id map.
            Err(Errno::PERM) if self.single_id => {}
            Err(Errno::INVAL) if self.single_id => {}
            result => result.remedy(what, hint)?,
        }
        let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).remedy(what, hint)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).remedy(what, hint)
    }

    fn environment(&self, who: &Identity) -> Result<Vec<CString>> {
        let home = OsText(OsString::from_vec([b"HOME=", who.home.as_bytes()].concat()));
        let mut env: Vec<&OsText> = Vec::with_capacity(self.env.len() + 1);
        for entry in std::iter::once(&home).chain(&self.env) {
            let key = key(entry);
            match env.iter_mut().find(|known| self::key(known) == key) {
                Some(known) => *known = entry,
                None => env.push(entry),
            }
        }
        let strings: Result<_, Errno> = env.iter().map(|entry| sys::c_string(entry)).collect();
        strings.explain(|| "environment".into())
    }

    /// Looks the program up as execvp(3) does, in the PATH of the container.
    fn exec_found(&self, env: &[CString]) -> Refusal {
        let argv: Result<Vec<CString>, Errno> = self
            .command
            .iter()
            .map(|word| sys::c_string(word))
            .collect();
        let (Ok(argv), Some(program)) = (argv, self.command.first()) else {
            return Refusal::new(127, "the command holds a NUL byte".into());
        };
        let shown = error::shorten(program.to_string_lossy().into_owned());
        let mut seen = Errno::NOENT;
        let mut found = false;
        for candidate in candidates(program, env) {
            let Ok(path) = sys::c_string(&candidate) else {
                continue;
            };
            match sys::exec_path(&path, &argv, env) {
                Errno::NOENT | Errno::NOTDIR if !Path::new(&candidate).exists() => {}
                errno => (seen, found) = (errno, true),
            }
            if seen != Errno::NOENT && seen != Errno::ACCESS {
                break;
            }
        }
        match seen {
            Errno::NOENT if found => Refusal::new(
                127,
                format!(
                    "{shown}: its interpreter was not found (ENOENT): install it in the root filesystem"
                ),
            ),
            Errno::NOENT | Errno::NOTDIR => Refusal::new(
                127,
                format!("{shown}: command not found in the container (ENOENT)"),
            ),
            Errno::NOEXEC => Refusal::new(
                126,
                format!("{shown}: not a program (ENOEXEC): a script needs a #! line"),
            ),
            errno => Refusal::new(
                126,
                format!("{shown}: cannot be executed: {}", describe(errno)),
            ),
        }
    }
}

/// The part of an environment entry before `=`.
fn key(entry: &OsStr) -> &[u8] {
    entry
        .as_bytes()
        .split(|byte| *byte == b'=')
        .next()
        .unwrap_or_default()
}

/// The paths to try for a program.
fn candidates(program: &OsStr, env: &[CString]) -> Vec<OsString> {
    let name = program.as_bytes();
    if name.contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="));
    let dirs = path.unwrap_or(b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    dirs.split(|byte| *byte == b':')
        .map(|dir| if dir.is_empty() { &b"."[..] } else { dir })
        .map(|dir| OsString::from_vec([dir, b"/", name].concat()))
        .collect()
}

/// Makes the terminal the controlling one and standard input, output and error.
fn take_terminal(slave: &OwnedFd, who: &Identity) -> Result<()> {
    let what = || "taking the terminal".to_owned();
    rustix::process::ioctl_tiocsctty(slave).explain(what)?;
    // Its name must be openable by whoever uses it; with one id there is nobody else.
    let _ = rustix::fs::fchown(slave, Some(Uid::from_raw(who.uid)), None);
    rustix::stdio::dup2_stdin(slave).explain(what)?;
    rustix::stdio::dup2_stdout(slave).explain(what)?;
    rustix::stdio::dup2_stderr(slave).explain(what)
}

/// Enters the working directory and proves that it lies in the container (CVE-2024-21626): a
/// directory reached through a leaked descriptor has no path from our root.
fn enter(workdir: &Path) -> Result<()> {
    let what = || format!("--workdir {}", workdir.display());
    anyhow::ensure!(workdir.is_absolute(), "{}: not an absolute path", what());
    let root =
        rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).explain(what)?;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
    let dir =
        super::mount::open(root.as_fd(), workdir, flags).remedy(what, |errno| match errno {
            Errno::NOENT => "make the directory in the root filesystem",
            Errno::LOOP => "it must not go through /proc/PID/fd, cwd or root",
            _ => "",
        })?;
    rustix::process::fchdir(&dir).explain(what)?;
    let cwd = rustix::process::getcwd(Vec::new()).explain(what)?;
    anyhow::ensure!(
        cwd.as_bytes().starts_with(b"/"),
        "{}: lies outside of the container",
        what()
    );
    Ok(())
}

/// Checks `--user` for form before anything is started.
pub fn check_user(text: &OsStr) -> Result<()> {
    let text = text
        .to_str()
        .context("--user: not UTF-8: write USER[:GROUP]")?;
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    for part in [user, group] {
        let numeric = part
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_digit());
        let good = if numeric {
            parse::id(part).is_some()
        } else {
            user::is_name(part)
        };
        anyhow::ensure!(
            good,
            "--user {text}: not a user: write USER[:GROUP], names or numbers"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_path() {
        let env = [c"A=1".to_owned(), c"PATH=/a::/b".to_owned()];
        assert_eq!(candidates(OsStr::new("x"), &env), ["/a/x", "./x", "/b/x"]);
        assert_eq!(candidates(OsStr::new("./x"), &env), ["./x"]);
    }

    #[test]
    fn users_are_checked_strictly() {
        for text in ["0", "0:0", "daemon", "daemon:5", "_apt", "4294967294"] {
            assert!(check_user(OsStr::new(text)).is_ok(), "{text}");
        }
        for text in [
            "",
            "1000:",
            ":0",
            "+0",
            " 0",
            "4294967295",
            "0x0",
            "1:2:3",
            "a/b",
            "-1",
        ] {
            assert!(check_user(OsStr::new(text)).is_err(), "{text}");
        }
    }
}
