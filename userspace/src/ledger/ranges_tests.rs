//! Every shape of a change by example, then all of them against a model that knows single pages.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const A: StackId = StackId(1);
const B: StackId = StackId(2);

fn map(start: u64, pages: u64) -> MapChange {
    MapChange::Map { start: start * PAGE, bytes: pages * PAGE }
}

fn unmap(start: u64, pages: u64) -> MapChange {
    MapChange::Unmap { start: start * PAGE, bytes: pages * PAGE }
}

fn relocate(from: u64, from_pages: u64, to: u64, to_pages: u64) -> MapChange {
    MapChange::Move { from: from * PAGE, from_bytes: from_pages * PAGE, to: to * PAGE, to_bytes: to_pages * PAGE }
}

fn took(pages: u64, blocks: u64) -> SiteCounts {
    SiteCounts { allocated_bytes: pages * PAGE, allocations: blocks, ..SiteCounts::default() }
}

fn let_go(pages: u64, blocks: u64) -> SiteCounts {
    SiteCounts { released_bytes: pages * PAGE, releases: blocks, ..SiteCounts::default() }
}

fn lost(pages: u64) -> SiteCounts {
    SiteCounts { dead_bytes: pages * PAGE, ..SiteCounts::default() }
}

/// Ten pages at page 100, mapped by A.
fn ten_pages() -> Mappings {
    let mut mappings = Mappings::new(PAGE);
    assert_eq!(mappings.apply(map(100, 10), A), [(A, took(10, 1))]);
    mappings
}

#[test]
fn lengths_are_rounded_up_to_pages() {
    let mut mappings = Mappings::new(PAGE);
    let change = MapChange::Map { start: PAGE, bytes: PAGE + 1 };
    assert_eq!(mappings.apply(change, A), [(A, took(2, 1))]);
    assert_eq!(mappings.live_bytes(), 2 * PAGE);
}

#[test]
fn unmap_untouched_start_end_middle_over_and_none() {
    let shapes = [
        (unmap(90, 10), vec![], 10),
        (unmap(100, 3), vec![(A, lost(3)), (B, let_go(3, 0))], 0),
        (unmap(107, 3), vec![(A, lost(3)), (B, let_go(3, 0))], 0),
        (unmap(103, 3), vec![(A, lost(3)), (B, let_go(3, 0))], 0),
        (unmap(95, 20), vec![(A, lost(10)), (B, let_go(10, 1))], 10),
        (unmap(100, 0), vec![], 0),
    ];
    for (change, credits, from_before) in shapes {
        let mut mappings = ten_pages();
        assert_eq!(mappings.apply(change, B), credits, "{change:?}");
        assert_eq!(mappings.from_before_bytes(), from_before * PAGE, "{change:?}");
    }
}

#[test]
fn a_block_is_released_with_its_last_page() {
    let mut mappings = ten_pages();
    mappings.apply(unmap(103, 3), B);
    mappings.apply(unmap(100, 3), B);
    assert_eq!(mappings.apply(unmap(106, 4), B), [(A, lost(4)), (B, let_go(4, 1))]);
    assert_eq!(mappings.live_bytes(), 0);
}

#[test]
fn unmap_spans_several() {
    let mut mappings = ten_pages();
    mappings.apply(map(112, 4), B);
    let both = mappings.apply(unmap(105, 9), B);
    assert_eq!(both, [(A, lost(5)), (B, SiteCounts { dead_bytes: 2 * PAGE, ..let_go(7, 0) })]);
    assert_eq!(mappings.from_before_bytes(), 2 * PAGE);
}

#[test]
fn a_fixed_map_releases_what_stood_there() {
    let mut mappings = ten_pages();
    let credits = mappings.apply(map(108, 4), B);
    assert_eq!(credits, [(A, lost(2)), (B, SiteCounts { released_bytes: 2 * PAGE, ..took(4, 1) })]);
    assert_eq!(mappings.from_before_bytes(), 0);
}

#[test]
fn moves_keep_the_owner() {
    let mut mappings = ten_pages();
    assert_eq!(mappings.apply(relocate(100, 10, 300, 10), B), []);
    assert_eq!(mappings.apply(relocate(300, 10, 300, 12), B), [(B, took(2, 1))]);
    assert_eq!(mappings.apply(relocate(300, 12, 400, 14), B), [(B, took(2, 1))]);
    assert_eq!(
        mappings.apply(unmap(400, 14), B),
        [(A, lost(10)), (B, SiteCounts { dead_bytes: 4 * PAGE, ..let_go(14, 3) })]
    );
}

