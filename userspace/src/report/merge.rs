//! Several processes made one: what they have in common is their command, and their tables are added up by file, function and line.

use std::collections::{BTreeMap, HashMap};

use super::command::program_of;
use super::model::{Errors, Function, Line, NativeBytes, Other, ProcessReport, Sampling};

/// Functions of merged processes that are kept: code that is made at run time is new each time.
const MOST_FUNCTIONS: usize = 1000;
/// Where the bytes of the others are.
const NOT_KEPT: &str = "functions that moved little";
/// Characters of a command that tell it from others.
const LONGEST_COMMAND: usize = 300;

/// What a command is known by: the interpreter's name, its options, and the script, module or text; not its arguments.
pub fn command_key(command: &[String]) -> String {
    let base = |word: &str| word.rsplit('/').next().unwrap_or(word).to_owned();
    let mut key = command.first().map(|word| base(word)).unwrap_or_default();
    if let Some(program) = program_of(command) {
        for word in &command[1..=program.index()] {
            // The helpers of multiprocessing have numbers of descriptors in their text.
            let of_module = word.starts_with("from multiprocessing.");
            let word = if of_module { word.split('(').next().unwrap_or(word) } else { word };
            key.push(' ');
            key.push_str(word);
        }
    }
    if let Some((cut, _)) = key.char_indices().nth(LONGEST_COMMAND) {
        key.truncate(cut);
    }
    key
}

/// The script of a Python's command line, or its module, or its text.
pub fn program_word(command: &[String]) -> Option<&String> {
    command.get(program_of(command)?.index())
}

/// Processes of one command made one, in the order of the first of each.
pub fn by_command(processes: Vec<ProcessReport>) -> Vec<ProcessReport> {
    let mut groups: Vec<ProcessReport> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for process in processes {
        match places.get(&command_key(&process.command)) {
            Some(place) => add(&mut groups[*place], process),
            None => {
                places.insert(command_key(&process.command), groups.len());
                groups.push(process);
            }
        }
    }
    groups
}

/// Adds one process (or several) to another.
pub fn add(to: &mut ProcessReport, from: ProcessReport) {
    let count = |process: &ProcessReport| process.merged.unwrap_or(1);
    to.merged = Some(count(to).saturating_add(count(&from)));
    let same = |one: bool| one.then_some(());
    to.python = same(to.python == from.python).and(to.python.take());
    to.cgroup = same(to.cgroup == from.cgroup).and(to.cgroup.take());
    to.container = same(to.container == from.container).and(to.container.take());
    to.exit_status = same(to.exit_status == from.exit_status).and(to.exit_status);
    to.ended_by = same(to.ended_by == from.ended_by).and(to.ended_by.take());
    to.started = to.started.min(from.started);
    to.ended = to.ended.zip(from.ended).map(|(one, other)| one.max(other));
    to.rss_start_bytes = sum(to.rss_start_bytes, from.rss_start_bytes);
    to.rss_end_bytes = sum(to.rss_end_bytes, from.rss_end_bytes);
    // They were not at their highest at one time.
    to.rss_peak_bytes = to.rss_peak_bytes.max(from.rss_peak_bytes);
    to.net_bytes = to.net_bytes.saturating_add(from.net_bytes);
    to.sampling = to.sampling.into_iter().chain(from.sampling).reduce(Sampling::with);
    add_functions(&mut to.functions, from.functions);
    for other in from.other {
        add_other(&mut to.other, other);
    }
    keep_most(to);
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}

fn add_other(others: &mut Vec<Other>, more: Other) {
    match others.iter_mut().find(|other| other.reason == more.reason) {
        Some(other) => other.net_bytes = other.net_bytes.saturating_add(more.net_bytes),
        None => others.push(more),
    }
}

/// What a reader takes for the same function.
fn key_of(function: &Function) -> (String, String, u32, bool) {
    (function.filename.clone(), function.qualified_name.clone(), function.first_line, function.marked)
}

