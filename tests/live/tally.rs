//! The preloaded library: what it counts is right where it is hard to count, and the program does not notice it.

use nix::sys::signal::Signal;

use crate::common::{Report, Run, any_python, eventually, near_blocks, root, script, supported_pythons};

/// `bytes(n)` asks for its head and a NUL too (Objects/bytesobject.c).
const BYTES_HEAD: i64 = 33;

fn counter(report: &Report, name: &str) -> i64 {
    report.0["health"]["counters"][name].as_i64().unwrap_or(0)
}

#[test]
fn root_the_environment_is_as_without_us() {
    if !root() {
        return;
    }
    let program = script(
        "environment.py",
        "
import os, subprocess, sys
print(os.environ.get('LD_PRELOAD'), '_rmprof_tally.so' in open('/proc/self/maps').read(), len(os.listdir('/proc/self/fd')))
print(subprocess.run(['env'], stdout=subprocess.PIPE).stdout.decode().count('LD_PRELOAD'))
if len(sys.argv) == 1:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, __file__, 'again'])
",
    );
    for python in supported_pythons() {
        let bare = std::process::Command::new(&python.path)
            .args([program.path.as_os_str(), "again".as_ref()])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let bare = String::from_utf8(bare.stdout).unwrap().replace("False", "True");
        let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
        assert_eq!(ran.stdout_text(), bare.repeat(2), "{}", python.path.display());
        // The program's own variable is its own, and its children's.
        let run = Run::json().env("LD_PRELOAD", "libm.so.6").words([&python.path, &program.path]);
        let expected = bare.replace("None", "libm.so.6").replace("\n0\n", "\n1\n");
        assert_eq!(run.run().expect(0).quiet().stdout_text(), expected.repeat(2), "{}", python.path.display());
    }
}

