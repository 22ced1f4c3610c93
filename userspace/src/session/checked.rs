//! The checks of the report: the baseline is read before anything runs, and what fails is said at the end.

use super::{RunError, say};
use crate::plan::ReportPlan;
use crate::report::Report;
use crate::report::checks::{Baseline, Checks, EXIT_STATUS};
use crate::target::credentials::Credentials;

/// Checks, with what they compare with.
pub(super) struct Checked<'p> {
    checks: &'p Checks,
    baseline: Option<Baseline>,
}

impl<'p> Checked<'p> {
    /// Reads the baseline, with the rights of the person who asked.
    pub(super) fn read(plan: &'p ReportPlan, credentials: Option<&Credentials>) -> Result<Self, RunError> {
        let Some(path) = &plan.baseline else { return Ok(Self { checks: &plan.checks, baseline: None }) };
        let read = || std::fs::read(path);
        let text = match credentials {
            Some(credentials) => credentials.open_files_as(read),
            None => read(),
        };
        let baseline = text
            .map_err(|error| error.to_string())
            .and_then(|text| Baseline::read(&text, plan.mode.name()))
            .map_err(|reason| RunError::Baseline { path: path.display().to_string(), reason })?;
        Ok(Self { checks: &plan.checks, baseline: Some(baseline) })
    }

    /// Says what fails, and gives the status to end with: the program's own goes first.
    pub(super) fn status(&self, report: &Report, own: i32) -> i32 {
        let verdict = self.checks.verdict(report, self.baseline.as_ref());
        verdict.doubts.iter().chain(&verdict.failures).for_each(|text| say(text));
        if own == 0 && !verdict.failures.is_empty() { EXIT_STATUS } else { own }
    }
}
