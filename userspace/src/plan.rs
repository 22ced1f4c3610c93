//! What will be done: what was typed, validated, as plain data. Nothing is started or opened here.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use crate::alarm::{Alarm, Alarms, Of};
use crate::cli::{
    AttachArguments, AttachModeArgument, CheckArguments, ModeArgument, ProbesArgument, ReportArguments, RunArguments,
    SystemArguments, WatchArguments,
};
use crate::kernel::{Follow, How, Mode, Rung, Wanted};
use crate::report::checks::{Checks, LineCheck};
use crate::report::columns::Column;
use crate::report::{Format, Globs, OptionError, Options, RankBy, Selection};
use crate::target::Pid;

/// What is counted, and the report of it.
#[derive(Debug)]
pub struct ReportPlan {
    /// What is counted.
    pub mode: Mode,
    /// Where the report goes; `None`: standard output.
    pub output: Option<PathBuf>,
    /// In which format.
    pub format: &'static Format,
    /// How it is to look.
    pub options: Options,
    /// What it must keep to.
    pub checks: Checks,
    /// The earlier report that it is compared with.
    pub baseline: Option<PathBuf>,
    /// Blocks are sampled: bytes between two that are, in the mean.
    pub sample: Option<NonZeroU64>,
}

impl ReportPlan {
    /// Are native functions asked for?
    pub fn native(&self) -> bool {
        self.options.columns.contains(&Column::Native)
    }

    /// The first column that takes line events of functions that are not marked.
    pub fn column_of_executions(&self) -> Option<Column> {
        self.options.columns.iter().copied().find(|column| column.takes_line_events())
    }

    /// What the probes are to do; `follow`: of processes that nobody holds.
    pub fn wanted(&self, follow: Follow, alarms: &[Alarm]) -> Wanted {
        Wanted { mode: self.mode, native: self.native(), follow, limit: false, alarms: Alarms::of(alarms) }
    }

    /// Has blocks sampled, and the error of an increment shown beside it.
    fn sample_every(&mut self, sample: NonZeroU64, preload: bool) -> Result<(), OptionError> {
        if !self.mode.counts_blocks() {
            return Err(OptionError::new(
                "--sample is of blocks, which the mode pages does not count".into(),
                "leave it out: that mode costs next to nothing, and its sums are exact; or take --mode heap".into(),
            ));
        }
        if !preload {
            return Err(OptionError::new(
                "--sample needs the preloaded library, which --no-preload and --probes leave out".into(),
                "blocks are sampled inside the program: a trap for each of them costs as much whether it is counted or not".into(),
            ));
        }
        self.sample = Some(sample);
        let columns = &mut self.options.columns;
        if let Some(at) = columns.iter().position(|column| *column == Column::Increment)
            && !columns.contains(&Column::Error)
        {
            columns.insert(at + 1, Column::Error);
        }
        Ok(())
    }

    fn new(mode: Mode, typed: ReportArguments, checks: CheckArguments) -> Result<Self, OptionError> {
        let format = match (&typed.format, &typed.output) {
            (Some(name), _) => Format::by_name(name)?,
            (None, Some(path)) => Format::by_ending(path).unwrap_or(&crate::report::FORMATS[0]),
            (None, None) => &crate::report::FORMATS[0],
        };
        let columns = match &typed.columns {
            Some(list) => Column::parse_list(list)?,
            None => Column::DEFAULT.to_vec(),
        };
        let selection = Selection::new(&typed.include, &typed.exclude, typed.all_files)?;
        let options = Options {
            precision: usize::from(typed.precision),
            columns,
            top: typed.top,
            merge: typed.merge,
            rank: None,
            one_line: false,
            selection,
        };
        let lines = checks.fail_line.iter().map(|text| LineCheck::parse(text)).collect::<Result<_, _>>()?;
        let baseline = checks.baseline;
        let checks = Checks { above: checks.fail_above, lines, growth: checks.fail_growth };
        Ok(Self { mode, output: typed.output, format, options, checks, baseline, sample: None })
    }
}

/// When the debugger opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebuggerPlan {
    /// Resident bytes above which it does.
    pub bytes: u64,
    /// How many more until it does again; `None`: once.
    pub step: Option<u64>,
}

/// A run of a program.
#[derive(Debug)]
pub struct RunPlan {
    /// What is counted and reported.
    pub report: ReportPlan,
    /// By which library the probes are loaded, and how they are attached.
    pub how: How,
    /// Let the program count the allocator's calls itself, where it can. Not where a way of probing was asked for.
    pub preload: bool,
    /// When the debugger opens; `None`: never.
    pub debugger: Option<DebuggerPlan>,
    /// What is done at which limits.
    pub alarms: Vec<Alarm>,
    /// Keep root for the program under sudo.
    pub as_root: bool,
    /// What to run.
    pub program: OsString,
    /// With which arguments.
    pub arguments: Vec<OsString>,
}

