//! The flight recorder: processes that are killed or crash have their table, complete, with the reason.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{Run, Target, any_python, eventually, near, root, script, watches};

const GROWS: &str = "
import ctypes, sys
kept = []
def grow():
    kept.append(bytearray(10_000_000))  # grows
print('ready', flush=True)
for line in sys.stdin:
    if line == 'crash\\n':
        ctypes.string_at(0)
    grow()
    print('done', flush=True)
";

fn number(target: &Target) -> Pid {
    Pid::from_raw(target.pid().parse().unwrap())
}

#[test]
fn root_of_two_the_one_that_is_killed_has_its_report_at_once() {
    if !root() {
        return;
    }
    let program = script("grows.py", GROWS);
    let mut other = Target::start(&any_python(), &program);
    for (cause, words) in [("kill", "was killed (SIGKILL)"), ("crash", "crashed (SIGSEGV)")] {
        let mut target = Target::start(&any_python(), &program);
        let started = Run::json_of(["attach"]).words([target.pid(), other.pid()]).start();
        eventually("they are attached", || watches(&started, &target) && watches(&started, &other));
        target.step("grow");
        target.step("grow");
        let pid = number(&target);
        if cause == "kill" {
            kill(pid, Signal::SIGKILL).unwrap();
        } else {
            target.step("crash");
        }
        target.killed();
        eventually("there is a report", || started.snapshot(1).is_some());
        other.step("grow");
        started.signal(Signal::SIGINT);
        let ran = started.end().expect(0);
        assert!(ran.stderr_text().contains(&format!("process {pid} {words}\n")), "{ran}");
        let at_once = &ran.snapshots()[0];
        assert_eq!(at_once.0["snapshot"]["cause"], "death");
        for process in [at_once.only(), ran.report().process(pid.as_raw().into())] {
            assert_eq!(process.0["ended_by"], words);
            near(process.line("grow", program.line("# grows")).increment(), 20_000_000, 128 << 10);
        }
        assert!(ran.report().process(number(&other).as_raw().into()).0["ended_by"].is_null());
    }
    other.end();
}

#[test]
fn root_the_table_says_how_its_program_ended() {
    if !root() {
        return;
    }
    let program = script(
        "dies.py",
        "
import os, signal
kept = bytearray(3_000_000)  # before
os.kill(os.getpid(), signal.SIGKILL)
",
    );
    let ran = Run::new([&any_python().path, &program.path]).run().expect(137);
    assert!(ran.stdout_text().contains("dies.py\nIt was killed (SIGKILL).\n\nFilename: "), "{ran}");
}

/// A control group with a limit of memory, of version 2 or 1.
struct Limited(PathBuf);

impl Limited {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("rmprof-test-{}", std::process::id());
        for (parent, limit) in [
            ("/sys/fs/cgroup", "memory.max"),
            ("/sys/fs/cgroup/unified", "memory.max"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            let group = Path::new(parent).join(&name);
            // With version 1 the first is a plain directory that holds the hierarchies.
            if !Path::new(parent).join("cgroup.procs").exists() || std::fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            if std::fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                // Where there is swap, the limit is of both together.
                let _ = std::fs::write(group.0.join("memory.memsw.limit_in_bytes"), bytes.to_string());
                let _ = std::fs::write(group.0.join("memory.swap.max"), "0");
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn root_a_victim_of_the_kernel_is_named_so() {
    if !root() {
        return;
    }
    let Some(group) = Limited::new(80 << 20) else {
        println!("passed over: no control group with a limit of memory can be made here");
        return;
    };
    let program = script("grows.py", GROWS);
    let mut target = Target::start(&any_python(), &program);
    std::fs::write(group.0.join("cgroup.procs"), target.pid()).unwrap();
    let started = Run::json_of(["attach"]).word(target.pid()).start_on(&target);
    let pid = number(&target);
    let steps = (0..20).take_while(|_| target.step("grow") == "done").count();
    target.killed();
    let ran = started.end().expect(0);
    let words = "was killed by the kernel for want of memory";
    assert!(ran.stderr_text().contains(&format!("process {pid} {words}\n")), "{ran}");
    let report = ran.report();
    assert_eq!(report.only().0["ended_by"], words);
    let grown = report.only().line("grow", program.line("# grows")).increment();
    assert!(grown >= 10_000_000 * i64::try_from(steps).unwrap(), "{steps} steps: {report}");

    // And of a program of our own.
    let hog = script(
        "hog.py",
        "
import sys
open(sys.argv[1], 'w').write('0')
kept = []
while True:
    kept.append(bytearray(10_000_000))  # grows
",
    );
    let ran = Run::json_of(["--mode", "pages"])
        .words([&any_python().path, &hog.path])
        .word(group.0.join("cgroup.procs"))
        .run()
        .expect(137);
    assert_eq!(ran.report().only().0["ended_by"], words);
    assert!(ran.report().only().line("<module>", hog.line("# grows")).increment() > 20_000_000);
}
