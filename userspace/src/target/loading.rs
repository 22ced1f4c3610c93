//! The instant at which a program just executed has its libraries mapped and has not begun: found by watching its system calls.
//!
//! The kernel starts a dynamic program in its loader, which maps the libraries and then jumps away. glibc's loader makes its own
//! system calls, so the first one from outside the loader is past the mapping. musl's loader *is* its C library: there the
//! return address that the program's entry code leaves on top of the initial stack tells.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use nix::unistd::Pid;

use super::elf::ElfFile;
use super::maps::{Mapping, mappings, open_executable};
use super::supervise::{Announcement, Announcer};
use super::{memory, tracee};

/// Give up after so many system calls and take the program for loaded. A loader makes a handful for each library.
const MOST_SYSTEM_CALLS: u32 = 20_000;
/// The entry code (`_start`) is shorter than this, bytes.
const LONGEST_ENTRY: u64 = 64;
/// How far below the initial stack pointer the entry code's return address is looked for, 8-byte words.
const WORDS_BELOW_STACK: usize = 32;

const CLOSE: u64 = libc::SYS_close as u64;

const AT_BASE: u64 = 7;
const AT_ENTRY: u64 = 9;

/// A program between its exec and the end of its loading.
#[derive(Debug)]
pub(super) struct Loading {
    /// Where the loader's own code is.
    loader: Vec<Range<u64>>,
    /// The program's entry point and the stack pointer it was started with, where musl's rule can be applied.
    entry: Option<(u64, u64)>,
    system_calls: u32,
    /// Whose word is waited for.
    announcer: Option<Announcer>,
}

impl Loading {
    /// For a process held at its exec; `None` where nothing is to be waited for: a static program, or a process gone.
    pub(super) fn begin(pid: Pid, announcer: Option<Announcer>) -> Option<Self> {
        let auxiliary = auxiliary_vector(pid)?;
        let value = |key: u64| auxiliary.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let base = value(AT_BASE).unwrap_or(0);
        let mappings = mappings(pid).ok()?;
        if base != 0 {
            let loader = mappings.iter().find(|mapping| mapping.contains(base))?;
            let stack = tracee::position(pid)?.stack;
            return Some(Self::new(&mappings, loader, value(AT_ENTRY).map(|entry| (entry, stack)), announcer));
        }
        // No loader was asked for: a static program, or the loader itself, given the program as an argument.
        let program = ElfFile::parse(open_executable(pid).ok()?).ok()?;
        if program.interpreter().is_some() || !program.exports_symbols() {
            return None;
        }
        let entry = value(AT_ENTRY)?;
        let loader = mappings.iter().find(|mapping| mapping.contains(entry))?;
        Some(Self::new(&mappings, loader, None, announcer))
    }

    fn new(mappings: &[Mapping], loader: &Mapping, entry: Option<(u64, u64)>, announcer: Option<Announcer>) -> Self {
        let of_loader = mappings.iter().filter(|mapping| mapping.same_file(loader) || mapping.start == loader.start);
        let loader = of_loader.map(|mapping| mapping.start..mapping.end).collect();
        Self { loader, entry, system_calls: 0, announcer }
    }

    /// At a system call stop: whether the program is loaded now, and what was announced.
    pub(super) fn over(&mut self, pid: Pid) -> Option<Option<Announcement>> {
        let position = tracee::position(pid)?;
        if !position.enters_system_call {
            return None;
        }
        self.system_calls += 1;
        if let Some(announcer) = self.announcer
            && let (CLOSE, [descriptor, said @ ..]) = position.call
            && descriptor == announcer.descriptor
        {
            return Some(Some(said));
        }
        let is_loaded = self.system_calls >= MOST_SYSTEM_CALLS
            || !self.loader.iter().any(|range| range.contains(&position.instruction))
            || self.has_entered(pid);
        (is_loaded && !self.will_announce(pid)).then_some(None)
    }

    /// Is the announcer among what is mapped now? Then its word comes, if not at once: it is one of the libraries that the loader
    /// calls before the program.
    fn will_announce(&mut self, pid: Pid) -> bool {
        let Some(announcer) = self.announcer.filter(|_| self.system_calls < MOST_SYSTEM_CALLS) else { return false };
        let is_there =
            mappings(pid).is_ok_and(|mappings| mappings.iter().any(|mapping| mapping.file_name() == announcer.file));
        if !is_there {
            self.announcer = None;
        }
        is_there
    }

    /// Whether the program's entry code has called on: its return address lies on top of the initial stack.
    fn has_entered(&self, pid: Pid) -> bool {
        let Some((entry, stack)) = self.entry else { return false };
        let after_entry = entry + 1..=entry.saturating_add(LONGEST_ENTRY);
        let mut words = [0; WORDS_BELOW_STACK * 8];
        let below = (stack & !15).saturating_sub(words.len() as u64);
        memory::read_exact_at(pid, below, &mut words).is_ok()
            && words
                .chunks_exact(8)
                .any(|word| after_entry.contains(&u64::from_le_bytes(word.try_into().unwrap_or_default())))
    }
}

/// Pairs of `/proc/PID/auxv`, of a 64-bit process.
fn auxiliary_vector(pid: Pid) -> Option<Vec<(u64, u64)>> {
    let mut content = Vec::new();
    File::open(format!("/proc/{pid}/auxv")).ok()?.take(4096).read_to_end(&mut content).ok()?;
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    Some(content.chunks_exact(16).map(|pair| (word(&pair[..8]), word(&pair[8..]))).collect())
}
