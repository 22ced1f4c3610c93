//! Programs that wait for us between their steps, and what of the kernel's a process has open.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A program that says `ready` when it is, and does something for each line that it hears.
pub struct Waiting {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Waiting {
    /// Starts it, and waits until it is ready.
    ///
    /// # Errors
    /// It cannot be started, or says something else.
    pub fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_program().to_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut waiting = Self { child, input, output };
        ensure!(waiting.line()? == "ready", "the target did not begin");
        Ok(waiting)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do a step, and returns what it says of that.
    ///
    /// # Errors
    /// It has ended.
    pub fn step(&mut self) -> Result<String> {
        self.ask("")
    }

    /// The same with a word of what is to be done.
    ///
    /// # Errors
    /// It has ended.
    pub fn ask(&mut self, word: &str) -> Result<String> {
        writeln!(self.input, "{word}")?;
        self.line()
    }

    /// Lets it come to its end.
    ///
    /// # Errors
    /// It did not end well.
    pub fn end(self) -> Result<()> {
        let Self { mut child, input, .. } = self;
        drop(input);
        ensure!(child.wait()?.success(), "the target failed");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.output.next().context("the target ended early\nhint: run as root")??)
    }
}

/// The kernel's numbers of what a process has open, of the kind that has this key in `/proc/PID/fdinfo`: `map_id`, `prog_id`.
pub fn ids_of(pid: u32, key: &str) -> Vec<u32> {
    let folder = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let id = |line: &str| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok();
    texts.filter_map(|text| text.lines().find_map(id)).collect()
}
