//! The debugger of processes that run already, in our own terminal (`attach --pdb-mmem`).
//!
//! 1. A process passes its limit. Its interpreter is asked ([`remote`](crate::python::remote)) to run a script in the thread that did it,
//!    from a folder in its own view of the file system ([`place`]).
//! 2. The script connects to us, and traces its thread until a line of the user's own begins. There it says so ([`connection`]), opens pdb,
//!    and waits. Where several wait, one is talked to at a time.
//! 3. What pdb writes is shown, and what is typed is handed on ([`terminal`]). The connection ends where the process goes on: by `c` or `q`,
//!    or because we have let go, or are no more.
//!
//! Nothing here waits: all of it is polled by the session, which has other things to do meanwhile.

mod connection;
mod place;
mod terminal;

use std::collections::HashMap;
use std::future::poll_fn;
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll};

use connection::{Connection, First};
use place::{Place, view_of};
use terminal::Terminal;

use crate::ledger::ProcessId;
use crate::plan::DebuggerPlan;
use crate::python::layout::Layout;
use crate::python::remote::{Remote, RemoteError};
use crate::report::columns::mib;
use crate::report::escape;
use crate::target::source::Root;
use crate::target::{Pid, ProcessMemory, halt, status};

pub use terminal::{TerminalError, check as check_terminal};

/// What is possible where the debugger is not.
pub const INSTEAD: &str = "--on-limit MIB=report, stop, exec CMD or signal NAME act on any process: docs/limits.md";

/// A sentence and a hint.
pub type Refusal = (String, String);

/// A process, as far as it has to be known.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its number.
    pub pid: Pid,
    /// Its image.
    pub process: ProcessId,
    /// Address of its `_PyRuntime`.
    pub runtime: u64,
    /// Where things stand in its memory.
    pub layout: Layout,
    /// What it is, for a person.
    pub command: String,
}

/// A thread that was asked to open the debugger.
#[derive(Clone, Debug)]
struct Asked {
    subject: Subject,
    remote: Remote,
    /// Its number.
    thread: Pid,
    /// Its `PyThreadState`.
    state: u64,
    /// It was in a system call when it passed the limit. That may still be under way, and would end early where the thread is held; and
    /// it keeps the thread from ending.
    in_call: bool,
    /// Resident bytes when it passed the limit.
    bytes: u64,
    /// What it was asked to run.
    script: Vec<u8>,
}

impl Asked {
    /// Runs `action` while the thread does not end.
    fn unmoved<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        if self.in_call { action() } else { halt::while_held(self.thread, action) }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The debugger was open, and has let go.
    WentOn,
    /// It could not open, for this `rm_limit_refusal`.
    Refused(u32),
    /// No line began that it could have opened at.
    NoLine,
}

/// A process goes on.
#[derive(Debug)]
pub struct Over {
    /// Which.
    pub subject: Subject,
    /// After what.
    pub outcome: Outcome,
}

/// See the module.
pub struct Prompts {
    plan: DebuggerPlan,
    terminal: Terminal,
    places: Vec<Place>,
    /// Not heard of since.
    asked: HashMap<Pid, Asked>,
    /// They have connected, and wait for their turn, or for a line of the user's own.
    arrived: Vec<Connection>,
    open: Option<Connection>,
    /// Nothing more can be typed to the one that is open.
    input_over: bool,
}

/// May the debugger be opened in this process?
///
/// # Errors
/// Why not.
pub fn check(pid: Pid, runtime: u64, layout: &Layout) -> Result<(), Refusal> {
    Remote::of(&ProcessMemory(pid), runtime, layout).map_err(|error| refused(&error))?;
    if halt::is_forbidden() {
        return Err((
            cannot(&"this machine lets nobody write to the memory of others (kernel.yama.ptrace_scope is 3)"),
            INSTEAD.to_owned(),
        ));
    }
    Ok(())
}

fn cannot(error: &dyn std::fmt::Display) -> String {
    format!("the debugger cannot be opened in it: {error}")
}

fn refused(error: &RemoteError) -> Refusal {
    (cannot(error), INSTEAD.to_owned())
}

