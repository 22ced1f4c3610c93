//! The debugger of processes that run already: when one has passed its limit, and when it goes on.

use super::collector::Collector;
use super::limits::{Reached, words};
use super::{RunError, say};
use crate::kernel::{Attacher, resident_bytes};
use crate::plan::DebuggerPlan;
use crate::prompts::{Outcome, Over, Prompts, Refusal, Subject, TerminalError, check_terminal};
use crate::report::shell_words;
use crate::target::Pid;

/// Characters of a command line that are shown.
const COMMAND_LIMIT: usize = 100;

/// See the module.
pub(super) struct Debugger {
    plan: DebuggerPlan,
    prompts: Prompts,
}

impl From<TerminalError> for RunError {
    fn from(error: TerminalError) -> Self {
        Self::Terminal(error)
    }
}

/// Could somebody answer it?
///
/// # Errors
/// Why not.
pub(super) fn check(plan: Option<DebuggerPlan>) -> Result<(), RunError> {
    if plan.is_some() {
        check_terminal()?;
    }
    Ok(())
}

impl Debugger {
    /// To be called within the runtime that will wait.
    ///
    /// # Errors
    /// There is no terminal.
    pub fn new(plan: DebuggerPlan) -> Result<Self, RunError> {
        Ok(Self { plan, prompts: Prompts::new(plan)? })
    }

    /// Puts there what a process that was named will read.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn prepare(&mut self, pid: Pid) -> Result<(), Refusal> {
        self.prompts.prepare(pid)
    }

    /// Asks the processes that have passed their limit.
    pub fn act(&mut self, collector: &mut Collector) {
        let images = &collector.images;
        for Reached { process, thread, state, in_call, bytes } in std::mem::take(&mut collector.limits.reached) {
            let Some(birth) = images.get(&process).filter(|image| image.death.is_none()).map(|image| &image.birth)
            else {
                continue;
            };
            let (pid, attacher) = (birth.pid, &birth.attacher);
            let subject = Subject {
                pid,
                process,
                runtime: birth.interpreter.runtime_address,
                layout: birth.layout.clone(),
                command: shell_words(&birth.command, COMMAND_LIMIT),
            };
            let is_still = || attacher.still_watched(pid, process).is_some();
            if let Err((why, hint)) = self.prompts.ask(subject.clone(), (thread, state, in_call), bytes, is_still) {
                say(&format!("process {pid} passed the limit: {why}; it goes on\nhint: {hint}"));
                self.arm(&subject, attacher);
            }
        }
        self.prompts.forget(|process| images.get(&process).is_none_or(|image| image.death.is_some()));
    }

    /// Waits until a process goes on.
    pub async fn next(&mut self) -> Over {
        self.prompts.next().await
    }

    /// Takes that one goes on.
    pub fn hear(&self, over: &Over, attacher: &Attacher) {
        let pid = over.subject.pid;
        let refusal = match over.outcome {
            Outcome::WentOn => None,
            Outcome::Refused(reason) => Some(words(reason)),
            Outcome::NoLine => Some((
                "no line of its own code began in that thread",
                "with --include, or at another limit, the table shows where the memory is",
            )),
        };
        if let Some((why, hint)) = refusal {
            say(&format!(
                "process {pid} passed the limit: the debugger did not open in it: {why}; it goes on\nhint: {hint}"
            ));
        }
        self.arm(&over.subject, attacher);
    }

    /// The next stop is so much further on.
    fn arm(&self, subject: &Subject, attacher: &Attacher) {
        let now = attacher.still_watched(subject.pid, subject.process);
        if let (Some(step), Some(now)) = (self.plan.step, now) {
            let resident = u64::try_from(resident_bytes(&now)).unwrap_or(0);
            if let Err(error) = attacher.limit_next(subject.process, resident.saturating_add(step)) {
                say(&format!("process {}: the debugger will not open in it again: {error}", subject.pid));
            }
        }
    }

    /// The end: everybody goes on.
    pub fn end(self) {
        for pid in self.prompts.end() {
            say(&format!(
                "process {pid} passed the limit, and no line of its own code has begun in that thread since: the debugger did not open"
            ));
        }
    }
}
