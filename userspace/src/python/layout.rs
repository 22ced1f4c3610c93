//! Where things stand in each minor version of CPython, as data made by `cargo xtask layouts`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::line_table::LineTableKind;
use super::runtime::RuntimeKind;
use super::thread_slot::SlotKind;

/// A field that this Python does not have (`RM_ABSENT` of probes/bpf/rmprof.h).
pub const ABSENT: u32 = u32::MAX;

/// Bytes read of each frame, from [`Layout::frame_base`] on (`RM_FRAME_READ`).
pub const FRAME_READ: usize = 104;

/// Bytes read of each code object, from [`Layout::code_base`] on (`RM_CODE_READ`).
pub const CODE_READ: usize = 96;

/// `RM_POSITION_BYTES`: a 32-bit byte offset in the bytecode (up to 3.9).
pub const POSITION_BYTES: u32 = 0;
/// `RM_POSITION_UNITS`: a 32-bit number of two-byte code units (3.10).
pub const POSITION_UNITS: u32 = 1;
/// `RM_POSITION_POINTER`: the address of the instruction, inside the code object (3.11 and later).
pub const POSITION_POINTER: u32 = 2;

/// How the compiler writes the clean-up of a `with` block (Python/compile.c, compiler_with and compiler_call_exit_with_nones), by
/// opcode: see `struct rm_clean_up`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct CleanUpCodes {
    /// What may load the first `None`; one or two.
    pub load: Vec<u8>,
    /// What may load the second and the third; one or two.
    pub again: Vec<u8>,
    /// The call, and what the interpreter makes of it.
    pub calls: Vec<u8>,
    /// The call's argument.
    pub argument: u8,
    /// The call after an exception.
    pub raised: u8,
    /// What may stand before: opcode, argument; up to three.
    pub before: Vec<(u8, u8)>,
    /// Hides the first instruction of a line (3.12 and later).
    pub line: Option<u8>,
}

impl CleanUpCodes {
    /// The lists have to fit in `struct rm_clean_up`.
    fn validate(&self) -> Result<(), String> {
        let lists = [
            ("load", self.load.len(), 1..=2),
            ("again", self.again.len(), 1..=2),
            ("before", self.before.len(), 0..=3),
        ];
        match lists.into_iter().find(|(_, length, room)| !room.contains(length)) {
            Some((name, length, _)) => Err(format!("{name} of the clean-up has {length} opcodes")),
            None => Ok(()),
        }
    }
}

/// The opcodes that do not just lead to the next instruction (Python/compile.c, Lib/opcode.py): see [`super::flow`].
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct FlowCodes {
    /// What a jump's argument counts: bytes, or units of two.
    pub argument_bytes: u8,
    /// Stands in room that the instruction before it has for itself (3.11 and later).
    pub cache: Option<u8>,
    /// Has higher bits of the next argument.
    pub extended: u8,
    /// Jump so far ahead of the next instruction, or lead there in an exception.
    pub forward: Vec<u8>,
    /// Jump so far back from the next.
    pub backward: Vec<u8>,
    /// Jump to a place.
    pub absolute: Vec<u8>,
    /// Do not lead to the next.
    pub ends: Vec<u8>,
    /// Of those that jump back, what an `await` that is not over does.
    pub awaits: Vec<u8>,
}

/// A kind of build whose structs differ from those of others of its minor version, by what configure was told.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// As it comes, with the GIL.
    #[default]
    Release,
    /// `--with-pydebug`.
    Debug,
    /// `--disable-gil`.
    FreeThreaded,
    /// Both.
    FreeThreadedDebug,
}

impl Variant {
    /// By what is told of a file.
    pub fn of(free_threaded: bool, debug: bool) -> Self {
        match (free_threaded, debug) {
            (false, false) => Self::Release,
            (false, true) => Self::Debug,
            (true, false) => Self::FreeThreaded,
            (true, true) => Self::FreeThreadedDebug,
        }
    }

    /// Has it no GIL?
    pub fn is_free_threaded(self) -> bool {
        matches!(self, Self::FreeThreaded | Self::FreeThreadedDebug)
    }

