//! From an instruction to its source line: the three ways in which CPython has written it down.
//!
//! The tables come out of another process: any bytes end in an answer or in `None`, never in a panic, and every loop is bounded
//! by the length of the table.

use serde::Deserialize;

/// How a table is written.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum LineTableKind {
    /// `co_lnotab` up to 3.9: steps of the address and of the line (Objects/lnotab_notes.txt).
    Lnotab,
    /// `co_linetable` of 3.10: lengths of ranges and steps of the line (PEP 626, Objects/lnotab_notes.txt of 3.10).
    Pep626,
    /// `co_linetable` since 3.11: lengths of ranges, lines, end lines, columns (PEP 657, Objects/locations.md of 3.11).
    Pep657,
}

/// The table of one code object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LineTable {
    /// How it is written.
    pub kind: LineTableKind,
    /// As it stands in the process.
    pub bytes: Vec<u8>,
    /// How long the bytecode is, where that is known: a table of up to 3.9 goes on with what the compiler has left out at the end.
    pub bytecode_bytes: Option<u32>,
}

/// A stretch of bytecode with one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// First byte.
    start: u64,
    /// One past the last byte.
    end: u64,
    /// Where its statement begins, as the table says it: it may be 0 (a module's first instruction) and, in hostile tables, anything.
    line: Option<i64>,
    /// Where its expression ends.
    end_line: Option<i64>,
}

/// The source line of the instruction at byte `position` of the bytecode; a negative position (not begun) is the first line.
/// `None`: the instruction has no line, the position is beyond the table, or the table is not well-formed.
pub fn line_of(kind: LineTableKind, table: &[u8], first_line: u32, position: i32) -> Option<u32> {
    let Ok(position) = u64::try_from(position) else {
        return Some(first_line);
    };
    let range = ranges(kind, table, first_line).find(|range| (range.start..range.end).contains(&position))?;
    as_line(range.line)
}

/// All lines that have instructions, each once, ascending. `length`: of the bytecode, where it is known.
pub fn lines(kind: LineTableKind, table: &[u8], first_line: u32, length: Option<u32>) -> Vec<u32> {
    let ranges = with_instructions(kind, table, first_line, length);
    let mut lines: Vec<u32> = ranges.filter_map(|range| as_line(range.line)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// The last source line the code object reaches, end lines of expressions included where the table knows them (3.11 and later).
/// The first line where the table says nothing.
pub fn last_line(kind: LineTableKind, table: &[u8], first_line: u32, length: Option<u32>) -> u32 {
    let ranges = with_instructions(kind, table, first_line, length);
    ranges.filter_map(|range| as_line(range.line).max(as_line(range.end_line))).fold(first_line, u32::max)
}

impl LineTable {
    /// [`line_of`] this table.
    pub fn line_of(&self, first_line: u32, position: i32) -> Option<u32> {
        line_of(self.kind, &self.bytes, first_line, position)
    }

    /// The line of each of the first `units` units of two bytes; `None` where there is none.
    pub fn by_unit(&self, first_line: u32, units: usize) -> Vec<Option<u32>> {
        let mut lines = vec![None; units];
        for range in ranges(self.kind, &self.bytes, first_line) {
            let unit = |byte: u64| usize::try_from(byte / 2).map_or(units, |unit| unit.min(units));
            if let Some(stretch) = lines.get_mut(unit(range.start)..unit(range.end)) {
                stretch.fill(as_line(range.line));
            }
        }
        lines
    }

    /// [`lines`] of this table.
    pub fn lines(&self, first_line: u32) -> Vec<u32> {
        lines(self.kind, &self.bytes, first_line, self.bytecode_bytes)
    }

    /// [`last_line`] of this table.
    pub fn last_line(&self, first_line: u32) -> u32 {
        last_line(self.kind, &self.bytes, first_line, self.bytecode_bytes)
    }
}

/// A line that a source file can have.
fn as_line(line: Option<i64>) -> Option<u32> {
    line.and_then(|line| u32::try_from(line).ok()).filter(|line| *line > 0)
}

/// The ranges in which there are instructions.
fn with_instructions(
    kind: LineTableKind,
    table: &[u8],
    first_line: u32,
    length: Option<u32>,
) -> impl Iterator<Item = Range> {
    let length = length.map_or(u64::MAX, u64::from);
    ranges(kind, table, first_line).filter(move |range| range.end > range.start && range.start < length)
}

/// The ranges of a table in the order of their addresses. Ends where the table is not well-formed.
fn ranges(kind: LineTableKind, table: &[u8], first_line: u32) -> Ranges<'_> {
    Ranges { kind, rest: Some(table), address: 0, line: i64::from(first_line) }
}

struct Ranges<'a> {
    kind: LineTableKind,
    /// What is still to be read; `None` after the last range.
    rest: Option<&'a [u8]>,
    address: u64,
    /// The line counter: of i64, so that a table of 1 MiB cannot carry it over.
    line: i64,
}

