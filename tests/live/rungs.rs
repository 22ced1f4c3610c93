//! Every way to count gives the same bytes: the process's own tally, and each way to attach user probes that this kernel has.

use crate::common::{Run, Target, any_python, near_blocks, root, script};

/// All roles with a return: `bytearray` resizes by realloc; a thread, a fork and an exec on the way.
const PROGRAM: &str = "
import os, sys, threading

def take():
    kept = bytearray(3_000_000)  # here
    kept.extend(bytes(2_000_000))  # resized
    return kept

def main():
    results = []
    worker = threading.Thread(target=lambda: results.append(take()))
    worker.start()
    worker.join()
    child = os.fork()
    if child == 0:
        take()
        os._exit(0)
    os.waitpid(child, 0)
    if 'again' not in sys.argv:
        os.execv(sys.executable, [sys.executable, __file__, 'again'])
main()
";

#[test]
fn root_every_way_gives_the_same_bytes() {
    if !root() {
        return;
    }
    for marked in [false, true] {
        let text = if marked { PROGRAM.replace("def take", "@profile\ndef take") } else { PROGRAM.to_owned() };
        let program = script("rungs.py", &text);
        for (rung, words) in [
            ("tally", &[][..]),
            ("best", &["--no-preload"]),
            ("session", &["--probes", "session"]),
            ("preempted", &["--probes", "preempted"]),
            ("multi", &["--probes", "multi"]),
            ("single", &["--probes", "single"]),
        ] {
            let run = Run::json().words(words).word(any_python().path).word(&program.path);
            let report = run.run().expect(0).quiet().report();
            let processes = report.processes();
            assert_eq!(processes.len(), 4, "{rung}: {report}");
            for process in processes {
                near_blocks(process.line("take", program.line("# here")).increment(), 3_000_001);
                let resized = process.line("take", program.line("# resized")).increment();
                assert!((2_000_000..3_000_000).contains(&resized), "{rung}: {resized}");
            }
        }
    }
}

/// Programs for user probes may be preempted, and then run for another thread: what the kernel gives others as a stack, memory of the CPU,
/// is none for them (`ON_ITS_OWN_STACK`). Their machine code tells.
#[cfg(target_arch = "x86_64")]
#[test]
fn root_programs_of_user_probes_have_the_threads_stack() {
    use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions};
    /// `add %gs:…,%r9`, by which a function takes it (arch/x86/net/bpf_jit_comp.c, `emit_priv_frame_ptr`).
    const TAKES: [u8; 5] = [0x65, 0x4c, 0x03, 0x0c, 0x25];
    if !root() {
        return;
    }
    let program = script(
        "waits.py",
        "print('ready', flush=True)\nfor line in __import__('sys').stdin: print('done', flush=True)\n",
    );
    let target = Target::start(&any_python(), &program);
    let started = Run::json_of(["attach", "--mode", "heap"]).word(target.pid()).start_on(&target);
    let all = ProgInfoIter::with_query_opts(ProgInfoQueryOptions::default().include_jited_prog_insns(true));
    let takes = |code: &[u8]| code.windows(TAKES.len()).filter(|window| *window == TAKES).count();
    let found: Vec<(String, usize)> =
        all.map(|info| (info.name.to_string_lossy().into_owned(), takes(&info.jited_prog_insns))).collect();
    let of = |name: &str| found.iter().filter(|(of, _)| of == name).map(|(_, takes)| *takes).collect::<Vec<_>>();
    // One that does not come upon itself: this kernel gives such stacks, and they are seen.
    assert!(of("memory_changes").iter().any(|takes| *takes > 0), "{found:?}");
    for name in ["heap_session", "launch_multi"] {
        assert!(!of(name).is_empty() && of(name).iter().all(|takes| *takes == 0), "{name}: {found:?}");
    }
    started.signal(nix::sys::signal::Signal::SIGINT);
    started.end().expect(0);
    target.end();
}
