//! The pieces of a probe, run by the kernel in this process, many times over.

use anyhow::{Context, Result, ensure};
use libbpf_rs::{MapCore, MapFlags, Object, ObjectBuilder, ProgramInput};
use rmprof_probes::abi;

/// One piece.
#[derive(Debug)]
pub struct Piece {
    /// In words.
    pub what: &'static str,
    /// Of one time, the loop around it left out.
    pub nanoseconds: f64,
    /// How often it is in an event of a block, in the mean of one that is asked for and one that is released.
    pub in_an_event: f64,
}

/// The program of the loop without anything in it.
const LOOP: &str = "piece_loop";

const PIECES: &[(&str, &str, f64)] = &[
    ("piece_process", "is the process watched: a look into a map", 1.0),
    ("piece_thread", "the thread's own memory: task storage", 1.0),
    ("piece_site", "stack lookup, and sums of bytes and blocks", 1.0),
    ("piece_block", "block table: a block in, found, and out", 0.5),
    ("piece_count", "a counter of the CPU's own", 0.0),
];

/// Runs them all, the least of so many runs each: whatever else runs on the machine only adds.
///
/// # Errors
/// They cannot be loaded, or did not run to their end.
pub fn measure(runs: u32) -> Result<Vec<Piece>> {
    let mut open = ObjectBuilder::default().open_memory(rmprof_probes::PIECES_OBJECT)?;
    for mut program in open.progs_mut() {
        let wanted = program.name().to_string_lossy().starts_with("piece_");
        program.set_autoload(wanted);
    }
    let mut object = open.load().context("the pieces are not loaded\nhint: run as root")?;
    let processes = object.maps().find(|map| map.name() == "processes").context("no map of processes")?;
    // SAFETY: a plain C struct, for which all zero is a value: nothing known.
    let mut process: abi::rm_process = unsafe { std::mem::zeroed() };
    process.id = 1;
    // SAFETY: the struct has no padding (asserted by its crate), so that all of its bytes are there to be read.
    let bytes = unsafe { std::slice::from_raw_parts((&raw const process).cast::<u8>(), size_of_val(&process)) };
    processes.update(&std::process::id().to_ne_bytes(), bytes, MapFlags::ANY)?;
    let empty = least(&mut object, LOOP, runs)?;
    let mut pieces = Vec::new();
    for (name, what, in_an_event) in PIECES {
        let nanoseconds = least(&mut object, name, runs)? - empty;
        pieces.push(Piece { what, nanoseconds, in_an_event: *in_an_event });
    }
    Ok(pieces)
}

fn least(object: &mut Object, name: &str, runs: u32) -> Result<f64> {
    let program = object.progs_mut().find(|program| program.name() == name).with_context(|| name.to_owned())?;
    let mut least = f64::INFINITY;
    for _ in 0..runs.max(3) {
        let nanoseconds = program.test_run(ProgramInput::default())?.return_value;
        ensure!(nanoseconds > 0, "{name} did not run to its end");
        least = least.min(f64::from(nanoseconds) / f64::from(abi::RM_PIECE_TIMES));
    }
    Ok(least)
}
