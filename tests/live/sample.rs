//! `--sample`: what is estimated is right in the mean, and by as much as the report says; what is said to be exact is exact.
//!
//! The samples are drawn by chance, so bounds are in standard errors: five of them are passed by once in two million runs.

use crate::common::{Line, Process, Report, Run, Script, any_python, near_blocks, root, script, supported_pythons};

/// `bytes(n)` asks for its head and a NUL too (Objects/bytesobject.c).
const BYTES_HEAD: i64 = 33;

fn sampled(interval: &str, program: &Script) -> (Report, String) {
    let run = Run::json().words(["--sample", interval]).words([&any_python().path, &program.path]);
    let ran = run.run().expect(0).quiet();
    let report = ran.report();
    report.check_complete();
    (report, ran.stdout_text())
}

fn error(line: &Line<'_>, of: &str) -> f64 {
    line.0["standard_error"][of].as_i64().unwrap_or_else(|| panic!("no error of {of} in {}", line.0)) as f64
}

/// How many standard errors a number is from the truth.
fn errors_off(line: &Line<'_>, of: &str, truth: i64) -> f64 {
    (line.number(of) - truth) as f64 / error(line, of)
}

#[track_caller]
fn is_near(line: &Line<'_>, of: &str, truth: i64) {
    assert!(errors_off(line, of, truth).abs() < 5.0, "{truth} is true of {of}: {:?}", line.0);
}

fn sampling(process: &Process<'_>, of: &str) -> i64 {
    process.0["sampling"][of].as_i64().unwrap()
}

/// Lines that each ask for one size, from far below the interval to a multiple of it: the estimates are as far from the truth as
/// their errors say, on both sides.
#[test]
fn root_estimates_are_unbiased_and_their_errors_are_true() {
    if !root() {
        return;
    }
    const LINES: u32 = 120;
    const TOTAL: i64 = 6_000_000;
    let size = |line: u32| [600, 1_000, 3_000, 9_000, 30_000, 90_000][line as usize % 6] + i64::from(line);
    let count = |line: u32| TOTAL / size(line);
    let mut text = "def make():\n".to_owned();
    for line in 0..LINES {
        text += &format!("    for _ in range({}): bytes({})\n", count(line), size(line) - BYTES_HEAD);
    }
    text += "make()\n";
    let program = script("lines.py", &text);
    let (report, _) = sampled("32K", &program);
    let process = report.only();
    let mut all = Vec::new();
    for number in 0..LINES {
        let line = process.line("make", 2 + number);
        let (bytes, blocks) = (count(number) * size(number), count(number));
        all.push(errors_off(&line, "allocated_bytes", bytes));
        let chance = 1.0 - (-size(number) as f64 / 32_768.0).exp();
        let expected = (blocks as f64 * (1.0 - chance)).sqrt() * size(number) as f64 / chance.sqrt();
        assert!((0.6..1.5).contains(&(error(&line, "allocated_bytes") / expected)), "{expected}: {:?}", line.0);
        let off = (line.number("allocations") - blocks) as f64;
        assert!(off.abs() < 6.0 * expected / size(number) as f64 + 60.0, "{blocks} blocks: {:?}", line.0);
    }
    let mean = all.iter().sum::<f64>() / f64::from(LINES);
    let square = all.iter().map(|off| off * off).sum::<f64>() / f64::from(LINES);
    // Of 120 independent normal numbers.
    assert!(mean.abs() < 5.0 / f64::from(LINES).sqrt(), "{mean}: {all:?}");
    assert!((0.5..1.7).contains(&square), "{square}: {all:?}");
}

#[test]
fn root_what_is_released_takes_back_what_it_was_counted_as() {
    if !root() {
        return;
    }
    let text = "
import sys
def keep():
    return [bytes(2_000) for _ in range(20_000)]

def drop(kept):
    kept.clear()

def both():
    for _ in range(20_000):
        bytes(2_000)  # both

first = keep()  # kept
drop(first)  # dropped
second = keep()
both()
";
    for python in supported_pythons() {
        let program = script("released.py", text);
        let run = Run::json().words(["--sample", "64K"]).words([&python.path, &program.path]);
        let report = run.run().expect(0).quiet().report();
        report.check_complete();
        let process = report.only();
        let bytes = 20_000 * (2_000 + BYTES_HEAD);
        let (kept, dropped) =
            (process.line("<module>", program.line("# kept")), process.line("<module>", program.line("# dropped")));
        is_near(&kept, "increment_bytes", bytes);
        is_near(&dropped, "increment_bytes", -bytes);
        // The list and its growth are beside: large blocks, each its own size or nearly.
        assert_eq!(dropped.number("allocated_bytes"), 0, "{:?}", dropped.0);
        assert!((kept.increment() + dropped.increment()).abs() < 600_000, "{:?} {:?}", kept.0, dropped.0);
        let both = process.line("both", program.line("# both"));
        is_near(&both, "allocated_bytes", bytes);
        assert_eq!((both.increment(), both.number("live_bytes")), (0, 0), "{:?}", both.0);
        assert!(error(&both, "increment_bytes") < 1.0 && error(&both, "allocated_bytes") > 0.0, "{:?}", both.0);
    }
}

