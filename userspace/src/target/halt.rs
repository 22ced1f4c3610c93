//! Holding one thread of a running process for some microseconds, so that what it owns is there while it is written to.
//!
//! By ptrace, not SIGSTOP, which its process, its parent and its shell would see. A thread that sleeps is left asleep: an interruption would
//! end its system call early, and its program would see that. The thread of ours that traces is made for it and ends with it: what did not
//! stop in time is let go by the kernel then, as everything is when we are killed.

use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::status;
use super::tracee::{self, Event, Stop};

/// How long a thread that runs is given to stop: it may have begun a wait that cannot be interrupted, in which it does nothing either.
const PATIENCE: Duration = Duration::from_millis(50);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_micros(20);

/// Runs `action` while the thread does nothing: held, where it runs, unless another tracer has it.
pub fn while_held<T: Send>(tid: Pid, action: impl FnOnce() -> T + Send) -> T {
    if !status::is_running(tid) {
        return action();
    }
    std::thread::scope(|scope| {
        let holding = scope.spawn(|| {
            let stop = hold(tid);
            let outcome = action();
            match stop {
                // Its signal comes to it late, and it comes.
                Some(Stop::Signal(signal)) => tracee::detach(tid, signal),
                Some(_) => tracee::detach(tid, 0),
                None => {}
            }
            outcome
        });
        holding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn hold(tid: Pid) -> Option<Stop> {
    tracee::seize_alone(tid).ok()?;
    tracee::interrupt(tid);
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        match tracee::look(tid) {
            Some(Event::Stopped(_, stop)) => return Some(stop),
            Some(_) => return None,
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
    None
}

/// Is writing to another's memory forbidden to everybody, whatever his capabilities (Documentation/admin-guide/LSM/Yama.rst)?
pub fn is_forbidden() -> bool {
    std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").is_ok_and(|scope| scope.trim() == "3")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn shell(text: &str) -> (Child, Pid) {
        let mut child =
            Command::new("sh").args(["-c", text]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        (child, pid)
    }

    #[test]
    fn what_runs_is_held_and_goes_on() {
        let (mut child, pid) = shell("echo ready; while :; do :; done");
        for _ in 0..50 {
            let (runs, tracer, ours) =
                while_held(pid, || (status::is_running(pid), status::tracer(pid).unwrap(), nix::unistd::gettid()));
            assert!(!runs && tracer == Some(ours), "{tracer:?}");
            assert_eq!(status::tracer(pid).unwrap(), None);
        }
        let until = Instant::now() + Duration::from_secs(10);
        while !status::is_running(pid) {
            assert!(Instant::now() < until, "it does not go on");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(while_held(pid, || 7), 7);
    }

    #[test]
    fn what_sleeps_is_left_asleep() {
        let (mut child, pid) = shell("echo ready; read line; exit 3");
        let until = Instant::now() + Duration::from_secs(10);
        while status::is_running(pid) {
            assert!(Instant::now() < until, "it does not sleep");
        }
        assert_eq!(while_held(pid, || status::tracer(pid).unwrap()), None);
        child.stdin.take().unwrap().write_all(b"x\n").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
