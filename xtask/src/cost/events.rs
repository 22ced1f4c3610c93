//! Real events, in a Python that waits before and after them while the kernel's statistics are read.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libbpf_rs::query::ProgInfoIter;

use crate::bench::Spread;
use crate::waiting::{Waiting, ids_of};

/// What is run, and what of it.
#[derive(Debug)]
pub struct Case {
    /// In words.
    pub name: &'static str,
    /// Of rmprof-bpf.
    pub options: &'static [&'static str],
    /// Of target.py.
    pub work: &'static str,
    /// How deep.
    pub depth: u32,
    /// How often.
    pub count: u32,
    /// The programs that run for it, by the beginning of their names: others run for other processes too.
    pub programs: &'static [&'static str],
}

/// One of our programs, as it ran for one step of the target.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in the kernel.
    pub name: String,
    /// How often.
    pub runs: f64,
    /// Of one run.
    pub nanoseconds: f64,
}

/// What a step costs: nanoseconds of processor time.
#[derive(Debug)]
pub struct Cost {
    /// Without us.
    pub bare: f64,
    /// With us, besides.
    pub more: f64,
    /// Of which in these.
    pub programs: Vec<Program>,
}

impl Cost {
    /// What of it is in the programs.
    pub fn in_programs(&self) -> f64 {
        self.programs.iter().map(|program| program.runs * program.nanoseconds).sum()
    }

    /// How many runs of programs there were in a step.
    pub fn runs(&self) -> f64 {
        self.programs.iter().map(|program| program.runs).sum()
    }
}

/// What is measured.
pub struct Target {
    binary: PathBuf,
    python: PathBuf,
    folder: tempfile::TempDir,
}

impl Target {
    /// Of our program and a Python.
    ///
    /// # Errors
    /// No room for the target.
    pub fn new(binary: PathBuf, python: PathBuf) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("target.py"), include_str!("target.py"))?;
        Ok(Self { binary, python, folder })
    }

    /// Bare, with us, and with us while the kernel takes the time of the programs (which takes some itself), in turns: medians.
    ///
    /// # Errors
    /// A run that came to no end.
    pub fn measure(&self, case: &Case, runs: u32) -> Result<Cost> {
        let (mut bare, mut more, mut programs) = (Vec::new(), Vec::new(), BTreeMap::<String, Vec<(f64, f64)>>::new());
        for _ in 0..runs {
            let alone = self.step(self.command(None, case))?.0;
            let watched = self.step(self.command(Some(case.options), case))?.0;
            bare.push(alone);
            more.push(watched - alone);
            let _timed = statistics()?;
            let seen = self.step(self.command(Some(case.options), case))?.1;
            let of_case = |program: &Program| case.programs.iter().any(|name| program.name.starts_with(name));
            for program in seen.into_iter().filter(of_case) {
                programs.entry(program.name).or_default().push((program.runs, program.nanoseconds));
            }
        }
        let of = |name: &String, seen: &[(f64, f64)]| Program {
            name: name.clone(),
            runs: Spread::of(seen.iter().map(|(runs, _)| *runs)).median,
            nanoseconds: Spread::of(seen.iter().map(|(_, nanoseconds)| *nanoseconds)).median,
        };
        let programs = programs.iter().map(|(name, seen)| of(name, seen)).collect();
        Ok(Cost { bare: Spread::of(bare).median, more: Spread::of(more).median, programs })
    }

    fn command(&self, options: Option<&[&str]>, case: &Case) -> Command {
        let mut command = match options {
            None => Command::new(&self.python),
            Some(options) => {
                let mut command = Command::new(&self.binary);
                command.args(["--as-root", "--format", "json", "--output"]).arg(self.folder.path().join("report.json"));
                command.args(options).arg(&self.python);
                command
            }
        };
        command.arg(self.folder.path().join("target.py")).arg(case.work);
        command.args([case.depth.to_string(), case.count.to_string()]);
        command
    }

    /// Nanoseconds of one step, and what the programs did in one.
    fn step(&self, mut command: Command) -> Result<(f64, Vec<Program>)> {
        let mut target = Waiting::start(&mut command)?;
        let before = runs_of(target.pid());
        let said = target.step()?;
        let after = runs_of(target.pid());
        target.end()?;
        let mut words = said.split(' ').map(str::parse::<f64>);
        let mut number = || words.next().context("a number of the target")?.context("a number of the target");
        let (nanoseconds, steps) = (number()?, number()?);
        let programs = after.into_iter().filter_map(|(id, (name, time, count))| {
            let (_, time_before, count_before) = before.get(&id).cloned().unwrap_or_default();
            let runs = count.saturating_sub(count_before) as f64;
            let nanoseconds = time.saturating_sub(time_before) as f64 / runs;
            (runs > 0.0).then_some(Program { name, runs: runs / steps, nanoseconds })
        });
        Ok((nanoseconds / steps, programs.collect()))
    }
}

/// Of the programs that a process has open, by number: name, nanoseconds, runs. Those of other sessions are not among them.
fn runs_of(pid: u32) -> BTreeMap<u32, (String, u64, u64)> {
    let ids = ids_of(pid, "prog_id");
    let known = ProgInfoIter::default().filter(|program| ids.contains(&program.id));
    known
        .map(|program| {
            (program.id, (program.name.to_string_lossy().into_owned(), program.run_time_ns, program.run_cnt))
        })
        .collect()
}

/// The kernel takes the time of programs as long as this is open.
fn statistics() -> Result<OwnedFd> {
    // SAFETY: a call without addresses.
    let descriptor = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    ensure!(descriptor >= 0, "the kernel does not take the time of programs\nhint: run as root");
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
