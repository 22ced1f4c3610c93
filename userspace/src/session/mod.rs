//! The only room that sees all worlds: wires kernel, target, Python and report together, and owns what is attached.
//!
//! Two threads: the supervisor (holds processes, attaches) and this one (drains, resolves, prints). They share the
//! [`Attacher`](crate::kernel::Attacher) and one channel.

mod alarms;
mod alone;
mod assemble;
pub mod attach;
mod beat;
mod checked;
mod collections;
mod collector;
mod command_text;
mod commands;
mod debugger;
mod filter;
mod follow;
mod given;
mod hold;
mod image;
mod limits;
mod modules;
mod outlet;
mod pieces;
mod progress;
mod recipe;
mod sources;
mod tallied;

use std::io::{self, Write};
use std::process::ExitStatus;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use assemble::Whose;
use beat::{Beat, Beats};
use checked::Checked;
use collector::{Collector, Message};
use commands::Commands;
use hold::Hold;
use outlet::Outlet;

use crate::kernel::{Attacher, Drain, Follow, Kernel, LoadError, Mode, Totals, Wanted};
use crate::launch::Shim;
use crate::plan::{ReportPlan, RunPlan};
use crate::prompts::TerminalError;
use crate::report::Cause;
use crate::target::credentials::{self, Credentials, CredentialsError};
use crate::target::ending::Ending;
use crate::target::signals::Signals;
use crate::target::spawn::{Command, SpawnError};
use crate::target::{Pid, supervise};

/// What makes CPython ask the C allocator for every object (Objects/obmalloc.c, _PyMem_SetupAllocators).
const MALLOC_FOR_OBJECTS: &str = "PYTHONMALLOC=malloc";

/// Why a run could not be done. The program's own failure is none.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// We lack capabilities.
    #[error("rmprof-bpf may not measure: it lacks {}", .0.join(", "))]
    Rights(Vec<String>),
    /// The user behind sudo.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The probes.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The program did not start.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The report's file.
    #[error("cannot write the report to {path}: {error}")]
    Output {
        /// As it was given.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// The report to compare with.
    #[error("cannot compare with {path}: {reason}")]
    Baseline {
        /// As it was given.
        path: String,
        /// Why.
        reason: String,
    },
    /// A process that cannot be measured.
    #[error("process {pid}: {reason}")]
    Process {
        /// Which.
        pid: Pid,
        /// Why.
        reason: String,
        /// The next step.
        hint: String,
    },
    /// Nobody could answer the debugger.
    #[error(transparent)]
    Terminal(TerminalError),
    /// Anything else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl RunError {
    /// The next step for the person.
    pub fn hint(&self) -> &str {
        match self {
            Self::Rights(_) => "run it with sudo, or as the README's section \"Without root\" says",
            Self::Credentials(error) => error.hint(),
            Self::Load(error) => error.hint(),
            Self::Spawn(error) => error.hint(),
            Self::Output { .. } => "choose a file in a directory you may write to",
            Self::Baseline { .. } => "make it with `--format json --output FILE`, in the same mode",
            Self::Process { hint, .. } => hint,
            Self::Terminal(error) => error.hint(),
            Self::System { .. } => "`rmprof-bpf doctor` says what this machine allows",
        }
    }

    /// The exit status that stands for it.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Spawn(error) => error.exit_code(),
            _ => 125,
        }
    }
}

/// Says something to the person, who may also be reading the program's output: standard error, lines of its own. What follows a
/// line break (a hint) is a line too.
pub(crate) fn say(text: &str) {
    let lines: Vec<_> = text.lines().map(crate::report::escape).collect();
    // Nobody to tell is no reason to stop.
    let _ = writeln!(io::stderr(), "rmprof-bpf: {}", lines.join("\n"));
}

