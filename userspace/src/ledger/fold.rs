//! Counts by stack become totals by line.
//!
//! Inclusive totals count an event once a function and stack, at the function's innermost frame, so that the lines of a
//! function add up to what its executions did, recursion or not. The event's own line is the innermost frame alone.
//! Identity, property-tested: the self bytes of all lines and the bytes on no line add up to the net of all sites.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use super::types::{Frame, LinePosition, Pair, SiteCounts, SiteVariances, Stack, StackId, StackStatus};

/// What a resolver makes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A line of a function.
    Line(LinePosition),
    /// A frame of ours (the help a started program gets): as if it were not on the stack.
    Skip,
    /// A frame of ours that does something of its own (the debugger): so are all that it called, and no line of the program's.
    OwnWork,
    /// Its code object or its line could not be read.
    Unknown,
}

/// Why bytes are on no line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The thread runs no Python.
    NoPythonFrame,
    /// The same, of a thread that began with this native function ([`Origin`](super::types::Origin)).
    Thread(u32),
    /// The interpreter was not up yet.
    StartUp,
    /// The kernel (reclaim, compaction) or another process changed the memory.
    Foreign,
    /// Not one frame of the stack could be read.
    StackNotRead,
    /// The kernel side named a stack that never arrived.
    StackLost,
    /// The innermost frame's code object could not be read.
    CodeNotRead,
    /// The garbage collector, which became due while a line ran that did not ask for it.
    Collector,
    /// Only the help that a started program gets from us was on the stack, or the debugger that it opened.
    OwnHelp,
}

impl Reason {
    /// The words of the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::NoPythonFrame | Reason::Thread(_) => "no Python frame",
            Reason::StartUp => "start-up of the interpreter",
            Reason::Foreign => "the kernel or another process",
            Reason::StackNotRead => "stack not read",
            Reason::StackLost => "stack lost",
            Reason::CodeNotRead => "code object not read",
            Reason::Collector => "the garbage collector",
            Reason::OwnHelp => "rmprof-bpf's own help",
        }
    }

    /// Whether it is a failure of ours: a line did ask for these bytes, and it is not known which.
    pub fn is_failure(self) -> bool {
        matches!(self, Reason::StackNotRead | Reason::StackLost | Reason::CodeNotRead)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How far the totals of a line may be from the truth, where blocks were sampled: their variances. A block that the line both asked
/// for and released is in no increment, sampled or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variances {
    /// Of the increment.
    pub increment: i64,
    /// Of the bytes asked for.
    pub allocated: i64,
    /// Of the bytes released.
    pub freed: i64,
    /// Of the bytes that were not released since.
    pub live: i64,
}

/// The totals of one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineTotals {
    /// Net bytes, callees included.
    pub increment: i64,
    /// Net bytes of the events whose innermost frame is on the line.
    pub self_net: i64,
    /// Net bytes of the events whose innermost frame in a function that is shown is on the line; where none is, as `self_net`.
    pub shown_net: i64,
    /// Of the same events: bytes asked for and not released since.
    pub shown_live: i64,
    /// Bytes asked for, callees included.
    pub allocated: u64,
    /// Bytes released, callees included.
    pub freed: u64,
    /// Blocks asked for, callees included.
    pub allocations: u64,
    /// Blocks released, callees included.
    pub frees: u64,
    /// Bytes asked for and not released since, callees included.
    pub live: i64,
    /// Resident bytes of the process at the latest event on the line whose resident bytes are known; 0 where none is.
    pub resident_bytes: u64,
    /// The number of that event among those of its process.
    pub last_event: u64,
    /// Events whose innermost frame is on the line may have been further on in its function ([`Stack::approximate`]).
    pub approximate: bool,
    /// How exact the bytes are.
    pub variances: Variances,
}

