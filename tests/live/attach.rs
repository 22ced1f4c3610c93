//! Processes that run already.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::{
    Python, Ran, Report, Run, Script, Target, any_python, eventually, is_watched, near, root, script, supported_pythons,
};

/// Takes 10 MB at each step, in a loop that it has been in since before anybody attached; has a thread that is in one too.
const SERVER: &str = "
import os, sys, threading
kept = []

def handle(size):
    kept.append(bytearray(size))  # grows
    return len(kept)

def background(wake, done):
    held = None
    while True:
        wake.acquire()
        held = bytearray(20_000_000)  # in a thread
        done.release()

def serve():
    wake, done = threading.Semaphore(0), threading.Semaphore(0)
    threading.Thread(target=background, args=(wake, done), daemon=True).start()
    print('ready', flush=True)
    for line in sys.stdin:
        if line == 'fork\\n':
            child = os.fork()
            if child == 0:
                mine = bytearray(30_000_000)  # in a fork
                os._exit(7)
            os.waitpid(child, 0)
        elif line == 'thread\\n':
            wake.release()
            done.acquire()
        else:
            handle(10_000_000)
        print('done', flush=True)
serve()
";

/// Attaches, does `steps` once it has, and lets the target end.
pub(super) fn attached(python: &Python, options: &[&str], steps: &[&str]) -> (Ran, Script) {
    let program = script("server.py", SERVER);
    let mut target = Target::start(python, &program);
    target.step("warm up");
    let run = Run::json_of(["attach"]).words(options).word(target.pid());
    let started = run.start_on(&target);
    for step in steps {
        assert_eq!(target.step(step), "done");
    }
    target.end();
    (started.end(), program)
}

fn complete(ran: &Ran) -> Report {
    let report = ran.report();
    report.check_complete();
    report
}

#[test]
fn root_the_growing_line_of_a_running_process() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        let (ran, program) = attached(&python, &[], &["grow", "grow", "thread"]);
        let report = complete(&ran.expect(0).quiet());
        assert_eq!(report.0["tool"]["mode"], "pages");
        let process = report.only();
        assert_eq!(process.number("exit_status"), 0);
        let what = python.path.display();
        // Only what came after: 10 MB were there before.
        near(process.line("handle", program.line("# grows")).increment(), 20_000_000, 128 << 10);
        near(process.line("background", program.line("# in a thread")).increment(), 20_000_000, 128 << 10);
        let first = &process.0["functions"][0]["name"];
        assert!(["<module>", "serve", "handle", "background"].iter().any(|name| first == name), "{first} of {what}");
    }
}

#[test]
fn root_blocks_from_before_are_no_negative_nonsense() {
    if !root() {
        return;
    }
    let (ran, program) = attached(&any_python(), &["--mode", "heap"], &["grow", "thread", "thread"]);
    let report = complete(&ran.expect(0).quiet());
    let process = report.only();
    near(process.line("handle", program.line("# grows")).increment(), 10_000_001, 8192);
    let thread = process.line("background", program.line("# in a thread"));
    assert_eq!((thread.number("allocations"), thread.number("frees")), (2, 1), "{thread:?}");
}

#[test]
fn root_native_functions_of_a_running_process() {
    if !root() {
        return;
    }
    for mode in ["heap", "pages"] {
        let (ran, program) = attached(&any_python(), &["--mode", mode, "--columns", "+native"], &["grow"]);
        let report = complete(&ran.expect(0).quiet());
        let line = report.only().line("handle", program.line("# grows"));
        // A name, or the nearest one in a stripped file.
        let most = line.0["native"][0]["function"].as_str().unwrap_or_else(|| panic!("{mode}: {}", line.0));
        assert!(most.to_lowercase().contains("byte") || most.contains("_PyObject_MakeTpCall"), "{mode}: {}", line.0);
        assert!(line.0["native"][0]["bytes"].as_i64().unwrap() > 9_000_000, "{mode}: {}", line.0);
    }
}

