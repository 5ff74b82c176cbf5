//! The record of each container, and where everything is kept.
//!
//! `DATA/containers/ID/` (0700) holds `state.json`, the writable layer `upper/` and `log`;
//! `RUN/ID.lock` is locked by the supervisor as long as it lives, so that a record of a running
//! container whose supervisor was killed is recognised, even when its number is used again.

use crate::error::Explain;
use crate::plan::Maps;
use crate::spec::Spec;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use unionfs::ostext::OsText;

/// Format of `state.json`.
const VERSION: u32 = 1;

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Being made.
    Created,
    /// The command runs.
    Running,
    /// The command has ended.
    Exited,
}

/// A process that can be told from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process number.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since boot.
    pub start_time: u64,
}

/// Everything known about a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Format version.
    pub version: u32,
    /// Twelve hexadecimal digits.
    pub id: String,
    /// As given, else the id.
    pub name: String,
    /// Where it stands.
    pub status: Status,
    /// As asked for.
    pub spec: Spec,
    /// When it was made, seconds since the epoch.
    pub created: u64,
    /// When the command ended, seconds since the epoch.
    pub finished: Option<u64>,
    /// Exit code.
    pub exit_code: Option<u8>,
    /// Why it ended, where the exit code does not tell.
    pub reason: Option<String>,
    /// Processes killed for lack of memory.
    pub oom_kills: u64,
    /// The supervisor.
    pub supervisor: Option<ProcessId>,
    /// PID 1 of the container, seen from the host.
    pub init: Option<ProcessId>,
    /// The union daemon.
    pub daemon: Option<ProcessId>,
    /// Id maps of the container's user namespace.
    pub maps: Option<Maps>,
    /// Directory that receives the changes.
    pub layer: Option<OsText>,
    /// Cgroups to remove, outermost first.
    pub cgroups: Vec<OsText>,
}

impl Record {
    /// A new container.
    pub fn new(id: String, name: Option<String>, spec: Spec) -> Self {
        Self {
            version: VERSION,
            name: name.unwrap_or_else(|| id.clone()),
            id,
            status: Status::Created,
            spec,
            created: now(),
            finished: None,
            exit_code: None,
            reason: None,
            oom_kills: 0,
            supervisor: None,
            init: None,
            daemon: None,
            maps: None,
            layer: None,
            cgroups: Vec::new(),
        }
    }
}

impl ProcessId {
    /// Identifies a live process.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            start_time: start_time(pid)?,
        })
    }

    /// A pidfd of the process, if it still is the one.
    pub fn open(self) -> Option<OwnedFd> {
        let pid = rustix::process::Pid::from_raw(self.pid)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Checked after opening: from here on the descriptor cannot mean another process.
        (start_time(self.pid) == Some(self.start_time)).then_some(fd)
    }
}

