//! Every Python of the machine. Other tests run beside these: the filter keeps to the processes of the test, and what is counted of the
//! whole machine may be more.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::{
    Process, Report, Run, Script, Started, Target, any_python, eventually, every_build, near, root, script,
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
    for python in every_build() {
        let program = script("server.py", SERVER);
        let mut target = Target::start(&python, &program);
        // A debug build has a megabyte resident and free when it has begun: it is used first.
        (0..20).for_each(|_| assert_eq!(target.step("warm up"), "done"));
        for run in [session(&program, &[]), Run::json_of(["attach"]).word(target.pid())] {
            let started = run.start_on(&target);
            for _ in 0..50 {
                target.step("request");
            }
            let report = stop(started);
            let (file, line, bytes) = first(&report);
            // The line that keeps it is not the line that asks for it.
            let leak = u64::from(program.line("bytearray(200_000)"));
            assert_eq!((file, line), (program.name(), leak), "{python:?}: {report}");
            near(bytes, 10_000_000, 1 << 20);
            // Resident pages have no owner.
            assert_eq!(report.0["growth_by"], "growth_bytes");
            assert!(report.0["growth"][0].get("live_bytes").is_none(), "{report}");
            assert_eq!(report.0["growth"][0]["pid"].to_string(), target.pid());
            assert!(report.0["cgroups"][0]["cgroup"].is_string(), "{report}");
        }
        target.end();
    }
}

/// Blocks that one line asks for and another one releases, and fewer that nobody does.
const QUEUE: &str = "
import sys
queue, kept = [], []

def produce():
    queue.append(bytearray(1_000_000))  # is consumed

def consume():
    queue.pop()  # consumes

def keep():
    kept.append(bytearray(100_000))  # leaks

print('ready', flush=True)
for line in sys.stdin:
    produce()
    keep()
    consume()
    print('done', flush=True)
";

#[test]
fn root_a_line_whose_blocks_another_releases_is_no_leak() {
    if !root() {
        return;
    }
    // Memory that mimalloc had reserved before is not seen (docs/accuracy.md).
    for python in every_build().into_iter().filter(|python| !python.free_threaded) {
        let program = script("queue_of_blocks.py", QUEUE);
        let mut target = Target::start(&python, &program);
        let started = session(&program, &["--mode", "heap"]).start_on(&target);
        (0..40).for_each(|_| assert_eq!(target.step("request"), "done"));
        let report = stop(started);
        let line_of = |function: &str, text: &str| report.only().line(function, program.line(text));
        let (produced, kept) = (line_of("produce", "# is consumed"), line_of("keep", "# leaks"));
        // By its net the line whose blocks are released elsewhere would be first by far.
        near(produced.increment(), 40_000_000, 64 << 10);
        near(line_of("consume", "# consumes").increment(), -40_000_000, 64 << 10);
        near(kept.increment(), 4_000_000, 64 << 10);
        let first = &report.0["growth"][0];
        assert_eq!(report.0["growth_by"], "live_bytes", "{report}");
        assert_eq!(
            (&first["function"], &first["line"]),
            (&"keep".into(), &program.line("# leaks").into()),
            "{python:?}: {report}"
        );
        assert_eq!(first["live_bytes"].as_i64().unwrap(), kept.number("live_bytes"), "{report}");
        near(kept.number("live_bytes"), 4_000_000, 64 << 10);
        target.end();
    }
}

/// What a session holds.
#[derive(Clone, Copy, Debug)]
struct Holds {
    descriptors: usize,
    links: usize,
    maps: usize,
    processes: usize,
    /// Processes of which stacks are kept.
    stacks_of: usize,
    resident: i64,
    map_memory: i64,
}

impl Holds {
    fn of(started: &Started) -> Self {
        Self {
            descriptors: started.descriptors(),
            links: started.links(),
            maps: started.maps().len(),
            processes: started.map("processes").unwrap().count(),
            stacks_of: started.map("sites").unwrap().processes_of_sites(),
            resident: started.resident(),
            map_memory: started.map_memory(),
        }
    }
}

/// `RMPROF_STORM=2000` is a storm of so many processes, in each mode.
#[test]
fn root_what_begins_later_is_in_the_report_or_counted() {
    if !root() {
        return;
    }
    let storm: u64 = std::env::var("RMPROF_STORM").map_or(90, |number| number.parse().unwrap());
    for mode in ["pages", "heap"] {
        let rounds = storm.div_ceil(1000);
        let (forks, execs) = (storm * 2 / 3 / rounds, storm / 3 / rounds);
        let program = script("server.py", SERVER);
        let mut target = Target::start(&any_python(), &program);
        let run = session(&program, &["--mode", mode]).patience(Duration::from_secs(60 + storm / 20));
        let started = run.start_on(&target);
        let mut held = vec![Holds::of(&started)];
        for round in 1..=rounds {
            target.step(format!("fork {forks}"));
            target.step(format!("exec {execs}"));
            if round == rounds {
                // Of somebody who is not measured.
                let mut stranger = Command::new(&any_python().path);
                stranger.args(["-S", "-c", "mine = bytearray(1_000_000)"]).arg(&program.path);
                assert!(stranger.status().unwrap().success());
            }
            // What has ended is let go of, sixteen at a time, with the directories and links of each.
            let before = held[0];
            eventually("descriptors are given back", || started.descriptors() < before.descriptors + 100);
            eventually("links are given back", || started.links() < before.links + 100);
            // How many stacks each has is a matter of its Python and of the moment; these are the server's, and of others just now.
            let sites = started.map("sites").unwrap();
            eventually("stacks of what has ended are gone", || sites.processes_of_sites() < before.stacks_of + 20);
            // Those of others that began just now, and are looked at, too.
            let processes = started.map("processes").unwrap();
            eventually("the kernel side has forgotten what has ended", || processes.count() < before.processes + 50);
            held.push(Holds::of(&started));
        }
        for held in &held {
            println!("{mode}: {held:?}");
        }
        // After the first thousand nothing grows but what is kept of each process by name.
        let (early, last) = (held[1], held[held.len() - 1]);
        assert_eq!(early.maps, last.maps);
        assert!(last.resident - early.resident < 24 << 20, "{early:?} {last:?}");
        assert!(last.map_memory - early.map_memory < 4 << 20, "{early:?} {last:?}");
        let report = stop(started);
        target.end();
        check_storm(&report, &program, (forks * rounds, execs * rounds + 1));
    }
}

fn check_storm(report: &Report, program: &Script, (forks, execs): (u64, u64)) {
    let processes = report.processes();
    let count = |process: &Process| process.0["merged_processes"].as_u64().unwrap_or(1);
    let words = |process: &Process| process.0["command"].as_array().unwrap().len();
    let of = |length: usize| processes.iter().filter(|process| words(process) == length).map(count).sum::<u64>();
    let missed = report.0["health"]["counters"]["processes_missed"].as_u64().unwrap_or(0);
    println!("{} forks and {} programs in the report, {missed} missed", of(2) - 1, of(5));
    // The server itself has the command line of its forks.
    assert_eq!(of(2), forks + 1, "{report}");
    // What ended before it could be looked at is counted by its command line too: of others that run meanwhile there is none.
    assert_eq!(of(5) + missed, execs, "{} and {missed} missed: {report}", of(5));
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
