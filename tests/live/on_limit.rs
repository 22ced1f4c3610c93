//! What is done when resident memory passes a limit (`--on-limit`).

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use crate::common::{Run, Target, any_python, eventually, root, script};

/// It has 10 to 20 MiB itself; each step is of 100.
pub(super) const SERVER: &str = "
import signal, sys
kept = []

def told(number, frame):
    print('told', number, flush=True)
signal.signal(signal.SIGUSR2, told)

def serve():
    print('ready', flush=True)
    for line in sys.stdin:
        if line == 'grow\\n':
            kept.append(bytearray(100 << 20))
        elif line == 'shrink\\n':
            kept.pop()
        print('done', flush=True)
serve()
";

fn is_stopped(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

#[test]
fn root_a_report_is_written_once_a_crossing() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    for mode in ["pages", "heap"] {
        let mut target = Target::start(&any_python(), &program);
        let started =
            Run::json_of(["attach", "--mode", mode, "--on-limit", "80=report", "--on-limit", "250:per-process=report"])
                .word(target.pid())
                .start_on(&target);
        target.step("grow");
        eventually("the limit is passed", || started.snapshot(1).is_some());
        // Above it already: no crossing of the first, and of the second at the third step.
        target.step("grow");
        target.step("grow");
        eventually("the other is passed", || started.snapshot(2).is_some());
        // Far below both, and above the first again.
        for step in ["shrink", "shrink", "shrink", "grow"] {
            target.step(step);
        }
        eventually("the first is passed again", || started.snapshot(3).is_some());
        target.end();
        let ran = started.end().expect(0);
        let causes: Vec<_> = ran.snapshots().iter().map(|report| report.0["snapshot"]["cause"].clone()).collect();
        assert_eq!(causes, ["limit", "limit", "limit"], "{mode}: {ran}");
        assert_eq!(ran.stderr_text().matches("above 80.000 MiB (--on-limit)").count(), 2, "{mode}: {ran}");
    }
}

/// Nothing is written beside a device.
#[test]
fn root_reports_go_into_a_device_that_was_named() {
    if !root() {
        return;
    }
    let program = script("grows.py", "kept = [bytearray(100 << 20)]\n");
    let run = Run::new(["--format", "json", "--output", "/dev/stderr", "--on-limit", "80=report"]);
    let ran = run.word(&any_python().path).word(&program.path).run().expect(0);
    let said = ran.stderr_text();
    let reports: Vec<_> = said.lines().filter(|line| line.starts_with('{')).collect();
    assert!(reports[0].contains("\"cause\":\"limit\"") && said.matches("\"schema\"").count() == 2, "{ran}");
    assert!(!std::path::Path::new("/dev/stderr.0001").exists());
}

/// It need not change for that.
#[test]
fn root_what_is_above_when_measuring_begins_has_passed() {
    if !root() {
        return;
    }
    let (program, python) = (script("server.py", SERVER), any_python());
    let own = format!("*{}*", program.path.display());
    for mode in ["pages", "heap"] {
        for command in ["attach", "system"] {
            let mut target = Target::start(&python, &program);
            target.step("grow");
            let run = Run::json_of([command, "--mode", mode, "--on-limit", "80=report"]);
            let run = if command == "attach" { run.word(target.pid()) } else { run.words(["--command", &own]) };
            let started = run.start_on(&target);
            eventually("the limit is passed", || started.snapshot(1).is_some());
            target.step("grow");
            started.signal(Signal::SIGINT);
            let ran = started.end().expect(0);
            assert_eq!(ran.snapshots().len(), 1, "{command} {mode}: {ran}");
            target.end();
        }
    }
}

#[test]
fn root_a_process_is_stopped_and_goes_on() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    for command in ["attach", "system"] {
        let mut target = Target::start(&any_python(), &program);
        let run = Run::json_of([command, "--on-limit", "80=stop"]);
        let own = program.path.to_str().unwrap().to_owned();
        let run =
            if command == "attach" { run.word(target.pid()) } else { run.words(["--command", &format!("*{own}*")]) };
        let started = run.start_on(&target);
        let pid = target.pid();
        let continues = std::thread::spawn(move || {
            eventually("it is stopped", || is_stopped(&pid));
            kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGCONT).unwrap();
        });
        assert_eq!(target.step("grow"), "done");
        continues.join().unwrap();
        started.signal(Signal::SIGINT);
        let ran = started.end().expect(0);
        assert!(ran.stderr_text().contains(&format!("hint: `kill -CONT {}` lets it go on", target.pid())), "{ran}");
        target.end();
    }
}