/// proc_pid_stat(5), field 22. The second field may contain anything but ends with `)`.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Seconds since the epoch.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Twelve random hexadecimal digits.
pub fn new_id() -> Result<String> {
    let mut bytes = [0u8; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .explain(|| "getrandom".into())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The directories of one user.
#[derive(Clone, Debug)]
pub struct Store {
    data: PathBuf,
    run: PathBuf,
}

impl Store {
    /// Finds and makes the directories. `root` and `state` are the options of the command line.
    pub fn open(root: Option<PathBuf>, state: Option<PathBuf>) -> Result<Self> {
        let data = root.map_or_else(default_data, Ok)?;
        let run = state.map_or_else(default_run, Ok)?;
        let store = Self {
            data: std::path::absolute(data)?,
            run: std::path::absolute(run)?,
        };
        for dir in [&store.data, &store.run, &store.containers()] {
            private_directory(dir)?;
        }
        Ok(store)
    }

    fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }

    /// What a union over the tree in which they lie must not show.
    pub fn directories(&self) -> Vec<OsText> {
        vec![self.data.clone().into(), self.run.clone().into()]
    }

    /// The directory of a container.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// What a detached container writes.
    pub fn log(&self, id: &str) -> PathBuf {
        self.directory(id).join("log")
    }

    /// The writable layer of a container.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.directory(id).join("upper")
    }

    /// What containers inside the container keep.
    pub fn nested(&self, id: &str) -> PathBuf {
        self.directory(id).join("nested")
    }

    /// Makes the container's directory and record; its name must be free. The container counts as
    /// alive until the descriptor returned (and its copies) are closed.
    pub fn create(&self, record: &Record, layer: bool) -> Result<OwnedFd> {
        let _lock = self.lock_all()?;
        if record.name != record.id && self.all()?.iter().any(|other| other.name == record.name) {
            bail!(
                "--name {}: is in use (EEXIST): remove that container, or take another name",
                record.name
            );
        }
        // Locked before anybody can find it, or it would be taken for one whose launcher was killed.
        let alive = lock(
            &self.alive_path(&record.id),
            FlockOperation::NonBlockingLockExclusive,
        )?;
        match self.make(record, layer) {
            Ok(()) => Ok(alive),
            Err(error) => {
                let _ = unionfs::sys::remove::tree(&self.directory(&record.id));
                self.forget_alive(&record.id);
                Err(error)
            }
        }
    }

    fn make(&self, record: &Record, layer: bool) -> Result<()> {
        private_directory(&self.directory(&record.id))?;
        if layer {
            let upper = self.layer(&record.id);
            let mut builder = std::fs::DirBuilder::new();
            builder
                .mode(0o755)
                .create(&upper)
                .explain(|| format!("making {}", upper.display()))?;
        }
        if record.spec.security.nest {
            private_directory(&self.nested(&record.id))?;
        }
        self.save(record)
    }

    /// Writes the record, by rename.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.directory(&record.id).join("state.json");
        let temporary = path.with_extension("new");
        let what = || format!("writing {}", path.display());
        let json = serde_json::to_vec(record)?;
        let written =
            std::fs::write(&temporary, json).and_then(|()| std::fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written.remedy(what, |errno| match errno {
            Errno::NOSPC | Errno::DQUOT => "make room, or choose another place with --root",
            _ => "",
        })
    }

    /// Takes away what launchers left that were killed before or after there was a record.
    pub fn sweep(&self) -> Result<()> {
        // Directories and locks are only made under this lock.
        let _lock = self.lock_all()?;
        for (id, dir) in entries(&self.containers())? {
            if dir.is_dir() && !dir.join("state.json").exists() && !self.is_alive(&id) {
                let _ = unionfs::sys::remove::tree(&dir);
            }
        }
        for (name, _) in entries(&self.run)? {
            if let Some(id) = name.strip_suffix(".lock")
                && !self.directory(id).exists()
                && !self.is_alive(id)
            {
                self.forget_alive(id);
            }
        }
        Ok(())
    }

    /// The record of the container with this id.
    pub fn load(&self, id: &str) -> Result<Record> {
        let path = self.directory(id).join("state.json");
        let json = std::fs::read(&path).explain(|| format!("reading {}", path.display()))?;
        let record: Record = serde_json::from_slice(&json)
            .with_context(|| format!("{}: damaged: remove its directory", path.display()))?;
        ensure!(
            record.version == VERSION,
            "{}: of another version of ulaunch",
            path.display()
        );
        Ok(record)
    }

    /// All records that can be read, oldest first.
    pub fn all(&self) -> Result<Vec<Record>> {
        let dir = self.containers();
        let entries = entries(&dir)?.into_iter();
        let mut records: Vec<Record> = entries.filter_map(|(id, _)| self.load(&id).ok()).collect();
        records.sort_by(|one, other| (one.created, &one.id).cmp(&(other.created, &other.id)));
        Ok(records)
    }

    /// The container called `name`, or whose id is or begins like that.
    pub fn find(&self, name: &str) -> Result<Record> {
        let all = self.all()?;
        if let Some(record) = all
            .iter()
            .find(|record| record.name == name || record.id == name)
        {
            return Ok(record.clone());
        }
        let mut matches = all
            .into_iter()
            .filter(|record| !name.is_empty() && record.id.starts_with(name));
        match (matches.next(), matches.next()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => {
                bail!("{name}: more than one container begins like that: write more of it")
            }
            _ => bail!("{name}: no such container: see `ulaunch ps -a`"),
        }
    }

    /// Serialises changes of the set of containers.
    fn lock_all(&self) -> Result<OwnedFd> {
        let path = self.containers().join(".lock");
        lock(&path, FlockOperation::LockExclusive)
    }

    /// Does the container's supervisor live?
    pub fn is_alive(&self, id: &str) -> bool {
        let path = self.alive_path(id);
        // Without the file there is no supervisor; it must not be made by looking.
        let Ok(fd) = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        else {
            return false;
        };
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
    }

    /// Takes the mark of a live container away.
    pub fn forget_alive(&self, id: &str) {
        let _ = std::fs::remove_file(self.alive_path(id));
    }

    fn alive_path(&self, id: &str) -> PathBuf {
        self.run.join(format!("{id}.lock"))
    }
}

/// Names (those that are UTF-8, as ids are) and paths in a directory.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let list = std::fs::read_dir(dir).explain(|| format!("reading {}", dir.display()))?;
    let named = list.flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some((name, entry.path()))
    });
    Ok(named.collect())
}

fn lock(path: &Path, operation: FlockOperation) -> Result<OwnedFd> {
    let what = || format!("locking {}", path.display());
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).explain(what)?;
    rustix::fs::flock(&fd, operation).explain(what)?;
    Ok(fd)
}

