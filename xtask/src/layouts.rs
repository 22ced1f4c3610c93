//! `cargo xtask layouts`: writes `userspace/layouts/3.N.json` from the headers of an installed CPython 3.N.
//!
//! A small C program with `offsetof` and `sizeof` prints is compiled against the headers and run, once for each variant of the minor
//! (release, debug, free-threaded), by the macros that configure sets for it. The file has the release build whole, and of the others
//! what differs. What no header says stands in [`RULES`], each with the CPython source file that it comes from. To add a minor: a row
//! in [`MINORS`], its rules, run it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

mod opcodes;
mod rules;

use rules::{FREE_THREADED, Name, Number, RULES};

/// What was typed after `cargo xtask layouts`.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Minor versions, as 3.12; all that are known where none is given
    versions: Vec<String>,
    /// Compare with the files in the tree instead of writing them; differences are an error
    #[arg(long)]
    check: bool,
    /// Folder with Python.h and internal/ (default: that of a python3.N in PATH or in ~/.pyenv)
    #[arg(long, value_name = "DIR")]
    include: Option<PathBuf>,
}

/// A field this Python does not have: RM_ABSENT of probes/bpf/rmprof.h.
const ABSENT: u32 = u32::MAX;

/// Lengths of the reads that the offsets of frames and code objects must fit in: RM_FRAME_READ, RM_CODE_READ.
const FRAME_READ: u32 = 104;
const CODE_READ: u32 = 96;

/// Name of a field of the layout, and the C expression that gives it.
type Fields = &'static [(&'static str, &'static str)];

/// One minor: what to include and which fields its structs have.
struct Minor {
    number: u32,
    headers: &'static [&'static str],
    fields: &'static [Fields],
    /// What the structs of its free-threaded builds have beside, where there are such builds.
    free_threaded: Option<&'static [Fields]>,
}

/// A kind of build: its name in the data file, and what pyconfig.h then defines.
struct Variant {
    name: &'static str,
    macros: &'static [&'static str],
    free_threaded: bool,
}

/// The first is written whole.
const VARIANTS: &[Variant] = &[
    Variant { name: "release", macros: &[], free_threaded: false },
    Variant { name: "debug", macros: &["Py_DEBUG"], free_threaded: false },
    Variant { name: "free_threaded", macros: &["Py_GIL_DISABLED"], free_threaded: true },
    Variant { name: "free_threaded_debug", macros: &["Py_GIL_DISABLED", "Py_DEBUG"], free_threaded: true },
];

const COMMON: Fields = &[
    ("thread_next", "offsetof(PyThreadState, next)"),
    ("thread_thread_id", "offsetof(PyThreadState, thread_id)"),
    ("interpreter_next", "offsetof(PyInterpreterState, next)"),
    ("code_first_line", "offsetof(PyCodeObject, co_firstlineno)"),
    ("code_filename", "offsetof(PyCodeObject, co_filename)"),
    ("code_name", "offsetof(PyCodeObject, co_name)"),
    ("object_type", "offsetof(PyObject, ob_type)"),
    ("str_length", "offsetof(PyASCIIObject, length)"),
    ("str_state", "offsetof(PyASCIIObject, state)"),
    ("str_ascii_data", "sizeof(PyASCIIObject)"),
    ("str_compact_data", "sizeof(PyCompactUnicodeObject)"),
    ("str_kind_shift", "STATE_BIT(kind)"),
    ("str_compact_bit", "STATE_BIT(compact)"),
    ("str_ascii_bit", "STATE_BIT(ascii)"),
    ("bytes_length", "offsetof(PyVarObject, ob_size)"),
    ("bytes_data", "offsetof(PyBytesObject, ob_sval)"),
];

const RUNTIME: Fields = &[("runtime_interpreters_head", "offsetof(_PyRuntimeState, interpreters.head)")];

