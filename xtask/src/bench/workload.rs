//! The programs of tests/bench, and what is promised of them.

use std::fmt;
use std::path::{Path, PathBuf};

/// A step that is one execution of a line of a marked function.
pub const LINE: &str = "line event";

/// Where they are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bench")
}

/// One program.
#[derive(Debug)]
pub struct Workload {
    /// What it is called on the command line and in the tables.
    pub name: &'static str,
    /// Its file in tests/bench.
    pub file: &'static str,
    /// What that is given.
    pub arguments: &'static [&'static str],
    /// Fewer turns would say too little.
    pub least_turns: u32,
    /// A module it imports that not every Python has.
    pub needs: Option<&'static str>,
    /// What the program counts in its output.
    pub step: Option<&'static str>,
    heap: Option<Promise>,
    pages: Option<Promise>,
}

/// The most that the median may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Promise {
    /// Of the whole program more than bare.
    ExtraMilliseconds(f64),
    /// Of the whole program against bare.
    Ratio(f64),
    /// Of its work against bare: what it does between its start and its end.
    WorkRatio(f64),
}

impl Promise {
    /// Whether the medians are within it.
    pub fn is_kept(self, ratio: f64, work_ratio: Option<f64>, extra_milliseconds: f64) -> bool {
        match self {
            Self::ExtraMilliseconds(most) => extra_milliseconds <= most,
            Self::Ratio(most) => ratio <= most,
            Self::WorkRatio(most) => work_ratio.is_some_and(|ratio| ratio <= most),
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExtraMilliseconds(most) => write!(f, "at most {most} ms more"),
            Self::Ratio(most) => write!(f, "whole at most {most}x"),
            Self::WorkRatio(most) => write!(f, "work at most {most}x"),
        }
    }
}

impl Workload {
    /// What is promised of it under this tool.
    pub fn promise(&self, tool: &str) -> Option<Promise> {
        match tool {
            "pages" => self.pages,
            "heap" => self.heap,
            _ => None,
        }
    }

    /// Whether it has marked functions.
    pub fn has_marks(&self) -> bool {
        self.step == Some(LINE)
    }
}

const NOTHING: Workload =
    Workload { name: "", file: "", arguments: &[], least_turns: 1, needs: None, step: None, heap: None, pages: None };

/// One of pyperformance, and how many loops of it take about half a second.
const fn borrowed(name: &'static str, arguments: &'static [&'static str]) -> Workload {
    Workload { name, file: "borrowed/run.py", arguments, needs: Some("pyperformance"), ..NOTHING }
}

/// All of them. The last dozen are pyperformance's.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "empty",
        file: "empty.py",
        least_turns: 10,
        heap: Some(Promise::ExtraMilliseconds(250.0)),
        pages: Some(Promise::ExtraMilliseconds(250.0)),
        ..NOTHING
    },
    Workload {
        name: "fib",
        file: "fib.py",
        step: Some("call"),
        heap: Some(Promise::WorkRatio(1.03)),
        pages: Some(Promise::WorkRatio(1.03)),
        ..NOTHING
    },
    Workload {
        name: "strings",
        file: "strings.py",
        step: Some("string"),
        heap: Some(Promise::Ratio(6.0)),
        pages: Some(Promise::WorkRatio(1.05)),
        ..NOTHING
    },
    Workload { name: "repeated", file: "repeated.py", step: Some("string"), ..NOTHING },
    Workload { name: "objects", file: "objects.py", step: Some("object"), ..NOTHING },
    Workload { name: "growth", file: "growth.py", step: Some("MiB"), ..NOTHING },
    Workload { name: "lines", file: "lines.py", step: Some(LINE), ..NOTHING },
    Workload { name: "arrays", file: "arrays.py", step: Some("array"), needs: Some("numpy"), ..NOTHING },
    Workload { name: "jsonish", file: "jsonish.py", step: Some("record"), ..NOTHING },
    Workload { name: "bigtemps", file: "bigtemps.py", step: Some("copy"), ..NOTHING },
    Workload { name: "regex", file: "regex.py", step: Some("match"), ..NOTHING },
    Workload { name: "threads", file: "threads.py", step: Some("round"), ..NOTHING },
    Workload { name: "server", file: "server.py", step: Some("request"), ..NOTHING },
    borrowed("chaos", &["chaos", "8"]),
    borrowed("deepcopy", &["deepcopy", "1500"]),
    borrowed("deltablue", &["deltablue", "150"]),
    borrowed("float", &["float", "8"]),
    borrowed("generators", &["generators", "10"]),
    borrowed("go", &["go", "4"]),
    borrowed("hexiom", &["hexiom", "80"]),
    borrowed("json_dumps", &["json_dumps", "60"]),
    borrowed("json_loads", &["json_loads", "1500"]),
    borrowed("raytrace", &["raytrace", "2"]),
    borrowed("regex_compile", &["regex_compile", "4"]),
    borrowed("richards", &["richards", "12"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_workload_and_every_workload_a_file() {
        let folder = folder();
        let mut files: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.to_owned()))
            .filter(|name| name.ends_with(".py"))
            .collect();
        let own = WORKLOADS.iter().filter(|workload| workload.arguments.is_empty());
        let mut named: Vec<&str> = own.map(|workload| workload.file).collect();
        files.sort();
        named.sort_unstable();
        assert_eq!(files, named);
        for workload in WORKLOADS {
            assert!(folder.join(workload.file).exists(), "{workload:?}");
            assert_eq!(WORKLOADS.iter().filter(|other| other.name == workload.name).count(), 1, "{workload:?}");
        }
    }

    #[test]
    fn a_promise_is_held_against_its_own_figure() {
        assert!(Promise::Ratio(6.0).is_kept(6.0, None, 900.0) && !Promise::Ratio(6.0).is_kept(6.1, Some(1.0), 0.0));
        assert!(
            Promise::WorkRatio(1.03).is_kept(9.0, Some(1.02), 900.0)
                && !Promise::WorkRatio(1.03).is_kept(1.0, None, 0.0)
        );
        assert!(Promise::ExtraMilliseconds(250.0).is_kept(9.0, None, 250.0));
    }
}
