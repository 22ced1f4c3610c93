//! Checks of the report: status 3 and the lines.

use crate::common::{Run, any_python, root, script};

const GROW: &str = "\
kept = []
def load(size):
    kept.append(bytearray(size))

def main(size):
    load(size)

import sys
main(int(sys.argv[1]) << 20)
sys.exit(int(sys.argv[2]))
";

#[test]
fn root_a_limit_that_is_passed_is_status_three() {
    if !root() {
        return;
    }
    let program = script("grow.py", GROW);
    let python = any_python().path;
    let run =
        |options: &[&str], status: &str| Run::new(options).words([&python, &program.path]).words(["30", status]).run();
    run(&["--fail-above", "60", "--fail-line", "grow.py:3=31"], "0").expect(0).quiet();
    let ran = run(&["--fail-above", "30"], "0").expect(3);
    assert!(ran.stdout_text().starts_with("Filename: "), "{ran}");
    assert!(ran.stderr_text().contains("more than 30.000 MiB (--fail-above)\n"), "{ran}");
    assert!(ran.stderr_text().contains("grow.py:3  +30.000 MiB  kept.append(bytearray(size))\n"), "{ran}");
    let ran = run(&["--fail-line", "grow.py:6=29.5", "--fail-line", "gone.py:1=1"], "0").expect(3);
    assert!(ran.stderr_text().contains("more than 29.500 MiB (--fail-line grow.py:6) in process "), "{ran}");
    assert!(ran.stderr_text().contains("gone.py:1: no line of such a file was measured\n"), "{ran}");
    // The program's own failure goes first; what is wrong is said all the same.
    let ran = run(&["--fail-above", "30"], "9").expect(9);
    assert!(ran.stderr_text().contains("--fail-above"), "{ran}");
}

#[test]
fn root_growth_over_a_baseline_is_status_three() {
    if !root() {
        return;
    }
    let program = script("grow.py", GROW);
    let python = any_python().path;
    let run = |options: &[&str], size: &str| {
        let run = Run::new(options).words([&python, &program.path]).words([size, "0"]);
        run.directory(program.directory()).run()
    };
    run(&["-o", "before.json"], "30").expect(0).quiet();
    let checked = ["-o", "now.json", "--fail-growth", "20", "--baseline", "before.json"];
    run(&checked, "30").expect(0).quiet();
    let ran = run(&checked, "60").expect(3);
    assert!(ran.stderr_text().contains("more than 20 % (--fail-growth)\n"), "{ran}");
    assert!(
        ran.stderr_text().contains("grow.py:3  +60.000 MiB  kept.append(bytearray(size)) (baseline 30.000 MiB)\n"),
        "{ran}"
    );
    let ran = run(&["--mode", "pages", "--fail-growth", "20", "--baseline", "before.json"], "30").expect(125);
    assert!(
        ran.stderr_text().contains("error: cannot compare with before.json: it was measured in mode heap"),
        "{ran}"
    );
    assert!(!ran.stdout_text().contains("Filename"), "{ran}");
}
