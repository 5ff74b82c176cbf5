//! Random steps on a union, on the kernel's overlayfs and on an ordinary directory that hold the
//! same tree: what each step answers and the trees must be equal.

pub mod case;
pub mod data;
pub mod exec;
pub mod invent;
pub mod known;
pub mod layers;
pub mod line;
pub mod run;
pub mod shrink;
pub mod sys;
pub mod tree;
pub mod world;

use anyhow::{Context, Result};
use case::Case;
use line::Line;
use run::{COMPARE_EVERY, Failure, Run, Verdict};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use world::World;

/// No step takes longer; then the union hangs.
const HANGS: Duration = Duration::from_secs(40);

/// Where runs take place, and what they test.
pub struct Lab {
    dir: PathBuf,
    program: OsString,
}

impl Lab {
    /// `dir`: an existing directory on ext4.
    pub fn new(dir: &Path, program: OsString) -> Result<Self> {
        watch_for_hangs();
        Ok(Self {
            dir: dir.canonicalize()?,
            program,
        })
    }

    fn world(&self, case: &Case) -> Result<World> {
        let dir = self.dir.join("w");
        if dir.exists() {
            fs::remove_dir_all(&dir).context("what an earlier run left")?;
        }
        fs::create_dir(&dir)?;
        World::new(&dir, case, &self.program)
    }

    /// Runs a case that is written down.
    pub fn replay(&self, case: &Case) -> Result<Verdict> {
        let mut run = Run::new(self.world(case)?);
        let first = run.compare("tree");
        if first.is_err() {
            return Ok(first);
        }
        for (number, line) in case.steps.iter().enumerate() {
            let verdict = run.step(line)?;
            if verdict.is_err() {
                return Ok(verdict);
            }
            if run.parted {
                break;
            }
            if (number + 1) % COMPARE_EVERY == 0 {
                let verdict = run.compare("tree");
                if verdict.is_err() {
                    return Ok(verdict);
                }
            }
        }
        run.finish()
    }

    /// A failure of the machine counts as one of the union: it may have died.
    pub fn judge(&self, case: &Case) -> Verdict {
        self.replay(case).unwrap_or_else(|e| Err(broken(&e)))
    }

    /// Invents a case of about `steps` steps and runs it. Answers the case, and what came of it.
    pub fn invent(&self, seed: u64, steps: usize) -> (Case, Verdict, Excused) {
        let mut dice = invent::Dice::new(seed);
        let mut case = invent::case(&mut dice);
        let mut excused = Excused::new();
        let verdict = self
            .invented(&mut dice, &mut case, steps, &mut excused)
            .unwrap_or_else(|e| Err(broken(&e)));
        (case, verdict, excused)
    }

    fn invented(
        &self,
        dice: &mut invent::Dice,
        case: &mut Case,
        steps: usize,
        excused: &mut Excused,
    ) -> Result<Verdict> {
        let mut run = Run::new(self.world(case)?);
        let mut pool = invent::Pool::default();
        let mut verdict = run.compare("tree");
        for number in 0..steps {
            if verdict.is_err() || run.parted {
                break;
            }
            let line = if number % 150 == 149 {
                let what = [b"remount".as_slice(), b"swap"][dice.below(2)];
                Line::of(&[what])
            } else {
                if number % 6 == 0 {
                    sys::fchdir(std::os::fd::AsRawFd::as_raw_fd(&run.world.native.root))
                        .map_err(|e| anyhow::anyhow!(exec::errno_name(e)))?;
                    pool.read(&run.world.native);
                }
                invent::step(dice, &pool, &run.world.native)
            };
            case.steps.push(line.clone());
            verdict = run.step(&line)?;
            if verdict.is_ok() && !run.parted && (number + 1) % COMPARE_EVERY == 0 {
                verdict = run.compare("tree");
            }
        }
        if verdict.is_ok() {
            verdict = run.finish()?;
        }
        excused.append(&mut run.excused);
        Ok(verdict)
    }
}

/// How often each known difference was met.
pub type Excused = std::collections::BTreeMap<&'static str, u64>;

fn broken(error: &anyhow::Error) -> Failure {
    let text = format!("{error:#}");
    let signature = text.split(':').next().unwrap_or_default().to_owned();
    Failure {
        signature: format!("broken: {signature}"),
        text,
    }
}

/// A union that does not answer would hold everybody up for ever: its connection is ended.
fn watch_for_hangs() {
    std::thread::spawn(|| {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let steps = run::STEPS.load(Ordering::Relaxed);
            if steps != last {
                (last, since) = (steps, Instant::now());
            }
            let minor = world::MOUNTED.load(Ordering::Relaxed);
            if minor != 0 && since.elapsed() > HANGS {
                eprintln!("no step has ended for {HANGS:?}: the connection is aborted");
                let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
                since = Instant::now();
            }
        }
    });
}
