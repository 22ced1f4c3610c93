//! `--pdb-mmem`: pdb on the right line, in a real terminal, with nothing executed twice and nothing skipped.

use std::path::Path;
use std::process::Command;

use crate::common::{Python, Run, Terminal, any_python, root, script, supported_pythons};

const PROMPT: &str = "(Pdb) ";

/// Starts the program under a limit and waits for the first prompt; gives what was shown before it.
#[track_caller]
fn stopped(python: &Python, options: &[&str], program: &[&str]) -> (Terminal, String) {
    let mut terminal = Run::new(options).word(&python.path).words(program).in_terminal();
    let shown = terminal.expect(PROMPT);
    (terminal, shown)
}

/// Types a command and gives what it shows.
#[track_caller]
fn ask(terminal: &mut Terminal, command: &str) -> String {
    terminal.send(command);
    let shown = terminal.expect(PROMPT);
    shown.split_once('\n').map(|(_, shown)| shown.to_owned()).unwrap_or_default()
}

#[track_caller]
fn goes_on(mut terminal: Terminal, command: &str) -> String {
    terminal.send(command);
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(0), "{shown}");
    shown
}

fn copy() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/copy.py").canonicalize().unwrap();
    path.to_str().unwrap().to_owned()
}

/// How much the interpreter and the example take before line 4, in MiB, and what it takes.
const LINE_FOUR: f64 = 9.77;

/// The resident memory at the entry of the example's function, when a debugger may come.
fn entry(python: &Python) -> f64 {
    let mut terminal = Run::new(["--pdb-mmem", "1"]).word(&python.path).word(copy()).in_terminal();
    let shown = terminal.expect(PROMPT);
    let size = shown.split_once("Current memory ").and_then(|(_, rest)| rest.split_once(" MiB")).unwrap().0;
    let size = size.parse().unwrap();
    // As in the seed: the first line of the marked function is looked at, and the next one is where it stops.
    assert!(shown.contains(" MiB exceeded the maximum of 1.00 MiB\nStepping into the debugger\n> "), "{shown}");
    assert!(shown.ends_with("copy.py(4)read_random()\n-> content = source.read(1024 * 10000)\n"), "{shown}");
    goes_on(terminal, "c");
    size
}

/// The example is called like the standard module: pdb must not load it.
#[test]
fn root_the_example_stops_where_it_passes_the_limit() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        let limit = format!("{:.2}", entry(&python) + LINE_FOUR / 2.0);
        let (mut terminal, shown) = stopped(&python, &["--pdb-mmem", &limit], &[&copy()]);
        let version = python.version_text();
        assert!(shown.starts_with("Current memory "), "{version}: {shown}");
        assert!(
            shown.contains(&format!("exceeded the maximum of {limit} MiB\nStepping into the debugger\n> ")),
            "{shown}"
        );
        assert!(
            shown.ends_with("copy.py(5)read_random()\n-> content_to_write = content[1024:]\n"),
            "{version}: {shown}"
        );
        assert!(ask(&mut terminal, "p len(content), 'content_to_write' in locals()").contains("(10240000, False)"));
        let frames = ask(&mut terminal, "where");
        let functions: Vec<&str> = frames.lines().filter(|line| line.contains(".py(")).collect();
        assert!(functions.len() == 2 && functions[0].ends_with("copy.py(15)<module>()"), "{version}: {frames}");
        assert!(functions[1].ends_with("copy.py(5)read_random()"), "{version}: {frames}");
        let next = ask(&mut terminal, "n");
        assert!(
            next.contains("copy.py(7)read_random()") || next.contains("copy.py(3)read_random()"),
            "{version}: {next}"
        );
        let shown = goes_on(terminal, "c");
        assert_eq!(shown.matches("Content length: 10240000, content to write length 10238976\n").count(), 1, "{shown}");
        // Every line once, and none has the debugger's own memory.
        let row = |number: &str| shown.lines().find(|line| line.trim_start().starts_with(number)).unwrap().to_owned();
        for (number, increment) in [("4 ", "9.76"), ("5 ", "9.76"), ("7 ", "0.00"), ("11 ", "0.00")] {
            let cell = row(number).split_whitespace().nth(3).unwrap().to_owned();
            assert!(cell.starts_with(increment), "{version}: {}", row(number));
        }
    }
}

const WORK: &str = "\
import sys, threading

def numbers(kept):
    for number in range(4):
        kept.append(bytearray(8 << 20)) # grows
        yield number

def deep(depth, kept):
    if depth:
        return deep(depth - 1, kept)
    try:
        return list(numbers(kept))
    finally:
        print('finally')

