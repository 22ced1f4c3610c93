//! Sub-interpreters, with a GIL of their own and without: what their code takes is on its own lines, in the thread that made the process
//! and in another, and what comes between and after is on the lines of the main one.

use crate::common::{Python, Report, Run, Script, Target, every_build, root, script};

/// Enters sub-interpreters of every kind that its Python has. They run the code below `inside`, of this file, and say that they have.
const PROGRAM: &str = "
import mmap, os, sys, threading

if __name__ == '__main__':
    marked = 'marked' in sys.argv  # a sub-interpreter may have no arguments
# 3.7 has no mark in a sub-interpreter (docs/accuracy.md).
mark = profile if marked and (__name__ == '__main__' or sys.version_info[:2] != (3, 7)) else lambda function: function
PAGES = 1000

@mark
def inside():
    kept = bytearray(2_000_000)  # kept
    gone = bytearray(3_000_000)  # gone
    del gone  # dropped
    room = mmap.mmap(-1, 4096 * PAGES)  # mapped
    zero = os.open('/dev/zero', os.O_RDONLY)
    os.readv(zero, [room])  # filled without the GIL
    os.close(zero)
    try:
        import ctypes
        ask = ctypes.CDLL(None).malloc
    except ImportError:
        ask = None
    if ask:
        ask(5_000_000)  # asked without the GIL
    os.write(1, b'inside with ctypes\\n' if ask else b'inside\\n')
    return kept, room

@mark
def between():
    return bytearray(1_500_000)  # between

CODE = '''
held = {'__name__': 'inside', '__file__': %r, 'marked': %r}
with open(held['__file__']) as file:
    code = compile(file.read(), file.name, 'exec')
exec(code, held)
''' % (os.path.abspath(__file__), marked)

def by_number(module, **options):
    number = module.create(**options)
    failed = module.run_string(number, CODE)
    assert not failed, failed
    module.destroy(number)

def ways():
    try:
        import _testcapi
        yield lambda: _testcapi.run_in_subinterp(CODE)
    except ImportError:
        pass
    try:
        import _interpreters
        yield lambda: by_number(_interpreters, config='legacy')
        yield lambda: by_number(_interpreters, config='isolated')
    except ImportError:
        pass
    try:
        import _xxsubinterpreters
        yield lambda: by_number(_xxsubinterpreters)
        if sys.version_info >= (3, 9):
            yield lambda: by_number(_xxsubinterpreters, isolated=False)
    except ImportError:
        pass
    try:
        from concurrent import interpreters
    except ImportError:
        return
    def public():
        one = interpreters.create()
        one.exec(CODE)
        one.close()
    yield public

def enter():
    count = 0
    for way in ways():
        way()
        between()
        count += 1
    os.write(1, b'entered %d\\n' % count)

def both():
    enter()
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()

if __name__ == '__main__':
    if 'wait' in sys.argv:
        os.write(1, b'ready\\n')
        sys.stdin.readline()
    both()
elif __name__ == 'inside':
    taken = inside()
";

/// How often code ran in a sub-interpreter, and how often it could call the C library there.
struct Entered {
    all: i64,
    with_ctypes: i64,
}

impl Entered {
    /// By what the program said.
    fn by(said: &str) -> Self {
        let count = |of: &str| i64::try_from(said.lines().filter(|line| line.starts_with(of)).count()).unwrap();
        let entered = said.lines().filter_map(|line| line.strip_prefix("entered ")?.parse::<i64>().ok()).sum();
        let entered = Self { all: entered, with_ctypes: count("inside with") };
        assert_eq!(count("inside"), entered.all, "{said}");
        entered
    }
}

/// The Pythons that can enter one, by what the tests know of; others are named.
fn pythons() -> Vec<Python> {
    let ask = "import importlib.util as u; print(any(u.find_spec(name) for name in \
               ('_testcapi', '_interpreters', '_xxsubinterpreters')))";
    let (able, others): (Vec<Python>, Vec<Python>) =
        every_build().into_iter().partition(|python| python.bare(&["-c", ask]).trim() == "True");
    for python in others {
        eprintln!("NOT RUN: {} has no way to make a sub-interpreter", python.path.display());
    }
    able
}

