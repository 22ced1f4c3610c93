//! Occurrences are what a person counts: tests/programs/occurrences.py says it beside each line, this what each Python tells.

use crate::common::{Run, root, script, supported_pythons};

const PROGRAM: &str = include_str!("../programs/occurrences.py");

/// `match` is no syntax before 3.10.
const MATCH: &str = "
def matches(subject):
    match subject:  # 3
        case 1:  # 3
            len('x')  # 1
        case [a, b] if a:  # 2
            len('y')  # 1
        case _:
            len('z')  # 1
    try:  # 3
        match subject:  # 3
            case 1:  # 3
                return len('x')  # 1
    finally:
        len('f')  # 3
    return 1  # 2

profile(matches)
for subject in (1, [1, 2], 'z'):
    matches(subject)
";

/// Lines, their functions, and how often they run; without those that CPython up to 3.7 does not tell, where it is one of these.
fn truth(text: &str, all: bool) -> Vec<(u32, String, u64)> {
    let mut function = String::new();
    let mut found = Vec::new();
    let mut continued = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if let Some((name, _)) =
            line.strip_prefix("async ").unwrap_or(line).strip_prefix("def ").and_then(|rest| rest.split_once('('))
        {
            name.clone_into(&mut function);
        }
        if line.ends_with('\\') {
            continued.push(number); // no room for a comment: as the line after it
        } else if let Some((_, count)) = line.split_once("  # ") {
            let known = all || !count.starts_with('~');
            let count: u64 = count.trim_start_matches('~').parse().unwrap();
            let lines = continued.drain(..).chain([number]);
            found.extend(lines.filter(|_| known).map(|number| (number, function.clone(), count)));
        }
    }
    found
}

#[test]
fn root_occurrences_are_what_a_person_counts() {
    if !root() {
        return;
    }
    let mut wrong = Vec::new();
    for (text, since) in [(PROGRAM, 6), (MATCH, 10)] {
        let program = script("occurrences.py", text);
        // A script of the tests begins after an empty line.
        let shift = u32::from(text.starts_with('\n'));
        for python in supported_pythons().into_iter().filter(|python| python.version.0 >= since) {
            let truth = truth(text, python.version.0 >= 8);
            assert!(truth.len() > 10);
            let report = Run::json().word(&python.path).word(&program.path).run().expect(0).quiet().report();
            let process = report.only();
            for (number, function, count) in &truth {
                let found = process.find(function, number - shift);
                let found = found.and_then(|line| line.0["occurrences"].as_u64()).unwrap_or(0);
                if found != *count {
                    wrong.push(format!("{}: line {number} of {function}: {found}, not {count}", python.version_text()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
