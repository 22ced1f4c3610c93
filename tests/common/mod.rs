//! What the tests of the real binary share: Pythons to test with, runs of the binary, its report, filters for snapshots.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]

mod filters;
mod pythons;
mod report;
mod rights;
mod run;
mod script;
mod target;
mod terminal;

pub use filters::snapshot;
pub use pythons::{Python, any_python, every_build, refused_pythons, supported_pythons};
pub use report::{Line, Process, Report, near, near_blocks};
pub use rights::{is_root, root};
pub use run::{Ran, Run, Started, eventually, finish};
pub use script::{Script, script};
pub use target::{KernelMap, Target, is_watched, watches};
pub use terminal::Terminal;
