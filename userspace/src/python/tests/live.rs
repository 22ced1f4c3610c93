//! Real processes of every version found: their frames, walked from outside as the kernel side walks them, against their own
//! `sys._current_frames()`.

use std::io;

use super::super::code::{self, Memory};
use super::super::discover::Interpreter;
use super::super::layout::{ABSENT, FRAME_READ, Layout, POSITION_POINTER, POSITION_UNITS};
use super::super::thread_slot::ThreadSlot;
use super::super::verify::{ThreadState, thread_is_known, thread_states, with_live_offsets};
use super::interpreters::supported;
use super::process::Process;

/// Threads of target.py.
const THREADS: usize = 6;

/// Name, qualified name, file, line.
type Frame = (String, String, String, u32);

/// `pthread_self()`, thread number, frames.
type Told = (u64, u64, Vec<Frame>);

#[test]
fn frames_read_from_outside_are_those_the_program_has() {
    for (python, layout) in supported() {
        let mut process = Process::start(&python.program, &["-X", "utf8", "-c", include_str!("target.py")]);
        let told: Vec<Told> = (0..THREADS).map(|_| serde_json::from_str(&process.line()).unwrap()).collect();
        process.wait_for_readers(THREADS);
        let interpreter = process.find().unwrap().unwrap();
        assert_eq!(interpreter.version, python.version);
        let (merged, differences) = with_live_offsets(&process, interpreter.runtime_address, layout).unwrap();
        assert!(differences.is_empty() && merged == *layout, "{differences:?}");
        let states = thread_states(&process, interpreter.runtime_address, layout).unwrap();
        assert_eq!(states.len(), THREADS);
        let mut frames = 0;
        for told in &told {
            frames += compare(&process, &interpreter, &states, told);
        }
        eprintln!("{:?} {}: {THREADS} threads, {frames} frames", python.version, python.program.display());
    }
}

fn compare(process: &Process, interpreter: &Interpreter, states: &[ThreadState], told: &Told) -> usize {
    let (thread_id, native, expected) = told;
    let layout = interpreter.layout;
    let state = states.iter().find(|state| state.thread_id == *thread_id).unwrap();
    let known = |address, id| thread_is_known(process, interpreter.runtime_address, layout, address, id).unwrap();
    assert!(known(state.address, *thread_id) && !known(state.address, thread_id + 8) && !known(0x1000, *thread_id));
    if layout.native_thread_id != ABSENT {
        assert_eq!(process.read_u64(state.address + u64::from(layout.native_thread_id)).unwrap(), *native);
    }
    check_slot(process, interpreter, state);
    let walked = walk(process, layout, state.address).unwrap();
    let frames: Vec<Frame> = walked
        .iter()
        .map(|(address, position)| {
            let (code, _) = code::read(process, *address, layout).unwrap();
            let line = code.line_of(*position).unwrap();
            assert!(code.own_lines().contains(&line) && line <= code.last_line());
            (code.name, code.qualified_name, code.filename, line)
        })
        .collect();
    assert_eq!(&frames, expected, "{:?}", interpreter.version);
    frames.len()
}

/// The slot leads from the thread pointer to the thread state, with the glibc of the machine (nptl/descr.h, elf/dl-tls.c).
fn check_slot(process: &Process, interpreter: &Interpreter, state: &ThreadState) {
    let word = |address: u64| process.read_u64(address).unwrap();
    let of_key = |address: u64| {
        let key = u64::from(process.read_u32(address).unwrap());
        word(state.thread_id + 0x510 + 8 * (key / 32)) + 16 * (key % 32) + 8
    };
    let slot = match interpreter.thread_slot {
        ThreadSlot::TssKey { address } => {
            assert_eq!(process.read_u32(address - 4).unwrap(), 1);
            of_key(address)
        }
        ThreadSlot::Key { address } => of_key(address),
        ThreadSlot::Static { offset } => state.thread_id.wrapping_add_signed(offset),
        ThreadSlot::InModule { index, offset } => {
            let block = word(word(state.thread_id + 8) + 16 * word(index));
            (block + word(index + 8)).wrapping_add_signed(offset)
        }
        ThreadSlot::Distance { word: at, offset } => {
            let distance = word(at).cast_signed();
            assert!(distance < 0, "of a library that is there from the start");
            state.thread_id.wrapping_add_signed(distance + offset)
        }
    };
    if cfg!(target_env = "gnu") {
        assert_eq!(word(slot), state.address);
    }
}

/// The walk of probes/bpf/python.bpf.h: code object and position of each frame, innermost first.
fn walk(memory: &impl Memory, layout: &Layout, thread_state: u64) -> io::Result<Vec<(u64, i32)>> {
    let mut frame = memory.read_u64(thread_state + u64::from(layout.thread_head))?;
    if layout.thread_head_hop != ABSENT {
        frame = memory.read_u64(frame + u64::from(layout.thread_head_hop))?;
    }
    let mut frames = Vec::new();
    while frame != 0 && frames.len() < 1000 {
        let mut bytes = [0; FRAME_READ];
        memory.read(frame + u64::from(layout.frame_base), &mut bytes)?;
        let word = |offset: u32| u64::from_le_bytes(*bytes[offset as usize..].first_chunk().unwrap());
        let number = |offset: u32| i32::from_le_bytes(*bytes[offset as usize..].first_chunk().unwrap());
        if layout.owner_skip == ABSENT || u32::from(bytes[layout.frame_owner as usize]) < layout.owner_skip {
            let code = word(layout.frame_code) & !u64::from(layout.frame_code_tags);
            let bytecode = if layout.code_thread_bytecode == ABSENT {
                code + u64::from(layout.code_bytecode)
            } else {
                let copies = memory.read_u64(code + u64::from(layout.code_thread_bytecode))?;
                let index = number(layout.frame_bytecode_index) as u64;
                memory.read_u64(copies + u64::from(layout.thread_bytecode_entries) + 8 * index)?
            };
            let position = match layout.position_kind {
                POSITION_POINTER => (word(layout.frame_position) - bytecode) as i32,
                POSITION_UNITS => number(layout.frame_position) * 2,
                _ => number(layout.frame_position),
            };
            frames.push((code, position));
        }
        frame = word(layout.frame_back);
    }
    Ok(frames)
}
