//! Code that Python's JIT compiled does not keep its line at every instruction: such lines are said to be approximate.

use crate::common::{Python, Report, Run, root, script, supported_pythons};

/// A hot loop, unmarked: line events would keep the JIT away.
const PROGRAM: &str = "
def hot():
    left = 'a' * 600
    right = 'b' * 600
    for number in range(20000):
        one = left + right
        two = left + one
        three = one + right
    return left  # end

hot()
";

fn has_jit(python: &Python) -> bool {
    python.version.0 >= 14 && python.bare(&["-c", "import sys; print(sys._jit.is_available())"]).trim() == "True"
}

#[test]
fn root_lines_of_the_jit_are_said_to_be_approximate() {
    if !root() {
        return;
    }
    let program = script("hot.py", PROGRAM);
    for python in supported_pythons().into_iter().filter(has_jit) {
        let run = |jit: &str, options: &[&str]| -> Report {
            let run = Run::json().words(options).env("PYTHON_JIT", jit).words([&python.path, &program.path]);
            let report = run.run().expect(0).quiet().report();
            report.check_complete();
            report
        };
        let approximate = |report: &Report| {
            let process = report.only();
            let lines = process.lines();
            let found = lines.iter().filter(|(name, line)| *name == "hot" && line.0["approximate"] == true);
            found.count()
        };
        let plain = run("0", &[]);
        assert_eq!((plain.health("approximate_events"), approximate(&plain)), (0, 0), "{python:?}");
        for options in [&[][..], &["--no-preload"]] {
            let jitted = run("1", options);
            assert!(jitted.health("approximate_events") > 1000, "{python:?} {options:?}");
            assert!(approximate(&jitted) > 0, "{python:?} {options:?}");
            // Never on a line that is not of the loop.
            let end = jitted.only().find("hot", program.line("# end")).map_or(0, |line| line.own());
            assert_eq!(end, 0, "{python:?} {options:?}");
        }
    }
}
