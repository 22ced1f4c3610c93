//! The program's own mappings as intervals, each with the stack that mapped it.
//!
//! `mmap`, `munmap`, `mremap` and `brk` speak of ranges, not of blocks: an unmap may take a part of a mapping, several of
//! them, or none. What a change means for the books is therefore found here, on intervals, and handed out as [`Credit`]s.

use std::collections::BTreeMap;

use super::types::{MapChange, SiteCounts, StackId};

/// What one change adds to the counts of one stack. `resident_bytes` and `last_event` are left at 0: the caller knows them.
pub type Credit = (StackId, SiteCounts);

/// Page size assumed where the caller's is not a power of two.
const USUAL_PAGE_BYTES: u64 = 4096;

/// One piece of a mapping: `[start, end)`, the start being its key in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    end: u64,
    owner: StackId,
    /// Which mapping it is a piece of; numbered in order of their making.
    block: u64,
}

/// All mappings of one process that were seen being made. Clone it for a forked child; make a new one after an exec.
///
/// A *block* is what one call mapped. It is released when its last page goes, so `allocations - releases` counts the
/// mappings that still have a page.
#[derive(Clone, Debug)]
pub struct Mappings {
    page_bytes: u64,
    ranges: BTreeMap<u64, Range>,
    /// Bytes left of every block.
    blocks: BTreeMap<u64, u64>,
    next_block: u64,
    from_before_bytes: u64,
}

impl Default for Mappings {
    fn default() -> Self {
        Self::new(USUAL_PAGE_BYTES)
    }
}

impl Mappings {
    /// No mapping known yet. `page_bytes` is the kernel's page size (4096 is taken for what is no power of two).
    pub fn new(page_bytes: u64) -> Self {
        let page_bytes = if page_bytes.is_power_of_two() { page_bytes } else { USUAL_PAGE_BYTES };
        Self { page_bytes, ranges: BTreeMap::new(), blocks: BTreeMap::new(), next_block: 0, from_before_bytes: 0 }
    }

    /// Enters one change that the stack `by` made, and tells what it adds to whose counts: allocated bytes and blocks, and
    /// released bytes and blocks, to `by`; dead bytes to the stacks that had mapped what is gone. At most one credit a
    /// stack, in order of stacks; none where nothing changed.
    ///
    /// A change that the kernel would refuse (a length of 0, a range past the end of the address space) changes nothing.
    pub fn apply(&mut self, change: MapChange, by: StackId) -> Vec<Credit> {
        let mut books = Books { by, credits: BTreeMap::new() };
        match change {
            MapChange::Map { start, bytes } => self.map(start, bytes, &mut books),
            MapChange::Unmap { start, bytes } => self.unmap(start, bytes, &mut books),
            MapChange::Move { from, from_bytes, to, to_bytes } => {
                self.relocate((from, from_bytes), (to, to_bytes), &mut books);
            }
            MapChange::Break { from, to } => self.move_break(from, to, &mut books),
        }
        books.credits.into_iter().collect()
    }

    /// Bytes of unmapped ranges whose mapping was not seen: mapped before the measuring began, by the allocator itself, or
    /// not mapped at all. They are in nobody's counts.
    pub fn from_before_bytes(&self) -> u64 {
        self.from_before_bytes
    }

    /// Bytes of all known mappings that still stand.
    pub fn live_bytes(&self) -> u64 {
        self.blocks.values().sum()
    }

    fn map(&mut self, start: u64, bytes: u64, books: &mut Books) {
        let Some((start, end)) = self.span(start, bytes) else { return };
        // MAP_FIXED puts the new pages in place of the old ones without a munmap. A hole under them is the usual case and
        // says nothing, so it is not counted as "from before".
        for piece in self.take(start, end) {
            self.release(piece, books);
        }
        self.grow(start, end, books);
    }

    fn unmap(&mut self, start: u64, bytes: u64, books: &mut Books) {
        let Some((start, end)) = self.span(start, bytes) else { return };
        let taken = self.take(start, end);
        self.count_unknown(end - start, &taken);
        for piece in taken {
            self.release(piece, books);
        }
    }

