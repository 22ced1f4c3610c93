//! From what was gathered to the report: sums folded by line, one image at a time.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use rmprof_probes::abi;

use super::collections;
use super::command_text::{CommandText, STRING};
use super::image::{FunctionInfo, Image};
use crate::kernel::counters::{COUNTERS, EARLY_FULL, Missing, NATIVES_FULL, RECURSION_MISSES};
use crate::kernel::{Mode, Sampled, Totals};
use crate::ledger::{
    Folded, LineCounts, LinePlace, LineTotals, Origin, ProcessId, Reason, SiteCounts, SiteVariances, Stack, StackId,
    StackStatus, Variances, fold,
};
use crate::plan::ReportPlan;
use crate::python::flow::Flow;
use crate::python::layout::Variant;
use crate::report::{
    self, Errors, Function, Health, Line, NativeBytes, Other, ProcessReport, Report, Sampling, Tool, is_own_file,
};
use crate::tally::{VARIANCE_UNIT, pages_each};
use crate::target::identity::Container;

/// Does this look like a file that was there once? Code made at run time carries any word for a file name.
fn is_file_name(filename: &str) -> bool {
    filename.starts_with('<') || filename.contains('/') || filename.ends_with(".py")
}

/// Processes that have ended whose reports are kept each for itself.
const MOST_ENDED: usize = 256;
/// Commands that have a sum of their own.
const MOST_COMMANDS: usize = 256;
/// What stands for all others.
const OTHER_COMMANDS: &str = "(other commands)";

/// What is known of images whose sums are all there: the rest of them is not kept. However many there are, this is bounded.
#[derive(Debug, Default)]
pub struct Settled {
    processes: BTreeMap<ProcessId, ProcessReport>,
    /// Those that ended longest ago, by command.
    merged: BTreeMap<String, ProcessReport>,
    health: Health,
    /// One of them heeded what was set in its environment for its objects.
    heeding: bool,
}

impl Settled {
    /// Adds an image that has ended. `totals` are its own, or of others too.
    pub fn add(&mut self, image: &mut Image, totals: &Totals, plan: &ReportPlan) {
        self.heeding |= !image.birth.layout.variant.is_free_threaded();
        let report = measured(image, totals, plan, &mut self.health);
        self.processes.insert(image.birth.id, report);
        while self.processes.len() > MOST_ENDED
            && let Some((_, oldest)) = self.processes.pop_first()
        {
            self.merge(oldest);
        }
    }

    fn merge(&mut self, process: ProcessReport) {
        self.health.merged_processes += 1;
        let mut key = report::command_key(&process.command);
        if !self.merged.contains_key(&key) && self.merged.len() >= MOST_COMMANDS {
            key = OTHER_COMMANDS.into();
        }
        let fresh = || ProcessReport { merged: Some(0), command: vec![key.clone()], ..ProcessReport::default() };
        match self.merged.get_mut(&key) {
            Some(known) => report::merge_into(known, process),
            None if key == OTHER_COMMANDS => {
                let mut all = fresh();
                report::merge_into(&mut all, process);
                self.merged.insert(key, all);
            }
            None => {
                self.merged.insert(key, ProcessReport { merged: Some(1), ..process });
            }
        }
    }

    /// Records were dropped that waited for their images.
    pub fn lose(&mut self, records: u64) {
        self.health.lost = self.health.lost.saturating_add(records);
        self.health.count(EARLY_FULL, records);
    }

    /// What is known to be missing.
    #[cfg(test)]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Is there any?
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }
}

/// Which images a report is of.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'i> {
    /// All.
    Everybody,
    /// Those.
    These(&'i [ProcessId]),
}

impl Whose<'_> {
    fn has(self, id: ProcessId) -> bool {
        match self {
            Self::Everybody => true,
            Self::These(ids) => ids.contains(&id),
        }
    }
}