fn add_functions(to: &mut Vec<Function>, from: Vec<Function>) {
    let mut places: HashMap<_, usize> = to.iter().enumerate().map(|(at, function)| (key_of(function), at)).collect();
    for function in from {
        let key = key_of(&function);
        // Of two in one process that look alike (a loop that defines a function) both are there.
        match places.get(&key).and_then(|at| to.get_mut(*at)) {
            Some(known) if is_alike(known, &function) => add_function(known, function),
            _ => {
                places.entry(key).or_insert(to.len());
                to.push(function);
            }
        }
    }
    // Stable: marked functions stay in the order of their definition.
    to.sort_by_key(|function| (!function.marked, if function.marked { 0 } else { u64::MAX - function.moved_bytes }));
}

/// Two files of one name may be in two containers.
fn is_alike(one: &Function, other: &Function) -> bool {
    match (&one.source, &other.source) {
        (Some(one), Some(other)) => one == other,
        _ => one.own_lines == other.own_lines,
    }
}

fn add_function(to: &mut Function, from: Function) {
    to.moved_bytes = to.moved_bytes.saturating_add(from.moved_bytes);
    to.entry_rss_bytes = match (to.entry_rss_bytes, from.entry_rss_bytes) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    if to.source.is_none() {
        to.source = from.source;
    }
    let mut lines: BTreeMap<u32, Line> =
        std::mem::take(&mut to.lines).into_iter().map(|line| (line.line, line)).collect();
    for line in from.lines {
        match lines.get_mut(&line.line) {
            Some(known) => add_line(known, &line),
            None => {
                lines.insert(line.line, line);
            }
        }
    }
    to.lines = lines.into_values().collect();
}

fn add_line(to: &mut Line, from: &Line) {
    to.occurrences = match (to.occurrences, from.occurrences) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    };
    to.mem_usage_bytes = to.mem_usage_bytes.max(from.mem_usage_bytes);
    to.peak_bytes = to.peak_bytes.max(from.peak_bytes);
    to.increment_bytes = to.increment_bytes.saturating_add(from.increment_bytes);
    to.self_bytes = to.self_bytes.saturating_add(from.self_bytes);
    to.growth_bytes = to.growth_bytes.saturating_add(from.growth_bytes);
    to.growth_live_bytes = to.growth_live_bytes.saturating_add(from.growth_live_bytes);
    to.allocated_bytes = to.allocated_bytes.saturating_add(from.allocated_bytes);
    to.freed_bytes = to.freed_bytes.saturating_add(from.freed_bytes);
    to.allocations = to.allocations.saturating_add(from.allocations);
    to.frees = to.frees.saturating_add(from.frees);
    to.live_bytes = to.live_bytes.saturating_add(from.live_bytes);
    to.errors = to.errors.into_iter().chain(from.errors).reduce(Errors::with);
    to.approximate |= from.approximate;
    for more in &from.native {
        match to.native.iter_mut().find(|known| (&known.function, &known.module) == (&more.function, &more.module)) {
            Some(known) => known.bytes = known.bytes.saturating_add(more.bytes),
            None => to.native.push(more.clone()),
        }
    }
    to.native.sort_by(NativeBytes::most_first);
}

