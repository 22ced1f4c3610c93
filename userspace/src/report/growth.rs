//! The ranking: on which lines of which processes memory stays, and how much each command and control group grew.
//!
//! Where blocks are counted, a line is ranked by what it asked for and nobody has released. Its net would put a line first whose blocks
//! another line releases, before a leak that is smaller than all that ever passed between the two. Resident pages have no owner: there it
//! is the net.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::columns::mib;
use super::command::{Program, program_of};
use super::model::{Container, Function, Line, ProcessReport};
use super::{Options, RankBy, escape, merge, shell_words};

/// Characters of a command line in a row.
const COMMAND_LIMIT: usize = 60;

/// A line that grew.
pub(super) struct Growth<'r> {
    pub process: &'r ProcessReport,
    pub function: &'r Function,
    pub line: &'r Line,
}

/// Processes that have something in common.
pub(super) struct Group<K> {
    pub what: K,
    pub processes: u64,
    pub net_bytes: i64,
}

/// What the ranking says.
pub(super) struct Ranking<'r> {
    pub by: RankBy,
    pub lines: Vec<Growth<'r>>,
    pub commands: Vec<Group<String>>,
    pub groups: Vec<Group<(&'r str, Option<&'r Container>)>>,
}

impl RankBy {
    fn bytes(self, line: &Line) -> i64 {
        match self {
            Self::Live => line.growth_live_bytes,
            Self::Net => line.growth_bytes,
        }
    }

    /// The field of the JSON report's rows that has it.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Live => "live_bytes",
            Self::Net => "growth_bytes",
        }
    }

    /// The head of the table's column.
    fn header(self) -> &'static str {
        match self {
            Self::Live => "Live",
            Self::Net => "Growth",
        }
    }
}

/// The `top` lines of which most bytes stay, most first, and as many commands and control groups.
pub(super) fn ranking<'r>(processes: &'r [ProcessReport], by: RankBy, top: usize) -> Ranking<'r> {
    let mut lines: Vec<Growth<'r>> = processes.iter().flat_map(|process| of_process(process, by)).collect();
    lines.sort_by(|one, other| {
        let place = |growth: &Growth<'r>| (growth.process.pid, &growth.function.filename, growth.line.line);
        by.bytes(other.line).cmp(&by.bytes(one.line)).then_with(|| place(one).cmp(&place(other)))
    });
    lines.truncate(top);
    let commands = groups(processes, top, |process| Some(merge::command_key(&process.command)));
    let groups = groups(processes, top, |process| Some((process.cgroup.as_deref()?, process.container.as_ref())));
    Ranking { by, lines, commands, groups }
}

fn of_process(process: &ProcessReport, by: RankBy) -> impl Iterator<Item = Growth<'_>> {
    process.functions.iter().flat_map(move |function| {
        let grown = function.lines.iter().filter(move |line| by.bytes(line) > 0);
        grown.map(move |line| Growth { process, function, line })
    })
}

fn groups<'r, K: Ord + Clone>(
    processes: &'r [ProcessReport],
    top: usize,
    of: impl Fn(&'r ProcessReport) -> Option<K>,
) -> Vec<Group<K>> {
    let mut sums: BTreeMap<K, (u64, i64)> = BTreeMap::new();
    for process in processes {
        let Some(what) = of(process) else { continue };
        let sum = sums.entry(what).or_default();
        sum.0 = sum.0.saturating_add(process.merged.unwrap_or(1));
        sum.1 = sum.1.saturating_add(process.net_bytes);
    }
    let mut found: Vec<Group<K>> =
        sums.into_iter().map(|(what, (processes, net_bytes))| Group { what, processes, net_bytes }).collect();
    found.sort_by_key(|group| std::cmp::Reverse(group.net_bytes));
    found.truncate(top);
    found
}

/// Writes it for people.
pub(super) fn write(ranking: &Ranking<'_>, options: &Options, out: &mut dyn Write) -> io::Result<()> {
    let size = |bytes: i64| mib(bytes.into(), options.precision);
    if !ranking.lines.is_empty() {
        write_header(ranking.by.header(), "Line", out)?;
        for growth in &ranking.lines {
            let Growth { process, function, line } = growth;
            let (bytes, line) = (ranking.by.bytes(line), line.line);
            let (file, name) = (escape(&function.filename), escape(&function.qualified_name));
            writeln!(out, "{:>14}   {file}:{line} {name}, {}", size(bytes), whose(process))?;
        }
        write!(out, "\n\n")?;
    }
    if ranking.commands.len() > 1 {
        write_header("Net", "Command", out)?;
        for group in &ranking.commands {
            writeln!(out, "{:>14}   {}: {}", size(group.net_bytes), counted(group.processes), escape(&group.what))?;
        }
        write!(out, "\n\n")?;
    }
    if ranking.groups.len() > 1 {
        write_header("Net", "Control group", out)?;
        for Group { what: (path, container), processes, net_bytes } in &ranking.groups {
            let container = container.map(|container| format!(", {}", of_container(container))).unwrap_or_default();
            writeln!(out, "{:>14}   {}: {}{container}", size(*net_bytes), counted(*processes), escape(path))?;
        }
        write!(out, "\n\n")?;
    }
    Ok(())
}

