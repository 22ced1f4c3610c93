//! `cargo xtask bench`: what programs pay for being profiled. Bare and ours run in turns, so that a machine that is busy is busy
//! for both; each turn gives one ratio, and the median of the ratios is what counts.

mod report;
mod turn;
mod workload;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use turn::Bench;
use workload::{WORKLOADS, Workload};

/// What was typed after `cargo xtask bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Turns of each workload (the empty program gets at least 10)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// One mode alone; both where not given
    #[arg(long, value_parser = ["heap", "objects", "pages"])]
    mode: Option<String>,
    /// The Python that runs the workloads
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Workloads, by name; all where none is given
    #[arg(value_name = "WORKLOAD", value_parser = names())]
    workloads: Vec<String>,
}

fn names() -> Vec<&'static str> {
    WORKLOADS.iter().map(|workload| workload.name).collect()
}

/// The middle of some measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// Of at least one number.
    fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 } else { at(middle) };
        Spread { median, least: at(0), most: at(sorted.len().wrapping_sub(1)) }
    }
}

/// One workload in one mode.
#[derive(Debug, Serialize)]
struct Outcome {
    workload: &'static str,
    mode: String,
    turns: u32,
    bare_seconds: Spread,
    ours_seconds: Spread,
    /// Of the whole program, its start and end included.
    ratio: Spread,
    extra_milliseconds: Spread,
    /// Of what the program does between its start and its end, as it measures itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    work_ratio: Option<Spread>,
    /// The same in processor time, which says more on a busy machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    processor_ratio: Option<Spread>,
    /// What one of its steps (a string, a line) costs in processor time, bare and more under us.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<Step>,
    /// Of the last turn, from the report's health.
    events: u64,
    lost: u64,
    target: Option<Verdict>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    bare_nanoseconds: f64,
    extra_nanoseconds: f64,
    /// The same under memory_profiler, where that is installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_profiler_extra_nanoseconds: Option<f64>,
}

/// A promise and whether it was kept.
#[derive(Debug, Serialize)]
struct Verdict {
    promise: String,
    kept: bool,
}

/// Runs the workloads and prints what they cost.
///
/// # Errors
/// No rights, no Python, a program that fails, or events that were lost. A promise that is not kept is printed, no error: the
/// machine may be busy.
pub fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::new(build()?, python(&arguments.python)?)?;
    let before = report::Machine::now(&bench)?;
    let mut outcomes = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| is_wanted(workload, arguments)) {
        if let Some(module) = workload.needs
            && !bench.has_module(module)?
        {
            eprintln!("{}: passed over, this Python has no {module}", workload.name);
            continue;
        }
        let modes = arguments.mode.as_deref().map_or_else(|| vec!["heap", "pages"], |mode| vec![mode]);
        outcomes.extend(measure(&bench, workload, &modes, arguments.runs)?);
    }
    let after = report::Machine::now(&bench)?;
    if arguments.json {
        report::json(&before, &after, &outcomes)?;
    } else {
        report::table(&before, &after, &outcomes);
    }
    let lost: u64 = outcomes.iter().map(|outcome| outcome.lost).sum();
    ensure!(lost == 0, "{lost} events were lost: the figures of those rows count too little work");
    Ok(())
}

fn is_wanted(workload: &Workload, arguments: &Arguments) -> bool {
    arguments.workloads.is_empty() || arguments.workloads.iter().any(|name| name == workload.name)
}

fn measure(bench: &Bench, workload: &'static Workload, modes: &[&str], runs: u32) -> Result<Vec<Outcome>> {
    let turns = runs.max(workload.least_turns);
    eprintln!("{}: {turns} turns", workload.name);
    let mut bare = Vec::new();
    let mut ours: Vec<Vec<turn::Run>> = modes.iter().map(|_| Vec::new()).collect();
    // Files and caches are warm afterwards.
    bench.bare(workload)?;
    for _ in 0..turns {
        bare.push(bench.bare(workload)?);
        for (mode, runs) in modes.iter().zip(&mut ours) {
            runs.push(bench.ours(workload, mode)?);
        }
    }
    let profiler = match workload.step {
        Some(step) if step == workload::LINE => bench.memory_profiler(workload)?,
        _ => None,
    };
    Ok(modes.iter().zip(&ours).map(|(mode, ours)| outcome(workload, mode, &bare, ours, profiler.as_ref())).collect())
}

fn outcome(
    workload: &'static Workload,
    mode: &str,
    bare: &[turn::Run],
    ours: &[turn::Run],
    profiler: Option<&turn::Run>,
) -> Outcome {
    let pairs = || bare.iter().zip(ours);
    let ratio = Spread::of(pairs().map(|(bare, ours)| ours.seconds / bare.seconds));
    let extra = Spread::of(pairs().map(|(bare, ours)| (ours.seconds - bare.seconds) * 1e3));
    let work = || pairs().filter_map(|(bare, ours)| Some((bare.work?, ours.work?)));
    let has_work = work().next().is_some();
    let work_ratio = has_work.then(|| Spread::of(work().map(|(bare, ours)| ours.seconds / bare.seconds)));
    let processor_ratio =
        has_work.then(|| Spread::of(work().map(|(bare, ours)| ours.processor_seconds / bare.processor_seconds)));
    let nanoseconds = |work: turn::Work| work.processor_seconds / work.steps * 1e9;
    let bare_step = Spread::of(work().map(|(bare, _)| nanoseconds(bare))).median;
    let extra_of = |work: turn::Work| nanoseconds(work) - bare_step;
    let step = workload.step.filter(|_| has_work).map(|name| Step {
        name,
        bare_nanoseconds: bare_step,
        extra_nanoseconds: Spread::of(work().map(|(_, ours)| extra_of(ours))).median,
        memory_profiler_extra_nanoseconds: profiler.and_then(|run| run.work).map(extra_of),
    });
    let last = ours.last().and_then(|run| run.health).unwrap_or_default();
    Outcome {
        workload: workload.name,
        mode: mode.into(),
        turns: u32::try_from(ours.len()).unwrap_or(u32::MAX),
        bare_seconds: Spread::of(bare.iter().map(|run| run.seconds)),
        ours_seconds: Spread::of(ours.iter().map(|run| run.seconds)),
        target: workload.promise(mode).map(|promise| Verdict {
            kept: promise.is_kept(ratio.median, work_ratio.map(|ratio| ratio.median), extra.median),
            promise: promise.to_string(),
        }),
        ratio,
        extra_milliseconds: extra,
        work_ratio,
        processor_ratio,
        step,
        events: last.events,
        lost: ours.iter().filter_map(|run| run.health).map(|health| health.lost).sum(),
    }
}

/// Builds the release binary and says where it is.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "rmprof-bpf",
            "--bin",
            "rmprof-bpf",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo cannot be run")?;
    ensure!(output.status.success(), "the release binary was not built");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let executable = messages.filter_map(|message| Some(message.get("executable")?.as_str()?.to_owned())).next_back();
    executable.map(PathBuf::from).context("cargo did not say where the binary is")
}

/// The Python itself: a version manager's wrapper would be measured with it.
fn python(given: &PathBuf) -> Result<PathBuf> {
    let output = Command::new(given)
        .args(["-c", "import os, sys; print(os.path.realpath(sys.executable))"])
        .output()
        .with_context(|| format!("{} cannot be run\nhint: --python PATH", given.display()))?;
    if !output.status.success() {
        bail!("{} failed: {}", given.display(), String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_median_is_the_middle_or_between_the_two_middles() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.least, spread.median, spread.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([7.0]).median, 7.0);
        assert!(Spread::of([]).median.is_nan());
    }
}
