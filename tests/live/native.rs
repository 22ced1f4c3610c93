//! Native functions: in which of them a line's bytes were asked for, and with which a thread without Python began. The functions are
//! those of a library that is compiled here, so that their names are known.

use std::path::PathBuf;
use std::process::Command;

use crate::common::{Process, Report, Run, Script, any_python, near_blocks, root, script, supported_pythons};

/// The library, beside a program.
pub fn library_beside(program: &Script) -> PathBuf {
    let library = program.directory().join("libnative.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs/native.c");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let made = Command::new(clang)
        .args(["-O1", "-shared", "-fPIC", "-fno-optimize-sibling-calls", "-pthread", source, "-o"])
        .arg(&library)
        .status()
        .unwrap();
    assert!(made.success());
    library
}

const HEAD: &str = "
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
size, address = ctypes.c_size_t, ctypes.c_void_p
for name in ('grab_block', 'grab_zeroed', 'grab_aligned', 'grab_mapping', 'grab_through_wrapper', 'grab_both', 'grab_again'):
    getattr(library, name).restype, getattr(library, name).argtypes = address, [size]
library.grab_again.argtypes = [address, size]
library.touch_mapping.argtypes = [address, size]
library.work_in_threads.argtypes = [size]
";

const GRABS: &str = "
def grab():
    block = library.grab_block(1_000_000)  # malloc
    library.grab_again(block, 3_000_000)  # realloc
    library.grab_zeroed(2_000_000)  # calloc
    library.grab_aligned(1_500_000)  # posix_memalign
    library.grab_mapping(4_096_000)  # mmap
    library.grab_through_wrapper(500_000)  # wrapper
    library.grab_both(300_000)  # both
    for number in range(1000):
        library.grab_block(1000)  # many
grab()
";

/// Marker of the line, functions with their bytes.
const EXPECTED: &[(&str, &[(&str, i64)])] = &[
    ("# malloc", &[("grab_block", 1_000_000)]),
    ("# realloc", &[("grab_again", 3_000_000)]),
    ("# calloc", &[("grab_zeroed", 2_000_000)]),
    ("# posix_memalign", &[("grab_aligned", 1_500_000)]),
    ("# mmap", &[("grab_mapping", 4_096_000)]),
    ("# wrapper", &[("grab_through_wrapper", 500_000)]),
    ("# both", &[("grab_elsewhere_through_wrapper", 600_000), ("grab_through_wrapper", 300_000)]),
    ("# many", &[("grab_block", 1_000_000)]),
];

/// The functions of our library on a line, most bytes first.
#[track_caller]
fn ours(process: &Process<'_>, function: &str, line: u32) -> Vec<(String, i64)> {
    let found = process.line(function, line);
    let functions = found.0["native"].as_array().unwrap_or_else(|| panic!("no native functions in {}", found.0));
    let of = |native: &serde_json::Value| {
        (native["function"].as_str().unwrap().to_owned(), native["bytes"].as_i64().unwrap())
    };
    functions.iter().filter(|native| native["module"] == "libnative.so").map(of).collect()
}

#[track_caller]
fn check_grabs(report: &Report, program: &Script, what: &str) {
    for (marker, functions) in EXPECTED {
        let found = ours(&report.only(), "grab", program.line(marker));
        let expected: Vec<(String, i64)> = functions.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        assert_eq!(found, expected, "{what}: {marker}");
    }
    report.check_complete();
}

#[test]
fn root_bytes_have_the_native_function_that_asked() {
    if !root() {
        return;
    }
    let program = script("grabs.py", &format!("{HEAD}{GRABS}"));
    let library = library_beside(&program);
    for (index, python) in supported_pythons().into_iter().enumerate() {
        // All counts inside the program; every other Python by probes as well, the others object by object.
        for option in ["--mode=heap", ["--no-preload", "--mode=objects"][index % 2]] {
            let run = Run::json().words([option, "--columns", "+native"]);
            let report = run.words([&python.path, &program.path, &library]).run().expect(0).quiet().report();
            check_grabs(&report, &program, &format!("{} {option}", python.path.display()));
        }
    }
}

#[test]
fn root_a_fork_s_bytes_have_theirs_too() {
    if !root() {
        return;
    }
    let program = script(
        "forks.py",
        &format!(
            "{HEAD}
import os
if not os.fork():
    library.grab_block(5_000_000)  # child
    os._exit(0)
os.wait()
library.grab_zeroed(6_000_000)  # parent
"
        ),
    );
    let library = library_beside(&program);
    for option in ["--mode=heap", "--no-preload"] {
        let run = Run::json().words([option, "--columns", "+native"]);
        let report = run.words([&any_python().path, &program.path, &library]).run().expect(0).quiet().report();
        let [parent, child] = report.processes()[..] else { panic!("{report}") };
        let at = |process, marker| ours(&process, "<module>", program.line(marker));
        assert_eq!(at(parent, "# parent"), [("grab_zeroed".to_owned(), 6_000_000)], "{option}");
        assert_eq!(at(child, "# child"), [("grab_block".to_owned(), 5_000_000)], "{option}");
    }
}

/// Nothing is looked for when nobody asks.
#[test]
fn root_native_functions_are_asked_for() {
    if !root() {
        return;
    }
    let program = script("grabs.py", &format!("{HEAD}{GRABS}"));
    let library = library_beside(&program);
    let report = Run::json().words([&any_python().path, &program.path, &library]).run().expect(0).quiet().report();
    assert!(report.only().lines().iter().all(|(_, line)| line.0.get("native").is_none()));
}

#[test]
fn root_touched_pages_have_the_native_function_that_touched_them() {
    if !root() {
        return;
    }
    let program = script(
        "touches.py",
        &format!(
            "{HEAD}
def touch():
    memory = library.grab_mapping(8_192_000)
    library.touch_mapping(memory, 8_192_000)  # touched
touch()
"
        ),
    );
    let library = library_beside(&program);
    for python in supported_pythons() {
        let run = Run::json().words(["--mode=pages", "--columns", "+native"]);
        let report = run.words([&python.path, &program.path, &library]).run().expect(0).quiet().report();
        let found = ours(&report.only(), "touch", program.line("# touched"));
        assert_eq!(found.first(), Some(&("touch_mapping".to_owned(), 8_192_000)), "{}", python.path.display());
    }
}

#[test]
fn root_the_column_stands_in_the_table() {
    if !root() {
        return;
    }
    let program = script("grabs.py", &format!("{HEAD}{GRABS}"));
    let library = library_beside(&program);
    let run = Run::new(["--columns", "increment,native"]);
    let text = run.words([&any_python().path, &program.path, &library]).run().expect(0).quiet().stdout_text();
    let row = text.lines().find(|line| line.contains("# calloc")).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[1..4], ["1.907", "MiB", "grab_zeroed"], "{text}");
}

#[test]
fn root_threads_without_python_are_named_by_their_function() {
    if !root() {
        return;
    }
    let program =
        script("threads.py", &format!("{HEAD}\nlibrary.work_in_threads(700_000)\nprint('done', flush=True)\n"));
    let library = library_beside(&program);
    for python in supported_pythons() {
        for option in ["--mode=heap", "--no-preload"] {
            let report = Run::json()
                .word(option)
                .words([&python.path, &program.path, &library])
                .run()
                .expect(0)
                .quiet()
                .report();
            let process = report.only();
            near_blocks(process.other("no Python frame: thread worker_of_native_code"), 1_400_000);
            near_blocks(process.other("no Python frame: thread other_worker_of_native_code"), 700_000);
            report.check_complete();
        }
    }
}
