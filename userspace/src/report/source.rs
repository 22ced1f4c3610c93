//! Which lines of a source file a function's table shows.
//!
//! The bytecode tells the first line and the lines with code; where the block ends (comments, closing brackets, the rest of
//! a string) only the text tells. It is read with just as much of Python's grammar as that takes: strings, brackets,
//! continued lines and indentation.

use std::collections::BTreeSet;

use super::model::Function;

/// Without a source, or for lines beyond its end, this many line numbers are shown at most besides the measured ones: line
/// numbers come from the measured program, and may be anything.
const MOST_BARE_ROWS: u32 = 10_000;

/// What kind of block a function is to its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// The top level of a file.
    Module,
    /// The body of a `class`.
    Class,
    /// A `def`.
    Def,
    /// A lambda or a comprehension: part of a line. Or a source that no longer fits the code.
    Expression,
}

/// The rows of a function's table.
#[derive(Debug)]
pub(super) struct Rows {
    pub block: Block,
    /// Line numbers, ascending.
    pub lines: BTreeSet<u32>,
}

/// Finds the rows: from the function's first line to the end of its block, and every measured line wherever it is. Of
/// modules and classes, the bodies of the definitions inside are left out: what follows a `def`, `class` or decorator that
/// is the block's own, up to the block's next own line.
pub(super) fn rows(function: &Function) -> Rows {
    let measured: BTreeSet<u32> = function.lines.iter().map(|line| line.line).collect();
    let own: BTreeSet<u32> = function.own_lines.iter().copied().chain(measured.iter().copied()).collect();
    let first = function.first_line.max(1);
    let last = own.last().copied().unwrap_or(first).max(first);

    let Some(source) = function.source.as_deref() else {
        let bare = if last - first < MOST_BARE_ROWS { first..=last } else { first..=first };
        let block = if function.name == "<module>" { Block::Module } else { Block::Expression };
        return Rows { block, lines: bare.chain(measured).collect() };
    };
    let (block, head) = kind(function, source, first);
    let end = end_of_block(source, block, (first, head, last));
    let mut lines = match block {
        Block::Module => without_bodies(source, (first, first.saturating_sub(1), end), &own),
        Block::Class => without_bodies(source, (first, head, end), &own),
        Block::Def | Block::Expression => (first..=end).collect(),
    };
    lines.insert(first);
    lines.extend(measured);
    Rows { block, lines }
}

/// The block's kind, and the line of its `def` or `class` (the first line where there is none).
fn kind(function: &Function, source: &[String], first: u32) -> (Block, u32) {
    if function.name == "<module>" {
        return (Block::Module, first);
    }
    if function.name.starts_with('<') {
        return (Block::Expression, first);
    }
    let mut heads = logical_lines(source, first).filter(|(_, text, continues)| {
        let text = text.trim_start();
        !continues && !text.is_empty() && !text.starts_with(['#', '@'])
    });
    match heads.next() {
        Some((line, text, _)) if text.trim_start().starts_with("class ") => (Block::Class, line),
        Some((line, text, _)) if is_definition(text) => (Block::Def, line),
        _ => (Block::Expression, first),
    }
}

/// The last line of the block, by its text: behind the last own line, what continues it and what is indented deeper than the
/// block's head; never a trailing empty line.
fn end_of_block(source: &[String], block: Block, (first, head, last): (u32, u32, u32)) -> u32 {
    let known = last.min(u32::try_from(source.len()).unwrap_or(u32::MAX)).max(head);
    if block == Block::Expression {
        return known;
    }
    let head_indent = text_of(source, head).map_or(0, indent);
    let mut end = known;
    for (line, text, continues) in logical_lines(source, first) {
        if line <= known {
            continue;
        }
        let trimmed = text.trim_start();
        let deeper = block != Block::Module && indent(text) > head_indent;
        if continues {
            end = if line == end + 1 { line } else { end };
        } else if trimmed.is_empty() || (trimmed.starts_with('#') && !deeper) {
            continue;
        } else if deeper {
            end = line;
        } else {
            return end;
        }
    }
    // A string or bracket open at the end of the file: the text is not what it seemed, so the bytecode has the word.
    if ends_inside(source, first) { known } else { end }
}