#[test]
fn moves_shrink_and_land_on_others() {
    let mut mappings = ten_pages();
    assert_eq!(mappings.apply(relocate(100, 10, 100, 6), B), [(A, lost(4)), (B, let_go(4, 0))]);
    mappings.apply(map(200, 4), B);
    let onto = mappings.apply(relocate(100, 6, 202, 3), A);
    assert_eq!(onto, [(A, SiteCounts { dead_bytes: 3 * PAGE, ..let_go(5, 0) }), (B, lost(2))]);
}

#[test]
fn unknown_memory_stays_unknown_when_it_moves() {
    let mut mappings = Mappings::new(PAGE);
    assert_eq!(mappings.apply(relocate(10, 4, 20, 6), A), [(A, took(2, 1))]);
    assert_eq!(mappings.apply(relocate(20, 6, 20, 3), A), [(A, SiteCounts { dead_bytes: 2 * PAGE, ..let_go(2, 1) })]);
    assert_eq!(mappings.from_before_bytes(), PAGE);
}

#[test]
fn an_old_length_of_zero_makes_a_second_mapping() {
    let mut mappings = ten_pages();
    assert_eq!(mappings.apply(relocate(100, 0, 300, 10), B), [(B, took(10, 1))]);
    assert_eq!(mappings.live_bytes(), 20 * PAGE);
}

#[test]
fn the_break_moves_up_and_down() {
    let mut mappings = Mappings::new(PAGE);
    let at = |page: u64, byte: u64| page * PAGE + byte;
    assert_eq!(mappings.apply(MapChange::Break { from: at(10, 1), to: at(10, 9) }, A), []);
    assert_eq!(mappings.apply(MapChange::Break { from: at(10, 9), to: at(13, 0) }, A), [(A, took(2, 1))]);
    assert_eq!(
        mappings.apply(MapChange::Break { from: at(13, 0), to: at(12, 0) }, B),
        [(A, lost(1)), (B, let_go(1, 0))]
    );
    assert_eq!(
        mappings.apply(MapChange::Break { from: at(12, 0), to: at(9, 0) }, B),
        [(A, lost(1)), (B, let_go(1, 1))]
    );
    assert_eq!(mappings.from_before_bytes(), 2 * PAGE);
}

#[test]
fn what_the_kernel_would_refuse_changes_nothing() {
    let mut mappings = ten_pages();
    for change in [
        MapChange::Map { start: u64::MAX - PAGE, bytes: u64::MAX },
        MapChange::Unmap { start: 0, bytes: u64::MAX },
        MapChange::Move { from: 100 * PAGE, from_bytes: PAGE, to: u64::MAX, to_bytes: 2 * PAGE },
        MapChange::Break { from: 100 * PAGE, to: u64::MAX },
    ] {
        assert_eq!(mappings.apply(change, B), [], "{change:?}");
    }
    assert_eq!(mappings.live_bytes(), 10 * PAGE);
    assert_eq!(Mappings::new(0).apply(map(1, 1), A), [(A, took(1, 1))]);
}

/// What stands on each page: its owner and the block it belongs to.
#[derive(Default)]
struct PageModel {
    pages: BTreeMap<u64, (StackId, u64)>,
    blocks_made: u64,
    from_before: u64,
}

impl PageModel {
    fn drop_page(&mut self, page: u64, by: StackId, credits: &mut BTreeMap<StackId, SiteCounts>) -> bool {
        let Some((owner, block)) = self.pages.remove(&page) else { return false };
        credits.entry(owner).or_default().dead_bytes += PAGE;
        let running = credits.entry(by).or_default();
        running.released_bytes += PAGE;
        running.releases += u64::from(!self.pages.values().any(|(_, other)| *other == block));
        true
    }

    fn add_pages(&mut self, pages: std::ops::Range<u64>, by: StackId, credits: &mut BTreeMap<StackId, SiteCounts>) {
        if pages.is_empty() {
            return;
        }
        let running = credits.entry(by).or_default();
        running.allocations += 1;
        running.allocated_bytes += (pages.end - pages.start) * PAGE;
        self.pages.extend(pages.map(|page| (page, (by, self.blocks_made))));
        self.blocks_made += 1;
    }