/// `found` is `each` a time, and what small objects of the line take: pages of arenas, at most one a time.
#[track_caller]
fn is_each_time(found: i64, each: i64, times: i64, what: &str) {
    let beside = found - each * times;
    let pages = (beside + 2048).div_euclid(4096);
    assert!((0..=times).contains(&pages), "{found} is not {times} times {each}: {what}");
    assert!((beside - pages * 4096).abs() <= 64 * times, "{found} is not {times} times {each}: {what}");
}

/// Bytes asked of the allocator.
fn check_blocks(report: &Report, program: &Script, python: &Python, entered: &Entered, what: &str) {
    let process = report.only();
    let number = |function, marker, name| process.line(function, program.line(marker)).number(name);
    // Objects of free-threaded builds are mimalloc's, which counts by the page.
    let tolerance = |each: i64| if python.free_threaded { each / 50 } else { 0 };
    let each = |found: i64, each: i64, times: i64, marker: &str| {
        let what = format!("{marker}, {what}");
        if tolerance(each) == 0 {
            is_each_time(found, each, times, &what);
        } else {
            let expected = each * times;
            assert!((found - expected).abs() <= tolerance(expected), "{found} is not {times} times {each}: {what}");
        }
    };
    let block = |length| python.of_bytearray(length) + python.around_an_object();
    if !python.free_threaded {
        each(number("inside", "# kept", "allocated_bytes"), block(2_000_000), entered.all, "kept");
        each(number("inside", "# gone", "allocated_bytes"), block(3_000_000), entered.all, "gone");
        each(-number("inside", "# dropped", "increment_bytes"), block(3_000_000), entered.all, "dropped");
        each(number("between", "# between", "allocated_bytes"), block(1_500_000), entered.all, "between");
    }
    each(number("inside", "# mapped", "increment_bytes"), 4_096_000, entered.all, "mapped");
    if entered.with_ctypes > 0 {
        let asked = number("inside", "# asked without", "increment_bytes");
        each(asked, 5_000_000, entered.with_ctypes, "asked");
    }
}

/// Pages that became resident.
fn check_pages(report: &Report, program: &Script, entered: &Entered, what: &str) {
    let line = report.only().line("inside", program.line("# filled"));
    let beside = line.increment() - 4_096_000 * entered.all;
    assert!((0..=8 * 4096 * entered.all).contains(&beside), "{beside} beside: {what}");
}

#[test]
fn root_code_of_a_sub_interpreter_is_on_its_own_lines() {
    if !root() {
        return;
    }
    let program = script("enters.py", PROGRAM);
    for python in pythons() {
        for marked in [&[][..], &["marked"]] {
            for options in [&["--mode", "heap"][..], &["--no-preload"], &["--mode", "pages"]] {
                let what = format!("{}, {options:?}, {marked:?}", python.path.display());
                let run = Run::json().words(options).words([&python.path, &program.path]).words(marked);
                let ran = run.run().expect(0).quiet();
                let entered = Entered::by(&ran.stdout_text());
                let report = ran.report();
                report.check_complete();
                if options.contains(&"pages") {
                    check_pages(&report, &program, &entered, &what);
                } else {
                    check_blocks(&report, &program, &python, &entered, &what);
                }
                if !marked.is_empty() && python.version.0 != 7 {
                    let occurrences = report.only().line("inside", program.line("# kept")).number("occurrences");
                    assert_eq!(occurrences, entered.all, "{what}");
                }
            }
        }
    }
}

#[test]
fn root_sub_interpreters_of_a_process_that_runs_already() {
    if !root() {
        return;
    }
    let program = script("enters.py", PROGRAM);
    for python in pythons() {
        for mode in ["heap", "pages"] {
            let what = format!("{}, attach, {mode}", python.path.display());
            let mut command = std::process::Command::new(&python.path);
            let target = Target::of(command.arg(&program.path).arg("wait"));
            let started = Run::json_of(["attach"]).words(["--mode", mode]).word(target.pid()).start_on(&target);
            let said = target.rest("go");
            let entered = Entered::by(&said);
            let report = started.end().expect(0).quiet().report();
            report.check_complete();
            match mode {
                "pages" => check_pages(&report, &program, &entered, &what),
                _ => check_blocks(&report, &program, &python, &entered, &what),
            }
        }
    }
}
