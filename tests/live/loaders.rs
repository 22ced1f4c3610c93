//! Both loaders: the same program gives the same totals, whichever library put the probes into the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::native::library_beside;
use crate::common::{Report, Run, Target, any_python, near, root, script, supported_pythons};

/// A page of an arena counts where it is first touched. Where pages begin varies with what was allocated before, down to the length
/// of our own process's number in a path: so many may be on another line.
const PAGES: i64 = 4;
const PAGE: i64 = 4096;
/// The largest object of Python's own allocator.
const SMALL_OBJECT: i64 = 512;

/// One thread, so that it does the same each time: blocks that grow, mappings, objects, a fork, an exec.
const PROGRAM: &str = "
import mmap, os, sys

def take():
    kept = bytearray(3_000_000)
    kept.extend(bytes(2_000_000))
    del kept[1_000_000:]
    return kept

def mapped():
    area = mmap.mmap(-1, 6_000_000)
    area[:3_000_000] = bytes(3_000_000)
    return area

def small():
    return [bytearray(600) for _ in range(5_000)]

def main():
    kept = [take() for _ in range(3)], mapped(), small()
    child = os.fork()
    if child == 0:
        mine = take()
        os._exit(0)
    os.waitpid(child, 0)
    if 'again' not in sys.argv:
        os.execv(sys.executable, [sys.executable, __file__, 'again'])
main()
";

/// What is counted of a line: bytes and the number of times, taken and given back.
const COUNTED: [&str; 4] = ["allocated_bytes", "allocations", "freed_bytes", "frees"];

/// By place in the report, function and line.
type Lines = BTreeMap<(usize, String, u64), [i64; COUNTED.len()]>;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).canonicalize().unwrap()
}

fn run(loader: &str, words: &[&str], python: &Path, program: &Path) -> Report {
    let run = Run::json().words(["--loader", loader]).words(words).word(python).word(program);
    // Else sets of strings are laid out by chance.
    let report = run.env("PYTHONHASHSEED", "0").run().expect(0).quiet().report();
    report.check_complete();
    report
}

fn lines(report: &Report) -> Lines {
    let processes = report.processes();
    let of = processes.iter().enumerate().flat_map(|(place, process)| {
        process.lines().into_iter().map(move |(function, line)| {
            let number = line.0["line"].as_u64().unwrap();
            ((place, function.to_owned(), number), COUNTED.map(|name| line.number(name)))
        })
    });
    of.collect()
}

fn nets(report: &Report) -> Vec<i64> {
    report.processes().iter().map(|process| process.number("net_bytes")).collect()
}

/// Loads with each; in turn, so that neither is favoured by what the other left in caches.
fn both(words: &[&str], python: &Path, program: &Path) -> [Report; 2] {
    ["libbpf", "aya"].map(|loader| run(loader, words, python, program))
}

/// Every counted number of every line, to the byte but for whole pages, and the totals.
#[track_caller]
fn are_equal(words: &[&str], python: &Path, program: &Path) {
    let [first, second] = both(words, python, program);
    let what = format!("{words:?} {} {}", python.display(), program.display());
    let (one, other) = (lines(&first), lines(&second));
    // A module has its imports on it, and what they release varies by some objects.
    let all: BTreeSet<_> = one.keys().chain(other.keys()).filter(|(_, function, _)| function != "<module>").collect();
    assert!(!all.is_empty(), "{what}: {first}");
    for line in all {
        let [found, expected] = [&other, &one].map(|of| of.get(line).copied().unwrap_or_default());
        for of in [0, 2] {
            let more = found[of + 1] - expected[of + 1];
            let bytes = found[of] - expected[of];
            let is_pages = bytes == more * PAGE;
            // Objects that other things let go of (caches, weak references) go on the line that happens to run.
            let is_small = words.contains(&"objects") && bytes.abs() <= SMALL_OBJECT * more.abs();
            assert!((is_pages || is_small) && more.abs() <= PAGES, "{what} {line:?}: {expected:?} and {found:?}");
        }
    }
    assert_eq!(first.processes().len(), second.processes().len(), "{what}");
    for (one, other) in nets(&first).into_iter().zip(nets(&second)) {
        near(other, one, PAGES * PAGE);
    }
}

/// The program of page faults copies the stack of who asked, and faults itself where nobody has touched it: the kernel does not run it within
/// itself, and counts.
const BELOW: &str = "
import ctypes, sys
library = ctypes.PyDLL(sys.argv[1])
take = ctypes.cast(ctypes.pythonapi.PyObject_Malloc, ctypes.c_void_p)
library.take_below_untouched_stack.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
library.take_below_untouched_stack(take, 20_000)  # takes
";

