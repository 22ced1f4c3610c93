//! The clean-up of a `with` block stands on the line of the block and is no execution of it.

use crate::common::{Run, near, root, script, supported_pythons};

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

/// Blocks that are left at their end and by exceptions, which the manager keeps or lets through.
const MANAGERS: &str = "
import asyncio

class Manager:
    def __init__(self, keeps):
        self.keeps = keeps
    def __enter__(self):
        pass
    def __exit__(self, *raised):
        self.more = bytearray(3_000_000)
        return self.keeps
    async def __aenter__(self):
        pass
    async def __aexit__(self, *raised):
        return self.__exit__()

def ends(manager):
    with manager:  # with: ends
        pass
        len('body')

def keeps(manager):
    with manager:  # with: keeps
        pass
        raise ValueError

def lets(manager):
    with manager:  # with: lets
        pass
        raise ValueError

async def waits(manager):
    async with manager:  # with: waits
        pass
        raise ValueError

ends(Manager(True))
keeps(Manager(True))
asyncio.new_event_loop().run_until_complete(waits(Manager(True)))
try:
    lets(Manager(False))
except ValueError:
    pass
";

#[test]
fn root_what_leaving_a_with_block_takes_is_on_its_line() {
    if !root() {
        return;
    }
    let program = script("managers.py", MANAGERS);
    for python in supported_pythons() {
        let report = Run::json().word(&python.path).word(&program.path).run().expect(0).quiet().report();
        for function in ["ends", "keeps", "lets", "waits"] {
            let line = report.only().line(function, program.line(&format!("# with: {function}")));
            // And pages of Python's arenas.
            near(line.number("allocated_bytes"), 3_000_001, 32_768);
        }
    }
}
