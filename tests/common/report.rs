//! The JSON report, read as a user's program would.

use serde_json::Value;

/// A whole report.
#[derive(Clone, Debug)]
pub struct Report(pub Value);

/// A process of it.
#[derive(Clone, Copy, Debug)]
pub struct Process<'r>(pub &'r Value);

/// A line of a process.
#[derive(Clone, Copy, Debug)]
pub struct Line<'r>(pub &'r Value);

/// Asserts that `found` is `expected`, give or take `tolerance`.
#[track_caller]
pub fn near(found: i64, expected: i64, tolerance: i64) {
    assert!((found - expected).abs() <= tolerance, "{found} is not {expected} give or take {tolerance}");
}

/// Asserts that a line that asks for blocks of `expected` bytes in all was charged these, what its own small objects take, and
/// perhaps the one page of Python's arena that they are the first to touch. Where a page begins varies with whatever the
/// program has allocated before, down to the length of its path.
#[track_caller]
pub fn near_blocks(found: i64, expected: i64) {
    let beside = found - expected;
    let few = beside.abs() <= 64 || (beside - 4096).abs() <= 64;
    assert!(few, "{found} is neither {expected} nor a page more, give or take 64");
}

impl Report {
    /// Reads it, and checks what must hold for each.
    #[track_caller]
    pub fn read(text: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(text).unwrap_or_else(|error| {
            panic!("not JSON: {error}\n{}", String::from_utf8_lossy(text));
        });
        assert_eq!(value["schema"], "rmprof-bpf/1");
        let report = Self(value);
        for process in report.processes() {
            process.check_sum();
        }
        report
    }

    /// Every process, in the report's order.
    pub fn processes(&self) -> Vec<Process<'_>> {
        self.0["processes"].as_array().unwrap().iter().map(Process).collect()
    }

    /// The one process.
    #[track_caller]
    pub fn only(&self) -> Process<'_> {
        let processes = self.processes();
        assert_eq!(processes.len(), 1, "{self}");
        processes[0]
    }

    /// The last image of the process with this number.
    #[track_caller]
    pub fn process(&self, pid: i64) -> Process<'_> {
        let found = self.processes().into_iter().rfind(|process| process.pid() == pid);
        found.unwrap_or_else(|| panic!("no process {pid} in {self}"))
    }

    /// A number of `health`.
    pub fn health(&self, name: &str) -> i64 {
        self.0["health"][name].as_i64().unwrap()
    }

    /// Asserts that nothing was lost.
    #[track_caller]
    pub fn check_complete(&self) {
        let health = &self.0["health"];
        for name in ["lost", "truncated_stacks", "unresolved_frames", "unattributed_bytes"] {
            let other = self.processes().into_iter().map(|process| process.0["other"].to_string());
            assert_eq!(health[name], 0, "{health} {:?}", other.collect::<Vec<_>>());
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:#}", self.0)
    }
}

impl<'r> Process<'r> {
    /// Its number.
    pub fn pid(&self) -> i64 {
        self.0["pid"].as_i64().unwrap()
    }

    /// Its parent's.
    pub fn parent(&self) -> i64 {
        self.0["parent_pid"].as_i64().unwrap()
    }

    /// A number of the process itself.
    #[track_caller]
    pub fn number(&self, name: &str) -> i64 {
        self.0[name].as_i64().unwrap_or_else(|| panic!("no {name} in process {}", self.pid()))
    }

    /// Every line of every function with its function's name.
    pub fn lines(&self) -> Vec<(&'r str, Line<'r>)> {
        let functions = self.0["functions"].as_array().unwrap();
        let lines = functions.iter().flat_map(|function| {
            let name = function["qualified_name"].as_str().unwrap();
            function["lines"].as_array().unwrap().iter().map(move |line| (name, Line(line)))
        });
        lines.collect()
    }

    /// The line of a function, by its qualified name.
    pub fn find(&self, function: &str, line: u32) -> Option<Line<'r>> {
        self.lines()
            .into_iter()
            .find(|(name, found)| *name == function && found.0["line"] == line)
            .map(|(_, line)| line)
    }

    /// The line of a function that must be there.
    #[track_caller]
    pub fn line(&self, function: &str, line: u32) -> Line<'r> {
        self.find(function, line).unwrap_or_else(|| panic!("no line {line} of {function} in {:#}", self.0))
    }

    /// Net bytes on no line for this reason.
    #[track_caller]
    pub fn other(&self, reason: &str) -> i64 {
        let found = self.0["other"].as_array().unwrap().iter().find(|other| other["reason"] == reason);
        found.unwrap_or_else(|| panic!("no {reason:?} in {}", self.0["other"]))["net_bytes"].as_i64().unwrap()
    }

    /// Marked functions, by qualified name, in order.
    pub fn marked(&self) -> Vec<&'r str> {
        let functions = self.0["functions"].as_array().unwrap().iter();
        functions
            .filter(|function| function["marked"] == true)
            .map(|function| function["qualified_name"].as_str().unwrap())
            .collect()
    }

    /// The sum rule: what lines have of their own and what is on no line make up the net, in every report.
    #[track_caller]
    fn check_sum(&self) {
        let own: i64 = self.lines().iter().map(|(_, line)| line.own()).sum();
        let other: i64 =
            self.0["other"].as_array().unwrap().iter().map(|other| other["net_bytes"].as_i64().unwrap()).sum();
        assert_eq!(
            own + other,
            self.number("net_bytes"),
            "self_bytes of all lines and other is not net_bytes: {:#}",
            self.0
        );
    }
}

impl Line<'_> {
    /// A number of it.
    #[track_caller]
    pub fn number(&self, name: &str) -> i64 {
        self.0[name].as_i64().unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }

    /// `increment_bytes`.
    pub fn increment(&self) -> i64 {
        self.number("increment_bytes")
    }

    /// `self_bytes`.
    pub fn own(&self) -> i64 {
        self.number("self_bytes")
    }

    /// `source`, where it was readable.
    pub fn source(&self) -> Option<&str> {
        self.0["source"].as_str()
    }
}
