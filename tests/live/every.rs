//! Peak and Occurrences of functions that nobody marked, where these columns are asked for.

use crate::common::{Line, Python, Report, Run, Script, any_python, every_build, root, script, supported_pythons};

/// Lines whose comment is `# function: peak, occurrences` of them; peak 0: less than a page. The bytes are those asked of the C
/// allocator.
const PROGRAM: &str = "
import os, threading

def temporary():
    for round in range(5):
        size = len(bytes(10_000_000))  # temporary: 10000033, 10
    return size

def recursive(depth):
    if depth == 0:
        return len(bytes(2_000_000))  # recursive: 2000033, 1
    return recursive(depth - 1)  # recursive: 2000033, 10

def generator():
    for round in range(3):
        size = len(bytes(3_000_000))  # generator: 3000033, 3
        yield size

def several():
    sizes = [len(bytes(500_000)) for round in range(4)]  # COMPREHENSION: 500033, 5
    anonymous = lambda: len(bytes(700_000))  # <lambda>: 700033, 2
    anonymous()
    anonymous()
    return sizes

class Body:
    size = len(bytes(900_000))  # Body: 900033, 1

def passed():
    try:
        kept = bytes(800_000)  # passed: 800033, 2
        raise KeyError  # passed: 0, 2
    except KeyError:
        pass  # passed: 0, 2

temporary()
recursive(10)
list(generator())
several()
passed(); passed()
thread = threading.Thread(target=temporary)
thread.start()
thread.join()
size = len(bytes(4_000_000))  # <module>: 4000033, 1
first = last = 0  # <module>: 0, 1
os._exit(0)  # <module>: 0, 1
";

fn program() -> Script {
    script("every.py", PROGRAM)
}

fn measured(python: &Python, options: &[&str], program: &Script) -> Report {
    let report = Run::json().words(options).words([&python.path, &program.path]).run().expect(0).quiet().report();
    report.check_complete();
    report
}

/// From 3.12 on the code of a comprehension is part of the function's (PEP 709); from 3.11 on code objects know their qualified name.
fn function_of<'n>(name: &'n str, python: &Python) -> &'n str {
    match (name, python.version.0) {
        ("COMPREHENSION", 12..) => "several",
        ("COMPREHENSION", 11) => "several.<locals>.<listcomp>",
        ("COMPREHENSION", _) => "<listcomp>",
        ("<lambda>", 11..) => "several.<locals>.<lambda>",
        (other, _) => other,
    }
}

#[test]
fn root_peak_and_occurrences_of_lines_that_are_not_marked() {
    if !root() {
        return;
    }
    let program = program();
    for python in every_build() {
        let report = measured(&python, &["--columns", "+peak,occurrences"], &program);
        let process = report.only();
        assert!(process.marked().is_empty());
        let mut checked = 0;
        for (index, text) in PROGRAM.lines().skip(1).enumerate() {
            let Some((_, comment)) = text.split_once("  # ") else { continue };
            let (name, counts) = comment.split_once(": ").unwrap();
            let (peak, occurrences) = counts.split_once(", ").unwrap();
            let line = process.line(function_of(name, &python), u32::try_from(index + 1).unwrap());
            let told = format!("line {} on {}: {:#}", index + 1, python.version_text(), line.0);
            let inlined = name == "COMPREHENSION" && python.version.0 >= 12;
            let times = if inlined { 1 } else { occurrences.parse::<i64>().unwrap() };
            assert_eq!(line.number("occurrences"), times, "{told}");
            let peak: i64 = peak.parse().unwrap();
            // Beside the block, small objects may be the first on pages of an arena. Of free-threaded builds all is pages.
            let expected = if peak == 0 { 0 } else { peak + python.around_an_object() };
            let beside = line.number("peak_bytes") - expected;
            assert!(python.free_threaded || [0, 4096, 8192].contains(&beside), "{beside} beside the block: {told}");
            checked += 1;
        }
        assert_eq!(checked, 13);
        // Whatever the program did, its lines were told of: every line that moved memory while it ran has its executions. Without a GIL a
        // thread makes its own copy of the bytecode where it enters a function, on the line of the `def`, before the first that is executed.
        let entered = |line: &Line<'_>| python.free_threaded && line.0["source"].as_str().unwrap().starts_with("def ");
        let without = |line: &Line<'_>| line.0.get("occurrences").is_none() && !entered(line);
        let without = process.lines().iter().filter(|(_, line)| without(line)).count();
        assert_eq!(without, 0, "on {}: {report}", python.version_text());
    }
}

/// The bytes of a line are those without the columns; pages of arenas, which small objects of the interpreter may be the first to touch,
/// are whole.
#[test]
fn root_asking_for_peak_changes_no_line_s_bytes() {
    if !root() {
        return;
    }
    let program = program();
    for python in supported_pythons() {
        let bare = measured(&python, &[], &program);
        let report = measured(&python, &["--columns", "peak"], &program);
        let names = ["increment_bytes", "allocated_bytes", "freed_bytes", "self_bytes"];
        let mut compared = 0;
        for (function, line) in bare.only().lines() {
            let number = u32::try_from(line.number("line")).unwrap();
            let same = report.only().line(function, number);
            for name in names {
                let change = same.number(name) - line.number(name);
                let told = format!("{name} of line {number} of {function} on {}", python.version_text());
                // What an import takes is not the same each time: once in some 130 runs 2,048 bytes less on 3.10; why is not known.
                let is_import = line.source().is_some_and(|text| text.starts_with("import "));
                assert!(is_import || change % 4096 == 0, "{change} bytes more {told}");
                assert!(change.abs() <= 32 * 4096, "{change} bytes more {told}");
            }
            compared += 1;
            assert!(line.0.get("peak_bytes").is_none());
        }
        assert!(compared > 8, "{bare}");
    }
}