impl Iterator for Ranges<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        let rest = self.rest?;
        let range = match self.kind {
            LineTableKind::Lnotab => Some(self.next_of_lnotab(rest)),
            LineTableKind::Pep626 => self.next_of_pep626(rest),
            LineTableKind::Pep657 => self.next_of_pep657(rest),
        };
        if range.is_none() {
            self.rest = None;
        }
        range
    }
}

impl<'a> Ranges<'a> {
    /// Each pair ends a range by its step of the address and then moves the line. The last range has no end.
    fn next_of_lnotab(&mut self, rest: &'a [u8]) -> Range {
        let start = self.address;
        let line = Some(self.line);
        let end = match rest.split_first_chunk::<2>() {
            Some((&[step, line_step], after)) => {
                self.address = start.saturating_add(u64::from(step));
                self.line = self.line.saturating_add(i64::from(line_step.cast_signed()));
                self.rest = Some(after);
                self.address
            }
            None => {
                self.rest = None;
                u64::MAX
            }
        };
        Range { start, end, line, end_line: line }
    }

    /// Each pair is a range: its length, and the step of the line before it, -128 for "no line".
    fn next_of_pep626(&mut self, rest: &'a [u8]) -> Option<Range> {
        const NO_LINE: i8 = -128;
        let (&[length, step], after) = rest.split_first_chunk::<2>()?;
        self.rest = Some(after);
        let start = self.address;
        self.address = start.saturating_add(u64::from(length));
        let step = step.cast_signed();
        let line = (step != NO_LINE).then(|| {
            self.line = self.line.saturating_add(i64::from(step));
            self.line
        });
        Some(Range { start, end: self.address, line, end_line: line })
    }

    /// Each entry is a range: a first byte with its form and length in code units, then what the form has.
    fn next_of_pep657(&mut self, rest: &'a [u8]) -> Option<Range> {
        let (&first, mut rest) = rest.split_first()?;
        if first & 0x80 == 0 {
            return None;
        }
        let start = self.address;
        self.address = start.saturating_add(2 * (u64::from(first & 7) + 1));
        let mut end_step = 0;
        let step = match (first >> 3) & 15 {
            15 => None,
            14 => {
                let step = signed(unsigned(&mut rest)?);
                end_step = i64::from(unsigned(&mut rest)?);
                unsigned(&mut rest)?; // column
                unsigned(&mut rest)?; // end column
                Some(step)
            }
            13 => Some(signed(unsigned(&mut rest)?)),
            form @ 10..=12 => {
                rest = rest.get(2..)?;
                Some(i64::from(form - 10))
            }
            _ => {
                rest = rest.get(1..)?;
                Some(0)
            }
        };
        self.rest = Some(rest);
        let line = step.map(|step| {
            self.line = self.line.saturating_add(step);
            self.line
        });
        Some(Range { start, end: self.address, line, end_line: line.map(|line| line.saturating_add(end_step)) })
    }
}

/// A number in groups of six bits, lowest first; bit 6 tells that another follows. `None`: cut off, or longer than an `unsigned int`.
fn unsigned(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0;
    for shift in (0..32).step_by(6) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u32::from(byte & 63) << shift;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
    None
}

