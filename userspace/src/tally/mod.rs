//! Processes that count their blocks themselves: the library we preload in a program that we start (probes/preload/tally.c), and the
//! memory that it shares with us. A trap for every block costs a microsecond or two; this some tens of nanoseconds.
//!
//! The library is given to an image at its exec ([`target::preload`](crate::target::preload)) and says when its memory is there
//! ([`ANNOUNCER`]); [`Segments`] are that memory, one for the image and more for its forks. What is found in it is the target's word:
//! every number is read once and checked, and the memory is sealed, so that it cannot be made smaller under us.

mod history;
mod segments;

use anyhow::{Context, Result};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol};
use rmprof_probes::{TALLY_LIBRARY, abi};

pub use history::History;
pub use segments::{Segment, Segments, Sums};

use crate::target::supervise::Announcer;

/// The name of the library's file.
pub const FILE: &str = match abi::RM_TALLY_FILE.to_str() {
    Ok(name) => name,
    Err(_) => panic!("the name of the library's file is ASCII"),
};

/// How the library says that it is there.
pub const ANNOUNCER: Announcer = Announcer { file: FILE, descriptor: abi::RM_TALLY_ANNOUNCE as u64 };

/// The library's functions that probes are attached to, and what a call of each means (`enum rm_launch_role`).
const SITES: [(&str, u32); 2] =
    [("rmprof_site_stack", abi::RM_LAUNCH_STACK), ("rmprof_site_tally", abi::RM_LAUNCH_TALLY)];

/// Where the probes go: role, and offset in the library's file.
///
/// # Errors
/// When the library built into this program is damaged.
pub fn sites() -> Result<Vec<(u32, u64)>> {
    SITES.iter().map(|(symbol, role)| Ok((*role, offset_of(symbol)?))).collect()
}

fn offset_of(name: &str) -> Result<u64> {
    let elf = ElfFile64::<Endianness>::parse(TALLY_LIBRARY).context("the preloaded library is not an ELF file")?;
    let symbol = elf.dynamic_symbols().find(|symbol| symbol.name() == Ok(name));
    let address = symbol.context("the preloaded library has no site")?.address();
    let endian = elf.endian();
    let segments = elf.elf_program_headers().iter().filter(|header| header.p_type(endian) == object::elf::PT_LOAD);
    let mut offsets = segments.filter_map(|header| {
        let into = address.checked_sub(header.p_vaddr(endian))?;
        (into < header.p_filesz(endian)).then(|| header.p_offset(endian).checked_add(into))?
    });
    offsets.next().context("the preloaded library's site is in no segment")
}
