//! Figures that outlive a run which is cut off: a file with a line of JSON for the machine and one for each outcome.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::Outcome;
use super::report::Machine;

/// What was measured so far, in this run and those that kept their figures in the same file.
#[derive(Debug)]
pub struct Kept {
    file: Option<(PathBuf, File)>,
    outcomes: Vec<Outcome>,
}

impl Kept {
    /// What the file holds, if one is named; it is made where it is not there.
    ///
    /// # Errors
    /// The file cannot be read or written, is no such file, or is of another machine or Python.
    pub fn open(file: Option<&Path>, machine: &Machine) -> Result<Kept> {
        let Some(path) = file else { return Ok(Kept { file: None, outcomes: Vec::new() }) };
        let shown = || path.display().to_string();
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.with_context(shown)?,
        };
        // A line that was cut off has no end: what was measured for it is measured again.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text.get(..whole).unwrap_or_default().lines();
        let first = lines.next();
        if let Some(first) = first {
            let theirs: Machine = serde_json::from_str(first).with_context(|| format!("{}: line 1", shown()))?;
            ensure!(
                theirs.is_same(machine),
                "{}: its figures are of {}, not of {}\nhint: keep these in another file",
                shown(),
                theirs.name(),
                machine.name()
            );
        }
        let outcomes = lines.enumerate().map(|(index, line)| {
            serde_json::from_str(line).with_context(|| format!("{}: line {}", shown(), index + 2))
        });
        let outcomes = outcomes.collect::<Result<_>>()?;
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(shown)?;
        file.set_len(u64::try_from(whole)?).with_context(shown)?;
        let mut kept = Kept { file: Some((path.to_owned(), file)), outcomes };
        if first.is_none() {
            kept.write(machine)?;
        }
        Ok(kept)
    }

    /// Whether a workload was measured under a tool.
    pub fn has(&self, workload: &str, tool: &str) -> bool {
        self.outcomes.iter().any(|outcome| outcome.workload == workload && outcome.tool == tool)
    }

    /// All of a workload.
    pub fn of<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = &'a Outcome> {
        self.outcomes.iter().filter(move |outcome| outcome.workload == workload)
    }

    /// Takes some more.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&mut self, outcomes: Vec<Outcome>) -> Result<()> {
        for outcome in &outcomes {
            self.write(outcome)?;
        }
        self.outcomes.extend(outcomes);
        Ok(())
    }

    /// Those that are wanted, in the order in which they were measured.
    pub fn into_outcomes(self, is_wanted: impl Fn(&Outcome) -> bool) -> Vec<Outcome> {
        self.outcomes.into_iter().filter(is_wanted).collect()
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let line = format!("{}\n", serde_json::to_string(value)?);
        file.write_all(line.as_bytes()).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(python: &str) -> Machine {
        serde_json::from_value(serde_json::json!({
            "kernel": "6.18", "processor": "one", "processors": 2, "python": python, "load": 0.5,
        }))
        .unwrap()
    }

    fn outcome(tool: &str) -> Outcome {
        let failed = Some("why".to_owned());
        Outcome { workload: "fib".into(), tool: tool.into(), turns: 1, failed, figures: None }
    }

    #[test]
    fn a_later_run_finds_what_an_earlier_one_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures");
        let mut kept = Kept::open(Some(&path), &machine("3.11")).unwrap();
        kept.add(vec![outcome("heap"), outcome("pages")]).unwrap();
        // It is cut off within a line.
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"workload\":\"fi").unwrap();
        let mut kept = Kept::open(Some(&path), &machine("3.11")).unwrap();
        assert!(kept.has("fib", "heap") && kept.has("fib", "pages") && !kept.has("fib", "memray"));
        kept.add(vec![outcome("memray")]).unwrap();
        let kept = Kept::open(Some(&path), &machine("3.11")).unwrap();
        assert_eq!(kept.of("fib").count(), 3);
        let wanted = kept.into_outcomes(|outcome| outcome.tool != "pages");
        assert_eq!(wanted.iter().map(|outcome| outcome.tool.as_str()).collect::<Vec<_>>(), ["heap", "memray"]);
    }

    #[test]
    fn figures_of_another_machine_and_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures");
        Kept::open(Some(&path), &machine("3.11")).unwrap();
        let error = Kept::open(Some(&path), &machine("3.12")).unwrap_err().to_string();
        assert!(error.contains("hint: keep these in another file"), "{error}");
        fs::write(&path, "something else\n").unwrap();
        assert!(Kept::open(Some(&path), &machine("3.11")).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else\n");
    }
}
