//! Whole tables, to the character.

use super::*;

const COPY: &str = r#"@profile
def read_random():
    with open("/dev/urandom", "rb") as source:
        content = source.read(1024 * 10000)
        content_to_write = content[1024:]

    print("Content length: %d, content to write length %d" %
          (len(content), len(content_to_write)))

    with open("/dev/null", "wb") as target:
        target.write(content_to_write)


if __name__ == "__main__":
    read_random()
"#;

/// The contract's first example, as a session would report it.
fn copy_function() -> Function {
    let lines = vec![
        Line { line: 1, increment_bytes: 400, ..Line::default() },
        line(3, 11.27, 0.0),
        line(4, 21.039, 9.77),
        line(5, 30.805, 9.766),
        line(7, 30.805, 0.0),
        line(8, 30.812, 0.008),
        line(10, 30.812, 0.0),
        line(11, 30.812, 0.0),
    ];
    let entry_rss_bytes = Some(mib(11.27) as u64);
    Function { marked: true, entry_rss_bytes, ..function("copy.py", "read_random", 1, COPY, lines) }
}

#[test]
fn the_contract_s_example() {
    let module = function("copy.py", "<module>", 1, COPY, vec![line(14, 30.0, 19.0)]);
    let mut process = process(vec![copy_function(), module]);
    process.other.push(Other { reason: "no Python frame".into(), net_bytes: 5000 });
    let expected = r#"Filename: copy.py

Line #    Mem usage    Increment   Line Contents
================================================
     1   11.270 MiB   11.270 MiB   @profile
     2                             def read_random():
     3   11.270 MiB    0.000 MiB       with open("/dev/urandom", "rb") as source:
     4   21.039 MiB    9.770 MiB           content = source.read(1024 * 10000)
     5   30.805 MiB    9.766 MiB           content_to_write = content[1024:]
     6
     7   30.805 MiB    0.000 MiB       print("Content length: %d, content to write length %d" %
     8   30.812 MiB    0.008 MiB             (len(content), len(content_to_write)))
     9
    10   30.812 MiB    0.000 MiB       with open("/dev/null", "wb") as target:
    11   30.812 MiB    0.000 MiB           target.write(content_to_write)


"#;
    assert_eq!(table_of(&report(vec![process]), &Options::default()), expected);
}

#[test]
fn the_contract_s_memoryview() {
    let text = COPY.replace("content[1024:]", "memoryview(content)[1024:]");
    let mut view = copy_function();
    view.filename = "memoryview.py".into();
    view.source = Some(Arc::new(text.lines().map(str::to_owned).collect()));
    view.lines[3] = Line { increment_bytes: -90, ..line(5, 21.039, 0.0) };
    view.lines.truncate(4);
    let expected = r#"Filename: memoryview.py

Line #    Mem usage    Increment   Line Contents
================================================
     1   11.270 MiB   11.270 MiB   @profile
     2                             def read_random():
     3   11.270 MiB    0.000 MiB       with open("/dev/urandom", "rb") as source:
     4   21.039 MiB    9.770 MiB           content = source.read(1024 * 10000)
     5   21.039 MiB    0.000 MiB           content_to_write = memoryview(content)[1024:]
     6
     7                                 print("Content length: %d, content to write length %d" %
     8                                       (len(content), len(content_to_write)))
     9
    10                                 with open("/dev/null", "wb") as target:
    11                                     target.write(content_to_write)


"#;
    assert_eq!(table_of(&report(vec![process(vec![view])]), &Options::default()), expected);
}

