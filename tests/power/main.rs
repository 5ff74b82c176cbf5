//! Loss of power at every moment, as a program: `power --dir DIR --uaufs PROGRAM [--quick] [--only
//! WORDS] [--seed N] [--part N/OF] [--every N]`. See docs/reliability.md.

#[allow(dead_code, reason = "shared with another test")]
#[path = "../faults/branches.rs"]
mod branches;
mod disk;
#[allow(dead_code, reason = "shared with the fuzzer")]
#[path = "../fuzz/mod.rs"]
mod fuzz;
mod lab;
mod moments;
mod promise;
mod scenarios;
#[allow(dead_code, reason = "shared with other tests")]
#[path = "../common/trace.rs"]
mod trace;

use anyhow::{Context, Result, bail};
use fuzz::invent::Dice;
use lab::{Lab, Scenario, Ticks};
use std::path::PathBuf;
use std::process::ExitCode;

struct Options {
    lab: Lab,
    quick: bool,
    only: String,
    seed: u64,
    /// Every so many-th scenario, from this one on.
    part: (usize, usize),
    /// The journal is written before every so many-th call; which, the seed tells.
    every: usize,
}

fn parse() -> Result<Options> {
    let (mut dir, mut program) = (None, None);
    let (mut quick, mut only) = (false, String::new());
    let (mut seed, mut part, mut every) = (1, (0, 1), 1);
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let word = word.to_string_lossy().into_owned();
        let mut value = || {
            let value = words.next();
            value.with_context(|| format!("{word}: needs a value"))
        };
        let mut text = || value().map(|value| value.to_string_lossy().into_owned());
        match word.as_str() {
            "--dir" => dir = Some(PathBuf::from(value()?).canonicalize()?),
            "--uaufs" => program = Some(std::path::absolute(value()?)?.into()),
            "--quick" => quick = true,
            "--only" => only = text()?,
            "--seed" => seed = text()?.parse()?,
            "--every" => every = text()?.parse::<usize>()?.max(1),
            "--part" => {
                let text = text()?;
                let (number, of) = text.split_once('/').context("--part: N/OF")?;
                part = (number.parse()?, of.parse()?);
            }
            _ => bail!("{word}: no such option"),
        }
    }
    let lab = Lab {
        dir: dir.context("--dir: is missing")?,
        program: program.context("--uaufs: is missing")?,
        subsets: if quick { 1 } else { 2 },
    };
    Ok(Options {
        lab,
        quick,
        only,
        seed,
        part,
        every,
    })
}

fn main() -> ExitCode {
    match parse().and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("power: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// How trials ended.
#[derive(Default)]
struct Tally {
    scenarios: usize,
    runs: usize,
    moments: usize,
    failed: usize,
}

/// Answers how many trials failed.
fn run(options: &Options) -> Result<usize> {
    let start = std::time::Instant::now();
    let mut tally = Tally::default();
    let (part, of) = options.part;
    for (number, scenario) in scenarios::all(options.quick)?.iter().enumerate() {
        if number % of != part || !scenario.to_string().contains(&options.only) {
            continue;
        }
        tally.scenarios += 1;
        let mut dice = Dice::new(options.seed + number as u64);
        if let Err(error) = try_all(options, scenario, &mut dice, &mut tally) {
            tally.failed += 1;
            println!("FAIL {scenario}: {error:#}");
        }
    }
    println!(
        "{} scenarios, {} runs, {} losses of power in {:.0} s",
        tally.scenarios,
        tally.runs,
        tally.moments,
        start.elapsed().as_secs_f64()
    );
    println!(
        "{} passed, {} failed",
        tally.moments - tally.failed.min(tally.moments),
        tally.failed
    );
    Ok(tally.failed)
}

fn try_all(
    options: &Options,
    scenario: &Scenario,
    dice: &mut Dice,
    tally: &mut Tally,
) -> Result<()> {
    let ready = options.lab.prepare(scenario).context("without a loss")?;
    let mut one = |ticks: &Ticks, dice: &mut Dice| -> Result<usize> {
        let (base, events, calls) = ready.record(ticks)?;
        let (moments, failures) = ready.lose_power((&base, events), dice)?;
        tally.runs += 1;
        tally.moments += moments;
        tally.failed += failures.len();
        for failure in failures {
            println!("FAIL {scenario}: {ticks:?}: {failure}");
        }
        Ok(calls)
    };
    let calls = one(&Ticks::Never, dice)?;
    one(&Ticks::Always, dice)?;
    if options.quick {
        return Ok(());
    }
    let first = dice.below(options.every);
    for call in (first..calls).step_by(options.every) {
        one(&Ticks::At([call].into()), dice)?;
    }
    for _ in 0..3 {
        let some = (0..calls).filter(|_| dice.below(2) == 0).collect();
        one(&Ticks::At(some), dice)?;
    }
    Ok(())
}
