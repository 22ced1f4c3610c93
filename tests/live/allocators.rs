//! Other allocators than glibc's: preloaded, linked, built into a library with and without a prefix, and loaded later; C++'s operators.
//! Every block counts once, by the bytes that were asked for, whatever way it is counted.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use rmprof_bpf::target::elf::ElfFile;
use rmprof_bpf::target::{Pid, maps, memory};

use crate::common::{Process, Ran, Run, Script, Target, any_python, eventually, near_blocks, root, script};

/// Debian's, by `scripts/setup --tests`.
const FOLDER: &str = "/usr/lib/x86_64-linux-gnu";
const LIBRARIES: [&str; 3] = ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"];

/// Allocators made to be preloaded have more thread-local memory than glibc keeps for libraries that come later (ld.so(8), GLIBC_TUNABLES).
const ROOM: (&str, &str) = ("GLIBC_TUNABLES", "glibc.rtld.optional_static_tls=16384");

/// Blocks of known sizes, three times each. Arguments: the library ("-": what the program has itself), what its names begin with.
const SIZES: &str = "
import ctypes, os, sys
P, N = ctypes.c_void_p, ctypes.c_size_t

def function(name, result, *arguments):
    found = getattr(library, sys.argv[2] + name)
    found.restype, found.argtypes = result, arguments
    return found

def load():
    global library, malloc, calloc, realloc, free, memalign
    library = ctypes.CDLL(None if sys.argv[1] == '-' else sys.argv[1])
    malloc, calloc = function('malloc', P, N), function('calloc', P, N, N)
    realloc, free = function('realloc', P, P, N), function('free', None, P)
    memalign = function('posix_memalign', ctypes.c_int, ctypes.POINTER(P), N, N)

def work():
    a = malloc(70_001)  # malloc
    b = calloc(3, 20_001)  # calloc
    a = realloc(a, 90_001)  # realloc
    assert realloc(a, 1 << 60) is None  # fails
    c = P()
    assert memalign(ctypes.byref(c), 64, 30_001) == 0  # aligned
    small = [malloc(40) for _ in range(1000)]
    free(a)  # one
    free(b)  # two
    free(c)  # three
    for block in small:
        free(block)  # many
    kept = bytearray(5_000_000)  # Python's

def more():
    load()
    for _ in range(3):
        work()

if __name__ == '__main__':
    more()
";

/// What `work` of `process` moved, line by line.
#[track_caller]
fn check_work(process: &Process<'_>, program: &Script, what: &str) {
    let expected = [
        ("# malloc", 70_001, 0, 1),
        ("# calloc", 60_003, 0, 1),
        ("# realloc", 90_001, 70_001, 1),
        ("# aligned", 30_001, 0, 1),
        ("# one", 0, 90_001, 1),
        ("# two", 0, 60_003, 1),
        ("# three", 0, 30_001, 1),
        ("# many", 0, 40_000, 1000),
        ("# Python's", 5_000_001, 0, 1),
    ];
    for (marker, allocated, freed, blocks) in expected {
        check_line(process, "work", program.line(marker), (3 * allocated, 3 * freed), &format!("{marker} of {what}"));
        let line = process.line("work", program.line(marker));
        if freed > 0 {
            assert_eq!(line.number("frees"), 3 * blocks, "{marker} of {what}");
        }
    }
    if let Some(failed) = process.find("work", program.line("# fails")) {
        assert!(failed.number("allocated_bytes") <= 4096 && failed.number("freed_bytes") == 0, "{what}: {failed:?}");
    }
}

/// A line took and released so many bytes of blocks, and perhaps was the first to touch one page of Python's arena.
#[track_caller]
fn check_line(process: &Process<'_>, function: &str, line: u32, bytes: (i64, i64), what: &str) {
    let line = process.line(function, line);
    let (allocated, freed) = (line.number("allocated_bytes"), line.number("freed_bytes"));
    assert!(allocated == bytes.0 || allocated == bytes.0 + 4096, "{what}: allocated {allocated}, not {}", bytes.0);
    assert_eq!(freed, bytes.1, "{what}");
}

