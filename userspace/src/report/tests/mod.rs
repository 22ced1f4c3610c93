//! Whole outputs of the formats, over reports made by hand.

use std::sync::Arc;

use super::model::*;
use super::*;

mod checks;
mod formats;
mod json;
mod table;

/// Bytes of a size in MiB.
fn mib(size: f64) -> i64 {
    (size * f64::from(1 << 20)).round() as i64
}

/// A measured line: number, memory usage and increment in MiB.
fn line(line: u32, usage: f64, increment: f64) -> Line {
    Line {
        line,
        mem_usage_bytes: Some(mib(usage) as u64),
        increment_bytes: mib(increment),
        self_bytes: mib(increment),
        ..Line::default()
    }
}

/// An unmarked function of a text, with code on the measured lines alone.
fn function(filename: &str, name: &str, first_line: u32, text: &str, lines: Vec<Line>) -> Function {
    Function {
        filename: filename.into(),
        name: name.into(),
        qualified_name: name.into(),
        first_line,
        own_file: is_own_file(filename),
        moved_bytes: lines.iter().map(|line| line.increment_bytes.unsigned_abs()).sum(),
        own_lines: lines.iter().map(|line| line.line).collect(),
        lines,
        source: (!text.is_empty()).then(|| Arc::new(text.lines().map(str::to_owned).collect())),
        ..Function::default()
    }
}

fn process(functions: Vec<Function>) -> ProcessReport {
    ProcessReport {
        pid: 1234,
        parent_pid: 1,
        command: vec!["python".into(), "a.py".into()],
        python: Some("3.11.7".into()),
        net_bytes: functions.iter().flat_map(|f| &f.lines).map(|line| line.self_bytes).sum(),
        functions,
        ..ProcessReport::default()
    }
}

fn report(processes: Vec<ProcessReport>) -> Report {
    let tool = Tool { version: "0.1.0".into(), mode: "heap".into(), kernel: "6.18.44".into(), environment: Vec::new() };
    Report { tool, processes, ..Report::default() }
}

/// What a format writes.
fn written(report: &Report, format: &str, options: &Options) -> String {
    let mut out = Vec::new();
    write(report, Format::by_name(format).unwrap(), options, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The table of a report, checked for what holds of every line.
fn table_of(report: &Report, options: &Options) -> String {
    let text = written(report, "table", options);
    for line in text.lines() {
        assert_eq!(line, line.trim_end(), "trailing space");
        assert!(!line.contains(|c: char| c.is_control() && c != '\t'), "{line:?}");
    }
    text
}
