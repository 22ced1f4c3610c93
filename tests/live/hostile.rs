//! Programs that are not nice: names and lines that would act on a terminal, deep stacks, odd encodings, foreign Pythons.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::common::{Run, any_python, near, near_blocks, root, script, supported_pythons};

/// No byte that a terminal would act upon, but for line ends.
#[track_caller]
fn check_printable(text: &str) {
    let acts = |character: &char| {
        character.is_control() && *character != '\n' || ('\u{202a}'..='\u{202e}').contains(character)
    };
    let found: Vec<char> = text.chars().filter(acts).collect();
    assert!(found.is_empty(), "{found:?} in {text:?}");
}

#[test]
fn root_control_characters_never_reach_the_terminal() {
    if !root() {
        return;
    }
    let name = "red\u{1b}[31m\u{9b}2J\u{7}\u{202e}.py";
    let program = script(
        name,
        "
@profile
def grow():
    text = '\u{1b}]0;title\u{7}\u{202e}'; kept = bytearray(3_000_000)  # here
    return kept  #\u{c}\u{8}\u{8}
kept = grow()
",
    );
    for python in supported_pythons() {
        let text = Run::new([&python.path, &program.path]).run().expect(0).quiet().stdout_text();
        check_printable(&text);
        assert!(text.contains("2.861 MiB"), "{text}");
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        let report = ran.report();
        let function = &report.0["processes"][0]["functions"][0];
        assert!(function["filename"].as_str().unwrap().ends_with(name), "JSON has the name itself: {function}");
        near_blocks(report.only().line("grow", program.line("# here")).increment(), 3_000_001);
    }
}

