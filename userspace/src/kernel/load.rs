//! Loading the probes: which programs and how large the maps, by what the kernel has and what was asked for.

use std::ffi::CStr;
use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rmprof_probes::abi;

use super::attach::{self, Attacher, HeapPrograms, LaunchProgram, Probes, Rung};
use super::backend::{First, Loaded, Loader, Settings};
use super::bpf;
use super::counters::{FAULT_RECURSION_MISSES, RECURSION_MISSES};
use super::direct::{self, Words};
use super::drain::{Drain, Maps};
use super::keeper::Keeper;
use super::map::{counter_batch, possible_cpus};
use super::preempted;
use crate::alarm::Alarms;
use crate::target::orphans;

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
        /// What the loader and the verifier said, shortened.
        reason: String,
        /// The error number, where there is one.
        errno: Option<i32>,
    },
    /// A tracepoint could not be attached.
    #[error("tracepoint {name} cannot be attached: {error}")]
    Tracepoint {
        /// Its name, without the category.
        name: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The functions of system calls could not be probed, though this kernel can probe functions.
    #[error("the kernel's functions of mapping calls cannot be probed: {0}")]
    Functions(io::Error),
    /// The process that attaches could not be started.
    #[error("cannot start the process that attaches: {0}")]
    Keeper(io::Error),
    /// What was loaded cannot be taken over.
    #[error("the loaded probes cannot be used: {0}")]
    Descriptor(io::Error),
    /// The way to attach that was asked for is not one of this loader.
    #[error("{} attaches user probes one by one, not by {rung:?} probes", loader.name())]
    NotOfLoader {
        /// Which loader.
        loader: Loader,
        /// What was asked for.
        rung: Rung,
    },
    /// The object lacks something: a defect of the build.
    #[error("the probes lack {0}: this build is broken")]
    Missing(&'static str),
}

impl LoadError {
    /// The next step.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused { errno: Some(libc::EPERM), .. } => {
                "run with sudo, or give rmprof-bpf the capabilities that `rmprof-bpf doctor` lists"
            }
            Self::Functions(_) => "`sysctl kernel.ftrace_enabled=1`, or take --mode pages, which needs no such probes",
            Self::Missing(_) => "build again from a clean checkout",
            Self::NotOfLoader { .. } => "leave the option --probes out",
            _ => "`rmprof-bpf doctor` says what this kernel allows",
        }
    }

    /// A refusal, with the last lines of what was said of it.
    pub(super) fn refused(error: &dyn Display, said: &str, errno: Option<i32>) -> Self {
        let tail: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = tail[tail.len().saturating_sub(12)..].join("\n  ");
        Self::Refused { reason: format!("{error}{}{tail}", if tail.is_empty() { "" } else { "\n  " }), errno }
    }
}

/// Tracepoints of the whole machine, by program: raw or typed by the kernel's BTF, so neither their numbers nor the tracing file system
/// are needed, and attached without a perf event, whose release takes the kernel 75 ms each.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("rss_stat", "rss_stat"),
    ("sys_enter", "sys_enter"),
    ("sys_exit", "sys_exit"),
    ("limit_sys_exit", "sys_exit"),
    ("sched_process_fork", "sched_process_fork"),
    ("sched_process_exec", "sched_process_exec"),
    ("machine_exec", "sched_process_exec"),
    ("sched_process_exit", "sched_process_exit"),
    ("mark_victim", "mark_victim"),
];

/// The same of programs that are not typed, which are told their tracepoint where they are attached, and with it a cookie (0: none).
const RAW_TRACEPOINTS: &[(&str, &CStr, u32)] = &[
    (FAULT, c"page_fault_user", 0),
    (FAULT, c"page_fault_kernel", 0),
    (MEMORY_CHANGES, c"rss_stat", abi::RM_TRACEPOINT_RSS_STAT),
    (MEMORY_CHANGES, c"sys_enter", abi::RM_TRACEPOINT_SYS_ENTER),
    (MEMORY_CHANGES, c"sys_exit", abi::RM_TRACEPOINT_SYS_EXIT),
];
const FAULT: &str = "fault";
/// One for three of the others.
const MEMORY_CHANGES: &str = "memory_changes";
/// At the functions of system calls, in place of two.
const MAPPING_CALLS: &str = "mapping_calls";

