//! Running a program under watch: every process it makes is held at its fork, its exec, and (where asked) the end of its loading.
//!
//! Tracing is by `PTRACE_SEIZE` without `PTRACE_O_EXITKILL`: when this thread ends, by whatever cause, the kernel lets go of every
//! tracee and they run on. Signals, job control and exit statuses pass as if nobody watched.

use std::collections::{HashMap, HashSet};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ending::Ending;
use super::loading::Loading;
use super::signals::{Forwarder, Signals};
use super::spawn::{self, Command, SpawnError};
use super::status;
use super::ticker::Ticker;
use super::tracee::{self, Event, Resume, Stop};

/// How often [`Watcher::tick`] is called, at the least.
const TICK: Duration = Duration::from_millis(50);
/// How long a new process waits for word of who made it, before it is taken for one whose maker was killed.
const ORPHAN_AFTER: Duration = Duration::from_millis(300);
/// How long, at the end, the processes that live on are given to be let go in good order.
const PARTING: Duration = Duration::from_secs(1);

/// How long those that were killed are given to end: the kernel takes its time over much memory.
const DYING: Duration = Duration::from_secs(10);

/// What to do with a process after its exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterExec {
    /// Let it run.
    Continue,
    /// Hold it once more when its libraries are mapped.
    HoldWhenLoaded,
    /// Or when a library among them announces itself, which it does before anything of the program runs.
    HoldWhenAnnounced(Announcer),
}

/// A library that says when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcer {
    /// The name of its file.
    pub file: &'static str,
    /// It closes a descriptor of this number, which no process has.
    pub descriptor: u64,
}

/// What it said: the further arguments of that system call, which are the kernel's to ignore. Of the target's making: to be checked.
pub type Announcement = [u64; 5];

/// Told of every process, on the thread that called [`run`], while the process named is held: its memory and its files in
/// `/proc` can be read, nothing of it runs. It may nevertheless be killed at any instant: every look at it may fail.
pub trait Watcher {
    /// The first process is about to be let go towards its exec. From here on it runs the program even if we are killed.
    fn starting(&mut self, _pid: Pid) {}
    /// `child` is a copy of `parent`, made by fork; both are held. Not called for threads, nor for a child that shares its
    /// parent's memory until its exec (vfork, posix_spawn). Should `parent` have been killed meanwhile, it may be unknown.
    fn forked(&mut self, parent: Pid, child: Pid);
    /// The image was replaced; not one instruction of the new one has run. Of a child that shared its parent's memory
    /// this is the first that is heard; its parent is [`status::parent_pid`].
    fn executed(&mut self, pid: Pid) -> AfterExec;
    /// After [`AfterExec::HoldWhenLoaded`]: the libraries the loader maps are mapped, and nothing of the program has run.
    /// `said` by the library of [`AfterExec::HoldWhenAnnounced`]; absent where it was not loaded.
    fn loaded(&mut self, pid: Pid, said: Option<Announcement>);
    /// A thread of it was told to stop, by our own probe on its loader: it has mapped libraries, of which nothing has run.
    fn mapped_more(&mut self, _pid: Pid) {}
    /// After [`loaded`](Self::loaded): is [`ending`](Self::ending) to be called of the process and of those that it makes?
    fn wants_endings(&self, _pid: Pid) -> bool {
        false
    }
    /// The process's first thread is about to end, and with it, mostly, the process. Not promised: a process may be killed.
    fn ending(&mut self, _pid: Pid) {}
    /// The whole process has ended, all of its threads; its memory is gone. Called for every process once announced.
    fn exited(&mut self, pid: Pid, status: ExitStatus);
    /// The run is over and this process lives on, held for this last look, then unwatched. Not promised: one that cannot be
    /// held in time (in an uninterruptible wait) is let go without.
    fn left(&mut self, _pid: Pid) {}
    /// It was to be killed, and could not be.
    fn spared(&mut self, _pid: Pid, _error: Errno) {}
    /// Called at least every 50 ms; nothing in particular is held.
    fn tick(&mut self) {}
}