    /// What follows the version's number where CPython names such a build: `t`, `d`.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Release => "",
            Self::Debug => "d",
            Self::FreeThreaded => "t",
            Self::FreeThreadedDebug => "td",
        }
    }
}

/// The layout of one minor version and variant, x86-64: offsets in bytes from the start of the object, unless said.
/// The names up to `arena_bytes` are those of `struct rm_layout`; the others serve user space alone.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// First number of the version.
    pub major: u8,
    /// Second number of the version.
    pub minor: u8,
    /// Which of its builds.
    #[serde(default)]
    pub variant: Variant,
    /// The first release of the minor that is laid out like this.
    pub since_micro: u8,
    /// Of which release the headers were that the offsets come from.
    pub headers_of: String,
    /// `PyThreadState` to the frame, or to the `_PyCFrame` where `thread_head_hop` is there.
    pub thread_head: u32,
    /// `_PyCFrame.current_frame` (3.11, 3.12).
    pub thread_head_hop: u32,
    /// `PyThreadState.thread_id`: `pthread_self()` of its thread.
    pub thread_thread_id: u32,
    /// `PyThreadState.current_executor`: not NULL while it runs code of the JIT, which does not always keep the position (3.14 and later).
    pub thread_executor: u32,
    /// Where the read of a frame starts.
    pub frame_base: u32,
    /// Within that read: the caller's frame, u64.
    pub frame_back: u32,
    /// Within that read: the code object, u64.
    pub frame_code: u32,
    /// Bits of that word which are a tag and no part of the address (3.14 and later), else 0.
    pub frame_code_tags: u32,
    /// Within that read: i32 or u64 by `position_kind`.
    pub frame_position: u32,
    /// Within that read: i8 owner.
    pub frame_owner: u32,
    /// Within that read: i32, which of the code object's copies of the bytecode is executed (free-threaded, 3.14 and later).
    pub frame_bytecode_index: u32,
    /// Frames with this owner or more are the interpreter's own.
    pub owner_skip: u32,
    /// [`POSITION_BYTES`], [`POSITION_UNITS`] or [`POSITION_POINTER`].
    pub position_kind: u32,
    /// Where the read of a code object starts.
    pub code_base: u32,
    /// Within that read: i32 `co_firstlineno`.
    pub code_first_line: u32,
    /// Within that read: str `co_filename`.
    pub code_filename: u32,
    /// Within that read: str `co_name`.
    pub code_name: u32,
    /// Within that read: str `co_qualname` (3.11 and later).
    pub code_qualname: u32,
    /// Within that read: bytes `co_lnotab` or `co_linetable`.
    pub code_line_table: u32,
    /// Within that read: bytes `co_code` (up to 3.10).
    pub code_code: u32,
    /// Within that read: u32 `co_version` (3.12 and later).
    pub code_version: u32,
    /// From the start of the code object: the first instruction (3.11 and later).
    pub code_bytecode: u32,
    /// From the start of the code object: pointer to its copies of the bytecode, one a thread (free-threaded, 3.14 and later).
    pub code_thread_bytecode: u32,
    /// And from there to the first copy's address.
    pub thread_bytecode_entries: u32,
    /// `PyObject.ob_type`.
    pub object_type: u32,
    /// Characters of a str, i64.
    pub str_length: u32,
    /// State word of a str, u32.
    pub str_state: u32,
    /// Data of a compact ASCII str.
    pub str_ascii_data: u32,
    /// Data of another compact str.
    pub str_compact_data: u32,
    /// `state >> shift & 7`: bytes a character.
    pub str_kind_shift: u32,
    /// Bit of the state: the data follows the head.
    pub str_compact_bit: u32,
    /// Bit of the state: all characters are ASCII.
    pub str_ascii_bit: u32,
    /// Length of a bytes object, i64.
    pub bytes_length: u32,
    /// Data of a bytes object.
    pub bytes_data: u32,
    /// What pymalloc asks of `mmap` at a time, bytes.
    pub arena_bytes: u32,
    /// Flags of the `mmap` by which mimalloc reserves address space for what it hands out (free-threaded).
    pub reserve_flags: u32,
    /// `PyThreadState.interp`.
    pub thread_interpreter: u32,
    /// `PyInterpreterState.gc.collecting`, i32: garbage is collected (3.9 and later).
    pub interpreter_collecting: u32,
    /// `PyThreadState` to the u32 that tells whether it holds the GIL (3.12 and later).
    pub thread_attached: u32,
    /// Which bits of that word.
    pub attached_mask: u32,
    /// And what they are while it does.
    pub attached_value: u32,
    /// `_PyRuntime.gc.collecting` (3.7, 3.8).
    pub runtime_collecting: u32,
    /// `_PyRuntime` to the thread state that holds the GIL (3.7 to 3.11).
    pub runtime_holder: u32,
    /// Where the state of the whole process is found, called `_PyRuntime` in what follows.
    pub runtime: RuntimeKind,
    /// `_PyRuntime` to its first interpreter (`interpreters.head`).
    pub runtime_interpreters_head: u32,
    /// `PyInterpreterState.next`.
    pub interpreter_next: u32,
    /// `PyInterpreterState` to its first thread state.
    pub interpreter_threads_head: u32,
    /// `PyThreadState.next`.
    pub thread_next: u32,
    /// `PyThreadState.native_thread_id`: the number in the process's own PID namespace (3.11 and later).
    pub native_thread_id: u32,
    /// How a thread's state is found.
    pub thread_slot: SlotKind,
    /// `_PyRuntime` to the number of the pthread key of the thread state, where that is how; the i32 before it tells whether the key is
    /// made.
    pub runtime_key: u32,
    /// `_PyRuntime` to the thread state that ends the interpreter (`_finalizing`), NULL until then; in 3.6 it has a symbol of its own.
    pub runtime_finalizing: u32,
    /// `PyInterpreterState.eval_frame`, where there is no function to set it (up to 3.8).
    pub interpreter_eval_frame: u32,
    /// How the clean-up of a `with` block is told, where it has line events of its own (3.9 and later).
    pub clean_up: Option<CleanUpCodes>,
    /// Where instructions lead, where line events are not executions as they come (3.8 and later).
    pub flow: Option<FlowCodes>,
    /// How `co_lnotab` or `co_linetable` is written.
    pub line_table_kind: LineTableKind,
    /// For what no header says: the field, and where in CPython's source it is said.
    pub rules: BTreeMap<String, String>,
    /// Where `_Py_DebugOffsets` (3.13 and later) has the fields that are checked live: CPython's name, byte position.
    pub debug_offsets: BTreeMap<String, u32>,
}

