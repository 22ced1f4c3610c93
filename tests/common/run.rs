//! Runs of the real binary.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::report::Report;
use super::terminal::Terminal;

/// A run that has not ended by then hangs.
const TOO_LONG: Duration = Duration::from_secs(60);

/// A run to be made. Words are options of ours until the first that is the program.
#[derive(Default)]
pub struct Run {
    words: Vec<OsString>,
    environment: Vec<(String, OsString)>,
    input: Option<Vec<u8>>,
    directory: Option<PathBuf>,
    user: Option<u32>,
    report: Option<TempDir>,
    patience: Option<Duration>,
}

impl Run {
    /// With these words.
    pub fn new<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Self {
        Self::default().words(words)
    }

    /// With a JSON report into a file of its own, which [`Ran::report`] gives.
    pub fn json() -> Self {
        Self::json_of([])
    }

    /// The same of a command of ours, whose name is the first word.
    pub fn json_of<const N: usize>(command: [&str; N]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("report.json");
        let mut run = Self::new(command).word("--output").word(file);
        run.report = Some(directory);
        run
    }

    /// One more word.
    pub fn word(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// More words.
    pub fn words<W: AsRef<OsStr>>(self, words: impl IntoIterator<Item = W>) -> Self {
        words.into_iter().fold(self, |run, word| run.word(word))
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Standard input.
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// The working directory.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Not as root but as this user, without any right.
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Not to be ended before it has run this long.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    fn command(&self) -> Command {
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--clear-groups", &format!("--reuid={user}"), &format!("--regid={user}"), "--"]);
                command.arg(readable_by_all());
                command
            }
            None => Command::new(env!("CARGO_BIN_EXE_rmprof-bpf")),
        };
        let ours = |name: &str| name.starts_with("SUDO_") || name.starts_with("PYTHON");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
            command.env_remove(name);
        }
        command.args(&self.words).envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it in a terminal of its own.
    pub fn in_terminal(&self) -> Terminal {
        Terminal::start(&mut self.command())
    }

    /// Starts it, in a process group of its own.
    pub fn start(self) -> Started {
        let mut child = self.command().process_group(0).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut errors = child.stderr.take().unwrap();
        let streams = [name_of(output.get_ref().as_raw_fd()), name_of(errors.as_raw_fd())];
        let errors = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = errors.read_to_end(&mut said);
            said
        });
        let input = child.stdin.take().zip(self.input).map(|(pipe, bytes)| feed(pipe, bytes));
        Started {
            watchdog: Watchdog::start(child.id(), self.patience.unwrap_or(TOO_LONG), streams),
            child,
            output,
            errors,
            input,
            report: self.report,
        }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Ran {
        self.start().end()
    }
}

/// A copy of the binary where every user may execute it: the build's directory may be closed to others.
fn readable_by_all() -> &'static OsStr {
    use std::os::unix::fs::PermissionsExt;
    static COPY: std::sync::OnceLock<(TempDir, PathBuf)> = std::sync::OnceLock::new();
    let (_, file) = COPY.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("rmprof-bpf");
        // By another process: a child that another test forks meanwhile would have the copy open for writing, and what is open
        // for writing cannot be executed.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_rmprof-bpf")).arg(&file).status().unwrap();
        assert!(copied.success());
        (directory, file)
    });
    file.as_os_str()
}

fn feed(mut pipe: ChildStdin, bytes: Vec<u8>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // The program may end without reading all of it.
        let _ = pipe.write_all(&bytes);
    })
}

/// What the kernel calls one of our pipes, at both of its ends.
fn name_of(descriptor: RawFd) -> PathBuf {
    std::fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap()
}

/// Who else has one of these open: one line each.
fn holders(streams: &[PathBuf]) -> String {
    let mut found = String::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
        let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        let open: Vec<_> = files
            .filter(|file| std::fs::read_link(file.path()).is_ok_and(|link| streams.contains(&link)))
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .collect();
        if open.is_empty() || process.ends_with(std::process::id().to_string()) {
            continue;
        }
        let read = |name: &str| std::fs::read_to_string(process.join(name)).unwrap_or_default().replace('\0', " ");
        let (stat, words) = (read("stat"), read("cmdline"));
        found += &format!("{} {words}: has {open:?} open; {}\n", process.display(), stat.trim());
    }
    found
}

/// Ends a process group that does not end by itself, or whose test has failed.
struct Watchdog {
    ended: mpsc::Sender<()>,
    /// Who had its standard output and error open then.
    holders: JoinHandle<String>,
}

impl Watchdog {
    fn start(group: u32, patience: Duration, streams: [PathBuf; 2]) -> Self {
        let (sender, ended) = mpsc::channel();
        let holders = std::thread::spawn(move || {
            if ended.recv_timeout(patience).is_ok() {
                return String::new();
            }
            let holders = holders(&streams);
            let _ = kill(Pid::from_raw(-i32::try_from(group).unwrap()), Signal::SIGKILL);
            holders
        });
        Self { ended: sender, holders }
    }

