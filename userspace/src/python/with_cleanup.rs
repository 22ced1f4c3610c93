//! The clean-up of a `with` block on CPython up to 3.9 stands on the line of the last statement of its body; from 3.10 on it stands
//! on the line of the `with` statement (bpo-43933). What it releases belongs to the `with` line on every version, so the older
//! ones are read as the newer ones are.

use super::code::{LONGEST_TABLE, Memory};
use super::layout::Layout;

/// Instructions of a clean-up, as byte offsets into the bytecode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CleanUp {
    /// First byte.
    pub start: u32,
    /// One past the last.
    pub end: u32,
    /// The instruction whose line it gets: `SETUP_WITH` or `SETUP_ASYNC_WITH`.
    pub setup: u32,
}

/// What differs between the versions (Include/opcode.h; Python/compile.c, compiler_with and compiler_unwind_fblock, for the sequences).
struct Version {
    minor: u8,
    /// What clean-ups consist of, in order: of what leaves the body by itself, and of exceptions where that is another. In each
    /// `await` may add its own after so many instructions.
    sequences: &'static [(&'static [u8], usize)],
}

const VERSIONS: &[Version] = &[
    // An exception that the manager keeps is forgotten by the last of these (Python/ceval.c, WHY_SILENCED), from 3.8 on by the second.
    Version { minor: 6, sequences: &[(&[WITH_CLEANUP_START, WITH_CLEANUP_FINISH, END_FINALLY], 1)] },
    Version { minor: 7, sequences: &[(&[WITH_CLEANUP_START, WITH_CLEANUP_FINISH, END_FINALLY], 1)] },
    Version { minor: 8, sequences: &[(&[WITH_CLEANUP_START, WITH_CLEANUP_FINISH], 1)] },
    Version { minor: 9, sequences: &[(&[LOAD_CONST, DUP_TOP, DUP_TOP, CALL_FUNCTION, POP_TOP], 4), (RAISED, 1)] },
];

/// Of an exception on 3.9 (compiler_with_except_finish), to where it is forgotten.
const RAISED: &[u8] = &[WITH_EXCEPT_START, POP_JUMP_IF_TRUE, RERAISE, POP_TOP, POP_TOP, POP_TOP, POP_EXCEPT, POP_TOP];

const POP_TOP: u8 = 1;
const DUP_TOP: u8 = 4;
const RERAISE: u8 = 48;
const WITH_EXCEPT_START: u8 = 49;
const YIELD_FROM: u8 = 72;
const GET_AWAITABLE: u8 = 73;
const WITH_CLEANUP_START: u8 = 81;
const WITH_CLEANUP_FINISH: u8 = 82;
const END_FINALLY: u8 = 88;
const POP_EXCEPT: u8 = 89;
const LOAD_CONST: u8 = 100;
const POP_JUMP_IF_TRUE: u8 = 115;
const CALL_FUNCTION: u8 = 131;
const SETUP_WITH: u8 = 143;
const EXTENDED_ARG: u8 = 144;
const SETUP_ASYNC_WITH: u8 = 154;
/// What `await` puts into a sequence.
const AWAIT: &[u8] = &[GET_AWAITABLE, LOAD_CONST, YIELD_FROM];
/// Clean-ups of nested blocks that one `return` leaves stand no further apart than this, bytes.
const NEXT_OUTER: usize = 16;

/// A `with` block: from its setup to where exceptions are handled.
struct Block {
    setup: usize,
    handler: usize,
}

/// Reads the bytecode of the code object at `address`, on versions whose lines are mended by it. `None`: on others, or when it cannot be
/// read; then the lines are CPython's own.
pub fn read(layout: &Layout, memory: &(impl Memory + ?Sized), address: u64) -> Option<Vec<u8>> {
    if !is_needed(layout.minor) {
        return None;
    }
    let place = u64::from(layout.code_base) + u64::from(layout.code_code);
    let object = memory.read_u64(address.wrapping_add(place)).ok()?;
    let length = usize::try_from(memory.read_u64(object.wrapping_add(layout.bytes_length.into())).ok()?).ok()?;
    let mut bytes = vec![0; (length <= LONGEST_TABLE).then_some(length)?];
    memory.read(object.wrapping_add(layout.bytes_data.into()), &mut bytes).ok()?;
    Some(bytes)
}

/// Whether the lines of a version are to be mended by the bytecode.
pub fn is_needed(minor: u8) -> bool {
    VERSIONS.iter().any(|version| version.minor == minor)
}

/// The clean-ups in bytecode; none on versions that need none.
pub fn of(minor: u8, bytecode: &[u8]) -> Vec<CleanUp> {
    VERSIONS.iter().find(|version| version.minor == minor).map_or_else(Vec::new, |version| find(version, bytecode))
}

fn find(version: &Version, bytecode: &[u8]) -> Vec<CleanUp> {
    let (units, _) = bytecode.as_chunks::<2>();
    // Blocks that begin before the place and whose handler has not been passed, innermost last.
    let mut open: Vec<Block> = Vec::new();
    let mut found: Vec<CleanUp> = Vec::new();
    let (mut extended, mut outer, mut last_end) = (0usize, 0usize, usize::MAX);
    let mut at = 0;
    while let Some(&[opcode, argument]) = units.get(at) {
        open.retain(|block| block.handler >= at);
        let argument = extended << 8 | usize::from(argument);
        extended = if opcode == EXTENDED_ARG { argument & 0xff_ffff } else { 0 };
        if opcode == SETUP_WITH || opcode == SETUP_ASYNC_WITH {
            open.push(Block { setup: at, handler: at.saturating_add(1 + argument / 2) });
        }
        let lengths = version.sequences.iter();
        if let Some(length) = lengths.filter_map(|sequence| sequence_length(*sequence, &units[at..])).next() {
            // One after the other: a return that leaves several blocks, from the inside out.
            let follows = last_end != usize::MAX && (at - last_end) * 2 <= NEXT_OUTER;
            outer = if follows { outer + 1 } else { 0 };
            let own = open.iter().rposition(|block| block.handler == at);
            let place = own.or_else(|| open.len().checked_sub(1 + outer));
            if let Some(block) = place.and_then(|place| open.get(place)) {
                let offset = |unit: usize| u32::try_from(unit * 2).unwrap_or(u32::MAX);
                found.push(CleanUp { start: offset(at), end: offset(at + length), setup: offset(block.setup) });
            }
            // The handler's own clean-up and a body's normal end finish their block: what comes after starts from the inside again.
            last_end = if own.is_some() { usize::MAX } else { at + length };
            at += length;
        } else {
            at += 1;
        }
    }
    found
}

