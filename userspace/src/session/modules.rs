//! The files a process maps: which is its Python, which are allocators, where the loader is. Each file is looked into once.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::Pid;

use rmprof_probes::abi;

use crate::kernel::ProbePoint;
use crate::kernel::allocators;
use crate::python::discover::{self, Interpreter, Module, Refusal, SymbolSource};
use crate::tally;
use crate::target::ProcessMemory;
use crate::target::elf::{ElfFile, Machine, Symbol};
use crate::target::maps::{self, Mapping};
use crate::target::memory;
use crate::target::sites::{self, Argument, Emulation};
use crate::target::thread_local::first_initial_exec;

/// The symbol that makes a file an interpreter.
const EVAL: &str = "_PyEval_EvalFrameDefault";
/// Its like in Pythons that are too old.
const OLD_EVAL: &str = "PyEval_EvalFrameEx";
/// The loader's function that debuggers stop at: called before its list of libraries changes, and when the libraries are mapped and
/// nothing of them has run (elf/dl-debug.c in glibc, ldso/dynlink.c in musl).
const LOADED: &str = "_dl_debug_state";
/// Names of glibc's dynamic loaders begin so. musl's is its C library.
const LOADERS: &[&str] = &["ld-linux", "ld-2.", "ld.so", "ld64.so"];
/// Symbols that musl has and no other C library: of its loader, and of its threads, which a static program has too.
const MUSL: [&str; 2] = ["_dl_debug_addr", "__pthread_tsd_main"];
/// Files that are remembered, each by an open descriptor.
const MOST_FILES: usize = 2048;
/// Programs whose kind is remembered.
const MOST_PROGRAMS: usize = 4096;
/// Longest function that is decoded for a probe site.
const LONGEST_FUNCTION: u64 = 64 << 10;

/// A library with a malloc family, and where to probe it.
#[derive(Debug)]
pub struct Allocator {
    /// The file's name, for messages.
    pub name: String,
    /// The very file the process maps.
    pub file: File,
    /// Its functions.
    pub points: Vec<ProbePoint>,
    is_glibc: bool,
    /// It has them under their usual names, and stands before the C library's where it is loaded first.
    pub is_malloc: bool,
}

impl Allocator {
    /// Is it glibc?
    pub fn is_glibc(&self) -> bool {
        self.is_glibc
    }
}

/// A dynamic loader, and where it tells of libraries.
#[derive(Debug)]
pub struct Loader {
    /// The very file.
    pub file: File,
    /// The place.
    pub points: [ProbePoint; 1],
}

/// A file that was looked into.
#[derive(Default)]
struct Known {
    /// Where it may be needed again: of Pythons and C libraries.
    elf: Option<ElfFile>,
    allocator: Option<Arc<Allocator>>,
    loader: Option<Arc<Loader>>,
    c_library: CLibrary,
    /// Keeps the inode's number from being given to another file.
    _file: Option<File>,
}

/// All files looked into in a session.
#[derive(Default)]
pub struct Modules {
    files: HashMap<((u32, u32), u64), Known>,
    /// By file system, inode, size and time of the last change: may it be a Python?
    programs: HashMap<(u64, u64, u64, i64, i64), bool>,
}

/// The program of a process.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Could it be a Python, or load one before it begins?
    pub may_be_python: bool,
}

/// What of a process's files is to be probed.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// Those with a malloc family.
    pub allocators: Vec<Arc<Allocator>>,
    /// Its dynamic loader.
    pub loader: Option<Arc<Loader>>,
}

impl Libraries {
    /// Is glibc's malloc the only one of that name, the preloaded library's aside? What others do is not seen by that.
    pub fn only_glibc(&self) -> bool {
        let is_other = |allocator: &&Arc<Allocator>| allocator.is_malloc && allocator.name != tally::FILE;
        let mut others = self.allocators.iter().filter(is_other);
        others.next().is_some_and(|allocator| allocator.is_glibc()) && others.next().is_none()
    }

    fn add(&mut self, known: &Known) {
        self.allocators.extend(known.allocator.clone());
        self.loader = self.loader.take().or_else(|| known.loader.clone());
    }
}

