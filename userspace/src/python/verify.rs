//! What is believed of an interpreter, held against the interpreter itself once a process: its own list of threads, and from
//! 3.13 on its own table of offsets.

use std::io;

use super::code::Memory;
use super::layout::{ABSENT, Layout};

/// Bounds of the walks over the lists: a damaged list may have a ring in it.
const MOST_INTERPRETERS: usize = 1024;
const MOST_THREADS: usize = 65_536;

/// The process runs while its lists are read, so a thread that comes or goes may break a walk.
const ATTEMPTS: usize = 3;

/// One `PyThreadState` of the interpreter's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    /// Its address.
    pub address: u64,
    /// The `PyInterpreterState` it belongs to.
    pub interpreter: u64,
    /// `thread_id`: `pthread_self()` of the thread that made it, which with glibc and musl is its thread pointer (fsbase).
    pub thread_id: u64,
}

/// All thread states, newest interpreter and thread first. Empty before the interpreter is initialised.
///
/// # Errors
/// Where memory cannot be read, or a list is longer than any that is believed ([`io::ErrorKind::InvalidData`]).
pub fn thread_states(
    memory: &(impl Memory + ?Sized),
    runtime_address: u64,
    layout: &Layout,
) -> io::Result<Vec<ThreadState>> {
    let endless = || io::Error::new(io::ErrorKind::InvalidData, "the interpreter's list of threads has no end");
    let at = |base: u64, offset: u32| base.wrapping_add(offset.into());
    let mut threads = Vec::new();
    let mut interpreter = memory.read_u64(at(runtime_address, layout.runtime_interpreters_head))?;
    for _ in 0..MOST_INTERPRETERS {
        if interpreter == 0 {
            return Ok(threads);
        }
        let mut address = memory.read_u64(at(interpreter, layout.interpreter_threads_head))?;
        while address != 0 {
            if threads.len() >= MOST_THREADS {
                return Err(endless());
            }
            let thread_id = memory.read_u64(at(address, layout.thread_thread_id))?;
            threads.push(ThreadState { address, interpreter, thread_id });
            address = memory.read_u64(at(address, layout.thread_next))?;
        }
        interpreter = memory.read_u64(at(interpreter, layout.interpreter_next))?;
    }
    if interpreter == 0 { Ok(threads) } else { Err(endless()) }
}

/// Whether the interpreter itself knows `thread_state` as that of the thread with this thread pointer (fsbase). `false` says that
/// the layout or the address is wrong, or that this thread has ended meanwhile.
///
/// # Errors
/// As [`thread_states`], after a few attempts; and where the interpreter has no thread at all: it is being finalised
/// (`Py_FinalizeEx`), and says nothing any more ([`io::ErrorKind::NotFound`]).
pub fn thread_is_known(
    memory: &(impl Memory + ?Sized),
    runtime_address: u64,
    layout: &Layout,
    thread_state: u64,
    thread_pointer: u64,
) -> io::Result<bool> {
    let mut answer = Ok(false);
    for _ in 0..ATTEMPTS {
        answer = thread_states(memory, runtime_address, layout).and_then(|threads| {
            if threads.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the interpreter has no threads"));
            }
            Ok(threads.iter().any(|state| (state.address, state.thread_id) == (thread_state, thread_pointer)))
        });
        if matches!(answer, Ok(true)) {
            break;
        }
    }
    answer
}

/// An offset that the running interpreter gives otherwise than the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// CPython's name of the field in `_Py_DebugOffsets`.
    pub name: &'static str,
    /// What the layout says, from the start of the struct.
    pub expected: u64,
    /// What the process says.
    pub live: u64,
}