/// How many units a sequence takes at the beginning of `units`, with what `await` adds; `None`: it is not there.
fn sequence_length((sequence, awaits): (&[u8], usize), units: &[[u8; 2]]) -> Option<usize> {
    let (first, last) = sequence.split_at_checked(awaits)?;
    let matches = |from: usize, opcodes: &[u8]| {
        opcodes.iter().enumerate().all(|(i, opcode)| units.get(from + i).is_some_and(|unit| unit[0] == *opcode))
    };
    if !matches(0, first) || first.last() == Some(&CALL_FUNCTION) && units.get(first.len() - 1)?[1] != 3 {
        return None;
    }
    let awaited = if matches(first.len(), AWAIT) { AWAIT.len() } else { 0 };
    let rest = first.len() + awaited;
    // In long code the jump has a prefix.
    let far =
        units.get(rest..)?.iter().take_while(|unit| unit[0] == EXTENDED_ARG && last[0] == POP_JUMP_IF_TRUE).count();
    matches(rest + far, last).then_some(sequence.len() + awaited + far)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(minor: u8) -> &'static Version {
        VERSIONS.iter().find(|version| version.minor == minor).unwrap()
    }

    #[test]
    fn the_end_of_a_body_gets_the_line_of_the_with() {
        // As CPython 3.9.18 compiles `with a as b: c`, up to the handler's first instruction.
        #[rustfmt::skip]
        let code = [
            101, 0, SETUP_WITH, 20, 90, 1, 101, 2, POP_TOP, 0, 87, 0,
            LOAD_CONST, 0, DUP_TOP, 0, DUP_TOP, 0, CALL_FUNCTION, 3, POP_TOP, 0, 110, 16, 49, 0,
        ];
        assert_eq!(find(version(9), &code), [CleanUp { start: 12, end: 22, setup: 2 }]);
        // As 3.8.18 does: the body's end falls through into the handler.
        #[rustfmt::skip]
        let code = [
            101, 0, SETUP_WITH, 10, 90, 1, 101, 2, POP_TOP, 0, 87, 0, 53, 0,
            WITH_CLEANUP_START, 0, WITH_CLEANUP_FINISH, 0, 88, 0, LOAD_CONST, 0, 83, 0,
        ];
        assert_eq!(find(version(8), &code), [CleanUp { start: 14, end: 18, setup: 2 }]);
        // 3.7.16 does the same, and forgets the exception an instruction later.
        assert_eq!(find(version(7), &code), [CleanUp { start: 14, end: 20, setup: 2 }]);
    }

    #[test]
    fn what_an_exception_does_gets_the_line_of_the_with() {
        // As CPython 3.9.18 compiles the handler of `with a: b`, far into long code, and of `async with`.
        #[rustfmt::skip]
        let raised = [
            RERAISE, 0, POP_TOP, 0, POP_TOP, 0, POP_TOP, 0, POP_EXCEPT, 0, POP_TOP, 0, LOAD_CONST, 0, 83, 0,
        ];
        let near = [&[WITH_EXCEPT_START, 0, POP_JUMP_IF_TRUE, 12][..], &raised].concat();
        let far = [&[WITH_EXCEPT_START, 0, EXTENDED_ARG, 1, POP_JUMP_IF_TRUE, 12][..], &raised].concat();
        let awaited = [
            &[WITH_EXCEPT_START, 0, GET_AWAITABLE, 0, LOAD_CONST, 0, YIELD_FROM, 0, POP_JUMP_IF_TRUE, 12][..],
            &raised,
        ]
        .concat();
        for (code, units) in [(near, 8), (far, 9), (awaited, 11)] {
            let code = [&[101, 0, SETUP_WITH, 4, POP_TOP, 0, POP_TOP, 0][..], &code].concat();
            assert_eq!(find(version(9), &code), [CleanUp { start: 8, end: 8 + 2 * units, setup: 2 }]);
        }
    }

    #[test]
    fn a_call_of_three_arguments_is_no_clean_up() {
        let code = [SETUP_WITH, 20, LOAD_CONST, 0, LOAD_CONST, 0, LOAD_CONST, 0, CALL_FUNCTION, 3, POP_TOP, 0];
        assert_eq!(find(version(9), &code), []);
        let code = [SETUP_WITH, 20, LOAD_CONST, 0, DUP_TOP, 0, DUP_TOP, 0, CALL_FUNCTION, 2, POP_TOP, 0];
        assert_eq!(find(version(9), &code), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_do(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            for version in VERSIONS {
                for clean_up in find(version, &bytes) {
                    proptest::prop_assert!(clean_up.start < clean_up.end && clean_up.end as usize <= bytes.len());
                    proptest::prop_assert!(clean_up.setup < clean_up.start);
                }
            }
        }
    }
}