#[track_caller]
fn complete(ran: &Ran, what: &str) {
    let report = ran.report();
    report.check_complete();
    for counter in ["library_not_held", "return_without_entry", "block_replaced"] {
        assert!(
            report.0["health"]["counters"][counter].as_i64().is_none_or(|count| count == 0),
            "{counter} of {what}: {report}"
        );
    }
}

/// Every library of [`LIBRARIES`] that is here.
fn libraries() -> Vec<PathBuf> {
    let all = LIBRARIES.iter().map(|name| Path::new(FOLDER).join(name));
    all.filter(|path| is_here(path)).collect()
}

fn is_here(path: &Path) -> bool {
    let is_here = path.exists();
    if !is_here {
        println!("{} is not here: `scripts/setup --tests` installs it", path.display());
    }
    is_here
}

/// Runs `program` with and without the library that counts inside the program.
fn both_ways(run: impl Fn() -> Run, words: &[&std::ffi::OsStr], check: impl Fn(&Ran, &str)) {
    for (what, options) in [("preload", &[][..]), ("--no-preload", &["--no-preload"][..])] {
        let ran = run().words(options).word(&any_python().path).words(words).run().expect(0).quiet();
        complete(&ran, what);
        check(&ran, what);
    }
}

#[test]
fn root_preloaded_allocators() {
    if !root() {
        return;
    }
    let program = script("sizes.py", SIZES);
    for library in libraries() {
        let run = || Run::json().env("LD_PRELOAD", &library);
        both_ways(run, &[program.path.as_ref(), "-".as_ref(), "".as_ref()], |ran, what| {
            check_work(&ran.report().only(), &program, &format!("{} {what}", library.display()));
        });
    }
}

/// The program is linked to the allocator, which the loader then has after the library that we preload: that library must hand every
/// call on to it, not some to it and some to the C library.
#[test]
fn root_linked_allocators() {
    if !root() {
        return;
    }
    let program = script("sizes.py", SIZES);
    let python = any_python();
    let prefix = python.bare(&["-c", "import sys; print(sys.base_prefix)"]);
    for library in libraries() {
        let copy = program.directory().join(format!("python-{}", library.file_name().unwrap().to_string_lossy()));
        std::fs::copy(&python.path, &copy).unwrap();
        let patched = Command::new("patchelf").arg("--add-needed").args([&library, &copy]).status().unwrap();
        assert!(patched.success());
        for options in [&[][..], &["--no-preload"][..]] {
            let run = Run::json().env("PYTHONHOME", prefix.trim()).words(options).words([&copy, &program.path]);
            let ran = run.words(["-", ""]).run().expect(0).quiet();
            let what = format!("{} {options:?}", copy.display());
            complete(&ran, &what);
            check_work(&ran.report().only(), &program, &what);
        }
    }
}

/// A C library with jemalloc inside, hidden from everybody else. With a prefix its functions have other names.
fn with_jemalloc(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let archive = Path::new(FOLDER).join("libjemalloc_pic.a");
    if !is_here(&archive) {
        return None;
    }
    let names = ["malloc", "calloc", "realloc", "free", "posix_memalign", "mallocx", "rallocx", "sdallocx"];
    let renamed = directory.join(format!("lib{prefix}.a"));
    let renames = names.iter().flat_map(|name| ["--redefine-sym".to_owned(), format!("{name}={prefix}{name}")]);
    let made = Command::new("objcopy").args(renames).args([&archive, &renamed]).status().unwrap();
    assert!(made.success());
    let source = directory.join("inside.c");
    std::fs::write(&source, INSIDE).unwrap();
    let library = directory.join(format!("inside{prefix}.so"));
    let define = if prefix.is_empty() { "-DPRE(x)=x".to_owned() } else { format!("-DPRE(x)={prefix}##x") };
    let mut compiler = Command::new("clang");
    compiler.args(["-O1", "-shared", "-fPIC", &define, "-o"]).args([&library, &source, &renamed]);
    compiler.args(["-Wl,--exclude-libs,ALL", "-Wl,-Bsymbolic", "-lm", "-l:libstdc++.so.6"]);
    assert!(compiler.status().unwrap().success());
    Some(library)
}