#[test]
fn root_large_blocks_are_always_sampled() {
    if !root() {
        return;
    }
    let program = script("large.py", "def take():\n    return bytearray(50_000_000)\n\nkept = [take(), take()]\n");
    let (report, _) = sampled("64K", &program);
    let line = report.only().line("take", 2);
    near_blocks(line.number("allocated_bytes"), 2 * 50_000_001);
    assert_eq!((line.number("allocations"), error(&line, "allocated_bytes")), (2, 0.0), "{:?}", line.0);
}

/// Threads draw for themselves, give blocks to each other, and are more than there are places for their own sums.
#[test]
fn root_threads_realloc_and_exact_sums() {
    if !root() {
        return;
    }
    let text = "
import ctypes, threading
library = ctypes.CDLL(None)
library.malloc.restype = library.realloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
library.malloc.argtypes = [ctypes.c_size_t]
given = [None] * 120_000  # which grows no more: its growth would be on the line that is measured

def work(first):
    for size in range(1_000, 1_100):
        block = library.malloc(size)  # taken
        given[first + size - 1_000] = library.realloc(block, 2 * size)  # resized

def give_back():
    for block in given:
        library.free(block)  # released

for turn in range(75):
    threads = [threading.Thread(target=work, args=[(turn * 16 + at) * 100]) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
give_back()
";
    let program = script("threads.py", text);
    let (report, _) = sampled("64K", &program);
    let process = report.only();
    let once: i64 = 75 * 16 * (1_000..1_100).sum::<i64>();
    is_near(&process.line("work", program.line("# taken")), "allocated_bytes", once);
    let resized = process.line("work", program.line("# resized"));
    is_near(&resized, "allocated_bytes", 2 * once);
    is_near(&resized, "freed_bytes", once);
    is_near(&resized, "increment_bytes", once);
    is_near(&process.line("give_back", program.line("# released")), "freed_bytes", 2 * once);
    // What Python and the threads take themselves is beside: some hundred bytes a thread and each element of a list.
    let (bytes, blocks, releases) =
        (sampling(&process, "allocated_bytes"), sampling(&process, "allocations"), sampling(&process, "frees"));
    assert!((3 * once..3 * once + (60 << 20)).contains(&bytes), "{once}: {}", process.0["sampling"]);
    assert!(
        (240_000..300_000).contains(&blocks) && (240_000..300_000).contains(&releases),
        "{}",
        process.0["sampling"]
    );
}

/// A fork counts in memory of its own and by chances of its own; what its parent had is not its.
#[test]
fn root_forks_are_sampled_each_for_itself() {
    if !root() {
        return;
    }
    let text = "
import os
def take():
    return [bytes(1_000) for _ in range(20_000)]  # taken

kept = take()
for _ in range(6):
    child = os.fork()
    if child == 0:
        kept.clear()
        kept = take()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(child)
";
    let program = script("forks.py", text);
    let (report, output) = sampled("64K", &program);
    let bytes = 20_000 * (1_000 + BYTES_HEAD);
    let mut found = Vec::new();
    for child in output.lines() {
        let process = report.process(child.parse().unwrap());
        let line = process.line("take", program.line("# taken"));
        is_near(&line, "increment_bytes", bytes);
        found.push(line.increment());
        assert!((20_000..22_000).contains(&sampling(&process, "allocations")), "{}", process.0["sampling"]);
    }
    found.sort_unstable();
    found.dedup();
    assert!(found.len() > 1, "the forks drew the same numbers: {found:?}");
}

/// Pages of Python's arenas too: of small objects, which no call of malloc asks for.
#[test]
fn root_arenas_are_sampled_by_the_page() {
    if !root() {
        return;
    }
    let text = "
def make():
    return [float(number) for number in range(4_000_000)]  # made

kept = make()
";
    let program = script("objects.py", text);
    let exact = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet().report();
    let truth = exact.only().line("make", program.line("# made")).increment();
    let (report, _) = sampled("256K", &program);
    let line = report.only().line("make", program.line("# made"));
    is_near(&line, "increment_bytes", truth);
    assert!(error(&line, "increment_bytes") > 1_000_000.0, "{:?}", line.0);
}

/// A marked function has its lines' executions and resident memory as they are; a peak of samples is not shown.
#[test]
fn root_marked_functions_have_estimates_with_their_errors() {
    if !root() {
        return;
    }
    let text = "
@profile
def work():
    kept = [bytes(3_000) for _ in range(10_000)]  # kept
    x = 1  # idle
    return kept

kept = work()
";
    let program = script("marked.py", text);
    let run = Run::new(["--sample", "64K"]).words([&any_python().path, &program.path]);
    let table = run.run().expect(0).quiet().stdout_text();
    assert!(table.contains("Line #    Mem usage    Increment        Error   Line Contents"), "{table}");
    assert!(table.contains("MiB  ± ") && table.contains("\nSampled: one byte in 65536 "), "{table}");
    let (report, _) = sampled("64K", &program);
    let process = report.only();
    let line = process.line("work", program.line("# kept"));
    is_near(&line, "increment_bytes", 10_000 * (3_000 + BYTES_HEAD));
    assert!(line.0["peak_bytes"].is_null(), "{:?}", line.0);
    let idle = process.line("work", program.line("# idle"));
    assert_eq!((idle.number("occurrences"), idle.increment()), (1, 0), "{:?}", idle.0);
    assert!(idle.0["standard_error"].is_null() && idle.number("mem_usage_bytes") > 30_000_000, "{:?}", idle.0);
}