/// What one process maps.
pub struct Mapped<'m> {
    pid: Pid,
    modules: Vec<(PathBuf, u64, &'m ElfFile)>,
    /// What is to be probed.
    pub libraries: Libraries,
    /// Its C library is musl.
    pub is_musl: bool,
    /// Where the dynamic loader is executable, where that is a file of its own; empty for a static program.
    pub loader_range: (u64, u64),
    /// Where the preloaded library is executable; empty where it is not.
    pub library_range: (u64, u64),
    /// From the thread pointer to glibc's variable `tcache`, modulo 2^64; 0 where it was not found.
    pub tcache_offset: u64,
    /// From the thread pointer to where glibc has the function a thread began with; 0 where it was not found.
    pub start_offset: u32,
}

impl Mapped<'_> {
    /// The process's CPython, if it has one.
    ///
    /// # Errors
    /// A Python that is not supported.
    pub fn interpreter(&self) -> Result<Option<Interpreter>, Refusal> {
        let modules: Vec<Module<'_>> =
            self.modules.iter().map(|(path, bias, elf)| Module { path, load_bias: *bias, file: *elf }).collect();
        discover::find(&modules, Some(&ProcessMemory(self.pid)))
    }
}

impl SymbolSource for ElfFile {
    fn symbol(&self, name: &str) -> Option<(u64, u64)> {
        ElfFile::symbol(self, name).map(|symbol| (symbol.address, symbol.size))
    }

    fn section(&self, name: &str) -> Option<(u64, u64)> {
        ElfFile::section(self, name).map(|section| (section.address, section.size))
    }

    fn read_at_address(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.bytes_at(address, length as u64).map(<[u8]>::to_vec)
    }
}

impl Modules {
    /// The program that a process executes. A shell or `env` costs one look at its symbols and is then left alone.
    ///
    /// # Errors
    /// When it cannot be opened: the process may have ended.
    pub fn program(&mut self, pid: Pid) -> io::Result<Program> {
        let file = maps::open_executable(pid)?;
        let about = file.metadata()?;
        let name = maps::executable_path(pid)?;
        let key = (about.dev(), about.ino(), about.len(), about.ctime(), about.ctime_nsec());
        if let Some(may_be_python) = self.programs.get(&key) {
            return Ok(Program { may_be_python: *may_be_python });
        }
        let loads = |name: &str| is_loader(name) || name.starts_with("ld-musl") || name == "libc.so";
        let is_loader = name.file_name().is_some_and(|name| loads(&name.to_string_lossy()));
        let may_be_python = is_loader || ElfFile::parse(file).is_ok_and(|elf| may_be_python(&elf));
        if self.programs.len() >= MOST_PROGRAMS {
            self.programs.clear();
        }
        self.programs.insert(key, may_be_python);
        Ok(Program { may_be_python })
    }

    /// Could a process that has been running for a while be a Python? As its program, or by a library that it has loaded since.
    pub fn runs_python(&mut self, pid: Pid) -> bool {
        let has_library = || {
            maps::find_file(&maps::mappings(pid).unwrap_or_default(), |name| is_python_library(&name.to_string_lossy()))
                .is_some()
        };
        self.program(pid).is_ok_and(|program| program.may_be_python) || has_library()
    }

    /// Is what was just executed a Python without the GIL? By what only such a one exports (Include/cpython/object.h), or by the name of
    /// the library that it is in.
    pub fn executes_free_threaded(&self, pid: Pid) -> bool {
        let Some(elf) = maps::open_executable(pid).ok().and_then(|file| ElfFile::parse(file).ok()) else {
            return false;
        };
        let is_library = |name: &String| {
            let version = name.strip_prefix("libpython3.").and_then(|rest| rest.split_once(".so"));
            version.is_some_and(|(version, _)| {
                version.trim_start_matches(|digit: char| digit.is_ascii_digit()).starts_with('t')
            })
        };
        elf.symbol("_Py_MergeZeroLocalRefcount").is_some() || elf.needed().iter().any(is_library)
    }