#[test]
fn root_names_made_at_run_time() {
    if !root() {
        return;
    }
    let long = "n".repeat(5000);
    let program = script("names.py", &format!("
import os
def run(filename, name):
    def grow():
        return bytearray(1_000_000)
    grow.__code__ = renamed(grow.__code__, filename, name)
    return grow()
def renamed(code, filename, name):
    if hasattr(code, 'replace'): # 3.8
        return code.replace(co_filename=filename, co_name=name)
    return type(code)(
        code.co_argcount, code.co_kwonlyargcount, code.co_nlocals, code.co_stacksize, code.co_flags, code.co_code, code.co_consts,
        code.co_names, code.co_varnames, filename, name, code.co_firstlineno, code.co_lnotab, code.co_freevars, code.co_cellvars)
kept = [run('/tmp/\\x1b[2J\\udcff.py', 'a\\n\\rb'), run('f' * 5000, {long:?}), run('', ''), run('<\\u00e9\\u4e2d\\U0001f600>', '\\u00e9\\u4e2d\\U0001f600')]
os._exit(0)
"));
    for python in supported_pythons() {
        let ran = Run::json().word("--all-files").words([&python.path, &program.path]).run().expect(0).quiet();
        let report = ran.report();
        let functions = report.0["processes"][0]["functions"].as_array().unwrap();
        let grown = |function: &&serde_json::Value| {
            function["lines"]
                .as_array()
                .unwrap()
                .iter()
                .any(|line| line["line"] == 4 && line["self_bytes"].as_i64() > Some(999_999))
        };
        assert_eq!(functions.iter().filter(grown).count(), 4, "{report}");
        let text = Run::new(["--all-files"]).words([&python.path, &program.path]).run().expect(0).quiet().stdout_text();
        check_printable(&text);
    }
}

#[test]
fn root_very_long_lines() {
    if !root() {
        return;
    }
    let filler = "x".repeat(2_000_000);
    let program = script(
        "long.py",
        &format!(
            "@profile\ndef grow():\n    kept = bytearray(3_000_000); text = '{filler}'  # here\n    return kept\ngrow()\n"
        ),
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    near_blocks(ran.report().only().line("grow", 3).increment(), 3_000_001);
    let text = Run::new([&any_python().path, &program.path]).run().expect(0).quiet().stdout_text();
    assert!(text.contains("2.861 MiB"));
}

/// A function of more lines than a line table's record holds.
#[test]
fn root_very_long_functions() {
    if !root() {
        return;
    }
    let mut text = "@profile\ndef grow():\n    kept = []\n".to_owned();
    for _ in 0..20_000 {
        text += "    kept.append(1)\n";
    }
    text += "    kept = bytearray(3_000_000)  # last\n    return kept\nkept = grow()\n";
    let program = script("tall.py", &text);
    for python in supported_pythons() {
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        let report = ran.report();
        let process = report.only();
        near_blocks(process.line("grow", program.line("# last")).number("allocated_bytes"), 3_000_001);
        assert_eq!(process.line("grow", 10_000).number("occurrences"), 1);
    }
}

#[test]
fn root_deep_recursion_is_cut_at_the_outer_end_and_counted() {
    if !root() {
        return;
    }
    let program = script(
        "deep.py",
        "
import os, sys
def down(depth):
    if depth == 0:
        return bytearray(3_000_000)  # bottom
    return down(depth - 1)  # down
kept = down(int(sys.argv[1]))  # top
os._exit(0)
",
    );
    for python in supported_pythons() {
        let of =
            |depth: &str| Run::json().words([&python.path, &program.path]).word(depth).run().expect(0).quiet().report();
        let shallow = of("100");
        shallow.check_complete();
        let process = shallow.only();
        // Of a recursion the innermost line has the bytes, so that the function's increments add up to its net.
        for (function, marker, bytes) in
            [("down", "# bottom", 3_000_001), ("down", "# down", 0), ("<module>", "# top", 3_000_001)]
        {
            let found = process.find(function, program.line(marker)).map_or(0, |line| line.increment());
            near(found, bytes, 4 * 65_536);
        }
        near_blocks(process.line("down", program.line("# bottom")).own(), 3_000_001);
        let deep = of("500");
        assert!(deep.health("truncated_stacks") >= 1, "{deep}");
        assert_eq!(deep.health("lost"), 0);
        near_blocks(deep.only().line("down", program.line("# bottom")).own(), 3_000_001);
        // The report says so where a person looks.
        let text = Run::new([&python.path, &program.path]).word("500").run().expect(0).quiet().stdout_text();
        assert!(text.lines().last().unwrap_or_default().starts_with("Health: "), "{text}");
    }
}

/// Marked, a recursion's lines count each call's own.
#[test]
fn root_deep_recursion_of_a_marked_function() {
    if !root() {
        return;
    }
    let program = script(
        "deep.py",
        "
import os
@profile
def down(depth):
    mine = bytearray(100_000)  # mine
    if depth:
        down(depth - 1)
    return None
down(300)
",
    );
    for python in supported_pythons() {
        let report = Run::json().words([&python.path, &program.path]).run().expect(0).quiet().report();
        let line = report.only().line("down", program.line("# mine"));
        // Pages of the interpreter's arenas count on the line that touches them first: some, less than half a call's own.
        near(line.number("allocated_bytes"), 301 * python.of_bytearray(100_000), 10 * 4096);
        near(line.number("occurrences"), 301, 0);
    }
}

#[test]
fn root_other_encodings_are_read_as_python_reads_them() {
    if !root() {
        return;
    }
    let folder = script("unused", "");
    let cases: [(&str, &[u8]); 3] = [
        ("latin.py", b"# -*- coding: latin-1 -*-\n@profile\ndef grow():\n    caf\xe9 = bytearray(3_000_000)  # \xe9t\xe9\n    return caf\xe9\ngrow()\n"),
        ("bom.py", b"\xef\xbb\xbf# bom\n@profile\ndef grow():\n    caf\xc3\xa9 = bytearray(3_000_000)  # \xc3\xa9t\xc3\xa9\n    return caf\xc3\xa9\ngrow()\n"),
        ("windows.py", b"# crlf\r\n@profile\r\ndef grow():\r\n    caf\xc3\xa9 = bytearray(3_000_000)  # \xc3\xa9t\xc3\xa9\r\n    return caf\xc3\xa9\r\ngrow()\r\n"),
    ];
    for (name, text) in cases {
        let file = folder.directory().join(name);
        std::fs::write(&file, text).unwrap();
        let ran = Run::json().words([&any_python().path, &file]).run().expect(0).quiet();
        let report = ran.report();
        let line = report.only().line("grow", 4);
        near_blocks(line.increment(), 3_000_001);
        assert_eq!(line.source(), Some("    café = bytearray(3_000_000)  # été"), "{name}");
        let table = Run::new([&any_python().path, &file]).run().expect(0).quiet().stdout_text();
        assert!(table.contains("    café = bytearray(3_000_000)  # été\n"), "{table}");
    }
}

#[test]
fn root_a_working_directory_that_is_gone() {
    if !root() {
        return;
    }
    let program =
        script("grow.py", "import sys\n@profile\ndef grow():\n    return bytearray(3_000_000)\nkept = grow()\n");
    let python = any_python().path;
    let gone = program.directory().join("gone");
    std::fs::create_dir(&gone).unwrap();
    let command = format!("rmdir {} && exec \"$@\"", gone.display());
    let words = ["sh", "-c", &command, "sh", env!("CARGO_BIN_EXE_rmprof-bpf")];
    let mut bare = std::process::Command::new(words[0]);
    let ran = crate::common::finish(
        bare.args(&words[1..]).args(["--format", "json"]).args([&python, &program.path]).current_dir(&gone),
    );
    let ran = ran.expect(0).quiet();
    near_blocks(crate::common::Report::read(&ran.stdout).only().line("grow", 4).increment(), 3_000_001);
}

#[test]
fn root_arguments_that_are_no_text() {
    if !root() {
        return;
    }
    let odd = OsStr::from_bytes(b"odd\xff\xfe\x1b[31m\n");
    let program = script("echo.py", "import os, sys\nsys.stdout.buffer.write(os.fsencode(sys.argv[1]))\n");
    let ran = Run::json().words([&any_python().path, &program.path]).word(odd).run().expect(0).quiet();
    assert_eq!(ran.stdout, odd.as_bytes());
    let command = &ran.report().0["processes"][0]["command"];
    assert!(command[2].as_str().unwrap().starts_with("odd"), "{command}");
    let file = program.directory().join(odd);
    std::fs::write(&file, "@profile\ndef grow():\n    return bytearray(3_000_000)\nkept = grow()\n").unwrap();
    let ran = Run::json().words([&any_python().path, &file]).run().expect(0).quiet();
    near_blocks(ran.report().only().line("grow", 3).increment(), 3_000_001);
    let text = Run::new([&any_python().path, &file]).run().expect(0).quiet().stdout_text();
    check_printable(&text);
}

/// Code objects that come and go at the same address, by the thousand: no line of one is charged to another.
#[test]
fn root_addresses_of_code_objects_are_reused() {
    if !root() {
        return;
    }
    let program = script(
        "reused.py",
        "
import os
for number in range(300):
    text = '\\n' * number + 'def grow_%d():\\n    return bytearray(50_000 + %d)\\n' % (number, number)
    space = {}
    exec(compile(text, '/made/%d.py' % number, 'exec'), space)
    space['grow_%d' % number]()
    del space
os._exit(0)
",
    );
    for python in supported_pythons() {
        let report =
            Run::json().word("--all-files").words([&python.path, &program.path]).run().expect(0).quiet().report();
        let process = report.only();
        for number in 0..300u32 {
            let line = process.line(&format!("grow_{number}"), number + 2);
            let exact = python.of_bytearray(50_000 + i64::from(number));
            let allocated = line.number("allocated_bytes");
            assert!(allocated == exact || allocated - exact >= 4096, "grow_{number}: {allocated} on {python:?}");
        }
    }
}
