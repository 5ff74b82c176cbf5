//! Faults at every call by which the daemon changes a branch, as a program: `faults --dir DIR --uaufs
//! PROGRAM [--turns | --sample N] [--seed N] [--share I/N] [--only WORDS] [--at CALL]`. See
//! docs/reliability.md.

mod branches;
mod commands;
#[allow(dead_code, reason = "shared with the fuzzer")]
#[path = "../fuzz/mod.rs"]
mod fuzz;
mod scenarios;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;
mod trial;

use anyhow::{Context, Result, bail};
use commands::Job;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;
use trace::{Calls, Fault};
use trial::{Lab, Meanwhile, Scenario};

/// Every error that a filesystem may answer a change with.
const ERRNOS: [i32; 6] = [
    libc::ENOSPC,
    libc::EIO,
    libc::EDQUOT,
    libc::EROFS,
    libc::ENOMEM,
    libc::EMFILE,
];

/// A run in turns opens with EMFILE one of so many times.
const OPENS: usize = 4;

/// Trials of each scenario of a sample.
const PER_SCENARIO: usize = 6;

/// How much is tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// Each call is met by one kill and one error: which, the seed tells.
    Turns,
    /// So many scenarios, and a few trials of each.
    Sample(usize),
}

struct Options {
    lab: Lab,
    extent: Extent,
    /// Which sample it is, or whose turn.
    seed: u64,
    /// Part and number of parts.
    share: (usize, usize),
    only: String,
    /// Only this call.
    at: Option<usize>,
}

fn parse() -> Result<Options> {
    let (mut dir, mut program, mut at, mut seed) = (None, None, None, None);
    let (mut extent, mut only, mut share) = (Extent::All, String::new(), (0, 1));
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy().into_owned();
        let mut value = || {
            let value = words.next();
            value.with_context(|| format!("{word}: needs a value"))
        };
        let mut text = || value().map(|value| value.to_string_lossy().into_owned());
        match word.as_str() {
            "--dir" => dir = Some(PathBuf::from(text()?).canonicalize()?),
            "--uaufs" => program = Some(std::path::absolute(text()?)?.into()),
            "--turns" => extent = Extent::Turns,
            "--sample" => extent = Extent::Sample(text()?.parse()?),
            "--seed" => seed = Some(text()?.parse()?),
            "--share" => {
                let text = text()?;
                let (part, parts) = text.split_once('/').context("--share: I/N")?;
                share = (part.parse()?, parts.parse()?);
            }
            "--only" => only = text()?,
            "--at" => at = Some(text()?.parse()?),
            _ => bail!("{word}: no such option"),
        }
    }
    let lab = Lab {
        dir: dir.context("--dir: is missing")?,
        program: program.context("--uaufs: is missing")?,
    };
    Ok(Options {
        lab,
        extent,
        seed: seed.unwrap_or_else(|| fuzz::exec::now() as u64 / 60),
        share,
        only,
        at,
    })
}

fn main() -> ExitCode {
    match parse().and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// How trials ended.
#[derive(Default)]
struct Tally {
    scenarios: usize,
    kills: u64,
    errnos: u64,
    failed: u64,
    /// How often a fault met each call.
    calls: BTreeMap<String, u64>,
}

impl Tally {
    /// Notes a trial; answers whether its call came.
    fn note(&mut self, case: impl std::fmt::Display, done: Result<Option<String>>) -> bool {
        match done {
            Ok(Some(call)) => *self.calls.entry(call).or_default() += 1,
            Ok(None) => return false,
            Err(error) => {
                self.failed += 1;
                println!("FAIL {case}: {error:#}");
            }
        }
        true
    }
}

enum Case {
    Of(Scenario),
    Job(Job),
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Of(scenario) => scenario.fmt(f),
            Self::Job(job) => job.fmt(f),
        }
    }
}

/// One fault.
#[derive(Clone, Copy)]
enum Trial {
    Kill(usize, Meanwhile),
    Fail(Calls, usize, i32),
}

/// Answers how many trials failed.
fn run(options: &Options) -> Result<u64> {
    let start = std::time::Instant::now();
    let mut tally = Tally::default();
    if options.extent != Extent::All {
        println!("seed {}", options.seed);
    }
    let scenarios = scenarios::all()?;
    let jobs = commands::JOBS.iter().copied().map(Case::Job);
    let all: Vec<Case> = scenarios.into_iter().map(Case::Of).chain(jobs).collect();
    let (part, parts) = options.share;
    for (turn, number) in chosen(options, all.len()).enumerate() {
        let case = &all[number];
        if turn % parts != part || !case.to_string().contains(&options.only) {
            continue;
        }
        tally.scenarios += 1;
        let tried = match case {
            Case::Of(scenario) => try_scenario(options, (number, scenario), &mut tally),
            Case::Job(job) => try_job(options, (number, *job), &mut tally),
        };
        if let Err(error) = tried {
            tally.failed += 1;
            println!("FAIL {case}: without a fault: {error:#}");
        }
    }
    report(&tally, start.elapsed().as_secs_f64());
    Ok(tally.failed)
}

/// The scenarios of this run. Samples with seeds that follow each other have different ones, until
/// all have had their turn.
fn chosen(options: &Options, all: usize) -> Box<dyn Iterator<Item = usize>> {
    let Extent::Sample(size) = options.extent else {
        return Box::new(0..all);
    };
    let start = (options.seed as usize % all) * size;
    // Neighbours are much alike.
    let far = (all / 3..all).find(|step| coprime(*step, all)).unwrap_or(1);
    Box::new((start..start + size).map(move |turn| turn % all * far % all))
}

