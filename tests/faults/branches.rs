//! The branches of a trial on disk, and the union of them: mounted, killed, checked by fsck.

use crate::fuzz::exec::{Place, errno_of, now};
use crate::fuzz::layers::{self, Marks, c_path, place};
use crate::fuzz::line::Line;
use crate::fuzz::sys;
use crate::fuzz::tree::{self, Tree, View};
use crate::trace::{self, Plan};
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the branches are written and mounted.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    pub name: &'static str,
    pub marks: Marks,
    pub options: &'static str,
    /// Branches that are writable, from the top.
    pub writable: usize,
}

/// Branches, topmost first, and where their union is mounted.
pub struct Branches {
    dir: PathBuf,
    program: OsString,
    mode: Mode,
    count: usize,
    /// Later times are all alike.
    began: i64,
    before: Vec<Tree>,
}

/// A union that is mounted.
pub struct Union {
    pub place: Place,
    daemon: Child,
    tracer: Option<JoinHandle<Result<trace::End>>>,
    at: PathBuf,
}

impl Branches {
    /// Writes branches into an empty directory.
    pub fn write(dir: &Path, program: &OsString, mode: Mode, all: &[Vec<Line>]) -> Result<Self> {
        let mut branches = Self {
            dir: dir.to_owned(),
            program: program.clone(),
            mode,
            count: all.len(),
            // Not the time of what is written now: directories of the bookkeeping are new.
            began: now() - 10,
            before: Vec::new(),
        };
        for (number, lines) in all.iter().enumerate() {
            layers::write(&branches.branch(number), number, lines, mode.marks)?;
        }
        fs::create_dir(branches.workdir())?;
        fs::create_dir(branches.mountpoint())?;
        branches.before = branches.readonly()?;
        Ok(branches)
    }

    pub fn branch(&self, number: usize) -> PathBuf {
        self.dir.join(format!("b{number}"))
    }

    fn workdir(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The bookkeeping of a branch in AUFS's form.
    pub fn books(&self, number: usize) -> PathBuf {
        self.branch(number).join(".wh..wh.uaufs")
    }

    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join("m")
    }

    /// Where the calls that count take place.
    pub fn device(&self) -> Result<u64> {
        Ok(fs::metadata(&self.dir)?.dev())
    }

    fn options(&self) -> String {
        let of = |number| self.branch(number).display().to_string();
        let branches = match self.mode.marks {
            Marks::Overlay => {
                let lowers: Vec<String> = (1..self.count).map(of).collect();
                let work = self.workdir().display().to_string();
                let (upper, lowers) = (of(0), lowers.join(":"));
                format!("lowerdir={lowers},upperdir={upper},workdir={work}")
            }
            Marks::Aufs => {
                let perm = |n| {
                    if n < self.mode.writable {
                        "rw"
                    } else {
                        "ro+wh"
                    }
                };
                let all = (0..self.count).map(|n| format!("{}={}", of(n), perm(n)));
                format!("br={}", all.collect::<Vec<_>>().join(":"))
            }
        };
        format!("{branches},{}", self.mode.options)
    }

