//! A Python on musl: where its threads keep their states, and musl's allocator. `scripts/musl-python` builds it; where that was not
//! called these tests are left out, and say so.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Run, Target, root, script};

const PROGRAM: &str = "
import sys, threading
held = []

def load():
    import blocks
    return blocks

def work():
    blocks.take(70_001)  # malloc
    blocks.grow(90_001)  # realloc
    blocks.aligned(30_001)  # aligned
    blocks.zeros(20_001)  # calloc
    blocks.give()  # free
    held.append(bytearray(5_000_000))  # Python's

def aside():
    held.append(bytearray(3_000_000))  # of a thread

blocks = load()
print('ready', flush=True)
sys.stdin.readline()
work()
thread = threading.Thread(target=aside)
thread.start()
thread.join()
";

const BLOCKS: &str = "
#include <Python.h>
static void *kept;
#define METHOD(name) static PyObject *name(PyObject *self, PyObject *size)
METHOD(take) { kept = malloc(PyLong_AsSize_t(size)); Py_RETURN_NONE; }
METHOD(grow) { kept = realloc(kept, PyLong_AsSize_t(size)); Py_RETURN_NONE; }
METHOD(aligned) { free(kept); if (posix_memalign(&kept, 64, PyLong_AsSize_t(size))) kept = 0; Py_RETURN_NONE; }
METHOD(zeros) { free(kept); kept = calloc(3, PyLong_AsSize_t(size)); Py_RETURN_NONE; }
METHOD(give) { free(kept); kept = 0; Py_RETURN_NONE; }
static PyMethodDef methods[] = { { \"take\", take, METH_O, 0 }, { \"grow\", grow, METH_O, 0 }, { \"aligned\", aligned, METH_O, 0 },
	{ \"zeros\", zeros, METH_O, 0 }, { \"give\", give, METH_NOARGS, 0 }, { 0 } };
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, \"blocks\", 0, -1, methods };
PyMODINIT_FUNC PyInit_blocks(void) { return PyModule_Create(&module); }
";

/// The interpreter that `scripts/musl-python` has built.
fn python() -> Option<PathBuf> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/musl-python");
    let said = Command::new(tool).arg("--offline").output().unwrap();
    let path = String::from_utf8(said.stdout).unwrap();
    if !said.status.success() {
        println!("left out: {}", String::from_utf8_lossy(&said.stderr).trim());
        return None;
    }
    Some(PathBuf::from(path.trim()))
}

#[test]
fn root_every_block_of_a_python_on_musl() {
    let Some(python) = python().filter(|_| root()) else { return };
    let program = script("musl.py", PROGRAM);
    let source = program.directory().join("blocks.c");
    std::fs::write(&source, BLOCKS).unwrap();
    let headers = python.parent().unwrap().join("../include");
    let mut compiler = Command::new("musl-gcc");
    compiler.args(["-shared", "-fPIC", "-O1", "-I"]).arg(headers).arg("-o");
    assert!(compiler.arg(program.directory().join("blocks.so")).arg(&source).status().unwrap().success());
    for options in [&[][..], &["--no-preload"][..]] {
        let ran = Run::json().words(options).words([&python, &program.path]).input("go\n").run().expect(0).quiet();
        check(&ran.report(), &program);
    }
    let mut target = Target::of(Command::new(&python).arg(&program.path));
    let started = Run::json_of(["attach"]).words(["--mode", "heap"]).word(target.pid()).start_on(&target);
    target.step("go");
    target.end();
    check(&started.end().expect(0).quiet().report(), &program);
}

#[track_caller]
fn check(report: &crate::common::Report, program: &crate::common::Script) {
    report.check_complete();
    let process = report.only();
    let expected = [
        ("work", "# malloc", 70_001, 0),
        ("work", "# realloc", 90_001, 70_001),
        ("work", "# aligned", 30_001, 90_001),
        ("work", "# calloc", 60_003, 30_001),
        ("work", "# free", 0, 60_003),
        ("work", "# Python's", 5_000_001, 0),
        ("aside", "# of a thread", 3_000_001, 0),
    ];
    for (function, marker, allocated, freed) in expected {
        let line = process.line(function, program.line(marker));
        let found = line.number("allocated_bytes");
        // The list of what is held grows beside the last two, and a page of Python's arena may be touched.
        let beside = found - allocated;
        assert!((0..=4096 + 128).contains(&beside), "{marker}: {line:?}");
        assert_eq!(line.number("freed_bytes"), freed, "{marker}: {line:?}");
    }
    assert!(process.0["other"].as_array().unwrap().iter().all(|other| other["reason"] != "stack not read"), "{report}");
}
