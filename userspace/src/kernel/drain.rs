//! Getting out what the kernel side gathered: records as they come, sums when asked.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rmprof_probes::abi;

use super::attach::from_bytes;
use super::backend::Records;
use super::bpf;
use super::counters::COUNTERS;
use super::event::{self, Event};
use super::map::Map;
use crate::ledger::{LineCounts, LinePlace, Pair, ProcessId, SiteCounts, StackId, StackStatus};

/// The sums of the session, read at one moment.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By process and stack, in the order of their processes once they are sorted; the status stands in for a stack that was never announced.
    pub sites: Vec<(ProcessId, StackId, StackStatus, SiteCounts)>,
    /// By process, number of the code object that gave line events, line: occurrences by where it began, the rest wherever.
    pub lines: Vec<(ProcessId, u32, LinePlace, LineCounts)>,
    /// By process and number of the code object: resident bytes at the first entry, 0 when it was never entered.
    pub entries: Vec<(ProcessId, u32, u64)>,
    /// By index of [`COUNTERS`].
    pub counters: Vec<u64>,
    /// Bytes allocated and released by events that found no room for their site.
    pub siteless: (u64, u64),
    /// By process and site of its tally: the stack.
    pub tally_stacks: HashMap<(ProcessId, u32), StackId>,
    /// Of processes whose blocks were sampled.
    pub sampled: HashMap<ProcessId, Sampled>,
    /// By name of the counter: how often a program of a tracepoint was not run, since it ran on that processor already.
    pub misses: Vec<(&'static str, u64)>,
}

/// What is known besides of a process whose blocks were sampled.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// Blocks that were sampled.
    pub samples: u64,
    /// Bytes asked for, of all blocks.
    pub allocated_bytes: u64,
    /// Blocks asked for.
    pub allocations: u64,
    /// Blocks released.
    pub releases: u64,
    /// Which stacks released whose.
    pub pairs: Vec<Pair>,
}

impl Totals {
    /// The sites of one process; they are to be in the order of their processes.
    pub fn of(&self, process: ProcessId) -> &[(ProcessId, StackId, StackStatus, SiteCounts)] {
        let begin = self.sites.partition_point(|(other, ..)| *other < process);
        let end = self.sites.partition_point(|(other, ..)| *other <= process);
        self.sites.get(begin..end).unwrap_or_default()
    }
}

/// The maps that are drained.
pub(super) struct Maps {
    pub sites: Map,
    pub lines: Map,
    pub marks: Map,
    pub counters: Map,
    pub siteless: Map,
    pub tally_stacks: Map,
    pub blocks: Map,
    pub arenas: Arc<Map>,
    pub codes: Map,
}

/// Where the keys of each kind have the process, bytes (maps.bpf.h, rmprof.h).
const PROCESS_AT: usize = 8;
const PROCESS_AT_IN_TALLY: usize = offset_of!(abi::rm_tally_key, process);

/// The process that a key is of.
fn process_in(key: &[u8], at: usize) -> Option<ProcessId> {
    key.get(at..).and_then(from_bytes).map(ProcessId)
}

/// The records and sums. Belongs to one thread.
pub struct Drain {
    records: Box<dyn Records>,
    maps: Maps,
    /// The programs of tracepoints, with the counter of what each of them missed.
    tracing: Vec<(&'static str, OwnedFd)>,
}

impl Drain {
    pub(super) fn new(records: Box<dyn Records>, maps: Maps, tracing: Vec<(&'static str, OwnedFd)>) -> Self {
        Self { records, maps, tracing }
    }

    /// The descriptor that becomes readable when the buffer fills up. Below that, drain on a clock.
    ///
    /// # Errors
    /// When there is no descriptor left for a copy of it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.records.descriptor()
    }

    /// Everything recorded so far, in order.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self) -> io::Result<Vec<Event>> {
        self.records.take()
    }

