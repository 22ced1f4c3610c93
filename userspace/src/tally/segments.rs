//! The memory that a process and its forks count in, as seen from here.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::mem::offset_of;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use rmprof_probes::abi;

use crate::target::supervise::Announcement;
use crate::target::{Pid, descriptor, memory, page_bytes};

const BYTES: usize = abi::RM_TALLY_BYTES as usize;
/// Before the first segment.
const BEFORE: usize = abi::RM_PAGE as usize;
/// Walks that are made with care in each image.
const CAREFUL_WALKS: u32 = 32;

/// The segments of one executed image, mapped here. Some processes have one each; the rest is empty and costs nothing.
#[derive(Debug)]
pub struct Segments {
    file: File,
    memory: NonNull<u8>,
    /// Which are somebody's.
    taken: Mutex<Vec<bool>>,
    /// Where the image has the first.
    address: u64,
    /// Where it has the order (`enum rm_tally_order`) for its next event.
    order: u64,
    /// From a thread's pointer to its `struct rm_tally_thread`.
    thread_offset: i64,
}

// SAFETY: the mapping is the value's own, and is read and written by atomic operations alone once a process runs with it.
unsafe impl Send for Segments {}
// SAFETY: as above.
unsafe impl Sync for Segments {}

impl Segments {
    /// Takes what the library in process `pid`, which is held, announced.
    ///
    /// # Errors
    /// When it is not such a memory, or cannot be had.
    pub fn of(pid: Pid, said: Announcement) -> io::Result<Arc<Self>> {
        let [file, address, order, thread_offset, count] = said;
        let refuse = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        if count == 0 {
            return Err(refuse("its limits (ulimit -f, -v) leave no room for a memory to count in"));
        }
        let count = usize::try_from(count).ok().filter(|count| (1..=abi::RM_TALLY_SEGMENTS as usize).contains(count));
        let count = count.ok_or_else(|| refuse("the number of its segments"))?;
        if address == 0 || !address.is_multiple_of(page_bytes()) {
            return Err(refuse("the address of its segments"));
        }
        let file = descriptor::copy_of(pid, i32::try_from(file).map_err(|_| refuse("its descriptor"))?)?;
        // No smaller, whatever the process does: reading beyond its end would kill us.
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        if file.metadata()?.len() != (BEFORE + count * BYTES) as u64 {
            return Err(refuse("the length of its segments"));
        }
        let memory = map(&file, BEFORE + count * BYTES)?;
        let taken = Mutex::new(vec![false; count]);
        #[allow(clippy::cast_possible_wrap)] // a difference of addresses
        let thread_offset = thread_offset as i64;
        Ok(Arc::new(Self { file, memory, taken, address, order, thread_offset }))
    }

    /// A segment that is nobody's; `None` when too many forks are alive.
    pub fn take(self: &Arc<Self>) -> Option<Segment> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let index = taken.iter().position(|taken| !taken)?;
        taken[index] = true;
        Some(Segment { of: Arc::clone(self), index })
    }

    /// From a thread's pointer to its `struct rm_tally_thread`.
    pub fn thread_offset(&self) -> i64 {
        self.thread_offset
    }

    /// Where the image has the first segment.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Makes `child`, a fork that is held, count in its own segment, or nowhere.
    ///
    /// # Errors
    /// When its memory cannot be written: it is then counted as its parent.
    pub fn direct(&self, child: Pid, to: Option<&Segment>) -> io::Result<()> {
        let order = to.map_or(abi::RM_TALLY_NOWHERE, |segment| abi::RM_TALLY_MOVE + segment.index as u32);
        Ok(memory::write_exact_at(child, self.order, &order.to_ne_bytes())?)
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        let bytes = BEFORE + self.taken.get_mut().unwrap_or_else(PoisonError::into_inner).len() * BYTES;
        // SAFETY: mapped by `of`, and nobody has a reference into it any more: segments keep us alive.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), bytes) };
    }
}

fn map(file: &File, bytes: usize) -> io::Result<NonNull<u8>> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
    // SAFETY: a new mapping where the kernel likes.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)
}

