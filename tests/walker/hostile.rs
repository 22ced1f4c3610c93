//! The walker over memory that no interpreter would make: no crash, no endless walk, and a status that says what was seen.

use std::collections::BTreeMap;
use std::io;

use proptest::prelude::*;
use rmprof_bpf::python::code::Memory;
use rmprof_bpf::python::layout::{
    ABSENT, CODE_READ, FRAME_READ, Layout, POSITION_BYTES, POSITION_POINTER, POSITION_UNITS, known,
};
use rmprof_probes::abi;

use super::MOST_FRAMES;
use super::host::{GLIBC_SPECIFIC, Walk, frame_bytes, process, walker};

/// Pieces of memory by address; all between them is unmapped.
#[derive(Default)]
struct Pieces(BTreeMap<u64, Vec<u8>>);

impl Memory for Pieces {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let unmapped = || io::Error::from_raw_os_error(libc::EFAULT);
        let (start, piece) = self.0.range(..=address).next_back().ok_or_else(unmapped)?;
        let from = usize::try_from(address - start).map_err(|_| unmapped())?;
        let end = from.checked_add(buffer.len()).ok_or_else(unmapped)?;
        buffer.copy_from_slice(piece.get(from..end).ok_or_else(unmapped)?);
        Ok(())
    }
}

const THREAD: u64 = 0x10_0000;
const HOP: u64 = 0x20_0000;
const CODE: u64 = 0x30_0000;
const FRAMES: u64 = 0x40_0000;
const KEY: u64 = 0x50_0000;
const THREAD_POINTER: u64 = 0x60_0000;
const KEY_BLOCK: u64 = 0x70_0000;
const COPIES: u64 = 0x80_0000;
const COPY: u64 = 0x90_0000;

/// Which copy of the bytecode the test's frames execute.
const COPY_INDEX: u32 = 3;

/// Where the test's frame `number` is.
fn frame_at(number: u64) -> u64 {
    FRAMES + number * 0x1000
}

/// Where the bytecode begins that they execute.
fn bytecode(layout: &Layout) -> u64 {
    if layout.code_thread_bytecode == ABSENT { CODE + u64::from(layout.code_bytecode) } else { COPY }
}

impl Pieces {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.0.insert(address, bytes.to_vec());
    }

    fn put_u64(&mut self, address: u64, value: u64) {
        self.put(address, &value.to_le_bytes());
    }

    /// A thread whose innermost frame is at `frame`.
    fn thread(layout: &Layout, frame: u64) -> Pieces {
        let mut memory = Pieces::default();
        let head = THREAD + u64::from(layout.thread_head);
        if layout.thread_head_hop == ABSENT {
            memory.put_u64(head, frame);
        } else {
            memory.put_u64(head, HOP);
            memory.put_u64(HOP + u64::from(layout.thread_head_hop), frame);
        }
        let mut code = vec![0; CODE_READ];
        set(&mut code, layout.code_line_table, &0x1234_5678_9ab0_u64.to_le_bytes());
        set(&mut code, layout.code_first_line, &7_u32.to_le_bytes());
        memory.put(CODE + u64::from(layout.code_base), &code);
        if layout.code_thread_bytecode != ABSENT {
            memory.put_u64(CODE + u64::from(layout.code_thread_bytecode), COPIES);
            memory.put_u64(COPIES + u64::from(layout.thread_bytecode_entries) + 8 * u64::from(COPY_INDEX), COPY);
        }
        memory
    }

    /// A frame: where its caller is, its code object, and what it has for the instruction that it executes.
    fn frame(&mut self, layout: &Layout, number: u64, back: u64, position: u64) {
        let mut frame = vec![0; FRAME_READ];
        set(&mut frame, layout.frame_back, &back.to_le_bytes());
        // Where the pointer has tag bits they are set: no part of the address.
        set(&mut frame, layout.frame_code, &(CODE | u64::from(layout.frame_code_tags)).to_le_bytes());
        let width = if layout.position_kind == POSITION_POINTER { 8 } else { 4 };
        set(&mut frame, layout.frame_position, &position.to_le_bytes()[..width]);
        if layout.frame_bytecode_index != ABSENT {
            set(&mut frame, layout.frame_bytecode_index, &COPY_INDEX.to_le_bytes());
        }
        self.put(frame_at(number).wrapping_add(layout.frame_base.into()), &frame);
    }

    /// Makes a frame one of the interpreter's own. `false` where it has none.
    fn make_shim(&mut self, layout: &Layout, number: u64) -> bool {
        if layout.owner_skip == ABSENT {
            return false;
        }
        let frame = self.0.get_mut(&(frame_at(number) + u64::from(layout.frame_base))).unwrap();
        frame[layout.frame_owner as usize] = u8::try_from(layout.owner_skip).unwrap();
        true
    }

    fn walk(&self, layout: &Layout) -> Walk {
        walker().walk(self, &process(layout, 0), THREAD)
    }
}

