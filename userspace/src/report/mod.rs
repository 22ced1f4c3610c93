//! What a person or a program reads: one file a format, and one table of formats. The only room that lays out text.

pub mod checks;
pub mod columns;
mod command;
mod escape;
mod footer;
mod growth;
mod json;
mod merge;
pub mod model;
pub mod own_file;
pub mod select;
mod source;
mod table;

use std::io::{self, Write};

pub use columns::Column;
pub use command::{Program, program_of};
pub use escape::{escape, shell_words};
pub use merge::{add as merge_into, command_key, program_word};
pub use model::{
    Cause, Container, Errors, Function, Health, Line, NativeBytes, Other, ProcessReport, Report, Sampling, Snapshot,
    Tool,
};
pub use own_file::is_own_file;
pub use select::{Globs, Selection};

/// What lines are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankBy {
    /// What they asked for and nobody has released: a line whose blocks another one releases has none.
    Live,
    /// Their net, where memory has no owner (resident pages).
    Net,
}

/// How a report is to look. The formats take what concerns them and leave the rest.
#[derive(Clone, Debug)]
pub struct Options {
    /// Digits after the point of a size in MiB (table only; more than 30 are 30).
    pub precision: usize,
    /// Columns between the line number and the source, in order (table only).
    pub columns: Vec<Column>,
    /// How many functions at most, where none is marked (table only).
    pub top: usize,
    /// One table for all processes of one command.
    pub merge: bool,
    /// The lines that memory leaks on stand first.
    pub rank: Option<RankBy>,
    /// Nothing but a line end ends a line: for streams of reports (JSON only).
    pub one_line: bool,
    /// Which files' functions.
    pub selection: Selection,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            precision: 3,
            columns: Column::DEFAULT.to_vec(),
            top: 10,
            merge: false,
            rank: None,
            one_line: false,
            selection: Selection::default(),
        }
    }
}

/// Writes a whole report in one format.
type Writer = fn(&Report, &Options, &mut dyn Write) -> io::Result<()>;

/// One output format. To add one: a file beside this one, and a row in [`FORMATS`].
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The value of `--format`.
    pub name: &'static str,
    /// Endings of file names that mean it, without the dot.
    pub endings: &'static [&'static str],
    /// One line for the help.
    pub about: &'static str,
    write: Writer,
}

/// Every format there is; the first is the default.
pub const FORMATS: &[Format] = &[
    Format {
        name: "table",
        endings: &["txt"],
        about: "source lines with their memory, for people",
        write: table::write,
    },
    Format {
        name: "json",
        endings: &["json"],
        about: "everything that was measured, for programs",
        write: json::write,
    },
];

impl Format {
    /// The format of that name.
    ///
    /// # Errors
    /// Names the word that is no format; the hint lists those there are.
    pub fn by_name(name: &str) -> Result<&'static Format, OptionError> {
        FORMATS.iter().find(|format| format.name == name).ok_or_else(|| {
            let names: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
            OptionError::new(
                format!("no format is called '{}'", escape(name)),
                format!("the formats are {}", names.join(", ")),
            )
        })
    }

    /// The format that a file's ending means; `None` where it means none.
    pub fn by_ending(path: &std::path::Path) -> Option<&'static Format> {
        let ending = path.extension()?.to_str()?;
        FORMATS.iter().find(|format| format.endings.iter().any(|known| known.eq_ignore_ascii_case(ending)))
    }
}

/// Writes a report. Nothing but the report goes to `out`.
///
/// # Errors
/// Those of `out`.
pub fn write(report: &Report, format: &Format, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if options.merge {
        let merged = Report { processes: merge::by_command(report.processes.clone()), ..report.clone() };
        (format.write)(&merged, options, out)?;
    } else {
        (format.write)(report, options, out)?;
    }
    out.flush()
}

/// A value of an option that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionError {
    message: String,
    hint: String,
}

impl OptionError {
    pub(crate) fn new(message: String, hint: String) -> Self {
        Self { message, hint }
    }

    /// What to do instead; for the `hint:` line.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
