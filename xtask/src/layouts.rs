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

mod minors;
mod opcodes;
mod rules;

use minors::{DEBUG_FIELDS, DEBUG_FIELDS_SINCE_3_14, MINORS, Minor, OPTIONAL};
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
            "{text} is not a known version\nhint: known are {}; a new one is a row in xtask/src/layouts/minors.rs",
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

/// The headers of the first python3.N that has them and is a release build with the GIL: the other variants are measured by macros. Debug
/// and free-threaded builds are called python3.N too, in folders of their own.
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
    let mut others = Vec::new();
    for program in folders.iter().map(|folder| folder.join(&name)).filter(|program| program.is_file()) {
        // A pyenv shim of a version that is not chosen fails here, and is passed over.
        let output = Command::new(&program).args(["-c", ASK_HEADERS]).stderr(Stdio::null()).output();
        let Ok(output) = output else { continue };
        let Some(found) = Headers::of(&String::from_utf8_lossy(&output.stdout)) else { continue };
        if found.minor != minor
            || !["Python.h"].iter().chain(wanted.headers).all(|header| found.folder.join(header).is_file())
        {
            continue;
        }
        if found.is_release {
            return Ok(found.folder);
        }
        others.push(program.display().to_string());
    }
    let passed_over = match others.as_slice() {
        [] => String::new(),
        others => format!(" ({} is a debug or free-threaded build)", others.join(", ")),
    };
    bail!(
        "no headers of CPython 3.{minor} found{passed_over}\nhint: install libpython3.{minor}-dev or `pyenv install 3.{minor}`, or give --include DIR"
    )
}

/// What a Python is asked about its headers. `Py_GIL_DISABLED` and `Py_DEBUG` are macros of pyconfig.h, and change structs.
const ASK_HEADERS: &str = "import sys, sysconfig
variable = sysconfig.get_config_var
other = variable('Py_GIL_DISABLED') or variable('Py_DEBUG') or variable('Py_TRACE_REFS')
print(sys.version_info[1], 'other' if other else 'release', sysconfig.get_path('include'))
";

/// And what it answers.
#[derive(Debug, PartialEq, Eq)]
struct Headers {
    minor: u32,
    is_release: bool,
    folder: PathBuf,
}

impl Headers {
    fn of(answer: &str) -> Option<Self> {
        let mut words = answer.trim_end().splitn(3, ' ');
        let minor = words.next()?.parse().ok()?;
        let is_release = match words.next()? {
            "release" => true,
            "other" => false,
            _ => return None,
        };
        Some(Self { minor, is_release, folder: words.next()?.into() })
    }
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
    layout.insert("flow".into(), opcodes::flow(minor.number, include)?);
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
         #define STATUS_BIT(field) ({{ static PyThreadState t; unsigned word; t._status.field = 1; \
         __builtin_memcpy(&word, &t._status, 4); word; }})\n\
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_by_their_build() {
        let headers = |minor, is_release, folder: &str| Some(Headers { minor, is_release, folder: folder.into() });
        assert_eq!(Headers::of("13 release /a b/python3.13\n"), headers(13, true, "/a b/python3.13"));
        assert_eq!(Headers::of("13 other /t/python3.13t\n"), headers(13, false, "/t/python3.13t"));
        for nonsense in ["", "13\n", "13 release\n", "13 maybe /x\n", "x release /x\n"] {
            assert_eq!(Headers::of(nonsense), None, "{nonsense:?}");
        }
    }
}
