//! How much of its stack one function takes: where it loads and stores through the frame's register and the registers made of it.

use super::instruction::{
    ADD, ADD_REGISTER, ARITHMETIC, ARITHMETIC_32, BRANCH, BRANCH_32, CALL, EXIT, FRAME, Instruction, JUMP, JUMP_FAR,
    LOAD, LOAD_WIDE, MOVE_REGISTER, STORE, STORE_REGISTER, SUBTRACT,
};

/// What one function may have (MAX_BPF_STACK in include/linux/filter.h).
const MOST: i32 = 512;
/// A register that points into the stack: how far from its end, the deepest way there is. None: it does not.
type Registers = [Option<i32>; 11];

/// The deepest byte of the stack that is reached, or that an address is made of: what a helper or a callback gets the address of
/// counts from there.
pub fn deepest(code: &[Instruction]) -> u32 {
    let mut found = 0;
    let mut before: Vec<Option<Registers>> = vec![None; code.len()];
    let mut begin = Registers::default();
    begin[usize::from(FRAME)] = Some(0);
    let mut open = vec![(0, begin)];
    while let Some((place, arriving)) = open.pop() {
        let (Some(instruction), Some(known)) = (code.get(place), before.get_mut(place)) else { continue };
        let merged = known.map_or(arriving, |known| merge(&known, &arriving));
        if *known == Some(merged) {
            continue;
        }
        *known = Some(merged);
        let mut registers = merged;
        found = found.min(reached(*instruction, &registers)).min(step(*instruction, &mut registers));
        open.extend(next(*instruction, place).into_iter().flatten().map(|place| (place, registers)));
    }
    found.max(-MOST).unsigned_abs()
}

/// Two ways lead here: the deeper one counts.
fn merge(one: &Registers, other: &Registers) -> Registers {
    std::array::from_fn(|register| match (one[register], other[register]) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    })
}

/// Where it loads or stores.
fn reached(instruction: Instruction, registers: &Registers) -> i32 {
    let register = match instruction.class() {
        LOAD => instruction.source,
        STORE | STORE_REGISTER => instruction.target,
        _ => return 0,
    };
    get(registers, register).map_or(0, |base| base + i32::from(instruction.offset))
}

/// What it makes of the registers; and how deep the one points that it made.
fn step(instruction: Instruction, registers: &mut Registers) -> i32 {
    let (own, other) = (get(registers, instruction.target), get(registers, instruction.source));
    let made = match instruction.code {
        MOVE_REGISTER if instruction.offset == 0 => other,
        ADD => own.map(|own| own.saturating_add(instruction.immediate)),
        SUBTRACT => own.map(|own| own.saturating_sub(instruction.immediate)),
        // An index, which is not below what it is an index of.
        ADD_REGISTER => own.or(other),
        CALL => {
            registers[..=5].fill(None);
            return 0;
        }
        LOAD_WIDE => None,
        _ if matches!(instruction.class(), LOAD | ARITHMETIC | ARITHMETIC_32) => None,
        _ => return 0,
    };
    // A loop that goes down would not end.
    let made = made.map(|made| made.max(-MOST));
    if let Some(register) = registers.get_mut(usize::from(instruction.target)) {
        *register = made;
    }
    made.unwrap_or(0)
}

fn get(registers: &Registers, register: u8) -> Option<i32> {
    registers.get(usize::from(register)).copied().flatten()
}