    /// The command that mounts, and serves until it is unmounted.
    pub fn mount_command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-f").arg("-o").arg(self.options());
        command.arg(self.mountpoint()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    pub fn mount(&self) -> Result<Union> {
        let at = self.mountpoint();
        let messages = self.dir.join("messages");
        let mut command = self.mount_command();
        command.stderr(fs::File::create(&messages)?);
        let mut daemon = command.spawn()?;
        let plain = self.device()?;
        let start = Instant::now();
        // Nobody asks a union that is still being made.
        while fs::metadata(&at)?.dev() == plain {
            if daemon.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let said = fs::read_to_string(&messages)?;
                bail!("uaufs -o {}: {said}", self.options());
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let place = place(&at, self.began)?;
        Ok(Union {
            place,
            daemon,
            tracer: None,
            at,
        })
    }

    /// Mounts while the daemon is followed by a plan, and takes it off again.
    pub fn mount_traced(&self, plan: &Arc<Plan>) -> Result<()> {
        let (at, plain) = (self.mountpoint(), self.device()?);
        let (mut command, followed) = (self.mount_command(), Arc::clone(plan));
        plan.begin();
        let daemon = std::thread::spawn(move || trace::run(&mut command, &followed));
        let start = Instant::now();
        // A daemon that was killed leaves a mount that answers an error.
        while fs::metadata(&at).is_ok_and(|m| m.dev() == plain) && !daemon.is_finished() {
            ensure!(start.elapsed() < PATIENCE, "it does not come up");
            std::thread::sleep(Duration::from_micros(500));
        }
        plan.settle();
        plan.end();
        // It may not have come so far.
        let _ = sys::umount(&c_path(&at)?, libc::MNT_DETACH);
        match daemon.join() {
            Ok(end) => end.map(drop),
            Err(_) => bail!("the tracer has ended early"),
        }
    }

    /// The same branches in another form.
    pub fn converted(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Everything that a union shows.
    pub fn look(&self, union: &Union) -> Tree {
        let mut tree = tree::read(&union.place.root, &self.view(false));
        for item in tree.values_mut() {
            if let Some(links) = item.dir_links {
                item.fields.insert("links", links.to_string());
            }
        }
        tree
    }

    /// Mounts, looks, and takes it off.
    pub fn shown(&self) -> Result<Tree> {
        let union = self.mount()?;
        let tree = self.look(&union);
        union.unmount()?;
        Ok(tree)
    }

    fn view(&self, exact: bool) -> View {
        View {
            began: self.began,
            exact,
        }
    }

    fn readonly(&self) -> Result<Vec<Tree>> {
        let read = |number| {
            let root = place(&self.branch(number), self.began)?.root;
            Ok(tree::read(&root, &self.view(true)))
        };
        let all = (self.mode.writable..self.count).map(read).collect();
        std::env::set_current_dir("/")?;
        all
    }

    /// Fails if a readonly branch is not what it was, to the last change of each file.
    pub fn check_readonly(&self) -> Result<()> {
        for (before, after) in self.before.iter().zip(self.readonly()?) {
            let changed = tree::differences(before, &after, 5);
            ensure!(
                changed.is_empty(),
                "a lower branch has changed: {changed:?}"
            );
        }
        Ok(())
    }

    /// A subcommand of the program.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.dir).stdin(Stdio::null());
        command.args(words);
        command
    }

    fn fsck(&self, words: &[&str]) -> Result<(bool, String)> {
        let mut command = self.command(&["fsck"]);
        command.args(words);
        if self.mode.marks == Marks::Overlay {
            command.arg("--workdir").arg(self.workdir());
        }
        command.args((0..self.count).map(|n| self.branch(n)));
        let output = command.output()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok((output.status.success(), text))
    }

    /// Fails unless fsck finds nothing.
    pub fn check_clean(&self) -> Result<()> {
        let (clean, text) = self.fsck(&[])?;
        ensure!(clean, "fsck: {text}");
        Ok(())
    }

    /// Lets fsck repair what it finds; then it must find nothing, and the tree be the same.
    pub fn repair_showing(&self, want: &Tree) -> Result<()> {
        if self.check_clean().is_err() {
            self.repair()?;
            let found = tree::differences(want, &self.shown()?, 6);
            ensure!(found.is_empty(), "after fsck --repair: {found:?}");
        }
        Ok(())
    }

    /// Lets fsck repair what it finds; then it must find nothing.
    pub fn repair(&self) -> Result<()> {
        let (_, said) = self.fsck(&["--repair"])?;
        self.check_clean()
            .with_context(|| format!("after fsck --repair: {said}"))
    }

    /// What lies in these directories for unfinished work.
    fn unfinished(&self, dirs: &[&str]) -> Vec<OsString> {
        let mut found = Vec::new();
        for number in 0..self.mode.writable {
            let home = match self.mode.marks {
                Marks::Overlay => self.workdir().join("uaufs"),
                Marks::Aufs => self.books(number),
            };
            for dir in dirs {
                let entries = fs::read_dir(home.join(dir)).into_iter().flatten().flatten();
                found.extend(entries.map(|entry| entry.path().into_os_string()));
            }
        }
        found
    }

    /// Fails if a file is left that was being made.
    pub fn check_no_temporary(&self) -> Result<()> {
        let left = self.unfinished(&["tmp"]);
        ensure!(left.is_empty(), "left over: {left:?}");
        Ok(())
    }

    /// Fails if unfinished work is left. What is removed in the background has a moment.
    pub fn check_finished(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.unfinished(&["tmp", "trash"]);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < Duration::from_secs(5),
                "left over: {left:?}"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Union {
    /// Carries out lines; the first that fails ends it. The error is an errno.
    pub fn run(&mut self, lines: &[Line]) -> Result<(), i32> {
        let mut done = Ok(());
        for line in lines {
            done = match self.place.run(line) {
                Ok(outcome) => outcome.answer.map(drop),
                // Not even the root answers.
                Err(_) => Err(libc::ENOTCONN),
            };
            if done.is_err() {
                break;
            }
        }
        self.place.close_all();
        done
    }

    /// Carries out lines while the daemon is followed by a plan. Answers what came of it.
    pub fn run_traced(&mut self, lines: &[Line], plan: &Arc<Plan>) -> Result<Result<(), i32>> {
        self.follow(plan);
        let done = self.run(lines);
        plan.settle();
        plan.end();
        Ok(done)
    }

    /// From here on the daemon is followed by a plan.
    pub fn follow(&mut self, plan: &Arc<Plan>) {
        let (ready, is_ready) = mpsc::channel::<()>();
        let (followed, pid) = (Arc::clone(plan), self.daemon.id());
        self.tracer = Some(std::thread::spawn(move || {
            trace::attach(pid, &followed, || {
                followed.begin();
                drop(ready);
            })
        }));
        // It says nothing; the channel ends when all is set up, or has failed.
        let _ = is_ready.recv();
    }

    pub fn unmount(mut self) -> Result<()> {
        self.leave()?;
        errno_of(sys::umount(&c_path(&self.at)?, 0)).context("umount")?;
        self.wait()
    }

    fn leave(&mut self) -> Result<()> {
        self.place = place(Path::new("/"), 0)?;
        std::env::set_current_dir("/")?;
        Ok(())
    }

    /// Waits for a daemon that is to end.
    fn wait(&mut self) -> Result<()> {
        // Who follows it is told of its end, and nobody else.
        match self.tracer.take() {
            Some(tracer) => match tracer.join() {
                Ok(end) => end.map(drop),
                Err(_) => bail!("the tracer has ended early"),
            },
            None => Ok(self.daemon.wait().map(drop)?),
        }
    }

    /// The daemon was killed: takes off what is left.
    pub fn bury(mut self) -> Result<()> {
        self.leave()?;
        self.detach()?;
        self.wait()
    }

    fn detach(&self) -> Result<()> {
        match sys::umount(&c_path(&self.at)?, libc::MNT_DETACH) {
            // The watcher of the daemon was faster.
            Err(libc::EINVAL) => Ok(()),
            done => errno_of(done).map(drop),
        }
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        let _ = self.leave();
        // It is still there after a trial that failed.
        if self.detach().is_ok() {
            let _ = self.wait();
        }
    }
}

/// Every line of `text` that says something.
pub fn lines(text: &str) -> Result<Vec<Line>> {
    text.lines()
        .filter_map(|line| Line::parse(line).transpose())
        .collect()
}

/// What is done first and then, in one line.
pub fn tell(f: &mut std::fmt::Formatter<'_>, first: &[Line], then: &[Line]) -> std::fmt::Result {
    for (lines, begin) in [(first, " after"), (then, ",")] {
        for (n, line) in lines.iter().enumerate() {
            write!(f, "{} {line}", if n == 0 { begin } else { ";" })?;
        }
    }
    Ok(())
}
