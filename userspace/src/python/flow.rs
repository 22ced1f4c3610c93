//! Which line events go on with an execution of their line and begin no other.
//!
//! CPython tells a line each time execution comes to it from another. That is not what a person counts: the call of a statement of
//! several lines comes back to its first, so do the exits of a `with` block, and `return` once more after the body of `finally`. The
//! rule for all of these: a line began at one instruction, and the other can neither be come to nor be come to again without coming
//! through that one. A loop's test is come to again without the line's beginning before the loop: it counts each time.

use std::cell::Cell;

use super::layout::FlowCodes;
use super::line_table::LineTable;

/// Longest bytecode that is looked at, in units of two bytes.
const LONGEST: usize = 1 << 15;
/// So many instructions are looked at for one function. A program may be made to take long; then all events count.
const PATIENCE: u64 = 50_000_000;

/// The ways from instruction to instruction of one code object.
#[derive(Clone, Debug)]
pub struct Flow {
    instructions: Vec<Instruction>,
    looked_at: Cell<u64>,
}

/// What stands at one unit, by numbers of units; a prefix is an instruction, what an instruction keeps behind it belongs to it.
#[derive(Clone, Copy, Debug, Default)]
struct Instruction {
    line: Option<u32>,
    next: Option<u32>,
    jump: Option<u32>,
    /// Where an exception goes.
    handler: Option<u32>,
    /// Its jump goes back within an `await`.
    waits: bool,
}

impl Instruction {
    fn ways(self) -> impl Iterator<Item = usize> {
        [self.next, self.jump, self.handler].into_iter().flatten().map(|unit| unit as usize)
    }
}

impl Flow {
    /// Reads bytecode. `None`: it is longer than is looked at.
    pub fn new(
        codes: &FlowCodes,
        bytecode: &[u8],
        handlers: &[u8],
        lines: &LineTable,
        first_line: u32,
    ) -> Option<Flow> {
        let (units, _) = bytecode.as_chunks::<2>();
        if units.len() > LONGEST {
            return None;
        }
        let mut instructions = jumps(codes, units);
        for (instruction, line) in instructions.iter_mut().zip(lines.by_unit(first_line, units.len())) {
            instruction.line = line;
        }
        for handler in Handlers(handlers) {
            let end = handler.end.min(instructions.len());
            for instruction in instructions.get_mut(handler.start..end).unwrap_or_default() {
                instruction.handler = u32::try_from(handler.target).ok();
            }
        }
        Some(Flow { instructions, looked_at: Cell::new(0) })
    }

    /// Of places where `line` was begun, bytes of the bytecode: does the one at `at` go on with an execution?
    pub fn goes_on(&self, line: u32, at: u32, places: &[u32]) -> bool {
        let unit = |place: u32| place as usize / 2;
        at > 0
            && places.iter().any(|other| *other != at && self.needs(unit(at), unit(*other)))
            && !self.comes_round(line, unit(at))
            && self.looked_at.get() < PATIENCE
    }

    /// Is `through` on every way to `place`, from the beginning and from itself? Not where no way to it is known.
    fn needs(&self, place: usize, through: usize) -> bool {
        let Some(instruction) = self.instructions.get(place) else { return false };
        let again: Vec<usize> = instruction.ways().collect();
        !self.reaches(&[0], place, through)
            && !self.reaches(&again, place, through)
            && self.reaches(&[0], place, usize::MAX)
    }

    /// Does a way lead from any of `from` to `place` without going through `without`?
    fn reaches(&self, from: &[usize], place: usize, without: usize) -> bool {
        let mut seen = vec![false; self.instructions.len()];
        let mut waiting = from.to_vec();
        while let Some(at) = waiting.pop() {
            if at == place {
                return true;
            }
            let (Some(seen), Some(instruction)) = (seen.get_mut(at), self.instructions.get(at)) else { continue };
            if at != without && !std::mem::replace(seen, true) {
                if !self.is_patient() {
                    return true;
                }
                waiting.extend(instruction.ways());
            }
        }
        false
    }

    /// Does what stands at `place` and after it on the line lead into another round of a loop that has its head there? Then the line
    /// begins with it.
    fn comes_round(&self, line: u32, place: usize) -> bool {
        let mut seen = vec![false; self.instructions.len()];
        let mut waiting = vec![place];
        while let Some(at) = waiting.pop() {
            let (Some(seen), Some(instruction)) = (seen.get_mut(at), self.instructions.get(at)) else { continue };
            if std::mem::replace(seen, true) || !self.is_patient() {
                continue;
            }
            for way in [instruction.next, instruction.jump].into_iter().flatten().map(|unit| unit as usize) {
                if self.instructions.get(way).and_then(|target| target.line) != Some(line) {
                    continue;
                }
                if way <= at && !instruction.waits && !self.reaches(&[0], at, way) {
                    return true;
                }
                waiting.push(way);
            }
        }
        false
    }