const FRAME_OBJECT: Fields = &[
    ("thread_head", "offsetof(PyThreadState, frame)"),
    ("frame_back", "offsetof(PyFrameObject, f_back)"),
    ("frame_code", "offsetof(PyFrameObject, f_code)"),
    ("frame_position", "offsetof(PyFrameObject, f_lasti)"),
    ("code_code", "offsetof(PyCodeObject, co_code)"),
    ("interpreter_threads_head", "offsetof(PyInterpreterState, tstate_head)"),
];

const FRAME_LINKS: Fields = &[
    ("frame_back", "offsetof(_PyInterpreterFrame, previous)"),
    ("frame_owner", "offsetof(_PyInterpreterFrame, owner)"),
    ("native_thread_id", "offsetof(PyThreadState, native_thread_id)"),
    ("interpreter_threads_head", "offsetof(PyInterpreterState, threads.head)"),
    ("code_qualname", "offsetof(PyCodeObject, co_qualname)"),
    ("code_line_table", "offsetof(PyCodeObject, co_linetable)"),
    ("code_bytecode", "offsetof(PyCodeObject, co_code_adaptive)"),
];

const C_FRAME: Fields = &[
    ("thread_head", "offsetof(PyThreadState, cframe)"),
    ("thread_head_hop", "offsetof(_PyCFrame, current_frame)"),
    ("frame_position", "offsetof(_PyInterpreterFrame, prev_instr)"),
];

const FRAME_CODE: Fields = &[("frame_code", "offsetof(_PyInterpreterFrame, f_code)")];
const LNOTAB: Fields = &[("code_line_table", "offsetof(PyCodeObject, co_lnotab)")];
const LINE_TABLE: Fields = &[("code_line_table", "offsetof(PyCodeObject, co_linetable)")];
const KEY_OF_GILSTATE: Fields = &[("runtime_key", "offsetof(_PyRuntimeState, gilstate.autoTSSkey._key)")];
const KEY_OF_RUNTIME: Fields = &[("runtime_key", "offsetof(_PyRuntimeState, autoTSSkey._key)")];
const FINALIZING: Fields = &[("runtime_finalizing", "offsetof(_PyRuntimeState, _finalizing)")];
const FINALIZING_TO_3_8: Fields = &[("runtime_finalizing", "offsetof(_PyRuntimeState, finalizing)")];
const EVAL_FRAME: Fields = &[("interpreter_eval_frame", "offsetof(PyInterpreterState, eval_frame)")];

const SINCE_3_12: Fields = &[("code_version", "offsetof(PyCodeObject, co_version)"), ("arena_bytes", "ARENA_SIZE")];

const OWNED_BY_C_STACK: Fields = &[("owner_skip", "FRAME_OWNED_BY_CSTACK")];
const SINCE_3_14: Fields = &[
    ("owner_skip", "FRAME_OWNED_BY_INTERPRETER"),
    ("frame_code_tags", "Py_TAG_BITS"),
    ("thread_executor", "offsetof(PyThreadState, current_executor)"),
];

const THREAD_BYTECODE: Fields = &[
    ("frame_bytecode_index", "offsetof(_PyInterpreterFrame, tlbc_index)"),
    ("code_thread_bytecode", "offsetof(PyCodeObject, co_tlbc)"),
    ("thread_bytecode_entries", "offsetof(_PyCodeArray, entries)"),
];

const FRAME_SINCE_3_13: Fields = &[
    ("thread_head", "offsetof(PyThreadState, current_frame)"),
    ("frame_code", "offsetof(_PyInterpreterFrame, f_executable)"),
    ("frame_position", "offsetof(_PyInterpreterFrame, instr_ptr)"),
];

const FRAME_OBJECT_HEADERS: &[&str] = &["frameobject.h", "internal/pycore_interp.h", "internal/pycore_runtime.h"];
const FRAME_HEADERS: &[&str] = &["internal/pycore_interp.h", "internal/pycore_runtime.h", "internal/pycore_frame.h"];
const SINCE_3_12_HEADERS: &[&str] =
    &["internal/pycore_interp.h", "internal/pycore_runtime.h", "internal/pycore_frame.h", "internal/pycore_obmalloc.h"];

