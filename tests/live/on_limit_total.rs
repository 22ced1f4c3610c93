//! Limits of what all processes have resident together (`--on-limit MIB:rss`).

use nix::sys::signal::Signal;

use super::on_limit::SERVER;
use crate::common::{Ran, Run, Started, Target, any_python, eventually, root, script};

/// Three children of 60 MiB and what a Python takes (some 10), which end before the next three are made.
const GENERATIONS: &str = "
import os, sys

def generation():
    told, tell = os.pipe()
    hold, release = os.pipe()
    made = []
    for _ in range(3):
        child = os.fork()
        if not child:
            os.close(release)
            kept = bytearray(60 << 20)  # a part
            os.write(tell, b'x')
            os.read(hold, 1)
            os._exit(0)
        made.append(child)
    for _ in made:
        os.read(told, 1)
    os.close(release)
    for child in made:
        os.waitpid(child, 0)
    for end in (told, tell, hold):
        os.close(end)
    return made

if sys.argv[1:] == ['waits']:
    print('ready', flush=True)
    sys.stdin.readline()
for _ in range(2):
    print(*generation(), flush=True)
";

/// The numbers of the processes that passed, in order, and the MiB that all had then.
fn passed(ran: &Ran) -> Vec<(String, f64)> {
    let said = ran.stderr_text();
    let lines = said.lines().filter(|line| line.contains(" processes together: "));
    lines
        .map(|line| {
            let after = |text: &str| line.split_once(text).unwrap().1.split_whitespace().next().unwrap().to_owned();
            (after("passed by process "), after("together: ").parse().unwrap())
        })
        .collect()
}

/// None passes by itself; each generation does together, once.
fn check_generations(ran: &Ran, children: &[String], what: &str) {
    let passed = passed(ran);
    assert_eq!(passed.len(), 2, "{what}: {ran}");
    for ((pid, mib), generation) in passed.iter().zip(children) {
        assert!(generation.split(' ').any(|child| child == pid), "{what}: {pid} is none of {generation}: {ran}");
        assert!((150.0..155.0).contains(mib), "{what}: {ran}");
    }
    assert!(!ran.stderr_text().contains(" (--on-limit): "), "{what}: {ran}");
}

#[test]
fn root_what_none_passes_alone_is_passed_together() {
    if !root() {
        return;
    }
    let program = script("generations.py", GENERATIONS);
    let limits = ["--on-limit", "150:rss=report", "--on-limit", "110=report"];
    for options in [&["--mode", "pages"][..], &["--mode", "heap"], &["--mode", "heap", "--no-preload"]] {
        let run = Run::json_of([]).words(limits).words(options).word(&any_python().path);
        let ran = run.word(&program.path).run().expect(0);
        let children: Vec<String> = ran.stdout_text().lines().map(str::to_owned).collect();
        check_generations(&ran, &children, &format!("{options:?}"));
    }
    for command in ["attach", "system"] {
        for mode in ["pages", "heap"] {
            let python = any_python();
            let mut target = Target::of(std::process::Command::new(&python.path).arg(&program.path).arg("waits"));
            let own = format!("*{}*", program.path.display());
            let run = Run::json_of([command, "--mode", mode]).words(limits);
            let run = if command == "attach" { run.word(target.pid()) } else { run.words(["--command", &own]) };
            let started = run.start_on(&target);
            let children = [target.step("go"), target.line()];
            target.end();
            let ran = if command == "system" { interrupted(started) } else { started.end() }.expect(0);
            check_generations(&ran, &children, &format!("{command} {mode}"));
        }
    }
}

fn interrupted(started: Started) -> Ran {
    started.signal(Signal::SIGINT);
    started.end()
}

/// What the server says of SIGUSR2.
const TOLD: &str = "told 12";

/// The handler's line comes before or after those of steps.
fn grows_and_is_told(target: &mut Target) {
    let first = target.step("grow");
    if first != TOLD {
        eventually("it is told", || target.step("nothing") == TOLD);
    }
    assert_eq!(target.line(), "done");
}

