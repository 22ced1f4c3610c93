//! What the bench prints.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::summary::Summary;
use super::turn::Bench;
use super::{Figures, Outcome, Spread};

/// On what it was measured, and how busy that was.
#[derive(Debug, Deserialize, Serialize)]
pub struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
    python: String,
    /// The mean number of threads that ran or wanted to in the last minute.
    load: f64,
}

impl Machine {
    pub fn now(bench: &Bench) -> Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| path.to_owned());
        let version = Command::new(&bench.python).arg("-V").output().context("the Python cannot be run")?;
        let cpuinfo = read("/proc/cpuinfo")?;
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Machine {
            kernel: read("/proc/sys/kernel/osrelease")?.trim_end().into(),
            processor: processor.map_or_else(String::new, |(_, name)| name.into()),
            processors: std::thread::available_parallelism()?.get(),
            python: String::from_utf8_lossy(&version.stdout).trim_end().into(),
            load: read("/proc/loadavg")?.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
        })
    }

    /// Whether figures of both can stand in one table.
    pub fn is_same(&self, other: &Machine) -> bool {
        self.name() == other.name()
    }

    pub fn name(&self) -> String {
        format!("{}, Linux {}, {} x {}", self.python, self.kernel, self.processors, self.processor)
    }
}

/// For machines.
pub fn json(before: &Machine, after: &Machine, outcomes: &[Outcome], summary: &Summary) -> Result<()> {
    let document = serde_json::json!({
        "machine": before, "load_after": after.load, "outcomes": outcomes, "summary": summary,
    });
    println!("{document:#}");
    Ok(())
}

/// For people: what comes before the rows.
pub fn head(machine: &Machine) {
    println!("{}; load {:.1}", machine.name(), machine.load);
    println!(
        "Medians; in parentheses the least and the most. Whole: start to end of the program. Work: what it does between, by the clock \
              and in processor time.\n"
    );
    println!(
        "{:<13} {:<15} {:>5} {:>8} {:>8} {:>22} {:>20} {:>21} {:>21}  promise",
        "workload", "tool", "turns", "bare s", "tool s", "extra ms", "whole", "work, clock", "work, processor",
    );
}

/// A workload's, as soon as they are there.
pub fn rows<'a>(outcomes: impl Iterator<Item = &'a Outcome>) {
    for outcome in outcomes {
        print!("{:<13} {:<15} {:>5} ", outcome.workload, outcome.tool, outcome.turns);
        if let Some(figures) = &outcome.figures {
            row(figures);
        }
        if let Some(why) = &outcome.failed {
            println!("failed: {}", why.replace('\n', " "));
        }
    }
}

/// What comes after them.
pub fn details(after: &Machine, outcomes: &[Outcome], summary: &Summary) {
    println!("\nLoad {:.1} at the end.\n", after.load);
    for outcome in outcomes {
        if let Some(step) = outcome.figures.as_ref().and_then(|figures| figures.step.as_ref()) {
            println!(
                "{:<13} {:<15} for each {} {:.1} ns of processor time bare, and {:.1} ns more",
                outcome.workload, outcome.tool, step.name, step.bare_nanoseconds, step.extra_nanoseconds,
            );
        }
    }
    println!("\nOur own process: processor time from its start to its end, and the most it had resident.");
    for outcome in outcomes {
        if let Some(ours) = outcome.figures.as_ref().and_then(|figures| figures.ours.as_ref()) {
            println!(
                "{:<13} {:<15} {:>9} events, {:>9.0} a second, {} lost; {} s, {} MiB",
                outcome.workload,
                outcome.tool,
                ours.events,
                ours.events_per_second,
                ours.lost,
                shown(ours.collector_seconds, 3, ""),
                ours.collector_resident_bytes >> 20,
            );
        }
    }
    println!("\nOver all workloads with work of their own: geometric mean of its ratios by the clock, and the worst.");
    for tool in &summary.tools {
        println!(
            "{:<15} mean {:.2}x over {} workloads, worst {:.2}x ({})",
            tool.tool, tool.mean, tool.workloads, tool.worst, tool.worst_workload
        );
    }
    for goal in &summary.goals {
        println!("{}: {} ({})", goal.goal, if goal.reached { "reached" } else { "NOT REACHED" }, goal.figures);
    }
}

fn row(figures: &Figures) {
    let verdict = figures
        .target
        .as_ref()
        .map(|verdict| format!("{}: {}", verdict.promise, if verdict.kept { "kept" } else { "NOT KEPT" }));
    println!(
        "{:>8.3} {:>8.3} {:>22} {:>20} {:>21} {:>21}  {}",
        figures.bare_seconds.median,
        figures.tool_seconds.median,
        shown(figures.extra_milliseconds, 0, ""),
        shown(figures.ratio, 2, "x"),
        figures.work_ratio.map_or_else(String::new, |ratio| shown(ratio, 3, "x")),
        figures.processor_ratio.map_or_else(String::new, |ratio| shown(ratio, 3, "x")),
        verdict.unwrap_or_default(),
    );
}

fn shown(spread: Spread, digits: usize, unit: &str) -> String {
    format!("{:.digits$}{unit} ({:.digits$}-{:.digits$})", spread.median, spread.least, spread.most)
}