const SINCE_3_14_HEADERS: &[&str] = &[
    "internal/pycore_interp.h",
    "internal/pycore_runtime.h",
    "internal/pycore_interpframe.h",
    "internal/pycore_stackref.h",
    "internal/pycore_obmalloc.h",
];

const MINORS: &[Minor] = &[
    Minor {
        number: 6,
        headers: &["frameobject.h"],
        fields: &[COMMON, FRAME_OBJECT, LNOTAB, EVAL_FRAME],
        free_threaded: None,
    },
    Minor {
        number: 7,
        headers: &["frameobject.h", "internal/pystate.h"],
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LNOTAB, KEY_OF_GILSTATE, EVAL_FRAME, FINALIZING_TO_3_8],
        free_threaded: None,
    },
    Minor {
        number: 8,
        headers: &["frameobject.h", "internal/pycore_pystate.h"],
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LNOTAB, KEY_OF_GILSTATE, EVAL_FRAME, FINALIZING_TO_3_8],
        free_threaded: None,
    },
    Minor {
        number: 9,
        headers: FRAME_OBJECT_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LNOTAB, KEY_OF_GILSTATE, FINALIZING],
        free_threaded: None,
    },
    Minor {
        number: 10,
        headers: FRAME_OBJECT_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LINE_TABLE, KEY_OF_GILSTATE, FINALIZING],
        free_threaded: None,
    },
    Minor {
        number: 11,
        headers: FRAME_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_LINKS, C_FRAME, FRAME_CODE, KEY_OF_GILSTATE, FINALIZING],
        free_threaded: None,
    },
    Minor {
        number: 12,
        headers: SINCE_3_12_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            C_FRAME,
            FRAME_CODE,
            KEY_OF_RUNTIME,
            FINALIZING,
            SINCE_3_12,
            OWNED_BY_C_STACK,
        ],
        free_threaded: None,
    },
    Minor {
        number: 13,
        headers: SINCE_3_12_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            FRAME_SINCE_3_13,
            KEY_OF_RUNTIME,
            FINALIZING,
            SINCE_3_12,
            OWNED_BY_C_STACK,
        ],
        free_threaded: Some(&[]),
    },
    Minor {
        number: 14,
        headers: SINCE_3_14_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_LINKS, FRAME_SINCE_3_13, KEY_OF_RUNTIME, FINALIZING, SINCE_3_12, SINCE_3_14],
        free_threaded: Some(&[THREAD_BYTECODE]),
    },
    Minor {
        number: 15,
        headers: SINCE_3_14_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_LINKS, FRAME_SINCE_3_13, FINALIZING, SINCE_3_12, SINCE_3_14],
        free_threaded: Some(&[THREAD_BYTECODE]),
    },
];

/// Fields that a minor may lack: written as [`ABSENT`]. Any other field without a value is an error.
const OPTIONAL: &[&str] = &[
    "runtime_key",
    "runtime_finalizing",
    "thread_head_hop",
    "frame_owner",
    "owner_skip",
    "code_qualname",
    "code_code",
    "code_version",
    "code_bytecode",
    "native_thread_id",
    "interpreter_eval_frame",
    "thread_executor",
    "frame_bytecode_index",
    "code_thread_bytecode",
    "thread_bytecode_entries",
    "reserve_flags",
];

/// Fields of `_Py_DebugOffsets` (3.13 and later) that are compared with the layout while a process runs.
const DEBUG_FIELDS: &[&str] = &[
    "cookie",
    "version",
    "free_threaded",
    "runtime_state.interpreters_head",
    "interpreter_state.next",
    "interpreter_state.threads_head",
    "thread_state.next",
    "thread_state.current_frame",
    "thread_state.thread_id",
    "thread_state.native_thread_id",
    "interpreter_frame.previous",
    "interpreter_frame.executable",
    "interpreter_frame.instr_ptr",
    "interpreter_frame.owner",
    "code_object.filename",
    "code_object.name",
    "code_object.qualname",
    "code_object.linetable",
    "code_object.firstlineno",
    "code_object.co_code_adaptive",
    "pyobject.ob_type",
    "bytes_object.ob_size",
    "bytes_object.ob_sval",
    "unicode_object.state",
    "unicode_object.length",
    "unicode_object.asciiobject_size",
];

