//! The fuzzer as a program: `fuzz --dir DIR --uaufs PROGRAM [--seed S] [--runs N | --minutes M]
//! [--steps N] [--keep DIR] [--replay FILE]`.

#[path = "mod.rs"]
mod fuzz;

use anyhow::{Context, Result, bail};
use fuzz::case::Case;
use fuzz::{Excused, Lab};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

struct Options {
    dir: PathBuf,
    program: OsString,
    seed: u64,
    runs: u64,
    minutes: f64,
    steps: usize,
    keep: Option<PathBuf>,
    replay: Vec<PathBuf>,
    shrink: bool,
}

fn parse() -> Result<Options> {
    let mut options = Options {
        dir: PathBuf::new(),
        program: OsString::new(),
        seed: 1,
        runs: 0,
        minutes: 0.0,
        steps: 600,
        keep: None,
        replay: Vec::new(),
        shrink: true,
    };
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let word = word.into_string().unwrap_or_default();
        let mut value = || {
            words
                .next()
                .with_context(|| format!("{word}: needs a value"))
        };
        let number = |value: OsString| value.into_string().unwrap_or_default();
        match word.as_str() {
            "--dir" => options.dir = value()?.into(),
            "--uaufs" => options.program = std::path::absolute(value()?)?.into(),
            "--seed" => options.seed = number(value()?).parse()?,
            "--runs" => options.runs = number(value()?).parse()?,
            "--minutes" => options.minutes = number(value()?).parse()?,
            "--steps" => options.steps = number(value()?).parse()?,
            "--keep" => options.keep = Some(value()?.into()),
            "--replay" => options.replay.push(value()?.into()),
            "--no-shrink" => options.shrink = false,
            _ => bail!("{word}: no such option"),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match parse().and_then(|options| run(&options)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Answers how many runs failed.
fn run(options: &Options) -> Result<u64> {
    let lab = Lab::new(&options.dir, options.program.clone())?;
    let (mut passed, mut failed) = (0, 0);
    if !options.replay.is_empty() {
        let mut cases = Vec::new();
        for file in &options.replay {
            let text = std::fs::read_to_string(file);
            let case = text.map_err(Into::into).and_then(|text| Case::parse(&text));
            cases.push((file, case.with_context(|| file.display().to_string())?));
        }
        for (file, case) in cases {
            match lab.judge(&case) {
                Ok(()) => passed += 1,
                Err(failure) => {
                    failed += 1;
                    println!("FAIL {}: {}", file.display(), failure.text);
                }
            }
        }
        println!("{passed} passed, {failed} failed");
        return Ok(failed);
    }
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(options.minutes * 60.0);
    let (mut excused, mut seen) = (Excused::new(), BTreeMap::<String, u64>::new());
    let mut seed = options.seed;
    let mut steps = 0;
    while passed + failed < options.runs || Instant::now() < until {
        let (case, verdict, met) = lab.invent(seed, options.steps);
        steps += case.steps.len();
        for (id, times) in met {
            *excused.entry(id).or_default() += times;
        }
        match verdict {
            Ok(()) => passed += 1,
            Err(failure) => {
                failed += 1;
                let times = seen.entry(failure.signature.clone()).or_default();
                *times += 1;
                println!("FAIL seed {seed}: [{}] {}", failure.signature, failure.text);
                if *times == 1 && options.shrink {
                    tell(&lab, seed, case, &failure.signature, options)?;
                }
            }
        }
        seed += 1;
    }
    for (id, times) in excused {
        println!("known: {id}, {times} times ({})", fuzz::known::reason(id));
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "seeds {} to {}: {steps} steps in {seconds:.0} s, {:.0} a second",
        options.seed,
        seed - 1,
        steps as f64 / seconds
    );
    println!("{passed} passed, {failed} failed");
    Ok(failed)
}

/// Shrinks a case and prints it.
fn tell(lab: &Lab, seed: u64, mut case: Case, signature: &str, options: &Options) -> Result<()> {
    if signature.contains(" tree ") {
        // Trees are compared by the count of steps, which becomes another.
        case.steps.push(fuzz::line::Line::of(&[b"compare"]));
    }
    let fails = |case: &Case| lab.judge(case).is_err_and(|f| f.signature == signature);
    let again = fails(&case);
    let small = if again {
        fuzz::shrink::shrink(case, fails)
    } else {
        println!("it does not fail when it is replayed:");
        case
    };
    let last = lab.judge(&small).err().map(|f| f.text).unwrap_or_default();
    let text = format!("# seed {seed}: {}\n{small}", last.replace('\n', "\n# "));
    println!("----\n{text}----");
    if let Some(dir) = &options.keep {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join(format!("{seed}.case")), text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every case that once failed.
    #[test]
    fn what_was_found_stays_mended() {
        let me = std::env::current_exe().unwrap();
        let built = me.ancestors().nth(2).unwrap().join("uaufs");
        let program = std::env::var_os("UAUFS").unwrap_or_else(|| built.into());
        if !rustix::process::geteuid().is_root() || std::fs::File::open("/dev/fuse").is_err() {
            eprintln!("skipped: needs root and /dev/fuse");
            return;
        }
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let lab = Lab::new(dir.path(), program).unwrap();
        let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/regressions");
        let mut failures = Vec::new();
        for file in std::fs::read_dir(cases).unwrap() {
            let file = file.unwrap().path();
            let case = Case::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
            if let Err(failure) = lab.judge(&case) {
                failures.push(format!("{}: {}", file.display(), failure.text));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}
