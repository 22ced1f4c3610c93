//! The rules of the fold by example, and its identities for any stacks at all.

use proptest::prelude::*;

use super::super::types::{CodeKey, Origin};
use super::*;

/// A frame that [`resolve`] reads back: function and line in the clear.
fn frame(function: u32, line: i32) -> Frame {
    Frame { code: CodeKey { address: u64::from(function), fingerprint: 0 }, position: line }
}

const HELP: u32 = 90;
const UNREAD: u32 = 91;

fn resolve(frame: Frame) -> Resolved {
    match frame.code.address as u32 {
        HELP => Resolved::Skip,
        UNREAD => Resolved::Unknown,
        function => Resolved::Line(LinePosition { function, line: frame.position as u32 }),
    }
}

fn at(function: u32, line: u32) -> LinePosition {
    LinePosition { function, line }
}

fn grew(bytes: u64) -> SiteCounts {
    SiteCounts { allocated_bytes: bytes, allocations: 1, ..SiteCounts::default() }
}

/// Folds stacks of the given frames, innermost first, each with its counts.
fn fold_all(sites: Vec<(StackStatus, Vec<Frame>, SiteCounts)>) -> Folded {
    let mut stacks = HashMap::new();
    let mut counts = Vec::new();
    for (index, (status, frames, site)) in sites.into_iter().enumerate() {
        let id = StackId(index as u64 + 1);
        stacks.insert(id, Stack { status, frames, approximate: false, collector: false, origin: Origin::default() });
        counts.push((id, site));
    }
    fold(counts, [], &stacks, resolve, |_| true)
}

fn complete(frames: Vec<Frame>) -> Stack {
    Stack { status: StackStatus::Complete, frames, approximate: false, collector: false, origin: Origin::default() }
}

/// A block that a line asked for and released is in no increment, and so in no error of one, wherever below the line that was.
#[test]
fn an_error_is_of_what_did_not_come_back() {
    let stacks = HashMap::from([
        (StackId(1), complete(vec![frame(2, 7), frame(1, 3)])),
        (StackId(2), complete(vec![frame(2, 8), frame(1, 3)])),
        (StackId(3), complete(vec![frame(3, 1)])),
    ]);
    let asked = SiteCounts { variances: SiteVariances { allocated: 100, ..Default::default() }, ..grew(10) };
    let pair = |released, variance| Pair { asked: StackId(1), released: StackId(released), variance };
    let folded = fold([(StackId(1), asked)], [pair(2, 60), pair(3, 30)], &stacks, resolve, |_| true);
    let of = |position| {
        let Variances { increment, allocated, freed, live } = folded.lines[&position].variances;
        (increment, allocated, freed, live)
    };
    assert_eq!(of(at(2, 7)), (100, 100, 0, 10), "asked");
    assert_eq!(of(at(2, 8)), (60, 0, 60, 0), "released");
    assert_eq!(of(at(1, 3)), (40, 100, 60, 10), "called both: what is released elsewhere or not at all is left");
    assert_eq!(of(at(3, 1)), (30, 0, 30, 0), "released elsewhere");
}

/// What a line that is shown called in functions that are not is its growth too.
#[test]
fn growth_is_on_the_innermost_line_that_is_shown() {
    let stacks = HashMap::from([
        (StackId(1), complete(vec![frame(2, 7), frame(1, 3), frame(1, 2)])),
        (StackId(2), complete(vec![frame(2, 7)])),
    ]);
    let sites = [(StackId(1), SiteCounts { dead_bytes: 7, ..grew(10) }), (StackId(2), grew(5))];
    let folded = fold(sites, [], &stacks, resolve, |function| function == 1);
    let growth = |position| folded.lines.get(&position).map_or(0, |totals| totals.shown_net);
    assert_eq!((growth(at(1, 3)), growth(at(1, 2)), growth(at(2, 7))), (10, 0, 5));
    let live = |position| folded.lines.get(&position).map_or(0, |totals| totals.shown_live);
    assert_eq!((live(at(1, 3)), live(at(1, 2)), live(at(2, 7))), (3, 0, 5));
}

fn fold_one(frames: Vec<Frame>, counts: SiteCounts) -> Folded {
    fold_all(vec![(StackStatus::Complete, frames, counts)])
}

#[test]
fn callees_count_on_the_lines_that_called() {
    let counts = SiteCounts { released_bytes: 30, releases: 2, dead_bytes: 60, ..grew(100) };
    let folded = fold_one(vec![frame(2, 7), frame(1, 3)], counts);
    let both = LineTotals {
        increment: 70,
        allocated: 100,
        freed: 30,
        allocations: 1,
        frees: 2,
        live: 40,
        ..LineTotals::default()
    };
    assert_eq!(folded.lines[&at(1, 3)], both);
    assert_eq!(folded.lines[&at(2, 7)], LineTotals { self_net: 70, shown_net: 70, shown_live: 40, ..both });
    assert!(folded.other.is_empty());
    assert_eq!(folded.moved_bytes(), BTreeMap::from([(1, 130), (2, 130)]));
}

