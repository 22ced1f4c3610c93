//! Runs of generated programs, compared with the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use super::make::{Made, STEP, program};
use super::program::Kind;
use super::rules::{MODELLED, Rules};
use super::run::expected;
use super::world::Totals;
use super::write::{Variant, head_lines, text};
use crate::common::{Python, Run, Script, root, script, supported_pythons};

/// Every line by the name of its function and its number.
type Lines = BTreeMap<(String, u32), Totals>;

fn by_name(made: &Made, rules: Rules) -> Lines {
    let mut lines = Lines::new();
    for ((id, line), totals) in expected(&made.program, &made.module, rules) {
        let name = made.names[usize::try_from(id).unwrap()].clone();
        assert!(lines.insert((name, line), totals).is_none(), "two functions of one name on line {line}");
    }
    lines
}

fn seeds(few: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    match number("RMPROF_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("RMPROF_GENERATED").unwrap_or(few)).collect(),
    }
}

/// What the interpreter itself says of the program, without a profiler.
fn witnessed(python: &Python, program: &Script, rules: Rules) -> Lines {
    let heads = |kind| {
        let beside = rules.bytes(kind, 0);
        (format!("{kind:?}"), vec![rules.bytes(kind, 1) - beside, beside, rules.cleared(kind)])
    };
    let kinds = [Kind::Bytearray, Kind::Bytes, Kind::Text, Kind::Nones, Kind::Tuple];
    let heads: BTreeMap<String, Vec<u64>> = kinds.into_iter().map(heads).collect();
    let output = Command::new(&python.path)
        .arg(&program.path)
        .env("WITNESS_HEADS", serde_json::to_string(&heads).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Vec<(String, u32, i64, i64, i64)> = serde_json::from_slice(&output.stdout).unwrap();
    let lines = found.into_iter().map(|(name, line, allocated, freed, own)| {
        ((name, line), Totals { allocated, freed, own, ..Totals::default() })
    });
    lines.collect()
}

/// What the profiler says, of all functions of the program but the lines before it.
fn measured(python: &Python, program: &Script, options: &[&str]) -> Lines {
    let ran = Run::json().words(options).words([&python.path, &program.path]).run().expect(0).quiet();
    let report = ran.report();
    report.check_complete();
    let mut lines = Lines::new();
    for function in report.only().0["functions"].as_array().unwrap() {
        let name = function["name"].as_str().unwrap().to_owned();
        if Path::new(function["filename"].as_str().unwrap()) != program.path {
            continue;
        }
        for line in function["lines"].as_array().unwrap() {
            let number = |name: &str| line[name].as_i64().unwrap();
            let at = u32::try_from(number("line")).unwrap();
            assert_eq!(number("increment_bytes"), number("allocated_bytes") - number("freed_bytes"), "{line}");
            if at > head_lines() {
                let sums = lines.entry((name.clone(), at)).or_default();
                sums.allocated += number("allocated_bytes");
                sums.freed += number("freed_bytes");
                sums.own += number("self_bytes");
            }
        }
    }
    lines
}

/// A program of a seed, run by a Python.
struct Job<'p> {
    seed: u64,
    python: &'p Python,
    variant: Variant,
}

impl std::fmt::Display for Job<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RMPROF_SEED={} {:?} {}", self.seed, self.variant, self.python.path.display())
    }
}

/// Says what repeats a job whose check has panicked.
struct Named<'j>(&'j Job<'j>);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}: not checked to its end", self.0);
        }
    }
}

/// What jobs came to.
#[derive(Default)]
struct Tally {
    runs: usize,
    lines: usize,
    wrong: usize,
}

/// What a line may have beside the blocks of the model, bytes each way: any line, and more that it gives back for each event loop that it
/// runs and each statement that is executed meanwhile.
#[derive(Clone, Copy, Default)]
struct Beside {
    line: i64,
    loop_: i64,
    step: i64,
}

/// Does every job, as many at once as there are processors, and fails if a line is wrong. What repeats it is printed.
fn check(jobs: Vec<Job<'_>>, beside: Beside, run: impl Fn(&Job<'_>, &Script) -> (Rules, Lines) + Sync) {
    let (jobs, tally) = (Mutex::new(jobs.into_iter()), Mutex::new(Tally::default()));
    let work = || {
        while let Some(job) = next(&jobs) {
            let _named = Named(&job);
            let made = program(job.seed);
            let text = text(&made.program, job.variant);
            if let Some(directory) = std::env::var_os("RMPROF_KEEP") {
                let name = format!("generated-{}-{:?}.py", job.seed, job.variant);
                std::fs::write(Path::new(&directory).join(name), &text).unwrap();
            }
            let program = script("generated.py", &text);
            let (rules, found) = run(&job, &program);
            let known = by_name(&made, rules);
            let wrong = compare(&known, &found, &text, &job, beside);
            let mut tally = tally.lock().unwrap();
            (tally.runs, tally.lines, tally.wrong) = (tally.runs + 1, tally.lines + known.len(), tally.wrong + wrong);
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let Tally { runs, lines, wrong } = tally.into_inner().unwrap();
    println!("{runs} runs, {lines} lines, {wrong} wrong");
    assert_eq!(wrong, 0, "wrong lines of {lines} in {runs} runs");
}

fn next<'p>(jobs: &Mutex<impl Iterator<Item = Job<'p>>>) -> Option<Job<'p>> {
    jobs.lock().unwrap().next()
}

