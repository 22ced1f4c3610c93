//! What is done to the project rather than by it: `cargo xtask --help`.

mod attached;
mod bench;
mod cost;
mod layouts;
mod verifier;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

/// Generators, measurements and budgets of rmprof-bpf.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Write the offsets of CPython's structs (userspace/layouts/) from its headers
    Layouts(layouts::Arguments),
    /// Measure what programs pay for being profiled: bare and ours in turns
    Bench(bench::Arguments),
    /// Measure what programs pay that run already, under attach, and what system takes beside idle ones
    Attached(attached::Arguments),
    /// What one event costs, taken apart: in the probes, in the kernel around them, in the preloaded library
    Cost(cost::Arguments),
    /// Load every probe and hold what the kernel's verifier walked through against the budget
    Verifier(verifier::Arguments),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Layouts(arguments) => layouts::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Attached(arguments) => attached::run(&arguments),
        Task::Cost(arguments) => cost::run(&arguments),
        Task::Verifier(arguments) => verifier::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