/// Runs a program, prints its report, and returns the exit status to end with.
///
/// # Errors
/// [`RunError`] when nothing could be measured; the program then has not run.
pub fn run(plan: &RunPlan) -> Result<i32, RunError> {
    check_rights()?;
    let credentials = credentials::of_caller(plan.as_root)?;
    let checks = Checked::read(&plan.report, credentials.as_ref())?;
    let mut outlet = Outlet::open(&plan.report, credentials.clone())?;
    let shim = match Shim::create() {
        Ok(shim) => Some(with_every(limits::with_debugger(shim, plan.debugger), &plan.report)),
        Err(error) => {
            say(&format!("marks are not available: {error:#}"));
            None
        }
    };
    let signals = Signals::block().map_err(|error| RunError::System { doing: "blocking signals", error })?;
    let wanted = Wanted { limit: plan.debugger.is_some(), ..plan.report.wanted(Follow::Nobody, &plan.alarms) };
    let attacher = Arc::new(Attacher::start().map_err(LoadError::Keeper)?);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let (unforked, forked) = std::sync::mpsc::channel();
    let mut hold = Hold::new(
        Arc::clone(&attacher),
        (plan.report.mode, plan.report.native()),
        sender,
        shim.as_ref(),
        plan.preload,
        credentials.clone().map(Arc::new),
        plan.debugger,
    )
    .sampling(plan.report.sample)
    .telling_of_the_fork(unforked);
    let command = command(plan, credentials, shim.as_ref());
    let ending = Ending::default();
    let asked = ending.clone();
    let supervisor = std::thread::Builder::new()
        .name("supervisor".into())
        .spawn(move || {
            let status = supervise::run(&command, Some(&signals), &asked, &mut hold);
            (status, signals, hold.is_outlived())
        })
        .map_err(|error| RunError::System { doing: "starting a thread", error })?;
    // Meanwhile the program is executed, and held where it would begin. What libbpf opens, one file of it without O_CLOEXEC (1.7.0,
    // btf_parse_raw_mmap), is not to be the program's too.
    let _ = forked.recv();
    let (kernel, drain) = match Kernel::load_for(&attacher, wanted, plan.how) {
        Ok(loaded) => loaded,
        Err(error) => {
            // The supervisor ends the program, of which nothing has run. What it says of that is not what was wrong.
            let _ = supervisor.join();
            return Err(error.into());
        }
    };
    let mut collector = Collector::default();
    let gathered = Gathering {
        plan,
        collector: &mut collector,
        drain: &drain,
        attacher: &attacher,
        outlet: &mut outlet,
        commands: Commands::default(),
        ending,
    }
    .until_the_end(receiver);
    let (status, signals, outlived) = supervisor.join().map_err(|_| RunError::System {
        doing: "supervising the program",
        error: io::Error::other("its thread ended early"),
    })?;
    let status = status?;
    let (mut totals, exit) =
        gathered.map_err(|error| RunError::System { doing: "reading what the probes gathered", error })?;
    if collector.images.is_empty() && collector.settled.is_empty() {
        say(
            "no supported Python ran: nothing was measured\nhint: `rmprof-bpf doctor /path/to/python` says whether one can be",
        );
    }
    collector.finish_tallies();
    collector.add_tallies(&mut totals);
    collector.finish_natives();
    if let Some(debugger) = plan.debugger {
        collector.limits.tell(debugger, &collector.images);
    }
    if shim.is_some() {
        tell_of_marks(&collector.without_marks);
    }
    let Collector { mut images, settled, .. } = collector;
    let report = assemble::assemble(&mut images, &settled, &mut totals, &plan.report, Whose::Everybody);
    drop(shim);
    let written = outlet.last(&report);
    drop(signals);
    if !outlived {
        kernel.leave_to_keeper(&attacher);
    }
    written?;
    Ok(checks.status(&report, exit.map_or(exit_code(status), i32::from)))
}

/// Has every function of the program's own code give line events, where a column of its lines takes that.
fn with_every(shim: Shim, plan: &ReportPlan) -> Shim {
    if let Some(column) = plan.column_of_executions() {
        let selection = &plan.options.selection;
        if let Err(error) = shim.add_every(selection.all_files(), selection.included()) {
            say(&format!("the column '{}' is of marked functions alone: {error:#}", column.name()));
        }
    }
    shim
}

/// Have we the capabilities that all we do takes?
fn check_rights() -> Result<(), RunError> {
    let missing = crate::rights::missing();
    if missing.is_empty() {
        return Ok(());
    }
    Err(RunError::Rights(missing.iter().map(|need| need.capability.to_string()).collect()))
}

