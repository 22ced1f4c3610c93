//! Pages mode: the ledger is the kernel's own count.

use crate::common::{Run, near, root, script, supported_pythons};

#[test]
fn root_the_net_is_the_change_the_program_itself_reads() {
    if !root() {
        return;
    }
    // Reads its own resident bytes, exactly, before and after one line, with nothing allocated by Python between.
    let program = script(
        "pages.py",
        "
import mmap, os

def resident():
    text = os.pread(rollup, 4096, 0)
    start = text.index(b'Rss:') + 4
    return int(text[start:text.index(b'kB', start)]) * 1024

def touch():
    area[:] = filler  # touch

def release():
    area.madvise(mmap.MADV_DONTNEED)  # release

rollup = os.open('/proc/self/smaps_rollup', os.O_RDONLY)
filler = bytes(8 << 20)
area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
resident()
first = resident()
touch()
second = resident()
if hasattr(area, 'madvise'):
    release()
third = resident()
print(second - first)
print(third - second)
print(filler[:0].decode(), flush=True)
os._exit(0)
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words(["--mode", "pages"]).words([&python.path, &program.path]).run().expect(0).quiet();
        let text = ran.stdout_text();
        let changes: Vec<i64> =
            text.lines().filter(|line| !line.is_empty()).map(|line| line.parse().unwrap()).collect();
        let report = ran.report();
        report.check_complete();
        let process = report.only();
        assert_eq!(report.0["tool"]["mode"], "pages");
        let touched = process.line("touch", program.line("# touch")).own();
        // The first call of a function takes a frame, a page or two.
        near(touched, changes[0], 3 * 4096);
        near(touched, 8 << 20, 3 * 4096 + (8 << 20) / 512);
        if changes[1] != 0 {
            near(process.line("release", program.line("# release")).own(), changes[1], 3 * 4096);
        }
    }
}

/// From its first instruction to its end: net is resident at the end less resident at the start.
#[test]
fn root_the_whole_adds_up() {
    if !root() {
        return;
    }
    for python in supported_pythons() {
        let text = "import os; kept = [bytes(5000) for _ in range(3000)]; del kept[::2]; os._exit(0)";
        let ran = Run::json().words(["-m", "pages"]).word(&python.path).words(["-c", text]).run().expect(0).quiet();
        let report = ran.report();
        let process = report.only();
        let change = process.number("rss_end_bytes") - process.number("rss_start_bytes");
        near(process.number("net_bytes"), change, 0);
    }
}

#[test]
fn root_marked_functions_work_in_pages_mode() {
    if !root() {
        return;
    }
    let program = script(
        "grow.py",
        "
@profile
def grow():
    kept = bytearray(16 << 20)  # here
    kept = None  # gone
    return kept

grow()
",
    );
    for python in supported_pythons() {
        let ran = Run::json().words(["--mode", "pages"]).words([&python.path, &program.path]).run().expect(0).quiet();
        let report = ran.report();
        let process = report.only();
        assert_eq!(process.marked(), ["grow"]);
        // calloc's fresh mapping is zero already: only its pages that were touched count.
        let (here, gone) = (process.line("grow", program.line("# here")), process.line("grow", program.line("# gone")));
        assert_eq!((here.number("occurrences"), gone.number("occurrences")), (1, 1));
        near(here.increment() + gone.increment(), 0, 8 * 4096);
        near(gone.number("mem_usage_bytes"), here.number("mem_usage_bytes") - here.increment(), 16 * 4096);
    }
}

/// Heap mode beside it: a block never touched has bytes but no pages.
#[test]
fn root_heap_counts_what_pages_does_not() {
    if !root() {
        return;
    }
    let program = script(
        "untouched.py",
        "
import mmap
def reserve():
    return mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # reserve
area = reserve()
import os; os._exit(0)
",
    );
    for python in supported_pythons() {
        let of = |mode: &str| {
            let ran = Run::json().words(["--mode", mode]).words([&python.path, &program.path]).run().expect(0).quiet();
            ran.report().only().find("reserve", program.line("# reserve")).map_or(0, |line| line.increment())
        };
        near(of("heap"), 64 << 20, 3 * 4096);
        near(of("pages"), 0, 4 * 4096);
    }
}
