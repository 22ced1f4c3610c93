//! Code objects: from what the kernel side copied, or from the memory of the process.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::layout::{CODE_READ, Layout};
use super::line_table::{LineTable, LineTableKind};
use super::with_cleanup::CleanUp;

/// The most bytes of a str's data that are read.
pub const LONGEST_STR: usize = 4 << 10;

/// The most bytes of a line table that are read. The longest of the standard library's is 20 KiB.
pub const LONGEST_TABLE: usize = 1 << 20;

/// The memory of a process.
pub trait Memory {
    /// Fills the whole of `buffer` from `address`.
    ///
    /// # Errors
    /// Where not every byte can be read; the buffer then holds no meaning.
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Reads one little-endian 64-bit word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn read_u64(&self, address: u64) -> io::Result<u64> {
        let mut word = [0; 8];
        self.read(address, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Reads one little-endian 32-bit word.
    ///
    /// # Errors
    /// As [`Memory::read`].
    fn read_u32(&self, address: u64) -> io::Result<u32> {
        let mut word = [0; 4];
        self.read(address, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}

impl<F: Fn(u64, &mut [u8]) -> io::Result<()>> Memory for F {
    fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        self(address, buffer)
    }
}

/// Why a code object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// Memory of the process could not be read.
    #[error("{what} of the code object at {address:#x} cannot be read")]
    Memory {
        /// Which part of it.
        what: &'static str,
        /// Address of the code object.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What stands there is not what CPython writes: the code object is gone, or it never was one.
    #[error("there is no code object at {address:#x}: {what} is not one of CPython's")]
    NotACodeObject {
        /// Which part of it.
        what: &'static str,
        /// Address of what was taken for a code object.
        address: u64,
    },
}

/// A str as CPython stores it, cut out of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawStr<'a> {
    /// Bytes a character: 1 (Latin-1), 2 (UCS-2), 4 (UCS-4).
    pub kind: u32,
    /// The characters, little-endian. A last one that is cut off is left out.
    pub bytes: &'a [u8],
}

impl RawStr<'_> {
    /// The characters. What is no character (lone surrogates, from undecodable file names; numbers beyond Unicode) is U+FFFD;
    /// control characters stay: escaping is for who prints. `None`: a kind that CPython does not have.
    pub fn decode(&self) -> Option<String> {
        let character = |value: u32| char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER);
        matches!(self.kind, 1 | 2 | 4).then(|| self.values().into_iter().map(character).collect())
    }

    /// The bytes of a file's name of which Python could not make text: it keeps each such byte as a surrogate (PEP 383). `None`:
    /// it has none. Python's encoding of names is taken for UTF-8.
    pub fn undecodable(&self) -> Option<Vec<u8>> {
        const BYTES: std::ops::RangeInclusive<u32> = 0xdc80..=0xdcff;
        let values = self.values();
        if !values.iter().any(|value| BYTES.contains(value)) {
            return None;
        }
        let mut name = Vec::with_capacity(values.len());
        for value in values {
            match char::from_u32(value) {
                Some(character) => name.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
                None if BYTES.contains(&value) => name.push((value & 0xff) as u8),
                None => return None,
            }
        }
        Some(name)
    }

    /// The numbers of the characters; none of an unknown kind.
    fn values(&self) -> Vec<u32> {
        match self.kind {
            1 => self.bytes.iter().copied().map(u32::from).collect(),
            2 => self.bytes.as_chunks::<2>().0.iter().map(|unit| u16::from_le_bytes(*unit).into()).collect(),
            4 => self.bytes.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            _ => Vec::new(),
        }
    }
}

/// The parts of a code object as the kernel side copied them.
#[derive(Clone, Copy, Debug)]
pub struct RawCode<'a> {
    /// `co_firstlineno`.
    pub first_line: u32,
    /// `co_filename`.
    pub filename: RawStr<'a>,
    /// `co_name`.
    pub name: RawStr<'a>,
    /// `co_qualname`; `None` up to 3.10, which has none.
    pub qualified_name: Option<RawStr<'a>>,
    /// `co_lnotab` or `co_linetable`.
    pub line_table: &'a [u8],
}

/// What is known of a function: where it stands and how its instructions tell their lines.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CodeObject {
    /// `co_filename`, as the process has it: it may be relative, `<string>`, or of another mount namespace. Not escaped.
    pub filename: String,
    /// The file's name where it is no text (PEP 383).
    pub undecodable_filename: Option<Vec<u8>>,
    /// `co_name`. Not escaped.
    pub name: String,
    /// `co_qualname`; up to 3.10, which has none, the name.
    pub qualified_name: String,
    /// `co_firstlineno`: the first decorator's line or that of `def`; from 1, 0 where the process holds nonsense.
    pub first_line: u32,
    /// Its instructions' lines.
    pub lines: LineTable,
    /// Instructions that have the line of another ([`with_cleanup`](super::with_cleanup)); empty where nothing is to be mended.
    pub clean_ups: Vec<CleanUp>,
}