fn coprime(a: usize, b: usize) -> bool {
    if b == 0 { a == 1 } else { coprime(b, a % b) }
}

/// Leaves some of these, which the seed tells.
fn pick<T>(all: &mut Vec<T>, count: usize, seed: u64) {
    let hash = |turn: usize| {
        let mut hasher = std::hash::DefaultHasher::new();
        (seed, turn).hash(&mut hasher);
        hasher.finish() as usize
    };
    let count = count.min(all.len());
    for turn in 0..count {
        let other = turn + hash(turn) % (all.len() - turn);
        all.swap(turn, other);
    }
    all.truncate(count);
}

fn report(tally: &Tally, seconds: f64) {
    let calls: Vec<_> = tally
        .calls
        .iter()
        .map(|(c, n)| format!("{c} {n}"))
        .collect();
    println!("calls: {}", calls.join(", "));
    println!(
        "{} scenarios, {} kills, {} errors in {seconds:.0} s",
        tally.scenarios, tally.kills, tally.errnos,
    );
    let passed = tally.kills + tally.errnos;
    println!(
        "{} passed, {} failed",
        passed - tally.failed.min(passed),
        tally.failed
    );
}

/// An error is one that came without a fault.
fn try_scenario(
    options: &Options,
    (number, scenario): (usize, &Scenario),
    tally: &mut Tally,
) -> Result<()> {
    let lab = &options.lab;
    let known = lab.observe(scenario, Calls::Changes)?;
    let turn = number + options.seed as usize;
    let mut trials = changes(options.extent, turn, known.calls);
    let opened = lab.observe(scenario, Calls::ChangesAndOpens)?;
    trials.extend(opens(options.extent, turn, opened.calls));
    select(options, number, &mut trials);
    for trial in trials {
        match trial {
            Trial::Kill(at, meanwhile) => {
                let done = lab.kill(scenario, &known, at, meanwhile);
                tally.kills += u64::from(tally.note(scenario, done));
            }
            Trial::Fail(calls, at, errno) => {
                let known = if calls == Calls::Changes {
                    &known
                } else {
                    &opened
                };
                let done = lab.fail(scenario, known, (calls, at), errno);
                tally.errnos += u64::from(tally.note(scenario, done));
            }
        }
    }
    Ok(())
}

/// As [`try_scenario`].
fn try_job(options: &Options, (number, job): (usize, Job), tally: &mut Tally) -> Result<()> {
    let expected = options.lab.expect(job)?;
    let turn = number + options.seed as usize;
    let mut trials = changes(options.extent, turn, expected.calls);
    trials.retain(|trial| !matches!(trial, Trial::Kill(_, Meanwhile::Repair)));
    select(options, number, &mut trials);
    for trial in trials {
        let (at, fault) = match trial {
            Trial::Kill(at, _) => (at, Fault::Kill),
            Trial::Fail(_, at, errno) => (at, Fault::Errno(errno)),
        };
        let done = options.lab.disturb(job, &expected, at, fault);
        let tried = u64::from(tally.note(job, done));
        match fault {
            Fault::Kill => tally.kills += tried,
            Fault::Errno(_) => tally.errnos += tried,
        }
    }
    Ok(())
}

/// Leaves what is asked for.
fn select(options: &Options, number: usize, trials: &mut Vec<Trial>) {
    if let Extent::Sample(_) = options.extent {
        pick(trials, PER_SCENARIO, options.seed ^ number as u64);
    }
    trials.retain(|trial| {
        let (Trial::Kill(at, _) | Trial::Fail(_, at, _)) = trial;
        options.at.is_none_or(|only| only == *at)
    });
}

/// Faults at calls that change a branch.
fn changes(extent: Extent, turn: usize, calls: usize) -> Vec<Trial> {
    let mut trials = Vec::new();
    for at in 0..calls {
        let kills = [Meanwhile::Nothing, Meanwhile::Repair].map(|m| Trial::Kill(at, m));
        let fails = ERRNOS.map(|errno| Trial::Fail(Calls::Changes, at, errno));
        if extent == Extent::Turns {
            let turn = turn + at;
            trials.extend([kills[turn % kills.len()], fails[turn % fails.len()]]);
        } else {
            trials.extend(kills);
            trials.extend(fails);
        }
    }
    trials
}

/// A process that has no descriptor left.
fn opens(extent: Extent, turn: usize, calls: usize) -> impl Iterator<Item = Trial> {
    let all = extent != Extent::Turns;
    (0..calls)
        .filter(move |at| all || (turn + at).is_multiple_of(OPENS))
        .map(|at| Trial::Fail(Calls::ChangesAndOpens, at, libc::EMFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is left then that counts as a link.
    #[test]
    fn a_link_over_a_whiteout_can_be_killed_at_each_call() {
        let me = std::env::current_exe().unwrap();
        let built = me.ancestors().nth(2).unwrap().join("uaufs");
        if !rustix::process::geteuid().is_root() || std::fs::File::open("/dev/fuse").is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return;
        }
        // Calls on branches are told by the filesystem, which nobody else of the daemon's uses.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let lab = Lab {
            dir: dir.path().into(),
            program: std::env::var_os("UAUFS").unwrap_or_else(|| built.into()),
        };
        let all = scenarios::all().unwrap();
        for name in ["overlay:, link g gone", "overlay:, link sym gone"] {
            let found = all.iter().find(|s| s.to_string() == name).unwrap();
            let known = lab.observe(found, Calls::Changes).unwrap();
            assert!(known.calls > 0);
            for at in 0..known.calls {
                let hit = lab.kill(found, &known, at, Meanwhile::Nothing).unwrap();
                assert!(hit.is_some(), "call {at} did not come");
            }
        }
    }
}
