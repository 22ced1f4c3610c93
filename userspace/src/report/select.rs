//! Which functions a report shows.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::model::{Function, Health, ProcessReport, Report};
use super::own_file::is_import;
use super::{OptionError, Options, escape};

/// `--include`, `--exclude` and `--all-files`.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: Option<Globs>,
    exclude: Option<Globs>,
    all_files: bool,
    included: Vec<String>,
}

/// Globs, those without a slash apart: they match base names too. `*` crosses slashes, so `/srv/*` is all below it.
#[derive(Clone, Debug)]
pub struct Globs {
    whole: GlobSet,
    base: GlobSet,
}

impl Selection {
    /// Without globs and `all_files`, the user's own files.
    ///
    /// # Errors
    /// Names the glob that cannot be read; the hint says what is wrong with it.
    pub fn new(include: &[String], exclude: &[String], all_files: bool) -> Result<Self, OptionError> {
        Ok(Self { include: Globs::new(include)?, exclude: Globs::new(exclude)?, all_files, included: include.to_vec() })
    }

    /// The globs of `--include`.
    pub fn included(&self) -> &[String] {
        &self.included
    }

    /// Whether functions of other files than the user's own may be shown.
    pub fn goes_beyond_own_files(&self) -> bool {
        self.all_files || self.include.is_some()
    }

    /// Whether every file was asked for.
    pub fn all_files(&self) -> bool {
        self.all_files
    }

    /// Whether the function's file is one of those asked for.
    fn takes_file(&self, function: &Function) -> bool {
        self.asks_for(&function.filename, function.own_file)
    }

    fn asks_for(&self, filename: &str, own_file: bool) -> bool {
        self.all_files
            || match &self.include {
                Some(globs) => globs.matches(filename),
                None => own_file,
            }
    }

    fn excludes(&self, function: &Function) -> bool {
        self.leaves_out(&function.filename)
    }

    fn leaves_out(&self, filename: &str) -> bool {
        self.exclude.as_ref().is_some_and(|globs| globs.matches(filename))
    }

    /// Whether functions of this file are shown; `own_file`: it is the user's own.
    pub fn shows(&self, filename: &str, own_file: bool) -> bool {
        self.asks_for(filename, own_file) && !self.leaves_out(filename)
    }
}

impl Globs {
    /// `None` where there are no patterns.
    ///
    /// # Errors
    /// Names the glob that cannot be read.
    pub fn new(patterns: &[String]) -> Result<Option<Self>, OptionError> {
        if patterns.is_empty() {
            return Ok(None);
        }
        let (mut whole, mut base) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let glob = Glob::new(pattern).map_err(|error| bad_glob(pattern, &error))?;
            if !pattern.contains('/') {
                base.add(glob.clone());
            }
            whole.add(glob);
        }
        let build = |set: GlobSetBuilder| set.build().map_err(|error| bad_glob(&patterns.join(", "), &error));
        Ok(Some(Self { whole: build(whole)?, base: build(base)? }))
    }

    /// Does one of them match the name, or its last part?
    pub fn matches(&self, filename: &str) -> bool {
        let base = filename.rsplit('/').next().unwrap_or(filename);
        self.whole.is_match(filename) || self.base.is_match(base)
    }
}

fn bad_glob(pattern: &str, error: &globset::Error) -> OptionError {
    OptionError::new(
        format!("'{}' is not a glob: {}", escape(pattern), escape(&error.kind().to_string())),
        "quote it from the shell, and write [[] for a bracket of the file's name".to_owned(),
    )
}

/// The tables of one process, in order.
pub(super) struct ProcessTables<'r> {
    pub process: &'r ProcessReport,
    pub functions: Vec<&'r Function>,
}

/// What the table shows of a report.
pub(super) struct Tables<'r> {
    /// Every process, whether it has a table or not.
    pub processes: Vec<ProcessTables<'r>>,
    /// A function is marked: the marked ones alone are shown.
    pub marked: bool,
    pub health: &'r Health,
}

/// Chooses the tables: the marked functions that ran, in the order given, if any is marked; else, of the files asked for, the
/// `top` functions of the whole report that moved most bytes. `--exclude` holds for marked functions too.
pub(super) fn tables<'r>(report: &'r Report, options: &Options) -> Tables<'r> {
    let marked = report.processes.iter().any(|process| process.functions.iter().any(|function| function.marked));
    let selection = &options.selection;
    let mut processes: Vec<_> = report
        .processes
        .iter()
        .map(|process| {
            let mut functions: Vec<&Function> = process.functions.iter().collect();
            functions.retain(|function| {
                let shown = if marked {
                    function.marked && (!function.lines.is_empty() || function.entry_rss_bytes.is_some())
                } else {
                    function.moved_bytes > 0 && selection.takes_file(function)
                };
                shown && !selection.excludes(function)
            });
            ProcessTables { process, functions }
        })
        .collect();
    if !marked {
        keep_top(&mut processes, options.top);
    }
    Tables { processes, marked, health: &report.health }
}

/// Keeps the functions that moved most bytes, most first within each process.
fn keep_top(processes: &mut [ProcessTables<'_>], top: usize) {
    let mut moved: Vec<u64> = processes.iter().flat_map(|tables| &tables.functions).map(|f| f.moved_bytes).collect();
    moved.sort_unstable_by(|a, b| b.cmp(a));
    moved.truncate(top);
    let least = moved.last().copied().unwrap_or(u64::MAX);
    // Of those that moved as much as the last one shown, the first in order have the places that are left.
    let mut places = moved.iter().filter(|bytes| **bytes == least).count();
    for tables in processes {
        tables.functions.sort_by(|a, b| {
            let place = (&a.filename, a.first_line).cmp(&(&b.filename, b.first_line));
            b.moved_bytes.cmp(&a.moved_bytes).then(place)
        });
        tables.functions.retain(|function| {
            let at_the_edge = function.moved_bytes == least && places > 0;
            places -= usize::from(at_the_edge);
            at_the_edge || function.moved_bytes > least
        });
    }
}

/// Self bytes of lines that are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hidden {
    /// Of the import system: what modules take to be loaded, their code objects above all.
    pub import_bytes: i64,
    /// Of all other files.
    pub file_bytes: i64,
}