def work(kept):
    print(deep(5, kept), len(kept), sum(len(each) for each in kept))

if __name__ == '__main__':
    if sys.argv[1:] == ['thread']:
        thread = threading.Thread(target=work, args=([],))
        thread.start()
        thread.join()
    else:
        work([])
    print('end')
";

/// Unmarked code, a generator, recursion, try and finally, a loop, in the first thread and in another; each with files beside it named like
/// the modules of pdb, which must not be imported.
#[test]
fn root_any_code_in_any_thread() {
    if !root() {
        return;
    }
    let program = script("work.py", WORK);
    for name in ["pdb.py", "bdb.py", "cmd.py", "code.py"] {
        std::fs::write(program.directory().join(name), "raise SystemExit('the wrong module')\n").unwrap();
    }
    for python in supported_pythons() {
        for (option, words) in [("heap", &[][..]), ("heap", &["thread"]), ("pages", &[])] {
            let words = [&[program.path.to_str().unwrap()], words].concat();
            let (mut terminal, shown) = stopped(&python, &["--mode", option, "--pdb-mmem", "28"], &words);
            let version = python.version_text();
            assert!(shown.contains("work.py(6)numbers()\n-> yield number\n"), "{version}: {shown}");
            let frames = ask(&mut terminal, "where");
            let functions = frames.lines().filter(|line| line.contains(".py("));
            assert!(functions.clone().all(|line| line.contains("/work.py(")), "{version}: {frames}");
            assert_eq!(functions.count(), 8 + usize::from(words.len() == 1), "{version}: {frames}");
            assert!(ask(&mut terminal, "p len(kept) == number + 1").contains("True"), "{version}");
            let shown = goes_on(terminal, "c");
            assert_eq!(shown.matches("finally\n[0, 1, 2, 3] 4 33554432\nend\n").count(), 1, "{version}: {shown}");
            assert!(shown.contains("Line #"), "{version}: {shown}");
        }
    }
}

#[test]
fn root_a_limit_below_the_interpreters_size_stops_at_the_first_line() {
    if !root() {
        return;
    }
    let program = script("first.py", "print('one')\nprint('two')\n");
    for python in supported_pythons() {
        let (mut terminal, shown) = stopped(&python, &["--pdb-mmem", "1"], &[program.path.to_str().unwrap()]);
        assert!(shown.ends_with("first.py(1)<module>()\n-> print('one')\n"), "{}: {shown}", python.version_text());
        assert!(ask(&mut terminal, "n").starts_with("one\n"));
        goes_on(terminal, "c");
    }
}

#[test]
fn root_quitting_ends_the_program_quietly() {
    if !root() {
        return;
    }
    let program = script(
        "quit.py",
        "
def work():
    kept = []
    try:
        for number in range(5):
            kept.append(bytearray(8 << 20))
    except Exception:
        print('cau' 'ght')
    finally:
        print('finally', len(kept) < 5)
work()
print('e' 'nd')
",
    );
    for python in supported_pythons() {
        let (mut terminal, _) = stopped(&python, &["--pdb-mmem", "30"], &[program.path.to_str().unwrap()]);
        terminal.send("q");
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(1), "{shown}");
        assert!(shown.contains("finally True\n") && shown.contains("Line #"), "{shown}");
        assert!(!shown.contains("caught") && !shown.contains("end\n") && !shown.contains("Traceback"), "{shown}");
    }
}

#[test]
fn root_the_next_stop_is_a_step_further() {
    if !root() {
        return;
    }
    let program = script(
        "steps.py",
        "kept = []\nfor number in range(20):\n    kept.append(bytearray(4 << 20))\nprint(len(kept))\n",
    );
    let options = ["--pdb-mmem", "30", "--pdb-mmem-step", "20"];
    let (mut terminal, _) = stopped(&any_python(), &options, &[program.path.to_str().unwrap()]);
    let mut numbers: Vec<i32> = Vec::new();
    loop {
        numbers.push(ask(&mut terminal, "p number").lines().next().unwrap().parse().unwrap());
        terminal.send("c");
        if !terminal.expect_or_end(PROMPT) {
            break;
        }
    }
    let (status, shown) = terminal.end();
    assert_eq!(status.code(), Some(0));
    assert!(shown.contains("\n20\n"), "{shown}");
    assert!(numbers.len() >= 3, "{numbers:?}");
    assert!(numbers.windows(2).all(|pair| pair[1] - pair[0] >= 4), "{numbers:?}");
}

