//! Discovery over every Python found, and over files that are not here.

use std::collections::HashMap;
use std::path::Path;

use super::super::discover::{Module, SymbolSource, find};
use super::super::layout::{Variant, for_version};
use super::interpreters::installed;
use super::process::Process;

const READY: &str = "import sys; sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.read()";

#[test]
fn every_python_found_is_told_right_or_refused() {
    for python in installed() {
        let mut process = Process::start(&python.program, &["-S", "-c", READY]);
        assert_eq!(process.line(), "ready");
        let answer = process.find();
        let (major, minor, micro) = python.version;
        match python.layout() {
            Some(layout) => {
                let found = answer.unwrap().unwrap();
                assert_eq!((found.version, found.layout.minor), (python.version, layout.minor));
                assert_eq!(found.hexversion, u32::from_be_bytes([major, minor, micro, 0xf0]));
                assert!(found.text_range.end > found.text_range.start);
                eprintln!("{}: found in {}", python.program.display(), found.module_path.display());
            }
            None => {
                let refusal = answer.unwrap_err();
                assert!(!refusal.hint.is_empty());
                let told = if for_version(major, minor).is_some() { "supported are" } else { "3.6 to 3.15" };
                assert!(refusal.sentence.contains(told) || refusal.sentence.contains("PyPy"), "{refusal}");
                eprintln!("{}: refused: {refusal}", python.program.display());
            }
        }
    }
}

#[test]
fn a_process_without_python_has_none() {
    let mut process = Process::start(Path::new("/bin/sh"), &["-c", "echo ready; read -r line"]);
    assert_eq!(process.line(), "ready");
    assert!(process.find().unwrap().is_none());
}

/// An ELF file made of a few symbols and bytes.
#[derive(Default)]
struct Made {
    symbols: HashMap<&'static str, u64>,
    bytes: HashMap<u64, Vec<u8>>,
}

impl SymbolSource for Made {
    fn symbol(&self, name: &str) -> Option<(u64, u64)> {
        self.symbols.get(name).map(|address| (*address, 8))
    }

    fn section(&self, _: &str) -> Option<(u64, u64)> {
        None
    }

    fn read_at_address(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        self.bytes.get(&address).map(|bytes| bytes[..length.min(bytes.len())].to_vec())
    }
}

fn cpython(hexversion: u64, more: &[&'static str]) -> Made {
    let mut made = Made::default();
    made.symbols.extend([("_PyEval_EvalFrameDefault", 0x1000), ("_PyRuntime", 0x5000), ("Py_Version", 0x3000)]);
    made.symbols.extend(more.iter().map(|name| (*name, 0x2000)));
    made.bytes.insert(0x3000, hexversion.to_le_bytes().to_vec());
    made
}

fn answer(path: &str, file: &Made) -> Result<Option<(u8, u8, u8)>, String> {
    let module = Module { path: Path::new(path), load_bias: 0x10_0000, file };
    let found = find(&[module], None).map_err(|refusal| refusal.sentence)?;
    Ok(found.map(|interpreter| {
        assert_eq!((interpreter.runtime_address, interpreter.text_range.start), (0x10_5000, 0x10_1000));
        interpreter.version
    }))
}

#[test]
fn other_builds_are_refused_by_name() {
    let refused = |file: &Made| answer("/lib/libpython.so", file).unwrap_err();
    assert_eq!(answer("/lib/libpython.so", &cpython(0x030d_05f0, &[])), Ok(Some((3, 13, 5))));
    let head = |words: [u64; 7]| {
        let mut made = cpython(0x030b_02f0, &["PyCode_Type"]);
        made.bytes.extend(words.iter().zip(0..).map(|(word, index)| (0x2000 + 8 * index, word.to_le_bytes().to_vec())));
        made
    };
    // ob_refcnt, ob_type, ob_size, tp_name, tp_basicsize; and the same after two pointers.
    assert_eq!(answer("/lib/libpython.so", &head([1, 0, 0, 0x8000, 176, 1, 0])), Ok(Some((3, 11, 2))));
    assert!(refused(&head([0, 0, 1, 0, 0, 0x8000, 176])).contains("trace-refs"));
    assert!(refused(&cpython(0x030d_00b3, &[])).contains("before its release"));
    assert!(refused(&cpython(0x030c_00c3, &[])).contains("before its release"));
    assert_eq!(answer("/lib/libpython.so", &cpython(0x030d_00c1, &[])), Ok(Some((3, 13, 0))));
    assert_eq!(refused(&cpython(0x0310_02f0, &[])), "/lib/libpython.so is CPython 3.16.2; supported are 3.6 to 3.15");
    assert!(refused(&cpython(0x0307_03f0, &[])).contains("3.7.3; supported are 3.7.4 and later"));
    assert!(refused(&cpython(0x020f_02f0, &[])).contains("version cannot be told"));
    assert!(
        refused(&Made { symbols: HashMap::from([("PyEval_EvalFrameEx", 1)]), ..Made::default() })
            .contains("older than 3.6")
    );
    assert!(answer("/opt/libpypy3.11-c.so", &Made::default()).unwrap_err().contains("PyPy"));
    assert!(answer("/x/\n\u{1b}[2J", &cpython(0x0310_02f0, &[])).unwrap_err().starts_with("/x/\\n\\u{1b}[2J is"));
    assert_eq!(answer("/lib/libc.so.6", &Made::default()), Ok(None));
}

#[test]
fn variants_are_told_by_what_only_they_have() {
    let variant = |file: &Made| {
        let module = Module { path: Path::new("/lib/libpython.so"), load_bias: 0x10_0000, file };
        find(&[module], None).unwrap().unwrap().layout.variant
    };
    assert_eq!(variant(&cpython(0x030d_05f0, &[])), Variant::Release);
    let mut free_threaded = cpython(0x030d_05f0, &[]);
    free_threaded.bytes.insert(0x5000 + 16, 1u64.to_le_bytes().to_vec());
    assert_eq!(variant(&free_threaded), Variant::FreeThreaded);
    assert_eq!(variant(&cpython(0x030d_05f0, &["_Py_MergeZeroLocalRefcount"])), Variant::FreeThreaded);
    assert_eq!(variant(&cpython(0x030c_01f0, &["_Py_NegativeRefcount"])), Variant::Debug);
    assert_eq!(variant(&cpython(0x0307_05f0, &["_Py_RefTotal"])), Variant::Debug);
    free_threaded.symbols.insert("_Py_NegativeRefcount", 0x2000);
    assert_eq!(variant(&free_threaded), Variant::FreeThreadedDebug);
}

#[test]
fn of_two_interpreters_the_one_that_runs_is_taken() {
    let (program, library) = (cpython(0x030b_02f0, &[]), cpython(0x030c_01f0, &[]));
    let modules = [
        Module { path: Path::new("/usr/bin/python3.11"), load_bias: 0, file: &program },
        Module { path: Path::new("/lib/libpython3.12.so.1.0"), load_bias: 0x10_0000, file: &library },
    ];
    let minor = |memory| find(&modules, memory).unwrap().unwrap().version.1;
    assert_eq!(minor(None), 12);
    // The runtime of the program has an interpreter, that of the library has none.
    let memory = |address: u64, buffer: &mut [u8]| {
        buffer.fill(u8::from(address < 0x10_0000));
        Ok(())
    };
    assert_eq!(minor(Some(&memory)), 11);
}
