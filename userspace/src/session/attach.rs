//! Processes that run already, named or all of the machine: from now on until they end, we are told to stop, or the time is over. They
//! are neither stopped nor changed.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::alarms;
use super::assemble::{Whose, assemble};
use super::beat::{Beat, Beats};
use super::checked::Checked;
use super::collector::{Collector, Message};
use super::commands::Commands;
use super::debugger::{self, Debugger};
use super::follow::{Follower, Scope};
use super::hold::Hold;
use super::outlet::Outlet;
use super::{RunError, check_rights, say};
use crate::kernel::event::Event;
use crate::kernel::{Attacher, Drain, Follow, Kernel};
use crate::plan::{AttachPlan, DebuggerPlan, SystemPlan, WatchPlan};
use crate::prompts::Over;
use crate::report::{Cause, Report};
use crate::target::{credentials, limits};

/// How often what was just executed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Longer than any session; the clock could not add `Duration::MAX` to now.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// How often, at most, the reports of processes that were killed are written.
const TELL_OF_KILLED_EVERY: Duration = Duration::from_secs(1);

/// Measures the processes named, prints their report, and returns the exit status to end with.
///
/// # Errors
/// [`RunError`] when one of them cannot be measured; then none is.
pub fn attach(plan: &AttachPlan) -> Result<i32, RunError> {
    let scope = Scope::Named { children: plan.children };
    debugger::check(plan.debugger)?;
    let (runtime, stop, mut watch) = begin(&plan.watch, (Follow::Watched, plan.debugger), scope)?;
    let entered = runtime.enter();
    watch.debugger = plan.debugger.map(Debugger::new).transpose()?;
    drop(entered);
    for pid in &plan.pids {
        let refuse = |(reason, hint)| RunError::Process { pid: *pid, reason, hint };
        if nix::sys::signal::kill(*pid, None) == Err(nix::errno::Errno::ESRCH) {
            let hint = "`pgrep -a python` lists the Pythons that run".to_owned();
            return Err(refuse(("there is no such process".to_owned(), hint)));
        }
        watch.follower.begin(*pid).map_err(refuse)?;
        let entered = runtime.enter();
        watch.debugger.as_mut().map_or(Ok(()), |debugger| debugger.prepare(*pid)).map_err(refuse)?;
        drop(entered);
    }
    if plan.children {
        let begun = watch.follower.begin_with_children(&plan.pids);
        begun.map_err(|error| RunError::System { doing: "listing the processes", error })?;
    }
    let what = match watch.follower.count() {
        1 => "it runs on unchanged".into(),
        count => format!("{count} processes"),
    };
    tell_terminal(&format!("attached ({what}); Ctrl-C writes the report and lets go"));
    runtime.block_on(watch.until_the_end(stop))?;
    watch.last_report()
}

/// Measures every Python process of the machine.
///
/// # Errors
/// [`RunError`] when nothing can be measured.
pub fn system(plan: &SystemPlan) -> Result<i32, RunError> {
    let scope = Scope::Machine(plan.filter.clone());
    let (runtime, stop, mut watch) = begin(&plan.watch, (Follow::Everybody, None), scope)?;
    let listed = watch.follower.begin_with_all();
    listed.map_err(|error| RunError::System { doing: "listing the processes", error })?;
    tell_terminal("every Python of this machine is measured; Ctrl-C writes the report and lets go");
    runtime.block_on(watch.until_the_end(stop))?;
    watch.last_report()
}

fn tell_terminal(text: &str) {
    if io::stderr().is_terminal() {
        say(text);
    }
}

/// Everything that is before the first process is looked at.
fn begin(
    plan: &WatchPlan,
    (follow, debugger): (Follow, Option<DebuggerPlan>),
    scope: Scope,
) -> Result<(Runtime, Orders, Watch<'_>), RunError> {
    check_rights()?;
    // Before anything is attached: whoever tells us to stop while we begin gets the report too.
    let (runtime, orders) = listen().map_err(|error| RunError::System { doing: "listening for signals", error })?;
    limits::raise_open_files();
    let credentials = credentials::of_caller(false)?;
    let checks = Checked::read(&plan.report, credentials.as_ref())?;
    let outlet = Outlet::open(&plan.report, credentials)?;
    let (kernel, attacher, drain) = Kernel::load(plan.report.wanted(follow, &plan.alarms), plan.how)?;
    let attacher = Arc::new(attacher);
    let (sender, messages) = tokio::sync::mpsc::unbounded_channel();
    let hold = Hold::of_followed(Arc::clone(&attacher), (plan.report.mode, plan.report.native()), sender);
    let hold = hold.with_debugger(debugger);
    let follower = Follower::new(hold, scope);
    let collector = Collector::default();
    let commands = Commands::default();
    let watch = Watch {
        plan,
        checks,
        outlet,
        collector,
        commands,
        debugger: None,
        drain,
        messages,
        follower,
        attacher,
        _kernel: kernel,
    };
    Ok((runtime, orders, watch))
}

/// The signals that end the measuring, and the one that asks for a report.
struct Orders {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    report: Signal,
}

/// What a signal says.
enum Order {
    Stop,
    Report,
}

impl Orders {
    /// Until one of them comes; one that came before this was asked counts.
    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.terminate.recv() => Order::Stop,
            _ = self.hang_up.recv() => Order::Stop,
            _ = self.report.recv() => Order::Report,
        }
    }
}

/// From now on these signals are kept for whoever asks, and end nothing by themselves.
fn listen() -> io::Result<(Runtime, Orders)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let orders = Orders {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
        hang_up: signal(SignalKind::hangup())?,
        report: signal(SignalKind::user_defined1())?,
    };
    drop(entered);
    Ok((runtime, orders))
}

