//! The programs of tests/bench, and what is promised of them.

use std::fmt;

/// A step that is one execution of a line of a marked function.
pub const LINE: &str = "line event";

/// One program.
#[derive(Debug)]
pub struct Workload {
    /// Its file in tests/bench, without `.py`.
    pub name: &'static str,
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
    /// What is promised in this mode.
    pub fn promise(&self, mode: &str) -> Option<Promise> {
        if mode == "pages" { self.pages } else { self.heap }
    }
}

const fn workload(
    name: &'static str,
    step: Option<&'static str>,
    heap: Option<Promise>,
    pages: Option<Promise>,
) -> Workload {
    Workload { name, least_turns: 1, needs: None, step, heap, pages }
}

/// All of them.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        least_turns: 10,
        ..workload("empty", None, Some(Promise::ExtraMilliseconds(250.0)), Some(Promise::ExtraMilliseconds(250.0)))
    },
    workload("fib", Some("call"), Some(Promise::WorkRatio(1.03)), Some(Promise::WorkRatio(1.03))),
    workload("strings", Some("string"), Some(Promise::Ratio(6.0)), Some(Promise::WorkRatio(1.05))),
    workload("repeated", Some("string"), None, None),
    workload("objects", Some("object"), None, None),
    workload("growth", Some("MiB"), None, None),
    workload("lines", Some(LINE), None, None),
    Workload { needs: Some("numpy"), ..workload("arrays", Some("array"), None, None) },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_workload_and_every_workload_a_file() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bench");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".py")?.to_owned()))
            .collect();
        let mut names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        files.sort();
        names.sort_unstable();
        assert_eq!(files, names);
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
