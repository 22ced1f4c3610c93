//! ELF files: symbols, sections, segments and identity of the programs and libraries of a target. The file is the target's and
//! may be anything: it is read in pieces, never mapped (a truncated mapping kills the reader), and every size has a bound.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader, SectionHeader, SectionTable, Sym, SymbolTable, VersionTable};
use object::read::{ReadCache, ReadRef, SectionIndex, StringTable};

use super::maps::Mapping;

/// The longest file looked at.
const LONGEST_FILE: u64 = 1 << 30;
/// The longest single piece of it (a symbol table, say) read into memory.
const LONGEST_PIECE: u64 = 128 << 20;
/// The most entries of the dynamic section, program headers or notes that are looked at.
const MOST_ENTRIES: usize = 4096;

type Header = FileHeader64<Endianness>;

/// Why a file is not usable as an ELF file.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It could not be read at all.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    /// Longer than 1 GiB.
    #[error("the file is {0} bytes long, more than is looked at")]
    TooLong(u64),
    /// Not a 64-bit little-endian ELF file of a supported machine.
    #[error("not an ELF file of a supported machine: {0}")]
    Unsupported(&'static str),
    /// Its tables contradict themselves.
    #[error("the ELF file is damaged: {0}")]
    Damaged(#[from] object::read::Error),
}

/// The machine the code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// `EM_X86_64`
    X86_64,
    /// `EM_AARCH64`
    Aarch64,
}

/// A defined symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Address as the file has it, before any load bias.
    pub address: u64,
    /// Bytes; 0 where the file does not say.
    pub size: u64,
    /// An indirect function (`STT_GNU_IFUNC`): the address is of its resolver, not of the function.
    pub indirect: bool,
}

/// A section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Address as the file has it, before any load bias; 0 where it is not loaded.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// A `PT_LOAD` segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    offset: u64,
    file_size: u64,
    executable: bool,
}

/// `ReadCache` with a bound on the single piece.
#[derive(Clone, Copy, Debug)]
struct Pieces<'a>(&'a ReadCache<File>);

impl<'a> ReadRef<'a> for Pieces<'a> {
    fn len(self) -> Result<u64, ()> {
        ReadRef::len(self.0)
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > LONGEST_PIECE {
            return Err(());
        }
        self.0.read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        self.0.read_bytes_at_until(range, delimiter)
    }
}

/// An opened ELF file. Sizes and addresses are as the file has them; nothing is known of a process.
#[derive(Debug)]
pub struct ElfFile {
    cache: ReadCache<File>,
    machine: Machine,
    segments: Vec<Segment>,
    /// What single symbols were found to be: each is asked for again for every process that maps the file, and a pass over the tables of a
    /// Python takes a tenth of a millisecond.
    symbols: RefCell<HashMap<String, Option<Symbol>>>,
}

impl ElfFile {
    /// Reads the headers.
    ///
    /// # Errors
    /// [`ElfError`] where it is no such file.
    pub fn parse(file: File) -> Result<Self, ElfError> {
        let length = file.metadata()?.len();
        if length > LONGEST_FILE {
            return Err(ElfError::TooLong(length));
        }
        let cache = ReadCache::new(file);
        let (machine, segments) = read_headers(Pieces(&cache))?;
        Ok(Self { cache, machine, segments, symbols: RefCell::default() })
    }