/// Why the interpreter's own table of offsets is not to be used. The layout of the data files stays.
#[derive(Debug, thiserror::Error)]
pub enum OffsetsError {
    /// It cannot be read.
    #[error("_Py_DebugOffsets at {address:#x} cannot be read")]
    Memory {
        /// Where it was expected.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not there, or it is of another version or build than the file it was mapped from.
    #[error("at {address:#x} there is no _Py_DebugOffsets of this build: its {what} is {found:#x}")]
    NotThere {
        /// Where it was expected.
        address: u64,
        /// The field that tells.
        what: &'static str,
        /// What it holds.
        found: u64,
    },
    /// An offset no struct of CPython has.
    #[error("_Py_DebugOffsets gives {value} for {name}, which cannot be")]
    Impossible {
        /// The field.
        name: &'static str,
        /// What it holds.
        value: u64,
    },
}

/// Which struct's read a field of the layout is relative to.
#[derive(Clone, Copy)]
enum Within {
    Struct,
    FrameRead,
    CodeRead,
}
use Within::{CodeRead, FrameRead, Struct};

type Field = fn(&mut Layout) -> &mut u32;

/// Between two fields of which one is within the other.
const PLUS: &str = " + ";

/// The fields of `_Py_DebugOffsets` (Include/internal/pycore_runtime.h, 3.13) and those of the layout they are compared with.
const FIELDS: &[(&str, Within, Field)] = &[
    ("runtime_state.interpreters_head", Struct, |l| &mut l.runtime_interpreters_head),
    ("interpreter_state.next", Struct, |l| &mut l.interpreter_next),
    ("interpreter_state.threads_head", Struct, |l| &mut l.interpreter_threads_head),
    ("interpreter_state.gc + gc.collecting", Struct, |l| &mut l.interpreter_collecting),
    ("thread_state.next", Struct, |l| &mut l.thread_next),
    ("thread_state.current_frame", Struct, |l| &mut l.thread_head),
    ("thread_state.interp", Struct, |l| &mut l.thread_interpreter),
    ("thread_state.thread_id", Struct, |l| &mut l.thread_thread_id),
    ("thread_state.native_thread_id", Struct, |l| &mut l.native_thread_id),
    ("interpreter_frame.previous", FrameRead, |l| &mut l.frame_back),
    ("interpreter_frame.executable", FrameRead, |l| &mut l.frame_code),
    ("interpreter_frame.instr_ptr", FrameRead, |l| &mut l.frame_position),
    ("interpreter_frame.owner", FrameRead, |l| &mut l.frame_owner),
    ("interpreter_frame.tlbc_index", FrameRead, |l| &mut l.frame_bytecode_index),
    ("code_object.co_tlbc", Struct, |l| &mut l.code_thread_bytecode),
    ("code_object.filename", CodeRead, |l| &mut l.code_filename),
    ("code_object.name", CodeRead, |l| &mut l.code_name),
    ("code_object.qualname", CodeRead, |l| &mut l.code_qualname),
    ("code_object.linetable", CodeRead, |l| &mut l.code_line_table),
    ("code_object.firstlineno", CodeRead, |l| &mut l.code_first_line),
    ("code_object.co_code_adaptive", Struct, |l| &mut l.code_bytecode),
    ("pyobject.ob_type", Struct, |l| &mut l.object_type),
    ("bytes_object.ob_size", Struct, |l| &mut l.bytes_length),
    ("bytes_object.ob_sval", Struct, |l| &mut l.bytes_data),
    ("unicode_object.state", Struct, |l| &mut l.str_state),
    ("unicode_object.length", Struct, |l| &mut l.str_length),
    ("unicode_object.asciiobject_size", Struct, |l| &mut l.str_ascii_data),
];

/// The layout with the offsets that the interpreter itself gives laid over it, and what differed, to be logged: within a final
/// release's minor nothing should. A layout without `debug_offsets` (before 3.13) comes back as it is.
///
/// # Errors
/// [`OffsetsError`]: the table is not there, not of this build, or holds an offset that cannot be.
pub fn with_live_offsets(
    memory: &(impl Memory + ?Sized),
    runtime_address: u64,
    layout: &Layout,
) -> Result<(Layout, Vec<Difference>), OffsetsError> {
    let mut merged = layout.clone();
    let mut differences = Vec::new();
    if layout.debug_offsets.is_empty() {
        return Ok((merged, differences));
    }
    let table = Table { memory, address: runtime_address, layout };
    table.check_build()?;
    for (name, within, field) in FIELDS {
        let Some(live) = table.value(name)? else { continue };
        let base = match within {
            Struct => 0,
            FrameRead => layout.frame_base,
            CodeRead => layout.code_base,
        };
        let field = field(&mut merged);
        if *field == ABSENT {
            continue; // it has none: 0 stands there
        }
        let expected = u64::from(*field) + u64::from(base);
        if live != expected {
            differences.push(Difference { name, expected, live });
            let relative = live.checked_sub(base.into()).and_then(|offset| u32::try_from(offset).ok());
            *field = relative.ok_or(OffsetsError::Impossible { name, value: live })?;
        }
    }
    match (merged.validate(), differences.first()) {
        (Err(_), Some(Difference { name, live, .. })) => Err(OffsetsError::Impossible { name, value: *live }),
        _ => Ok((merged, differences)),
    }
}

/// `_Py_DebugOffsets` of a process.
pub(super) struct Table<'a, M: Memory + ?Sized> {
    pub(super) memory: &'a M,
    pub(super) address: u64,
    pub(super) layout: &'a Layout,
}

