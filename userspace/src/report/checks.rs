//! What a report must keep to: the checks that let continuous integration fail.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::columns::mib as size;
use super::json::SCHEMA;
use super::model::{Function, Line, ProcessReport, Report};
use super::source::text_of;
use super::{OptionError, escape};

/// The exit status of a report that fails a check, where the program's own would be 0.
pub const EXIT_STATUS: i32 = 3;

/// Growth of one line below this is none: small lines vary by a page of Python's arenas, which is many percent of little.
const LEAST_GROWTH: i64 = 1 << 20;
/// How many lines a message names.
const NAMED: usize = 5;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Bytes that no process's resident memory may pass.
    pub above: Option<u64>,
    /// Bytes that a line's increment may not pass.
    pub lines: Vec<LineCheck>,
    /// Percent that peak and lines may grow over the baseline.
    pub growth: Option<f64>,
}

/// `--fail-line FILE:LINE=MIB`.
#[derive(Clone, Debug, PartialEq)]
pub struct LineCheck {
    file: String,
    line: u32,
    bytes: u64,
}

/// What came of the checks, each entry a text of one line or more.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    /// Checks that failed.
    pub failures: Vec<String>,
    /// Checks that say nothing, with the reason.
    pub doubts: Vec<String>,
}

impl LineCheck {
    /// Reads what was typed.
    ///
    /// # Errors
    /// Names the words that are no such check.
    pub fn parse(text: &str) -> Result<Self, OptionError> {
        let parts = text.rsplit_once('=').and_then(|(place, mib)| Some((place.rsplit_once(':')?, mib)));
        let parsed = parts.and_then(|((file, line), mib)| {
            let line = line.parse().ok().filter(|line| *line > 0)?;
            Some(Self { file: file.to_owned(), line, bytes: mebibytes(mib).ok()? })
        });
        parsed.filter(|check| !check.file.is_empty()).ok_or_else(|| {
            OptionError::new(
                format!("'{}' is no limit of a line", escape(text)),
                "write FILE:LINE=MIB, such as app.py:12=50".to_owned(),
            )
        })
    }

    /// Whole components of a path from its end: `app.py` means every file of that name.
    fn means(&self, filename: &str) -> bool {
        filename
            .strip_suffix(self.file.trim_start_matches("./"))
            .is_some_and(|before| before.is_empty() || before.ends_with('/'))
    }
}

/// A number of MiB as bytes, for command lines.
///
/// # Errors
/// Says what is wrong with it.
pub fn mebibytes(text: &str) -> Result<u64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of MiB".to_owned())?;
    let bytes = number * f64::from(1 << 20);
    if bytes.is_nan() || bytes < 1.0 {
        return Err("more than 0 is needed".to_owned());
    }
    if bytes >= 2f64.powi(62) {
        return Err("more than any machine has".to_owned());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // just looked at
    Ok(bytes as u64)
}

/// An earlier report, as far as it is compared.
#[derive(Debug, Deserialize)]
pub struct Baseline {
    schema: String,
    tool: BaselineTool,
    processes: Vec<BaselineProcess>,
}

#[derive(Debug, Deserialize)]
struct BaselineTool {
    mode: String,
}

#[derive(Debug, Deserialize)]
struct BaselineProcess {
    rss_peak_bytes: Option<u64>,
    #[serde(default)]
    functions: Vec<BaselineFunction>,
}

#[derive(Debug, Deserialize)]
struct BaselineFunction {
    filename: String,
    qualified_name: String,
    #[serde(default)]
    lines: Vec<BaselineLine>,
}

#[derive(Debug, Deserialize)]
struct BaselineLine {
    line: u32,
    source: Option<String>,
    increment_bytes: i64,
}

impl Baseline {
    /// Reads a report of `--format json`.
    ///
    /// # Errors
    /// Says why it is none that a run in `mode` can be compared with.
    pub fn read(text: &[u8], mode: &str) -> Result<Self, String> {
        let baseline: Self = serde_json::from_slice(text).map_err(|error| format!("no JSON report: {error}"))?;
        if baseline.schema != SCHEMA {
            return Err(format!("its schema is '{}', not '{SCHEMA}'", escape(&baseline.schema)));
        }
        if baseline.tool.mode != mode {
            return Err(format!("it was measured in mode {}, this run is in mode {mode}", escape(&baseline.tool.mode)));
        }
        Ok(baseline)
    }
}

impl Checks {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        self.above.is_none() && self.lines.is_empty() && self.growth.is_none()
    }

    /// Checks a report.
    pub fn verdict(&self, report: &Report, baseline: Option<&Baseline>) -> Verdict {
        let mut verdict = Verdict::default();
        if !self.is_empty() && report.processes.is_empty() {
            verdict.failures.push("nothing was measured, so nothing was checked".into());
            return verdict;
        }
        if let Some(above) = self.above {
            let over = report.processes.iter().filter(|process| process.rss_peak_bytes.unwrap_or(0) > above);
            verdict.failures.extend(over.map(|process| {
                let peak = mib(process.rss_peak_bytes.unwrap_or(0));
                let lines = named_lines(largest(process));
                format!(
                    "peak resident memory of process {} was {peak}, more than {} (--fail-above){lines}",
                    process.pid,
                    mib(above)
                )
            }));
        }
        for check in &self.lines {
            check_line(check, report, &mut verdict);
        }
        if let (Some(percent), Some(baseline)) = (self.growth, baseline) {
            check_growth(percent, report, baseline, &mut verdict);
        }
        verdict
    }
}