impl LineTotals {
    fn add(&mut self, counts: &SiteCounts) {
        self.increment = self.increment.saturating_add(counts.net_bytes());
        self.live = self.live.saturating_add(counts.live_bytes());
        self.allocated = self.allocated.saturating_add(counts.allocated_bytes);
        self.freed = self.freed.saturating_add(counts.released_bytes);
        self.allocations = self.allocations.saturating_add(counts.allocations);
        self.frees = self.frees.saturating_add(counts.releases);
        let SiteVariances { allocated, released, dead } = counts.variances;
        let (sums, both) = (&mut self.variances, allocated.saturating_add(released));
        sums.increment = sums.increment.saturating_add(signed(both));
        sums.allocated = sums.allocated.saturating_add(signed(allocated));
        sums.freed = sums.freed.saturating_add(signed(released));
        sums.live = sums.live.saturating_add(signed(allocated.saturating_sub(dead)));
        let latest = (self.resident_bytes != 0, self.last_event, self.resident_bytes);
        if counts.event_rank() > latest {
            self.resident_bytes = counts.resident_bytes;
            self.last_event = counts.last_event;
        }
    }
}

fn signed(variance: u64) -> i64 {
    i64::try_from(variance).unwrap_or(i64::MAX)
}

/// Everything the sites of one process say, by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Totals of every line that an event is on.
    pub lines: BTreeMap<LinePosition, LineTotals>,
    /// Bytes asked for on each line, callees included, by the native function that asked.
    pub asked_in: BTreeMap<LinePosition, BTreeMap<u32, u64>>,
    /// Net bytes on no line.
    pub other: BTreeMap<Reason, i64>,
    /// Distinct frames that did not resolve.
    pub unresolved_frames: u64,
    /// Bytes asked for plus bytes released for which a line should have been found and was not ([`Reason::is_failure`]).
    pub unattributed_bytes: u64,
}

impl Folded {
    /// Bytes asked for plus bytes released in each function, callees included: the order of the tables.
    pub fn moved_bytes(&self) -> BTreeMap<u32, u64> {
        let mut moved = BTreeMap::<u32, u64>::new();
        for (position, totals) in &self.lines {
            let sum = moved.entry(position.function).or_default();
            *sum = sum.saturating_add(totals.allocated).saturating_add(totals.freed);
        }
        moved
    }

    /// Allocated less released of all sites.
    pub fn net_bytes(&self) -> i64 {
        let lines = self.lines.values().map(|totals| totals.self_net);
        lines.chain(self.other.values().copied()).fold(0, i64::saturating_add)
    }
}

/// Folds the sites of one process. A stack may come more than once among the sites; the result does not depend on their
/// order. `pairs` are of blocks that were sampled. `resolve` is asked once for every distinct frame; `is_shown` tells whether a
/// function is shown.
pub fn fold(
    sites: impl IntoIterator<Item = (StackId, SiteCounts)>,
    pairs: impl IntoIterator<Item = Pair>,
    stacks: &HashMap<StackId, Stack>,
    resolve: impl FnMut(Frame) -> Resolved,
    is_shown: impl Fn(u32) -> bool,
) -> Folded {
    let mut folder = Folder {
        resolve,
        is_shown,
        known: HashMap::new(),
        on_stack: HashSet::new(),
        lines: Vec::new(),
        folded: Folded::default(),
    };
    for (id, counts) in sites {
        match stacks.get(&id) {
            Some(stack) => folder.add(stack, &counts),
            None => folder.add_other(Reason::StackLost, &counts),
        }
    }
    for pair in pairs {
        folder.add_pair(&pair, stacks);
    }
    folder.folded
}

struct Folder<R, S> {
    resolve: R,
    is_shown: S,
    known: HashMap<Frame, Resolved>,
    /// Functions met on the stack at hand, kept for its room.
    on_stack: HashSet<u32>,
    /// The innermost lines of these functions, kept for its room.
    lines: Vec<LinePosition>,
    folded: Folded,
}

