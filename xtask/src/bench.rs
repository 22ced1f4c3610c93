//! `cargo xtask bench`: what programs pay for being profiled, by us and by others. Bare and the tools run in turns, so that a
//! machine that is busy is busy for all, each tool next to a bare run, since it changes its speed within seconds; each turn gives one
//! ratio, and the median of the ratios is what counts.

mod chart;
mod kept;
mod report;
mod summary;
mod tool;
mod turn;
pub mod watch;
mod workload;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use kept::Kept;
use tool::{TOOLS, Tool};
use turn::Bench;
use workload::{WORKLOADS, Workload};

/// What was typed after `cargo xtask bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Turns of each workload (the empty program gets at least 10)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Who watches them, by name; `all`: we in each mode, and the peers, which are installed outside the tree
    #[arg(long, value_name = "TOOL,…", value_delimiter = ',', default_values = ["heap", "pages"], value_parser = tools())]
    tools: Vec<String>,
    /// The Python that runs the workloads
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw the ratios of the work as an SVG picture
    #[arg(long, value_name = "FILE")]
    chart: Option<PathBuf>,
    /// Keep the figures in this file, a line of JSON for each, as soon as they are there; what it holds already is not measured again
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    /// Workloads, by name; all where none is given
    #[arg(value_name = "WORKLOAD", value_parser = names())]
    workloads: Vec<String>,
}

impl Arguments {
    fn wants_tool(&self, tool: &str) -> bool {
        self.tools.iter().any(|name| name == ALL || name == tool)
    }

    fn wants_workload(&self, workload: &str) -> bool {
        self.workloads.is_empty() || self.workloads.iter().any(|name| name == workload)
    }
}

fn names() -> Vec<&'static str> {
    WORKLOADS.iter().map(|workload| workload.name).collect()
}

/// For all of them.
const ALL: &str = "all";

fn tools() -> Vec<&'static str> {
    TOOLS.iter().map(|tool| tool.name).chain([ALL]).collect()
}

/// The middle of some measurements, and how far they lie apart.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Spread {
    /// Half of them are below, half above.
    pub median: f64,
    /// The least of them.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of at least one number.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len().is_multiple_of(2) { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 } else { at(middle) };
        Spread { median, least: at(0), most: at(sorted.len().wrapping_sub(1)) }
    }
}

/// A run under a tool, and the one without it that was next to it.
#[derive(Clone, Copy, Debug)]
struct Pair {
    bare: turn::Run,
    tool: turn::Run,
}

/// One workload under one tool.
#[derive(Debug, Deserialize, Serialize)]
struct Outcome {
    workload: String,
    tool: String,
    turns: u32,
    /// Why the tool ran it to no end; then there is nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
    #[serde(flatten)]
    figures: Option<Figures>,
}

