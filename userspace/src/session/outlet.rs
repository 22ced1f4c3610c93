//! Where reports go: one file or standard output, and for those before the last numbered files beside it, or the same stream (a device or a
//! pipe that was named is one too).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::RunError;
use crate::plan::ReportPlan;
use crate::report::{Cause, Options, Report, Snapshot};
use crate::target::credentials::Credentials;

/// See the module.
pub struct Outlet<'p> {
    plan: &'p ReportPlan,
    file: Option<File>,
    /// Whose rights files are opened with, where not ours.
    credentials: Option<Credentials>,
    /// Reports before the last.
    written: u32,
    /// The file of the one before, where it could be written.
    newest: Option<PathBuf>,
}

impl<'p> Outlet<'p> {
    /// Opens the report's file before anything is measured, with the rights of the person who asked, so that nothing is measured in
    /// vain.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open(plan: &'p ReportPlan, credentials: Option<Credentials>) -> Result<Self, RunError> {
        let mut outlet = Self { plan, file: None, credentials, written: 0, newest: None };
        if let Some(path) = &plan.output {
            outlet.file = Some(outlet.file(path)?);
        }
        Ok(outlet)
    }

    fn file(&self, path: &Path) -> Result<File, RunError> {
        let open = || std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let opened = match &self.credentials {
            Some(credentials) => credentials.open_files_as(open),
            None => open(),
        };
        opened.map_err(|error| RunError::Output { path: path.display().to_string(), error })
    }

    /// Writes a report that is not the last. False: nobody reads any more.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn snapshot(&mut self, report: &mut Report, cause: Cause) -> Result<bool, RunError> {
        self.written += 1;
        self.newest = None;
        report.snapshot = Some(Snapshot { number: self.written, cause, time: SystemTime::now() });
        match &self.plan.output {
            // A device or a pipe: nothing of ours belongs beside it.
            Some(path) if !self.has_files() => {
                let options = Options { one_line: true, ..self.plan.options.clone() };
                let file = self.file.as_ref().map(File::try_clone).transpose();
                let file = file.map_err(|error| RunError::Output { path: path.display().to_string(), error })?;
                self.write(file, path, &options, report)
            }
            Some(path) => {
                let path = numbered(path, self.written);
                let file = self.file(&path)?;
                let is_read = self.write(Some(file), &path, &self.plan.options, report)?;
                self.newest = Some(path);
                Ok(is_read)
            }
            None => self.to_stream(report),
        }
    }

    /// Has each report a file of its own?
    pub fn has_files(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.metadata().is_ok_and(|about| about.is_file()))
    }

    /// Where the report before is, if that could be written to a file.
    pub fn newest(&self) -> Option<&Path> {
        self.newest.as_deref()
    }

    /// Whose rights files are opened with, where not ours.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Writes the last report.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn last(mut self, report: &Report) -> Result<(), RunError> {
        let file = self.file.take();
        match &self.plan.output {
            Some(path) => self.write(file, path, &self.plan.options, report),
            None if self.written > 0 => self.to_stream(report),
            None => self.write(None, Path::new(""), &self.plan.options, report),
        }
        .map(drop)
    }

    fn to_stream(&self, report: &Report) -> Result<bool, RunError> {
        let options = Options { one_line: true, ..self.plan.options.clone() };
        self.write(None, Path::new(""), &options, report)
    }

    /// False: nobody reads any more.
    fn write(&self, file: Option<File>, path: &Path, options: &Options, report: &Report) -> Result<bool, RunError> {
        let name = || if file.is_some() { path.display().to_string() } else { "standard output".into() };
        let failed = |error: io::Error| RunError::Output { path: name(), error };
        let mut text = Vec::new();
        crate::report::write(report, self.plan.format, options, &mut text).map_err(failed)?;
        match &file {
            Some(file) => {
                if file.metadata().is_ok_and(|about| about.is_file()) {
                    file.set_len(0).map_err(failed)?;
                }
                (&*file).write_all(&text).map_err(failed)?;
                Ok(true)
            }
            None => {
                let mut out = io::stdout().lock();
                match out.write_all(&text).and_then(|()| out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false), // the reader has seen enough
                    other => other.map(|()| true).map_err(failed),
                }
            }
        }
    }
}

/// `name.0001.json` for `name.json`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number:04}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_before_the_ending() {
        for (path, expected) in
            [("/a/r.json", "/a/r.0007.json"), ("r", "r.0007"), ("a.b/r.x.txt", "a.b/r.x.0007.txt"), (".r", ".r.0007")]
        {
            assert_eq!(numbered(Path::new(path), 7), Path::new(expected));
        }
        assert_eq!(numbered(Path::new("r.json"), 12345), Path::new("r.12345.json"));
    }
}
