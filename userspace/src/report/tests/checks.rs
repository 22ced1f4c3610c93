//! Checks of reports for continuous integration.

use std::sync::Arc;

use super::super::checks::{Baseline, Checks, LineCheck, mebibytes};
use super::super::{Format, Function, Line, Options, ProcessReport, Report, Tool};

const MIB: i64 = 1 << 20;

fn report(peak: i64, increments: &[(&str, i64)]) -> Report {
    let source: Vec<String> = increments.iter().map(|(text, _)| format!("    {text}")).collect();
    let lines = increments.iter().zip(1..);
    let function = Function {
        filename: "/srv/app/app.py".into(),
        name: "load".into(),
        qualified_name: "load".into(),
        own_file: true,
        moved_bytes: 1,
        lines: lines.map(|((_, bytes), line)| Line { line, increment_bytes: *bytes, ..Line::default() }).collect(),
        source: Some(Arc::new(source)),
        ..Function::default()
    };
    let process = ProcessReport {
        pid: 7,
        rss_peak_bytes: Some(peak.unsigned_abs()),
        functions: vec![function],
        ..ProcessReport::default()
    };
    let tool = Tool { mode: "heap".into(), ..Tool::default() };
    Report { tool, processes: vec![process], ..Report::default() }
}

fn baseline(report: &Report) -> Baseline {
    let mut text = Vec::new();
    super::super::write(report, Format::by_name("json").unwrap(), &Options::default(), &mut text).unwrap();
    Baseline::read(&text, "heap").unwrap()
}

fn line(text: &str) -> Checks {
    Checks { lines: vec![LineCheck::parse(text).unwrap()], ..Checks::default() }
}

#[test]
fn above() {
    let report = report(30 * MIB, &[("a = f()", 20 * MIB), ("b = g()", -MIB)]);
    let checks = |mib: i64| Checks { above: Some((mib * MIB).unsigned_abs()), ..Checks::default() };
    assert_eq!(checks(30).verdict(&report, None), Default::default());
    let failures = checks(29).verdict(&report, None).failures;
    assert_eq!(
        failures,
        ["peak resident memory of process 7 was 30.000 MiB, more than 29.000 MiB (--fail-above)\n  \
          /srv/app/app.py:1  +20.000 MiB  a = f()"]
    );
}

#[test]
fn nothing_measured_is_a_failure() {
    let checks = Checks { above: Some(1), ..Checks::default() };
    assert_eq!(checks.verdict(&Report::default(), None).failures.len(), 1);
    assert_eq!(Checks::default().verdict(&Report::default(), None), Default::default());
}

#[test]
fn a_line() {
    let report = report(30 * MIB, &[("a = f()", 20 * MIB), ("b = g()", -MIB)]);
    assert_eq!(line("app.py:1=20").verdict(&report, None), Default::default());
    assert_eq!(line("app/app.py:2=0.1").verdict(&report, None), Default::default());
    let failures = line("./app/app.py:1=19.5").verdict(&report, None).failures;
    assert_eq!(
        failures,
        ["more than 19.500 MiB (--fail-line ./app/app.py:1) in process 7:\n  /srv/app/app.py:1  +20.000 MiB  a = f()"]
    );
    // No component is cut, and a wrong name does not pass in silence.
    let verdict = line("pp.py:1=1").verdict(&report, None);
    assert_eq!((verdict.failures.len(), verdict.doubts.len()), (0, 1));
}

#[test]
fn growth_is_of_lines_wherever_they_moved() {
    let before = baseline(&report(100 * MIB, &[("a = f()", 20 * MIB), ("b = g()", MIB / 8)]));
    let checks = Checks { growth: Some(10.0), ..Checks::default() };
    let moved = report(105 * MIB, &[("new", 0), ("b = g()", MIB / 2), ("a = f()", 21 * MIB)]);
    assert_eq!(checks.verdict(&moved, Some(&before)), Default::default());
    let grown = report(105 * MIB, &[("new = h()", 4 * MIB), ("a = f()", 23 * MIB)]);
    assert_eq!(
        checks.verdict(&grown, Some(&before)).failures,
        ["lines grew by more than 10 % (--fail-growth):\n  \
          /srv/app/app.py:1  +4.000 MiB  new = h() (baseline 0.000 MiB)\n  \
          /srv/app/app.py:2  +23.000 MiB  a = f() (baseline 20.000 MiB)"]
    );
    let peak = report(111 * MIB, &[]);
    assert_eq!(
        checks.verdict(&peak, Some(&before)).failures,
        ["peak resident memory was 111.000 MiB, in the baseline 100.000 MiB: more than 10 % (--fail-growth)"]
    );
}

#[test]
fn what_is_typed_is_checked() {
    for wrong in ["", "app.py", "app.py:1", "app.py=1", "app.py:0=1", ":1=1", "app.py:1=x", "app.py:1=-1", "app.py:1=0"]
    {
        assert!(LineCheck::parse(wrong).is_err(), "{wrong}");
    }
    assert_eq!(mebibytes("1.5"), Ok(1_572_864));
    for wrong in ["", "x", "nan", "inf", "-1", "0", "1e30"] {
        assert!(mebibytes(wrong).is_err(), "{wrong}");
    }
    let read = |text: &str| Baseline::read(text.as_bytes(), "heap").map(drop);
    assert!(read("Filename: x").unwrap_err().starts_with("no JSON report"));
    let other = r#"{"schema": "rmprof-bpf/1", "tool": {"mode": "pages"}, "processes": []}"#;
    assert_eq!(read(other).unwrap_err(), "it was measured in mode pages, this run is in mode heap");
}