    /// The run has ended. By itself? Else who was there.
    fn call_off(self) -> Result<(), String> {
        let in_time = self.ended.send(()).is_ok();
        let holders = self.holders.join().unwrap();
        if in_time { Ok(()) } else { Err(holders) }
    }
}

/// A run under way.
pub struct Started {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    errors: JoinHandle<Vec<u8>>,
    input: Option<JoinHandle<()>>,
    report: Option<TempDir>,
    watchdog: Watchdog,
}

impl Started {
    /// Our process; its group has the same number.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The next line of standard output: the program's hand-shake.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.output.read_line(&mut line).unwrap();
        assert!(count > 0, "standard output ended");
        line.trim_end().to_owned()
    }

    /// Whether something stands on standard output that has not been read.
    pub fn has_output(&self) -> bool {
        use std::os::fd::AsFd;
        let mut ready = [nix::poll::PollFd::new(self.output.get_ref().as_fd(), nix::poll::PollFlags::POLLIN)];
        !self.output.buffer().is_empty() || nix::poll::poll(&mut ready, nix::poll::PollTimeout::ZERO).unwrap() > 0
    }

    /// The next line as a number, such as a process's.
    #[track_caller]
    pub fn number(&mut self) -> i64 {
        let line = self.line();
        line.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"))
    }

    /// Nobody reads standard output any more.
    pub fn close_output(self) -> ExitStatus {
        let Self { mut child, output, errors, watchdog, .. } = self;
        drop(output);
        let status = child.wait().unwrap();
        let _ = errors.join();
        assert_eq!(watchdog.call_off(), Ok(()), "the run did not end by itself");
        status
    }

    /// A report before the last, once it is written whole.
    pub fn snapshot(&self, number: u32) -> Option<Report> {
        let text = std::fs::read(self.report.as_ref()?.path().join(format!("report.{number:04}.json"))).ok()?;
        text.ends_with(b"}\n").then(|| Report::read(&text))
    }

    /// Sends our process a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end: of our process, and of everybody who has its standard output and error open.
    #[track_caller]
    pub fn end(mut self) -> Ran {
        let mut stdout = Vec::new();
        self.output.read_to_end(&mut stdout).unwrap();
        let status = self.child.wait().unwrap();
        let stderr = self.errors.join().unwrap();
        if let Some(input) = self.input {
            input.join().unwrap();
        }
        let ended = self.watchdog.call_off();
        let file = self.report.as_ref().and_then(|directory| std::fs::read(directory.path().join("report.json")).ok());
        let numbered = |number: u32| {
            let directory = self.report.as_ref()?.path().to_owned();
            std::fs::read(directory.join(format!("report.{number:04}.json"))).ok()
        };
        let snapshots = (1..).map_while(numbered).collect();
        let ran = Ran { status, stdout, stderr, file, snapshots };
        if let Err(holders) = ended {
            panic!("the run did not end by itself: {ran}\n--- had its output open ---\n{holders}");
        }
        ran
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ran {
    /// How.
    pub status: ExitStatus,
    /// Standard output, but for what was read before.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    file: Option<Vec<u8>>,
    snapshots: Vec<Vec<u8>>,
}

impl Ran {
    /// The reports before the last, in numbered files beside it.
    pub fn snapshots(&self) -> Vec<Report> {
        self.snapshots.iter().map(|text| Report::read(text)).collect()
    }

    /// The exit status.
    #[track_caller]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by signal {:?}: {self}", self.status.signal()))
    }

    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts that the exit status is this.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// Asserts that nothing was said on standard error.
    #[track_caller]
    pub fn quiet(self) -> Self {
        assert_eq!(self.stderr_text(), "", "{self}");
        self
    }

    /// The report of [`Run::json`].
    #[track_caller]
    pub fn report(&self) -> Report {
        let file = self.file.as_deref().unwrap_or_else(|| panic!("no report: {self}"));
        assert!(!file.is_empty(), "the report is empty: {self}");
        Report::read(file)
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (stdout, stderr) = (self.stdout_text(), self.stderr_text());
        write!(formatter, "{}\n--- stdout ---\n{stdout}\n--- stderr ---\n{stderr}", self.status)
    }
}

/// Asks again until it is so; a hand-shake with something that cannot shake hands. Panics after ten seconds.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not so after {:?}: {what}", begun.elapsed());
        std::thread::yield_now();
    }
}

/// Runs a command to its end, as a bare process.
#[track_caller]
pub fn finish(command: &mut Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran { status: output.status, stdout: output.stdout, stderr: output.stderr, file: None, snapshots: Vec::new() }
}
