//! Loading the probes: which programs and how large the maps, by what the kernel has and what was asked for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use libbpf_rs::{MapCore, MapHandle, MapImpl, Object, ObjectBuilder, PrintLevel, ProgramHandle};

use super::attach::{self, Attacher, HeapPrograms, Rung};
use super::drain::{Drain, Maps};
use super::keeper::Keeper;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Blocks of the C allocator, mappings, touched arena pages.
    Heap,
    /// The same, of a Python that asks the C allocator for every object.
    Objects,
    /// Resident pages.
    Pages,
}

impl Mode {
    /// Its name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heap => "heap",
            Self::Objects => "objects",
            Self::Pages => "pages",
        }
    }

    /// Are blocks counted, rather than pages?
    pub fn counts_blocks(self) -> bool {
        self != Self::Pages
    }
}

/// Why the probes could not be loaded. Each says what was tried; `hint` says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel refused the object.
    #[error("the kernel did not take the probes: {reason}")]
    Refused {
        /// What libbpf and the verifier said, shortened.
        reason: String,
        /// The error number, where there is one.
        errno: Option<i32>,
    },
    /// A tracepoint could not be attached.
    #[error("tracepoint {name} cannot be attached: {error}")]
    Tracepoint {
        /// `category/name`.
        name: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The process that attaches could not be started.
    #[error("cannot start the process that attaches: {0}")]
    Keeper(io::Error),
    /// The object lacks something: a defect of the build.
    #[error("the probes lack {0}: this build is broken")]
    Missing(&'static str),
}

impl LoadError {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused { errno: Some(libc::EPERM | libc::EACCES), .. } => {
                "run with sudo, or give rmprof-bpf the capabilities that `rmprof-bpf doctor` lists"
            }
            Self::Missing(_) => "build again from a clean checkout",
            _ => "`rmprof-bpf doctor` says what this kernel allows",
        }
    }
}

/// Tracepoints of the whole machine, by program: typed by the kernel's BTF, so neither their numbers nor the tracing file system are
/// needed, and attached without a perf event, whose release takes the kernel 75 ms each.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("rss_stat", "kmem/rss_stat"),
    ("fault_user", "exceptions/page_fault_user"),
    ("fault_kernel", "exceptions/page_fault_kernel"),
    ("sys_enter", "raw_syscalls/sys_enter"),
    ("sys_exit", "raw_syscalls/sys_exit"),
    ("sched_process_fork", "sched/sched_process_fork"),
    ("sched_process_exec", "sched/sched_process_exec"),
    ("sched_process_exit", "sched/sched_process_exit"),
];

/// The loaded probes. Dropping it detaches what is attached to the whole machine.
pub struct Kernel {
    /// Keeps the maps' definitions alive.
    _object: Object,
    _links: Vec<OwnedFd>,
    /// Which rung of the ladder holds.
    pub rung: Rung,
}

impl Kernel {
    /// Loads the probes and attaches the tracepoints, for `what` is wanted and the best rung there is or for `only` one.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(what: Wanted, only: Option<Rung>) -> Result<(Self, Attacher, Drain), LoadError> {
        let keeper = Arc::new(Keeper::start().map_err(LoadError::Keeper)?);
        let mut last = None;
        for rung in [Rung::Session, Rung::Multi, Rung::Single] {
            if only.is_some_and(|only| only != rung) {
                continue;
            }
            match open(what, rung) {
                Ok(object) => {
                    // Without the heap's probes the first rung loads on any kernel that has multi-probes, right or not.
                    if rung != Rung::Single
                        && !program(&object, "launch_multi").is_ok_and(|p| attach::multi_filter_is_right(&p))
                    {
                        let reason = "its multi-probes cannot be told whom they are for".into();
                        last = Some(LoadError::Refused { reason, errno: None });
                        continue;
                    }
                    return assemble(object, keeper, what, rung);
                }
                Err(error @ LoadError::Refused { errno: Some(libc::EPERM), .. }) => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(LoadError::Missing("a way to attach")))
    }
}

/// What the probes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What is counted.
    pub mode: Mode,
    /// Processes that nobody holds: their forks, execs and ends are to be told.
    pub follow: bool,
}

fn wanted(name: &str, what: Wanted, rung: Rung) -> bool {
    let heap = what.mode.counts_blocks();
    match name {
        "sched_process_fork" | "sched_process_exec" | "sched_process_exit" => what.follow,
        "heap_session" => heap && rung == Rung::Session,
        "heap_enter_multi" | "heap_return_multi" => heap && rung == Rung::Multi,
        "heap_enter_single" | "heap_return_single" => heap && rung == Rung::Single,
        "launch_multi" => rung != Rung::Single,
        "launch_single" => rung == Rung::Single,
        "fault_user" | "fault_kernel" => heap && cfg!(target_arch = "x86_64"),
        "rss_stat" | "measure_cpus" => true,
        _ => heap,
    }
}

/// What libbpf printed at the level of warnings, for the error.
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn keep_message(_: PrintLevel, text: String) {
    if let Ok(mut messages) = MESSAGES.lock() {
        messages.push(text.trim_end().to_owned());
        if messages.len() > 400 {
            messages.remove(0);
        }
    }
}