/// The data files. A new minor is one line here, and its file.
const FILES: &[&str] = &[
    include_str!("../../layouts/3.6.json"),
    include_str!("../../layouts/3.7.json"),
    include_str!("../../layouts/3.8.json"),
    include_str!("../../layouts/3.9.json"),
    include_str!("../../layouts/3.10.json"),
    include_str!("../../layouts/3.11.json"),
    include_str!("../../layouts/3.12.json"),
    include_str!("../../layouts/3.13.json"),
    include_str!("../../layouts/3.14.json"),
    include_str!("../../layouts/3.15.json"),
];

/// All layouts, oldest version first, of each the variants in their order.
pub fn known() -> &'static [Layout] {
    static LAYOUTS: OnceLock<Vec<Layout>> = OnceLock::new();
    // A file that does not parse cannot be built in: a test reads them all.
    LAYOUTS.get_or_init(|| FILES.iter().filter_map(|text| of_file(text).ok()).flatten().collect())
}

/// The release build's layout, and those of the variants, each laid over it.
fn of_file(text: &str) -> Result<Vec<Layout>, serde_json::Error> {
    let mut release: Map<String, Value> = serde_json::from_str(text)?;
    let variants = release.remove("variants").unwrap_or_default();
    let variants: BTreeMap<Variant, Map<String, Value>> = serde_json::from_value(variants)?;
    let others = variants.into_iter().map(|(variant, difference)| {
        let mut layout = release.clone();
        lay_over(&mut layout, difference);
        Ok(Layout { variant, ..serde_json::from_value(layout.into())? })
    });
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let release: Layout = serde_json::from_value(release.into())?;
    Ok(std::iter::once(release).chain(others).collect())
}