/// malloc and free in threads that do not hold the GIL, blocks given from one to the other.
#[test]
fn root_blocks_of_threads_without_the_gil() {
    if !root() {
        return;
    }
    let program = script(
        "threads.py",
        "
import ctypes, random, threading
library = ctypes.CDLL(None)
library.malloc.restype = library.realloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
library.malloc.argtypes = [ctypes.c_size_t]
shared, total = [], []

def work(seed):
    chance, mine, asked = random.Random(seed), [], 0
    for _ in range(20_000):
        size = chance.randrange(1, 3_000)
        asked += size
        mine.append(library.malloc(size))  # taken
        if chance.random() < 0.2:
            size = chance.randrange(1, 3_000)
            mine[-1] = library.realloc(mine[-1], size)  # resized
        if len(mine) > 100:
            at = chance.randrange(len(mine))
            mine[at], mine[-1] = mine[-1], mine[at]
            shared.append(mine.pop())
            try:
                library.free(shared.pop(0))  # given
            except IndexError:
                pass
    for block in mine:
        library.free(block)
    total.append(asked)

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for block in shared:
    library.free(block)
print(sum(total))
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    let asked: i64 = ran.stdout_text().trim().parse().unwrap();
    let report = ran.report();
    report.check_complete();
    for lossless in ["block_replaced", "blocks_full", "sites_full"] {
        assert_eq!(counter(&report, lossless), 0, "{lossless}: {report}");
    }
    let taken = report.only().line("work", program.line("# taken"));
    // ctypes makes small objects of its own here, in Python's arenas: whole pages.
    let beside = taken.number("allocated_bytes") - asked;
    assert!((0..1 << 20).contains(&beside), "{asked} asked for: {taken:?}");
    assert!(taken.number("live_bytes") < 1 << 20, "all were released: {taken:?}");
}

/// More blocks alive than the first levels of the table have room for, and more stacks than its first part.
#[test]
fn root_half_a_million_blocks_and_ten_thousand_stacks() {
    if !root() {
        return;
    }
    const BLOCKS: i64 = 560_000;
    const STACKS: u32 = 9_000;
    let mut text = format!("def many():\n    kept = [bytes(600) for _ in range({BLOCKS})]\n    del kept\n\n");
    text += "def deep():\n";
    for number in 0..STACKS {
        text += &format!("    x = bytes({})\n", 1_000 + number);
    }
    text += "\nmany()\ndeep()\n";
    let program = script("many.py", &text);
    let report = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet().report();
    report.check_complete();
    assert_eq!(counter(&report, "blocks_full"), 0);
    assert_eq!(counter(&report, "block_replaced"), 0);
    let process = report.only();
    let (kept, dropped) = (process.line("many", 2), process.line("many", 3));
    let asked = BLOCKS * (600 + BYTES_HEAD);
    // The list is realloc'd as it grows, and has 9 / 8 of the room it needs at the most.
    assert!((asked..asked + BLOCKS * 9 + (64 << 10)).contains(&kept.increment()), "{kept:?}");
    assert!((asked..asked + BLOCKS * 9 + (64 << 10)).contains(&-dropped.increment()), "{dropped:?}");
    assert_eq!(dropped.number("frees") - BLOCKS, 1, "and the list: {dropped:?}");
    for number in 0..STACKS {
        let line = process.line("deep", 6 + number);
        near_blocks(line.number("allocated_bytes"), i64::from(1_000 + number) + BYTES_HEAD);
    }
}

/// A fork counts in memory of its own while there is any left, and is probed when there is not.
#[test]
fn root_more_forks_than_segments() {
    if !root() {
        return;
    }
    let program = script(
        "forks.py",
        "
import os, sys

def take(size):
    kept = bytearray(size)  # here
    return len(kept)

rounds, each = 2, 70
for _ in range(rounds):
    gate, children = os.pipe(), []
    for number in range(each):
        child = os.fork()
        if child == 0:
            take(1_000_000 + number)
            os.read(gate[0], 1)
            os._exit(0)
        children.append(child)
    os.write(gate[1], b'!' * each)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    os.close(gate[0]); os.close(gate[1])
    print(*children)
",
    );
    let ran = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet();
    let report = ran.report();
    report.check_complete();
    for line in ran.stdout_text().lines() {
        for (number, child) in (0..).zip(line.split(' ')) {
            let taken = report.process(child.parse().unwrap()).line("take", program.line("# here"));
            near_blocks(taken.number("allocated_bytes"), 1_000_001 + number);
            near_blocks(taken.increment(), 1_000_001 + number);
        }
    }
}

/// Where the library cannot count, the calls are trapped: a limit on files, an allocator of the program's own.
#[test]
fn root_what_cannot_be_tallied_is_probed() {
    if !root() {
        return;
    }
    let program = script("taking.py", "def take():\n    return bytearray(5_000_000)\n\nkept = take()\n");
    let python = any_python().path.clone();
    let limited = format!("ulimit -f 1000; exec {} {}", python.display(), program.path.display());
    let jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
    let ran = Run::json().words(["sh", "-c", &limited]).run().expect(0);
    assert!(ran.stderr_text().contains("every call of its allocator is trapped, which is slow: its limits"), "{ran}");
    let mut runs = vec![ran];
    if std::path::Path::new(jemalloc).exists() {
        runs.push(Run::json().env("LD_PRELOAD", jemalloc).words([&python, &program.path]).run().expect(0).quiet());
    }
    for ran in runs {
        let report = ran.report();
        report.check_complete();
        near_blocks(report.only().line("take", 2).increment(), 5_000_001);
    }
}

/// Threads that run on in C while the interpreter ends: their thread states are given back under them.
#[test]
fn root_threads_that_outlive_the_interpreter() {
    if !root() {
        return;
    }
    let program = script(
        "daemons.py",
        "
import ctypes, threading
library = ctypes.CDLL(None)
library.qsort.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
compare = ctypes.cast(library.strcmp, ctypes.c_void_p)
rows = ctypes.create_string_buffer(b'ab\\0\\0' * 2_000, 8_000)
going = threading.Semaphore(0)

def work():
    # qsort takes a buffer from malloc, and holds no GIL.
    copy = ctypes.create_string_buffer(rows.raw, 8_000)
    going.release()
    while True:
        library.qsort(copy, 2_000, 4, compare)

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
for _ in range(3):
    going.acquire()
print('done', flush=True)
",
    );
    for python in supported_pythons() {
        for _ in 0..3 {
            let ran = Run::json().words([&python.path, &program.path]).run().expect(0).quiet();
            assert_eq!(ran.stdout_text(), "done\n", "{}", python.path.display());
        }
    }
}

/// The word in the program's memory that says whether it counts: that after the magic of its tally's head (struct rm_tally).
fn is_counting(pid: i64) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let starts =
        maps.lines().filter(|line| line.contains("memfd:rmprof-bpf")).filter_map(|line| line.split('-').next());
    let words = starts.map(|start| {
        let mut words = [0; 8];
        memory.read_exact_at(&mut words, u64::from_str_radix(start, 16).unwrap()).unwrap();
        let (magic, enabled) = words.split_at(4);
        (u32::from_ne_bytes(magic.try_into().unwrap()), u32::from_ne_bytes(enabled.try_into().unwrap()))
    });
    let (_, enabled) = words.into_iter().find(|(magic, _)| *magic == rmprof_probes::abi::RM_TALLY_MAGIC).unwrap();
    enabled != 0
}

#[test]
fn root_killed_we_leave_nobody_counting() {
    if !root() {
        return;
    }
    let program = script(
        "waiting.py",
        "
import os, signal
child = os.fork()
if child == 0:
    kept = bytearray(100_000)
print(os.getpid(), flush=True)
signal.pause()
",
    );
    let mut started = Run::new([&any_python().path, &program.path]).start();
    let pids = [started.number(), started.number()];
    assert!(pids.iter().all(|pid| is_counting(*pid)));
    started.signal(Signal::SIGKILL);
    eventually("nobody counts", || pids.iter().all(|pid| !is_counting(*pid)));
    for pid in pids {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    }
    started.end();
}