/// And from 3.14 on.
const DEBUG_FIELDS_SINCE_3_14: &[&str] = &["interpreter_frame.tlbc_index", "code_object.co_tlbc"];

/// Writes the layouts of the versions given, or compares them with the files in the tree.
///
/// # Errors
/// An unknown version, headers not found or of another kind of build, a compiler that fails, and with `--check` a difference.
pub fn run(arguments: &Arguments) -> Result<()> {
    let wanted = if arguments.versions.is_empty() {
        MINORS.iter().collect()
    } else {
        arguments.versions.iter().map(|text| minor_of(text)).collect::<Result<Vec<_>>>()?
    };
    ensure!(
        arguments.include.is_none() || wanted.len() == 1,
        "--include is the folder of one version\nhint: name that version: cargo xtask layouts 3.12 --include DIR"
    );
    let mut stale = Vec::new();
    for minor in wanted {
        let include = match &arguments.include {
            Some(folder) => folder.clone(),
            None => find_headers(minor)?,
        };
        let layout = measure_all(minor, &include)
            .with_context(|| format!("headers of 3.{} in {}", minor.number, include.display()))?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../userspace/layouts/3.{}.json", minor.number));
        if !arguments.check {
            fs::write(&file, format!("{:#}\n", Value::Object(layout))).with_context(|| file.display().to_string())?;
            eprintln!("wrote userspace/layouts/3.{}.json", minor.number);
        } else if let Some(difference) = compare(&file, &layout)? {
            stale.push(format!("userspace/layouts/3.{}.json: {difference}", minor.number));
        }
    }
    if !stale.is_empty() {
        bail!("the layouts are not what the headers say:\n{}\nhint: cargo xtask layouts", stale.join("\n"));
    }
    Ok(())
}

fn minor_of(text: &str) -> Result<&'static Minor> {
    let number: Option<u32> = text.strip_prefix("3.").and_then(|number| number.parse().ok());
    number.and_then(|number| MINORS.iter().find(|minor| minor.number == number)).with_context(|| {
        let known: Vec<String> = MINORS.iter().map(|minor| format!("3.{}", minor.number)).collect();
        format!(
            "{text} is not a known version\nhint: known are {}; a new one is a row in xtask/src/layouts.rs",
            known.join(", ")
        )
    })
}

/// What differs from the file, or nothing. The release the headers were of may differ: offsets do not within a minor.
fn compare(file: &Path, layout: &Map<String, Value>) -> Result<Option<String>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let old: Map<String, Value> = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let names: std::collections::BTreeSet<&String> =
        old.keys().chain(layout.keys()).filter(|name| *name != "headers_of").collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| old.get(*name) != layout.get(*name))
        .map(|name| {
            let shown = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
            format!("{name} is {}, not {}", shown(layout.get(name)), shown(old.get(name)))
        })
        .collect();
    Ok((!differences.is_empty()).then(|| differences.join("; ")))
}

/// The headers of the first python3.N that has them.
fn find_headers(wanted: &Minor) -> Result<PathBuf> {
    let minor = wanted.number;
    let name = format!("python3.{minor}");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    let pyenv = env::home_dir().unwrap_or_default().join(".pyenv/versions");
    for entry in fs::read_dir(pyenv).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("3.{minor}.")) {
            folders.push(entry.path().join("bin"));
        }
    }
    let script = "import sys, sysconfig; print(sysconfig.get_path('include'), sys.version_info[1])";
    for program in folders.iter().map(|folder| folder.join(&name)).filter(|program| program.is_file()) {
        // A pyenv shim of a version that is not chosen fails here, and is passed over.
        let output = Command::new(&program).args(["-c", script]).stderr(Stdio::null()).output();
        let Ok(output) = output else { continue };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some((folder, number)) = text.trim().rsplit_once(' ')
            && number == minor.to_string()
            && ["Python.h"].iter().chain(wanted.headers).all(|header| Path::new(folder).join(header).is_file())
        {
            return Ok(folder.into());
        }
    }
    bail!(
        "no headers of CPython 3.{minor} found\nhint: install libpython3.{minor}-dev or `pyenv install 3.{minor}`, or give --include DIR"
    )
}