/// Compares every line that is expected or was reported. Returns how many are wrong.
fn compare(known: &Lines, found: &Lines, text: &str, job: &Job<'_>, beside: Beside) -> usize {
    let keys: BTreeSet<_> = known.keys().chain(found.keys()).collect();
    let mut wrong = 0;
    for key in keys {
        let [expected, found] = [known, found].map(|lines| lines.get(key).copied().unwrap_or_default());
        let asked = found.allocated - expected.allocated;
        let freed = found.freed - expected.freed;
        let own = found.own - expected.own;
        let line = text.lines().nth(usize::try_from(key.1).unwrap() - 1).unwrap();
        let passing = beside.line + beside.loop_ * expected.loops + beside.step * expected.steps;
        let kept = asked - freed;
        let both = [asked, freed].iter().all(|bytes| (0..=passing).contains(bytes));
        if both && own.abs() <= beside.line && kept.abs() <= beside.line {
            continue;
        }
        wrong += 1;
        println!("{job}: line {} of {}: {found:?}, not {expected:?}: {}", key.1, key.0, line.trim());
    }
    wrong
}

/// Those whose rules the model knows.
fn modelled_pythons() -> Vec<Python> {
    supported_pythons().into_iter().filter(|python| MODELLED.contains(&python.version.0)).collect()
}

/// Every seed with every Python; marked, unmarked and marked again, so that each Python has both.
fn jobs<'p>(seeds: &[u64], pythons: &'p [Python]) -> Vec<Job<'p>> {
    let pairs = seeds.iter().flat_map(|seed| pythons.iter().map(move |python| (*seed, python)));
    let jobs = pairs.zip(0usize..).map(|((seed, python), at)| {
        let odd = (at / pythons.len() + at % pythons.len()) % 2 == 1;
        Job { seed, python, variant: if odd { Variant::Unmarked } else { Variant::Marked } }
    });
    jobs.collect()
}

/// The model is what CPython does, to the byte: the interpreter itself says so, without a profiler.
#[test]
fn generated_programs_are_understood() {
    let pythons = modelled_pythons();
    let witnessed_jobs = jobs(&seeds(4), &pythons).into_iter().map(|job| Job { variant: Variant::Witnessed, ..job });
    check(witnessed_jobs.collect(), Beside::default(), |job, program| {
        program.beside("witness.py", include_str!("witness.py"));
        let rules = Rules::bare(job.python.version.0);
        (rules, witnessed(job.python, program, rules))
    });
}

/// What small objects, frames and pages of arenas may take on a line beside its blocks: less than half the difference of two blocks,
/// and a tenth of the smallest.
const BESIDE: Beside = Beside { line: STEP.cast_signed() / 2 - 1, loop_: 0, step: 0 };

/// In objects mode an event loop takes some 44 KB for itself, and a statement numbers, tuples, iterators, a frame for a call, what its line
/// event takes: they are given back.
const OF_OBJECTS: Beside = Beside { line: BESIDE.line, loop_: 2 * STEP.cast_signed(), step: 256 };

fn check_profiler(few: u64, beside: Beside, options: &[&str]) {
    if root() {
        let pythons = modelled_pythons();
        check(jobs(&seeds(few), &pythons), beside, |job, program| {
            let rules = Rules::of(job.python.version.0, job.variant == Variant::Marked);
            (rules, measured(job.python, program, options))
        });
    }
}

#[test]
fn root_generated_programs() {
    check_profiler(8, BESIDE, &[]);
}

#[test]
fn root_generated_programs_by_probes() {
    check_profiler(1, BESIDE, &["--no-preload"]);
}

#[test]
fn root_generated_programs_of_objects() {
    check_profiler(4, OF_OBJECTS, &["--mode", "objects"]);
}

/// The programs have in them what they are to have.
#[test]
fn generated_programs_have_all_constructs() {
    let texts: String = (0..40).map(|seed| text(&program(seed).program, Variant::Marked)).collect();
    for construct in [
        "@profile",
        "@passing",
        "@property",
        "class ",
        "async def ",
        "await coroutine",
        "asyncio.gather(",
        "asyncio.run(",
        "async for ",
        "async with ",
        "with ",
        "yield ",
        ".close()",
        "next(",
        "except ",
        " as error_",
        "finally:",
        "else:",
        "raise\n",
        "raise ",
        "break",
        "continue",
        "return ",
        "while ",
        "del ",
        "nonlocal ",
        "lambda: ",
        "threading.Thread(",
        ".start()",
        ".join()",
        "= [",
        "list(",
        "sum(",
        " += bytes(",
        ".clear()",
        ".pop()",
        "recursive_",
        " if ",
        "self.a = ",
    ] {
        assert!(texts.contains(construct), "no {construct:?}");
    }
}
