//! What the bench prints.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use super::turn::Bench;
use super::{Outcome, Spread};

/// On what it was measured, and how busy that was.
#[derive(Debug, Serialize)]
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
}

/// For machines.
pub fn json(before: &Machine, after: &Machine, outcomes: &[Outcome]) -> Result<()> {
    let document = serde_json::json!({ "machine": before, "load_after": after.load, "outcomes": outcomes });
    println!("{document:#}");
    Ok(())
}

/// For people.
pub fn table(before: &Machine, after: &Machine, outcomes: &[Outcome]) {
    println!(
        "{}, Linux {}, {} x {}; load {:.1} before, {:.1} after",
        before.python, before.kernel, before.processors, before.processor, before.load, after.load
    );
    println!(
        "Medians; in parentheses the least and the most. Whole: start to end of the program. Work: what it does between, by the clock \
              and in processor time.\n"
    );
    println!(
        "{:<9} {:<5} {:>5} {:>8} {:>8} {:>22} {:>20} {:>21} {:>21} {:>9} {:>4}  promise",
        "workload",
        "mode",
        "turns",
        "bare s",
        "ours s",
        "extra ms",
        "whole",
        "work, clock",
        "work, processor",
        "events",
        "lost"
    );
    for outcome in outcomes {
        let verdict = outcome
            .target
            .as_ref()
            .map(|verdict| format!("{}: {}", verdict.promise, if verdict.kept { "kept" } else { "NOT KEPT" }));
        println!(
            "{:<9} {:<5} {:>5} {:>8.3} {:>8.3} {:>22} {:>20} {:>21} {:>21} {:>9} {:>4}  {}",
            outcome.workload,
            outcome.mode,
            outcome.turns,
            outcome.bare_seconds.median,
            outcome.ours_seconds.median,
            shown(outcome.extra_milliseconds, 0, ""),
            shown(outcome.ratio, 2, "x"),
            outcome.work_ratio.map_or_else(String::new, |ratio| shown(ratio, 3, "x")),
            outcome.processor_ratio.map_or_else(String::new, |ratio| shown(ratio, 3, "x")),
            outcome.events,
            outcome.lost,
            verdict.unwrap_or_default(),
        );
    }
    println!();
    for outcome in outcomes {
        let Some(step) = &outcome.step else { continue };
        let theirs =
            step.memory_profiler_extra_nanoseconds.map(|extra| format!("; memory_profiler {extra:.0} ns more"));
        println!(
            "{:<9} {:<5} for each {} {:.1} ns of processor time bare, and {:.1} ns more{}",
            outcome.workload,
            outcome.mode,
            step.name,
            step.bare_nanoseconds,
            step.extra_nanoseconds,
            theirs.unwrap_or_default()
        );
    }
}

fn shown(spread: Spread, digits: usize, unit: &str) -> String {
    format!("{:.digits$}{unit} ({:.digits$}-{:.digits$})", spread.median, spread.least, spread.most)
}