impl<M: Memory + ?Sized> Table<'_, M> {
    /// A field's value, or the sum of those of several with ` + ` between them; `None` where the layout does not know a position.
    pub(super) fn value(&self, names: &str) -> Result<Option<u64>, OffsetsError> {
        let mut sum = Some(0u64);
        for name in names.split(PLUS) {
            sum = sum.zip(self.one(name)?).map(|(sum, value)| sum.wrapping_add(value));
        }
        Ok(sum)
    }

    fn one(&self, name: &str) -> Result<Option<u64>, OffsetsError> {
        let Some(position) = self.layout.debug_offsets.get(name) else { return Ok(None) };
        let address = self.address.wrapping_add((*position).into());
        let failed = |source| OffsetsError::Memory { address: self.address, source };
        self.memory.read_u64(address).map(Some).map_err(failed)
    }

    /// The cookie, the version and the kind of build have to be those of the layout.
    pub(super) fn check_build(&self) -> Result<(), OffsetsError> {
        let minor = u32::from_be_bytes([self.layout.major, self.layout.minor, 0, 0]) >> 16;
        // The low half of the version is the micro and the level, which change no offset.
        let checks = [
            ("cookie", 0, u64::from_le_bytes(*b"xdebugpy")),
            ("version", 16, minor.into()),
            ("free_threaded", 0, self.layout.variant.is_free_threaded().into()),
        ];
        for (what, shift, wanted) in checks {
            let found = self.value(what)?.unwrap_or_default();
            if found >> shift != wanted {
                return Err(OffsetsError::NotThere { address: self.address, what, found });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::layout::for_version;
    use super::*;

    /// A process as a few words at their addresses; nothing else can be read.
    struct Words(BTreeMap<u64, u64>);

    impl Memory for Words {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            let word = self.0.get(&address).filter(|_| buffer.len() == 8).ok_or(io::ErrorKind::NotFound)?;
            buffer.copy_from_slice(&word.to_le_bytes());
            Ok(())
        }
    }

    const RUNTIME: u64 = 0x10_0000;
    const INTERPRETER: u64 = 0x20_0000;
    const THREADS: [u64; 2] = [0x30_0000, 0x40_0000];

    fn process(layout: &Layout) -> Words {
        let word = |base: u64, offset: u32, value: u64| (base + u64::from(offset), value);
        Words(BTreeMap::from([
            word(RUNTIME, layout.runtime_interpreters_head, INTERPRETER),
            word(INTERPRETER, layout.interpreter_next, 0),
            word(INTERPRETER, layout.interpreter_threads_head, THREADS[0]),
            word(THREADS[0], layout.thread_next, THREADS[1]),
            word(THREADS[0], layout.thread_thread_id, 0x7f01),
            word(THREADS[1], layout.thread_next, 0),
            word(THREADS[1], layout.thread_thread_id, 0x7f02),
        ]))
    }

    #[test]
    fn a_thread_is_known_by_state_and_pointer() {
        for layout in super::super::layout::known() {
            let memory = process(layout);
            let known = |state, pointer| thread_is_known(&memory, RUNTIME, layout, state, pointer).unwrap();
            assert!(known(THREADS[0], 0x7f01) && known(THREADS[1], 0x7f02));
            assert!(!known(THREADS[0], 0x7f02) && !known(0x50_0000, 0x7f01));
        }
    }

    /// A program that ends at once is looked at after its Python was finalised.
    #[test]
    fn a_finalised_interpreter_contradicts_nothing() {
        let layout = for_version(3, 11).unwrap();
        for (base, head) in
            [(RUNTIME, layout.runtime_interpreters_head), (INTERPRETER, layout.interpreter_threads_head)]
        {
            let mut memory = process(layout);
            memory.0.insert(base + u64::from(head), 0);
            let error = thread_is_known(&memory, RUNTIME, layout, THREADS[0], 0x7f01).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }

    #[test]
    fn a_ring_in_the_list_ends_in_an_error() {
        let layout = for_version(3, 11).unwrap();
        let mut memory = process(layout);
        memory.0.insert(THREADS[1] + u64::from(layout.thread_next), THREADS[0]);
        let error = thread_is_known(&memory, RUNTIME, layout, 1, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    /// `_Py_DebugOffsets` as it should be for a layout.
    fn debug_offsets(layout: &Layout) -> Words {
        let mut words = BTreeMap::new();
        let mut put = |name: &str, value| {
            layout.debug_offsets.get(name).map(|at| words.insert(RUNTIME + u64::from(*at), value));
        };
        put("cookie", u64::from_le_bytes(*b"xdebugpy"));
        put("version", u64::from(u32::from_be_bytes([layout.major, layout.minor, 0, 0xf0])));
        put("free_threaded", layout.variant.is_free_threaded().into());
        let mut copy = layout.clone();
        for (name, within, field) in FIELDS {
            let base = match within {
                Struct => 0,
                FrameRead => layout.frame_base,
                CodeRead => layout.code_base,
            };
            let offset = *field(&mut copy);
            let (first, second) = name.split_once(PLUS).unwrap_or((name, ""));
            put(first, if offset == ABSENT { 0 } else { u64::from(offset + base) });
            put(second, 0);
        }
        Words(words)
    }

    #[test]
    fn every_variant_agrees_with_what_it_says_of_itself() {
        for layout in super::super::layout::known() {
            let said = debug_offsets(layout);
            assert_eq!(with_live_offsets(&said, RUNTIME, layout).unwrap(), (layout.clone(), vec![]));
        }
    }

    #[test]
    fn live_offsets_are_laid_over_after_a_check() {
        let layout = for_version(3, 13).unwrap();
        let mut memory = debug_offsets(layout);
        assert_eq!(with_live_offsets(&memory, RUNTIME, layout).unwrap(), (layout.clone(), vec![]));
        let at = |name: &str| RUNTIME + u64::from(layout.debug_offsets[name]);
        memory.0.insert(at("code_object.filename"), 104);
        let (merged, differences) = with_live_offsets(&memory, RUNTIME, layout).unwrap();
        assert_eq!(merged.code_filename, 104 - layout.code_base);
        assert_eq!(differences, [Difference { name: "code_object.filename", expected: 112, live: 104 }]);
        for impossible in [0, 4096, u64::MAX] {
            memory.0.insert(at("code_object.filename"), impossible);
            assert!(matches!(with_live_offsets(&memory, RUNTIME, layout), Err(OffsetsError::Impossible { .. })));
        }
    }

    #[test]
    fn offsets_of_another_build_are_not_used() {
        let layout = for_version(3, 13).unwrap();
        for (name, value) in [("cookie", 0), ("version", 0x030e_00f0), ("free_threaded", 1)] {
            let mut memory = debug_offsets(layout);
            memory.0.insert(RUNTIME + u64::from(layout.debug_offsets[name]), value);
            let error = with_live_offsets(&memory, RUNTIME, layout).unwrap_err();
            assert!(matches!(error, OffsetsError::NotThere { what, .. } if what == name), "{error}");
        }
    }
}
