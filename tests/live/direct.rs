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
    let encrypted = ["tdx_guest", "sev"].iter().any(|word| processor.contains(word));
    let can = cfg!(target_arch = "x86_64") && symbols.contains(" bpf_rdonly_cast") && !encrypted;
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
