//! The neutral vocabulary between the kernel, Python and the report: plain data, no behaviour that reads or writes.

/// One life of one process image: a fork or an exec begins a new one. Given by the supervisor, never reused in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// A stack as the kernel side names it: a hash of the process and its frames. 0 is never a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StackId(pub u64);

/// A code object: its address and a fingerprint, because addresses are reused when code objects die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodeKey {
    /// Address of the `PyCodeObject` in the process.
    pub address: u64,
    /// Drawn from fields that differ between two code objects at one address (see `probes/bpf/python.bpf.h`).
    pub fingerprint: u32,
}

/// One Python frame: a code object and the position of the executing instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Frame {
    /// Whose instruction.
    pub code: CodeKey,
    /// Byte offset of the instruction in the bytecode; negative before the first instruction.
    pub position: i32,
}

/// How the walk of a stack ended. Everything but `Complete` is said in the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StackStatus {
    /// The outermost frame was reached.
    Complete,
    /// The limit of frames was reached: the outer frames are missing.
    Truncated,
    /// The thread has no Python thread state, or no frame.
    NoPythonFrame,
    /// A read of the target's memory failed on the way.
    ReadFailed,
    /// The interpreter's start-up: no thread state exists in the process yet.
    StartUp,
    /// Not the process's own doing: the kernel or another process changed its memory.
    Foreign,
}

/// A walked stack, innermost frame first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// How the walk ended.
    pub status: StackStatus,
    /// Innermost first.
    pub frames: Vec<Frame>,
    /// Code of Python's JIT ran: the innermost frame may have been further on in its function than its position says.
    pub approximate: bool,
    /// The garbage collector did it, which became due while the innermost frame ran.
    pub collector: bool,
    /// What is known of it besides.
    pub origin: Origin,
}

/// Where a stack comes from, by numbers that the session gives to native functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The native function that asked for memory, where that is looked for and known.
    pub asked_in: Option<u32>,
    /// The native function with which a thread began that runs no Python, where it is known.
    pub thread: Option<u32>,
}

/// What was summed for one stack of one process: exact counts, but for blocks that were sampled in the process, which are estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteCounts {
    /// Bytes asked for with this stack.
    pub allocated_bytes: u64,
    /// Blocks asked for with this stack.
    pub allocations: u64,
    /// Bytes released while this stack ran, whoever had asked for them.
    pub released_bytes: u64,
    /// Blocks released while this stack ran.
    pub releases: u64,
    /// Of `allocated_bytes`, those released since, by whatever stack.
    pub dead_bytes: u64,
    /// Resident memory of the process at the last event of this stack, bytes; 0 when not known.
    pub resident_bytes: u64,
    /// The number of that event among those of its process: later events have greater ones.
    pub last_event: u64,
    /// Counted by the process itself, not by the kernel side.
    pub tallied: bool,
    /// How far they may be from the truth, where they are estimates.
    pub variances: SiteVariances,
}

/// Variances of a site's bytes, in a unit of the caller's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteVariances {
    /// Of those asked for.
    pub allocated: u64,
    /// Of those released, where no [`Pair`] tells whose they were.
    pub released: u64,
    /// What of `allocated` is of those released since, where no [`Pair`] tells it.
    pub dead: u64,
}

/// Sampled blocks that one stack asked for and the other released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The stack that asked.
    pub asked: StackId,
    /// The stack that released.
    pub released: StackId,
    /// What they add to the variance of either.
    pub variance: u64,
}

impl SiteCounts {
    /// Allocated less released: what the stack added to the process, in bytes.
    pub fn net_bytes(&self) -> i64 {
        difference(self.allocated_bytes, self.released_bytes)
    }

    /// Allocated less dead: what the stack asked for and nobody released yet, in bytes.
    pub fn live_bytes(&self) -> i64 {
        difference(self.allocated_bytes, self.dead_bytes)
    }

    /// Sums two counts of one stack. The resident bytes are those of the later event that knows them.
    pub fn add(&mut self, other: &SiteCounts) {
        self.allocated_bytes = self.allocated_bytes.saturating_add(other.allocated_bytes);
        self.allocations = self.allocations.saturating_add(other.allocations);
        self.released_bytes = self.released_bytes.saturating_add(other.released_bytes);
        self.releases = self.releases.saturating_add(other.releases);
        self.dead_bytes = self.dead_bytes.saturating_add(other.dead_bytes);
        self.tallied |= other.tallied;
        let (sum, more) = (&mut self.variances, &other.variances);
        sum.allocated = sum.allocated.saturating_add(more.allocated);
        sum.released = sum.released.saturating_add(more.released);
        sum.dead = sum.dead.saturating_add(more.dead);
        if other.event_rank() > self.event_rank() {
            self.resident_bytes = other.resident_bytes;
            self.last_event = other.last_event;
        }
    }

    /// Orders events by how well they tell the resident memory "at the end": known before unknown, then the later one.
    /// The bytes themselves only break ties, so that the result never depends on the order of the sites.
    pub(crate) fn event_rank(&self) -> (bool, u64, u64) {
        (self.resident_bytes != 0, self.last_event, self.resident_bytes)
    }
}

/// `plus - minus` as a signed number, held at the ends of its range (8 EiB: never reached by honest counts).
fn difference(plus: u64, minus: u64) -> i64 {
    let exact = i128::from(plus) - i128::from(minus);
    i64::try_from(exact).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX })
}

/// A line of a marked function, begun at one instruction (byte of the bytecode); `None`: wherever it was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinePlace {
    /// The line.
    pub line: u32,
    /// The instruction.
    pub position: Option<u32>,
}

/// What real line events measured for one line of a marked function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// Times the line was begun.
    pub occurrences: u64,
    /// Resident memory when the line last finished, bytes.
    pub resident_bytes: u64,
    /// The highest the thread's net bytes stood above their value at the line's start, within one execution.
    pub peak_bytes: u64,
}

/// A change of the program's own mappings (not of its allocator's), in the order the kernel saw them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapChange {
    /// `mmap` returned `start`; what stood there before (MAP_FIXED) is gone.
    Map {
        /// First address.
        start: u64,
        /// Length as asked for; the kernel rounds it up to pages.
        bytes: u64,
    },
    /// `munmap` of a range: any part of it may be ours, or none.
    Unmap {
        /// First address.
        start: u64,
        /// Length as asked for; the kernel rounds it up to pages.
        bytes: u64,
    },
    /// `mremap` from one range to another.
    Move {
        /// Old first address.
        from: u64,
        /// Old length; 0 makes a second mapping of the same memory and leaves the old one.
        from_bytes: u64,
        /// New first address, as returned.
        to: u64,
        /// New length.
        to_bytes: u64,
    },
    /// `brk` moved the end of the heap, outside the allocator.
    Break {
        /// The end before.
        from: u64,
        /// The end after.
        to: u64,
    },
}

/// Where a position stands in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinePosition {
    /// Which function of the process: an index the resolver gives out.
    pub function: u32,
    /// Line of the source file, from 1.
    pub line: u32,
}