/// Makes the report: of the images that are settled, and of the others as `totals` have them.
pub fn assemble(
    images: &mut BTreeMap<ProcessId, Image>,
    settled: &Settled,
    totals: &mut Totals,
    plan: &ReportPlan,
    whose: Whose<'_>,
) -> Report {
    totals.sites.sort_by_key(|(process, ..)| *process);
    let of_settled = settled.processes.iter().filter(|(id, _)| whose.has(**id));
    let mut processes: BTreeMap<ProcessId, ProcessReport> =
        of_settled.map(|(id, report)| (*id, report.clone())).collect();
    let mut of_images = settled.health.clone();
    for image in images.values_mut().filter(|image| whose.has(image.birth.id)) {
        processes.insert(image.birth.id, measured(image, totals, plan, &mut of_images));
    }
    let mut health = health_of(totals);
    let Health { events, lost, unresolved_frames, unattributed_bytes, merged_processes, counters, .. } = of_images;
    health.events = health.events.saturating_add(events);
    health.lost = health.lost.saturating_add(lost);
    counters.into_iter().for_each(|(name, value)| health.count(&name, value));
    health.unresolved_frames = unresolved_frames;
    health.unattributed_bytes = health.unattributed_bytes.saturating_add(unattributed_bytes);
    health.merged_processes = merged_processes;
    let heeds = |image: &Image| !image.birth.layout.variant.is_free_threaded();
    let heeding = settled.heeding || images.values().any(heeds);
    let told = plan.mode == Mode::Objects && (heeding || processes.is_empty());
    let environment = if told { vec![super::MALLOC_FOR_OBJECTS.into()] } else { Vec::new() };
    let kernel = super::kernel_release();
    let tool = Tool { version: env!("CARGO_PKG_VERSION").into(), mode: plan.mode.name().into(), kernel, environment };
    let merged = settled.merged.values().filter(|_| matches!(whose, Whose::Everybody)).cloned();
    Report { tool, health, processes: processes.into_values().chain(merged).collect(), snapshot: None }
}

/// One image's report; what is counted besides is added to `health`.
fn measured(image: &mut Image, totals: &Totals, plan: &ReportPlan, health: &mut Health) -> ProcessReport {
    let events = blocks_of(image.birth.id, totals, plan.mode);
    health.events = health.events.saturating_add(events);
    health.count(NATIVES_FULL, image.natives.given_up());
    process(image, totals, plan, health)
}

/// Events of blocks, which the kernel side counts nowhere else.
fn blocks_of(id: ProcessId, totals: &Totals, mode: Mode) -> u64 {
    let sampled = totals.sampled.get(&id);
    let own =
        totals.of(id).iter().filter(|(.., counts)| mode.counts_blocks() && !(counts.tallied && sampled.is_some()));
    // All were looked at.
    let seen = sampled.map_or(0, |sampled| sampled.allocations.saturating_add(sampled.releases));
    own.map(|(_, _, _, counts)| counts.allocations.saturating_add(counts.releases)).fold(seen, u64::saturating_add)
}

fn health_of(totals: &Totals) -> Health {
    let count = |name: &str| -> u64 {
        COUNTERS.iter().zip(&totals.counters).filter(|(row, _)| row.name == name).map(|(_, value)| *value).sum()
    };
    let faults =
        COUNTERS.iter().zip(&totals.counters).filter(|(row, value)| row.missing != Missing::Nothing && **value > 0);
    let events = faults.clone().filter(|(row, _)| row.missing == Missing::Event);
    let mut health = Health {
        events: count("events"),
        lost: events.map(|(_, value)| *value).sum(),
        truncated_stacks: count("stack_truncated"),
        approximate_events: count("approximate"),
        unresolved_frames: 0,
        unattributed_bytes: totals.siteless.0.saturating_add(totals.siteless.1),
        counters: faults.map(|(row, value)| (row.name.to_owned(), *value)).collect(),
        merged_processes: 0,
    };
    for (name, missed) in &totals.misses {
        health.count(name, *missed);
        health.lost = health.lost.saturating_add(if *name == RECURSION_MISSES { *missed } else { 0 });
    }
    health
}

/// The unit of the variances of a process whose blocks were sampled: a square of bytes.
#[derive(Clone, Copy, Debug)]
struct Unit(f64);

impl Unit {
    fn of(interval: NonZeroU64) -> Self {
        let interval = interval.get() as f64;
        Self(interval * interval / VARIANCE_UNIT)
    }

    /// The standard error, in bytes.
    fn error(self, variance: i64) -> u64 {
        (variance.max(0) as f64 * self.0).sqrt().round() as u64
    }

    fn errors(self, variances: Variances) -> Errors {
        Errors {
            increment_bytes: self.error(variances.increment),
            allocated_bytes: self.error(variances.allocated),
            freed_bytes: self.error(variances.freed),
            live_bytes: self.error(variances.live),
        }
    }
}