/// The release build, and under `variants` what differs in the others.
fn measure_all(minor: &Minor, include: &Path) -> Result<Map<String, Value>> {
    let (release, others) = VARIANTS.split_first().context("no variant")?;
    let mut layout = measure(minor, release, include)?;
    let mut variants = Map::new();
    for variant in others.iter().filter(|variant| !variant.free_threaded || minor.free_threaded.is_some()) {
        let other = measure(minor, variant, include).with_context(|| format!("the {} build", variant.name))?;
        variants.insert(variant.name.into(), Value::Object(difference(&layout, &other)));
    }
    layout.insert("variants".into(), variants.into());
    Ok(layout)
}

/// What to lay over `old` to get `new`: values that differ, within objects too. Nothing that is in `old` is missing in `new`.
fn difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let differing = new.iter().filter(|(name, value)| old.get(*name) != Some(*value));
    differing
        .map(|(name, value)| match (old.get(name), value) {
            (Some(Value::Object(old)), Value::Object(new)) => (name.clone(), difference(old, new).into()),
            _ => (name.clone(), value.clone()),
        })
        .collect()
}

/// Compiles and runs the C program, adds the rules, checks that the offsets fit in the reads.
fn measure(minor: &Minor, variant: &Variant, include: &Path) -> Result<Map<String, Value>> {
    let printed = compile_and_run(&c_program(minor, variant), include)?;
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut debug = Map::new();
    let mut headers_of = "";
    for line in printed.lines() {
        let (name, value) = line.split_once(' ').with_context(|| format!("the C program printed {line:?}"))?;
        match name.strip_prefix("debug:") {
            Some(name) => drop(debug.insert(name.into(), value.parse::<u32>()?.into())),
            None if name == "headers_of" => headers_of = value,
            None => drop(numbers.insert(name, value.parse()?)),
        }
    }
    let mut layout = Map::new();
    let mut sources = Map::new();
    let more = if variant.free_threaded { FREE_THREADED } else { &[] };
    for rule in RULES.iter().chain(more).filter(|rule| rule.minors.contains(&minor.number)) {
        match rule.value {
            Some(Number(number)) => drop(numbers.insert(rule.field, number)),
            Some(Name(name)) => drop(layout.insert(rule.field.into(), name.into())),
            None => ensure!(numbers.contains_key(rule.field), "{} has a rule and no value", rule.field),
        }
        sources.insert(rule.field.into(), rule.source.into());
    }
    set_bases(&mut numbers)?;
    for name in OPTIONAL {
        numbers.entry(name).or_insert(ABSENT);
    }
    numbers.entry("since_micro").or_insert(0);
    numbers.insert("major", 3);
    numbers.insert("minor", minor.number);
    layout.extend(numbers.into_iter().map(|(name, number)| (name.into(), number.into())));
    layout.insert("headers_of".into(), headers_of.into());
    layout.insert("rules".into(), sources.into());
    layout.insert("debug_offsets".into(), debug.into());
    layout.insert("clean_up".into(), opcodes::clean_up(minor.number, include)?);
    Ok(layout)
}

