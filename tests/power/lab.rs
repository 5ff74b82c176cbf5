//! Runs a scenario on disks that are written down, and looks at what each loss of power leaves.

use crate::branches::{Branches, Mode, Union};
use crate::disk::{Disks, Event};
use crate::fuzz::exec::errno_name;
use crate::fuzz::invent::Dice;
use crate::fuzz::layers::c_path;
use crate::fuzz::line::Line;
use crate::fuzz::sys;
use crate::moments::{self, Moment};
use crate::promise::{Promise, Snapshot};
use crate::trace::Plan;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Size of a disk.
const SIZE: u64 = 24 << 20;

/// How the filesystem of the branches is made: with a small journal, and nothing left for later.
const MKFS: &str = "-q -F -b 4096 -I 256 -N 1024 -J size=4 -m 0 \
    -E nodiscard,lazy_itable_init=0,lazy_journal_init=0";

/// How it is mounted. Without the help that ext4 gives to programs that do not sync before they
/// rename or after they cut a file; it writes its journal when it is told to.
const OPTIONS: &str = "loop,noauto_da_alloc,commit=300";

/// Something that is done to a union, step by step, and what was done before.
pub struct Scenario {
    pub mode: Mode,
    /// The second branch lies on a disk of its own.
    pub two_disks: bool,
    /// A file of the upper layer lacks its data.
    pub completes: bool,
    pub layers: Vec<Vec<Line>>,
    pub first: Vec<Line>,
    pub steps: Vec<Line>,
}

impl Scenario {
    fn volatile(&self) -> bool {
        self.mode.options.contains("volatile")
    }
}

/// When the filesystem writes its journal of its own accord: before which of the daemon's calls.
#[derive(Clone, Debug)]
pub enum Ticks {
    Never,
    Always,
    At(BTreeSet<usize>),
}

/// Where scenarios are carried out.
pub struct Lab {
    pub dir: PathBuf,
    pub program: OsString,
    /// So many subsets of what is in a cache are tried.
    pub subsets: usize,
}

/// A scenario before its first step, and what is promised of its steps.
pub struct Ready<'a> {
    lab: &'a Lab,
    scenario: &'a Scenario,
    base: Vec<Vec<u8>>,
    branches: Branches,
    promise: Promise,
}

