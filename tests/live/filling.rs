//! A page that a string instruction touches after another is of the stack that was walked at that one (probes/bpf/filling.bpf.h): on
//! the right line still, whatever else the program does with the same memory, the same helper and the same end.

use crate::common::{Run, any_python, near, root, script};

/// A first execution touches a page or two for itself.
const A_FEW: i64 = 8;

/// Pages of each line of `run`, by the mark at its end, are as many as `expected` says, give or take `beside`.
fn check(text: &str, expected: &[(&str, i64)], beside: i64) {
    let program = script("filling.py", text);
    let python = any_python();
    let ran = Run::json().words(["--mode", "pages"]).words([&python.path, &program.path]).run().expect(0).quiet();
    let report = ran.report();
    report.check_complete();
    let process = report.only();
    let change = process.number("rss_end_bytes") - process.number("rss_start_bytes");
    near(process.number("net_bytes"), change, 0);
    for (mark, pages) in expected {
        let own = process.line("run", program.line(mark)).increment();
        near(own, pages * 4096, beside * 4096);
    }
}

/// The same of a program that fills parts of one area of so many pages, from the lines of `run` by one helper.
fn check_one_area(pages: i64, run: &str, expected: &[(&str, i64)]) {
    let text = format!(
        "
import ctypes, mmap

def fill(address, size):
    ctypes.memset(address, 1, size)

def run():
{run}
SIZE = {pages} * 4096
area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
run()
"
    );
    check(&text, expected, A_FEW);
}

#[test]
fn root_the_same_memory_is_filled_from_two_lines() {
    if !root() {
        return;
    }
    check_one_area(
        64,
        "    for _ in range(40):
        fill(start, SIZE)  # all of it
        area.madvise(mmap.MADV_DONTNEED)  # released
        fill(start, SIZE)  # again
        area.madvise(mmap.MADV_DONTNEED)  # twice
        fill(start + SIZE // 2, SIZE // 2)  # the second half
        fill(start, SIZE)  # and the first
        area.madvise(mmap.MADV_DONTNEED)  # thrice
        fill(start, SIZE // 4)  # a quarter
        fill(start + SIZE // 4, SIZE - SIZE // 4)  # the rest
        area.madvise(mmap.MADV_DONTNEED)  # at last
",
        &[
            ("# all of it", 40 * 64),
            ("# again", 40 * 64),
            ("# the second half", 40 * 32),
            ("# and the first", 40 * 32),
            ("# a quarter", 40 * 16),
            ("# the rest", 40 * 48),
            ("# released", -40 * 64),
            ("# twice", -40 * 64),
            ("# thrice", -40 * 64),
            ("# at last", -40 * 64),
        ],
    );
}

/// Neighbours in memory, each of which ends where the next begins.
#[test]
fn root_neighbours_are_filled_from_two_lines() {
    if !root() {
        return;
    }
    check_one_area(
        16 * 100,
        "    for at in range(0, SIZE, 16 * 4096):
        fill(start + at, 4096)  # one page
        fill(start + at + 4096, 5 * 4096)  # five
        fill(start + at + 6 * 4096, 10 * 4096)  # ten
",
        &[("# one page", 100), ("# five", 500), ("# ten", 1000)],
    );
}

/// Two threads at it, without the GIL. What one has taken or released is not the other's, though that sees it before it is told: by the sum
/// over the CPUs up to eight pages of a hundred were on the other's line. Between their times the program is alone and fills too.
#[test]
fn root_threads_fill_side_by_side() {
    if !root() {
        return;
    }
    check(
        "
import ctypes, mmap, threading

memset = ctypes.CDLL(None).memset
memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)

def fill(address, size):
    memset(address, 1, size)

def run(part):
    area = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    if part == 'alone':
        for _ in range(10):
            fill(start, SIZE)  # alone
            area.madvise(mmap.MADV_DONTNEED)  # released
        return
    both.wait()
    for _ in range(10):
        if part == 'first':
            fill(start, SIZE)  # the one
        else:
            fill(start, SIZE)  # the other
        area.madvise(mmap.MADV_DONTNEED)  # each

SIZE = 512 * 4096
both = threading.Barrier(2)
for _ in range(4):
    run('alone')
    threads = [threading.Thread(target=run, args=(part,)) for part in ('first', 'second')]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
",
        &[
            ("# alone", 40 * 512),
            ("# released", -40 * 512),
            ("# the one", 40 * 512),
            ("# the other", 40 * 512),
            ("# each", -2 * 40 * 512),
        ],
        A_FEW,
    );
}
