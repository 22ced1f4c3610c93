//! The files a process maps: which is its Python, which are allocators, where the loader is. Each file is looked into once.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix::unistd::Pid;

use crate::kernel::ProbePoint;
use crate::kernel::allocators::FAMILY;
use crate::python::discover::{self, Interpreter, Module, Refusal, SymbolSource};
use crate::tally;
use crate::target::ProcessMemory;
use crate::target::elf::{ElfFile, Machine};
use crate::target::maps::{self, Mapping};
use crate::target::memory;
use crate::target::sites::{self, Argument, Emulation};
use crate::target::thread_local::first_initial_exec;

/// The symbol that makes a file an interpreter.
const EVAL: &str = "_PyEval_EvalFrameDefault";
/// Names of the dynamic loaders of glibc and musl begin so.
const LOADERS: &[&str] = &["ld-linux", "ld-musl", "ld-2.", "ld.so", "ld64.so"];
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
}

/// A file that was looked into. Its descriptor keeps the inode's number from being given to another file.
struct Known {
    elf: Option<ElfFile>,
    allocator: Option<Arc<Allocator>>,
}

/// All files looked into in a session.
#[derive(Default)]
pub struct Modules {
    files: HashMap<((u32, u32), u64), Known>,
}

/// What one process maps.
pub struct Mapped<'m> {
    pid: Pid,
    modules: Vec<(PathBuf, u64, &'m ElfFile)>,
    /// Libraries with a malloc family.
    pub allocators: Vec<Arc<Allocator>>,
    /// Where the dynamic loader is executable; empty for a static program.
    pub loader_range: (u64, u64),
    /// Where the preloaded library is executable; empty where it is not.
    pub library_range: (u64, u64),
    /// From the thread pointer to glibc's variable `tcache`, modulo 2^64; 0 where it was not found.
    pub tcache_offset: u64,
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
    /// Could the image that was just executed be a Python, or load one before it begins? A shell or `env` costs one look at its
    /// symbols and is then left alone.
    pub fn may_be_python(&self, pid: Pid) -> bool {
        let path = maps::executable_path(pid).unwrap_or_default();
        if path.file_name().is_some_and(|name| is_loader(&name.to_string_lossy())) {
            return true;
        }
        let Some(elf) = maps::open_executable(pid).ok().and_then(|file| ElfFile::parse(file).ok()) else {
            return false;
        };
        elf.symbol(EVAL).is_some()
            || elf.needed().iter().any(|name| name.starts_with("libpython") || name.starts_with("libpypy"))
    }

    /// Looks at what a process maps.
    ///
    /// # Errors
    /// When its list of mappings cannot be read.
    pub fn of(&mut self, pid: Pid) -> io::Result<Mapped<'_>> {
        let mappings = maps::mappings(pid)?;
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
        let mut mapped =
            Mapped { pid, modules: Vec::new(), allocators: Vec::new(), loader_range, library_range, tcache_offset: 0 };
        let mut seen = Vec::new();
        for mapping in &code {
            let key = (mapping.device, mapping.inode);
            let Some(known) = self.files.get(&key).filter(|_| !seen.contains(&key)) else { continue };
            seen.push(key);
            mapped.allocators.extend(known.allocator.clone());
            let same = mappings.iter().filter(|other| other.same_file(mapping));
            if let Some(elf) = &known.elf
                && let Some(bias) = elf.load_bias(same)
            {
                if mapping.file_name().to_string_lossy().starts_with("libc.so") {
                    mapped.tcache_offset = tcache_offset(pid, elf, bias).unwrap_or(0);
                }
                mapped.modules.push((mapping.path.clone(), bias, elf));
            }
        }
        Ok(mapped)
    }

    fn look(&mut self, pid: Pid, mapping: &Mapping) {
        let key = (mapping.device, mapping.inode);
        if self.files.contains_key(&key) {
            return;
        }
        let name = mapping.file_name().to_string_lossy().into_owned();
        let file = maps::open_file(pid, mapping).ok();
        let elf = file.as_ref().and_then(|file| file.try_clone().ok()).and_then(|file| ElfFile::parse(file).ok());
        let allocator = match (&elf, file) {
            (Some(elf), Some(file)) if !is_loader(&name) => {
                allocator_points(elf).map(|points| Arc::new(Allocator { name, file, points }))
            }
            _ => None,
        };
        self.files.insert(key, Known { elf, allocator });
    }
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

fn is_loader(name: &str) -> bool {
    LOADERS.iter().any(|loader| name.starts_with(loader))
}

/// Where to probe a library's malloc family; `None` where it has none.
fn allocator_points(elf: &ElfFile) -> Option<Vec<ProbePoint>> {
    let names: Vec<&str> = FAMILY.iter().map(|function| function.symbol).collect();
    let found = elf.symbols(&names);
    if !found.contains_key("malloc") || !found.contains_key("free") {
        return None;
    }
    // Long nops are left alone: Linux 6.18 turns a probed one of five bytes into a call that a fork does not survive when we are
    // killed meanwhile (see launch/line_events.c).
    let emulation = Emulation { x86_64: elf.machine() == Machine::X86_64, long_nops: false };
    let mut points: Vec<ProbePoint> = Vec::new();
    for function in FAMILY {
        let Some(symbol) = found.get(function.symbol) else { continue };
        let size = if symbol.size == 0 { 64 } else { symbol.size.min(LONGEST_FUNCTION) };
        let Some(code) = elf.bytes_at(symbol.address, size) else { continue };
        let arguments = &[Argument::First, Argument::Second, Argument::Third][..function.arguments];
        let site = sites::choose(code, arguments, emulation);
        let Some(offset) = elf.file_offset(symbol.address + site.offset_in_function) else { continue };
        // Two names of one function (memalign and aligned_alloc in glibc) are one probe.
        if points.iter().all(|point| point.offset != offset) {
            points.push(ProbePoint { offset, role: function.role, returns: function.returns });
        }
    }
    (!points.is_empty()).then_some(points)
}