/// The loaded probes. Dropping it detaches what is attached to the whole machine.
pub struct Kernel {
    links: Vec<OwnedFd>,
    /// Which rung of the ladder holds.
    pub rung: Rung,
    /// Memory of programs is read where the kernel has all memory, not by a call each time.
    pub direct: bool,
}

impl Kernel {
    /// Loads the probes and attaches the tracepoints, for `what` is wanted and the best rung there is or for the one of `how`.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(what: Wanted, how: How) -> Result<(Self, Attacher, Drain), LoadError> {
        let attacher = Attacher::start().map_err(LoadError::Keeper)?;
        let (kernel, drain) = Self::load_for(&attacher, what, how)?;
        Ok((kernel, attacher, drain))
    }

    /// The same for an attacher that is there already: whoever waits for its probes waits until this returns.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load_for(attacher: &Attacher, what: Wanted, how: How) -> Result<(Self, Drain), LoadError> {
        let _settled = Settled(attacher);
        let loader = how.loader;
        if let Some(rung) = how.rung.filter(|rung| !loader.rungs().contains(rung)) {
            return Err(LoadError::NotOfLoader { loader, rung });
        }
        let mut last = None;
        for rung in loader.rungs().iter().copied().filter(|rung| how.rung.is_none_or(|only| only == *rung)) {
            let way = Way::new(what, rung, how.preempted);
            match open(attacher, what, loader, way) {
                Ok(loaded) => {
                    if !is_right(rung, loaded.program(launch_program(rung))?) {
                        let reason = "its multi-probes cannot be told whom they are for".into();
                        last = Some(LoadError::Refused { reason, errno: None });
                        continue;
                    }
                    return assemble(attacher, loaded, what, way);
                }
                Err(error @ LoadError::Refused { errno: Some(libc::EPERM), .. }) => return Err(error),
                // What the rungs differ in was loaded, and may be attached by now: the others would be refused for the same reason.
                Err(error) if attacher.has_launch() => return Err(error),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or(LoadError::Missing("a way to attach")))
    }

    /// Detaches without waiting for it, where no process lives that has probes in its memory: the kernel's grace periods take tens of
    /// milliseconds. The keeper does it when we have ended. Waits all the same where nobody would collect the keeper.
    pub fn leave_to_keeper(self, attacher: &Attacher) {
        if orphans::are_collected(&Keeper::NAME.to_string_lossy()) {
            std::mem::forget(self.links);
            std::mem::forget(Arc::clone(&attacher.keeper));
        }
    }
}

/// However loading ends, nobody waits for it any longer.
struct Settled<'a>(&'a Attacher);

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// What the probes are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What is counted.
    pub mode: Mode,
    /// Native functions are to be told.
    pub native: bool,
    /// Processes that nobody holds: their forks, execs and ends are to be told.
    pub follow: Follow,
    /// The debugger is to open when resident memory passes a limit.
    pub limit: bool,
    /// Limits of resident memory that are told.
    pub alarms: Alarms,
}

/// How the probes get into the kernel and to their places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// By which library they are loaded.
    pub loader: Loader,
    /// How user probes are attached; `None`: as the kernel does it best.
    pub rung: Option<Rung>,
    /// The kernel preempts the programs of tracepoints; `None`: it is asked.
    pub preempted: Option<bool>,
}

/// Processes that nobody holds, and whose forks, execs and ends are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// None.
    Nobody,
    /// Those that are watched.
    Watched,
    /// Those, and whatever any process of the machine executes.
    Everybody,
}

/// How it is done on this kernel.
#[derive(Clone, Copy, Debug)]
struct Way {
    rung: Rung,
    changes: Changes,
}

/// Where heap mode sees what a process does to its memory, but for blocks and page faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changes {
    /// At three tracepoints, by one program.
    Together,
    /// At the same, by a program each.
    Apart,
    /// Of resident memory at its tracepoint; of mappings at the functions of their system calls, by one program.
    Functions,
}

impl Way {
    fn new(what: Wanted, rung: Rung, preempted: Option<bool>) -> Self {
        let may_be_one = what.mode.counts_blocks() && rung == Rung::Session;
        let changes = match may_be_one && preempted.unwrap_or_else(preempted::are_preempted) {
            true if preempted::functions_can_be_probed() => Changes::Functions,
            false if may_be_one => Changes::Together,
            _ => Changes::Apart,
        };
        Self { rung, changes }
    }
}