fn mib(bytes: u64) -> String {
    size(bytes.into(), 3)
}

fn own_lines(process: &ProcessReport) -> impl Iterator<Item = (&Function, &Line)> {
    let own = process.functions.iter().filter(|function| function.own_file || function.marked);
    own.flat_map(|function| function.lines.iter().map(move |line| (function, line)))
}

fn describe(function: &Function, line: &Line) -> String {
    let text = function.source.as_deref().and_then(|source| text_of(source, line.line)).unwrap_or_default();
    let (sign, amount) =
        if line.increment_bytes < 0 { ("-", line.increment_bytes) } else { ("+", line.increment_bytes) };
    format!("{}:{}  {sign}{}  {}", function.filename, line.line, mib(amount.unsigned_abs()), text.trim())
}

/// The lines that took most, those of the innermost functions before their callers of the same amount.
fn largest(process: &ProcessReport) -> Vec<String> {
    let mut lines: Vec<_> = own_lines(process).filter(|(_, line)| line.increment_bytes > 0).collect();
    lines.sort_by_key(|(_, line)| (std::cmp::Reverse(line.increment_bytes), std::cmp::Reverse(line.self_bytes)));
    lines.iter().take(NAMED).map(|(function, line)| describe(function, line)).collect()
}

fn named_lines(lines: Vec<String>) -> String {
    lines.into_iter().map(|line| format!("\n  {line}")).collect()
}

fn check_line(check: &LineCheck, report: &Report, verdict: &mut Verdict) {
    let name = format!("--fail-line {}:{}", check.file, check.line);
    let mut known = false;
    for process in &report.processes {
        let functions = process.functions.iter().filter(|function| check.means(&function.filename));
        for function in functions.inspect(|_| known = true) {
            let line = function.lines.iter().find(|line| line.line == check.line);
            let over = line.filter(|line| u64::try_from(line.increment_bytes).is_ok_and(|bytes| bytes > check.bytes));
            if let Some(line) = over {
                let text = describe(function, line);
                verdict.failures.push(format!(
                    "more than {} ({name}) in process {}:\n  {text}",
                    mib(check.bytes),
                    process.pid
                ));
            }
        }
    }
    if !known {
        verdict.doubts.push(format!("{name}: no line of such a file was measured"));
    }
}

/// A line wherever it moved to: by its file's base name, its function and its text, or where that is not known its number.
type LineKey = (String, String, String);

fn key(filename: &str, function: &str, line: u32, source: Option<&str>) -> LineKey {
    let base = filename.rsplit('/').next().unwrap_or(filename);
    (base.to_owned(), function.to_owned(), source.map_or_else(|| line.to_string(), |text| text.trim().to_owned()))
}

fn check_growth(percent: f64, report: &Report, baseline: &Baseline, verdict: &mut Verdict) {
    let before_peak = baseline.processes.iter().filter_map(|process| process.rss_peak_bytes).max();
    let peak = report.processes.iter().filter_map(|process| process.rss_peak_bytes).max();
    let mut before: BTreeMap<LineKey, i64> = BTreeMap::new();
    for function in baseline.processes.iter().flat_map(|process| &process.functions) {
        for line in &function.lines {
            let key = key(&function.filename, &function.qualified_name, line.line, line.source.as_deref());
            let sum = before.entry(key).or_default();
            *sum = sum.saturating_add(line.increment_bytes);
        }
    }
    let mut now: BTreeMap<LineKey, (i64, &Function, &Line)> = BTreeMap::new();
    for (function, line) in report.processes.iter().flat_map(own_lines) {
        let text = function.source.as_deref().and_then(|source| text_of(source, line.line));
        let key = key(&function.filename, &function.qualified_name, line.line, text);
        let sum = now.entry(key).or_insert((0, function, line));
        sum.0 = sum.0.saturating_add(line.increment_bytes);
    }
    let mut grown: Vec<(i64, &Function, &Line, i64)> = now
        .into_iter()
        .map(|(key, (bytes, function, line))| (before.get(&key).copied().unwrap_or(0), function, line, bytes))
        .filter(|(before, _, _, bytes)| {
            bytes.saturating_sub(*before) >= LEAST_GROWTH && exceeds(*bytes, *before, percent)
        })
        .collect();
    grown.sort_by_key(|(before, _, _, bytes)| before.saturating_sub(*bytes));
    let texts: Vec<String> = grown
        .iter()
        .map(|(before, function, line, _)| {
            format!("{} (baseline {})", describe(function, line), mib(u64::try_from(*before).unwrap_or(0)))
        })
        .collect();
    let named = named_lines(texts.into_iter().take(NAMED).collect());
    match (before_peak, peak) {
        (Some(before), Some(now)) if exceeds(as_signed(now), as_signed(before), percent) => {
            verdict.failures.push(format!(
                "peak resident memory was {}, in the baseline {}: more than {percent} % (--fail-growth){named}",
                mib(now),
                mib(before)
            ));
        }
        (Some(_), Some(_)) if grown.is_empty() => {}
        (Some(_), Some(_)) => {
            verdict.failures.push(format!("lines grew by more than {percent} % (--fail-growth):{named}"));
        }
        _ => verdict.doubts.push("--fail-growth: the baseline has no peak of resident memory".into()),
    }
}

fn as_signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss)] // of sizes far above a percent's rounding
fn exceeds(now: i64, before: i64, percent: f64) -> bool {
    now as f64 > before.max(0) as f64 * (1.0 + percent / 100.0)
}