/// The lines from `first` to `end`, those after `head` without the bodies of definitions.
fn without_bodies(source: &[String], (first, head, end): (u32, u32, u32), own: &BTreeSet<u32>) -> BTreeSet<u32> {
    let mut shown = BTreeSet::new();
    let (mut in_body, mut after_decorator, mut opens) = (false, false, false);
    for (line, text, continues) in logical_lines(source, first) {
        if line > end {
            break;
        }
        if line <= head {
            shown.insert(line);
            continue;
        }
        if !continues {
            opens = is_definition(text);
        }
        // The `def` under a decorator need not be a line of the bytecode.
        let is_decorated = after_decorator && opens && !continues;
        if own.contains(&line) || is_decorated {
            in_body = opens;
            after_decorator = opens && text.trim_start().starts_with('@');
            shown.insert(line);
        } else if !in_body {
            shown.insert(line);
        }
    }
    shown
}

/// The text of a line, numbered from 1.
pub(super) fn text_of(source: &[String], line: u32) -> Option<&str> {
    let index = usize::try_from(line.checked_sub(1)?).ok()?;
    source.get(index).map(String::as_str)
}

fn is_definition(text: &str) -> bool {
    let text = text.trim_start();
    ["def ", "class ", "async def ", "@"].iter().any(|start| text.starts_with(start))
}

/// Columns before the text; a tab goes on to the next multiple of 8, a form feed begins anew (Python reference, "Indentation").
fn indent(text: &str) -> usize {
    text.chars().take_while(|c| matches!(c, ' ' | '\t' | '\x0c')).fold(0, |column, c| match c {
        '\t' => (column / 8 + 1) * 8,
        '\x0c' => 0,
        _ => column + 1,
    })
}

/// The lines from `first` on: number, text, and whether the line continues the one before.
fn logical_lines(source: &[String], first: u32) -> impl Iterator<Item = (u32, &str, bool)> {
    let skipped = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut scanner = Scanner::default();
    (first..).zip(source.iter().skip(skipped)).map(move |(line, text)| {
        let continues = scanner.is_inside();
        scanner.read(text);
        (line, text.as_str(), continues)
    })
}

fn ends_inside(source: &[String], first: u32) -> bool {
    let skipped = usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX);
    let mut scanner = Scanner::default();
    source.iter().skip(skipped).for_each(|text| scanner.read(text));
    scanner.is_inside()
}

/// Follows strings, brackets and continued lines.
#[derive(Default)]
struct Scanner {
    /// The quote of the open string, and whether it is a triple one.
    quote: Option<(u8, bool)>,
    brackets: usize,
    continued: bool,
}

impl Scanner {
    fn is_inside(&self) -> bool {
        self.quote.is_some() || self.brackets > 0 || self.continued
    }

    fn read(&mut self, line: &str) {
        let bytes = line.trim_end_matches('\r').as_bytes();
        self.continued = false;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += match self.quote {
                Some((quote, triple)) => {
                    let closes = byte == quote && (!triple || is_triple(bytes, at));
                    if closes {
                        self.quote = None;
                    }
                    match (byte, closes && triple) {
                        (_, true) => 3,
                        (b'\\', _) => 2,
                        _ => 1,
                    }
                }
                None if byte == b'#' => return,
                None => self.read_code(bytes, at, byte),
            };
        }
        // A string in single quotes ends with its line, unless the line ends with a backslash: that was stepped over.
        let escaped = at > bytes.len();
        if !escaped && self.quote.is_some_and(|(_, triple)| !triple) {
            self.quote = None;
        }
    }

    /// One byte outside strings; tells how many were read.
    fn read_code(&mut self, bytes: &[u8], at: usize, byte: u8) -> usize {
        match byte {
            b'(' | b'[' | b'{' => self.brackets += 1,
            b')' | b']' | b'}' => self.brackets = self.brackets.saturating_sub(1),
            b'\\' => self.continued = at + 1 == bytes.len(),
            b'"' | b'\'' => {
                let triple = is_triple(bytes, at);
                self.quote = Some((byte, triple));
                return if triple { 3 } else { 1 };
            }
            _ => {}
        }
        1
    }
}

fn is_triple(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 3).is_some_and(|three| three.iter().all(|byte| *byte == bytes[at]))
}

#[cfg(test)]
#[path = "tests/source.rs"]
mod tests;