fn set(bytes: &mut [u8], offset: u32, value: &[u8]) {
    bytes[offset as usize..][..value.len()].copy_from_slice(value);
}

fn status_and_frames(walk: &Walk) -> (u32, usize) {
    (walk.status, walk.frames.len())
}

#[test]
fn no_frame_is_no_thread() {
    for layout in known() {
        assert_eq!(status_and_frames(&Pieces::thread(layout, 0).walk(layout)), (abi::RM_STACK_NO_THREAD, 0));
        if layout.thread_head_hop != ABSENT {
            let mut memory = Pieces::default();
            memory.put_u64(THREAD + u64::from(layout.thread_head), 0);
            assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_NO_THREAD, 0));
        }
    }
}

#[test]
fn a_thread_state_that_cannot_be_read() {
    for layout in known() {
        assert_eq!(status_and_frames(&Pieces::default().walk(layout)), (abi::RM_STACK_UNREADABLE, 0));
    }
}

#[test]
fn a_frame_pointer_of_garbage() {
    for layout in known() {
        for garbage in [1, 0xdead_beef, u64::MAX, u64::MAX - 80, 1 << 63, FRAMES] {
            let walk = Pieces::thread(layout, garbage).walk(layout);
            assert_eq!(status_and_frames(&walk), (abi::RM_STACK_UNREADABLE, 0), "{garbage:#x}");
        }
    }
}

#[test]
fn frames_before_the_unreadable_one_are_kept() {
    for layout in known() {
        let mut memory = Pieces::thread(layout, frame_at(0));
        memory.frame(layout, 0, frame_at(1), 0);
        memory.frame(layout, 1, frame_at(2), 0);
        assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_UNREADABLE, 2));
        // What follows the last field wanted may be on a page that is not there; that field's last byte may not.
        let wanted = frame_bytes(layout) as usize;
        for (bytes, expected) in [(wanted, (abi::RM_STACK_COMPLETE, 3)), (wanted - 1, (abi::RM_STACK_UNREADABLE, 2))] {
            memory.frame(layout, 2, 0, 0);
            memory.0.get_mut(&(frame_at(2) + u64::from(layout.frame_base))).unwrap().truncate(bytes);
            assert_eq!(status_and_frames(&memory.walk(layout)), expected);
        }
    }
}

#[test]
fn a_ring_of_frames_is_cut_at_the_limit() {
    for layout in known() {
        for length in [1, 2, 7] {
            let mut memory = Pieces::thread(layout, frame_at(0));
            for number in 0..length {
                memory.frame(layout, number, frame_at((number + 1) % length), 0);
            }
            assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_TRUNCATED, MOST_FRAMES));
        }
    }
}

#[test]
fn a_stack_as_deep_as_the_limit_is_whole_and_one_deeper_is_not() {
    let limit = MOST_FRAMES as u64;
    for layout in known() {
        for (depth, status) in [(limit, abi::RM_STACK_COMPLETE), (limit + 1, abi::RM_STACK_TRUNCATED)] {
            let mut memory = Pieces::thread(layout, frame_at(0));
            for number in 0..depth {
                memory.frame(layout, number, if number + 1 < depth { frame_at(number + 1) } else { 0 }, 0);
            }
            assert_eq!(status_and_frames(&memory.walk(layout)), (status, MOST_FRAMES));
        }
    }
}