/// A filesystem that is mounted.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(source: &Path, at: &Path) -> Result<Self> {
        let mut command = Command::new("mount");
        command
            .args(["-t", "ext4", "-o", OPTIONS])
            .arg(source)
            .arg(at);
        run(&mut command)?;
        Ok(Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Ok(at) = c_path(&self.at) else { return };
        // A daemon that ends may hold it for a moment.
        for _ in 0..1000 {
            match sys::umount(&at, 0) {
                Err(libc::EBUSY) => std::thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
        eprintln!("power: {} stays mounted", self.at.display());
        let _ = sys::umount(&at, libc::MNT_DETACH);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}", said.trim());
    Ok(())
}

impl Lab {
    fn root(&self) -> PathBuf {
        self.dir.join("fs")
    }

    fn image(&self, disk: usize) -> PathBuf {
        self.dir.join(format!("image{disk}"))
    }

    /// Mounts the disks; the last one mounted is the first to go.
    fn mount(&self, disk: impl Fn(usize) -> PathBuf, disks: usize) -> Result<Vec<Mounted>> {
        fs::create_dir_all(self.root())?;
        let mut mounted = vec![Mounted::new(&disk(0), &self.root())?];
        if disks > 1 {
            let second = self.root().join("b1");
            fs::create_dir_all(&second)?;
            mounted.insert(0, Mounted::new(&disk(1), &second)?);
        }
        Ok(mounted)
    }

    /// Makes the branches, and finds out what the steps do.
    pub fn prepare<'a>(&'a self, scenario: &'a Scenario) -> Result<Ready<'a>> {
        let disks = 1 + usize::from(scenario.two_disks);
        for disk in 0..disks {
            File::create(self.image(disk))?.set_len(SIZE)?;
            run(Command::new("mkfs.ext4")
                .args(MKFS.split_whitespace())
                .arg(self.image(disk)))?;
        }
        let mounted = self.mount(|disk| self.image(disk), disks)?;
        let root = self.root();
        let branches = Branches::write(&root, &self.program, scenario.mode, &scenario.layers)?;
        fs::write(root.join("tick"), [0; 8])?;
        let union = branches.mount()?;
        let union = carry_out(&branches, union, &scenario.first, |_| {}).context("before it")?;
        union.unmount()?;
        drop(mounted);
        let read = |disk| fs::read(self.image(disk));
        let base = (0..disks).map(read).collect::<Result<Vec<_>, _>>()?;

        let mounted = self.mount(|disk| self.image(disk), disks)?;
        let mut union = branches.mount()?;
        let mut snapshots = vec![snapshot(&branches, &union)?];
        for line in &scenario.steps {
            union = step(&branches, union, line)?;
            snapshots.push(snapshot(&branches, &union)?);
        }
        union.unmount()?;
        drop(mounted);
        let mut promise = Promise::new(&scenario.steps, snapshots)?;
        promise.volatile = scenario.volatile();
        promise.completes = scenario.completes;
        Ok(Ready {
            lab: self,
            scenario,
            base,
            branches,
            promise,
        })
    }
}

impl Ready<'_> {
    fn disks(&self) -> usize {
        self.base.len()
    }

    /// Carries out the steps on disks that are written down. Answers also how many calls the daemon
    /// made that change a branch.
    pub fn record(&self, ticks: &Ticks) -> Result<(Vec<Vec<u8>>, Vec<Event>, usize)> {
        let dir = self.lab.dir.join("disks");
        fs::create_dir_all(&dir)?;
        let disks = Disks::serve(&dir, self.base.clone())?;
        let mounted = self.lab.mount(|disk| disks.path(disk), self.disks())?;
        let mut union = self.branches.mount()?;
        let root = File::open(self.lab.root())?;
        let tick = Arc::new(Ticker::new(&self.lab.root())?);
        // What the mount has changed is not the matter.
        for m in &mounted {
            rustix::fs::syncfs(File::open(&m.at)?)?;
        }
        let device = self.branches.device()?;
        let plan = Arc::new(plan(device, Arc::clone(&tick), ticks.clone()));
        union.follow(&plan);
        let base = disks.begin();
        let steps = &self.scenario.steps;
        let done = |number| disks.done(number);
        let union = match ticks {
            Ticks::Never => carry_out(&self.branches, union, steps, done)?,
            // Nobody follows a daemon that starts.
            _ => tick.during_mounts(|| carry_out(&self.branches, union, steps, done))?,
        };
        plan.end();
        // Some time later all of it is written anyhow.
        rustix::fs::syncfs(&root)?;
        let events = disks.end();
        let calls = plan.count();
        union.unmount()?;
        // They have files open there.
        drop((root, plan, tick));
        drop(mounted);
        if self.scenario.volatile() && matches!(ticks, Ticks::Never) {
            let last = events
                .iter()
                .rposition(|event| matches!(event, Event::Done(_)));
            let steps = &events[..last.unwrap_or(0)];
            let flushes = steps
                .iter()
                .any(|event| matches!(event, Event::Flush { .. }));
            ensure!(!flushes, "a volatile union has waited for its disk");
        }
        Ok((base, events, calls))
    }

    /// Looks at every loss of power of one run. Answers how many there were, and what was wrong.
    pub fn lose_power(
        &self,
        (base, events): (&[Vec<u8>], Vec<Event>),
        dice: &mut Dice,
    ) -> Result<(usize, Vec<String>)> {
        let (mut count, mut failures) = (0, Vec::new());
        moments::each(base, events, dice, self.lab.subsets, |moment| {
            // What comes after is of no use when everything is wrong.
            if failures.len() < 3 {
                count += 1;
                let turn = count % 2 == 0;
                if let Err(error) = self.look(moment, turn) {
                    failures.push(format!("{}: {error:#}", moment.name));
                }
            }
            Ok(())
        })?;
        Ok((count, failures))
    }

    /// The power was lost and is back. `repair`: fsck comes first.
    fn look(&self, moment: &Moment<'_>, repair: bool) -> Result<()> {
        for disk in 0..self.disks() {
            moment.save(disk, &self.lab.image(disk))?;
        }
        let _mounted = self.lab.mount(|disk| self.lab.image(disk), self.disks())?;
        let branches = &self.branches;
        if repair {
            branches.repair()?;
        }
        let union = branches.mount()?;
        let seen = snapshot(branches, &union)?;
        union.unmount()?;
        branches.check_finished()?;
        if self.promise.volatile {
            branches.repair()?;
        } else {
            self.promise.check(moment.done, &seen)?;
            branches.repair_showing(&seen.tree)?;
        }
        branches.check_readonly()
    }
}

