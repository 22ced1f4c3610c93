//! Processes that run already: from now on until they end, we are told to stop, or the time is over. They are neither stopped nor
//! changed.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::checked::Checked;
use super::collector::{Collector, Message};
use super::follow::Follower;
use super::hold::Hold;
use super::progress::Progress;
use super::{DRAIN_EVERY, RunError, assemble, check_rights, kernel_release, open_output, print, say};
use crate::kernel::event::Event;
use crate::kernel::{Attacher, Drain, Kernel, Totals};
use crate::plan::AttachPlan;
use crate::target::{credentials, limits};

/// How often what was just executed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Measures the processes named, prints their report, and returns the exit status to end with.
///
/// # Errors
/// [`RunError`] when one of them cannot be measured; then none is.
pub fn attach(plan: &AttachPlan) -> Result<i32, RunError> {
    check_rights()?;
    // Before anything is attached: whoever tells us to stop while we begin gets the report too.
    let (runtime, stop) = listen().map_err(|error| RunError::System { doing: "listening for signals", error })?;
    limits::raise_open_files();
    let credentials = credentials::of_caller(false)?;
    let checks = Checked::read(&plan.report, credentials.as_ref())?;
    let output = open_output(&plan.report, credentials.as_ref())?;
    let (kernel, attacher, drain) = Kernel::load(plan.report.wanted(true), plan.how)?;
    let attacher = Arc::new(attacher);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let hold = Hold::of_followed(Arc::clone(&attacher), (plan.report.mode, plan.report.native()), sender);
    let mut follower = Follower::new(hold, plan.children);
    for pid in &plan.pids {
        let refuse = |(reason, hint)| RunError::Process { pid: *pid, reason, hint };
        if nix::sys::signal::kill(*pid, None) == Err(nix::errno::Errno::ESRCH) {
            let hint = "`pgrep -a python` lists the Pythons that run".to_owned();
            return Err(refuse(("there is no such process".to_owned(), hint)));
        }
        follower.begin(*pid).map_err(refuse)?;
    }
    if io::stderr().is_terminal() {
        let what =
            if plan.pids.len() == 1 { "it runs on unchanged".into() } else { format!("{} processes", plan.pids.len()) };
        say(&format!("attached ({what}); Ctrl-C writes the report and lets go"));
    }
    let mut collector = Collector::default();
    let totals = runtime
        .block_on(watch(plan, stop, &mut collector, &drain, receiver, &mut follower, &attacher))
        .map_err(|error| RunError::System { doing: "reading what the probes gathered", error })?;
    collector.finish_natives();
    let Collector { images, settled, .. } = collector;
    let mut report = assemble::assemble(images, settled, &totals, &plan.report, kernel_release());
    if follower.missed > 0 {
        report.health.lost = report.health.lost.saturating_add(follower.missed);
        report.health.counters.push(("processes_missed".into(), follower.missed));
    }
    let written = print(&plan.report, output, &report);
    drop(kernel);
    written.map(|()| checks.status(&report, 0))
}

/// The signals that end the measuring.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Stop {
    /// Until one of them comes; one that came before this was asked counts.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// From now on these signals are kept for whoever asks, and end nothing by themselves.
fn listen() -> io::Result<(Runtime, Stop)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let stop = Stop {
        interrupt: signal(SignalKind::interrupt())?,
        terminate: signal(SignalKind::terminate())?,
        hang_up: signal(SignalKind::hangup())?,
    };
    drop(entered);
    Ok((runtime, stop))
}

async fn watch(
    plan: &AttachPlan,
    mut stop: Stop,
    collector: &mut Collector,
    drain: &Drain,
    mut messages: UnboundedReceiver<Message>,
    follower: &mut Follower,
    attacher: &Attacher,
) -> io::Result<Totals> {
    // SAFETY: the descriptor is owned by what is registered, and open for as long.
    let ring = unsafe { AsyncFd::register(drain.descriptor()?) }?;
    let mut clock = tokio::time::interval(DRAIN_EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let over = tokio::time::sleep(plan.duration.unwrap_or(Duration::MAX));
    tokio::pin!(over);
    let mut progress = Progress::new();
    let mut loading = false;
    while follower.has_any() {
        tokio::select! {
            _ = clock.tick() => progress.tick(&collector.images, attacher),
            () = tokio::time::sleep(LOOK_EVERY), if loading => {}
            ready = ring.readable() => ready?.clear_ready(),
            () = stop.told() => break,
            () = &mut over => break,
        }
        take(collector, drain, &mut messages, follower)?;
        loading = follower.look_again();
        hear(collector, &mut messages);
        collector.make_room(drain, &plan.report)?;
    }
    follower.let_go();
    take(collector, drain, &mut messages, follower)?;
    if collector.settled.is_empty() && collector.images.values().all(|image| image.stacks.is_empty()) {
        say("no memory moved in what was measured");
    }
    drain.totals()
}

/// Takes the records in their order: one of a fork makes an image that those after it are of.
fn take(
    collector: &mut Collector,
    drain: &Drain,
    messages: &mut UnboundedReceiver<Message>,
    follower: &mut Follower,
) -> io::Result<()> {
    hear(collector, messages);
    for event in drain.take()? {
        if matches!(event, Event::Followed { .. }) {
            follower.hear(&event);
            hear(collector, messages);
        } else {
            collector.record(vec![event]);
        }
    }
    Ok(())
}

fn hear(collector: &mut Collector, messages: &mut UnboundedReceiver<Message>) {
    while let Ok(message) = messages.try_recv() {
        collector.hear(message);
    }
}
