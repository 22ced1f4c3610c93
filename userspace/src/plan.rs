//! What will be done: what was typed, validated, as plain data. Nothing is started or opened here.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cli::{ModeArgument, ProbesArgument, RunArguments};
use crate::kernel::{Mode, Rung};
use crate::report::columns::Column;
use crate::report::{Format, OptionError, Options, Selection};

/// A run of a program.
#[derive(Debug)]
pub struct RunPlan {
    /// What is counted.
    pub mode: Mode,
    /// How user probes are attached; `None`: as the kernel does it best.
    pub rung: Option<Rung>,
    /// Let the program count the allocator's calls itself, where it can. Not where a way of probing was asked for.
    pub preload: bool,
    /// Where the report goes; `None`: standard output.
    pub output: Option<PathBuf>,
    /// In which format.
    pub format: &'static Format,
    /// How it is to look.
    pub options: Options,
    /// Keep root for the program under sudo.
    pub as_root: bool,
    /// What to run.
    pub program: OsString,
    /// With which arguments.
    pub arguments: Vec<OsString>,
}

impl RunPlan {
    /// Checks what was typed.
    ///
    /// # Errors
    /// Names the option value that cannot be used; usage errors end with status 2.
    pub fn new(typed: RunArguments) -> Result<Self, OptionError> {
        let format = match (&typed.format, &typed.output) {
            (Some(name), _) => Format::by_name(name)?,
            (None, Some(path)) => Format::by_ending(path).unwrap_or(&crate::report::FORMATS[0]),
            (None, None) => &crate::report::FORMATS[0],
        };
        let columns = match &typed.columns {
            Some(list) => Column::parse_list(list)?,
            None => Column::DEFAULT.to_vec(),
        };
        let selection = Selection::new(&typed.include, &typed.exclude, typed.all_files)?;
        let mut words = typed.program.into_iter();
        Ok(Self {
            mode: match typed.mode {
                ModeArgument::Heap => Mode::Heap,
                ModeArgument::Objects => Mode::Objects,
                ModeArgument::Pages => Mode::Pages,
            },
            preload: !typed.no_preload && typed.probes.is_none(),
            rung: typed.probes.map(|probes| match probes {
                ProbesArgument::Session => Rung::Session,
                ProbesArgument::Multi => Rung::Multi,
                ProbesArgument::Single => Rung::Single,
            }),
            output: typed.output,
            format,
            options: Options { precision: usize::from(typed.precision), columns, top: typed.top, selection },
            as_root: typed.as_root,
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
        })
    }
}
