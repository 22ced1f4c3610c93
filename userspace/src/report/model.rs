//! What a report says, before any format: every format prints this and nothing else.

/// A whole report: one run, attach or system session.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The program that measured.
    pub tool: Tool,
    /// What was lost, cut or unknown.
    pub health: Health,
    /// One entry a process image, in the order they began; merged ones after them.
    pub processes: Vec<ProcessReport>,
    /// What it is, where it is not the last.
    pub snapshot: Option<Snapshot>,
}

/// Who measured, and how.
#[derive(Clone, Debug, Default)]
pub struct Tool {
    /// Version of rmprof-bpf.
    pub version: String,
    /// `heap`, `objects` or `pages`.
    pub mode: String,
    /// `uname -r`.
    pub kernel: String,
    /// What was set in the program's environment for the sake of the numbers: `NAME=value`.
    pub environment: Vec<String>,
}

/// Counters of everything that could make a number wrong. All zero is a clean report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Events the probes handled.
    pub events: u64,
    /// Events that could not be recorded, whatever the reason.
    pub lost: u64,
    /// Stacks deeper than the walker's limit.
    pub truncated_stacks: u64,
    /// Frames whose code object could not be read.
    pub unresolved_frames: u64,
    /// Bytes (absolute) whose stack was lost or unreadable.
    pub unattributed_bytes: u64,
    /// Events in code of Python's JIT, whose lines are approximate. By design of the JIT, and so nothing that went wrong.
    pub approximate_events: u64,
    /// Every counter that is not zero, of the kernel side and ours: name and value. Only of things that went wrong: one of them makes
    /// the report say that it is not clean.
    pub counters: Vec<(String, u64)>,
    /// Processes that have ended and are in the sum of their command, to bound what is kept: nothing is missing.
    pub merged_processes: u64,
}

impl Health {
    /// Adds to a counter of things that went wrong.
    pub fn count(&mut self, name: &str, more: u64) {
        match self.counters.iter_mut().find(|(known, _)| known == name) {
            Some((_, value)) => *value = value.saturating_add(more),
            None if more > 0 => self.counters.push((name.into(), more)),
            None => {}
        }
    }

    /// Nothing was lost, cut or unknown. The numbers of events say nothing about that.
    pub fn is_clean(&self) -> bool {
        let Self {
            events: _,
            approximate_events: _,
            lost,
            truncated_stacks,
            unresolved_frames,
            unattributed_bytes,
            counters,
            merged_processes: _,
        } = self;
        [lost, truncated_stacks, unresolved_frames, unattributed_bytes].into_iter().all(|count| *count == 0)
            && counters.iter().all(|(_, value)| *value == 0)
    }
}

/// The container of a process. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container {
    /// Its number.
    pub id: Option<String>,
    /// Name of its pod.
    pub pod: Option<String>,
    /// Namespace of its pod in the cluster.
    pub pod_namespace: Option<String>,
    /// Number of its pod.
    pub pod_uid: Option<String>,
}

/// Why a report is not the last of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The time between two reports is over.
    Interval,
    /// It was asked for by a signal.
    Signal,
    /// The processes in it were killed or crashed.
    Death,
    /// A process passed a limit of resident memory.
    Limit,
}

impl Cause {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interval => "interval",
            Self::Signal => "signal",
            Self::Death => "death",
            Self::Limit => "limit",
        }
    }
}

/// A report that is not the last of its session: of all so far, or of some processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number among those of the session, from 1.
    pub number: u32,
    /// Why it was written.
    pub cause: Cause,
    /// When.
    pub time: std::time::SystemTime,
}

/// One process image, or several of one command merged into one.
#[derive(Clone, Debug, Default)]
pub struct ProcessReport {
    /// How many there are in it, where it is not one.
    pub merged: Option<u64>,
    /// Process number; of merged ones the first's.
    pub pid: u32,
    /// Its parent's.
    pub parent_pid: u32,
    /// Its command line.
    pub command: Vec<String>,
    /// Version of its Python, e.g. `3.11.7`; absent where there is none.
    pub python: Option<String>,
    /// Its control group, as `/proc/PID/cgroup` says.
    pub cgroup: Option<String>,
    /// Its container, as far as the control group tells.
    pub container: Option<Container>,
    /// When the image began.
    pub started: Option<std::time::SystemTime>,
    /// When it ended; absent where it still runs.
    pub ended: Option<std::time::SystemTime>,
    /// Exit status, 128 + N for signal N.
    pub exit_status: Option<i32>,
    /// What ended it, where that was not itself: words that follow "process N".
    pub ended_by: Option<String>,
    /// Resident bytes at the first sight.
    pub rss_start_bytes: Option<u64>,
    /// The highest resident bytes seen.
    pub rss_peak_bytes: Option<u64>,
    /// Resident bytes at the end.
    pub rss_end_bytes: Option<u64>,
    /// Allocated less released, of everything counted in the process.
    pub net_bytes: i64,
    /// Its blocks were sampled: bytes of its lines are estimates, but for mappings of the program's own.
    pub sampling: Option<Sampling>,
    /// The functions, marked ones first in the order of their definition, then by bytes moved.
    pub functions: Vec<Function>,
    /// Bytes that are on no line of `functions`.
    pub other: Vec<Other>,
}