impl RunPlan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Names the option value that cannot be used; usage errors end with status 2.
    pub fn new(typed: RunArguments) -> Result<Self, OptionError> {
        let mode = match typed.mode {
            ModeArgument::Heap => Mode::Heap,
            ModeArgument::Objects => Mode::Objects,
            ModeArgument::Pages => Mode::Pages,
        };
        let mut words = typed.program.into_iter();
        let preload = !typed.no_preload && typed.probes.is_none();
        let mut report = ReportPlan::new(mode, typed.report, typed.checks)?;
        if let Some(sample) = typed.sample {
            report.sample_every(sample, preload)?;
        }
        Ok(Self {
            report,
            preload,
            how: How {
                loader: typed.loader.unwrap_or_default(),
                preempted: (typed.probes == Some(ProbesArgument::Preempted)).then_some(true),
                rung: typed.probes.map(|probes| match probes {
                    ProbesArgument::Session | ProbesArgument::Preempted => Rung::Session,
                    ProbesArgument::Multi => Rung::Multi,
                    ProbesArgument::Single => Rung::Single,
                }),
            },
            debugger: typed.pdb_mmem.map(|bytes| DebuggerPlan { bytes, step: typed.pdb_mmem_step }),
            alarms: Alarm::parse_all(&typed.on_limit, Of::Run)?,
            as_root: typed.as_root,
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
        })
    }
}

/// What is measured of processes that run already, and when it is reported.
#[derive(Debug)]
pub struct WatchPlan {
    /// What is counted and reported.
    pub report: ReportPlan,
    /// How long; `None`: until they end or we are told to.
    pub duration: Option<Duration>,
    /// A report each time so long has passed.
    pub interval: Option<Duration>,
    /// What is done at which limits.
    pub alarms: Vec<Alarm>,
    /// By which library the probes are loaded.
    pub how: How,
}

impl WatchPlan {
    fn new(typed: WatchArguments) -> Result<Self, OptionError> {
        let mode = match typed.mode {
            AttachModeArgument::Heap => Mode::Heap,
            AttachModeArgument::Pages => Mode::Pages,
        };
        if typed.sample.is_some() {
            return Err(OptionError::new(
                "--sample is for programs that rmprof-bpf starts: blocks are sampled inside the program".into(),
                "in a process that runs already each block is trapped, counted or not; the mode pages costs it next to nothing"
                    .into(),
            ));
        }
        let mut report = ReportPlan::new(mode, typed.report, typed.checks)?;
        if let Some(column) = report.column_of_executions() {
            return Err(OptionError::new(
                format!("the column '{}' is for programs that rmprof-bpf starts", column.name()),
                "the beginning of an execution is not seen from outside; leave it out, or start the program with `rmprof-bpf run`: \
                 allocated, freed, allocations, frees and live are of lines of processes that run already too"
                    .into(),
            ));
        }
        report.options.rank = Some(if mode.counts_blocks() { RankBy::Live } else { RankBy::Net });
        let how = How { loader: typed.loader.unwrap_or_default(), ..How::default() };
        let alarms = Alarm::parse_all(&typed.on_limit, Of::Watch)?;
        Ok(Self { report, duration: typed.duration, interval: typed.interval, alarms, how })
    }
}

/// Processes that run already.
#[derive(Debug)]
pub struct AttachPlan {
    /// What, and when.
    pub watch: WatchPlan,
    /// Which, by number.
    pub pids: Vec<Pid>,
    /// The processes they make too.
    pub children: bool,
    /// When the debugger opens; `None`: never.
    pub debugger: Option<DebuggerPlan>,
}

impl AttachPlan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Names the option value that cannot be used; usage errors end with status 2.
    pub fn new(typed: AttachArguments) -> Result<Self, OptionError> {
        let mut pids: Vec<Pid> = typed.pids.into_iter().map(Pid::from_raw).collect();
        pids.sort_unstable();
        pids.dedup();
        let debugger = typed.pdb_mmem.map(|bytes| DebuggerPlan { bytes, step: typed.pdb_mmem_step });
        Ok(Self { watch: WatchPlan::new(typed.watch)?, pids, children: !typed.no_children, debugger })
    }
}

/// Every Python process of the machine.
#[derive(Debug)]
pub struct SystemPlan {
    /// What, and when.
    pub watch: WatchPlan,
    /// Of which processes.
    pub filter: Filter,
}

impl SystemPlan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Names the option value that cannot be used; usage errors end with status 2.
    pub fn new(typed: SystemArguments) -> Result<Self, OptionError> {
        let watch = WatchPlan::new(typed.watch)?;
        let globs = |patterns: &[String]| Globs::new(patterns);
        let filter =
            Filter { cgroup: globs(&typed.cgroup)?, user: globs(&typed.user)?, command: globs(&typed.command)? };
        Ok(Self { watch, filter })
    }
}

/// Which processes of the machine; where there is no glob of a kind, all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// By control group or container.
    pub cgroup: Option<Globs>,
    /// By user.
    pub user: Option<Globs>,
    /// By command.
    pub command: Option<Globs>,
}