/// Runs a program until its first process ends; processes it leaves behind run on. Blocks the calling thread, which must be
/// one made for this: only it may look for events, and its end lets go of whatever is still traced. It must have no other children.
///
/// With `signals`, what is sent to us by `kill` is passed on to the program, and the program gets the signal mask of before. Where `ending` is
/// asked for, every process of the run is killed, those that outlive the first too.
///
/// # Errors
/// [`SpawnError`] where the program did not start; then the watcher has heard nothing but ticks.
pub fn run(
    command: &Command,
    signals: Option<&Signals>,
    ending: &Ending,
    watcher: &mut dyn Watcher,
) -> Result<ExitStatus, SpawnError> {
    let mask = signals.map_or_else(
        || nix::sys::signal::SigSet::thread_get_mask().unwrap_or(nix::sys::signal::SigSet::empty()),
        Signals::original_mask,
    );
    let started = spawn::start(command, mask, |pid| watcher.starting(pid))?;
    super::limits::raise_open_files();
    let ticker = Ticker::start(TICK).map_err(|source| {
        let _ = kill(started.pid, Signal::SIGKILL);
        SpawnError::System { program: command.program.clone(), source }
    })?;
    ending.is_heard_here();
    let mut supervisor = Supervisor::new(watcher, started.pid, signals, ending);
    let status = supervisor.until_the_first_ends(&ticker);
    if !supervisor.begun {
        return Err(started.failure(status));
    }
    supervisor.let_go(&ticker);
    Ok(status)
}

/// The exit status to give on: the program's own, or 128+N when signal N ended it.
pub fn exit_code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(125)
}

/// A traced thread.
#[derive(Debug)]
struct Tracee {
    /// Its process: the thread group's first thread.
    process: Pid,
    /// Of a process's first thread: the watcher knows of the process.
    announced: bool,
    /// It is on its way from exec to loaded.
    loading: Option<Loading>,
}

/// A new tracee that stopped before its maker's event told what it is.
#[derive(Debug)]
struct Unclaimed {
    since: Instant,
    first_stop: Stop,
    parent: Option<Pid>,
}

struct Supervisor<'w> {
    watcher: &'w mut dyn Watcher,
    forwarder: Option<Forwarder<'w>>,
    /// The process started.
    first: Pid,
    /// Its exec has been seen.
    begun: bool,
    outcome: Option<ExitStatus>,
    tracees: HashMap<Pid, Tracee>,
    unclaimed: HashMap<Pid, Unclaimed>,
    ending: &'w Ending,
    /// Were sent SIGKILL, and have not ended yet.
    killed: HashSet<Pid>,
    last_tick: Instant,
}

impl<'w> Supervisor<'w> {
    fn new(watcher: &'w mut dyn Watcher, first: Pid, signals: Option<&'w Signals>, ending: &'w Ending) -> Self {
        let tracee = Tracee { process: first, announced: false, loading: None };
        Self {
            watcher,
            forwarder: signals.map(|signals| Forwarder::new(signals, first)),
            first,
            begun: false,
            outcome: None,
            tracees: HashMap::from([(first, tracee)]),
            unclaimed: HashMap::new(),
            ending,
            killed: HashSet::new(),
            last_tick: Instant::now(),
        }
    }

    fn until_the_first_ends(&mut self, ticker: &Ticker) -> ExitStatus {
        use std::os::unix::process::ExitStatusExt;
        loop {
            if let Some(status) = self.outcome {
                return status;
            }
            if self.last_tick.elapsed() >= TICK {
                self.tick();
            }
            self.kill_where_asked();
            match ticker.interruptible(tracee::wait) {
                Event::Ended(tid, status) => self.ended(tid, status),
                Event::Stopped(tid, stop) => self.stopped(tid, stop),
                Event::Interrupted => {}
                // Somebody else has waited for our child: all that is known is that it is gone.
                Event::NoTracees => return ExitStatus::from_raw(125 << 8),
            }
        }
    }

    /// Kills all that there are, the first before those that it might make again, and next time what they had made meanwhile.
    fn kill_where_asked(&mut self) {
        if !self.ending.is_asked() {
            return;
        }
        let known = self.tracees.values().map(|tracee| tracee.process);
        let first = known.clone().filter(|process| *process == self.first);
        let all: Vec<Pid> = first.chain(known).chain(self.unclaimed.keys().copied()).collect();
        for process in all {
            if !self.killed.insert(process) {
                continue;
            }
            // Not another process by now: nobody but us collects it.
            match kill(process, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => self.watcher.spared(process, error),
            }
        }
    }

