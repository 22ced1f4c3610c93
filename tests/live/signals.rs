//! Signals: from a terminal to all of the group, and from `kill` to us alone.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Run, Started, any_python, eventually, near, near_blocks, root, script};

/// Marks, allocates, then waits for signals and counts them; `end` on SIGTERM or at the first SIGINT when told so.
const WAITER: &str = "
import os, signal, sys
seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append('USR1'))
signal.signal(signal.SIGINT, lambda number, frame: seen.append('INT'))
signal.signal(signal.SIGTERM, lambda number, frame: seen.append('TERM'))

@profile
def grow():
    kept = bytearray(3_000_000)  # here
    print(os.getpid(), flush=True)
    said = 0
    while 'TERM' not in seen:
        signal.sigtimedwait([], 0.05)
        while said < len(seen):
            print(seen[said], flush=True)
            said += 1
    return kept

grow()
print(seen)
sys.exit(4)
";
const SIZE: i64 = 3_000_001;

fn state(pid: i64) -> char {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    status.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?')
}

fn pid(number: i64) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap())
}

fn start(program: &crate::common::Script) -> (Started, i64) {
    let mut started = Run::json().words([&any_python().path, &program.path]).start();
    let number = started.number();
    (started, number)
}

#[track_caller]
fn check(started: Started, program: &crate::common::Script, said: &str) {
    let ran = started.end().expect(4).quiet();
    assert_eq!(ran.stdout_text(), said);
    near_blocks(ran.report().only().line("grow", program.line("# here")).increment(), SIZE);
}

#[test]
fn root_ctrl_c_reaches_the_program_once_and_the_report_is_made() {
    if !root() {
        return;
    }
    let program = script("waiter.py", WAITER);
    let (mut started, _) = start(&program);
    // What the terminal does: a signal to all of the foreground group.
    kill(Pid::from_raw(-started.pid().as_raw()), Signal::SIGINT).unwrap();
    assert_eq!(started.line(), "INT");
    started.signal(Signal::SIGTERM);
    check(started, &program, "TERM\n['INT', 'TERM']\n");
}

#[test]
fn root_ctrl_c_on_a_program_that_does_not_catch_it() {
    if !root() {
        return;
    }
    let program = script(
        "sleeper.py",
        "
@profile
def grow():
    kept = bytearray(3_000_000)  # here
    print('ready', flush=True)
    import signal
    signal.pause()
grow()
",
    );
    let mut started = Run::new([&any_python().path, &program.path]).start();
    assert_eq!(started.line(), "ready");
    kill(Pid::from_raw(-started.pid().as_raw()), Signal::SIGINT).unwrap();
    let ran = started.end().expect(128 + 2);
    assert!(ran.stderr_text().trim_end().ends_with("KeyboardInterrupt"), "{ran}");
    assert!(ran.stdout_text().contains("2.861 MiB       kept = bytearray(3_000_000)  # here"), "{ran}");
}

#[test]
fn root_what_is_sent_to_us_is_passed_on() {
    if !root() {
        return;
    }
    let program = script("waiter.py", WAITER);
    let (mut started, _) = start(&program);
    for (signal, name) in [(Signal::SIGUSR1, "USR1"), (Signal::SIGINT, "INT"), (Signal::SIGUSR1, "USR1")] {
        started.signal(signal);
        assert_eq!(started.line(), name);
    }
    started.signal(Signal::SIGTERM);
    check(started, &program, "TERM\n['USR1', 'INT', 'USR1', 'TERM']\n");
}

#[test]
fn root_a_hang_up_ends_the_program_and_the_report_is_made() {
    if !root() {
        return;
    }
    for signal in [Signal::SIGHUP, Signal::SIGQUIT] {
        let program = script("waiter.py", WAITER);
        let (started, _) = start(&program);
        started.signal(signal);
        let ran = started.end().expect(128 + signal as i32);
        near_blocks(ran.report().only().line("grow", program.line("# here")).increment(), SIZE);
    }
}

#[test]
fn root_the_program_can_be_stopped_and_continued() {
    if !root() {
        return;
    }
    let program = script("waiter.py", WAITER);
    let (mut started, number) = start(&program);
    for _ in 0..3 {
        kill(pid(number), Signal::SIGSTOP).unwrap();
        eventually("it is stopped", || matches!(state(number), 'T' | 't'));
        kill(pid(number), Signal::SIGUSR1).unwrap();
        // On its way from the stop that shows us its signal to the one by that signal it is seen running.
        eventually("it is stopped for all its signals", || matches!(state(number), 'T' | 't'));
        assert!(!started.has_output(), "a stopped program ran on a signal");
        kill(pid(number), Signal::SIGCONT).unwrap();
        assert_eq!(started.line(), "USR1");
    }
    started.signal(Signal::SIGTERM);
    check(started, &program, "TERM\n['USR1', 'USR1', 'USR1', 'TERM']\n");
}

/// Signals by the thousand, into a program whose threads allocate all the while: none is lost that a bare program would get.
#[test]
fn root_a_timer_of_the_programs_own_keeps_ticking() {
    if !root() {
        return;
    }
    let program = script(
        "timer.py",
        "
import signal
ticks = 0
def tick(number, frame):
    global ticks
    ticks += 1
    bytearray(10_000)
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)

@profile
def grow():
    kept = []
    while ticks < 300:
        kept.append(bytearray(100_000))  # loop
        kept.clear()
    return ticks

grow()
signal.setitimer(signal.ITIMER_REAL, 0)
print('done')
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    assert_eq!(ran.stdout_text(), "done\n");
    let report = ran.report();
    report.check_complete();
    // Clearing is on the line below: here stays what was appended, and no more.
    let line = report.only().line("grow", program.line("# loop"));
    let appended = line.number("occurrences");
    near(line.increment(), appended * 100_001, 65_536);
}
