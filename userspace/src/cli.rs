//! What was typed: the command line as clap reads it, and nothing decided yet.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::kernel::Loader;
use crate::report::checks::mebibytes;

const AFTER_HELP: &str = "\
EXAMPLES:
  sudo rmprof-bpf python copy.py
      tables of the functions marked with @profile, or of those that moved most
  sudo rmprof-bpf --mode pages python app.py
      resident pages instead of allocated bytes: next to no cost
  sudo rmprof-bpf -o report.json ./manage.py migrate
  sudo rmprof-bpf attach --duration 60 1234
      where a process that runs already grows, for a minute; it is not stopped and not changed
  sudo rmprof-bpf attach --pdb-mmem 800 1234
      when it passes 800 MiB: pdb in this terminal, on the next line of its own code (CPython 3.14 and later)
  sudo rmprof-bpf system --interval 60
      which lines of all Python programs of this machine grow, now and every minute
  rmprof-bpf doctor
      what this machine allows, and how to mend the rest

EXIT STATUS:
  the program's own, 128 + N when signal N ended it
  125  rmprof-bpf itself failed
  126  the program could not be executed
  127  the program was not found
  2    usage
  3    a check of the report failed (--fail-above, --fail-line, --fail-growth) where it would be 0";

/// Line-by-line memory of Python programs, measured from outside, in the kernel.
#[derive(Debug, Parser)]
#[command(name = "rmprof-bpf", version, about, after_help = AFTER_HELP, args_conflicts_with_subcommands = true,
          arg_required_else_help = true, subcommand_negates_reqs = true)]
pub struct Cli {
    /// The command, where one is named; otherwise it is `run`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// What to run, and how.
    #[command(flatten)]
    pub run: RunArguments,
}

/// The commands there are.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program and print its line table (the word may be left out)
    Run(RunArguments),
    /// Measure Python processes that run already, and those they make, until they end, Ctrl-C or --duration
    Attach(AttachArguments),
    /// Measure every Python process of the machine, those to come and those in containers too, until Ctrl-C or --duration
    System(SystemArguments),
    /// What this kernel, these privileges and these Pythons allow, and how to mend the rest
    Doctor(DoctorArguments),
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArgument {
    /// Every block of the C allocator and the program's own mappings, byte-exact; Python's arenas page by page as touched
    Heap,
    /// Heap, and every object of Python's own allocator, byte-exact: the program runs with PYTHONMALLOC=malloc
    Objects,
    /// Resident pages gained and lost, as the kernel counts them
    Pages,
}

/// A way to attach user probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbesArgument {
    /// Session probes
    Session,
    /// The same, and all else as on kernels that preempt the programs of tracepoints
    Preempted,
    /// Multi-probes
    Multi,
    /// A perf event for each
    Single,
}

/// How the report is to look and where it goes.
#[derive(Args, Debug)]
pub struct ReportArguments {
    /// Write the report to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Format of the report [default: by the ending of --output, else table]
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Columns of the table, by name and separated by commas; a leading + adds to the default ones. `occurrences` and `peak` take line
    /// events of every function of yours, some 2 µs a line, in JSON too; without them marked functions alone are measured that way
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub columns: Option<String>,
    /// Digits after the point
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=9))]
    pub precision: u8,
    /// Show functions of files that match (may be repeated)
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out functions of files that match (may be repeated)
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Show functions of the standard library and of installed packages too
    #[arg(long)]
    pub all_files: bool,
    /// Without marked functions: how many functions, most bytes first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// One table for all processes of one command
    #[arg(long)]
    pub merge: bool,
}

