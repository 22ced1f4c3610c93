//! What happens to the program when something happens to us: tests with the supervisor in a process of its own, which is
//! this test program started again.

use super::tests::command;
use super::*;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill, killpg};

const PROGRAM: &str = "RMPROF_TEST_SUPERVISED_SCRIPT";
/// Told, by appending a line, of signals that arrive and the like.
const LOG: &str = "RMPROF_TEST_LOG";

struct Quiet;

impl Watcher for Quiet {
    fn forked(&mut self, _: Pid, _: Pid) {}
    fn executed(&mut self, _: Pid) -> AfterExec {
        AfterExec::HoldWhenLoaded
    }
    fn loaded(&mut self, _: Pid, _: Option<Announcement>) {}
    fn exited(&mut self, _: Pid, _: ExitStatus) {}
}

/// No test: the supervisor's process, when a test below starts it.
#[test]
fn supervisor_process() {
    let Some(script) = std::env::var_os(PROGRAM) else { return };
    let signals = Signals::taken_over().unwrap();
    let status =
        run(&command("sh", &["-c", script.to_str().unwrap()]), Some(&signals), &Ending::default(), &mut Quiet).unwrap();
    println!("ended with {}", exit_code(status));
    std::process::exit(exit_code(status));
}

fn supervise(script: &str, log: &Path) -> Child {
    use std::os::unix::process::CommandExt;
    let mut supervisor = std::process::Command::new(std::env::current_exe().unwrap());
    // SAFETY: one system call, on the child's own mask: the test runner's threads are to inherit it.
    unsafe { supervisor.pre_exec(|| Signals::block().map(std::mem::forget)) };
    supervisor
        .args(["--exact", "target::supervise::outlive_tests::supervisor_process", "--nocapture", "--test-threads=2"])
        .env(PROGRAM, script)
        .env(LOG, log)
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never came: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn lines(log: &Path) -> Vec<String> {
    std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// The program's own right end, in files: `begun` when it starts, `done` when it has got through everything.
#[test]
fn killed_fifty_times_the_program_gets_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut began = 0;
    for round in 0..50 {
        let log = folder.path().join(format!("{round}"));
        let script = "echo begun >> $RMPROF_TEST_LOG; i=0\n\
            while [ $i -lt 12 ]; do i=$((i+1)); /bin/true; x=$(echo a | cat); [ \"$x\" = a ] || exit 1; (exit 3); [ $? = 3 ] || exit 1; done\n\
            echo done >> $RMPROF_TEST_LOG";
        let mut supervisor = supervise(script, &log);
        std::thread::sleep(Duration::from_micros(1000 + (round * 7919) % 67_000));
        let _ = supervisor.kill();
        supervisor.wait().unwrap();
        // Killed before the exec there is no program; once begun it must get through.
        std::thread::sleep(Duration::from_millis(20));
        if !lines(&log).is_empty() {
            began += 1;
            wait_for("the program's end", || lines(&log).last().is_some_and(|line| line == "done"));
        }
    }
    println!("{began} of 50 had begun");
    assert!(began >= 20, "only {began} had begun");
}

const COUNTER: &str = "for s in INT TERM HUP QUIT USR1; do trap \"echo $s >> $RMPROF_TEST_LOG\" $s; done\n\
    echo ready $$ >> $RMPROF_TEST_LOG\n\
    i=0\n\
    while [ ! -e $RMPROF_TEST_LOG.stop ] && [ $i -lt 600 ]; do sleep 0.05; i=$((i+1)); done; exit 7";

fn counter(log: &Path) -> (Child, Pid, Pid) {
    start(COUNTER, log)
}

fn start(script: &str, log: &Path) -> (Child, Pid, Pid) {
    let child = supervise(script, log);
    wait_for("the program's start", || !lines(log).is_empty());
    let program = lines(log)[0].split(' ').nth(1).unwrap().parse().unwrap();
    let supervisor = Pid::from_raw(child.id() as i32);
    (child, supervisor, Pid::from_raw(program))
}

fn finish(mut child: Child, log: &Path) -> Vec<String> {
    std::thread::sleep(Duration::from_millis(400));
    std::fs::write(log.with_extension("stop"), "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    lines(log).into_iter().skip(1).collect()
}

#[test]
fn signals_reach_the_program_once() {
    let folder = tempfile::tempdir().unwrap();
    for (name, signal) in
        [("INT", Signal::SIGINT), ("TERM", Signal::SIGTERM), ("HUP", Signal::SIGHUP), ("USR1", Signal::SIGUSR1)]
    {
        let log = folder.path().join(name);
        // To us alone: passed on.
        let (child, supervisor, _) = counter(&log);
        kill(supervisor, signal).unwrap();
        assert_eq!(finish(child, &log), [name], "to the supervisor");
        // To the program alone.
        let log = folder.path().join(format!("{name}2"));
        let (child, _, program) = counter(&log);
        kill(program, signal).unwrap();
        assert_eq!(finish(child, &log), [name], "to the program");
    }
    // To the whole group, as a shell or `timeout` does: once, not twice. (The `sleep` of the loop dies of it, the loop goes on.)
    let log = folder.path().join("group");
    let (child, supervisor, _) = counter(&log);
    killpg(supervisor, Signal::SIGTERM).unwrap();
    assert_eq!(finish(child, &log), ["TERM"], "to the group");
}

#[test]
fn an_end_by_a_forwarded_signal_is_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut child = supervise("echo ready >> $RMPROF_TEST_LOG; exec sleep 60", &log);
    wait_for("the program's start", || !lines(&log).is_empty());
    std::thread::sleep(Duration::from_millis(50));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
}

#[test]
fn a_stopped_job_stops_whole_and_continues_whole() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    // No shell's loop: a shell that waits for a stopped child of its vfork cannot stop, with us or without.
    let (mut child, supervisor, program) = start("echo ready $$ >> $RMPROF_TEST_LOG; exec sleep 60", &log);
    let state = |pid: Pid| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().rsplit(") ").next().unwrap().chars().next()
    };
    // The longer stop: nothing that waits when we are stopped may be passed on when we go on.
    for pause in [0, 600] {
        killpg(supervisor, Signal::SIGTSTP).unwrap();
        wait_for("the supervisor's stop", || state(supervisor) == Some('T'));
        assert!(state(program) == Some('t') || state(program) == Some('T'), "{:?}", state(program));
        std::thread::sleep(Duration::from_millis(pause));
        killpg(supervisor, Signal::SIGCONT).unwrap();
        wait_for("the program's going on", || state(program) != Some('t') && state(program) != Some('T'));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(state(program), Some('S'));
        assert!(child.try_wait().unwrap().is_none());
    }
    // The program alone, by SIGSTOP: we do not stop, or nobody could continue it.
    kill(program, Signal::SIGSTOP).unwrap();
    wait_for("the program's stop", || state(program) == Some('t'));
    std::thread::sleep(Duration::from_millis(150));
    assert_ne!(state(supervisor), Some('T'));
    kill(program, Signal::SIGCONT).unwrap();
    wait_for("the program's going on", || state(program) != Some('t'));
    kill(program, Signal::SIGKILL).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(137));
}
