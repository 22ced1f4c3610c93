//! One run of one program, bare or under a tool.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::tool::{self, Tool};
use super::watch;
use super::workload::{self, Workload};

/// What all runs share.
pub struct Bench {
    binary: PathBuf,
    /// The Python.
    pub python: PathBuf,
    folder: tempfile::TempDir,
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// From before its start until after its end.
    pub seconds: f64,
    /// What it measured itself.
    pub work: Option<Work>,
    /// What our report says of itself, and what we took.
    pub ours: Option<Ours>,
}

/// The last line of the program's output.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// By the clock.
    pub seconds: f64,
    /// Of processor time, in the kernel too: what a busy machine does not change much.
    pub processor_seconds: f64,
    /// How often it did what it does.
    pub steps: f64,
}

/// Of one run of ours.
#[derive(Clone, Copy, Debug)]
pub struct Ours {
    pub health: Health,
    pub collector: watch::Collector,
}

/// Of the report.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Health {
    pub events: u64,
    pub lost: u64,
}

#[derive(Deserialize)]
struct Report {
    health: Health,
}

impl Bench {
    pub fn new(binary: PathBuf, python: PathBuf) -> Result<Bench> {
        Ok(Bench { binary, python, folder: tempfile::tempdir().context("no temporary folder")? })
    }

    pub fn has_module(&self, module: &str) -> Result<bool> {
        let mut command = Command::new(&self.python);
        command.args(["-c", &format!("import {module}")]).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.status().context("the Python cannot be run")?.success())
    }

    /// The program alone.
    pub fn bare(&self, workload: &Workload) -> Result<Run> {
        let mut command = Command::new(&self.python);
        command.args(program(workload));
        run(command, false)
    }

    /// The program under one of the tools.
    pub fn under(&self, tool: &Tool, workload: &Workload) -> Result<Run> {
        let words = program(workload);
        let words = words.iter().map(OsString::as_os_str);
        let command = tool.command(&self.binary, &self.python, words, self.folder.path());
        let is_ours = !tool.is_peer();
        let mut run = run(command, is_ours)?;
        if let Some(ours) = &mut run.ours {
            let text = std::fs::read(tool::report(self.folder.path())).context("the report cannot be read")?;
            let report: Report = serde_json::from_slice(&text).context("the report is no JSON of ours")?;
            ours.health = report.health;
        }
        Ok(run)
    }
}

fn program(workload: &Workload) -> Vec<OsString> {
    let mut words = vec![workload::folder().join(workload.file).into_os_string()];
    words.extend(workload.arguments.iter().map(OsString::from));
    words
}

fn run(mut command: Command, is_ours: bool) -> Result<Run> {
    let shown = || command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let shown = format!("{} {}", command.get_program().to_string_lossy(), shown());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let child = command.spawn().with_context(|| shown.clone())?;
    let watched = if is_ours { Some(watch::Watch::start(child.id())?) } else { None };
    let output = child.wait_with_output().with_context(|| shown.clone())?;
    let seconds = begin.elapsed().as_secs_f64();
    let collector = watched.map(watch::Watch::end).transpose()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}\n{}", output.status, last_lines(&said));
    let ours = collector.map(|collector| Ours { health: Health::default(), collector });
    Ok(Run { seconds, work: work(&String::from_utf8_lossy(&output.stdout)), ours })
}

/// What an error says at its end; peers print long ones.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.trim_end().lines().collect();
    lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n")
}

/// Seconds, seconds of processor time, and steps: the last line of that shape in what the program, and perhaps its tool, printed.
fn work(output: &str) -> Option<Work> {
    output.lines().rev().find_map(|line| {
        let numbers: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [seconds, processor_seconds, steps] = numbers[..] else { return None };
        Some(Work { seconds, processor_seconds, steps })
    })
}

#[cfg(test)]
mod tests {
    use super::{last_lines, work};

    #[test]
    fn the_last_line_tells_times_and_steps() {
        let found = work("Filename: x.py\n0.25 0.125 1000\n\nDone.\n").unwrap();
        assert_eq!((found.seconds, found.processor_seconds, found.steps), (0.25, 0.125, 1000.0));
        assert!(work("").is_none() && work("0.25 1000\n").is_none() && work("no such line\n").is_none());
    }

    #[test]
    fn of_a_long_error_the_end_is_shown() {
        assert_eq!(last_lines("1\n2\n3\n4\n5\n6\n"), "2\n3\n4\n5\n6");
        assert_eq!(last_lines("one\n"), "one");
        assert_eq!(last_lines(""), "");
    }
}
