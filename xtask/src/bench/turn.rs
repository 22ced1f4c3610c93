//! One run of one program, bare or under us.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::workload::Workload;

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
    /// What our report says of itself.
    pub health: Option<Health>,
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
        command.arg(script(workload));
        run(command)
    }

    /// The program under us.
    pub fn ours(&self, workload: &Workload, mode: &str) -> Result<Run> {
        let report = self.folder.path().join("report.json");
        let mut command = Command::new(&self.binary);
        command.args(["--as-root", "--format", "json", "--mode", mode, "--output"]).arg(&report);
        command.arg(&self.python).arg(script(workload));
        let mut run =
            run(command).context("hint: rmprof-bpf needs root (sudo -E env \"PATH=$PATH\" cargo xtask bench)")?;
        let text = std::fs::read(&report).context("the report cannot be read")?;
        let report: Report = serde_json::from_slice(&text).context("the report is no JSON of ours")?;
        run.health = Some(report.health);
        Ok(run)
    }

    /// The program under memory_profiler, once, since that takes long; `None` where this Python does not have it.
    pub fn memory_profiler(&self, workload: &Workload) -> Result<Option<Run>> {
        if !self.has_module("memory_profiler")? {
            return Ok(None);
        }
        let mut command = Command::new(&self.python);
        command.args(["-m", "memory_profiler", "-o"]).arg(self.folder.path().join("theirs.txt")).arg(script(workload));
        run(command).map(Some)
    }
}

fn script(workload: &Workload) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bench").join(workload.name).with_extension("py")
}

fn run(mut command: Command) -> Result<Run> {
    let shown = || command.get_args().map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let shown = format!("{} {}", command.get_program().to_string_lossy(), shown());
    command.stdin(Stdio::null());
    let begin = Instant::now();
    let output = command.output().with_context(|| shown.clone())?;
    let seconds = begin.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}\n{}", output.status, said.trim_end());
    Ok(Run { seconds, work: work(&String::from_utf8_lossy(&output.stdout)), health: None })
}

/// Seconds, seconds of processor time, and steps: the last line of what the program printed.
fn work(output: &str) -> Option<Work> {
    let mut words = output.trim_end().lines().last()?.split(' ').map(|word| word.parse().ok());
    let mut word = || words.next().flatten();
    Some(Work { seconds: word()?, processor_seconds: word()?, steps: word()? })
}

#[cfg(test)]
mod tests {
    use super::work;

    #[test]
    fn the_last_line_tells_times_and_steps() {
        let found = work("Filename: x.py\n0.25 0.125 1000\n").unwrap();
        assert_eq!((found.seconds, found.processor_seconds, found.steps), (0.25, 0.125, 1000.0));
        assert!(work("").is_none() && work("0.25 1000\n").is_none() && work("no such line\n").is_none());
    }
}