#[test]
fn root_a_signal_is_sent() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let mut target = Target::start(&any_python(), &program);
    let started = Run::json_of(["attach", "--on-limit", "80=signal USR2"]).word(target.pid()).start_on(&target);
    // The handler's line may come before or after the step's.
    let mut said = [target.step("grow"), target.step("nothing")];
    said.sort();
    assert_eq!(said, ["done".to_owned(), format!("told {}", Signal::SIGUSR2 as i32)]);
    assert_eq!(target.step("nothing"), "done");
    started.signal(Signal::SIGINT);
    started.end().expect(0);
    target.step("nothing");
    target.end();
}

#[test]
fn root_a_run_ends_with_the_status_asked_for() {
    if !root() {
        return;
    }
    let program = script(
        "endless.py",
        "
import os, sys
kept = []
if sys.argv[1:] == ['child'] and os.fork():
    os.wait()
    sys.exit(4)
kept.append(bytearray(100 << 20))  # passes
while True:
    pass
",
    );
    for mode in ["pages", "heap"] {
        for words in [&[][..], &["child"]] {
            let run = Run::json_of(["--mode", mode, "--on-limit", "80=exit 77"]).word(&any_python().path);
            let ran = run.word(&program.path).words(words).run().expect(77);
            let report = ran.report();
            assert!(report.0.to_string().contains("# passes"), "{mode} {words:?}: {ran}");
        }
    }
    let run = Run::json_of(["--on-limit", "80=exit 77"]).word(&any_python().path).words(["-c", "pass"]);
    run.run().expect(0);
}

/// Those that no Python runs in too, and those that are made again: whoever lived on would hold our output open.
#[test]
fn root_exit_ends_all_that_was_started() {
    if !root() {
        return;
    }
    let program = script(
        "many.py",
        "
import os, subprocess
subprocess.Popen(['sleep', '90'], start_new_session=True)
subprocess.Popen('while :; do sleep 0.01; done', shell=True)
for _ in range(8):
    if not os.fork():
        while True:
            if not os.fork():
                os._exit(0)
            os.wait()
kept = bytearray(100 << 20)  # passes
while True:
    pass
",
    );
    for mode in ["pages", "heap"] {
        let run = Run::json_of(["--mode", mode, "--on-limit", "80=exit 77"]).word(&any_python().path);
        let ran = run.word(&program.path).run().expect(77);
        assert!(ran.report().0.to_string().contains("# passes"), "{mode}: {ran}");
        assert!(ran.stderr_text().ends_with("the run ends with status 77\n"), "{mode}: {ran}");
    }
}

/// As much as passes the limit at once does not when a second lies between its halves.
#[test]
fn root_growth_is_that_of_one_second() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    for mode in ["pages", "heap"] {
        let mut target = Target::start(&any_python(), &program);
        let run = Run::json_of(["attach", "--mode", mode, "--on-limit", "150:growth/s=signal USR2"]).word(target.pid());
        let started = run.start_on(&target);
        for _ in 0..3 {
            assert_eq!(target.step("grow"), "done");
            let begun = Instant::now();
            eventually("the second is over", || begun.elapsed() > Duration::from_millis(1_200));
        }
        let mut said: Vec<_> = ["grow", "grow", "nothing"].iter().map(|step| target.step(step)).collect();
        said.sort();
        assert_eq!(said, ["done".to_owned(), "done".to_owned(), format!("told {}", Signal::SIGUSR2 as i32)], "{mode}");
        assert_eq!(target.step("nothing"), "done");
        started.signal(Signal::SIGINT);
        let ran = started.end().expect(0);
        let said = ran.stderr_text();
        let grown = said.split_once(" MiB more resident within a second, above 150.000 MiB").map(|(before, _)| before);
        let grown: Option<f64> = grown.and_then(|before| before.rsplit(' ').next()).and_then(|mib| mib.parse().ok());
        let grown = grown.unwrap_or_else(|| panic!("{ran}"));
        assert!((150.0..202.0).contains(&grown), "{mode}: {ran}");
        target.step("nothing");
        target.end();
    }
}