const INSIDE: &str = "
#include <stddef.h>
extern void *PRE(malloc)(size_t), *PRE(calloc)(size_t, size_t), *PRE(realloc)(void *, size_t), PRE(free)(void *);
extern int PRE(posix_memalign)(void **, size_t, size_t);
extern void *PRE(mallocx)(size_t, int), *PRE(rallocx)(void *, size_t, int), PRE(sdallocx)(void *, size_t, int);
void *my_malloc(size_t n) { return PRE(malloc)(n); }
void *my_calloc(size_t k, size_t n) { return PRE(calloc)(k, n); }
void *my_realloc(void *p, size_t n) { return PRE(realloc)(p, n); }
int my_posix_memalign(void **p, size_t a, size_t n) { return PRE(posix_memalign)(p, a, n); }
void my_free(void *p) { PRE(free)(p); }
void *my_mallocx(size_t n) { return PRE(mallocx)(n, 0); }
void *my_rallocx(void *p, size_t n) { return PRE(rallocx)(p, n, 0); }
void my_sdallocx(void *p, size_t n) { PRE(sdallocx)(p, n, 0); }
";

/// The library is mapped while the program runs, and its first block is counted.
#[test]
fn root_allocators_that_are_loaded_later() {
    if !root() {
        return;
    }
    let program = script("sizes.py", SIZES);
    let inside = ["", "je_", "_rjem_"].iter().filter_map(|prefix| with_jemalloc(program.directory(), prefix));
    let all = libraries().into_iter().map(|library| (library, "")).chain(inside.map(|library| (library, "my_")));
    for (library, prefix) in all {
        let run = || Run::json().env(ROOM.0, ROOM.1);
        both_ways(run, &[program.path.as_ref(), library.as_ref(), prefix.as_ref()], |ran, what| {
            check_work(&ran.report().only(), &program, &format!("{} {what}", library.display()));
        });
    }
}

/// jemalloc's own functions, by a library that has it inside.
#[test]
fn root_functions_that_only_jemalloc_has() {
    if !root() {
        return;
    }
    let program = script(
        "own.py",
        "
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
P, N = ctypes.c_void_p, ctypes.c_size_t
library.my_mallocx.restype = library.my_rallocx.restype = P
library.my_mallocx.argtypes, library.my_rallocx.argtypes, library.my_sdallocx.argtypes = [N], [P, N], [P, N]

def work():
    block = library.my_mallocx(70_001)  # taken
    block = library.my_rallocx(block, 90_001)  # resized
    library.my_sdallocx(block, 90_001)  # given
work()
",
    );
    let Some(library) = with_jemalloc(program.directory(), "je_arrow_") else { return };
    both_ways(
        || Run::json().env(ROOM.0, ROOM.1),
        &[program.path.as_ref(), library.as_ref()],
        |ran, what| {
            let report = ran.report();
            let process = report.only();
            for (marker, bytes) in [("# taken", (70_001, 0)), ("# resized", (90_001, 70_001)), ("# given", (0, 90_001))]
            {
                check_line(&process, "work", program.line(marker), bytes, &format!("{marker} {what}"));
            }
        },
    );
}

const OPERATORS: &str = "
typedef decltype(sizeof 0) size_t;
namespace std { struct nothrow_t {}; enum class align_val_t : size_t {}; extern const nothrow_t nothrow; }
void *operator new(size_t, const std::nothrow_t &) noexcept;
void *operator new(size_t, std::align_val_t);
void operator delete(void *, std::align_val_t) noexcept;
extern \"C\" {
void *one(size_t n) { return ::operator new(n); }
void *many(size_t n) { return ::operator new[](n); }
void *quiet(size_t n) { return ::operator new(n, std::nothrow); }
void *aligned(size_t n) { return ::operator new(n, std::align_val_t(64)); }
void drop(void *p) { ::operator delete(p); }
void drop_many(void *p) { ::operator delete[](p); }
void drop_sized(void *p) { ::operator delete(p, 50001); }
void drop_aligned(void *p) { ::operator delete(p, std::align_val_t(64)); }
}
";