#[test]
fn frames_of_the_interpreter_itself_are_not_shown() {
    let mut with_shims = 0;
    for layout in known() {
        let mut memory = Pieces::thread(layout, frame_at(0));
        for number in 0..3 {
            memory.frame(layout, number, if number < 2 { frame_at(number + 1) } else { 0 }, 0);
        }
        if !memory.make_shim(layout, 1) {
            continue;
        }
        with_shims += 1;
        assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_COMPLETE, 2));
        // Nothing but such frames: a thread that runs no Python.
        assert!(memory.make_shim(layout, 0) && memory.make_shim(layout, 2));
        assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_NO_THREAD, 0));
        // A ring of them is not walked for ever either.
        memory.frame(layout, 2, frame_at(0), 0);
        assert!(memory.make_shim(layout, 2));
        assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_TRUNCATED, 0));
    }
    assert!(with_shims >= 1, "3.12 and later have such frames");
}

#[test]
fn a_code_object_that_cannot_be_read_has_no_fingerprint() {
    for layout in known() {
        let mut memory = Pieces::thread(layout, frame_at(0));
        memory.frame(layout, 0, 0, 0);
        let readable = memory.walk(layout);
        assert_ne!(readable.frames[0].fingerprint, 0);
        memory.0.remove(&(CODE + u64::from(layout.code_base)));
        let walk = memory.walk(layout);
        assert_eq!(status_and_frames(&walk), (abi::RM_STACK_COMPLETE, 1));
        assert_eq!((walk.frames[0].code, walk.frames[0].fingerprint), (CODE, 0));
        assert_ne!(walk.stack, readable.stack);
    }
}

#[test]
fn a_thread_s_own_bytecode_that_cannot_be_read_ends_the_walk() {
    let mut with_copies = 0;
    for layout in known().iter().filter(|layout| layout.code_thread_bytecode != ABSENT) {
        for gone in
            [CODE + u64::from(layout.code_thread_bytecode), COPIES + u64::from(layout.thread_bytecode_entries) + 24]
        {
            let mut memory = Pieces::thread(layout, frame_at(0));
            memory.frame(layout, 0, 0, COPY);
            assert_eq!(status_and_frames(&memory.walk(layout)), (abi::RM_STACK_COMPLETE, 1));
            memory.0.remove(&gone).unwrap();
            assert_eq!(
                status_and_frames(&memory.walk(layout)),
                (abi::RM_STACK_UNREADABLE, 0),
                "a line would be guessed"
            );
        }
        with_copies += 1;
    }
    assert!(with_copies >= 2, "free-threaded builds of 3.14 and later have them");
}

#[test]
fn code_of_the_jit_makes_the_line_approximate_and_the_stack_another() {
    let mut with_jit = 0;
    for layout in known().iter().filter(|layout| layout.thread_executor != ABSENT) {
        let mut memory = Pieces::thread(layout, frame_at(0));
        memory.frame(layout, 0, 0, bytecode(layout));
        let executor = THREAD + u64::from(layout.thread_executor);
        memory.put_u64(executor, 0);
        let plain = memory.walk(layout);
        memory.put_u64(executor, 0x1000);
        let jitted = memory.walk(layout);
        assert_eq!((plain.approximate, jitted.approximate), (false, true));
        assert_eq!((plain.frames.len(), jitted.frames.len()), (1, 1));
        assert_ne!(plain.stack, jitted.stack);
        with_jit += 1;
    }
    assert!(with_jit >= 2, "3.14 and later have one");
}