/// A run's report so far, and a command that is told of it; the last report is as without them.
#[test]
fn root_a_run_is_reported_as_it_stands() {
    if !root() {
        return;
    }
    let program = script(
        "grows.py",
        "
import os, sys
kept = [bytearray(50 << 20)]
small = [bytes(600) for _ in range(1000)]
kept.append(bytearray(100 << 20))  # passes
while not os.path.exists('told'):
    pass
kept.append(bytearray(200 << 20))
print('over')
",
    );
    let command =
        "120=exec cp $RMPROF_REPORT seen; echo $RMPROF_PID ${RMPROF_GROWTH-none} >told.part; mv told.part told";
    for preload in [&[][..], &["--no-preload"]] {
        let run = Run::new(["--format", "json", "--output", "report.json", "--on-limit", command]).words(preload);
        let ran = run.directory(program.directory()).word(&any_python().path).word(&program.path).run().expect(0);
        assert_eq!(ran.stdout_text(), "over\n", "{ran}");
        let read = |name: &str| {
            let path = program.directory().join(name);
            let report = crate::common::Report::read(&std::fs::read(&path).unwrap());
            std::fs::remove_file(path).unwrap();
            report
        };
        let (seen, last) = (read("seen"), read("report.json"));
        assert_eq!(seen.0["snapshot"]["cause"], "limit");
        assert_eq!(seen.0["snapshot"]["number"], 1);
        let allocated = |report: &crate::common::Report, line: u64| {
            let lines = report.0["processes"][0]["functions"].as_array().unwrap().iter();
            let mut lines = lines.flat_map(|function| function["lines"].as_array().unwrap());
            lines.find(|found| found["line"] == line).map(|found| found["allocated_bytes"].as_u64().unwrap())
        };
        for line in [2, 3, 4] {
            assert_eq!(allocated(&seen, line), allocated(&last, line), "{line} {preload:?}: {ran}");
            assert!(allocated(&seen, line).is_some(), "{line} {preload:?}: {ran}");
        }
        assert_eq!(allocated(&seen, 7), None, "{preload:?}: {ran}");
        assert!(allocated(&last, 7).unwrap() >= 200 << 20, "{preload:?}: {ran}");
        std::fs::remove_file(program.directory().join("report.0001.json")).unwrap();
        let told = std::fs::read_to_string(program.directory().join("told")).unwrap();
        assert_eq!(told, format!("{} none\n", last.0["processes"][0]["pid"]));
        std::fs::remove_file(program.directory().join("told")).unwrap();
    }
}

/// The program's own parent sees the stop, as a shell would.
#[test]
fn root_a_run_is_stopped_and_goes_on() {
    if !root() {
        return;
    }
    let program = script(
        "stops.py",
        "
import os, signal
child = os.fork()
if not child:
    kept = bytearray(100 << 20)
    os._exit(5)
_, status = os.waitpid(child, os.WUNTRACED)
print('stopped', os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP, flush=True)
os.kill(child, signal.SIGCONT)
_, status = os.waitpid(child, 0)
print('status', os.WEXITSTATUS(status), flush=True)
",
    );
    let ran = Run::json_of(["--on-limit", "80=stop"]).word(&any_python().path).word(&program.path).run().expect(0);
    assert_eq!(ran.stdout_text(), "stopped True\nstatus 5\n", "{ran}");
}

/// The command is the caller's, and is told where the report is.
#[test]
fn root_a_command_is_run_for_the_caller() {
    if !root() {
        return;
    }
    let program = script("server.py", SERVER);
    let folder = program.directory();
    let user = User::from_name("daemon").unwrap().unwrap();
    chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    let command = "80=exec echo $RMPROF_PID $RMPROF_REPORT $(id -u) $(id -G) >told.part; mv told.part told";
    for output in [&["--output", "report.json"][..], &[]] {
        let mut target = Target::start(&any_python(), &program);
        let run = Run::new(["attach", "--format", "json", "--on-limit", command]).words(output).word(target.pid());
        let run = run.directory(folder).env("SUDO_UID", user.uid.to_string()).env("SUDO_GID", user.gid.to_string());
        let started = run.env("SUDO_USER", &user.name).env("RMPROF_REPORT", "forged").start_on(&target);
        target.step("grow");
        let told = folder.join("told");
        eventually("the command has run", || told.exists());
        let report = std::fs::canonicalize(folder).unwrap().join("report.0001.json");
        let named = if output.is_empty() { String::new() } else { format!("{} ", report.display()) };
        let expected = format!("{} {named}{} {}\n", target.pid(), user.uid, user.gid);
        assert_eq!(std::fs::read_to_string(&told).unwrap(), expected);
        assert_eq!(report.exists(), !output.is_empty());
        if !output.is_empty() {
            let written = crate::common::Report::read(&std::fs::read(&report).unwrap());
            assert_eq!(written.0["snapshot"]["cause"], "limit");
            std::fs::remove_file(&report).unwrap();
        }
        std::fs::remove_file(&told).unwrap();
        target.end();
        started.end().expect(0);
    }
}