/// The rest is a sum.
fn keep_most(process: &mut ProcessReport) {
    if process.functions.len() <= MOST_FUNCTIONS {
        return;
    }
    let rest = process.functions.split_off(MOST_FUNCTIONS);
    let lines = rest.iter().flat_map(|function| &function.lines);
    let net_bytes = lines.map(|line| line.self_bytes).fold(0, i64::saturating_add);
    add_other(&mut process.other, Other { reason: NOT_KEPT.into(), net_bytes });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_its_program_without_its_arguments() {
        for (command, key) in [
            ("/usr/bin/python3 job.py 1 2", "python3 job.py"),
            ("python3 -u -W ignore job.py 1", "python3 -u -W ignore job.py"),
            ("python3 -Xdev -m app.worker --id 7", "python3 -Xdev -m app.worker"),
            ("python3 -mapp 7", "python3 -mapp"),
            ("python3 -c print(1) x", "python3 -c print(1)"),
            ("python3 -- job.py 1", "python3 -- job.py"),
            ("python3 -c from_multiprocessing.x", "python3 -c from_multiprocessing.x"),
            ("python3", "python3"),
            ("gunicorn: worker", "gunicorn: worker"),
            ("", ""),
        ] {
            assert_eq!(command_key(&words(command)), key);
        }
        let spawned = |number: u32| {
            let text = format!("from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd={number})");
            command_key(&["python3".into(), "-c".into(), text, "--multiprocessing-fork".into()])
        };
        assert_eq!(spawned(5), spawned(17));
    }

    fn process(pid: u32, command: &str, line: u32, bytes: i64) -> ProcessReport {
        let moved_bytes = bytes.unsigned_abs();
        let line = Line { line, self_bytes: bytes, increment_bytes: bytes, growth_bytes: bytes, ..Line::default() };
        let function = Function {
            filename: "job.py".into(),
            qualified_name: "work".into(),
            name: "work".into(),
            lines: vec![line],
            moved_bytes,
            source: Some(Arc::new(vec!["x".into()])),
            ..Function::default()
        };
        ProcessReport {
            pid,
            command: words(command),
            net_bytes: bytes,
            functions: vec![function],
            ..Default::default()
        }
    }

    #[test]
    fn lines_of_one_command_are_added_up() {
        let merged = by_command(vec![
            process(1, "python3 job.py 1", 4, 10),
            process(2, "python3 other.py", 4, 1),
            process(3, "python3 job.py 2", 4, 30),
            process(4, "python3 job.py 3", 5, -5),
        ]);
        let [jobs, other] = &merged[..] else { panic!("{merged:?}") };
        assert_eq!((jobs.merged, jobs.pid, jobs.net_bytes), (Some(3), 1, 35));
        assert_eq!((other.merged, other.pid, other.net_bytes), (None, 2, 1));
        let [function] = &jobs.functions[..] else { panic!("{jobs:?}") };
        let lines: Vec<(u32, i64)> = function.lines.iter().map(|line| (line.line, line.self_bytes)).collect();
        assert_eq!((lines, function.moved_bytes), (vec![(4, 40), (5, -5)], 45));
    }

    #[test]
    fn what_is_told_of_a_line_besides_is_added_up_too() {
        let native = |function: &str, bytes| NativeBytes { function: function.into(), module: "m.so".into(), bytes };
        let mut one = process(1, "python3 job.py", 4, 10);
        one.functions[0].lines[0].native = vec![native("new", 5)];
        let mut other = process(2, "python3 job.py", 4, 10);
        let line = &mut other.functions[0].lines[0];
        (line.approximate, line.native) = (true, vec![native("grow", 7), native("new", 3)]);
        let merged = by_command(vec![one, other]);
        let line = &merged[0].functions[0].lines[0];
        assert!(line.approximate);
        assert_eq!(line.native, [native("new", 8), native("grow", 7)]);
    }

    #[test]
    fn files_of_one_name_and_another_text_stay_apart() {
        let mut other = process(2, "python3 job.py", 4, 7);
        other.functions[0].source = Some(Arc::new(vec!["y".into()]));
        let merged = by_command(vec![process(1, "python3 job.py", 4, 10), other]);
        assert_eq!((merged.len(), merged[0].functions.len()), (1, 2));
    }

    #[test]
    fn what_is_kept_is_bounded_and_adds_up() {
        let mut all = process(0, "python3 job.py", 1, 0);
        for pid in 1..=1500u32 {
            let mut one = process(pid, "python3 job.py", 1, i64::from(pid));
            one.functions[0].qualified_name = format!("made_{pid}");
            add(&mut all, one);
        }
        assert_eq!(all.functions.len(), MOST_FUNCTIONS);
        let own: i64 = all.functions.iter().flat_map(|function| &function.lines).map(|line| line.self_bytes).sum();
        assert_eq!(own + all.other.iter().map(|other| other.net_bytes).sum::<i64>(), all.net_bytes);
        assert_eq!(all.merged, Some(1501));
    }
}
