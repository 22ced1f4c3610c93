//! A line now and then while a long program runs, for a person at a terminal. Whole lines, ever further apart: the program may be
//! writing to the same terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::image::Image;
use crate::kernel::Attacher;
use crate::ledger::ProcessId;

const FIRST: Duration = Duration::from_secs(10);
const FURTHEST_APART: Duration = Duration::from_secs(300);

/// When the next line is due.
pub struct Progress {
    began: Instant,
    due: Duration,
    terminal: bool,
}

impl Progress {
    /// Begins now.
    pub fn new() -> Self {
        Self { began: Instant::now(), due: FIRST, terminal: std::io::stderr().is_terminal() }
    }

    /// Prints the line if it is due.
    pub fn tick(&mut self, images: &BTreeMap<ProcessId, Image>, attacher: &Attacher) {
        let elapsed = self.began.elapsed();
        if !self.terminal || elapsed < self.due {
            return;
        }
        self.due = elapsed + elapsed.clamp(FIRST, FURTHEST_APART);
        let running: Vec<&Image> = images.values().filter(|image| image.death.is_none()).collect();
        let resident: i64 = running
            .iter()
            .filter_map(|image| attacher.watched(image.birth.pid.as_raw().unsigned_abs()))
            .map(|process| crate::kernel::resident_bytes(&process))
            .sum();
        #[allow(clippy::cast_precision_loss)] // three digits are shown
        let mebibytes = resident as f64 / f64::from(1 << 20);
        let processes = if running.len() == 1 { "process" } else { "processes" };
        super::say(&format!(
            "{} s, {} Python {processes}, {mebibytes:.1} MiB resident",
            elapsed.as_secs(),
            running.len()
        ));
    }
}