/// What the report is to keep to.
#[derive(Args, Debug)]
pub struct CheckArguments {
    /// End with status 3 when the resident memory of a process passed MIB
    #[arg(long, value_name = "MIB", value_parser = mebibytes)]
    pub fail_above: Option<u64>,
    /// End with status 3 when the increment of a line is more than MIB (may be repeated)
    #[arg(long, value_name = "FILE:LINE=MIB")]
    pub fail_line: Vec<String>,
    /// End with status 3 when the peak of resident memory, or a line by 1 MiB or more, is PERCENT above --baseline
    #[arg(long, value_name = "PERCENT", requires = "baseline", value_parser = percent)]
    pub fail_growth: Option<f64>,
    /// An earlier report in the format json
    #[arg(long, value_name = "REPORT", requires = "fail_growth")]
    pub baseline: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().map_err(|_| "not a number of percent".to_owned())?;
    if number >= 0.0 && number.is_finite() { Ok(number) } else { Err("0 or more is needed".to_owned()) }
}

/// `run`.
#[derive(Args, Debug)]
pub struct RunArguments {
    /// What an increment counts
    #[arg(short, long, value_enum, default_value = "heap")]
    pub mode: ModeArgument,
    /// The report.
    #[command(flatten)]
    pub report: ReportArguments,
    /// What it must keep to.
    #[command(flatten)]
    pub checks: CheckArguments,
    /// Open pdb in the program's terminal when its resident memory passes MIB, on the line of yours that follows
    #[arg(long, value_name = "MIB", value_parser = mebibytes)]
    pub pdb_mmem: Option<u64>,
    /// After each stop, open it again when resident memory is MIB more [default: stop once]
    #[arg(long, value_name = "MIB", requires = "pdb_mmem", value_parser = mebibytes)]
    pub pdb_mmem_step: Option<u64>,
    /// When what a process has resident passes MIB (`MIB:rss`: what all have together; `MIB:growth/s`: when it grows by more than that within
    /// a second): report (one of all so far), stop, exec CMD (with `RMPROF_PID` and `RMPROF_REPORT`), signal NAME, or exit CODE, which kills
    /// all that was started (up to four limits)
    #[arg(long, value_name = "MIB[:rss|growth/s]=ACTION", allow_hyphen_values = true)]
    pub on_limit: Vec<String>,
    /// Under sudo: run the program as root, not as the user who called
    #[arg(long)]
    pub as_root: bool,
    /// Do not preload the library that counts the allocator's calls inside the program: trap each of them instead, which costs the
    /// program some forty times as much
    #[arg(long)]
    pub no_preload: bool,
    /// Count samples of the blocks instead of all: one byte in so many is sampled, in the mean, e.g. 512K. Sizes are then estimates, with
    /// their standard error, and cost the program next to nothing
    #[arg(long, value_name = "BYTES", value_parser = sample_bytes)]
    pub sample: Option<NonZeroU64>,
    /// How user probes are attached, instead of the best way this kernel has: to try another where one does not work
    #[arg(long, value_enum, hide = true)]
    pub probes: Option<ProbesArgument>,
    /// The library that loads the probes, where this program was built with more than one
    #[arg(long, hide = true, value_parser = loader)]
    pub loader: Option<Loader>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "PROGRAM [ARGS]")]
    pub program: Vec<OsString>,
}

/// What is counted of processes that run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachModeArgument {
    /// Resident pages gained and lost, as the kernel counts them: next to no cost
    Pages,
    /// Every block of the C allocator asked for and given back from now on: each call is trapped
    Heap,
}