fn wanted(name: &str, what: Wanted, Way { rung, changes }: Way) -> bool {
    let heap = what.mode.counts_blocks();
    match name {
        "sched_process_fork" => what.follow != Follow::Nobody,
        // They take the memory of a process that somebody holds from the sum of all.
        "sched_process_exit" => what.follow != Follow::Nobody || what.alarms.of_total != 0,
        "sched_process_exec" => {
            what.follow == Follow::Watched || what.follow == Follow::Nobody && what.alarms.of_total != 0
        }
        "alarms" => what.alarms != Alarms::default(),
        "machine_exec" => what.follow == Follow::Everybody,
        "limit_sys_exit" => what.limit,
        "heap_session" => heap && rung == Rung::Session,
        "heap_enter_multi" | "heap_return_multi" => heap && rung == Rung::Multi,
        "heap_enter_single" | "heap_return_single" => heap && rung == Rung::Single,
        "launch_multi" => rung != Rung::Single,
        "launch_single" => rung == Rung::Single,
        FAULT => heap && cfg!(target_arch = "x86_64"),
        // Kernels that have the session probes (6.13) tell a program its tracepoint too (6.10).
        MEMORY_CHANGES => changes == Changes::Together,
        MAPPING_CALLS => changes == Changes::Functions,
        "rss_stat" => changes != Changes::Together,
        "sys_enter" | "sys_exit" => heap && changes == Changes::Apart,
        "measure_cpus" | "mark_victim" => true,
        _ => heap,
    }
}

/// Bits of `rm_process.flags` that processes may have.
fn flags(what: Wanted) -> u32 {
    let counted = if what.mode.counts_blocks() { abi::RM_HEAP } else { abi::RM_PAGES };
    let native = if what.native { abi::RM_NATIVE } else { 0 };
    counted | native | abi::RM_PYTHON | abi::RM_FOLLOW | abi::RM_VICTIM
}

fn launch_program(rung: Rung) -> &'static str {
    if rung == Rung::Single { "launch_single" } else { "launch_multi" }
}

/// What of the programs is another in each rung.
fn programs_of_rung(rung: Rung) -> &'static [&'static str] {
    match rung {
        Rung::Session => &["launch_multi", "heap_session"],
        Rung::Multi => &["launch_multi", "heap_enter_multi", "heap_return_multi"],
        Rung::Single => &["launch_single", "heap_enter_single", "heap_return_single"],
    }
}

/// Do probes of this rung keep to the process that they are for? Without the heap's the first rung loads on any kernel that has
/// multi-probes, right or not.
fn is_right(rung: Rung, launch: BorrowedFd<'_>) -> bool {
    rung == Rung::Single || attach::multi_filter_is_right(launch)
}

fn open(attacher: &Attacher, what: Wanted, loader: Loader, way: Way) -> Result<Loaded, LoadError> {
    let rung = way.rung;
    let cpus = possible_cpus().map_err(LoadError::Descriptor)?;
    let mut entries = vec![("blocks", block_entries(what.mode)), ("cpu_offsets", cpus)];
    if !what.mode.counts_blocks() {
        entries.extend([("arenas", 1), ("tally_stacks", 1)]);
    }
    if what.mode == Mode::Objects {
        // The start of an interpreter that imports much asks for objects from fifty thousand places within a second.
        entries.push(("events", 1 << 25));
    }
    if !what.native {
        // The least that a ring buffer may have.
        entries.push(("natives", u32::try_from(crate::target::page_bytes()).unwrap_or(1 << 16)));
    } else if what.mode == Mode::Objects {
        entries.push(("natives", 1 << 26));
    }
    // The sites of the launch help can be probed from here on, which takes a grace period of the kernel's: it passes while the others load.
    let loaded_first = |programs: &[(String, OwnedFd)]| {
        let launch = programs.iter().find(|(name, _)| name == launch_program(rung));
        if let Some((_, program)) = launch
            && is_right(rung, program.as_fd())
            && let Ok(program) = program.try_clone()
        {
            attacher.set_launch(LaunchProgram { program, multi: rung != Rung::Single });
        }
    };
    loader.load(&Settings {
        wanted: &|name| wanted(name, what, way),
        tracepoints: TRACEPOINTS,
        entries: &entries,
        constants: abi::rm_constants {
            cpus,
            flags: flags(what),
            counter_batch: counter_batch().map_err(LoadError::Descriptor)?,
            alarm_bytes: what.alarms.bytes,
            alarms_of_growth: what.alarms.of_growth,
            alarms_of_total: what.alarms.of_total,
        },
        rings: &["events", "residents", "natives"],
        first: First { programs: programs_of_rung(rung), loaded: &loaded_first },
    })
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

fn procfs_pages() -> Option<u64> {
    let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).ok()??;
    u64::try_from(pages).ok()
}