/// What the walker makes of an instruction's position, for one frame.
fn position(layout: &Layout, raw: u64) -> i32 {
    let mut memory = Pieces::thread(layout, frame_at(0));
    memory.frame(layout, 0, 0, raw);
    let walk = memory.walk(layout);
    assert_eq!(status_and_frames(&walk), (abi::RM_STACK_COMPLETE, 1));
    walk.frames[0].position
}

#[test]
fn positions_negative_and_huge() {
    let word = |value: i32| u64::from(value.cast_unsigned());
    for layout in known() {
        match layout.position_kind {
            POSITION_BYTES => {
                for value in [0, 2, 4096, -1, i32::MIN, i32::MAX] {
                    assert_eq!(position(layout, word(value)), value);
                }
            }
            POSITION_UNITS => {
                for value in [0, 1, 2048, 1 << 20] {
                    assert_eq!(position(layout, word(value)), value * 2);
                }
                for value in [-1, -2, i32::MIN] {
                    assert_eq!(position(layout, word(value)), -1, "not begun");
                }
                assert!(position(layout, word(i32::MAX)) < 0, "no instruction is there");
            }
            _ => {
                let first = bytecode(layout);
                for distance in [0, 2, 4096, 1 << 28] {
                    assert_eq!(position(layout, first + distance), i32::try_from(distance).unwrap());
                }
                for raw in [0, 1, CODE - 8, first - 2, first + (1 << 28) + 2, first + (1 << 33), u64::MAX, 1 << 63] {
                    assert_eq!(position(layout, raw), -1, "{raw:#x}");
                }
            }
        }
    }
}

/// Memory in which a thread with `THREAD_POINTER` finds `state` under pthread key `number`.
fn keyed(number: u32, state: u64) -> Pieces {
    let mut memory = Pieces::default();
    let mut tss = 1_u32.to_le_bytes().to_vec();
    tss.extend(number.to_le_bytes());
    memory.put(KEY - 4, &tss);
    memory.put_u64(THREAD_POINTER + u64::from(GLIBC_SPECIFIC) + 8 * u64::from(number / 32), KEY_BLOCK);
    memory.put_u64(KEY_BLOCK + 16 * u64::from(number % 32) + 8, state);
    memory
}

fn thread_state(memory: &Pieces, key_address: u64) -> (u32, u64) {
    walker().find_thread_state(memory, &mut process(&known()[0], key_address), THREAD_POINTER)
}

#[test]
fn the_thread_state_is_under_the_key() {
    for number in [0, 1, 31, 32, 1023] {
        assert_eq!(thread_state(&keyed(number, THREAD), KEY), (abi::RM_STACK_COMPLETE, THREAD));
        assert_eq!(thread_state(&keyed(number, 0), KEY), (abi::RM_STACK_NO_THREAD, 0));
    }
}

/// 3.6 has no word that tells whether the key is made: it is negative until then.
#[test]
fn a_key_that_stands_alone() {
    let find = |memory: &Pieces| {
        let mut watched = process(&known()[0], KEY);
        watched.slot_kind = abi::RM_SLOT_KEY;
        walker().find_thread_state(memory, &mut watched, THREAD_POINTER)
    };
    for number in [0, 1, 31, 32, 1023] {
        let mut memory = keyed(number, THREAD);
        memory.0.remove(&(KEY - 4));
        assert_eq!(find(&memory), (abi::RM_STACK_START_UP, 0));
        memory.put(KEY, &number.to_le_bytes());
        assert_eq!(find(&memory), (abi::RM_STACK_COMPLETE, THREAD));
        for unmade in [u32::MAX, 1024, 1 << 31] {
            memory.put(KEY, &unmade.to_le_bytes());
            assert_eq!(find(&memory), (abi::RM_STACK_START_UP, 0));
        }
    }
}

#[test]
fn the_key_is_read_once() {
    let mut memory = keyed(40, THREAD);
    let mut watched = process(&known()[0], KEY);
    assert_eq!(walker().find_thread_state(&memory, &mut watched, THREAD_POINTER), (abi::RM_STACK_COMPLETE, THREAD));
    // The interpreter never makes it anew, so what stands there later is of no account.
    memory.put(KEY - 4, &[0; 8]);
    assert_eq!(walker().find_thread_state(&memory, &mut watched, THREAD_POINTER), (abi::RM_STACK_COMPLETE, THREAD));
}