/// What is measured of processes that run already, and when a report of it is written. SIGUSR1 asks for one too.
#[derive(Args, Debug)]
pub struct WatchArguments {
    /// What an increment counts
    #[arg(short, long, value_enum, default_value = "pages")]
    pub mode: AttachModeArgument,
    /// The report.
    #[command(flatten)]
    pub report: ReportArguments,
    /// What it must keep to.
    #[command(flatten)]
    pub checks: CheckArguments,
    /// Write the report after so many seconds, and let go
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Write a report of all so far every so many seconds: NAME.0001.json and so on beside --output NAME.json, or to standard output,
    /// where each in JSON is one line
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub interval: Option<Duration>,
    /// Only to say why not
    #[arg(long, value_name = "BYTES", value_parser = sample_bytes, hide = true)]
    pub sample: Option<NonZeroU64>,
    /// When what a process has resident passes MIB (`MIB:rss`: what all have together; `MIB:growth/s`: when it grows by more than that within
    /// a second): report (one of all so far, as with --interval), stop, exec CMD (with `RMPROF_PID` and `RMPROF_REPORT`), or signal NAME
    /// (up to four limits)
    #[arg(long, value_name = "MIB[:rss|growth/s]=ACTION", allow_hyphen_values = true)]
    pub on_limit: Vec<String>,
    /// The library that loads the probes, where this program was built with more than one
    #[arg(long, hide = true, value_parser = loader)]
    pub loader: Option<Loader>,
}

/// `attach`.
#[derive(Args, Debug)]
pub struct AttachArguments {
    /// What, and when.
    #[command(flatten)]
    pub watch: WatchArguments,
    /// When the resident memory of a process passes MIB, open pdb in this terminal, on the line of its own code that follows: CPython 3.14
    /// and later (PEP 768). Nothing that is typed there ends it: `q` lets it go on
    #[arg(long, value_name = "MIB", value_parser = mebibytes)]
    pub pdb_mmem: Option<u64>,
    /// After each stop, open it again when resident memory is MIB more [default: stop once]
    #[arg(long, value_name = "MIB", requires = "pdb_mmem", value_parser = mebibytes)]
    pub pdb_mmem_step: Option<u64>,
    /// Leave the processes that they have made, or make, alone
    #[arg(long)]
    pub no_children: bool,
    /// Processes, by number
    #[arg(required = true, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pids: Vec<i32>,
}

/// `system`.
#[derive(Args, Debug)]
pub struct SystemArguments {
    /// What, and when.
    #[command(flatten)]
    pub watch: WatchArguments,
    /// Processes whose control group matches: all of its path, a part between slashes, or the container's number (may be repeated)
    #[arg(long, value_name = "GLOB")]
    pub cgroup: Vec<String>,
    /// Processes of users that match, by name or number (may be repeated)
    #[arg(long, value_name = "GLOB")]
    pub user: Vec<String>,
    /// Processes whose command line matches, or the name of their program or script (may be repeated)
    #[arg(long, value_name = "GLOB")]
    pub command: Vec<String>,
}

fn loader(name: &str) -> Result<Loader, String> {
    let known = || Loader::ALL.iter().map(|loader| loader.name()).collect::<Vec<_>>().join(", ");
    let found = Loader::ALL.iter().copied().find(|loader| loader.name() == name);
    found.ok_or_else(|| format!("this program was built with {}", known()))
}

/// Bytes, or so many KiB, MiB or GiB.
fn sample_bytes(text: &str) -> Result<NonZeroU64, String> {
    const LEAST: u64 = 1 << 10;
    const MOST: u64 = 1 << 30;
    let upper = text.trim().to_ascii_uppercase();
    let word = ["IB", "B"].iter().find_map(|end| upper.strip_suffix(end)).unwrap_or(&upper);
    let (digits, unit) = match word.char_indices().last() {
        Some((at, 'K')) => (&word[..at], 1 << 10),
        Some((at, 'M')) => (&word[..at], 1 << 20),
        Some((at, 'G')) => (&word[..at], 1 << 30),
        _ => (word, 1u64),
    };
    let number: u64 = digits.trim().parse().map_err(|_| "not a number of bytes, as 524288 or 512K".to_owned())?;
    let bytes = number.checked_mul(unit).filter(|bytes| (LEAST..=MOST).contains(bytes)).and_then(NonZeroU64::new);
    bytes.ok_or_else(|| "from 1K up to 1G is possible".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "more than 0 is needed".to_owned())
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArguments {
    /// Pythons to examine besides those found on PATH
    #[arg(value_name = "PYTHON")]
    pub pythons: Vec<PathBuf>,
}
