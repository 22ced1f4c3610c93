//! Processes that Python programs make: each has its own numbers.

use crate::common::{Process, Report, Run, any_python, near, near_blocks, root, script, supported_pythons};

/// `bytearray` asks for one byte more than its length (Objects/bytearrayobject.c).
const NUL: i64 = 1;

/// Every process is there, under its parent, with the status it ended with.
#[track_caller]
fn check_family(report: &Report, first: i64, children: &[i64]) {
    let mut found: Vec<i64> = report.processes().iter().map(Process::pid).collect();
    let mut expected: Vec<i64> = std::iter::once(first).chain(children.iter().copied()).collect();
    found.sort_unstable();
    // A child by fork and exec is two images of one process.
    found.dedup();
    expected.sort_unstable();
    assert_eq!(found, expected, "{report}");
    for child in children {
        assert_eq!(report.process(*child).parent(), first);
    }
    report.check_complete();
}

#[test]
fn root_parent_and_child_of_fork_are_kept_apart() {
    if !root() {
        return;
    }
    let program = script(
        "fork.py",
        "
import os, sys

@profile
def before():
    return bytearray(5_000_000)  # before

@profile
def child_only():
    return bytearray(3_000_000)  # child

@profile
def both(size):
    return bytearray(size)  # both

kept = before()
first, second = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.read(first[0], 1)
    mine = child_only()
    more = both(2_000_000)
    del kept  # released
    os.write(second[1], b'!')
    os._exit(6)
more = both(1_000_000)
os.write(first[1], b'!')
os.read(second[0], 1)
os.waitpid(child, 0)
print(os.getpid())
print(child)
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        let text = ran.stdout_text();
        let numbers: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
        let report = ran.report();
        check_family(&report, numbers[0], &numbers[1..]);
        let (parent, child) = (report.process(numbers[0]), report.process(numbers[1]));
        let of = |process: Process<'_>, function: &str, marker: &str| {
            process.find(function, program.line(marker)).map_or(0, |line| line.increment())
        };
        near_blocks(of(parent, "before", "# before"), 5_000_000 + NUL);
        near(of(child, "before", "# before"), 0, 0);
        near(of(parent, "child_only", "# child"), 0, 0);
        near_blocks(of(child, "child_only", "# child"), 3_000_000 + NUL);
        near_blocks(of(parent, "both", "# both"), 1_000_000 + NUL);
        near_blocks(of(child, "both", "# both"), 2_000_000 + NUL);
        // The child's copy of the block goes: it is from before the child, and no line of the child's is credited with it.
        near(of(child, "<module>", "# released"), 0, 4 * 4096);
        assert_eq!((parent.number("exit_status"), child.number("exit_status")), (0, 6));
    }
}

/// Work that encodes itself: the task for `n` leaves n * 100,000 bytes on its line.
const POOL: &str = "
import multiprocessing, os, sys

def profile_of(function):
    import builtins
    return getattr(builtins, 'profile', lambda same: same)(function)

kept = []

@profile_of
def task(number):
    kept.append(bytearray(number * 100_000))  # task
    return os.getpid(), number

def main():
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(3) as pool:
        for pid, number in pool.imap_unordered(task, range(1, 13)):
            print(pid, number)
        pool.close()
        pool.join()

if __name__ == '__main__':
    main()
";

#[test]
fn root_pools_of_every_kind() {
    if !root() {
        return;
    }
    let program = script("pool.py", POOL);
    for python in supported_pythons() {
        for method in ["fork", "spawn", "forkserver"] {
            let ran = Run::json().words([&python.path, &program.path]).word(method).run().expect(0).quiet();
            let report = ran.report();
            let mut units = std::collections::BTreeMap::new();
            for line in ran.stdout_text().lines() {
                let (pid, number) = line.split_once(' ').unwrap();
                *units.entry(pid.parse::<i64>().unwrap()).or_insert((0, 0)) = {
                    let (sum, count) = units.get(&pid.parse::<i64>().unwrap()).copied().unwrap_or((0, 0));
                    (sum + number.parse::<i64>().unwrap(), count + 1)
                };
            }
            assert_eq!(units.values().map(|(sum, _)| sum).sum::<i64>(), 78);
            for (pid, (sum, count)) in units {
                let process = report.process(pid);
                let line = process.line("task", program.line("# task"));
                near(line.increment(), sum * 100_000 + count, 4 * 4096);
                assert_eq!(line.number("occurrences"), count, "{method} on {python:?}");
            }
            assert_eq!(report.health("lost"), 0);
        }
    }
}

