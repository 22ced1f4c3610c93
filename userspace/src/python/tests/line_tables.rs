//! The decoders against each interpreter's own answer, for every instruction of hundreds of files of its standard library.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::super::layout::Layout;
use super::super::line_table::{last_line, line_of, lines};
use super::interpreters::{Installed, supported};

/// What one interpreter's files came to.
#[derive(Default)]
struct Count {
    code_objects: usize,
    instructions: usize,
    mismatches: Vec<String>,
}

#[test]
fn every_instruction_has_the_line_its_interpreter_gives() {
    std::thread::scope(|scope| {
        for (python, layout) in supported() {
            scope.spawn(move || compare(python, layout));
        }
    });
}

fn compare(python: &Installed, layout: &Layout) {
    // All of the library takes minutes.
    let most = if std::env::var("RMPROF_STDLIB").is_ok_and(|which| which == "all") { 1 << 20 } else { 340 };
    let mut child = Command::new(&python.program)
        .args(["-W", "ignore", "-c", include_str!("line_tables.py"), &most.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut count = Count::default();
    let mut files = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        match line.strip_prefix("files ") {
            Some(number) => files = number.parse().unwrap(),
            None => compare_code(layout, &line, &mut count),
        }
    }
    assert!(child.wait().unwrap().success());
    let Count { code_objects, instructions, mismatches } = count;
    let shown = format!("{:?} {}", python.version, python.program.display());
    eprintln!(
        "{shown}: {files} files, {code_objects} code objects, {instructions} instructions, {} mismatches",
        mismatches.len()
    );
    assert!(mismatches.is_empty(), "{shown}: {:#?}", &mismatches[..mismatches.len().min(10)]);
    assert!(files >= 300, "{shown}: only {files} files");
}

fn compare_code(layout: &Layout, line: &str, count: &mut Count) {
    let kind = layout.line_table_kind;
    let fields: Vec<&str> = line.split(' ').collect();
    let &[first_line, table, runs, length, own_lines, last] = fields.as_slice() else { panic!("{line}") };
    let first_line = first_line.parse().unwrap();
    let table = from_hex(table.trim_start_matches('-'));
    let mut runs: Vec<(i32, i64)> = runs.split(',').map(pair).collect();
    let length: u32 = length.parse().unwrap();
    runs.push((length.try_into().unwrap(), -1));
    count.code_objects += 1;
    for run in runs.windows(2) {
        // Line 0, of a module's first instruction, is none that a file has.
        let wanted = u32::try_from(run[0].1).ok().filter(|line| *line > 0);
        for position in (run[0].0..run[1].0).step_by(2) {
            count.instructions += 1;
            let ours = line_of(kind, &table, first_line, position);
            if ours != wanted {
                count.mismatches.push(format!("{position}: {ours:?}, not {wanted:?}: {line}"));
            }
        }
    }
    let wanted: Vec<u32> = own_lines.split(',').filter_map(|line| line.parse().ok()).collect();
    let ours = lines(kind, &table, first_line, Some(length));
    if ours != wanted {
        count.mismatches.push(format!("lines {ours:?}, not {wanted:?}: {line}"));
    }
    // Where the interpreter tells end lines (3.11 and later), the last is the same.
    let last: i64 = last.parse().unwrap();
    let ours = last_line(kind, &table, first_line, Some(length));
    if last > 0 && i64::from(ours) != last.max(first_line.into()) {
        count.mismatches.push(format!("last line {ours}, not {last}: {line}"));
    }
}

fn pair(text: &str) -> (i32, i64) {
    let (offset, line) = text.split_once(':').unwrap();
    (offset.parse().unwrap(), line.parse().unwrap())
}

fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap()).collect()
}