fn refused(error: &libbpf_rs::Error) -> LoadError {
    let said = MESSAGES.lock().map(|mut messages| std::mem::take(&mut *messages)).unwrap_or_default();
    let tail: Vec<&str> = said.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).collect();
    let tail = tail[tail.len().saturating_sub(12)..].join("\n  ");
    let errno = match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => Some(libc::EPERM),
        _ => None,
    };
    LoadError::Refused { reason: format!("{error}{}{tail}", if tail.is_empty() { "" } else { "\n  " }), errno }
}

fn open(what: Wanted, rung: Rung) -> Result<Object, LoadError> {
    libbpf_rs::set_print(Some((PrintLevel::Warn, keep_message)));
    let mut open = ObjectBuilder::default().open_memory(rmprof_probes::OBJECT).map_err(|e| refused(&e))?;
    for mut program in open.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        program.set_autoload(wanted(&name, what, rung));
    }
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if name == "blocks" {
            map.set_max_entries(block_entries(what.mode)).map_err(|e| refused(&e))?;
        } else if name == "cpu_offsets" {
            map.set_max_entries(possible_cpus()).map_err(|e| refused(&e))?;
        } else if name.ends_with(".rodata")
            && let Some(constants) = map.initial_value_mut()
            && constants.len() >= 4
        {
            constants[..4].copy_from_slice(&possible_cpus().to_ne_bytes());
        }
    }
    open.load().map_err(|e| refused(&e))
}

/// Live blocks that can be known: by the machine's memory, one for every 8 KiB (smaller ones live in Python's arenas), and a million
/// at most. The table's buckets are the only memory it takes before it is used: 16 bytes an entry.
fn block_entries(mode: Mode) -> u32 {
    if !mode.counts_blocks() {
        return 1;
    }
    let pages = procfs_pages().unwrap_or(1 << 20);
    u32::try_from((pages / 2).clamp(1 << 17, 1 << 20)).unwrap_or(1 << 20)
}

/// `cpus` of compat.bpf.h, the only constant of the object.
fn possible_cpus() -> u32 {
    libbpf_rs::num_possible_cpus().ok().and_then(|cpus| u32::try_from(cpus).ok()).unwrap_or(1)
}

fn procfs_pages() -> Option<u64> {
    let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).ok()??;
    u64::try_from(pages).ok()
}

fn program(object: &Object, name: &'static str) -> Result<ProgramHandle, LoadError> {
    let program = object.progs_mut().find(|program| program.name() == name).ok_or(LoadError::Missing(name))?;
    ProgramHandle::try_from(&program).map_err(|e| refused(&e))
}

fn map(object: &Object, name: &'static str) -> Result<MapHandle, LoadError> {
    let map: MapImpl<'_> = object.maps().find(|map| map.name() == name).ok_or(LoadError::Missing(name))?;
    MapHandle::try_from(&map).map_err(|e| refused(&e))
}

fn assemble(
    object: Object,
    keeper: Arc<Keeper>,
    what: Wanted,
    rung: Rung,
) -> Result<(Kernel, Attacher, Drain), LoadError> {
    let heap = match (what.mode.counts_blocks(), rung) {
        (false, _) => None,
        (true, Rung::Session) => Some(HeapPrograms::Session(program(&object, "heap_session")?)),
        (true, Rung::Multi) => Some(HeapPrograms::Pair {
            enter: program(&object, "heap_enter_multi")?,
            exit: program(&object, "heap_return_multi")?,
            multi: true,
        }),
        (true, Rung::Single) => Some(HeapPrograms::Pair {
            enter: program(&object, "heap_enter_single")?,
            exit: program(&object, "heap_return_single")?,
            multi: false,
        }),
    };
    let multi = rung != Rung::Single;
    let attacher = Attacher {
        keeper,
        heap,
        launch: Some((program(&object, if multi { "launch_multi" } else { "launch_single" })?, multi)),
        processes: map(&object, "processes")?,
        memories: map(&object, "memories")?,
        arenas: map(&object, "arenas")?,
    };
    let drain = Drain::new(Maps {
        events: map(&object, "events")?,
        residents: map(&object, "residents")?,
        sites: map(&object, "sites")?,
        lines: map(&object, "lines")?,
        marks: map(&object, "marks")?,
        counters: map(&object, "counters")?,
        siteless: map(&object, "siteless")?,
        tally_stacks: map(&object, "tally_stacks")?,
        blocks: map(&object, "blocks")?,
        arenas: map(&object, "arenas")?,
        codes: map(&object, "codes")?,
    })?;
    let measured = object
        .progs_mut()
        .find(|program| program.name() == "measure_cpus")
        .ok_or(LoadError::Missing("measure_cpus"))?;
    let output = measured.test_run(libbpf_rs::ProgramInput::default()).map_err(|e| refused(&e))?;
    if output.return_value != 0 {
        return Err(LoadError::Missing("the offsets of per-CPU memory"));
    }
    let links = tracepoints(&object, what)?;
    Ok((Kernel { _object: object, _links: links, rung }, attacher, drain))
}

fn tracepoints(object: &Object, what: Wanted) -> Result<Vec<OwnedFd>, LoadError> {
    TRACEPOINTS
        .iter()
        .filter(|(name, _)| wanted(name, what, Rung::Session))
        .map(|(name, full)| {
            attach::raw_tracepoint_link(program(object, name)?.as_fd())
                .map_err(|error| LoadError::Tracepoint { name: full, error })
        })
        .collect()
}
