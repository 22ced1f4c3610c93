//! Getting out what the kernel side gathered: records as they come, sums when asked.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::mem::offset_of;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use rmprof_probes::abi;

use super::attach::from_bytes;
use super::batch;
use super::counters::COUNTERS;
use super::event::{self, Event};
use super::load::LoadError;
use crate::ledger::{LineCounts, ProcessId, SiteCounts, StackId, StackStatus};

/// The sums of the session, read at one moment.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// By process and stack; the status stands in for a stack that was never announced.
    pub sites: Vec<(ProcessId, StackId, StackStatus, SiteCounts)>,
    /// By process, marked code object's address, line.
    pub lines: Vec<(ProcessId, u64, u32, LineCounts)>,
    /// By process and marked code object's address: resident bytes at the first entry, 0 when it was never entered.
    pub entries: Vec<(ProcessId, u64, u64)>,
    /// By index of [`COUNTERS`].
    pub counters: Vec<u64>,
    /// Bytes allocated and released by events that found no room for their site.
    pub siteless: (u64, u64),
    /// By process and site of its tally: the stack.
    pub tally_stacks: HashMap<(ProcessId, u32), StackId>,
}

/// The maps that are drained.
pub(super) struct Maps {
    pub events: MapHandle,
    pub residents: MapHandle,
    pub sites: MapHandle,
    pub lines: MapHandle,
    pub marks: MapHandle,
    pub counters: MapHandle,
    pub siteless: MapHandle,
    pub tally_stacks: MapHandle,
    pub blocks: MapHandle,
    pub arenas: MapHandle,
    pub codes: MapHandle,
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
    ring: RingBuffer<'static>,
    records: Rc<RefCell<VecDeque<Event>>>,
    maps: Maps,
}

impl Drain {
    pub(super) fn new(maps: Maps) -> Result<Self, LoadError> {
        let records = Rc::new(RefCell::new(VecDeque::new()));
        let mut builder = RingBufferBuilder::new();
        for map in [&maps.events, &maps.residents] {
            let sink = Rc::clone(&records);
            builder
                .add(map, move |record: &[u8]| {
                    if let (Some(event), Ok(mut sink)) = (event::parse(record), sink.try_borrow_mut()) {
                        sink.push_back(event);
                    }
                    0
                })
                .map_err(|_| LoadError::Missing("its ring buffers"))?;
        }
        let ring = builder.build().map_err(|_| LoadError::Missing("its ring buffers"))?;
        Ok(Self { ring, records, maps })
    }

    /// The descriptor that becomes readable when the buffer fills up. Below that, drain on a clock.
    ///
    /// # Errors
    /// When there is no descriptor left for a copy of it.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is the ring buffer's, which outlives the borrow: it is only copied here.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }.try_clone_to_owned()
    }

    /// Everything recorded so far, in order.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self) -> io::Result<Vec<Event>> {
        self.ring.consume().map_err(io::Error::other)?;
        Ok(self.records.borrow_mut().drain(..).collect())
    }

    /// How many announcements of stacks and code objects found the buffer full.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn unheard(&self) -> io::Result<u64> {
        let lost = [abi::RM_COUNT_RING_FULL_STACK, abi::RM_COUNT_RING_FULL_CODE];
        lost.iter().map(|index| sum(&self.maps.counters, *index)).sum()
    }

    /// The sums as they stand.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn totals(&self) -> io::Result<Totals> {
        let mut totals = Totals { counters: sums(&self.maps.counters, COUNTERS.len())?, ..Totals::default() };
        let siteless = sums(&self.maps.siteless, 2)?;
        totals.siteless = (siteless[0], siteless[1]);
        let all = |map: &MapHandle, _| batch::entries(map);
        self.add_sums(&mut totals, all)?;
        Ok(totals)
    }

    /// The sums of images that have ended, which make room for others: with all else that is kept of them they are deleted.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn sweep(&self, ended: &HashSet<ProcessId>) -> io::Result<Totals> {
        let of_ended = |map: &MapHandle, at| -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
            let mut found = batch::entries(map)?;
            found.retain(|(key, _)| process_in(key, at).is_some_and(|process| ended.contains(&process)));
            batch::delete(map, found.iter().map(|(key, _)| key.as_slice()))?;
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
        entries: impl Fn(&MapHandle, usize) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>>,
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
                totals.lines.push((ProcessId(key.process), key.code, key.line, counts));
            }
        }
        for (key, value) in entries(&self.maps.marks, PROCESS_AT)? {
            if let (Some(key), Some(mark)) = (from_bytes::<abi::rm_mark_key>(&key), from_bytes::<abi::rm_mark>(&value))
            {
                totals.entries.push((ProcessId(key.process), key.code, mark.entry_resident_bytes));
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
fn sums(map: &MapHandle, length: usize) -> io::Result<Vec<u64>> {
    (0..length).map(|index| sum(map, u32::try_from(index).map_err(io::Error::other)?)).collect()
}

/// One of them.
fn sum(map: &MapHandle, index: u32) -> io::Result<u64> {
    let values = map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY).map_err(io::Error::other)?.unwrap_or_default();
    Ok(values.iter().filter_map(|value| from_bytes::<u64>(value)).sum())
}
