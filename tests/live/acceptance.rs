//! The two programs the tool exists for, on every Python of this machine.

use std::path::{Path, PathBuf};

use crate::common::{Python, Run, every_build, root};

const MIB: f64 = 1_048_576.0;
/// What lines 4 and 5 of `copy.py` take, in MiB, and how far off they may be.
const COPIED: f64 = 9.77;
const TOLERANCE: f64 = 0.01;
/// Where the memory is mimalloc's, it counts by the page, where it was not touched before.
const TOLERANCE_OF_PAGES: f64 = 0.25;
/// How far the first row may be from the bare interpreter's own size. Measured are 0.2 to 0.7 MiB up to 3.13, and 1.0 to 1.55 on static
/// builds of 3.14 and 3.15, most of it pages of the interpreter's own file, which come in groups. An in-process profiler makes it 13.
const FIRST_ROW: f64 = 2.0;

const ITS_OWN_SIZE: &str =
    "print(next(line for line in open('/proc/self/smaps_rollup') if line.startswith('Rss')).split()[1])";

/// Up to 3.9 the end of a `with` has the line of its last statement in the code's own table (3.10, bpo-42246): there the file's buffer
/// of 4096 bytes is released.
fn with_ends_on_its_last_line(python: &Python) -> bool {
    python.version.0 <= 9
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name).canonicalize().unwrap()
}

/// A row of a table in the default layout: line number, the two cells in MiB where filled, the source.
struct Row {
    line: u32,
    cells: Option<(f64, f64)>,
    source: String,
}

fn row(text: &str) -> Row {
    let text = format!("{text:<36}");
    assert!(text.is_char_boundary(35), "{text}");
    let cell =
        |from: usize, to: usize| text[from..to].trim().strip_suffix(" MiB").map(|number| number.parse().unwrap());
    Row {
        line: text[..6].trim().parse().unwrap(),
        cells: cell(6, 19).zip(cell(19, 32)),
        source: text[32..].trim().to_owned(),
    }
}

fn table(python: &Python, example: &Path) -> Vec<Row> {
    let ran = Run::new([&python.path, example]).run().expect(0).quiet();
    let text = ran.stdout_text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "Content length: 10240000, content to write length 10238976");
    assert!(
        lines[1].starts_with("Filename: ") && lines[1].ends_with(example.file_name().unwrap().to_str().unwrap()),
        "{text}"
    );
    assert_eq!(lines[2..5], ["", "Line #    Mem usage    Increment   Line Contents", &"=".repeat(48)], "{text}");
    assert_eq!(lines[16..], ["", ""], "{text}");
    lines[5..16].iter().map(|line| row(line)).collect()
}

fn check_table(python: &Python, name: &str, fifth: f64) {
    let file = example(name);
    let rows = table(python, &file);
    let source = std::fs::read_to_string(&file).unwrap();
    for ((row, number), line) in rows.iter().zip(1..).zip(source.lines()) {
        assert_eq!((row.line, row.source.as_str()), (number, line.trim()));
        assert_eq!(
            row.cells.is_some(),
            [1, 3, 4, 5, 7, 8, 10, 11].contains(&number),
            "{name} line {number} on {python:?}"
        );
    }
    let increment = |line: usize| rows[line - 1].cells.unwrap().1;
    let tolerance = if python.free_threaded { TOLERANCE_OF_PAGES } else { TOLERANCE };
    assert!((increment(4) - COPIED).abs() <= tolerance, "line 4: {} MiB on {python:?}", increment(4));
    assert!((increment(5) - fifth).abs() <= tolerance, "line 5: {} MiB on {python:?}", increment(5));
    if fifth == 0.0 && !python.free_threaded {
        let released = if with_ends_on_its_last_line(python) { -0.004 } else { 0.0 };
        assert!([0.0, released].contains(&increment(5)), "line 5: {} MiB on {python:?}", increment(5));
    }
    let (first, second) = rows[0].cells.unwrap();
    assert_eq!(first, second);
    // As long as the block lasts the file is open; its end is no execution of line 3.
    let resident = |line: usize| rows[line - 1].cells.unwrap().0;
    assert!((resident(4) - resident(3) - COPIED).abs() <= 0.5, "lines 3 and 4 on {python:?}");
    let bare: f64 = python.bare(&["-c", ITS_OWN_SIZE]).trim().parse::<f64>().unwrap() * 1024.0 / MIB;
    println!("{name} on {}: first row {first:.3} MiB, bare {bare:.3} MiB", python.version_text());
    assert!((first - bare).abs() <= FIRST_ROW, "the first row says {first} MiB, the bare {python:?} has {bare} MiB");
}

#[test]
fn root_copy_py_shows_both_copies_on_every_python() {
    if root() {
        every_build().iter().for_each(|python| check_table(python, "copy.py", COPIED));
    }
}

#[test]
fn root_memoryview_py_shows_no_second_copy_on_every_python() {
    if root() {
        every_build().iter().for_each(|python| check_table(python, "memoryview.py", 0.0));
    }
}

#[test]
fn root_three_runs_in_a_row_give_the_same_bytes() {
    if !root() {
        return;
    }
    let file = example("copy.py");
    for python in every_build().into_iter().filter(|python| !python.free_threaded) {
        let once = || {
            let report = Run::json().words([&python.path, &file]).run().expect(0).quiet().report();
            report.check_complete();
            let process = report.only();
            assert_eq!(process.0["python"], python.version_text());
            assert_eq!(process.marked(), ["read_random"]);
            assert_eq!(process.number("exit_status"), 0);
            [4, 5].map(|line| process.line("read_random", line).increment())
        };
        let first = once();
        assert_eq!((once(), once()), (first, first), "{python:?}");
        // The bytes asked for and what a `bytes` object has beside them (Objects/bytesobject.c).
        let read = 1024 * 10000 + 33 + python.around_an_object();
        let page = if python.debug { 4096 } else { 0 }; // what small objects have around them takes one more here and there
        assert!([read, read + page].contains(&first[0]), "line 4: {} bytes on {python:?}", first[0]);
        let released = if with_ends_on_its_last_line(&python) { 4096 } else { 0 };
        let copied = 1024 * 9999 + 33 + python.around_an_object();
        assert!(
            [copied, copied - released, copied + page].contains(&first[1]),
            "line 5: {} bytes on {python:?}",
            first[1]
        );
    }
}