/// What a machine-readable report holds of a process: every measured function of the files asked for and every marked one,
/// less the excluded; and the self bytes of all the others.
pub(super) fn whole<'r>(process: &'r ProcessReport, selection: &Selection) -> (Vec<&'r Function>, Hidden) {
    let (shown, hidden): (Vec<_>, Vec<_>) = process
        .functions
        .iter()
        .partition(|function| (function.marked || selection.takes_file(function)) && !selection.excludes(function));
    let (import, files): (Vec<_>, Vec<_>) = hidden.into_iter().partition(|function| is_import(&function.filename));
    let own_bytes = |functions: &[&Function]| {
        let lines = functions.iter().flat_map(|function| &function.lines);
        lines.map(|line| line.self_bytes).fold(0, i64::saturating_add)
    };
    (shown, Hidden { import_bytes: own_bytes(&import), file_bytes: own_bytes(&files) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn globs(patterns: &[&str]) -> Globs {
        Globs::new(&patterns.iter().map(|pattern| pattern.to_string()).collect::<Vec<_>>()).unwrap().unwrap()
    }

    #[test]
    fn globs_match_names_and_base_names() {
        assert!(globs(&["*_test.py"]).matches("/srv/app/x_test.py"));
        assert!(globs(&["main.py"]).matches("/srv/app/main.py"));
        assert!(globs(&["/srv/*"]).matches("/srv/app/deep/main.py"));
        assert!(!globs(&["app/main.py"]).matches("/srv/app/main.py"));
        assert!(globs(&["**/app/main.py"]).matches("/srv/app/main.py"));
        assert!(globs(&["<string>"]).matches("<string>"));
        assert!(globs(&["a.py", "{b,c}.py"]).matches("x/c.py"));
        assert!(!globs(&["a.py"]).matches("ba.py"));
    }

    #[test]
    fn bad_globs_are_named() {
        let error = Selection::new(&[], &["a[".to_owned()], false).unwrap_err();
        assert!(error.to_string().starts_with("'a[' is not a glob: "), "{error}");
        assert!(!error.hint().is_empty());
    }

    fn function(name: &str, filename: &str, moved_bytes: u64) -> Function {
        Function {
            name: name.into(),
            filename: filename.into(),
            own_file: super::super::is_own_file(filename),
            moved_bytes,
            lines: vec![Default::default()],
            ..Function::default()
        }
    }

    fn shown(report: &Report, options: &Options) -> Vec<String> {
        let tables = tables(report, options);
        tables.processes.iter().flat_map(|p| &p.functions).map(|f| f.name.clone()).collect()
    }

    fn report(processes: Vec<Vec<Function>>) -> Report {
        let processes =
            processes.into_iter().map(|functions| ProcessReport { functions, ..Default::default() }).collect();
        Report { processes, ..Report::default() }
    }

    #[test]
    fn most_bytes_first_over_all_processes() {
        let report = report(vec![
            vec![function("a", "a.py", 5), function("b", "b.py", 9), function("zero", "a.py", 0)],
            vec![function("c", "c.py", 5), function("d", "d.py", 7), function("lib", "/usr/lib/python3.11/os.py", 99)],
        ]);
        let options = |top| Options { top, ..Options::default() };
        assert_eq!(shown(&report, &options(10)), ["b", "a", "d", "c"]);
        assert_eq!(shown(&report, &options(3)), ["b", "a", "d"]);
        assert_eq!(shown(&report, &options(1)), ["b"]);
        assert!(shown(&report, &options(0)).is_empty());
    }

    #[test]
    fn files_are_asked_for_or_left_out() {
        let report = report(vec![vec![
            function("own", "app/a.py", 5),
            function("lib", "/usr/lib/python3.11/os.py", 3),
            function("pkg", "/v/site-packages/n.py", 2),
        ]]);
        let shown = |include: &[&str], exclude: &[&str], all_files| {
            let strings = |globs: &[&str]| globs.iter().map(|glob| glob.to_string()).collect::<Vec<_>>();
            let selection = Selection::new(&strings(include), &strings(exclude), all_files).unwrap();
            shown(&report, &Options { selection, ..Options::default() })
        };
        assert_eq!(shown(&[], &[], false), ["own"]);
        assert_eq!(shown(&[], &[], true), ["own", "lib", "pkg"]);
        assert_eq!(shown(&["n.py"], &[], false), ["pkg"]);
        assert_eq!(shown(&[], &["*/os.py"], true), ["own", "pkg"]);
    }

    #[test]
    fn marked_functions_alone_in_their_order() {
        let marked = |name: &str, moved| Function { marked: true, ..function(name, "/v/site-packages/n.py", moved) };
        let idle = Function { lines: vec![], name: "never".into(), ..marked("", 0) };
        let report = report(vec![vec![marked("b", 0), marked("a", 9), idle, function("own", "a.py", 99)]]);
        assert_eq!(shown(&report, &Options { top: 1, ..Options::default() }), ["b", "a"]);
        let selection = Selection::new(&[], &["n.py".to_owned()], false).unwrap();
        assert!(shown(&report, &Options { selection, ..Options::default() }).is_empty());
    }
}