    /// `mremap`. What moves keeps its owner (its bytes are still those of the line that asked for them); only what is new
    /// belongs to the caller. MREMAP_DONTUNMAP is booked as a move too: the old range keeps its address but no page.
    fn relocate(&mut self, (from, from_bytes): (u64, u64), (to, to_bytes): (u64, u64), books: &mut Books) {
        let Some((to, to_end)) = self.span(to, to_bytes) else { return };
        let (from, from_end) = self.span(from, from_bytes).unwrap_or((from, from));
        let kept_end = from.saturating_add(to_end - to).min(from_end);

        let kept = self.take(from, kept_end);
        if kept_end < from_end {
            let cut = self.take(kept_end, from_end);
            self.count_unknown(from_end - kept_end, &cut);
            for piece in cut {
                self.release(piece, books);
            }
        }
        for piece in self.take(to, to_end) {
            self.release(piece, books);
        }
        for (start, range) in kept {
            let moved = to + (start - from);
            self.insert(moved, Range { end: moved + (range.end - start), ..range });
        }
        let grown_from = to + (kept_end - from);
        if grown_from < to_end {
            self.grow(grown_from, to_end, books);
        }
    }

    /// `brk`: the kernel rounds both ends up to pages (mm/mmap.c, `PAGE_ALIGN(mm->brk)`, `PAGE_ALIGN(brk)`).
    fn move_break(&mut self, from: u64, to: u64, books: &mut Books) {
        let (Some(from), Some(to)) = (self.round_up(from), self.round_up(to)) else { return };
        if to > from {
            self.map(from, to - from, books);
        } else {
            self.unmap(to, from - to, books);
        }
    }

    /// Whole pages of a range; `None` for one the kernel refuses.
    fn span(&self, start: u64, bytes: u64) -> Option<(u64, u64)> {
        let start = start & !(self.page_bytes - 1);
        let end = start.checked_add(self.round_up(bytes)?)?;
        (start < end).then_some((start, end))
    }

    fn round_up(&self, bytes: u64) -> Option<u64> {
        bytes.checked_next_multiple_of(self.page_bytes)
    }

    /// A new block of the running stack.
    fn grow(&mut self, start: u64, end: u64, books: &mut Books) {
        let block = self.next_block;
        self.next_block += 1;
        self.blocks.insert(block, end - start);
        self.insert(start, Range { end, owner: books.by, block });
        let counts = books.running();
        counts.allocated_bytes += end - start;
        counts.allocations += 1;
    }

    /// Books a piece that was taken out as gone.
    fn release(&mut self, (start, range): (u64, Range), books: &mut Books) {
        let bytes = range.end - start;
        let left = self.blocks.get(&range.block).map_or(0, |left| left.saturating_sub(bytes));
        if left == 0 {
            self.blocks.remove(&range.block);
            books.running().releases += 1;
        } else {
            self.blocks.insert(range.block, left);
        }
        books.running().released_bytes += bytes;
        books.credits.entry(range.owner).or_default().dead_bytes += bytes;
    }

    fn count_unknown(&mut self, bytes: u64, taken: &[(u64, Range)]) {
        let known: u64 = taken.iter().map(|(start, range)| range.end - start).sum();
        self.from_before_bytes = self.from_before_bytes.saturating_add(bytes - known);
    }

    /// Takes all pieces between two addresses out of the map, cutting those that reach over an end.
    fn take(&mut self, start: u64, end: u64) -> Vec<(u64, Range)> {
        if start >= end {
            return Vec::new();
        }
        self.cut(start);
        self.cut(end);
        let starts: Vec<u64> = self.ranges.range(start..end).map(|(at, _)| *at).collect();
        starts.into_iter().filter_map(|at| self.ranges.remove(&at).map(|range| (at, range))).collect()
    }

    /// Makes `at` the border of two pieces, if a piece reaches over it.
    fn cut(&mut self, at: u64) {
        let Some((_, range)) = self.ranges.range_mut(..at).next_back() else { return };
        if range.end > at {
            let behind = *range;
            range.end = at;
            self.ranges.insert(at, behind);
        }
    }

    /// Puts a piece where nothing is, joined to neighbours of the same block so that cuts do not pile up.
    fn insert(&mut self, start: u64, mut range: Range) {
        if let Some(next) = self.ranges.get(&range.end).copied()
            && next.block == range.block
        {
            self.ranges.remove(&range.end);
            range.end = next.end;
        }
        if let Some((_, before)) = self.ranges.range_mut(..start).next_back()
            && before.end == start
            && before.block == range.block
        {
            before.end = range.end;
            return;
        }
        self.ranges.insert(start, range);
    }
}

/// The credits of one change while they are being made.
struct Books {
    by: StackId,
    credits: BTreeMap<StackId, SiteCounts>,
}

impl Books {
    fn running(&mut self) -> &mut SiteCounts {
        self.credits.entry(self.by).or_default()
    }
}

#[cfg(test)]
#[path = "ranges_tests.rs"]
mod tests;