fn write_header(size: &str, what: &str, out: &mut dyn Write) -> io::Result<()> {
    let header = format!("{size:>14}   {what}");
    writeln!(out, "{header}\n{}", "=".repeat(header.len().max(40)))
}

fn counted(processes: u64) -> String {
    if processes == 1 { "1 process".into() } else { format!("{processes} processes") }
}

fn whose(process: &ProcessReport) -> String {
    let container = process.container.as_ref().map(|container| format!(", {}", of_container(container)));
    let command = shell_words(&brief(&process.command), COMMAND_LIMIT);
    let who = match process.merged {
        Some(count) => format!("{} of {}", counted(count), escape(&merge::command_key(&process.command))),
        None => format!("process {} ({command})", process.pid),
    };
    format!("{who}{}", container.unwrap_or_default())
}

/// A command line with the folders of its interpreter and its script left out: they would fill the row.
fn brief(command: &[String]) -> Vec<String> {
    let script = match program_of(command) {
        Some(Program::Script(index, _)) => index,
        _ => 0,
    };
    let base = |word: &String| word.rsplit('/').next().filter(|base| !base.is_empty()).unwrap_or(word).to_owned();
    let short = |(index, word)| if index == 0 || index == script { base(word) } else { word.clone() };
    command.iter().enumerate().map(short).collect()
}

/// A container in few words.
pub(super) fn of_container(container: &Container) -> String {
    let Container { id, pod, pod_namespace, pod_uid } = container;
    let namespace = pod_namespace.as_ref().map(|namespace| format!("{}/", escape(namespace))).unwrap_or_default();
    let pod = pod.as_ref().or(pod_uid.as_ref()).map(|pod| format!("pod {namespace}{}", escape(pod)));
    let id = id.as_ref().map(|id| format!("container {}", escape(id.get(..12).unwrap_or(id))));
    pod.into_iter().chain(id).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_whose_blocks_another_releases_does_not_grow_where_they_have_owners() {
        let line =
            |line, growth_bytes, growth_live_bytes| Line { line, growth_bytes, growth_live_bytes, ..Line::default() };
        let lines = vec![line(1, 500, 0), line(2, -500, 0), line(3, 50, 50), line(4, 0, 7)];
        let function = Function { filename: "a.py".into(), lines, ..Function::default() };
        let processes = [ProcessReport { functions: vec![function], ..ProcessReport::default() }];
        let of = |by| {
            let lines = ranking(&processes, by, 10).lines;
            lines.iter().map(|growth| (growth.line.line, by.bytes(growth.line))).collect::<Vec<_>>()
        };
        assert_eq!(of(RankBy::Live), [(3, 50), (4, 7)]);
        assert_eq!(of(RankBy::Net), [(1, 500), (3, 50)]);
    }

    #[test]
    fn a_pod_is_told_with_its_namespace() {
        let of = |id: Option<&str>, pod: Option<&str>, namespace: Option<&str>| {
            let [id, pod, pod_namespace] = [id, pod, namespace].map(|text| text.map(str::to_owned));
            of_container(&Container { id, pod, pod_namespace, pod_uid: Some("6f8e".into()) })
        };
        assert_eq!(of(Some("0123456789abcdef"), Some("web"), Some("shop")), "pod shop/web, container 0123456789ab");
        assert_eq!(of(None, Some("web"), None), "pod web");
        assert_eq!(of(None, None, None), "pod 6f8e");
        assert_eq!(of(None, Some("a\u{1b}[31m"), Some("\u{202e}")), "pod \\u202e/a\\x1b[31m");
    }

    #[test]
    fn a_row_tells_a_server_by_its_name() {
        let of = |text: &str| brief(&text.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ");
        assert_eq!(of("/opt/app/bin/python3 /opt/app/bin/gunicorn -w 2 a:b"), "python3 gunicorn -w 2 a:b");
        assert_eq!(of("/usr/bin/python3 -u -m app.worker /data/x"), "python3 -u -m app.worker /data/x");
        assert_eq!(of("python3 -c print(1/2)"), "python3 -c print(1/2)");
        assert_eq!(of("gunicorn: master [app]"), "gunicorn: master [app]");
        assert_eq!(brief(&[]), Vec::<String>::new());
    }
}