/// pdb would raise its `Restart` into the program.
#[test]
fn root_the_program_is_not_started_again() {
    if !root() {
        return;
    }
    let text = "kept = []\nfor _ in range(5):\n    kept.append(bytearray(8 << 20))\nprint('e' 'nd', len(kept))\n";
    let program = script("again.py", text);
    for python in supported_pythons() {
        let (mut terminal, _) = stopped(&python, &["--pdb-mmem", "30"], &[program.path.to_str().unwrap()]);
        for command in ["run", "restart", "run --option 'of it"] {
            let said = ask(&mut terminal, command);
            assert!(said.starts_with("*** run and restart are not possible"), "{}: {said}", python.version_text());
        }
        let shown = goes_on(terminal, "c");
        assert!(shown.contains("end 5\n") && !shown.contains("Traceback"), "{shown}");
    }
}

/// What is not possible is said, and the program keeps working.
#[test]
fn root_refusals_are_told() {
    if !root() {
        return;
    }
    let grow = "kept = bytearray(40 << 20)\nprint('more')\nprint('end', len(kept))\n";
    let refused: [(&str, &str); 2] = [
        (
            "import sys\ndef trace(*_):\n    return trace\nsys.settrace(trace)\n",
            "has a trace function already (sys.settrace",
        ),
        (
            "import signal\nfor number in range(34, 65):\n    signal.signal(number, lambda *_: print('wr' 'ong'))\n",
            "the program uses the signal",
        ),
    ];
    for python in supported_pythons() {
        for (before, why) in refused {
            let program = script("refuse.py", &format!("{before}{grow}"));
            let run = Run::new(["--pdb-mmem", "30"]).word(&python.path).word(&program.path);
            let (status, shown) = run.in_terminal().end();
            assert_eq!(status.code(), Some(0), "{shown}");
            assert!(shown.contains("the debugger cannot stop here: ") && shown.contains(why), "{shown}");
            assert!(
                shown.contains("end 41943040\n") && !shown.contains("wrong") && shown.contains("hint: "),
                "{shown}"
            );
        }
    }
    let program = script("refuse.py", grow);
    let ran = Run::new(["--pdb-mmem", "30"]).word(any_python().path).word(&program.path).run();
    // The tests themselves may have a terminal, where the debugger then opens.
    if std::fs::File::open("/dev/tty").is_err() {
        assert!(ran.stderr_text().contains("the program has no terminal"), "{ran}");
        assert!(ran.expect(0).stdout_text().starts_with("more\nend 41943040\n"));
    }
}

/// Who traces already keeps its trace function, and has what it has without us. debugpy has one up to 3.11 and watches by sys.monitoring
/// from 3.12 on, which leaves pdb its own.
#[test]
fn root_coverage_and_debugpy_keep_working() {
    let Some(programs) = super::servers::programs().filter(|_| root()) else { return };
    let program = script("traced.py", "def grow():\n    return bytearray(40 << 20)\n\n\nprint('end', len(grow()))\n");
    // The C tracer: by default the newest interpreters have another, which is no trace function.
    std::fs::write(program.directory().join(".coveragerc"), "[run]\ncore = ctrace\n").unwrap();
    let minor = "import sys; print(sys.version_info.minor)";
    let minor = Command::new(programs.join("python")).args(["-c", minor]).output().unwrap();
    let monitors = String::from_utf8(minor.stdout).unwrap().trim().parse::<u32>().unwrap() >= 12;
    let tracers: [(&[&str], bool); 2] =
        [(&["-m", "coverage", "run"], false), (&["-m", "debugpy", "--listen", "127.0.0.1:0"], monitors)];
    for (tracer, stops) in tracers {
        // More than the tracer itself takes, less than it takes with the program.
        let run = Run::new(["--pdb-mmem", "55"]).word(programs.join("python")).words(tracer).word(&program.path);
        let mut terminal = run.directory(program.directory()).in_terminal();
        if stops {
            let shown = terminal.expect(PROMPT);
            assert!(shown.contains("traced.py(5)<module>()"), "{shown}");
            terminal.send("c");
        }
        let (status, shown) = terminal.end();
        assert_eq!(status.code(), Some(0), "{shown}");
        assert!(shown.contains("end 41943040\n"), "{shown}");
        assert_eq!(shown.contains("the thread has a trace function already"), !stops, "{shown}");
    }
    let mut total = Command::new(programs.join("coverage"));
    let total = total.args(["report", "--format=total"]).current_dir(program.directory()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&total.stdout).trim(), "100", "{total:?}");
}