/// Makes a directory that nobody else can enter, with its parents, or checks that it is one.
fn private_directory(path: &Path) -> Result<()> {
    let what = || format!("making {}", path.display());
    let mut builder = std::fs::DirBuilder::new();
    builder
        .mode(0o700)
        .recursive(true)
        .create(path)
        .remedy(what, |errno| match errno {
            Errno::ACCESS | Errno::PERM | Errno::ROFS => {
                "choose another place with --root and --state"
            }
            _ => "",
        })?;
    let metadata = std::fs::metadata(path).explain(what)?;
    let uid = rustix::process::geteuid().as_raw();
    ensure!(
        metadata.uid() == uid,
        "{}: belongs to user {}: choose another place with --root and --state",
        path.display(),
        metadata.uid()
    );
    ensure!(
        metadata.mode() & 0o077 == 0,
        "{}: others can enter it: chmod 700 it",
        path.display()
    );
    Ok(())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn default_data() -> Result<PathBuf> {
    if is_root() {
        return Ok("/var/lib/ulaunch".into());
    }
    if let Some(dir) = absolute_variable("XDG_DATA_HOME") {
        return Ok(dir.join("ulaunch"));
    }
    let home = absolute_variable("HOME").context("HOME is not set: give --root and --state")?;
    Ok(home.join(".local/share/ulaunch"))
}

fn default_run() -> Result<PathBuf> {
    if is_root() {
        return Ok("/run/ulaunch".into());
    }
    Ok(
        match absolute_variable("XDG_RUNTIME_DIR").filter(|dir| dir.is_dir()) {
            Some(dir) => dir.join("ulaunch"),
            // A login without a session: a directory of one's own, whose owner is checked.
            None => {
                let dir = PathBuf::from(format!(
                    "/tmp/ulaunch-{}",
                    rustix::process::geteuid().as_raw()
                ));
                ensure!(
                    !dir.is_symlink(),
                    "{}: is a symbolic link, which anybody can make there: remove it, or use --state",
                    dir.display()
                );
                dir
            }
        },
    )
}

fn absolute_variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Some(dir.path().join("d")), Some(dir.path().join("r"))).unwrap();
        (dir, store)
    }

    fn record(id: &str, name: Option<&str>) -> Record {
        let json = r#"{"root":{"Directory":"/"},"command":["sh"],"user":null,"workdir":"/","env":[],
            "hostname":null,"interactive":false,"tty":false,"detach":false,"remove":false,
            "read_only":false,"volumes":[],"tmpfs":[],"limits":{"memory":null,"memory_swap":null,
            "milli_cpus":null,"cpu_shares":null,"cpuset_cpus":null,"pids":null},"best_effort":false,
            "network":"None","userns":"Auto","security":{"cap_add":{"all":false,"caps":[]},
            "cap_drop":{"all":false,"caps":[]},"seccomp_unconfined":false,"no_new_privs":true,
            "mask":[],"unmask":{"Paths":[]},"privileged":false,"nest":false},"ulimits":[]}"#;
        Record::new(
            id.into(),
            name.map(Into::into),
            serde_json::from_str(json).unwrap(),
        )
    }

    #[test]
    fn names_are_unique_and_found() {
        let (_dir, store) = store();
        store.create(&record("aa11", Some("web")), true).unwrap();
        assert!(store.create(&record("bb22", Some("web")), false).is_err());
        store.create(&record("aa22", None), false).unwrap();
        assert_eq!(store.find("web").unwrap().id, "aa11");
        assert_eq!(store.find("aa2").unwrap().id, "aa22");
        assert!(store.find("aa").is_err() && store.find("zz").is_err() && store.find("").is_err());
        assert!(store.layer("aa11").is_dir() && !store.layer("aa22").exists());
    }

    #[test]
    fn life_is_a_lock() {
        let (_dir, store) = store();
        assert!(!store.is_alive("x"));
        let lock = store.create(&record("x", None), true).unwrap();
        assert!(store.is_alive("x"));
        drop(lock);
        assert!(!store.is_alive("x"));
    }

    #[test]
    fn what_killed_launchers_left_is_swept_and_nothing_else() {
        let (_dir, store) = store();
        drop(store.create(&record("ended", None), true).unwrap());
        let _alive = store.create(&record("lives", None), true).unwrap();
        std::fs::create_dir_all(store.layer("half")).unwrap();
        std::fs::write(store.alive_path("gone"), "").unwrap();
        store.sweep().unwrap();
        assert!(store.load("ended").is_ok() && store.is_alive("lives"));
        assert!(!store.directory("half").exists() && !store.alive_path("gone").exists());
    }

    #[test]
    fn processes_are_told_apart() {
        let own = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(own.open().is_some());
        assert!(
            ProcessId {
                start_time: own.start_time + 1,
                ..own
            }
            .open()
            .is_none()
        );
    }

    #[test]
    fn directories_that_others_can_enter_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Store::open(Some(open), Some(dir.path().join("r"))).is_err());
    }
}
