//! A scratch directory for branches with a mount point, and commands by other users.

use std::ffi::{CString, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use unionfs::fuse::mount::open_device;
use unionfs::fuse::unmount;

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Branches, and a mount point `m`. Unmounts when dropped.
pub struct World {
    dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl World {
    /// `None` where nothing can be mounted.
    pub fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || open_device().is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("uaufs-mounted-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let world = Self {
            dir: dir.path().to_owned(),
            _temporary: Some(dir),
        };
        world.chmod("", 0o755);
        world.mkdir("m", 0o755);
        Some(world)
    }

    /// One that another process has made, and removes.
    pub fn existing(dir: PathBuf) -> Self {
        Self {
            dir,
            _temporary: None,
        }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Makes a directory, and those above it.
    pub fn mkdir(&self, path: &str, mode: u32) {
        fs::create_dir_all(self.path(path)).unwrap();
        self.chmod(path, mode);
    }

    /// Writes a file, and the directories above it.
    pub fn put(&self, path: &str, data: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }

    pub fn chmod(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), Permissions::from_mode(mode)).unwrap();
    }

    pub fn chown(&self, path: &str, uid: u32, gid: u32) {
        chown(self.path(path), Some(uid), Some(gid)).unwrap();
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, path: &str, name: &str, value: &[u8]) {
        let name = CString::new(name).unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(self.path(path), &name, value, flags).unwrap();
    }

    /// Everything below a directory, sorted, with the bookkeeping of the union left out.
    pub fn tree(&self, path: &str) -> Vec<String> {
        let top = self.path(path);
        let mut found = Vec::new();
        let mut todo = vec![top.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path = entry.path();
                let name = path.strip_prefix(&top).unwrap().display().to_string();
                if name.starts_with(".wh..wh.") {
                    continue;
                }
                if entry.file_type().unwrap().is_dir() {
                    todo.push(path);
                }
                found.push(name);
            }
        }
        found.sort();
        found
    }

    /// Mounts on `m`; branches are named relative to the scratch directory.
    pub fn mount(&self, options: &str) {
        let output = Command::new(program())
            .current_dir(&self.dir)
            .args(["-o", options, "m"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{options}: {}", text(&output));
    }

    /// Unmounts. Tries again when busy: a process that another test is just starting shares our
    /// open files for a moment.
    pub fn umount(&self) {
        eventually("unmounting", || {
            let mut umount = Command::new(program());
            umount.arg("umount").arg(self.path("m"));
            umount.output().unwrap().status.success()
        });
    }

    /// Mounts, runs `body`, unmounts.
    pub fn mounted(&self, options: &str, body: impl FnOnce()) {
        self.mount(options);
        body();
        self.umount();
    }

    /// Runs a script in `m` as a user with these groups besides the one of the same number.
    pub fn try_as(&self, uid: u32, groups: &[u32], script: &str) -> Output {
        let id = uid.to_string();
        let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
        let groups = match &groups[..] {
            [] => "--clear-groups".to_owned(),
            some => format!("--groups={}", some.join(",")),
        };
        Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, &groups])
            .args(["sh", "-c", &format!("cd ../m && {script}")])
            .current_dir(self.path("m"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// As [`Self::try_as`]: may the user do this?
    pub fn may(&self, uid: u32, groups: &[u32], script: &str) -> bool {
        self.try_as(uid, groups, script).status.success()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let m = self.path("m");
        while is_mounted(&m) && unmount(&m, true).is_ok() {}
    }
}

/// The program under test.
pub fn program() -> OsString {
    std::env::var_os("UAUFS").unwrap_or_else(|| env!("CARGO_BIN_EXE_uaufs").into())
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == path.to_str())
}

/// What a command wrote.
pub fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    String::from_utf8_lossy(out).into_owned() + &String::from_utf8_lossy(err)
}

/// The names in a directory, in order.
pub fn names(path: &Path) -> Vec<String> {
    let listed = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