#[test]
fn a_key_that_is_not_made_or_cannot_be() {
    let start_up = (abi::RM_STACK_START_UP, 0);
    assert_eq!(thread_state(&keyed(3, THREAD), 0), start_up);
    assert_eq!(thread_state(&Pieces::default(), KEY), start_up);
    assert_eq!(thread_state(&keyed(1024, THREAD), KEY), start_up);
    assert_eq!(thread_state(&keyed(u32::MAX, THREAD), KEY), start_up);
    let mut memory = keyed(3, THREAD);
    memory.put(KEY - 4, &[0, 0, 0, 0, 3, 0, 0, 0]);
    assert_eq!(thread_state(&memory, KEY), start_up);
}

#[test]
fn a_table_of_keys_that_is_not_there() {
    let mut memory = keyed(40, THREAD);
    memory.0.remove(&(KEY_BLOCK + 16 * 8 + 8));
    assert_eq!(thread_state(&memory, KEY), (abi::RM_STACK_UNREADABLE, 0));
    memory.put_u64(THREAD_POINTER + u64::from(GLIBC_SPECIFIC) + 8, 0);
    assert_eq!(thread_state(&memory, KEY), (abi::RM_STACK_NO_THREAD, 0));
    memory.0.remove(&(THREAD_POINTER + u64::from(GLIBC_SPECIFIC) + 8));
    assert_eq!(thread_state(&memory, KEY), (abi::RM_STACK_UNREADABLE, 0));
}

/// A process whose threads have their state in a variable: at an offset from the thread pointer, or in the block of module 3.
fn with_variable(module: u64) -> (Pieces, abi::rm_process) {
    let mut watched = process(&known()[0], KEY);
    watched.slot_kind = abi::RM_SLOT_VARIABLE;
    let mut memory = Pieces::default();
    memory.put_u64(KEY, 0x1234); // the interpreter's list is not empty
    if module == 0 {
        watched.slot_offset = -40;
        memory.put_u64(THREAD_POINTER - 40, THREAD);
    } else {
        (watched.slot_module, watched.slot_offset) = (INDEX, 0x28);
        memory.put(INDEX, &[module.to_le_bytes(), 0x10_u64.to_le_bytes()].concat());
        memory.put_u64(THREAD_POINTER + 8, VECTOR);
        memory.put_u64(VECTOR.wrapping_add(module.wrapping_mul(16)), KEY_BLOCK);
        memory.put_u64(KEY_BLOCK + 0x10 + 0x28, THREAD);
    }
    (memory, watched)
}

/// And one where the loader has put the way to it into a word: a distance, or the address of a `tls_index`.
fn by_distance(in_block: bool) -> (Pieces, abi::rm_process) {
    let (mut memory, mut watched) = with_variable(if in_block { 3 } else { 0 });
    watched.slot_kind = abi::RM_SLOT_DISTANCE;
    watched.slot_module = WORD;
    if in_block {
        memory.put_u64(WORD, INDEX);
    } else {
        watched.slot_offset = 8;
        memory.put_u64(WORD, (-48_i64).cast_unsigned());
    }
    (memory, watched)
}

const WORD: u64 = 0x70_0000;
const INDEX: u64 = 0x80_0000;
const VECTOR: u64 = 0x90_0000;