impl CodeObject {
    /// Makes one from the parts that the kernel side copied. `None`: a str is of no kind that CPython has.
    pub fn from_raw(kind: LineTableKind, raw: &RawCode<'_>) -> Option<CodeObject> {
        let name = raw.name.decode()?;
        Some(CodeObject {
            filename: raw.filename.decode()?,
            undecodable_filename: raw.filename.undecodable(),
            qualified_name: match &raw.qualified_name {
                Some(text) => text.decode()?,
                None => name.clone(),
            },
            name,
            first_line: sane_first_line(raw.first_line),
            clean_ups: Vec::new(),
            lines: LineTable { kind, bytes: raw.line_table.to_vec(), bytecode_bytes: None },
        })
    }

    /// The source line of the instruction at byte `position`, as [`super::line_table::line_of`].
    pub fn line_of(&self, position: i32) -> Option<u32> {
        let moved = u32::try_from(position)
            .ok()
            .and_then(|at| self.clean_ups.iter().find(|range| (range.start..range.end).contains(&at)));
        let position = moved.and_then(|range| i32::try_from(range.setup).ok()).unwrap_or(position);
        self.lines.line_of(self.first_line, position)
    }

    /// All lines that have instructions, ascending.
    pub fn own_lines(&self) -> Vec<u32> {
        self.lines.lines(self.first_line)
    }

    /// The name of its file.
    pub fn path(&self) -> &Path {
        match &self.undecodable_filename {
            Some(bytes) => Path::new(OsStr::from_bytes(bytes)),
            None => Path::new(&self.filename),
        }
    }

    /// Can it have been compiled from this text? A function's `def` or `class` has its name between its first line (a decorator's)
    /// and its first statement; a lambda and a comprehension have their word there. What has no name, as a module, only has to be
    /// no longer than the text.
    pub fn can_be_of(&self, text: &[String]) -> bool {
        let word = match self.name.as_str() {
            "<lambda>" => "lambda",
            "<listcomp>" | "<setcomp>" | "<dictcomp>" | "<genexpr>" => "for",
            name if name.starts_with('<') => "",
            name => name,
        };
        let lines = self.own_lines();
        let index = |line: u32| (line as usize).saturating_sub(1);
        let first = index(self.first_line);
        let statement = lines.iter().copied().find(|line| *line > self.first_line).unwrap_or(self.first_line);
        let last = index(lines.last().copied().unwrap_or(0).max(statement));
        last < text.len()
            && text.get(first..=index(statement)).is_some_and(|head| head.iter().any(|line| line.contains(word)))
    }

    /// The last line it reaches.
    pub fn last_line(&self) -> u32 {
        self.lines.last_line(self.first_line)
    }
}

/// `co_firstlineno` is an int: a negative one is nonsense, of a hostile process or of `code.replace`.
fn sane_first_line(line: u32) -> u32 {
    if i32::try_from(line).is_ok() { line } else { 0 }
}

/// Reads the code object at `address` and its fingerprint, which is to be compared with the one wanted: the code object may
/// have died, and another stand there now.
///
/// # Errors
/// [`CodeError`]: a part cannot be read, or is not what CPython writes.
pub fn read(memory: &(impl Memory + ?Sized), address: u64, layout: &Layout) -> Result<(CodeObject, u32), CodeError> {
    let mut head = [0; CODE_READ];
    let at = address.wrapping_add(layout.code_base.into());
    memory.read(at, &mut head).map_err(|source| CodeError::Memory { what: "the head", address, source })?;
    let pointer = |offset: u32| word::<8>(&head, offset).map_or(0, u64::from_le_bytes);
    let text = |what, offset| read_str(memory, address, what, pointer(offset), layout);
    let (name, _) = text("co_name", layout.code_name)?;
    let has_qualified_name = word::<8>(&head, layout.code_qualname).is_some();
    let (filename, undecodable_filename) = text("co_filename", layout.code_filename)?;
    let code = CodeObject {
        filename,
        undecodable_filename,
        qualified_name: if has_qualified_name { text("co_qualname", layout.code_qualname)?.0 } else { name.clone() },
        name,
        first_line: sane_first_line(word::<4>(&head, layout.code_first_line).map_or(0, u32::from_le_bytes)),
        clean_ups: Vec::new(),
        lines: LineTable {
            kind: layout.line_table_kind,
            bytes: read_table(memory, address, pointer(layout.code_line_table), layout)?,
            bytecode_bytes: None,
        },
    };
    Ok((code, fingerprint(&head, layout)))
}