    /// How many announcements of stacks and code objects found the buffer full.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn unheard(&self) -> io::Result<u64> {
        let lost = [abi::RM_COUNT_RING_FULL_STACK, abi::RM_COUNT_RING_FULL_CODE, abi::RM_COUNT_RING_FULL_NATIVE];
        lost.iter().map(|index| self.maps.counters.sum(*index)).sum()
    }

    /// The sums as they stand.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut totals = Totals { counters: sums(&self.maps.counters, COUNTERS.len())?, ..Totals::default() };
        let siteless = sums(&self.maps.siteless, 2)?;
        totals.siteless = (siteless[0], siteless[1]);
        for (counter, program) in &self.tracing {
            totals.misses.push((*counter, bpf::recursion_misses(program.as_fd())?));
        }
        let all = |map: &Map, _| map.entries();
        self.add_sums(&mut totals, all)?;
        Ok(totals)
    }

    /// The sums of images that have ended, which make room for others: with all else that is kept of them they are deleted.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn sweep(&self, ended: &HashSet<ProcessId>) -> io::Result<Totals> {
        let of_ended = |map: &Map, at| -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
            let mut found = map.entries()?;
            found.retain(|(key, _)| process_in(key, at).is_some_and(|process| ended.contains(&process)));
            found.iter().try_for_each(|(key, _)| map.delete(key))?;
            Ok(found)
        };
        let mut totals = Totals::default();
        self.add_sums(&mut totals, of_ended)?;
        for map in [&self.maps.blocks, &self.maps.arenas, &self.maps.codes] {
            of_ended(map, PROCESS_AT)?;
        }
        Ok(totals)
    }

    /// Adds the sums that `entries` gives of each map, whose keys have the process at the place named.
    fn add_sums(
        &self,
        totals: &mut Totals,
        entries: impl Fn(&Map, usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>,
    ) -> io::Result<()> {
        for (key, value) in entries(&self.maps.sites, PROCESS_AT)? {
            if let (Some(key), Some(site)) = (from_bytes::<abi::rm_site_key>(&key), from_bytes::<abi::rm_site>(&value))
            {
                let counts = SiteCounts {
                    allocated_bytes: site.allocated_bytes,
                    allocations: site.allocations,
                    released_bytes: site.released_bytes,
                    releases: site.releases,
                    dead_bytes: site.dead_bytes,
                    resident_bytes: site.resident_bytes,
                    last_event: site.last_event,
                    ..SiteCounts::default()
                };
                totals.sites.push((
                    ProcessId(key.process),
                    StackId(key.stack),
                    event::stack_status(site.status),
                    counts,
                ));
            }
        }
        for (key, value) in entries(&self.maps.lines, PROCESS_AT)? {
            if let (Some(key), Some(line)) = (from_bytes::<abi::rm_line_key>(&key), from_bytes::<abi::rm_line>(&value))
            {
                let counts = LineCounts {
                    occurrences: line.occurrences,
                    resident_bytes: line.resident_bytes,
                    peak_bytes: line.peak_bytes,
                };
                let position = (key.position != abi::RM_ABSENT).then_some(key.position);
                totals.lines.push((ProcessId(key.process), key.number, LinePlace { line: key.line, position }, counts));
            }
        }
        for (key, value) in entries(&self.maps.marks, PROCESS_AT)? {
            if let (Some(key), Some(mark)) = (from_bytes::<abi::rm_mark_key>(&key), from_bytes::<abi::rm_mark>(&value))
            {
                totals.entries.push((ProcessId(key.process), key.number, mark.entry_resident_bytes));
            }
        }
        for (key, value) in entries(&self.maps.tally_stacks, PROCESS_AT_IN_TALLY)? {
            if let (Some(key), Some(stack)) = (from_bytes::<abi::rm_tally_key>(&key), from_bytes::<u64>(&value)) {
                totals.tally_stacks.insert((ProcessId(key.process), key.site), StackId(stack));
            }
        }
        Ok(())
    }
}

/// The first `length` elements of an array that every CPU has its own of, summed.
fn sums(map: &Map, length: usize) -> io::Result<Vec<u64>> {
    (0..length).map(|index| map.sum(u32::try_from(index).map_err(io::Error::other)?)).collect()
}