    fn apply(&mut self, change: MapChange, by: StackId) -> Vec<Credit> {
        let mut credits = BTreeMap::new();
        let pages = |bytes: u64| bytes.div_ceil(PAGE);
        match change {
            MapChange::Map { start, bytes } => {
                let first = start / PAGE;
                (first..first + pages(bytes)).for_each(|page| {
                    self.drop_page(page, by, &mut credits);
                });
                self.add_pages(first..first + pages(bytes), by, &mut credits);
            }
            MapChange::Unmap { start, bytes } => {
                for page in start / PAGE..start / PAGE + pages(bytes) {
                    if !self.drop_page(page, by, &mut credits) {
                        self.from_before += PAGE;
                    }
                }
            }
            MapChange::Move { from, from_bytes, to, to_bytes } if to_bytes > 0 => {
                let (from, old, to, new) = (from / PAGE, pages(from_bytes), to / PAGE, pages(to_bytes));
                // The kept pages stay in the model, out of reach of the destination, so that their blocks are seen to live.
                let far = 1 << 40;
                for offset in 0..old.min(new) {
                    if let Some(page) = self.pages.remove(&(from + offset)) {
                        self.pages.insert(far + offset, page);
                    }
                }
                for offset in new..old {
                    if !self.drop_page(from + offset, by, &mut credits) {
                        self.from_before += PAGE;
                    }
                }
                (to..to + new).for_each(|page| {
                    self.drop_page(page, by, &mut credits);
                });
                for offset in 0..old.min(new) {
                    if let Some(page) = self.pages.remove(&(far + offset)) {
                        self.pages.insert(to + offset, page);
                    }
                }
                self.add_pages(to + old..to + new.max(old), by, &mut credits);
            }
            MapChange::Move { .. } => {}
            MapChange::Break { from, to } => {
                let (from, to) = (pages(from) * PAGE, pages(to) * PAGE);
                return if to > from {
                    self.apply(MapChange::Map { start: from, bytes: to - from }, by)
                } else {
                    self.apply(MapChange::Unmap { start: to, bytes: from - to }, by)
                };
            }
        }
        credits.into_iter().collect()
    }
}

fn any_change() -> impl Strategy<Value = MapChange> {
    let page = || (0u64..48).prop_map(|page| page * PAGE);
    let bytes = || prop_oneof![4 => (0u64..16).prop_map(|pages| pages * PAGE), 1 => 0u64..16 * PAGE];
    prop_oneof![
        4 => (page(), bytes()).prop_map(|(start, bytes)| MapChange::Map { start, bytes }),
        3 => (page(), bytes()).prop_map(|(start, bytes)| MapChange::Unmap { start, bytes }),
        3 => (page(), bytes(), page(), bytes())
            .prop_map(|(from, from_bytes, to, to_bytes)| MapChange::Move { from, from_bytes, to, to_bytes }),
        2 => (page(), bytes(), bytes())
            .prop_map(|(from, from_bytes, to_bytes)| MapChange::Move { from, from_bytes, to: from, to_bytes }),
        1 => (0u64..64 * PAGE, 0u64..64 * PAGE).prop_map(|(from, to)| MapChange::Break { from, to }),
    ]
}

proptest! {
    #[test]
    fn agrees_with_single_pages(changes in prop::collection::vec((any_change(), 1u64..5), 0..60)) {
        let mut mappings = Mappings::new(PAGE);
        let mut model = PageModel::default();
        let mut total = SiteCounts::default();
        for (change, by) in changes {
            let credits = mappings.apply(change, StackId(by));
            prop_assert_eq!(&credits, &model.apply(change, StackId(by)), "{:?}", change);
            prop_assert_eq!(mappings.from_before_bytes(), model.from_before, "{:?}", change);
            prop_assert_eq!(mappings.live_bytes(), model.pages.len() as u64 * PAGE, "{:?}", change);
            credits.iter().for_each(|(_, counts)| total.add(counts));
            prop_assert_eq!(total.released_bytes, total.dead_bytes);
            prop_assert_eq!(total.live_bytes(), mappings.live_bytes() as i64);
            prop_assert_eq!(total.allocations - total.releases, mappings.blocks.len() as u64);
        }
    }
}