/// One read gets all that is wanted of a frame, another all of a code object: makes those offsets relative to where it starts.
fn set_bases(numbers: &mut BTreeMap<&str, u32>) -> Result<()> {
    const FRAME: &[(&str, u32)] =
        &[("frame_back", 8), ("frame_code", 8), ("frame_position", 8), ("frame_owner", 1), ("frame_bytecode_index", 4)];
    const CODE: &[(&str, u32)] = &[
        ("code_first_line", 4),
        ("code_filename", 8),
        ("code_name", 8),
        ("code_qualname", 8),
        ("code_line_table", 8),
        ("code_code", 8),
        ("code_version", 4),
    ];
    for (base_name, fields, room) in [("frame_base", FRAME, FRAME_READ), ("code_base", CODE, CODE_READ)] {
        let base = fields.iter().filter_map(|(name, _)| numbers.get(name)).min().context("no field")? & !7;
        for (name, size) in fields {
            if let Some(offset) = numbers.get_mut(name) {
                *offset -= base;
                ensure!(
                    *offset + size <= room,
                    "{name} ends {} bytes after {base_name}, more than is read: {room}",
                    *offset + size
                );
            }
        }
        numbers.insert(base_name, base);
    }
    Ok(())
}

fn c_program(minor: &Minor, variant: &Variant) -> String {
    let mut text = String::from(
        "#define Py_BUILD_CORE 1\n#include <pyconfig.h>\n\
         #if defined(Py_DEBUG) || defined(Py_TRACE_REFS) || defined(Py_GIL_DISABLED)\n\
         #error these headers are of a debug or free-threaded build\n#endif\n",
    );
    for name in variant.macros {
        let _ = writeln!(text, "#define {name} 1");
    }
    text.push_str("#include <Python.h>\n");
    for header in minor.headers {
        let _ = writeln!(text, "#include <{header}>");
    }
    let _ = write!(
        text,
        "#include <stddef.h>\n#include <stdio.h>\n\
         #if PY_MAJOR_VERSION != 3 || PY_MINOR_VERSION != {}\n#error these headers are of another version\n#endif\n\
         #define STATE_BIT(field) ({{ PyASCIIObject o = {{0}}; unsigned word; o.state.field = 1; \
         __builtin_memcpy(&word, &o.state, 4); (unsigned)__builtin_ctz(word); }})\n\
         #define SHOW(name, value) printf(\"%s %lu\\n\", name, (unsigned long)(value))\n\
         int main(void) {{\nputs(\"headers_of \" PY_VERSION);\n",
        minor.number
    );
    let more = if variant.free_threaded { minor.free_threaded.unwrap_or_default() } else { &[] };
    for (name, expression) in minor.fields.iter().chain(more).copied().flatten() {
        let _ = writeln!(text, "SHOW(\"{name}\", {expression});");
    }
    if minor.number >= 13 {
        let more = if minor.number >= 14 { DEBUG_FIELDS_SINCE_3_14 } else { &[] };
        for name in DEBUG_FIELDS.iter().chain(more) {
            let _ = writeln!(text, "SHOW(\"debug:{name}\", offsetof(_Py_DebugOffsets, {name}));");
        }
    }
    text.push_str("return 0; }\n");
    text
}

fn compile_and_run(program: &str, include: &Path) -> Result<String> {
    let folder = env::temp_dir().join(format!("rmprof-layouts-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let result = compile_and_run_in(&folder, program, include);
    let _ = fs::remove_dir_all(&folder);
    result
}

fn compile_and_run_in(folder: &Path, program: &str, include: &Path) -> Result<String> {
    let (source, binary) = (folder.join("layout.c"), folder.join("layout"));
    fs::write(&source, program)?;
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(&compiler)
        .arg("-I")
        .arg(include)
        .arg("-I")
        .arg(include.join("internal"))
        .arg("-I") // what the headers of free-threaded builds include
        .arg(include.join("internal/mimalloc"))
        // Debian's pyconfig.h includes <x86_64-linux-gnu/python3.N/pyconfig.h>, beside the folder of the headers.
        .arg("-idirafter")
        .arg(include.join(".."))
        .args([OsStr::new("-o"), binary.as_os_str(), source.as_os_str()])
        .output()
        .with_context(|| format!("cannot run {}\nhint: install a C compiler, or set CC", compiler.display()))?;
    ensure!(output.status.success(), "the C program does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    let output = Command::new(&binary).output()?;
    ensure!(output.status.success(), "the C program failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}