#[test]
fn root_forks_are_followed_from_their_first_instruction() {
    if !root() {
        return;
    }
    let (ran, program) = attached(&any_python(), &[], &["fork", "grow"]);
    let report = complete(&ran.expect(0).quiet());
    let processes = report.processes();
    assert_eq!(processes.len(), 2, "{report}");
    let [parent, child] = processes[..] else { unreachable!() };
    assert_eq!((child.parent(), child.number("exit_status")), (parent.pid(), 7));
    // And the pages that it shared with its parent until it wrote to them.
    near(child.line("serve", program.line("# in a fork")).increment(), 30_000_000, 256 << 10);
    assert!(parent.find("serve", program.line("# in a fork")).is_none());

    let (ran, _) = attached(&any_python(), &["--no-children"], &["fork", "grow"]);
    assert_eq!(complete(&ran.expect(0).quiet()).processes().len(), 1);
}

/// Has a worker before anybody attaches, which takes 10 MB at each step.
const POOL: &str = "
import os, sys
kept = []
wake, done = os.pipe(), os.pipe()

def work():
    while os.read(wake[0], 1):
        kept.append(bytearray(10_000_000))  # grows
        os.write(done[1], b'!')

worker = os.fork()
if worker == 0:
    os.close(wake[1])
    work()
    os._exit(0)
print('ready', flush=True)
for line in sys.stdin:
    os.write(wake[1], b'!')
    os.read(done[0], 1)
    print(worker, flush=True)
os.close(wake[1])
os.waitpid(worker, 0)
";

/// Whoever names the master of a pool means its workers.
#[test]
fn root_what_a_process_has_started_before_is_measured_too() {
    if !root() {
        return;
    }
    let program = script("pool.py", POOL);
    for (options, count) in [(&[][..], 2), (&["--no-children"], 1)] {
        let mut target = Target::start(&any_python(), &program);
        let worker = target.step("warm up").parse().unwrap();
        let started = Run::json_of(["attach"]).words(options).word(target.pid()).start_on(&target);
        eventually("the worker is measured, or not", || (count == 1) != is_watched(&started, worker));
        target.step("grow");
        target.step("grow");
        target.end();
        let report = complete(&started.end().expect(0).quiet());
        assert_eq!(report.processes().len(), count, "{report}");
        if count == 2 {
            let grown = report.process(worker.into()).line("work", program.line("# grows")).increment();
            near(grown, 20_000_000, 128 << 10);
            assert_eq!(report.0["growth"][0]["pid"], worker, "{report}");
        }
    }
}

#[test]
fn root_it_lets_go_when_told_to_and_when_killed() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let started = Run::json_of(["attach"]).word(target.pid()).start_on(&target);
        target.step("grow");
        let maps = started.maps();
        started.signal(signal);
        let ran = started.end();
        if signal != Signal::SIGKILL {
            let report = complete(&ran.expect(0).quiet());
            near(report.only().line("handle", program.line("# grows")).increment(), 10_000_000, 128 << 10);
            assert!(report.only().0.get("exit_status").is_none(), "it runs on");
        }
        eventually("nothing is attached", || !maps.iter().any(|map| map.is_there()));
        assert_eq!(target.step("grow"), "done");
    }
    let ran = Run::json_of(["attach"]).words(["--duration", "0.2"]).word(target.pid()).run().expect(0);
    assert_eq!(ran.report().processes().len(), 1);
    target.end();
}

#[test]
fn root_what_cannot_be_attached_to_is_said() {
    if !root() {
        return;
    }
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let ran = Run::new(["attach", &sleeper.id().to_string()]).run().expect(125);
    assert!(ran.stderr_text().contains("it is no Python program\nhint: "), "{ran}");
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let ran = Run::new(["attach", &sleeper.id().to_string()]).run().expect(125);
    assert!(ran.stderr_text().contains("there is no such process\nhint: "), "{ran}");
    let ran = Run::new(["attach", "--duration", "0", "1"]).run().expect(2);
    assert!(ran.stderr_text().contains("more than 0"), "{ran}");
}
