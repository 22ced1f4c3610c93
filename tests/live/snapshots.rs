//! Reports before the last, and processes of one command made one.

use nix::sys::signal::Signal;

use crate::common::{Report, Run, Target, any_python, eventually, near, root, script};

const SERVER: &str = "
import os, sys
kept = []

def handle():
    kept.append(bytearray(10_000_000))  # grows

def serve():
    print('ready', flush=True)
    for line in sys.stdin:
        if line == 'fork\\n':
            child = os.fork()
            if child == 0:
                handle()
                os._exit(0)
            os.waitpid(child, 0)
        else:
            handle()
        print('done', flush=True)
serve()
";

#[test]
fn root_a_signal_and_the_clock_each_write_a_report() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let started = Run::json_of(["attach"]).word(target.pid()).start_on(&target);
    for number in 1..=2 {
        target.step("grow");
        started.signal(Signal::SIGUSR1);
        eventually("there is a report", || started.snapshot(number).is_some());
    }
    target.step("grow");
    started.signal(Signal::SIGINT);
    let ran = started.end().expect(0).quiet();
    let snapshots = ran.snapshots();
    assert_eq!(snapshots.len(), 2);
    let last = ran.report();
    for (report, times) in snapshots.iter().chain([&last]).zip(1..) {
        near(report.only().line("handle", program.line("# grows")).increment(), 10_000_000 * times, 128 << 10);
    }
    let about = &snapshots[1].0["snapshot"];
    assert_eq!((about["number"].as_u64(), about["cause"].as_str()), (Some(2), Some("signal")));
    assert!(last.0["snapshot"].is_null());

    let started = Run::json_of(["attach"]).words(["--interval", "0.05"]).word(target.pid()).start();
    eventually("there is a report", || started.snapshot(3).is_some());
    started.signal(Signal::SIGINT);
    let ran = started.end().expect(0);
    assert!(ran.snapshots().iter().all(|report| report.0["snapshot"]["cause"] == "interval"));
    target.end();
}

#[test]
fn root_on_standard_output_each_report_is_a_line() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let words = ["attach", "--format", "json", "--interval", "0.05"];
    let mut started = Run::new(words).word(target.pid()).start_on(&target);
    target.step("grow");
    let mut reports: Vec<Report> = (0..3).map(|_| Report::read(started.line().as_bytes())).collect();
    target.end();
    let ran = started.end().expect(0);
    reports.extend(ran.stdout_text().lines().map(|line| Report::read(line.as_bytes())));
    let numbers: Vec<Option<u64>> = reports.iter().map(|report| report.0["snapshot"]["number"].as_u64()).collect();
    let expected: Vec<Option<u64>> = (1..).take(numbers.len() - 1).map(Some).chain([None]).collect();
    assert_eq!(numbers, expected);
    near(reports.last().unwrap().only().line("handle", program.line("# grows")).increment(), 10_000_000, 128 << 10);
}

#[test]
fn root_processes_of_one_command_are_merged() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let started = Run::json_of(["attach", "--merge"]).word(target.pid()).start_on(&target);
    for step in ["fork", "grow", "fork"] {
        target.step(step);
    }
    target.end();
    let report = started.end().expect(0).report();
    let all = report.only();
    assert_eq!(all.number("merged_processes"), 3);
    // And pages that the forks shared until they wrote to them.
    near(all.line("handle", program.line("# grows")).increment(), 30_000_000, 1 << 20);
    assert_eq!(
        all.line("handle", program.line("# grows")).source(),
        Some("    kept.append(bytearray(10_000_000))  # grows")
    );

    let twice = script(
        "twice.py",
        "
import subprocess, sys
if len(sys.argv) == 1:
    for number in '12':
        subprocess.check_call([sys.executable, sys.argv[0], number])
else:
    kept = bytearray(3_000_000)  # in both
",
    );
    let ran = Run::json_of(["--merge"]).words([&any_python().path, &twice.path]).run().expect(0);
    let report = ran.report();
    assert_eq!(report.only().number("merged_processes"), 3);
    near(report.only().line("<module>", twice.line("# in both")).own(), 6_000_000, 16 << 10);
}
