//! The line table, to the character as the project's contract has it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::columns::{Column, mib};
use super::model::{Function, Line, ProcessReport, Report};
use super::select::{self, ProcessTables, Tables};
use super::source::{Block, rows, text_of};
use super::{Options, escape, footer, growth, merge, shell_words};

/// Characters of a process's command line in its heading.
const COMMAND_LIMIT: usize = 200;

/// Writes every table, the bytes on no line, and the health of the measurement.
pub(super) fn write(report: &Report, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    if let Some(snapshot) = &report.snapshot {
        let time = humantime::format_rfc3339_seconds(snapshot.time);
        writeln!(out, "Report {} ({}), {time}\n\n", snapshot.number, snapshot.cause.name())?;
    }
    if let Some(by) = options.rank {
        growth::write(&growth::ranking(&report.processes, by, options.top), options, out)?;
    }
    let tables = select::tables(report, options);
    let with_other = footer::shows_other(&tables, options);
    let sections: Vec<_> = tables
        .processes
        .iter()
        .filter(|section| !section.functions.is_empty() || (with_other && footer::has_other(section.process)))
        .collect();
    if tables.processes.iter().all(|section| section.functions.is_empty()) {
        writeln!(out, "{}", nothing_to_show(&tables))?;
        if !sections.is_empty() || !tables.health.is_clean() {
            writeln!(out)?;
        }
    }
    for section in &sections {
        if sections.len() > 1 || section.process.ended_by.is_some() {
            write_heading(section.process, out)?;
        }
        write_section(section, with_other, options, out)?;
    }
    footer::write_approximate(&tables, out)?;
    footer::write_sampling(&tables, options.precision, out)?;
    footer::write_environment(&report.tool, out)?;
    footer::write_health(tables.health, out)
}

fn write_section(
    section: &ProcessTables<'_>,
    with_other: bool,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    for function in &section.functions {
        write_table(function, options, out)?;
    }
    if with_other {
        footer::write_other(section.process, options.precision, out)?;
    }
    Ok(())
}

fn write_heading(process: &ProcessReport, out: &mut dyn Write) -> io::Result<()> {
    let heading = match process.merged {
        Some(count) => format!("{count} processes of {}", escape(&merge::command_key(&process.command))),
        None => {
            let command = shell_words(&process.command, COMMAND_LIMIT);
            format!("Process {}: {command}", process.pid)
        }
    };
    write!(out, "{}", heading.trim_end_matches([' ', ':']))?;
    if let Some(words) = &process.ended_by {
        write!(out, "\nIt {}.", escape(words))?;
    }
    if let Some(container) = &process.container {
        write!(out, "\n{}", growth::of_container(container))?;
    }
    write!(out, "\n\n")
}

/// The sentence of a report without a table.
fn nothing_to_show(tables: &Tables<'_>) -> &'static str {
    let is_python = |process: &ProcessReport| process.python.is_some() || !process.functions.is_empty();
    let functions = || tables.processes.iter().flat_map(|section| &section.process.functions);
    if !tables.processes.iter().any(|section| is_python(section.process)) {
        "No Python program was seen."
    } else if tables.marked && functions().any(|function| function.marked && !function.lines.is_empty()) {
        "Every marked function that was called is left out by --exclude."
    } else if tables.marked {
        "No marked function was called."
    } else if functions().any(|function| function.moved_bytes > 0) {
        "No function of the files shown moved any memory; --all-files shows the others."
    } else {
        "No Python function moved any memory."
    }
}

/// One row: line number, cells, source.
struct Row {
    line: u32,
    cells: Vec<String>,
    text: String,
}

fn write_table(function: &Function, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let rows = table_rows(function, options);
    let columns = &options.columns;
    let layout: Vec<(usize, usize)> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let (before, least) = column.layout(columns);
            // Sizes that need more than the usual width widen their column: the indentation of the source must not break.
            let widest =
                rows.iter().filter_map(|row| row.cells.get(index)).map(|cell| cell.chars().count()).max().unwrap_or(0);
            (before, least.max(widest))
        })
        .collect();
    let titles: Vec<String> = columns.iter().map(|column| column.title().to_owned()).collect();
    let header = layout_row("Line #", &titles, "Line Contents", &layout);

    writeln!(out, "Filename: {}\n\n{header}\n{}", escape(&function.filename), "=".repeat(header.len()))?;
    if function.source.is_none() {
        let blank = vec![String::new(); columns.len()];
        writeln!(out, "{}", layout_row("", &blank, "(source not readable)", &layout))?;
    }
    for row in &rows {
        writeln!(out, "{}", layout_row(&row.line.to_string(), &row.cells, &row.text, &layout))?;
    }
    write!(out, "\n\n")
}

/// `{:>6} {:>12} {:>12}   {}` for the usual columns, without trailing space.
fn layout_row(line: &str, cells: &[String], text: &str, layout: &[(usize, usize)]) -> String {
    let mut row = format!("{line:>6}");
    for (cell, (before, width)) in cells.iter().zip(layout) {
        row.push_str(&format!("{:before$}{cell:>width$}", ""));
    }
    row.push_str("   ");
    row.push_str(text);
    row.truncate(row.trim_end().len());
    row
}

fn table_rows(function: &Function, options: &Options) -> Vec<Row> {
    let measured: BTreeMap<u32, &Line> = function.lines.iter().map(|line| (line.line, line)).collect();
    let rows = rows(function);
    let entry = entry_row(function, rows.block, &measured);
    let to_row = |line: u32| Row {
        line,
        cells: cells(
            measured.get(&line).copied(),
            entry.filter(|(first, _)| *first == line).map(|(_, rss)| rss),
            options,
        ),
        text: source_text(function, line),
    };
    rows.lines.iter().copied().map(to_row).collect()
}

/// The row that shows the resident memory at the first entry, and that memory.
///
/// It is the function's first line, whatever was measured there (a call's prologue): the lines under it add up to the
/// function. Where the first line is code like any other (a module's, a class body's, all of a one-line function's) what
/// was measured goes before.
fn entry_row(function: &Function, block: Block, measured: &BTreeMap<u32, &Line>) -> Option<(u32, u64)> {
    let first = function.first_line.max(1);
    let is_one_line = function.own_lines.iter().chain(measured.keys()).all(|line| *line == first);
    let is_code = is_one_line || matches!(block, Block::Module | Block::Class);
    if is_code && measured.contains_key(&first) {
        return None;
    }
    function.entry_rss_bytes.map(|rss| (first, rss))
}

fn cells(line: Option<&Line>, entry_rss: Option<u64>, options: &Options) -> Vec<String> {
    let cell = |column: &Column| match (column, entry_rss) {
        (Column::MemUsage | Column::Increment, Some(rss)) => mib(rss.into(), options.precision),
        _ => line.map(|line| column.cell(line, options.precision)).unwrap_or_default(),
    };
    options.columns.iter().map(cell).collect()
}

fn source_text(function: &Function, line: u32) -> String {
    let text = function.source.as_deref().and_then(|source| text_of(source, line)).unwrap_or_default();
    let text = if line == 1 { text.trim_start_matches('\u{feff}') } else { text };
    escape(text.trim_end()).into_owned()
}