/// `memory_profiler`'s own rows (its template is `{0:>6} {1:>12} {2:>12}  {3:>10}   {4:<}`), trailing spaces aside.
#[test]
fn occurrences_are_laid_out_as_memory_profiler_does() {
    let text = "\n\n@profile\ndef my_func():\n    a = [1] * (10 ** 6)\n    for i in a:\n        del a\n";
    let times = |times, line| Line { occurrences: Some(times), ..line };
    let lines = vec![
        times(1, line(3, 1.0, 1.0)),
        times(1, line(5, 46.492, 7.676)),
        times(11, line(6, 46.492, 0.0)),
        times(10, line(7, 38.863, -7.629)),
    ];
    let entry_rss_bytes = Some(mib(38.816) as u64);
    let function = Function { marked: true, entry_rss_bytes, ..function("t1.py", "my_func", 3, text, lines) };
    let expected = "Filename: t1.py

Line #    Mem usage    Increment  Occurrences   Line Contents
=============================================================
     3   38.816 MiB   38.816 MiB           1   @profile
     4                                         def my_func():
     5   46.492 MiB    7.676 MiB           1       a = [1] * (10 ** 6)
     6   46.492 MiB    0.000 MiB          11       for i in a:
     7   38.863 MiB   -7.629 MiB          10           del a


";
    let columns = Column::parse_list("+occurrences").unwrap();
    assert_eq!(table_of(&report(vec![process(vec![function])]), &Options { columns, ..Options::default() }), expected);
}

#[test]
fn every_column() {
    let full = Line {
        occurrences: Some(3),
        allocated_bytes: 3 << 20,
        freed_bytes: 1 << 20,
        allocations: 12,
        frees: 4,
        peak_bytes: Some(1 << 19),
        live_bytes: 2 << 20,
        errors: Some(Errors { increment_bytes: 1 << 19, ..Errors::default() }),
        native: vec![NativeBytes { function: "f".into(), module: "libx.so".into(), bytes: 3 << 20 }],
        ..line(2, 20.0, 2.0)
    };
    let function = function(
        "a.py",
        "f",
        1,
        "def f():\n    g()\n    h()\n",
        vec![full, Line { line: 3, increment_bytes: -(1 << 20), ..Line::default() }],
    );
    let columns = Column::ALL.to_vec();
    let expected = "\
Filename: a.py

Line #    Mem usage    Increment        Error  Occurrences    Allocated        Freed  Allocations        Frees         Peak         Live       Native   Line Contents
=====================================================================================================================================================================
     1                                                                                                                                                  def f():
     2    20.00 MiB     2.00 MiB   ± 0.50 MiB            3     3.00 MiB     1.00 MiB           12            4     0.50 MiB     2.00 MiB            f       g()
     3                 -1.00 MiB                               0.00 MiB     0.00 MiB            0            0                  0.00 MiB                    h()


";
    let options = Options { columns, precision: 2, ..Options::default() };
    assert_eq!(table_of(&report(vec![process(vec![function])]), &options), expected);
}

#[test]
fn a_module_shows_no_bodies() {
    let text = "import numpy\n\n\ndef main():\n    return 1\n\n\nmain()\n";
    let module =
        function("a.py", "<module>", 1, text, vec![line(1, 30.5, 20.0), line(4, 30.5, 0.0), line(8, 31.5, 1.0)]);
    let module = Function { entry_rss_bytes: Some(9), ..module };
    let expected = "\
Filename: a.py

Line #    Mem usage    Increment   Line Contents
================================================
     1   30.500 MiB   20.000 MiB   import numpy
     2
     3
     4   30.500 MiB    0.000 MiB   def main():
     8   31.500 MiB    1.000 MiB   main()


";
    assert_eq!(table_of(&report(vec![process(vec![module])]), &Options::default()), expected);
}

#[test]
fn the_first_row() {
    let first_row = |name: &str, text: &str, lines: Vec<Line>| {
        let entry_rss_bytes = Some(mib(10.0) as u64);
        let function = Function { entry_rss_bytes, ..function("a.py", name, 1, text, lines) };
        let text = table_of(&report(vec![process(vec![function])]), &Options::default());
        text.lines().nth(4).unwrap().to_owned()
    };
    let entry = "     1   10.000 MiB   10.000 MiB   ";
    let own = "     1   20.000 MiB    2.000 MiB   ";
    let (head, body) = (line(1, 20.0, 2.0), line(2, 20.0, 2.0));
    let def = "def f():\n    pass\n";
    assert_eq!(first_row("f", def, vec![head.clone(), body.clone()]), format!("{entry}def f():"));
    assert_eq!(first_row("f", "def f(): g()\n", vec![head.clone()]), format!("{own}def f(): g()"));
    assert_eq!(first_row("<lambda>", "x = lambda: 1\n", vec![head.clone()]), format!("{own}x = lambda: 1"));
    assert_eq!(first_row("C", "class C:\n    x = 1\n", vec![head, body.clone()]), format!("{own}class C:"));
    assert_eq!(first_row("<module>", "# x\ny = 1\n", vec![body]), format!("{entry}# x"));
}