/// The table is that of a program without marks; its lines are all that ran.
#[test]
fn root_the_table_has_every_line_that_ran() {
    if !root() {
        return;
    }
    let program = program();
    let ran = Run::new(["--columns", "occurrences,peak"]).words([&any_python().path, &program.path]).run();
    let text = ran.expect(0).quiet().stdout_text();
    for row in [
        "     4           12    0.000 MiB       for round in range(5):",
        "     5           10    9.537 MiB           size = len(bytes(10_000_000))",
        "     6            2    0.000 MiB       return size",
    ] {
        assert!(text.contains(row), "{text}");
    }
    let one = Run::new(["--columns", "peak", "--top", "1"]).words([&any_python().path, &program.path]).run();
    assert_eq!(one.expect(0).quiet().stdout_text().matches("Filename: ").count(), 1);
}

/// Beside a marked function, others are measured and not marked.
#[test]
fn root_marks_stay_what_they_are() {
    if !root() {
        return;
    }
    let program = script(
        "some_marks.py",
        "
def plain():
    return len(bytes(1_000_000))  # plain

@profile
def first():
    return plain()  # first

def later():
    return plain()  # later

first()
later()
later = profile(later)
later()
",
    );
    for python in supported_pythons() {
        let report = measured(&python, &["--columns", "+peak"], &program);
        let process = report.only();
        assert_eq!(process.marked(), ["first", "later"], "{}", python.version_text());
        for (function, times) in [("plain", 3), ("first", 1), ("later", 2)] {
            let line = process.line(function, program.line(&format!("# {function}")));
            assert_eq!(line.number("occurrences"), times, "{function} on {}", python.version_text());
        }
    }
}

/// What runs of other files is measured when it is asked for, and not otherwise.
#[test]
fn root_the_files_asked_for_are_measured() {
    if !root() {
        return;
    }
    let program = script("uses_json.py", "import json\njson.loads('[' + '1,' * 200_000 + '1]')\n");
    let python = any_python();
    for (options, in_library) in [
        (&["--columns", "peak"][..], false),
        (&["--columns", "peak", "--include", "**/json/*.py"], true),
        (&["--columns", "peak", "--all-files"], true),
    ] {
        let report = measured(&python, options, &program);
        let lines = report.only().lines();
        let decoding = lines.iter().filter(|(name, _)| name.ends_with("raw_decode"));
        let found =
            decoding.filter(|(_, line)| line.number("occurrences") == 1 && line.number("peak_bytes") > 0).count();
        assert_eq!(found > 0, in_library, "{options:?}: {report}");
    }
}

/// A command that pip made for a package runs code of that package, which is nobody's own: it is measured when asked for.
#[test]
fn root_a_package_that_is_run_by_its_command() {
    if !root() {
        return;
    }
    let python = any_python();
    let directory = tempfile::tempdir().unwrap();
    let package = directory.path().join("lib/python3/site-packages/growing");
    std::fs::create_dir_all(&package).unwrap();
    let text = "def main():\n    for size in (1_000_000, 2_000_000):\n        kept = bytes(size)\n";
    std::fs::write(package.join("tool.py"), text).unwrap();
    std::fs::write(package.join("__init__.py"), "").unwrap();
    let command = directory.path().join("growing");
    std::fs::write(&command, "import sys\nfrom growing.tool import main\nsys.exit(main())\n").unwrap();
    for (options, is_asked_for) in
        [(&[][..], false), (&["--include", "**/growing/*.py"], true), (&["--all-files"], true)]
    {
        let run = Run::json().words(["--columns", "peak,occurrences"]).words(options);
        let run = run.env("PYTHONPATH", package.parent().unwrap());
        let report = run.words([&python.path, &command]).run().expect(0).quiet().report();
        report.check_complete();
        let lines = report.only().lines();
        let taking = lines.iter().filter(|(name, line)| *name == "main" && line.number("line") == 3);
        let found: Vec<_> =
            taking.map(|(_, line)| (line.number("occurrences"), line.number("peak_bytes") >= 2_000_033)).collect();
        assert_eq!(found, if is_asked_for { &[(2, true)][..] } else { &[] }, "{options:?}: {report}");
    }
}

/// A trace function of the program's own stays, and sees what it saw.
#[test]
fn root_a_trace_function_of_the_program_is_left_alone() {
    if !root() {
        return;
    }
    let text = "
import sys
seen = []
def tracer(frame, event, argument):
    seen.append((frame.f_code.co_name, frame.f_lineno, event))
    return tracer
def inner():
    size = len(bytes(1_000_000))
    return size
def outer():
    return inner()
def both():
    outer()
    sys.settrace(tracer)
    outer()
    sys.settrace(None)
    return outer()
both()
print(seen, sys.gettrace())
";
    let program = script("traces.py", text);
    for python in supported_pythons() {
        let bare = python.bare(&[program.path.to_str().unwrap()]);
        let ran =
            Run::new(["--columns", "peak", "--top", "0"]).words([&python.path, &program.path]).run().expect(0).quiet();
        assert!(ran.stdout_text().starts_with(&bare), "{}: {}", python.version_text(), ran.stdout_text());
        let report =
            measured(&python, &["--columns", "peak"], &script("traces_quietly.py", &text.replace("print(", "(")));
        // Up to 3.11 the call that it watched gives no line events.
        let times = if python.version.0 >= 12 { 3 } else { 2 };
        assert_eq!(report.only().line("inner", 8).number("occurrences"), times, "{}", python.version_text());
    }
}
