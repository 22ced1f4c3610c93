//! Programs that die: the report is complete up to that moment.

use crate::common::{Run, any_python, near, near_blocks, root, script, supported_pythons};

const SIZE: i64 = 3_000_001;

/// Each way to die right after allocating, and the status it gives.
const DEATHS: [(&str, i32); 7] = [
    ("os._exit(9)", 9),
    ("os.kill(os.getpid(), signal.SIGKILL)", 128 + 9),
    ("os.abort()", 128 + 6),
    ("ctypes.string_at(0)", 128 + 11),
    ("os.kill(os.getpid(), signal.SIGTERM)", 128 + 15),
    ("os.kill(os.getpid(), signal.SIGXCPU)", 128 + 24),
    ("raise SystemExit(12)", 12),
];

#[test]
fn root_a_line_is_known_however_its_program_dies() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        for (death, status) in DEATHS {
            let program = script(
                "dies.py",
                &format!(
                    "
import ctypes, os, signal, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def quietly():
    kept = bytearray(2_000_000); held = bytearray(1_000_000)  # unmarked
    return kept, held

@profile
def grow():
    other = quietly()  # calls
    kept = bytearray(3_000_000)  # here
    {death}
grow()
"
                ),
            );
            let ran = Run::json().words([&python.path, &program.path]).run().expect(status);
            let report = ran.report();
            let process = report.only();
            assert_eq!(process.number("exit_status"), i64::from(status));
            let line = process.line("grow", program.line("# here"));
            near_blocks(line.increment(), SIZE);
            assert_eq!(line.source(), Some("    kept = bytearray(3_000_000)  # here"));
            near_blocks(process.line("grow", program.line("# calls")).increment(), SIZE + 1);
            near_blocks(process.line("quietly", program.line("# unmarked")).own(), SIZE + 1);
            near_blocks(line.number("live_bytes"), if death.starts_with("raise") { 0 } else { SIZE });
            report.check_complete();
        }
    }
}

/// The line that takes the program down is the first that its stack is ever seen on.
#[test]
fn root_the_fatal_line_itself_is_known() {
    if !root() {
        return;
    }
    let program = script(
        "fatal.py",
        "
import os
def grow():
    os.kill(len([bytearray(7_000_000)]) and os.getpid(), 9)  # here
grow()
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(137);
        let report = ran.report();
        report.check_complete();
        let line = report.only().line("grow", program.line("# here"));
        near(line.number("allocated_bytes"), 7_000_001, 8192);
    }
}

#[test]
fn root_memory_that_runs_out() {
    if !root() {
        return;
    }
    let program = script(
        "greedy.py",
        "
import resource
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))

@profile
def grow():
    kept = []
    while True:
        kept.append(bytearray(10 << 20))  # here
grow()
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(1);
        // 3.15 has no memory left to print it with, and says so after it.
        assert!(ran.stderr_text().contains("MemoryError"), "{ran}");
        let report = ran.report();
        let line = report.only().line("grow", program.line("# here"));
        let occurrences = line.number("occurrences");
        assert!(occurrences > 20, "{occurrences} times");
        // The last time failed: it changes nothing.
        near(line.increment(), (occurrences - 1) * ((10 << 20) + 1), 65536);
    }
}

/// As the out-of-memory killer does: SIGKILL from outside, in the middle of the work of several threads.
#[test]
fn root_killed_from_outside_at_work() {
    if !root() {
        return;
    }
    let program = script(
        "worker.py",
        "
import os, threading

@profile
def work(step):
    kept = []
    while True:
        kept.append(bytearray(100_000))  # here
        del kept[10:]
        if len(kept) == 10: step()

print(os.getpid(), flush=True)
done = threading.Semaphore(0)
for _ in range(4): threading.Thread(target=work, args=(done.release,), daemon=True).start()
for _ in range(100): done.acquire()
print('working', flush=True)
threading.Event().wait()
",
    );
    let mut started = Run::json().words([&any_python().path, &program.path]).start();
    let number = started.number();
    assert_eq!(started.line(), "working");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(number).unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    let ran = started.end().expect(137);
    let report = ran.report();
    let line = report.only().line("work", program.line("# here"));
    assert!(line.number("occurrences") >= 100, "{report}");
    assert!(line.number("allocated_bytes") >= line.number("occurrences") * 100_001 - 4 * 100_001, "{report}");
}

/// Whether the file was read before it was replaced is a matter of chance; that another file's text is not shown is none.
#[test]
fn root_a_script_replaced_while_it_runs_shows_its_own_source_or_none() {
    if !root() {
        return;
    }
    let program = script(
        "gone.py",
        "
import os, signal
@profile
def grow():
    kept = bytearray(3_000_000)  # here
    print('grown', flush=True)
    return signal.sigwait([signal.SIGUSR1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
grow()
",
    );
    let mut started = Run::json().words([&any_python().path, &program.path]).start();
    assert_eq!(started.line(), "grown");
    std::fs::rename(&program.path, program.directory().join("renamed")).unwrap();
    std::fs::write(&program.path, "\n\n\n\n    somebody else's line\n").unwrap();
    started.signal(nix::sys::signal::Signal::SIGUSR1);
    let report = started.end().expect(0).quiet().report();
    let line = report.only().line("grow", program.line("# here"));
    assert!(matches!(line.source(), None | Some("    kept = bytearray(3_000_000)  # here")), "{report}");
}

/// Gone before anything of it was seen: the numbers stand, the text is absent.
#[test]
fn root_a_script_that_deletes_itself_first() {
    if !root() {
        return;
    }
    let program = script(
        "gone.py",
        "
import os
os.unlink(__file__)
def grow():
    return bytearray(3_000_000)  # here
kept = grow()
os._exit(0)
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    near_blocks(ran.report().only().line("grow", program.line("# here")).increment(), SIZE);
    std::fs::write(
        &program.path,
        "import os\nos.unlink(__file__)\n@profile\ndef f():\n    return bytearray(3_000_000)\nkept = f()\n",
    )
    .unwrap();
    let text = Run::new([&any_python().path, &program.path]).run().expect(0).quiet().stdout_text();
    assert!(text.contains("2.861 MiB"), "{text}");
}
