//! The machine-readable report, schema `rmprof-bpf/1`: bytes as integers, what was not measured is absent.
//!
//! Added over all lines of a process and its `other`, `self_bytes` is `net_bytes`: what the lines left out have of their own
//! is in `other`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::escape::is_unprintable;
use super::growth::{self, Group, Growth};
use super::model::{
    Container, Errors, Function, Health, Line, NativeBytes, ProcessReport, Report, Sampling, Snapshot, Tool,
};
use super::source::text_of;
use super::{Options, RankBy, select};

/// Name and version of the schema. Fields may be added under the same version; none changes its meaning.
pub(super) const SCHEMA: &str = "rmprof-bpf/1";

/// The reason of self bytes on lines that the selection leaves out.
const NOT_SHOWN: &str = "lines of files not shown";
/// And of those, where they are the import system's.
const IMPORT: &str = "import of modules";

/// How many native functions of a line are written.
const MOST_NATIVE: usize = 10;

/// The last second that RFC 3339 can write: 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

#[derive(Serialize)]
struct JsonReport<'r> {
    schema: &'static str,
    tool: JsonTool<'r>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<JsonSnapshot>,
    health: JsonHealth<'r>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    growth: Option<Vec<JsonGrowth<'r>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commands: Option<Vec<JsonGroup<'r>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroups: Option<Vec<JsonGroup<'r>>>,
    processes: Vec<JsonProcess<'r>>,
}

#[derive(Serialize)]
struct JsonSnapshot {
    number: u32,
    cause: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<String>,
}

#[derive(Serialize)]
struct JsonGrowth<'r> {
    filename: &'r str,
    line: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'r str>,
    function: &'r str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_processes: Option<u64>,
    command: &'r [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<JsonContainer<'r>>,
    growth_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    live_bytes: Option<i64>,
}

/// Processes of one command, or of one control group.
#[derive(Serialize)]
struct JsonGroup<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<JsonContainer<'r>>,
    processes: u64,
    net_bytes: i64,
}

#[derive(Serialize)]
struct JsonContainer<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_namespace: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_uid: Option<&'r str>,
}

#[derive(Serialize)]
struct JsonTool<'r> {
    version: &'r str,
    mode: &'r str,
    kernel: &'r str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    environment: &'r [String],
}

#[derive(Serialize)]
struct JsonHealth<'r> {
    events: u64,
    lost: u64,
    truncated_stacks: u64,
    unresolved_frames: u64,
    unattributed_bytes: u64,
    approximate_events: u64,
    counters: BTreeMap<&'r str, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_processes: Option<u64>,
}

#[derive(Serialize)]
struct JsonProcess<'r> {
    #[serde(skip_serializing_if = "Option::is_none")]
    merged_processes: Option<u64>,
    pid: u32,
    parent_pid: u32,
    command: &'r [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    python: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<JsonContainer<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_start_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_end_bytes: Option<u64>,
    net_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<JsonSampling>,
    functions: Vec<JsonFunction<'r>>,
    other: Vec<JsonOther<'r>>,
}

#[derive(Serialize)]
struct JsonFunction<'r> {
    filename: String,
    name: String,
    qualified_name: String,
    first_line: u32,
    marked: bool,
    lines: Vec<JsonLine<'r>>,
}

#[derive(Serialize)]
struct JsonLine<'r> {
    line: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    occurrences: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_usage_bytes: Option<u64>,
    increment_bytes: i64,
    self_bytes: i64,
    allocated_bytes: u64,
    freed_bytes: u64,
    allocations: u64,
    frees: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_bytes: Option<u64>,
    live_bytes: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    standard_error: Option<JsonErrors>,
    #[serde(skip_serializing_if = "is_false")]
    approximate: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    native: Vec<JsonNative<'r>>,
}

#[derive(Serialize)]
struct JsonErrors {
    increment_bytes: u64,
    allocated_bytes: u64,
    freed_bytes: u64,
    live_bytes: u64,
}

#[derive(Serialize)]
struct JsonSampling {
    interval_bytes: u64,
    samples: u64,
    allocated_bytes: u64,
    allocations: u64,
    frees: u64,
    net_standard_error_bytes: u64,
}

