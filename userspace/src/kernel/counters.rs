//! The kernel side's counters, by name: one row an enumerator of `enum rm_counter`, held complete by a test. Beside them those of user
//! space.

use rmprof_probes::abi;

/// A counter: its index in the map, its name in reports, and what one more of it means.
#[derive(Clone, Copy, Debug)]
pub struct Counter {
    /// Index in the counters map.
    pub index: u32,
    /// Name in `health.counters`.
    pub name: &'static str,
    /// What it means for the numbers.
    pub meaning: &'static str,
    /// What is then missing.
    pub missing: Missing,
}

/// What is missing where a counter is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing that is not said elsewhere in the report.
    Nothing,
    /// Something of the report that is no number of bytes.
    Detail,
    /// An event is missing from the numbers.
    Event,
}
use Missing::{Detail, Event, Nothing};

const fn row(index: u32, name: &'static str, missing: Missing, meaning: &'static str) -> Counter {
    Counter { index, name, meaning, missing }
}

/// Of user space: the native function of a stack is not known, since too many waited for their files at once.
pub const NATIVES_FULL: &str = "natives_full";
/// Of user space, which asks the kernel: an event was lost, since its program ran on that processor already and the kernel runs none within
/// itself.
pub const RECURSION_MISSES: &str = "recursion_misses";
/// The same of the program that sees page faults, which faults itself where it reads memory of the process that is not there: nothing is
/// missing then, but the kernel does not tell this from a page of an arena whose first touch was not seen.
pub const FAULT_RECURSION_MISSES: &str = "fault_recursion_misses";
/// Of user space: a record was dropped, since too many waited for the processes they are of to be heard of.
pub const EARLY_FULL: &str = "early_full";

/// Every counter.
pub const COUNTERS: &[Counter] = &[
    row(
        abi::RM_COUNT_EVENTS,
        "events",
        Nothing,
        "events of pages and mappings handled; those of blocks are counted by site",
    ),
    row(abi::RM_COUNT_LINE_EVENTS, "line_events", Nothing, "line events of marked functions handled"),
    row(
        abi::RM_COUNT_NO_THREAD_MEMORY,
        "no_thread_memory",
        Event,
        "no kernel memory for a thread's state: the event is lost",
    ),
    row(abi::RM_COUNT_SITES_FULL, "sites_full", Event, "too many different stacks: the event's bytes are unattributed"),
    row(
        abi::RM_COUNT_BLOCKS_FULL,
        "blocks_full",
        Event,
        "too many live blocks: the release of this one will be unknown",
    ),
    row(abi::RM_COUNT_LINES_FULL, "lines_full", Event, "too many marked lines: the line is not measured"),
    row(abi::RM_COUNT_ARENAS_FULL, "arenas_full", Event, "too much arena memory: pages of it are not seen"),
    row(
        abi::RM_COUNT_RING_FULL_STACK,
        "ring_full_stack",
        Nothing,
        "the announcement of a stack had to wait for its next event",
    ),
    row(
        abi::RM_COUNT_RING_FULL_CODE,
        "ring_full_code",
        Nothing,
        "the announcement of a code object had to wait for its next stack",
    ),
    row(abi::RM_COUNT_RING_FULL_MAP, "ring_full_map", Event, "a mapping call is lost"),
    row(abi::RM_COUNT_RING_FULL_MARK, "ring_full_mark", Event, "a mark is lost: the function has no table"),
    row(
        abi::RM_COUNT_STACK_TRUNCATED,
        "stack_truncated",
        Nothing,
        "a stack deeper than the limit: its outer frames are missing",
    ),
    row(abi::RM_COUNT_STACK_UNREADABLE, "stack_unreadable", Nothing, "a stack that could not be read to its end"),
    row(
        abi::RM_COUNT_CODE_UNREADABLE,
        "code_unreadable",
        Nothing,
        "a code object that could not be read where it was first seen",
    ),
    row(
        abi::RM_COUNT_ACTIVE_FULL,
        "active_full",
        Detail,
        "marked calls nested too deep: peak and end of these lines are not measured",
    ),
    row(
        abi::RM_COUNT_FREE_FROM_BEFORE,
        "free_from_before",
        Nothing,
        "a release of a block that was not seen allocated",
    ),
    row(
        abi::RM_COUNT_RETURN_WITHOUT_ENTRY,
        "return_without_entry",
        Event,
        "an allocation whose other half was not seen",
    ),
    row(
        abi::RM_COUNT_OUT_POINTER_UNREADABLE,
        "out_pointer_unreadable",
        Event,
        "posix_memalign's result could not be read",
    ),
    row(abi::RM_COUNT_ARENA_TOO_LARGE, "arena_too_large", Event, "an arena larger than is followed"),
    row(
        abi::RM_COUNT_PREDICTION_WRONG,
        "prediction_wrong",
        Nothing,
        "malloc did not return what its cache foretold; its returns are all seen from then on",
    ),
    row(abi::RM_COUNT_BLOCK_REPLACED, "block_replaced", Event, "an address given out twice: a release was missed"),
    row(
        abi::RM_COUNT_RING_FULL_RESIDENT,
        "ring_full_resident",
        Nothing,
        "a change of resident memory is not known: Mem usage of lines that are not marked may be from an earlier moment",
    ),
    row(
        abi::RM_COUNT_TALLY_STACKS_FULL,
        "tally_stacks_full",
        Event,
        "too many different stacks: those of one are not known to be its",
    ),
    row(
        abi::RM_COUNT_RING_FULL_FOLLOW,
        "ring_full_follow",
        Event,
        "a process that began, executed another program or ended was not heard of",
    ),
    row(abi::RM_COUNT_PROCESSES_FULL, "processes_full", Event, "too many processes: a fork is not measured"),
    row(
        abi::RM_COUNT_APPROXIMATE,
        "approximate",
        Nothing,
        "an event in code that Python's JIT had compiled: its line may be an earlier one of the same function",
    ),
    row(
        abi::RM_COUNT_RING_FULL_NATIVE,
        "ring_full_native",
        Detail,
        "the native function in which a stack asked for memory is not known",
    ),
    row(
        abi::RM_COUNT_NO_TALLY,
        "no_tally",
        Event,
        "a fork had no room in its address space to count in: its blocks are not measured",
    ),
    row(
        abi::RM_COUNT_NOT_HELD,
        "library_not_held",
        Event,
        "a library was loaded by a thread that blocks SIGCHLD: if it is an allocator, its blocks are not measured from its first on",
    ),
    row(
        abi::RM_COUNT_PAIRS_FULL,
        "sample_pairs_full",
        Detail,
        "with --sample: a block that was released is missing in the standard errors, in no other number",
    ),
    row(
        abi::RM_COUNT_RING_FULL_LIMIT,
        "ring_full_limit",
        Detail,
        "that a limit of resident memory was passed was told late or not at all",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_enumerator_has_its_row() {
        let indices: Vec<u32> = COUNTERS.iter().map(|counter| counter.index).collect();
        assert_eq!(indices, (0..abi::RM_COUNTERS).collect::<Vec<_>>());
    }
}