/// Of those that run already what they have counts from the beginning, whether it changes or not; and it is the one that passes that is
/// told.
#[test]
fn root_who_passes_is_told_and_who_has_most_is_not() {
    if !root() {
        return;
    }
    let (program, python) = (script("server.py", SERVER), any_python());
    for mode in ["pages", "heap"] {
        let mut targets = [Target::start(&python, &program), Target::start(&python, &program)];
        targets[0].step("grow");
        targets[0].step("grow");
        let run = Run::json_of(["attach", "--mode", mode, "--on-limit", "300:rss=signal USR2"]);
        let started = run.word(targets[0].pid()).word(targets[1].pid()).start_on(&targets[1]);
        for _ in 0..2 {
            grows_and_is_told(&mut targets[1]);
            // More of the same crossing.
            assert_eq!(targets[1].step("grow"), "done");
            for _ in 0..2 {
                assert_eq!(targets[1].step("shrink"), "done");
            }
        }
        // What has ended counts no more: 200 less, and the limit is as far away again.
        let [first, mut second] = targets;
        assert_eq!(first.rest("nothing"), "done\n", "{mode}");
        assert_eq!([second.step("grow"), second.step("grow"), second.step("nothing")], ["done"; 3], "{mode}");
        grows_and_is_told(&mut second);
        let pid = second.pid();
        started.signal(Signal::SIGINT);
        let ran = started.end().expect(0);
        second.end();
        let said = ran.stderr_text();
        assert_eq!(said.matches("2 processes together: 3").count(), 2, "{mode}: {ran}");
        assert_eq!(said.matches(&format!("passed by process {pid} with ")).count(), 3, "{mode}: {ran}");
    }
}

/// A child that has its parent's memory until it executes something has none of its own, and what executes something leaves what it had.
#[test]
fn root_memory_that_is_shared_until_an_exec_counts_once() {
    if !root() {
        return;
    }
    let program = script(
        "starts.py",
        "
import os, subprocess, sys
print('ready', flush=True)
sys.stdin.readline()
kept = bytearray(80 << 20)
for _ in range(3):
    subprocess.run([sys.executable, '-c', 'kept = bytearray(20 << 20)'], check=True)
print('made', flush=True)
sys.stdin.readline()
# What was a part of the sum is another's now.
os.execv(sys.executable, [sys.executable, '-c', 'kept = bytearray(80 << 20); print(\"over\", flush=True)'])
",
    );
    for command in ["run", "attach"] {
        let limits = ["--on-limit", "150:rss=report"];
        let (ran, said) = if command == "attach" {
            let mut target = Target::start(&any_python(), &program);
            let started = Run::json_of(["attach"]).words(limits).word(target.pid()).start_on(&target);
            let made = target.step("go");
            let said = target.rest("go");
            (started.end(), format!("ready\n{made}\n{said}"))
        } else {
            let run = Run::json_of([]).words(limits).word(&any_python().path).word(&program.path);
            let ran = run.input("go\ngo\n").run();
            let said = ran.stdout_text();
            (ran, said)
        };
        let ran = ran.expect(0);
        assert_eq!(said, "ready\nmade\nover\n", "{command}: {ran}");
        assert!(!ran.stderr_text().contains("--on-limit"), "{command}: {ran}");
    }
}

/// A command is told of the sum, and of the process that passed.
#[test]
fn root_a_command_is_told_of_the_sum() {
    if !root() {
        return;
    }
    let (program, python) = (script("server.py", SERVER), any_python());
    let command = "80:rss=exec echo $RMPROF_PID $RMPROF_RESIDENT $RMPROF_TOTAL ${RMPROF_GROWTH-none} >told.part; mv told.part told";
    let mut target = Target::start(&python, &program);
    let run = Run::json_of(["attach", "--on-limit", command]).directory(program.directory()).word(target.pid());
    let started = run.env("RMPROF_TOTAL", "forged").start_on(&target);
    target.step("grow");
    let told = program.directory().join("told");
    eventually("the command has run", || told.exists());
    let text = std::fs::read_to_string(&told).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!((words[0], words[3]), (target.pid().as_str(), "none"), "{text}");
    // Of one process alone the sum is what it has.
    assert_eq!(words[1], words[2], "{text}");
    assert!((80 << 20..82 << 20).contains(&words[2].parse::<u64>().unwrap()), "{text}");
    target.end();
    started.end().expect(0);
}
