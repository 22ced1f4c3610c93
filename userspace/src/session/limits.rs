//! The debugger that opens when resident memory passes a limit: what is put into the launch help for it, and what is said of it.

use std::collections::{BTreeMap, HashSet};

use rmprof_probes::abi;

use super::image::Image;
use super::say;
use crate::kernel::event::LimitNews;
use crate::launch::Shim;
use crate::ledger::ProcessId;
use crate::plan::DebuggerPlan;
use crate::target::Pid;

/// Adds the debugger to the launch help, where one is wanted.
pub(super) fn with_debugger(shim: Shim, wanted: Option<DebuggerPlan>) -> Shim {
    if let Some(wanted) = wanted
        && let Err(error) = shim.add_debugger(wanted.bytes)
    {
        say(&format!("the debugger will not open: {error:#}"));
    }
    shim
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Limits {
    ready: HashSet<ProcessId>,
    /// Whose limit has been dealt with, one way or the other.
    done: HashSet<ProcessId>,
    /// Alarms that were passed and are still to be acted on.
    pub(super) passed: Vec<Passed>,
    /// Processes that nobody holds and in which the debugger is to be opened.
    pub(super) reached: Vec<Reached>,
}

/// A process that nobody holds has passed its limit.
#[derive(Clone, Copy, Debug)]
pub struct Reached {
    pub(super) process: ProcessId,
    /// The thread that did it.
    pub(super) thread: Pid,
    /// Its `PyThreadState`.
    pub(super) state: u64,
    /// It was in a system call.
    pub(super) in_call: bool,
    /// Resident bytes at that moment.
    pub(super) bytes: u64,
}

/// A process has passed an alarm.
#[derive(Clone, Copy, Debug)]
pub struct Passed {
    pub(super) process: ProcessId,
    /// Which of the plan's.
    pub(super) alarm: usize,
    /// Resident bytes at that moment.
    pub(super) bytes: u64,
    /// Bytes that were compared with it: these, by how many they have grown, or what all processes have together.
    pub(super) measured: u64,
}

impl Limits {
    /// Takes one piece of news, and says what the person has to know.
    pub(super) fn hear(&mut self, process: ProcessId, news: LimitNews, images: &BTreeMap<ProcessId, Image>) {
        match news {
            LimitNews::Passed { alarm, bytes, measured } => {
                self.passed.push(Passed { process, alarm, bytes, measured });
            }
            LimitNews::Reached { thread, state, in_call, bytes } => {
                self.reached.push(Reached { process, thread, state, in_call, bytes });
            }
            LimitNews::Ready => drop(self.ready.insert(process)),
            LimitNews::Stopped | LimitNews::Continued => drop(self.done.insert(process)),
            LimitNews::Refused(reason) => {
                self.done.insert(process);
                let pid = images.get(&process).map_or(0, |image| image.birth.pid.as_raw());
                let (why, hint) = words(reason);
                say(&format!("process {pid}: the debugger cannot stop here: {why}; the program goes on\nhint: {hint}"));
            }
        }
    }

    /// The end: says why the debugger did not open where it should have.
    pub(super) fn tell(&self, plan: DebuggerPlan, images: &BTreeMap<ProcessId, Image>) {
        for (id, image) in images {
            let passed = image.death.is_some_and(|death| death.peak_bytes > plan.bytes);
            if !passed || image.birth.forked_from.is_some() || self.done.contains(id) {
                continue;
            }
            let pid = image.birth.pid;
            if self.ready.contains(id) {
                say(&format!(
                    "process {pid}: memory passed the limit, and no line of yours began in that thread after it: the debugger did \
                     not open"
                ));
            } else {
                say(&format!(
                    "process {pid}: memory passed the limit, and the debugger could not open: its Python did not load our start-up \
                     module (-I, -E, -S or an environment of its own)"
                ));
            }
        }
    }
}

/// Why it could not open, and a hint.
pub(super) fn words(reason: u32) -> (&'static str, &'static str) {
    match reason {
        abi::RM_REFUSED_TRACED => (
            "the thread has a trace function already (sys.settrace: a debugger, coverage)",
            "run the program without it; an IDE's own debugger can stop where the table shows the memory",
        ),
        abi::RM_REFUSED_NO_TERMINAL => {
            ("the program has no terminal", "run it in one, or take --fail-above for a limit without")
        }
        abi::RM_REFUSED_SIGNAL => (
            "the program uses the signal that would tell it, or all of them",
            "run it without its handlers of real-time signals",
        ),
        abi::RM_REFUSED_NO_PDB => {
            ("pdb could not be imported from the standard library", "some distributions package it apart")
        }
        abi::RM_REFUSED_BUSY => ("the interpreter's list of pending calls is full", "try again"),
        _ => ("the interpreter's memory is not laid out as known", "`rmprof-bpf doctor /path/to/python` tells more"),
    }
}