/// Tells two code objects apart that stand at one address one after the other: `fingerprint_of` in probes/bpf/python.bpf.h.
/// `head` is what is read of the code object from [`Layout::code_base`] on.
pub fn fingerprint(head: &[u8; CODE_READ], layout: &Layout) -> u32 {
    let field = |offset| word::<4>(head, offset).map_or(0, u32::from_le_bytes);
    // The low half is what is wanted: heaps differ there.
    let place = |offset| (word::<8>(head, offset).map_or(0, u64::from_le_bytes) >> 4) as u32;
    let names =
        place(layout.code_filename).wrapping_mul(0x85eb_ca6b) ^ place(layout.code_name).wrapping_mul(0xc2b2_ae35);
    let version = field(layout.code_version);
    let table = place(layout.code_line_table);
    // Never 0: that means "not read" to the kernel side.
    (table ^ names ^ version.wrapping_mul(0x9e37_79b1) ^ (field(layout.code_first_line) << 20)) | 1
}

/// The `N` bytes at an offset that may be absent.
fn word<const N: usize>(bytes: &[u8], offset: u32) -> Option<[u8; N]> {
    bytes.get(offset as usize..)?.first_chunk().copied()
}

/// A str, and its bytes where it is the name of a file that is no text.
fn read_str(
    memory: &(impl Memory + ?Sized),
    address: u64,
    what: &'static str,
    at: u64,
    layout: &Layout,
) -> Result<(String, Option<Vec<u8>>), CodeError> {
    let failed = |source| CodeError::Memory { what, address, source };
    let wrong = || CodeError::NotACodeObject { what, address };
    let length = memory.read_u64(at.wrapping_add(layout.str_length.into())).map_err(failed)?;
    let state = memory.read_u32(at.wrapping_add(layout.str_state.into())).map_err(failed)?;
    let bit = |number: u32| state.wrapping_shr(number) & 1 == 1;
    let kind = state.wrapping_shr(layout.str_kind_shift) & 7;
    let ascii = bit(layout.str_ascii_bit);
    // A str that is not compact is one that a C extension made the old way: no compiler makes names of it.
    if !bit(layout.str_compact_bit)
        || !matches!(kind, 1 | 2 | 4)
        || (ascii && kind != 1)
        || i64::try_from(length).is_err()
    {
        return Err(wrong());
    }
    let data = if ascii { layout.str_ascii_data } else { layout.str_compact_data };
    let longest = LONGEST_STR as u64 / u64::from(kind);
    let bytes = usize::try_from(length.min(longest) * u64::from(kind)).map_err(|_| wrong())?;
    let mut buffer = vec![0; bytes];
    memory.read(at.wrapping_add(data.into()), &mut buffer).map_err(failed)?;
    let text = RawStr { kind, bytes: &buffer };
    Ok((text.decode().ok_or_else(wrong)?, text.undecodable()))
}

