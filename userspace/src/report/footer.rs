//! What stands under the tables: bytes on no line, and how far the numbers can be trusted.

use std::io::{self, Write};

use super::columns::mib;
use super::model::{Health, ProcessReport, Sampling, Tool};
use super::select::Tables;
use super::{Options, escape};

/// Whether the bytes on no line are shown. Who marked functions asked for those alone, so there they are left out unless
/// something went wrong (then they may be where the missing bytes are) or every file was asked for.
pub(super) fn shows_other(tables: &Tables<'_>, options: &Options) -> bool {
    !tables.marked || !tables.health.is_clean() || options.selection.all_files()
}

/// Whether a process has bytes on no line.
pub(super) fn has_other(process: &ProcessReport) -> bool {
    process.other.iter().any(|other| other.net_bytes != 0)
}

/// The bytes on no line, one row a reason, in the increment column of the usual table.
pub(super) fn write_other(process: &ProcessReport, precision: usize, out: &mut dyn Write) -> io::Result<()> {
    if !has_other(process) {
        return Ok(());
    }
    writeln!(out, "Not on a line of these tables:\n")?;
    for other in process.other.iter().filter(|other| other.net_bytes != 0) {
        let net = mib(other.net_bytes.into(), precision);
        writeln!(out, "{:>6} {:>12} {net:>12}   ({})", "", "", escape(&other.reason))?;
    }
    write!(out, "\n\n")
}

/// Which of the lines shown are approximate, a sentence a function.
pub(super) fn write_approximate(tables: &Tables<'_>, out: &mut dyn Write) -> io::Result<()> {
    for function in tables.processes.iter().flat_map(|section| &section.functions) {
        let lines: Vec<_> =
            function.lines.iter().filter(|line| line.approximate).map(|line| line.line.to_string()).collect();
        if let [first, more @ ..] = lines.as_slice() {
            let (noun, verb) = if more.is_empty() { ("Line", "is") } else { ("Lines", "are") };
            let numbers = more.iter().fold(first.clone(), |text, number| format!("{text}, {number}"));
            writeln!(
                out,
                "{noun} {numbers} of {} {verb} approximate: Python's JIT ran there, which does not keep the line at every \
                 instruction.",
                escape(&function.qualified_name)
            )?;
        }
    }
    Ok(())
}

/// What was estimated, and what not.
pub(super) fn write_sampling(tables: &Tables<'_>, precision: usize, out: &mut dyn Write) -> io::Result<()> {
    let of_each = tables.processes.iter().filter_map(|section| section.process.sampling);
    let Some(all) = of_each.reduce(Sampling::with) else { return Ok(()) };
    writeln!(
        out,
        "Sampled: one byte in {} of the allocator's blocks, {} samples. Sizes and numbers of blocks are estimates, ± one standard error; a \
         line without one had no sample.\nExact: {} in {} allocations, {} releases; Mem usage, Occurrences, mappings of the program's own.",
        all.interval_bytes,
        all.samples,
        mib(all.allocated_bytes.into(), precision),
        all.allocations,
        all.frees
    )
}

/// What the program would not have had without us, only where the numbers are of that.
pub(super) fn write_environment(tool: &Tool, out: &mut dyn Write) -> io::Result<()> {
    if tool.environment.is_empty() {
        return Ok(());
    }
    let set = tool.environment.iter().map(|variable| escape(variable)).collect::<Vec<_>>().join(" ");
    writeln!(out, "Measured with {set} in the program's environment.")
}

/// The last line, only where something went wrong.
pub(super) fn write_health(health: &Health, out: &mut dyn Write) -> io::Result<()> {
    if health.is_clean() {
        return Ok(());
    }
    let counts = [
        (health.lost, "event lost", "events lost"),
        (health.truncated_stacks, "stack truncated", "stacks truncated"),
        (health.unresolved_frames, "frame not read", "frames not read"),
        (health.unattributed_bytes, "byte without its line", "bytes without their line"),
    ];
    let counts = counts.into_iter().filter(|(count, ..)| *count != 0);
    let counts = counts.map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }));
    let details = health.counters.iter().filter(|(_, value)| *value != 0);
    let details = details.map(|(name, value)| format!("{} {value}", escape(name)));
    writeln!(out, "Health: {}", counts.chain(details).collect::<Vec<_>>().join(", "))
}
