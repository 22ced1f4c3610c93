//! Letting a debugger into a running interpreter as it offers it itself: PEP 768, CPython 3.14 and later.
//!
//! A thread state has a buffer for the path of a script and a flag that one is there; the bit of its eval breaker that stands for "stop"
//! makes the thread look (Python/ceval_gil.c, `_PyRunRemoteDebugger`; Python/remote_debugging.c is CPython's own writer of it). These three
//! are all that is written. Where they are, the interpreter's `_Py_DebugOffsets` says, which is checked before it is believed.

use std::io;

use super::code::Memory;
use super::layout::Layout;
use super::verify::{OffsetsError, Table, thread_states};

/// `_PY_EVAL_PLEASE_STOP_BIT` (Include/internal/pycore_ceval.h, 3.14 and 3.15), in the lowest byte of the word.
const PLEASE_STOP: u8 = 1 << 5;
/// The longest path that is believed to fit (`_Py_MAX_SCRIPT_PATH_SIZE` is 512).
const MOST_PATH: u64 = 4096;
/// No struct of CPython is larger.
const MOST_BYTES: u64 = 16 << 20;

/// Memory that can be written too.
pub trait MemoryMut: Memory {
    /// Writes all of `bytes` at `address`.
    ///
    /// # Errors
    /// Where not every byte can be written.
    fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()>;
}

/// Why the debugger cannot be let in.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Before 3.14.
    #[error("its Python is CPython {0}.{1}, and debugging from outside (PEP 768) begins with 3.14")]
    TooOld(u8, u8),
    /// The interpreter says no.
    #[error(
        "remote debugging is switched off in its Python: started with -X disable-remote-debug or PYTHON_DISABLE_REMOTE_DEBUG, or configured \
         --without-remote-debug"
    )]
    SwitchedOff,
    /// It has not begun, or is about to end.
    #[error("its interpreter has no thread: it is starting or ending")]
    NoThread,
    /// The thread is gone.
    #[error("the thread that passed the limit has ended")]
    Ended,
    /// Somebody else has asked for the same.
    #[error("another debugger has just asked to be let in")]
    Busy,
    /// The path does not fit.
    #[error("the path of the debugger's file is longer than its Python takes ({0} bytes)")]
    PathTooLong(u64),
    /// The table is not to be believed.
    #[error(transparent)]
    Offsets(#[from] OffsetsError),
    /// Its memory cannot be read or written.
    #[error("its memory cannot be reached: {0}")]
    Memory(#[from] io::Error),
}

/// Where the interpreter looks, from the start of the structs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// In the thread state: the word of the eval breaker, the flag, and the path.
    breaker: u64,
    pending: u64,
    path: u64,
    /// Bytes of the path, its NUL included.
    path_bytes: u64,
    /// In the interpreter state: is it allowed?
    enabled: u64,
}

impl Remote {
    /// Reads and checks what the interpreter says, and that it allows it.
    ///
    /// # Errors
    /// Why a debugger cannot be let in.
    pub fn of(memory: &(impl Memory + ?Sized), runtime: u64, layout: &Layout) -> Result<Self, RemoteError> {
        if !layout.debug_offsets.contains_key("debugger_support.eval_breaker") {
            return Err(RemoteError::TooOld(layout.major, layout.minor));
        }
        let table = Table { memory, address: runtime, layout };
        table.check_build()?;
        let remote = Self::from_table(&table)?;
        let threads = thread_states(memory, runtime, layout)?;
        let newest = threads.first().ok_or(RemoteError::NoThread)?;
        remote.check_allowed(memory, newest.interpreter)?;
        Ok(remote)
    }