#[derive(Serialize)]
struct JsonNative<'r> {
    function: &'r str,
    module: &'r str,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonOther<'r> {
    reason: &'r str,
    net_bytes: i64,
}

/// Writes the whole report as one object and a line end, indented unless it is to be one line.
pub(super) fn write(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let ranking = options.rank.map(|by| growth::ranking(&report.processes, by, options.top));
    let json = JsonReport {
        schema: SCHEMA,
        tool: tool(&report.tool),
        snapshot: report.snapshot.map(snapshot),
        health: health(&report.health),
        growth_by: ranking.as_ref().map(|ranking| ranking.by.field()),
        growth: ranking
            .as_ref()
            .map(|ranking| ranking.lines.iter().map(|line| json_growth(line, ranking.by)).collect()),
        commands: ranking.as_ref().map(|ranking| ranking.commands.iter().map(json_command).collect()),
        cgroups: ranking.as_ref().map(|ranking| ranking.groups.iter().map(json_cgroup).collect()),
        processes: report.processes.iter().map(|process| json_process(process, options)).collect(),
    };
    let mut text = if options.one_line { serde_json::to_string(&json)? } else { serde_json::to_string_pretty(&json)? };
    // What a terminal would act upon can only stand inside a string, where JSON has an escape for it. (C0 is escaped
    // already, but for the line ends between the fields.)
    if text.contains(acts_on_terminals) {
        text = text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
            if acts_on_terminals(character) {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            } else {
                escaped.push(character);
            }
            escaped
        });
    }
    writeln!(out, "{text}")
}

fn acts_on_terminals(character: char) -> bool {
    character != '\n' && is_unprintable(character)
}

fn snapshot(snapshot: Snapshot) -> JsonSnapshot {
    JsonSnapshot { number: snapshot.number, cause: snapshot.cause.name(), time: rfc3339(snapshot.time) }
}

fn json_growth<'r>(growth: &Growth<'r>, by: RankBy) -> JsonGrowth<'r> {
    let Growth { process, function, line } = *growth;
    JsonGrowth {
        filename: &function.filename,
        line: line.line,
        source: function.source.as_deref().and_then(|source| text_of(source, line.line)),
        function: &function.qualified_name,
        pid: process.pid,
        merged_processes: process.merged,
        command: &process.command,
        cgroup: process.cgroup.as_deref(),
        container: process.container.as_ref().map(json_container),
        growth_bytes: line.growth_bytes,
        live_bytes: (by == RankBy::Live).then_some(line.growth_live_bytes),
    }
}

fn json_command<'r>(group: &Group<String>) -> JsonGroup<'r> {
    let Group { what, processes, net_bytes } = group;
    JsonGroup {
        command: Some(what.clone()),
        cgroup: None,
        container: None,
        processes: *processes,
        net_bytes: *net_bytes,
    }
}

fn json_cgroup<'r>(group: &Group<(&'r str, Option<&'r Container>)>) -> JsonGroup<'r> {
    let Group { what: (path, container), processes, net_bytes } = group;
    JsonGroup {
        command: None,
        cgroup: Some(path),
        container: container.map(json_container),
        processes: *processes,
        net_bytes: *net_bytes,
    }
}

fn json_container(container: &Container) -> JsonContainer<'_> {
    let Container { id, pod, pod_namespace, pod_uid } = container;
    JsonContainer {
        id: id.as_deref(),
        pod: pod.as_deref(),
        pod_namespace: pod_namespace.as_deref(),
        pod_uid: pod_uid.as_deref(),
    }
}

fn tool(tool: &Tool) -> JsonTool<'_> {
    JsonTool { version: &tool.version, mode: &tool.mode, kernel: &tool.kernel, environment: &tool.environment }
}

fn health(health: &Health) -> JsonHealth<'_> {
    JsonHealth {
        events: health.events,
        lost: health.lost,
        truncated_stacks: health.truncated_stacks,
        unresolved_frames: health.unresolved_frames,
        unattributed_bytes: health.unattributed_bytes,
        approximate_events: health.approximate_events,
        counters: health.counters.iter().map(|(name, value)| (name.as_str(), *value)).collect(),
        merged_processes: (health.merged_processes > 0).then_some(health.merged_processes),
    }
}