/// What one site of a tally has counted: as [`SiteCounts`](crate::ledger::SiteCounts), but for what was resident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Bytes asked for.
    pub allocated_bytes: u64,
    /// Blocks asked for.
    pub allocations: u64,
    /// Bytes released.
    pub released_bytes: u64,
    /// Blocks released.
    pub releases: u64,
    /// Of the bytes asked for, those released since.
    pub dead_bytes: u64,
    /// The number of the last event.
    pub last_event: u64,
    /// Variance of `allocated_bytes`, by [`VARIANCE_UNIT`](super::VARIANCE_UNIT); 0 where every block is counted.
    pub variance: u64,
}

/// One segment: what one process image counts in. Dropping it gives the memory back.
#[derive(Debug)]
pub struct Segment {
    of: Arc<Segments>,
    index: usize,
}

impl Segment {
    /// The segments it is one of.
    pub fn siblings(&self) -> &Arc<Segments> {
        &self.of
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < BYTES);
        // SAFETY: within the segment, which is within the mapping.
        unsafe { self.of.memory.add(BEFORE + self.index * BYTES + offset) }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8));
        // SAFETY: aligned, within the segment, mapped as long as `of` lives; the process writes it by whole words.
        unsafe { AtomicU64::from_ptr(self.at(offset).as_ptr().cast()) }
    }

    fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4));
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(self.at(offset).as_ptr().cast()) }
    }

    fn get(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Tells the process, which is held, how to find its frames, and lets it count. `small_blocks`: most of its blocks are of some
    /// tens of bytes, not of hundreds. `sample`: bytes between two that are sampled, in the mean.
    pub fn begin(
        &self,
        process: &abi::rm_process,
        small_blocks: bool,
        sample: Option<NonZeroU64>,
        parent: Option<&Segment>,
    ) {
        let sample = sample.map_or(0, NonZeroU64::get);
        self.word(offset_of!(abi::rm_tally, sample_bytes)).store(sample, Ordering::Relaxed);
        // Of the library's making by chance: another each time.
        let seed = RandomState::new().build_hasher().finish();
        self.word(offset_of!(abi::rm_tally, sample_seed)).store(seed, Ordering::Relaxed);
        let careful = offset_of!(abi::rm_tally, careful);
        let refused = offset_of!(abi::rm_tally, refused);
        let (walks, doubt) = parent.map_or((CAREFUL_WALKS, 0), |parent| {
            let of_parent = |offset| parent.half(offset).load(Ordering::Relaxed);
            (of_parent(careful).min(CAREFUL_WALKS), of_parent(refused))
        });
        self.half(careful).store(walks, Ordering::Relaxed);
        self.half(refused).store(doubt, Ordering::Relaxed);
        // A bucket has room for seven: as many blocks of over 512 bytes as a page has, or of 32 and more (glibc's least) as 224 bytes
        // have. The last levels have room for those of a heap that is not what it was thought to be.
        let shifts: [u8; 8] = if small_blocks { [8, 8, 8, 8, 7, 0, 0, 0] } else { [12, 12, 9, 7, 7, 0, 0, 0] };
        self.word(offset_of!(abi::rm_tally, region_shifts)).store(u64::from_ne_bytes(shifts), Ordering::Relaxed);
        let to: NonNull<abi::rm_process> = self.at(offset_of!(abi::rm_tally, process)).cast();
        // SAFETY: there is room for one in the head, and the process that may look at it is held.
        unsafe { to.write_unaligned(*process) };
        self.half(offset_of!(abi::rm_tally, enabled)).store(1, Ordering::Release);
    }

    /// What to zero to end the counting when we cannot: four bytes of this file at this offset.
    pub fn switch(&self) -> (BorrowedFd<'_>, u64) {
        let at = BEFORE + self.index * BYTES + offset_of!(abi::rm_tally, enabled);
        (self.of.file.as_fd(), at as u64)
    }

    /// Ends the counting. The process runs on.
    pub fn end(&self) {
        self.half(offset_of!(abi::rm_tally, enabled)).store(0, Ordering::Release);
    }

    /// Has every site tell its stack again, at its next event: the kernel side may not have heard all.
    pub fn ask_again(&self) {
        self.half(offset_of!(abi::rm_tally, announcements)).fetch_add(1, Ordering::Relaxed);
    }

    /// How many events were counted.
    pub fn sequence(&self) -> u64 {
        self.get(offset_of!(abi::rm_tally, sequence))
    }

    /// How many sites there are.
    pub fn site_count(&self) -> u32 {
        self.half(offset_of!(abi::rm_tally, site_count)).load(Ordering::Acquire).min(abi::RM_TALLY_SITES)
    }

    fn site(&self, number: u32) -> usize {
        let (start, first) = match number.checked_sub(abi::RM_TALLY_FIRST_SITES) {
            None => (abi::RM_TALLY_SITES_AT, number),
            Some(further) => (abi::RM_TALLY_MORE_SITES_AT, further),
        };
        (start + first * abi::RM_TALLY_SITE_BYTES) as usize
    }

    /// The number of a site's last event; 0: it has none.
    pub fn last_event(&self, number: u32) -> u64 {
        self.get(self.site(number) + offset_of!(abi::rm_tally_site, last_event))
    }

    /// What a site has counted.
    pub fn sums(&self, number: u32) -> Sums {
        let get = |offset| self.get(self.site(number) + offset);
        let blocks = |offset| match self.sample() {
            None => get(offset),
            Some(_) => get(offset).saturating_add(1 << (abi::RM_TALLY_COUNT_SHIFT - 1)) >> abi::RM_TALLY_COUNT_SHIFT,
        };
        Sums {
            allocated_bytes: get(offset_of!(abi::rm_tally_site, allocated_bytes)),
            allocations: blocks(offset_of!(abi::rm_tally_site, allocations)),
            released_bytes: get(offset_of!(abi::rm_tally_site, released_bytes)),
            releases: blocks(offset_of!(abi::rm_tally_site, releases)),
            dead_bytes: get(offset_of!(abi::rm_tally_site, dead_bytes)),
            last_event: get(offset_of!(abi::rm_tally_site, last_event)),
            variance: get(offset_of!(abi::rm_tally_site, variance)),
        }
    }

    /// Bytes between two that are sampled, in the mean; `None`: every block is counted.
    pub fn sample(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.get(offset_of!(abi::rm_tally, sample_bytes)))
    }

    /// How many blocks were sampled.
    pub fn samples(&self) -> u64 {
        self.get(offset_of!(abi::rm_tally, samples))
    }

    /// Of all blocks, where they are sampled: bytes asked for, blocks asked for, blocks released.
    pub fn exact(&self) -> [u64; 3] {
        let sums = [
            offset_of!(abi::rm_tally_exact, allocated_bytes),
            offset_of!(abi::rm_tally_exact, allocations),
            offset_of!(abi::rm_tally_exact, releases),
        ];
        sums.map(|offset| {
            let of_thread = |thread| abi::RM_TALLY_EXACT_AT + thread * abi::RM_TALLY_EXACT_BYTES;
            let threads = (0..abi::RM_TALLY_EXACT).map(|thread| self.get(of_thread(thread) as usize + offset));
            threads.fold(0, u64::saturating_add)
        })
    }

    /// Where blocks are sampled: which site released those of which, with what they add to the variance of either.
    pub fn pairs(&self) -> Vec<(u32, u32, u64)> {
        let place = |pair: u32| (abi::RM_TALLY_PAIRS_AT + pair * abi::RM_TALLY_PAIR_BYTES) as usize;
        let read = |pair: u32| {
            let sites = self.get(place(pair) + offset_of!(abi::rm_tally_pair, sites));
            let variance = self.get(place(pair) + offset_of!(abi::rm_tally_pair, variance));
            let site = |plus_one: u64| u32::try_from(plus_one).ok()?.checked_sub(1);
            Some((site(sites >> 32)?, site(sites & u64::from(u32::MAX))?, variance))
        };
        (0..abi::RM_TALLY_PAIRS).filter_map(read).collect()
    }

    /// Its counters, by `enum rm_counter`.
    pub fn counters(&self) -> Vec<u64> {
        let at = offset_of!(abi::rm_tally, counters);
        (0..abi::RM_COUNTERS as usize).map(|index| self.get(at + 8 * index)).collect()
    }

    /// Bytes allocated and released by events that found no room for their site.
    pub fn siteless(&self) -> (u64, u64) {
        let at = offset_of!(abi::rm_tally, siteless);
        (self.get(at), self.get(at + 8))
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        let at = i64::try_from(BEFORE + self.index * BYTES).unwrap_or(i64::MAX);
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Where it does not succeed the segment is not empty, and must not be another's.
        if fallocate(&self.of.file, mode, at, BYTES as i64).is_ok() {
            let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
            taken[self.index] = false;
        }
    }
}
