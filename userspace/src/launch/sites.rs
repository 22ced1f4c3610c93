//! Where in the extension the probes go.

use anyhow::{Context, Result};
use object::read::elf::{ElfFile64, ProgramHeader};
use object::{Endianness, Object, ObjectSymbol};

/// What a call of a site means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// `(void *code, long line, long what)`: a line of a marked code object begins (what = 0) or ended (1).
    Line,
    /// `(void *code, long order)`: a code object was marked, as number `order` of its process.
    Mark,
    /// `(long hexversion, long pid)`: the shim has loaded; `hexversion` is `sys.hexversion`.
    Hello,
    /// `(long call, long value, void *handler)`: of the limit of resident memory (enum rm_limit_call).
    Limit,
}

/// The exported functions of the extension, by symbol.
pub const SITES: &[(&str, Site)] = &[
    ("rmprof_site_line", Site::Line),
    ("rmprof_site_mark", Site::Mark),
    ("rmprof_site_hello", Site::Hello),
    ("rmprof_site_limit", Site::Limit),
];

/// A site and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SitePlace {
    /// Which site.
    pub site: Site,
    /// Its symbol in the extension's `.dynsym`.
    pub symbol: &'static str,
    /// Offset of its first instruction, a nop, in the extension's file: what a uprobe is attached by.
    pub file_offset: u64,
}

/// Places of all [`SITES`] in the extension that every [`Shim`](super::Shim) holds.
///
/// # Errors
///
/// When the extension built into this program is damaged.
pub fn site_places() -> Result<Vec<SitePlace>> {
    places_in(super::EXTENSION)
}

fn places_in(extension: &[u8]) -> Result<Vec<SitePlace>> {
    let place = |&(symbol, site)| {
        let file_offset = offset_of(extension, symbol).context("the launch extension")?;
        Ok(SitePlace { site, symbol, file_offset })
    };
    SITES.iter().map(place).collect()
}

/// Offset in a library's file of the first instruction of a function that it exports: what a uprobe is attached by.
///
/// # Errors
///
/// When the library is damaged.
pub fn offset_of(library: &[u8], symbol: &str) -> Result<u64> {
    let elf = ElfFile64::<Endianness>::parse(library).context("no ELF file")?;
    let found = elf.dynamic_symbols().find(|candidate| candidate.name() == Ok(symbol));
    let address = found.with_context(|| format!("no symbol {symbol}"))?.address();
    file_offset(&elf, address).with_context(|| format!("{symbol} is in no segment"))
}

fn file_offset(elf: &ElfFile64<'_, Endianness>, address: u64) -> Option<u64> {
    let endian = elf.endian();
    elf.elf_program_headers().iter().filter(|header| header.p_type(endian) == object::elf::PT_LOAD).find_map(|header| {
        let into = address.checked_sub(header.p_vaddr(endian))?;
        (into < header.p_filesz(endian)).then(|| header.p_offset(endian).checked_add(into))?
    })
}