#[test]
fn root_what_a_program_missed_of_itself_is_told() {
    if !root() {
        return;
    }
    let program = script("below.py", BELOW);
    let library = library_beside(&program);
    for loader in ["libbpf", "aya"] {
        for (columns, misses) in [("increment", false), ("+native", true)] {
            let run = Run::json().words(["--loader", loader, "--columns", columns]);
            let report = run.words([&any_python().path, &program.path, &library]).run().expect(0).quiet().report();
            // No event was: what the walker met was no touch of a page.
            report.check_complete();
            near(report.only().line("<module>", program.line("# takes")).own(), 20_000 * 512, 1 << 20);
            let counters = report.0["health"]["counters"].as_object().unwrap();
            let missed = counters.get("fault_recursion_misses").map_or(0, |count| count.as_u64().unwrap());
            assert_eq!(missed > 0, misses, "{loader} {columns}: {report}");
            assert!(!counters.contains_key("recursion_misses"), "{loader} {columns}: {report}");
        }
    }
}

#[test]
fn root_the_examples_have_equal_totals_by_both_loaders() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        for name in ["examples/copy.py", "examples/memoryview.py"] {
            are_equal(&[], &python.path, &file(name));
        }
    }
}

#[test]
fn root_every_way_to_count_has_equal_totals_by_both_loaders() {
    if !root() {
        return;
    }
    let python = any_python();
    for marked in [false, true] {
        let text = if marked { PROGRAM.replace("def ", "@profile\ndef ") } else { PROGRAM.to_owned() };
        let program = script("loaders.py", &text);
        for words in [&[][..], &["--mode", "objects"]] {
            are_equal(words, &python.path, &program.path);
        }
    }
    // Letting go of single probes takes the kernel a tenth of a second each: once, with fewer processes.
    let program = script("loaders.py", &PROGRAM.replace("os.execv", "(lambda *_: 0)"));
    are_equal(&["--probes", "single"], &python.path, &program.path);
}

/// Line events of all lines, and what stood highest while each ran.
#[test]
fn root_peak_and_occurrences_of_every_line_are_equal_by_both_loaders() {
    if !root() {
        return;
    }
    let program = script("loaders.py", PROGRAM);
    let [first, second] = both(&["--columns", "peak,occurrences"], &any_python().path, &program.path);
    let mut compared = 0;
    for (one, other) in first.processes().iter().zip(second.processes()) {
        for (function, line) in one.lines().into_iter().filter(|(function, _)| *function != "<module>") {
            let same = other.line(function, u32::try_from(line.number("line")).unwrap());
            // The line in which a child was made did not begin in the child.
            let [begun, also] = [line, same].map(|line| line.0.get("occurrences").and_then(Value::as_u64));
            assert_eq!(begun, also, "{function}: {line:?}");
            let [highest, also] =
                [line, same].map(|line| line.0.get("peak_bytes").map_or(0, |peak| peak.as_i64().unwrap()));
            // The highest of so many executions is another one's where a page begins elsewhere: one in which the list grew, or not.
            let is_of_any = begun.is_some_and(|times| times >= 5_000);
            assert!(
                (is_of_any || (highest - also) % PAGE == 0) && (highest - also).abs() <= PAGES * PAGE,
                "{also} in {function}: {line:?}"
            );
            compared += 1;
        }
    }
    assert!(compared > 20, "{first}");
}

/// Threads take turns as they come: within some pages.
#[test]
fn root_the_cases_have_equal_totals_by_both_loaders() {
    if !root() {
        return;
    }
    let python = any_python();
    for words in [&[][..], &["--mode", "pages"]] {
        let [first, second] = both(words, &python.path, &file("tests/programs/cases.py"));
        let (one, other) = (lines(&first), lines(&second));
        assert!(one.len() > 90, "{first}");
        // A line that only touched a page in one of the runs is in that one's table alone.
        for place in one.keys().chain(other.keys()).filter(|(_, function, _)| function != "<module>") {
            let [found, expected] = [&other, &one].map(|of| of.get(place).copied().unwrap_or_default());
            for of in [0, 2] {
                let pages = (found[of] - expected[of]).abs() / PAGE;
                assert!(pages <= 4 * PAGES, "{words:?} {place:?}: {expected:?} and {found:?}");
            }
        }
        // Pages that the kernel gives or takes many at a time.
        near(nets(&second)[0], nets(&first)[0], if words.contains(&"pages") { 1 << 20 } else { PAGES * PAGE });
    }
}