/// The lowest bit is the sign.
fn signed(value: u32) -> i64 {
    let magnitude = i64::from(value >> 1);
    if value & 1 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::LineTableKind::{Lnotab, Pep626, Pep657};
    use super::*;

    #[test]
    fn lnotab_steps() {
        // Two pairs for one step of 200 lines: the line between belongs to no instruction.
        let table = [4, 1, 0, 127, 2, 73, 6, 0xff];
        assert_eq!(line_of(Lnotab, &table, 10, -1), Some(10));
        assert_eq!(line_of(Lnotab, &table, 10, 3), Some(10));
        assert_eq!(line_of(Lnotab, &table, 10, 4), Some(138));
        assert_eq!(line_of(Lnotab, &table, 10, 6), Some(211));
        assert_eq!(line_of(Lnotab, &table, 10, 1 << 30), Some(210));
        assert_eq!(lines(Lnotab, &table, 10, None), [10, 138, 210, 211]);
        assert_eq!(last_line(Lnotab, &table, 10, None), 211);
        assert_eq!(lines(Lnotab, &[], 7, None), [7]);
        // As 3.8 has it where the last `return` was left out: the table goes on beyond the bytecode.
        let table = [0, 1, 4, 1];
        assert_eq!(lines(Lnotab, &table, 13, Some(4)), [14]);
        assert_eq!(last_line(Lnotab, &table, 13, Some(4)), 14);
        assert_eq!(lines(Lnotab, &table, 13, None), [14, 15]);
    }

    #[test]
    fn pep626_ranges_without_a_line() {
        let table = [4, 0, 2, 0x80, 0, 5, 6, 1];
        assert_eq!(line_of(Pep626, &table, 10, 0), Some(10));
        assert_eq!(line_of(Pep626, &table, 10, 4), None);
        assert_eq!(line_of(Pep626, &table, 10, 6), Some(16));
        assert_eq!(line_of(Pep626, &table, 10, 12), None);
        assert_eq!(lines(Pep626, &table, 10, None), [10, 16]);
    }

    #[test]
    fn pep657_forms() {
        // No columns +1; long form +2, ends 3 lines on; no line; one line +2 with columns; short.
        let table = [0xe8, 2, 0xf0, 4, 3, 1, 1, 0xf9, 0xe0, 0, 9, 0x80, 0x11];
        assert_eq!(line_of(Pep657, &table, 10, 0), Some(11));
        assert_eq!(line_of(Pep657, &table, 10, 2), Some(13));
        assert_eq!(line_of(Pep657, &table, 10, 4), None);
        assert_eq!(line_of(Pep657, &table, 10, 7), None);
        assert_eq!(line_of(Pep657, &table, 10, 8), Some(15));
        assert_eq!(line_of(Pep657, &table, 10, 10), Some(15));
        assert_eq!(line_of(Pep657, &table, 10, 12), None);
        assert_eq!(lines(Pep657, &table, 10, None), [11, 13, 15]);
        assert_eq!(last_line(Pep657, &table, 10, None), 16);
        // A module's first instruction stands on line 0, which no file has.
        assert_eq!(line_of(Pep657, &[0xe8, 3], 1, 0), None);
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_an_answer(
            table in prop::collection::vec(any::<u8>(), 0..400),
            first_line in any::<u32>(),
            position in any::<i32>(),
        ) {
            for kind in [Lnotab, Pep626, Pep657] {
                let line = line_of(kind, &table, first_line, position);
                let lines = lines(kind, &table, first_line, None);
                prop_assert!(lines.is_sorted_by(|a, b| a < b) && lines.len() <= table.len() + 1);
                prop_assert!(position < 0 || line.is_none_or(|line| lines.contains(&line)));
                prop_assert!(lines.last().is_none_or(|line| *line <= last_line(kind, &table, first_line, None)));
            }
        }

        #[test]
        fn far_steps_do_not_overflow(byte in any::<u8>(), count in 0usize..60_000, first_line in any::<u32>()) {
            let table = vec![byte; count];
            for kind in [Lnotab, Pep626, Pep657] {
                line_of(kind, &table, first_line, i32::MAX);
                last_line(kind, &table, first_line, None);
            }
        }
    }
}