    fn data(&self) -> Pieces<'_> {
        Pieces(&self.cache)
    }

    fn header(&self) -> Result<(&Header, Endianness), ElfError> {
        Ok((Header::parse(self.data())?, Endianness::Little))
    }

    fn sections(&self) -> Result<SectionTable<'_, Header, Pieces<'_>>, ElfError> {
        let (header, endian) = self.header()?;
        Ok(header.sections(endian, self.data())?)
    }

    /// The machine the code is for.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// One defined symbol, from the dynamic table or, failing that, the full one.
    pub fn symbol(&self, name: &str) -> Option<Symbol> {
        if let Some(known) = self.symbols.borrow().get(name) {
            return *known;
        }
        let found = self.symbols(&[name]).remove(name);
        self.symbols.borrow_mut().insert(name.to_owned(), found);
        found
    }

    /// Those of the named symbols that are defined, in one pass over each table. A dynamic symbol goes before a full one, a
    /// global before a local, the default version before old ones; a damaged table is as good as none.
    pub fn symbols<'n>(&self, names: &[&'n str]) -> HashMap<&'n str, Symbol> {
        let mut found = HashMap::new();
        for table in [elf::SHT_DYNSYM, elf::SHT_SYMTAB] {
            let missing: Vec<&'n str> = names.iter().copied().filter(|name| !found.contains_key(name)).collect();
            if missing.is_empty() {
                break;
            }
            if let Ok(symbols) = self.symbol_table(table) {
                let versions = (table == elf::SHT_DYNSYM).then(|| self.versions()).flatten();
                let strings = self.bytes_of_section(symbols.string_section()).unwrap_or_default();
                find_symbols(&symbols, strings, versions.as_ref(), &missing, &mut found);
            }
        }
        found
    }

    fn symbol_table(&self, kind: u32) -> Result<SymbolTable<'_, Header, Pieces<'_>>, ElfError> {
        Ok(self.sections()?.symbols(Endianness::Little, self.data(), kind)?)
    }

    /// A section in one piece: reading names one by one would be a system call for each.
    fn bytes_of_section(&self, index: SectionIndex) -> Option<&[u8]> {
        let sections = self.sections().ok()?;
        sections.section(index).ok()?.data(Endianness::Little, self.data()).ok()
    }

    fn versions(&self) -> Option<VersionTable<'_, Header>> {
        self.sections().ok()?.versions(Endianness::Little, self.data()).ok()?
    }

    /// Whether the file offers any symbol to others: a library does, a static program does not.
    pub fn exports_symbols(&self) -> bool {
        let Ok(table) = self.symbol_table(elf::SHT_DYNSYM) else { return false };
        table.iter().any(|symbol| is_defined(symbol) && symbol.st_bind() != elf::STB_LOCAL)
    }

    /// The section of a name, `.PyRuntime` for one.
    pub fn section(&self, name: &str) -> Option<Section> {
        let sections = self.sections().ok()?;
        let (_, section) = sections.section_by_name(Endianness::Little, name.as_bytes())?;
        let endian = Endianness::Little;
        Some(Section { address: section.sh_addr(endian), size: section.sh_size(endian) })
    }

    /// Where in the file the byte of an address is; `None` outside every loaded segment.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.file_size).then_some(())?;
            segment.offset.checked_add(within)
        })
    }

    /// The file's bytes at an address: at most `limit`, fewer where the segment or the file ends.
    pub fn bytes_at(&self, address: u64, limit: u64) -> Option<&[u8]> {
        let segment = self
            .segments
            .iter()
            .find(|segment| address.checked_sub(segment.address).is_some_and(|within| within < segment.file_size))?;
        let within = address - segment.address;
        let offset = segment.offset.checked_add(within)?;
        let in_file = ReadRef::len(self.data()).ok()?.checked_sub(offset)?;
        let size = limit.min(segment.file_size - within).min(in_file);
        self.data().read_bytes_at(offset, size).ok()
    }

    /// What is to be added to the file's addresses in a process, from its mappings of this very file (others must have been
    /// left out); `None` where no mapping fits a segment. Modulo 2^64: use `wrapping_add`.
    pub fn load_bias<'m>(&self, mappings: impl IntoIterator<Item = &'m Mapping>) -> Option<u64> {
        const PAGE: u64 = 4096;
        let mut best = None;
        for mapping in mappings {
            for segment in &self.segments {
                // The loader maps whole pages: both ends of a segment are rounded outwards.
                let first = segment.offset & !(PAGE - 1);
                let end = segment.offset.checked_add(segment.file_size)?.checked_next_multiple_of(PAGE)?;
                let fits = (first..end).contains(&mapping.offset) && segment.executable == mapping.permissions.execute;
                if fits {
                    let address = segment.address.wrapping_sub(segment.offset).wrapping_add(mapping.offset);
                    let bias = mapping.start.wrapping_sub(address);
                    if segment.executable {
                        return Some(bias);
                    }
                    best = best.or(Some(bias));
                }
            }
        }
        best
    }

    /// The `NT_GNU_BUILD_ID` note.
    pub fn build_id(&self) -> Option<Vec<u8>> {
        let (header, endian) = self.header().ok()?;
        let segments = header.program_headers(endian, self.data()).ok()?;
        for segment in segments.iter().take(MOST_ENTRIES) {
            let Ok(Some(mut notes)) = segment.notes(endian, self.data()) else { continue };
            for _ in 0..MOST_ENTRIES {
                let Ok(Some(note)) = notes.next() else { break };
                if note.n_type(endian) == elf::NT_GNU_BUILD_ID && note.name() == elf::ELF_NOTE_GNU {
                    return Some(note.desc().iter().copied().take(64).collect());
                }
            }
        }
        None
    }

    /// The libraries it asks for (`DT_NEEDED`), in order.
    pub fn needed(&self) -> Vec<String> {
        self.dynamic_strings(elf::DT_NEEDED)
    }

    /// The name it goes by as a library (`DT_SONAME`).
    pub fn soname(&self) -> Option<String> {
        self.dynamic_strings(elf::DT_SONAME).into_iter().next()
    }

    fn dynamic_strings(&self, tag: u32) -> Vec<String> {
        let Ok(sections) = self.sections() else { return Vec::new() };
        let Ok(Some((entries, strings))) = sections.dynamic(Endianness::Little, self.data()) else { return Vec::new() };
        let strings = sections
            .strings(Endianness::Little, self.data(), strings)
            .unwrap_or_else(|_: object::read::Error| StringTable::default());
        let wanted = |entry: &&elf::Dyn64<Endianness>| entry.tag32(Endianness::Little) == Some(tag);
        entries
            .iter()
            .take(MOST_ENTRIES)
            .filter(wanted)
            .filter_map(|entry| strings.get(u32::try_from(entry.d_val(Endianness::Little)).ok()?).ok())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }

    /// The loader it asks for (`PT_INTERP`); none in a static program, a library or a loader.
    pub fn interpreter(&self) -> Option<String> {
        let (header, endian) = self.header().ok()?;
        let segments = header.program_headers(endian, self.data()).ok()?;
        let path =
            segments.iter().take(MOST_ENTRIES).find_map(|segment| segment.interpreter(endian, self.data()).ok()?)?;
        Some(String::from_utf8_lossy(path).into_owned())
    }
}