fn lay_over(under: &mut Map<String, Value>, over: Map<String, Value>) {
    for (name, value) in over {
        match (under.get_mut(&name), value) {
            (Some(Value::Object(under)), Value::Object(over)) => lay_over(under, over),
            (_, value) => drop(under.insert(name, value)),
        }
    }
}

/// The layout of a version's release build, where it is known.
pub fn for_version(major: u8, minor: u8) -> Option<&'static Layout> {
    for_build(major, minor, Variant::Release)
}

/// The layout of a build, where it is known.
pub fn for_build(major: u8, minor: u8, variant: Variant) -> Option<&'static Layout> {
    known().iter().find(|layout| (layout.major, layout.minor, layout.variant) == (major, minor, variant))
}

/// The versions that are known, for a person: `3.6 to 3.15`.
pub fn supported_range() -> String {
    match known() {
        [] => "none".into(),
        [only] => format!("{}.{}", only.major, only.minor),
        [first, .., last] => format!("{}.{} to {}.{}", first.major, first.minor, last.major, last.minor),
    }
}

impl Layout {
    /// Whether all offsets fit in the reads they are relative to, and all that must be there is: a sentence where not.
    ///
    /// # Errors
    /// The first field found wrong.
    pub fn validate(&self) -> Result<(), String> {
        self.validate_reads()?;
        // No struct of CPython that is looked into is longer; sizeof(_PyRuntimeState) of 3.13 is 283,408.
        const LONGEST: u32 = 1 << 20;
        let offsets = [
            ("thread_head", self.thread_head),
            ("thread_thread_id", self.thread_thread_id),
            ("object_type", self.object_type),
            ("str_length", self.str_length),
            ("str_state", self.str_state),
            ("str_ascii_data", self.str_ascii_data),
            ("str_compact_data", self.str_compact_data),
            ("bytes_length", self.bytes_length),
            ("bytes_data", self.bytes_data),
            ("runtime_interpreters_head", self.runtime_interpreters_head),
            ("interpreter_next", self.interpreter_next),
            ("interpreter_threads_head", self.interpreter_threads_head),
            ("thread_next", self.thread_next),
            ("thread_interpreter", self.thread_interpreter),
        ];
        let optional = [
            ("interpreter_collecting", self.interpreter_collecting),
            ("thread_attached", self.thread_attached),
            ("runtime_collecting", self.runtime_collecting),
            ("runtime_holder", self.runtime_holder),
        ];
        let present = optional.into_iter().filter(|(_, offset)| *offset != ABSENT);
        if let Some((name, offset)) = offsets.into_iter().chain(present).find(|(_, offset)| *offset > LONGEST) {
            return Err(format!("{name} is {offset}, which is beyond any struct"));
        }
        if self.runtime == RuntimeKind::Symbol && self.runtime_finalizing > LONGEST {
            return Err(format!("runtime_finalizing is {}, which is beyond any struct", self.runtime_finalizing));
        }
        if self.thread_slot == SlotKind::TssKey && self.runtime_key > LONGEST {
            return Err(format!("runtime_key is {}, which is beyond any struct", self.runtime_key));
        }
        if self.position_kind > POSITION_POINTER {
            return Err(format!("position_kind is {}", self.position_kind));
        }
        if self.position_kind == POSITION_POINTER && self.code_bytecode > LONGEST {
            return Err("code_bytecode is absent although the position is a pointer".into());
        }
        if (self.code_thread_bytecode == ABSENT) != (self.frame_bytecode_index == ABSENT)
            || (self.code_thread_bytecode != ABSENT
                && (self.code_thread_bytecode > LONGEST || self.thread_bytecode_entries > LONGEST))
        {
            return Err("where a thread's bytecode is, is told in part".into());
        }
        if self.frame_code_tags > 7 {
            return Err(format!("frame_code_tags is {:#x}: code objects are aligned to 8", self.frame_code_tags));
        }
        if let Some(codes) = &self.clean_up {
            codes.validate()?;
        }
        if [self.str_kind_shift, self.str_compact_bit, self.str_ascii_bit].iter().any(|bit| *bit > 29) {
            return Err("a bit of the state of str is beyond its word".into());
        }
        Ok(())
    }