    /// Looks at what a process maps.
    ///
    /// # Errors
    /// When its list of mappings cannot be read.
    pub fn of(&mut self, pid: Pid) -> io::Result<Mapped<'_>> {
        let mappings = maps::mappings(pid)?;
        if self.files.len() >= MOST_FILES {
            self.files.clear();
        }
        let code: Vec<&Mapping> =
            mappings.iter().filter(|mapping| mapping.is_file() && mapping.permissions.execute).collect();
        let loader_range = code
            .iter()
            .find(|mapping| is_loader(&mapping.file_name().to_string_lossy()))
            .map_or((0, 0), |mapping| (mapping.start, mapping.end));
        let library_range = code
            .iter()
            .find(|mapping| mapping.file_name() == tally::FILE)
            .map_or((0, 0), |mapping| (mapping.start, mapping.end));
        for mapping in &code {
            self.look(pid, mapping);
        }
        let mut mapped = Mapped {
            pid,
            modules: Vec::new(),
            libraries: Libraries::default(),
            is_musl: false,
            loader_range,
            library_range,
            tcache_offset: 0,
            start_offset: 0,
        };
        let mut seen = HashSet::new();
        for mapping in &code {
            let key = (mapping.device, mapping.inode);
            let Some(known) = self.files.get(&key).filter(|_| seen.insert(key)) else { continue };
            mapped.libraries.add(known);
            mapped.is_musl |= known.c_library == CLibrary::Musl;
            let same = mappings.iter().filter(|other| other.same_file(mapping));
            if let Some(elf) = &known.elf
                && let Some(bias) = elf.load_bias(same)
            {
                if known.c_library == CLibrary::Glibc {
                    mapped.tcache_offset = tcache_offset(pid, elf, bias).unwrap_or(0);
                }
                if let Some(offset) = start_offset(elf) {
                    mapped.start_offset = offset;
                }
                mapped.modules.push((mapping.path.clone(), bias, elf));
            }
        }
        Ok(mapped)
    }

    /// What of a process's files is to be probed now.
    ///
    /// # Errors
    /// When its list of mappings cannot be read.
    pub fn libraries(&mut self, pid: Pid) -> io::Result<Libraries> {
        let mut libraries = Libraries::default();
        let mut seen = HashSet::new();
        for mapping in maps::mappings(pid)? {
            let key = (mapping.device, mapping.inode);
            if !mapping.is_file() || !mapping.permissions.execute || !seen.insert(key) {
                continue;
            }
            self.look(pid, &mapping);
            if let Some(known) = self.files.get(&key) {
                libraries.add(known);
            }
        }
        Ok(libraries)
    }

    fn look(&mut self, pid: Pid, mapping: &Mapping) {
        let key = (mapping.device, mapping.inode);
        if self.files.contains_key(&key) {
            return;
        }
        let name = mapping.file_name().to_string_lossy().into_owned();
        let file = maps::open_file(pid, mapping).ok();
        let known = file.and_then(|file| Known::of(name, file)).unwrap_or_default();
        self.files.insert(key, known);
    }
}

impl Known {
    fn of(name: String, file: File) -> Option<Self> {
        let elf = ElfFile::parse(file.try_clone().ok()?).ok()?;
        let all: Vec<_> = allocators::symbols().collect();
        let wanted: Vec<&str> =
            all.iter().map(|(symbol, ..)| symbol.as_str()).chain([EVAL, OLD_EVAL, LOADED]).chain(MUSL).collect();
        let found = elf.symbols(&wanted);
        let is_python = found.contains_key(EVAL) || found.contains_key(OLD_EVAL) || name.starts_with("libpypy");
        let c_library = CLibrary::of(&found, &name);
        let mut known = Self { c_library, ..Self::default() };
        if is_loader(&name) || c_library == CLibrary::Musl {
            known.loader = loader_of(&elf, &found, &file);
        }
        if !is_loader(&name) {
            known.allocator = allocator_of(&elf, &found, &name, &file, is_python, c_library);
        }
        let is_kept = is_python || c_library == CLibrary::Glibc;
        known.elf = is_kept.then_some(elf);
        known._file = Some(file);
        Some(known)
    }
}

/// What a file is as a C library.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CLibrary {
    #[default]
    None,
    Glibc,
    Musl,
}

impl CLibrary {
    /// Both may be called `libc.so`.
    fn of(found: &HashMap<&str, Symbol>, name: &str) -> Self {
        match () {
            () if MUSL.iter().any(|symbol| found.contains_key(symbol)) => Self::Musl,
            () if name.starts_with("libc.so") || name.starts_with("libc-2.") => Self::Glibc,
            () => Self::None,
        }
    }
}