#[test]
fn root_what_runs_already_has_equal_totals_by_both_loaders() {
    if !root() {
        return;
    }
    // A fork that ends at once is gone before probes that are attached one by one are all in place: in heap mode there is none.
    let steps = ["grow", "thread", "grow", "fork"];
    for (mode, steps, tolerance) in [("heap", &steps[..3], 8192), ("pages", &steps[..], 64 << 10)] {
        let [first, second] = ["libbpf", "aya"].map(|loader| {
            let (ran, program) = super::attach::attached(&any_python(), &["--loader", loader, "--mode", mode], steps);
            let report = ran.expect(0).quiet().report();
            report.check_complete();
            let of = |process: usize, function: &str, marker: &str| {
                report.processes()[process].line(function, program.line(marker)).increment()
            };
            let own = [of(0, "handle", "# grows"), of(0, "background", "# in a thread")];
            own.into_iter().chain(steps.contains(&"fork").then(|| of(1, "serve", "# in a fork"))).collect::<Vec<_>>()
        });
        assert_eq!([first.len(), second.len()], [steps.len() - 1; 2]);
        for ((found, other), expected) in first.into_iter().zip(second).zip([20_000_000, 20_000_000, 30_000_000]) {
            near(found, expected, 256 << 10);
            near(found, other, tolerance);
        }
    }
}

#[test]
fn root_a_way_to_attach_that_the_loader_has_not_is_refused() {
    if !root() {
        return;
    }
    // Both are executed by then: one is held when its libraries are mapped, the other at its exec.
    for program in [["python3", "-c", "print('ran')"], ["sh", "-c", "echo ran"]] {
        let ran = Run::new(["--loader", "aya", "--probes", "multi"]).words(program).run().expect(125);
        assert!(ran.stderr_text().contains("hint: leave the option --probes out"), "{ran}");
        assert_eq!(ran.stdout_text(), "");
    }
}

/// An allocator whose call begins as soon as it is probed, and is under way until it is told to go on. What it then does may be a call of
/// another of its functions.
const GATE: &str = "
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static char block[64];
static int begun, go_on, hands_on;

void je_free(void *pointer) { (void)pointer; }
void *je_calloc(size_t count, size_t size) { (void)count, (void)size; return block; }

void *je_malloc(size_t size)
{
	void *found = block;
	char byte = 0;

	if (write(begun, &byte, 1) == 1 && read(go_on, &byte, 1) == 1 && hands_on)
		found = je_calloc(3, size);
	return found;
}

void enter(int to, int from, int on)
{
	char bare[16];

	begun = to, go_on = from, hands_on = on;
	memcpy(bare, (void *)je_malloc, sizeof(bare));
	while (!memcmp(bare, (void *)je_malloc, sizeof(bare)));
	je_malloc(1000);
}
";

const ENTERS: &str = "
import ctypes, os, sys, threading

library = ctypes.CDLL(sys.argv[1])
begun, go_on = os.pipe(), os.pipe()

def enter():
    library.enter(begun[1], go_on[0], sys.argv[2] == 'hands on')  # enters

thread = threading.Thread(target=enter)
thread.start()
print('ready', flush=True)
sys.stdin.readline()
os.read(begun[0], 1)
os.write(go_on[1], b'!')
thread.join()
print('done', flush=True)
sys.stdin.read()
";

/// Where returns are probed by themselves (aya, and libbpf before Linux 6.13), they are before entries are, and before the process counts.
/// A call that began meanwhile is none that was measured, so nothing of it is lost: neither when it is the only one of its thread, nor when
/// another is seen inside it.
#[test]
fn root_a_call_under_way_is_not_lost() {
    /// The thread may have been kept from running until the process counted: then the call was seen from its beginning.
    const ATTEMPTS: usize = 20;
    if !root() {
        return;
    }
    let program = script("enters.py", ENTERS);
    let library = program.library_beside(GATE);
    for loader in ["libbpf", "aya"] {
        for (then, inner) in [("returns", 0), ("hands on", 3000)] {
            let was_under_way = || {
                let mut command = Command::new(any_python().path);
                let mut target = Target::of(command.args([&program.path, &library]).arg(then));
                let run = Run::json_of(["attach", "--loader", loader, "--mode", "heap"]).word(target.pid());
                let started = run.start_on(&target);
                assert_eq!(target.step("go on"), "done");
                started.signal(Signal::SIGINT);
                let report = started.end().expect(0).quiet().report();
                target.end();
                report.check_complete();
                assert!(report.0["health"]["counters"]["return_without_entry"].is_null(), "{loader}, {then}: {report}");
                let line =
                    report.only().find("enter", program.line("# enters")).map(|line| line.number("allocated_bytes"));
                match line.unwrap_or(0) {
                    bytes if bytes == inner => true,
                    bytes => {
                        assert_eq!(bytes, 1000, "{loader}, {then}: {report}");
                        false
                    }
                }
            };
            assert!((0..ATTEMPTS).any(|_| was_under_way()), "{loader}, {then}: the call always began too late");
        }
    }
}