    fn is_patient(&self) -> bool {
        self.looked_at.set(self.looked_at.get() + 1);
        self.looked_at.get() < PATIENCE
    }
}

/// The instructions and where they lead, without lines and handlers that are in tables.
fn jumps(codes: &FlowCodes, units: &[[u8; 2]]) -> Vec<Instruction> {
    let mut prefix = 0usize;
    let mut instructions = Vec::with_capacity(units.len());
    for (at, &[opcode, argument]) in units.iter().enumerate() {
        let argument = prefix << 8 | usize::from(argument);
        prefix = if opcode == codes.extended { argument & 0xff_ffff } else { 0 };
        let behind = units[at + 1..].iter().take_while(|unit| Some(unit[0]) == codes.cache).count();
        let next = at + 1 + behind;
        let distance = argument * usize::from(codes.argument_bytes) / 2;
        let target = if codes.forward.contains(&opcode) {
            next.checked_add(distance)
        } else if codes.backward.contains(&opcode) {
            next.checked_sub(distance)
        } else if codes.absolute.contains(&opcode) {
            Some(distance)
        } else {
            None
        };
        let unit = |unit: usize| u32::try_from(unit).ok().filter(|unit| (*unit as usize) < units.len());
        instructions.push(Instruction {
            next: unit(next).filter(|_| !codes.ends.contains(&opcode)),
            jump: target.and_then(unit),
            waits: codes.awaits.contains(&opcode),
            ..Instruction::default()
        });
    }
    instructions
}

/// An entry of `co_exceptiontable`, in units.
struct Handler {
    start: usize,
    end: usize,
    target: usize,
}

/// The entries: start, length, target and depth as numbers of six-bit groups, highest first; bit 6 tells that another group follows
/// (Objects/exception_handling_notes.txt of 3.11).
struct Handlers<'a>(&'a [u8]);

impl Handlers<'_> {
    fn number(&mut self) -> Option<usize> {
        let mut value = 0usize;
        for _ in 0..6 {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value = value << 6 | usize::from(byte & 63);
            if byte & 64 == 0 {
                return Some(value);
            }
        }
        None
    }
}

impl Iterator for Handlers<'_> {
    type Item = Handler;

    fn next(&mut self) -> Option<Handler> {
        let (start, length, target) = (self.number()?, self.number()?, self.number()?);
        self.number()?;
        Some(Handler { start, end: start + length, target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::layout;
    use crate::python::line_table::LineTableKind;

    fn codes(minor: u8) -> &'static FlowCodes {
        layout::known().iter().find(|layout| layout.minor == minor).unwrap().flow.as_ref().unwrap()
    }

    fn flow(minor: u8, kind: LineTableKind, bytecode: &[u8], table: &[u8]) -> Flow {
        let lines = LineTable { kind, bytes: table.to_vec(), bytecode_bytes: None };
        Flow::new(codes(minor), bytecode, &[], &lines, 1).unwrap()
    }

    #[test]
    fn a_call_comes_back_to_its_first_line_and_a_loop_begins_it_again() {
        // As CPython 3.9.18 compiles `a(\n b)`: LOAD_GLOBAL, LOAD_GLOBAL (line 3), CALL_FUNCTION, POP_TOP (line 2).
        let code = [116, 0, 116, 1, 131, 1, 1, 0, 100, 0, 83, 0];
        let call = flow(9, LineTableKind::Lnotab, &code, &[0, 1, 2, 1, 2, 255]);
        assert!(call.goes_on(2, 4, &[0, 4]));
        assert!(!call.goes_on(2, 0, &[0, 4]));
        // `while a: b` and, as nothing else is between, the same test in the middle of a loop around it.
        let code = [116, 0, 114, 10, 116, 1, 1, 0, 113, 0, 100, 0, 83, 0];
        let test = flow(9, LineTableKind::Lnotab, &code, &[0, 1, 4, 1]);
        assert!(!test.goes_on(2, 0, &[0, 4]));
        assert!(!test.goes_on(3, 4, &[4]));
    }

    #[test]
    fn exception_tables_are_of_numbers_highest_group_first() {
        let entries: Vec<_> =
            Handlers(&[0x80 | 11, 20, 65, 3, 1]).map(|entry| (entry.start, entry.end, entry.target)).collect();
        assert_eq!(entries, [(11, 31, 67)]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do(
            bytecode in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            table in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            handlers in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            places in proptest::collection::vec(0u32..300, 1..6),
        ) {
            for layout in layout::known() {
                let Some(codes) = &layout.flow else { continue };
                let lines =
                    LineTable { kind: layout.line_table_kind, bytes: table.clone(), bytecode_bytes: None };
                let flow = Flow::new(codes, &bytecode, &handlers, &lines, 1).unwrap();
                // One of the places begins the line, whatever the bytes say.
                proptest::prop_assert!(!places.iter().all(|at| flow.goes_on(1, *at, &places)));
            }
        }
    }
}