impl Outcome {
    /// Of its work, by the clock. None where it is about the lines of marked functions: what they cost is another goal.
    fn work_ratio(&self) -> Option<f64> {
        Some(self.figures.as_ref().filter(|_| self.workload != "lines")?.work_ratio?.median)
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Figures {
    bare_seconds: Spread,
    tool_seconds: Spread,
    /// Of the whole program, its start and end included.
    ratio: Spread,
    extra_milliseconds: Spread,
    /// Of what the program does between its start and its end, as it measures itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    work_ratio: Option<Spread>,
    /// The same in processor time, which says more on a busy machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    processor_ratio: Option<Spread>,
    /// What one of its steps (a string, a line) costs in processor time, bare and more under the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<Step>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ours: Option<Ours>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Verdict>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Step {
    name: String,
    bare_nanoseconds: f64,
    extra_nanoseconds: f64,
}

/// What is known of our own runs.
#[derive(Debug, Deserialize, Serialize)]
struct Ours {
    /// Of the last turn, from the report's health.
    events: u64,
    events_per_second: f64,
    /// Of all turns.
    lost: u64,
    /// What our own process took, its start and end included.
    collector_seconds: Spread,
    collector_resident_bytes: u64,
}

/// A promise and whether it was kept.
#[derive(Debug, Deserialize, Serialize)]
struct Verdict {
    promise: String,
    kept: bool,
}

/// Runs the workloads and prints what they cost.
///
/// # Errors
/// No rights, no Python, a program that fails bare or under us, or events that were lost. A promise that is not kept is printed, no
/// error: the machine may be busy. So is a peer that fails.
pub fn run(arguments: &Arguments) -> Result<()> {
    let tools: Vec<&Tool> = TOOLS.iter().filter(|tool| arguments.wants_tool(tool.name)).collect();
    let workloads: Vec<&Workload> =
        WORKLOADS.iter().filter(|workload| arguments.wants_workload(workload.name)).collect();
    let mut python = python(&arguments.python)?;
    if tools.iter().any(|tool| tool.is_peer()) {
        python = tool::peers(&python, &tools)?;
    }
    let bench = Bench::new(build()?, python)?;
    let before = report::Machine::now(&bench)?;
    let mut kept = Kept::open(arguments.keep.as_deref(), &before)?;
    if !arguments.json {
        report::head(&before);
    }
    for workload in workloads {
        if let Some(module) = workload.needs
            && !bench.has_module(module)?
        {
            eprintln!("{}: passed over, this Python has no {module}", workload.name);
            continue;
        }
        let applies = |tool: &&&Tool| workload.has_marks() || !tool.wants_marks();
        let tools: Vec<&Tool> = tools.iter().filter(applies).copied().collect();
        let missing: Vec<&Tool> = tools.iter().filter(|tool| !kept.has(workload.name, tool.name)).copied().collect();
        if !missing.is_empty() {
            kept.add(measure(&bench, workload, &missing, arguments.runs)?)?;
        }
        if !arguments.json {
            report::rows(kept.of(workload.name).filter(|outcome| arguments.wants_tool(&outcome.tool)));
        }
    }
    let after = report::Machine::now(&bench)?;
    let is_wanted = |of: &Outcome| arguments.wants_workload(&of.workload) && arguments.wants_tool(&of.tool);
    let outcomes = kept.into_outcomes(is_wanted);
    let summary = summary::Summary::of(&outcomes);
    if arguments.json {
        report::json(&before, &after, &outcomes, &summary)?;
    } else {
        report::details(&after, &outcomes, &summary);
    }
    if let Some(file) = &arguments.chart {
        chart::draw(file, &outcomes)?;
    }
    let lost: u64 = outcomes.iter().filter_map(|outcome| Some(outcome.figures.as_ref()?.ours.as_ref()?.lost)).sum();
    ensure!(lost == 0, "{lost} events were lost: the figures of those rows count too little work");
    Ok(())
}

fn measure(bench: &Bench, workload: &'static Workload, tools: &[&'static Tool], runs: u32) -> Result<Vec<Outcome>> {
    let turns = runs.max(workload.least_turns);
    eprintln!("{}: {turns} turns", workload.name);
    let mut theirs: Vec<Result<Vec<Pair>, String>> = tools.iter().map(|_| Ok(Vec::new())).collect();
    // Files and caches are warm afterwards.
    bench.bare(workload)?;
    for _ in 0..turns {
        let mut beside = None;
        for (place, (tool, runs)) in tools.iter().zip(&mut theirs).enumerate() {
            // A bare run before each second one: both of the two have it next to them.
            let next = match beside.take().filter(|_| place % 2 == 1) {
                Some(next) => next,
                None => bench.bare(workload)?,
            };
            beside = Some(next);
            let Ok(done) = runs else { continue };
            match bench.under(tool, workload) {
                Ok(run) => done.push(Pair { bare: next, tool: run }),
                Err(error) if tool.is_peer() => *runs = Err(format!("{error:#}")),
                Err(error) => {
                    return Err(
                        error.context("hint: rmprof-bpf needs root (sudo -E env \"PATH=$PATH\" cargo xtask bench)")
                    );
                }
            }
        }
    }
    let outcome = |(tool, runs): (&&'static Tool, Result<Vec<Pair>, String>)| Outcome {
        workload: workload.name.into(),
        tool: tool.name.into(),
        turns,
        figures: runs.as_ref().ok().map(|runs| figures(workload, tool, runs)),
        failed: runs.err(),
    };
    Ok(tools.iter().zip(theirs).map(outcome).collect())
}

fn figures(workload: &Workload, tool: &Tool, pairs: &[Pair]) -> Figures {
    let ratio = Spread::of(pairs.iter().map(|pair| pair.tool.seconds / pair.bare.seconds));
    let extra = Spread::of(pairs.iter().map(|pair| (pair.tool.seconds - pair.bare.seconds) * 1e3));
    let work = || pairs.iter().filter_map(|pair| Some((pair.bare.work?, pair.tool.work?)));
    let has_work = work().next().is_some();
    let work_ratio = has_work.then(|| Spread::of(work().map(|(bare, tool)| tool.seconds / bare.seconds)));
    let processor_ratio =
        has_work.then(|| Spread::of(work().map(|(bare, tool)| tool.processor_seconds / bare.processor_seconds)));
    Figures {
        bare_seconds: Spread::of(pairs.iter().map(|pair| pair.bare.seconds)),
        tool_seconds: Spread::of(pairs.iter().map(|pair| pair.tool.seconds)),
        target: workload.promise(tool.name).map(|promise| Verdict {
            kept: promise.is_kept(ratio.median, work_ratio.map(|ratio| ratio.median), extra.median),
            promise: promise.to_string(),
        }),
        ratio,
        extra_milliseconds: extra,
        work_ratio,
        processor_ratio,
        step: workload.step.filter(|_| has_work).map(|name| step(name, &work().collect::<Vec<_>>())),
        ours: ours(pairs),
    }
}

fn step(name: &'static str, work: &[(turn::Work, turn::Work)]) -> Step {
    let nanoseconds = |work: turn::Work| work.processor_seconds / work.steps * 1e9;
    let bare_nanoseconds = Spread::of(work.iter().map(|(bare, _)| nanoseconds(*bare))).median;
    let extra_nanoseconds = Spread::of(work.iter().map(|(_, tool)| nanoseconds(*tool) - bare_nanoseconds)).median;
    Step { name: name.into(), bare_nanoseconds, extra_nanoseconds }
}

fn ours(pairs: &[Pair]) -> Option<Ours> {
    let last = pairs.last()?.tool;
    let events = last.ours?.health.events;
    let all = || pairs.iter().filter_map(|pair| pair.tool.ours);
    // u64 to f64: beyond 2**53 events nobody waits.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let events_per_second = events as f64 / last.work.map_or(last.seconds, |work| work.seconds);
    Some(Ours {
        events,
        events_per_second,
        lost: all().map(|ours| ours.health.lost).sum(),
        collector_seconds: Spread::of(all().map(|ours| ours.collector.seconds)),
        collector_resident_bytes: all().map(|ours| ours.collector.resident_bytes).max().unwrap_or(0),
    })
}

/// Builds the release binary and says where it is.
pub fn build() -> Result<PathBuf> {
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

/// The Python itself: a version manager's wrapper would be measured with it. Not what a virtual environment's leads to: that has not its
/// modules.
fn python(given: &PathBuf) -> Result<PathBuf> {
    let output = Command::new(given)
        .args(["-c", "import sys; print(sys.executable)"])
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