#[test]
fn the_thread_state_is_in_a_variable() {
    let find = |memory: &Pieces, mut watched| walker().find_thread_state(memory, &mut watched, THREAD_POINTER);
    for module in [0, 1, 3] {
        let (mut memory, watched) = with_variable(module);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_COMPLETE, THREAD));
        memory.put_u64(KEY, 0);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_START_UP, 0));
        memory.0.remove(&KEY);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_START_UP, 0));
    }
    // The loader has not filled it in, or nonsense stands there.
    for module in [0_u64, 1 << 40, u64::MAX] {
        let (mut memory, watched) = with_variable(3);
        memory.put(INDEX, &[module.to_le_bytes(), 0x10_u64.to_le_bytes()].concat());
        assert_eq!(find(&memory, watched), (abi::RM_STACK_UNREADABLE, 0));
    }
    // The thread has no block of that module.
    for block in [0, u64::MAX] {
        let (mut memory, watched) = with_variable(3);
        memory.put_u64(VECTOR + 3 * 16, block);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_NO_THREAD, 0));
    }
    for gone in [INDEX, THREAD_POINTER + 8, VECTOR + 3 * 16, KEY_BLOCK + 0x38] {
        let (mut memory, watched) = with_variable(3);
        memory.0.remove(&gone);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_UNREADABLE, 0));
    }
}

#[test]
fn the_loader_tells_how_far_the_thread_state_is() {
    let find = |memory: &Pieces, mut watched| walker().find_thread_state(memory, &mut watched, THREAD_POINTER);
    for in_block in [false, true] {
        let (mut memory, watched) = by_distance(in_block);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_COMPLETE, THREAD));
        for nonsense in [0, i64::MIN, -(1 << 24) - 1] {
            memory.put_u64(WORD, nonsense.cast_unsigned());
            assert_eq!(find(&memory, watched), (abi::RM_STACK_UNREADABLE, 0));
        }
        memory.0.remove(&WORD);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_UNREADABLE, 0));
        memory.put_u64(KEY, 0);
        assert_eq!(find(&memory, watched), (abi::RM_STACK_START_UP, 0));
    }
}

const HOLDER: u64 = 0xa0_0000;
const INTERPRETERS: u64 = 0xb0_0000;
const MAIN: u64 = 0xc0_0000;
const SUB: u64 = 0xd0_0000;
const OTHER: u64 = 0xe0_0000;

/// A process with a sub-interpreter. The thread's state in the main one is `THREAD`, and `OTHER` in the other, where it has a frame.
fn with_interpreters(layout: &Layout) -> (Pieces, abi::rm_process) {
    let mut watched = process(layout, KEY);
    (watched.holder_address, watched.interpreters_address) = (HOLDER, INTERPRETERS);
    let mut memory = Pieces::thread(layout, frame_at(0));
    memory.put_u64(INTERPRETERS, SUB);
    for (interpreter, before, state) in [(SUB, MAIN, OTHER), (MAIN, 0, THREAD)] {
        memory.put_u64(interpreter + u64::from(layout.interpreter_next), before);
        memory.put_u64(state + u64::from(layout.thread_interpreter), interpreter);
        memory.put_u64(state + u64::from(layout.thread_thread_id), THREAD_POINTER);
    }
    let hops = layout.thread_head_hop != ABSENT;
    memory.put_u64(OTHER + u64::from(layout.thread_head), if hops { HOP } else { frame_at(1) });
    memory.put_u64(HOLDER, 0);
    (memory, watched)
}

#[test]
fn of_a_thread_s_states_the_one_that_holds_the_gil_is_executed() {
    for layout in known() {
        let (mut memory, watched) = with_interpreters(layout);
        let running =
            |memory: &Pieces, mut other: u64| (walker().running_state(memory, &watched, THREAD, &mut other), other);
        // Its own, whatever was before.
        memory.put_u64(HOLDER, THREAD);
        assert_eq!(running(&memory, OTHER), (THREAD, 0));
        // The other interpreter's.
        memory.put_u64(HOLDER, OTHER);
        assert_eq!(running(&memory, 0), (OTHER, OTHER));
        assert_eq!(running(&memory, OTHER), (OTHER, OTHER));
        // Another thread's: what was executed last, where it has a frame yet.
        let of_thread = OTHER + u64::from(layout.thread_thread_id);
        let (mut foreign, _) = with_interpreters(layout);
        foreign.put_u64(HOLDER, OTHER);
        foreign.put_u64(of_thread, THREAD_POINTER + 1);
        assert_eq!(running(&foreign, 0), (THREAD, 0));
        assert_eq!(running(&foreign, OTHER).0, THREAD, "it is not this thread's");
        memory.put_u64(HOLDER, 0);
        assert_eq!(running(&memory, 0), (THREAD, 0));
        assert_eq!(running(&memory, OTHER), (OTHER, OTHER));
        let head = OTHER + u64::from(layout.thread_head);
        memory.put_u64(head, 0);
        assert_eq!(running(&memory, OTHER).0, THREAD, "it has no frame");
        memory.put_u64(HOLDER, OTHER);
        assert_eq!(running(&memory, 0), (THREAD, OTHER), "its interpreter is being made");
        memory.put_u64(HOLDER, 0);
        memory.0.remove(&head);
        assert_eq!(running(&memory, OTHER).0, THREAD, "it is gone");
    }
}