fn loader_of(elf: &ElfFile, found: &HashMap<&str, Symbol>, file: &File) -> Option<Arc<Loader>> {
    let offset = elf.file_offset(found.get(LOADED)?.address)?;
    let points = [ProbePoint { offset, role: abi::RM_LAUNCH_LOADED, returns: false }];
    Some(Arc::new(Loader { file: file.try_clone().ok()?, points }))
}

/// Where glibc keeps the thread's cache of blocks: the first thread-local variable that malloc reads (malloc/malloc.c, `tcache`). A
/// guess that the kernel side proves or drops.
fn tcache_offset(pid: Pid, libc: &ElfFile, bias: u64) -> Option<u64> {
    const CODE_BYTES: u64 = 256;
    let malloc = libc.symbol("malloc")?;
    let code = libc.bytes_at(malloc.address, CODE_BYTES)?;
    let word = first_initial_exec(code, malloc.address)?;
    memory::read_u64(pid, word.wrapping_add(bias)).ok()
}

/// Where glibc keeps the function that a thread began with, as it tells debuggers (nptl_db/structs.def, `start_routine`: three words,
/// the last of which is the offset in `struct pthread`).
fn start_offset(libc: &ElfFile) -> Option<u32> {
    const LARGEST: u32 = 4096;
    let told = libc.symbol("_thread_db_pthread_start_routine")?;
    let offset = libc.bytes_at(told.address + 8, 4)?;
    let offset = u32::from_le_bytes(offset.try_into().ok()?);
    (offset < LARGEST && offset.is_multiple_of(8)).then_some(offset)
}

/// Could a program be a Python, or load one before it begins?
fn may_be_python(elf: &ElfFile) -> bool {
    elf.symbol(EVAL).is_some() || elf.needed().iter().any(|name| is_python_library(name))
}

fn is_python_library(name: &str) -> bool {
    name.starts_with("libpython") || name.starts_with("libpypy")
}

fn is_loader(name: &str) -> bool {
    LOADERS.iter().any(|loader| name.starts_with(loader))
}

/// A file's malloc families; `None` where it has none. The mimalloc in CPython (3.13 and later) is not one: what it hands out is
/// Python's objects.
fn allocator_of(
    elf: &ElfFile,
    found: &HashMap<&str, Symbol>,
    name: &str,
    file: &File,
    is_python: bool,
    c_library: CLibrary,
) -> Option<Arc<Allocator>> {
    let mut prefixes = allocators::prefixes(|symbol| found.contains_key(symbol));
    prefixes.retain(|prefix| prefix.is_empty() || !is_python);
    let is_malloc = prefixes.contains(&"");
    let is_glibc = c_library == CLibrary::Glibc;
    // Long nops are left alone: Linux 6.18 turns a probed one of five bytes into a call that a fork does not survive when we are
    // killed meanwhile (see launch/line_events.c).
    let emulation = Emulation { x86_64: elf.machine() == Machine::X86_64, long_nops: false };
    let mut points: Vec<ProbePoint> = Vec::new();
    for (symbol, function, prefix) in allocators::symbols() {
        let Some(place) = found.get(symbol.as_str()).filter(|_| prefixes.contains(&prefix)) else { continue };
        let size = if place.size == 0 { 64 } else { place.size.min(LONGEST_FUNCTION) };
        let Some(code) = elf.bytes_at(place.address, size) else { continue };
        let arguments = &[Argument::First, Argument::Second, Argument::Third][..function.arguments];
        let site = sites::choose(code, arguments, emulation);
        let Some(offset) = elf.file_offset(place.address + site.offset_in_function) else { continue };
        let role = match function.role {
            abi::RM_ROLE_MALLOC if is_glibc => abi::RM_ROLE_GLIBC_MALLOC,
            role => role,
        };
        // Two names of one function (memalign and aligned_alloc in glibc) are one probe.
        if points.iter().all(|point| point.offset != offset) {
            points.push(ProbePoint { offset, role, returns: function.returns });
        }
    }
    let file = file.try_clone().ok().filter(|_| !points.is_empty())?;
    Some(Arc::new(Allocator { name: name.to_owned(), file, points, is_glibc, is_malloc }))
}
