//! `cargo xtask cost`: what one event costs, taken apart. The pieces of a probe are run by themselves in the kernel (probes/bpf/pieces.bpf.h),
//! and real events in a real Python, where the kernel's own statistics tell what was in the programs (BPF_ENABLE_STATS) and the Python
//! what it paid in all: the rest is the trap.

mod events;
mod pieces;

use std::path::PathBuf;

use anyhow::Result;

use crate::bench;
use events::{Case, Cost, Target};

/// What was typed after `cargo xtask cost`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Turns of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The Python
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Only the events whose name has this in it
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Calls between the module and the work, where frames are to be told from the rest.
const DEEP: u32 = 20;
/// Frames of the least deep: the module, `call`, its lambda, `blocks`.
const SHALLOW_FRAMES: f64 = 4.0;

const BLOCKS: u32 = 200_000;
const TRAPPED: u32 = 50_000;
const PAGES: u32 = 20_000;

/// Programs that run for a block that is trapped, and for a page.
const OF_BLOCKS: &[&str] = &["heap_session", "heap_enter", "heap_return"];
const OF_PAGES: &[&str] = &["rss_stat", "fault", "memory_changes"];

/// The cases, by name.
const CASES: &[Case] = &[
    Case { name: "counted in the process", options: &[], work: "small", depth: 0, count: BLOCKS, programs: OF_BLOCKS },
    Case {
        name: "the same, 20 calls deeper",
        options: &[],
        work: "small",
        depth: DEEP,
        count: BLOCKS,
        programs: OF_BLOCKS,
    },
    Case {
        name: "sampled every 512 KiB",
        options: &["--sample", "512K"],
        work: "small",
        depth: 0,
        count: BLOCKS,
        programs: OF_BLOCKS,
    },
    Case { name: "trapped", options: &["--no-preload"], work: "small", depth: 0, count: TRAPPED, programs: OF_BLOCKS },
    Case {
        name: "the same, 20 calls deeper",
        options: &["--no-preload"],
        work: "small",
        depth: DEEP,
        count: TRAPPED,
        programs: OF_BLOCKS,
    },
    Case {
        name: "trapped, the return too",
        options: &["--no-preload"],
        work: "large",
        depth: 0,
        count: TRAPPED,
        programs: OF_BLOCKS,
    },
    Case { name: "page, heap", options: &[], work: "pages", depth: 0, count: PAGES, programs: OF_PAGES },
    Case {
        name: "page, heap sampled",
        options: &["--sample", "512K"],
        work: "pages",
        depth: 0,
        count: PAGES,
        programs: OF_PAGES,
    },
    Case {
        name: "page, pages mode",
        options: &["--mode", "pages"],
        work: "pages",
        depth: 0,
        count: PAGES,
        programs: OF_PAGES,
    },
    // The limits are none that it reaches.
    Case {
        name: "page, pages mode, a limit",
        options: &["--mode", "pages", "--on-limit", "90000=report"],
        work: "pages",
        depth: 0,
        count: PAGES,
        programs: OF_PAGES,
    },
    Case {
        name: "page, pages mode, of all kinds",
        options: &[
            "--mode",
            "pages",
            "--on-limit",
            "90000=report",
            "--on-limit",
            "90000:rss=report",
            "--on-limit",
            "90000:growth/s=report",
        ],
        work: "pages",
        depth: 0,
        count: PAGES,
        programs: OF_PAGES,
    },
    Case {
        name: "page, pages mode, --pdb-mmem",
        options: &["--mode", "pages", "--pdb-mmem", "90000"],
        work: "pages",
        depth: 0,
        count: PAGES,
        programs: OF_PAGES,
    },
];

/// Measures and prints.
///
/// # Errors
/// No rights, or a program that did not run.
pub fn run(arguments: &Arguments) -> Result<()> {
    let is_asked = |case: &&Case| arguments.only.as_ref().is_none_or(|text| case.name.contains(text));
    let pieces = if arguments.only.is_none() { pieces::measure(arguments.runs)? } else { Vec::new() };
    if !pieces.is_empty() {
        println!("Pieces of a probe, each by itself, ns:");
    }
    for piece in &pieces {
        println!("  {:<60} {:>8.1}", piece.what, piece.nanoseconds);
    }
    let target = Target::new(bench::build()?, arguments.python.clone())?;
    println!("\nA malloc with its free, or a page that becomes resident, ns:");
    println!("  {:<30} {:>8} {:>8}   in the probes", "", "bare", "more");
    let mut costs = Vec::new();
    for case in CASES.iter().filter(is_asked) {
        let cost = target.measure(case, arguments.runs)?;
        print(case, &cost);
        costs.push(cost);
    }
    if arguments.only.is_none()
        && let [tally, tally_deep, _, trapped, trapped_deep, returned, ..] = &costs[..]
    {
        derive(&pieces, [tally, tally_deep], [trapped, trapped_deep, returned]);
    }
    Ok(())
}

fn print(case: &Case, cost: &Cost) {
    let programs: Vec<String> = cost
        .programs
        .iter()
        .map(|program| format!("{} {:.2} times {:.0} ns", program.name, program.runs, program.nanoseconds))
        .collect();
    println!("  {:<30} {:>8.0} {:>8.0}   {}", case.name, cost.bare, cost.more, programs.join(", "));
}

/// What the figures say of the parts that cannot be run by themselves.
fn derive(pieces: &[pieces::Piece], tally: [&Cost; 2], [trapped, deep, returned]: [&Cost; 3]) {
    let of_probe = |cost: &Cost| cost.in_programs() / cost.runs();
    let frame = (of_probe(deep) - of_probe(trapped)) / f64::from(DEEP);
    let known: f64 = pieces.iter().map(|piece| piece.nanoseconds * piece.in_an_event).sum();
    let trap = (trapped.more - trapped.in_programs()) / trapped.runs();
    println!("\nFrom these, ns an event:");
    for (what, nanoseconds) in [
        ("trap: a breakpoint, to the program and back", trap),
        ("return of malloc: where it is trapped too, trap and program", returned.more - trapped.more),
        ("walk, a frame", frame),
        (
            "thread state, arguments, the look into malloc's cache, the rest",
            of_probe(trapped) - known - frame * SHALLOW_FRAMES,
        ),
        ("in the process (heap without a trap): an event", tally[0].more / 2.0),
        ("of it, a frame of the walk", (tally[1].more - tally[0].more) / 2.0 / f64::from(DEEP)),
    ] {
        println!("  {what:<60} {nanoseconds:>8.1}");
    }
}