fn read_table(memory: &(impl Memory + ?Sized), address: u64, at: u64, layout: &Layout) -> Result<Vec<u8>, CodeError> {
    let what = "the line table";
    let failed = |source| CodeError::Memory { what, address, source };
    let length = memory.read_u64(at.wrapping_add(layout.bytes_length.into())).map_err(failed)?;
    // Half a table would give wrong lines: a longer one is refused, not cut.
    let length = usize::try_from(length).ok().filter(|length| *length <= LONGEST_TABLE);
    let mut table = vec![0; length.ok_or(CodeError::NotACodeObject { what, address })?];
    memory.read(at.wrapping_add(layout.bytes_data.into()), &mut table).map_err(failed)?;
    Ok(table)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::layout::{for_version, known};
    use super::*;

    fn decoded(kind: u32, bytes: &[u8]) -> Option<String> {
        RawStr { kind, bytes }.decode()
    }

    #[test]
    fn strs_of_every_kind() {
        assert_eq!(decoded(1, b"caf\xe9\n").as_deref(), Some("caf\u{e9}\n"));
        assert_eq!(
            decoded(2, &[0x3b1u16, 0xdc80, 0x4e2d].map(u16::to_le_bytes).concat()).as_deref(),
            Some("α\u{fffd}中")
        );
        // Python's UCS-2 is not UTF-16: a pair of surrogates is two characters.
        assert_eq!(
            decoded(2, &[0xd83du16, 0xde00].map(u16::to_le_bytes).concat()).as_deref(),
            Some("\u{fffd}\u{fffd}")
        );
        assert_eq!(decoded(4, &[0x1f600u32, 0x11_0000].map(u32::to_le_bytes).concat()).as_deref(), Some("😀\u{fffd}"));
        assert_eq!(decoded(4, &[b'a', 0, 0, 0, b'b']).as_deref(), Some("a"));
        assert_eq!(decoded(3, b"abc"), None);
    }

    #[test]
    fn names_that_are_no_text() {
        let text: Vec<u8> = [0x61u16, 0xdce9, 0x65e5].map(u16::to_le_bytes).concat();
        assert_eq!(RawStr { kind: 2, bytes: &text }.undecodable().unwrap(), b"a\xe9\xe6\x97\xa5");
        let other: Vec<u8> = [0xdce9u16, 0xd800].map(u16::to_le_bytes).concat();
        assert_eq!(RawStr { kind: 2, bytes: &other }.undecodable(), None);
        assert_eq!(RawStr { kind: 1, bytes: b"a.py" }.undecodable(), None);
    }

    #[test]
    fn from_what_the_kernel_copied() {
        let text = |bytes| RawStr { kind: 1, bytes };
        let mut raw = RawCode {
            first_line: 3,
            filename: text(b"copy.py"),
            name: text(b"f"),
            qualified_name: None,
            line_table: &[2, 1],
        };
        let code = CodeObject::from_raw(LineTableKind::Lnotab, &raw).unwrap();
        assert_eq!((code.qualified_name.as_str(), code.line_of(-1), code.line_of(2)), ("f", Some(3), Some(4)));
        raw.qualified_name = Some(RawStr { kind: 0, bytes: b"x" });
        raw.first_line = u32::MAX;
        assert_eq!(CodeObject::from_raw(LineTableKind::Lnotab, &raw), None);
    }

    #[test]
    fn what_a_text_can_be_of() {
        let text: Vec<String> = "import os\n@mark\ndef grow(\n    size):\n    a = 1\nf = lambda: [\n    x for x in f]"
            .lines()
            .map(str::to_owned)
            .collect();
        // Lines by co_lnotab: one instruction on each of `steps` lines further down.
        let code = |name: &str, first_line, steps: &[u8]| CodeObject {
            filename: "a.py".into(),
            undecodable_filename: None,
            name: name.into(),
            qualified_name: name.into(),
            first_line,
            lines: LineTable {
                kind: LineTableKind::Lnotab,
                bytes: steps.iter().flat_map(|step| [2, *step]).collect(),
                bytecode_bytes: None,
            },
            clean_ups: Vec::new(),
        };
        for (name, first_line, steps) in
            [("<module>", 1, &[1, 4, 1][..]), ("grow", 2, &[3]), ("<lambda>", 6, &[1]), ("<listcomp>", 7, &[])]
        {
            let code = code(name, first_line, steps);
            assert!(code.can_be_of(&text), "{name}");
            assert!(!code.can_be_of(&["\n".to_owned(), String::new(), String::new()]), "{name}");
            assert!(!code.can_be_of(&[]), "{name}");
        }
        assert!(!code("grow", 5, &[1]).can_be_of(&text), "it stands above");
        assert!(!code("shrink", 2, &[3]).can_be_of(&text), "it has another name");
        assert!(!code("<module>", 1, &[7]).can_be_of(&text), "it is longer");
        assert!(!code("grow", 0, &[3]).can_be_of(&[]), "nonsense");
    }

    /// A process whose every address holds the same few bytes over and over.
    struct Repeated(Vec<u8>);

    impl Memory for Repeated {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            for (index, byte) in buffer.iter_mut().enumerate() {
                *byte = self.0[address.wrapping_add(index as u64) as usize % 64];
            }
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn nonsense_ends_in_an_error_or_in_bounded_text(bytes in prop::collection::vec(any::<u8>(), 64..=64), address: u64) {
            for layout in known() {
                if let Ok((code, _)) = read(&Repeated(bytes.clone()), address, layout) {
                    prop_assert!(code.filename.chars().count() <= LONGEST_STR && code.lines.bytes.len() <= LONGEST_TABLE);
                }
            }
        }
    }

    #[test]
    fn memory_that_cannot_be_read_names_the_part() {
        let memory = |_: u64, _: &mut [u8]| -> io::Result<()> { Err(io::ErrorKind::NotFound.into()) };
        let error = read(&memory, 0x1000, for_version(3, 12).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "the head of the code object at 0x1000 cannot be read");
    }
}
