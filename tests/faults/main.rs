//! Faults at every call by which the daemon changes a branch, as a program: `faults --dir DIR --uaufs
//! PROGRAM [--quick] [--only WORDS]`. See docs/reliability.md.

mod branches;
#[allow(dead_code, reason = "shared with the fuzzer")]
#[path = "../fuzz/mod.rs"]
mod fuzz;
mod scenarios;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;
mod trial;

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use trace::Calls;
use trial::{Known, Lab, Meanwhile, Scenario};

/// Every error that a filesystem may answer a change with.
const ERRNOS: [i32; 6] = [
    libc::ENOSPC,
    libc::EIO,
    libc::EDQUOT,
    libc::EROFS,
    libc::ENOMEM,
    libc::EMFILE,
];

struct Options {
    lab: Lab,
    quick: bool,
    only: String,
}

fn parse() -> Result<Options> {
    let (mut dir, mut program) = (None, None);
    let (mut quick, mut only) = (false, String::new());
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy().into_owned();
        let mut value = || {
            let value = words.next();
            value.with_context(|| format!("{word}: needs a value"))
        };
        match word.as_str() {
            "--dir" => dir = Some(PathBuf::from(value()?).canonicalize()?),
            "--uaufs" => program = Some(std::path::absolute(value()?)?.into()),
            "--quick" => quick = true,
            "--only" => only = value()?.to_string_lossy().into_owned(),
            _ => bail!("{word}: no such option"),
        }
    }
    let lab = Lab {
        dir: dir.context("--dir: is missing")?,
        program: program.context("--uaufs: is missing")?,
    };
    Ok(Options { lab, quick, only })
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
    fn note(&mut self, scenario: &Scenario, done: Result<Option<String>>) -> bool {
        match done {
            Ok(Some(call)) => *self.calls.entry(call).or_default() += 1,
            Ok(None) => return false,
            Err(error) => {
                self.failed += 1;
                println!("FAIL {scenario}: {error:#}");
            }
        }
        true
    }
}

/// Answers how many trials failed.
fn run(options: &Options) -> Result<u64> {
    let start = std::time::Instant::now();
    let mut tally = Tally::default();
    for (number, scenario) in scenarios::all(options.quick)?.iter().enumerate() {
        if !scenario.to_string().contains(&options.only) {
            continue;
        }
        tally.scenarios += 1;
        match options.lab.observe(scenario, Calls::Changes) {
            Ok(known) => try_all(options, (number, scenario), &known, &mut tally),
            Err(error) => {
                tally.failed += 1;
                println!("FAIL {scenario}: without a fault: {error:#}");
            }
        }
    }
    let calls: Vec<_> = tally
        .calls
        .iter()
        .map(|(c, n)| format!("{c} {n}"))
        .collect();
    println!("calls: {}", calls.join(", "));
    println!(
        "{} scenarios, {} kills, {} errors in {:.0} s",
        tally.scenarios,
        tally.kills,
        tally.errnos,
        start.elapsed().as_secs_f64()
    );
    let passed = tally.kills + tally.errnos;
    println!(
        "{} passed, {} failed",
        passed - tally.failed.min(passed),
        tally.failed
    );
    Ok(tally.failed)
}

fn try_all(
    options: &Options,
    (number, scenario): (usize, &Scenario),
    known: &Known,
    tally: &mut Tally,
) {
    let lab = &options.lab;
    for at in 0..known.calls {
        // The quick run takes turns.
        let turn = number + at;
        let meanwhile = [Meanwhile::Nothing, Meanwhile::Repair];
        let meanwhile = if options.quick {
            &meanwhile[turn % 2..=turn % 2]
        } else {
            &meanwhile
        };
        for meanwhile in meanwhile {
            let done = lab.kill(scenario, known, at, *meanwhile);
            tally.kills += u64::from(tally.note(scenario, done));
        }
        let one = turn % ERRNOS.len();
        let errnos = if options.quick {
            &ERRNOS[one..=one]
        } else {
            &ERRNOS[..]
        };
        for errno in errnos {
            let done = lab.fail(scenario, known, (Calls::Changes, at), *errno);
            tally.errnos += u64::from(tally.note(scenario, done));
        }
    }
}