/// A session with processes that nobody holds.
struct Watch<'p> {
    plan: &'p WatchPlan,
    checks: Checked<'p>,
    outlet: Outlet<'p>,
    collector: Collector,
    commands: Commands,
    debugger: Option<Debugger>,
    drain: Drain,
    messages: UnboundedReceiver<Message>,
    follower: Follower,
    attacher: Arc<Attacher>,
    /// The probes are there as long as this.
    _kernel: Kernel,
}

/// Never, where the debugger is not asked for.
async fn next_of(debugger: &mut Option<Debugger>) -> Over {
    match debugger {
        Some(debugger) => debugger.next().await,
        None => std::future::pending().await,
    }
}

fn gathering(error: io::Error) -> RunError {
    RunError::System { doing: "reading what the probes gathered", error }
}

impl Watch<'_> {
    async fn until_the_end(&mut self, mut orders: Orders) -> Result<(), RunError> {
        let mut beats = Beats::new(&self.drain, self.debugger.is_none()).map_err(gathering)?;
        let mut reports = tokio::time::interval(self.plan.interval.unwrap_or(NEVER).min(NEVER));
        reports.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        reports.reset(); // the first would be at once
        let over = tokio::time::sleep(self.plan.duration.unwrap_or(Duration::MAX));
        tokio::pin!(over);
        let mut loading = false;
        let mut killed_due = tokio::time::Instant::now();
        while self.follower.has_any() {
            let mut cause = None;
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY), if loading => {}
                beat = beats.next() => if beat.map_err(gathering)? == Beat::Due {
                    beats.tell(&self.collector.images, &self.attacher);
                },
                order = orders.next() => match order {
                    Order::Stop => break,
                    Order::Report => cause = Some(Cause::Signal),
                },
                _ = reports.tick(), if self.plan.interval.is_some() => cause = Some(Cause::Interval),
                () = &mut over => break,
                goes_on = next_of(&mut self.debugger) => {
                    self.debugger.iter().for_each(|debugger| debugger.hear(&goes_on, &self.attacher));
                }
            }
            self.take().map_err(gathering)?;
            loading = self.follower.look_again();
            self.hear();
            self.commands.look_after();
            if let Some(debugger) = &mut self.debugger {
                debugger.act(&mut self.collector);
            }
            let todo = alarms::act(&self.plan.alarms, &mut self.collector);
            if todo.wants_report(self.outlet.has_files()) {
                cause = cause.or(Some(Cause::Limit));
            }
            if !self.collector.killed.is_empty() && tokio::time::Instant::now() >= killed_due && self.follower.has_any()
            {
                killed_due = tokio::time::Instant::now() + TELL_OF_KILLED_EVERY;
                cause = cause.or(Some(Cause::Death));
            }
            let is_read = cause.is_none_or(|cause| self.snapshot(cause));
            for wanted in &todo.commands {
                self.commands.begin(wanted, self.outlet.newest(), self.outlet.credentials());
            }
            if !is_read {
                break;
            }
            self.collector.make_room(&self.drain, &self.plan.report).map_err(gathering)?;
        }
        if let Some(debugger) = self.debugger.take() {
            debugger.end();
        }
        self.follower.let_go();
        self.take().map_err(gathering)
    }

    /// Takes the records in their order: one of a fork makes an image that those after it are of.
    fn take(&mut self) -> io::Result<()> {
        self.hear();
        for event in self.drain.take()? {
            if matches!(event, Event::Followed { .. }) {
                self.follower.hear(&event);
                self.hear();
            } else {
                self.collector.record(vec![event]);
            }
        }
        Ok(())
    }

    fn hear(&mut self) {
        while let Ok(message) = self.messages.try_recv() {
            self.collector.hear(message);
        }
    }

    /// The report as things stand.
    fn report(&mut self, whose: Whose<'_>) -> io::Result<Report> {
        self.collector.finish_natives();
        let mut totals = self.drain.totals()?;
        let Collector { images, settled, .. } = &mut self.collector;
        let mut report = assemble(images, settled, &mut totals, &self.plan.report, whose);
        let missing = self.follower.missing();
        report.health.lost = report.health.lost.saturating_add(missing.missed).saturating_add(missing.unprobed);
        let counters = [
            ("processes_missed", missing.missed),
            ("processes_refused", missing.refused),
            ("forks_unprobed", missing.unprobed),
        ];
        let counters = counters.into_iter().filter(|(_, count)| *count > 0);
        report.health.counters.extend(counters.map(|(name, count)| (name.to_owned(), count)));
        Ok(report)
    }

    /// Writes a report before the last. False: nobody reads it. One that cannot be written is said, and the next may be.
    fn snapshot(&mut self, cause: Cause) -> bool {
        let killed = std::mem::take(&mut self.collector.killed);
        let whose = if cause == Cause::Death { Whose::These(&killed) } else { Whose::Everybody };
        let written =
            self.report(whose).map_err(gathering).and_then(|mut report| self.outlet.snapshot(&mut report, cause));
        written.unwrap_or_else(|error| {
            say(&format!("{error}\nhint: {}", error.hint()));
            true
        })
    }

    fn last_report(mut self) -> Result<i32, RunError> {
        let silent = self.collector.images.values().all(|image| image.stacks.is_empty());
        if self.collector.settled.is_empty() && silent {
            say("no memory moved in what was measured");
        }
        let report = self.report(Whose::Everybody).map_err(gathering)?;
        self.commands.leave();
        self.outlet.last(&report)?;
        Ok(self.checks.status(&report, 0))
    }
}