fn read_headers(data: Pieces<'_>) -> Result<(Machine, Vec<Segment>), ElfError> {
    // Class and byte order first: the library would read another class's fields at the wrong places.
    let ident = data.read_bytes_at(0, 16).map_err(|()| ElfError::Unsupported("too short"))?;
    match ident {
        [0x7f, b'E', b'L', b'F', elf::ELFCLASS64, elf::ELFDATA2LSB, ..] => {}
        [0x7f, b'E', b'L', b'F', ..] => return Err(ElfError::Unsupported("not 64 bits, little-endian")),
        _ => return Err(ElfError::Unsupported("no ELF header")),
    }
    let header = Header::parse(data)?;
    let endian = Endianness::Little;
    let machine = match header.e_machine.get(endian) {
        elf::EM_X86_64 => Machine::X86_64,
        elf::EM_AARCH64 => Machine::Aarch64,
        _ => return Err(ElfError::Unsupported("neither x86-64 nor aarch64")),
    };
    let segments = header.program_headers(endian, data)?;
    let loaded = segments.iter().take(MOST_ENTRIES).filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let segment = |segment: &elf::ProgramHeader64<Endianness>| Segment {
        address: segment.p_vaddr(endian),
        offset: segment.p_offset(endian),
        file_size: segment.p_filesz(endian),
        executable: segment.p_flags(endian) & elf::PF_X != 0,
    };
    Ok((machine, loaded.map(segment).collect()))
}

fn is_defined(symbol: &elf::Sym64<Endianness>) -> bool {
    symbol.st_shndx(Endianness::Little) != elf::SHN_UNDEF && symbol.st_value(Endianness::Little) != 0
}

fn find_symbols<'d, 'n>(
    table: &SymbolTable<'d, Header, Pieces<'d>>,
    strings: &[u8],
    versions: Option<&VersionTable<'d, Header>>,
    names: &[&'n str],
    found: &mut HashMap<&'n str, Symbol>,
) {
    let wanted: HashMap<&[u8], &'n str> = names.iter().map(|name| (name.as_bytes(), *name)).collect();
    let mut second_choice = HashMap::new();
    for (index, symbol) in table.enumerate() {
        let types = [elf::STT_FUNC, elf::STT_OBJECT, elf::STT_NOTYPE, elf::STT_GNU_IFUNC];
        if !is_defined(symbol) || !types.contains(&symbol.st_type()) {
            continue;
        }
        let at = symbol.st_name(Endianness::Little) as usize;
        let Some(symbol_name) = strings.get(at..).and_then(|rest| rest.split(|&byte| byte == 0).next()) else {
            continue;
        };
        let Some(name) = wanted.get(symbol_name).copied() else { continue };
        // An old version kept for old programs (`memcpy@GLIBC_2.2.5`) is not what is called today.
        let old = versions.is_some_and(|versions| versions.version_index(Endianness::Little, index).is_hidden());
        let into = if old || symbol.st_bind() == elf::STB_LOCAL { &mut second_choice } else { &mut *found };
        into.entry(name).or_insert(Symbol {
            address: symbol.st_value(Endianness::Little),
            size: symbol.st_size(Endianness::Little),
            indirect: symbol.st_type() == elf::STT_GNU_IFUNC,
        });
    }
    for (name, symbol) in second_choice {
        found.entry(name).or_insert(symbol);
    }
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