/// What the kernel side counted of a process whose blocks are sampled is pages of arenas, which are sampled too. (Blocks of an allocator
/// beside the C library's are not; where there is one, the errors are larger than they need be.)
fn with_variances_of_pages(counts: &SiteCounts, interval: NonZeroU64) -> SiteCounts {
    let Some(each) = pages_each(interval).map(NonZeroU32::get) else { return *counts };
    let weight = f64::from(each) * f64::from(abi::RM_PAGE);
    let relative = weight / interval.get() as f64;
    let of_one = (1.0 - 1.0 / f64::from(each)) * relative * relative * VARIANCE_UNIT;
    let of = |bytes: u64| (bytes as f64 / weight * of_one).round() as u64;
    let SiteCounts { allocated_bytes, released_bytes, dead_bytes, .. } = *counts;
    let variances =
        SiteVariances { allocated: of(allocated_bytes), released: of(released_bytes), dead: of(dead_bytes) };
    SiteCounts { variances, ..*counts }
}

fn sampling_of(sampled: &Sampled, sites: &[(StackId, SiteCounts)], interval: NonZeroU64) -> Sampling {
    let alive_of = |counts: &SiteCounts| counts.variances.allocated.saturating_sub(counts.variances.dead);
    let asked: u64 = sites.iter().map(|(_, counts)| alive_of(counts)).fold(0, u64::saturating_add);
    let gone: u64 = sampled.pairs.iter().map(|pair| pair.variance).fold(0, u64::saturating_add);
    // A block that was asked for and released is in no net, sampled or not.
    let alive = i64::try_from(asked.saturating_sub(gone)).unwrap_or(i64::MAX);
    Sampling {
        interval_bytes: interval.get(),
        samples: sampled.samples,
        allocated_bytes: sampled.allocated_bytes,
        allocations: sampled.allocations,
        frees: sampled.releases,
        net_error_bytes: Unit::of(interval).error(alive),
    }
}

fn process(image: &mut Image, totals: &Totals, plan: &ReportPlan, health: &mut Health) -> ProcessReport {
    let (sites, folded) = fold_image(image, totals, plan);
    let sampled = totals.sampled.get(&image.birth.id).zip(plan.sample);
    let unit = sampled.map(|(_, interval)| Unit::of(interval));
    health.unresolved_frames += folded.unresolved_frames;
    health.unattributed_bytes = health.unattributed_bytes.saturating_add(folded.unattributed_bytes);
    let net_bytes = sites.iter().map(|(_, counts)| counts.net_bytes()).fold(0, i64::saturating_add);
    let moved = folded.moved_bytes();
    let command_text = CommandText::of(image);
    let events = line_events_of(image.birth.id, totals);
    let mut functions: Vec<(Option<u32>, Function)> = Vec::new();
    for index in 0..image.functions.len() {
        let key = u32::try_from(index).unwrap_or(u32::MAX);
        let lines = measured_lines(image, key, &folded, &events, (plan.mode, unit));
        let Some(info) = image.functions.get(index) else { continue };
        let (mark, code, filename) = (info.mark, Arc::clone(&info.code), info.code.filename.clone());
        let entry = mark.and_then(|_| entry_of(info, image.birth.id, totals));
        if lines.is_empty() && mark.is_none() {
            continue;
        }
        let of_command_line = command_text.as_ref().filter(|text| text.has(key, &code));
        let named = is_own_file(&filename) && (filename != STRING || of_command_line.is_some());
        // The text of files that are not shown would be read for nothing.
        let shown = named || mark.is_some() || plan.options.selection.goes_beyond_own_files();
        let source = match of_command_line {
            Some(text) => Some(text.lines()),
            None if shown => image.source(&code),
            None => None,
        };
        let own_file = named && (source.is_some() || is_file_name(&filename));
        let Some(info) = image.functions.get(index) else { continue };
        functions.push((
            mark,
            Function {
                own_file,
                filename,
                name: info.code.name.clone(),
                qualified_name: info.code.qualified_name.clone(),
                first_line: info.code.first_line,
                marked: mark.is_some(),
                entry_rss_bytes: entry,
                moved_bytes: moved.get(&key).copied().unwrap_or(0),
                own_lines: info.own_lines.clone(),
                lines,
                source,
            },
        ));
    }
    functions.sort_by_key(|(mark, function)| (mark.unwrap_or(u32::MAX), std::cmp::Reverse(function.moved_bytes)));
    let other =
        folded.other.iter().map(|(reason, net)| Other { reason: words_of(*reason, image), net_bytes: *net }).collect();
    let death = image.death;
    let sampling = sampled.map(|(sampled, interval)| sampling_of(sampled, &sites, interval));
    ProcessReport {
        merged: None,
        pid: image.birth.pid.as_raw().unsigned_abs(),
        parent_pid: image.birth.parent.as_raw().unsigned_abs(),
        command: image.birth.command.clone(),
        python: Some(version_text(image.birth.interpreter.version, image.birth.layout.variant)),
        cgroup: image.birth.cgroup.clone(),
        container: image
            .birth
            .container
            .clone()
            .map(|Container { id, pod, pod_namespace, pod_uid }| report::Container { id, pod, pod_namespace, pod_uid }),
        started: Some(image.birth.started),
        ended: death.map(|death| death.ended),
        exit_status: death.and_then(|death| death.end.status),
        ended_by: death.and_then(|death| death.end.words()),
        rss_start_bytes: image.birth.rss_bytes,
        rss_peak_bytes: death.map(|death| death.peak_bytes),
        rss_end_bytes: death.map(|death| death.rss_bytes),
        net_bytes,
        sampling,
        functions: functions.into_iter().map(|(_, function)| function).collect(),
        other,
    }
}