impl<R: FnMut(Frame) -> Resolved, S: Fn(u32) -> bool> Folder<R, S> {
    fn add(&mut self, stack: &Stack, counts: &SiteCounts) {
        let (innermost, shown) = match self.find_lines(stack) {
            Ok(found) => found,
            Err(reason) => return self.add_other(reason, counts),
        };
        for position in &self.lines {
            self.folded.lines.entry(*position).or_default().add(counts);
            if let Some(function) = stack.origin.asked_in {
                let bytes = self.folded.asked_in.entry(*position).or_default().entry(function).or_default();
                *bytes = bytes.saturating_add(counts.allocated_bytes);
            }
        }
        match innermost {
            Some(Resolved::Line(position)) => {
                let totals = self.folded.lines.entry(position).or_default();
                totals.self_net = totals.self_net.saturating_add(counts.net_bytes());
                totals.approximate |= stack.approximate;
                let totals = self.folded.lines.entry(shown.unwrap_or(position)).or_default();
                totals.shown_net = totals.shown_net.saturating_add(counts.net_bytes());
                totals.shown_live = totals.shown_live.saturating_add(counts.live_bytes());
            }
            Some(_) => self.add_other(Reason::CodeNotRead, counts),
            None => self.add_other(without_frames(stack), counts),
        }
    }

    /// Finds the lines that bytes of a stack count on: they are in `lines` then. Returns what its innermost frame is, and its innermost
    /// line that is shown; or why the bytes count on no line.
    fn find_lines(&mut self, stack: &Stack) -> Result<(Option<Resolved>, Option<LinePosition>), Reason> {
        self.on_stack.clear();
        self.lines.clear();
        if stack.collector {
            return Err(Reason::Collector);
        }
        let (mut innermost, mut shown) = (None, None);
        for frame in &stack.frames {
            let resolved = self.resolve_once(*frame);
            if resolved == Resolved::Skip {
                continue;
            }
            if resolved == Resolved::OwnWork {
                return Err(Reason::OwnHelp);
            }
            innermost.get_or_insert(resolved);
            if let Resolved::Line(position) = resolved {
                if self.on_stack.insert(position.function) {
                    self.lines.push(position);
                }
                if shown.is_none() && (self.is_shown)(position.function) {
                    shown = Some(position);
                }
            }
        }
        Ok((innermost, shown))
    }

    /// The lines that bytes of a stack count on.
    fn lines_of(&mut self, stack: Option<&Stack>) -> Vec<LinePosition> {
        match stack.map(|stack| self.find_lines(stack)) {
            Some(Ok(_)) => self.lines.clone(),
            _ => Vec::new(),
        }
    }

    fn add_pair(&mut self, pair: &Pair, stacks: &HashMap<StackId, Stack>) {
        let variance = signed(pair.variance);
        let asked = self.lines_of(stacks.get(&pair.asked));
        let released = self.lines_of(stacks.get(&pair.released));
        for position in &asked {
            let variances = &mut self.folded.lines.entry(*position).or_default().variances;
            variances.live = variances.live.saturating_sub(variance);
            if released.contains(position) {
                variances.increment = variances.increment.saturating_sub(variance.saturating_mul(2));
            }
        }
        for position in &released {
            let variances = &mut self.folded.lines.entry(*position).or_default().variances;
            variances.freed = variances.freed.saturating_add(variance);
            variances.increment = variances.increment.saturating_add(variance);
        }
    }

    fn resolve_once(&mut self, frame: Frame) -> Resolved {
        if let Some(resolved) = self.known.get(&frame) {
            return *resolved;
        }
        let resolved = (self.resolve)(frame);
        self.folded.unresolved_frames += u64::from(resolved == Resolved::Unknown);
        self.known.insert(frame, resolved);
        resolved
    }

    fn add_other(&mut self, reason: Reason, counts: &SiteCounts) {
        let net = self.folded.other.entry(reason).or_default();
        *net = net.saturating_add(counts.net_bytes());
        if reason.is_failure() {
            let moved = counts.allocated_bytes.saturating_add(counts.released_bytes);
            self.folded.unattributed_bytes = self.folded.unattributed_bytes.saturating_add(moved);
        }
    }
}

/// The reason for a stack on which no frame counts.
fn without_frames(stack: &Stack) -> Reason {
    if !stack.frames.is_empty() {
        return Reason::OwnHelp;
    }
    match stack.status {
        StackStatus::NoPythonFrame | StackStatus::Complete => {
            stack.origin.thread.map_or(Reason::NoPythonFrame, Reason::Thread)
        }
        StackStatus::StartUp => Reason::StartUp,
        StackStatus::Foreign => Reason::Foreign,
        StackStatus::ReadFailed | StackStatus::Truncated => Reason::StackNotRead,
    }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
