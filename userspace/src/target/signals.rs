//! Signals sent to us while a program runs under us: we outlive them, to print the report, and the program gets what it would
//! have got without us, once.
//!
//! What the terminal generates (Ctrl-C, Ctrl-\, Ctrl-Z, hang-up) goes to the whole foreground process group, the program in it:
//! nothing is to be done. What is sent to us alone by `kill` is passed on. What is sent by `kill` to the group reaches the
//! program without us: it is passed on only where the program was not seen to get it from the same sender.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask, raise};
use nix::unistd::Pid;

/// Signals that end or mean something to a program.
const FORWARDED: [Signal; 6] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// Signals that stop a job.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];
/// How long the program is given to show that it got the same signal itself.
const PATIENCE: Duration = Duration::from_millis(30);
/// How far apart the two arrivals of one signal may be.
const SAME_EVENT: Duration = Duration::from_millis(300);
/// How long an arrival at the program is remembered.
const MEMORY: Duration = Duration::from_secs(10);
/// How long after a stopping signal the program's stop is taken for its effect (an editor restores the terminal first).
const STOP_EFFECT: Duration = Duration::from_secs(2);

/// A signal sent to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// Who sent it; `None` where the kernel did, for the terminal: then the program in our process group has it too.
    pub sender: Option<Pid>,
}

/// The signals above, blocked: they wait to be asked for instead of ending or stopping us.
#[derive(Debug)]
pub struct Signals {
    blocked: SigSet,
    original: SigSet,
}

impl Signals {
    /// Blocks them. Call on the main thread before any other is started: threads inherit the mask.
    ///
    /// # Errors
    /// None that is known.
    pub fn block() -> io::Result<Self> {
        let blocked: SigSet = FORWARDED.into_iter().chain(STOPPING).collect();
        let mut original = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut original))?;
        Ok(Self { blocked, original })
    }

    /// As [`Signals::block`] where they were blocked from the start (the test runner's own threads do not ask us).
    #[cfg(test)]
    pub(super) fn taken_over() -> io::Result<Self> {
        let mut signals = Self::block()?;
        signals.original = SigSet::empty();
        Ok(signals)
    }

    /// The mask as it was before: what a started program gets.
    pub fn original_mask(&self) -> SigSet {
        self.original
    }

    /// The next signal sent to us, waiting at most so long for one; stop signals are among them.
    pub fn wait(&self, timeout: Duration) -> Option<Received> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: all zero is a valid `siginfo_t`; all three point to values that live for the length of the call.
        let (signal, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            (libc::sigtimedwait(self.blocked.as_ref(), &mut info, &timeout), info)
        };
        let signal = Signal::try_from(signal).ok()?;
        // SAFETY: the fields of `kill` are there for every code at or below 0 (SI_USER, SI_QUEUE, SI_TKILL).
        let sender = (info.si_code <= 0).then(|| Pid::from_raw(unsafe { info.si_pid() }));
        Some(Received { signal, sender })
    }

    /// Forgets signals that have arrived and not been asked for, and lets the next ones work as before.
    pub fn restore(self) {
        drop(self);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        while self.wait(Duration::ZERO).is_some() {}
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.original), None);
    }
}

/// Passes on, once, what is sent to us alone.
#[derive(Debug)]
pub(super) struct Forwarder<'s> {
    signals: &'s Signals,
    program: Pid,
    /// Arrived here and not yet decided.
    waiting: Vec<(Received, Instant)>,
    /// Seen to be delivered to the program.
    delivered: Vec<(Received, Instant)>,
    stop_asked: Option<Instant>,
    program_stopped: bool,
}

impl<'s> Forwarder<'s> {
    pub(super) fn new(signals: &'s Signals, program: Pid) -> Self {
        let (waiting, delivered) = (Vec::new(), Vec::new());
        Self { signals, program, waiting, delivered, stop_asked: None, program_stopped: false }
    }

    /// Whether it matters who sent this signal to the program.
    pub(super) fn cares_for(signal: i32) -> bool {
        FORWARDED.into_iter().chain(STOPPING).any(|known| known as i32 == signal)
    }

    /// The program is about to get a signal.
    pub(super) fn delivered(&mut self, signal: i32, sender: Option<Pid>) {
        let Ok(signal) = Signal::try_from(signal) else { return };
        self.delivered.retain(|(_, when)| when.elapsed() < MEMORY);
        // Forwarding itself is seen here too, with us as the sender: it matches nothing that waits.
        self.delivered.push((Received { signal, sender }, Instant::now()));
    }

    /// The program was stopped by a signal, or runs again.
    pub(super) fn stopped(&mut self, stopped: bool) {
        self.program_stopped = stopped;
        self.poll();
    }

    /// Takes what has arrived and passes on what is due.
    pub(super) fn poll(&mut self) {
        while let Some(received) = self.signals.wait(Duration::ZERO) {
            if STOPPING.contains(&received.signal) {
                self.stop_asked = Some(Instant::now());
            }
            if received.sender.is_some() {
                self.waiting.push((received, Instant::now()));
            }
        }
        let (program, delivered) = (self.program, &mut self.delivered);
        self.waiting.retain(|(received, since)| {
            if since.elapsed() < PATIENCE {
                return true;
            }
            // Compared with each other, not with now: we may have been stopped in between.
            let same = |(seen, when): &(Received, Instant)| {
                let apart = when.saturating_duration_since(*since).max(since.saturating_duration_since(*when));
                seen == received && apart < SAME_EVENT
            };
            match delivered.iter().position(same) {
                Some(index) => drop(delivered.swap_remove(index)),
                None => drop(kill(program, received.signal)),
            }
            false
        });
        self.stop_with_program();
    }

    /// Stops us when the job was asked to stop and the program did, so that the shell sees its job stopped; returns when
    /// it is continued. A program that ignores the request runs on, and so do we.
    fn stop_with_program(&mut self) {
        let asked = self.stop_asked.is_some_and(|when| when.elapsed() < STOP_EFFECT);
        if !(asked && self.program_stopped) {
            return;
        }
        self.stop_asked = None;
        // Done: passed on after the stop it would stop the program a second time.
        self.waiting.retain(|(received, _)| !STOPPING.contains(&received.signal));
        // To this thread: sent to the process, another thread might take it while this one goes on for a moment.
        if raise(Signal::SIGSTOP).is_ok() {
            // Where the shell continued the group the program has its SIGCONT already; another changes nothing.
            let _ = kill(self.program, Signal::SIGCONT);
        }
    }
}