/// The reason in words. What only some of the threads do is named by the function that they began with.
fn words_of(reason: Reason, image: &Image) -> String {
    match reason {
        Reason::Thread(number) => {
            image.natives.function(number).map(|function| format!("{reason}: thread {}", function.function))
        }
        _ => None,
    }
    .unwrap_or_else(|| reason.to_string())
}

/// In which native functions the bytes of a line were asked for, most first.
fn native_bytes(image: &Image, asked: Option<&BTreeMap<u32, u64>>) -> Vec<NativeBytes> {
    let asked = asked.into_iter().flatten().filter(|(_, bytes)| **bytes > 0);
    let mut functions: Vec<NativeBytes> = asked
        .filter_map(|(number, bytes)| {
            let known = image.natives.function(*number)?;
            Some(NativeBytes { function: known.function.clone(), module: known.module.clone(), bytes: *bytes })
        })
        .collect();
    functions.sort_by(NativeBytes::most_first);
    functions
}

fn version_text((major, minor, micro): (u8, u8, u8), variant: Variant) -> String {
    format!("{major}.{minor}.{micro}{}", variant.suffix())
}

/// The image's sites (blocks, pages and mappings) and what they fold to.
fn fold_image(image: &mut Image, totals: &Totals, plan: &ReportPlan) -> (Vec<(StackId, SiteCounts)>, Folded) {
    let mut sites: Vec<(StackId, SiteCounts)> = Vec::new();
    let sampled = totals.sampled.get(&image.birth.id);
    let sample = plan.sample.filter(|_| sampled.is_some());
    for (_, stack, status, counts) in totals.of(image.birth.id) {
        let pages = sample.filter(|_| !counts.tallied);
        sites.push((*stack, pages.map_or(*counts, |interval| with_variances_of_pages(counts, interval))));
        let frameless = !matches!(status, StackStatus::Complete | StackStatus::Truncated);
        if frameless && !image.stacks.contains_key(stack) {
            let (frames, origin) = (Vec::new(), Origin::default());
            image
                .stacks
                .insert(*stack, Stack { status: *status, frames, approximate: false, collector: false, origin });
        }
    }
    sites.extend(image.mapped.iter().map(|(stack, counts)| (*stack, *counts)));
    image.set_origins();
    collections::settle(image);
    let is_shown = |function: u32| {
        let file = image.functions.get(function as usize).map(|info| info.code.filename.as_str());
        file.is_some_and(|file| plan.options.selection.shows(file, is_own_file(file)))
    };
    let pairs = sampled.map(|sampled| sampled.pairs.as_slice()).unwrap_or_default();
    let folded =
        fold(sites.iter().copied(), pairs.iter().copied(), &image.stacks, |frame| image.resolve(frame), is_shown);
    (sites, folded)
}

fn entry_of(info: &FunctionInfo, id: ProcessId, totals: &Totals) -> Option<u64> {
    let entries = totals.entries.iter().filter(|(process, number, _)| *process == id && info.numbers.contains(number));
    entries.map(|(_, _, resident)| *resident).filter(|resident| *resident > 0).min()
}

/// What line events measured of one image, by the number of the code object: lines and their counts.
type LineEvents<'t> = BTreeMap<u32, Vec<(LinePlace, &'t LineCounts)>>;

fn line_events_of(id: ProcessId, totals: &Totals) -> LineEvents<'_> {
    let mut events = LineEvents::new();
    for (_, number, place, counts) in totals.lines.iter().filter(|(process, ..)| *process == id) {
        events.entry(*number).or_default().push((*place, counts));
    }
    events
}