/// Children by vfork or posix_spawn borrow their parent's memory until their exec: the parent's numbers stay the parent's.
#[test]
fn root_python_started_by_python() {
    if !root() {
        return;
    }
    let child = "
import os

@profile
def grow():
    return bytearray(2_000_000)  # child

kept = grow()
print(os.getpid(), flush=True)
";
    let program = script(
        "parent.py",
        "
import os, subprocess, sys

@profile
def start():
    kept = bytearray(4_000_000)  # parent
    subprocess.run([sys.executable, sys.argv[1]], check=True)
    subprocess.run([sys.executable, sys.argv[1]], check=True, close_fds=False, restore_signals=False)
    return kept

print(os.getpid(), flush=True)
kept = start()
",
    );
    let child_file = program.beside("child.py", child);
    let child_line = 5;
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path, &child_file]).run().expect(0).quiet();
        let numbers: Vec<i64> = ran.stdout_text().lines().map(|line| line.parse().unwrap()).collect();
        let report = ran.report();
        check_family(&report, numbers[0], &numbers[1..]);
        near_blocks(report.process(numbers[0]).line("start", program.line("# parent")).increment(), 4_000_000 + NUL);
        for number in &numbers[1..] {
            near_blocks(report.process(*number).line("grow", child_line).increment(), 2_000_000 + NUL);
        }
    }
}

#[test]
fn root_threads_that_start_programs() {
    if !root() {
        return;
    }
    let program = script(
        "threads.py",
        "
import os, subprocess, sys, threading

@profile
def work(number):
    kept = bytearray(number * 1_000_000)  # work
    for _ in range(5):
        subprocess.run(['true'], check=True)
        assert subprocess.run(['sh', '-c', 'exit 3']).returncode == 3
    results.append(kept)

results = []
threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(results))
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    assert_eq!(ran.stdout_text(), "6\n");
    let report = ran.report();
    report.check_complete();
    let first = report.processes()[0];
    let line = first.line("work", program.line("# work"));
    near(line.increment(), 21_000_000 + 6 * NUL, 6 * (64 + 4096));
    assert_eq!(line.number("occurrences"), 6);
}

/// A process that replaces itself begins anew, under the same number.
#[test]
fn root_a_python_that_executes_another() {
    if !root() {
        return;
    }
    let program = script(
        "again.py",
        "
import os, sys

@profile
def grow(size):
    return bytearray(size)  # here

if len(sys.argv) == 1:
    kept = grow(1_000_000)
    os.execv(sys.executable, [sys.executable, __file__, 'second'])
kept = grow(2_000_000)
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        let report = ran.report();
        let images = report.processes();
        assert_eq!(images.len(), 2, "{report}");
        assert_eq!(images[0].pid(), images[1].pid());
        let sizes: Vec<i64> =
            images.iter().map(|image| image.line("grow", program.line("# here")).increment()).collect();
        near_blocks(sizes[0], 1_000_000 + NUL);
        near_blocks(sizes[1], 2_000_000 + NUL);
    }
}

/// The run ends with the first process: a daemon it leaves runs on, unharmed.
#[test]
fn root_a_daemon_is_left_running() {
    if !root() {
        return;
    }
    let program = script(
        "daemon.py",
        "
import os

@profile
def grow(size):
    return bytearray(size)  # here

grow(500)
ready, go = os.pipe(), os.pipe()
if os.fork() == 0:
    os.setsid()
    kept = grow(2_000_000)
    os.write(ready[1], b'!')
    os.close(go[1])
    os.read(go[0], 1)  # until the parent is gone
    kept = grow(1_000_000)
    print('daemon', len(kept), flush=True)
    os._exit(0)
os.read(ready[0], 1)
",
    );
    // On newer systems the child asks for no block before its first line.
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), "daemon 1000000\n", "{python:?}");
        let report = ran.report();
        assert_eq!(report.processes().len(), 2, "{python:?} {report}");
        let daemon =
            report.processes().into_iter().find(|process| process.parent() == report.processes()[0].pid()).unwrap();
        let grown = daemon.line("grow", program.line("# here")).number("peak_bytes");
        near_blocks(grown, 2_000_000 + NUL);
    }
}

/// More processes at once than there are descriptors to begin with: each takes several of ours.
#[test]
fn root_two_hundred_processes_at_once() {
    if !root() {
        return;
    }
    let program = script(
        "many.py",
        "
import os, resource, sys
print(*resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)
gate, children = os.pipe(), []
for _ in range(200):
    child = os.fork()
    if child == 0:
        kept = bytearray(1_000_000)  # here
        os.read(gate[0], 1)
        os._exit(0)
    children.append(child)
os.write(gate[1], b'!' * len(children))
print(sum(os.waitpid(child, 0)[1] for child in children))
",
    );
    let limited = format!("ulimit -S -n 256; exec {} {}", env!("CARGO_BIN_EXE_rmprof-bpf"), "\"$@\"");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("report.json");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &limited, "sh", "--output"]).arg(&file).args([&any_python().path, &program.path]);
    let ran = crate::common::finish(&mut command).expect(0).quiet();
    let text = ran.stdout_text();
    assert!(text.starts_with("256 "), "the program has the limit that we were given: {ran}");
    assert!(text.ends_with("\n0\n"), "{ran}");
    let report = Report::read(&std::fs::read(&file).unwrap());
    report.check_complete();
    let line = program.line("# here");
    let found = report.processes().into_iter().filter_map(|process| process.find("<module>", line));
    let right = found.filter(|line| (line.number("allocated_bytes") - 1_000_001).abs() <= 4160).count();
    assert_eq!(right, 200, "{report}");
}
