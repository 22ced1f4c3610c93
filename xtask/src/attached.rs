//! `cargo xtask attached`: what programs pay that run already, while `attach` measures them, for how long they stand still meanwhile, and
//! what `system` takes itself.

mod session;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::watch::taken;
use crate::bench::{self, Spread};
use crate::waiting::Waiting;
use session::Session;

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
    let mut stood = Vec::new();
    for mode in ["pages", "heap"] {
        for work in ["steady", "growing"] {
            stood.push((work, mode, attached(&binary, arguments, mode, work)?));
        }
    }
    println!(
        "\nThe longest gap between two of its shortest steps, by the clock, and without what it waited for a processor that others had;\n\
         ms, medians (and the longest of all):"
    );
    println!("  {:<10} {:<6} {:<9} {:>16} {:>16} {:>16}", "program", "mode", "", "bare", "attach", "detach");
    for (work, mode, [bare, attach, detach]) in stood {
        for (what, [bare, attach, detach]) in [
            ("clock", [bare.clock, attach.clock, detach.clock].map(shown)),
            ("stopped", [bare.stopped, attach.stopped, detach.stopped].map(shown)),
        ] {
            println!("  {work:<10} {mode:<6} {what:<9} {bare:>16} {attach:>16} {detach:>16}");
        }
    }
    system(&binary, arguments)
}

/// The longest gaps between two steps of target.py, milliseconds.
#[derive(Default)]
struct Gaps {
    clock: Vec<f64>,
    /// Without those in which it was ready to run.
    stopped: Vec<f64>,
}

impl Gaps {
    /// One more, while `during` is done.
    fn add<T>(&mut self, target: &mut Waiting, during: impl FnOnce() -> Result<T>) -> Result<T> {
        target.ask("gap")?; // it has begun
        let done = during()?;
        let [clock, stopped] = two_numbers(&target.step()?)?.map(|nanoseconds| nanoseconds / 1e6);
        self.clock.push(clock);
        self.stopped.push(stopped);
        Ok(done)
    }
}

fn shown(gaps: Vec<f64>) -> String {
    let Spread { median, most, .. } = Spread::of(gaps);
    format!("{median:.2} ({most:.2})")
}

/// Prints what it paid, and returns its gaps: bare, while we attach, and while we detach.
fn attached(binary: &Path, arguments: &Arguments, mode: &str, work: &str) -> Result<[Gaps; 3]> {
    let folder = tempfile::tempdir()?;
    let script = folder.path().join("target.py");
    std::fs::write(&script, include_str!("attached/target.py"))?;
    let mut target = Waiting::start(Command::new(&arguments.python).arg(script).args([work, &UNITS.to_string()]))?;
    let pid = target.pid();
    let mut ratios = [Vec::new(), Vec::new()];
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    let [mut alone, mut attach, mut detach] = [Gaps::default(), Gaps::default(), Gaps::default()];
    // So long as the last attach took, since the longer one looks, the longer is the longest gap.
    let mut window = Duration::from_millis(100);
    step(&mut target)?; // pays for what is touched once
    for _ in 0..arguments.runs {
        let bare = step(&mut target)?;
        alone.add(&mut target, || {
            std::thread::sleep(window);
            Ok(())
        })?;
        let session = attach
            .add(&mut target, || Session::begin(binary, &["attach", "--mode", mode, &pid.to_string()], &[pid]))?;
        window = session.begun_in;
        begun.push(window.as_secs_f64() * 1e3);
        let watched = step(&mut target)?;
        ended.push(detach.add(&mut target, || session.end())?.as_secs_f64() * 1e3);
        for (ratios, (watched, bare)) in ratios.iter_mut().zip(watched.into_iter().zip(bare)) {
            ratios.push(watched / bare);
        }
    }
    target.end()?;
    let [processor, clock] = ratios.map(|ratios| {
        let Spread { median, least, most } = Spread::of(ratios);
        format!("{median:.3} ({least:.3}-{most:.3})")
    });
    let [begun, ended] = [begun, ended].map(|times| Spread::of(times).median);
    println!("  {work:<10} {mode:<6} {processor:>22} {clock:>22} {begun:>7.0} ms {ended:>7.0} ms");
    Ok([alone, attach, detach])
}

/// One step of target.py: processor time and the clock, nanoseconds.
fn step(target: &mut Waiting) -> Result<[f64; 2]> {
    two_numbers(&target.step()?)
}

fn two_numbers(line: &str) -> Result<[f64; 2]> {
    let (first, second) = line.split_once(' ').context("two numbers of the target")?;
    Ok([first.parse()?, second.parse()?])
}

fn system(binary: &Path, arguments: &Arguments) -> Result<()> {
    const IDLE: &str = "import sys; print('ready', flush=True); sys.stdin.readline()";
    let start = |_| Waiting::start(Command::new(&arguments.python).args(["-c", IDLE]));
    let idle = (0..arguments.idle).map(start).collect::<Result<Vec<_>>>()?;
    let pids: Vec<u32> = idle.iter().map(Waiting::pid).collect();
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
    idle.into_iter().try_for_each(Waiting::end)
}