/// A heap of small blocks, in a mode whose table is laid out for large ones: all of them had shared the buckets of a few pages.
#[test]
fn root_small_blocks_close_together_all_find_room() {
    if !root() {
        return;
    }
    let program = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n\
                   libc.malloc.argtypes = [ctypes.c_size_t]\ndef take():\n    for _ in range(100_000):\n        \
                   libc.malloc(24)  # small\ntake()\n";
    let program = script("small.py", program);
    let report = Run::json().word(&any_python().path).word(&program.path).run().expect(0).report();
    report.check_complete();
    let line = report.only().line("take", program.line("# small"));
    assert!(line.number("live_bytes") >= 2_400_000, "{line:?}");
}

/// Millions of objects of some tens of bytes, each a block: of the areas that share the last level's buckets some are full from end to end.
#[test]
fn root_millions_of_small_objects_all_find_room() {
    if !root() {
        return;
    }
    let program = script(
        "millions.py",
        "
def make():
    kept = []
    for number in range(2_500_000):
        kept.append((number, str(number)))
    return kept

kept = make()
print(len(kept))
",
    );
    let run = Run::json().words(["--mode", "objects"]).words([&any_python().path, &program.path]);
    let report = run.run().expect(0).report();
    assert_eq!(counter(&report, "blocks_full"), 0, "{report}");
}

/// A function that calls itself along two lines, eighteen deep: more ways to the innermost frame than there are sites.
#[test]
fn root_ways_that_come_to_the_same_lines_are_one_stack() {
    if !root() {
        return;
    }
    const DEPTH: u32 = 18;
    const ENDS: i64 = 1 << DEPTH;
    let program = format!(
        "def way(depth):\n    if depth:\n        way(depth - 1)\n        way(depth - 1)\n    \
         else:\n        bytes(1_000)  # end\n\nway({DEPTH})\n"
    );
    let program = script("ways.py", &program);
    let report = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet().report();
    report.check_complete();
    let process = report.only();
    let end = process.line("way", program.line("# end"));
    assert_eq!((end.number("allocations"), end.number("frees")), (ENDS, ENDS), "{end:?}");
    assert_eq!(end.number("allocated_bytes"), ENDS * (1_000 + BYTES_HEAD), "{end:?}");
}

/// Stacks of which all is the same but the line of the outermost caller, at every depth up to more than is remembered of a stack.
#[test]
fn root_callers_further_out_are_told_apart() {
    if !root() {
        return;
    }
    const DEPTH: i64 = 30;
    const ROUNDS: i64 = 50;
    let program = script(
        "callers.py",
        &format!(
            "
def take(depth, size):
    if depth:
        return take(depth - 1, size)
    return len(bytes(size))  # taken

def call():
    for depth in range({DEPTH}):
        for _ in range({ROUNDS}):
            take(depth, 1_000)  # first
            take(depth, 3_000)  # second

call()
"
        ),
    );
    for python in supported_pythons() {
        let report = Run::json().words([&python.path, &program.path]).run().expect(0).quiet().report();
        report.check_complete();
        let process = report.only();
        for (line, size) in [("# first", 1_000), ("# second", 3_000)] {
            let line = process.line("call", program.line(line));
            // Some pages of Python's own beside: frames up to 3.10, and the stack of frames since.
            let beside = line.number("allocated_bytes") - DEPTH * ROUNDS * (size + BYTES_HEAD);
            assert!((0..64 << 10).contains(&beside) && beside % 4096 <= 64, "{beside} bytes beside: {line:?}");
        }
    }
}

/// More threads at one time than there are whose stacks are remembered, and as many again when those have ended.
#[test]
fn root_more_threads_than_are_remembered() {
    if !root() {
        return;
    }
    const THREADS: u32 = 150;
    const ROUNDS: i64 = 20;
    let mut text = "import threading\n".to_owned();
    for number in 0..THREADS {
        text += &format!("def work{number}(gate):\n    gate.wait()\n    for _ in range({ROUNDS}):\n");
        text += &format!("        bytes({})\n    gate.wait()\n", 2_000 + number);
    }
    text += &format!("works = [{}]\n", (0..THREADS).map(|number| format!("work{number}, ")).collect::<String>());
    text += "for _ in range(2):\n    gate = threading.Barrier(len(works))\n";
    text += "    threads = [threading.Thread(target=work, args=(gate,)) for work in works]\n";
    text += "    for thread in threads: thread.start()\n    for thread in threads: thread.join()\n";
    let program = script("many_threads.py", &text);
    let report = Run::json().words([&any_python().path, &program.path]).run().expect(0).quiet().report();
    report.check_complete();
    for number in 0..THREADS {
        let line = report.only().line(&format!("work{number}"), 5 + 5 * number);
        let exact = 2 * ROUNDS * (i64::from(2_000 + number) + BYTES_HEAD);
        near_blocks(line.number("allocated_bytes"), exact);
    }
}