/// Lets the filesystem write its journal: a file beside the branches is written and synced. No data
/// of other files that waits to be written is on the disk then.
struct Ticker {
    file: File,
    serial: AtomicU64,
}

impl Ticker {
    fn new(root: &Path) -> Result<Self> {
        Ok(Self {
            file: File::options().write(true).open(root.join("tick"))?,
            serial: AtomicU64::new(1),
        })
    }

    fn tick(&self) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let done = self.file.write_all_at(&serial.to_le_bytes(), 0);
        if let Err(error) = done.and_then(|()| self.file.sync_all()) {
            eprintln!("power: the journal cannot be written: {error}");
        }
    }

    /// As often as possible while something is mounted.
    fn during_mounts<T>(&self, work: impl FnOnce() -> T) -> T {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if MOUNTING.load(Ordering::Relaxed) {
                        self.tick();
                    }
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
            let done = work();
            over.store(true, Ordering::Relaxed);
            done
        })
    }
}

/// A union is unmounted and mounted again.
static MOUNTING: AtomicBool = AtomicBool::new(false);

fn plan(device: u64, ticker: Arc<Ticker>, ticks: Ticks) -> Plan {
    Plan::watched(device, move |call| {
        let due = match &ticks {
            Ticks::Never => false,
            Ticks::Always => true,
            Ticks::At(calls) => calls.contains(&call),
        };
        if due {
            ticker.tick();
        }
    })
}

fn carry_out(
    branches: &Branches,
    mut union: Union,
    steps: &[Line],
    answered: impl Fn(usize),
) -> Result<Union> {
    for (number, line) in steps.iter().enumerate() {
        union = step(branches, union, line)?;
        answered(number + 1);
    }
    union.place.close_all();
    Ok(union)
}

/// Carries out a line of the fuzzer's, `remount`, or `mvdown PATH`.
fn step(branches: &Branches, mut union: Union, line: &Line) -> Result<Union> {
    match line.verb() {
        "remount" => {
            MOUNTING.store(true, Ordering::Relaxed);
            union.unmount()?;
            let union = branches.mount();
            MOUNTING.store(false, Ordering::Relaxed);
            return union;
        }
        "mvdown" => {
            let path = branches.mountpoint().join(line.args().text()?);
            run(branches.command(&["mvdown"]).arg(path))?;
            return Ok(union);
        }
        _ => {}
    }
    match union.place.run(line)?.answer {
        Ok(_) => Ok(union),
        Err(errno) => bail!("{line}: {}", errno_name(errno)),
    }
}

fn snapshot(branches: &Branches, union: &Union) -> Result<Snapshot> {
    let tree = branches.look(union);
    let root = branches.mountpoint();
    let mut data = std::collections::BTreeMap::new();
    for (path, item) in &tree {
        // A device has no end.
        if item.fields.get("kind").is_some_and(|kind| kind == "8") {
            let path = root.join(std::ffi::OsStr::from_bytes(path));
            let read = fs::read(&path).with_context(|| path.display().to_string())?;
            data.insert(item.identity.0, read);
        }
    }
    Ok(Snapshot { tree, data })
}