    fn from_table(table: &Table<'_, impl Memory + ?Sized>) -> Result<Self, OffsetsError> {
        let get = |name: &'static str, most: u64| -> Result<u64, OffsetsError> {
            let value = table.value(name)?.unwrap_or(u64::MAX);
            if value > most { Err(OffsetsError::Impossible { name, value }) } else { Ok(value) }
        };
        let thread_bytes = get("thread_state.size", MOST_BYTES)?;
        let interpreter_bytes = get("interpreter_state.size", MOST_BYTES)?;
        let support = get("debugger_support.remote_debugger_support", thread_bytes)?;
        let pending = support + get("debugger_support.debugger_pending_call", thread_bytes)?;
        let path = support + get("debugger_support.debugger_script_path", thread_bytes)?;
        let path_bytes = get("debugger_support.debugger_script_path_size", MOST_PATH)?;
        let breaker = get("debugger_support.eval_breaker", thread_bytes)?;
        let enabled = get("debugger_support.remote_debugging_enabled", interpreter_bytes)?;
        // Within their structs, aligned, and apart from each other.
        for (name, value, bytes, within, alignment) in [
            ("debugger_support.eval_breaker", breaker, 8, thread_bytes, 8),
            ("debugger_support.debugger_pending_call", pending, 4, thread_bytes, 4),
            ("debugger_support.debugger_script_path", path, path_bytes, thread_bytes, 1),
            ("debugger_support.remote_debugging_enabled", enabled, 4, interpreter_bytes, 4),
        ] {
            if value % alignment != 0 || value + bytes > within {
                return Err(OffsetsError::Impossible { name, value });
            }
        }
        let overlap = |one: (u64, u64), other: (u64, u64)| one.0 < other.0 + other.1 && other.0 < one.0 + one.1;
        let script = (path, path_bytes);
        if path_bytes < 2 || overlap((pending, 4), script) || overlap((breaker, 8), script) {
            return Err(OffsetsError::Impossible { name: "debugger_support.debugger_script_path", value: path });
        }
        Ok(Self { breaker, pending, path, path_bytes, enabled })
    }

    fn check_allowed(&self, memory: &(impl Memory + ?Sized), interpreter: u64) -> Result<(), RemoteError> {
        match memory.read_u32(interpreter.wrapping_add(self.enabled))? {
            1 => Ok(()),
            _ => Err(RemoteError::SwitchedOff),
        }
    }

    /// Asks the thread to run the script at its next look at the eval breaker. It must not run meanwhile: its thread state would go with it.
    /// Other threads that set an event of it within the same microsecond may do so in vain, as with CPython's own writer.
    ///
    /// # Errors
    /// Why not; then the flag is not set.
    pub fn ask(
        &self,
        memory: &(impl MemoryMut + ?Sized),
        (runtime, layout): (u64, &Layout),
        thread: u64,
        path: &[u8],
    ) -> Result<(), RemoteError> {
        let fits = (path.len() as u64) < self.path_bytes && !path.contains(&0);
        if !fits {
            return Err(RemoteError::PathTooLong(self.path_bytes - 1));
        }
        let states = thread_states(memory, runtime, layout)?;
        let state = states.iter().find(|state| state.address == thread).ok_or(RemoteError::Ended)?;
        self.check_allowed(memory, state.interpreter)?;
        if self.is_asked(memory, thread)? {
            return Err(RemoteError::Busy);
        }
        memory.write(thread.wrapping_add(self.path), &[path, &[0]].concat())?;
        memory.write(thread.wrapping_add(self.pending), &1i32.to_le_bytes())?;
        // Of the word only the byte with the bit: the others are the version of `sys.monitoring`.
        let mut events = [0];
        let breaker = thread.wrapping_add(self.breaker);
        memory.read(breaker, &mut events)?;
        memory.write(breaker, &[events[0] | PLEASE_STOP])?;
        Ok(())
    }

    /// Takes back what was asked with this path, if the thread has not looked yet. It must not run meanwhile.
    ///
    /// # Errors
    /// Where its memory cannot be reached.
    pub fn withdraw(
        &self,
        memory: &(impl MemoryMut + ?Sized),
        (runtime, layout): (u64, &Layout),
        thread: u64,
        path: &[u8],
    ) -> Result<(), RemoteError> {
        let states = thread_states(memory, runtime, layout)?;
        if !states.iter().any(|state| state.address == thread) || !self.is_asked(memory, thread)? {
            return Ok(());
        }
        let mut there = vec![0; path.len() + 1];
        memory.read(thread.wrapping_add(self.path), &mut there)?;
        if there.strip_suffix(&[0]) == Some(path) {
            memory.write(thread.wrapping_add(self.pending), &0i32.to_le_bytes())?;
        }
        Ok(())
    }

    fn is_asked(&self, memory: &(impl Memory + ?Sized), thread: u64) -> io::Result<bool> {
        Ok(memory.read_u32(thread.wrapping_add(self.pending))? == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::super::layout::{for_version, known};
    use super::*;

    const RUNTIME: u64 = 0x1000;
    const INTERPRETER: u64 = 0x4000;
    const THREAD: u64 = 0x2_0000;
    const BREAKER: u64 = 24;
    const SUPPORT: u64 = 304;
    const ENABLED: u64 = 8076;
    const PATH: &[u8] = b"/run/x/attach.py";

    /// A process as one piece of memory from 0 on.
    struct Process(RefCell<Vec<u8>>);

    impl Memory for Process {
        fn read(&self, address: u64, buffer: &mut [u8]) -> io::Result<()> {
            let (start, memory) = (usize::try_from(address).unwrap(), self.0.borrow());
            let there = memory.get(start..start + buffer.len()).ok_or(io::ErrorKind::NotFound)?;
            buffer.copy_from_slice(there);
            Ok(())
        }
    }

    impl MemoryMut for Process {
        fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
            let start = usize::try_from(address).unwrap();
            let mut memory = self.0.borrow_mut();
            memory.get_mut(start..start + bytes.len()).ok_or(io::ErrorKind::NotFound)?.copy_from_slice(bytes);
            Ok(())
        }
    }

    impl Process {
        fn set(&self, layout: &Layout, name: &str, value: u64) {
            self.write(RUNTIME + u64::from(layout.debug_offsets[name]), &value.to_le_bytes()).unwrap();
        }

        fn of(layout: &Layout) -> Self {
            let process = Self(RefCell::new(vec![0; 0x4_0000]));
            let version = u32::from_be_bytes([layout.major, layout.minor, 2, 0xf0]);
            for (name, value) in [
                ("cookie", u64::from_le_bytes(*b"xdebugpy")),
                ("version", version.into()),
                ("free_threaded", layout.variant.is_free_threaded().into()),
                ("thread_state.size", 1000),
                ("interpreter_state.size", 0x8000),
                ("debugger_support.eval_breaker", BREAKER),
                ("debugger_support.remote_debugger_support", SUPPORT),
                ("debugger_support.remote_debugging_enabled", ENABLED),
                ("debugger_support.debugger_pending_call", 0),
                ("debugger_support.debugger_script_path", 4),
                ("debugger_support.debugger_script_path_size", 512),
            ] {
                process.set(layout, name, value);
            }
            let word = |base: u64, offset: u32, value: u64| {
                process.write(base + u64::from(offset), &value.to_le_bytes()).unwrap();
            };
            word(RUNTIME, layout.runtime_interpreters_head, INTERPRETER);
            word(INTERPRETER, layout.interpreter_threads_head, THREAD);
            word(THREAD + BREAKER, 0, 0xff00);
            process.write(INTERPRETER + ENABLED, &[1, 0, 0, 0]).unwrap();
            process
        }

        fn word(&self, address: u64) -> u64 {
            self.read_u64(address).unwrap()
        }
    }

    fn supported() -> impl Iterator<Item = &'static Layout> {
        known().iter().filter(|layout| layout.minor >= 14)
    }

    #[test]
    fn what_is_written_is_what_the_pep_says() {
        for layout in supported() {
            let process = Process::of(layout);
            let remote = Remote::of(&process, RUNTIME, layout).unwrap();
            let before = process.0.borrow().clone();
            remote.ask(&process, (RUNTIME, layout), THREAD, PATH).unwrap();
            assert_eq!(process.word(THREAD + BREAKER), 0xff20);
            let mut wanted = before.clone();
            let at = |address: u64| usize::try_from(address).unwrap();
            wanted[at(THREAD + BREAKER)] = 0x20;
            wanted[at(THREAD + SUPPORT)] = 1;
            wanted[at(THREAD + SUPPORT + 4)..][..PATH.len()].copy_from_slice(PATH);
            assert!(*process.0.borrow() == wanted, "nothing else");
            assert!(matches!(remote.ask(&process, (RUNTIME, layout), THREAD, PATH), Err(RemoteError::Busy)));
            // Another's request is left alone.
            remote.withdraw(&process, (RUNTIME, layout), THREAD, b"/run/x/attach.p").unwrap();
            assert!(*process.0.borrow() == wanted);
            remote.withdraw(&process, (RUNTIME, layout), THREAD, PATH).unwrap();
            wanted[at(THREAD + SUPPORT)] = 0;
            assert!(*process.0.borrow() == wanted);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_written() {
        let layout = for_version(3, 14).unwrap();
        let process = Process::of(layout);
        let remote = Remote::of(&process, RUNTIME, layout).unwrap();
        let before = process.0.borrow().clone();
        let ask = |thread, path: &[u8]| remote.ask(&process, (RUNTIME, layout), thread, path);
        assert!(matches!(ask(THREAD + 8, PATH), Err(RemoteError::Ended)));
        assert!(matches!(ask(THREAD, &[b'x'; 512]), Err(RemoteError::PathTooLong(511))));
        assert!(matches!(ask(THREAD, b"x\0y"), Err(RemoteError::PathTooLong(_))));
        assert!(*process.0.borrow() == before);
        assert!(ask(THREAD, &[b'x'; 511]).is_ok());
        process.write(INTERPRETER + ENABLED, &[0; 4]).unwrap();
        assert!(matches!(Remote::of(&process, RUNTIME, layout), Err(RemoteError::SwitchedOff)));
        let old = for_version(3, 13).unwrap();
        assert!(matches!(Remote::of(&process, RUNTIME, old), Err(RemoteError::TooOld(3, 13))));
    }

    #[test]
    fn offsets_out_of_bounds_are_not_believed() {
        let layout = for_version(3, 15).unwrap();
        for (name, value) in [
            ("debugger_support.debugger_script_path_size", 1 << 40),
            ("debugger_support.debugger_script_path_size", 700),
            ("debugger_support.debugger_script_path_size", 0),
            ("debugger_support.debugger_script_path", 2),
            ("debugger_support.debugger_script_path", u64::MAX - 300),
            ("debugger_support.debugger_pending_call", 1),
            ("debugger_support.eval_breaker", 996),
            ("debugger_support.eval_breaker", 320),
            ("debugger_support.eval_breaker", 28),
            ("debugger_support.remote_debugger_support", 900),
            ("debugger_support.remote_debugging_enabled", 0x8000),
            ("thread_state.size", u64::MAX),
            ("cookie", 1),
        ] {
            let process = Process::of(layout);
            process.set(layout, name, value);
            let found = Remote::of(&process, RUNTIME, layout);
            assert!(matches!(found, Err(RemoteError::Offsets(_))), "{name} {value}: {found:?}");
        }
    }
}
