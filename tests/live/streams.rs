//! Standard streams, exit statuses and where the report goes.

use crate::common::{Report, Run, any_python, finish, root, script};

#[test]
fn root_streams_pass_through_untouched() {
    if !root() {
        return;
    }
    let program = script(
        "cat.py",
        "
import sys
content = sys.stdin.buffer.read()
sys.stdout.buffer.write(content)
sys.stderr.buffer.write(content[::-1])
sys.exit(3)
",
    );
    // Every byte value, and far more than a pipe holds.
    let content: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8 ^ (number >> 12) as u8).collect();
    let ran = Run::json().words([&any_python().path, &program.path]).input(content.clone()).run();
    assert_eq!(ran.code(), 3);
    assert!(ran.stdout == content, "standard output differs ({} bytes)", ran.stdout.len());
    let reversed: Vec<u8> = content.into_iter().rev().collect();
    assert!(ran.stderr == reversed, "standard error differs ({} bytes)", ran.stderr.len());
}

/// The program's descriptors are those it would have without us.
#[test]
fn root_the_program_inherits_nothing_of_ours() {
    if !root() {
        return;
    }
    let program = script("descriptors.py", "
import os, signal, sys
sys.path.clear()
for number in sorted(os.listdir('/proc/self/fd'), key=int):
    try:
        print(number, os.readlink('/proc/self/fd/' + number).split(':')[0])
    except FileNotFoundError:
        pass
# Signals 32 and 33 are the C library's own.
print([hex(int(line.split()[1], 16) & ~(3 << 31)) for line in open('/proc/self/status') if line.startswith(('SigB', 'SigI', 'SigC', 'SigP'))])
print(os.getcwd(), sorted(name for name in os.environ if name not in ('PYTHONPATH', '_')), os.nice(0), os.umask(0o22))
print(signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGINT), os.getsid(0) == os.getsid(os.getppid()))
");
    let python = any_python().path;
    let ran = Run::json().words([&python, &program.path]).directory("/").run().expect(0).quiet();
    let mut bare = std::process::Command::new(&python);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PYTHON")) {
        bare.env_remove(name);
    }
    let bare = finish(bare.arg(&program.path).current_dir("/"));
    assert_eq!(ran.stdout_text(), bare.stdout_text());
}

#[test]
fn root_exit_statuses() {
    if !root() {
        return;
    }
    let python = any_python().path;
    let ends: [(&str, i32); 8] = [
        ("pass", 0),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit(255)", 255),
        ("raise SystemExit(256 + 9)", 9),
        ("import os; os._exit(17)", 17),
        ("raise ValueError", 1),
        ("import os; os.kill(os.getpid(), 9)", 128 + 9),
        ("import os, signal; signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", 128 + 15),
    ];
    for (text, status) in ends {
        let ran = Run::json().word(&python).words(["-c", text]).run().expect(status);
        assert_eq!(ran.report().only().number("exit_status"), i64::from(status), "{text}");
    }
}

#[test]
fn root_the_report_comes_after_the_programs_own_output() {
    if !root() {
        return;
    }
    let program = script(
        "talk.py",
        "
import atexit
atexit.register(lambda: print('last words'))

@profile
def grow():
    return bytearray(1_000_000)

grow()
print('first words')
",
    );
    let text = Run::new([&any_python().path, &program.path]).run().expect(0).quiet().stdout_text();
    assert!(text.starts_with("first words\nlast words\nFilename: "), "{text}");
}

#[test]
fn root_output_file_by_its_ending() {
    if !root() {
        return;
    }
    let program =
        script("grow.py", "@profile\ndef grow():\n    return bytearray(1_000_000)\ngrow()\nprint('own output')\n");
    let python = any_python().path;
    let into = |options: &[&str]| {
        let ran =
            Run::new(options).words([&python, &program.path]).directory(program.directory()).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), "own output\n", "{options:?}");
        std::fs::read(program.directory().join(options[1])).unwrap()
    };
    let report = Report::read(&into(&["-o", "report.json"]));
    assert_eq!(report.only().marked(), ["grow"]);
    let table = String::from_utf8(into(&["-o", "report.txt"])).unwrap();
    assert!(table.starts_with("Filename: "), "{table}");
    Report::read(&into(&["-o", "report.txt", "--format", "json"]));
    // What was there is replaced, not overwritten from the start.
    std::fs::write(program.directory().join("long.json"), "x".repeat(1_000_000)).unwrap();
    Report::read(&into(&["--output", "long.json"]));
}

#[test]
fn root_a_reader_that_goes_away_is_no_error() {
    if !root() {
        return;
    }
    let mut text = String::from("import sys\n");
    for number in 0..2000 {
        text += &format!("@profile\ndef function_{number}():\n    return {number}\n");
    }
    text += "print('ready', flush=True)\nsys.stdin.read()\n";
    let program = script("many.py", &text);
    let mut started = Run::new([&any_python().path, &program.path]).start();
    assert_eq!(started.line(), "ready");
    let status = started.close_output();
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn root_a_full_disk_is_an_error() {
    if !root() {
        return;
    }
    let ran = Run::new(["--output", "/dev/full"]).word(any_python().path).words(["-c", "pass"]).run().expect(125);
    let said = ran.stderr_text();
    assert!(said.contains("error: cannot write the report to /dev/full: No space left on device"), "{said}");
    assert!(said.contains("\nhint: "), "{said}");
}

/// Columns and precision, in the table that a person sees.
#[test]
fn root_columns_and_precision() {
    if !root() {
        return;
    }
    let program =
        script("grow.py", "@profile\ndef grow():\n    for size in (1, 2, 3):\n        bytearray(size << 20)\ngrow()\n");
    let run = |options: &[&str]| {
        Run::new(options).words([&any_python().path, &program.path]).run().expect(0).quiet().stdout_text()
    };
    let text = run(&["--columns", "increment,occurrences,peak", "--precision", "1"]);
    let row = text.lines().find(|line| line.trim_start().starts_with("4 ")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>()[..6], ["4", "0.0", "MiB", "3", "3.0", "MiB"], "{text}");
    let text = run(&["--columns", "+peak", "--precision", "0"]);
    let row = text.lines().find(|line| line.trim_start().starts_with("4 ")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>()[3..7], ["0", "MiB", "3", "MiB"], "{text}");
}