/// The lines of one function: what the stacks say of their bytes, and its line events, where it gives any, of its executions.
fn measured_lines(
    image: &Image,
    function: u32,
    folded: &Folded,
    events: &LineEvents<'_>,
    (mode, unit): (Mode, Option<Unit>),
) -> Vec<Line> {
    let mut lines: BTreeMap<u32, Line> = BTreeMap::new();
    let Some(info) = image.functions.get(function as usize) else { return Vec::new() };
    for (position, sums) in &folded.lines {
        if position.function == function {
            let native = native_bytes(image, folded.asked_in.get(position));
            lines.insert(position.line, Line { native, ..line_of(position.line, sums, mode, unit) });
        }
    }
    let own = info.numbers.iter().filter_map(|number| events.get(number)).flatten();
    let mut begun: BTreeMap<u32, BTreeMap<u32, u64>> = BTreeMap::new();
    for (place, counts) in own {
        let line = lines.entry(place.line).or_insert_with(|| Line { line: place.line, ..Line::default() });
        match place.position {
            Some(position) => *begun.entry(place.line).or_default().entry(position).or_default() += counts.occurrences,
            None => add_line_events(line, counts),
        }
        if unit.is_some() {
            line.peak_bytes = None; // of the samples alone, without a measure of its error
        }
    }
    for (line, begun) in begun {
        if let Some(measured) = lines.get_mut(&line) {
            *measured.occurrences.get_or_insert(0) += executions(info.flow.as_ref(), line, &begun);
        }
    }
    lines.into_values().collect()
}

/// Executions of a line, by how often it was begun at which instruction.
fn executions(flow: Option<&Flow>, line: u32, begun: &BTreeMap<u32, u64>) -> u64 {
    let places: Vec<u32> = begun.keys().copied().collect();
    let goes_on = |at: u32| flow.is_some_and(|flow| flow.goes_on(line, at, &places));
    begun.iter().filter(|(at, _)| !goes_on(**at)).map(|(_, times)| times).sum()
}

fn line_of(number: u32, sums: &LineTotals, mode: Mode, unit: Option<Unit>) -> Line {
    let counted = sums.allocations > 0 || sums.frees > 0;
    Line {
        line: number,
        occurrences: None,
        mem_usage_bytes: (sums.resident_bytes > 0).then_some(sums.resident_bytes),
        increment_bytes: sums.increment,
        self_bytes: sums.self_net,
        growth_bytes: sums.shown_net,
        growth_live_bytes: if mode.counts_blocks() { sums.shown_live } else { 0 },
        allocated_bytes: sums.allocated,
        freed_bytes: sums.freed,
        allocations: sums.allocations,
        frees: sums.frees,
        peak_bytes: None,
        errors: unit.filter(|_| counted).map(|unit| unit.errors(sums.variances)),
        // Resident pages have no owner: what a line gained is not known to be what another lost.
        live_bytes: if mode.counts_blocks() { sums.live } else { 0 },
        approximate: sums.approximate,
        native: Vec::new(),
    }
}

fn add_line_events(line: &mut report::Line, counts: &LineCounts) {
    line.occurrences = Some(line.occurrences.unwrap_or(0) + counts.occurrences);
    line.mem_usage_bytes = Some(counts.resident_bytes);
    line.peak_bytes = Some(line.peak_bytes.unwrap_or(0).max(counts.peak_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::counters::FAULT_RECURSION_MISSES;

    #[test]
    fn what_is_missing_is_told_whether_an_event_is_or_not() {
        let mut totals = Totals { counters: vec![0; COUNTERS.len()], ..Totals::default() };
        let index = |name: &str| COUNTERS.iter().position(|row| row.name == name).unwrap();
        totals.counters[index("line_events")] = 9;
        assert!(health_of(&totals).is_clean());
        totals.counters[index("ring_full_native")] = 2;
        let health = health_of(&totals);
        assert_eq!((health.lost, health.counters), (0, vec![("ring_full_native".to_owned(), 2)]));
        totals.counters[index("ring_full_map")] = 3;
        assert_eq!(health_of(&totals).lost, 3);
    }

    #[test]
    fn what_a_program_missed_of_itself_is_told_and_lost_where_that_is_known() {
        let mut totals = Totals { counters: vec![0; COUNTERS.len()], ..Totals::default() };
        totals.misses = vec![(RECURSION_MISSES, 0), (FAULT_RECURSION_MISSES, 0)];
        assert!(health_of(&totals).is_clean());
        totals.misses = vec![(RECURSION_MISSES, 2), (FAULT_RECURSION_MISSES, 5), (RECURSION_MISSES, 1)];
        let health = health_of(&totals);
        let told = [(RECURSION_MISSES, 3), (FAULT_RECURSION_MISSES, 5)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!((health.lost, &health.counters[..]), (3, &told[..]));
    }
}