    fn validate_reads(&self) -> Result<(), String> {
        let position_bytes = if self.position_kind == POSITION_POINTER { 8 } else { 4 };
        let fields = [
            ("frame_back", self.frame_back, 8, FRAME_READ, false),
            ("frame_code", self.frame_code, 8, FRAME_READ, false),
            ("frame_position", self.frame_position, position_bytes, FRAME_READ, false),
            ("frame_owner", self.frame_owner, 1, FRAME_READ, true),
            ("frame_bytecode_index", self.frame_bytecode_index, 4, FRAME_READ, true),
            ("code_first_line", self.code_first_line, 4, CODE_READ, false),
            ("code_filename", self.code_filename, 8, CODE_READ, false),
            ("code_name", self.code_name, 8, CODE_READ, false),
            ("code_qualname", self.code_qualname, 8, CODE_READ, true),
            ("code_line_table", self.code_line_table, 8, CODE_READ, false),
            ("code_code", self.code_code, 8, CODE_READ, true),
            ("code_version", self.code_version, 4, CODE_READ, true),
        ];
        for (name, offset, bytes, read, optional) in fields {
            let fits = (offset as usize).checked_add(bytes).is_some_and(|end| end <= read);
            let absent = optional && offset == ABSENT;
            if !fits && !absent {
                return Err(format!("{name} is {offset}: {bytes} bytes there do not fit in a read of {read}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_holds_together() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/layouts");
        let files = std::fs::read_dir(folder).unwrap().count();
        for text in FILES {
            assert!(of_file(text).unwrap().len() >= 2, "a release build, and a debug build");
        }
        let releases = known().iter().filter(|layout| layout.variant == Variant::Release).count();
        assert_eq!((FILES.len(), releases), (files, files), "a file of {folder} is not in FILES");
        for layout in known() {
            assert_eq!(layout.validate(), Ok(()), "3.{}", layout.minor);
            assert!(layout.rules.contains_key("position_kind") && layout.rules.contains_key("line_table_kind"));
            assert_eq!(layout.debug_offsets.is_empty(), layout.minor < 13);
            assert_eq!(layout.reserve_flags != ABSENT, layout.variant.is_free_threaded());
        }
        assert!(known().is_sorted_by_key(|layout| (layout.major, layout.minor, layout.variant)));
        let free_threaded = known().iter().filter(|layout| layout.variant == Variant::FreeThreaded);
        assert_eq!(free_threaded.map(|layout| layout.minor).collect::<Vec<_>>(), [13, 14, 15]);
        assert_eq!(supported_range(), "3.6 to 3.15");
        assert_eq!(for_version(3, 11).map(|layout| layout.minor), Some(11));
        assert_eq!(for_version(3, 5), None);
    }

    #[test]
    fn a_layout_that_does_not_fit_is_refused() {
        let mut layout = for_version(3, 12).unwrap().clone();
        layout.frame_owner = FRAME_READ as u32;
        assert!(layout.validate().unwrap_err().contains("frame_owner"));
        layout.frame_owner = ABSENT;
        assert_eq!(layout.validate(), Ok(()));
        layout.frame_position = FRAME_READ as u32 - 7;
        assert!(layout.validate().unwrap_err().contains("frame_position"));
    }

    /// The fields and limits are those of the ABI, by name: the conversion is then field by field.
    #[test]
    fn names_and_limits_are_those_of_the_abi() {
        let header = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../probes/bpf/rmprof.h")).unwrap();
        let after = header.split("struct rm_layout {").nth(1).unwrap();
        let fields = after.split('}').next().unwrap();
        let names: Vec<&str> =
            fields.lines().filter_map(|line| line.trim().strip_prefix("rm_u32 ")?.split(';').next()).collect();
        assert!(names.len() >= 29, "{names:?}");
        for text in FILES {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            // Worked out from the others where the struct is filled.
            for name in names.iter().filter(|name| !["frame_bytes", "lines_mended", "pad"].contains(name)) {
                assert!(value[*name].is_u64(), "{name} is not in the layout");
            }
        }
        assert!(header.contains(&format!("RM_FRAME_READ = {FRAME_READ},")));
        assert!(header.contains(&format!("RM_CODE_READ = {CODE_READ},")));
    }
}
