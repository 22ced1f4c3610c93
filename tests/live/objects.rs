//! Objects mode: each object of Python's own allocator is a block.

use crate::common::{Run, any_python, every_build, root, script};

/// Small objects of known sizes.
const PROGRAM: &str = "
import sys

class Slots:
    __slots__ = ('a', 'b')

def take():
    kept = [None] * 1000
    for number in range(1000):
        kept[number] = 1e9 + number  # floats
    for number in range(1000):
        kept[number] = Slots()  # instances
    for number in range(1000):
        kept[number] = 'x' * 50 + str(number + 1000)  # texts
    del kept  # released

take()
print(sys.getsizeof(1e9), sys.getsizeof(Slots()), sys.getsizeof('x' * 54))
";

#[test]
fn root_every_object_counts_by_its_bytes() {
    if !root() {
        return;
    }
    let program = script("objects.py", PROGRAM);
    for python in every_build().into_iter().filter(|python| !python.free_threaded) {
        let run = Run::json().words(["--mode", "objects"]).words([&python.path, &program.path]);
        let ran = run.run().expect(0).quiet();
        let text = ran.stdout_text();
        let sizes: Vec<i64> = text.split_whitespace().map(|size| size.parse().unwrap()).collect();
        let [float, instance, string] = sizes[..] else { panic!("{ran}") };
        let report = ran.report();
        report.check_complete();
        assert_eq!(report.0["tool"]["mode"], "objects");
        assert_eq!(report.0["tool"]["environment"][0], "PYTHONMALLOC=malloc");
        let process = report.only();
        let line = |marker| process.line("take", program.line(marker));
        let what = python.path.display();
        // The first time round the interpreter keeps some bytes for itself (3.12: 91 of a name), never one for each object.
        let exactly =
            |found: i64, expected: i64| assert!((0..256).contains(&(found - expected)), "{found}: {expected}, {what}");
        // A float may come from the list of free ones (100 of them), and what a line drops was another's.
        let floats = line("# floats").increment();
        assert!((900 * float..1000 * float + 256).contains(&floats), "{floats}: {what}");
        exactly(line("# instances").number("allocated_bytes"), 1000 * instance);
        exactly(line("# instances").number("live_bytes"), 0); // the next line dropped them
        exactly(line("# texts").increment(), 1000 * (string - instance));
        // The list itself goes to a list of free ones, its 1000 places do not.
        exactly(-line("# released").increment(), 1000 * (string + 8));
    }
}

#[test]
fn root_a_python_that_does_not_heed_it_is_told_of() {
    if !root() {
        return;
    }
    let program = script("objects.py", "kept = [str(number) for number in range(100_000)]\n");
    let run = Run::json().words(["--mode", "objects"]).word(&any_python().path).word("-E").word(&program.path);
    let said = run.run().expect(0).stderr_text();
    assert!(said.contains("did not heed PYTHONMALLOC=malloc"), "{said}");
}

/// It has mimalloc alone, and would not start with another allocator asked for.
#[test]
fn root_a_free_threaded_build_is_measured_as_in_heap_mode_and_told_of() {
    if !root() {
        return;
    }
    let program =
        script("objects.py", "import os\nkept = b'x' * 10_000_000  # taken\nprint(repr(os.environ['PYTHONMALLOC']))\n");
    for python in every_build().into_iter().filter(|python| python.free_threaded) {
        let ran = Run::json().words(["--mode", "objects"]).words([&python.path, &program.path]).run().expect(0);
        assert!(ran.stderr_text().contains("its Python is a free-threaded build"), "{ran}");
        assert!(ran.stderr_text().contains("hint: "), "{ran}");
        assert_eq!(ran.stdout_text().lines().next(), Some("''"), "{ran}");
        let report = ran.report();
        report.check_complete();
        assert!(report.0["tool"]["environment"].is_null(), "it does not hold for this program");
        let taken = report.only().line("<module>", program.line("# taken")).increment();
        assert!((9_800_000..10_200_000).contains(&taken), "{taken}: {python:?}");
    }
}

/// Only what mimalloc reserved counts where it is touched: what stands above it in the address space counted too, once.
#[test]
fn root_pages_of_others_than_mimalloc_do_not_count_where_they_are_touched() {
    if !root() {
        return;
    }
    let text = "
import mmap

def take():
    mapped = mmap.mmap(-1, 20_000_000)  # mapped
    for at in range(0, 20_000_000, 4096):
        mapped[at] = 1  # touched
    return mapped

kept = take()
text = b'x' * 4_000_000  # text
";
    let program = script("pages.py", text);
    for python in every_build().into_iter().filter(|python| python.free_threaded) {
        for options in [&[][..], &["--no-preload"]] {
            let run = Run::json().words(options).words([&python.path, &program.path]);
            let report = run.run().expect(0).quiet().report();
            report.check_complete();
            let process = report.only();
            let mapped = process.line("take", program.line("# mapped")).increment();
            let touched = process.find("take", program.line("# touched")).map_or(0, |line| line.increment());
            let text = process.line("<module>", program.line("# text")).increment();
            assert!((20_000_000..20_200_000).contains(&mapped), "{mapped}: {python:?}");
            assert!(touched.abs() < 100_000, "{touched}: {python:?}");
            assert!((3_700_000..4_200_000).contains(&text), "{text}: {python:?}");
        }
    }
}

#[test]
fn root_the_table_says_what_was_set() {
    if !root() {
        return;
    }
    let program = script("objects.py", "kept = [bytearray(1000) for _ in range(1000)]\n");
    let ran = Run::new(["--mode", "objects"]).words([&any_python().path, &program.path]).run().expect(0).quiet();
    let last = ran.stdout_text().lines().last().map(str::to_owned);
    assert_eq!(last.as_deref(), Some("Measured with PYTHONMALLOC=malloc in the program's environment."), "{ran}");
}