/// C++'s operators count once: libstdc++'s call malloc, allocators have their own.
#[test]
fn root_operators_of_cplusplus() {
    if !root() {
        return;
    }
    let program = script(
        "operators.py",
        "
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
for name in 'one', 'many', 'quiet', 'aligned':
    getattr(library, name).restype, getattr(library, name).argtypes = ctypes.c_void_p, [ctypes.c_size_t]
for name in 'drop', 'drop_many', 'drop_sized', 'drop_aligned':
    getattr(library, name).argtypes = [ctypes.c_void_p]

def work():
    a = library.one(70_001)  # new
    b = library.many(60_001)  # array
    c = library.quiet(50_001)  # nothrow
    d = library.aligned(40_000)  # with alignment
    library.drop(a)  # delete
    library.drop_many(b)  # of array
    library.drop_sized(c)  # sized
    library.drop_aligned(d)  # of alignment
work()
",
    );
    let source = program.directory().join("operators.cpp");
    std::fs::write(&source, OPERATORS).unwrap();
    let library = program.directory().join("operators.so");
    let mut compiler = Command::new("clang");
    compiler.args(["-std=c++17", "-fsized-deallocation", "-nostdinc++", "-O1", "-shared", "-fPIC", "-o"]);
    compiler.args([&library, &source]).args(["-Wl,--no-as-needed", "-l:libstdc++.so.6"]);
    assert!(compiler.status().unwrap().success());
    let preloads = std::iter::once(PathBuf::new()).chain(libraries());
    for preload in preloads {
        let run = || if preload.as_os_str().is_empty() { Run::json() } else { Run::json().env("LD_PRELOAD", &preload) };
        both_ways(run, &[program.path.as_ref(), library.as_ref()], |ran, what| {
            let report = ran.report();
            let process = report.only();
            // libstdc++ rounds an aligned size up to a multiple of the alignment: 40,000 is one.
            let sizes = [("new", "delete", 70_001), ("array", "of array", 60_001), ("nothrow", "sized", 50_001)];
            for (new, delete, bytes) in sizes.into_iter().chain([("with alignment", "of alignment", 40_000)]) {
                let what = format!("{new} with {} {what}", preload.display());
                check_line(&process, "work", program.line(&format!("# {new}")), (bytes, 0), &what);
                check_line(&process, "work", program.line(&format!("# {delete}")), (0, bytes), &what);
            }
        });
    }
}

/// A fork has what its parent had loaded, and what it loads itself.
#[test]
fn root_forks_after_a_later_allocator() {
    if !root() {
        return;
    }
    let program = script(
        "forks.py",
        &format!(
            "{SIZES}
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(child)
"
        ),
    );
    let Some(library) = libraries().pop() else { return };
    both_ways(
        || Run::json().env(ROOM.0, ROOM.1),
        &[program.path.as_ref(), library.as_ref(), "".as_ref()],
        |ran, what| {
            let report = ran.report();
            let child = report.process(ran.stdout_text().trim().parse().unwrap());
            check_line(&child, "work", program.line("# malloc"), (70_001, 0), what);
            check_line(&child, "work", program.line("# many"), (0, 40_000), what);
        },
    );
}

/// The program is stopped to be looked at by a signal that it never sees; where it blocks that signal it is not stopped, which is said.
#[test]
fn root_the_stop_at_a_library_is_not_seen() {
    if !root() {
        return;
    }
    let text = SIZES.replace(
        "    more()\n",
        "    import signal, threading
    seen = []
    signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    if sys.argv[3] == 'blocked':
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    thread = threading.Thread(target=more)
    thread.start()
    thread.join()
    print(len(seen), signal.sigpending())
",
    );
    let program = script("signals.py", &text);
    let Some(library) = libraries().pop() else { return };
    for how in ["free", "blocked"] {
        let run = Run::json().env(ROOM.0, ROOM.1).words([&any_python().path, &program.path, &library]);
        let ran = run.words(["", how]).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), "0 set()\n", "{how}");
        let not_held = ran.report().0["health"]["counters"]["library_not_held"].as_i64().unwrap_or(0);
        if how == "free" {
            complete(&ran, how);
            check_work(&ran.report().only(), &program, how);
        } else {
            assert!(not_held > 0 && ran.report().health("lost") >= not_held, "{}", ran.report());
        }
    }
}