#[test]
fn no_source() {
    let function = function("gone.py", "f", 3, "", vec![line(4, 12.0, 1.0), line(6, 12.0, 0.0)]);
    let expected = "\
Filename: gone.py

Line #    Mem usage    Increment   Line Contents
================================================
                                   (source not readable)
     3
     4   12.000 MiB    1.000 MiB
     5
     6   12.000 MiB    0.000 MiB


";
    assert_eq!(table_of(&report(vec![process(vec![function])]), &Options::default()), expected);
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let text = "def f():\n\tx = '\x1b[2J\u{202e}'  \u{9b}1m\r\n\x0c\n    return 1\n";
    let function = function("a\n\x1b]0;b.py", "f", 1, text, vec![line(2, 12.0, 1.0), line(4, 12.0, 0.0)]);
    let expected = "\
Filename: a\\x0a\\x1b]0;b.py

Line #    Mem usage    Increment   Line Contents
================================================
     1                             def f():
     2   12.000 MiB    1.000 MiB   \tx = '\\x1b[2J\\u202e'  \\x9b1m
     3
     4   12.000 MiB    0.000 MiB       return 1


";
    assert_eq!(table_of(&report(vec![process(vec![function])]), &Options::default()), expected);
}

#[test]
fn wide_numbers_widen_their_column() {
    let text = format!("def f():\n    x = '{}'\n", "y".repeat(500));
    let function = function("a.py", "f", 1, &text, vec![line(2, 20_480.0, -1_048_576.0)]);
    let expected = format!(
        "\
Filename: a.py

Line #     Mem usage        Increment   Line Contents
=====================================================
     1                                  def f():
     2 20480.000 MiB -1048576.000 MiB       x = '{}'


",
        "y".repeat(500)
    );
    assert_eq!(table_of(&report(vec![process(vec![function])]), &Options::default()), expected);
}

#[test]
fn several_processes_have_headings() {
    let one = |pid, command: &[&str], increment| {
        let function = function("w.py", "f", 1, "def f():\n    g()\n", vec![line(2, 12.0, increment)]);
        ProcessReport { pid, command: command.iter().map(|word| word.to_string()).collect(), ..process(vec![function]) }
    };
    let mut second = one(1300, &["python", "worker 2.py"], 2.0);
    second.other.push(Other { reason: "no Python frame".into(), net_bytes: mib(-0.25) });
    second.other.push(Other { reason: "stack lost".into(), net_bytes: 0 });
    let idle = ProcessReport { pid: 1400, ..process(vec![]) };
    let mut report = report(vec![one(1234, &["python", "worker.py"], 1.0), second, idle]);
    report.health.lost = 3;
    report.health.truncated_stacks = 1;
    report.health.counters = vec![("sites_full".into(), 3), ("quiet".into(), 0)];
    let expected = "\
Process 1234: python worker.py

Filename: w.py

Line #    Mem usage    Increment   Line Contents
================================================
     1                             def f():
     2   12.000 MiB    1.000 MiB       g()


Process 1300: python 'worker 2.py'

Filename: w.py

Line #    Mem usage    Increment   Line Contents
================================================
     1                             def f():
     2   12.000 MiB    2.000 MiB       g()


Not on a line of these tables:

                      -0.250 MiB   (no Python frame)


Health: 3 events lost, 1 stack truncated, sites_full 3
";
    assert_eq!(table_of(&report, &Options::default()), expected);
}