fn exit_code(status: ExitStatus) -> i32 {
    supervise::exit_code(status)
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

fn command(plan: &RunPlan, credentials: Option<Credentials>, shim: Option<&Shim>) -> Command {
    let mut env = credentials::environment(credentials.as_ref());
    if plan.report.mode == Mode::Objects
        && let Some((name, value)) = MALLOC_FOR_OBJECTS.split_once('=')
    {
        env.retain(|(other, _)| other != name);
        env.push((name.into(), value.into()));
    }
    if let Some(shim) = shim {
        let existing = env.iter().find(|(name, _)| name == "PYTHONPATH").map(|(_, value)| value.clone());
        env.retain(|(name, _)| name != "PYTHONPATH");
        env.push(("PYTHONPATH".into(), shim.pythonpath(existing.as_deref())));
    }
    Command { program: plan.program.clone(), args: plan.arguments.clone(), env, credentials }
}

/// What the probes gather while a program runs.
struct Gathering<'g, 'p> {
    plan: &'g RunPlan,
    collector: &'g mut Collector,
    drain: &'g Drain,
    attacher: &'g Attacher,
    outlet: &'g mut Outlet<'p>,
    commands: Commands,
    /// Tells the supervisor.
    ending: Ending,
}

impl Gathering<'_, '_> {
    /// Drains until the supervisor has hung up, then reads the sums. With them comes the exit status that an action asked for.
    fn until_the_end(mut self, mut messages: UnboundedReceiver<Message>) -> io::Result<(Totals, Option<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut exit = None;
        runtime.block_on(async {
            // The debugger has the terminal to itself.
            let mut beats = Beats::new(self.drain, self.plan.debugger.is_none())?;
            loop {
                let mut due = false;
                tokio::select! {
                    biased; // of an end before what is on the way
                    message = messages.recv() => match message {
                        // Its process is about to end: what is on the way can be named by this alone, and be too much to be kept.
                        Some(message @ Message::Code(..)) => self.collector.hear(message),
                        Some(message) => {
                            self.collector.record(self.drain.take()?);
                            self.collector.hear(message);
                        }
                        None => break,
                    },
                    beat = beats.next() => due = beat? == Beat::Due,
                }
                if due {
                    beats.tell(&self.collector.images, self.attacher);
                    self.collector.begin_look();
                }
                self.collector.record(self.drain.take()?);
                if due {
                    self.collector.end_look(self.drain.unheard()?);
                }
                exit = exit.or(self.act(true));
                if due {
                    self.collector.make_room(self.drain, &self.plan.report)?;
                }
            }
            io::Result::Ok(())
        })?;
        let records = self.drain.take()?;
        self.collector.record(records);
        exit = exit.or(self.act(false));
        self.commands.leave();
        Ok((self.drain.totals()?, exit))
    }

    /// Does what is to be done of limits that were passed. A report before the last is for a program that goes on.
    fn act(&mut self, goes_on: bool) -> Option<u8> {
        self.commands.look_after();
        let todo = alarms::act(&self.plan.alarms, self.collector);
        if todo.exit.is_some() {
            self.ending.ask();
        }
        if goes_on
            && todo.wants_report(self.outlet.has_files())
            && let Err(error) = self.snapshot()
        {
            say(&format!("{error}\nhint: {}", error.hint()));
        }
        for wanted in &todo.commands {
            self.commands.begin(wanted, self.outlet.newest(), self.outlet.credentials());
        }
        todo.exit
    }

    /// Writes the report as things stand.
    fn snapshot(&mut self) -> Result<(), RunError> {
        let failed = |error| RunError::System { doing: "reading what the probes gathered", error };
        let collector = &mut *self.collector;
        collector.take_tallies();
        collector.record(self.drain.take().map_err(failed)?);
        collector.finish_natives();
        let mut totals = self.drain.totals().map_err(failed)?;
        collector.add_tallies(&mut totals);
        let Collector { images, settled, .. } = collector;
        let mut report = assemble::assemble(images, settled, &mut totals, &self.plan.report, Whose::Everybody);
        self.outlet.snapshot(&mut report, Cause::Limit).map(drop)
    }
}

/// Says why there are no marks where Pythons ran without our help to it.
fn tell_of_marks(without: &[Pid]) {
    const NAMED: usize = 3;
    let named: Vec<String> = without.iter().take(NAMED).map(Pid::to_string).collect();
    let (who, whose) = match without.len() {
        0 => return,
        1 => (format!("process {}", named.join("")), "its Python"),
        2..=NAMED => (format!("processes {}", named.join(", ")), "their Python"),
        more => (format!("processes {} and {} more", named.join(", "), more - NAMED), "their Python"),
    };
    say(&format!(
        "{who}: marks (@profile) are not available, {whose} did not load our start-up module (-I, -E, -S or an environment of its \
         own); the whole program was profiled"
    ));
}