#[test]
fn where_there_is_one_interpreter_no_other_thread_s_state_is_looked_at() {
    for layout in known() {
        let (mut memory, mut watched) = with_interpreters(layout);
        memory.put_u64(INTERPRETERS, MAIN);
        // Whatever is there would be believed.
        memory.put_u64(HOLDER, OTHER);
        let mut other = 0;
        assert_eq!(walker().running_state(&memory, &watched, THREAD, &mut other), THREAD);
        // From 3.12 on the slot has the right one.
        memory.put_u64(INTERPRETERS, SUB);
        assert_eq!(walker().running_state(&memory, &watched, THREAD, &mut other), OTHER);
        watched.holder_address = 0;
        assert_eq!(walker().running_state(&memory, &watched, THREAD, &mut other), THREAD);
    }
}

/// Every address can be read, and holds the same few bytes over and over.
struct Repeated(Vec<u8>);

impl Memory for Repeated {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (index, byte) in buffer.iter_mut().enumerate() {
            *byte = self.0[(address.wrapping_add(index as u64) % self.0.len() as u64) as usize];
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_ends(bytes in prop::collection::vec(any::<u8>(), 1..256), state: u64, key: u64, pointer: u64) {
        let memory = Repeated(bytes);
        for layout in known() {
            let mut process = process(layout, key);
            let walk = walker().walk(&memory, &process, state);
            prop_assert!(walk.status <= abi::RM_STACK_FOREIGN && walk.frames.len() <= MOST_FRAMES);
            (process.holder_address, process.interpreters_address) = (key, pointer);
            walker().running_state(&memory, &process, state, &mut pointer.clone());
            for (kind, module) in [(abi::RM_SLOT_TSS_KEY, 0), (abi::RM_SLOT_KEY, 0), (abi::RM_SLOT_VARIABLE, 0), (abi::RM_SLOT_VARIABLE, key), (abi::RM_SLOT_DISTANCE, key)] {
                (process.key, process.slot_kind, process.slot_module) = (0, kind, module);
                prop_assert!(walker().find_thread_state(&memory, &mut process, pointer).0 <= abi::RM_STACK_FOREIGN);
            }
        }
    }

    /// User space validates a layout before it hands it over; one that is wrong all the same reads no more than the walker's
    /// buffers hold, and writes nothing beyond the event, whose end is guarded.
    #[test]
    fn a_layout_of_nonsense_stays_within_the_buffers(words in prop::collection::vec(any::<u32>(), LAYOUT_WORDS), state: u64) {
        let mut process = process(&known()[0], 0);
        // SAFETY: the layout is that many u32 without padding, asserted below.
        process.layout = unsafe { words.as_ptr().cast::<abi::rm_layout>().read() };
        let walk = walker().walk(&Repeated(vec![0x41; 64]), &process, state);
        prop_assert!(walk.frames.len() <= MOST_FRAMES);
    }
}

const LAYOUT_WORDS: usize = size_of::<abi::rm_layout>() / size_of::<u32>();
const _: () =
    assert!(align_of::<abi::rm_layout>() == align_of::<u32>() && size_of::<abi::rm_layout>().is_multiple_of(4));
