//! Memory of programs is read where the kernel has all memory mapped for itself (probes/bpf/direct.bpf.h). That both ways read the same,
//! the other tests hold: aya's object has only the other.

use crate::common::{Run, any_python, near, root, script};

/// Where the kernel has what it takes, it is found, or all events would silently take twice as long.
#[test]
fn root_direct_memory_is_found_where_it_can_be() {
    if !root() {
        return;
    }
    let symbols = std::fs::read_to_string("/proc/kallsyms").unwrap();
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let has = |flag| processor.split_whitespace().any(|word| word == flag);
    if std::fs::File::open("/proc/kcore").is_err() && (has("tdx_guest") || has("sev")) {
        eprintln!("NOT RUN: this may be the guest of a machine that encrypts it");
        return;
    }
    let can = cfg!(target_arch = "x86_64") && symbols.contains(" bpf_rdonly_cast");
    let ran = Run::new(["doctor"]).run();
    let said = ran.stdout_text();
    let found = said.lines().filter(|line| line.contains("memory read directly")).count();
    assert_eq!(found, if can { 2 } else { 0 }, "{said}");
}

/// Code objects, and all else that Python keeps, in pages of two mebibytes.
#[test]
fn root_large_pages_are_read_too() {
    if !root() {
        return;
    }
    let program = script(
        "large.py",
        "
import mmap

def touch():
    area[:] = filler  # touch

if __name__ == '__main__':
    kept = [bytes(600) for _ in range(100_000)]
    with open(__file__) as file:
        again = compile(file.read(), __file__, 'exec')  # its code objects are of the heap's end
    exec(again, {'__name__': 'again'})
    text = open('/proc/self/smaps_rollup').read()
    print(text.split('AnonHugePages:')[1].split()[0], flush=True)
else:
    filler = bytes(8 << 20)
    area = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch()
",
    );
    let python = any_python();
    let run = Run::json().words(["--mode", "pages"]).words([&python.path, &program.path]);
    let run = run.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1").env("PYTHONMALLOC", "malloc");
    let ran = run.run().expect(0).quiet();
    if ran.stdout_text().trim() == "0" {
        eprintln!("NOT RUN: no large pages here");
        return;
    }
    let report = ran.report();
    report.check_complete();
    let process = report.only();
    near(process.line("touch", program.line("# touch")).own(), 8 << 20, 4 * 4096);
    let change = process.number("rss_end_bytes") - process.number("rss_start_bytes");
    near(process.number("net_bytes"), change, 0);
}

/// While a thread's frames are walked another puts their pages together to large ones and takes these apart again.
#[test]
fn root_memory_that_moves_while_it_is_read() {
    if !root() {
        return;
    }
    let program = script(
        "moves.py",
        "
import ctypes, mmap, sys, threading

libc = ctypes.CDLL(None)
PAGE, LARGE, MADV_NOHUGEPAGE, MADV_COLLAPSE = 4096, 2 << 20, 15, 25
stop = False
collapsed = 0

def call(function, *words):
    return function(*map(ctypes.c_size_t, words))

def regions():
    for line in open('/proc/self/maps'):
        fields = line.split()
        first, last = (int(end, 16) for end in fields[0].split('-'))
        if fields[1] == 'rw-p' and (len(fields) < 6 or fields[5] == '[heap]'):
            yield from range(-(-first // LARGE) * LARGE, last - LARGE + 1, LARGE)

def move():
    global collapsed
    while not stop:
        for region in regions():
            collapsed += not call(libc.madvise, region, LARGE, MADV_COLLAPSE)
            call(libc.mlock, region + 5 * PAGE, PAGE)
            call(libc.munlock, region + 5 * PAGE, PAGE)

def touch(area):
    area[:] = filler  # touch

def deep(frames, area):
    if frames:
        deep(frames - 1, area)
    else:
        touch(area)

filler = bytes(1 << 20)
kept = [bytes(500) for _ in range(60_000)]
thread = threading.Thread(target=move)
thread.start()
for _ in range(500):
    area = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    call(libc.madvise, address, 1 << 20, MADV_NOHUGEPAGE)
    deep(20, area)
stop = True
thread.join()
print(collapsed, flush=True)
",
    );
    let ran = Run::json().words(["--mode", "pages"]).words([&any_python().path, &program.path]).run().expect(0).quiet();
    let collapsed: u64 = ran.stdout_text().trim().parse().unwrap();
    if collapsed == 0 {
        eprintln!("NOT RUN: nothing could be put together here");
        return;
    }
    let report = ran.report();
    let process = report.only();
    // A page that is just being moved can be read neither way: such a stack is unknown, and counted.
    let lost = report.health("unattributed_bytes");
    let own = process.line("touch", program.line("# touch")).own();
    assert!((-lost..=16 * 4096).contains(&(own - (500 << 20))), "{own}, {lost} lost");
    assert!(lost <= 5 << 20, "{lost}");
    let change = process.number("rss_end_bytes") - process.number("rss_start_bytes");
    near(process.number("net_bytes"), change, 0);
}
