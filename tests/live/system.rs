//! Every Python of the machine. Other tests run beside these: the filter keeps to the processes of the test, and what is counted of the
//! whole machine may be more.

use std::process::{Command, Stdio};

use crate::common::{
    Process, Report, Run, Script, Started, Target, any_python, eventually, near, root, script, supported_pythons,
};
use nix::sys::signal::Signal;

/// A server that leaks at each request, and makes processes.
const SERVER: &str = "
import os, subprocess, sys
kept = []

def handle():
    return bytearray(200_000)

def serve():
    print('ready', flush=True)
    for line in sys.stdin:
        if line.startswith('fork'):
            for _ in range(int(line.split()[1])):
                child = os.fork()
                if child == 0:
                    mine = bytearray(1_000_000)  # in a fork
                    os._exit(0)
                os.waitpid(child, 0)
        elif line.startswith('exec'):
            for _ in range(int(line.split()[1])):
                subprocess.check_call([sys.executable, '-S', '-c', 'mine = bytearray(1_000_000)', sys.argv[0]])
        else:
            kept.append(handle())  # leaks
        print('done', flush=True)
serve()
";

/// Only this script's processes.
fn session(program: &Script, options: &[&str]) -> Run {
    Run::json_of(["system"]).words(["--command", &format!("*{}*", program.name())]).words(options)
}

fn stop(started: Started) -> Report {
    started.signal(Signal::SIGINT);
    started.end().expect(0).report()
}

/// The first line of the ranking: which, and how much.
fn first(report: &Report) -> (&str, u64, i64) {
    let first = &report.0["growth"][0];
    let text = |name: &str| first[name].as_str().unwrap_or_else(|| panic!("{report}"));
    (text("filename"), first["line"].as_u64().unwrap(), first["growth_bytes"].as_i64().unwrap())
}

#[test]
fn root_the_leak_of_a_server_is_the_first_line() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        let program = script("server.py", SERVER);
        let mut target = Target::start(&python, &program);
        target.step("warm up");
        let started = session(&program, &[]).start_on(&target);
        for _ in 0..50 {
            target.step("request");
        }
        let report = stop(started);
        let (file, line, bytes) = first(&report);
        // The line that keeps it is not the line that asks for it.
        assert_eq!((file, line), (program.name(), u64::from(program.line("bytearray(200_000)"))), "{report}");
        near(bytes, 10_000_000, 1 << 20);
        assert_eq!(report.0["growth"][0]["pid"].to_string(), target.pid());
        assert!(report.0["cgroups"][0]["cgroup"].is_string(), "{report}");
        target.end();
    }
}

#[test]
fn root_what_begins_later_is_in_the_report_or_counted() {
    if !root() {
        return;
    }
    // `RMPROF_STORM=2000` is a storm.
    let storm = std::env::var("RMPROF_STORM").map_or(90, |number| number.parse().unwrap());
    let (forks, execs) = (storm * 2 / 3, storm / 3);
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let started = session(&program, &[]).start_on(&target);
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", started.pid())).unwrap().count();
    let before = descriptors();
    target.step(format!("fork {forks}"));
    target.step(format!("exec {execs}"));
    // Of somebody who is not measured.
    let status = Command::new("sh")
        .args(["-c", "exec \"$0\" -S -c 'mine = bytearray(1_000_000)' \"$1\""])
        .arg(&any_python().path)
        .arg(&program.path)
        .status();
    assert!(status.unwrap().success());
    // What has ended is let go of, sixteen at a time, with the directories and links of each.
    eventually("descriptors are given back", || descriptors() < before + 100);
    let sites = started.map("sites").unwrap();
    eventually("stacks of what has ended are gone", || sites.count() < 1500);
    let report = stop(started);
    target.end();
    let processes = report.processes();
    let count = |process: &Process| process.0["merged_processes"].as_u64().unwrap_or(1);
    let words = |process: &Process| process.0["command"].as_array().unwrap().len();
    let of = |length: usize| processes.iter().filter(|process| words(process) == length).map(count).sum::<u64>();
    let missed = report.0["health"]["counters"]["processes_missed"].as_u64().unwrap_or(0);
    // The server itself has the command line of its forks.
    assert_eq!(of(2), forks + 1, "{report}");
    assert!(of(5) + missed > execs, "{} and {missed} missed: {report}", of(5));
    for fork in processes.iter().filter(|process| count(process) == 1) {
        if let Some(line) = fork.find("serve", program.line("# in a fork")) {
            near(line.own(), 1_000_000, 256 << 10);
        }
        assert!(fork.0["ended"].is_string() || words(fork) == 2, "{report}");
    }
}

#[test]
fn root_only_what_is_asked_for_is_measured() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let nobody = Command::new("setpriv")
        .args(["--clear-groups", "--reuid=65534", "--regid=65534", "--"])
        .arg(&any_python().path)
        .arg(&program.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut nobody = nobody.unwrap();
    for (options, count) in [
        (&["--user", "root"][..], 1),
        (&["--user", "0"], 1),
        (&["--user", "no*", "--user", "0"], 2),
        (&["--user", "nobody"], 1),
        (&["--user", "daemon"], 0),
        (&["--cgroup", "/no/such/group*"], 0),
        (&["--cgroup", "/*"], 2),
    ] {
        let ran = session(&program, options).words(["--duration", "0.3"]).run().expect(0);
        assert_eq!(ran.report().processes().len(), count, "{options:?}: {}", ran.report());
    }
    let ran = Run::json_of(["system"]).words(["--command", "no-such-*", "--duration", "0.1"]).run().expect(0);
    assert!(ran.report().processes().is_empty());
    target.step("request");
    target.end();
    drop(nobody.stdin.take());
    assert!(nobody.wait().unwrap().success());
    let ran = Run::new(["system", "--user", "["]).run().expect(2);
    assert!(ran.stderr_text().contains("'[' is not a glob"), "{ran}");
}
