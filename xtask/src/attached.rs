//! `cargo xtask attached`: what programs pay that run already, while `attach` measures them, and what `system` takes itself.

mod session;

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bench;
use session::{Session, taken};

/// What was typed after `cargo xtask attached`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Turns of each measurement
    #[arg(long, default_value_t = 41, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Idle Pythons beside which system is measured
    #[arg(long, default_value_t = 200)]
    idle: u32,
    /// The Python
    #[arg(long, default_value = "python3")]
    python: PathBuf,
}

/// Units of work in a step: a quarter of a second. Many short turns bring the two that are compared close together: a shared machine
/// changes its speed by half within seconds.
const UNITS: u32 = 25;
/// So long system is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// A program that waits for us between its steps.
struct Target {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Target {
    fn start(python: &Path, words: &[&str]) -> Result<Self> {
        let mut child = Command::new(python)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", python.display()))?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut target = Self { child, input, output };
        ensure!(target.line()? == "ready", "the target did not begin");
        Ok(target)
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.output.next().context("the target ended early")??)
    }

    /// One step: processor time and the clock, nanoseconds.
    fn step(&mut self) -> Result<[f64; 2]> {
        self.input.write_all(b"\n")?;
        let line = self.line()?;
        let (processor, clock) = line.split_once(' ').context("two numbers of the target")?;
        Ok([processor.parse()?, clock.parse()?])
    }

    /// Lets it come to its end.
    fn end(self) -> Result<()> {
        let Self { mut child, input, .. } = self;
        drop(input);
        ensure!(child.wait()?.success(), "the target failed");
        Ok(())
    }
}

/// Measures and prints.
///
/// # Errors
/// No rights, or a program that did not run.
pub fn run(arguments: &Arguments) -> Result<()> {
    let binary = bench::build()?;
    println!(
        "While attached, against the same program at the same work without us, {} turns, medians:",
        arguments.runs
    );
    println!("  {:<10} {:<6} {:>16} {:>24} {:>10} {:>10}", "program", "mode", "processor", "clock", "attach", "detach");
    for mode in ["pages", "heap"] {
        for work in ["steady", "growing"] {
            attached(&binary, arguments, mode, work)?;
        }
    }
    system(&binary, arguments)
}

fn attached(binary: &Path, arguments: &Arguments, mode: &str, work: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("target.py");
    std::fs::write(&script, include_str!("attached/target.py"))?;
    let mut target = Target::start(&arguments.python, &[&script.to_string_lossy(), work, &UNITS.to_string()])?;
    let pid = target.child.id();
    let mut ratios = [Vec::new(), Vec::new()];
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    target.step()?; // pays for what is touched once
    for _ in 0..arguments.runs {
        let bare = target.step()?;
        let session = Session::begin(binary, &["attach", "--mode", mode, &pid.to_string()], &[pid])?;
        begun.push(session.begun_in.as_secs_f64() * 1e3);
        let watched = target.step()?;
        ended.push(session.end()?.as_secs_f64() * 1e3);
        for (ratios, (watched, bare)) in ratios.iter_mut().zip(watched.into_iter().zip(bare)) {
            ratios.push(watched / bare);
        }
    }
    target.end()?;
    let [processor, clock] = ratios.map(|ratios| {
        let [least, middle, most] = spread(ratios);
        format!("{middle:.3} ({least:.3}-{most:.3})")
    });
    let ([_, begun, _], [_, ended, _]) = (spread(begun), spread(ended));
    println!("  {work:<10} {mode:<6} {processor:>22} {clock:>22} {begun:>7.0} ms {ended:>7.0} ms");
    Ok(())
}

fn system(binary: &Path, arguments: &Arguments) -> Result<()> {
    const IDLE: &str = "import sys; print('ready', flush=True); sys.stdin.readline()";
    let start = |_| Target::start(&arguments.python, &["-c", IDLE]);
    let idle = (0..arguments.idle).map(start).collect::<Result<Vec<_>>>()?;
    let pids: Vec<u32> = idle.iter().map(|target| target.child.id()).collect();
    let session = Session::begin(binary, &["system"], &pids)?;
    let (at_first, _) = taken(session.pid())?;
    std::thread::sleep(LOOK);
    let (at_last, resident) = taken(session.pid())?;
    let share = (at_last - at_first) / LOOK.as_secs_f64() * 100.0;
    let begun = session.begun_in;
    let ended = session.end()?;
    println!(
        "\nsystem over {} idle Pythons: {share:.2} % of a core, {:.0} MiB resident; all watched after {:.0} ms ({at_first:.2} s of \
         processor time), ended in {:.0} ms",
        arguments.idle,
        resident as f64 / f64::from(1 << 20),
        begun.as_secs_f64() * 1e3,
        ended.as_secs_f64() * 1e3,
    );
    idle.into_iter().try_for_each(Target::end)
}

/// The least, the middle, the most.
fn spread(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    let at = |index: usize| numbers.get(index).copied().unwrap_or(f64::NAN);
    [at(0), at(numbers.len() / 2), at(numbers.len().saturating_sub(1))]
}