/// Processes that run already: what is there is probed at once, what comes later from when it was looked at.
#[test]
fn root_allocators_of_a_running_process() {
    if !root() {
        return;
    }
    let text = SIZES.replace(
        "    more()\n",
        "    print('ready', flush=True)
    for line in sys.stdin:
        load() if line == 'load\\n' else work()
        print('done', flush=True)
",
    );
    let program = script("server.py", &text);
    for library in libraries() {
        for later in [false, true] {
            let mut command = Command::new(any_python().path);
            command.arg(&program.path).env(ROOM.0, ROOM.1);
            if later {
                command.arg(&library).arg("");
            } else {
                command.args(["-", ""]).env("LD_PRELOAD", &library);
            }
            let mut target = Target::of(&mut command);
            if !later {
                target.step("load");
            }
            let started = Run::json_of(["attach"]).words(["--mode", "heap"]).word(target.pid()).start_on(&target);
            if later {
                target.step("load");
            }
            eventually("the library is probed", || is_probed(&target.pid(), &library));
            for _ in 0..3 {
                assert_eq!(target.step("work"), "done");
            }
            started.signal(Signal::SIGINT);
            let ran = started.end().expect(0).quiet();
            target.end();
            ran.report().check_complete();
            check_work(&ran.report().only(), &program, &format!("{} later: {later}", library.display()));
        }
    }
}

/// Is the process's `malloc` of a library probed? What releases is probed first, so other code of the library tells nothing.
fn is_probed(pid: &str, library: &Path) -> bool {
    let library = library.canonicalize().unwrap();
    let file = ElfFile::parse(File::open(&library).unwrap()).unwrap();
    let malloc = file.symbol("malloc").unwrap();
    let code = file.bytes_at(malloc.address, malloc.size).unwrap();
    let pid = Pid::from_raw(pid.parse().unwrap());
    let mappings = maps::mappings(pid).unwrap();
    let Some(bias) = file.load_bias(mappings.iter().filter(|mapping| mapping.path == library)) else { return false };
    memory::read_bytes(pid, bias.wrapping_add(malloc.address), code.len()).unwrap() != code
}

/// An allocator whose function may be left by a jump: the kernel then tells of no return.
const JUMPS: &str = "
#include <setjmp.h>
#include <stddef.h>

static jmp_buf out;
static char block[64];

void je_free(void *pointer) { (void)pointer; }
void *je_calloc(size_t count, size_t size) { (void)count, (void)size; return block; }

void *je_malloc(size_t size)
{
	if (size == 12345)
		longjmp(out, 1);
	return block;
}

void leave(void)
{
	if (!setjmp(out))
		je_malloc(12345);
}
";

/// What the thread does further in than where the lost call was is no call of the allocator's own.
#[test]
fn root_a_call_that_never_returns_hides_no_others() {
    if !root() {
        return;
    }
    let program = script(
        "jumps.py",
        "
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
kept = []

def step(left):
    if left:
        return list(map(step, [left - 1]))
    kept.append(bytearray(1_000_000))  # further in

library.leave()
step(20)
",
    );
    let library = program.library_beside(JUMPS);
    for loader in ["libbpf", "aya"] {
        let run = Run::json_of(["run", "--no-preload", "--loader", loader]).word(any_python().path);
        let report = run.word(&program.path).word(&library).run().expect(0).report();
        near_blocks(report.only().line("step", program.line("# further in")).increment(), 1_000_001);
        assert_eq!(report.0["health"]["counters"]["return_without_entry"], 1, "{loader}: {report}");
    }
}
