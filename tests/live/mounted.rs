//! A union mounted by the command, and commands about it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use unionfs::fuse::mount::open_device;
use unionfs::fuse::unmount;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A scratch directory with branches and a mount point `m`; unmounts when dropped.
pub struct Mounted(tempfile::TempDir);

impl Mounted {
    /// An empty place with these directories; `None` where nothing can be mounted.
    pub fn place(branches: &[&str]) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || open_device().is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("uaufs-live-")
            .tempdir_in("/var/tmp")
            .unwrap();
        fs::create_dir(dir.path().join("m")).unwrap();
        for branch in branches {
            fs::create_dir_all(dir.path().join(branch)).unwrap();
        }
        Some(Self(dir))
    }

    /// Mounts; branch paths are relative to the place.
    pub fn mount(&self, options: &str) {
        let out = self.run(&["-o", options, "m"]);
        assert!(out.status.success(), "{}", text(&out.stderr));
    }

    /// Mounts in the foreground: the process is the daemon.
    pub fn serve(&self, options: &str) -> Child {
        let child = self.command(&["-f", "-o", options, "m"]).spawn().unwrap();
        eventually("the mount", || self.try_ctl(&["list"]).status.success());
        child
    }

    /// A place, branches and a mount at once.
    pub fn new(branches: &[&str], options: &str) -> Option<Self> {
        let mounted = Self::place(branches)?;
        mounted.mount(options);
        Some(mounted)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn put(&self, name: &str, data: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|err| panic!("{name}: {err}"))
    }

    /// Names in a directory, sorted.
    pub fn names(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(name)).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(".wh."))
            .collect();
        names.sort();
        names
    }

    /// `uaufs ARGS` in the place.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uaufs"));
        command
            .current_dir(self.0.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// `uaufs ctl m ARGS`, which must succeed; what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        let out = self.try_ctl(args);
        assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
        text(&out.stdout)
    }

    /// `uaufs ctl m ARGS`, which must fail; the message.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.try_ctl(args);
        assert!(!out.status.success(), "{args:?} was done");
        text(&out.stderr)
    }

    pub fn try_ctl(&self, args: &[&str]) -> Output {
        self.run(&[&["ctl", "m"], args].concat())
    }

    /// Permissions of the branches by name, topmost first.
    pub fn branches(&self) -> Vec<String> {
        let listed: serde_json::Value =
            serde_json::from_str(&self.ctl(&["list", "--json"])).unwrap();
        let listed = listed.as_array().unwrap().iter();
        listed
            .map(|branch| {
                let path = Path::new(branch["path"].as_str().unwrap());
                let name = path.file_name().unwrap().to_str().unwrap();
                format!("{name}={}", branch["perm"].as_str().unwrap())
            })
            .collect()
    }

    pub fn umount(&self) {
        eventually("unmounting", || self.run(&["umount", "m"]).status.success());
    }

    fn is_mounted(&self) -> bool {
        let at = self.path("m");
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table
            .lines()
            .any(|line| line.split(' ').nth(1).is_some_and(|m| Path::new(m) == at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Best effort: most tests leave that to us.
        while self.is_mounted() && unmount(&self.path("m"), true).is_ok() {}
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
