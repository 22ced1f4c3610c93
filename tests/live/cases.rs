//! The table of cases (tests/programs/cases.py): every shape of code, every Python, every line's bytes known beforehand.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Python, Report, Run, every_build, near, root, supported_pythons};

/// What one unit of a `#: N` comment stands for.
const UNIT: i64 = 100_000;
/// What the interpreter may take beside on a line (an arena's page, a list's table), far below half a unit.
const BESIDE: i64 = 40_000;

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs/cases.py");

/// Line → bytes, from the program's own comments.
fn expected() -> BTreeMap<u32, i64> {
    let source = std::fs::read_to_string(PROGRAM).unwrap();
    let lines = source.lines().zip(1..).filter_map(|(text, number)| {
        let (_, units) = text.rsplit_once("#: ")?;
        Some((number, units.parse::<i64>().ok()? * UNIT))
    });
    let found: BTreeMap<u32, i64> = lines.collect();
    assert!(found.len() >= 75, "only {} lines of the program say their bytes", found.len());
    found
}

fn run(python: &Python, arguments: &[&str]) -> Report {
    let ran = Run::json()
        .words([python.path.to_str().unwrap(), "-W", "ignore", PROGRAM])
        .words(arguments)
        .run()
        .expect(0)
        .quiet();
    let report = ran.report();
    report.check_complete();
    report
}

/// Increments by line of the functions that `take` wants.
fn increments(report: &Report, take: impl Fn(&serde_json::Value) -> bool) -> BTreeMap<u32, i64> {
    let process = report.only();
    let functions = process.0["functions"].as_array().unwrap();
    let mut found = BTreeMap::new();
    for function in
        functions.iter().filter(|function| Path::new(function["filename"].as_str().unwrap()).ends_with("cases.py"))
    {
        if take(function) {
            for line in function["lines"].as_array().unwrap() {
                let number = u32::try_from(line["line"].as_u64().unwrap()).unwrap();
                *found.entry(number).or_insert(0) += line["increment_bytes"].as_i64().unwrap();
            }
        }
    }
    found
}

fn compare(python: &Python, found: &BTreeMap<u32, i64>) {
    for (line, bytes) in expected() {
        let got = found.get(&line).copied().unwrap_or(0);
        assert!((got - bytes).abs() <= BESIDE, "{}: line {line} has {got} bytes, not {bytes}", python.version_text());
    }
}

#[test]
fn root_cases_marked() {
    if !root() {
        return;
    }
    // What mimalloc uses again counts nowhere, so that the bytes of a free-threaded build are not known beforehand.
    for python in every_build().into_iter().filter(|python| !python.free_threaded) {
        let report = run(&python, &[]);
        compare(&python, &increments(&report, |function| function["marked"] == true));
    }
}

#[test]
fn root_cases_unmarked() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        let report = run(&python, &["unmarked"]);
        // Functions inside the cases' own stand on lines of their own; comprehensions share their line.
        let inner = ["<listcomp>", "<dictcomp>", "<genexpr>", "<module>"];
        compare(&python, &increments(&report, |function| !inner.contains(&function["name"].as_str().unwrap())));
    }
}

/// Occurrences, peaks and the order of tables, on lines where every Python counts alike.
#[test]
fn root_cases_occurrences_and_peak() {
    if !root() {
        return;
    }
    let source = std::fs::read_to_string(PROGRAM).unwrap();
    let at = |needle: &str| -> u32 {
        let place = source.lines().position(|line| line.contains(needle)).unwrap_or_else(|| panic!("no {needle}"));
        u32::try_from(place + 1).unwrap()
    };
    for python in supported_pythons() {
        let report = run(&python, &[]);
        let process = report.only();
        let line = |function: &str, needle: &str| process.line(function, at(needle));
        assert_eq!(line("loops", "kept.append(bytearray(size * UNIT))").number("occurrences"), 4);
        assert_eq!(line("recursion", "mine = bytearray(2 * UNIT)").number("occurrences"), 4);
        assert_eq!(line("in_thread", "part = bytearray(6 * UNIT)").number("occurrences"), 2);
        assert_eq!(line("reallocating", "buffer.extend(bytes(UNIT))").number("occurrences"), 10);
        // A temporary that is gone when its line ends is in the peak and not in the increment.
        let sum = line("comprehensions", "total = sum(len(bytearray(3 * UNIT))");
        near(sum.increment(), 0, BESIDE);
        near(sum.number("peak_bytes"), 3 * UNIT, 2 * BESIDE);
        let grow = if python.version.0 >= 11 { "Account.grow" } else { "grow" }; // 3.11 brought co_qualname
        near(line(grow, "self.memory = bytearray((units + 1) * UNIT)").number("peak_bytes"), 16 * UNIT, BESIDE);
        let marked = process.marked();
        assert_eq!(marked[..4], ["straight", "loops", "with_statement", "try_finally"], "{}", python.version_text());
    }
}
