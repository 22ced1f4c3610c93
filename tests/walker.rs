//! The BPF walker itself (`probes/bpf/python.bpf.h`), compiled for this machine by its C compiler and let loose on real
//! Pythons and on hostile memory. No root is needed: the processes looked at are our children.
//!
//! What a thread's frames are is told by the program (`walker/target.py`, `sys._current_frames()`); what the walker sees must be
//! the same, frame by frame: name, qualified name, file and line.

#![allow(clippy::unwrap_used, clippy::missing_transmute_annotations)] // a test that cannot go on fails; host.c has the types

#[path = "walker/host.rs"]
mod host;
#[path = "walker/hostile.rs"]
mod hostile;
#[path = "walker/process.rs"]
mod process;
#[path = "walker/pythons.rs"]
mod pythons;

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::time::Instant;

use rmprof_bpf::python::code;
use rmprof_bpf::python::discover::Interpreter;
use rmprof_probes::abi;

use host::{Walk, process_of, walker};
use process::{Frame, PATIENCE, Target, Thread};

/// `RM_MAX_FRAMES`, as a length.
const MOST_FRAMES: usize = abi::RM_MAX_FRAMES as usize;

#[test]
fn frames_of_every_python_found_are_those_it_has_itself() {
    let found = pythons::found();
    assert!(!found.is_empty(), "no CPython of 3.6 to 3.15 is installed: nothing was tested");
    for python in found {
        let mut target = Target::start(&python.program, "target.py");
        let truth = target.truth();
        let interpreter = target.interpreter();
        assert_eq!((interpreter.version.0, interpreter.version.1), (python.layout.major, python.layout.minor));
        let (mut frames, mut stacks, mut cut) = (0, HashSet::new(), 0);
        for thread in &truth.threads {
            let walk = compare(&target, &interpreter, thread);
            frames += walk.frames.len();
            cut += usize::from(walk.status == abi::RM_STACK_TRUNCATED);
            stacks.insert(walk.stack);
        }
        assert_eq!(cut, 1, "the recursion of 300 is the one stack deeper than is walked");
        assert_eq!(stacks.len(), truth.threads.len(), "stacks that differ have hashes that differ");
        let native = native_thread(&target, &interpreter, &truth);
        eprintln!(
            "CPython {}.{}.{} {}: {} threads, {frames} frames{}",
            interpreter.version.0,
            interpreter.version.1,
            interpreter.version.2,
            python.program.display(),
            truth.threads.len(),
            if native { ", and a thread without Python" } else { "" },
        );
    }
}

/// The thread's slot has the state of the main interpreter up to 3.11, of the other from 3.12 on.
#[test]
fn a_thread_in_a_sub_interpreter_executes_what_that_runs() {
    let mut tried = 0;
    for python in pythons::found() {
        let mut target = Target::start(&python.program, "subinterpreter.py");
        if target.line().is_none() {
            eprintln!("NOT RUN: {} has no sub-interpreters", python.program.display());
            continue;
        }
        let interpreter = target.interpreter();
        let mut watched = process_of(&interpreter);
        let expected = [("innermost", 5..=6), ("outer", 9..=9), ("<module>", 11..=11)];
        let begin = Instant::now();
        loop {
            let seen = frames_now(&target, &interpreter, &mut watched);
            let is = |((name, lines), (seen, _, _, line)): (&(&str, RangeInclusive<u32>), &Frame)| {
                name == seen && lines.contains(line)
            };
            // It may be on its way back from telling yet, and without the GIL.
            if seen.len() == expected.len() && expected.iter().zip(&seen).all(is) {
                break;
            }
            assert!(begin.elapsed() < PATIENCE, "{}: {seen:?}", python.program.display());
            std::thread::yield_now();
        }
        tried += 1;
    }
    assert!(tried > 0, "no Python here has sub-interpreters: nothing was tested");
}

/// The frames that the first thread executes.
fn frames_now(target: &Target, interpreter: &Interpreter, watched: &mut abi::rm_process) -> Vec<Frame> {
    let memory = target.memory();
    let stopped = target.stop(target.first_thread());
    let (status, own) = walker().find_thread_state(&memory, watched, stopped.thread_pointer());
    assert_eq!(status, abi::RM_STACK_COMPLETE);
    let running = walker().running_state(&memory, watched, own, &mut 0);
    let walk = walker().walk(&memory, watched, running);
    walk.frames.iter().map(|frame| describe(target, interpreter, frame)).collect()
}

/// Walks one thread and holds what is seen against what it told.
fn compare(target: &Target, interpreter: &Interpreter, thread: &Thread) -> Walk {
    let memory = target.memory();
    let mut watched = process_of(interpreter);
    let stopped = target.stop(thread.number);
    assert_eq!(stopped.thread_pointer(), thread.pthread, "pthread_self() is the thread pointer");
    let (status, thread_state) = walker().find_thread_state(&memory, &mut watched, stopped.thread_pointer());
    assert_eq!(status, abi::RM_STACK_COMPLETE);
    let walk = walker().walk(&memory, &watched, thread_state);
    let seen: Vec<Frame> = walk.frames.iter().map(|frame| describe(target, interpreter, frame)).collect();
    let different = seen.iter().zip(&thread.frames).find(|(seen, told)| seen != told);
    assert_eq!(different, None, "{}, thread stopped in {}", interpreter.module_path.display(), thread.place);
    if walk.status == abi::RM_STACK_TRUNCATED {
        // The interpreter's own frames (3.12 and later) are not shown, yet count as steps.
        assert!((MOST_FRAMES * 3 / 4..=MOST_FRAMES).contains(&seen.len()), "{} frames", seen.len());
        assert!(thread.frames.len() > MOST_FRAMES, "{} frames are not too many", thread.frames.len());
    } else {
        assert_eq!((walk.status, seen.len()), (abi::RM_STACK_COMPLETE, thread.frames.len()));
    }
    assert_eq!(walker().walk(&memory, &watched, thread_state).stack, walk.stack, "one stack, one hash");
    walk
}

/// Name, qualified name, file and line of a frame, by the readers that the product uses.
fn describe(target: &Target, interpreter: &Interpreter, frame: &abi::rm_frame) -> Frame {
    let (code, fingerprint) = code::read(&target.memory(), frame.code, interpreter.layout).unwrap();
    assert_eq!(
        frame.fingerprint, fingerprint,
        "{}: the fingerprint of the kernel side and that of user space",
        code.name
    );
    assert_ne!(fingerprint, 0, "0 stands for a code object that could not be read");
    let line = code.line_of(frame.position);
    (code.name, code.qualified_name, code.filename, line.unwrap_or(0))
}

/// The thread that the program made without Python. `false` where the program could make none.
fn native_thread(target: &Target, interpreter: &Interpreter, truth: &process::Truth) -> bool {
    let known: HashSet<i32> = truth.threads.iter().map(|thread| thread.number).collect();
    let others: Vec<i32> = target.threads().into_iter().filter(|number| !known.contains(number)).collect();
    assert_eq!(others.len(), usize::from(truth.native));
    for number in &others {
        let stopped = target.stop(*number);
        let found =
            walker().find_thread_state(&target.memory(), &mut process_of(interpreter), stopped.thread_pointer());
        assert_eq!(found, (abi::RM_STACK_NO_THREAD, 0));
    }
    truth.native
}
