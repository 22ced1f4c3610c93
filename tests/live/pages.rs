//! Pages mode: the ledger is the kernel's own count.

use crate::common::{Run, any_python, near, root, script, supported_pythons};

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

/// What a program and its children wrote of themselves last: process, resident bytes by `smaps_rollup`.
fn told(text: &str) -> Vec<(i64, i64)> {
    let mut told: Vec<(i64, i64)> = Vec::new();
    for line in text.lines() {
        if let Some(pid) = line.strip_prefix("pid ") {
            told.push((pid.trim().parse().unwrap(), 0));
        } else if let (Some(size), Some(last)) = (line.strip_prefix("Rss:"), told.last_mut()) {
            last.1 = size.trim().strip_suffix(" kB").unwrap().parse::<i64>().unwrap() * 1024;
        }
    }
    told
}

/// Reads memory of a process where that waits; until the process has ended, or for ever.
fn look(pid: i64, address: u64) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut room = [0; 8];
        let place = nix::sys::uio::RemoteIoVec { base: usize::try_from(address).unwrap(), len: 8 };
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
        let _ = nix::sys::uio::process_vm_readv(pid, &mut [std::io::IoSliceMut::new(&mut room)], &[place]);
    })
}

/// Every way in which resident memory changes (tests/programs/resident.py): the sum of all lines and reasons is the kernel's own
/// change, to the page, and the end is what the program itself reads at its end.
#[test]
fn root_varied_programs_add_up_to_the_page() {
    if !root() {
        return;
    }
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/programs/resident.py");
    let python = any_python();
    let names = python.bare(&[program]);
    let mut checked = 0;
    for name in names.lines() {
        let mut run = Run::json().words(["-m", "pages"]).word(&python.path).words([program, name]).start();
        let mut text = String::new();
        let mut looks = None;
        if name == "looked_at_while_it_ends" {
            let line = run.line();
            match line.strip_prefix("look ").and_then(|rest| rest.split_once(' ')) {
                Some((pid, address)) => looks = Some(look(pid.parse().unwrap(), address.parse().unwrap())),
                None => text = line + "\n", // no userfaultfd here
            }
        }
        let ran = run.end().expect(0).quiet();
        looks.into_iter().for_each(|looks| looks.join().unwrap());
        text += &ran.stdout_text();
        let report = ran.report();
        assert_eq!((report.health("lost"), report.health("unattributed_bytes")), (0, 0), "{name}: {report}");
        for process in report.processes() {
            let change = process.number("rss_end_bytes") - process.number("rss_start_bytes");
            // Reading the memory of a child that has just been forked maps pages of files into it, sixteen at a time, before or after
            // its resident memory is first read.
            let is_forked = report.processes().iter().any(|other| other.pid() == process.parent());
            let beside = if is_forked { 32 * 4096 } else { 0 };
            near(process.number("net_bytes"), change, beside);
        }
        for (pid, resident) in told(&text) {
            assert_eq!(report.process(pid).number("rss_end_bytes"), resident, "{name}: process {pid} in {report}");
            checked += 1;
        }
    }
    assert!(names.lines().count() >= 30 && checked >= names.lines().count(), "{checked} of {names}");
}