fn json_process<'r>(process: &'r ProcessReport, options: &Options) -> JsonProcess<'r> {
    let (functions, hidden) = select::whole(process, &options.selection);
    let other = process.other.iter().map(|other| JsonOther { reason: &other.reason, net_bytes: other.net_bytes });
    let hidden = [(IMPORT, hidden.import_bytes), (NOT_SHOWN, hidden.file_bytes)].into_iter();
    let hidden = hidden.filter(|(_, bytes)| *bytes != 0).map(|(reason, net_bytes)| JsonOther { reason, net_bytes });
    JsonProcess {
        merged_processes: process.merged,
        pid: process.pid,
        parent_pid: process.parent_pid,
        command: &process.command,
        python: process.python.as_deref(),
        cgroup: process.cgroup.as_deref(),
        container: process.container.as_ref().map(json_container),
        started: process.started.and_then(rfc3339),
        ended: process.ended.and_then(rfc3339),
        exit_status: process.exit_status,
        ended_by: process.ended_by.as_deref(),
        rss_start_bytes: process.rss_start_bytes,
        rss_peak_bytes: process.rss_peak_bytes,
        rss_end_bytes: process.rss_end_bytes,
        net_bytes: process.net_bytes,
        sampling: process.sampling.map(json_sampling),
        functions: functions.iter().map(|function| json_function(function)).collect(),
        other: other.chain(hidden).collect(),
    }
}

fn json_function(function: &Function) -> JsonFunction<'_> {
    let source = |line: u32| function.source.as_deref().and_then(|source| text_of(source, line));
    JsonFunction {
        filename: function.filename.clone(),
        name: function.name.clone(),
        qualified_name: function.qualified_name.clone(),
        first_line: function.first_line,
        marked: function.marked,
        lines: function.lines.iter().map(|line| json_line(line, source(line.line))).collect(),
    }
}

fn json_line<'r>(line: &'r Line, source: Option<&str>) -> JsonLine<'r> {
    JsonLine {
        line: line.line,
        source: source.map(str::to_owned),
        occurrences: line.occurrences,
        mem_usage_bytes: line.mem_usage_bytes,
        increment_bytes: line.increment_bytes,
        self_bytes: line.self_bytes,
        allocated_bytes: line.allocated_bytes,
        freed_bytes: line.freed_bytes,
        allocations: line.allocations,
        frees: line.frees,
        peak_bytes: line.peak_bytes,
        live_bytes: line.live_bytes,
        standard_error: line.errors.map(json_errors),
        approximate: line.approximate,
        native: line.native.iter().take(MOST_NATIVE).map(json_native).collect(),
    }
}

fn json_errors(errors: Errors) -> JsonErrors {
    let Errors { increment_bytes, allocated_bytes, freed_bytes, live_bytes } = errors;
    JsonErrors { increment_bytes, allocated_bytes, freed_bytes, live_bytes }
}

fn json_sampling(sampling: Sampling) -> JsonSampling {
    let Sampling { interval_bytes, samples, allocated_bytes, allocations, frees, net_error_bytes } = sampling;
    let net_standard_error_bytes = net_error_bytes;
    JsonSampling { interval_bytes, samples, allocated_bytes, allocations, frees, net_standard_error_bytes }
}

fn json_native(native: &NativeBytes) -> JsonNative<'_> {
    JsonNative { function: &native.function, module: &native.module, bytes: native.bytes }
}

/// Of a flag that is there only where it is set.
#[allow(clippy::trivially_copy_pass_by_ref)] // serde's way to ask
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A time in UTC with milliseconds; `None` outside the years that RFC 3339 can write.
fn rfc3339(time: SystemTime) -> Option<String> {
    let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
    // humantime panics on what it cannot write.
    (since_epoch <= Duration::from_secs(LAST_SECOND)).then(|| humantime::format_rfc3339_millis(time).to_string())
}