/// One function (one code object, or several that were compiled from the same place).
#[derive(Clone, Debug, Default)]
pub struct Function {
    /// The file name as Python knows it (`co_filename`).
    pub filename: String,
    /// `co_name`.
    pub name: String,
    /// `co_qualname`, or the name where Python has none.
    pub qualified_name: String,
    /// `co_firstlineno`: the first decorator, or the `def`.
    pub first_line: u32,
    /// Marked with `@profile`.
    pub marked: bool,
    /// The user's own file: neither the standard library, nor an installed package, nor frozen code.
    pub own_file: bool,
    /// Resident bytes when the function was first entered; absent when not measured.
    pub entry_rss_bytes: Option<u64>,
    /// Bytes allocated plus bytes released by its lines, callees included: the order of the tables.
    pub moved_bytes: u64,
    /// Lines of the function's own bytecode (not of functions inside it), ascending, without 0.
    pub own_lines: Vec<u32>,
    /// The lines that were measured, ascending.
    pub lines: Vec<Line>,
    /// The text of the whole source file, if it could be read: its lines without line ends, as they stand there (control
    /// characters too: the formats escape them).
    pub source: Option<std::sync::Arc<Vec<String>>>,
}

/// One measured line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub line: u32,
    /// Executions; absent when not measured.
    pub occurrences: Option<u64>,
    /// Resident bytes when it last finished.
    pub mem_usage_bytes: Option<u64>,
    /// Net bytes, callees included.
    pub increment_bytes: i64,
    /// Net bytes of the line itself.
    pub self_bytes: i64,
    /// Net bytes of the line and of what it called in files that are not shown.
    pub growth_bytes: i64,
    /// Of the same events: bytes asked for and not released yet.
    pub growth_live_bytes: i64,
    /// Bytes asked for, callees included.
    pub allocated_bytes: u64,
    /// Bytes released, callees included.
    pub freed_bytes: u64,
    /// Blocks asked for, callees included.
    pub allocations: u64,
    /// Blocks released, callees included.
    pub frees: u64,
    /// Highest net within one execution; absent when not measured.
    pub peak_bytes: Option<u64>,
    /// How far its bytes may be from the truth; absent where they are exact, and where none of its blocks was sampled.
    pub errors: Option<Errors>,
    /// Bytes asked for and not released yet, callees included.
    pub live_bytes: i64,
    /// Python's JIT had compiled it: some of its bytes may be of a later line of the same function.
    pub approximate: bool,
    /// The native functions in which they were asked for, most bytes first; empty where that was not looked for.
    pub native: Vec<NativeBytes>,
}

/// Standard errors of estimates, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Of the increment.
    pub increment_bytes: u64,
    /// Of the bytes asked for.
    pub allocated_bytes: u64,
    /// Of the bytes released.
    pub freed_bytes: u64,
    /// Of the bytes that live.
    pub live_bytes: u64,
}

impl Errors {
    /// Of the sums with another estimate, which is independent.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            increment_bytes: error_of_sum(self.increment_bytes, other.increment_bytes),
            allocated_bytes: error_of_sum(self.allocated_bytes, other.allocated_bytes),
            freed_bytes: error_of_sum(self.freed_bytes, other.freed_bytes),
            live_bytes: error_of_sum(self.live_bytes, other.live_bytes),
        }
    }
}

/// The standard error of the sum of two estimates that are independent.
fn error_of_sum(one: u64, other: u64) -> u64 {
    (one as f64).hypot(other as f64).round() as u64
}

/// What is known of a process whose blocks were sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Bytes between two that were sampled, in the mean.
    pub interval_bytes: u64,
    /// Blocks that were.
    pub samples: u64,
    /// Bytes that all blocks were asked for with: exact.
    pub allocated_bytes: u64,
    /// All blocks asked for: exact.
    pub allocations: u64,
    /// All blocks released: exact.
    pub frees: u64,
    /// Standard error of the net bytes of the process.
    pub net_error_bytes: u64,
}

impl Sampling {
    /// Of two processes.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            interval_bytes: self.interval_bytes,
            samples: self.samples.saturating_add(other.samples),
            allocated_bytes: self.allocated_bytes.saturating_add(other.allocated_bytes),
            allocations: self.allocations.saturating_add(other.allocations),
            frees: self.frees.saturating_add(other.frees),
            net_error_bytes: error_of_sum(self.net_error_bytes, other.net_error_bytes),
        }
    }
}

/// Bytes asked for in one native function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NativeBytes {
    /// Its name, or where it is.
    pub function: String,
    /// The name of its file.
    pub module: String,
    /// Bytes.
    pub bytes: u64,
}

impl NativeBytes {
    /// The order in which they are shown.
    pub fn most_first(&self, other: &Self) -> std::cmp::Ordering {
        other.bytes.cmp(&self.bytes).then_with(|| self.function.cmp(&other.function))
    }
}

/// Bytes on no line, with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Other {
    /// e.g. `no Python frame`, `start-up of the interpreter`, `stack not read`.
    pub reason: String,
    /// Their net.
    pub net_bytes: i64,
}