/// Where it goes on, one way or two.
fn next(instruction: Instruction, place: usize) -> [Option<usize>; 2] {
    let far = |distance: i32| (place + 1).checked_add_signed(isize::try_from(distance).ok()?);
    let jump = far(i32::from(instruction.offset));
    match instruction.code {
        EXIT => [None, None],
        JUMP => [jump, None],
        JUMP_FAR => [far(instruction.immediate), None],
        LOAD_WIDE => [Some(place + 2), None],
        CALL => [Some(place + 1), None],
        _ if matches!(instruction.class(), BRANCH | BRANCH_32) => [Some(place + 1), jump],
        _ => [Some(place + 1), None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE_8: u8 = 0x7b;
    const STORE_IMMEDIATE: u8 = 0x7a;
    const LOAD_8: u8 = 0x79;
    const EQUAL: u8 = 0x15;

    fn one(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        Instruction { code, target, source, offset, immediate }
    }

    fn exit() -> Instruction {
        one(EXIT, 0, 0, 0, 0)
    }

    #[test]
    fn nothing_is_taken_where_the_frame_is_not_touched() {
        assert_eq!(deepest(&[one(LOAD_8, 1, 1, -64, 0), one(STORE_8, 1, 2, -64, 0), exit()]), 0);
    }

    #[test]
    fn stores_and_loads_count_from_the_frame() {
        assert_eq!(deepest(&[one(STORE_8, FRAME, 1, -24, 0), exit()]), 24);
        assert_eq!(deepest(&[one(STORE_IMMEDIATE, FRAME, 0, -32, 7), exit()]), 32);
        assert_eq!(deepest(&[one(LOAD_8, 1, FRAME, -40, 0), exit()]), 40);
    }

    #[test]
    fn an_address_counts_when_it_is_made() {
        // As clang mixes them: each register's move, then each one's offset.
        let code = [
            one(MOVE_REGISTER, 2, FRAME, 0, 0),
            one(MOVE_REGISTER, 3, FRAME, 0, 0),
            one(ADD, 2, 0, 0, -136),
            one(SUBTRACT, 3, 0, 0, 16),
            one(CALL, 0, 0, 0, 1),
            exit(),
        ];
        assert_eq!(deepest(&code), 136);
    }

    #[test]
    fn a_copy_is_followed_with_its_own_offset() {
        let code = [
            one(MOVE_REGISTER, 6, FRAME, 0, 0),
            one(ADD, 6, 0, 0, -64),
            one(MOVE_REGISTER, 7, 6, 0, 0),
            one(STORE_8, 7, 1, -8, 0),
            exit(),
        ];
        assert_eq!(deepest(&code), 72);
    }

    #[test]
    fn what_is_no_address_any_more_is_left_alone() {
        let overwritten =
            [one(MOVE_REGISTER, 1, FRAME, 0, 0), one(LOAD_8, 1, 1, -8, 0), one(ADD, 1, 0, 0, -400), exit()];
        assert_eq!(deepest(&overwritten), 8);
        let called = [one(MOVE_REGISTER, 0, FRAME, 0, 0), one(CALL, 0, 0, 0, 1), one(ADD, 0, 0, 0, -400), exit()];
        assert_eq!(deepest(&called), 0);
    }

    #[test]
    fn registers_are_followed_along_jumps() {
        // The move is before the branch, the other way gives the register away, the offset is behind both.
        let code = [
            one(MOVE_REGISTER, 6, FRAME, 0, 0),
            one(EQUAL, 1, 0, 2, 0),
            one(LOAD_8, 6, 1, 0, 0),
            one(JUMP, 0, 0, 1, 0),
            one(ADD, 6, 0, 0, -200),
            exit(),
        ];
        assert_eq!(deepest(&code), 200);
    }

    #[test]
    fn the_deeper_of_two_ways_counts() {
        let code = [
            one(MOVE_REGISTER, 6, FRAME, 0, 0),
            one(ADD, 6, 0, 0, -8),
            one(EQUAL, 1, 0, 1, 0),
            one(ADD, 6, 0, 0, -8),
            one(STORE_8, 6, 1, -100, 0),
            exit(),
        ];
        assert_eq!(deepest(&code), 116);
    }

    #[test]
    fn a_loop_that_goes_down_ends() {
        let code = [one(MOVE_REGISTER, 1, FRAME, 0, 0), one(ADD, 1, 0, 0, -8), one(EQUAL, 2, 0, -2, 0), exit()];
        assert_eq!(deepest(&code), 512);
    }

    #[test]
    fn the_second_half_of_a_wide_load_is_no_instruction() {
        assert_eq!(deepest(&[one(LOAD_WIDE, 1, 0, 0, 0), one(STORE_8, FRAME, 1, -48, 0), exit()]), 0);
    }
}
