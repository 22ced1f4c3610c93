//! Which CPython runs in a process, and where its parts are, from the ELF files that are mapped there.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::code::Memory;
use super::layout::{self, Layout, Variant};
use super::runtime;
use super::thread_slot::{self, ThreadSlot};
use super::version::{Release, release_of};

/// What is asked of an ELF file. Addresses are the file's own: the load bias is not in them.
pub trait SymbolSource {
    /// Address and size of a symbol the file defines, of `.dynsym` or else `.symtab`.
    fn symbol(&self, name: &str) -> Option<(u64, u64)>;
    /// Address and size of a section that is loaded.
    fn section(&self, name: &str) -> Option<(u64, u64)>;
    /// The initial content of `length` bytes at an address; fewer where the file has fewer, `None` where it has none.
    fn read_at_address(&self, address: u64, length: usize) -> Option<Vec<u8>>;
}

/// An ELF file mapped in the process.
#[derive(Clone, Copy)]
pub struct Module<'a> {
    /// Its path, as the process names it.
    pub path: &'a Path,
    /// What to add to an address of the file to get that in the process.
    pub load_bias: u64,
    /// Its content.
    pub file: &'a dyn SymbolSource,
}

/// A CPython that is supported.
#[derive(Clone, Debug)]
pub struct Interpreter {
    /// Release, as 3.11.7.
    pub version: (u8, u8, u8),
    /// The same as `PY_VERSION_HEX`.
    pub hexversion: u32,
    /// Address of `_PyRuntime` in the process, or of what stands for it ([`runtime`]).
    pub runtime_address: u64,
    /// Address of `PyCode_Type` in the process, where the file says.
    pub code_type: Option<u64>,
    /// Where the process keeps the thread state that ends its interpreter, which is NULL until then; where the file says.
    pub finalizing_address: Option<u64>,
    /// Where the process tells that garbage is collected, where that is not in the state of an interpreter.
    pub collecting_address: Option<u64>,
    /// Where it has the thread state that holds the GIL, where a thread state does not tell that itself.
    pub holder_address: Option<u64>,
    /// Where its threads keep their thread states.
    pub thread_slot: ThreadSlot,
    /// Where things stand in its memory.
    pub layout: &'static Layout,
    /// The file it is in.
    pub module_path: PathBuf,
    /// Where that file's code is in the process.
    pub text_range: Range<u64>,
}

impl Interpreter {
    /// Where it has its list of interpreters, which is empty before there is any thread state.
    pub fn interpreters_address(&self) -> u64 {
        self.runtime_address.wrapping_add(self.layout.runtime_interpreters_head.into())
    }
}

/// A Python that is not supported: why, and what can be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    /// What it is, for a person.
    pub sentence: String,
    /// What can be done about it.
    pub hint: String,
}

/// The function every CPython since 3.6 exports: PEP 523 made it public to extensions.
const EVALUATION: &str = "_PyEval_EvalFrameDefault";

