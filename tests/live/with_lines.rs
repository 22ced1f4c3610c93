//! The clean-up of a `with` block stands on the line of the block and is no execution of it.

use crate::common::{Run, root, script, supported_pythons};

/// Blocks left in every way: at the end, by `continue`, `break` and `return`, by an exception; nested, in a loop, with `pass` as
/// their body, and lines that look like a clean-up.
const PROGRAM: &str = "
class Block:
    def __enter__(self):
        return self
    def __exit__(self, *raised):
        return True

def early(values):
    for value in values:
        with Block():  # 3: in a loop
            if value == 1:  # 3
                continue
            if value == 2:  # 2
                break

def nested():
    with Block():  # 1: outer
        with Block():  # 1: inner
            return len('x')  # 1: returns

def raising():
    with Block():  # 1: raising
        raise ValueError  # 1: raises

def empty():
    for value in range(3):
        with Block():  # 3: empty
            pass  # 3

def others(function=lambda *given: given):
    for value in range(3):
        kept = 1  # 3
        function(
            None, None, None)  # 3: three times None
        kept = [None, [None, None]]  # 3: lists

def holds():
    with Block():  # 1: holds
        kept = bytearray(8 << 20)  # 1: grows
        kept[::4096] = bytes(len(kept[::4096]))  # 1: touches
    return len(kept)

for function in (early, nested, raising, empty, others, holds):
    profile(function)
early(range(5))
nested()
raising()
empty()
others()
holds()
";

#[test]
fn root_leaving_a_with_block_is_no_execution_of_its_line() {
    if !root() {
        return;
    }
    let program = script("with_lines.py", PROGRAM);
    for python in supported_pythons() {
        let report = Run::json().word(&python.path).word(&program.path).run().expect(0).quiet().report();
        let process = report.only();
        let mut checked = 0;
        for (number, text) in PROGRAM.lines().skip(1).enumerate() {
            let Some((_, comment)) = text.split_once("# ") else { continue };
            let expected: i64 = comment.split(':').next().unwrap().parse().unwrap();
            let functions = ["early", "nested", "raising", "empty", "others", "holds"];
            let number = u32::try_from(number + 1).unwrap();
            let function = functions.iter().rfind(|name| program.line(&format!("def {name}(")) < number).unwrap();
            let found = process.line(function, number).number("occurrences");
            assert_eq!(found, expected, "line {number} of {function} on {}", python.version_text());
            checked += 1;
        }
        assert_eq!(checked, 16);
        // What it shows is what was there when the block was entered.
        let resident = |needle| process.line("holds", program.line(needle)).number("mem_usage_bytes");
        assert!(resident("# 1: touches") - resident("# 1: holds") >= 8 << 20, "{}", python.version_text());
    }
}