#[test]
fn recursion_counts_once_at_the_innermost_frame() {
    let folded = fold_one(vec![frame(1, 5), frame(1, 4), frame(2, 8), frame(1, 4), frame(3, 1)], grew(10));
    assert_eq!(folded.lines.keys().copied().collect::<Vec<_>>(), [at(1, 5), at(2, 8), at(3, 1)]);
    assert!(folded.lines.values().all(|totals| totals.increment == 10));
}

#[test]
fn our_own_frames_are_not_there() {
    let folded = fold_one(vec![frame(HELP, 1), frame(1, 2), frame(HELP, 3)], grew(10));
    assert_eq!(folded.lines[&at(1, 2)].self_net, 10);
    let alone = fold_one(vec![frame(HELP, 1)], grew(10));
    assert_eq!(alone.other, BTreeMap::from([(Reason::OwnHelp, 10)]));
    assert_eq!(alone.unattributed_bytes, 0);
}

#[test]
fn an_unread_innermost_frame_is_nobody_s_self() {
    let folded = fold_one(vec![frame(HELP, 1), frame(UNREAD, 1), frame(1, 2)], grew(10));
    assert_eq!(folded.other, BTreeMap::from([(Reason::CodeNotRead, 10)]));
    assert_eq!(folded.lines[&at(1, 2)], LineTotals { self_net: 0, ..folded.lines[&at(1, 2)] });
    assert_eq!(folded.lines[&at(1, 2)].increment, 10);
    assert_eq!((folded.unresolved_frames, folded.unattributed_bytes), (1, 10));

    let outer = fold_one(vec![frame(1, 2), frame(UNREAD, 1), frame(UNREAD, 1)], grew(10));
    assert_eq!(outer.lines[&at(1, 2)].self_net, 10);
    assert_eq!((outer.unresolved_frames, outer.unattributed_bytes), (1, 0));
}

#[test]
fn stacks_without_frames_say_why() {
    use StackStatus::*;
    let statuses = [NoPythonFrame, StartUp, ReadFailed, Complete, Truncated];
    let folded =
        fold_all(statuses.into_iter().zip([1, 10, 100, 1000, 10_000]).map(|(s, n)| (s, vec![], grew(n))).collect());
    let expected = [("no Python frame", 1001), ("start-up of the interpreter", 10), ("stack not read", 10_100)]
        .map(|(s, n)| (s.to_owned(), n));
    assert_eq!(folded.other.iter().map(|(reason, net)| (reason.to_string(), *net)).collect::<Vec<_>>(), expected);
    assert_eq!(folded.unattributed_bytes, 10_100);
}

#[test]
fn a_lost_stack_is_said() {
    let folded = fold([(StackId(7), grew(10))], [], &HashMap::new(), resolve, |_| true);
    assert_eq!(folded.other, BTreeMap::from([(Reason::StackLost, 10)]));
    assert_eq!((folded.net_bytes(), folded.unattributed_bytes), (10, 10));
}

#[test]
fn cut_stacks_are_used_as_far_as_they_go() {
    for status in [StackStatus::Truncated, StackStatus::ReadFailed] {
        let folded = fold_all(vec![(status, vec![frame(1, 2)], grew(10))]);
        assert_eq!(folded.lines[&at(1, 2)].self_net, 10);
    }
}

#[test]
fn resident_bytes_are_those_of_the_latest_event_that_knows() {
    let event = |resident_bytes, last_event| SiteCounts { resident_bytes, last_event, ..grew(1) };
    let folded = fold_all(vec![
        (StackStatus::Complete, vec![frame(1, 2)], event(500, 20)),
        (StackStatus::Complete, vec![frame(2, 1), frame(1, 2)], event(400, 30)),
        (StackStatus::Complete, vec![frame(3, 1), frame(1, 2)], event(0, 40)),
        (StackStatus::Complete, vec![frame(4, 1), frame(1, 2)], event(900, 10)),
    ]);
    let totals = folded.lines[&at(1, 2)];
    assert_eq!((totals.resident_bytes, totals.last_event), (400, 30));
    assert_eq!((folded.lines[&at(3, 1)].resident_bytes, folded.lines[&at(3, 1)].last_event), (0, 40));
}