    fn tick(&mut self) {
        self.last_tick = Instant::now();
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.poll();
        }
        let late = |waiting: &Unclaimed| waiting.since.elapsed() >= ORPHAN_AFTER;
        let orphans: Vec<Pid> =
            self.unclaimed.iter().filter(|(_, waiting)| late(waiting)).map(|(tid, _)| *tid).collect();
        for orphan in orphans {
            self.claim_orphan(orphan);
        }
        self.watcher.tick();
    }

    fn stopped(&mut self, tid: Pid, stop: Stop) {
        if !self.tracees.contains_key(&tid) {
            let parent = status::parent_pid(tid).ok();
            self.unclaimed.insert(tid, Unclaimed { since: Instant::now(), first_stop: stop, parent });
            return;
        }
        match stop {
            Stop::Signal(libc::SIGCHLD) if tracee::is_from_probe(tid) => {
                if let Some(tracee) = self.tracees.get(&tid) {
                    self.watcher.mapped_more(tracee.process);
                }
                self.resume(tid, 0);
            }
            Stop::Signal(signal) => {
                self.note_signal(tid, signal);
                self.resume(tid, signal);
            }
            Stop::Group => {
                tracee::listen(tid);
                self.note_job_control(tid, true);
            }
            Stop::Trap => {
                self.resume(tid, 0);
                self.note_job_control(tid, false);
            }
            Stop::SystemCall => self.system_call(tid),
            Stop::Made { vfork } => {
                if let Some(made) = tracee::event_thread(tid) {
                    self.made(tid, made, vfork);
                }
                self.resume(tid, 0);
            }
            Stop::Executed => self.executed(tid),
            Stop::Ending => {
                if self.tracees.get(&tid).is_some_and(|tracee| tracee.process == tid) {
                    self.watcher.ending(tid);
                }
                self.resume(tid, 0);
            }
            Stop::Other => self.resume(tid, 0),
        }
    }

    fn resume(&self, tid: Pid, signal: i32) {
        let loading = self.tracees.get(&tid).is_some_and(|tracee| tracee.loading.is_some());
        tracee::resume(tid, if loading { Resume::ToSystemCall } else { Resume::Run }, signal);
    }

    fn note_signal(&mut self, tid: Pid, signal: i32) {
        let of_first = self.tracees.get(&tid).is_some_and(|tracee| tracee.process == self.first);
        if let Some(forwarder) = &mut self.forwarder
            && of_first
            && Forwarder::cares_for(signal)
        {
            forwarder.delivered(signal, tracee::signal_sender(tid));
        }
    }

    fn note_job_control(&mut self, tid: Pid, stopped: bool) {
        if tid == self.first
            && let Some(forwarder) = &mut self.forwarder
        {
            forwarder.stopped(stopped);
        }
    }

    fn system_call(&mut self, tid: Pid) {
        if let Some(tracee) = self.tracees.get_mut(&tid)
            && let Some(said) = tracee.loading.as_mut().and_then(|loading| loading.over(tid))
        {
            tracee.loading = None;
            self.loaded(tid, said);
        }
        self.resume(tid, 0);
    }

    fn loaded(&mut self, pid: Pid, said: Option<Announcement>) {
        self.watcher.loaded(pid, said);
        if self.watcher.wants_endings(pid) {
            tracee::tell_of_end(pid);
        }
    }

    /// `maker`'s event names what it made: a thread, a process with its own memory, or one that borrows its parent's.
    fn made(&mut self, maker: Pid, made: Pid, vfork: bool) {
        // Known: its maker was taken for killed. Not a tracee: killed before its first stop, and waited for.
        if self.tracees.contains_key(&made) || !(self.unclaimed.contains_key(&made) || tracee::is_tracee(made)) {
            return;
        }
        let Some(parent) = self.tracees.get(&maker).map(|tracee| tracee.process) else { return };
        self.admit(parent, made, vfork);
    }

    fn admit(&mut self, parent: Pid, made: Pid, vfork: bool) {
        let thread = tracee::is_thread_of(parent, made);
        let announced = !thread && !tracee::share_memory(parent, made).unwrap_or(vfork);
        let process = if thread { parent } else { made };
        self.tracees.insert(made, Tracee { process, announced, loading: None });
        if announced {
            self.watcher.forked(parent, made);
        }
        match self.unclaimed.remove(&made).map(|waiting| waiting.first_stop) {
            Some(Stop::Group) => tracee::listen(made),
            Some(_) => self.resume(made, 0),
            None => {}
        }
    }

    /// Nobody told of this tracee: its maker was killed between making it and saying so.
    fn claim_orphan(&mut self, orphan: Pid) {
        let noted = self.unclaimed.get(&orphan).and_then(|waiting| waiting.parent);
        let parent = match status::process_of_thread(orphan) {
            Ok(process) if process != orphan => process,
            _ => noted.unwrap_or(self.first),
        };
        self.admit(parent, orphan, false);
    }

    fn executed(&mut self, pid: Pid) {
        // The other threads are gone, and the one that called exec has taken its process's number.
        self.tracees.retain(|tid, tracee| tracee.process != pid || *tid == pid);
        self.tracees.insert(pid, Tracee { process: pid, announced: true, loading: None });
        self.begun |= pid == self.first;
        let announcer = match self.watcher.executed(pid) {
            AfterExec::Continue => None,
            AfterExec::HoldWhenLoaded => Some(None),
            AfterExec::HoldWhenAnnounced(announcer) => Some(Some(announcer)),
        };
        if let Some(announcer) = announcer {
            let loading = Loading::begin(pid, announcer);
            if loading.is_none() {
                self.loaded(pid, None);
            }
            if let Some(tracee) = self.tracees.get_mut(&pid) {
                tracee.loading = loading;
            }
        }
        self.resume(pid, 0);
    }

    fn ended(&mut self, tid: Pid, status: ExitStatus) {
        self.unclaimed.remove(&tid);
        self.killed.remove(&tid);
        let tracee = self.tracees.remove(&tid);
        if tid == self.first {
            self.outcome = Some(status);
        }
        // The kernel reports a process's first thread last, however early that thread itself ended.
        if tracee.is_some_and(|tracee| tracee.announced) {
            self.watcher.exited(tid, status);
        }
    }

    /// Lets the processes that outlive the first go on alone: each thread is stopped, then detached. What cannot be stopped
    /// in time is detached by the kernel when this thread ends.
    fn let_go(&mut self, ticker: &Ticker) {
        // All were killed: what cannot end in time does so without us.
        if self.ending.is_asked() {
            return self.until_none_is_left(ticker, DYING, Self::stopped);
        }
        for orphan in std::mem::take(&mut self.unclaimed).into_keys() {
            tracee::detach(orphan, 0);
        }
        for tid in self.tracees.keys() {
            tracee::interrupt(*tid);
        }
        self.until_none_is_left(ticker, PARTING, Self::part);
    }

    fn until_none_is_left(&mut self, ticker: &Ticker, patience: Duration, at_stop: fn(&mut Self, Pid, Stop)) {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            self.kill_where_asked();
            match ticker.interruptible(tracee::wait) {
                Event::Ended(tid, status) => self.ended(tid, status),
                Event::Stopped(tid, stop) => at_stop(self, tid, stop),
                Event::Interrupted => {}
                Event::NoTracees => break,
            }
        }
    }

    fn part(&mut self, tid: Pid, stop: Stop) {
        match stop {
            Stop::Executed => self.tracees.retain(|other, tracee| tracee.process != tid || *other == tid),
            // What it made just now is a tracee too: its own stop will be seen here.
            Stop::Made { vfork } => {
                if let Some(made) = tracee::event_thread(tid) {
                    self.made(tid, made, vfork);
                }
            }
            _ => {}
        }
        if let Some(known) = self.tracees.remove(&tid)
            && known.announced
        {
            self.watcher.left(tid);
        }
        let signal = match stop {
            Stop::Signal(libc::SIGCHLD) if tracee::is_from_probe(tid) => 0,
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        tracee::detach(tid, signal);
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "outlive_tests.rs"]
mod outlive_tests;