impl Prompts {
    /// With nobody to ask yet. To be called within the runtime that will wait.
    ///
    /// # Errors
    /// There is no terminal.
    pub fn new(plan: DebuggerPlan) -> Result<Self, TerminalError> {
        let (terminal, places) = (Terminal::open()?, Vec::new());
        Ok(Self { plan, terminal, places, asked: HashMap::new(), arrived: Vec::new(), open: None, input_over: false })
    }

    /// Puts there what the process will read, if that is not there yet.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn prepare(&mut self, pid: Pid) -> Result<(), Refusal> {
        self.place_of(pid).map(drop)
    }

    fn place_of(&mut self, pid: Pid) -> Result<&Place, Refusal> {
        let failed = |error: anyhow::Error| (cannot(&format!("{error:#}")), INSTEAD.to_owned());
        let root = Root::of(pid).map_err(|error| failed(error.into()))?;
        let view = view_of(pid, &root).map_err(|error| failed(error.into()))?;
        let known = self.places.iter().position(|place| place.view == view);
        let index = match known {
            Some(index) => index,
            None => {
                self.places.push(Place::create(pid, &root, view).map_err(failed)?);
                self.places.len() - 1
            }
        };
        self.places.get(index).ok_or_else(|| failed(anyhow::anyhow!("it has gone")))
    }

    /// Asks the thread that passed the limit. `in_call`: it did in a system call. `is_still` tells, while the thread is held,
    /// whether its process is what it was.
    ///
    /// # Errors
    /// Why it was not asked.
    pub fn ask(
        &mut self,
        subject: Subject,
        (thread, state, in_call): (Pid, u64, bool),
        bytes: u64,
        is_still: impl FnOnce() -> bool + Send,
    ) -> Result<(), Refusal> {
        if !self.terminal.is_ours() {
            let error = TerminalError::Background;
            return Err((cannot(&error), error.hint().to_owned()));
        }
        let memory = ProcessMemory(subject.pid);
        let script = self.place_of(subject.pid)?.script.clone();
        let remote = Remote::of(&memory, subject.runtime, &subject.layout).map_err(|error| refused(&error))?;
        let asked = Asked { subject, remote, thread, state, in_call, bytes, script };
        let Asked { subject: Subject { pid, runtime, layout, .. }, script, .. } = &asked;
        let written = asked.unmoved(|| match is_still() {
            true => remote.ask(&memory, (*runtime, layout), state, script),
            false => Err(RemoteError::Ended),
        });
        written.map_err(|error| refused(&error))?;
        self.asked.insert(*pid, asked);
        Ok(())
    }

    /// Waits until a process goes on, and keeps the talk with it going. Nothing is lost where the wait is given up.
    pub async fn next(&mut self) -> Over {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Over> {
        self.accept(context);
        if let Some(over) = self.hear_first(context) {
            return Poll::Ready(over);
        }
        loop {
            self.begin_next();
            match self.terminal.poll_shown(context) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => match self.close() {
                    Some(over) => return Poll::Ready(over),
                    None => break,
                },
                Poll::Ready(Ok(())) => {}
            }
            let Some(open) = &self.open else { break };
            let mut buffer = [0; 4096];
            match open.poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(read)) if read > 0 => self.terminal.show(buffer.get(..read).unwrap_or_default()),
                Poll::Ready(_) => return self.close().map_or(Poll::Pending, Poll::Ready),
            }
        }
        self.hand_on(context).map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes those that have connected. Whoever was not asked is a stranger.
    fn accept(&mut self, context: &mut Context<'_>) {
        let mut new: Vec<(UnixStream, Pid)> = Vec::new();
        for place in &self.places {
            // What cannot be accepted (no descriptor is left) is tried again.
            while let Poll::Ready(Ok(accepted)) = place.poll_accept(context) {
                new.push(accepted);
            }
        }
        for (stream, pid) in new {
            let Some(asked) = self.asked.remove(&pid) else { continue };
            if let Ok(connection) = Connection::new(stream, asked) {
                self.arrived.push(connection);
            }
        }
    }

    fn hear_first(&mut self, context: &mut Context<'_>) -> Option<Over> {
        for index in 0..self.arrived.len() {
            let Some(connection) = self.arrived.get_mut(index).filter(|connection| connection.first.is_none()) else {
                continue;
            };
            let outcome = match connection.poll_first(context) {
                Poll::Pending => continue,
                Poll::Ready(Some(First::Stopped)) => {
                    connection.first = Some(First::Stopped);
                    continue;
                }
                Poll::Ready(Some(First::Refused(reason))) => Outcome::Refused(reason),
                Poll::Ready(None) => Outcome::NoLine,
            };
            let subject = self.arrived.remove(index).asked.subject;
            return Some(Over { subject, outcome });
        }
        None
    }

    /// Whose turn it is, where nobody is talked to.
    fn begin_next(&mut self) {
        let waits = |connection: &Connection| connection.first == Some(First::Stopped);
        let Some(next) = self.arrived.iter().position(waits).filter(|_| self.open.is_none()) else { return };
        let connection = self.arrived.remove(next);
        let Asked { subject: Subject { pid, command, .. }, bytes, .. } = &connection.asked;
        let now = status::resident(*pid).map_or(0, |resident| resident.total_bytes());
        let mib = |bytes: u64| mib(bytes.into(), 2);
        self.terminal.forget_typed();
        self.terminal.say(&format!("Process {pid}: {}", escape(command)));
        let (now, limit) = (mib(now.max(*bytes)), mib(self.plan.bytes));
        self.terminal.say(&format!("Current memory {now} exceeded the maximum of {limit}\nStepping into the debugger"));
        self.terminal.show(&connection.heard);
        (self.open, self.input_over) = (Some(connection), false);
    }

    /// Hands on what was typed.
    fn hand_on(&mut self, context: &mut Context<'_>) -> Option<Over> {
        let mut buffer = [0; 4096];
        while let Some(open) = self.open.as_ref().filter(|_| !self.input_over) {
            match self.terminal.poll_typed(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => {
                    open.end_input();
                    self.input_over = true;
                }
                Poll::Ready(Ok(read)) => {
                    let taken = open.send(buffer.get(..read).unwrap_or_default());
                    self.terminal.typed();
                    if taken.is_err() {
                        self.terminal.say("rmprof-bpf: what was typed is not taken: the process does not read it");
                    }
                }
                Poll::Ready(Err(_)) => return self.close(),
            }
        }
        None
    }

    /// Ends the talk: the process goes on, if it has not yet.
    fn close(&mut self) -> Option<Over> {
        let open = self.open.take()?;
        self.terminal.end_line();
        Some(Over { subject: open.asked.subject, outcome: Outcome::WentOn })
    }

    /// Of processes that have ended nothing more is expected.
    pub fn forget(&mut self, has_ended: impl Fn(ProcessId) -> bool) {
        self.asked.retain(|_, asked| !has_ended(asked.subject.process));
        let ended = |connection: &Connection| has_ended(connection.asked.subject.process);
        self.arrived.retain(|connection| !ended(connection));
        if self.open.as_ref().is_some_and(ended) {
            self.close();
        }
    }

    /// Lets all go on, and takes back what was asked of those that have not come to it. Gives the numbers of those in which the debugger
    /// would still have opened.
    pub fn end(mut self) -> Vec<Pid> {
        self.close();
        let early = self.arrived.drain(..).filter(|connection| connection.first.is_none());
        let mut waited: Vec<Pid> = early.map(|connection| connection.asked.subject.pid).collect();
        let asked = std::mem::take(&mut self.asked);
        for (pid, each) in &asked {
            let (memory, Asked { subject: Subject { runtime, layout, .. }, remote, state, script, .. }) =
                (ProcessMemory(*pid), each);
            // Where that cannot be, its interpreter finds no file, and says so on its standard error.
            let _ = each.unmoved(|| remote.withdraw(&memory, (*runtime, layout), *state, script));
        }
        self.terminal.finish();
        waited.extend(asked.into_keys());
        waited
    }
}
