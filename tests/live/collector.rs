//! What the garbage collector does on no line, on the line that asked for it, and in what it calls.

use crate::common::{Python, Run, Script, near, root, script, supported_pythons};

const PROGRAM: &str = "
import gc, os, threading

class Node:
    def __init__(self, bytes_):
        self.own = self
        self.block = b'x' * bytes_

class Last(Node):
    def __del__(self):
        kept.append(b'y' * 500_000)  # finalizer
        began.set()
        done.wait()

def drop(class_, many):
    for _ in range(many):
        class_(1_000_000)

def work():
    gc.enable()
    rows = []
    for number in range(20_000):
        rows.append([number])
    return rows

def ask():
    drop(Node, 5)
    gc.collect()  # asked

def beside():
    began.wait()
    kept.append(b'z' * 3_000_000)  # beside
    kept.append(b'z' * 2_000_000)  # then
    done.set()

kept = []
began = threading.Event()
done = threading.Event()
gc.collect()
gc.disable()
thread = threading.Thread(target=beside)
thread.start()
drop(Node, 9)
drop(Last, 1)
rows = work()
thread.join()
gc.disable()
ask()
os._exit(0)
";

/// Those that tell when garbage is collected, and by which thread; without a GIL they do where there is only one.
fn telling_pythons() -> impl Iterator<Item = Python> {
    supported_pythons().into_iter().filter(|python| !python.free_threaded)
}

fn check(python: &Python, program: &Script, options: &[&str]) {
    let report = Run::json().words(options).words([&python.path, &program.path]).run().expect(0).quiet().report();
    let process = report.only();
    let what = format!("{} {options:?}", python.version_text());
    eprintln!("{what}");
    near(process.other("the garbage collector"), -10_000_000, 300_000);
    for line in process.lines().iter().filter(|(name, _)| *name == "work") {
        assert!(line.1.increment() > -300_000, "{what}: {}", line.1.0);
    }
    let line = |function: &str, comment: &str| process.line(function, program.line(comment)).increment();
    near(line("ask", "# asked"), -5_000_000, 300_000);
    // Qualified from 3.11 on.
    let method = if python.version.0 >= 11 { "Last.__del__" } else { "__del__" };
    near(line(method, "# finalizer"), 500_000, 50_000);
    near(line("beside", "# beside"), 3_000_000, 50_000);
    near(line("beside", "# then"), 2_000_000, 50_000);
}

/// Of one thread; what its garbage has is mapped, so that no allocator keeps it.
const ALONE: &str = "
import gc, mmap, os

class Node:
    def __init__(self):
        self.own = self
        self.pages = mmap.mmap(-1, 1 << 20)

def drop(many):
    for _ in range(many):
        Node()

def work():
    gc.enable()
    rows = []
    for number in range(40_000):
        rows.append([number])
    return rows

def ask():
    drop(5)
    gc.collect()  # asked

gc.collect()
gc.disable()
drop(10)
rows = work()
gc.disable()
ask()
os._exit(0)
";

/// Without a GIL too, where no other thread can be the collector's.
#[test]
fn root_garbage_of_one_thread_is_no_lines() {
    if !root() {
        return;
    }
    let program = script("garbage.py", ALONE);
    for python in supported_pythons() {
        for options in [&[][..], &["--no-preload"]] {
            let report =
                Run::json().words(options).words([&python.path, &program.path]).run().expect(0).quiet().report();
            let process = report.only();
            let what = format!("{} {options:?}", python.version_text());
            eprintln!("{what}");
            // mimalloc gives pages of its own back in a collection.
            let more = if python.free_threaded { 1_000_000 } else { 300_000 };
            near(process.other("the garbage collector"), -10 << 20, more);
            for line in process.lines().iter().filter(|(name, _)| *name == "work") {
                assert!(line.1.increment() > -300_000, "{what}: {}", line.1.0);
            }
            near(process.line("ask", program.line("# asked")).increment(), -5 << 20, 300_000);
        }
    }
}

/// A collection that becomes due releases nothing on the line it interrupts; one that is asked for does. What finalizers and other
/// threads do meanwhile is their lines'.
#[test]
fn root_garbage_is_no_lines() {
    if !root() {
        return;
    }
    let program = script("garbage.py", PROGRAM);
    for python in telling_pythons() {
        for options in [&[][..], &["--no-preload"], &["--mode", "objects"], &["--mode", "pages"]] {
            check(&python, &program, options);
        }
    }
}
