//! The columns of the line table: their names, titles, widths and cells.

use super::model::Line;
use super::{OptionError, escape};

/// One column between the line number and the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// Resident memory when the line last finished.
    MemUsage,
    /// Net bytes the line caused, callees included.
    Increment,
    /// Standard error of the net bytes, where blocks were sampled.
    Error,
    /// Executions of the line.
    Occurrences,
    /// Bytes asked for.
    Allocated,
    /// Bytes released.
    Freed,
    /// Blocks asked for.
    Allocations,
    /// Blocks released.
    Frees,
    /// Highest net within one execution.
    Peak,
    /// Bytes asked for and not released yet.
    Live,
    /// The native function in which most of the bytes were asked for.
    Native,
}

impl Column {
    /// Every column, in the order of the help.
    pub const ALL: [Column; 11] = [
        Column::MemUsage,
        Column::Increment,
        Column::Error,
        Column::Occurrences,
        Column::Allocated,
        Column::Freed,
        Column::Allocations,
        Column::Frees,
        Column::Peak,
        Column::Live,
        Column::Native,
    ];

    /// Those of the default table.
    pub const DEFAULT: [Column; 2] = [Column::MemUsage, Column::Increment];

    /// With exactly these the rows are `memory_profiler`'s own, to the character.
    const CLASSIC: [Column; 3] = [Column::MemUsage, Column::Increment, Column::Occurrences];

    /// Its name in `--columns`.
    pub fn name(self) -> &'static str {
        match self {
            Column::MemUsage => "mem-usage",
            Column::Increment => "increment",
            Column::Error => "error",
            Column::Occurrences => "occurrences",
            Column::Allocated => "allocated",
            Column::Freed => "freed",
            Column::Allocations => "allocations",
            Column::Frees => "frees",
            Column::Peak => "peak",
            Column::Live => "live",
            Column::Native => "native",
        }
    }

    /// Its words in the header.
    pub fn title(self) -> &'static str {
        match self {
            Column::MemUsage => "Mem usage",
            Column::Increment => "Increment",
            Column::Error => "Error",
            Column::Occurrences => "Occurrences",
            Column::Allocated => "Allocated",
            Column::Freed => "Freed",
            Column::Allocations => "Allocations",
            Column::Frees => "Frees",
            Column::Peak => "Peak",
            Column::Live => "Live",
            Column::Native => "Native",
        }
    }

    /// Reads the value of `--columns`: names with commas between them. A list that begins with `+` adds to the default.
    ///
    /// # Errors
    /// Names the word that is no column; the hint lists those there are.
    pub fn parse_list(list: &str) -> Result<Vec<Column>, OptionError> {
        let adds = list.trim_start().starts_with('+');
        let mut columns = if adds { Column::DEFAULT.to_vec() } else { Vec::new() };
        for word in list.split(',') {
            let name = word.trim();
            let name = name.strip_prefix('+').unwrap_or(name);
            let Some(column) = Column::ALL.into_iter().find(|column| column.name() == name) else {
                let names = Column::ALL.map(Column::name).join(", ");
                return Err(OptionError::new(
                    format!("no column is called '{}'", escape(name)),
                    format!("the columns are {names}; '+occurrences' adds one to the default"),
                ));
            };
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        Ok(columns)
    }

    /// The cell of a measured line; empty where this was not measured.
    pub(super) fn cell(self, line: &Line, precision: usize) -> String {
        let size = |bytes: i128| mib(bytes, precision);
        match self {
            Column::MemUsage => line.mem_usage_bytes.map(|bytes| size(bytes.into())).unwrap_or_default(),
            Column::Increment => size(line.increment_bytes.into()),
            Column::Error => {
                line.errors.map(|errors| format!("± {}", size(errors.increment_bytes.into()))).unwrap_or_default()
            }
            Column::Occurrences => line.occurrences.map(|times| times.to_string()).unwrap_or_default(),
            Column::Allocated => size(line.allocated_bytes.into()),
            Column::Freed => size(line.freed_bytes.into()),
            Column::Allocations => line.allocations.to_string(),
            Column::Frees => line.frees.to_string(),
            Column::Peak => line.peak_bytes.map(|bytes| size(bytes.into())).unwrap_or_default(),
            Column::Live => size(line.live_bytes.into()),
            Column::Native => line.native.first().map(|most| short(&escape(&most.function))).unwrap_or_default(),
        }
    }

    /// Whether it is of executions of the line: it takes the interpreter's line events.
    pub fn takes_line_events(self) -> bool {
        matches!(self, Column::Occurrences | Column::Peak)
    }

    /// Spaces before the column and its smallest width, as one of `columns`.
    pub(super) fn layout(self, columns: &[Column]) -> (usize, usize) {
        if self == Column::Occurrences && columns == Column::CLASSIC { (2, 10) } else { (1, 12) }
    }
}

/// The longest name of a function that stands in a cell; JSON has it whole.
const LONGEST_NAME: usize = 40;

fn short(name: &str) -> String {
    if name.chars().count() <= LONGEST_NAME {
        return name.to_owned();
    }
    name.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

/// A size as the table prints it, e.g. `9.766 MiB`. What rounds to zero has no sign.
pub fn mib(bytes: i128, precision: usize) -> String {
    const MIB: f64 = (1u32 << 20) as f64;
    // Beyond 2**53 bytes the last digits are not exact: 8 PiB, where a table shows the first ones at most.
    let cell = format!("{:.*} MiB", precision.min(30), bytes as f64 / MIB);
    match cell.strip_prefix('-') {
        Some(digits) if !digits.contains(|c: char| ('1'..='9').contains(&c)) => digits.to_owned(),
        _ => cell,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_replace_or_add() {
        use Column::*;
        assert_eq!(Column::parse_list("peak,increment").unwrap(), [Peak, Increment]);
        assert_eq!(Column::parse_list("+occurrences").unwrap(), [MemUsage, Increment, Occurrences]);
        assert_eq!(Column::parse_list("+live, +peak,increment").unwrap(), [MemUsage, Increment, Live, Peak]);
        for column in Column::ALL {
            assert_eq!(Column::parse_list(column.name()).unwrap(), [column]);
        }
    }

    #[test]
    fn bad_names_are_named() {
        let error = Column::parse_list("+occurrences,ocurrences").unwrap_err();
        assert_eq!(error.to_string(), "no column is called 'ocurrences'");
        assert!(
            error.hint().starts_with("the columns are mem-usage, increment, error, occurrences, allocated, freed, ")
        );
        assert_eq!(Column::parse_list("").unwrap_err().to_string(), "no column is called ''");
        assert_eq!(Column::parse_list("\x1b[31m").unwrap_err().to_string(), "no column is called '\\x1b[31m'");
    }

    #[test]
    fn sizes() {
        assert_eq!(mib(0, 3), "0.000 MiB");
        assert_eq!(mib(-100, 3), "0.000 MiB");
        assert_eq!(mib(-100, 4), "-0.0001 MiB");
        assert_eq!(mib(-(10 << 20), 0), "-10 MiB");
        assert_eq!(mib(1 << 20, usize::MAX).len(), "1. MiB".len() + 30);
    }
}