#[test]
fn marked_reports_tell_other_bytes_when_something_went_wrong() {
    let mut process = process(vec![copy_function()]);
    process.other.push(Other { reason: "stack not read".into(), net_bytes: mib(1.5) });
    let mut report = report(vec![process]);
    assert!(!table_of(&report, &Options::default()).contains("Not on a line"));
    let selection = Selection::new(&[], &[], true).unwrap();
    assert!(table_of(&report, &Options { selection, ..Options::default() }).contains("Not on a line"));
    report.health.unresolved_frames = 1;
    report.health.unattributed_bytes = 1_572_864;
    let text = table_of(&report, &Options::default());
    let end = "\
    11   30.812 MiB    0.000 MiB           target.write(content_to_write)


Not on a line of these tables:

                       1.500 MiB   (stack not read)


Health: 1 frame not read, 1572864 bytes without their line
";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn approximate_lines_are_named() {
    let mut f = function("a.py", "f\n", 1, "", vec![line(2, 1.0, 1.0), line(3, 1.0, 1.0), line(4, 1.0, 1.0)]);
    let said = |function: &Function| {
        let text = table_of(&report(vec![process(vec![function.clone()])]), &Options::default());
        text.lines().last().map(str::to_owned)
    };
    assert_eq!(said(&f).as_deref(), Some(""));
    f.lines[1].approximate = true;
    let why = "approximate: Python's JIT ran there, which does not keep the line at every instruction.";
    assert_eq!(said(&f), Some(format!("Line 3 of f\\x0a is {why}")));
    f.lines[2].approximate = true;
    assert_eq!(said(&f), Some(format!("Lines 3, 4 of f\\x0a are {why}")));
}

#[test]
fn nothing_to_show_is_said() {
    let said = |report: &Report| table_of(report, &Options::default());
    assert_eq!(said(&report(vec![])), "No Python program was seen.\n");
    assert_eq!(said(&report(vec![process(vec![])])), "No Python function moved any memory.\n");
    let library = function("/usr/lib/python3.11/os.py", "f", 1, "", vec![line(2, 1.0, 1.0)]);
    let sentence = "No function of the files shown moved any memory; --all-files shows the others.\n";
    assert_eq!(said(&report(vec![process(vec![library])])), sentence);
    let never = Function { marked: true, ..function("a.py", "f", 1, "", vec![]) };
    let mut marked = report(vec![process(vec![never])]);
    assert_eq!(said(&marked), "No marked function was called.\n");
    let selection = Selection::new(&[], &["copy.py".into()], false).unwrap();
    let excluded =
        table_of(&report(vec![process(vec![copy_function()])]), &Options { selection, ..Options::default() });
    assert_eq!(excluded, "Every marked function that was called is left out by --exclude.\n");
    marked.health.lost = 1;
    assert_eq!(said(&marked), "No marked function was called.\n\nHealth: 1 event lost\n");
}

#[test]
fn other_bytes_stand_alone_under_the_sentence() {
    let mut native = process(vec![]);
    native.other.push(Other { reason: "start-up of the interpreter".into(), net_bytes: mib(4.0) });
    let expected = "\
No Python function moved any memory.

Not on a line of these tables:

                       4.000 MiB   (start-up of the interpreter)


";
    assert_eq!(table_of(&report(vec![native]), &Options::default()), expected);
}

#[test]
fn the_native_function_that_asked_for_most() {
    let native = |function: &str, bytes| NativeBytes { function: function.into(), module: "libx.so".into(), bytes };
    let mut wide = line(2, 20.0, 10.0);
    wide.native = vec![native("array_new_likearray", 9 << 20), native("other", 1 << 20)];
    let mut long = line(3, 20.0, 0.0);
    long.native = vec![native(&format!("std::\x1b{}", "vector".repeat(20)), 5)];
    let text = "def f():\n    a()\n    b()\n    c()\n";
    let report = report(vec![process(vec![function("a.py", "f", 1, text, vec![wide, long, line(4, 20.0, 0.0)])])]);
    let options = Options { columns: Column::parse_list("increment,native").unwrap(), ..Options::default() };
    let rows: Vec<String> = table_of(&report, &options).lines().skip(5).take(3).map(str::to_owned).collect();
    assert_eq!(
        rows,
        [
            "     2   10.000 MiB                      array_new_likearray       a()",
            "     3    0.000 MiB std::\\x1bvectorvectorvectorvectorvector…       b()",
            "     4    0.000 MiB                                                c()",
        ]
    );
}