fn any_counts() -> impl Strategy<Value = SiteCounts> {
    (0u64..1 << 40, 0u64..9, 0u64..1 << 40, 0u64..9, 0u64..1 << 40, 0u64..3, 0u64..3).prop_map(
        |(allocated_bytes, allocations, released_bytes, releases, dead_bytes, resident_bytes, last_event)| SiteCounts {
            allocated_bytes,
            allocations,
            released_bytes,
            releases,
            dead_bytes,
            resident_bytes,
            last_event,
            ..SiteCounts::default()
        },
    )
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let function = prop_oneof![6 => 1u32..6, 1 => Just(HELP), 1 => Just(UNREAD)];
    (function, 1i32..5).prop_map(|(function, line)| frame(function, line))
}

fn any_stack() -> impl Strategy<Value = Stack> {
    use StackStatus::*;
    let status = prop::sample::select(vec![Complete, Truncated, NoPythonFrame, ReadFailed, StartUp]);
    (status, prop::collection::vec(any_frame(), 0..8)).prop_map(|(status, frames)| Stack {
        status,
        frames,
        approximate: false,
        collector: false,
        origin: Origin::default(),
    })
}

proptest! {
    #[test]
    fn nothing_is_lost_or_counted_twice(
        stacks in prop::collection::vec(any_stack(), 1..12),
        sites in prop::collection::vec((0u64..14, any_counts()), 0..40),
    ) {
        let stacks: HashMap<_, _> = stacks.into_iter().enumerate().map(|(id, stack)| (StackId(id as u64), stack)).collect();
        let sites: Vec<_> = sites.into_iter().map(|(id, counts)| (StackId(id), counts)).collect();
        let folded = fold(sites.clone(), [], &stacks, resolve, |_| true);

        let net: i64 = sites.iter().map(|(_, counts)| counts.net_bytes()).sum();
        let self_net: i64 = folded.lines.values().map(|totals| totals.self_net).sum();
        prop_assert_eq!(self_net + folded.other.values().sum::<i64>(), net);
        prop_assert_eq!(folded.net_bytes(), net);

        // The sum rule of the tables: a function's lines add up to the sites it is on the stack of, each counted once.
        for function in 1..6 {
            let is_on = |id: &StackId| stacks.get(id).is_some_and(|stack| {
                stack.frames.iter().any(|frame| frame.code.address == u64::from(function))
            });
            let expected: i64 = sites.iter().filter(|(id, _)| is_on(id)).map(|(_, counts)| counts.net_bytes()).sum();
            let lines = folded.lines.iter().filter(|(position, _)| position.function == function);
            prop_assert_eq!(lines.map(|(_, totals)| totals.increment).sum::<i64>(), expected);
        }

        let backwards = fold(sites.into_iter().rev(), [], &stacks, resolve, |_| true);
        prop_assert_eq!(folded, backwards);
    }
}

#[test]
fn native_functions_have_the_bytes_that_were_asked_for() {
    let stack = |asked_in, thread, frames: Vec<Frame>| {
        let status = if frames.is_empty() { StackStatus::NoPythonFrame } else { StackStatus::Complete };
        Stack { status, approximate: false, collector: false, frames, origin: Origin { asked_in, thread } }
    };
    let stacks = HashMap::from([
        (StackId(1), stack(Some(7), None, vec![frame(2, 20), frame(1, 10)])),
        (StackId(2), stack(Some(8), None, vec![frame(1, 10)])),
        (StackId(3), stack(None, None, vec![frame(1, 10)])),
        (StackId(4), stack(Some(7), Some(9), vec![])),
    ]);
    let counts = |bytes| SiteCounts { released_bytes: 1, ..grew(bytes) };
    let folded = fold((1..5).map(|id| (StackId(id), counts(10 * id))), [], &stacks, resolve, |_| true);
    assert_eq!(folded.asked_in[&at(1, 10)], BTreeMap::from([(7, 10), (8, 20)]));
    assert_eq!(folded.asked_in[&at(2, 20)], BTreeMap::from([(7, 10)]));
    assert_eq!(folded.other, BTreeMap::from([(Reason::Thread(9), 39)]));
}

#[test]
fn what_the_collector_did_is_on_no_line() {
    let stacks = HashMap::from([
        (StackId(1), complete(vec![frame(2, 20), frame(1, 10)])),
        (StackId(2), Stack { collector: true, ..complete(vec![frame(2, 20), frame(1, 10)]) }),
    ]);
    let released = SiteCounts { released_bytes: 70, ..SiteCounts::default() };
    let pair = Pair { asked: StackId(1), released: StackId(2), variance: 60 };
    let folded = fold([(StackId(1), grew(100)), (StackId(2), released)], [pair], &stacks, resolve, |_| true);
    assert_eq!(folded.lines[&at(2, 20)].increment, 100);
    assert_eq!(folded.lines[&at(1, 10)].freed, 0);
    assert_eq!(folded.lines[&at(1, 10)].variances.freed, 0);
    assert_eq!(folded.other, BTreeMap::from([(Reason::Collector, -70)]));
    assert_eq!((folded.net_bytes(), folded.unattributed_bytes), (30, 0));
}
