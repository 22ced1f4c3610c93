//! What a process counts itself, as the collector follows it: how much was resident at the last event of each of its stacks, and at
//! its end the sums.

use std::sync::Arc;

use rmprof_probes::abi;

use crate::kernel::{Sampled, Totals};
use crate::ledger::{Pair, ProcessId, SiteCounts, SiteVariances, StackId, StackStatus};
use crate::tally::{History, Segment, Sums};

/// Of a stack that is known to the process alone: none has this name, and its bytes are "stack lost".
const LOST: StackId = StackId(0);

/// One process's tally.
#[derive(Debug)]
pub struct Tally {
    /// Gone when the process is, and its sums are taken.
    segment: Option<Arc<Segment>>,
    history: History,
    /// By site: the last event looked up, and what was resident at it.
    resident: Vec<(u64, u64)>,
    /// How many events there were when the look at hand began.
    seen: u64,
    sums: Vec<Sums>,
    counters: Vec<u64>,
    siteless: (u64, u64),
    sampled: Option<Sampled>,
    /// By site.
    pairs: Vec<(u32, u32, u64)>,
}

impl Tally {
    /// Of a process that begins with so many bytes resident.
    pub fn new(segment: Arc<Segment>, resident: u64) -> Self {
        Self {
            segment: Some(segment),
            history: History::new(resident),
            resident: Vec::new(),
            seen: 0,
            sums: Vec::new(),
            counters: Vec::new(),
            siteless: (0, 0),
            sampled: None,
            pairs: Vec::new(),
        }
    }

    /// The kernel side told of a change of resident memory.
    pub fn changed(&mut self, sequence: u64, bytes: u64) {
        self.history.changed(sequence, bytes);
    }

    /// A look begins: the changes around the events so far are in the kernel side's buffer by now.
    pub fn begin_look(&mut self) {
        if let Some(segment) = &self.segment {
            self.seen = segment.sequence();
        }
    }

    /// Announcements of stacks were lost.
    pub fn ask_again(&self) {
        if let Some(segment) = &self.segment {
            segment.ask_again();
        }
    }

    /// A look ends: those changes have been told. Events that came meanwhile wait for the next one, with the changes they need.
    pub fn end_look(&mut self) {
        let Some(segment) = self.segment.clone() else { return };
        let count = segment.site_count();
        self.resident.resize(count as usize, (0, 0));
        for (number, known) in (0..count).zip(&mut self.resident) {
            let event = segment.last_event(number);
            if event != known.0 && event <= self.seen {
                *known = (event, self.history.at(event));
            }
        }
        self.history.forget_before(self.seen);
    }

    /// The process has ended: takes the sums and gives its memory back.
    pub fn finish(&mut self, last_change: Option<(u64, u64)>) {
        if self.segment.is_none() {
            return;
        }
        if let Some((sequence, bytes)) = last_change {
            self.history.changed(sequence, bytes);
        }
        self.take_sums();
        self.seen = u64::MAX;
        self.end_look();
        self.segment = None;
    }

    /// Takes the sums as they are now. The process may count meanwhile: then one of its sites is an event ahead of another.
    pub fn take_sums(&mut self) {
        let Some(segment) = &self.segment else { return };
        self.sums = (0..segment.site_count()).map(|number| segment.sums(number)).collect();
        (self.counters, self.siteless) = (segment.counters(), segment.siteless());
        if segment.sample().is_some() {
            let [allocated_bytes, allocations, releases] = segment.exact();
            let samples = segment.samples();
            self.sampled = Some(Sampled { samples, allocated_bytes, allocations, releases, pairs: Vec::new() });
            self.pairs = segment.pairs();
        }
        if self.resident.len() < self.sums.len() {
            self.resident.resize(self.sums.len(), (0, 0));
        }
    }

    /// Adds the sums that were taken to those of the kernel side.
    pub fn add_to(&self, process: ProcessId, totals: &mut Totals) {
        let stack_of = |totals: &Totals, site| totals.tally_stacks.get(&(process, site)).copied().unwrap_or(LOST);
        for ((number, sums), (_, resident_bytes)) in (0..).zip(&self.sums).zip(&self.resident) {
            let stack = stack_of(totals, number);
            let counts = SiteCounts {
                allocated_bytes: sums.allocated_bytes,
                allocations: sums.allocations,
                released_bytes: sums.released_bytes,
                releases: sums.releases,
                dead_bytes: sums.dead_bytes,
                resident_bytes: *resident_bytes,
                last_event: sums.last_event << abi::RM_ORDER_SHIFT,
                tallied: true,
                variances: SiteVariances { allocated: sums.variance, ..SiteVariances::default() },
            };
            // The kernel side has a site of the same stack, with its status.
            totals.sites.push((process, stack, StackStatus::Complete, counts));
        }
        if let Some(sampled) = &self.sampled {
            let pair = |(asked, released, variance): &(u32, u32, u64)| Pair {
                asked: stack_of(totals, *asked),
                released: stack_of(totals, *released),
                variance: *variance,
            };
            let pairs = self.pairs.iter().map(pair).collect();
            totals.sampled.insert(process, Sampled { pairs, ..sampled.clone() });
        }
        for (total, more) in totals.counters.iter_mut().zip(&self.counters) {
            *total = total.saturating_add(*more);
        }
        let (allocated, released) = totals.siteless;
        totals.siteless = (allocated.saturating_add(self.siteless.0), released.saturating_add(self.siteless.1));
    }
}