fn assemble(attacher: &Attacher, mut loaded: Loaded, what: Wanted, way: Way) -> Result<(Kernel, Drain), LoadError> {
    let rung = way.rung;
    let heap = match (what.mode.counts_blocks(), rung) {
        (false, _) => None,
        (true, Rung::Session) => Some(HeapPrograms::Session(loaded.take_program("heap_session")?)),
        (true, Rung::Multi) => Some(HeapPrograms::Pair {
            enter: loaded.take_program("heap_enter_multi")?,
            exit: loaded.take_program("heap_return_multi")?,
            multi: true,
        }),
        (true, Rung::Single) => Some(HeapPrograms::Pair {
            enter: loaded.take_program("heap_enter_single")?,
            exit: loaded.take_program("heap_return_single")?,
            multi: false,
        }),
    };
    let launch = LaunchProgram { program: loaded.take_program(launch_program(rung))?, multi: rung != Rung::Single };
    let probes = Probes {
        heap,
        processes: loaded.take_map("processes")?,
        other_programs: loaded.take_map("other_programs")?,
        memories: loaded.take_map("memories")?,
        next_limits: loaded.take_map("next_limits")?,
        alarms: wanted("alarms", what, way).then(|| loaded.take_program("alarms")).transpose()?,
        arenas: Arc::new(loaded.take_map("arenas")?),
    };
    let maps = Maps {
        sites: loaded.take_map("sites")?,
        lines: loaded.take_map("lines")?,
        marks: loaded.take_map("marks")?,
        counters: loaded.take_map("counters")?,
        siteless: loaded.take_map("siteless")?,
        tally_stacks: loaded.take_map("tally_stacks")?,
        blocks: loaded.take_map("blocks")?,
        codes: loaded.take_map("codes")?,
        arenas: Arc::clone(&probes.arenas),
    };
    let words = Words::new().map_err(LoadError::Descriptor)?;
    let direct_map = loaded.take_map("direct_map")?;
    words.tell(&direct_map, procfs_pages().unwrap_or_default()).map_err(LoadError::Descriptor)?;
    let measured = bpf::run(loaded.program("measure_cpus")?, &[]).map_err(|error| {
        LoadError::refused(&format!("measure_cpus cannot be run: {error}"), "", error.raw_os_error())
    })?;
    if measured != 0 {
        return Err(LoadError::Missing("the offsets of per-CPU memory"));
    }
    let mut links = tracepoints(&loaded, what, way)?;
    if way.changes == Changes::Functions {
        links.push(preempted::link_calls(loaded.program(MAPPING_CALLS)?).map_err(LoadError::Functions)?);
    }
    let mut tracing = Vec::new();
    for name in watching_programs(what, way) {
        let counter = if name == FAULT { FAULT_RECURSION_MISSES } else { RECURSION_MISSES };
        tracing.push((counter, loaded.take_program(name)?));
    }
    attacher.set_launch(launch);
    attacher.set_probes(probes);
    let kernel = Kernel { links, rung, direct: direct::is_found(&direct_map) };
    Ok((kernel, Drain::new(loaded.into_records(), maps, tracing)))
}

/// The programs that see what happens on the whole machine.
fn watching_programs(what: Wanted, way: Way) -> impl Iterator<Item = &'static str> {
    let programs = TRACEPOINTS.iter().map(|(program, _)| *program).chain([FAULT, MEMORY_CHANGES, MAPPING_CALLS]);
    programs.filter(move |program| wanted(program, what, way))
}

fn tracepoints(loaded: &Loaded, what: Wanted, way: Way) -> Result<Vec<OwnedFd>, LoadError> {
    let typed = TRACEPOINTS.iter().map(|(program, name)| (*program, *name, None));
    let raw = RAW_TRACEPOINTS.iter().map(|(program, tracepoint, cookie)| {
        (*program, tracepoint.to_str().unwrap_or_default(), Some((*tracepoint, u64::from(*cookie))))
    });
    typed
        .chain(raw)
        .filter(|(program, ..)| wanted(program, what, way))
        .map(|(program, name, to)| {
            bpf::link_tracepoint(loaded.program(program)?, to).map_err(|error| LoadError::Tracepoint { name, error })
        })
        .collect()
}