/// Finds the interpreter of a process. `None`: none of its files holds one.
///
/// `memory` decides where two files hold an interpreter (a program with its own that loads a library linked to another): the one
/// that is initialised runs. Without memory, or before either is, the shared library is taken.
///
/// # Errors
/// [`Refusal`]: there is a Python, and it is not one of those supported.
pub fn find(modules: &[Module<'_>], memory: Option<&dyn Memory>) -> Result<Option<Interpreter>, Refusal> {
    if let Some(pypy) = modules.iter().find(|module| file_name(module).starts_with("libpypy")) {
        return Err(refusal(
            format!("{} is PyPy, whose frames cannot be read from outside", shown(pypy.path)),
            "run the program with CPython",
        ));
    }
    let candidates: Vec<&Module<'_>> =
        modules.iter().filter(|module| module.file.symbol(EVALUATION).is_some()).collect();
    match candidates.as_slice() {
        [] => refuse_old_python(modules).map(|()| None),
        [only] => examine(only).map(Some),
        several => {
            let runs = |module: &Module<'_>| memory.is_some_and(|memory| is_initialised(module, memory));
            let is_library = |module: &Module<'_>| file_name(module).starts_with("libpython");
            let chosen =
                several.iter().find(|module| runs(module)).or_else(|| several.iter().find(|module| is_library(module)));
            chosen.or(several.first()).map(|module| examine(module)).transpose()
        }
    }
}

fn refusal(sentence: String, hint: &str) -> Refusal {
    Refusal { sentence, hint: hint.into() }
}

fn file_name(module: &Module<'_>) -> String {
    module.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A path of the process, with its control characters escaped.
fn shown(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Python 2 and Python 3 before 3.6 have the function's ancestor alone.
fn refuse_old_python(modules: &[Module<'_>]) -> Result<(), Refusal> {
    match modules.iter().find(|module| module.file.symbol("PyEval_EvalFrameEx").is_some()) {
        None => Ok(()),
        Some(module) => Err(refusal(
            format!("{} is a Python older than 3.6; supported are {}", shown(module.path), layout::supported_range()),
            "run the program with a supported Python",
        )),
    }
}

/// Whether the interpreter in this file has been started: its list of interpreters is not empty.
fn is_initialised(module: &Module<'_>, memory: &dyn Memory) -> bool {
    let layout =
        release_of(module.file).and_then(|release| layout::for_version(release.numbers().0, release.numbers().1));
    let Some((layout, runtime)) = layout.and_then(|layout| Some((layout, runtime::find(module.file, layout.runtime)?)))
    else {
        return false;
    };
    let head = runtime.wrapping_add(module.load_bias).wrapping_add(layout.runtime_interpreters_head.into());
    memory.read_u64(head).is_ok_and(|interpreter| interpreter != 0)
}

fn examine(module: &Module<'_>) -> Result<Interpreter, Refusal> {
    let path = shown(module.path);
    let release = release_of(module.file).ok_or_else(|| {
        refusal(
            format!("{path} holds a Python whose version cannot be told; supported are {}", layout::supported_range()),
            "run the program with a Python as its makers or a distribution built it",
        )
    })?;
    let version @ (major, minor, micro) = release.numbers();
    let layout = layout::for_version(major, minor).ok_or_else(|| {
        refusal(
            format!("{path} is CPython {major}.{minor}.{micro}; supported are {}", layout::supported_range()),
            "run the program with a supported Python, or look for a newer rmprof-bpf",
        )
    })?;
    if micro < layout.since_micro {
        return Err(refusal(
            format!(
                "{path} is CPython {major}.{minor}.{micro}; supported are {major}.{minor}.{} and later",
                layout.since_micro
            ),
            "run the program with a later release of the same version",
        ));
    }
    let runtime = runtime::find(module.file, layout.runtime).ok_or_else(|| {
        refusal(
            format!("{path} is CPython {major}.{minor}.{micro} without the symbol _PyRuntime, or before 3.7 what stands for it"),
            "the file was stripped of its dynamic symbols: use the distribution's own",
        )
    })?;
    let variant = Variant::of(is_free_threaded(module.file, runtime, layout), is_debug(module.file));
    let layout = layout::for_build(major, minor, variant).ok_or_else(|| {
        refusal(
            format!("{path} is CPython {major}.{minor}.{micro}{}, a build that is not known", variant.suffix()),
            "run the program with a release build",
        )
    })?;
    refuse_other_builds(module, release, layout)?;
    let runtime_address = runtime.wrapping_add(module.load_bias);
    let thread_slot = thread_slot::find(module, runtime_address, layout).ok_or_else(|| {
        refusal(
            format!("{path} is CPython {major}.{minor}.{micro}, and its code does not tell where it keeps the state of a thread"),
            "run the program with a Python as its makers or a distribution built it",
        )
    })?;
    Ok(Interpreter {
        version,
        hexversion: release.hexversion,
        code_type: module.file.symbol("PyCode_Type").map(|(address, _)| address.wrapping_add(module.load_bias)),
        runtime_address,
        finalizing_address: runtime::finalizing(module, runtime_address, layout),
        collecting_address: runtime::collecting(module, runtime_address, layout),
        holder_address: runtime::holder(module, runtime_address, layout),
        thread_slot,
        layout,
        module_path: module.path.to_path_buf(),
        text_range: text_range(module),
    })
}

/// Builds whose structs differ: with a list of all objects, from before the release.
fn refuse_other_builds(module: &Module<'_>, release: Release, layout: &Layout) -> Result<(), Refusal> {
    let (major, minor, micro) = release.numbers();
    let name = format!("{} is CPython {major}.{minor}.{micro}{}", shown(module.path), layout.variant.suffix());
    if has_other_objects(module.file, layout) {
        return Err(refusal(
            format!(
                "{name}, whose objects have another head than such a build's: was it configured --with-trace-refs?"
            ),
            "run the program with a Python configured without that",
        ));
    }
    if !release.is_settled() {
        return Err(refusal(
            format!("{name}, from before its release; supported are releases, and their candidates from 3.13 on"),
            "run the program with the release",
        ));
    }
    Ok(())
}

/// Has the interpreter's own object `PyCode_Type` a longer or shorter head? Its `ob_size` is 0, and two words further `tp_basicsize` is
/// not: with a head of 16 bytes more, as with a list of all objects, that word is `ob_size`.
fn has_other_objects(file: &dyn SymbolSource, layout: &Layout) -> bool {
    let Some((code_type, _)) = file.symbol("PyCode_Type") else { return false };
    let word = |offset: u32| {
        let bytes = file.read_at_address(code_type.wrapping_add(offset.into()), 8)?;
        Some(u64::from_le_bytes(*bytes.first_chunk()?))
    };
    let (size, basic_size) = (word(layout.bytes_length), word(layout.bytes_length + 16));
    size.is_some_and(|size| size != 0) || basic_size == Some(0)
}

/// By what is compiled under `Py_REF_DEBUG` alone (Objects/object.c); the second is data up to 3.11.
fn is_debug(file: &dyn SymbolSource) -> bool {
    ["_Py_NegativeRefcount", "_Py_RefTotal"].iter().any(|symbol| file.symbol(symbol).is_some())
}

/// By `_Py_DebugOffsets.free_threaded`, which stands in the file (3.13 and later), or by the function that only they export
/// (Include/cpython/object.h, under `Py_GIL_DISABLED`).
fn is_free_threaded(file: &dyn SymbolSource, runtime: u64, layout: &Layout) -> bool {
    let flag = layout.debug_offsets.get("free_threaded").and_then(|offset| {
        let bytes = file.read_at_address(runtime.wrapping_add((*offset).into()), 8)?;
        Some(u64::from_le_bytes(*bytes.first_chunk()?))
    });
    flag.is_some_and(|flag| flag != 0) || file.symbol("_Py_MergeZeroLocalRefcount").is_some()
}

/// `.text` holds all the interpreter's code; a file without section headers tells its evaluation function alone.
fn text_range(module: &Module<'_>) -> Range<u64> {
    let (address, size) = module.file.section(".text").or_else(|| module.file.symbol(EVALUATION)).unwrap_or((0, 0));
    let start = address.wrapping_add(module.load_bias);
    start..start.saturating_add(size)
}
